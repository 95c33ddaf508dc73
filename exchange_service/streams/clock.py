"""The two times that streams use, in one object that tests can replace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from exchange_service import clock


def _running_loop_time() -> Callable[[], float]:
    return asyncio.get_running_loop().time


@dataclass(frozen=True, slots=True)
class Clock:
    """`wall` returns seconds since the epoch, for ages. `monotonic` returns the event loop's time in seconds, for waits
    and deadlines. Create it inside a running loop."""

    wall: Callable[[], float] = clock.wall
    # Bound once: readers ask for it twice per event.
    monotonic: Callable[[], float] = field(default_factory=_running_loop_time)
