"""Where balances are kept for a short time: in the process by default, in Redis by URL.

In Redis the replicas also agree on who asks a venue (`lease`), and tell each other what has changed (`tell`, `listen`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

# Called with what another replica has told, or with None where something may have been missed.
Listener = Callable[[bytes | None], None]


class Lease(Protocol):
    """A name that this process has taken for a time."""

    @property
    def shared(self) -> bool:
        """Whether other replicas respect it; not where the cache is out of reach, or of this process alone."""

    async def renew(self) -> None:
        """Have it for as long again, if it is still ours."""

    async def release(self) -> None:
        """Let it go before its time."""


class Cache(Protocol):
    """Bytes by key, for a time. A cache never fails a call: what it cannot read is missing, what it cannot write is
    not kept."""

    async def get(self, key: str) -> bytes | None:
        """The bytes at `key`, or None where there are none, they have expired, or the cache is out of reach."""

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep `value` at `key` for `ttl` seconds."""

    async def delete(self, key: str) -> None:
        """Forget what is at `key`."""

    @property
    def shared(self) -> bool:
        """Whether other replicas see what is kept here, right now."""

    async def lease(self, name: str, seconds: float) -> Lease | None:
        """Take `name` for `seconds`, or None where another replica has it. Where nobody can be asked it is taken."""

    async def publish(self, message: bytes) -> None:
        """Tell every other replica, as a hint that may be lost."""

    def listen(self, listener: Listener) -> None:
        """Have `listener` called with what others tell, from now on."""

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
