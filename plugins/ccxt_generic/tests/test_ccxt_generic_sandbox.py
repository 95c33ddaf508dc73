"""The test environment: its hosts and no others, chosen by the environment or the metadata, refused where none is."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic.exact import Guarded

from exchange_service.plugin_api import SANDBOX, Environment, ExchangeMetadata, NotSupported, VenueError
from exchange_service.testing import venue_call

Listings = Mapping[str, ExchangeMetadata]

# Their test environment is the live host, chosen by a header.
BY_HEADER = {"okx", "okxus", "myokx"}


def plausible(listing: ExchangeMetadata) -> dict[str, Any]:
    """Options of a call with credentials of the right form for the exchange."""
    known = {"uid": "12345", "account_id": "12345", "login": "bob", "wallet_address": "0x" + "1a" * 20}
    names = {field.name for field in listing.credential_fields}
    wallet = any(field.label == "Private key" for field in listing.credential_fields)
    secret = "0x" + "11" * 32 if wallet else "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI="
    if listing.id in ("modetrade", "woofipro"):
        # 32 bytes in base58.
        secret = "ed25519:4wBqpZM9xaSheZzJSMawUKKwhdpChKbZ5eu5ky4Vigw"
    return {
        "api_key": "account-abcdefgh" if listing.id == "gemini" else "abcdef0123456789",
        "api_secret": secret,
        "passphrase": "words",
        "metadata": {name: text for name, text in known.items() if name in names},
        "timeout": 20.0,
    }


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Mapping[str, str]]]:
    """Where CCXT wants to send requests, and with which headers; none of them leaves."""
    requests: list[tuple[str, Mapping[str, str]]] = []

    async def keep(self: Any, url: str, method: str = "GET", headers: Any = None, body: Any = None) -> Any:
        requests.append((url, self.prepare_request_headers(headers)))
        raise VenueError("not sent")

    monkeypatch.setattr(Guarded, "fetch", keep)
    return requests


def hosts(environment: Environment) -> set[str]:
    return {urlsplit(url).netloc for url in environment.urls.values()}


@pytest.mark.usefixtures("without_markets")
async def test_every_sandbox_is_read_from_its_own_hosts_alone(
    listings: Listings, sent: list[tuple[str, Mapping[str, str]]]
) -> None:
    requested = set()
    for listing in listings.values():
        sandbox, live = listing.environment(SANDBOX), listing.environment("production")
        if sandbox is None or not listing.capabilities.balance:
            continue
        assert live is not None
        for account_type in listing.account_types:
            sent.clear()
            options = {"account_type": account_type, "environment": SANDBOX, **plausible(listing)}
            async with venue_call(listing, **options) as call:
                with contextlib.suppress(VenueError):
                    await plugin.fetch_balance(call)
            for url, headers in sent:
                requested.add(listing.id)
                assert urlsplit(url).netloc in hosts(sandbox), listing.id
                if listing.id in BY_HEADER:
                    assert headers["x-simulated-trading"] == "1"
                else:
                    assert urlsplit(url).netloc not in hosts(live), listing.id
    able = {name for name, listing in listings.items() if listing.capabilities.sandbox and listing.capabilities.balance}
    assert len(able) > 30
    assert requested == able


async def test_an_exchange_without_a_test_host_is_refused_before_a_request(listings: Listings, venue: Any) -> None:
    import ccxt.async_support as ccxt

    without = [listing for listing in listings.values() if not getattr(ccxt, listing.id)().urls.get("test")]
    assert len(without) > 40
    assert not any(listing.environment(SANDBOX) for listing in without)
    for listing in without:
        # The service refuses it before the plugin is called; the plugin does not rely on that.
        invented = replace(listing, environments=(Environment(SANDBOX, {"api": venue.url}),))
        async with venue_call(invented, environment=SANDBOX, override=venue.url, **plausible(listing)) as call:
            with pytest.raises(NotSupported):
                await plugin.fetch_balance(call)
    assert venue.requests == []
