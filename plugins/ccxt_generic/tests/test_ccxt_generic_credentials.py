"""What a user stored reaches CCXT only as known names with known values."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest
from exchange_service_ccxt_generic.credentials import read_credential
from exchange_service_ccxt_generic.simulator import BinanceSimulator

from exchange_service.plugin_api import Balance, Credential, CredentialInvalid, ExchangeMetadata, NotSupported, Secret

Read = Callable[..., Awaitable[Balance]]
SPOT_KEYS = ("apiKey", "secret")
OFFERED = ("spot", "margin", "future", "swap", "delivery", "funding")


def stored(key: str = "key", secret: str = "secret", passphrase: str = "", **metadata: Any) -> Credential:
    """A stored credential."""
    return Credential(Secret(key), Secret(secret), Secret(passphrase), metadata)


def names_that_ccxt_would_take() -> Iterator[str]:
    """Each key of an exchange's description, and each attribute that a constructor key would overwrite."""
    from ccxt.async_support import binance

    instance = binance()
    yield from instance.describe()
    yield from (name for name in dir(instance) if not name.startswith("__"))
    yield from ("urls", "hostname", "verify", "aiohttp_trust_env", "httpsProxy", "libraryPath", "apiKey", "session")


def test_no_name_of_ccxts_own_is_taken_from_the_metadata() -> None:
    refused = 0
    for name in set(names_that_ccxt_would_take()) - {"options"}:
        evil = {name: "https://evil.example"}
        for metadata in (evil, {"options": evil}):
            with pytest.raises(CredentialInvalid):
                read_credential(
                    Credential(Secret("k"), Secret("s"), Secret(""), metadata), "binance", SPOT_KEYS, OFFERED
                )
        refused += 1
    assert refused > 500


async def test_a_refused_credential_sends_nothing(read: Read, binance: BinanceSimulator) -> None:
    for metadata in ({"urls": {"api": "https://evil.example"}}, {"options": {"defaultType": "savings"}}):
        with pytest.raises(CredentialInvalid):
            await read(metadata=metadata)
    assert binance.requests == []


@pytest.mark.parametrize("metadata", [{"defaultType": "future"}, {"options": {"defaultType": "future"}}])
def test_the_account_type_is_taken_in_both_forms(metadata: Mapping[str, Any]) -> None:
    wish = read_credential(stored(sandbox=True, **metadata), "binance", SPOT_KEYS, OFFERED).wish
    assert wish.account_type == "future"
    assert wish.parameters == {"type": "future"}


def test_without_a_requested_type_the_exchanges_default_is_read() -> None:
    wish = read_credential(stored(), "binance", SPOT_KEYS, OFFERED).wish
    assert (wish.account_type, dict(wish.parameters)) == ("spot", {})


def test_ccxts_names_of_an_account_type_are_accepted() -> None:
    required = ("apiKey", "secret", "password")
    wish = read_credential(stored(passphrase="p", defaultType="swap"), "okx", required, ("trading", "funding")).wish
    assert wish.account_type == "trading"


def test_the_kinds_of_contract_and_of_margin_that_ccxt_knows_are_accepted() -> None:
    swap = stored(options={"defaultType": "swap", "defaultSubType": "inverse"})
    wish = read_credential(swap, "binance", SPOT_KEYS, OFFERED).wish
    assert wish.parameters == {"type": "swap", "subType": "inverse"}
    margin = stored(options={"defaultType": "margin", "defaultMarginMode": "isolated"})
    wish = read_credential(margin, "binance", SPOT_KEYS, OFFERED).wish
    assert wish.parameters == {"type": "margin", "marginMode": "isolated"}


def test_an_option_that_would_read_another_account_is_refused() -> None:
    for metadata in ({"subType": "linear"}, {"defaultType": "delivery", "subType": "linear"}, {"marginMode": "cross"}):
        with pytest.raises(CredentialInvalid):
            read_credential(stored(**metadata), "binance", SPOT_KEYS, OFFERED)


def test_a_type_that_ccxt_takes_for_another_account_has_explicit_parameters() -> None:
    wish = read_credential(stored(defaultType="delivery"), "binance", SPOT_KEYS, OFFERED).wish
    assert wish.parameters == {"type": "delivery", "subType": "inverse"}


