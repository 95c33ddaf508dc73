"""Attacks below the calls, on connections and HTTP/2 itself, by a peer that nobody knows: each first succeeds with the
mitigation switched off."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import FieldInvalid, ServiceError
from exchange_service.grpc_server.engines import grpcio
from exchange_service.v1.exchange_service_pb2 import AccountSelector, ListExchangesRequest, StreamBalancesRequest
from exchange_service.v1.exchange_service_pb2_grpc import ExchangeServiceStub
from tests.engines import ENGINE_VARIABLES, NATIVE
from tests.harness import Failure, failure_of

ROOT = Path(__file__).parent.parent.parent
MEBIBYTE = 2**20
# The service, perhaps with a limit on open files and with parts switched off, as lines of Python say.
PROGRAM = """
import resource, sys
from exchange_service.cli import main
{changes}
sys.argv = ["exchange-service", "demo", "--address", "127.0.0.1:0", "--no-console", *sys.argv[1:]]
main()
"""
UNBOUNDED = """
from exchange_service.grpc_server.engines import grpcio
grpcio.OPTIONS = (
    *(option for option in grpcio.OPTIONS if "pending" not in option[0]),
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
)
"""


@dataclass
class Target:
    """A demo service in a process of its own."""

    address: str
    process: psutil.Process

    @property
    def port(self) -> str:
        return self.address.rpartition(":")[2]

    async def has_taken_them(self) -> None:
        """Wait until it has taken the connections that wait, those that it takes."""
        before = 0
        while before != (before := self.process.num_fds()):  # noqa: ASYNC110
            await asyncio.sleep(0.5)

    def memory(self) -> int:
        return int(self.process.memory_info().rss)


@contextmanager
def demo(home: Path, *arguments: str, changes: str = "") -> Iterator[Target]:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(changes=changes), *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", **ENGINE_VARIABLES},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            match = re.search(r"127\.0\.0\.1:\d+", line)
            assert match, line
            yield Target(match[0], psutil.Process(process.pid))
        finally:
            process.kill()


@asynccontextmanager
async def peer(*arguments: str) -> AsyncIterator[dict[str, int]]:
    """The hostile peer, from its answer to the end of the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.raw_http2", *arguments),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield json.loads(await process.stdout.readline())
    finally:
        process.stdin.close()
        await process.wait()


@asynccontextmanager
async def caller(target: Target) -> AsyncIterator[list[float]]:
    """Somebody else, who calls all the time on a connection of their own; the seconds of each call."""
    seconds: list[float] = []
    async with ExchangeServiceClient(target.address, timeout=60) as client:

        async def call() -> None:
            while True:
                began = time.monotonic()
                with contextlib.suppress(ServiceError):
                    await client.list_exchanges(page_size=1)
                seconds.append(time.monotonic() - began)
                await asyncio.sleep(0.005)

        await client.list_exchanges(page_size=1)
        calling = asyncio.create_task(call())
        try:
            yield seconds
            # The call that still waits counts too.
            count = len(seconds)
            while len(seconds) <= count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        finally:
            calling.cancel()
            await asyncio.wait({calling})


async def rapid_reset(target: Target, seconds: float) -> tuple[float, int]:
    """The longest call of another caller, in seconds, and the service's memory before, in bytes."""
    async with caller(target) as others:
        # By then it has loaded everything.
        while len(others) < 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        before = target.memory()
        async with peer("reset", target.port, str(seconds)) as done:
            assert done["requests"] > 10_000
    return max(others), before


@pytest.mark.threat("T63", attack=True)
async def test_requests_that_are_reset_at_once_stop_the_service_unless_a_connection_has_few(tmp_path: Path) -> None:
    outage = 1.0
    # The native engine's library ends such connections by itself.
    if not NATIVE:
        with demo(tmp_path, "--connection-streams", "10000", changes=UNBOUNDED) as target:
            outage, _ = await rapid_reset(target, 2.0)
            assert outage > 0.3
    with demo(tmp_path) as target:
        bounded, before = await rapid_reset(target, 4.0)
        assert bounded < min(1.0, outage)
        # What is free within the process is given back every five seconds.
        async with asyncio.timeout(20):
            while target.memory() - before > 100 * MEBIBYTE:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


@pytest.mark.threat("T64", attack=True)
async def test_requests_that_never_end_fill_the_memory_unless_a_connection_has_few(tmp_path: Path) -> None:
    with demo(tmp_path, "--connection-streams", "10000", changes=UNBOUNDED) as target:
        before = target.memory()
        async with peer("open", target.port, "1", "9000") as done:
            assert done["refused"] == 0
            assert target.memory() - before > 100 * MEBIBYTE
    with demo(tmp_path) as target:
        before = target.memory()
        async with caller(target) as others, peer("open", target.port, "4", "9000") as done:
            # The native engine refuses so many, and then ends the connection.
            assert done["refused"] == 4 * (1024 if NATIVE else 9000 - 250)
            assert target.memory() - before < 100 * MEBIBYTE
        assert max(others) < 1.0


