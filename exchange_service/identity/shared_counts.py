"""The quotas' count in Redis, so that all replicas count together."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from limits import RateLimitItem, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter

from exchange_service.cache.redis import Breaker, connection_pool
from exchange_service.identity.quotas import Action

log = structlog.get_logger(__name__)

_REDIS_LIMIT = 0.3
_CLOSE_LIMIT = 1.0


class RedisCount:
    """The SharedCount in Redis. Trouble there costs a call a moment, and then nothing until it is over."""

    def __init__(self, url: str, *, prefix: str) -> None:
        """ValueError for a URL that is none of a Redis."""
        self._pool = connection_pool(url)
        # The address is the pool's; the library only wants one that it can read.
        options: dict[str, Any] = {"connection_pool": self._pool, "key_prefix": f"{prefix}quota"}
        storage = RedisStorage("async+redis://", implementation="redispy", **options)
        self._limiter = FixedWindowRateLimiter(storage)
        self._breaker = Breaker()
        self._tasks: set[asyncio.Task[bool]] = set()

    async def take(self, key: str, action: Action, limit: int, count: int) -> bool | None:
        """As the protocol says."""
        probing = not self._breaker.closed
        if probing and not self._breaker.take_probe():
            return None
        try:
            task = asyncio.create_task(self._limiter.hit(_item(action, limit), key, cost=count), name="quota")
            self._tasks.add(task)
            task.add_done_callback(self._ended)
            done, _ = await asyncio.wait({task}, timeout=_REDIS_LIMIT)
            if not done:
                # Not awaited: the library shields its own clean-up.
                task.cancel()
            if not done or task.cancelled() or task.exception() is not None:
                self._breaker.failed()
                log.debug("quota.counted_alone")
                return None
            self._breaker.succeeded()
            return task.result()
        finally:
            if probing:
                self._breaker.end_probe()

    def _ended(self, task: asyncio.Task[bool]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()

    async def close(self) -> None:
        """Close the connections; bounded, whatever state Redis is in."""
        for task in self._tasks:
            task.cancel()
        closing = asyncio.ensure_future(self._pool.aclose())
        await asyncio.wait({closing, *self._tasks}, timeout=_CLOSE_LIMIT)


def _item(action: Action, limit: int) -> RateLimitItem:
    kind = RateLimitItemPerMinute if action is Action.REFRESH else RateLimitItemPerSecond
    # Each in a count of its own, also where two may be had equally often.
    return kind(limit, namespace=action.name)
