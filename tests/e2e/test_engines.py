"""What is the same on both engines, and what is the native one's own. `make test-native` runs the other tests on it."""

from __future__ import annotations

import asyncio
import os
import queue
import socket
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
from exchange_service.grpc_server.authentication import Authentication
from exchange_service.grpc_server.engines import grpcio
from exchange_service.grpc_server.handler_wrapper import HandlerWrapper
from exchange_service.grpc_server.health import Health
from exchange_service.grpc_server.server import BindError
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


async def test_on_grpcio_calls_that_fail_leave_nothing_in_memory(tmp_path: Path) -> None:
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), engine="grpcio") as running:
        with without_collections():
            for _ in range(20):
                assert (await failure(running.stub.GetBalance(balance_request("nowhere")))).reason == "EXCHANGE_UNKNOWN"
            # gRPC itself keeps the last ones until others come.
            await until(lambda: alive(grpcio._QuickCall) <= 3, "that few calls are in memory")


class TestNative:
    async def test_what_stands_behind_it_is_reached_by_its_own_user_alone_and_leaves_no_file(
        self, tmp_path: Path
    ) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), engine="native") as running:
            engine: Any = running.service.server.engine
            assert os.stat(engine.folder).st_mode & 0o777 == 0o700
        with pytest.raises(FileNotFoundError):
            os.stat(engine.folder)

    async def test_with_a_long_path_for_temporary_files_it_serves_all_the_same(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        long = tmp_path / ("y" * 100)
        long.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(long))
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), engine="native") as running:
            unknown: Any = running.client.channel.unary_unary("/a.Service/Nothing")
            assert (await failure(unknown(b""))).code is grpc.StatusCode.UNIMPLEMENTED
        assert not list(long.iterdir())

    @pytest.mark.parametrize("there", [True, False], ids=["no socket", "no folder"])
    async def test_without_room_for_what_stands_behind_it_the_port_is_free_and_no_folder_stays(
        self, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        native = pytest.importorskip("exchange_service.grpc_server.engines.native")
        temporary = tmp_path / "temporary"
        if there:
            temporary.mkdir()
            # It lies in a folder that does not exist.
            monkeypatch.setattr(native, "_SOCKET", "nowhere/grpcio")
        monkeypatch.setattr("tempfile.tempdir", str(temporary))
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        # Its traceback holds what was made.
        with pytest.raises(BindError, match=f"engine=native needs a socket in {temporary}") as failed:
            await start_service(settings_for(tmp_path, engine="native", address=address))
        # Unlike a server, it may not share the address with a socket that does not listen yet.
        with socket.socket() as second:
            second.bind(("127.0.0.1", int(address.rpartition(":")[2])))
        assert not there or not list(temporary.iterdir())
        assert address in str(failed.value)

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

    front = Front()
    engine = native.NativeEngine(front, [native._Method("/a/Stream", follow, True, None)], "nowhere", Health())
    for counted, kind in ((begun, library.EVENT_CALL), (left, library.EVENT_CANCEL)):
        front.send(kind, 500)
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

    front = Front()
    handler = wrapper.wrap("Wait", wait, streaming=streaming)
    engine = native.NativeEngine(front, [native._Method("/a/Wait", handler, streaming)], "nowhere", Health())
    with without_collections():
        front.send(library.EVENT_CALL, 50)
        await until(lambda: len(engine._calls) == 50, "the calls")
        if waits:
            await until(lambda: wrapper.running() == 50, "the handlers")
        front.send(library.EVENT_CANCEL, 50)
        await until(lambda: not engine._calls and not wrapper.running() and not engine._steps, "the end of the calls")
        await until(lambda: alive(native._Call) == 0, "that no call is in memory")
    await engine.stop(1.0)


class TestFailuresOfTheNativeEngine:
    """Each takes no other call with it."""

    async def test_a_call_that_cannot_be_begun_fails_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        native = pytest.importorskip("exchange_service.grpc_server.engines.native")
        library = pytest.importorskip("pygrpc_native")
        true_run = native.NativeEngine._run

        def run(self: Any, call: Any, number: int, *rest: Any) -> Any:
            if number == 7:
                raise MemoryError
            return true_run(self, call, number, *rest)

        async def reply(request: bytes, context: Any) -> bytes:
            return b"reply"

        monkeypatch.setattr(native.NativeEngine, "_run", run)
        front = Front()
        engine = native.NativeEngine(front, [native._Method("/a/Call", reply, False)], "nowhere", Health())
        front.send(library.EVENT_CALL, 20)
        await until(lambda: len(front.ended) == 20, "the end of all calls")
        assert front.ended == dict.fromkeys(range(20), b"reply") | {7: grpc.StatusCode.INTERNAL.value[0]}
        # There is no such method.
        front.ended.clear()
        front.send(library.EVENT_CALL, 3, method=5)
        await until(lambda: front.ended == dict.fromkeys(range(3), grpc.StatusCode.INTERNAL.value[0]))
        assert not engine._calls
        await engine.stop(1.0)

    async def test_a_stream_that_cannot_be_begun_or_ended_holds_up_no_other(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        native = pytest.importorskip("exchange_service.grpc_server.engines.native")
        library = pytest.importorskip("pygrpc_native")
        true_cancel, true_run = native._Call.cancel, native.NativeEngine._run
        followed = set[int]()

        def run(self: Any, call: Any, number: int, *rest: Any) -> Any:
            if number == 7:
                raise MemoryError
            return true_run(self, call, number, *rest)

        def cancel(call: Any) -> None:
            if call._id == 8:
                raise MemoryError
            true_cancel(call)

        async def follow(request: bytes, context: Any) -> None:
            followed.add(context._id)
            try:
                await asyncio.Event().wait()
            finally:
                followed.discard(context._id)

        monkeypatch.setattr(native.NativeEngine, "_run", run)
        monkeypatch.setattr(native._Call, "cancel", cancel)
        front = Front()
        engine = native.NativeEngine(front, [native._Method("/a/Stream", follow, True)], "nowhere", Health())
        front.send(library.EVENT_CALL, 50)
        await until(lambda: followed == set(range(50)) - {7}, "the beginning of the others")
        assert front.ended == {7: grpc.StatusCode.INTERNAL.value[0]}
        front.send(library.EVENT_CANCEL, 50)
        await until(lambda: followed == {8}, "the end of the others")
        await engine.stop(1.0)

    async def test_if_no_call_can_be_received_any_more_it_closes_and_its_health_says_so_for_good(self) -> None:
        native = pytest.importorskip("exchange_service.grpc_server.engines.native")
        front, states = Front(), Health()
        states.set_serving(True)
        with capture_logs() as logs:
            engine = native.NativeEngine(front, [], "nowhere", states)
            front.break_down(OSError("broken"))
            await until(lambda: not states.is_serving, "that it does not serve")
        assert [(line["event"], line["error"]) for line in logs] == [("engine.failed", "OSError")]
        await until(front.closed.is_set, "the end of the listening")
        states.set_serving(True)
        assert not states.is_serving
        await engine.stop(1.0)


async def test_on_the_native_engine_calls_that_come_while_it_closes_are_told_that_the_service_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = pytest.importorskip("exchange_service.grpc_server.engines.native")
    monkeypatch.setattr(native, "_FLUSH", 2.0)
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), engine="native") as running:
        await running.store()
        await running.stub.GetBalance(balance_request())
        stopping = asyncio.ensure_future(running.service.server.engine.stop(10.0))
        await asyncio.sleep(0)
        # The first has a quick answer.
        for request in (balance_request(), balance_request(max_age={})):
            failed = await failure(running.stub.GetBalance(request))
            assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        await stopping


