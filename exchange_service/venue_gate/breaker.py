"""A circuit breaker: after some failures in a row a venue is left alone, for longer each time."""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum

FAILURES_TO_OPEN = 5
FIRST_PAUSE = 30.0
GROWTH = 1.5
LONGEST_PAUSE = 300.0
# Replicas that have opened together do not come back together.
_JITTER = 0.1
# What to recommend while a probe is under way, in seconds.
_PROBE_TIME = 1.0


class BreakerState(Enum):
    """Closed: calls go through. Open: no call does. Half-open: one may, as a probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class CircuitBreaker:
    """Opens after `FAILURES_TO_OPEN` failures in a row, and then admits one probe at a time, each after a pause.

    Each admitted call reports its end by exactly one of `succeeded`, `failed` and `abandoned`, with what `enter`
    returned. Calls that were under way when it opened decide nothing: only the probe does.
    """

    def __init__(self, clock: Callable[[], float], jitter: Callable[[float, float], float] = random.uniform) -> None:
        self._clock = clock
        self._jitter = jitter
        self._failures = 0
        # Zero while closed. The unjittered one: jitter must not add up.
        self._pause = 0.0
        self._probe_at = 0.0
        self._probing = False

    @property
    def state(self) -> BreakerState:
        """As it is now."""
        if not self._pause:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._probing or self._clock() >= self._probe_at else BreakerState.OPEN

    @property
    def failures(self) -> int:
        """How many calls have failed in a row, while it is closed."""
        return self._failures

    def wait(self) -> float | None:
        """None if a call may go through; else the seconds after which it is worth trying."""
        if not self._pause:
            return None
        if self._probing:
            return _PROBE_TIME
        left = self._probe_at - self._clock()
        return left if left > 0 else None

    def enter(self) -> bool:
        """Let a call through, only if `wait` returned None. Returns whether it is the probe."""
        assert self.wait() is None, "the breaker admits no call now"
        self._probing = bool(self._pause)
        return self._probing

    def succeeded(self, probe: bool) -> None:
        """The venue gave a balance."""
        if probe:
            self._probing, self._pause = False, 0.0
        if not self._pause:
            self._failures = 0

    def failed(self, probe: bool) -> None:
        """The venue failed, in a way that speaks of the venue and not of one account."""
        if probe:
            self._probing = False
            self._open(min(self._pause * GROWTH, LONGEST_PAUSE))
        elif not self._pause:
            self._failures += 1
            if self._failures >= FAILURES_TO_OPEN:
                self._open(FIRST_PAUSE)

    def abandoned(self, probe: bool) -> None:
        """The call ended in a way that says nothing of the venue; another probe may be made at once."""
        if probe:
            self._probing = False

    def _open(self, pause: float) -> None:
        self._failures = 0
        self._pause = pause
        self._probe_at = self._clock() + min(LONGEST_PAUSE, pause * self._jitter(1 - _JITTER, 1 + _JITTER))
