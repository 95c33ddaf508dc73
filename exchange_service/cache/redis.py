"""A cache in Redis, so that all replicas agree, with a copy in the process for when Redis does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time

import structlog

from exchange_service.cache import Lease, Listener
from exchange_service.cache.memory import MemoryCache
from exchange_service.cache.redis_link import CALL_LIMIT, REPORT_EVERY, NoAnswer
from exchange_service.cache.sealed_redis import Replacement, SealedRedis
from exchange_service.cache.sealing import Opened
from exchange_service.tasks import TaskSet

log = structlog.get_logger(__name__)

# Seconds for which the subscription waits for a message before it checks whether the connection still works, and the
# shortest and longest pause between two attempts to subscribe.
_MESSAGE_WAIT = 5.0
# Seconds for the answer to a subscription that only tries whether we may.
_ANSWER_WAIT = 0.1
_RESUBSCRIBE_PAUSES = (0.2, 5.0)
_CLOSE_LIMIT = 0.5
# Bytes by which a replica recognises its own messages.
_SENDER_LENGTH = 8
# Times that a lease is tried while Redis is not known to be out of reach.
_LEASE_TRIES = 2
# Seconds for which the end of a lease is waited for.
_RELEASE_WAIT = 0.05
# Every replica with the same key is subscribed to it; a message begins with its sender.
_CHANNEL = "invalidations"
# Messages in a second that are not ours, after which the subscription is given up for a while: a lost message costs
# time, and a flood costs everything else.
_MOST_FOREIGN = 200
# Seconds for which a value that could not be written is preferred to what Redis holds. While Redis does not answer at
# all, the copies serve for longer.
_UNWRITTEN = 8.0


class RedisCache:
    """The Cache in Redis.

    Two caches in the process stand beside it: copies of what was written to Redis, read only while Redis does not
    answer, and values that could not be written. The latter are newer than those in Redis, so they are read first.
    """

    def __init__(self, sealed: SealedRedis) -> None:
        self._sealed = sealed
        self._link = sealed.link
        self._redis = sealed.link.redis
        self._copies = MemoryCache()
        self._unwritten = MemoryCache()
        self._tasks = TaskSet()
        self._sender = secrets.token_bytes(_SENDER_LENGTH)
        self._subscribed = False
        self._listeners: list[Listener] = []
        self._flood_reported = float("-inf")
        self._link.add_recovery_listener(self._forget_unwritten)

    async def get(self, key: str) -> bytes | None:
        """The bytes at `key` in Redis; those of this process while Redis does not answer."""
        unwritten = await self._unwritten.get(key)
        if unwritten is not None:
            return unwritten
        try:
            return await self._sealed.get(key)
        except NoAnswer:
            return await self._copies.get(key)

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep `value` at `key` for `ttl` seconds, in Redis and in this process."""
        if ttl <= 0:
            await self.delete(key)
            return
        await self._copies.set(key, value, ttl)
        try:
            await self._sealed.set(key, value, ttl)
        except NoAnswer:
            await self._unwritten.set(key, value, min(ttl, _UNWRITTEN))
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
        stored = b""

        def decide(present: Opened | None, _: float) -> Replacement:
            nonlocal stored
            stored = present.payload if present is not None else b""
            matches = stored.startswith(expected) if expected else not stored
            return (value, ttl) if matches else None

        try:
            if not await self._sealed.update(key, decide, new=not expected):
                return stored
        except NoAnswer:
            await self._unwritten.set(key, value, min(ttl, _UNWRITTEN))
        await self._copies.set(key, value, ttl)
        return None

    async def delete(self, key: str) -> None:
        """Forget the value at `key`; in Redis only if it answers."""
        await self._copies.delete(key)
        await self._unwritten.delete(key)
        with contextlib.suppress(NoAnswer):
            await self._sealed.delete(key)

    @property
    def shared(self) -> bool:
        """Whether Redis answered lately."""
        return self._link.available

    @property
    def hears(self) -> bool:
        """Whether messages of other replicas arrive, or Redis is out of reach."""
        return self._subscribed or not self._link.available

    @property
    def reliable(self) -> bool:
        """Whether Redis has answered every call lately."""
        return self._link.reliable

    async def lease(self, name: str, seconds: float) -> Lease | None:
        """Take `name` for `seconds` by Redis's own clock; while Redis does not answer, each replica has its own.

        Only a replica's own lease is respected, and only up to its end: what else stands there is replaced. If Redis is
        late the lease may be taken there all the same: the next try finds it to be ours, or its release removes it.
        """
        lease = _RedisLease(self._sealed, name, seconds, self._tasks, self._sender)
        # A second try is for the one answer that is late, and not for a Redis that is in trouble.
        for _ in range(_LEASE_TRIES if self._link.reliable else 1):
            try:
                return lease if await lease.acquire() else None
            except NoAnswer:
                if not self._link.available:
                    break
        return lease

    async def publish(self, message: bytes) -> None:
        """Send `message` to every other replica that is subscribed; not waited for while Redis is in trouble."""
        sending = self._tasks.start(self._publish(message), name="invalidation")
        if self._link.reliable:
            await asyncio.shield(sending)

    async def _publish(self, message: bytes) -> None:
        with contextlib.suppress(NoAnswer):
            await self._sealed.publish(_CHANNEL, self._sender + message)

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
            began = time.monotonic()
            try:
                await self._listen()
            except Exception as error:
                if not isinstance(error, NoAnswer):
                    self._link.report_trouble(error)
            self._subscribed = False
            # A subscription that held for a while was a good one.
            pause = _RESUBSCRIBE_PAUSES[0] if time.monotonic() - began > longest else min(pause * 2, longest)
            await asyncio.sleep(pause)

    async def _listen(self) -> None:
        """Pass on the messages of other replicas; ends with an error, or when too many are not ours."""
        foreign, second = 0, 0
        await self._sealed.ask_the_time()
        async with self._link.subscriber.pubsub(ignore_subscribe_messages=True) as channel:
            # Over a Unix socket the library greets once more by itself, without a limit of its own.
            async with asyncio.timeout(CALL_LIMIT):
                await channel.subscribe(self._sealed.name(_CHANNEL))
            self._subscribed = True
            self._notify(None)
            while True:
                received = await channel.get_message(timeout=_MESSAGE_WAIT)
                # What has arrived already is read without a pause: other work comes first.
                await asyncio.sleep(0)
                if received is None:
                    await self._sealed.ask_the_time()
                    continue
                data = received["data"]
                message = self._sealed.open_message(_CHANNEL, data) if isinstance(data, bytes) else None
                if message is None:
                    now = int(time.monotonic())
                    foreign, second = (foreign + 1 if now == second else 1), now
                    if foreign > _MOST_FOREIGN:
                        self._report_flood()
                        return
                elif not message.startswith(self._sender):
                    self._notify(message[_SENDER_LENGTH:])

    def _report_flood(self) -> None:
        """Log that the subscription is given up for a while, at most once a minute."""
        now = time.monotonic()
        if now - self._flood_reported >= REPORT_EVERY:
            self._flood_reported = now
            log.warning(
                "redis.foreign_messages", server=self._link.server, now="other replicas are not heard for a while"
            )

    def _notify(self, message: bytes | None) -> None:
        for listener in self._listeners:
            listener(message)

    def _forget_unwritten(self) -> None:
        # Other replicas may have written something newer meanwhile.
        self._unwritten = MemoryCache()

    @property
    def clock_difference(self) -> float:
        """Seconds by which this process's clock is ahead of Redis's, when that was last asked."""
        return self._sealed.clock_difference

    async def problem(self) -> str:
        """What is wrong with Redis at present, for the operator; empty if it lets this service do all that it does
        there. It always asks Redis."""
        try:
            await self._link.call(self._redis.ping, force=True)
            head = await self._sealed.update("doctor", lambda *_: (b"1", 1.0))
            await self._sealed.remove("doctor", head)
            await self._sealed.publish("doctor", b"1")
            await self._link.call(self._try_channel)
        except NoAnswer as failure:
            return _trouble(self._link.server, failure)
        return ""

    async def _try_channel(self) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe(self._sealed.name(_CHANNEL))
            # The answer: an error if the user has no right to the channel.
            await channel.get_message(timeout=_ANSWER_WAIT)

    async def close(self) -> None:
        """End the subscription and forget the copies. The link stays open; its opener closes it."""
        await self._tasks.close(_CLOSE_LIMIT)
        await self._copies.close()
        await self._unwritten.close()


