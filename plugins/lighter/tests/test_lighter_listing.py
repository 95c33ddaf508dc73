"""Lighter's listing."""

from __future__ import annotations

import pytest
from exchange_service_lighter import LIGHTER

from exchange_service.plugin_api import Environment


def test_it_has_the_values_that_the_application_shows() -> None:
    assert (LIGHTER.name, LIGHTER.asset_class, LIGHTER.asset_types) == (
        "Lighter DEX",
        "Crypto",
        "Crypto Perps (zkSync)",
    )
    assert LIGHTER.market_hours == "24/7 Trading"
    assert LIGHTER.icon == "i-simple-icons-bitcoin"
    assert LIGHTER.logo == "/lighter_logo.png"
    assert LIGHTER.color_class == "bg-purple-500/20 text-purple-500"
    assert not LIGHTER.requires_passphrase
    assert not LIGHTER.requires_account_id
    assert not LIGHTER.is_ccxt


@pytest.mark.parametrize(
    ("word", "address", "robinhood"),
    [
        ("production", "https://mainnet.zklighter.elliot.ai", "https://api.rh.lighter.xyz"),
        ("mainnet", "https://mainnet.zklighter.elliot.ai", "https://api.rh.lighter.xyz"),
        ("sandbox", "https://testnet.zklighter.elliot.ai", "https://api.rh-testnet.lighter.xyz"),
        ("testnet", "https://testnet.zklighter.elliot.ai", "https://api.rh-testnet.lighter.xyz"),
    ],
)
def test_an_environment_is_found_by_its_name_and_by_the_venues_name(word: str, address: str, robinhood: str) -> None:
    environment = LIGHTER.environment(word)
    assert isinstance(environment, Environment)
    assert environment.urls == {
        "api": address,
        "push": address.replace("https", "wss") + "/stream",
        "robinhood": robinhood,
        "robinhood push": robinhood.replace("https", "wss") + "/stream",
    }


def test_it_states_that_a_read_needs_no_secret() -> None:
    assert LIGHTER.capabilities.read_without_secret
    assert [field.name for field in LIGHTER.credential_fields if field.secret] == ["api_key"]


def test_a_form_asks_for_a_wallet_address_or_an_account_index_and_forces_neither() -> None:
    assert not any(field.required for field in LIGHTER.credential_fields)
    described = {field.name: field.description for field in LIGHTER.credential_fields}
    assert "account index" in described["wallet_address"]
    assert "wallet address" in described["account_index"]


def test_it_reads_balances_of_several_accounts() -> None:
    assert LIGHTER.capabilities.balance
    assert LIGHTER.capabilities.several_accounts
    assert LIGHTER.account_types == ("perpetual", "spot", "pool")
