"""The gate that every fetch passes on its way to a venue; see the package."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn, Protocol, TypeVar

import structlog

from exchange_service import clock
from exchange_service.errors import (
    ServiceError,
    ServiceOverloaded,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.model import ExchangeMetadata
from exchange_service.observability.metrics import Metrics
from exchange_service.observability.tracing import add_event
from exchange_service.venue_gate.breaker import BreakerState, CircuitBreaker
from exchange_service.venue_gate.bulkhead import Bulkhead
from exchange_service.venue_gate.cooldown import Cooldowns, GateKeys, SharedCooldowns
from exchange_service.venue_gate.outcomes import Asked, Outcomes, Venue
from exchange_service.venue_gate.rate_limits import RateLimiter, RateLimiters, SharedRateLimits
from exchange_service.venue_gate.retries import ATTEMPTS, backoff, worth_repeating
from exchange_service.venue_gate.status import VenueStatus
from exchange_service.venues.egress import DIRECT, Egress
from exchange_service.venues.fetching import Fetcher, Target
from exchange_service.venues.priority import Priority
from exchange_service.wire.balances import FetchedBalance

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

log = structlog.get_logger(__name__)

# These may speak of the venue; a refused key, a rate limit or a broken plugin do not.
_OF_THE_VENUE = (VenueUnavailable, VenueTimeout, VenueMaintenance, VenueMalformed)
# The part of a fetch's time that must be left for the venue when its waiting ends, and the most of that in seconds.
_FOR_THE_VENUE = 0.25
_MOST_FOR_THE_VENUE = 2.0
# A timeout speaks of the venue if the venue had at least this part of the fetch's time.
_FAIR_SHARE = 0.5
# A caller waits for permits that come so soon, in seconds, and so often: many accounts may be due at one moment.
_SHORT_WAIT = 0.5
_MOST_SHORT_WAITS = 3
# The part of a venue's slots, and of a plugin's, that one user's fetches may take.
_OF_ONE = 0.5


class SharedState(SharedRateLimits, SharedCooldowns, Protocol):
    """What all replicas know together."""


@dataclass(frozen=True, slots=True)
class GateOptions:
    """What the gate works with, and how much it lets through.

    `replicas` share a venue's limits, each keeping to its part while Redis does not answer. A venue is asked at most
    `attempts` times for one balance; `of_venue` and `of_plugin` are the most fetches in flight. With `accounts_apart`
    each account counts as a venue of its own: a demo's venues show each user another trouble. `shared` is None if there
    is one process only; `now` is in seconds since the epoch. By `egress` a venue is another one for each way out: a
    proxy that fails takes it from nobody else, and each address has its own limits.
    """

    replicas: int = 1
    attempts: int = ATTEMPTS
    of_venue: int = 32
    of_plugin: int = 128
    accounts_apart: bool = False
    shared: SharedState | None = None
    status: VenueStatus = field(default_factory=VenueStatus)
    metrics: Metrics = field(default_factory=Metrics)
    now: Callable[[], float] = clock.wall
    egress: Egress = field(default_factory=Egress)


@dataclass(frozen=True, slots=True)
class VenueSnapshot:
    """How a venue's environment is seen now: failures in a row, fetches in flight, and fetches that wait for a slot."""

    state: BreakerState
    failures: int
    in_flight: int
    waiting: int


class Ask(Protocol[T_co]):
    """What is asked of a venue, behind the gate."""

    async def __call__(self, target: Target, deadline: float, priority: Priority) -> T_co:
        """The venue's answer, by `deadline` in the event loop's time. Raises a ServiceError."""


