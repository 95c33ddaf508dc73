"""The gate that every fetch passes on its way to a venue; see the package."""

from __future__ import annotations

import asyncio
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import structlog

from exchange_service.credentials import CredentialReference
from exchange_service.errors import (
    ServiceError,
    ServiceOverloaded,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.model import Account, ExchangeMetadata, RateLimit
from exchange_service.venue_gate.breaker import Breaker, State
from exchange_service.venue_gate.bulkhead import Places
from exchange_service.venue_gate.priority import Priority
from exchange_service.venue_gate.rate_limits import Budget, SharedRateLimits
from exchange_service.venue_gate.retries import ATTEMPTS, RetryBudget, attempts_of, backoff, worth_repeating
from exchange_service.venue_gate.status import VenueStatus
from exchange_service.venues.registry import Listing

T = TypeVar("T")

log = structlog.get_logger(__name__)

# These speak of the venue; a refused key, a rate limit or a broken plugin do not.
_OF_THE_VENUE = (VenueUnavailable, VenueTimeout, VenueMaintenance, VenueMalformed)
# What may shut a venue, by the reason that stands in Redis.
_SHUTTING: dict[str, type[ServiceError]] = {
    kind.reason: kind for kind in (VenueRateLimited, VenueMaintenance, VenueUnavailable)
}
_LONGEST_SHUT = 3600.0
# Where a venue limits us and does not say for how long: the first pause, at least, and the longest.
_FIRST_SHUT = 10.0
_LONGEST_GUESS = 300.0
# Of a fetch's time, what must be left for the venue when its waiting ends, and the most of that in seconds.
_FOR_THE_VENUE = 0.25
_MOST_FOR_THE_VENUE = 2.0
# A timeout speaks of the venue where it had at least this share of the fetch's time.
_FAIR_SHARE = 0.5
_MOST_BUDGETS = 50_000
_MOST_PAUSES = 10_000


class Share(SharedRateLimits, Protocol):
    """What all replicas know together."""

    async def pauses(self, keys: Sequence[str]) -> list[tuple[str, str, float]]:
        """Which of the keys are shut, each with the reason and the seconds that are left."""

    async def shut(self, key: str, reason: str, seconds: float) -> None:
        """Let nobody ask for so long."""

    async def close(self) -> None:
        """Release what it holds."""


class VenueMetrics(Protocol):
    """Who counts what the gate does."""

    def budget_left(self, exchange: str, scope: str, share: float) -> None:
        """Which share of a venue's budget is left, from 0 to 1; `scope` as in RateLimit."""

    def breaker(self, exchange: str, environment: str, state: str) -> None:
        """A breaker is "closed", "open" or "half-open" now."""

    def retried(self, exchange: str) -> None:
        """A venue is asked once more after a failure."""

    def refused(self, reason: str) -> None:
        """A venue was not asked: a reason of the error tree."""


class NoMetrics:
    """Counts nothing; see VenueMetrics."""

    def budget_left(self, exchange: str, scope: str, share: float) -> None:
        """Nothing."""

    def breaker(self, exchange: str, environment: str, state: str) -> None:
        """Nothing."""

    def retried(self, exchange: str) -> None:
        """Nothing."""

    def refused(self, reason: str) -> None:
        """Nothing."""


@dataclass(slots=True)
class _Venue:
    """What is known of a venue's environment, or of one key there where only that is limited."""

    # The venue and its environment, such as "oanda production".
    name: str
    breaker: Breaker
    retries: RetryBudget


@dataclass(slots=True)
class _Pause:
    """A venue, or a key there, is shut until then, in the event loop's time."""

    until: float
    reason: str


@dataclass(slots=True)
class _Fetch:
    """One fetch on its way."""

    listing: Listing
    venue: _Venue
    environment: str
    budgets: list[Budget]
    # The venue's, and the key's.
    keys: tuple[str, str]
    priority: Priority
    began: float
    deadline: float
    attempt: int = 0
    # How long the venue took to fail, and whether that was the breaker's probe; None where it was not asked.
    failed_after: float | None = None
    probe: bool = False
    metadata: ExchangeMetadata = field(init=False)

    def __post_init__(self) -> None:
        self.metadata = self.listing.metadata

    @property
    def latest(self) -> float:
        """Until when waiting makes sense."""
        return self.deadline - min(_MOST_FOR_THE_VENUE, (self.deadline - self.began) * _FOR_THE_VENUE)


class VenueGate:
    """Lets fetches through to the venues as those can bear them.

    `shared` is None where there is one process only. `replicas` share a venue's limits, each keeping to its part, while
    `shared` does not answer. A venue is asked at most `attempts` times for one balance; `of_venue` and `of_plugin` are
    the most fetches in flight. With `accounts_apart` each account is taken for a venue of its own: a demo's venues show
    each user another trouble.
    """

    def __init__(
        self,
        *,
        status: VenueStatus | None = None,
        shared: Share | None = None,
        metrics: VenueMetrics | None = None,
        replicas: int = 1,
        attempts: int = ATTEMPTS,
        of_venue: int = 32,
        of_plugin: int = 128,
        accounts_apart: bool = False,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._status = status or VenueStatus()
        self._shared = shared
        self._metrics = metrics or NoMetrics()
        self._replicas = replicas
        self._attempts = attempts
        self._accounts_apart = accounts_apart
        self._now = wall_clock
        self._places = Places(of_venue, of_plugin)
        self._venues: dict[str, _Venue] = {}
        self._budgets: OrderedDict[str, Budget] = OrderedDict()
        self._pauses: dict[str, _Pause] = {}
        # How often in a row a venue or a key has limited us without saying for how long.
        self._strikes: dict[str, int] = {}

    @property
    def in_flight(self) -> int:
        """How many fetches are at their venues."""
        return self._places.taken

    async def fetch(
        self,
        listing: Listing,
        account: Account,
        reference: CredentialReference,
        deadline: float,
        read: Callable[[], Awaitable[T]],
        *,
        priority: Priority | None = None,
    ) -> T:
        """What `read` gives, which asks the venue; `deadline` is in the event loop's time.

        Raises what `read` raises; VenueRateLimited, VenueMaintenance or VenueUnavailable with the delay where the venue
        is not to be asked now, also for who forces; ServiceOverloaded where too many are.
        """
        fetch = self._begin(listing, account, reference, deadline, priority or Priority())
        async for attempt in attempts_of(lambda error: self._again(fetch, error)):
            with attempt:
                fetch.attempt += 1
                fetch.failed_after = None
                return await self._once(fetch, read)
        raise AssertionError("the attempts end with an answer or an error")

    def _begin(
        self, listing: Listing, account: Account, reference: CredentialReference, deadline: float, priority: Priority
    ) -> _Fetch:
        loop = asyncio.get_running_loop()
        name = f"{listing.metadata.venue} {account.environment}"
        if self._accounts_apart:
            name = f"{name} {reference.version}"
        venue = self._venues.get(name)
        if venue is None:
            self._venues[name] = venue = _Venue(name, Breaker(_loop_time), RetryBudget(_loop_time))
        keys = (name, f"{name} {reference.version}")
        budgets = [self._budget(keys[limit.scope == "key"], limit) for limit in listing.metadata.limits]
        return _Fetch(listing, venue, account.environment, budgets, keys, priority, loop.time(), deadline)

    def _budget(self, key: str, limit: RateLimit) -> Budget:
        name = f"{key}/{limit.count}/{limit.seconds}"
        budget = self._budgets.get(name)
        if budget is None:
            self._budgets[name] = budget = Budget(name, limit, self._shared, self._replicas)
            while len(self._budgets) > _MOST_BUDGETS:
                self._budgets.popitem(last=False)
        self._budgets.move_to_end(name)
        return budget

    def _again(self, fetch: _Fetch, error: BaseException) -> bool | float:
        """Whether the venue is asked once more, and after how many seconds."""
        if fetch.attempt >= self._attempts or fetch.failed_after is None or fetch.probe:
            return False
        if not worth_repeating(error, fetch.failed_after):
            return False
        wait = backoff(fetch.attempt)
        if _loop_time() + wait > fetch.latest or self._shut(fetch) is not None or not fetch.venue.retries.take():
            return False
        self._metrics.retried(fetch.metadata.id)
        log.debug("venue.asked_again", exchange=fetch.metadata.id, attempt=fetch.attempt + 1)
        return wait

    async def _once(self, fetch: _Fetch, read: Callable[[], Awaitable[T]]) -> T:
        """Ask the venue as soon as it may be asked."""
        plugin, venue = fetch.listing.plugin.info.name, fetch.venue.name
        while True:
            self._refuse_where_shut(fetch)
            polling = fetch.priority.polling
            try:
                await self._places.take(plugin, venue, fetch.priority, fetch.latest)
            except ServiceOverloaded as error:
                self._metrics.refused(error.reason)
                raise
            try:
                wait = await self._admitted(fetch)
                if not wait:
                    return await self._asked(fetch, read)
            finally:
                self._places.give_back(plugin, venue)
            if polling and not fetch.priority.polling:
                # Somebody has joined meanwhile, for whom there may be more.
                continue
            # Without a place meanwhile: others need it more.
            if not polling or _loop_time() + wait > fetch.latest:
                self._metrics.refused(VenueRateLimited.reason)
                raise VenueRateLimited(
                    f"Our requests to {fetch.metadata.name} are used up for now: it limits them.", retry_after=wait
                )
            await fetch.priority.pause(wait)

    async def _admitted(self, fetch: _Fetch) -> float:
        """Take the fetch's cost of every budget, and look whether another replica knows the venue to be shut.

        Zero where the venue may be asked now, else the seconds until its budgets may allow it. Raises where it is shut.
        With what is here already that is one question to Redis, and what is not is asked for at the same time.
        """
        now, polling = _loop_time(), fetch.priority.polling
        here = [budget for budget in fetch.budgets if budget.spend(polling, now)]
        missing = [budget for budget in fetch.budgets if budget not in here]
        wait = 0.0
        if self._shared is None:
            wait = await self._take(missing, here, polling)
        elif missing:
            _, wait = await asyncio.gather(self._look(self._shared, fetch), self._take(missing, here, polling))
        else:
            await self._look(self._shared, fetch)
        for budget in fetch.budgets:
            self._metrics.budget_left(fetch.metadata.id, budget.limit.scope, budget.left())
        if wait or self._shut(fetch) is not None:
            for budget in here:
                budget.put_back(polling, _loop_time())
        self._refuse_where_shut(fetch)
        return wait

    async def _take(self, missing: Sequence[Budget], here: list[Budget], polling: bool) -> float:
        """Take of each; what was taken goes to `here`. Zero, or the wait for the first that has nothing left."""
        for budget in missing:
            wait = await budget.take(polling)
            if wait:
                return wait
            here.append(budget)
        return 0.0

    async def _look(self, shared: Share, fetch: _Fetch) -> None:
        for key, reason, left in await shared.pauses(fetch.keys):
            self._remember(key, reason if reason in _SHUTTING else VenueRateLimited.reason, left)

    async def _asked(self, fetch: _Fetch, read: Callable[[], Awaitable[T]]) -> T:
        """Ask the venue, and learn from how that went."""
        breaker, started = fetch.venue.breaker, _loop_time()
        if fetch.attempt == 1:
            fetch.venue.retries.called()
        before = breaker.state
        fetch.probe = probe = breaker.enter()
        try:
            answer = await read()
        except ServiceError as error:
            fetch.failed_after = _loop_time() - started
            self._learn(fetch, error, probe, started)
            await self._shut_for(fetch, error)
            raise
        except BaseException:
            breaker.abandoned(probe)
            raise
        else:
            breaker.succeeded(probe)
            for key in fetch.keys:
                self._strikes.pop(key, None)
            if breaker.state is State.CLOSED:
                self._status.answered(fetch.metadata.venue, fetch.environment)
            return answer
        finally:
            if probe or breaker.state is not before:
                self._metrics.breaker(fetch.metadata.venue, fetch.environment, breaker.state.value)

    def _learn(self, fetch: _Fetch, error: ServiceError, probe: bool, started: float) -> None:
        """Tell the breaker and the status."""
        breaker = fetch.venue.breaker
        fair = not isinstance(error, VenueTimeout) or (
            fetch.deadline - started >= (fetch.deadline - fetch.began) * _FAIR_SHARE
        )
        if isinstance(error, _OF_THE_VENUE) and fair:
            breaker.failed(probe)
        else:
            breaker.abandoned(probe)
        serves = breaker.state is State.CLOSED
        self._status.failed(fetch.metadata.venue, error, self._now(), environment=fetch.environment, serves=serves)
        if not serves:
            log.debug("venue.left_alone", venue=fetch.venue.name, reason=error.reason)

    async def _shut_for(self, fetch: _Fetch, error: ServiceError) -> None:
        """Shut the venue, or the key, on all replicas for as long as the venue says."""
        if type(error) not in _SHUTTING.values():
            return
        key, seconds = fetch.keys[0], error.retry_after if error.given_delay is not None else None
        if isinstance(error, VenueRateLimited):
            limits = fetch.metadata.limits
            # Where nobody knows by what the venue counts, the worse is taken to be so.
            key = fetch.keys[bool(limits) and all(limit.scope == "key" for limit in limits)]
            if seconds is None:
                seconds = self._guess(key)
        if seconds:
            seconds = min(seconds, _LONGEST_SHUT)
            self._remember(key, error.reason, seconds)
            if self._shared is not None:
                await self._shared.shut(key, error.reason, seconds)

    def _guess(self, key: str) -> float:
        """How long to leave a venue alone that does not say it: longer each time, and fully jittered."""
        if len(self._strikes) >= _MOST_PAUSES:
            self._strikes.clear()
        strikes = self._strikes[key] = min(self._strikes.get(key, 0) + 1, 16)
        return _FIRST_SHUT + random.uniform(0, min(_LONGEST_GUESS, _FIRST_SHUT * 2**strikes) - _FIRST_SHUT)  # noqa: S311

    def _remember(self, key: str, reason: str, seconds: float) -> None:
        now = _loop_time()
        known = self._pauses.get(key)
        if known is not None and known.until >= now + seconds:
            return
        if len(self._pauses) >= _MOST_PAUSES:
            self._pauses = {key: pause for key, pause in self._pauses.items() if pause.until > now}
        self._pauses[key] = _Pause(now + seconds, reason)

    def _shut(self, fetch: _Fetch) -> ServiceError | None:
        """Why the venue is not to be asked now, with the delay."""
        now, name = _loop_time(), fetch.metadata.name
        for key in fetch.keys:
            pause = self._pauses.get(key)
            if pause is None:
                continue
            left = pause.until - now
            if left <= 0:
                del self._pauses[key]
                continue
            what = "limits our requests" if pause.reason == VenueRateLimited.reason else "asked to be left alone"
            return _SHUTTING[pause.reason](f"{name} {what}, and is not asked until then.", retry_after=left)
        wait = fetch.venue.breaker.wait()
        if wait is None:
            return None
        return VenueUnavailable(
            f"{name} failed several times in a row, and is left alone for a while.", retry_after=wait
        )

    def _refuse_where_shut(self, fetch: _Fetch) -> None:
        error = self._shut(fetch)
        if error is not None:
            self._metrics.refused(error.reason)
            raise error

    async def close(self) -> None:
        """Release what is shared."""
        if self._shared is not None:
            await self._shared.close()


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
