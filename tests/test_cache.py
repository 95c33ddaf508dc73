"""The caches: what they keep, and that no state of Redis is ever an error or a long wait for the caller."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import pytest
import redis.asyncio as redis_client
import structlog.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from exchange_service.cache import open_cache
from exchange_service.cache.memory import MemoryCache
from exchange_service.cache.redis import CALL_LIMIT, Breaker, RedisCache
from tests.servers import RedisServer

# What a busy machine may add to a time limit.
SLACK = 0.25


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def seconds(work: Awaitable[object]) -> float:
    started = time.monotonic()
    await work
    return time.monotonic() - started


async def eventually(check: Callable[[], Awaitable[bool]], limit: float = 10.0) -> None:
    deadline = time.monotonic() + limit
    while not await check():
        assert time.monotonic() < deadline, "it did not come true in time"
        await asyncio.sleep(0.02)


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

    async def test_a_time_of_zero_keeps_nothing_and_removes_what_was_there(self) -> None:
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

    async def test_a_value_larger_than_the_cache_is_not_kept_and_pushes_nothing_out(self) -> None:
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
        cache = await open_cache("memory://")
        assert isinstance(cache, MemoryCache)
        assert await cache.problem() == ""
        await cache.close()


class TestBreaker:
    def test_three_failures_in_a_row_open_it_for_a_second(self) -> None:
        clock = Clock()
        breaker = Breaker(clock)
        breaker.failed()
        breaker.failed()
        breaker.succeeded()
        breaker.failed()
        breaker.failed()
        assert breaker.closed
        breaker.failed()
        assert not breaker.closed
        clock.now += 0.99
        assert not breaker.take_probe()
        clock.now += 0.01
        assert breaker.take_probe()

    def test_one_probe_at_a_time_and_longer_pauses_up_to_ten_seconds(self) -> None:
        clock = Clock()
        breaker = Breaker(clock)
        for _ in range(3):
            breaker.failed()
        pauses = []
        for _ in range(6):
            waited = 0.0
            while not breaker.take_probe():
                clock.now += 0.5
                waited += 0.5
            assert not breaker.take_probe()
            breaker.failed()
            breaker.end_probe()
            pauses.append(waited)
        assert pauses == [1, 2, 4, 8, 10, 10]

    def test_late_failures_of_older_calls_do_not_lengthen_the_pause(self) -> None:
        clock = Clock()
        breaker = Breaker(clock)
        for _ in range(30):
            breaker.failed()
        clock.now += 1
        assert breaker.take_probe()


class BreakerMachine(RuleBasedStateMachine):
    """Whatever the order of events, at most one probe is out and the breaker can always close again."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = Breaker(self.clock)
        self.probes = 0

    @rule()
    def a_call_fails(self) -> None:
        self.breaker.failed()

    @rule()
    def a_call_succeeds(self) -> None:
        self.breaker.succeeded()
        assert self.breaker.closed

    @rule(passed=st.floats(0, 20))
    def time_passes(self, passed: float) -> None:
        self.clock.now += passed

    @rule()
    def a_probe_is_taken(self) -> None:
        if self.breaker.take_probe():
            assert not self.breaker.closed
            self.probes += 1

    @rule(good=st.booleans())
    def the_probe_ends(self, good: bool) -> None:
        if self.probes:
            (self.breaker.succeeded if good else self.breaker.failed)()
            self.breaker.end_probe()
            self.probes -= 1

    @invariant()
    def at_most_one_probe_is_out(self) -> None:
        assert self.probes <= 1

    @invariant()
    def a_probe_is_due_within_ten_seconds(self) -> None:
        if self.breaker.closed or self.probes:
            return
        now = self.clock.now
        self.clock.now += 10
        assert self.breaker.take_probe()
        self.breaker.end_probe()
        self.clock.now = now


