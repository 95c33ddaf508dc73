"""Where balances are kept for a short time: in the process by default, in Redis by URL.

In Redis the replicas also agree which of them asks a venue (`lease`), and send each other invalidations (`publish`,
`add_listener`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from exchange_service.cache.redis_link import RedisLink
    from exchange_service.cache.sealed_redis import SealedRedis

# Called with a message of another replica, or with None if messages may have been missed.
Listener = Callable[[bytes | None], None]


class Lease(Protocol):
    """A name that this process holds for a time."""

    @property
    def shared(self) -> bool:
        """Whether other replicas respect it; False if the cache is out of reach or belongs to this process alone."""

    async def renew(self) -> None:
        """Hold it for as long again, if it is still ours."""

    async def release(self) -> None:
        """Release it before its time."""


class Cache(Protocol):
    """Bytes by key, for a time. A cache never fails a call: what it cannot read is missing, what it cannot write is
    not kept."""

    async def get(self, key: str) -> bytes | None:
        """The bytes at `key`, or None if nothing is stored, it has expired, or the cache is out of reach."""

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep `value` at `key` for `ttl` seconds."""

    async def compare_and_set(self, key: str, value: bytes, ttl: float, *, expected: bytes) -> bytes | None:
        """Keep `value` at `key` for `ttl` seconds if the bytes stored there begin with `expected`, and return None.

        An empty `expected` means that nothing may be stored there. If it does not match, nothing is written, and the
        bytes stored at `key` are returned: b"" if nothing is stored. No other write can come between the comparison and
        this one.
        """

    async def delete(self, key: str) -> None:
        """Forget the value at `key`."""

    @property
    def shared(self) -> bool:
        """Whether other replicas see what is kept here at present."""

    @property
    def hears(self) -> bool:
        """Whether messages of other replicas arrive at present, or there is no cache to look at in their place."""

    @property
    def reliable(self) -> bool:
        """Whether the cache has answered every call lately: what another replica has taken or written is seen here."""

    async def lease(self, name: str, seconds: float) -> Lease | None:
        """Take `name` for `seconds`, or None if another replica holds it. Always taken while the cache is out of
        reach."""

    async def publish(self, message: bytes) -> None:
        """Send `message` to every other replica. It may be lost."""

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` with each message of another replica from now on."""

    @property
    def clock_difference(self) -> float:
        """Seconds by which this process's clock is ahead of the one that replicas share, as far as is known."""

    async def problem(self) -> str:
        """Why the cache does not work at present, a sentence for the operator; empty if it does."""

    async def close(self) -> None:
        """Release what it holds."""


def check_url(url: str) -> None:
    """Raise ValueError, without the URL in its text, for one that `open_link` does not take."""
    if not url.startswith("memory:"):
        from exchange_service.cache.redis_link import connection_pool

        connection_pool(url)


def open_link(url: str) -> RedisLink | None:
    """The process's link to the Redis that `url` names ("redis://…", "rediss://…" or "unix://…", as redis-py reads
    them); None for "memory://". Raises ValueError for any other URL, without the URL in its text."""
    if url.startswith("memory:"):
        return None
    # Imported late: a service without Redis does not load its library.
    from exchange_service.cache.redis_link import RedisLink

    return RedisLink(url)


def open_sealed(link: RedisLink, hash_key: bytes, *, prefix: str) -> SealedRedis:
    """What replicas with the same `hash_key` share in the Redis of `link`; its names begin with `prefix`."""
    from exchange_service.cache.sealed_redis import SealedRedis

    return SealedRedis(link, hash_key, prefix=prefix)


def make_cache(sealed: SealedRedis | None) -> Cache:
    """The cache in Redis; in the process if there is no Redis."""
    if sealed is None:
        from exchange_service.cache.memory import MemoryCache

        return MemoryCache()
    from exchange_service.cache.redis import RedisCache

    return RedisCache(sealed)


@asynccontextmanager
async def open_cache(url: str, hash_key: bytes, *, prefix: str) -> AsyncIterator[Cache]:
    """A cache on a link of its own, closed together at the end; see `open_link` and `make_cache`."""
    link = open_link(url)
    cache = make_cache(open_sealed(link, hash_key, prefix=prefix) if link is not None else None)
    try:
        yield cache
    finally:
        await cache.close()
        if link is not None:
            await link.close()
