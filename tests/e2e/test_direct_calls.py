"""Calls within the process end as calls over gRPC do: with the same callers, quotas, limits and statuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from exchange_service.grpc_server import direct, server
from exchange_service.grpc_server.direct import CallEnded, DirectCalls
from exchange_service.v1 import exchange_service_pb2 as messages
from tests.authenticated_service import amount, authenticated_service
from tests.harness import (
    PATIENCE,
    USER,
    Gate,
    Running,
    ScriptedPlugin,
    alive,
    balance_request,
    failure,
    holding,
    registry_of,
    returning,
    serving,
    totals,
    unpacked,
    until,
    without_collections,
)
from tests.identities import bearer, web_token

SERVICE = "/exchange_service.v1.ExchangeService/"
GET, STREAM = SERVICE + "GetBalance", SERVICE + "StreamBalances"


async def get(calls: DirectCalls, *, metadata: Any = (), timeout: float | None = None, **changes: Any) -> Any:
    reply = await calls.unary(GET, balance_request(**changes).SerializeToString(), metadata, timeout=timeout)
    return messages.GetBalanceResponse.FromString(reply)


def open_stream(calls: DirectCalls, metadata: Any = (), timeout: float | None = None) -> Any:
    request = messages.StreamBalancesRequest(user_id=USER).SerializeToString()
    return calls.stream(STREAM, request, metadata, timeout=timeout)


async def end_of(call: Any) -> Any:
    """The status with which the call fails."""
    with pytest.raises(CallEnded) as caught:
        await asyncio.wait_for(call, PATIENCE)
    return caught.value.status


async def read_to_the_end(stream: Any) -> None:
    async for _ in stream:
        pass


@pytest.fixture
def plugin() -> ScriptedPlugin:
    return ScriptedPlugin()


@pytest.fixture
async def running(tmp_path: Path, plugin: ScriptedPlugin) -> AsyncIterator[Running]:
    fast = {"poll_interval": 0.1, "max_age": 0.0, "write_timeout": 0.3}
    async with serving(tmp_path, registry=registry_of(plugin), **fast) as running:
        await running.store()
        yield running


@pytest.fixture
def calls(running: Running) -> DirectCalls:
    return running.service.server.direct


class TestUnary:
    async def test_a_call_has_the_same_reply_as_over_grpc(self, running: Running, calls: DirectCalls) -> None:
        assert totals((await get(calls)).balance) == totals((await running.stub.GetBalance(balance_request())).balance)
        assert calls.methods[GET].input_type.full_name == "exchange_service.v1.GetBalanceRequest"

    @pytest.mark.parametrize("changes", [{"exchange_id": "nowhere"}, {"user_id": ""}, {"user_id": "bob"}])
    async def test_a_failure_has_the_same_status_and_details(
        self, running: Running, calls: DirectCalls, changes: dict[str, Any]
    ) -> None:
        there = await failure(running.stub.GetBalance(balance_request(**changes)))
        here = await end_of(get(calls, **changes))
        assert (here.code, here.reason, here.message) == (there.code, there.reason, there.message)
        status = status_pb2.Status.FromString(dict(here.trailers)["grpc-status-details-bin"])
        assert unpacked(status) == there.details

    async def test_a_failure_carries_the_callers_request_id(self, calls: DirectCalls) -> None:
        status = await end_of(get(calls, exchange_id="nowhere", metadata=[("x-request-id", "mine")]))
        assert dict(status.trailers)["x-request-id"] == "mine"

    async def test_a_call_ends_with_its_reason_before_its_deadline(
        self, calls: DirectCalls, plugin: ScriptedPlugin
    ) -> None:
        plugin.answer = Gate()
        status = await end_of(get(calls, timeout=0.4))
        assert status.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert status.reason in ("VENUE_TIMEOUT", "DEADLINE_PASSED")

    async def test_a_caller_who_leaves_ends_the_handler(
        self, running: Running, calls: DirectCalls, plugin: ScriptedPlugin
    ) -> None:
        plugin.answer = gate = Gate()
        call = asyncio.ensure_future(get(calls))
        await gate.entered.wait()
        call.cancel()
        await asyncio.wait({call}, timeout=1)
        assert call.cancelled()
        assert running.service.server.handler_wrapper.running() == 0

    async def test_an_unknown_path_is_a_mistake_of_ours(self, calls: DirectCalls) -> None:
        with pytest.raises(KeyError):
            await calls.unary(SERVICE + "Nothing", b"")


class TestStream:
    async def test_closing_the_stream_ends_its_handler_at_once(self, running: Running, calls: DirectCalls) -> None:
        async with aclosing(open_stream(calls)) as stream:
            event = messages.StreamBalancesResponse.FromString(await anext(stream))
            assert totals(event.balance.balance) == {"BTC": "1.50"}
            assert running.service.streams.counts() == (1, 1)
            await asyncio.wait_for(stream.aclose(), 1)
        assert running.service.server.handler_wrapper.running() == 0
        assert running.service.streams.counts()[1] == 0

    async def test_a_reader_who_is_cancelled_ends_the_handler(self, running: Running, calls: DirectCalls) -> None:
        reading = asyncio.ensure_future(read_to_the_end(open_stream(calls)))
        await until(lambda: running.service.streams.counts() == (1, 1))
        reading.cancel()
        await asyncio.wait({reading})
        assert running.service.server.handler_wrapper.running() == 0

    async def test_a_reader_who_does_not_read_is_ended_by_the_limit_of_writes(
        self, running: Running, calls: DirectCalls, plugin: ScriptedPlugin
    ) -> None:
        async with aclosing(open_stream(calls)) as stream:
            await anext(stream)
            plugin.answer = returning(holding(("BTC", "2")))
            await until(lambda: running.service.server.handler_wrapper.running() == 0, "the end of the handler")
            assert (await end_of(read_to_the_end(stream))).reason == "SUBSCRIBER_TOO_SLOW"

    async def test_a_stream_ends_at_its_deadline(self, calls: DirectCalls) -> None:
        status = await end_of(read_to_the_end(open_stream(calls, timeout=0.4)))
        assert (status.code, status.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED")

    async def test_streams_and_calls_are_told_that_the_service_ends(self, tmp_path: Path) -> None:
        gate = Gate()
        plugin = ScriptedPlugin(answer=gate)
        async with serving(tmp_path, registry=registry_of(plugin), shutdown_grace=0.5) as running:
            await running.store()
            calls = running.service.server.direct
            ends = asyncio.gather(end_of(read_to_the_end(open_stream(calls))), end_of(get(calls)))
            await gate.entered.wait()
            await until(lambda: running.service.server.handler_wrapper.running() == 2)
        assert [status.reason for status in await ends] == ["SHUTTING_DOWN"] * 2
        assert (await end_of(get(calls))).reason == "SHUTTING_DOWN"

    async def test_calls_in_progress_have_the_whole_grace(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Not the time that cancelled handlers have for cleaning up.
        monkeypatch.setattr(server, "_CLEANUP_TIMEOUT", 0.1)
        gate = Gate()
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin(answer=gate)), shutdown_grace=5) as running:
            await running.store()
            call = asyncio.ensure_future(get(running.service.server.direct))
            await gate.entered.wait()
            stopping = asyncio.ensure_future(running.service.stop())
            assert not (await asyncio.wait({stopping}, timeout=0.5))[0]
            gate.opened.set()
            assert totals((await call).balance) == {"BTC": "1.50"}
            await stopping


async def test_calls_that_fail_and_streams_that_are_left_leave_nothing_in_memory(calls: DirectCalls) -> None:
    with without_collections():
        for _ in range(10):
            async with aclosing(open_stream(calls)) as stream:
                await anext(stream)
            with suppress(CallEnded):
                await get(calls, exchange_id="nowhere")
        del stream
        await until(lambda: alive(direct._Context) == 0, "that no call is in memory")


class TestCallers:
    async def test_only_known_callers_are_answered_within_their_scope(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path) as running:
            calls, alice = running.service.server.direct, bearer(web_token("alice"))
            assert totals((await get(calls, metadata=alice)).balance) == {"BTC": amount("alice", "fakex")}
            assert (await end_of(get(calls))).reason == "CALLER_UNKNOWN"
            assert (await end_of(get(calls, metadata=alice, user_id="bob"))).reason == "USER_FORBIDDEN"
            stream = open_stream(calls)
            assert (await end_of(anext(stream))).reason == "CALLER_UNKNOWN"

    async def test_calls_of_both_kinds_use_up_one_quota(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path, user_calls=1) as running:
            calls, alice = running.service.server.direct, bearer(web_token("alice"))
            await running.stub.ListExchanges(messages.ListExchangesRequest(), metadata=alice)
            status = await end_of(get(calls, metadata=alice))
            assert status.reason == "CALLER_RATE_LIMITED"
            details = status_pb2.Status.FromString(dict(status.trailers)["grpc-status-details-bin"]).details
            assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in details)
