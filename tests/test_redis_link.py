"""The link to Redis: its circuit breaker, its time limits, its lines in the log, and the URLs that it takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import redis.asyncio as redis_client
import structlog.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from exchange_service.cache import make_cache, open_link, open_sealed
from exchange_service.cache.memory import MemoryCache
from exchange_service.cache.redis import RedisCache
from exchange_service.cache.redis_link import CALL_LIMIT, STEP_LIMIT, LinkBreaker, NoAnswer, RedisLink, connection_pool
from exchange_service.cache.sealed_redis import SealedRedis
from tests.harness import eventually
from tests.servers import RedisServer

# What a busy machine may add to a time limit.
SLACK = 0.25


class Clock:
    """A clock that moves only when a test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestBreaker:
    def test_three_failures_in_a_row_open_it_for_a_second(self) -> None:
        clock = Clock()
        breaker = LinkBreaker(clock)
        breaker.record_failure()
        breaker.record_failure()
        breaker.record_success()
        breaker.record_failure()
        breaker.record_failure()
        assert breaker.closed
        breaker.record_failure()
        assert not breaker.closed
        clock.now += 0.99
        assert not breaker.take_probe()
        clock.now += 0.01
        assert breaker.take_probe()

    def test_one_probe_at_a_time_and_longer_delays_up_to_five_seconds(self) -> None:
        clock = Clock()
        breaker = LinkBreaker(clock)
        for _ in range(3):
            breaker.record_failure()
        pauses = []
        for _ in range(6):
            waited = 0.0
            while not breaker.take_probe():
                clock.now += 0.5
                waited += 0.5
            assert not breaker.take_probe()
            breaker.record_failure()
            breaker.end_probe()
            pauses.append(waited)
        assert pauses == [1, 2, 4, 5, 5, 5]

    def test_late_failures_of_older_calls_do_not_lengthen_the_delay(self) -> None:
        clock = Clock()
        breaker = LinkBreaker(clock)
        for _ in range(30):
            breaker.record_failure()
        clock.now += 1
        assert breaker.take_probe()


class BreakerMachine(RuleBasedStateMachine):
    """Whatever the order of events, at most one probe is out and the breaker can always close again."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = LinkBreaker(self.clock)
        self.probes = 0

    @rule()
    def a_call_fails(self) -> None:
        self.breaker.record_failure()

    @rule()
    def a_call_succeeds(self) -> None:
        self.breaker.record_success()
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
            (self.breaker.record_success if good else self.breaker.record_failure)()
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
async def link(redis_server: RedisServer) -> AsyncIterator[RedisLink]:
    """A link to a Redis of the test's own."""
    link = RedisLink(redis_server.url)
    yield link
    await link.close()


