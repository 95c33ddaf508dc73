"""A cache in Redis, so that all replicas agree, with a copy in the process for when Redis does not answer.

Redis is a help here and never a need: whatever it does, a call costs at most `CALL_LIMIT`, and next to nothing once
it is known to be down.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import redis.asyncio as redis_client
import structlog
from redis.asyncio.lock import Lock
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import LockError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from exchange_service.cache import Lease, Listener
from exchange_service.cache.memory import Alone, MemoryCache

T = TypeVar("T")

log = structlog.get_logger()

# The library's own limits hold for each step; a call has several: a place in the pool, connecting, greeting, asking.
STEP_LIMIT = 0.25
POOL_WAIT = 0.1
POOL_SIZE = 32
HEALTH_CHECK_SECONDS = 15
# A command ends itself shortly before its caller stops waiting for it, so that it can put its connection in order.
COMMAND_LIMIT = 0.28
CALL_LIMIT = 0.3
CLOSE_LIMIT = 1.0

FAILURES_TO_OPEN = 3
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 10.0
REPORT_EVERY = 60.0

# What the library says when all connections are in use: that is our own load, and no failure of Redis.
_POOL_BUSY = "No connection available."

# Seconds for which the listener waits for a message before it looks whether the connection still works, and between
# two attempts to listen.
_LISTEN_FOR = 5.0
_LISTEN_AGAIN = (0.2, 5.0)
# Bytes by which a replica knows its own messages.
_NAME_LENGTH = 8


class Breaker:
    """Whether Redis is worth asking: after three failures in a row not for a second, then two, at most ten.

    While it is open one probe at a time may look whether Redis is back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._pause = 0.0
        self._probe_at = 0.0
        self._probing = False

    @property
    def closed(self) -> bool:
        """Whether calls go through."""
        return not self._pause

    def take_probe(self) -> bool:
        """Whether it is time for a probe and nobody else has taken it; the taker ends it with `end_probe`."""
        if self.closed or self._probing or self._clock() < self._probe_at:
            return False
        self._probing = True
        return True

    def end_probe(self) -> None:
        """Let another probe be taken when its time comes."""
        self._probing = False

    def succeeded(self) -> None:
        """Redis answered, be it with an error: calls go through."""
        self._failures = 0
        self._pause = 0.0

    def failed(self) -> None:
        """Redis did not answer. While open only the probe's failure counts, not that of calls begun before."""
        self._failures += 1
        if self.closed and self._failures >= FAILURES_TO_OPEN:
            self._open(FIRST_PAUSE)
        elif self._probing:
            self._open(min(self._pause * 2, LONGEST_PAUSE))

    def _open(self, pause: float) -> None:
        self._pause = pause
        self._probe_at = self._clock() + pause


