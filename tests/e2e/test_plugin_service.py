"""PluginService, for operators: its answer, and that every guard of ExchangeService stands before it too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import CallerUnknown, UserForbidden
from exchange_service.grpc_server.plugin_servicer import SERVICE
from exchange_service.identity import Scope
from exchange_service.operator.v1 import plugin_service_pb2 as messages
from exchange_service.operator.v1 import plugin_service_pb2_grpc
from exchange_service.venues.registry import PluginProblem, Registry
from tests.harness import ScriptedPlugin, failure, info, listing, loaded, registry_of, serving
from tests.identities import SECRET, bearer, service_token, web_token

KEY = "x-request-id"


def registry() -> Registry:
    plugin = loaded(ScriptedPlugin(listing("fakex"), listing("fakey")))
    return Registry([plugin], [PluginProblem(info("broken"), "Importing it failed.")])


async def test_it_lists_the_plugins_with_their_listings_processes_and_problems(tmp_path: Path) -> None:
    async with serving(tmp_path, registry=registry()) as running:
        reply = await running.client.list_plugins()
    (status,) = reply.plugins
    assert (status.plugin.name, status.plugin.distribution) == ("fakex", "exchange-service-fakex")
    assert (status.own_process, status.exchange_count, status.balance_exchange_count) == (False, 2, 2)
    (process,) = status.processes
    assert process.state == messages.PLUGIN_PROCESS_STATE_RUNNING
    assert process.process_id > 0
    assert process.memory_bytes > 0
    assert process.HasField("uptime")
    (problem,) = reply.problems
    assert (problem.plugin.name, problem.reason) == ("broken", "Importing it failed.")


async def test_only_a_known_caller_that_may_read_every_user_is_served(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"jwt_secret": SECRET, "service_tokens": True}
    async with serving(tmp_path, registry=registry(), **settings) as running:
        with pytest.raises(CallerUnknown):
            await running.client.list_plugins()
        async with ExchangeServiceClient(running.service.address, token=web_token("alice")) as client:
            with pytest.raises(UserForbidden):
                await client.list_plugins()
        one_user, _ = await service_token(running, Scope(frozenset({"alice"})))
        async with ExchangeServiceClient(running.service.address, token=one_user) as client:
            with pytest.raises(UserForbidden):
                await client.list_plugins()
        all_users, _ = await service_token(running, Scope(everybody=True))
        async with ExchangeServiceClient(running.service.address, token=all_users) as client:
            assert (await client.list_plugins()).plugins


async def test_a_call_is_counted_and_carries_its_request_id(tmp_path: Path) -> None:
    async with serving(tmp_path, registry=registry()) as running:
        stub: Any = plugin_service_pb2_grpc.PluginServiceStub(running.client.channel)
        call = stub.ListPlugins(messages.ListPluginsRequest(), metadata=((KEY, "mine"),))
        await call
        assert dict(await call.trailing_metadata())[KEY] == "mine"
        raw: Any = running.client.channel.unary_unary(f"/{SERVICE}/ListPlugins")
        failed = await failure(raw(b"\xff\xff\xff\xff", metadata=((KEY, "bad"),)))
        assert (failed.code, failed.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["request"])
        assert failed.trailers[KEY] == "bad"
        text = running.service.metrics.text().decode()
    assert 'call_seconds_count{code="OK",method="ListPlugins"} 1.0' in text
    assert 'call_seconds_count{code="INVALID_ARGUMENT",method="ListPlugins"} 1.0' in text


async def test_reflection_describes_it_to_known_callers(tmp_path: Path) -> None:
    async with serving(tmp_path, registry=registry(), service_tokens=True) as running:
        token, _ = await service_token(running, Scope(everybody=True))
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(running.client.channel)
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
        call = stub.ServerReflectionInfo(iter([request]), metadata=bearer(token))
        reply = await call.read()
        call.cancel()
        assert reply.HasField("file_descriptor_response")


async def test_exchange_service_has_its_three_methods_and_no_other(tmp_path: Path) -> None:
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
        old: Any = running.client.channel.unary_unary("/exchange_service.v1.ExchangeService/ListPlugins")
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await old(b"")
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
