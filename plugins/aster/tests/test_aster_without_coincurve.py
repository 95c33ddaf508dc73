"""Where coincurve is not installed, as on Python 3.14, agents are refused with a sentence and HMAC keys are read."""

from __future__ import annotations

import sys
from typing import Any

import exchange_service_aster
import pytest
from exchange_service_aster import ASTER
from exchange_service_aster.simulator import AsterSimulator

from exchange_service.plugin_api import Balance, CredentialInvalid, NotSupported
from exchange_service.testing import venue_call
from exchange_service.testing.venue import SITUATIONS, TROUBLES

AGENT_ROW: dict[str, Any] = {"api_secret": "11" * 32, "metadata": {"wallet_address": "0x" + "12" * 20}}


@pytest.fixture(autouse=True)
def no_coincurve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "coincurve", None)


async def balance_of(venue: AsterSimulator, row: dict[str, Any]) -> Balance:
    async with venue_call(ASTER, override=venue.url, **row) as call:
        return await exchange_service_aster.fetch_balance(call)


async def test_an_agent_is_not_supported_and_the_error_advises_what_to_do() -> None:
    async with AsterSimulator() as venue, venue_call(ASTER, override=venue.url, **AGENT_ROW) as call:
        for hook in (exchange_service_aster.fetch_balance, exchange_service_aster.check_credential):
            with pytest.raises(NotSupported, match=r"coincurve.*earlier Python"):
                await hook(call)
    assert venue.requests == []


async def test_a_mistake_in_a_stored_credential_is_named_all_the_same() -> None:
    async with AsterSimulator() as venue:
        with pytest.raises(CredentialInvalid, match="wallet_address"):
            await balance_of(venue, {"api_secret": "11" * 32})


async def test_an_hmac_key_is_read() -> None:
    async with AsterSimulator() as venue:
        venue.add_key("a-key", "a-secret")
        balance = await balance_of(venue, {"api_key": "a-key", "api_secret": "a-secret"})
    assert [account.error for account in balance.venue_accounts] == [None, None]
    assert all(account.assets for account in balance.venue_accounts)


async def test_the_demo_shows_a_moving_and_an_empty_account_of_hmac_keys() -> None:
    async with AsterSimulator() as venue:
        shown = {situation: venue.demo_credential(situation) for situation in SITUATIONS}
        assert [situation for situation, row in shown.items() if row] == ["moving", "empty"]
        assert not any(venue.troubled_credential(trouble) for trouble in TROUBLES)
        row = dict(shown["moving"] or {})
        before = await balance_of(venue, row)
        venue.move()
        assert await balance_of(venue, row) != before
