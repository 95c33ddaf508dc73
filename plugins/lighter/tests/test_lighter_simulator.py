"""The simulator judges a request as Lighter does, and shows the demo's situations and troubles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from exchange_service_lighter import LIGHTER, fetch_balance
from exchange_service_lighter.simulator import LighterSimulator, SimulatedAccount, SimulatedPosition

from exchange_service.plugin_api import AccountUnknown, Balance, VenueError, VenueRateLimited, VenueUnavailable
from exchange_service.testing import venue_call
from exchange_service.testing.venue import SITUATIONS, TROUBLES
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
WALLET = "0x8c967e73e6b15087c42a10d344cff4c96d877f1d"
OTHER_WALLET = "0x035605fc2f24d65300227189025e90a0d947f16c"
MASTER, SUB, FOREIGN = 61, 281474976700001, 62
BY_ADDRESS = {"by": "l1_address", "value": WALLET}
BY_INDEX = {"by": "index", "value": str(MASTER)}


def simulated() -> LighterSimulator:
    simulator = LighterSimulator()
    simulator.add(
        SimulatedAccount(MASTER, WALLET, collateral=Decimal(1000)),
        SimulatedAccount(SUB, WALLET, kind=1),
        SimulatedAccount(FOREIGN, OTHER_WALLET),
    )
    return simulator


async def get(simulator: LighterSimulator, params: Mapping[str, str], token: str = "") -> tuple[int, Any]:
    headers = {"Authorization": token} if token else {}
    url = simulator.url + "/api/v1/account"
    async with aiohttp.ClientSession() as session, session.get(url, params=params, headers=headers) as response:
        return response.status, json.loads(await response.text())


async def code(simulator: LighterSimulator, params: Mapping[str, str], token: str = "") -> tuple[int, int]:
    status, answer = await get(simulator, params, token)
    return status, answer["code"]


async def read(simulator: LighterSimulator, row: Mapping[str, Any] | None, timeout: float = 5.0) -> Balance:
    assert row is not None
    metadata = row["extra_metadata"]
    async with venue_call(LIGHTER, override=simulator.url, metadata=metadata, timeout=timeout) as call:
        return await fetch_balance(call)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"by": "index"},
        {"by": "index", "value": "first"},
        {"by": "index", "value": "-1"},
        {"by": "l1_address", "value": "0x12"},
        {"by": "name", "value": "61"},
        {**BY_ADDRESS, "cursor": "next"},
    ],
    ids=str,
)
async def test_a_request_that_makes_no_sense_is_refused(params: Mapping[str, str]) -> None:
    async with simulated() as simulator:
        assert await code(simulator, params) == (400, 20001)


async def test_an_unknown_account_has_the_venues_own_answer() -> None:
    async with simulated() as simulator:
        for params in ({"by": "index", "value": "999"}, {"by": "l1_address", "value": "0x" + "0" * 40}):
            status, answer = await get(simulator, params)
            assert status == 400
            assert answer == json.loads(read_payload(PAYLOADS / "account_not_found.json"))


async def test_an_address_is_found_in_any_letters() -> None:
    async with simulated() as simulator:
        for value in (WALLET, WALLET.upper().replace("0X", "0x")):
            assert (await get(simulator, {"by": "l1_address", "value": value}))[1]["total"] == 2


async def test_accounts_come_in_pages_that_a_cursor_joins() -> None:
    async with simulated() as simulator:
        simulator.page_size = 1
        _, first = await get(simulator, BY_ADDRESS)
        _, second = await get(simulator, {**BY_ADDRESS, "cursor": first["next_cursor"]})
    assert [account["index"] for page in (first, second) for account in page["accounts"]] == [MASTER, SUB]
    assert "next_cursor" not in second


async def test_a_token_is_good_for_the_accounts_that_it_was_made_for() -> None:
    async with simulated() as simulator:
        whole, single = simulator.add_token(MASTER), simulator.add_token(MASTER, scope="single")
        foreign = simulator.add_token(FOREIGN)
        assert await code(simulator, BY_ADDRESS, whole) == (200, 200)
        assert await code(simulator, BY_INDEX, single) == (200, 200)
        assert await code(simulator, {**BY_INDEX, "auth": single}) == (200, 200)
        for params, token in ((BY_ADDRESS, single), (BY_INDEX, foreign), (BY_ADDRESS, foreign)):
            assert await code(simulator, params, token) == (400, 20013)


async def test_a_token_is_refused_when_it_is_unknown_expired_or_called_a_bearers() -> None:
    async with simulated() as simulator:
        good, expired = simulator.add_token(MASTER), simulator.add_token(MASTER, expires=1700000000)
        for token in (good + "0", expired, "Bearer " + good):
            assert await code(simulator, BY_INDEX, token) == (400, 20013)


async def test_a_request_belongs_to_the_wallet_whose_accounts_it_reads() -> None:
    async with simulated() as simulator:
        for params in (BY_ADDRESS, BY_INDEX, {"by": "index", "value": "999"}, {}):
            await get(simulator, params)
        assert [request.account for request in simulator.requests] == [WALLET, WALLET, "", ""]


async def test_the_worked_example_is_answered_member_for_member() -> None:
    recorded = json.loads(read_payload(PAYLOADS / "account_classic.json"))["accounts"][0]
    async with LighterSimulator() as simulator:
        assert isinstance(simulator, LighterSimulator)
        simulator.demo_credential("moving")
        _, answer = await get(simulator, {"by": "index", "value": "90210"})
    assert {**answer["accounts"][0], "l1_address": recorded["l1_address"]} == recorded


async def test_an_isolated_position_has_its_margin_to_itself() -> None:
    position = SimulatedPosition(1, "BTC", Decimal(-1), Decimal(100), Decimal(90), allocated=Decimal(40))
    async with simulated() as simulator:
        simulator.accounts[MASTER].positions = [position]
        _, answer = await get(simulator, BY_INDEX)
    account = answer["accounts"][0]
    assert (account["total_asset_value"], account["available_balance"]) == ("1010", "960.000000")
    assert (account["positions"][0]["sign"], account["positions"][0]["allocated_margin"]) == (-1, "40.000000")


async def test_the_moving_account_moves_and_stays_consistent() -> None:
    async with LighterSimulator() as simulator:
        assert isinstance(simulator, LighterSimulator)
        row = simulator.demo_credential("moving")
        before = (await read(simulator, row)).venue_accounts[0].summary
        simulator.move()
        after = (await read(simulator, row)).venue_accounts[0].summary
    assert before is not None
    assert after is not None
    assert after.equity != before.equity
    assert after.equity is not None
    assert after.unrealised_pnl is not None
    assert after.equity - after.unrealised_pnl == after.cash == before.cash


async def test_each_situation_is_what_its_name_says_beside_the_others() -> None:
    async with LighterSimulator() as simulator:
        assert isinstance(simulator, LighterSimulator)
        rows = {situation: simulator.demo_credential(situation) for situation in SITUATIONS}
        for trouble in TROUBLES:
            simulator.troubled_credential(trouble)
        assert rows["refused"] is None
        assert all(asset.is_zero() for _, asset in (await read(simulator, rows["empty"])).rows())
        with pytest.raises(VenueRateLimited):
            await read(simulator, rows["limited"])
        partly = await read(simulator, rows["partly"])
        assert [type(account.error) for account in partly.venue_accounts if account.error] == [VenueUnavailable]
        assert (await read(simulator, rows["stale"])).venue_accounts[0].summary is not None
        with pytest.raises(VenueUnavailable):
            await read(simulator, rows["stale"])
        assert (await read(simulator, rows["moving"])).venue_accounts[0].summary is not None


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        ("wrong environment", AccountUnknown),
        ("unknown account", AccountUnknown),
        ("rate limit", VenueRateLimited),
        ("outage", VenueUnavailable),
    ],
)
async def test_each_trouble_is_what_its_name_says(trouble: str, expected: type[VenueError]) -> None:
    async with LighterSimulator() as simulator:
        assert isinstance(simulator, LighterSimulator)
        row = simulator.troubled_credential(trouble)
        with pytest.raises(expected):
            await read(simulator, row)


@pytest.mark.parametrize("trouble", ["wrong key", "missing right"])
def test_without_a_key_no_key_can_be_wrong(trouble: str) -> None:
    assert LighterSimulator().troubled_credential(trouble) is None
