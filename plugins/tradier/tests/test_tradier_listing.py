"""Tradier's two listings."""

from __future__ import annotations

import pytest
from exchange_service_tradier import TRADIER, TRADIER_OPTIONS

from exchange_service.plugin_api import Capabilities, Environment, ExchangeMetadata


def test_the_account_listing_has_the_values_that_the_application_shows() -> None:
    assert (TRADIER.name, TRADIER.asset_class, TRADIER.asset_types) == ("Tradier", "Stocks", "Stocks • Options")


def test_the_options_listing_has_the_values_that_the_application_shows() -> None:
    shown = (TRADIER_OPTIONS.name, TRADIER_OPTIONS.asset_class, TRADIER_OPTIONS.asset_types)
    assert shown == ("Tradier Options", "Options", "Options")


@pytest.mark.parametrize("listing", [TRADIER, TRADIER_OPTIONS], ids=lambda listing: listing.id)
def test_both_look_the_same_and_ask_for_an_account_id(listing: ExchangeMetadata) -> None:
    assert listing.market_hours == "Market Hours"
    assert listing.icon == "i-heroicons-chart-bar"
    assert listing.logo == "/tradier_logo.png"
    assert listing.color_class == "bg-blue-500/20 text-blue-500"
    assert listing.requires_account_id
    assert not listing.requires_passphrase
    assert not listing.is_ccxt


def test_the_options_listing_uses_the_credential_of_the_account_listing() -> None:
    assert TRADIER_OPTIONS.credential_of == "tradier"
    assert TRADIER.credential_of == ""
    assert TRADIER_OPTIONS.credential_fields == TRADIER.credential_fields


@pytest.mark.parametrize(
    ("word", "host", "push_host"),
    [
        ("", "api", "ws"),
        ("production", "api", "ws"),
        ("live", "api", "ws"),
        ("sandbox", "sandbox", "sandbox-ws"),
        ("paper", "sandbox", "sandbox-ws"),
    ],
)
def test_an_environment_is_found_by_its_name_and_by_the_venues_name(word: str, host: str, push_host: str) -> None:
    environment = TRADIER.environment(word)
    assert isinstance(environment, Environment)
    urls = {"api": f"https://{host}.tradier.com/v1", "push": f"wss://{push_host}.tradier.com/v1"}
    assert environment.urls == urls


def test_the_account_id_may_be_left_out_because_the_token_shows_its_accounts() -> None:
    required = {field.name: field.required for field in TRADIER.credential_fields}
    assert required == {"api_key": True, "account_id": False}


def test_both_read_balances_of_several_accounts_and_in_the_sandbox_and_one_of_them_is_pushed() -> None:
    for listing in (TRADIER, TRADIER_OPTIONS):
        pushed = listing is TRADIER
        assert listing.capabilities == Capabilities(sandbox=True, several_accounts=True, push=pushed)
        assert listing.unsupported_reason == ""


def test_each_listing_names_its_types_of_account() -> None:
    assert TRADIER.account_types == ("cash", "margin")
    assert TRADIER_OPTIONS.account_types == ("options",)
