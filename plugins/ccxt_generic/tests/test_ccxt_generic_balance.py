"""Balances through CCXT's own classes, against venues on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import warnings
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic.simulator import BinanceSimulator, SimulatedWallet

from exchange_service.plugin_api import (
    Balance,
    CredentialRejected,
    ExchangeMetadata,
    NotSupported,
    PermissionMissing,
    State,
    VenueError,
    VenueMalformed,
)
from exchange_service.testing import Fault, venue_call
from plugins.ccxt_generic.tests.every_exchange.true_answers import TrueAnswer, true_answer

Read = Callable[..., Awaitable[Balance]]
Listings = Mapping[str, ExchangeMetadata]

MARKET_PATHS = ["/api/v3/exchangeInfo", "/fapi/v1/exchangeInfo", "/dapi/v1/exchangeInfo"]


def spot_answer(balances: str) -> bytes:
    """Binance's answer for a spot account with these balances, as JSON text."""
    return b'{"canTrade":true,"accountType":"SPOT","updateTime":1730419200000,"balances":' + balances.encode() + b"}"


def row(balance: Balance, asset: str) -> tuple[Decimal | None, Decimal | None, Decimal | None]:
    """Total, free and used of one asset."""
    assets = {entry.asset: entry for _, entry in balance.rows()}[asset]
    return assets.total, assets.free, assets.used


async def test_a_spot_account_is_read(read: Read) -> None:
    balance = await read()
    (account,) = balance.venue_accounts
    assert account.type == "spot"
    assert row(balance, "BTC") == (Decimal("0.4921"), Decimal("0.4821"), Decimal("0.01"))
    assert balance.summary is not None
    assert (balance.summary.currency, balance.summary.total, balance.summary.available) == (
        "USDT",
        Decimal("3.5"),
        Decimal("1.5"),
    )
    # Binance's time is that of the account's last change, and says nothing of these figures.
    assert balance.venue_time is None


@pytest.mark.parametrize("environment", ["production", "sandbox"])
async def test_the_owners_row_for_futures_reads_the_futures_account(read: Read, environment: str) -> None:
    metadata = {"sandbox": True, "options": {"defaultType": "future"}}
    balance = await read(environment=environment, metadata=metadata)
    assert balance.venue_accounts[0].type == "future"
    assert row(balance, "USDT") == (Decimal("50.5"), Decimal("40.25"), Decimal("10.25"))


@pytest.mark.parametrize("quote", ['"', ""])
async def test_thirty_digits_arrive_as_text_and_as_bare_numbers(
    read: Read, binance: BinanceSimulator, quote: str
) -> None:
    digits = "123456789012.345678901234567891"
    body = spot_answer(f'[{{"asset":"BTC","free":{quote}{digits}{quote},"locked":{quote}0{quote}}}]')
    binance.fail(Fault(body=body, path="/api/v3/account"))
    assert row(await read(), "BTC")[:2] == (Decimal(digits), Decimal(digits))


async def test_an_account_without_assets_is_truly_empty(read: Read, binance: BinanceSimulator) -> None:
    binance.wallets["alicekey"].spot.clear()
    balance = await read()
    assert balance.venue_accounts[0].assets == ()
    assert balance.summary is None


async def test_rows_of_zeros_are_passed_on(read: Read, binance: BinanceSimulator) -> None:
    binance.wallets["alicekey"].spot = {"BNB": ("0.00000000", "0.00000000")}
    assert row(await read(), "BNB") == (Decimal(0), Decimal(0), Decimal(0))


async def test_without_a_dollar_row_there_is_no_summary(read: Read, binance: BinanceSimulator) -> None:
    binance.wallets["alicekey"].spot = {"BTC": ("1", "0")}
    assert (await read()).summary is None


