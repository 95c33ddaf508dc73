"""What is the same on both engines, and what is the native one's own. `make test-native` runs the other tests on it."""

from __future__ import annotations

import asyncio
import os
import queue
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from benchmarks.http2 import frame, request_headers
from exchange_service.app import start_service
from exchange_service.grpc_server.handler_wrapper import HandlerWrapper
from exchange_service.startup_checks import UnsafeSettings
from exchange_service.v1 import exchange_service_pb2 as messages
from exchange_service.v1.exchange_service_pb2_grpc import ExchangeServiceStub
from tests.harness import (
    USER,
    Running,
    ScriptedPlugin,
    alive,
    balance_request,
    failure,
    registry_of,
    serving,
    settings_for,
    totals,
    until,
    without_collections,
)

SERVICE = "/exchange_service.v1.ExchangeService"


@pytest.fixture(params=["grpcio", "native"])
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    registry = registry_of(ScriptedPlugin())
    impatient = {"write_timeout": 1.0, "heartbeat_interval": 0.2}
    async with serving(tmp_path, registry=registry, engine=request.param, **impatient) as running:
        await running.store()
        yield running


@asynccontextmanager
async def raw_connection(running: Running, window: int) -> AsyncIterator[asyncio.StreamWriter]:
    """A connection on which the server may send so many bytes of each stream, and whose client reads nothing."""
    reader, writer = await asyncio.open_connection(*running.service.address.rsplit(":", 1))
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, struct.pack(">HI", 4, window))
    writer.write(preface + frame(4, 1, 0, b""))
    try:
        yield writer
    finally:
        writer.close()
        del reader


def call(stream: int, method: str, request: Any) -> bytes:
    """The frames of a whole call."""
    message = request.SerializeToString()
    body = b"\0" + struct.pack(">I", len(message)) + message
    return frame(1, 4, stream, request_headers(1, f"{SERVICE}/{method}", ())) + frame(0, 1, stream, body)


def in_progress(running: Running) -> int:
    return running.service.server.handler_wrapper.running()


async def test_a_balance_is_answered_and_an_error_carries_its_details(running: Running) -> None:
    assert totals((await running.stub.GetBalance(balance_request())).balance) == {"BTC": "1.50"}
    assert (await failure(running.stub.GetBalance(balance_request("nowhere")))).reason == "EXCHANGE_UNKNOWN"


async def test_a_request_that_the_client_has_compressed_is_read(running: Running) -> None:
    async with grpc.aio.insecure_channel(running.service.address, compression=grpc.Compression.Gzip) as channel:
        assert (await ExchangeServiceStub(channel).GetBalance(balance_request())).balance.venue_accounts


async def test_a_request_over_the_limit_is_refused(running: Running) -> None:
    failed = await failure(running.stub.GetBalance(balance_request(user_id="a" * 70_000)))
    assert failed.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in failed.message


async def test_an_unknown_method_is_refused_and_counted(running: Running) -> None:
    unknown: Any = running.client.channel.unary_unary("/a.Service/Nothing")
    assert (await failure(unknown(b""))).code is grpc.StatusCode.UNIMPLEMENTED
    assert 'method="other"' in running.service.metrics.text().decode()


async def test_subscribers_who_do_not_read_take_no_thread_and_are_ended(running: Running) -> None:
    threads = threading.active_count()
    request = messages.StreamBalancesRequest(user_id=USER)
    async with raw_connection(running, window=0) as writer:
        writer.write(b"".join(call(stream, "StreamBalances", request) for stream in range(1, 101, 2)))
        await until(lambda: in_progress(running) == 50, "the opening of the streams")
        most = 0
        while in_progress(running):
            most = max(most, threading.active_count())
            await asyncio.sleep(0.05)
        # One opens the database.
        assert most <= threads + 1


async def test_calls_that_are_cancelled_before_their_handlers_begin_leave_nothing(running: Running) -> None:
    # Not more: the native engine's library then takes it for an attack, and ends the connection.
    streams = range(1, 21, 2)
    request = messages.StreamBalancesRequest(user_id=USER)
    async with raw_connection(running, window=65_535) as writer:
        # The loop is busy from before the calls come until they are cancelled.
        writer.write(b"".join(call(stream, "StreamBalances", request) for stream in streams))
        time.sleep(0.2)  # noqa: ASYNC251
        writer.write(b"".join(frame(3, 0, stream, struct.pack(">I", 8)) for stream in streams))
        time.sleep(0.2)  # noqa: ASYNC251
        await running.stub.GetBalance(balance_request())
        await until(lambda: not in_progress(running), "the end of the calls")
    engine: Any = running.service.server.engine
    if hasattr(engine, "fallback"):
        await until(lambda: not engine.engine._calls, "the end of the calls")


