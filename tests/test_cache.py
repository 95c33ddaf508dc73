"""The caches: what they keep, and that no state of Redis is ever an error or a long wait for the caller."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any, Protocol

import pytest
import redis.asyncio as redis_client
import structlog.testing
from hypothesis import given
from hypothesis import strategies as st

from exchange_service import clock
from exchange_service.cache import Cache, open_cache
from exchange_service.cache.memory import MemoryCache
from exchange_service.cache.redis import RedisCache
from exchange_service.cache.redis_link import CALL_LIMIT, LinkBreaker, NoAnswer, RedisLink
from exchange_service.cache.sealed_redis import SealedRedis
from exchange_service.cache.sealing import HEAD, CacheSeal
from exchange_service.venue_gate.redis_state import RedisSharedState
from tests.harness import eventually
from tests.servers import RedisServer

# What a busy machine may add to a time limit.
SLACK = 0.25
KEY = b"0123456789abcdef"
SEAL = CacheSeal(KEY)


def name(key: str) -> str:
    """The name in Redis of the value at `key` of a cache whose prefix is "x:"."""
    return f"x:{SEAL.fingerprint}:{key}"


def sealed(key: str, value: bytes, seconds: float = 60.0) -> bytes:
    """What another replica stores at this key."""
    return SEAL.seal(name(key), value, time.time(), seconds)


async def read(client: redis_client.Redis, key: str) -> bytes | None:
    """What is stored in Redis at this key."""
    opened = SEAL.open(name(key), await client.get(name(key)) or b"", time.time())
    return opened.payload if opened is not None else None


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def seconds(work: Awaitable[object]) -> float:
    started = time.monotonic()
    await work
    return time.monotonic() - started


class TestMemory:
    async def test_it_gives_back_the_bytes_that_were_set(self) -> None:
        cache = MemoryCache()
        await cache.set("a", b"\x00\xff", 10)
        assert await cache.get("a") == b"\x00\xff"
        assert await cache.get("b") is None

    async def test_a_value_ends_with_its_time_and_not_before(self) -> None:
        clock = Clock()
        cache = MemoryCache(clock=clock)
        await cache.set("a", b"1", 10)
        clock.now += 9.9
        assert await cache.get("a") == b"1"
        clock.now += 0.1
        assert await cache.get("a") is None
        assert len(cache) == cache.size == 0

    async def test_a_time_of_zero_stores_nothing_and_removes_the_stored_value(self) -> None:
        cache = MemoryCache()
        await cache.set("a", b"1", 10)
        await cache.set("a", b"2", 0)
        assert await cache.get("a") is None

    async def test_a_deleted_value_is_gone_and_deleting_nothing_is_fine(self) -> None:
        cache = MemoryCache()
        await cache.set("a", b"1", 10)
        await cache.delete("a")
        await cache.delete("a")
        assert await cache.get("a") is None
        assert cache.size == 0

    async def test_the_longest_unused_entry_makes_room_for_a_new_one(self) -> None:
        cache = MemoryCache(max_entries=2)
        await cache.set("a", b"1", 10)
        await cache.set("b", b"2", 10)
        await cache.get("a")
        await cache.set("c", b"3", 10)
        assert [await cache.get(key) for key in "abc"] == [b"1", None, b"3"]

    async def test_it_never_holds_more_bytes_than_it_may(self) -> None:
        cache = MemoryCache(max_bytes=10_000)
        for number in range(1000):
            await cache.set(str(number), bytes(number % 700), 10)
            assert cache.size <= 10_000
        assert 0 < len(cache) < 50
        assert await cache.get("999") == bytes(999 % 700)

    async def test_a_value_larger_than_the_cache_is_not_stored_and_evicts_nothing(self) -> None:
        cache = MemoryCache(max_bytes=1000)
        await cache.set("small", b"1", 10)
        await cache.set("large", bytes(2000), 10)
        assert await cache.get("large") is None
        assert await cache.get("small") == b"1"

    async def test_expired_entries_leave_as_others_are_written(self) -> None:
        clock = Clock()
        cache = MemoryCache(clock=clock)
        for number in range(100):
            await cache.set(f"old {number}", b"1", 1)
        clock.now += 2
        for number in range(50):
            await cache.set(f"new {number}", b"1", 1)
        assert len(cache) == 50

    async def test_it_is_the_cache_of_a_memory_url(self) -> None:
        async with open_cache("memory://", KEY, prefix="x:") as cache:
            assert isinstance(cache, MemoryCache)
            assert await cache.problem() == ""


@pytest.mark.threat("T40")
class TestSeal:
    now = 1_800_000_000.0

    @given(st.binary(max_size=200), st.floats(0.001, 400_000))
    def test_what_was_sealed_opens_for_its_name_until_its_time_is_over(self, payload: bytes, seconds: float) -> None:
        sealed = SEAL.seal("a", payload, self.now, seconds)
        opened = SEAL.open("a", sealed, self.now)
        assert opened is not None
        assert opened.payload == payload
        assert opened.left == pytest.approx(seconds, abs=0.002)
        assert CacheSeal(KEY).open("a", sealed, self.now + seconds) is not None
        assert SEAL.open("a", sealed, self.now + seconds + 2) is None
        assert SEAL.open("a", sealed, self.now - 6) is None
        assert SEAL.open("b", sealed, self.now) is None
        assert CacheSeal(b"another hash key").open("a", sealed, self.now) is None

    @given(st.data())
    def test_one_bit_that_differs_is_enough(self, data: st.DataObject) -> None:
        sealed = bytearray(SEAL.seal("a", b"payload", self.now, 60))
        place = data.draw(st.integers(0, len(sealed) - 1))
        sealed[place] ^= 1 << data.draw(st.integers(0, 7))
        assert SEAL.open("a", bytes(sealed), self.now) is None

    @given(st.binary(max_size=300))
    def test_no_bytes_open_or_raise(self, raw: bytes) -> None:
        assert SEAL.open("a", raw, self.now) is None
        assert SEAL.open("a", SEAL.seal("a", b"", self.now, 9)[:3] + raw, self.now) is None

    def test_two_values_never_begin_alike_and_reveal_nothing_of_each_other(self) -> None:
        first, second = (SEAL.seal("a", b"payload", self.now, 60) for _ in range(2))
        assert first[:HEAD] != second[:HEAD]
        assert first[HEAD:] != second[HEAD:]
        assert "0123456789abcdef" not in repr(SEAL) + SEAL.fingerprint


class Connect(Protocol):
    def __call__(self, url: str, *, prefix: str = "x:", breaker: LinkBreaker | None = None) -> RedisCache:
        """A cache on a link of its own, as each replica has one."""


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes caches, and closes them with their links."""
    async with AsyncExitStack() as stack:

        def connect(url: str, *, prefix: str = "x:", breaker: LinkBreaker | None = None) -> RedisCache:
            link = RedisLink(url, breaker=breaker)
            stack.push_async_callback(link.close)
            cache = RedisCache(SealedRedis(link, KEY, prefix=prefix))
            stack.push_async_callback(cache.close)
            return cache

        yield connect