async def test_two_accounts_share_one_loading_of_markets(listings: Listings, binance: BinanceSimulator) -> None:
    binance.add_wallet(SimulatedWallet("bobkey", "bobsecret", {"ETH": ("1", "0")}))
    shared = State()

    async def one(name: str) -> Balance:
        options: dict[str, Any] = {"api_key": f"{name}key", "api_secret": f"{name}secret", "plugin_state": shared}
        async with venue_call(listings["binance"], override=binance.url, timeout=20.0, **options) as call:
            await plugin.fetch_balance(call)
            return await plugin.fetch_balance(call)

    alice, bob = await asyncio.gather(one("alice"), one("bob"))
    await shared.close()
    assert [entry.asset for _, entry in bob.rows()] == ["ETH"]
    assert len(list(alice.rows())) == 2
    paths = [request.path for request in binance.requests]
    assert sorted(path for path in paths if path != "/api/v3/account") == sorted(MARKET_PATHS)
    assert not any(request.account for request in binance.requests if request.path in MARKET_PATHS)


async def test_a_cancelled_caller_does_not_stop_the_markets_for_others(
    listings: Listings, binance: BinanceSimulator
) -> None:
    binance.fail(Fault(delay=0.5, pass_on=True, path="/api/v3/exchangeInfo"))
    options: dict[str, Any] = {"api_key": "alicekey", "api_secret": "alicesecret", "timeout": 20.0}
    async with venue_call(listings["binance"], override=binance.url, **options) as call:
        await plugin.fetch_balance(call)
        call.plugin_state.forget("markets binance production " + binance.url)
        binance.requests.clear()
        first = asyncio.create_task(plugin.fetch_balance(call))
        await asyncio.sleep(0.1)
        second = asyncio.create_task(plugin.fetch_balance(call))
        await asyncio.sleep(0.1)
        first.cancel()
        assert len(list((await second).rows())) == 2
        with pytest.raises(asyncio.CancelledError):
            await first
        assert [request.path for request in binance.requests].count("/api/v3/exchangeInfo") == 1


async def test_a_call_cancelled_at_the_venue_leaves_the_account_readable(
    listings: Listings, binance: BinanceSimulator
) -> None:
    options: dict[str, Any] = {"api_key": "alicekey", "api_secret": "alicesecret", "timeout": 20.0}
    async with venue_call(listings["binance"], override=binance.url, **options) as call:
        await plugin.fetch_balance(call)
        silence = binance.fail(Fault(silent=True, path="/api/v3/account"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(plugin.fetch_balance(call), 0.5)
        binance.recover(silence)
        assert len(list((await plugin.fetch_balance(call)).rows())) == 2


async def test_nothing_is_left_open_or_warned_of(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.DEBUG):
        warnings.simplefilter("error")
        start = asyncio.get_running_loop().time()
        await read()
        gc.collect()
    assert asyncio.get_running_loop().time() - start < 15
    logged = [record for record in caplog.records if record.name.startswith("ccxt")]
    assert logged == []


async def read_scripted(listing: ExchangeMetadata, url: str, metadata: Mapping[str, Any] | None = None) -> Balance:
    """Read any exchange with credentials of a plausible form."""
    secret = "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI="
    key = "account-abcdefgh" if listing.id == "gemini" else "abcdef0123456789"
    options: dict[str, Any] = {"api_key": key, "api_secret": secret, "passphrase": "words"}
    async with venue_call(listing, override=url, metadata=metadata, timeout=20.0, **options) as call:
        return await plugin.fetch_balance(call)


def tell(venue: Any, answer: TrueAnswer) -> None:
    """Let the venue give this answer, and its answers before."""
    told = {
        **{request: json.dumps(body).encode() for request, body in answer.before.items()},
        answer.request: answer.body,
    }
    venue.answers = {request.partition(" ")[2]: body for request, body in told.items()}


@pytest.mark.usefixtures("without_markets")
async def test_the_venues_own_code_stands_beside_ccxts(listings: Listings, venue: Any) -> None:
    venue.answers["/v2/auth/r/wallets"] = b'[["exchange","UST",1.5,0,1.5,"",null]]'
    balance = await read_scripted(listings["bitfinex"], venue.url)
    assert [(entry.asset, entry.venue_asset.upper()) for _, entry in balance.rows()] == [("USDT", "UST")]


@pytest.mark.usefixtures("without_markets")
async def test_the_venues_own_code_is_left_out_if_it_is_the_same(listings: Listings, venue: Any) -> None:
    tell(venue, true_answer("gate/spot"))
    balance = await read_scripted(listings["gate"], venue.url)
    assert [(entry.asset, entry.venue_asset) for _, entry in balance.rows()] == [("USDT", "")]


@pytest.mark.usefixtures("without_markets")
async def test_two_assets_that_ccxt_names_alike_have_a_row_each(listings: Listings, venue: Any) -> None:
    venue.answers["/v2/auth/r/wallets"] = b'[["exchange","UST",1.5,0,1.5,"",null],["exchange","USDT",0,0,0,"",null]]'
    balance = await read_scripted(listings["bitfinex"], venue.url)
    assert [(entry.asset, entry.venue_asset, entry.total) for _, entry in balance.rows()] == [
        ("UST", "", Decimal("1.5")),
        ("USDT", "", Decimal(0)),
    ]


@pytest.mark.usefixtures("without_markets")
@pytest.mark.parametrize("exchange_id", ["bitget", "gate"])
async def test_an_error_while_reading_the_kind_of_account_is_not_taken_for_a_kind(
    listings: Listings, venue: Any, exchange_id: str
) -> None:
    answer = true_answer(f"{exchange_id}/spot-empty")
    tell(venue, answer)
    (probe,) = answer.before
    venue.answers[probe.partition(" ")[2]] = b"<html>maintenance</html>"
    with pytest.raises(VenueMalformed):
        await read_scripted(listings[exchange_id], venue.url)


@pytest.mark.usefixtures("without_markets")
@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (403, {"label": "FORBIDDEN", "message": "no right"}, PermissionMissing),
        (401, {"label": "INVALID_KEY", "message": "Invalid key provided"}, CredentialRejected),
        (400, {"label": "INVALID_REQUEST", "message": "no"}, VenueMalformed),
        (200, {"key": {}}, VenueMalformed),
        (200, {"key": {"mode": 7}}, VenueMalformed),
    ],
)
async def test_a_key_that_may_not_ask_for_the_kind_of_account_reads_no_wallet(
    listings: Listings, venue: Any, status: int, body: Any, expected: type[VenueError]
) -> None:
    """Gate's answer for spot would be the plain account's, whichever the user has."""
    answer = true_answer("gate/spot")
    tell(venue, answer)
    (probe,) = answer.before
    fault = Fault(status=status, body=json.dumps(body).encode(), path=probe.partition(" ")[2])
    venue.fail(fault)
    with pytest.raises(expected) as caught:
        await read_scripted(listings["gate"], venue.url)
    assert type(caught.value) is expected
    assert [request.path for request in venue.requests] == [fault.path]