@pytest.mark.parametrize(
    "metadata",
    [
        {"defaultType": "savings"},
        {"defaultType": ""} | {"subType": "quadratic"},
        {"options": "future"},
        {"options": {"defaultType": {"a": 1}}},
        {"options": {"defaultType": 7}},
        {"defaultType": "spot", "options": {"defaultType": "future"}},
        {"marginMode": "x" * 2000},
        {"wallet_address": "0x" + "1a" * 20},
    ],
)
def test_unknown_values_are_refused(metadata: Mapping[str, Any]) -> None:
    with pytest.raises(CredentialInvalid) as caught:
        read_credential(stored(**metadata), "binance", SPOT_KEYS, OFFERED)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("required", "credential", "field"),
    [
        (("apiKey", "secret"), stored(key=""), "api_key"),
        (("apiKey", "secret"), stored(secret=" "), "api_secret"),
        (("apiKey", "password", "secret"), stored(), "passphrase"),
        (("apiKey", "secret", "uid"), stored(), "extra_metadata.uid"),
        (("accountId", "apiKey", "secret"), stored(), "extra_metadata.account_id"),
        (("apiKey", "login", "secret"), stored(), "extra_metadata.login"),
        (("privateKey",), stored(secret=""), "api_secret"),
        (("privateKey", "secret"), stored(), "extra_metadata.private_key"),
        (("walletAddress",), stored(), "extra_metadata.wallet_address"),
        (("apiKey", "secret"), stored(key="k\r\nX-Evil: 1"), "api_key"),
    ],
)
def test_a_missing_field_has_our_name(required: tuple[str, ...], credential: Credential, field: str) -> None:
    with pytest.raises(CredentialInvalid, match=field.replace(".", r"\.")):
        read_credential(credential, "any", required, ("spot",))


def test_each_field_reaches_ccxts_own() -> None:
    credential = stored(passphrase="words", uid=42, login="bob")
    required = ("apiKey", "login", "password", "secret", "uid")
    assert read_credential(credential, "ndax", required, ("spot",)).constructor == {
        "apiKey": "key",
        "secret": "secret",
        "password": "words",
        "uid": "42",
        "login": "bob",
    }


def test_an_account_id_serves_as_uid_if_only_that_is_needed() -> None:
    assert read_credential(stored(account_id="7"), "coinmate", ("uid",), ("spot",)).constructor == {"uid": "7"}


def test_a_wallets_private_key_is_in_the_sealed_column() -> None:
    address = "0x" + "1A" * 20
    credential = stored(key="", secret="0xfeed", wallet_address=address)
    required = ("privateKey", "walletAddress")
    constructor = read_credential(credential, "derive", required, ("spot",)).constructor
    assert constructor == {"privateKey": "0xfeed", "walletAddress": address.lower()}


def test_a_read_credential_does_not_show_itself() -> None:
    assert "secret" not in repr(read_credential(stored(), "binance", SPOT_KEYS, OFFERED))


@pytest.mark.usefixtures("without_markets")
async def test_a_secret_that_cannot_sign_is_the_users_to_correct(
    listings: Mapping[str, ExchangeMetadata], venue: Any
) -> None:
    import exchange_service_ccxt_generic as plugin

    from exchange_service.testing import venue_call

    async with venue_call(
        listings["kraken"], override=venue.url, api_key="key", api_secret="not-base64", timeout=20.0
    ) as call:
        with pytest.raises(CredentialInvalid, match="sign"):
            await plugin.fetch_balance(call)
    assert venue.requests == []


@pytest.mark.usefixtures("without_markets")
async def test_an_invalid_private_key_is_a_credential_invalid(
    listings: Mapping[str, ExchangeMetadata], venue: Any
) -> None:
    import exchange_service_ccxt_generic as plugin

    from exchange_service.testing import venue_call

    async with venue_call(listings["lighter"], override=venue.url, api_secret="no key", timeout=20.0) as call:
        with pytest.raises(CredentialInvalid):
            await plugin.fetch_balance(call)
    assert venue.requests == []


async def test_without_a_test_host_the_sandbox_is_not_supported(listings: Mapping[str, ExchangeMetadata]) -> None:
    from dataclasses import replace

    import exchange_service_ccxt_generic as plugin

    from exchange_service.plugin_api import Environment
    from exchange_service.testing import venue_call

    assert listings["kraken"].environment("sandbox") is None
    invented = replace(listings["kraken"], environments=(Environment("sandbox", {"api": "https://api.kraken.com"}),))
    async with venue_call(invented, environment="sandbox", api_key="key", api_secret="c2VjcmV0") as call:
        with pytest.raises(NotSupported):
            await plugin.fetch_balance(call)
