"""How the service leaves: NOT_SERVING first, new connections for a while, then an end that every call is told of."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import VenueUnavailable
from exchange_service.grpc_server.servicer import Servicer
from exchange_service.v1 import exchange_service_pb2_grpc
from exchange_service.v1.exchange_service_pb2 import ListExchangesRequest
from tests.harness import (
    Gate,
    ScriptedPlugin,
    balance_request,
    failure,
    raising,
    registry_of,
    serving,
    settings_for,
    streaming,
)
from tests.test_runtime import address_of, started


async def state(address: str) -> int:
    """What the health service says on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        return (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)).status


async def test_after_sigterm_it_says_not_serving_and_serves_new_connections_for_a_while(tmp_path: Path) -> None:
    with started(tmp_path, "serve", "--address", "127.0.0.1:0", "--shutdown-delay", "2") as process:
        address = await asyncio.to_thread(address_of, process)
        assert await state(address) == health_pb2.HealthCheckResponse.SERVING
        async with grpc.aio.insecure_channel(address) as channel:
            watching = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert (await watching.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await state(address) == health_pb2.HealthCheckResponse.NOT_SERVING
        options = [("grpc.use_local_subchannel_pool", 1)]
        async with ExchangeServiceClient(address, options=options) as client:
            assert (await client.list_exchanges()).stats.total
        served_for = time.monotonic() - began
        await asyncio.to_thread(process.communicate, timeout=20)
        assert served_for < 2.0 <= time.monotonic() - began
    assert process.returncode == 0


async def test_an_interrupt_ends_it_without_the_delay(tmp_path: Path) -> None:
    with started(tmp_path, "serve", "--address", "127.0.0.1:0", "--shutdown-delay", "60") as process:
        await asyncio.to_thread(address_of, process)
        process.send_signal(signal.SIGINT)
        await asyncio.to_thread(process.communicate, timeout=20)
    assert process.returncode == 0


async def test_a_demo_that_is_ended_has_no_delay(tmp_path: Path) -> None:
    with started(tmp_path, "demo", "--address", "127.0.0.1:0") as process:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.communicate, timeout=20)
        assert time.monotonic() - began < 2.5
    assert process.returncode == 0


@pytest.mark.parametrize("grace", [0.0, 0.5])
async def test_a_call_that_meets_the_end_is_told_so_with_a_delay(tmp_path: Path, grace: float) -> None:
    gate = Gate()
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin(answer=gate)), shutdown_grace=grace) as running:
        await running.store()
        calls = [asyncio.ensure_future(failure(running.stub.GetBalance(balance_request()))) for _ in range(5)]
        await gate.entered.wait()
        await running.service.stop()
        failures = await asyncio.gather(*calls)
    assert {(failed.code, failed.reason) for failed in failures} == {(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")}
    assert all(failed.retry_delay is not None for failed in failures)


async def test_also_a_call_that_waits_for_something_else_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = asyncio.Event()

    async def wait(*_: Any) -> bytes:
        entered.set()
        await asyncio.Event().wait()
        return b""

    monkeypatch.setattr(Servicer, "list_exchanges", wait)
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), shutdown_grace=0.5) as running:
        call = asyncio.ensure_future(failure(running.stub.ListExchanges(ListExchangesRequest())))
        await entered.wait()
        await running.service.stop()
        failed = await call
    assert failed.reason == "SHUTTING_DOWN"
    assert failed.retry_delay is not None


async def test_a_stream_is_told_so_too(tmp_path: Path) -> None:
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), shutdown_grace=0.0) as running:
        await running.store()
        async with streaming(running) as stream:
            await stream.next()
            stopping = asyncio.ensure_future(running.service.stop())
            failed = await stream.failure()
            await stopping
    assert failed.reason == "SHUTTING_DOWN"


@pytest.mark.parametrize(("address", "delay"), [("127.0.0.1:0", 0.0), ("unix:/tmp/x", 0.0), ("0.0.0.0:0", 5.0)])
def test_the_delay_is_for_services_that_a_load_balancer_can_lead_to(tmp_path: Path, address: str, delay: float) -> None:
    assert settings_for(tmp_path, address=address).leaving_delay == delay
    assert settings_for(tmp_path, address=address, shutdown_delay=1.5).leaving_delay == 1.5


@pytest.mark.needs_grpcio("The native engine cannot tell gRPC's clients not to try again (grpc-retry-pushback-ms).")
async def test_the_true_reason_comes_at_once_if_its_delay_does_not_fit_into_the_deadline(tmp_path: Path) -> None:
    error = VenueUnavailable("It is down.", retry_after=30.0)
    policy = {
        "maxAttempts": 3,
        "initialBackoff": "0.1s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    config = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin(answer=raising(error)))) as running:
        await running.store()
        options = [("grpc.service_config", config), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(running.service.address, options=options) as channel:
            stub: Any = exchange_service_pb2_grpc.ExchangeServiceStub(channel)
            began = time.monotonic()
            failed = await failure(stub.GetBalance(balance_request(), timeout=8))
            assert time.monotonic() - began < 4
    assert failed.reason == "VENUE_UNAVAILABLE"
    assert failed.trailers["grpc-retry-pushback-ms"] == "-1"
    assert failed.retry_delay == pytest.approx(30, abs=1)
