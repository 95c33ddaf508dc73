"""The simulator judges a request as Hyperliquid does, and shows the demo's situations."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
from exchange_service_hyperliquid import HYPERLIQUID, fetch_balance
from exchange_service_hyperliquid.simulator import HyperliquidSimulator, SimulatedWallet

from exchange_service.plugin_api import (
    AccountUnknown,
    Balance,
    CredentialInvalid,
    VenueRateLimited,
    VenueUnavailable,
)
from exchange_service.testing import venue_call
from exchange_service.testing.venue import TROUBLES

ADDRESS = "0x8c967e73e6b15087c42a10d344cff4c96d877f1d"


async def post(simulator: HyperliquidSimulator, body: bytes, content_type: str = "application/json") -> tuple[int, str]:
    async with aiohttp.ClientSession() as session:
        headers = {"Content-Type": content_type}
        async with session.post(simulator.url + "/info", data=body, headers=headers) as response:
            return response.status, await response.text()


def row(simulator: HyperliquidSimulator, situation: str) -> Mapping[str, Any]:
    credential = simulator.demo_credential(situation)
    assert credential is not None
    metadata: Mapping[str, Any] = credential["extra_metadata"]
    return metadata


async def read(simulator: HyperliquidSimulator, metadata: Mapping[str, Any], timeout: float = 5.0) -> Balance:
    async with venue_call(HYPERLIQUID, override=simulator.url, metadata=metadata, timeout=timeout) as call:
        return await fetch_balance(call)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"type": "nonsense", "user": "' + ADDRESS.encode() + b'"}',
        b'{"type": ["spotClearinghouseState"], "user": "' + ADDRESS.encode() + b'"}',
        b'{"type": "spotClearinghouseState"}',
        b'{"type": "spotClearinghouseState", "user": "0x12"}',
        b'{"type": "spotClearinghouseState", "user": 7}',
    ],
)
async def test_an_unreadable_question_is_refused_in_plain_text(body: bytes) -> None:
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        status, text = await post(simulator, body)
    assert status == 422
    assert text == "Failed to deserialize the JSON body into the target type"


async def test_a_question_that_is_not_called_json_is_refused() -> None:
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        status, _ = await post(simulator, b'{"type": "perpDexs"}', "text/plain")
    assert status == 415


async def test_a_request_belongs_to_the_address_in_its_body() -> None:
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        body = '{"type": "spotClearinghouseState", "user": "' + ADDRESS.replace("c", "C") + '"}'
        assert await post(simulator, body.encode()) == (200, '{"balances": []}')
        assert [request.account for request in simulator.requests] == [ADDRESS]


@pytest.mark.parametrize("mode", ["disabled", "default", "dexAbstraction", "unifiedAccount", "portfolioMargin"])
async def test_only_a_unified_wallet_has_the_amount_after_maintenance(mode: str) -> None:
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        simulator.add_wallet(ADDRESS, SimulatedWallet(mode=mode))
        _, text = await post(simulator, b'{"type": "spotClearinghouseState", "user": "' + ADDRESS.encode() + b'"}')
    assert ("tokenToAvailableAfterMaintenance" in text) == (mode in ("unifiedAccount", "portfolioMargin"))


async def test_the_moving_wallet_moves_and_stays_consistent() -> None:
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        metadata = row(simulator, "moving")
        before = (await read(simulator, metadata)).venue_accounts[0].summary
        simulator.move()
        after = (await read(simulator, metadata)).venue_accounts[0].summary
    assert before is not None
    assert after is not None
    assert (before.equity, before.available, before.margin_used, before.unrealised_pnl) == (
        Decimal("8420.118264"),
        Decimal("7611.904113"),
        Decimal("802.5"),
        Decimal("321.5"),
    )
    assert before.equity is not None
    assert after.equity is not None
    assert before.unrealised_pnl is not None
    assert after.unrealised_pnl is not None
    assert after.equity != before.equity
    assert after.equity - after.unrealised_pnl == before.equity - before.unrealised_pnl


async def test_each_situation_is_what_its_name_says() -> None:
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        assert simulator.demo_credential("refused") is None
        empty = await read(simulator, row(simulator, "empty"))
        assert all(asset.is_zero() for _, asset in empty.rows())
        with pytest.raises(VenueRateLimited) as limited:
            await read(simulator, row(simulator, "limited"))
        assert limited.value.retry_after == 30
        partly = await read(simulator, row(simulator, "partly"))
        assert [type(account.error) for account in partly.venue_accounts if account.error] == [CredentialInvalid]
        # The limit of one account does not apply to another.
        assert (await read(simulator, row(simulator, "moving"))).summary is not None


async def test_each_trouble_is_what_its_name_says() -> None:
    expected = {
        "wrong key": None,
        "missing right": None,
        "wrong environment": AccountUnknown,
        "unknown account": AccountUnknown,
        "rate limit": VenueRateLimited,
        "outage": VenueUnavailable,
    }
    assert set(expected) == set(TROUBLES)
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        good = row(simulator, "moving")
        rows = {trouble: simulator.troubled_credential(trouble) for trouble in TROUBLES}
        assert len({str(credential) for credential in rows.values() if credential}) == 4
        for trouble, error in expected.items():
            credential = rows[trouble]
            assert (credential is None) == (error is None)
            if credential is not None and error is not None:
                with pytest.raises(error):
                    await read(simulator, credential["extra_metadata"])
        # The trouble of one account does not affect another.
        assert (await read(simulator, good)).summary is not None


async def test_a_rate_limit_is_answered_without_a_message_and_without_a_delay() -> None:
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        credential = simulator.troubled_credential("rate limit")
        assert credential is not None
        user = credential["extra_metadata"]["wallet_address"]
        body = '{"type": "spotClearinghouseState", "user": "' + user + '"}'
        assert await post(simulator, body.encode()) == (429, "null")
        with pytest.raises(VenueRateLimited) as limited:
            await read(simulator, credential["extra_metadata"])
    assert limited.value.retry_after == 10


async def test_the_stale_wallet_answers_once() -> None:
    async with HyperliquidSimulator() as simulator:
        assert isinstance(simulator, HyperliquidSimulator)
        metadata = row(simulator, "stale")
        async with venue_call(HYPERLIQUID, override=simulator.url, metadata=metadata) as call:
            assert (await fetch_balance(call)).summary is not None
            with pytest.raises(VenueUnavailable):
                await fetch_balance(call)