@dataclass(slots=True)
class _Passage:
    """One fetch on its way through the gate."""

    target: Target
    venue: Venue
    # The breaker of the account alone, if it has failed lately.
    own: CircuitBreaker | None
    # Each with the fetch's cost in its units.
    limiters: list[tuple[RateLimiter, int]]
    keys: GateKeys
    priority: Priority
    began: float
    deadline: float
    # Asks the venue, once it may be asked.
    ask: Ask[Any]
    # What this attempt has used of each limiter beyond its cost, by its place.
    charged: dict[int, int] = field(default_factory=dict)
    attempt: int = 0
    short_waits: int = 0
    # Seconds that the venue took to fail; None if it was not asked.
    failed_after: float | None = None
    asked: Asked | None = None

    @property
    def metadata(self) -> ExchangeMetadata:
        """The listing's."""
        return self.target.listing.metadata

    @property
    def plugin(self) -> str:
        """The name of the plugin that is asked."""
        return self.target.listing.plugin.info.name

    @property
    def users_plugin(self) -> str:
        """The name of the user's part of the plugin's slots."""
        return f"{self.plugin} {self.keys.account}"

    @property
    def environment(self) -> str:
        """The account's."""
        return self.target.account.environment

    @property
    def latest(self) -> float:
        """Until when waiting makes sense, in the event loop's time."""
        return self.deadline - min(_MOST_FOR_THE_VENUE, (self.deadline - self.began) * _FOR_THE_VENUE)

    def waits_shortly(self, wait: float) -> bool:
        """Whether the caller is kept waiting for so many seconds, however urgent the fetch is; counts it."""
        self.short_waits += 1
        if wait > _SHORT_WAIT or self.short_waits > _MOST_SHORT_WAITS:
            return False
        return _loop_time() + wait <= self.latest

    def refusal(self, cooldowns: Cooldowns) -> ServiceError | None:
        """Why the venue is not to be asked now, with the delay; None if it may be."""
        name = self.metadata.name
        error = cooldowns.refusal(self.keys, name)
        if error is not None:
            return error
        # A fetch that has entered already, and asks again, is no other probe.
        wait = self.venue.breaker.wait(self.keys.account) if self.asked is None else None
        if wait is not None:
            text = f"{name} failed for several accounts in a row, and is left alone for a while."
            return VenueUnavailable(text, retry_after=wait)
        wait = self.own.wait(self.keys.account) if self.asked is None and self.own is not None else None
        if wait is not None:
            text = f"{name} failed several times in a row for this account, and is not asked for it for a while."
            return VenueUnavailable(text, retry_after=wait)
        return None

    def by_credential(self, error: ServiceError) -> bool:
        """Whether the error holds for this credential alone: a rate limit, where all of the listing's limits count by
        key."""
        limits = self.metadata.limits
        return isinstance(error, VenueRateLimited) and bool(limits) and all(limit.scope == "key" for limit in limits)

    def charge(self) -> None:
        """Charge what the plugin says that this attempt has used beyond its costs, and what was not charged yet."""
        costs = self.target.reports.costs
        for place, (limiter, cost) in enumerate(self.limiters):
            used = max(costs.get(0, 0), costs.get(limiter.limit.seconds, 0))
            more = used - cost - self.charged.get(place, 0)
            if more > 0:
                limiter.charge(more, self.keys.account, _loop_time())
                self.charged[place] = used - cost

    def observe_usage(self) -> None:
        """Let the rate limiters count what the plugin has reported."""
        for limiter, used, resets_after in self._usage():
            limiter.observe(used, resets_after, self.keys.account)

    def reported(self) -> Iterator[tuple[bool, VenueRateLimited]]:
        """What the plugin has reported: whether it holds for the credential alone in any case, and the error that
        names the time."""
        if self.target.reports.cooldown > 0:
            error = VenueRateLimited("The venue wants no requests.", retry_after=self.target.reports.cooldown)
            yield self.by_credential(error), error
        for limiter, used, resets_after in self._usage():
            if used >= limiter.limit.count and resets_after > 0:
                error = VenueRateLimited("The venue's limit is used up.", retry_after=resets_after)
                yield limiter.limit.scope == "key", error

    def _usage(self) -> Iterator[tuple[RateLimiter, int, float]]:
        """Each limit that the plugin has reported on, with the units used and the seconds until it resets. No window
        lasts longer than its limit says, whatever the answer does."""
        for limiter, _ in self.limiters:
            usage = self.target.reports.usage.get(limiter.limit.seconds)
            if usage is not None:
                yield limiter, usage[0], min(usage[1], limiter.limit.seconds)