class TestCall:
    async def test_it_gives_the_result_of_the_command(self, link: RedisLink) -> None:
        assert await link.call(link.redis.ping)
        assert await link.call(lambda: link.redis.get("nothing here")) is None
        assert link.available

    async def test_an_error_of_redis_is_no_answer_and_leaves_the_link_available(self, link: RedisLink) -> None:
        for _ in range(5):
            with pytest.raises(NoAnswer) as failure:
                await link.call(lambda: link.redis.execute_command("NO-SUCH-COMMAND"))
            assert failure.value.kind == "ResponseError"
        assert link.available

    async def test_after_three_failures_a_command_is_not_even_begun_unless_it_is_forced(
        self, link: RedisLink, redis_server: RedisServer
    ) -> None:
        redis_server.kill()
        for _ in range(3):
            with pytest.raises(NoAnswer, match="ConnectionError"):
                await link.call(link.redis.ping)
        assert not link.available
        begun = []

        async def command() -> None:
            begun.append(True)

        with pytest.raises(NoAnswer, match="known to be down"):
            await link.call(command)
        assert not begun
        await link.call(command, force=True)
        assert begun

    async def test_a_command_that_ignores_its_cancellation_costs_the_caller_no_more_than_any_other(
        self, link: RedisLink
    ) -> None:
        over = asyncio.Event()

        async def command() -> None:
            while not over.is_set():
                try:
                    await over.wait()
                except asyncio.CancelledError:
                    continue

        began = time.monotonic()
        with pytest.raises(NoAnswer, match="TimeoutError"):
            await link.call(command)
        assert time.monotonic() - began < CALL_LIMIT + SLACK
        over.set()

    async def test_a_cancelled_callers_command_ends_by_itself(self, link: RedisLink) -> None:
        going, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def command() -> None:
            going.set()
            await go.wait()
            ended.set()

        caller = asyncio.create_task(link.call(command))
        await going.wait()
        caller.cancel()
        await asyncio.wait({caller})
        assert caller.cancelled()
        go.set()
        await asyncio.wait_for(ended.wait(), CALL_LIMIT)

    async def test_a_call_under_way_ends_when_the_link_is_closed(self, redis_server: RedisServer) -> None:
        link = RedisLink(redis_server.url)
        caller = asyncio.create_task(link.call(asyncio.Event().wait))
        await asyncio.sleep(0)
        began = time.monotonic()
        await link.close()
        with pytest.raises(NoAnswer, match="closed"):
            await caller
        assert time.monotonic() - began < SLACK


class TestClosing:
    async def test_a_subscription_ends_with_its_cache_at_whatever_moment_that_is_closed(
        self, redis_server: RedisServer
    ) -> None:
        steps, subscribed = 0, False
        while not subscribed:
            link = RedisLink(redis_server.url)
            sealed = SealedRedis(link, b"0123456789abcdef", prefix="x:")
            with suppress(NoAnswer):
                await sealed.ask_the_time()
            cache = RedisCache(sealed)
            cache.add_listener(lambda _: None)
            for _ in range(steps):
                await asyncio.sleep(0)
                subscribed = subscribed or cache.subscribed
            await cache.close()
            assert "redis subscription" not in {task.get_name() for task in asyncio.all_tasks()}
            await link.close()
            steps += 1
        async with redis_client.Redis.from_url(redis_server.url) as admin:

            async def is_alone() -> bool:
                return len(await admin.client_list()) == 1

            await eventually(is_alone)

    async def test_a_subscription_that_is_still_read_does_not_connect_again(self, redis_server: RedisServer) -> None:
        link = RedisLink(redis_server.url)
        async with link.subscriber.pubsub(ignore_subscribe_messages=True) as channel:
            await channel.subscribe("x")
            # Its answer, which is ignored.
            await channel.get_message(timeout=10)
            reading = asyncio.create_task(channel.get_message(timeout=10))
            await asyncio.sleep(0)
            await link.close()
            with pytest.raises(redis_client.ConnectionError, match="closed"):
                await reading
            assert channel.connection is not None
            assert not channel.connection.is_connected

    async def test_a_server_that_does_not_greet_a_subscription_is_left_in_bounded_time(
        self, link: RedisLink, redis_server: RedisServer
    ) -> None:
        redis_server.freeze()
        began = time.monotonic()
        async with link.subscriber.pubsub() as channel:
            with pytest.raises(redis_client.TimeoutError):
                await channel.subscribe("x")
        # The library tries once more by itself.
        assert time.monotonic() - began < 2 * STEP_LIMIT + 2 * SLACK
        redis_server.thaw()


