"""What all replicas know of the venues, in Redis: how much of each budget is taken, and which venues are shut.

Redis is a help here and never a need: whatever it does, a fetch waits at most about 0.3 seconds for it, and next to
nothing once it is known to be down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import redis.asyncio as redis_client
import structlog
from limits.aio.storage import RedisStorage

from exchange_service.cache.redis import Breaker, connection_pool
from exchange_service.venue_gate.rate_limits import until_room

T = TypeVar("T")

log = structlog.get_logger(__name__)

_REDIS_LIMIT = 0.3
_CLOSE_LIMIT = 1.0


class RedisShare:
    """The budgets' count and the pauses in Redis. Keys name venues and keyed hashes of credentials, and nobody."""

    def __init__(self, url: str, *, prefix: str) -> None:
        """ValueError for a URL that is none of a Redis."""
        self._pool = connection_pool(url)
        self._redis = redis_client.Redis(connection_pool=self._pool)
        self._prefix = f"{prefix}venue:"
        # The address is the pool's; the library only wants one that it can read.
        options: dict[str, Any] = {"connection_pool": self._pool, "key_prefix": f"{prefix}venue-budget"}
        self._counts = RedisStorage("async+redis://", implementation="redispy", **options)
        self._breaker = Breaker()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._alone = False

    async def take(self, key: str, allowed: int, seconds: int, count: int) -> float | None:
        """See SharedCount."""

        async def ask() -> float:
            if await self._counts.acquire_sliding_window_entry(key, allowed, seconds, count):
                return 0.0
            window = await self._counts.get_sliding_window(key, seconds)
            # It may have moved on since it refused.
            return until_room(*window, room=allowed - count, seconds=seconds) or 0.001

        return await self._ask(ask)

    async def pauses(self, keys: Sequence[str]) -> list[tuple[str, str, float]]:
        """Which of the keys are shut, each with the reason and the seconds that are left; none where nobody knows."""
        names = [self._prefix + key for key in keys]

        async def ask() -> list[tuple[str, str, float]]:
            found = await self._redis.mget(names)
            return [
                (key, reason.decode("ascii", "replace"), max(0, await self._redis.pttl(name)) / 1000)
                for key, name, reason in zip(keys, names, found, strict=True)
                if isinstance(reason, bytes)
            ]

        return await self._ask(ask) or []

    async def shut(self, key: str, reason: str, seconds: float) -> None:
        """Let nobody ask for so long; a longer pause that is there already stays."""
        name, milliseconds = self._prefix + key, max(1, round(seconds * 1000))

        async def ask() -> None:
            if await self._redis.pttl(name) < milliseconds:
                await self._redis.set(name, reason, px=milliseconds)

        await self._ask(ask)

    async def _ask(self, command: Callable[[], Awaitable[T]]) -> T | None:
        """What Redis answers; None where it does not, or is known not to."""
        probing = not self._breaker.closed
        if probing and not self._breaker.take_probe():
            return None
        try:
            task = asyncio.ensure_future(command())
            self._tasks.add(task)
            task.add_done_callback(self._ended)
            done, _ = await asyncio.wait({task}, timeout=_REDIS_LIMIT)
            if not done:
                # Not awaited: the library shields its own clean-up.
                task.cancel()
            if not done or task.cancelled() or task.exception() is not None:
                self._breaker.failed()
                self._say(alone=True)
                return None
            self._breaker.succeeded()
            self._say(alone=False)
            return task.result()
        finally:
            if probing:
                self._breaker.end_probe()

    def _say(self, *, alone: bool) -> None:
        """Log that it begins, or is over, and not each time."""
        if alone != self._alone:
            self._alone = alone
            if alone:
                log.warning("venue_gate.counts_alone", now="each replica keeps to its part of the venues' limits")
            else:
                log.info("venue_gate.counts_together")

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Perhaps nobody waits any more, and asyncio would log it.
            task.exception()

    async def close(self) -> None:
        """Close the connections; bounded, whatever state Redis is in."""
        for task in self._tasks:
            task.cancel()
        closing = asyncio.ensure_future(self._pool.aclose())
        await asyncio.wait({closing, *self._tasks}, timeout=_CLOSE_LIMIT)