class Gated:
    """Lets fetches through to the venues as those can bear them, and is the only layer that asks a venue again."""

    def __init__(self, inner: Fetcher[FetchedBalance], options: GateOptions | None = None) -> None:
        self.inner = inner
        self._options = options = options or GateOptions()
        self._metrics = options.metrics
        self._outcomes = Outcomes(options.status, options.metrics, options.now)
        self._bulkhead = Bulkhead(options.of_venue, options.of_plugin)
        # One user's part of it.
        self._of_user = Bulkhead(max(1, int(options.of_venue * _OF_ONE)), max(1, int(options.of_plugin * _OF_ONE)))
        self._cooldowns = Cooldowns(options.shared)
        self._limiters = RateLimiters(options.shared, options.replicas)
        options.metrics.watch("fetches", lambda: self.in_flight)

    @property
    def in_flight(self) -> int:
        """How many fetches are at their venues."""
        return self._bulkhead.taken

    def snapshot(self) -> dict[str, VenueSnapshot]:
        """Every venue that was asked, by its name and environment, such as "oanda production"."""
        return {
            name: VenueSnapshot(venue.breaker.state, venue.breaker.failures, *self._bulkhead.load(name))
            for name, venue in self._outcomes.venues.items()
        }

    async def fetch(self, target: Target, deadline: float, priority: Priority) -> FetchedBalance:
        """See `Fetcher`.

        Raises VenueRateLimited, VenueMaintenance or VenueUnavailable with the delay if the venue is not to be asked
        now, forced calls included; ServiceOverloaded if too many are being read.
        """
        return await self.through(target, deadline, priority, self.inner.fetch)

    async def through(self, target: Target, deadline: float, priority: Priority, ask: Ask[T]) -> T:
        """What `ask` answers, if the venue may be asked for this target. It counts as a fetch, and raises as `fetch`
        does."""
        passage = self._begin(target, deadline, priority, ask)
        try:
            answer: T = await self._attempt(passage)
            return answer
        finally:
            # A call counts once, however often the venue was asked.
            if passage.asked is not None:
                self._outcomes.learn(passage.asked, passage.venue, passage.keys, target)
                # The target must not hold what holds the error of this fetch.
                target.reports.on_report = _nothing

    async def _attempt(self, passage: _Passage) -> Any:
        """The answer of the first attempt that gets one. Raises the error after which the venue is not asked again."""
        while True:
            passage.attempt += 1
            passage.failed_after = None
            try:
                return await self._pass(passage)
            except ServiceError as error:
                wait = self._retry_delay(passage, error)
                if wait is None:
                    raise
            await asyncio.sleep(wait)

    def _begin(self, target: Target, deadline: float, priority: Priority, ask: Ask[Any]) -> _Passage:
        metadata, version = target.listing.metadata, target.reference.version
        name = f"{metadata.venue} {target.account.environment}"
        if self._options.accounts_apart:
            name = f"{name} {version}"
        egress = self._options.egress
        way = egress.of_target(target)
        # What counts by address: of several ways with one address together.
        at_address = f"{name} from {way.counted_as}" if way.counted_as else name
        # An account is known by its user: a user who changes the credential is no other account.
        keys = GateKeys(at_address, f"{name} {version}", target.user_key or target.account.user_id)
        by_way = name if way.name == DIRECT else f"{name} by {way.name}"
        shown = way.name if len(egress.of_venue(metadata.id)) > 1 else ""
        venue, own = self._outcomes.venue(by_way, shown), self._outcomes.own.get(keys.credential)
        account_type = target.account.account_type
        limiters = [
            (self._limiters.get(keys[limit.scope == "key"], limit), limit.cost_of(account_type))
            for limit in metadata.limits
        ]
        return _Passage(target, venue, own, limiters, keys, priority, _loop_time(), deadline, ask)

    def _retry_delay(self, passage: _Passage, error: ServiceError) -> float | None:
        """The seconds to wait before the venue is asked again; None if it is not."""
        asked, account = passage.asked, passage.keys.account
        if passage.attempt >= self._options.attempts or passage.failed_after is None or asked is None:
            return None
        breaker = passage.venue.breaker
        if asked.entry.probe or asked.own_entry.probe or breaker.is_own(account):
            return None
        if not worth_repeating(error, passage.failed_after):
            return None
        wait = backoff(passage.attempt)
        if _loop_time() + wait > passage.latest or passage.refusal(self._cooldowns) is not None:
            return None
        if breaker.state is not BreakerState.CLOSED or not passage.venue.retries.take(account):
            return None
        self._metrics.retried(passage.metadata.id)
        add_event("venue.asked_again", reason=error.reason, attempt=passage.attempt + 1, wait=wait)
        log.debug("venue.asked_again", exchange=passage.metadata.id, attempt=passage.attempt + 1)
        return wait

    async def _pass(self, passage: _Passage) -> Any:
        """Ask the venue as soon as it may be asked."""
        while True:
            self._raise_refusal(passage)
            polling = passage.priority.polling
            await self._take_slot(passage)
            try:
                wait = await self._acquire_permits(passage)
                if not wait:
                    return await self._ask_venue(passage)
            finally:
                self._return_slot(passage)
            if polling and not passage.priority.polling:
                # A caller has joined meanwhile, for whom there may be more permits.
                continue
            # The slot is free meanwhile: other fetches need it more.
            if not passage.waits_shortly(wait) and (not polling or _loop_time() + wait > passage.latest):
                text = f"Our requests to {passage.metadata.name} are used up for now: it limits them."
                self._refuse(VenueRateLimited(text, retry_after=wait), late=polling)
            await passage.priority.pause(wait)

    async def _take_slot(self, passage: _Passage) -> None:
        """Take a slot of the user's part, then one of all. Raises ServiceOverloaded if none is free in time."""
        venue, polling = passage.venue.name, passage.priority.polling
        try:
            await self._of_user.acquire(passage.users_plugin, venue, passage.priority, passage.latest)
            try:
                await self._bulkhead.acquire(passage.plugin, venue, passage.priority, passage.latest)
            except BaseException:
                self._of_user.release(passage.users_plugin, venue)
                raise
        except ServiceOverloaded as error:
            self._refuse(error, late=polling)

    def _return_slot(self, passage: _Passage) -> None:
        self._bulkhead.release(passage.plugin, passage.venue.name)
        self._of_user.release(passage.users_plugin, passage.venue.name)

    async def _acquire_permits(self, passage: _Passage) -> float:
        """Take the fetch's cost of every rate limit, and look whether another replica knows of a cooldown.

        Returns zero if the venue may be asked now, else the seconds until its limits may allow it. Raises if it cools
        down. Redis is asked once: for the cooldowns and, at the same time, for permits that this process lacks.
        """
        now, polling, account = _loop_time(), passage.priority.polling, passage.keys.account
        parts: list[tuple[RateLimiter, int]] = []
        for limiter, cost in passage.limiters:
            wait = limiter.take_part(account, polling, now, cost)
            if wait:
                _return_parts(parts, account)
                return wait
            parts.append((limiter, cost))
        acquired = [(limiter, cost) for limiter, cost in parts if limiter.acquire_local(polling, now, cost)]
        missing = [part for part in parts if part not in acquired]
        wait = 0.0
        if self._options.shared is None:
            wait = await _acquire_all(missing, acquired, polling, account)
        elif not missing:
            await self._cooldowns.refresh(passage.keys)
        else:
            refreshed = self._cooldowns.refresh(passage.keys)
            _, wait = await asyncio.gather(refreshed, _acquire_all(missing, acquired, polling, account))
        for limiter, _ in passage.limiters:
            self._metrics.budget_left(passage.metadata.id, limiter.limit.scope, limiter.left())
        if wait or passage.refusal(self._cooldowns) is not None:
            for limiter, cost in acquired:
                limiter.release(polling, _loop_time(), cost)
            _return_parts(parts, account)
        self._raise_refusal(passage)
        return wait

    async def _ask_venue(self, passage: _Passage) -> Any:
        """Ask the venue, and keep how it went."""
        started = _loop_time()
        # Of the second attempt, with the time of the first one.
        add_event("gate.passed", attempt=passage.attempt, waited=started - passage.began)
        if passage.asked is None:
            passage.asked = self._outcomes.enter(passage.venue, passage.own, passage.keys.account)
        asked = passage.asked
        asked.error, asked.counts = None, False
        # Each attempt takes permits, and reports its own cost.
        passage.target.reports.costs.clear()
        passage.charged.clear()
        passage.target.reports.on_report = partial(self._hold_reported, passage)
        try:
            answer = await passage.ask(passage.target, passage.deadline, passage.priority)
        except ServiceError as error:
            if not error.venue_was_asked:
                # The plugin keeps to the venue's limit itself: that is no word of the venue.
                await self._apply_reports(passage)
                self._refuse(error, late=passage.priority.polling)
            passage.failed_after = _loop_time() - started
            asked.error, asked.counts = error, _may_speak_of_the_venue(passage, error, started)
            await self._cooldowns.send_away(passage.keys, error, by_credential=passage.by_credential(error))
            await self._apply_reports(passage)
            raise
        except BaseException:
            # A ban that one answer has named holds, although nobody waits for the others any more.
            await self._apply_reports(passage)
            raise
        asked.answered = True
        await self._cooldowns.succeeded(passage.keys, asked.entry.began)
        await self._apply_reports(passage)
        return answer

    def _hold_reported(self, passage: _Passage) -> None:
        """Act in this process at once on what the plugin has just reported: its call may go on for long."""
        passage.charge()
        for _, error in passage.reported():
            self._cooldowns.hold(passage.keys.credential, error)

    async def _apply_reports(self, passage: _Passage) -> None:
        """Act on all replicas on what the plugin has reported, beside a balance or an error."""
        passage.charge()
        for limiter, _ in passage.limiters:
            await limiter.settle()
        passage.observe_usage()
        for by_credential, error in passage.reported():
            await self._cooldowns.report(passage.keys, error, by_credential=by_credential)

    def _raise_refusal(self, passage: _Passage) -> None:
        error = passage.refusal(self._cooldowns)
        if error is not None:
            self._refuse(error)

    def _refuse(self, error: ServiceError, *, late: bool = False) -> NoReturn:
        """Raise an error of the gate's own, or of a plugin that held the call back: the venue was not asked."""
        self._metrics.refused(error.reason)
        add_event("gate.refused", reason=error.reason)
        error.venue_was_asked = False
        error.late = late
        raise error


def _may_speak_of_the_venue(passage: _Passage, error: ServiceError, started: float) -> bool:
    """A timeout does so only if the venue had its fair share of the time."""
    if not isinstance(error, _OF_THE_VENUE):
        return False
    fair_share = (passage.deadline - passage.began) * _FAIR_SHARE
    return not isinstance(error, VenueTimeout) or passage.deadline - started >= fair_share


def _return_parts(parts: Sequence[tuple[RateLimiter, int]], account: str) -> None:
    for limiter, cost in parts:
        limiter.return_part(account, _loop_time(), cost)


async def _acquire_all(
    missing: Sequence[tuple[RateLimiter, int]], acquired: list[tuple[RateLimiter, int]], polling: bool, account: str
) -> float:
    """Take permits of each; the limiters that gave them go to `acquired`. Returns zero, or the wait for the first
    without enough."""
    for limiter, cost in missing:
        wait = await limiter.acquire(polling, account, cost)
        if wait:
            return wait
        acquired.append((limiter, cost))
    return 0.0


def _nothing() -> None:
    """After the fetch nobody is interested in reports."""


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