UNCOUNTED = """
from exchange_service.grpc_server import handler_wrapper
handler_wrapper.MOST_FIELDS = 10**9
"""


@pytest.mark.threat("T64", attack=True)
async def test_requests_with_thousands_of_fields_are_held_unless_they_are_counted(tmp_path: Path) -> None:
    count = 40
    # The native engine's library ends such connections by itself.
    if not NATIVE:
        with demo(tmp_path, changes=UNCOUNTED) as target:
            async with peer("open", target.port, "1", str(count), "12000") as done:
                # gRPC itself refuses some at random.
                assert done["refused"] < count / 2
    with demo(tmp_path) as target:
        async with peer("open", target.port, "1", str(count), "12000") as done:
            assert done["refused"] == (0 if NATIVE else count)
        # What ordinary callers send, with all that tracing and proxies add, is served.
        metadata = [(f"x-{number}", "value") for number in range(100)]
        async with ExchangeServiceClient(target.address, metadata=metadata) as client:
            assert (await client.list_exchanges(page_size=1)).stats.total
        async with ExchangeServiceClient(target.address, metadata=[*metadata, *metadata]) as client:
            with pytest.raises(FieldInvalid, match="metadata"):
                await client.list_exchanges(page_size=1)


FEW_FILES = "resource.setrlimit(resource.RLIMIT_NOFILE, (600, {hard}))"
IMPATIENT = """
from exchange_service.grpc_server.engines import grpcio
grpcio.OPTIONS = tuple({**dict(grpcio.OPTIONS), "grpc.server_handshake_timeout_ms": 500}.items())
"""
UNAWARE = """
import exchange_service.app, exchange_service.cli.operate, exchange_service.venues.files_left
exchange_service.app.shares_of_connections = lambda *, serves_http: (None, 0)
exchange_service.cli.operate.raise_limit = lambda: None
exchange_service.venues.files_left.none_left = lambda error: False
"""


async def reason_of_a_read(target: Target, silent: int) -> str:
    """The reason of a balance that is read while so many connections say nothing; empty if it is read."""
    async with ExchangeServiceClient(target.address, timeout=20) as client:
        # Until here nothing is asked of this venue, so there is no open connection to it.
        await client.get_balance("demo", "tradier", max_age=0)
        async with peer("silent", target.port, str(silent)):
            await target.has_taken_them()
            try:
                await client.get_balance("demo", "oanda", max_age=0)
            except ServiceError as error:
                return error.reason
    return ""


@pytest.mark.needs_grpcio("The native engine has no limit on connections.")
@pytest.mark.threat("T65", attack=True)
async def test_silent_connections_take_the_files_of_venue_calls_unless_they_are_limited(tmp_path: Path) -> None:
    with demo(tmp_path, changes=FEW_FILES.format(hard=600) + UNAWARE) as target:
        assert await reason_of_a_read(target, 620) == "VENUE_UNAVAILABLE"
    # The hard limit is as low: some of the connections are not taken.
    with demo(tmp_path, changes=FEW_FILES.format(hard=600)) as target:
        assert await reason_of_a_read(target, 620) == ""
    with demo(tmp_path, changes=FEW_FILES.format(hard=4096)) as target:
        assert await reason_of_a_read(target, 620) == ""
        assert target.process.rlimit(psutil.RLIMIT_NOFILE) == (4096, 4096)


@pytest.mark.needs_grpcio("The native engine closes a connection that says nothing after two minutes.")
@pytest.mark.threat("T65")
async def test_a_connection_that_says_nothing_is_closed_within_seconds(tmp_path: Path) -> None:
    assert dict(grpcio.OPTIONS)["grpc.server_handshake_timeout_ms"] <= 10_000
    with demo(tmp_path, changes=IMPATIENT) as target:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(target.port))
        async with asyncio.timeout(20):
            assert b"handshake timeout" in await reader.read(-1)
        writer.close()


HARDLY_ANY_FILES = """
from exchange_service import open_files
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
open_files._IDLE_OF_FEW = 2.0
"""