def connection_pool(url: str) -> redis_client.BlockingConnectionPool:
    """Connections to the Redis at `url`, each step in bounded time; ValueError where redis-py cannot read the URL."""
    try:
        pool = redis_client.BlockingConnectionPool.from_url(
            url,
            max_connections=POOL_SIZE,
            timeout=POOL_WAIT,
            socket_timeout=STEP_LIMIT,
            socket_connect_timeout=STEP_LIMIT,
            health_check_interval=HEALTH_CHECK_SECONDS,
            # The default of ten retries turns a frozen server into a minute.
            retry=Retry(NoBackoff(), 0),
            protocol=3,
            # Redis could ask for longer time limits by them.
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        # A misspelt option in the URL would otherwise show only at the first call.
        make_connection: Callable[[], Any] = pool.make_connection
        make_connection()
    except (ValueError, TypeError):
        pool = None
    if pool is None:
        # Outside the handler: the library's exception may hold the URL, and with it the password.
        raise ValueError("the cache must be memory:// or redis://, rediss:// or unix:// as redis-py reads it")
    return pool


class _NoAnswer(Exception):
    """Redis did not answer, or with an error; `kind` is the class of the library's exception, its text is not kept."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class RedisCache:
    """The Cache in Redis.

    Two caches in the process stand beside it: copies of what was written to Redis, read only when Redis does not
    answer, and what could not be written. The latter is newer than what Redis holds, so it is read first.
    """

    def __init__(
        self, pool: redis_client.BlockingConnectionPool, *, prefix: str, breaker: Breaker | None = None
    ) -> None:
        self._redis = redis_client.Redis(connection_pool=pool)
        self._server = _server(pool.connection_kwargs)
        self._prefix = prefix
        self._breaker = breaker or Breaker()
        self._copies = MemoryCache()
        self._unwritten = MemoryCache()
        self._tasks: set[asyncio.Task[Any]] = set()
        # Everybody on this prefix; a message begins with who sent it.
        self._channel = f"{prefix}hints"
        self._name = secrets.token_bytes(_NAME_LENGTH)
        self._hears = False
        self._reported_at: float | None = None
        self._trouble_reported = False

    @classmethod
    def from_url(cls, url: str, *, prefix: str = "exchange-service:", breaker: Breaker | None = None) -> RedisCache:
        """The cache at redis://…, rediss://… (TLS) or unix://…; ValueError where redis-py cannot read the URL."""
        pool = connection_pool(url)
        return cls(pool, prefix=prefix, breaker=breaker)

    async def get(self, key: str) -> bytes | None:
        """The bytes at `key` as Redis has them; as this process has them where Redis does not answer."""
        unwritten = await self._unwritten.get(key)
        if unwritten is not None:
            return unwritten
        try:
            value = await self._ask(lambda: self._redis.get(self._prefix + key))
        except _NoAnswer:
            return await self._copies.get(key)
        return value if isinstance(value, bytes) else None

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep `value` at `key` for `ttl` seconds, in Redis and in this process."""
        if ttl <= 0:
            await self.delete(key)
            return
        await self._copies.set(key, value, ttl)
        milliseconds = max(1, round(ttl * 1000))
        try:
            await self._ask(lambda: self._redis.set(self._prefix + key, value, px=milliseconds))
        except _NoAnswer:
            await self._unwritten.set(key, value, ttl)
        else:
            await self._unwritten.delete(key)

    async def delete(self, key: str) -> None:
        """Forget what is at `key`; in Redis only when it answers."""
        await self._copies.delete(key)
        await self._unwritten.delete(key)
        try:
            await self._ask(lambda: self._redis.delete(self._prefix + key))
        except _NoAnswer:
            return

    @property
    def shared(self) -> bool:
        """Whether Redis answered lately."""
        return self._breaker.closed

    async def lease(self, name: str, seconds: float) -> Lease | None:
        """Take `name` for `seconds` by Redis's own clock; where Redis does not answer, each replica for itself."""
        lock = Lock(self._redis, self._prefix + name, timeout=seconds, blocking=False, thread_local=False)
        wanted = True

        async def acquire() -> bool:
            taken = bool(await lock.acquire())
            if taken and not wanted:
                # Whoever wanted it has gone meanwhile, and nobody else would let it go.
                await lock.release()
            return taken

        try:
            taken = await self._ask(acquire)
        except _NoAnswer:
            wanted = False
            return Alone()
        except asyncio.CancelledError:
            wanted = False
            raise
        return _RedisLease(self, lock) if taken else None

    async def renew(self, lock: Lock) -> None:
        """Have a lease for as long again, if it is still ours."""

        async def renew() -> None:
            with contextlib.suppress(LockError):
                await lock.reacquire()

        with contextlib.suppress(_NoAnswer):
            await self._ask(renew)

    async def release(self, lock: Lock) -> None:
        """Let a lease go, if it is still ours."""

        async def release() -> None:
            # It has run out, and perhaps another replica has it now.
            with contextlib.suppress(LockError):
                await lock.release()

        with contextlib.suppress(_NoAnswer):
            await self._ask(release)

    async def publish(self, message: bytes) -> None:
        """Tell every other replica that listens."""
        with contextlib.suppress(_NoAnswer):
            await self._ask(lambda: self._redis.publish(self._channel, self._name + message))

    @property
    def heard(self) -> bool:
        """Whether what others tell is heard right now."""
        return self._hears

    def listen(self, listener: Listener) -> None:
        """Have `listener` called with what others tell; with None when the connection was made anew."""
        self._keep(self._listen(listener))

    async def _listen(self, listener: Listener) -> None:
        pause, longest = _LISTEN_AGAIN
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
                    await channel.subscribe(self._channel)
                    pause = _LISTEN_AGAIN[0]
                    self._hears = True
                    listener(None)
                    while True:
                        message = await channel.get_message(timeout=_LISTEN_FOR)
                        data = message["data"] if message else b""
                        if isinstance(data, bytes) and data and not data.startswith(self._name):
                            listener(data[_NAME_LENGTH:])
            except Exception as error:
                self._report(type(error).__name__)
            self._hears = False
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def problem(self) -> str:
        """What is wrong with Redis right now, asked whatever is known of it; empty when it reads and writes."""
        try:
            await self._bounded(self._command(self._redis.ping))
        except _NoAnswer as failure:
            return f"Redis at {self._server} does not answer ({failure.kind}). Each replica uses its own memory."
        try:
            await self._bounded(self._command(lambda: self._redis.set(f"{self._prefix}doctor", b"1", px=1000)))
        except _NoAnswer as failure:
            return f"Redis at {self._server} answers but stores nothing ({failure.kind}). Check its memory and role."
        return ""

    async def close(self) -> None:
        """End what is under way and close the connections; bounded, whatever state Redis is in."""
        for task in self._tasks:
            task.cancel()
        closing = self._keep(self._redis.aclose(close_connection_pool=True))
        await asyncio.wait({closing, *self._tasks}, timeout=CLOSE_LIMIT)
        await self._copies.close()
        await self._unwritten.close()

    async def _ask(self, command: Callable[[], Awaitable[T]]) -> T:
        """What Redis answers; _NoAnswer at once where it is known to be down."""
        if not self._breaker.closed:
            if self._breaker.take_probe():
                # On the side: no caller waits to learn whether Redis is back.
                self._keep(self._probe())
            raise _NoAnswer("known to be down")
        return await self._bounded(self._command(command))

    async def _bounded(self, command: Coroutine[Any, Any, T]) -> T:
        """The command's answer in bounded time, even where the library shields its own clean-up from cancellation.

        A caller who is cancelled leaves his command to end by itself: its connection then stays good for the next.
        """
        task = self._keep(command)
        done, _ = await asyncio.wait({task}, timeout=CALL_LIMIT)
        if not done:
            task.cancel()
            self._failed("TimeoutError")
            raise _NoAnswer("TimeoutError")
        if task.cancelled():
            raise _NoAnswer("closed")
        return task.result()

    async def _command(self, command: Callable[[], Awaitable[T]]) -> T:
        """Run one command, tell the breaker how it went, and raise nothing but _NoAnswer."""
        try:
            async with asyncio.timeout(COMMAND_LIMIT):
                answer = await command()
        except ResponseError as error:
            # It answers: full, read-only, moved, or with another kind of value at our key.
            self._succeeded()
            kind = type(error).__name__
            self._report(kind)
        except Exception as error:
            kind = type(error).__name__
            if not (isinstance(error, RedisConnectionError) and str(error) == _POOL_BUSY):
                self._failed(kind)
        else:
            self._succeeded()
            return answer
        raise _NoAnswer(kind)

    async def _probe(self) -> None:
        try:
            await self._command(self._redis.ping)
        except _NoAnswer:
            return
        finally:
            self._breaker.end_probe()

    def _keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name="redis cache")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Perhaps nobody waits any more, and asyncio would log it.
            task.exception()

    def _succeeded(self) -> None:
        was_open = not self._breaker.closed
        self._breaker.succeeded()
        if was_open:
            # Others may have written something newer meanwhile.
            self._unwritten = MemoryCache()
        if was_open and self._trouble_reported:
            self._trouble_reported = False
            log.info("cache_answers_again", server=self._server)

    def _failed(self, kind: str) -> None:
        self._breaker.failed()
        self._report(kind)

    def _report(self, kind: str) -> None:
        """Log trouble, once a minute at most. The library's text is left out: nobody vouches for what it holds."""
        now = time.monotonic()
        if self._reported_at is not None and now - self._reported_at < REPORT_EVERY:
            return
        self._reported_at = now
        self._trouble_reported = True
        log.warning("cache_out_of_reach", server=self._server, error=kind, now="each replica uses its own memory")


class _RedisLease:
    """A lease that every replica on this Redis respects."""

    shared = True

    def __init__(self, cache: RedisCache, lock: Lock) -> None:
        self._cache = cache
        self._lock = lock

    async def renew(self) -> None:
        """Have it for as long again, if it is still ours."""
        await self._cache.renew(self._lock)

    async def release(self) -> None:
        """Let it go before its time."""
        await self._cache.release(self._lock)


def _server(options: dict[str, Any]) -> str:
    """Where Redis is, without the user and password that the URL may hold."""
    if "path" in options:
        return str(options["path"])
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