class _RedisLease:
    """A lease that every replica with the same key respects; this process's alone if Redis did not answer. `holder`
    tells this process's leases from others. What it has begun is ended by `tasks` if its caller goes meanwhile."""

    def __init__(self, sealed: SealedRedis, name: str, seconds: float, tasks: TaskSet, holder: bytes) -> None:
        self._sealed = sealed
        self._name = name
        self._seconds = seconds
        self._tasks = tasks
        self._holder = holder
        # What our value begins with; empty if it is not ours.
        self._head = b""
        # Whether it may have been taken in Redis without our knowing.
        self._unsure = False
        self._wanted = True
        self._renewing: asyncio.Task[None] | None = None

    @property
    def shared(self) -> bool:
        """Whether other replicas respect it."""
        return bool(self._head)

    async def acquire(self) -> bool:
        """Whether it is ours now; raises NoAnswer."""
        try:
            return await asyncio.shield(self._tasks.start(self._acquire(), name="lease"))
        except asyncio.CancelledError:
            self._wanted = False
            raise

    async def _acquire(self) -> bool:
        try:
            self._head = await self._sealed.update(self._name, self._take, new=True)
        except NoAnswer:
            self._unsure = True
            raise
        finally:
            if not self._wanted:
                # The caller has gone meanwhile, and nothing else would release it.
                await self.release()
        return bool(self._head)

    def _take(self, present: Opened | None, _: float) -> Replacement:
        # Ours: Redis was late, or a fetch of this process is ending.
        free = present is None or present.payload == self._holder
        return (self._holder, self._seconds) if free else None

    async def renew(self) -> None:
        """Hold it for as long again, if it is still ours."""
        self._renewing = self._tasks.start(self._renew(), name="renewal of a lease")
        await asyncio.shield(self._renewing)

    async def _renew(self) -> None:
        with contextlib.suppress(NoAnswer):
            if self._head:
                self._head = await self._sealed.renew(self._name, self._head, self._holder, self._seconds)

    async def release(self) -> None:
        """Release it, if it is still ours."""
        if self._renewing is not None:
            await asyncio.wait({self._renewing})
        if self._head or self._unsure:
            # A late Redis has cost the caller time enough, who has got what the lease was for.
            removal = self._tasks.start(self._remove(), name="release of a lease")
            await asyncio.wait({removal}, timeout=_RELEASE_WAIT)

    async def _remove(self) -> None:
        with contextlib.suppress(NoAnswer):
            if self._head:
                await self._sealed.remove(self._name, self._head)
            else:
                await self._sealed.remove_payload(self._name, self._holder)


def _trouble(server: str, failure: NoAnswer) -> str:
    """What is wrong, for the operator: silence, or what an answering Redis says."""
    if failure.says:
        return f"Redis at {server} answers and refuses: {failure.says}. Each replica uses its own memory."
    return f"Redis at {server} does not answer ({failure.kind}). Each replica uses its own memory."
