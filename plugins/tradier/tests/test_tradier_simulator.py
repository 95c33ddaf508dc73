"""The simulator judges a request as Tradier does, and shows the demo's situations and troubles."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
from exchange_service_tradier import TRADIER, TRADIER_OPTIONS, fetch_balance
from exchange_service_tradier.simulator import SimulatedAccount, TradierOptionsSimulator, TradierSimulator

from exchange_service.plugin_api import (
    AccountUnknown,
    Balance,
    CredentialRejected,
    FeatureNotEnabled,
    VenueRateLimited,
    VenueUnavailable,
    parse_json,
)
from exchange_service.testing import venue_call
from exchange_service.testing.venue import SITUATIONS, TROUBLES

LISTINGS = {"tradier": TRADIER, "tradier_options": TRADIER_OPTIONS}
TOKEN, NUMBER = "a-token-for-tests", "6YA00000"
JSON = {"Authorization": f"Bearer {TOKEN}", "Accept": "application/json"}


@pytest.fixture(params=[TradierSimulator, TradierOptionsSimulator], ids=["tradier", "tradier_options"])
def simulator(request: pytest.FixtureRequest) -> TradierSimulator:
    made: TradierSimulator = request.param()
    made.add_token(TOKEN, SimulatedAccount(NUMBER))
    return made


async def get(
    venue: TradierSimulator, path: str, headers: Mapping[str, str] = JSON
) -> tuple[int, str, Mapping[str, str]]:
    async with aiohttp.ClientSession() as session, session.get(venue.url + path, headers=headers) as response:
        return response.status, await response.text(), response.headers


async def read(venue: TradierSimulator, row: Mapping[str, Any] | None) -> Balance:
    assert row is not None
    listing, metadata = LISTINGS[venue.exchange_id], row.get("extra_metadata")
    async with venue_call(listing, override=venue.url, api_key=row["api_key"], metadata=metadata) as call:
        return await fetch_balance(call)


async def test_a_request_without_json_in_accept_gets_xml(simulator: TradierSimulator) -> None:
    async with simulator as venue:
        status, text, headers = await get(venue, "/v1/user/profile", {"Authorization": f"Bearer {TOKEN}"})
    assert (status, headers["Content-Type"]) == (200, "application/xml; charset=utf-8")
    assert text.startswith("<?xml")


@pytest.mark.parametrize("authorization", ["", "Bearer unknown", f"Basic {TOKEN}", TOKEN])
async def test_a_token_that_it_does_not_know_is_a_fault(simulator: TradierSimulator, authorization: str) -> None:
    async with simulator as venue:
        status, text, _ = await get(venue, "/v1/user/profile", {**JSON, "Authorization": authorization})
    fault = parse_json(text)["fault"]
    assert (status, fault["faultstring"]) == (401, "Invalid Access Token")
    assert fault["detail"]["errorcode"] == "keymanagement.service.invalid_access_token"


async def test_an_account_of_another_user_is_refused_in_plain_text(simulator: TradierSimulator) -> None:
    async with simulator as venue:
        status, text, _ = await get(venue, "/v1/accounts/6YZ99999/balances")
    assert (status, text) == (401, "Unauthorized Account: 6YZ99999")


async def test_numbers_are_bare_and_lose_no_digit(simulator: TradierSimulator) -> None:
    async with simulator as venue:
        _, text, _ = await get(venue, f"/v1/accounts/{NUMBER}/balances")
    assert '"total_cash": 18450.2700000000000000,' in text
    assert '"total_equity": 40615.27,' in text


async def test_it_counts_the_requests_of_a_minute(simulator: TradierSimulator) -> None:
    simulator.allowance = 2
    async with simulator as venue:
        # A new minute would start the count again.
        answers = [await get(venue, "/v1/user/profile") for _ in range(6)]
    left = [headers["X-Ratelimit-Available"] for _, _, headers in answers]
    statuses = [status for status, _, _ in answers]
    assert left[:2] in (["1", "0"], ["1", "1"])
    assert statuses.count(200) in (2, 3, 4)
    assert 429 in statuses
    assert all(headers["X-Ratelimit-Expiry"].endswith("000") for _, _, headers in answers)


async def test_all_situations_and_troubles_live_in_one_simulator(simulator: TradierSimulator) -> None:
    async with simulator as venue:
        rows = {situation: venue.demo_credential(situation) for situation in SITUATIONS}
        troubles = {trouble: venue.troubled_credential(trouble) for trouble in TROUBLES}
        tokens = [row["api_key"] for row in (*rows.values(), *troubles.values()) if row]
        assert len(set(tokens)) == len(tokens)
        assert (await read(venue, rows["moving"])).summary is not None
        assert all(asset.is_zero() for _, asset in (await read(venue, rows["empty"])).rows())
        with pytest.raises(CredentialRejected):
            await read(venue, rows["refused"])
        with pytest.raises(VenueRateLimited):
            await read(venue, rows["limited"])


async def test_the_stale_account_answers_once(simulator: TradierSimulator) -> None:
    async with simulator as venue:
        row = venue.demo_credential("stale")
        assert row is not None
        listing = LISTINGS[venue.exchange_id]
        async with venue_call(listing, override=venue.url, api_key=row["api_key"]) as call:
            assert (await fetch_balance(call)).summary is not None
            with pytest.raises(VenueUnavailable):
                await fetch_balance(call)


async def test_several_accounts_of_which_some_fail(simulator: TradierSimulator) -> None:
    async with simulator as venue:
        balance = await read(venue, venue.demo_credential("partly"))
    second = type(None) if simulator.exchange_id == "tradier" else FeatureNotEnabled
    assert [type(account.error) for account in balance.venue_accounts] == [type(None), second, AccountUnknown]


async def test_the_moving_account_begins_with_the_worked_example_and_stays_consistent(
    simulator: TradierSimulator,
) -> None:
    async with simulator as venue:
        row = venue.demo_credential("moving")
        before = (await read(venue, row)).summary
        venue.move()
        after = (await read(venue, row)).summary
        assert row is not None
        headers = {**JSON, "Authorization": f"Bearer {row['api_key']}"}
        _, text, _ = await get(venue, f"/v1/accounts/{NUMBER}/balances", headers)
    assert before is not None
    assert after is not None
    assert (before.equity, before.cash, before.available) == (
        Decimal("40615.27"),
        Decimal("18450.27"),
        Decimal("14203.77"),
    )
    assert after.equity != before.equity
    assert after.cash == before.cash
    figures = parse_json(text)["balances"]
    assert figures["total_equity"] == figures["total_cash"] + figures["market_value"] == after.equity
