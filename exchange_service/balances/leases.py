"""Leases: of the replicas on one cache, the holder of an account's lease asks the venue; the others wait for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from exchange_service import clock
from exchange_service.balances.cached import CachedBalances
from exchange_service.balances.freshness import PollBackoff
from exchange_service.cache import Lease
from exchange_service.cache.memory import LocalLease
from exchange_service.errors import PluginFailed, VenueError, VenueTimeout
from exchange_service.model import VenueReports
from exchange_service.observability.tracing import add_event
from exchange_service.venues.fetching import Fetcher, Target
from exchange_service.venues.priority import Priority
from exchange_service.wire.balances import FetchedBalance
from exchange_service.wire.stored import CLOCK_TOLERANCE, StoredBalance, store_balance

# Seconds after which another replica takes over the lease of one that has not come back from the venue.
LEASE = 5.0
# Seconds between two looks at what the holder has written. Its invalidation comes first, unless it is lost.
_LOOK_EVERY = 0.5
# Seconds after which a holder is not waited for if the cache has failed lately: the venue may have answered long ago.
_PATIENCE = 1.0
# Seconds of waiting that a trace tells.
_WORTH_TELLING = 0.001
# Writes that lose against another replica's are tried again, which a broken clock must not make endless.
_MOST_WRITES = 3


@dataclass(frozen=True, slots=True)
class FetchResult:
    """A balance that a fetch has brought, and whether this replica asked the venue for it."""

    stored: StoredBalance
    here: bool


class Leased:
    """Asks the venue, or waits for the replica that does; stores the balance where all replicas find it."""

    def __init__(
        self,
        inner: Fetcher[FetchedBalance],
        cached: CachedBalances,
        backoff: PollBackoff | None = None,
        now: Callable[[], float] = clock.wall,
    ) -> None:
        self.inner = inner
        self._cached = cached
        self._backoff = backoff or PollBackoff()
        self._now = now

    async def fetch(self, target: Target, deadline: float, priority: Priority) -> FetchResult:
        """See `Fetcher`. Another replica's balance serves if it is newer than `target.wanted_after`, and not below
        `target.known_version`."""
        with self._cached.changes(target.key) as changed:
            lease = await self._wait_for_lease(target, deadline, priority, changed)
        if isinstance(lease, StoredBalance):
            return FetchResult(lease, here=False)
        async with lease_held(lease, LEASE):
            try:
                return await self._fetch_as_holder(target, deadline, priority)
            except BaseException:
                if lease.shared:
                    # Replicas that wait for this balance need not wait any longer.
                    await self._cached.publish_abandoned(target.key)
                raise

    async def _wait_for_lease(
        self, target: Target, deadline: float, priority: Priority, changed: asyncio.Event
    ) -> Lease | StoredBalance:
        """The lease, or the balance of the replica that had it. Raises that one's error."""
        loop_time = asyncio.get_running_loop().time
        began = loop_time()
        while (lease := await self._cached.lease(target.key, LEASE)) is None:
            stored = await self._wait_for_holder(target, changed)
            if stored is not None:
                add_event("lease.answered_by_other", waited=loop_time() - began)
                return stored
            if loop_time() >= deadline:
                error = VenueTimeout(f"{target.listing.metadata.name} did not answer another replica in time.")
                # The other one may be late itself, and says so if it fails.
                error.late = priority.polling
                raise error
            if not self._cached.reliable and loop_time() - began >= _PATIENCE:
                # What the holder brings may never be seen here.
                return LocalLease()
        if (waited := loop_time() - began) >= _WORTH_TELLING:
            add_event("lease.taken", waited=waited)
        return lease

    async def _wait_for_holder(self, target: Target, changed: asyncio.Event) -> StoredBalance | None:
        """The balance of the replica that holds the lease; None if there is nothing yet. Raises its error."""
        notified = True
        try:
            async with asyncio.timeout(_LOOK_EVERY):
                await changed.wait()
        except TimeoutError:
            notified = False
        changed.clear()
        stored = await self._cached.read(target.key, target.account)
        if stored is not None and self._serves(stored, target, target.wanted_after):
            return stored
        name = target.listing.metadata.name
        error = await self._cached.cached_error(target.key, name) if notified else None
        if error is not None:
            raise error
        return None

    async def _fetch_as_holder(self, target: Target, deadline: float, priority: Priority) -> FetchResult:
        # Another replica may have come back between our look at the cache and our lease.
        present = await self._cached.read(target.key, target.account)
        if present is not None and self._serves(present, target, target.wanted_after):
            add_event("cache.answered")
            return FetchResult(present, here=False)
        began = self._now()
        try:
            fetched = await self.inner.fetch(target, deadline, priority)
        except VenueError as error:
            # The venue's last word is for every replica; that this one did not come to ask it is not.
            if error.venue_was_asked:
                await self._cached.publish_error(target.key, error)
            raise
        return await self._store(target, fetched, present, began)

    def _serves(self, stored: StoredBalance, target: Target, newer_than: float) -> bool:
        """Whether the caller has nothing newer, and it was fetched after this time, and not later than now: a fetch
        time ahead says nothing of its age."""
        if stored.version < target.known_version:
            return False
        return newer_than < stored.fetch_time <= self._now() + CLOCK_TOLERANCE

    async def _store(
        self, target: Target, fetched: FetchedBalance, present: StoredBalance | None, began: float
    ) -> FetchResult:
        """Store the balance in the place of `present`, with a version that follows the newest one that is known here.

        Another replica may have written meanwhile: its balance serves if it was fetched after ours had begun and its
        version does not go back. Else ours takes its place, and follows it if its version is the higher one: a late
        clock, or a write while we had no Redis."""
        previous = present
        for _ in range(_MOST_WRITES):
            # The cache may have lost what this process has handed out.
            previous = _newer(previous, self._cached.last_good(target.key))
            stored = self._make_stored(target, fetched, previous)
            written, present = await self._cached.write(target.key, stored, replacing=present)
            if written:
                return FetchResult(stored, here=True)
            if present is None:
                continue
            if self._serves(present, target, began) and (previous is None or present.version >= previous.version):
                return FetchResult(present, here=False)
            previous = _newer(previous, present)
        # Others keep writing, and the caller gets what they have stored: a version that is not stored must not be seen,
        # because the next one may be lower.
        if present is not None and present is previous:
            return FetchResult(present, here=False)
        return FetchResult(stored, here=True)

    async def store_pushed(self, target: Target, fetched: FetchedBalance, arrived_at: float) -> FetchResult:
        """Store a balance that the venue has pushed, and which came at `arrived_at` by the monotonic clock. Returns
        what is stored now: what a read has brought, here or on another replica, if that came later."""
        target = replace(target, reports=VenueReports(answered_at=arrived_at))
        present, arrived = self._cached.last_good(target.key), self._answer_time(target)
        if present is not None and self._serves(present, target, arrived):
            # The push has waited for its turn meanwhile.
            return FetchResult(present, here=False)
        return await self._store(target, fetched, present, arrived)

    def _answer_time(self, target: Target) -> float:
        """When the venue answered, in seconds since the epoch."""
        answered_at = target.reports.answered_at
        return self._now() - (time.monotonic() - answered_at if answered_at is not None else 0.0)

    def _make_stored(self, target: Target, fetched: FetchedBalance, previous: StoredBalance | None) -> StoredBalance:
        try:
            stored = store_balance(target.account, fetched, self._answer_time(target), previous, target.known_version)
        except ValueError:
            # The plugin process sent an invalid message.
            name = target.listing.plugin.info.name
            raise PluginFailed(f"The plugin {name} answered with something that is not a balance.") from None
        return replace(stored, pause=self._backoff.after(stored, previous))


def _newer(one: StoredBalance | None, other: StoredBalance | None) -> StoredBalance | None:
    """The one with the higher version; the other one if they are equal."""
    if one is None or (other is not None and other.version >= one.version):
        return other
    return one


@asynccontextmanager
async def lease_held(lease: Lease, seconds: float) -> AsyncIterator[None]:
    """Hold the lease inside the block, and release it. A holder that has died loses it after `seconds`."""
    renewal = asyncio.create_task(_renew(lease, seconds), name="lease renewal") if lease.shared else None
    try:
        yield
    finally:
        if renewal is not None:
            renewal.cancel()
        await lease.release()


async def _renew(lease: Lease, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds * 0.4)
        await lease.renew()
