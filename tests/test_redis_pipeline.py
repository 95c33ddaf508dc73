"""The pipeline to Redis: each caller gets the answer to its own command in bounded time, whatever the others do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import redis.asyncio as redis_client
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError, ResponseError

from exchange_service.cache.redis_link import COMMAND_LIMIT, MOST_ANSWERED, NoAnswer, RedisLink
from exchange_service.cache.sealed_redis import SealedRedis
from tests.harness import until
from tests.servers import RedisServer

# What a busy machine may add to a time limit.
SLACK = 0.25
HELLO = b"%1\r\n$5\r\nproto\r\n:3\r\n"


class FakeRedis:
    """A server that greets as Redis does, and whose answers to all else the test gives."""

    def __init__(self, answer: Callable[[tuple[bytes, ...]], bytes]) -> None:
        self.answer = answer
        self.asked: list[tuple[bytes, ...]] = []
        self.writers: list[asyncio.StreamWriter] = []
        # How many connections have ended.
        self.ended = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        with suppress(ValueError, OSError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                texts = []
                for _ in range(int(line[1:])):
                    length = int((await reader.readline())[1:])
                    texts.append((await reader.readexactly(length + 2))[:-2])
                writer.write(self._answer_to(tuple(texts)))
        self.ended += 1
        writer.close()

    def _answer_to(self, command: tuple[bytes, ...]) -> bytes:
        if command[0] in (b"HELLO", b"CLIENT"):
            return HELLO
        self.asked.append(command)
        return self.answer(command)


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def echo(command: tuple[bytes, ...]) -> bytes:
    return bulk(command[1])


@asynccontextmanager
async def linked_to(fake: FakeRedis) -> AsyncIterator[RedisLink]:
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    link = RedisLink(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
    try:
        yield link
    finally:
        await link.close()
        server.close()
        await until(lambda: fake.ended == len(fake.writers), "the end of every connection")


def ask(link: RedisLink, *numbers: int) -> list[asyncio.Future[Any]]:
    return [link.pipeline.ask("GET", str(number)) for number in numbers]


async def outcomes(answers: list[asyncio.Future[Any]]) -> list[Any]:
    return await asyncio.gather(*answers, return_exceptions=True)


@pytest.fixture
async def link(redis_server: RedisServer) -> AsyncIterator[RedisLink]:
    """A link to a Redis of the test's own."""
    link = RedisLink(redis_server.url)
    yield link
    await link.close()


