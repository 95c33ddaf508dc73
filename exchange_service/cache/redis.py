"""A cache in Redis, so that all replicas agree, with a copy in the process for when Redis does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable

from redis.asyncio.lock import Lock
from redis.exceptions import LockError

from exchange_service.cache import Lease, Listener
from exchange_service.cache.memory import LocalLease, MemoryCache
from exchange_service.cache.redis_link import NoAnswer, RedisLink
from exchange_service.tasks import TaskSet

# Seconds for which the subscription waits for a message before it checks whether the connection still works, and the
# shortest and longest pause between two attempts to subscribe.
_MESSAGE_WAIT = 5.0
# Seconds for the answer to a subscription that only tries whether we may.
_ANSWER_WAIT = 0.1
_RESUBSCRIBE_PAUSES = (0.2, 5.0)
_CLOSE_LIMIT = 0.5
# Bytes by which a replica recognises its own messages.
_SENDER_LENGTH = 8

# Writes ARGV[2] for ARGV[3] milliseconds if the value begins with ARGV[1], or is missing where that is empty. The value
# is sent back only where it does not match.
_COMPARE_AND_SET = """
local matches
if #ARGV[1] == 0 then
  matches = redis.call('EXISTS', KEYS[1]) == 0
else
  matches = redis.call('GETRANGE', KEYS[1], 0, #ARGV[1] - 1) == ARGV[1]
end
if not matches then
  return redis.call('GET', KEYS[1]) or ''
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return false
"""


class RedisCache:
    """The Cache in Redis.

    Two caches in the process stand beside it: copies of what was written to Redis, read only while Redis does not
    answer, and values that could not be written. The latter are newer than those in Redis, so they are read first.
    """

    def __init__(self, link: RedisLink, *, prefix: str) -> None:
        self._link = link
        self._redis = link.redis
        self._prefix = prefix
        self._compare_and_set = link.redis.register_script(_COMPARE_AND_SET)
        self._copies = MemoryCache()
        self._unwritten = MemoryCache()
        self._tasks = TaskSet()
        # Every replica on this prefix is subscribed to it; a message begins with its sender.
        self._channel = f"{prefix}invalidations"
        self._sender = secrets.token_bytes(_SENDER_LENGTH)
        self._subscribed = False
        self._listeners: list[Listener] = []
        link.add_recovery_listener(self._forget_unwritten)

    async def get(self, key: str) -> bytes | None:
        """The bytes at `key` in Redis; those of this process while Redis does not answer."""
        unwritten = await self._unwritten.get(key)
        if unwritten is not None:
            return unwritten
        try:
            value = await self._link.call(lambda: self._redis.get(self._prefix + key))
        except NoAnswer:
            return await self._copies.get(key)
        return value if isinstance(value, bytes) else None

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep `value` at `key` for `ttl` seconds, in Redis and in this process."""
        if ttl <= 0:
            await self.delete(key)
            return
        await self._copies.set(key, value, ttl)
        try:
            await self._link.call(lambda: self._redis.set(self._prefix + key, value, px=_milliseconds(ttl)))
        except NoAnswer:
            await self._unwritten.set(key, value, ttl)
        else:
            await self._unwritten.delete(key)

    async def compare_and_set(self, key: str, value: bytes, ttl: float, *, expected: bytes) -> bytes | None:
        """See `Cache`. While Redis does not answer, `value` is compared with what this process could not write, and
        kept in its place. Once Redis answers, it is Redis's value that counts, also in place of what was not written:
        another replica may have written a newer one."""
        unwritten = await self._unwritten.get(key)
        if unwritten is not None:
            if not (expected and unwritten.startswith(expected)):
                return unwritten
            await self._unwritten.delete(key)
        arguments = (expected, value, _milliseconds(ttl))
        try:
            stored = await self._link.call(lambda: self._compare_and_set([self._prefix + key], arguments))
        except NoAnswer:
            await self._unwritten.set(key, value, ttl)
        else:
            if isinstance(stored, bytes):
                return stored
        await self._copies.set(key, value, ttl)
        return None

    async def delete(self, key: str) -> None:
        """Forget the value at `key`; in Redis only if it answers."""
        await self._copies.delete(key)
        await self._unwritten.delete(key)
        with contextlib.suppress(NoAnswer):
            await self._link.call(lambda: self._redis.delete(self._prefix + key))

    @property
    def shared(self) -> bool:
        """Whether Redis answered lately."""
        return self._link.available

    async def lease(self, name: str, seconds: float) -> Lease | None:
        """Take `name` for `seconds` by Redis's own clock; while Redis does not answer, each replica has its own."""
        lease = _RedisLease(self._link, self._prefix + name, seconds)
        try:
            return lease if await lease.acquire() else None
        except NoAnswer:
            return LocalLease()

    async def publish(self, message: bytes) -> None:
        """Send `message` to every other replica that is subscribed."""
        with contextlib.suppress(NoAnswer):
            await self._link.call(lambda: self._redis.publish(self._channel, self._sender + message))

    @property
    def subscribed(self) -> bool:
        """Whether messages of other replicas arrive at present."""
        return self._subscribed

    def add_listener(self, listener: Listener) -> None:
        """Call `listener` with each message of another replica; with None when the subscription begins (again)."""
        self._listeners.append(listener)
        if len(self._listeners) == 1:
            self._tasks.start(self._subscribe(), name="redis subscription")

    async def _subscribe(self) -> None:
        pause, longest = _RESUBSCRIBE_PAUSES
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
                    await channel.subscribe(self._channel)
                    pause = _RESUBSCRIBE_PAUSES[0]
                    self._subscribed = True
                    self._notify(None)
                    while True:
                        message = await channel.get_message(timeout=_MESSAGE_WAIT)
                        data = message["data"] if message else b""
                        if isinstance(data, bytes) and data and not data.startswith(self._sender):
                            self._notify(data[_SENDER_LENGTH:])
            except Exception as error:
                self._link.report_trouble(error)
            self._subscribed = False
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    def _notify(self, message: bytes | None) -> None:
        for listener in self._listeners:
            listener(message)

    def _forget_unwritten(self) -> None:
        # Other replicas may have written something newer meanwhile.
        self._unwritten = MemoryCache()

    async def problem(self) -> str:
        """What is wrong with Redis at present, for the operator; empty if it reads and writes. It always asks Redis."""
        server = self._link.server
        try:
            await self._link.call(self._redis.ping, force=True)
        except NoAnswer as failure:
            return _trouble(server, failure)
        try:
            await self._link.call(lambda: self._redis.set(f"{self._prefix}doctor", b"1", px=1000), force=True)
        except NoAnswer as failure:
            return _trouble(server, failure)
        try:
            await self._link.call(self._try_channel, force=True)
        except NoAnswer as failure:
            return _trouble(server, failure)
        return ""

    async def _try_channel(self) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(self._channel)
            # The answer: an error if the user has no right to the channel.
            await channel.get_message(timeout=_ANSWER_WAIT)

    async def close(self) -> None:
        """End the subscription and forget the copies. The link stays open; its opener closes it."""
        await self._tasks.close(_CLOSE_LIMIT)
        await self._copies.close()
        await self._unwritten.close()


class _RedisLease:
    """A lease that every replica on this Redis respects."""

    shared = True

    def __init__(self, link: RedisLink, name: str, seconds: float) -> None:
        self._link = link
        self._lock = Lock(link.redis, name, timeout=seconds, blocking=False, thread_local=False)
        self._wanted = True

    async def acquire(self) -> bool:
        """Whether it is ours now; raises NoAnswer."""
        try:
            return await self._link.call(self._acquire)
        except (NoAnswer, asyncio.CancelledError):
            self._wanted = False
            raise

    async def _acquire(self) -> bool:
        acquired = bool(await self._lock.acquire())
        if acquired and not self._wanted:
            # The caller has gone meanwhile, and nothing else would release it.
            await self._lock.release()
        return acquired

    async def renew(self) -> None:
        """Hold it for as long again, if it is still ours."""
        await self._call(self._lock.reacquire)

    async def release(self) -> None:
        """Release it, if it is still ours."""
        await self._call(self._lock.release)

    async def _call(self, command: Callable[[], Awaitable[object]]) -> None:
        async def run() -> None:
            # It has expired, and perhaps another replica holds it now.
            with contextlib.suppress(LockError):
                await command()

        with contextlib.suppress(NoAnswer):
            await self._link.call(run)


def _trouble(server: str, failure: NoAnswer) -> str:
    """What is wrong, for the operator: silence, or what an answering Redis says."""
    if failure.says:
        return f"Redis at {server} answers and refuses: {failure.says}. Each replica uses its own memory."
    return f"Redis at {server} does not answer ({failure.kind}). Each replica uses its own memory."


def _milliseconds(seconds: float) -> int:
    """A time to live as Redis takes it: whole milliseconds, at least one."""
    return max(1, round(seconds * 1000))