@pytest.mark.needs_grpcio("The native engine has no limit on connections.")
async def test_with_hardly_any_files_venues_are_asked_and_new_clients_served_when_others_have_nothing_to_ask(
    tmp_path: Path,
) -> None:
    with demo(tmp_path, changes=HARDLY_ANY_FILES) as target:
        async with contextlib.AsyncExitStack() as stack:
            others = [await stack.enter_async_context(ExchangeServiceClient(target.address)) for _ in range(40)]
            answers = await asyncio.gather(
                *(client.list_exchanges(page_size=1) for client in others), return_exceptions=True
            )
            served = [
                client for client, answer in zip(others, answers, strict=True) if not isinstance(answer, BaseException)
            ]
            # Half of the files that are left are not for callers, and venues are asked with them.
            assert 5 < len(served) < 20
            for exchange in ("oanda", "tradier"):
                await served[0].get_balance("demo", exchange, max_age=0)
            # The others keep their connections, and call no more.
            async with asyncio.timeout(30), ExchangeServiceClient(target.address) as newcomer:
                while True:
                    with contextlib.suppress(ServiceError):
                        await newcomer.list_exchanges(page_size=1)
                        break
                    await asyncio.sleep(0.2)
            # They notice nothing, and are served when they call again.
            assert (await served[-1].list_exchanges(page_size=1)).stats.total


LITTLE_MEMORY = "resource.setrlimit(resource.RLIMIT_DATA, (280 * 2**20, 280 * 2**20))"


async def open_streams(target: Target, stack: contextlib.AsyncExitStack, count: int) -> tuple[list[Any], list[Failure]]:
    """Open so many streams at the same time: those that were, and how the others failed."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    request = StreamBalancesRequest(user_id="demo", accounts=[AccountSelector(exchange_id="oanda")])
    calls = []
    for _ in range(0, count, 200):
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(target.address, options=options))
        calls += [ExchangeServiceStub(channel).StreamBalances(request) for _ in range(200)]
    firsts = await asyncio.gather(*(call.read() for call in calls), return_exceptions=True)
    ends = [failure_of(first) for first in firsts if isinstance(first, grpc.aio.AioRpcError)]
    return [call for call, first in zip(calls, firsts, strict=True) if not isinstance(first, BaseException)], ends


async def test_streams_beyond_the_memory_are_refused_and_taken_again_when_others_have_left(tmp_path: Path) -> None:
    with demo(tmp_path, changes=LITTLE_MEMORY) as target:
        async with contextlib.AsyncExitStack() as stack:
            opened, refused = await open_streams(target, stack, 3000)
            assert opened
            assert refused
            assert {failure.reason for failure in refused} == {"SERVICE_OVERLOADED"}
            assert all(failure.retry_delay for failure in refused)
            # Those that are open go on, and calls are answered.
            async with asyncio.timeout(30):
                await asyncio.gather(*(call.read() for call in opened))
            async with ExchangeServiceClient(target.address) as client:
                await client.get_balance("demo", "oanda", max_age=0)
        async with asyncio.timeout(30):
            while True:
                async with contextlib.AsyncExitStack() as stack:
                    if (await open_streams(target, stack, 200))[0]:
                        break
                await asyncio.sleep(0.5)
        assert target.process.is_running()


async def test_hundreds_of_streams_and_calls_of_one_client_open_the_connections_that_they_need(tmp_path: Path) -> None:
    with demo(tmp_path, "--connection-streams", "20") as target:
        async with (
            ExchangeServiceClient(target.address, calls_a_connection=20) as client,
            contextlib.AsyncExitStack() as stack,
        ):
            streams = [client.stream_balances("demo") for _ in range(110)]
            for stream in streams:
                stack.push_async_callback(stream.aclose)  # type: ignore[attr-defined]
            async with asyncio.timeout(60):
                first = await asyncio.gather(*(anext(stream) for stream in streams))
                assert len(first) == 110
                await asyncio.gather(*(client.get_balance("demo", "oanda") for _ in range(60)))
        # A client that has one connection alone waits without a word, which the page for operators says.
        async with ExchangeServiceClient(target.address, timeout=1.0) as client, contextlib.AsyncExitStack() as stack:
            streams = [client.stream_balances("demo") for _ in range(20)]
            for stream in streams:
                stack.push_async_callback(stream.aclose)  # type: ignore[attr-defined]
                await anext(stream)
            with pytest.raises(ServiceError):
                await client.list_exchanges()


async def test_calls_beyond_what_a_connection_takes_wait_and_none_is_refused(tmp_path: Path) -> None:
    with demo(tmp_path, "--connection-streams", "50") as target:
        async with grpc.aio.insecure_channel(target.address) as channel:
            stub = ExchangeServiceStub(channel)
            calls = (stub.ListExchanges(ListExchangesRequest(page_size=1), timeout=60) for _ in range(1000))
            assert len(await asyncio.gather(*calls)) == 1000
