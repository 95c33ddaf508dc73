"""The simulator judges a request as OANDA does, and shows the demo's situations and the venue's troubles."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
from exchange_service_oanda import OANDA, fetch_balance
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount

from exchange_service.plugin_api import (
    AccountUnknown,
    Balance,
    CredentialRejected,
    VenueRateLimited,
    VenueUnavailable,
)
from exchange_service.testing import venue_call

TOKEN = "a-token-for-tests"
FIRST, SECOND = "101-004-7654321-001", "101-004-7654321-002"


async def get(simulator: OandaSimulator, path: str, authorization: str) -> tuple[int, Any, str]:
    """The status, body and RequestID of an answer."""
    headers = {"Authorization": authorization}
    async with aiohttp.ClientSession(headers=headers) as session, session.get(simulator.url + path) as response:
        return response.status, await response.json(), response.headers["RequestID"]


def row(simulator: OandaSimulator, situation: str) -> Mapping[str, Any]:
    credential = simulator.demo_credential(situation)
    assert credential is not None
    return credential


async def read(simulator: OandaSimulator, row: Mapping[str, Any]) -> Balance:
    metadata = row.get("extra_metadata")
    async with venue_call(OANDA, override=simulator.url, api_key=row["api_key"], metadata=metadata) as call:
        return await fetch_balance(call)


@pytest.mark.parametrize(
    ("path", "authorization", "status", "message"),
    [
        ("/v3/accounts", "", 401, "Insufficient authorization to perform request."),
        ("/v3/accounts", "Bearer another", 401, "Insufficient authorization to perform request."),
        ("/v3/accounts", f"Basic {TOKEN}", 401, "Insufficient authorization to perform request."),
        (f"/v3/accounts/{SECOND}/summary", f"Bearer {TOKEN}", 403, "The provided request was forbidden."),
        ("/v3/accounts/101-004-1-001/summary", f"Bearer {TOKEN}", 403, "The provided request was forbidden."),
    ],
)
async def test_a_refused_request_has_oandas_own_answer(
    path: str, authorization: str, status: int, message: str
) -> None:
    async with OandaSimulator() as simulator:
        assert isinstance(simulator, OandaSimulator)
        simulator.add_token(TOKEN, SimulatedAccount(FIRST))
        simulator.add_token("somebody-elses", SimulatedAccount(SECOND))
        answered = await get(simulator, path, authorization)
    assert answered[:2] == (status, {"errorMessage": message})
    assert answered[2]


async def test_the_moving_account_is_the_worked_example_and_moves() -> None:
    async with OandaSimulator() as simulator:
        assert isinstance(simulator, OandaSimulator)
        credential = row(simulator, "moving")
        before = (await read(simulator, credential)).summary
        simulator.move()
        after = (await read(simulator, credential)).summary
    assert before is not None
    assert after is not None
    assert (before.equity, before.unrealised_pnl) == (Decimal("25182.5126"), Decimal("-127.9300"))
    assert after.equity is not None
    assert after.unrealised_pnl is not None
    assert after.equity != before.equity
    assert after.equity - after.unrealised_pnl == after.cash == before.cash


async def test_each_situation_is_what_its_name_says() -> None:
    async with OandaSimulator() as simulator:
        assert isinstance(simulator, OandaSimulator)
        empty = await read(simulator, row(simulator, "empty"))
        assert all(asset.is_zero() for _, asset in empty.rows())
        with pytest.raises(CredentialRejected):
            await read(simulator, row(simulator, "refused"))
        with pytest.raises(VenueRateLimited) as limited:
            await read(simulator, row(simulator, "limited"))
        assert limited.value.retry_after == 30
        partly = await read(simulator, row(simulator, "partly"))
        assert [type(account.error) for account in partly.venue_accounts if account.error] == [AccountUnknown]
        # The limit of one account does not apply to another.
        assert (await read(simulator, row(simulator, "moving"))).summary is not None


async def test_the_stale_account_answers_once() -> None:
    async with OandaSimulator() as simulator:
        assert isinstance(simulator, OandaSimulator)
        token = row(simulator, "stale")["api_key"]
        async with venue_call(OANDA, override=simulator.url, api_key=token) as call:
            assert (await fetch_balance(call)).summary is not None
            with pytest.raises(VenueUnavailable):
                await fetch_balance(call)


@pytest.mark.parametrize("trouble", ["missing right", "unknown account"])
async def test_an_unknown_account_and_another_users_account_are_refused_alike(trouble: str) -> None:
    async with OandaSimulator() as simulator:
        assert isinstance(simulator, OandaSimulator)
        credential = simulator.troubled_credential(trouble)
        assert credential is not None
        path = f"/v3/accounts/{credential['extra_metadata']['account_id']}/summary"
        assert (await get(simulator, path, f"Bearer {credential['api_key']}"))[0] == 403
