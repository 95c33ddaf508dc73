"""Account types: one by its name, the default without one, and every wallet once where all are asked for."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic import instances
from exchange_service_ccxt_generic.account_types import (
    UNIFIED,
    settlement_currencies,
    type_parameters,
    wallets,
)
from exchange_service_ccxt_generic.credentials import read_credential
from exchange_service_ccxt_generic.simulator import BinanceSimulator, SimulatedWallet

from exchange_service.plugin_api import (
    ALL_ACCOUNT_TYPES,
    Balance,
    Credential,
    CredentialRejected,
    ExchangeMetadata,
    FeatureNotEnabled,
    PermissionMissing,
    Secret,
    VenueAccount,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.testing import Fault, venue_call

Read = Callable[..., Awaitable[Balance]]
Listings = Mapping[str, ExchangeMetadata]

OKX_TRADING: Mapping[str, Any] = {
    "code": "0",
    "data": [{"uTime": "1", "details": [{"ccy": "USDT", "eq": "5", "availEq": "4"}]}],
    "msg": "",
}
BYBIT_COIN = {"coin": "USDT", "walletBalance": "7", "locked": "0", "equity": "7", "availableToWithdraw": "7"}
BYBIT_WALLET = {"retCode": 0, "result": {"list": [{"accountType": "UNIFIED", "coin": [BYBIT_COIN]}]}}
BYBIT_FUNDS = {
    "retCode": 0,
    "result": {
        "memberId": "1",
        "accountType": "FUND",
        "balance": [{"coin": "USDC", "transferBalance": "3", "walletBalance": "3", "bonus": ""}],
    },
}


@pytest.fixture
async def alice(binance: BinanceSimulator) -> SimulatedWallet:
    """The simulated wallet with something in every account that it has."""
    wallet = binance.wallets["alicekey"]
    wallet.inverse = {"BTC": ("0.5", "0.4", "0.1")}
    wallet.funding = {"USDT": ("12.5", "0.5")}
    wallet.margin = {"USDT": ("3", "1")}
    return wallet


def totals(account: VenueAccount) -> dict[str, Decimal | None]:
    """The total of each asset of one account."""
    return {row.asset: row.total for row in account.assets}


async def test_an_account_is_read_by_the_name_of_its_type(read: Read, alice: SimulatedWallet) -> None:
    expected = {
        "spot": {"BTC": Decimal("0.4921"), "USDT": Decimal("3.5")},
        "margin": {"USDT": Decimal(4)},
        "future": {"USDT": Decimal("50.5")},
        "swap": {"USDT": Decimal("50.5")},
        "delivery": {"BTC": Decimal("0.5")},
        "funding": {"USDT": Decimal(13)},
    }
    for account_type, assets in expected.items():
        (account,) = (await read(account_type=account_type)).venue_accounts
        assert (account.type, totals(account)) == (account_type, assets)


async def test_a_requested_type_overrides_the_stored_one(read: Read, alice: SimulatedWallet) -> None:
    metadata = {"defaultType": "future"}
    assert (await read(metadata=metadata)).venue_accounts[0].type == "future"
    assert (await read(metadata=metadata, account_type="spot")).venue_accounts[0].type == "spot"


async def test_the_stored_kind_of_contract_is_for_the_stored_type_alone(read: Read, alice: SimulatedWallet) -> None:
    metadata = {"defaultType": "swap", "subType": "inverse"}
    assert "BTC" in totals((await read(metadata=metadata)).venue_accounts[0])
    assert "BTC" in totals((await read(metadata=metadata, account_type="swap")).venue_accounts[0])
    assert "USDT" in totals((await read(metadata=metadata, account_type="future")).venue_accounts[0])


async def test_all_reads_each_wallet_once_as_an_account_of_its_own(
    read: Read, binance: BinanceSimulator, alice: SimulatedWallet
) -> None:
    balance = await read(account_type=ALL_ACCOUNT_TYPES)
    read_types = ["spot", "margin", "isolated", "future", "delivery", "funding"]
    assert [account.type for account in balance.venue_accounts] == read_types
    assert [account.error for account in balance.venue_accounts] == [None] * 6
    requested = [request.path for request in binance.requests if request.account]
    assert len(requested) == len(set(requested)) == 6
    assert balance.summary is not None
    assert (balance.summary.currency, balance.summary.total) == ("USDT", Decimal("71.0"))
    assert balance.notes == (
        "Left out: swap (the same wallet as future); papi (it adds up margin, future, delivery).",
        "Options and savings are not read.",
        "The summary counts USDT alone. Also held: BTC.",
    )


async def test_the_stored_kind_of_contract_does_not_make_all_read_a_wallet_twice(
    read: Read, binance: BinanceSimulator, alice: SimulatedWallet
) -> None:
    metadata = {"defaultType": "future", "subType": "inverse"}
    balance = await read(metadata=metadata, account_type=ALL_ACCOUNT_TYPES)
    shown = {account.type: totals(account) for account in balance.venue_accounts}
    assert (shown["future"], shown["delivery"]) == ({"USDT": Decimal("50.5")}, {"BTC": Decimal("0.5")})


async def test_if_all_accounts_have_one_currency_there_is_one_summary(read: Read, alice: SimulatedWallet) -> None:
    alice.inverse = {}
    balance = await read(account_type=ALL_ACCOUNT_TYPES)
    assert balance.summary is not None
    assert (balance.summary.currency, balance.summary.total) == ("USDT", Decimal("71.0"))


async def test_a_wallet_that_cannot_be_read_stands_with_its_error(read: Read, alice: SimulatedWallet) -> None:
    alice.margin, alice.linear = None, None
    balance = await read(account_type=ALL_ACCOUNT_TYPES)
    errors = {account.type: type(account.error) for account in balance.venue_accounts if account.error}
    # The key is good for the others, so that Binance's -2015 is here about this account.
    assert errors == {"margin": FeatureNotEnabled, "future": PermissionMissing}
    assert balance.summary is None


async def test_portfolio_margin_stands_for_the_accounts_that_it_adds_up(
    read: Read, binance: BinanceSimulator, alice: SimulatedWallet
) -> None:
    # After a user has turned it on, Binance refuses the accounts of futures.
    alice.linear, alice.inverse, alice.portfolio = None, None, {"USDT": "1500.25"}
    balance = await read(account_type=ALL_ACCOUNT_TYPES)
    shown = {account.type: totals(account) for account in balance.venue_accounts}
    assert shown["papi"] == {"USDT": Decimal("1500.25")}
    assert set(shown) == {"spot", "isolated", "funding", "papi"}
    assert "margin (a part of papi)" in balance.notes[0]


async def test_without_portfolio_margin_an_account_of_futures_that_is_refused_stands_with_its_error(
    read: Read, alice: SimulatedWallet
) -> None:
    alice.linear = None
    balance = await read(account_type=ALL_ACCOUNT_TYPES)
    errors = {account.type: type(account.error) for account in balance.venue_accounts if account.error}
    assert errors == {"future": PermissionMissing}
    assert "papi (only some accounts have it, and the venue does not show it for this one)" in balance.notes[0]


async def test_isolated_margin_is_read_beside_the_cross_account(read: Read, alice: SimulatedWallet) -> None:
    alice.isolated = {("BTC", "USDT"): ("0.25", "40"), ("ETH", "USDT"): ("1", "2")}
    balance = await read(account_type=ALL_ACCOUNT_TYPES)
    shown = {account.type: totals(account) for account in balance.venue_accounts}
    assert shown["margin"] == {"USDT": Decimal(4)}
    assert shown["isolated"] == {"BTC": Decimal("0.25"), "USDT": Decimal(42), "ETH": Decimal(1)}


async def test_a_key_that_is_refused_is_sent_once_and_refused_for_all(
    read: Read, binance: BinanceSimulator, alice: SimulatedWallet
) -> None:
    with pytest.raises(CredentialRejected):
        await read(account_type=ALL_ACCOUNT_TYPES, api_secret="wrongsecret")
    assert len([request for request in binance.requests if request.account]) == 1


async def test_after_a_rate_limit_no_further_request_is_sent(
    read: Read, binance: BinanceSimulator, alice: SimulatedWallet
) -> None:
    binance.fail(Fault.rate_limited("7")).account = "alicekey"
    with pytest.raises(VenueRateLimited):
        await read(account_type=ALL_ACCOUNT_TYPES)
    assert len([request for request in binance.requests if request.account]) == 1


async def test_if_no_wallet_can_be_read_a_transient_error_is_raised_first(
    read: Read, binance: BinanceSimulator, alice: SimulatedWallet
) -> None:
    alice.linear, alice.inverse, alice.margin = None, None, None
    for path in ("/api/v3/account", "/sapi/v1/margin/isolated/account", "/sapi/v1/asset/get-funding-asset"):
        binance.fail(Fault(status=502, path=path))
    # The key of the others is refused, which would be taken for lasting.
    with pytest.raises(VenueUnavailable):
        await read(account_type=ALL_ACCOUNT_TYPES)


async def test_if_no_wallet_can_be_read_there_is_an_error(
    read: Read, binance: BinanceSimulator, alice: SimulatedWallet
) -> None:
    for path in ("/api/v3/account", "/fapi/v3/account", "/dapi/v1/account", "/sapi/v1/margin/account"):
        binance.fail(Fault(body=b"{}", path=path))
    for path in ("/sapi/v1/asset/get-funding-asset", "/sapi/v1/margin/isolated/account"):
        binance.fail(Fault(body=b"{}", path=path))
    with pytest.raises(VenueMalformed):
        await read(account_type=ALL_ACCOUNT_TYPES)


async def test_a_silent_wallet_does_not_take_the_others_with_it(
    listings: Listings, binance: BinanceSimulator, alice: SimulatedWallet
) -> None:
    options: dict[str, Any] = {"api_key": "alicekey", "api_secret": "alicesecret", "timeout": 20.0}
    async with venue_call(listings["binance"], override=binance.url, **options) as warm:
        await plugin.fetch_balance(warm)
        binance.fail(Fault(silent=True, path="/dapi/v1/account"))
        shared = {"plugin_state": warm.plugin_state, "account_type": ALL_ACCOUNT_TYPES, **options, "timeout": 2.0}
        async with venue_call(listings["binance"], override=binance.url, **shared) as call:
            balance = await plugin.fetch_balance(call)
    errors = {account.type: type(account.error) for account in balance.venue_accounts if account.error}
    assert errors == {"delivery": VenueTimeout}


async def test_calls_for_several_types_at_the_same_time_do_not_disturb_each_other(
    listings: Listings, binance: BinanceSimulator, alice: SimulatedWallet
) -> None:
    from dataclasses import replace

    binance.fail(Fault(status=502, path="/fapi/v3/account"))
    options: dict[str, Any] = {"api_key": "alicekey", "api_secret": "alicesecret", "timeout": 20.0}
    async with venue_call(listings["binance"], override=binance.url, **options) as call:
        binance.fail(Fault(delay=0.3, pass_on=True, path="/api/v3/account"))
        wanted = [replace(call, account=replace(call.account, account_type=name)) for name in ("spot", "future")]
        spot, future = await asyncio.gather(*map(plugin.fetch_balance, wanted), return_exceptions=True)
    # The trouble of one gives up the instance that both read with, which the other still uses.
    assert isinstance(spot, Balance)
    assert isinstance(future, VenueError)


async def read_scripted(listing: ExchangeMetadata, url: str, **options: Any) -> Balance:
    """Read with credentials of a plausible form."""
    options = {"api_key": "abcdef0123456789", "api_secret": "c2VjcmV0", "passphrase": "words", **options}
    async with venue_call(listing, override=url, timeout=20.0, **options) as call:
        return await plugin.fetch_balance(call)


def tell_bybit(venue: Any, *, unified: bool) -> None:
    status = {"uta": 1 if unified else 0, "unifiedMarginStatus": 6 if unified else 1}
    venue.answers = {
        "/v5/user/query-api": json.dumps({"retCode": 0, "result": status}).encode(),
        "/v5/account/info": json.dumps({"retCode": 0, "result": status}).encode(),
        "/v5/account/wallet-balance": json.dumps(BYBIT_WALLET).encode(),
        "/v5/asset/transfer/query-account-coins-balance": json.dumps(BYBIT_FUNDS).encode(),
    }


def asked_for(venue: Any) -> list[str]:
    """The account types that Bybit was asked for."""
    return [request.query["accountType"] for request in venue.requests if "accountType" in request.query]


@pytest.mark.usefixtures("without_markets")
async def test_bybits_unified_account_is_read_once_for_all(listings: Listings, venue: Any) -> None:
    tell_bybit(venue, unified=True)
    balance = await read_scripted(listings["bybit"], venue.url, account_type=ALL_ACCOUNT_TYPES)
    assert {account.type: totals(account) for account in balance.venue_accounts} == {
        UNIFIED: {"USDT": Decimal(7)},
        "funding": {"USDC": Decimal(3)},
    }
    assert asked_for(venue) == ["UNIFIED", "FUND"]


@pytest.mark.usefixtures("without_markets")
async def test_bybits_older_account_is_read_wallet_by_wallet(listings: Listings, venue: Any) -> None:
    tell_bybit(venue, unified=False)
    balance = await read_scripted(listings["bybit"], venue.url, account_type=ALL_ACCOUNT_TYPES)
    assert [account.type for account in balance.venue_accounts] == ["swap", "spot", "funding"]
    assert asked_for(venue)[0] == "CONTRACT"
    assert sorted(asked_for(venue)) == ["CONTRACT", "FUND", "SPOT"]


def tell_gate(venue: Any, mode: int) -> None:
    coins = {"USDT": {"available": "7", "freeze": "0"}}
    venue.answers = {
        "/api/v4/account/detail": json.dumps({"key": {"mode": mode}}).encode(),
        "/api/v4/unified/accounts": json.dumps({"locked": False, "balances": coins}).encode(),
        "/api/v4/spot/accounts": b"[]",
    }
    venue.default = b"[]"


@pytest.mark.usefixtures("without_markets")
@pytest.mark.parametrize("requested", ["", "spot", ALL_ACCOUNT_TYPES])
async def test_an_error_about_the_kind_of_account_is_not_taken_for_the_plain_kind(
    listings: Listings, venue: Any, requested: str
) -> None:
    tell_gate(venue, mode=2)
    venue.fail(Fault(status=502, path="/api/v4/account/detail", times=1))
    options: dict[str, Any] = {"api_key": "abcdef0123456789", "api_secret": "c2VjcmV0", "account_type": requested}
    async with venue_call(listings["gate"], override=venue.url, timeout=20.0, **options) as call:
        outcomes = await asyncio.gather(*(plugin.fetch_balance(call) for _ in range(3)), return_exceptions=True)
        after = await plugin.fetch_balance(call)
    assert {type(outcome) for outcome in outcomes} == {VenueUnavailable}
    assert [totals(account) for account in after.venue_accounts] == [{"USDT": Decimal(7)}]
    assert {request.path for request in venue.requests} == {"/api/v4/account/detail", "/api/v4/unified/accounts"}


@pytest.mark.usefixtures("without_markets")
async def test_the_kind_of_account_is_read_again_after_a_while(
    listings: Listings, venue: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "INSTANCE_AGE", 0.0)
    options: dict[str, Any] = {"api_key": "abcdef0123456789", "api_secret": "c2VjcmV0"}
    async with venue_call(listings["gate"], override=venue.url, timeout=20.0, **options) as call:
        tell_gate(venue, mode=1)
        assert list((await plugin.fetch_balance(call)).rows()) == []
        tell_gate(venue, mode=2)
        assert totals((await plugin.fetch_balance(call)).venue_accounts[0]) == {"USDT": Decimal(7)}


@pytest.mark.usefixtures("without_markets")
@pytest.mark.parametrize(("unified", "expected"), [(True, UNIFIED), (False, "swap")])
async def test_without_a_requested_type_the_account_has_its_real_type(
    listings: Listings, venue: Any, unified: bool, expected: str
) -> None:
    tell_bybit(venue, unified=unified)
    assert (await read_scripted(listings["bybit"], venue.url)).venue_accounts[0].type == expected


@pytest.mark.usefixtures("without_markets")
async def test_a_requested_unified_account_that_the_user_lacks_is_a_feature_not_enabled(
    listings: Listings, venue: Any
) -> None:
    tell_bybit(venue, unified=False)
    with pytest.raises(FeatureNotEnabled):
        await read_scripted(listings["bybit"], venue.url, account_type=UNIFIED)


@pytest.mark.usefixtures("without_markets")
async def test_a_market_of_a_unified_account_is_the_unified_account(listings: Listings, venue: Any) -> None:
    tell_bybit(venue, unified=True)
    (account,) = (await read_scripted(listings["bybit"], venue.url, account_type="spot")).venue_accounts
    assert (account.type, totals(account)) == ("spot", {"USDT": Decimal(7)})


@pytest.mark.usefixtures("without_markets")
async def test_okxs_two_accounts_are_read_each(listings: Listings, venue: Any) -> None:
    venue.answers = {
        "/api/v5/account/balance": json.dumps(OKX_TRADING).encode(),
        "/api/v5/asset/balances": b'{"code":"0","data":[{"ccy":"BTC","bal":"1","availBal":"1","frozenBal":"0"}]}',
    }
    balance = await read_scripted(listings["okx"], venue.url, account_type=ALL_ACCOUNT_TYPES)
    assert [account.type for account in balance.venue_accounts] == ["trading", "funding"]
    assert totals(balance.venue_accounts[1]) == {"BTC": Decimal(1)}


@pytest.mark.usefixtures("without_markets")
async def test_a_second_trading_account_in_okxs_answer_is_not_left_out_silently(listings: Listings, venue: Any) -> None:
    venue.default = json.dumps({**OKX_TRADING, "data": OKX_TRADING["data"] * 2}).encode()
    with pytest.raises(VenueMalformed):
        await read_scripted(listings["okx"], venue.url)


def credential_of(listing: ExchangeMetadata, **metadata: str) -> Credential:
    return Credential(Secret("key"), Secret("c2VjcmV0"), Secret("words"), metadata)


def test_the_default_is_the_first_type_of_a_listing(listings: Listings) -> None:
    for listing in listings.values():
        assert listing.default_account_types == listing.account_types[:1]
        assert ALL_ACCOUNT_TYPES not in listing.account_types
        assert len(set(listing.account_types)) == len(listing.account_types)
        wish = read_credential(credential_of(listing), listing.id, (), listing.account_types).wish
        assert (wish.account_type, wish.named) == (listing.account_types[0], False)


def test_the_type_that_users_call_their_balance_comes_first(listings: Listings) -> None:
    defaults = {name: listings[name].account_types[0] for name in ("binance", "bybit", "okx", "krakenfutures", "gate")}
    assert defaults == {
        "binance": "spot",
        "bybit": UNIFIED,
        "okx": "trading",
        "krakenfutures": "flex",
        "gate": "spot",
    }


def kinds_of_account() -> Iterator[Mapping[str, bool]]:
    """CCXT's options for an account of several wallets and for a unified one."""
    names = ("enableUnifiedMargin", "enableUnifiedAccount", "unifiedAccount", "uta")
    yield dict.fromkeys(names, False)
    yield dict.fromkeys(names, True)


