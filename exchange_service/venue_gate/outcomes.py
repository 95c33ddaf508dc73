"""What the gate learns from how fetches end: circuit breakers of venues and of accounts, and the catalogue's status."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from cachetools import LRUCache

from exchange_service.errors import ServiceError
from exchange_service.observability.metrics import Metrics
from exchange_service.venue_gate.breaker import BreakerState, CircuitBreaker, Entry
from exchange_service.venue_gate.cooldown import GateKeys
from exchange_service.venue_gate.retries import RetryBudget
from exchange_service.venue_gate.status import VenueStatus
from exchange_service.venues.fetching import Target

log = structlog.get_logger(__name__)

_MOST_ACCOUNTS = 20_000


@dataclass(slots=True)
class Venue:
    """What is known of a venue's environment, such as "oanda production", as it is seen by one way out. `way` is the
    name of that way if the venue has several."""

    name: str
    breaker: CircuitBreaker
    retries: RetryBudget
    way: str = ""

    def environment(self, name: str) -> str:
        """The name of the environment for those who look at the venue from outside."""
        return f"{name} by {self.way}" if self.way else name


@dataclass(slots=True)
class Asked:
    """A fetch that has come as far as its venue: what both breakers know it by, and how it ended last. `error` is None
    if that says nothing of the venue."""

    entry: Entry
    own_entry: Entry
    # The state of the venue's breaker when the fetch entered.
    before: BreakerState
    answered: bool = False
    error: ServiceError | None = None
    # Whether the error may speak of the venue.
    counts: bool = False


class Outcomes:
    """The breakers, by venue and by account; `now` is in seconds since the epoch."""

    def __init__(self, status: VenueStatus, metrics: Metrics, now: Callable[[], float]) -> None:
        self.venues: dict[str, Venue] = {}
        # By the credential's key, of accounts that have failed since they were last answered.
        self.own: LRUCache[str, CircuitBreaker] = LRUCache(_MOST_ACCOUNTS)
        self._status, self._metrics, self._now = status, metrics, now

    def venue(self, name: str, way: str = "") -> Venue:
        """What is known of the venue of this name; `way` as in `Venue`."""
        venue = self.venues.get(name)
        if venue is None:
            self.venues[name] = venue = Venue(name, CircuitBreaker(_loop_time), RetryBudget(_loop_time), way)
        return venue

    @staticmethod
    def enter(venue: Venue, own: CircuitBreaker | None, account: str) -> Asked:
        """Count a fetch that asks its venue now; `own` is the account's own breaker, if it has one."""
        before = venue.breaker.state
        venue.retries.called()
        entry = venue.breaker.enter(account)
        return Asked(entry, own.enter(account) if own is not None else Entry(account, entry.began, False), before)

    def learn(self, asked: Asked, venue: Venue, keys: GateKeys, target: Target) -> None:
        """Report to the breakers and the status how the fetch ended."""
        _tell(venue.breaker, asked, asked.entry)
        own = self.own.get(keys.credential)
        if own is None and asked.counts:
            self.own[keys.credential] = own = CircuitBreaker.of_account(_loop_time)
        if own is not None:
            _tell(own, asked, asked.own_entry)
            if asked.answered and own.state is BreakerState.CLOSED:
                del self.own[keys.credential]
        self._show(asked, venue, keys.account, target)
        state = venue.breaker.state
        if asked.entry.probe or state is not asked.before:
            exchange, environment = target.listing.metadata.venue, target.account.environment
            self._metrics.breaker(exchange, environment, state.value, venue.way)

    def _show(self, asked: Asked, venue: Venue, account: str, target: Target) -> None:
        """Let the catalogue say how the venue is."""
        status, now = self._status, self._now()
        name, environment = target.listing.metadata.venue, venue.environment(target.account.environment)
        if asked.answered:
            if venue.breaker.state is BreakerState.CLOSED:
                began = now - (_loop_time() - asked.entry.began)
                status.answered(name, environment, account=account, began=began, now=now)
        elif asked.error is not None:
            left_alone = venue.breaker.pause_left or None
            status.failed(name, asked.error, now, account=account, environment=environment, left_alone=left_alone)
            if left_alone:
                log.debug("venue.left_alone", venue=venue.name, reason=asked.error.reason)


def _tell(breaker: CircuitBreaker, asked: Asked, entry: Entry) -> None:
    """Report the end of a fetch to a breaker that it has entered."""
    if asked.answered:
        breaker.succeeded(entry)
    elif asked.counts:
        breaker.failed(entry)
    else:
        breaker.abandoned(entry)


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
