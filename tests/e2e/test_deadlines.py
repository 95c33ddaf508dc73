"""Every call is answered with a reason before its caller's deadline, whatever it waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest

from exchange_service.grpc_server.handler_wrapper import HandlerWrapper
from exchange_service.grpc_server.servicer import SERVICE
from exchange_service.identity import tokens
from exchange_service.plugin_api import VenueCall
from exchange_service.v1 import exchange_service_pb2 as messages
from exchange_service.v1 import exchange_service_pb2_grpc
from tests.authenticated_service import EVERYBODY
from tests.harness import (
    Failure,
    Running,
    ScriptedPlugin,
    balance_request,
    eventually,
    failure,
    failure_of,
    registry_of,
    serving,
    totals,
)
from tests.identities import bearer, service_token
from tests.servers import PostgresServer

DEADLINE = 2.0


class TestTheLastMoment:
    """A handler that waits for something without a limit of its own."""

    @pytest.fixture
    async def stub(self) -> AsyncIterator[Any]:
        async def wait_for_ever(request: Any, context: Any) -> bytes:
            await asyncio.Event().wait()
            return b""

        server, wrapper = grpc.aio.server(), HandlerWrapper(call_timeout=0.3)
        waiting = wrapper.wrap("GetBalance", wait_for_ever)
        handlers: dict[str, Any] = {
            "GetBalance": grpc.unary_unary_rpc_method_handler(waiting),
            "StreamBalances": grpc.unary_stream_rpc_method_handler(
                wrapper.wrap("StreamBalances", wait_for_ever, streaming=True)
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield exchange_service_pb2_grpc.ExchangeServiceStub(channel)
        await server.stop(0)

    @pytest.mark.parametrize("seconds", [0.6, 0.06, None])
    async def test_a_call_ends_with_its_reason_before_its_deadline(self, stub: Any, seconds: float | None) -> None:
        began = time.monotonic()
        failed = await failure(stub.GetBalance(balance_request(), timeout=seconds))
        assert (failed.code, failed.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED")
        # Without a deadline it has the service's own.
        assert time.monotonic() - began < (seconds or 0.3) + 0.2

    async def test_a_stream_ends_so_too_and_has_no_other_limit(self, stub: Any) -> None:
        request = messages.StreamBalancesRequest(user_id="alice")
        failed = await failure(stub.StreamBalances(request, timeout=0.6).read())
        assert (failed.code, failed.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED")
        endless = stub.StreamBalances(request)
        reading = asyncio.ensure_future(endless.read())
        assert not (await asyncio.wait({reading}, timeout=0.6))[0]
        endless.cancel()
        await asyncio.wait({reading})


async def test_a_stream_of_balances_ends_with_its_deadline_and_a_balance_at_hand_needs_none(tmp_path: Path) -> None:
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
        await running.store()
        call = running.stub.StreamBalances(messages.StreamBalancesRequest(user_id="alice"), timeout=0.8)
        assert (await call.read()).balance.balance.version
        ends = await failure(_read_on(call))
        assert (ends.code, ends.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_PASSED")
        # Too little to wait for anything, and enough for what is there.
        assert totals((await running.stub.GetBalance(balance_request(), timeout=0.09)).balance) == {"BTC": "1.50"}


async def _read_on(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Another program holds the tables."""
    with psycopg.connect(url) as other:
        other.execute("LOCK TABLE bot_credentials, exchange_service_tokens IN ACCESS EXCLUSIVE MODE")
        yield


Trouble = Callable[[], AbstractContextManager[None]]


