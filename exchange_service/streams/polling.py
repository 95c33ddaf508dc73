"""Polling: how feeds read through `Balances`, and the clock as the source that says when.

Feeds share the cached balance and the fetch in progress with GetBalance. If several replicas have a feed for one
account, one of them asks the venue and the others read what it wrote.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from exchange_service.balances.leases import LEASE
from exchange_service.balances.service import BalanceResult, Balances
from exchange_service.errors import ServiceError
from exchange_service.model import Account
from exchange_service.streams.clock import Clock
from exchange_service.venues.registry import Listing
from exchange_service.wire.delivery import Delivery, PollingReason
from exchange_service.wire.replies import Source
from exchange_service.wire.stored import StoredBalance

# Each wait differs by up to this share, so that feeds that start together drift apart.
_JITTER = 0.1
# The least seconds between two reads of one account.
_MIN_PAUSE = 0.05
# The most seconds that a feed waits because an error asks for a delay.
_MAX_RETRY_DELAY = 300.0
# Seconds that a second ask is given before a feed reads its answer.
_SECOND_ASK = 0.5


@dataclass(frozen=True, slots=True)
class Read:
    """What a feed asks for: see `Balances.get`."""

    max_age: float | None
    known_version: int = 0
    after: float = 0.0


@dataclass(frozen=True, slots=True)
class Polling:
    """How feeds poll. `interval`: seconds between two polls if the stored balance names no pause of its own."""

    balances: Balances
    interval: float = 10.0
    venue_timeout: float = 8.0
    clock: Clock = field(default_factory=Clock)

    async def read(self, account: Account, listing: Listing, request: Read) -> BalanceResult:
        """Read the account for a feed. The first balance may be as old as one of GetBalance. Raises ServiceError."""
        deadline = self.clock.monotonic() + self.venue_timeout + 1.0
        return await self.balances.get(
            account,
            listing,
            max_age=request.max_age,
            deadline=deadline,
            polling=True,
            known_version=request.known_version,
            after=request.after,
        )

    def request(self, current: StoredBalance | None, ask_venue: bool, known_version: int) -> Read:
        """What a feed whose newest balance is `current` asks for. With `ask_venue` the venue is asked unless another
        replica has just done so; without it a cached balance suffices, unless its next poll is overdue. None below
        `known_version` does."""
        if current is None:
            return Read(None, known_version)
        pause = current.pause or self.interval
        # Well below the pause, so that no poll is answered by the balance of the poll before.
        return Read(pause * 0.5 if ask_venue else pause * (1 + _JITTER) + LEASE, known_version)

    def pause(self, result: BalanceResult | None, error: ServiceError | None, fetched_here: float = 0.0) -> float:
        """Seconds until a feed asks the venue again. `fetched_here` is the fetch time of the last balance that this
        replica asked for: if another replica asked last, that replica comes first, and this one follows within the
        lease in case the other is gone."""
        jitter = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
        if result is not None and result.asked_in is not None:
            return result.asked_in + _SECOND_ASK
        if result is None or error is not None:
            wait = self.interval * jitter
            if error is not None and error.retry_after is not None:
                wait = max(wait, min(error.retry_after, _MAX_RETRY_DELAY))
            return wait
        wait = (result.stored.pause or self.interval) * jitter - result.age
        if result.stored.fetch_time != fetched_here and self.balances.shared:
            wait += LEASE * random.uniform(0.6, 1.0)  # noqa: S311
        return max(_MIN_PAUSE, wait)


class PollingSource:
    """The clock as a feed's source. It returns early when the balance may have changed, on any replica."""

    def __init__(self, polling: Polling, account: Account, listing: Listing, why: PollingReason) -> None:
        """`why` is what callers are told: the account is polled for this reason."""
        self._polling = polling
        self._balances = polling.balances
        self._account = account
        self._listing = listing
        self._delivery = Delivery(why, polling.clock.wall())
        self._changed = asyncio.Event()
        # The key at which `_changed` is registered.
        self._key = ""
        # The fetch time of the last balance that this replica asked for.
        self._fetched_here = 0.0

    @property
    def delivery(self) -> Delivery:
        """See FeedSource."""
        return self._delivery

    async def read(self, current: StoredBalance | None, ask_venue: bool, known_version: int) -> BalanceResult:
        """See ReadBalance."""
        request = self._polling.request(current, ask_venue, known_version)
        return await self._polling.read(self._account, self._listing, request)

    async def wait(self, result: BalanceResult | None, error: ServiceError | None) -> bool:
        """See FeedSource."""
        if result is not None:
            self._listen(result.key)
            if result.source is Source.VENUE:
                self._fetched_here = result.stored.fetch_time
        try:
            async with asyncio.timeout(self._pause(result, error)):
                await self._changed.wait()
        except TimeoutError:
            return True
        finally:
            self._changed.clear()
        return False

    def _pause(self, result: BalanceResult | None, error: ServiceError | None) -> float:
        return self._polling.pause(result, error, self._fetched_here)

    def read_now(self) -> None:
        """See FeedSource."""
        self._changed.set()

    def close(self) -> None:
        """Stop listening."""
        self._balances.remove_listener(self._key, self._changed)
        self._balances.deliveries.pop(self._key, None)

    def _listen(self, key: str) -> None:
        if key != self._key:
            PollingSource.close(self)
            self._key = key
            self._balances.add_listener(key, self._changed)
            self._balances.deliveries[key] = self.delivery