@pytest.fixture
def shared(redis_url: str, connect: Connect) -> RedisCache:
    """A cache in the shared Redis under a prefix of the test's own."""
    return connect(redis_url, prefix=f"test-{uuid.uuid4().hex}:")


@pytest.fixture
def own(redis_server: RedisServer, connect: Connect) -> RedisCache:
    """A cache in a Redis of the test's own."""
    return connect(redis_server.url)


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[redis_client.Redis]:
    """A plain client of the test's own Redis, to look behind the cache."""
    connection = redis_client.Redis.from_url(redis_server.url)
    yield connection
    await connection.aclose()


class TestRedis:
    async def test_it_gives_back_the_bytes_that_were_set(self, shared: RedisCache) -> None:
        await shared.set("a", b"\x00\xff\r\n", 10)
        assert await shared.get("a") == b"\x00\xff\r\n"
        assert await shared.get("b") is None
        await shared.delete("a")
        assert await shared.get("a") is None

    async def test_replicas_see_writes_and_deletions_of_another_one(
        self, redis_server: RedisServer, connect: Connect
    ) -> None:
        one, two = (connect(redis_server.url) for _ in range(2))
        await one.set("a", b"1", 10)
        assert await two.get("a") == b"1"
        await two.set("a", b"2", 10)
        assert await one.get("a") == b"2"
        await two.delete("a")
        assert await one.get("a") is None

    async def test_a_value_ends_with_its_time(self, own: RedisCache, client: redis_client.Redis) -> None:
        await own.set("a", b"1", 30)
        assert 29_000 < await client.pttl(name("a")) <= 30_000
        await own.set("a", b"1", 0.05)
        await eventually(lambda: _is_missing(own, "a"))
        await own.set("a", b"1", 30)
        await own.set("a", b"1", 0)
        assert await own.get("a") is None

    @pytest.mark.parametrize(
        "foreign",
        [
            b"",
            b"12",
            b"\x80\x04 not ours \xff",
            b"x" * 100_000,
            CacheSeal(b"another hash key").seal(name("a"), b"forged", time.time(), 60),
            sealed("b", b"of another key"),
            sealed("a", b"of a time that is over", -2.0),
            sealed("a", b"of a day that is over", -200_000.0),
            sealed("a", b"cut")[:-1],
            sealed("a", b"longer") + b"x",
        ],
        # Sealed bytes differ each time, and the workers of pytest-xdist want the same names.
        ids=range(10),
    )
    async def test_bytes_that_were_not_sealed_for_this_name_and_time_are_missing(
        self, own: RedisCache, client: redis_client.Redis, foreign: bytes
    ) -> None:
        await client.set(name("a"), foreign)
        assert await own.get("a") is None
        # They delay no writer either.
        assert await own.compare_and_set("a", b"ours", 10, expected=b"") is None
        assert await own.get("a") == b"ours"

    async def test_the_rights_that_the_operators_page_names_are_enough(
        self, redis_server: RedisServer, client: redis_client.Redis, connect: Connect
    ) -> None:
        reading = ("get", "getrange", "strlen", "type", "time", "ping", "subscribe")
        commands = (*reading, "eval", "evalsha", "script|load", "set", "unlink", "publish")
        rights = ["reset", "on", ">pw", "~x:*", "&x:*", "-@all", *(f"+{command}" for command in commands)]
        await client.execute_command("ACL", "SETUSER", "service", *rights)
        one, two = (connect(redis_server.url.replace("redis://", "redis://service:pw@")) for _ in range(2))
        received = asyncio.Queue[bytes | None]()
        two.add_listener(received.put_nowait)
        assert await asyncio.wait_for(received.get(), 5) is None
        with structlog.testing.capture_logs() as logs:
            await one.publish(b"a message")
            assert await asyncio.wait_for(received.get(), 5) == b"a message"
            assert await one.compare_and_set("a", b"1", 30, expected=b"") is None
            assert await two.compare_and_set("a", b"2", 30, expected=b"1") is None
            assert await one.get("a") == b"2"
            lease = await one.lease("l", 5)
            assert lease is not None
            assert await two.lease("l", 5) is None
            await lease.renew()
            assert await two.lease("l", 5) is None
            await lease.release()
            assert await two.lease("l", 5) is not None
            await one.delete("a")
            assert await two.get("a") is None
            assert await one.problem() == ""
        assert logs == []

    @pytest.mark.parametrize("command", ["evalsha", "getrange", "time", "type", "unlink", "publish", "subscribe"])
    async def test_the_operator_learns_that_a_right_is_missing(
        self, redis_server: RedisServer, client: redis_client.Redis, connect: Connect, command: str
    ) -> None:
        await client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~x:*", "&x:*", "+@all", f"-{command}")
        cache = connect(redis_server.url.replace("redis://", "redis://app:pw@"))
        assert "no right to a command" in await cache.problem()

    async def test_a_value_is_read_whole_whatever_its_length(self, own: RedisCache, client: redis_client.Redis) -> None:
        for length in (1, 30_000, 32 * 1024, 40_000, 2 * 1024 * 1024):
            await own.set("a", bytes(length), 10)
            assert await own.get("a") == bytes(length)
        await client.append(name("a"), bytes(1024 * 1024))
        assert await own.get("a") is None

    async def test_a_foreign_kind_of_value_is_a_miss_and_no_failure(
        self, redis_server: RedisServer, client: redis_client.Redis, connect: Connect
    ) -> None:
        breaker = LinkBreaker()
        cache = connect(redis_server.url, breaker=breaker)
        await client.lpush(name("list"), "1")
        for _ in range(3):
            assert await cache.get("list") is None
            # Redis did answer, so that failures before and after are not in a row.
            breaker.record_failure()
        assert breaker.closed

    async def test_a_flushed_redis_is_empty_though_this_process_remembers(
        self, own: RedisCache, client: redis_client.Redis
    ) -> None:
        await own.set("a", b"1", 10)
        await client.flushall()
        assert await own.get("a") is None

    async def test_more_callers_than_connections_are_served_and_nothing_counts_as_down(
        self, shared: RedisCache
    ) -> None:
        await shared.set("a", b"1", 10)
        answers = await asyncio.gather(*(shared.get("a") for _ in range(500)))
        assert answers == [b"1"] * 500
        assert await shared.problem() == ""

    async def test_a_full_pool_does_not_open_the_breaker(self, redis_server: RedisServer, connect: Connect) -> None:
        breaker = LinkBreaker()
        cache = connect(f"{redis_server.url}?max_connections=1&timeout=0.001&socket_timeout=10", breaker=breaker)
        await cache.set("a", b"1", 10)
        # One connection for thirty callers, and hardly any patience: most of them find no connection.
        assert await asyncio.gather(*(cache.get("a") for _ in range(30))) == [b"1"] * 30
        assert breaker.closed