class TestTheDatabaseHangs:
    @pytest.fixture(params=["frozen", "locked"])
    def trouble(
        self, request: pytest.FixtureRequest, own_postgres_database: str, postgres_server: PostgresServer
    ) -> Trouble:
        return postgres_server.frozen if request.param == "frozen" else lambda: locked(own_postgres_database)

    @pytest.fixture
    async def running(
        self, tmp_path: Path, own_postgres_database: str, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[Running]:
        # What is remembered is due for a check all the time.
        monkeypatch.setattr(tokens, "KEEP", 0.2)
        async with serving(
            tmp_path,
            registry=registry_of(ScriptedPlugin()),
            database_url=own_postgres_database,
            hash_key="the key of the tests",
            service_tokens=True,
            max_age=1.0,
        ) as running:
            running.service.balances.references._ttl = 0.2
            for user in ("alice", "bob", "carol"):
                await running.store(user=user)
            yield running

    async def test_known_callers_and_accounts_are_served_and_others_are_told_in_time(
        self, running: Running, trouble: Trouble
    ) -> None:
        known, unknown = [bearer((await service_token(running, EVERYBODY))[0]) for _ in range(2)]
        await running.stub.GetBalance(balance_request(), metadata=known)
        with trouble():
            answers = await asyncio.gather(
                _call_on(running, known, "alice"),
                *(_call_on(running, known, f"user{number}") for number in range(20)),
                _call_on(running, unknown, "alice"),
                _stream_on(running, known, "carol"),
            )
        alice, *others, newcomer, stream = answers
        assert len(alice) > 5
        assert not any(alice)
        for calls in (*others, newcomer, stream):
            assert calls
            assert {(failed.code, failed.reason) for failed in calls if failed} == {
                (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
            }
            assert all(failed and failed.retry_delay for failed in calls)
        # After a few that waited hardly anybody waits any more.
        assert sum(map(len, others)) > 5 * len(others)
        await _has_recovered(running, unknown)


async def test_a_forced_call_without_an_answer_is_told_that_the_database_owes_one(
    tmp_path: Path, own_postgres_database: str
) -> None:
    plugin = ScriptedPlugin()
    registry, url = registry_of(plugin), own_postgres_database
    async with serving(tmp_path, registry=registry, database_url=url, service_tokens=True) as running:
        await running.store()
        caller = bearer((await service_token(running, EVERYBODY))[0])
        await running.stub.GetBalance(balance_request(), metadata=caller)
        # As another replica, which does not tell what its fetch waits for.
        plugin.answer = _no_answer
        forced = balance_request(max_age=timedelta(0))
        with locked(own_postgres_database):
            failed = await failure(running.stub.GetBalance(forced, metadata=caller, timeout=DEADLINE))
        assert failed.reason == "STORE_UNAVAILABLE"
        failed = await failure(running.stub.GetBalance(forced, metadata=caller, timeout=DEADLINE))
        assert failed.reason == "VENUE_TIMEOUT"


async def _no_answer(_: VenueCall) -> Any:
    await asyncio.Event().wait()


async def _call_on(running: Running, metadata: Any, user: str, seconds: float = 6.0) -> list[Failure | None]:
    """How calls end that somebody makes one after the other: their failures, and None for each balance."""
    ends: list[Failure | None] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        request = balance_request(user_id=user)
        try:
            await running.stub.GetBalance(request, metadata=metadata, timeout=DEADLINE)
            ends.append(None)
        except grpc.aio.AioRpcError as error:
            ends.append(failure_of(error))
        await asyncio.sleep(0.1)
    return ends


async def _stream_on(running: Running, metadata: Any, user: str) -> list[Failure | None]:
    request = messages.StreamBalancesRequest(user_id=user)
    return [await failure(running.stub.StreamBalances(request, metadata=metadata, timeout=DEADLINE).read())]


async def _has_recovered(running: Running, metadata: Any) -> None:
    """Everything is as before within two seconds."""
    began = time.monotonic()

    async def answers() -> bool:
        try:
            for user in ("alice", "bob"):
                await running.stub.GetBalance(balance_request(user_id=user), metadata=metadata, timeout=DEADLINE)
        except grpc.aio.AioRpcError:
            return False
        return True

    await eventually(answers, "the recovery")
    assert time.monotonic() - began < 2.0
