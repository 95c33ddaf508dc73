"""A venue's rate limits, kept by all replicas together if they share a Redis, and by each for its part otherwise.

A replica reserves permits in Redis before it gives them out, in batches. A batch doubles while it is used up within
1/20 of the window; permits that are unused then are given back with the next batch. So a busy replica asks Redis
rarely, and an idle one withholds little from the others.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from cachetools import LRUCache

from exchange_service.model import RateLimit

# The part of a limit that polling leaves to callers who wait.
RESERVE = 0.2
# The part of a limit by address that one account may use: another one finds permits whatever it does.
OF_ONE = 0.5
# The same for as long as another account's calls find no permits.
OF_ONE_BESIDE_OTHERS = 0.25
# A batch of permits is at most this part of a window's, and lasts for this part of the window.
_BATCHES = 20
# Seconds for which a Redis that did not answer is not asked again.
_ALONE = 1.0
_LEAST_WAIT = 0.05
_MOST_LIMITERS = 50_000
# The accounts whose use of one limit is known.
_MOST_ACCOUNTS = 1_000


class SharedRateLimits(Protocol):
    """The permits that all replicas have taken."""

    async def take(self, key: str, allowed: int, seconds: int, count: int, unused: int = 0) -> float | None:
        """Take `count` of the `allowed` in any `seconds`, and give back `unused` ones. Returns zero if that was done,
        the seconds until there may be as many if not, and None if Redis does not answer."""

    async def charge(self, key: str, seconds: int, count: int) -> bool:
        """Count `count` more, however many are left: they were used already. Whether Redis has counted them."""


def until_room(
    previous: int, previous_left: float, current: int, current_left: float, *, room: int, seconds: int
) -> float:
    """Seconds until a sliding window has room for what leaves `room` to all before it; zero if it has room now.

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
    """A sliding window's count. Times are of one clock."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._began = 0.0
        self._previous = self._current = 0

    @classmethod
    def of(cls, seconds: int, began: float, previous: int, current: int) -> Window:
        """A window whose current part began at `began`, with the counts of its two parts."""
        window = cls(seconds)
        window._began, window._previous, window._current = began, previous, current
        return window

    def counts_in(self, began: float, now: float) -> tuple[int, int]:
        """The counts of the previous and the current part in a window whose current part began at `began`."""
        self._advance(now)
        return (self._previous, self._current) if self._began == began else (0, self.used(now))

    def _advance(self, now: float) -> None:
        passed = int((now - self._began) // self._seconds)
        if passed > 0:
            self._previous = self._current if passed == 1 else 0
            self._current = 0
            # A window begins with the first thing that is counted in it, as it does in Redis.
            self._began = self._began + self._seconds if self._previous else now

    def add(self, count: int, now: float) -> None:
        """Count it, or take it back."""
        self._advance(now)
        self._current += count

    def used(self, now: float) -> int:
        """How many lie within the window."""
        self._advance(now)
        return int(self._previous * self._left(now) / self._seconds) + self._current

    def _left(self, now: float) -> float:
        """Seconds that are left of the current part; never more than it has, wherever the clock stands."""
        return min(max(0.0, self._began + self._seconds - now), self._seconds)

    def began(self, now: float) -> float:
        """When its current part began."""
        self._advance(now)
        return self._began

    def is_ahead(self, now: float) -> bool:
        """Whether its current part begins later than now: the clock has been set back."""
        return self._began > now

    def wait(self, count: int, allowed: int, now: float) -> float:
        """Seconds until `count` more are allowed; zero if they are allowed now."""
        self._advance(now)
        left = self._left(now)
        return until_room(self._previous, left, self._current, left, room=allowed - count, seconds=self._seconds)


class _Batch:
    """Permits that were taken from Redis and are not used yet, for as long as they last."""

    __slots__ = ("ends", "left", "size")

    def __init__(self, size: int) -> None:
        self.left = 0
        self.ends = 0.0
        self.size = size


class RateLimiter:
    """One limit of one venue, or of one key there. Counts are in the limit's own units."""

    def __init__(self, key: str, limit: RateLimit, shared: SharedRateLimits | None = None, replicas: int = 1) -> None:
        self.key = key
        self.limit = limit
        self._shared = shared
        self._replicas = replicas
        self._window = Window(limit.seconds)
        # By whether polling may use them: permits of the reserve are only for callers who wait.
        self._batches = {polling: _Batch(limit.cost) for polling in (True, False)}
        # From when on it is worth asking Redis again, by whether it is for polling and by the cost.
        self._ask_after: dict[tuple[bool, int], float] = {}
        self._alone_until = 0.0
        # Permits given out without Redis, and when last: they are counted there as soon as it answers.
        self._owed = 0
        self._owed_at = 0.0
        # Units that calls have used beyond their cost, and that Redis does not know of yet.
        self._charged = 0
        # What other programs have used by the venue's count, until it counts from zero again: as the answers to two
        # accounts have said, the newest last.
        self._others: dict[str, tuple[int, float]] = {}
        # A limit by key is one account's alone.
        self._of_accounts: LRUCache[str, Window] | None = None if limit.scope == "key" else LRUCache(_MOST_ACCOUNTS)
        # The last two accounts that found no permits although they had not used up their part, until when that counts.
        self._short: dict[str, float] = {}
        self._asking = asyncio.Lock()

    def _allowed(self, polling: bool, cost: int) -> int:
        """How many of the window's permits are for it; at least one balance's."""
        count = self.limit.count
        return max(cost, int(count * (1 - RESERVE))) if polling else count

    def left(self) -> float:
        """The share that is left, from 0 to 1, as this process has counted."""
        now = asyncio.get_running_loop().time()
        return max(0.0, 1 - (self._window.used(now) + self._used_by_others(now)[0]) / self.limit.count)

    def observe(self, used: int, resets_after: float, account: str) -> None:
        """The venue counts `used` units as used now, and counts from zero again in `resets_after` seconds: other
        programs may share the limit. Replicas that count together in Redis cannot tell whose these are, so only a
        process that counts alone follows. What only the answers to one account say holds for this account."""
        if self._shared is None:
            now = asyncio.get_running_loop().time()
            self._others.pop(account, None)
            used_by_others = max(0, min(used, self.limit.count) - self._window.used(now))
            self._others[account] = used_by_others, now + resets_after
            if len(self._others) > 2:
                del self._others[next(iter(self._others))]

    def _used_by_others(self, now: float, account: str = "") -> tuple[int, float]:
        """How much other programs have used, as far as it holds for the account, and until when they have."""
        valid = {name: said for name, said in self._others.items() if now < said[1]}
        agreed = min(valid.values()) if len(valid) > 1 else (0, 0.0)
        return max(agreed, valid.get(account, (0, 0.0)))

    def take_part(self, account: str, polling: bool, now: float, cost: int) -> float:
        """Take a balance's cost of the part of the limit that the account may use in this process. Returns zero, or
        the seconds until it is worth trying again."""
        if self._of_accounts is None:
            return 0.0
        window = self._of_accounts.get(account)
        if window is None:
            window = self._of_accounts[account] = Window(self.limit.seconds)
        part = OF_ONE_BESIDE_OTHERS if self._others_are_short(account, now) else OF_ONE
        allowed = max(cost, int(self._allowed(polling, cost) * part) // self._replicas)
        wait = window.wait(cost, allowed, now)
        if not wait:
            window.add(cost, now)
            return 0.0
        return min(max(_LEAST_WAIT, wait), self.limit.seconds)

    def _note_shortage(self, account: str, now: float, cost: int) -> None:
        """A caller has found no permits for the account: for a while others may use less, unless this one has used more
        than that itself, or knows of the shortage from the venue alone."""
        window = self._of_accounts.get(account) if self._of_accounts is not None else None
        if window is None or window.used(now) > max(cost, int(self.limit.count * OF_ONE_BESIDE_OTHERS)):
            return
        if self._shared is None and not self._window.wait(cost, self.limit.count, now):
            return
        self._short.pop(account, None)
        self._short[account] = now + self.limit.seconds
        if len(self._short) > 2:
            # With two of them each account has another one.
            del self._short[next(iter(self._short))]

    def _others_are_short(self, account: str, now: float) -> bool:
        return any(now < until and name != account for name, until in self._short.items())

    def return_part(self, account: str, now: float, cost: int) -> None:
        """Return what `take_part` took: the venue was not asked after all."""
        window = self._of_accounts.get(account) if self._of_accounts is not None else None
        if window is not None:
            window.add(-cost, now)

    def acquire_local(self, polling: bool, now: float, cost: int) -> bool:
        """Take a balance's cost of the permits that this process has already; whether there were enough."""
        for batch in (self._batches[True],) if polling else (self._batches[False], self._batches[True]):
            if batch.left >= cost and now < batch.ends:
                batch.left -= cost
                self._window.add(cost, now)
                return True
        return False

    def release(self, polling: bool, now: float, cost: int) -> None:
        """Return a balance's cost: the venue was not asked after all."""
        self._window.add(-cost, now)
        if self._shared is not None and now >= self._alone_until:
            batch = self._batches[polling]
            batch.left = cost + (batch.left if now < batch.ends else 0)
            batch.ends = now + self.limit.seconds / _BATCHES

    def charge(self, units: int, account: str, now: float) -> None:
        """Count what a call of the account has used beyond its cost. This process's later calls wait for it at once,
        those of other replicas from the next `settle` on."""
        self._window.add(units, now)
        part = self._of_accounts.get(account) if self._of_accounts is not None else None
        if part is not None:
            part.add(units, now)
        if self._shared is None:
            return
        # Redis counts the permits that this process has reserved already.
        for batch in self._batches.values():
            reserved = min(units, batch.left) if now < batch.ends else 0
            batch.left -= reserved
            units -= reserved
        self._charged += units

    async def settle(self) -> None:
        """Let all replicas know what was charged."""
        if self._shared is not None and self._charged:
            async with self._asking:
                await self._settle(self._shared)

    async def _settle(self, shared: SharedRateLimits) -> None:
        units = self._charged
        if units:
            now = asyncio.get_running_loop().time()
            counted = now >= self._alone_until and await shared.charge(self.key, self.limit.seconds, units)
            self._charged -= units
            if not counted:
                self._owed, self._owed_at = self._owed + units, now

    async def acquire(self, polling: bool, account: str, cost: int) -> float:
        """Take a balance's cost. Returns zero, or the seconds until it is worth trying again."""
        wait = await self._acquire(polling, account, cost)
        if wait and not polling:
            self._note_shortage(account, asyncio.get_running_loop().time(), cost)
        return wait

    async def _acquire(self, polling: bool, account: str, cost: int) -> float:
        clock = asyncio.get_running_loop().time
        if self._shared is None:
            return self._acquire_alone(polling, clock(), account, cost)
        async with self._asking:
            # While this one waited for the lock another one may have brought enough for both.
            now = clock()
            if self.acquire_local(polling, now, cost):
                return 0.0
            ask_after = self._ask_after.get((polling, cost), 0.0)
            if now < ask_after:
                return ask_after - now
            if now >= self._alone_until:
                wait = await self._acquire_shared(self._shared, polling, now, cost)
                if wait is not None:
                    return wait
                self._alone_until = clock() + _ALONE
            return self._acquire_alone(polling, clock(), account, cost)

    async def _acquire_shared(self, shared: SharedRateLimits, polling: bool, now: float, cost: int) -> float | None:
        await self._settle(shared)
        batch, allowed = self._batches[polling], self._allowed(polling, cost)
        wait = self._own_wait(allowed, now, cost)
        if wait:
            return max(_LEAST_WAIT, wait)
        if now < batch.ends:
            # Used up before its time was over.
            most = self.limit.count // _BATCHES // cost * cost
            batch.size = max(cost, min(batch.size * 2, most))
        else:
            batch.size = cost
        owed = min(self._owed_of_window(now), allowed - batch.size)
        unused = self._unused(now)
        taken = await shared.take(self.key, allowed, self.limit.seconds, batch.size + owed, unused)
        if taken and batch.size + owed > cost:
            batch.size = cost
            taken = await shared.take(self.key, allowed, self.limit.seconds, cost, unused)
        if taken is None:
            return None
        self._owed = 0
        if taken:
            # Never beyond the limit's own window.
            wait = min(max(_LEAST_WAIT, taken), self.limit.seconds)
            self._ask_after[polling, cost] = now + wait
            return wait
        for expired in self._batches.values():
            if now >= expired.ends:
                expired.left = 0
        # What is left was too little for this balance, and is enough for a cheaper one.
        batch.left, batch.ends = batch.left + batch.size - cost, now + self.limit.seconds / _BATCHES
        self._window.add(cost, now)
        return 0.0

    def _owed_of_window(self, now: float) -> int:
        """How many permits that Redis does not know of lie within the window: what was used in a long time without it
        has mostly left."""
        return min(self._owed, self._window.used(now)) if now < self._owed_at + self.limit.seconds else 0

    def _unused(self, now: float) -> int:
        """How many permits of ended batches were not used and are still counted in Redis."""
        counted_for = self.limit.seconds * (1 - 1 / _BATCHES)
        return sum(batch.left for batch in self._batches.values() if batch.ends <= now < batch.ends + counted_for)

    def _own_wait(self, allowed: int, now: float, cost: int) -> float:
        """Seconds until this process's own count leaves room for a balance: it sends no more than the limit, whatever
        becomes of the count in Redis."""
        return self._window.wait(cost, allowed, now)

    def _acquire_alone(self, polling: bool, now: float, account: str, cost: int) -> float:
        """The same by this process's own count, of its part of the limit."""
        count = max(cost, self.limit.count // self._replicas)
        allowed = max(cost, int(count * (1 - RESERVE)) if polling else count)
        others, until = self._used_by_others(now, account)
        wait = self._window.wait(cost, allowed - others, now)
        if others and wait:
            wait = min(wait, max(until - now, self._window.wait(cost, allowed, now)))
        if wait:
            return min(max(_LEAST_WAIT, wait), self.limit.seconds)
        self._window.add(cost, now)
        if self._shared is not None:
            self._owed, self._owed_at = self._owed + cost, now
        return 0.0


class RateLimiters:
    """The rate limiters of all venues. `replicas` share a limit, each keeping to its part, while `shared` does not
    answer; it is None if they share no Redis."""

    def __init__(self, shared: SharedRateLimits | None = None, replicas: int = 1) -> None:
        self._shared = shared
        self._replicas = replicas
        self._limiters: LRUCache[str, RateLimiter] = LRUCache(_MOST_LIMITERS)

    def get(self, key: str, limit: RateLimit) -> RateLimiter:
        """The limiter of this limit for `key`, which names a venue or a credential there."""
        name = f"{key}/{limit.count}/{limit.seconds}"
        limiter = self._limiters.get(name)
        if limiter is None:
            self._limiters[name] = limiter = RateLimiter(name, limit, self._shared, self._replicas)
        return limiter
