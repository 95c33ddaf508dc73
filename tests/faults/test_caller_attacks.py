"""Attacks from the side of the callers: each first succeeds with the mitigation switched off, and then fails."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from exchange_service.grpc_server.servicer import SERVICE
from exchange_service.startup_checks import UnsafeSettings, check_settings
from exchange_service.v1 import exchange_service_pb2 as messages
from tests.harness import (
    Running,
    ScriptedPlugin,
    Stream,
    balance_request,
    failure,
    registry_of,
    serving,
    settings_for,
    totals,
)
from tests.identities import SECRET, web_token


def bearer(user: str, **claims: Any) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {web_token(user, **claims)}"),)


@pytest.mark.threat("T1", attack=True)
@pytest.mark.parametrize("warm", [False, True], ids=["nothing kept", "a balance kept"])
async def test_a_user_id_in_a_request_is_all_it_takes_where_callers_are_not_told_apart(
    tmp_path: Path, warm: bool
) -> None:
    plugin = ScriptedPlugin()
    mallory = bearer("mallory")
    async with serving(tmp_path, registry=registry_of(plugin)) as running:
        await running.store(user="alice")
        reply = await running.stub.GetBalance(balance_request(user_id="alice"), metadata=mallory)
        assert totals(reply.balance) == {"BTC": "1.50"}
    plugin.calls.clear()
    async with serving(tmp_path, registry=registry_of(plugin), jwt_secret=SECRET) as running:
        if warm:
            await running.stub.GetBalance(balance_request(user_id="alice"), metadata=bearer("alice"))
        asked = len(plugin.calls)
        failed = await failure(running.stub.GetBalance(balance_request(user_id="alice"), metadata=mallory))
        assert (failed.code, failed.reason) == (grpc.StatusCode.PERMISSION_DENIED, "USER_FORBIDDEN")
        call = running.stub.StreamBalances(messages.StreamBalancesRequest(user_id="alice"), metadata=mallory)
        assert (await Stream(call).failure()).reason == "USER_FORBIDDEN"
        assert (await failure(running.stub.GetBalance(balance_request(user_id="alice")))).reason == "CALLER_UNKNOWN"
        assert len(plugin.calls) == asked


_TRACED = """
import asyncio, grpc
async def main():
    server = grpc.aio.server()
    async def handle(request, context):
        return b""
    handlers = {"C": grpc.unary_unary_rpc_method_handler(handle)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.unary_unary("/a.B/C")(b"", metadata=(("authorization", "Bearer the-token-of-alice"),))
    await server.stop(0)
asyncio.run(main())
"""


@pytest.mark.threat("T9", attack=True)
async def test_grpcs_own_trace_writes_callers_tokens_and_is_refused_where_others_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPC_TRACE", "all")
    monkeypatch.setenv("GRPC_VERBOSITY", "debug")
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", _TRACED, stderr=asyncio.subprocess.PIPE)
    _, traced = await asyncio.wait_for(process.communicate(), 60)
    assert b"the-token-of-alice" in traced
    with pytest.raises(UnsafeSettings, match="GRPC_TRACE"):
        check_settings(settings_for(tmp_path, address="0.0.0.0:0", insecure=True))
    check_settings(settings_for(tmp_path))


@pytest.mark.threat("T9")
@pytest.mark.parametrize("service", ["grpc.channelz.v1.Channelz/GetServers", "envoy.service.status.v3.ClientStatus/X"])
async def test_grpcs_own_views_of_channels_and_calls_are_not_served(tmp_path: Path, service: str) -> None:
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
        call: Any = running.client.channel.unary_unary(f"/{service}")
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call(b"")
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


@asynccontextmanager
async def unguarded_server() -> AsyncIterator[tuple[Any, list[int]]]:
    """A method with gRPC's own limits, and the sizes of the requests that reached it."""
    seen: list[int] = []

    async def handle(request: bytes, _: Any) -> bytes:
        seen.append(len(request))
        return b""

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"GetBalance": grpc.unary_unary_rpc_method_handler(handle)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.unary_unary(f"/{SERVICE}/GetBalance"), seen
    await server.stop(0)


@pytest.mark.threat("T13", attack=True)
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip], ids=["plain", "bomb"])
async def test_a_request_of_megabytes_is_read_by_a_server_as_it_comes_and_not_by_ours(
    tmp_path: Path, compression: grpc.Compression
) -> None:
    request = balance_request(user_id="a" * 3_000_000).SerializeToString()
    async with unguarded_server() as (call, seen):
        await call(request, compression=compression)
        assert seen == [len(request)]
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
        ours: Any = running.client.channel.unary_unary(f"/{SERVICE}/GetBalance")
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await ours(request, compression=compression)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.threat("T13", attack=True)
async def test_one_caller_takes_all_the_calls_there_are_unless_he_has_a_quota(tmp_path: Path) -> None:
    async def calls_of(running: Running) -> list[str]:
        reasons = []
        for _ in range(20):
            try:
                await running.stub.GetBalance(balance_request(), metadata=bearer("alice"))
                reasons.append("served")
            except grpc.aio.AioRpcError as error:
                reasons.append((error.details() or "").partition(":")[0])
        return reasons

    registry = registry_of(ScriptedPlugin())
    async with serving(tmp_path, registry=registry, jwt_secret=SECRET, user_calls=1_000_000) as running:
        await running.store()
        assert await calls_of(running) == ["served"] * 20
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), jwt_secret=SECRET, user_calls=3) as running:
        assert "CALLER_RATE_LIMITED" in await calls_of(running)


async def described_services(running: Running) -> list[str]:
    port = running.service.address.rpartition(":")[2]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        try:
            reply = await call.read()
        finally:
            call.cancel()
    return [service.name for service in reply.list_services_response.service]


@pytest.mark.threat("T19", attack=True)
async def test_reflection_describes_the_service_to_every_stranger_and_is_off_where_they_are(tmp_path: Path) -> None:
    reached: dict[str, Any] = {"address": "0.0.0.0:0", "insecure": True}
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), reflection=True, **reached) as running:
        assert SERVICE in await described_services(running)
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), **reached) as running:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await described_services(running)
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
