"""OANDA's listing."""

from __future__ import annotations

import pytest
from exchange_service_oanda import OANDA

from exchange_service.plugin_api import Capabilities, Environment


def test_it_has_the_values_that_the_application_shows() -> None:
    assert (OANDA.name, OANDA.asset_class, OANDA.asset_types) == ("OANDA", "Forex", "Forex")
    assert OANDA.market_hours == "24/5 Trading"
    assert OANDA.icon == "i-heroicons-currency-dollar"
    assert OANDA.logo == "/oanda_logo.png"
    assert OANDA.color_class == "bg-green-500/20 text-green-500"
    assert not OANDA.requires_passphrase
    assert OANDA.requires_account_id
    assert not OANDA.is_ccxt


@pytest.mark.parametrize(
    ("word", "kind"),
    [("production", "fxtrade"), ("live", "fxtrade"), ("sandbox", "fxpractice"), ("practice", "fxpractice")],
)
def test_an_environment_is_found_by_its_name_and_by_the_venues_name(word: str, kind: str) -> None:
    environment = OANDA.environment(word)
    assert isinstance(environment, Environment)
    assert environment.urls == {"api": f"https://api-{kind}.oanda.com", "push": f"https://stream-{kind}.oanda.com"}


def test_the_account_id_may_be_left_out_because_the_token_shows_its_accounts() -> None:
    required = {field.name: field.required for field in OANDA.credential_fields}
    assert required == {"api_key": True, "account_id": False}


def test_balances_of_several_accounts_are_read_and_pushed_also_in_the_sandbox() -> None:
    assert OANDA.capabilities == Capabilities(sandbox=True, several_accounts=True, push=True)
    assert OANDA.account_types == ("forex",)
