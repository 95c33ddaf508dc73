"""The process's clock: the time of day by which balances get their fetch times and versions, and are judged fresh.

It follows the monotonic clock, and not each step of the system's: a clock that is set wrong for a moment makes no
balance older or younger, sends nobody to a venue, and lets no version go back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import structlog

# Seconds by which the clocks of replicas, and of what they share, may differ.
TOLERANCE = 2.0
# Seconds between two looks at the system's clock.
_LOOK_EVERY = 1.0
# A difference of so many seconds is the usual correction of a clock, and is followed at once.
_USUAL = 0.5
# A greater one is followed when it has stood for so many seconds.
_SETTLED_AFTER = 60.0

log = structlog.get_logger(__name__)


# Seconds since the machine started, those included for which it was suspended, where the system counts them.
_uptime: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)


class SteadyClock:
    """Seconds since the epoch, by `uptime` from where `system` stood at first. A step of `system` is followed after it
    has stood for a minute."""

    def __init__(
        self, system: Callable[[], float] = lambda: time.time(), uptime: Callable[[], float] = _uptime
    ) -> None:
        self._system = system
        self._uptime = uptime
        self._looked = uptime()
        self._ahead = system() - self._looked
        # A step that was seen, in seconds, and since when it stands.
        self._step = 0.0
        self._step_since = 0.0

    def __call__(self) -> float:
        """The time now, in seconds since the epoch."""
        now = self._uptime()
        if now - self._looked >= _LOOK_EVERY:
            self._looked = now
            self._look(now)
        return now + self._ahead

    def _look(self, now: float) -> None:
        step = self._system() - now - self._ahead
        if abs(step) <= _USUAL:
            self._ahead += step
            self._step = 0.0
        elif abs(step - self._step) > _USUAL:
            self._step, self._step_since = step, now
            log.warning("clock.stepped", seconds=round(step, 1), effect="followed if it stands for a minute")
        elif now - self._step_since >= _SETTLED_AFTER:
            self._ahead += step
            self._step = 0.0
            log.warning("clock.step_followed", seconds=round(step, 1))


# One for the process.
wall = SteadyClock()
