"""What all replicas know of the venues, in Redis: how much of each limit is used, and which venues cool down."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from exchange_service.cache.redis_link import NoAnswer, RedisLink
from exchange_service.venue_gate.rate_limits import until_room

T = TypeVar("T")


class RedisSharedState:
    """The SharedState in Redis. Names and values hold venues and keyed hashes of credentials and
    users, never a user."""

    def __init__(self, link: RedisLink, *, prefix: str) -> None:
        self._link = link
        self._redis = link.redis
        self._prefix = f"{prefix}venue:"
        self._counters = link.counters(f"{prefix}venue-budget")

    async def take(self, key: str, allowed: int, seconds: int, count: int) -> float | None:
        """See SharedRateLimits."""

        async def ask() -> float:
            if await self._counters.acquire_sliding_window_entry(key, allowed, seconds, count):
                return 0.0
            window = await self._counters.get_sliding_window(key, seconds)
            # It may have moved on since it refused.
            return until_room(*window, room=allowed - count, seconds=seconds) or 0.001

        return await self._call(ask)

    async def cooldowns(self, keys: Sequence[str]) -> list[tuple[str, str, float]]:
        """The keys that cool down, each with the reason and the seconds left; empty while Redis does not answer."""
        names = [self._prefix + key for key in keys]

        async def ask() -> list[tuple[str, str, float]]:
            reasons = await self._redis.mget(names)
            return [
                (key, reason.decode("ascii", "replace"), max(0, await self._redis.pttl(name)) / 1000)
                for key, name, reason in zip(keys, names, reasons, strict=True)
                if isinstance(reason, bytes)
            ]

        return await self._call(ask) or []

    async def cool_down(self, key: str, reason: str, seconds: float) -> None:
        """Let `key` cool down for `seconds`, unless it does so for longer already."""
        name, milliseconds = self._prefix + key, max(1, round(seconds * 1000))

        async def ask() -> None:
            if await self._redis.pttl(name) < milliseconds:
                await self._redis.set(name, reason, px=milliseconds)

        await self._call(ask)

    async def met(self, key: str, account: str, seconds: float) -> str | None:
        """See SharedCooldowns."""
        name, milliseconds = self._prefix + key, max(1, round(seconds * 1000))

        async def ask() -> str | None:
            before = await self._redis.get(name)
            await self._redis.set(name, account, px=milliseconds)
            return before.decode("ascii", "replace") if isinstance(before, bytes) else None

        return await self._call(ask)

    async def forget_met(self, key: str) -> None:
        """See SharedCooldowns."""

        async def ask() -> None:
            await self._redis.delete(self._prefix + key)

        await self._call(ask)

    async def _call(self, command: Callable[[], Awaitable[T]]) -> T | None:
        """The result of `command`; None while Redis does not answer."""
        try:
            return await self._link.call(command)
        except NoAnswer:
            return None
