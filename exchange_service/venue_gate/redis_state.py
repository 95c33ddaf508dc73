"""What all replicas know of the venues, in Redis: how much of each limit is used, and which venues cool down."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence
from contextlib import suppress

from cachetools import LRUCache

from exchange_service.cache.redis_link import NoAnswer
from exchange_service.cache.sealed_redis import Conflict, Replacement, SealedRedis, answered
from exchange_service.cache.sealing import AHEAD, Opened
from exchange_service.venue_gate.rate_limits import Window
from exchange_service.venue_gate.shared_window import REPLICA_LENGTH, SharedWindow

# Seconds for which a count is kept at most, from the last permit on; what is sealed has to end within a few days.
_LONGEST_KEPT = 5 * 86_400.0
# Seconds to wait if others keep writing to a count, how often in a row that is believed, and for how many counts it is
# known.
_CONFLICT_WAIT = 0.05
_MOST_CONFLICTS = 10
_MOST_IN_CONFLICT = 1000
_MOST_COUNTS = 50_000


class RedisSharedState:
    """The SharedState in Redis. Names hold venues and keyed hashes of credentials, and never a user; what is kept under
    them is sealed."""

    def __init__(self, sealed: SealedRedis) -> None:
        self._sealed = sealed
        self._replica = secrets.token_bytes(REPLICA_LENGTH)
        # By the limit: what this replica has taken, as far as Redis has said.
        self._taken: LRUCache[str, Window] = LRUCache(_MOST_COUNTS)
        # In a row, by the limit.
        self._conflicts: LRUCache[str, int] = LRUCache(_MOST_IN_CONFLICT)

    async def take(self, key: str, allowed: int, seconds: int, count: int, unused: int = 0) -> float | None:
        """See SharedRateLimits."""
        wait, taken = 0.0, Window(seconds)

        def decide(present: Opened | None, now: float) -> Replacement:
            nonlocal wait, taken
            window = self._as_known(key, _read_window(seconds, present, now), now)
            window.give_back(self._replica, unused)
            wait = window.wait(count, allowed, now)
            if wait:
                return None
            taken = window.add(self._replica, count)
            return window.pack(), min(2.0 * seconds, _LONGEST_KEPT)

        try:
            written = await self._sealed.update(f"venue-permits:{key}", decide)
        except Conflict:
            # Others take permits too; if it goes on, that is not all they do.
            self._conflicts[key] = in_a_row = self._conflicts.get(key, 0) + 1
            return _CONFLICT_WAIT if in_a_row <= _MOST_CONFLICTS else None
        except NoAnswer:
            return None
        self._conflicts.pop(key, None)
        if not written:
            return wait
        self._taken[key] = taken
        return 0.0

    async def charge(self, key: str, seconds: int, count: int) -> bool:
        """See SharedRateLimits."""
        taken = Window(seconds)

        def decide(present: Opened | None, now: float) -> Replacement:
            nonlocal taken
            window = self._as_known(key, _read_window(seconds, present, now), now)
            taken = window.add(self._replica, count)
            return window.pack(), min(2.0 * seconds, _LONGEST_KEPT)

        try:
            await self._sealed.update(f"venue-permits:{key}", decide)
        except (Conflict, NoAnswer):
            return False
        self._taken[key] = taken
        return True

    def _as_known(self, key: str, window: SharedWindow, now: float) -> SharedWindow:
        """The window with what this replica knows that it has taken."""
        # What Redis counts of ours may be wrong: answers were lost, or Redis has lost its data. What was taken by a
        # clock that is ahead of Redis's counts no more: another server may have taken over.
        known = self._taken.get(key)
        ahead = known is not None and known.is_ahead(now + AHEAD)
        window.put(self._replica, None if ahead else known, now)
        return window

    async def cooldowns(self, keys: Sequence[str]) -> list[tuple[str, str, float]]:
        """The keys that cool down, each with the reason and the seconds left; empty while Redis does not answer."""
        known = await answered(self._sealed.get_all([_name(key) for key in keys]))
        return [
            (key, opened.payload.decode(), opened.left)
            for key, opened in zip(keys, known or (), strict=False)
            if opened is not None
        ]

    async def cool_down(self, key: str, reason: str, seconds: float) -> None:
        """Let `key` cool down for `seconds`, unless it does so for longer already."""

        def decide(present: Opened | None, _: float) -> Replacement:
            return (reason.encode(), seconds) if present is None or present.left < seconds else None

        await answered(self._sealed.update(_name(key), decide))

    async def met(self, key: str, account: str, seconds: float) -> str | None:
        """See SharedCooldowns."""
        before: str | None = None

        def decide(present: Opened | None, _: float) -> Replacement:
            nonlocal before
            before = present.payload.decode() if present is not None else None
            return account.encode(), seconds

        await answered(self._sealed.update(_name(key), decide))
        return before

    async def forget_met(self, key: str) -> None:
        """See SharedCooldowns."""
        await answered(self._sealed.delete(_name(key)))


def _read_window(seconds: int, present: Opened | None, now: float) -> SharedWindow:
    """What Redis keeps of a limit; an empty window if it keeps nothing that can be read."""
    with suppress(struct.error):
        if present is not None:
            return SharedWindow.unpack(seconds, present.payload, now)
    return SharedWindow(seconds, now)


def _name(key: str) -> str:
    return f"venue:{key}"
