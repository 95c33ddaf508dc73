"""A Redis that answers is told apart from one that is silent, and one that became a replica is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis.asyncio as redis_client
import structlog.testing

from exchange_service.cache import make_cache, open_cache, open_link, open_sealed
from tests.harness import eventually
from tests.servers import RedisServer

KEY = b"0123456789abcdef"
HELLO = b"%1\r\n$5\r\nproto\r\n:3\r\n"
Answer = Callable[[bytes], bytes]


@asynccontextmanager
async def answering(answer: Answer) -> AsyncIterator[str]:
    """A server that gives each command this answer; its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                texts = []
                for _ in range(int(line[1:])):
                    length = int((await reader.readline())[1:])
                    texts.append((await reader.readexactly(length + 2))[:-2])
                writer.write(answer(texts[0].upper()))
                await writer.drain()
        except (ValueError, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://:word@127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()


def after_greeting(refusal: bytes, *commands: bytes) -> Answer:
    good = {
        b"HELLO": HELLO,
        b"PING": b"+PONG\r\n",
        b"TIME": b"*2\r\n$1\r\n9\r\n$1\r\n9\r\n",
        b"GETRANGE": b"$0\r\n\r\n",
    }

    def answer(command: bytes) -> bytes:
        return refusal if command in commands else good.get(command, b"+OK\r\n")

    return answer


ANSWERS: dict[str, tuple[Answer, str]] = {
    "an older one": (lambda _: b"-ERR unknown command `HELLO`, with args beginning with: `3`\r\n", "RESP3"),
    "one without RESP3": (lambda _: b"-NOPROTO unsupported protocol version\r\n", "RESP3"),
    "a wrong password": (lambda _: b"-WRONGPASS invalid username-password pair or user is disabled.\r\n", "password"),
    "no password": (lambda _: b"-NOAUTH Authentication required.\r\n", "password"),
    "no right to a command": (
        after_greeting(b"-NOPERM this user has no permissions to run the 'evalsha' command\r\n", b"EVALSHA"),
        "no right to a command or key",
    ),
    "no right to a key": (
        after_greeting(
            b"-NOPERM this user has no permissions to access one of the keys used as arguments\r\n", b"EVALSHA"
        ),
        "no right to a command or key",
    ),
    "loading": (after_greeting(b"-LOADING Redis is loading the dataset in memory\r\n", b"PING"), "loading its data"),
    "full": (
        after_greeting(b"-OOM command not allowed when used memory > 'maxmemory'.\r\n", b"EVALSHA"),
        "memory is full",
    ),
    "a replica": (
        after_greeting(b"-READONLY You can't write against a read only replica.\r\n", b"EVALSHA"),
        "a replica",
    ),
    "another error": (after_greeting(b"-CLUSTERDOWN The cluster is down\r\n", b"PING"), "answers with"),
    "no connection left": (lambda _: b"-ERR max number of clients reached\r\n", "no connection left"),
    "a web server": (lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n", "no Redis"),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_what_an_answering_redis_says_is_told_to_the_operator_and_in_the_log(name: str) -> None:
    answer, word = ANSWERS[name]
    async with answering(answer) as url:
        with structlog.testing.capture_logs() as lines:
            async with open_cache(url, KEY, prefix="p:") as cache:
                problem = await cache.problem()
    assert "answers and refuses: " in problem
    assert word in problem
    (line,) = [line for line in lines if line["event"].startswith("redis.")]
    assert line["event"] == "redis.refuses"
    assert word in line["because"]
    assert "word@" not in f"{problem}{lines}"


async def test_a_silent_redis_does_not_answer() -> None:
    async with open_cache("redis://127.0.0.1:9/0", KEY, prefix="p:") as cache:
        with structlog.testing.capture_logs() as lines:
            assert "does not answer" in await cache.problem()
    assert [line["event"] for line in lines] == ["redis.out_of_reach"]


async def test_a_user_without_a_right_to_channels_is_told_so() -> None:
    lines: list[Any] = []

    async def some() -> bool:
        return bool(lines)

    with RedisServer() as server:
        admin = redis_client.Redis.from_url(server.url)
        await admin.execute_command("ACL", "SETUSER", "app", "on", ">word", "~*", "+@all", "resetchannels")
        await admin.aclose()
        url = server.url.replace("//", "//app:word@")
        async with open_cache(url, KEY, prefix="p:") as cache:
            assert "no right to our channel" in await cache.problem()
        async with open_cache(url, KEY, prefix="p:") as cache:
            with structlog.testing.capture_logs() as lines:
                cache.add_listener(lambda _: None)
                await eventually(some)
    assert lines[0]["event"] == "redis.refuses"
    assert "channel" in lines[0]["because"]


async def test_when_the_old_server_becomes_a_replica_writes_reach_the_new_one_within_seconds() -> None:
    with RedisServer() as old, RedisServer() as new:
        port = old.port

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """One name: a new connection leads to whichever server it stands for now."""
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)

            async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
                try:
                    while data := await source.read(65536):
                        target.write(data)
                        await target.drain()
                except OSError:
                    pass
                target.close()

            await asyncio.gather(copy(reader, there_writer), copy(there_reader, writer))

        name = await asyncio.start_server(forward, "127.0.0.1", 0)
        link = open_link(f"redis://127.0.0.1:{name.sockets[0].getsockname()[1]}/0")
        assert link is not None
        sealed = open_sealed(link, KEY, prefix="p:")
        cache = make_cache(sealed)
        admin, there = redis_client.Redis.from_url(old.url), redis_client.Redis.from_url(new.url)
        # Several connections to the old server.
        await asyncio.gather(*(cache.set(f"before {number}", b"1", 60.0) for number in range(8)))
        port = new.port
        await admin.execute_command("REPLICAOF", "127.0.0.1", new.port)

        async def arrived() -> bool:
            await cache.set("after", b"2", 60.0)
            return await there.exists(sealed.name("after")) == 1

        began = asyncio.get_running_loop().time()
        await eventually(arrived)
        assert asyncio.get_running_loop().time() - began < 3.0
        assert await cache.problem() == ""
        await asyncio.gather(*(cache.set(f"later {number}", b"3", 60.0) for number in range(8)))
        assert len(await there.keys(sealed.name("later*"))) == 8
        await cache.close()
        await link.close()
        await admin.aclose()
        await there.aclose()
        name.close()