def test_every_wallet_is_of_a_listed_type_and_has_its_own_request(listings: Listings) -> None:
    for listing in listings.values():
        for options in kinds_of_account():
            types = wallets(listing.id, listing.account_types, options)
            assert set(types) <= set(listing.account_types), listing.id
            if len(types) > 1:
                parameters = [
                    json.dumps(type_parameters(listing.id, name), sort_keys=True)
                    for name in types
                    if settlement_currencies(listing.id, name, {}, {}) is None
                ]
                assert len(set(parameters)) == len(parameters), listing.id


@pytest.mark.usefixtures("without_markets")
async def test_every_wallet_of_an_exchange_is_another_request(listings: Listings, venue: Any) -> None:
    """No two of the types that `all` reads ask the venue for the same, or one wallet would be counted twice."""
    one_answer_for_all = {"bitfinex", "krakenfutures", "latoken", "lighter"}
    not_without_assets = {"phemex"}
    other_hosts = {"xt"}
    tell_bybit(venue, unified=False)
    # Bitget takes an answer without a fault for a unified account.
    venue.answers["/api/v3/account/settings"] = b'{"code":"40084","msg":"You are in Classic Account mode"}'
    venue.answers["/api/v4/account/detail"] = b'{"key":{"mode":1}}'
    venue.answers["/api/v1/hf/accounts/opened"] = b'{"code":"200000","data":false}'
    venue.answers["/api/ua/v1/account/mode"] = b'{"code":"200000","data":{"selfAccountMode":"CLASSIC"}}'
    for listing in listings.values():
        types = [
            name
            for name in wallets(listing.id, listing.account_types, {})
            if settlement_currencies(listing.id, name, {}, {}) is None
        ]
        if len(types) < 2 or listing.id in one_answer_for_all | not_without_assets | other_hosts:
            continue
        if not listing.capabilities.balance:
            continue
        seen = {}
        for account_type in types:
            venue.requests.clear()
            metadata = {field.name: "0x" + "1a" * 20 for field in listing.credential_fields if "wallet" in field.name}
            with contextlib.suppress(VenueError):
                await read_scripted(listing, venue.url, account_type=account_type, metadata=metadata)
            varying = ("timestamp", "signature", "Signature", "Timestamp", "nonce", "tonce", "requestId", "recvWindow")
            last = venue.requests[-1]
            query = {name: value for name, value in last.query.items() if name not in varying}
            body = last.body if last.method == "POST" and not query else b""
            seen[account_type] = (last.path, json.dumps(query, sort_keys=True), body[:40])
        assert len(set(seen.values())) == len(types), f"{listing.id}: {seen}"