@pytest.mark.usefixtures("without_markets")
async def test_exchanges_that_sign_in_or_approve_something_are_refused_before_a_request(
    listings: Listings, venue: Any
) -> None:
    for exchange_id in ("aster", "bullish", "grvt", "paradex", "polymarket"):
        with pytest.raises(NotSupported):
            await read_scripted(listings[exchange_id], venue.url)
    assert venue.requests == []


async def test_a_request_that_may_change_something_is_refused_before_it_leaves(
    listings: Listings, binance: BinanceSimulator
) -> None:
    from ccxt.async_support import binance as ccxt_binance
    from exchange_service_ccxt_generic.exact import Exact, make_layered_class

    async with venue_call(listings["binance"], override=binance.url) as call:
        instance = make_layered_class(Exact, ccxt_binance)(
            {"session": call.http.client_session, "apiKey": "a", "secret": "b"}
        )
        for change in (instance.privatePostOrder, instance.privateDeleteOrder, instance.sapiPostCapitalWithdrawApply):
            with pytest.raises(NotSupported):
                await change({"symbol": "BTCUSDT"})
        with pytest.raises(NotSupported):
            await instance.sign_in()
        await instance.close()
    assert binance.requests == []


@pytest.mark.usefixtures("without_markets")
async def test_the_first_account_type_of_a_listing_is_read_by_default(listings: Listings, venue: Any) -> None:
    several = [listing for listing in listings.values() if len(listing.account_types) > 1]
    assert len(several) > 20
    for listing in several:
        paths = []
        for metadata in ({}, {"defaultType": listing.account_types[0]}):
            venue.requests.clear()
            with contextlib.suppress(VenueError):
                await read_scripted(listing, venue.url, metadata)
            paths.append([request.path for request in venue.requests])
        assert paths[0] == paths[1], listing.id
