"""Hyperliquid's listing."""

from __future__ import annotations

import pytest
from exchange_service_hyperliquid import HYPERLIQUID

from exchange_service.plugin_api import Environment


def test_it_has_the_values_that_the_application_shows() -> None:
    assert (HYPERLIQUID.name, HYPERLIQUID.asset_class, HYPERLIQUID.asset_types) == (
        "Hyperliquid",
        "Crypto",
        "Crypto Perps",
    )
    assert HYPERLIQUID.market_hours == "24/7 Trading"
    assert HYPERLIQUID.icon == "i-simple-icons-bitcoin"
    assert HYPERLIQUID.logo == "/hyperliquid_logo.png"
    assert HYPERLIQUID.color_class == "bg-cyan-500/20 text-cyan-500"
    assert not HYPERLIQUID.requires_passphrase
    assert not HYPERLIQUID.requires_account_id
    assert not HYPERLIQUID.is_ccxt


@pytest.mark.parametrize(
    ("word", "address"),
    [
        ("production", "https://api.hyperliquid.xyz"),
        ("live", "https://api.hyperliquid.xyz"),
        ("mainnet", "https://api.hyperliquid.xyz"),
        ("sandbox", "https://api.hyperliquid-testnet.xyz"),
        ("testnet", "https://api.hyperliquid-testnet.xyz"),
    ],
)
def test_an_environment_is_found_by_its_name_and_by_the_venues_name(word: str, address: str) -> None:
    environment = HYPERLIQUID.environment(word)
    assert isinstance(environment, Environment)
    assert environment.urls == {"api": address, "push": address.replace("https:", "wss:") + "/ws"}


def test_it_states_that_a_read_needs_no_secret() -> None:
    assert HYPERLIQUID.capabilities.read_without_secret
    assert not any(field.secret for field in HYPERLIQUID.credential_fields)


def test_a_form_forces_nothing_but_the_wallet_address() -> None:
    assert [field.name for field in HYPERLIQUID.credential_fields if field.required] == ["wallet_address"]


def test_it_reads_several_accounts_and_extras_only_on_request() -> None:
    assert HYPERLIQUID.capabilities.balance
    assert HYPERLIQUID.capabilities.several_accounts
    assert HYPERLIQUID.capabilities.push
    assert HYPERLIQUID.account_types == ("perpetual", "spot", "vault", "staking")
    assert HYPERLIQUID.default_account_types == ("perpetual", "spot")