class TestAnswers:
    async def test_many_callers_share_one_connection_and_each_gets_its_own_answer(
        self, link: RedisLink, redis_server: RedisServer
    ) -> None:
        async with redis_client.Redis.from_url(redis_server.url) as admin:
            await admin.mset({str(number): f"value {number}" for number in range(200)})
            assert await outcomes(ask(link, *range(200))) == [b"value %d" % number for number in range(200)]
            # This one, and the pipeline's.
            assert len(await admin.client_list()) == 2

    async def test_a_command_costs_neither_a_task_nor_a_timer(
        self, link: RedisLink, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await outcomes(ask(link, 1))
        loop = asyncio.get_running_loop()
        timers, before = [], len(asyncio.all_tasks())
        call_at = loop.call_at

        def counted(*arguments: Any, **options: Any) -> asyncio.TimerHandle:
            timers.append(arguments)
            return call_at(*arguments, **options)

        monkeypatch.setattr(loop, "call_at", counted)
        answers = ask(link, *range(500))
        assert len(asyncio.all_tasks()) == before
        for answer in answers:
            await answer
        assert len(timers) <= 2

    async def test_a_cancelled_caller_disturbs_no_other_one(self, link: RedisLink, redis_server: RedisServer) -> None:
        async with redis_client.Redis.from_url(redis_server.url) as admin:
            await admin.mset({str(number): str(number) for number in range(9)})
        answers = ask(link, *range(9))
        for number in (0, 3, 8):
            answers[number].cancel()
        assert await outcomes(answers[1:3] + answers[4:8]) == [b"1", b"2", b"4", b"5", b"6", b"7"]

    async def test_an_error_is_for_its_own_caller(self, link: RedisLink, redis_server: RedisServer) -> None:
        async with redis_client.Redis.from_url(redis_server.url) as admin:
            await admin.rpush("1", "a list")
            await admin.set("2", "two")
        one, two, three = await outcomes(ask(link, 1, 2, 3))
        assert isinstance(one, ResponseError)
        assert (two, three) == (b"two", None)

    @pytest.mark.parametrize(
        "push",
        [
            b">2\r\n+invalidate\r\n*1\r\n$1\r\na\r\n",
            b">3\r\n+message\r\n+channel\r\n$5\r\nhello\r\n",
            b">1\r\n+new\r\n",
        ],
        ids=["invalidation", "message", "another"],
    )
    async def test_a_push_between_two_answers_is_passed_over(self, push: bytes) -> None:
        async with linked_to(FakeRedis(lambda command: push + echo(command) + push)) as link:
            assert await outcomes(ask(link, 1, 2, 3)) == [b"1", b"2", b"3"]
            assert await outcomes(ask(link, 4)) == [b"4"]

    async def test_a_server_that_ends_an_idle_connection_costs_the_next_caller_nothing(self) -> None:
        fake = FakeRedis(echo)
        async with linked_to(fake) as link:
            await outcomes(ask(link, 1))
            fake.writers[0].close()
            await until(lambda: fake.ended == 1, "the end of the connection")
            assert await link.read(lambda: link.pipeline.ask("GET", "2")) == b"2"
            assert link.reliable

    async def test_the_next_connection_is_used_while_the_last_answers_come_on_the_old_one(self) -> None:
        fake = FakeRedis(echo)
        async with linked_to(fake) as link:
            first = ask(link, 1, 2)
            link.pipeline.reconnect()
            assert await outcomes(first + ask(link, 3)) == [b"1", b"2", b"3"]
            await until(lambda: fake.ended == 1, "the end of the connection")
            assert len(fake.writers) == 2
            link.pipeline.reconnect()
            await until(lambda: fake.ended == 2, "the end of the connection")


class TestTrouble:
    async def test_all_that_a_silent_server_owes_fails_at_once_and_the_next_command_goes_by_another_connection(
        self,
    ) -> None:
        fake = FakeRedis(lambda _: b"")
        async with linked_to(fake) as link:
            await asyncio.wait(ask(link, 0), timeout=COMMAND_LIMIT / 2)
            began = time.monotonic()
            failures = await outcomes(ask(link, 1, 2))
            assert [type(failure) for failure in failures] == [TimeoutError] * 2
            assert time.monotonic() - began < COMMAND_LIMIT + SLACK
            await until(lambda: fake.ended == 1, "the end of the connection")
            fake.answer = echo
            assert await outcomes(ask(link, 3)) == [b"3"]

    async def test_an_answer_that_came_while_the_event_loop_was_busy_is_not_late(
        self, link: RedisLink, redis_server: RedisServer
    ) -> None:
        async with redis_client.Redis.from_url(redis_server.url) as admin:
            await admin.set("1", "one")
        await ask(link, 1)[0]
        for _ in range(3):
            (answer,) = ask(link, 1)
            await asyncio.sleep(0.001)
            # The loop stops for longer than a command may take.
            time.sleep(COMMAND_LIMIT + 0.05)  # noqa: ASYNC251
            assert await answer == b"one"

    async def test_a_server_that_does_not_even_greet_costs_no_more_time(self, redis_server: RedisServer) -> None:
        link = RedisLink(redis_server.url)
        redis_server.freeze()
        began = time.monotonic()
        with pytest.raises(NoAnswer, match="TimeoutError"):
            await link.read(lambda: link.pipeline.ask("GET", "1"))
        assert time.monotonic() - began < COMMAND_LIMIT + SLACK
        redis_server.thaw()
        assert await link.read(lambda: link.pipeline.ask("GET", "1")) is None
        await link.close()

    @pytest.mark.parametrize(
        ("answer", "error"),
        [
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", InvalidResponse),
            (b"-LOADING Redis is loading the dataset in memory\r\n", RedisConnectionError),
            (bulk(bytes(MOST_ANSWERED + 2**20)), RedisConnectionError),
        ],
        ids=["nonsense", "loading", "too long"],
    )
    async def test_what_cannot_be_an_answer_ends_the_connection_and_is_told_to_all(
        self, answer: bytes, error: type[RedisError]
    ) -> None:
        fake = FakeRedis(lambda _: answer)
        async with linked_to(fake) as link:
            assert [isinstance(failure, error) for failure in await outcomes(ask(link, 1, 2))] == [True, True]
            fake.answer = echo
            assert await outcomes(ask(link, 3)) == [b"3"]
            assert len(fake.writers) == 2

    async def test_an_answer_too_many_is_given_to_nobody_once_the_others_have_come(self) -> None:
        fake = FakeRedis(lambda command: echo(command) + bulk(b"another"))
        async with linked_to(fake) as link:
            assert await outcomes(ask(link, 1)) == [b"1"]
            await until(lambda: fake.ended == 1, "the end of the connection")
            fake.answer = echo
            assert await outcomes(ask(link, 2)) == [b"2"]

    async def test_answers_that_belong_to_other_commands_do_not_go_on_under_load(self) -> None:
        late: list[tuple[bytes, ...]] = [(b"", b"too many")]

        def one_behind(command: tuple[bytes, ...]) -> bytes:
            late.append(command)
            return echo(late.pop(0))

        fake = FakeRedis(one_behind)
        async with linked_to(fake) as link:
            # There is always a command that is not answered yet.
            answers = asyncio.Queue[asyncio.Future[Any]]()
            answers.put_nowait(ask(link, 1)[0])
            began = time.monotonic()
            while not fake.ended and time.monotonic() - began < 5:
                answers.put_nowait(ask(link, 2)[0])
                await asyncio.wait({answers.get_nowait()})
                await asyncio.sleep(0.001)
            assert fake.ended
            assert time.monotonic() - began < 2 * COMMAND_LIMIT + SLACK


class TestClosing:
    async def test_what_is_under_way_ends_and_no_connection_stays(self) -> None:
        fake = FakeRedis(lambda _: b"")
        async with linked_to(fake) as link:
            readers = [asyncio.create_task(link.read(lambda: link.pipeline.ask("GET", "1"))) for _ in range(3)]
            await until(lambda: len(fake.asked) == 3, "the commands")
            await link.close()
            failures = await asyncio.gather(*readers, return_exceptions=True)
            assert [str(failure) for failure in failures] == ["closed"] * 3
            assert link.available
            with pytest.raises(NoAnswer, match="closed"):
                await link.read(lambda: link.pipeline.ask("GET", "1"))
            with pytest.raises(RedisConnectionError, match="closed"):
                ask(link, 1)

    async def test_a_pipeline_that_has_not_begun_to_connect_ends_its_callers(self) -> None:
        link = RedisLink("redis://127.0.0.1:9/0")
        answers = ask(link, 1)
        await link.close()
        (failure,) = await outcomes(answers)
        assert isinstance(failure, RedisConnectionError)


class TestBalances:
    async def test_a_value_is_read_by_one_command_on_the_pipeline(
        self, link: RedisLink, redis_server: RedisServer
    ) -> None:
        sealed = SealedRedis(link, b"0123456789abcdef", prefix="x:")
        await sealed.set("a", b"1", 60)
        async with redis_client.Redis.from_url(redis_server.url) as admin:
            await admin.config_resetstat()
            assert [await sealed.get("a") for _ in range(20)] == [b"1"] * 20
            calls = {name: row["calls"] for name, row in (await admin.info("commandstats")).items()}
        assert calls["cmdstat_getrange"] == 20
        assert set(calls) <= {"cmdstat_getrange", "cmdstat_hello", "cmdstat_client|setinfo", "cmdstat_config|resetstat"}

    async def test_readers_that_a_silent_redis_fails_stop_the_calls_after_three(
        self, redis_server: RedisServer
    ) -> None:
        link = RedisLink(redis_server.url)
        sealed = SealedRedis(link, b"0123456789abcdef", prefix="x:")
        await sealed.set("a", b"1", 60)
        redis_server.freeze()
        failures = await asyncio.gather(*(sealed.get("a") for _ in range(3)), return_exceptions=True)
        assert [str(failure) for failure in failures] == ["TimeoutError"] * 3
        assert not link.available
        redis_server.thaw()
        await link.close()

    async def test_one_connection_that_ends_is_one_failure_however_many_wait_for_it(self) -> None:
        def drop(_: tuple[bytes, ...]) -> bytes:
            raise ConnectionResetError

        async with linked_to(FakeRedis(drop)) as link:
            reading = [link.read(lambda: link.pipeline.ask("GET", "1")) for _ in range(5)]
            failures = await asyncio.gather(*reading, return_exceptions=True)
            assert [str(failure) for failure in failures] == ["ConnectionError"] * 5
            assert link.available
            assert not link.reliable

    async def test_a_command_that_cannot_be_packed_fails_alone(self, link: RedisLink) -> None:
        good = ask(link, 1)
        with pytest.raises(UnicodeEncodeError):
            link.pipeline.ask("GET", "\ud800")
        assert await outcomes(good) == [None]
