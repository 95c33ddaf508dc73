"""Kraken Futures's socket: what is said, what is a hint, and what a refusal becomes."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_krakenfutures import KRAKENFUTURES, fetch_balance, push, watch_balance
from exchange_service_krakenfutures.client import KrakenfuturesClient
from exchange_service_krakenfutures.push import BALANCES, Heard, KrakenfuturesLanguage
from exchange_service_krakenfutures.simulator import KrakenfuturesSimulator, SimulatedAccount

from exchange_service.plugin_api import (
    Changed,
    CredentialRejected,
    VenueCall,
    VenueMalformed,
    VenueUnavailable,
    parse_json,
)
from exchange_service.testing import venue_call
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
KEY = "a-key-for-tests"


@asynccontextmanager
async def following(
    venue: KrakenfuturesSimulator, account: SimulatedAccount, **fields: str
) -> AsyncIterator[VenueCall]:
    row = {**venue.add_key(KEY, account), **fields}
    async with venue_call(KRAKENFUTURES, override=venue.url, **row) as call:
        yield replace(call, deadline=math.inf)


@asynccontextmanager
async def language() -> AsyncIterator[KrakenfuturesLanguage]:
    async with venue_call(KRAKENFUTURES, api_key=KEY, api_secret="c2VjcmV0") as call:
        yield KrakenfuturesLanguage("wss://venue.example", KrakenfuturesClient(call))


async def test_the_vendors_messages_are_an_acknowledgement_hints_and_an_error() -> None:
    async with language() as spoken:
        messages = parse_json(read_payload(PAYLOADS / "pushed_messages.json"))
        read = [part for message in messages for part in spoken.read(message)]
    assert read[:4] == [
        (BALANCES, None),
        (BALANCES, "4a012c31-df95-484a-9473-d51e4a0c4ae7"),
        (BALANCES, "7a641082-55c7-4411-a85f-930ec2e09617"),
        (BALANCES, "7a641082-55c7-4411-a85f-930ec2e09617"),
    ]
    assert isinstance(read[4][1], VenueUnavailable)


@pytest.mark.parametrize(
    "message",
    [
        {"event": "info", "version": 1},
        {"event": "subscribed", "feed": "heartbeat"},
        {"feed": "heartbeat", "time": 1534262350627},
        {"feed": "fills", "account": "a"},
    ],
    ids=str,
)
async def test_other_messages_are_nothing_about_the_account(message: Any) -> None:
    async with language() as spoken:
        assert list(spoken.read(message)) == []


async def test_a_message_without_an_account_is_not_one_of_the_venue() -> None:
    async with language() as spoken:
        with pytest.raises(VenueMalformed):
            list(spoken.read({"feed": "balances", "holding": {}}))


async def test_each_message_about_the_account_is_news_and_one_about_another_is_not() -> None:
    async with language() as spoken:
        first = spoken.state(BALANCES, None, "a")
        assert first == Heard("a", 1)
        assert spoken.state(BALANCES, first, "b") is first
        assert spoken.state(BALANCES, first, "a") == Heard("a", 2)


async def test_a_refused_subscription_is_the_key() -> None:
    async with language() as spoken:
        for message in ({"event": "subscribed_failed", "feed": BALANCES}, {"event": "alert", "message": "Failed"}):
            ((_, error),) = spoken.read(message)
            assert isinstance(error, CredentialRejected)


async def test_a_key_that_cannot_sign_is_refused_without_its_secret() -> None:
    async with (
        KrakenfuturesSimulator() as venue,
        following(venue, SimulatedAccount("an-account"), api_secret="YW5vdGhlcg==") as call,
    ):
        with pytest.raises(CredentialRejected) as caught:
            async for _ in watch_balance(call):
                pass
    assert "YW5vdGhlcg" not in str(caught.value)


async def test_the_heartbeat_is_followed_too_because_an_idle_account_says_nothing() -> None:
    async with language() as spoken:
        feeds = [json.loads(message)["feed"] for message in spoken.subscribe([BALANCES])]
    assert feeds == ["heartbeat", "balances"]


async def test_a_connection_that_names_another_account_than_the_one_before_ends() -> None:
    account = SimulatedAccount("an-account")
    async with KrakenfuturesSimulator() as venue, following(venue, account) as call:
        async with aclosing(watch_balance(call)) as hints:
            # The subscription stands, and then the first state has come.
            await anext(hints)
            await anext(hints)
        account.uid = "another-account"
        # Another connection of the same account.
        async with following(venue, account) as other:
            with pytest.raises(VenueMalformed):
                async for _ in watch_balance(replace(other, account_state=call.account_state)):
                    pass


@pytest.mark.parametrize(("margin", "hinted"), [("750.00", True), ("0", False)])
async def test_an_account_with_open_positions_is_read_now_and_then(
    margin: str, hinted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "READ_EVERY", 0.05)
    account = SimulatedAccount("an-account", margin=Decimal(margin))
    async with KrakenfuturesSimulator() as venue, following(venue, account) as call:
        await fetch_balance(call)
        async with aclosing(watch_balance(call)) as hints:
            # The subscription stands, and then the first state has come.
            await anext(hints)
            await anext(hints)
            try:
                async with asyncio.timeout(1.0):
                    found = isinstance(await anext(hints), Changed)
            except TimeoutError:
                found = False
    assert found is hinted
