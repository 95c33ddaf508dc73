"""The process's one link to Redis: its connections, a circuit breaker, calls in bounded time, and the log lines.

Nothing in the service depends on Redis: whatever state it is in, a call through the link takes at most `CALL_LIMIT`
seconds, and almost no time while Redis is known to be out of reach.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit
from weakref import WeakSet

import redis.asyncio as redis_client
import structlog
from redis.asyncio.connection import DefaultParser
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.maint_notifications import MaintNotificationsConfig

from exchange_service.cache.redis_pipeline import RedisPipeline
from exchange_service.tasks import TaskSet

T = TypeVar("T")

log = structlog.get_logger(__name__)

# Limits in seconds for the steps of a call: get a connection from the pool, connect, greet.
STEP_LIMIT = 0.25
POOL_WAIT = 0.1
# The cache, the shared rate limits and the quotas take their connections from the same pool.
POOL_SIZE = 64
HEALTH_CHECK_SECONDS = 15
# A command ends itself shortly before its caller stops waiting: it still has to put its connection in order.
COMMAND_LIMIT = 0.28
CALL_LIMIT = 0.3
CLOSE_LIMIT = 1.0

FAILURES_TO_OPEN = 3
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 5.0
REPORT_EVERY = 60.0
# Seconds without a failure after which Redis counts as reliable again.
RELIABLE_AFTER = 10.0
# Seconds: a server that stays a replica must not cost a connection for each call.
_RECONNECT_EVERY = 1.0

# The most bytes of one answer, and of one message of another replica. Values are no longer, because scripts look at
# their length in Redis; messages have some hundred bytes.
MOST_ANSWERED = 4 * 1024 * 1024
MOST_IN_A_MESSAGE = 64 * 1024

# The library's text when all connections are in use: that is this process's own load, not a failure of Redis.
_POOL_BUSY = "No connection available."


class NoAnswer(Exception):
    """Redis did not answer, or answered with an error. `kind` is the class of the library's exception; its text is left
    out, because it may hold anything."""

    def __init__(self, kind: str, says: str = "") -> None:
        super().__init__(kind)
        self.kind = kind
        # What Redis says if it answers, as a part of a sentence; empty if it is silent.
        self.says = says


def explain(error: Exception) -> str:
    """What the answer of a Redis that refuses says, as a part of a sentence; empty if it did not answer.

    The server's own text is not repeated: it may hold a key or a user's name.
    """
    text = str(error)
    if not isinstance(error, ResponseError | AuthenticationError | BusyLoadingError | InvalidResponse):
        return "it has no connection left for us" if "max number of clients" in text else ""
    return next((says for sign, says in _ANSWERS if sign(error, text)), f"it answers with {type(error).__name__}")


def is_read_only(error: Exception) -> bool:
    """Whether the server is a replica, which takes no writes. A script's error has the word in its text."""
    return isinstance(error, ReadOnlyError) or "READONLY" in str(error)


_Sign = Callable[[Exception, str], bool]
_ANSWERS: tuple[tuple[_Sign, str], ...] = (
    (lambda error, _: is_read_only(error), "it is a replica, which takes no writes"),
    (lambda error, _: isinstance(error, BusyLoadingError), "it is still loading its data"),
    (lambda _, text: "HELLO" in text and "unknown command" in text, "it does not speak RESP3: Redis 6 or later does"),
    (lambda _, text: "NOPROTO" in text, "it does not speak RESP3: Redis 6 or later does"),
    (lambda error, _: isinstance(error, AuthenticationError), "it refuses the user or the password"),
    (lambda _, text: "channel" in text and "access" in text, "its user has no right to our channel (ACL: &prefix*)"),
    (
        # A script's error has only the words.
        lambda error, text: isinstance(error, NoPermissionError) or "ACL failure" in text,
        "its user has no right to a command or key that we need (ACL: ~prefix* +@all)",
    ),
    (lambda error, _: isinstance(error, OutOfMemoryError), "its memory is full"),
    (lambda error, _: isinstance(error, InvalidResponse), "it is no Redis"),
)


