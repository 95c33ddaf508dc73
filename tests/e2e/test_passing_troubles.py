"""What passes by itself is not told as final: a venue that refuses once, and a poll that waits for our own requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from exchange_service_oanda.simulator import OandaSimulator

from exchange_service.model import Account, Credential
from exchange_service.plugin_api import RateLimit
from exchange_service.testing import Fault
from exchange_service.v1 import balance_pb2, error_reason_pb2
from tests.harness import (
    USER,
    Running,
    ScriptedPlugin,
    balance_request,
    eventually,
    failure,
    listing,
    registry_of,
    serving,
    streaming,
)

REJECTED = error_reason_pb2.ERROR_REASON_CREDENTIAL_REJECTED
REFUSAL = Fault(status=401, body=b'{"errorMessage":"Insufficient authorization to perform request."}')


@asynccontextmanager
async def oanda(folder: Path) -> AsyncIterator[tuple[Running, OandaSimulator]]:
    # A venue that refuses once is to refuse a poll.
    settings = {"push": False, "poll_interval": 0.5, "heartbeat_interval": 0.5}
    async with OandaSimulator() as venue, serving(folder, venue_urls={"oanda": venue.url}, **settings) as running:
        row = venue.demo_credential("moving")
        assert row is not None
        await running.service.store.put(Account(USER, "oanda"), Credential.from_texts(row))
        yield running, venue


def old_at_once(seconds: float = 0.001) -> Any:
    """A request whose cached balance is always too old, and that is not forced."""
    request = balance_request("oanda")
    request.max_age.FromMilliseconds(round(seconds * 1000))
    return request


async def read_again(running: Running) -> Any:
    """The reply to such a request. Within a millisecond of the call before, the copy is still young enough."""
    reply = await running.stub.GetBalance(old_at_once())
    while reply.freshness.source == balance_pb2.BALANCE_SOURCE_CACHE:
        reply = await running.stub.GetBalance(old_at_once())
    return reply


async def test_a_venue_that_refuses_once_is_asked_again_and_the_last_good_balance_given(tmp_path: Path) -> None:
    async with oanda(tmp_path) as (running, venue):
        await running.stub.GetBalance(balance_request("oanda"))
        venue.fail(Fault(status=REFUSAL.status, body=REFUSAL.body, times=1))
        reply = await read_again(running)
        assert reply.freshness.source == balance_pb2.BALANCE_SOURCE_LAST_GOOD
        assert reply.freshness.stale.reason == REJECTED

        async def is_good_again() -> bool:
            return not (await read_again(running)).freshness.HasField("stale")

        await eventually(is_good_again)


async def test_a_key_that_is_really_revoked_is_told_within_seconds(tmp_path: Path) -> None:
    async with oanda(tmp_path) as (running, venue):
        await running.stub.GetBalance(balance_request("oanda"))
        venue.fail(REFUSAL)
        assert (await read_again(running)).freshness.stale.reason == REJECTED
        async with asyncio.timeout(5.0):
            failed = await failure(running.stub.GetBalance(_forced()))
        assert failed.reason == "CREDENTIAL_REJECTED"
        assert (await failure(running.stub.GetBalance(old_at_once()))).reason == "CREDENTIAL_REJECTED"


async def test_a_forced_call_gets_the_second_word(tmp_path: Path) -> None:
    async with oanda(tmp_path) as (running, venue):
        await running.stub.GetBalance(balance_request("oanda"))
        venue.fail(Fault(status=REFUSAL.status, body=REFUSAL.body, times=1))
        reply = await running.stub.GetBalance(_forced())
        assert reply.freshness.source == balance_pb2.BALANCE_SOURCE_VENUE


@pytest.mark.parametrize("believed", [False, True])
async def test_a_stream_marks_its_balance_until_the_second_word(tmp_path: Path, believed: bool) -> None:
    async with oanda(tmp_path) as (running, venue), streaming(running, "oanda") as stream:
        await stream.next_of("balance")
        venue.fail(Fault(status=REFUSAL.status, body=REFUSAL.body, times=None if believed else 1))
        event = await stream.next()
        while event.WhichOneof("event") == "heartbeat":
            event = await stream.next()
        assert event.WhichOneof("event") == "balance", event
        assert event.balance.freshness.stale.reason == REJECTED
        if believed:
            async with asyncio.timeout(5.0):
                assert (await stream.next_of("account_error")).error.reason == REJECTED
        else:
            event = await stream.next()
            while event.WhichOneof("event") == "heartbeat":
                assert not event.heartbeat.accounts[0].HasField("error")
                event = await stream.next()
            assert not event.balance.freshness.HasField("stale")


async def test_a_stream_whose_polls_wait_for_our_own_requests_shows_no_error_and_the_balances_age(
    tmp_path: Path,
) -> None:
    plugin = ScriptedPlugin(listing(limits=(RateLimit("address", 10, 60),)))
    settings: dict[str, Any] = {"poll_interval": 0.1, "poll_interval_still": 0.1, "heartbeat_interval": 0.3}
    async with serving(tmp_path, registry=registry_of(plugin), venue_timeout=1.0, **settings) as running:
        await running.store()
        async with streaming(running, "fakex") as stream:
            await stream.next_of("balance")
            age = 0.0
            # So long that several polls have found no permit in time.
            while age < 3.0:
                event = await stream.next()
                assert event.WhichOneof("event") != "account_error", event
                if event.WhichOneof("event") == "heartbeat":
                    (state,) = event.heartbeat.accounts
                    assert not state.HasField("error"), state
                    age = state.age.ToTimedelta().total_seconds()
        assert len(plugin.calls) <= 8


async def test_a_stream_that_begins_without_permits_waits_without_an_error(tmp_path: Path) -> None:
    plugin = ScriptedPlugin(listing(limits=(RateLimit("address", 2, 3),)))
    settings: dict[str, Any] = {"poll_interval": 0.1, "poll_interval_still": 0.1, "heartbeat_interval": 0.3}
    async with serving(tmp_path, registry=registry_of(plugin), venue_timeout=1.0, **settings) as running:
        for user in (USER, "bob", "carol"):
            await running.store(user=user)
        for user in ("bob", "carol"):
            await running.stub.GetBalance(balance_request(user_id=user))
        async with streaming(running, "fakex") as stream:
            event = await stream.next()
            while event.WhichOneof("event") == "heartbeat":
                assert not event.heartbeat.accounts[0].HasField("error")
                event = await stream.next()
            assert event.WhichOneof("event") == "balance", event


def _forced() -> Any:
    request = balance_request("oanda")
    request.max_age.FromSeconds(0)
    return request
