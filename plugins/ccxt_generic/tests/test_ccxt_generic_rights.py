"""What a key may do besides reading, as exchanges tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic.simulator import BinanceSimulator, CoinbaseSimulator

from exchange_service.plugin_api import (
    CredentialRejected,
    ExchangeMetadata,
    KeyRights,
    NotSupported,
    VenueMalformed,
)
from exchange_service.testing import venue_call

Listings = Mapping[str, ExchangeMetadata]

BYBIT_KEY = {
    "id": "13770661",
    "readOnly": 0,
    "permissions": {
        "ContractTrade": ["Order", "Position"],
        "Spot": ["SpotTrade"],
        "Wallet": ["AccountTransfer", "SubMemberTransfer"],
        "Options": [],
        "Exchange": ["ExchangeHistory"],
    },
    "ips": ["*"],
    "expiredAt": "2027-05-15T03:21:05Z",
    "uta": 1,
}


async def rights(listing: ExchangeMetadata, url: str, **options: Any) -> KeyRights:
    """Ask as the service would."""
    options = {"api_key": "abcdef0123456789", "api_secret": "c2VjcmV0", "passphrase": "words", **options}
    async with venue_call(listing, override=url, timeout=20.0, **options) as call:
        return await plugin.check_credential(call)


@pytest.mark.parametrize(
    ("granted", "trade", "withdraw"),
    [
        ((), False, False),
        (("enableSpotAndMarginTrading",), True, False),
        (("enableFutures",), True, False),
        (("enableWithdrawals",), False, True),
    ],
)
async def test_the_rights_of_a_binance_key_are_read(
    listings: Listings, binance: BinanceSimulator, granted: tuple[str, ...], trade: bool, withdraw: bool
) -> None:
    binance.wallets["alicekey"].rights = granted
    key: dict[str, Any] = {"api_key": "alicekey", "api_secret": "alicesecret"}
    result = await rights(listings["binance"], binance.url, **key)
    assert (result.trade, result.withdraw) == (trade, withdraw)
    assert any("allow-list" in note for note in result.notes)
    assert all(request.method == "GET" for request in binance.requests)


async def test_the_check_of_rights_rejects_a_refused_key(listings: Listings, binance: BinanceSimulator) -> None:
    with pytest.raises(CredentialRejected):
        await rights(listings["binance"], binance.url, api_key="unknownkey")


@pytest.mark.parametrize(("may_trade", "may_transfer"), [(False, False), (True, False), (True, True)])
async def test_the_rights_of_a_coinbase_key_are_read(listings: Listings, may_trade: bool, may_transfer: bool) -> None:
    async with CoinbaseSimulator() as venue:
        row = venue.demo_credential("moving")
        assert row is not None
        profile = venue.profiles[row["api_key"]]
        profile.may_trade, profile.may_transfer = may_trade, may_transfer
        result = await rights(listings["coinbase"], venue.url, **row)
    assert result == KeyRights(trade=may_trade, withdraw=may_transfer)


@pytest.mark.usefixtures("without_markets")
@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (BYBIT_KEY, (True, False)),
        (BYBIT_KEY | {"readOnly": 1}, (False, False)),
        (BYBIT_KEY | {"permissions": {"Wallet": ["Withdraw"], "Spot": []}}, (False, True)),
    ],
)
async def test_the_rights_of_a_bybit_key_are_read(
    listings: Listings, venue: Any, key: Mapping[str, Any], expected: tuple[bool, bool]
) -> None:
    # The same for the question of the kind of account.
    venue.default = json.dumps({"retCode": 0, "result": key}).encode()
    result = await rights(listings["bybit"], venue.url)
    assert (result.trade, result.withdraw) == expected
    assert result.expires == datetime(2027, 5, 15, 3, 21, 5, tzinfo=UTC)
    assert any("allow-list" in note for note in result.notes)


@pytest.mark.usefixtures("without_markets")
@pytest.mark.parametrize(
    ("granted", "trade", "withdraw"),
    [("read_only", False, False), ("read_only,trade", True, False), ("read_only,withdraw,trade", True, True)],
)
async def test_the_rights_of_an_okx_key_are_read(
    listings: Listings, venue: Any, granted: str, trade: bool, withdraw: bool
) -> None:
    account = {"uid": "1", "perm": granted, "ip": "203.0.113.7", "label": "reader"}
    venue.answers["/api/v5/account/config"] = json.dumps({"code": "0", "data": [account], "msg": ""}).encode()
    assert await rights(listings["okx"], venue.url) == KeyRights(trade=trade, withdraw=withdraw)


@pytest.mark.usefixtures("without_markets")
@pytest.mark.parametrize(
    ("exchange_id", "answer"),
    [
        ("binance", {"enableReading": True}),
        ("binance", {"ipRestrict": True, "enableSpotAndMarginTrading": False, "enableWithdrawals": "no"}),
        ("binance", {"ipRestrict": True, "enableWithdrawals": False, "enableFutures": False}),
        ("bybit", {"retCode": 0, "result": BYBIT_KEY | {"readOnly": "perhaps"}}),
        ("bybit", {"retCode": 0, "result": BYBIT_KEY | {"permissions": []}}),
        ("bybit", {"retCode": 0, "result": BYBIT_KEY | {"expiredAt": "some day"}}),
        ("okx", {"code": "0", "data": []}),
        ("okx", {"code": "0", "data": [{"uid": "1"}]}),
        ("coinbase", {"can_view": True}),
    ],
)
async def test_an_answer_without_the_rights_is_malformed(
    listings: Listings, venue: Any, exchange_id: str, answer: Any
) -> None:
    venue.default = json.dumps(answer).encode()
    with pytest.raises(VenueMalformed, match=listings[exchange_id].name):
        await rights(listings[exchange_id], venue.url)


async def test_if_rights_cannot_be_read_nothing_is_claimed(listings: Listings, venue: Any) -> None:
    result = await rights(listings["kraken"], venue.url)
    assert (result.trade, result.withdraw, result.expires) == (None, None, None)
    assert result.notes
    assert venue.requests == []


async def test_a_test_host_without_the_request_claims_nothing(listings: Listings, binance: BinanceSimulator) -> None:
    key: dict[str, Any] = {"api_key": "alicekey", "api_secret": "alicesecret"}
    result = await rights(listings["binance"], binance.url, environment="sandbox", **key)
    assert (result.trade, result.withdraw) == (None, None)


async def test_an_exchange_that_is_not_supported_gets_no_request(listings: Listings, venue: Any) -> None:
    with pytest.raises(NotSupported):
        await rights(listings["bullish"], venue.url)
