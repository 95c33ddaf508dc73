"""Health checks, which need no authentication: what they report, and that no client can delay the service."""

from __future__ import annotations

import asyncio
import http.client
import socket
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exchange_service.grpc_server import health, plugin_servicer
from exchange_service.grpc_server.servicer import SERVICE
from exchange_service.observability import health_pages
from tests.harness import PATIENCE, Running, ScriptedPlugin, failure, registry_of, serving

WATCH = "/grpc.health.v1.Health/Watch"
STATES = health_pb2.HealthCheckResponse


def stub_of(running: Running) -> Any:
    return health_pb2_grpc.HealthStub(running.client.channel)


_HEADERS = 1


def asking(service: str = "") -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _header(name: str, value: str) -> bytes:
    return b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


@asynccontextmanager
async def watching_without_reading(address: str, count: int) -> AsyncIterator[None]:
    """`count` watches on one HTTP/2 connection, whose client reads no byte of an answer."""
    reader, writer = await asyncio.open_connection(*address.rsplit(":", 1))
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": WATCH,
        ":authority": "x",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    block = b"".join(_header(name, value) for name, value in headers.items())
    no_window = struct.pack(">HI", 4, 0)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(4, 0, 0, no_window) + _frame(4, 1, 0, b""))
    for stream in range(1, 2 * count, 2):
        writer.write(_frame(1, 4, stream, block) + _frame(0, 1, stream, bytes(5)))
    await writer.drain()
    # The first answer's headers show that the watches have begun.
    while (head := await reader.readexactly(9))[3] != _HEADERS:
        await reader.readexactly(int.from_bytes(head[:3], "big"))
    yield
    writer.close()


async def test_it_reports_whether_our_services_serve_and_knows_no_other(tmp_path: Path) -> None:
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
        for name in ("", SERVICE, plugin_servicer.SERVICE):
            assert (await stub_of(running).Check(asking(name))).status == STATES.SERVING
        failed = await failure(stub_of(running).Check(asking("another.Service")))
        assert failed.code is grpc.StatusCode.NOT_FOUND
        watch = stub_of(running).Watch(asking("another.Service"))
        assert (await watch.read()).status == STATES.SERVICE_UNKNOWN
        watch.cancel()


async def test_a_watcher_gets_every_change(tmp_path: Path) -> None:
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
        watches = [stub_of(running).Watch(asking(name)) for name in ("", SERVICE)]
        for serves in (True, False, True):
            await running.service.server.set_serving(serves)
            for watch in watches:
                async with asyncio.timeout(PATIENCE):
                    assert (await watch.read()).status == (STATES.SERVING if serves else STATES.NOT_SERVING)
        for watch in watches:
            watch.cancel()


@pytest.mark.threat("T13")
async def test_a_watcher_that_does_not_read_delays_neither_another_watcher_nor_the_stop(tmp_path: Path) -> None:
    service = serving(tmp_path, registry=registry_of(ScriptedPlugin()), shutdown_grace=0.1)
    # Less than the server waits for a client that does not answer its pings.
    async with service as running, asyncio.timeout(5), watching_without_reading(running.service.address, 20):
        watch = stub_of(running).Watch(asking())
        assert (await watch.read()).status == STATES.SERVING
        await running.service.server.set_serving(False)
        assert (await watch.read()).status == STATES.NOT_SERVING
        await running.service.stop()


@pytest.mark.threat("T13")
async def test_watchers_are_limited_and_checks_still_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_MAX_WATCHERS", 3)
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
        watches = [stub_of(running).Watch(asking()) for _ in range(3)]
        for watch in watches:
            await watch.read()
        failed = await failure(stub_of(running).Watch(asking()).read())
        assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVICE_OVERLOADED")
        assert (await stub_of(running).Check(asking())).status == STATES.SERVING
        for watch in watches:
            watch.cancel()
        async with asyncio.timeout(PATIENCE):
            while True:
                again = stub_of(running).Watch(asking())
                try:
                    assert (await again.read()).status == STATES.SERVING
                except grpc.aio.AioRpcError:
                    continue
                break
        again.cancel()


def page(address: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("GET", path)
    reply = connection.getresponse()
    return reply.status, reply.read().decode().strip()


async def test_the_health_port_answers_over_http_without_tls(tmp_path: Path) -> None:
    settings = {"health_address": "127.0.0.1:0", "metrics_address": "127.0.0.1:0"}
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), **settings) as running:
        address = running.service.health_address
        assert address != running.service.metrics_address
        for path in ("/livez", "/readyz"):
            assert (await asyncio.to_thread(page, address, path))[0] == 200
        await running.service.server.set_serving(False)
        assert await asyncio.to_thread(page, address, "/readyz") == (503, "NOT_SERVING")
        assert await asyncio.to_thread(page, address, "/livez") == (200, "ok")
        for path in ("/", "/metrics"):
            assert (await asyncio.to_thread(page, address, path))[0] == 404
        assert (await asyncio.to_thread(page, running.service.metrics_address, "/readyz"))[0] == 404


async def test_the_health_port_may_be_that_of_the_metrics(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = {"health_address": address, "metrics_address": address}
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), **settings):
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await asyncio.to_thread(page, address, path))[0] == 200


async def test_a_service_whose_event_loop_hangs_is_neither_alive_nor_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_pages, "_TURN_LIMIT", 0.2)
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), health_address="127.0.0.1:0") as running:
        found: list[tuple[int, str]] = []
        asking = threading.Thread(
            target=lambda: found.extend(page(running.service.health_address, path) for path in ("/livez", "/readyz"))
        )
        asking.start()
        # The event loop hangs here.
        asking.join(20)
        assert found == [(503, "the event loop does not turn")] * 2
        assert (await asyncio.to_thread(page, running.service.health_address, "/livez"))[0] == 200


async def test_a_watcher_is_told_that_the_service_ends(tmp_path: Path) -> None:
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), shutdown_grace=0.0) as running:
        watch = stub_of(running).Watch(asking())
        assert (await watch.read()).status == STATES.SERVING
        stopping = asyncio.ensure_future(running.service.stop())
        assert (await watch.read()).status == STATES.NOT_SERVING
        failed = await failure(watch.read())
        await stopping
    assert failed.reason == "SHUTTING_DOWN"