class LinkBreaker:
    """Whether calls go to Redis. Three failures in a row stop them for a second, then for two, at most for five.

    While calls are stopped, one probe at a time may find out whether Redis is back.
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
        """Whether a probe is due and no other one is out; the caller that gets True ends it with `end_probe`."""
        if self.closed or self._probing or self._clock() < self._probe_at:
            return False
        self._probing = True
        return True

    def end_probe(self) -> None:
        """Let another probe be taken when it is due."""
        self._probing = False

    def record_success(self) -> None:
        """Redis answered, if only with an error: calls go through."""
        self._failures = 0
        self._pause = 0.0

    def record_failure(self) -> None:
        """Redis did not answer. While open only the probe's failure counts, not that of calls that began before."""
        self._failures += 1
        if self.closed and self._failures >= FAILURES_TO_OPEN:
            self._open(FIRST_PAUSE)
        elif self._probing:
            self._open(min(self._pause * 2, LONGEST_PAUSE))

    def _open(self, pause: float) -> None:
        self._pause = pause
        self._probe_at = self._clock() + pause


class RedisLink:
    """The link that the cache, the gate's shared rate limits and the quotas use together.

    `redis` is the client; its commands go through `call`. `pipeline` is for single commands that every request needs;
    they go through `call` or `read`. `subscriber` is for pub/sub.
    """

    def __init__(self, url: str, *, breaker: LinkBreaker | None = None) -> None:
        """A link to redis://…, rediss://… (TLS) or unix://…; connects nothing yet. Raises ValueError if redis-py cannot
        read the URL."""
        self._pool = connection_pool(url, MOST_ANSWERED)
        self.redis = redis_client.Redis(connection_pool=self._pool)
        # For subscriptions alone: anybody who may write to Redis may publish anything.
        self.subscriber = redis_client.Redis(connection_pool=connection_pool(url, MOST_IN_A_MESSAGE))
        self.server = _server(self._pool.connection_kwargs)
        for client in (self.redis, self.subscriber):
            client.connection_pool.connection_kwargs["redis_connect_func"] = self._greet
        self._breaker = breaker or LinkBreaker()
        self._tasks = TaskSet()
        self.pipeline = RedisPipeline(self._pipeline_connection, self._tasks, limit=COMMAND_LIMIT)
        self._recovery_listeners: list[Callable[[], None]] = []
        self._reported_at: float | None = None
        # When it last did not answer in time.
        self._failed_at = float("-inf")
        # When connections were last ended because the server takes no writes.
        self._ended_at: float | None = None
        self._trouble_reported = False
        self._closed = False
        # The ends of connections that the breaker knows.
        self._counted: WeakSet[Exception] = WeakSet()

    @property
    def available(self) -> bool:
        """Whether calls go to Redis at present; False after several failures in a row, until it answers again."""
        return self._breaker.closed

    @property
    def reliable(self) -> bool:
        """Whether Redis has answered every call in the last `RELIABLE_AFTER` seconds, and refused none."""
        return time.monotonic() - self._failed_at > RELIABLE_AFTER

    def add_recovery_listener(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever Redis answers again after the link was not `available`."""
        self._recovery_listeners.append(listener)

    async def call(self, command: Callable[[], Awaitable[T]], *, force: bool = False) -> T:
        """The result of `command`, in bounded time even where the library shields its own clean-up from cancellation.

        Raises NoAnswer; at once if the link is not available, unless `force` is set. If the caller is cancelled, the
        command ends by itself, so that its connection stays usable.
        """
        self._let_through(force)
        task = self._tasks.start(self._run(lambda: _in_time(command)), name="redis call")
        done, _ = await asyncio.wait({task}, timeout=CALL_LIMIT)
        if not done:
            task.cancel()
            self._record_failure(TimeoutError())
            raise NoAnswer("TimeoutError")
        if task.cancelled():
            raise NoAnswer("closed")
        return task.result()

    async def read(self, command: Callable[[], Awaitable[T]]) -> T:
        """As `call`, for a command that asks `pipeline` once and nothing else: its time is bounded already, and it
        costs neither a task nor a timer. If the caller is cancelled, so is `command`."""
        self._let_through()
        return await self._run(command)

    def _let_through(self, force: bool = False) -> None:
        """Raise NoAnswer if the link is closed, or not available and `force` is not set."""
        if self._closed:
            # A connection that began now would never be closed.
            raise NoAnswer("closed")
        if self._breaker.closed or force:
            return
        if self._breaker.take_probe():
            # Beside the callers: none of them waits to learn whether Redis is back.
            self._tasks.start(self._probe(), name="redis probe")
        raise NoAnswer("known to be down")

    async def _run(self, command: Callable[[], Awaitable[T]]) -> T:
        """Run one command, tell the breaker how it went, and raise nothing but NoAnswer."""
        try:
            result = await command()
        except NoAnswer:
            # It answers, and others wrote at the same time.
            self._on_success()
            raise
        except ResponseError as error:
            # It answers: full, read-only, moved, or with another kind of value at the key.
            self._on_success()
            failure = NoAnswer(type(error).__name__, explain(error))
            if failure.says:
                # It does not do what this service needs, so nor may what others wait for.
                self._failed_at = time.monotonic()
            self.report_trouble(error)
            if is_read_only(error):
                await self._reconnect()
        except Exception as error:
            failure = NoAnswer("closed" if self._closed else type(error).__name__, explain(error))
            if not self._closed and not (isinstance(error, RedisConnectionError) and str(error) == _POOL_BUSY):
                self._record_failure(error)
        else:
            self._on_success()
            return result
        raise failure

    def _record_failure(self, error: Exception) -> None:
        self._failed_at = time.monotonic()
        if error in self._counted:
            # One connection has ended, and with it all that was asked on it.
            return
        if isinstance(error, RedisConnectionError):
            self._counted.add(error)
        self._breaker.record_failure()
        self.report_trouble(error)

    async def _reconnect(self) -> None:
        """End the connections that are not in use: behind the server's name there may be another one by now."""
        now = time.monotonic()
        if self._ended_at is None or now - self._ended_at >= _RECONNECT_EVERY:
            self._ended_at = now
            self.pipeline.reconnect()
            await self._pool.disconnect(inuse_connections=False)

    async def _probe(self) -> None:
        try:
            await self._run(lambda: _in_time(self.redis.ping))
        except NoAnswer:
            return
        finally:
            self._breaker.end_probe()

    def _on_success(self) -> None:
        recovered = not self._breaker.closed
        self._breaker.record_success()
        if not recovered:
            return
        for listener in self._recovery_listeners:
            listener()
        if self._trouble_reported:
            self._trouble_reported = False
            log.info("redis.answers_again", server=self.server)

    def report_trouble(self, error: Exception) -> None:
        """Log that Redis cannot be used and why, at most once a minute: that it is silent, or what it says."""
        now = time.monotonic()
        if self._reported_at is not None and now - self._reported_at < REPORT_EVERY:
            return
        self._reported_at = now
        self._trouble_reported = True
        says = explain(error)
        log.warning(
            "redis.refuses" if says else "redis.out_of_reach",
            server=self.server,
            error=type(error).__name__,
            **({"because": says} if says else {}),
            now="each replica uses its own memory and keeps to its part of the limits",
        )

    def _pipeline_connection(self) -> Any:
        # The pipeline looks by itself whether it is answered.
        return self._pool.connection_class(**(self._pool.connection_kwargs | {"health_check_interval": 0}))

    async def _greet(self, connection: Any) -> None:
        """What the library does with each new connection, in bounded time, and not after `close`: a subscription whose
        connection ends begins another one by itself."""
        if self._closed:
            raise RedisConnectionError("the link is closed")
        try:
            async with asyncio.timeout(STEP_LIMIT):
                await connection.on_connect()
        except TimeoutError:
            raise RedisTimeoutError("no greeting in time") from None

    async def close(self) -> None:
        """End the calls under way and close the connections; bounded, whatever state Redis is in. Calls that come later
        get NoAnswer."""
        self._closed = True
        self.pipeline.close()
        # Before the connections: one that a call still opens would not be found among them, and stay open.
        await self._tasks.close(CLOSE_LIMIT / 2)
        for client in (self.redis, self.subscriber):
            self._tasks.start(client.aclose(close_connection_pool=True), name="redis closing")
        await self._tasks.wait(CLOSE_LIMIT / 2)


async def _in_time(command: Callable[[], Awaitable[T]]) -> T:
    async with asyncio.timeout(COMMAND_LIMIT):
        return await command()


def _parser_up_to(most: int) -> type[Any]:
    """A parser of answers that refuses more than `most` bytes for one: they are dropped as they come, so that no value
    fills the memory or holds the event loop."""

    parser: Any = DefaultParser

    class BoundedParser(parser):  # type: ignore[misc]
        _received = 0

        async def read_response(self, *arguments: Any, **options: Any) -> Any:
            self._received = 0
            return await super().read_response(*arguments, **options)

        async def read_from_socket(self) -> Any:
            # As the library's own, which does not say how much has come: over a network that may be little at a time.
            received = await self._stream.read(self._read_size)
            if not received:
                raise RedisConnectionError("the connection was closed")
            self._received += len(received)
            # What comes behind the answer may have come with it.
            if self._received > most + self._read_size:
                raise RedisConnectionError("an answer that is too long")
            self._reader.feed(received)
            return True

    return BoundedParser


def connection_pool(url: str, most: int = MOST_ANSWERED) -> redis_client.BlockingConnectionPool:
    """Connections to the Redis at `url`, and no answer longer than `most` bytes. Raises ValueError if redis-py cannot
    read it."""
    pool, readable = None, False
    # Suppressed: the library's exception may hold the URL, and with it the password.
    with suppress(ValueError, TypeError, RedisError):
        pool = redis_client.BlockingConnectionPool.from_url(
            url,
            max_connections=POOL_SIZE,
            timeout=POOL_WAIT,
            socket_connect_timeout=STEP_LIMIT,
            health_check_interval=HEALTH_CHECK_SECONDS,
            # The default of ten retries turns a frozen server into a minute.
            retry=Retry(NoBackoff(), 0),
            protocol=3,
            parser_class=_parser_up_to(most),
            # Redis could ask for longer time limits by them.
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
        )
        # The caller bounds the time. For a limit of its own the library writes by `asyncio.wait_for`, which in Python
        # 3.11 passes over a cancellation that comes as it ends: a subscription that was cancelled would go on for ever.
        pool.connection_kwargs["socket_timeout"] = None
        # A misspelt option in the URL would otherwise show only at the first call.
        make_connection: Callable[[], Any] = pool.make_connection
        make_connection()
        readable = True
    if pool is None or not readable or not _says_what_it_means(url):
        raise ValueError(
            "the cache must be memory:// or redis://, rediss:// or unix:// as redis-py reads it: "
            "a port from 1 to 65535, the number of a database, and only options that redis-py knows"
        )
    return pool


def _says_what_it_means(url: str) -> bool:
    """Whether redis-py reads every part of the URL, and no option changes what this module relies on."""
    parts = urlsplit(url)
    if {"decode_responses", "protocol", "encoding", "encoding_errors"} & parse_qs(parts.query).keys():
        return False
    if parts.scheme == "unix":
        return len(parts.path) > 1
    number = parts.path.strip("/")
    return bool(parts.hostname or not parts.netloc) and (not number or number.isdigit())


def _server(options: dict[str, Any]) -> str:
    """The address of Redis, without the user and password that the URL may hold."""
    if "path" in options:
        return str(options["path"])
    return f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
