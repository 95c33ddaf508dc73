"""A venue's limits, kept by all replicas together where they share a Redis, and by each for its part where not.

What a replica gives out it has taken from Redis before, in lots that grow while they are used up and shrink when they
are not: a busy replica asks rarely, and an idle one keeps nothing from the others.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from exchange_service.model import RateLimit

# A part of the budget that polling leaves to calls that somebody waits for.
RESERVE = 0.2
# The largest share of a window's budget that a replica takes at once. What it does not use within the same share of
# the window is lost: counted, and never asked.
_LOTS = 20
# Seconds for which nobody else asks a Redis that did not answer.
_ALONE = 1.0
_LEAST_WAIT = 0.05


class SharedRateLimits(Protocol):
    """What all replicas have taken."""

    async def take(self, key: str, allowed: int, seconds: int, count: int) -> float | None:
        """Take `count` of the `allowed` in any `seconds`. Zero: taken; else the seconds until there may be as many;
        None where nobody knows."""


def until_room(
    previous: int, previous_left: float, current: int, current_left: float, *, room: int, seconds: int
) -> float:
    """Seconds until a sliding window has room for what leaves `room` to all before it; zero where it has now.

    The window is reckoned from two fixed ones: of the `previous` one as much counts as still lies within `seconds`,
    and it leaves in `previous_left` seconds; the `current` one begins to leave in `current_left`.
    """
    if room < 0:
        return float(seconds)
    if int(previous * previous_left / seconds) + current <= room:
        return 0.0
    if current <= room:
        # The whole part of what is left of the previous one has to fall to what is free.
        return max(0.0, previous_left - (room - current) * seconds / previous)
    return current_left + seconds - room * seconds / current


class Window:
    """A sliding window's count in this process."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._began = 0.0
        self._previous = self._current = 0

    def _turn(self, now: float) -> None:
        passed = int((now - self._began) // self._seconds)
        if passed > 0:
            self._previous = self._current if passed == 1 else 0
            self._current = 0
            # A window begins with the first thing that is counted in it, as it does in Redis.
            self._began = self._began + self._seconds if self._previous else now

    def add(self, count: int, now: float) -> None:
        """Count it, or take it back."""
        self._turn(now)
        self._current += count

    def used(self, now: float) -> int:
        """How many lie within the window."""
        self._turn(now)
        left = max(0.0, self._began + self._seconds - now)
        return int(self._previous * left / self._seconds) + self._current

    def wait(self, count: int, allowed: int, now: float) -> float:
        """Seconds until `count` more are allowed; zero where they are now."""
        self._turn(now)
        left = max(0.0, self._began + self._seconds - now)
        return until_room(self._previous, left, self._current, left, room=allowed - count, seconds=self._seconds)


class _Lot:
    """What was taken from Redis and not used yet, for as long as it is good."""

    __slots__ = ("ends", "left", "size")

    def __init__(self, size: int) -> None:
        self.left = 0
        self.ends = 0.0
        self.size = size


class Budget:
    """One limit of one venue, or of one key there. Counts are in the limit's own units."""

    def __init__(self, key: str, limit: RateLimit, shared: SharedRateLimits | None = None, replicas: int = 1) -> None:
        self.key = key
        self.limit = limit
        self._shared = shared
        self._replicas = replicas
        self._window = Window(limit.seconds)
        # By whether polling may use it: what is taken from the reserve is for calls that somebody waits for alone.
        self._lots = {polling: _Lot(limit.cost) for polling in (True, False)}
        self._asks = {True: 0.0, False: 0.0}
        self._alone_until = 0.0
        # What was given out without Redis, and when last: it is counted there as soon as it answers.
        self._owed = 0
        self._owed_at = 0.0
        self._asking = asyncio.Lock()

    def _allowed(self, polling: bool) -> int:
        """How many of the window's are for it; at least one balance's."""
        count = self.limit.count
        return max(self.limit.cost, int(count * (1 - RESERVE))) if polling else count

    def left(self) -> float:
        """Which share is left, from 0 to 1, as this process has counted."""
        used = self._window.used(asyncio.get_running_loop().time())
        return max(0.0, 1 - used / self.limit.count)

    def spend(self, polling: bool, now: float) -> bool:
        """Take a balance's cost of what is here already."""
        for lot in (self._lots[True],) if polling else (self._lots[False], self._lots[True]):
            if lot.left >= self.limit.cost and now < lot.ends:
                lot.left -= self.limit.cost
                self._window.add(self.limit.cost, now)
                return True
        return False

    def put_back(self, polling: bool, now: float) -> None:
        """The venue was not asked after all."""
        self._window.add(-self.limit.cost, now)
        if self._shared is not None and now >= self._alone_until:
            lot = self._lots[polling]
            lot.left = self.limit.cost + (lot.left if now < lot.ends else 0)
            lot.ends = now + self.limit.seconds / _LOTS

    async def take(self, polling: bool) -> float:
        """Take a balance's cost; zero, or the seconds until it is worth trying again."""
        clock = asyncio.get_running_loop().time
        if self._shared is None:
            return self._take_alone(polling, clock(), self.limit.count)
        async with self._asking:
            # While this one waited for its turn another one may have brought enough for both.
            now = clock()
            if self.spend(polling, now):
                return 0.0
            if now < self._asks[polling]:
                return self._asks[polling] - now
            if now >= self._alone_until:
                wait = await self._take_shared(self._shared, polling, now)
                if wait is not None:
                    return wait
                self._alone_until = clock() + _ALONE
            return self._take_alone(polling, clock(), self.limit.count // self._replicas)

    async def _take_shared(self, shared: SharedRateLimits, polling: bool, now: float) -> float | None:
        cost, lot, allowed = self.limit.cost, self._lots[polling], self._allowed(polling)
        if now < lot.ends:
            # Used up before its time.
            most = self.limit.count // _LOTS // cost * cost
            lot.size = max(cost, min(lot.size * 2, most))
        else:
            lot.size = cost
        owed = min(self._owed, allowed - lot.size) if now < self._owed_at + self.limit.seconds else 0
        wait = await shared.take(self.key, allowed, self.limit.seconds, lot.size + owed)
        if wait and lot.size + owed > cost:
            lot.size = cost
            wait = await shared.take(self.key, allowed, self.limit.seconds, cost)
        if wait is None:
            return None
        self._owed = 0
        if wait:
            wait = max(_LEAST_WAIT, wait)
            self._asks[polling] = now + wait
            return wait
        lot.left, lot.ends = lot.size - cost, now + self.limit.seconds / _LOTS
        self._window.add(cost, now)
        return 0.0

    def _take_alone(self, polling: bool, now: float, count: int) -> float:
        """The same by this process's own count, of `count` for all that it does."""
        cost = self.limit.cost
        allowed = max(cost, int(count * (1 - RESERVE)) if polling else count)
        wait = self._window.wait(cost, allowed, now)
        if wait:
            return min(max(_LEAST_WAIT, wait), self.limit.seconds)
        self._window.add(cost, now)
        if self._shared is not None:
            self._owed, self._owed_at = self._owed + cost, now
        return 0.0
