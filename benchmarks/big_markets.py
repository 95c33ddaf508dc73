"""Twenty exchanges on one loopback address, each with lists of markets as large as Binance's. A program of its own:

    python -m benchmarks.big_markets

prints one line of JSON, a list of [exchange, address, credential], and serves until its standard input ends. The lists
are invented, in each exchange's real format, and sent compressed, as the exchanges send them.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import exchange_service_ccxt_generic as plugin
from aiohttp import web

from plugins.ccxt_generic.tests.every_exchange.credentials import credential
from plugins.ccxt_generic.tests.every_exchange.well_formed import ACCOUNTS, as_json

# Binance's list for its spot market has over 3,000 entries of 5 kB, most of it names of groups that may trade.
MARKETS = 2_800
_GROUPS = [[f"TRD_GRP_{number:03}" for number in range(275)]]
_WHOLE = "999999999.00000000"

Item = dict[str, Any]


def _named(make: Callable[[str], Item]) -> list[Item]:
    return [{**make(asset), "permissionSets": _GROUPS} for asset in _assets()]


def _assets() -> Iterator[str]:
    yield "BTC"
    yield from (f"COIN{number}" for number in range(1, MARKETS))


def _binance(asset: str) -> Item:
    return {
        "symbol": f"{asset}USDT",
        "status": "TRADING",
        "baseAsset": asset,
        "baseAssetPrecision": 8,
        "quoteAsset": "USDT",
        "quotePrecision": 8,
        "quoteAssetPrecision": 8,
        "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET", "STOP_LOSS", "STOP_LOSS_LIMIT", "TAKE_PROFIT"],
        "isSpotTradingAllowed": True,
        "isMarginTradingAllowed": True,
        "filters": [
            {"filterType": "PRICE_FILTER", "minPrice": "0.01", "maxPrice": "1000000.00", "tickSize": "0.01"},
            {"filterType": "LOT_SIZE", "minQty": "0.00001", "maxQty": "9000.0", "stepSize": "0.00001"},
            {"filterType": "NOTIONAL", "minNotional": "5.0", "applyMinToMarket": True, "maxNotional": _WHOLE},
        ],
        "permissions": [],
    }


def _contract(asset: str) -> Item:
    own = {"pair": f"{asset}USDT", "contractType": "PERPETUAL", "deliveryDate": 4133404800000, "marginAsset": "USDT"}
    return _binance(asset) | own | {"pricePrecision": 2, "quantityPrecision": 3, "onboardDate": 1569398400000}


def _inverse(asset: str) -> Item:
    own = {"symbol": f"{asset}USD_PERP", "contractStatus": "TRADING", "contractSize": 100, "quoteAsset": "USD"}
    return _contract(asset) | own | {"pair": f"{asset}USD", "marginAsset": asset}


def _okx(asset: str) -> Item:
    own = {"instType": "SPOT", "instId": f"{asset}-USDT", "baseCcy": asset, "quoteCcy": "USDT", "state": "live"}
    sizes = {"lotSz": "0.00000001", "minSz": "0.00001", "tickSz": "0.1", "maxLmtSz": "9999999999", "lever": "10"}
    return {**own, **sizes, "category": "1", "listTime": "1548133413000", "ctVal": "", "settleCcy": "", "uly": ""}


def _bybit(asset: str) -> Item:
    sizes = {"basePrecision": "0.000001", "quotePrecision": "0.00000001", "minOrderQty": "0.000048"}
    return {
        "symbol": f"{asset}USDT",
        "baseCoin": asset,
        "quoteCoin": "USDT",
        "innovation": "0",
        "status": "Trading",
        "marginTrading": "both",
        "lotSizeFilter": {**sizes, "maxOrderQty": "71.7", "minOrderAmt": "1", "maxOrderAmt": "2000000"},
        "priceFilter": {"tickSize": "0.01"},
    }


def _hitbtc(asset: str) -> Item:
    own = {"type": "spot", "base_currency": asset, "quote_currency": "USDT", "quantity_increment": "0.1"}
    fees = {"tick_size": "0.001", "take_rate": "0.0025", "make_rate": "0.001", "fee_currency": "USDT"}
    return {**own, **fees, "margin_trading": True, "max_initial_leverage": "5.00"}


def _gate(asset: str) -> Item:
    own = {"id": f"{asset}_USDT", "base": asset, "quote": "USDT", "fee": "0.2", "trade_status": "tradable"}
    return {**own, "min_base_amount": "0.01", "min_quote_amount": "0.001", "amount_precision": 3, "precision": 6}


def _coinbase(asset: str) -> Item:
    own = {"id": f"{asset}-USD", "base_currency": asset, "quote_currency": "USD", "status": "online"}
    return {**own, "quote_increment": "0.01", "base_increment": "0.00000001", "min_market_funds": "1"}


def _bitvavo(asset: str) -> Item:
    own = {"market": f"{asset}-EUR", "status": "trading", "base": asset, "quote": "EUR", "tickSize": "1.00"}
    return {**own, "minOrderInBaseAsset": "0.00006", "minOrderInQuoteAsset": "5.00", "quantityDecimals": "8"}


def _kraken(asset: str) -> Item:
    own = {"altname": f"{asset}USD", "wsname": f"{asset}/USD", "base": asset, "quote": "ZUSD", "status": "online"}
    fees = {"fees": [[0, 0.26], [50000, 0.24]], "fees_maker": [[0, 0.16], [50000, 0.14]], "leverage_buy": []}
    return {**own, **fees, "pair_decimals": 7, "lot_decimals": 8, "ordermin": "1"}


def _bitget(asset: str) -> Item:
    own = {"symbol": f"{asset}USDT", "baseCoin": asset, "quoteCoin": "USDT", "status": "online"}
    sizes = {"minTradeAmount": "0", "maxTradeAmount": "10000000000", "pricePrecision": "2", "quantityPrecision": "6"}
    return {**own, **sizes, "takerFeeRate": "0.002", "makerFeeRate": "0.002", "minTradeUSDT": "1"}


def _families() -> Iterator[tuple[tuple[str, ...], Mapping[str, Any], Any]]:
    """The exchanges that share a shape, their requests for large lists with the answers, and the answer to any other
    request for a list."""
    binance = {"timezone": "UTC", "serverTime": 1730419200000, "rateLimits": [], "symbols": _named(_binance)}
    yield ("binance", "binanceus", "mexc"), {"/api/v3/exchangeInfo": binance}, {"symbols": [], "data": [], "code": 0}
    yield ("binanceusdm",), {"/fapi/v1/exchangeInfo": {**binance, "symbols": _named(_contract)}}, {"symbols": []}
    yield ("binancecoinm",), {"/dapi/v1/exchangeInfo": {**binance, "symbols": _named(_inverse)}}, {"symbols": []}
    okx = {"code": "0", "msg": "", "data": _named(_okx)}
    yield ("okx", "okxus", "myokx"), {"/api/v5/public/instruments?SPOT": okx}, {"code": "0", "data": []}
    bybit = {"retCode": 0, "retMsg": "OK", "result": {"category": "spot", "list": _named(_bybit)}}
    nothing = {"retCode": 0, "retMsg": "OK", "result": {"list": [], "rows": []}}
    yield ("bybit", "bybiteu", "bybitid"), {"/v5/market/instruments-info?spot": bybit}, nothing
    hitbtc = {f"{item['base_currency']}USDT": item for item in _named(_hitbtc)}
    yield ("hitbtc", "bequant", "fmfwio"), {"/api/3/public/symbol": hitbtc}, {}
    yield ("gate", "gateeu"), {"/api/v4/spot/currency_pairs": _named(_gate)}, []
    yield ("coinbaseexchange",), {"/products": _named(_coinbase)}, []
    yield ("bitvavo",), {"/v2/markets": _named(_bitvavo)}, []
    kraken = {"error": [], "result": {item["altname"]: item for item in _named(_kraken)}}
    yield ("kraken",), {"/0/public/AssetPairs": kraken}, {"error": [], "result": {}}
    bitget = {"code": "00000", "msg": "success", "data": _named(_bitget)}
    yield ("bitget",), {"/api/v2/spot/public/symbols": bitget}, {"code": "00000", "data": []}


def answers() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Compressed bodies by "exchange/path", and by exchange alone for every other path."""
    exact: dict[str, bytes] = {}
    otherwise: dict[str, bytes] = {}
    for exchanges, lists, other in _families():
        bodies = {path: _packed(json.dumps(answer).encode()) for path, answer in lists.items()}
        for exchange in exchanges:
            account = ACCOUNTS[exchange]
            exact |= {f"{exchange}{path}": body for path, body in bodies.items()}
            for request, answer in (*account.before.items(), (account.request, account.answer)):
                exact[exchange + request.partition(" ")[2]] = _packed(as_json(answer))
            otherwise[exchange] = _packed(json.dumps(other).encode())
    return exact, otherwise


def _packed(body: bytes) -> bytes:
    return gzip.compress(body, 1)


async def _play() -> None:
    # Real venues have processors of their own.
    os.nice(5)
    exact, otherwise = answers()

    async def answer(request: web.Request) -> web.Response:
        exchange = request.match_info["exchange"]
        path = f"{exchange}/{request.match_info['path']}"
        kind = request.query.get("instType") or request.query.get("category")
        body = exact.get(f"{path}?{kind}") or exact.get(path) or otherwise[exchange]
        return web.Response(body=body, content_type="application/json", headers={"Content-Encoding": "gzip"})

    app = web.Application()
    app.router.add_route("*", "/{exchange}/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    listings = {listing.id: listing for listing in plugin.exchange_manifest().exchanges}
    rows = [(exchange, f"{url}/{exchange}", credential(listings[exchange])) for exchange in otherwise]
    sys.stdout.write(json.dumps(rows) + "\n")
    sys.stdout.flush()
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_play())