class TestRecovery:
    async def test_its_users_share_the_state_of_redis_and_one_line_in_the_log(
        self, link: RedisLink, redis_server: RedisServer
    ) -> None:
        recovered = []
        for name in ("cache", "gate"):
            link.add_recovery_listener(lambda name=name: recovered.append(name))
        sealed = SealedRedis(link, b"0123456789abcdef", prefix="x:")
        redis_server.kill()
        with structlog.testing.capture_logs() as logs:
            for command in (lambda: link.call(link.redis.ping), lambda: sealed.get("a"), lambda: sealed.delete("a")):
                with pytest.raises(NoAnswer):
                    await command()
            assert not link.available
            assert [entry["event"] for entry in logs] == ["redis.out_of_reach"]
            redis_server.start()

            async def answers() -> bool:
                try:
                    await sealed.set("a", b"1", 60)
                    return await sealed.get("a") == b"1"
                except NoAnswer:
                    return False

            await eventually(answers)
        assert link.available
        assert recovered == ["cache", "gate"]
        assert [entry["event"] for entry in logs] == ["redis.out_of_reach", "redis.answers_again"]

    async def test_no_caller_waits_for_the_probe(self, redis_server: RedisServer) -> None:
        clock = Clock()
        link = RedisLink(redis_server.url, breaker=LinkBreaker(clock))
        redis_server.freeze()
        for _ in range(3):
            with pytest.raises(NoAnswer):
                await link.call(link.redis.ping)
        clock.now += 10
        began = time.monotonic()
        # The first of these sends a probe that Redis does not answer.
        for _ in range(20):
            with pytest.raises(NoAnswer):
                await link.call(link.redis.ping)
        assert time.monotonic() - began < 0.1
        redis_server.thaw()

        async def is_available() -> bool:
            # A probe is due in ten seconds at the latest.
            clock.now += 10
            with suppress(NoAnswer):
                await link.call(link.redis.ping)
            return link.available

        await eventually(is_available)
        await link.close()


class Pieces:
    """A connection that brings its bytes in pieces of this length, as a network does."""

    def __init__(self, answer: bytes, length: int) -> None:
        self._left = answer
        self._length = length

    async def read(self, most: int) -> bytes:
        length = min(most, self._length)
        piece, self._left = self._left[:length], self._left[length:]
        return piece


@pytest.mark.threat("T42")
class TestLengthOfAnAnswer:
    @pytest.mark.parametrize("length", [100, 1448, 64 * 1024])
    async def test_it_is_counted_in_bytes_however_they_come(self, length: int) -> None:
        pool = connection_pool("redis://localhost:1", 200_000)
        for size, is_read in ((150_000, True), (300_000, False)):
            connection: Any = pool.make_connection()
            connection._reader = Pieces(b"$%d\r\n%b\r\n" % (size, bytes(size)), length)
            parser = connection._parser
            parser.on_connect(connection)
            if is_read:
                assert await parser.read_response(disable_decoding=True) == bytes(size)
            else:
                with pytest.raises(redis_client.ConnectionError, match="too long"):
                    await parser.read_response(disable_decoding=True)

    async def test_what_comes_behind_an_answer_does_not_count_to_it(self) -> None:
        connection: Any = connection_pool("redis://localhost:1", 1000).make_connection()
        answers = [b"$500\r\n%b\r\n" % bytes(500)] * 400
        connection._reader = Pieces(b"".join(answers), 60_001)
        connection._parser.on_connect(connection)
        for _ in answers:
            assert await connection._parser.read_response(disable_decoding=True) == bytes(500)


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
            open_link(url)
        assert "canary" not in str(caught.value)
        assert caught.value.__context__ is None

    async def test_rediss_asks_for_tls_and_checks_the_certificate(self) -> None:
        link = RedisLink("rediss://localhost:1")
        connection = link.redis.connection_pool.make_connection()
        assert connection.ssl_context.cert_reqs.name == "CERT_REQUIRED"
        await link.close()

    async def test_a_url_chooses_between_the_process_and_a_redis(self) -> None:
        assert open_link("memory://") is None
        assert isinstance(make_cache(None), MemoryCache)
        link = open_link("redis://localhost:1")
        assert link is not None
        cache = make_cache(open_sealed(link, b"0123456789abcdef", prefix="x:"))
        assert isinstance(cache, RedisCache)
        await cache.close()
        await link.close()
