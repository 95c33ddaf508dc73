"""A circuit breaker: after failures of several accounts in a row a venue is left alone, for longer each time.

One account's failures never open a venue's breaker. They open one of the account's own, which stops that account alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from exchange_service.venue_gate.failing_accounts import FailingAccounts

FAILURES_TO_OPEN = 5
# Of one account so many count, so it takes three accounts at least.
MOST_OF_ONE = 2
# The pause is prolonged when so many accounts have tried in vain after it.
PROBES = 2
FIRST_PAUSE = 30.0
GROWTH = 1.5
LONGEST_PAUSE = 300.0
# Replicas that have opened together do not come back together.
_JITTER = 0.1
# What to recommend while probes are under way, in seconds.
_PROBE_TIME = 1.0


class BreakerState(Enum):
    """Closed: calls go through. Open: no call does. Half-open: one of each account may, as a probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(frozen=True, slots=True)
class Entry:
    """A call that a breaker has let through: whose it is, when it began, and whether it is a probe."""

    account: str
    began: float
    probe: bool


class CircuitBreaker:
    """Opens after `FAILURES_TO_OPEN` failures in a row, of which at most `most_of_one` of one account count.

    After a pause it admits probes of up to `probes` accounts: a good one closes it, and when that many accounts have
    failed the next pause begins. An account whose trouble is its own (see FailingAccounts) may probe beside them, and
    its failure prolongs nothing. An account that has probed in vain waits for another pause, while others may try.

    Each admitted call reports its end by exactly one of `succeeded`, `failed` and `abandoned`, with what `enter`
    returned. Calls that were under way when it opened decide nothing: only probes do.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        jitter: Callable[[float, float], float] = random.uniform,
        *,
        most_of_one: int = MOST_OF_ONE,
        probes: int = PROBES,
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._most_of_one = most_of_one
        self._probes = probes
        self._failing = FailingAccounts()
        # Zero while closed. The unjittered one: jitter must not add up.
        self._pause = 0.0
        self._probe_at = 0.0
        # The accounts whose probes are under way, and those that have probed in vain, with the time of their next one.
        self._probing: set[str] = set()
        self._next_probes: dict[str, float] = {}
        # Of the latter, those that speak of the venue.
        self._refuted: set[str] = set()

    @classmethod
    def of_account(cls, clock: Callable[[], float]) -> CircuitBreaker:
        """One account's own, which its failures alone open."""
        return cls(clock, most_of_one=FAILURES_TO_OPEN, probes=1)

    @property
    def state(self) -> BreakerState:
        """As it is now."""
        if not self._pause:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._clock() >= self._probe_at else BreakerState.OPEN

    @property
    def failures(self) -> int:
        """How many failures in a row count, while it is closed."""
        return 0 if self._pause else self._failing.count(self._most_of_one, self._clock())

    @property
    def pause_left(self) -> float:
        """Seconds for which no account may probe; zero while it is closed or half-open."""
        return max(0.0, self._probe_at - self._clock()) if self._pause else 0.0

    def is_own(self, account: str) -> bool:
        """Whether the account fails while others are answered."""
        return self._failing.is_own(account, self._clock())

    def wait(self, account: str) -> float | None:
        """None if the account's call may go through; else the seconds after which it is worth trying."""
        if not self._pause:
            return None
        now = self._clock()
        left = max(self._probe_at, self._next_probes.get(account, 0.0)) - now
        if left > 0:
            return left
        if account in self._probing:
            return _PROBE_TIME
        if self._failing.is_own(account, now):
            return None
        counted = self._refuted | {name for name in self._probing if not self._failing.is_own(name, now)}
        return None if account in counted or len(counted) < self._probes else _PROBE_TIME

    def enter(self, account: str) -> Entry:
        """Let the account's call through, only if `wait` returned None."""
        assert self.wait(account) is None, "the breaker admits no call now"
        probe = bool(self._pause)
        if probe:
            self._probing.add(account)
        return Entry(account, self._clock(), probe)

    def succeeded(self, entry: Entry) -> None:
        """The venue gave a balance."""
        if entry.probe:
            self._close()
        if not self._pause:
            self._failing.answered(entry.account, entry.began, self._clock())

    def failed(self, entry: Entry) -> None:
        """The venue failed, in a way that may speak of the venue and not of one account."""
        now = self._clock()
        if not self._pause:
            self._failing.failed(entry.account, now)
            if self._failing.count(self._most_of_one, now) >= FAILURES_TO_OPEN:
                self._open(FIRST_PAUSE)
        elif entry.probe and entry.account in self._probing:
            self._probing.discard(entry.account)
            self._next_probes[entry.account] = now + self._pause
            if self._failing.failed(entry.account, now):
                self._refuted.add(entry.account)
            if len(self._refuted) >= self._probes:
                self._open(min(self._pause * GROWTH, LONGEST_PAUSE))

    def abandoned(self, entry: Entry) -> None:
        """The call ended in a way that says nothing of the venue; the account may probe again at once."""
        if entry.probe:
            self._probing.discard(entry.account)

    def _open(self, pause: float) -> None:
        self._failing.forget()
        self._end_probes()
        self._pause = pause
        self._probe_at = self._clock() + min(LONGEST_PAUSE, pause * self._jitter(1 - _JITTER, 1 + _JITTER))

    def _close(self) -> None:
        self._pause = 0.0
        self._end_probes()

    def _end_probes(self) -> None:
        self._probing.clear()
        self._next_probes.clear()
        self._refuted.clear()
