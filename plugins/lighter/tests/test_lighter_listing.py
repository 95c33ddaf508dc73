"""Lighter's listing."""

from __future__ import annotations

import exchange_service_lighter
import pytest
from exchange_service_lighter import LIGHTER

from exchange_service.plugin_api import Environment
from exchange_service.testing.contract import ListingContract


class TestLighter(ListingContract):
    plugin = exchange_service_lighter
    exchange_id = "lighter"


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
    ("word", "address"),
    [
        ("production", "https://mainnet.zklighter.elliot.ai"),
        ("mainnet", "https://mainnet.zklighter.elliot.ai"),
        ("sandbox", "https://testnet.zklighter.elliot.ai"),
        ("testnet", "https://testnet.zklighter.elliot.ai"),
    ],
)
def test_an_environment_is_found_by_its_name_and_by_the_venues_word(word: str, address: str) -> None:
    environment = LIGHTER.environment(word)
    assert isinstance(environment, Environment)
    assert environment.urls["api"] == address


def test_it_says_that_a_read_needs_no_secret() -> None:
    assert LIGHTER.capabilities.read_without_secret
    assert [field.name for field in LIGHTER.credential_fields if field.required] == ["wallet_address"]