class TestListeners:
    async def test_every_listener_gets_the_messages_of_other_replicas_and_not_its_own(
        self, redis_server: RedisServer, connect: Connect
    ) -> None:
        one, two = (connect(redis_server.url) for _ in range(2))
        received = asyncio.Queue[bytes | None](), asyncio.Queue[bytes | None]()
        for queue in received:
            two.add_listener(queue.put_nowait)
        for queue in received:
            # The subscription begins.
            assert await asyncio.wait_for(queue.get(), 5) is None
        assert two.subscribed
        assert not one.subscribed
        await two.publish(b"its own")
        await one.publish(b"from the other")
        for queue in received:
            assert await asyncio.wait_for(queue.get(), 5) == b"from the other"

    async def test_a_message_that_somebody_repeats_is_believed_once(
        self, own: RedisCache, client: redis_client.Redis, connect: Connect, redis_server: RedisServer
    ) -> None:
        received = asyncio.Queue[bytes | None]()
        own.add_listener(received.put_nowait)
        assert await asyncio.wait_for(received.get(), 5) is None
        async with client.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.psubscribe("*")
            await channel.get_message(timeout=5)
            other = connect(redis_server.url)
            await other.publish(b"once")
            message = None
            while message is None:
                message = await channel.get_message(timeout=5)
        for _ in range(3):
            await client.publish(message["channel"], message["data"])
        await other.publish(b"the next one")
        assert [await asyncio.wait_for(received.get(), 5) for _ in range(2)] == [b"once", b"the next one"]

    async def test_a_listener_is_notified_that_messages_may_have_been_missed(
        self, own: RedisCache, redis_server: RedisServer
    ) -> None:
        received = asyncio.Queue[bytes | None]()
        own.add_listener(received.put_nowait)
        assert await asyncio.wait_for(received.get(), 5) is None
        redis_server.kill()
        redis_server.start()
        assert await asyncio.wait_for(received.get(), 10) is None
        assert own.subscribed


