"""Aster's listing."""

from __future__ import annotations

import pytest
from exchange_service_aster import ASTER

from exchange_service.plugin_api import Environment


def test_it_has_the_values_that_the_application_shows() -> None:
    assert (ASTER.name, ASTER.asset_class, ASTER.asset_types) == ("Aster", "Crypto", "Crypto Futures")
    assert ASTER.market_hours == "24/7 Trading"
    assert ASTER.icon == "i-simple-icons-bitcoin"
    assert ASTER.logo == "/aster_logo.png"
    assert ASTER.color_class == "bg-orange-500/20 text-orange-500"
    assert not ASTER.requires_passphrase
    assert not ASTER.requires_account_id
    assert not ASTER.is_ccxt


@pytest.mark.parametrize(
    ("word", "domain"),
    [
        ("production", "asterdex.com"),
        ("Live", "asterdex.com"),
        ("sandbox", "asterdex-testnet.com"),
        ("testnet", "asterdex-testnet.com"),
    ],
)
def test_an_environment_names_the_hosts_of_futures_and_spot_and_of_their_streams(word: str, domain: str) -> None:
    environment = ASTER.environment(word)
    assert isinstance(environment, Environment)
    assert dict(environment.urls) == {
        "api": f"https://fapi.{domain}",
        "spot": f"https://sapi.{domain}",
        "push": f"wss://fstream.{domain}",
        "spot_push": f"wss://sstream.{domain}",
    }


def test_the_user_is_warned_of_the_wallets_own_key() -> None:
    assert "Never store the private key of the wallet" in ASTER.instructions


def test_it_reads_balances_of_two_accounts_and_follows_their_streams() -> None:
    assert ASTER.capabilities.balance
    assert ASTER.capabilities.push
    assert ASTER.capabilities.several_accounts
    assert ASTER.account_types == ("futures", "spot")


def test_the_agents_key_is_a_secret_and_the_wallet_address_is_not() -> None:
    secret = {field.name: field.secret for field in ASTER.credential_fields}
    assert secret["api_secret"]
    assert not secret["wallet_address"]
