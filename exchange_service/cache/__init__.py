"""Where balances are kept for a short time: in the process by default, in Redis by URL."""

from __future__ import annotations

from typing import Protocol


class Cache(Protocol):
    """Bytes by key, for a time. A cache never fails a call: what it cannot read is missing, what it cannot write is
    not kept."""

    async def get(self, key: str) -> bytes | None:
        """The bytes at `key`, or None where there are none, they have expired, or the cache is out of reach."""

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep `value` at `key` for `ttl` seconds."""

    async def delete(self, key: str) -> None:
        """Forget what is at `key`."""

    async def problem(self) -> str:
        """Why the cache does not work right now, a sentence for the operator; empty when it does."""

    async def close(self) -> None:
        """Release what it holds."""


async def open_cache(url: str, *, prefix: str = "exchange-service:") -> Cache:
    """The cache that `url` names: "memory://", or "redis://…" and "rediss://…" as redis-py reads them."""
    if url.startswith("memory:"):
        from exchange_service.cache.memory import MemoryCache

        return MemoryCache()
    from exchange_service.cache.redis import RedisCache

    return RedisCache.from_url(url, prefix=prefix)
