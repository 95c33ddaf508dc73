"""Watches: of the replicas that follow an account, one follows the venue's pushes and writes what they bring.

The others get it through the cache. A replica that dies is replaced when its lease ends.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from exchange_service import clock
from exchange_service.balances.push_log import PushLog
from exchange_service.balances.push_room import SLOT_LEASE, PushRoom, PushSlot, held_on
from exchange_service.balances.service import BalanceResult, Balances
from exchange_service.cache import Lease
from exchange_service.errors import NotSupported, ServiceError, StoreUnavailable, VenueRateLimited
from exchange_service.model import Account
from exchange_service.observability.metrics import Metrics
from exchange_service.observability.tracing import ActiveSpan, Tracing, Within, origin_span
from exchange_service.tasks import TaskSet, retrieve_exception
from exchange_service.venues.egress import Egress
from exchange_service.venues.fetching import Target, Venues
from exchange_service.venues.registry import Listing
from exchange_service.venues.watching import Pushed
from exchange_service.wire.balances import FetchedBalance
from exchange_service.wire.delivery import Delivery, PollingReason
from exchange_service.wire.replies import Source
from exchange_service.wire.stored import StoredBalance, row_totals

# Seconds after which the pushes of a replica that has died are free, and between two looks of the others: one of them
# has taken over within ten seconds.
PUSH_LEASE = SLOT_LEASE
_LOOK_EVERY = 3.0
_RENEW_EVERY = PUSH_LEASE * 0.4
# Seconds between two words of the one that follows on how changes reach it, if nothing has changed: the cache keeps its
# word for a time, and may have lost it.
_TELL_EVERY = 60.0
# Seconds before a push that has broken is begun again: twice as long each time, from the first to the second, and up to
# half of that less, by chance. One that has stood for so long begins from the first.
_SHORTEST_PAUSE, _LONGEST_PAUSE, _STOOD = 1.0, 60.0, 60.0
# The most seconds that a venue's word delays it, and the pause after one that pushes no such account.
_LONGEST_DELAY, _REFUSED_PAUSE = 600.0, 600.0
# The pause after a failure that is not the push's, as when the credential cannot be looked up.
_OTHER_PAUSE = 5.0
# Seconds within which a balance that has not changed is not written again.
_UNCHANGED = 5.0
# Seconds around a read within which a push may bring the change that the read has found: some venues push every five.
_PUSH_LAG = 10.0
# Seconds between two pushes of one account that are looked at, however fast its venue or its plugin pushes.
_BETWEEN_PUSHES = 0.05

_CLOSE_LIMIT = 1.0

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Watches:
    """What all watches of this replica share."""

    balances: Balances
    venues: Venues
    room: PushRoom
    metrics: Metrics = field(default_factory=Metrics)
    now: Callable[[], float] = clock.wall
    egress: Egress = field(default_factory=Egress)
    # None without traces.
    tracing: Tracing | None = None
    opened: set[AccountWatch] = field(default_factory=set)
    _tasks: TaskSet = field(default_factory=TaskSet)
    _lines: PushLog = field(default_factory=PushLog)

    def open(self, account: Account, listing: Listing, wake: Callable[[], None]) -> AccountWatch:
        """Begin to follow an account's pushes; `wake` is called when `delivery` or `hinted_at` has changed."""
        watch = AccountWatch(self, account, listing, wake)
        self.opened.add(watch)
        watch.start()
        return watch

    def run(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a watch beside everything else."""
        return self._tasks.start(work, name=name)

    def counts(self) -> Mapping[tuple[str, str], int]:
        """How many accounts are pushed, and polled for each reason, by exchange and the delivery's word."""
        return Counter((watch.exchange, watch.delivery.word) for watch in self.opened)

    async def close(self) -> None:
        """End every watch."""
        for watch in list(self.opened):
            watch.close()
        await self._tasks.close(_CLOSE_LIMIT)
        self._lines.close()

    def report_standing(self, exchange: str) -> None:
        """An account is pushed from now on."""
        self._lines.stands(exchange)

    def report_break(self, exchange: str, error: ServiceError, pause: float) -> None:
        """A push has broken, or did not come to stand."""
        self.metrics.push_broken(exchange, error.reason)
        self._lines.ended(exchange, error, pause)

    def report_difference(self, exchange: str, in_a_row: int) -> None:
        """A reconciling read found what the push has not brought."""
        self.metrics.push_difference(exchange)
        self._lines.differs(exchange, in_a_row)


class AccountWatch:
    """One account's pushes, as this replica sees them."""

    def __init__(self, watches: Watches, account: Account, listing: Listing, wake: Callable[[], None]) -> None:
        self._watches = watches
        self._account = account
        self._listing = listing
        self._wake = wake
        self.delivery = Delivery(PollingReason.STARTING, watches.now())
        # Whether this replica follows the pushes, and not another one.
        self.here = False
        # When the venue said last that something has changed, in seconds since the epoch.
        self.hinted_at = 0.0
        # When something came last, by the event loop's clock.
        self.pushed_at = 0.0
        self.key = ""
        # What was stored last, what it was made of, and when that came.
        self._last: tuple[FetchedBalance, StoredBalance, float] | None = None
        # The version that the cache held at the last look, while another replica follows the pushes.
        self._seen_version = 0
        self._stood_at: float | None = None
        self._told_at = float("-inf")
        self._failures = 0
        self._differences = 0
        # The address from which the account is followed, as far as the venue counts by it.
        self._counted_as = ""
        # The call for which the account is followed.
        self._opened_by = origin_span()
        self._task: asyncio.Task[None] | None = None
        # That task, and those before it that have not ended yet.
        self._running: set[asyncio.Task[None]] = set()

    @property
    def exchange(self) -> str:
        """The listing's id."""
        return self._listing.metadata.id

    def start(self) -> None:
        """Begin."""
        task = self._watches.run(self._run(set(self._running)), f"push {self._account.exchange_id}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        self._task = task

    def close(self) -> None:
        """Follow it no more."""
        self._watches.opened.discard(self)
        if self._task is not None:
            self._task.cancel()
        self._forget_delivery()

    def restart(self) -> None:
        """Begin from the start: the credential has changed, or the push lacks what a read has found."""
        if self._task is not None:
            self._task.cancel()
        self._differences = 0
        self._use("")
        self._set(Delivery(PollingReason.STARTING, self._watches.now()))
        self.start()

    def note_read(self, before: StoredBalance | None, result: BalanceResult, began: float) -> None:
        """Compare a reconciling read, begun at `began` in the loop's time, with what the pushes had brought."""
        if before is None or result.source is not Source.VENUE or self.hinted_at:
            return
        if row_totals(before) == row_totals(result.stored):
            self._differences = 0
        else:
            # The push may be on its way.
            loop, earliest = asyncio.get_running_loop(), began - _PUSH_LAG
            loop.call_later(_PUSH_LAG, self._note_difference, earliest)

    def _note_difference(self, earliest: float) -> None:
        """A read found something else: the push has missed a change, unless something has come since `earliest`."""
        if self.pushed_at >= earliest or self not in self._watches.opened:
            return
        self._differences += 1
        self._watches.report_difference(self.exchange, self._differences)
        if self._differences > 1:
            self.restart()

    async def _run(self, earlier: set[asyncio.Task[None]]) -> None:
        if earlier:
            # What they followed is given up before it is followed again: one connection, one slot, one state.
            await asyncio.wait(earlier)
        while True:
            try:
                pause = await self._try()
            except ServiceError:
                pause = _OTHER_PAUSE
                self._set(Delivery(PollingReason.BROKEN, self._watches.now()))
            except Exception as error:
                log.error("push.failed", exchange=self._account.exchange_id, error=type(error).__name__)
                pause = _LONGEST_PAUSE
                self._set(Delivery(PollingReason.BROKEN, self._watches.now()))
            await asyncio.sleep(pause)

    async def _try(self) -> float:
        """Follow the pushes as long as they last. Returns the seconds until the next try. Raises what looking up the
        credential raises."""
        target = await self._watches.balances.target(self._account, self._listing)
        self._use(target.key)
        self._counted_as = self._watches.egress.of_target(target).counted_as
        cached = self._watches.balances.cached
        with cached.push_changes(target.key) as changed:
            lease = await cached.push_lease(target.key, PUSH_LEASE)
            if lease is None:
                await self._look_on(target.key, changed)
                return 0.0
        try:
            slot = await self._take_slot()
            if slot is not None:
                return await self._try_as_holder(target, lease, slot)
            await self._tell(PollingReason.NO_ROOM)
        finally:
            await self._release(target.key, lease)
        with cached.push_changes(target.key) as changed:
            await self._watches.room.wait(self._venue, _look_pause(), changed)
        return 0.0

    async def _look_on(self, key: str, changed: asyncio.Event) -> None:
        """Another replica follows the pushes: say what it says, until it says something else, or may have died."""
        told = await self._watches.balances.cached.told_delivery(key)
        self._set(told or Delivery(PollingReason.STARTING, self._watches.now()))
        with suppress(TimeoutError):
            async with asyncio.timeout(_look_pause()):
                await changed.wait()
        await self._look_at_balance(key)

    async def _look_at_balance(self, key: str) -> None:
        """Have the feed read again if the cache holds another balance than at the last look: the message that tells so
        may be lost."""
        stored = await self._watches.balances.cached.read(key, self._account)
        if stored is not None and stored.version != self._seen_version:
            self._seen_version = stored.version
            self._wake()

    async def _release(self, key: str, lease: Lease) -> None:
        shared = lease.shared
        await lease.release()
        if shared and self.delivery.reason in (None, PollingReason.STARTING):
            # It was followed until now, so that another replica can do so at once.
            await self._watches.balances.cached.publish_push(key)

    @property
    def _venue(self) -> str:
        """The venue as its limits count: for each of our addresses."""
        name = f"{self._listing.metadata.venue} {self._account.environment}"
        return f"{name} from {self._counted_as}" if self._counted_as else name

    async def _take_slot(self) -> PushSlot | None:
        return await self._watches.room.take(self._venue, self._listing.metadata.push.accounts)

    async def _try_as_holder(self, target: Target, lease: Lease, slot: PushSlot) -> float:
        self.here = True
        try:
            if self.delivery.reason is not PollingReason.BROKEN:
                await self._tell(PollingReason.STARTING)
            await self._follow_while_held(target, lease, slot)
            return 0.0
        except ServiceError as error:
            # Told before the lease is released: what its next holder tells comes later.
            return await self._note_break(error)
        finally:
            # The next one to follow begins with a read, or with a whole balance.
            self.here, self._stood_at, self.hinted_at = False, None, 0.0
            await slot.release()

    async def _follow_while_held(self, target: Target, lease: Lease, slot: PushSlot) -> None:
        """Follow until the push breaks, or the lease or the slot belongs to another replica."""
        following = asyncio.ensure_future(self._follow(target))
        holding = asyncio.ensure_future(self._hold(target, lease, slot))
        try:
            await asyncio.wait({following, holding}, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                following.result()
        finally:
            for task in (following, holding):
                task.cancel()
            await asyncio.wait({following, holding})
            retrieve_exception(holding)

    async def _hold(self, target: Target, lease: Lease, slot: PushSlot) -> None:
        """Renew both until one is lost, or the credential is not the account's any more."""
        cached = self._watches.balances.cached
        alone = slot.alone or not lease.shared
        while True:
            # Watches that began together drift apart: hundreds of renewals at once would keep the loop busy.
            await asyncio.sleep(_RENEW_EVERY * random.uniform(0.7, 1.0))  # noqa: S311
            if alone and cached.shared:
                # The replicas can agree again.
                return
            if not (await held_on(lease) and await slot.renew() and await self._is_still_its_key(target)):
                return
            if time.monotonic() - self._told_at >= _TELL_EVERY:
                await self._tell_others()

    async def _is_still_its_key(self, target: Target) -> bool:
        """Whether the stored credential is the one that the push follows: nobody may have told of a change."""
        try:
            # The lease does not wait for a store that is slow.
            async with asyncio.timeout(_RENEW_EVERY / 2):
                now = await self._watches.balances.target(self._account, self._listing)
        except (StoreUnavailable, TimeoutError):
            return True
        except ServiceError:
            return False
        return now.key == target.key

    async def _follow(self, target: Target) -> None:
        async with aclosing(self._watches.venues.watch(target)) as pushes:
            async for pushed in pushes:
                await self._take(target, pushed)

    async def _take(self, target: Target, pushed: Pushed) -> None:
        metrics = self._watches.metrics
        metrics.push_came(self.exchange, "hint" if pushed.balance is None else "whole")
        if self._stood_at is None:
            self._stood_at = time.monotonic()
            self._watches.report_standing(self.exchange)
            await self._tell(None)
        self.pushed_at = asyncio.get_running_loop().time()
        with Within(self._push_span(pushed)):
            if pushed.balance is None:
                self._note_hint(pushed.arrived_at)
            elif not self._is_known(target, pushed.balance, pushed.arrived_at):
                await self._store(target, pushed.balance, pushed.arrived_at)
        # What comes meanwhile is one balance, the last.
        await asyncio.sleep(_BETWEEN_PUSHES)

    def _push_span(self, pushed: Pushed) -> ActiveSpan | None:
        """A trace of its own for what was pushed, from its arrival on; None if it is not traced."""
        tracing, account = self._watches.tracing, self._account
        if tracing is None:
            return None
        attributes = {
            "exchange_service.exchange": self.exchange,
            "exchange_service.environment": account.environment,
            "exchange_service.kind": "hint" if pushed.balance is None else "whole",
        }
        age = time.monotonic() - pushed.arrived_at
        return tracing.begin_root("push", attributes, self._opened_by, began_ago=max(0.0, age))

    def _is_known(self, target: Target, balance: FetchedBalance, arrived_at: float) -> bool:
        """Whether it is what was stored a moment ago, and nobody has stored anything else since."""
        if self._last is None or self._last[0] != balance or arrived_at - self._last[2] >= _UNCHANGED:
            return False
        copy = self._watches.balances.cached.get_local(target.key)
        return copy is not None and copy.version == self._last[1].version

    async def _store(self, target: Target, balance: FetchedBalance, arrived_at: float) -> None:
        result = await self._watches.balances.store_pushed(target, balance, arrived_at)
        self._watches.metrics.push_stored(time.monotonic() - arrived_at)
        if result.here:
            self._last = balance, result.stored, arrived_at
        else:
            # A read's answer came later, and may yet be older.
            self._note_hint(arrived_at)

    def _note_hint(self, arrived_at: float) -> None:
        had_one = self.hinted_at > 0
        self.hinted_at = self._watches.now() - (time.monotonic() - arrived_at)
        if not had_one:
            self._wake()

    async def _note_break(self, error: ServiceError) -> float:
        """The push has ended, or did not come to stand. Returns the seconds until the next try."""
        if self._stood_at is not None and time.monotonic() - self._stood_at >= _STOOD:
            self._failures = 0
        pause: float = min(_SHORTEST_PAUSE * 2**self._failures, _LONGEST_PAUSE) * random.uniform(0.5, 1.0)  # noqa: S311
        self._failures = min(self._failures + 1, 10)
        reason = PollingReason.NO_ROOM if isinstance(error, VenueRateLimited) else PollingReason.BROKEN
        if isinstance(error, NotSupported):
            reason, pause = PollingReason.REFUSED, _REFUSED_PAUSE
        pause = max(pause, min(error.given_delay or 0.0, _LONGEST_DELAY))
        self._watches.report_break(self.exchange, error, pause)
        await self._tell(reason)
        return pause

    async def _tell(self, reason: PollingReason | None) -> None:
        """It is so from now on, here and for the other replicas."""
        if reason is not self.delivery.reason:
            self._set(Delivery(reason, self._watches.now()))
            await self._tell_others()

    async def _tell_others(self) -> None:
        self._told_at = time.monotonic()
        await self._watches.balances.cached.tell_delivery(self.key, self.delivery)

    def _set(self, delivery: Delivery) -> None:
        if delivery.reason is not self.delivery.reason:
            self.delivery = delivery
            if self.key:
                self._watches.balances.deliveries[self.key] = delivery
            self._wake()

    def _use(self, key: str) -> None:
        if key != self.key:
            self._forget_delivery()
            was_another, self.key = bool(self.key and key), key
            if key:
                self._watches.balances.deliveries[key] = self.delivery
            if was_another:
                # The feed reads with the old credential still.
                self._wake()

    def _forget_delivery(self) -> None:
        self._watches.balances.deliveries.pop(self.key, None)


def _look_pause() -> float:
    return _LOOK_EVERY * random.uniform(0.8, 1.2)  # noqa: S311
