"""tastytrade's listing."""

from __future__ import annotations

import pytest
from exchange_service_tastytrade import TASTYTRADE

from exchange_service.plugin_api import Environment


def test_it_has_the_values_that_the_application_shows() -> None:
    shown = (TASTYTRADE.name, TASTYTRADE.asset_class, TASTYTRADE.asset_types)
    assert shown == ("Tasty Trade", "Futures", "Futures • Options")
    assert TASTYTRADE.market_hours == "Extended Hours"
    assert TASTYTRADE.icon == "i-heroicons-chart-line"
    assert TASTYTRADE.logo == "/tastytrade_logo.jpg"
    assert TASTYTRADE.color_class == "bg-indigo-500/20 text-indigo-500"
    assert TASTYTRADE.requires_passphrase
    assert TASTYTRADE.requires_account_id
    assert not TASTYTRADE.is_ccxt


@pytest.mark.parametrize(
    ("word", "address"),
    [
        ("production", "https://api.tastyworks.com"),
        ("live", "https://api.tastyworks.com"),
        ("sandbox", "https://api.cert.tastyworks.com"),
        ("cert", "https://api.cert.tastyworks.com"),
    ],
)
def test_an_environment_is_found_by_its_name_and_by_the_venues_name(word: str, address: str) -> None:
    environment = TASTYTRADE.environment(word)
    assert isinstance(environment, Environment)
    assert environment.urls == {"api": address, "push": address.replace("https://api.", "wss://streamer.")}


def test_the_refresh_token_is_the_passphrase_of_the_listing() -> None:
    fields = {field.name: field for field in TASTYTRADE.credential_fields}
    assert fields["passphrase"].label == "Refresh token"
    assert fields["passphrase"].required
    assert fields["passphrase"].secret


def test_the_instructions_state_that_the_right_to_read_is_enough() -> None:
    assert "the scope read alone" in TASTYTRADE.instructions


def test_balances_of_several_accounts_are_supported_and_pushed() -> None:
    assert TASTYTRADE.capabilities.balance
    assert TASTYTRADE.capabilities.push
    assert TASTYTRADE.capabilities.several_accounts
    assert TASTYTRADE.unsupported_reason == ""
    assert TASTYTRADE.account_types == ("cash", "margin")