class TestBreakerInAnyOrder(BreakerMachine.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(max_examples=50, stateful_step_count=30, deadline=None)


@pytest.fixture
async def shared(redis_url: str) -> AsyncIterator[RedisCache]:
    """A cache in the shared Redis under a prefix of the test's own."""
    cache = RedisCache.from_url(redis_url, prefix=f"test-{uuid.uuid4().hex}:")
    yield cache
    await cache.close()


@pytest.fixture
async def own(redis_server: RedisServer) -> AsyncIterator[RedisCache]:
    """A cache in a Redis of the test's own."""
    cache = RedisCache.from_url(redis_server.url, prefix="x:")
    yield cache
    await cache.close()


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

    async def test_replicas_see_what_another_one_wrote_and_deleted(self, redis_server: RedisServer) -> None:
        one, two = (RedisCache.from_url(redis_server.url) for _ in range(2))
        await one.set("a", b"1", 10)
        assert await two.get("a") == b"1"
        await two.set("a", b"2", 10)
        assert await one.get("a") == b"2"
        await two.delete("a")
        assert await one.get("a") is None
        await one.close()
        await two.close()

    async def test_a_value_ends_with_its_time(self, own: RedisCache, client: redis_client.Redis) -> None:
        await own.set("a", b"1", 30)
        assert 29_000 < await client.pttl("x:a") <= 30_000
        await own.set("a", b"1", 0.05)
        await asyncio.sleep(0.1)
        assert await own.get("a") is None
        await own.set("a", b"1", 30)
        await own.set("a", b"1", 0)
        assert await own.get("a") is None

    async def test_foreign_bytes_come_back_as_they_are(self, own: RedisCache, client: redis_client.Redis) -> None:
        await client.set("x:junk", b"\x80\x04 not ours \xff")
        assert await own.get("junk") == b"\x80\x04 not ours \xff"
        await client.set("x:number", 12)
        assert await own.get("number") == b"12"

    async def test_a_foreign_kind_of_value_is_a_miss_and_no_failure(
        self, redis_server: RedisServer, client: redis_client.Redis
    ) -> None:
        breaker = Breaker()
        cache = RedisCache.from_url(redis_server.url, prefix="x:", breaker=breaker)
        await client.lpush("x:list", "1")
        for _ in range(3):
            assert await cache.get("list") is None
            # Redis did answer, so that failures before and after are not in a row.
            breaker.failed()
        assert breaker.closed
        await cache.close()

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

    async def test_a_full_pool_does_not_open_the_breaker(self, redis_server: RedisServer) -> None:
        breaker = Breaker()
        cache = RedisCache.from_url(
            f"{redis_server.url}?max_connections=1&timeout=0.001&socket_timeout=10", breaker=breaker
        )
        await cache.set("a", b"1", 10)
        # One connection for a hundred callers, and hardly any patience: most of them find no connection.
        assert await asyncio.gather(*(cache.get("a") for _ in range(100))) == [b"1"] * 100
        assert breaker.closed
        await cache.close()


class TestRedisInTrouble:
    async def test_a_redis_that_is_down_at_the_start_is_no_error(self, redis_server: RedisServer) -> None:
        redis_server.kill()
        cache = await open_cache(redis_server.url)
        assert await cache.get("a") is None
        await cache.set("a", b"1", 10)
        assert await cache.get("a") == b"1"
        await cache.delete("a")
        assert await cache.get("a") is None
        assert "does not answer" in await cache.problem()
        await cache.close()

    async def test_a_killed_redis_leaves_this_process_its_copies(
        self, own: RedisCache, redis_server: RedisServer
    ) -> None:
        await own.set("a", b"1", 10)
        redis_server.kill()
        for _ in range(5):
            assert await seconds(own.get("a")) < 0.1
            assert await own.get("a") == b"1"

    async def test_a_redis_that_comes_back_is_used_again(self, own: RedisCache, redis_server: RedisServer) -> None:
        redis_server.kill()
        for _ in range(3):
            await own.get("a")
        redis_server.start()
        other = RedisCache.from_url(redis_server.url, prefix="x:")
        await other.set("a", b"from another replica", 30)

        async def sees_it() -> bool:
            return await own.get("a") == b"from another replica"

        await eventually(sees_it)
        assert await own.problem() == ""
        await other.close()

    async def test_what_was_written_during_an_outage_is_still_there_after_it(
        self, own: RedisCache, redis_server: RedisServer, client: redis_client.Redis
    ) -> None:
        redis_server.kill()
        await own.set("a", b"during", 30)
        redis_server.start()
        await eventually(lambda: _is_empty(own.problem()))
        assert await own.get("a") == b"during"
        await own.set("a", b"after", 30)
        assert await client.get("x:a") == b"after"
        await client.set("x:a", b"by another replica")
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
        self, own: RedisCache, redis_server: RedisServer
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
        other = RedisCache.from_url(redis_server.url, prefix="x:")
        await other.set("a", b"1", 30)

        async def sees_it() -> bool:
            return await own.get("a") == b"1"

        await eventually(sees_it)
        await other.close()

    async def test_a_frozen_redis_does_not_hold_up_closing(self, redis_server: RedisServer) -> None:
        cache = RedisCache.from_url(redis_server.url)
        await cache.set("a", b"1", 30)
        redis_server.freeze()
        reading = asyncio.ensure_future(cache.get("a"))
        await asyncio.sleep(0.01)
        assert await seconds(cache.close()) < 1.0 + SLACK
        await reading
        redis_server.thaw()

    async def test_many_callers_of_a_frozen_redis_are_all_answered_in_time(
        self, own: RedisCache, redis_server: RedisServer
    ) -> None:
        await own.set("a", b"1", 30)
        redis_server.freeze()
        waits = await asyncio.gather(*(seconds(own.get("a")) for _ in range(300)))
        assert max(waits) < CALL_LIMIT + 2 * SLACK
        redis_server.thaw()

    async def test_a_full_redis_is_read_and_what_it_refuses_stays_in_the_process(
        self, own: RedisCache, client: redis_client.Redis
    ) -> None:
        await own.set("a", b"old", 30)
        await client.config_set("maxmemory", "1mb")
        await own.set("a", b"new", 30)
        await own.set("b", b"only here", 30)
        assert await client.get("x:a") == b"old"
        assert await own.get("a") == b"new"
        assert await own.get("b") == b"only here"
        assert "stores nothing" in await own.problem()
        await client.config_set("maxmemory", "0")
        await own.set("a", b"newer", 30)
        assert await client.get("x:a") == b"newer"

    async def test_a_read_only_replica_is_read_and_refuses_writes_without_an_error(
        self, own: RedisCache, client: redis_client.Redis
    ) -> None:
        await own.set("a", b"1", 30)
        await client.config_set("replica-serve-stale-data", "yes")
        await client.replicaof("127.0.0.1", "1")
        await own.set("b", b"2", 30)
        await own.delete("a")
        assert await own.get("b") == b"2"
        assert "stores nothing (ReadOnlyError)" in await own.problem()

    async def test_a_wrong_password_is_no_error_for_the_caller(self) -> None:
        with RedisServer("--requirepass", "right") as server:
            cache = RedisCache.from_url(server.url.replace("redis://", "redis://:wrong-canary@"))
            await cache.set("a", b"1", 30)
            assert await cache.get("a") == b"1"
            problem = await cache.problem()
            assert "AuthenticationError" in problem
            assert "canary" not in problem
            await cache.close()

    async def test_trouble_is_logged_once_a_minute_and_without_the_password(self, redis_server: RedisServer) -> None:
        redis_server.kill()
        cache = RedisCache.from_url(redis_server.url.replace("redis://", "redis://user:canary@"))
        with structlog.testing.capture_logs() as logs:
            for number in range(20):
                await cache.set(str(number), b"1", 30)
                await cache.get("a")
        assert [entry["event"] for entry in logs] == ["cache_out_of_reach"]
        assert logs[0]["server"] == f"127.0.0.1:{redis_server.port}"
        assert "canary" not in str(logs) + repr(cache)
        await cache.close()


async def _is_empty(text: Awaitable[str]) -> bool:
    return not await text


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

    async def test_answers_that_come_after_the_time_limit_reach_nobody(
        self, redis_server: RedisServer, client: redis_client.Redis
    ) -> None:
        # A breaker that never opens: each call goes to the slow server, runs out of time and is cut off.
        cache = RedisCache.from_url(redis_server.url, prefix="x:", breaker=_NeverOpen())
        for key in range(10):
            await client.set(f"x:{key}", b"value of %d" % key)
        try:
            for _ in range(3):
                await client.execute_command("CLIENT", "PAUSE", "900", "ALL")
                assert await self._storm(cache, 2) == 0
                await asyncio.sleep(0.9)
                assert await self._storm(cache, 20) > 0
            await asyncio.sleep(CALL_LIMIT)
            assert not cache._redis.connection_pool._in_use_connections
        finally:
            await cache.close()


class _NeverOpen(Breaker):
    def failed(self) -> None:
        return


class TestUrl:
    @pytest.mark.parametrize(
        "url",
        [
            "http://user:canary@host",
            "redis://user:canary#x@host:66",
            "redis://:can/ary@host",
            "redis://user:canary@host?no_such_option=1",
            "redis://user:canary@host?db=canary",
            "",
        ],
    )
    async def test_a_url_that_cannot_be_used_is_refused_without_showing_it(self, url: str) -> None:
        with pytest.raises(ValueError, match="the cache must be") as caught:
            await open_cache(url)
        assert "canary" not in str(caught.value)
        assert caught.value.__context__ is None

    async def test_rediss_asks_for_tls_and_checks_the_certificate(self) -> None:
        cache = RedisCache.from_url("rediss://localhost:1")
        connection = cache._redis.connection_pool.make_connection()
        assert connection.ssl_context.cert_reqs.name == "CERT_REQUIRED"
        await cache.close()