@pytest.fixture
def late_updates(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets the answers to so many updates come too late: what was asked for is done all the same."""
    left, update = 0, SealedRedis.update

    async def late(self: SealedRedis, *arguments: Any, **options: Any) -> bytes:
        nonlocal left
        head = await update(self, *arguments, **options)
        if left:
            left -= 1
            raise NoAnswer("TimeoutError")
        return head

    def let(count: int) -> None:
        nonlocal left
        left = count

    monkeypatch.setattr(SealedRedis, "update", late)
    return let


async def test_a_clock_that_differs_from_rediss_is_logged_once_and_not_set_by_it(
    own: RedisCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "wall", lambda: time.time() + 3600)
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            own._sealed._clock_asked = float("-inf")
            await own.get("a")
    assert [round(line["seconds"]) for line in lines if line["event"] == "clock.differs_from_redis"] == [3600]
    assert own.clock_difference == pytest.approx(3600, abs=1)


class TestLeases:
    async def test_one_whose_answer_came_late_is_ours_at_the_next_try(
        self, redis_server: RedisServer, connect: Connect, late_updates: Callable[[int], None]
    ) -> None:
        one, two = (connect(redis_server.url) for _ in range(2))
        late_updates(1)
        lease = await one.lease("l", 5)
        assert lease is not None
        assert lease.shared
        assert await two.lease("l", 5) is None
        await lease.release()
        assert await two.lease("l", 5) is not None

    async def test_one_that_was_given_without_our_knowing_is_removed_with_our_own(
        self, redis_server: RedisServer, connect: Connect, late_updates: Callable[[int], None]
    ) -> None:
        one, two = (connect(redis_server.url) for _ in range(2))
        late_updates(2)
        lease = await one.lease("l", 60)
        assert lease is not None
        assert not lease.shared
        assert await two.lease("l", 60) is None
        await lease.release()
        await eventually(lambda: _is_leased(two, "l"))

    async def test_while_redis_is_in_trouble_callers_wait_for_one_try_and_for_no_message_or_release(
        self, redis_server: RedisServer, connect: Connect, late_updates: Callable[[int], None], monkeypatch: Any
    ) -> None:
        one, two, may_end = connect(redis_server.url), connect(redis_server.url), asyncio.Event()
        one._link._failed_at = time.monotonic()
        late_updates(1)
        lease = await one.lease("l", 60)
        assert lease is not None
        assert not lease.shared
        send, remove = SealedRedis.publish, SealedRedis.remove_payload
        for name, method in (("publish", send), ("remove_payload", remove)):

            async def wait(self: SealedRedis, *arguments: Any, of: Any = method) -> None:
                await may_end.wait()
                await of(self, *arguments)

            monkeypatch.setattr(SealedRedis, name, wait)
        async with asyncio.timeout(5):
            await one.publish(b"m")
            await lease.release()
        assert await two.lease("l", 60) is None
        may_end.set()
        await eventually(lambda: _is_leased(two, "l"))


async def _is_leased(cache: RedisCache, name: str) -> bool:
    return await cache.lease(name, 60) is not None


class ShiftedRedis(SealedRedis):
    """As it is before Redis's clock goes back by an hour."""

    async def _now(self) -> float:
        return await super()._now() + 3600


async def test_when_rediss_clock_goes_back_nothing_holds_for_longer_than_it_was_meant_to(redis_url: str) -> None:
    """The clock of another server, which takes the place of the first."""
    link, prefix = RedisLink(redis_url), f"test-{uuid.uuid4().hex}:"
    before, after = ShiftedRedis(link, KEY, prefix=prefix), SealedRedis(link, KEY, prefix=prefix)
    gate = RedisSharedState(before)
    await gate.cool_down("venue", "VENUE_RATE_LIMITED", 10)
    assert await gate.take("limit", 5, 60, 5) == 0
    assert (await gate.take("limit", 5, 60, 5) or 0) > 50
    assert await RedisCache(before).lease("lease", 5) is not None
    gate = RedisSharedState(after)
    assert await gate.cooldowns(["venue"]) == []
    assert await gate.take("limit", 5, 60, 5) == 0
    assert await RedisCache(after).lease("lease", 5) is not None
    await link.close()


@pytest.fixture(params=["memory", "redis"])
def either(request: pytest.FixtureRequest) -> Cache:
    """A cache in the process, and one in Redis."""
    cache: Cache = MemoryCache() if request.param == "memory" else request.getfixturevalue("own")
    return cache


class TestCompareAndSet:
    async def test_it_writes_if_the_stored_bytes_begin_with_the_expected_ones(self, either: Cache) -> None:
        await either.set("a", b"\x00\x01 first", 10)
        assert await either.compare_and_set("a", b"\x00\x02 second", 10, expected=b"\x00\x01") is None
        assert await either.get("a") == b"\x00\x02 second"

    async def test_otherwise_it_writes_nothing_and_returns_the_stored_value(self, either: Cache) -> None:
        await either.set("a", b"\x00\x01 first", 10)
        assert await either.compare_and_set("a", b"second", 10, expected=b"\x00\x02") == b"\x00\x01 first"
        assert await either.get("a") == b"\x00\x01 first"

    async def test_a_stored_value_that_is_shorter_than_the_expected_bytes_does_not_match(self, either: Cache) -> None:
        await either.set("a", b"ab", 10)
        assert await either.compare_and_set("a", b"second", 10, expected=b"abc") == b"ab"

    async def test_with_nothing_expected_it_writes_only_if_nothing_is_stored(self, either: Cache) -> None:
        assert await either.compare_and_set("a", b"first", 10, expected=b"") is None
        assert await either.compare_and_set("a", b"second", 10, expected=b"") == b"first"
        assert await either.get("a") == b"first"

    async def test_it_returns_empty_bytes_if_something_is_expected_and_nothing_is_stored(self, either: Cache) -> None:
        assert await either.compare_and_set("a", b"first", 10, expected=b"x") == b""
        assert await either.get("a") is None

    async def test_the_value_that_it_wrote_ends_with_its_time(
        self, own: RedisCache, client: redis_client.Redis
    ) -> None:
        assert await own.compare_and_set("a", b"1", 30, expected=b"") is None
        assert 29_000 < await client.pttl(name("a")) <= 30_000
        assert await own.compare_and_set("a", b"2", 60, expected=b"1") is None
        assert 59_000 < await client.pttl(name("a")) <= 60_000

    async def test_of_writers_that_race_one_wins_each_round_and_the_others_see_its_value(
        self, redis_server: RedisServer, connect: Connect
    ) -> None:
        """Four writers on four links add to one counter; not one addition is lost."""

        async def add(cache: RedisCache, times: int) -> None:
            for _ in range(times):
                stored = await cache.get("sum") or b""
                while True:
                    value = b"%08d" % (int(stored or b"0") + 1)
                    newer = await cache.compare_and_set("sum", value, 60, expected=stored)
                    if newer is None:
                        break
                    assert newer != stored
                    stored = newer

        caches = [connect(redis_server.url) for _ in range(4)]
        await asyncio.gather(*(add(cache, 50) for cache in caches))
        assert await caches[0].get("sum") == b"00000200"

    async def test_a_restarted_redis_does_not_know_the_script_and_gets_it_again(
        self, own: RedisCache, redis_server: RedisServer, client: redis_client.Redis
    ) -> None:
        assert await own.compare_and_set("a", b"1", 30, expected=b"") is None
        await client.script_flush()
        assert await own.compare_and_set("a", b"2", 30, expected=b"1") is None
        assert await read(client, "a") == b"2"

    async def test_while_redis_does_not_answer_the_value_stays_in_the_process(
        self, own: RedisCache, redis_server: RedisServer, client: redis_client.Redis
    ) -> None:
        await own.set("a", b"before", 30)
        redis_server.kill()
        assert await own.compare_and_set("a", b"during", 30, expected=b"before") is None
        assert await own.get("a") == b"during"
        redis_server.start()
        await eventually(lambda: _is_empty(own.problem()))
        # What could not be written is newer than what Redis holds, so it is what a writer is compared with.
        await client.set(name("a"), sealed("a", b"old"))
        assert await own.compare_and_set("a", b"after", 30, expected=b"old") == b"during"
        assert await own.compare_and_set("a", b"after", 30, expected=b"") == b"during"
        # Once that matches, Redis decides: another replica may have written what is newer still.
        assert await own.compare_and_set("a", b"after", 30, expected=b"dur") == b"old"
        assert await read(client, "a") == b"old"
        assert await own.compare_and_set("a", b"after", 30, expected=b"old") is None
        assert await read(client, "a") == b"after"
        assert await own.get("a") == b"after"

    async def test_what_was_not_written_stays_while_redis_does_not_answer(
        self, own: RedisCache, redis_server: RedisServer
    ) -> None:
        redis_server.kill()
        assert await own.compare_and_set("a", b"first", 30, expected=b"") is None
        assert await own.compare_and_set("a", b"second", 30, expected=b"first") is None
        assert await own.get("a") == b"second"
        assert await own.compare_and_set("a", b"third", 30, expected=b"first") == b"second"

    async def test_its_value_is_read_while_redis_does_not_answer(
        self, own: RedisCache, redis_server: RedisServer
    ) -> None:
        assert await own.compare_and_set("a", b"1", 30, expected=b"") is None
        redis_server.kill()
        assert await own.get("a") == b"1"

    async def test_a_foreign_kind_of_value_and_one_that_is_too_long_count_as_missing_and_are_replaced(
        self, own: RedisCache, client: redis_client.Redis
    ) -> None:
        await client.lpush(name("list"), "1")
        await client.set(name("long"), bytes(3 * 1024 * 1024))
        for key in ("list", "long"):
            assert await own.get(key) is None
            assert await own.compare_and_set(key, b"1", 30, expected=b"0") == b""
            assert await own.compare_and_set(key, b"1", 30, expected=b"") is None
            assert await own.get(key) == b"1"


class TestRedisInTrouble:
    async def test_a_redis_that_is_down_at_the_start_is_no_error(self, redis_server: RedisServer) -> None:
        redis_server.kill()
        async with open_cache(redis_server.url, KEY, prefix="x:") as cache:
            assert await cache.get("a") is None
            await cache.set("a", b"1", 10)
            assert await cache.get("a") == b"1"
            await cache.delete("a")
            assert await cache.get("a") is None
            assert "does not answer" in await cache.problem()

    async def test_a_killed_redis_leaves_this_process_its_copies(
        self, own: RedisCache, redis_server: RedisServer
    ) -> None:
        await own.set("a", b"1", 10)
        redis_server.kill()
        for _ in range(5):
            assert await seconds(own.get("a")) < 0.1
            assert await own.get("a") == b"1"

    async def test_a_redis_that_comes_back_is_used_again(
        self, own: RedisCache, redis_server: RedisServer, connect: Connect
    ) -> None:
        redis_server.kill()
        for _ in range(3):
            await own.get("a")
        redis_server.start()
        other = connect(redis_server.url)
        await other.set("a", b"from another replica", 30)

        async def sees_it() -> bool:
            return await own.get("a") == b"from another replica"

        await eventually(sees_it)
        assert await own.problem() == ""

    async def test_a_value_written_during_an_outage_is_still_there_after_it(
        self, own: RedisCache, redis_server: RedisServer, client: redis_client.Redis
    ) -> None:
        redis_server.kill()
        await own.set("a", b"during", 30)
        redis_server.start()
        await eventually(lambda: _is_empty(own.problem()))
        assert await own.get("a") == b"during"
        await own.set("a", b"after", 30)
        assert await read(client, "a") == b"after"
        await client.set(name("a"), sealed("a", b"by another replica"))
        assert await own.get("a") == b"by another replica"

    async def test_a_frozen_redis_costs_a_short_wait_three_times_and_then_nothing(
        self, own: RedisCache, redis_server: RedisServer
    ) -> None:
        await own.set("a", b"1", 30)
        redis_server.freeze()
        waits = [await seconds(own.get("a")) for _ in range(3)]
        assert max(waits) < CALL_LIMIT + SLACK
        assert min(waits) > 0.1
        afterwards = [await seconds(own.get("a")) for _ in range(200)]
        assert sum(afterwards) < 0.2
        assert await own.get("a") == b"1"
        assert await seconds(own.set("b", b"2", 30)) < 0.05
        assert await seconds(own.problem()) < CALL_LIMIT + SLACK
        redis_server.thaw()

    async def test_no_caller_waits_for_a_probe_and_probes_go_on_until_it_is_back(
        self, own: RedisCache, redis_server: RedisServer, connect: Connect
    ) -> None:
        redis_server.freeze()
        for _ in range(3):
            await own.get("a")
        waits = []
        ends = time.monotonic() + 2.5
        while time.monotonic() < ends:
            waits.append(await seconds(own.get("a")))
            await asyncio.sleep(0.05)
        assert max(waits) < 0.1
        redis_server.thaw()
        other = connect(redis_server.url)
        await other.set("a", b"1", 30)

        async def sees_it() -> bool:
            return await own.get("a") == b"1"

        await eventually(sees_it)

    async def test_a_frozen_redis_does_not_hold_up_closing(self, redis_server: RedisServer) -> None:
        link = RedisLink(redis_server.url)
        cache = RedisCache(SealedRedis(link, KEY, prefix="x:"))
        cache.add_listener(lambda _: None)
        await cache.set("a", b"1", 30)
        redis_server.freeze()
        reading = asyncio.ensure_future(cache.get("a"))
        await asyncio.sleep(0.01)
        assert await seconds(cache.close()) < SLACK
        assert await seconds(link.close()) < 1.0 + SLACK
        await reading
        redis_server.thaw()

    async def test_many_callers_of_a_frozen_redis_are_all_answered_in_time(
        self, own: RedisCache, redis_server: RedisServer
    ) -> None:
        await own.set("a", b"1", 30)
        redis_server.freeze()
        waits = await asyncio.gather(*(seconds(own.get("a")) for _ in range(300)))
        # Far less than one after the other.
        assert max(waits) < CALL_LIMIT + 6 * SLACK
        redis_server.thaw()

    async def test_a_full_redis_is_read_and_values_that_it_refuses_stay_in_the_process(
        self, own: RedisCache, client: redis_client.Redis
    ) -> None:
        await own.set("a", b"old", 30)
        await client.config_set("maxmemory", "1mb")
        await own.set("a", b"new", 30)
        await own.set("b", b"only here", 30)
        assert await read(client, "a") == b"old"
        assert await own.get("a") == b"new"
        assert await own.get("b") == b"only here"
        assert "answers and refuses: its memory is full" in await own.problem()
        await client.config_set("maxmemory", "0")
        await own.set("a", b"newer", 30)
        assert await read(client, "a") == b"newer"

    async def test_a_read_only_replica_is_read_and_refuses_writes_without_an_error(
        self, own: RedisCache, client: redis_client.Redis
    ) -> None:
        await own.set("a", b"1", 30)
        await client.config_set("replica-serve-stale-data", "yes")
        await client.replicaof("127.0.0.1", "1")
        await own.set("b", b"2", 30)
        await own.delete("a")
        assert await own.get("b") == b"2"
        assert "answers and refuses: it is a replica" in await own.problem()

    async def test_a_wrong_password_is_no_error_for_the_caller(self, connect: Connect) -> None:
        with RedisServer("--requirepass", "right") as server:
            cache = connect(server.url.replace("redis://", "redis://:wrong-canary@"))
            await cache.set("a", b"1", 30)
            assert await cache.get("a") == b"1"
            problem = await cache.problem()
            assert "refuses the user or the password" in problem
            assert "canary" not in problem

    async def test_errors_are_logged_once_a_minute_and_without_the_password(
        self, redis_server: RedisServer, connect: Connect
    ) -> None:
        redis_server.kill()
        cache = connect(redis_server.url.replace("redis://", "redis://user:canary@"))
        with structlog.testing.capture_logs() as logs:
            for number in range(20):
                await cache.set(str(number), b"1", 30)
                await cache.get("a")
        assert [entry["event"] for entry in logs] == ["redis.out_of_reach"]
        assert logs[0]["server"] == f"127.0.0.1:{redis_server.port}"
        assert "canary" not in str(logs) + repr(cache)


async def _is_empty(text: Awaitable[str]) -> bool:
    return not await text


async def _is_missing(cache: RedisCache, key: str) -> bool:
    return await cache.get(key) is None


@pytest.mark.threat("T16")
class TestCancellation:
    @staticmethod
    async def _storm(cache: RedisCache, rounds: int) -> int:
        """Gets of ten keys at a time, half of the callers cancelled at some moment; how many answers were given."""
        given = 0
        for number in range(rounds):
            callers = [asyncio.create_task(cache.get(str(key))) for key in range(10)]
            await asyncio.sleep(0.0001 * (number % 7))
            for caller in callers[number % 2 :: 2]:
                caller.cancel()
            for key, caller in enumerate(callers):
                with suppress(asyncio.CancelledError):
                    answer = await caller
                    assert answer in (None, b"value of %d" % key), "the answer to another question"
                    given += answer is not None
        return given

    async def test_no_caller_ever_gets_the_answer_to_a_cancelled_one(self, shared: RedisCache) -> None:
        for key in range(10):
            await shared.set(str(key), b"value of %d" % key, 60)
        assert await self._storm(shared, 300) >= 1500
        for key in range(10):
            assert await shared.get(str(key)) == b"value of %d" % key

    async def test_answers_that_come_after_the_time_limit_reach_no_caller(
        self, redis_server: RedisServer, client: redis_client.Redis
    ) -> None:
        # A breaker that never opens: each call goes to the slow server, runs out of time and is cut off.
        link = RedisLink(redis_server.url, breaker=_NeverOpen())
        cache = RedisCache(SealedRedis(link, KEY, prefix="x:"))
        for key in range(10):
            await client.set(name(str(key)), sealed(str(key), b"value of %d" % key))
        try:
            for _ in range(3):
                await client.execute_command("CLIENT", "PAUSE", "900", "ALL")
                assert await self._storm(cache, 2) == 0
                await asyncio.sleep(0.9)
                assert await self._storm(cache, 20) > 0
            await eventually(lambda: _is_idle(link))
        finally:
            await link.close()


async def _is_idle(link: RedisLink) -> bool:
    """Whether every connection is back in the pool."""
    _, (in_use, _) = link.redis.connection_pool.get_connection_count()
    return bool(in_use == 0)


class _NeverOpen(LinkBreaker):
    def record_failure(self) -> None:
        return
