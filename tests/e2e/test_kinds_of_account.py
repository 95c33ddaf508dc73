"""Accounts whose kind the venue has to be asked for, through the whole service: gRPC in, the venue's HTTP out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from plugins.ccxt_generic.tests.every_exchange.by_query import Answers, VenueByQuery
from tests.harness import USER, Running, serving

KEY = {"api_key": "abcdef0123456789", "api_secret": "c2VjcmV0", "passphrase": "words"}
NOTHING: Any = {"code": "200000", "data": []}
KUCOIN: Answers = {
    "/api/v2/symbols": {
        "code": "200000",
        "data": [{"symbol": "BTC-USDT", "baseCurrency": "BTC", "quoteCurrency": "USDT", "enableTrading": True}],
    },
    "/api/v1/market/allTickers": {"code": "200000", "data": {"ticker": []}},
    "/api/v1/contracts/active": {
        "code": "200000",
        "data": [
            {
                "symbol": "XBTUSDM",
                "nextFundingRateTime": 1,
                "baseCurrency": "XBT",
                "quoteCurrency": "USD",
                "settleCurrency": "XBT",
                "isInverse": True,
            }
        ],
    },
    "/api/v3/currencies": {
        "code": "200000",
        "data": [{"currency": "XBT", "name": "BTC", "precision": 8, "chains": []}],
    },
    "/api/ua/v1/account/mode": {"code": "200000", "data": {"selfAccountMode": "CLASSIC"}},
    "/api/v1/hf/accounts/opened": {"code": "200000", "data": True},
    "/api/v1/accounts?type=trade": NOTHING,
    "/api/v1/accounts?type=trade_hf": {
        "code": "200000",
        "data": [
            {"currency": "USDT", "type": "trade_hf", "balance": "14.3497564", "available": "14.3497564", "holds": "0"}
        ],
    },
    "/api/v1/accounts?type=main": NOTHING,
    "/api/v1/margin/account": {"code": "200000", "data": {"accounts": []}},
    "/api/v3/isolated/accounts": {"code": "200000", "data": {"assets": []}},
    "/api/v1/account-overview?currency=USDT": {
        "code": "200000",
        "data": {"accountEquity": 0, "availableBalance": 0, "currency": "USDT"},
    },
    "/api/v1/account-overview?currency=XBT": {
        "code": "200000",
        "data": {"accountEquity": 0.5, "availableBalance": 0.25, "currency": "XBT"},
    },
}
KUCOIN_UNIFIED: Answers = {
    "/api/ua/v1/account/mode": {"code": "200000", "data": {"selfAccountMode": "UNIFIED"}},
    "/api/ua/v1/unified/account/balance": {
        "code": "200000",
        "data": {"accounts": [{"currencies": [{"currency": "USDT", "available": "20", "hold": "1", "equity": "21"}]}]},
    },
    # What is left of the account of trades: an empty list, as for a user with an unused account.
    "/api/v1/accounts?type=trade_hf": NOTHING,
}
BITGET: Answers = {
    "/api/v2/spot/public/symbols": {
        "code": "00000",
        "data": [{"symbol": "BTCUSDT", "baseCoin": "BTC", "quoteCoin": "USDT", "status": "online"}],
    },
    "/api/v2/mix/market/contracts": {"code": "00000", "data": []},
    "/api/v2/margin/currencies": {"code": "00000", "data": []},
    "/api/v2/spot/public/coins": {"code": "00000", "data": []},
    "/api/v3/account/settings": (400, {"code": "40084", "msg": "...", "data": None}),
    "/api/v2/spot/account/assets": {
        "code": "00000",
        "data": [{"coin": "USDT", "available": "10.5", "frozen": "0", "locked": "1.25"}],
    },
}


@asynccontextmanager
async def reading(folder: Path, exchange_id: str, answers: Answers) -> AsyncIterator[tuple[Running, VenueByQuery]]:
    async with VenueByQuery() as venue:
        assert isinstance(venue, VenueByQuery)
        venue.answers = dict(answers)
        async with serving(folder, venue_urls={exchange_id: venue.url}) as running:
            await running.store(exchange_id, **KEY)
            yield running, venue


async def rows(running: Running, exchange_id: str, account_type: str = "") -> dict[str, tuple[str, str, str]]:
    """Total, free and used of each row of a fresh balance, by account type and asset."""
    reply = await running.client.get_balance(USER, exchange_id, account_type=account_type, max_age=0)
    return {
        f"{account.type} {row.asset}": (row.total, row.free, row.used)
        for account in reply.balance.venue_accounts
        for row in account.assets
    }


async def test_kucoins_account_of_high_frequency_and_the_unified_one_that_replaces_it(tmp_path: Path) -> None:
    async with reading(tmp_path, "kucoin", KUCOIN) as (running, venue):
        assert await rows(running, "kucoin") == {"spot USDT": ("14.3497564", "14.3497564", "0")}
        shown = await rows(running, "kucoin", "all")
        assert shown["spot USDT"][0] == "14.3497564"
        assert shown["inverse BTC"][:2] == ("0.5", "0.25")
        venue.answers.update(KUCOIN_UNIFIED)
        seen = [await rows(running, "kucoin") for _ in range(2)]
        assert seen[1] == {"unified USDT": ("21", "20", "1")}


async def test_all_says_what_it_leaves_out(tmp_path: Path) -> None:
    async with reading(tmp_path, "kucoin", KUCOIN) as (running, _):
        reply = await running.client.get_balance(USER, "kucoin", account_type="all")
    left_out = "Left out: future (the same wallet as swap); unified (this account is not unified)."
    assert left_out in list(reply.balance.notes)


async def test_bitgets_classic_account_says_so_with_its_own_code(tmp_path: Path) -> None:
    async with reading(tmp_path, "bitget", BITGET) as (running, _):
        assert await rows(running, "bitget") == {"spot USDT": ("11.75", "10.5", "1.25")}