class TestNative:
    async def test_what_stands_behind_it_is_reached_by_its_own_user_alone_and_leaves_no_file(
        self, tmp_path: Path
    ) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), engine="native") as running:
            engine: Any = running.service.server.engine
            assert os.stat(engine.folder).st_mode & 0o777 == 0o700
        with pytest.raises(FileNotFoundError):
            os.stat(engine.folder)

    async def test_without_its_package_auto_says_nothing_and_takes_grpcio(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("EXCHANGE_SERVICE_ENGINE", raising=False)
        monkeypatch.delitem(sys.modules, "exchange_service.grpc_server.engines.native", raising=False)
        monkeypatch.setitem(sys.modules, "pygrpc_native", None)
        with capture_logs() as logs:
            async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
                assert (await running.client.list_exchanges()).stats.total == 1
        (listening,) = (line for line in logs if line["event"] == "service.listening")
        assert listening["engine"] == "grpcio"
        assert {line["log_level"] for line in logs} <= {"info", "debug"}


class TestNativeIsRefused:
    @pytest.mark.parametrize("name", ["tls_certificate", "tls_client_ca"])
    async def test_with_tls(self, tmp_path: Path, name: str) -> None:
        file = tmp_path / "file.pem"
        file.touch()
        changes = {"tls_certificate": file, "tls_key": file} if name == "tls_certificate" else {name: file}
        with pytest.raises(UnsafeSettings, match=f"engine=native has no TLS, and {name} needs it"):
            await start_service(settings_for(tmp_path, engine="native", **changes))

    async def test_without_its_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("exchange_service.startup_checks.find_spec", lambda _: None)
        with pytest.raises(UnsafeSettings, match=r"install exchange-service\[native\]"):
            await start_service(settings_for(tmp_path, engine="native"))


async def test_on_the_native_engine_a_streams_messages_come_without_waking_its_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = pytest.importorskip("exchange_service.grpc_server.engines.native")
    by_tasks = list[bytes]()
    true_write = native._Call.write

    async def write(call: Any, message: bytes) -> None:
        by_tasks.append(message)
        await true_write(call, message)

    monkeypatch.setattr(native._Call, "write", write)
    registry = registry_of(ScriptedPlugin())
    async with serving(tmp_path, registry=registry, engine="native", heartbeat_interval=0.1) as running:
        await running.store()
        stream = running.stub.StreamBalances(messages.StreamBalancesRequest(user_id=USER))
        kinds = [(await stream.read()).WhichOneof("event") for _ in range(12)]
        stream.cancel()
    assert kinds.count("heartbeat") >= 11
    # The first one may be there before the task waits.
    assert len(by_tasks) <= 1


async def test_on_the_native_engine_streams_that_come_or_leave_at_once_do_so_a_few_in_each_round() -> None:
    native = pytest.importorskip("exchange_service.grpc_server.engines.native")
    library = pytest.importorskip("pygrpc_native")
    begun, left = [0], [0]

    async def follow(request: bytes, context: Any) -> None:
        begun[-1] += 1
        try:
            await asyncio.Event().wait()
        finally:
            left[-1] += 1

    front = FrontOfManyStreams(500)
    engine = native.NativeEngine(front, [native._Method("/a/Stream", follow, True, None)], "nowhere")
    for counted, kind in ((begun, library.EVENT_CALL), (left, library.EVENT_CANCEL)):
        front.send(kind)
        while sum(counted) < 500:
            counted.append(0)
            await asyncio.sleep(0)
        assert max(counted) <= native._STREAMS_A_ROUND
    await engine.stop(1.0)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("waits", [True, False], ids=["while they wait", "before they begin"])
async def test_on_the_native_engine_cancelled_calls_leave_nothing_in_memory(streaming: bool, waits: bool) -> None:
    native = pytest.importorskip("exchange_service.grpc_server.engines.native")
    library = pytest.importorskip("pygrpc_native")
    wrapper = HandlerWrapper()

    async def wait(request: bytes, context: Any) -> None:
        await asyncio.Event().wait()

    front = FrontOfManyStreams(50)
    handler = wrapper.wrap("Wait", wait, streaming=streaming)
    engine = native.NativeEngine(front, [native._Method("/a/Wait", handler, streaming)], "nowhere")
    with without_collections():
        front.send(library.EVENT_CALL)
        await until(lambda: len(engine._calls) == 50, "the calls")
        if waits:
            await until(lambda: wrapper.running() == 50, "the handlers")
        front.send(library.EVENT_CANCEL)
        await until(lambda: not engine._calls and not wrapper.running() and not engine._steps, "the end of the calls")
        await until(lambda: alive(native._Call) == 0, "that no call is in memory")
    await engine.stop(1.0)


class FrontOfManyStreams:
    """A front with so many streams, all of which come or leave at the same moment."""

    def __init__(self, streams: int) -> None:
        self._streams = streams
        self._batches: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def send(self, kind: int) -> None:
        details = ((), "", None)
        self._batches.put([(kind, number, 0, b"", None, details) for number in range(self._streams)])

    def recv_batch_details(self, most: int) -> Any:
        return self._batches.get()

    def fail(self, *_: Any) -> None:
        """Nobody waits for it."""

    def close(self) -> None:
        self._batches.put(None)