@pytest.mark.parametrize("engine", ["grpcio", "native"])
async def test_a_quick_answer_that_fails_is_made_the_long_way(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("secret")

    monkeypatch.setattr(Authentication, "quick", lambda *_: fail)
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), engine=engine) as running:
        await running.store()
        with capture_logs() as logs:
            assert totals((await running.stub.GetBalance(balance_request())).balance) == {"BTC": "1.50"}
    assert "call.no_quick_answer" in {line["event"] for line in logs}
    assert "secret" not in str(logs)


class Front:
    """A front whose calls come as a test says, many at the same moment. It notes how they end."""

    def __init__(self) -> None:
        self.ended: dict[int, Any] = {}
        self.closed = threading.Event()
        self._batches: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def send(self, kind: int, calls: int, method: int = 0) -> None:
        """So many calls come or leave, with numbers from 0."""
        details = ((), "", None)
        self._batches.put([(kind, number, method, b"", None, details) for number in range(calls)])

    def break_down(self, error: Exception) -> None:
        """No more calls can be received."""
        self._batches.put(error)

    def recv_batch_details(self, most: int) -> Any:
        batch = self._batches.get()
        if isinstance(batch, Exception):
            raise batch
        return batch

    def respond(self, number: int, reply: bytes, *_: Any) -> None:
        self.ended[number] = reply

    def fail(self, number: int, code: int, *_: Any) -> None:
        self.ended[number] = code

    def close(self) -> None:
        self.closed.set()
        self._batches.put(None)
