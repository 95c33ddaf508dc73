"""What each exchange answers for an account that holds something, in its own shape, and what that means.

The shapes are those of CCXT's sample answers; the figures are made up, with more digits than a float keeps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from exchange_service.plugin_api import Balance

FREE = "1.234567890123456789"
USED = "0.100000000000000011"
TOTAL = "1.334567890123456800"
# Total, free and used; where a fourth is given, the venue's own name of the asset.
Row = tuple[str | None, ...]
HELD: Row = (TOTAL, FREE, USED)


@dataclass(frozen=True, slots=True)
class Account:
    """One account: the request for its balance, the answer, and the rows that it means."""

    request: str
    answer: Any
    rows: Mapping[str, Row] = field(default_factory=lambda: {"BTC": HELD})
    # The requests before, which learn of the account what the balance needs, with good answers.
    before: Mapping[str, Any] = field(default_factory=dict)
    # Those of them that are for the exchange's public lists, of which a balance may do without an entry.
    lists: tuple[str, ...] = ()
    # Where the rows are fields of an object, its dotted path; lists of rows are found without.
    rows_at: str | None = None
    # Further requests, where nonsense is taken for another kind of account. They only read as well.
    otherwise: tuple[str, ...] = ()
    # The answer for an account without assets; None where the exchange has no such answer.
    empty: Any = None
    # The venue's names of assets, by CCXT's, where the list of assets is needed to read an answer.
    assets: Mapping[str, str] = field(default_factory=lambda: {"BTC": "BTC", "USDT": "USDT"})


def bare(digits: str) -> str:
    """A number without quotes, with digits that JSON in Python would not keep."""
    return f"<bare {digits}>"


def as_json(answer: Any) -> bytes:
    """The answer as the venue writes it."""
    return re.sub(r'"<bare ([^>]*)>"', r"\1", json.dumps(answer)).encode()


def rows(balance: Balance) -> dict[str, tuple[Any, ...]]:
    """By asset: total, free, used, and the venue's own name where it differs."""
    return {
        row.asset: (row.total, row.free, row.used, *((row.venue_asset,) if row.venue_asset else ()))
        for _, row in balance.rows()
    }


def meant(account: Account) -> dict[str, tuple[Any, ...]]:
    """The rows that the table gives, in the same form."""
    return {
        asset: (*(amount if amount is None else Decimal(amount) for amount in row[:3]), *row[3:])
        for asset, row in account.rows.items()
    }


def _spot_like_binance(path: str, asset: str = "BTC", **beside: Any) -> Account:
    row = {"asset": asset, "free": FREE, "locked": USED}
    return Account(f"GET {path}", {**beside, "balances": [row]}, empty={**beside, "balances": []})


def _bare_list(request: str, row: Mapping[str, Any], **options: Any) -> Account:
    return Account(request, [row], empty=[], **options)


def _within(request: str, row: Mapping[str, Any], path: str, beside: Mapping[str, Any], **options: Any) -> Account:
    """A list of rows at a dotted path."""

    def wrapped(rows: list[Any]) -> Any:
        value: Any = rows
        for name in reversed(path.split(".")):
            value = {name: value}
        return {**beside, **value}

    return Account(request, wrapped([dict(row)]), empty=wrapped([]), **options)


_BINANCE_SPOT: Mapping[str, Any] = {
    "makerCommission": 10,
    "canTrade": True,
    "canWithdraw": True,
    "canDeposit": True,
    "updateTime": 1730419200000,
    "accountType": "SPOT",
    "permissions": ["SPOT"],
    "uid": 354937868,
}
_BINANCE_CONTRACTS_ROW = {
    "asset": "BTC",
    "walletBalance": TOTAL,
    "unrealizedProfit": "0",
    "marginBalance": TOTAL,
    "initialMargin": USED,
    "availableBalance": FREE,
    "updateTime": 1730419200000,
}
_NEVER_USED = dict.fromkeys(_BINANCE_CONTRACTS_ROW, "0.00000000") | {"asset": "ETH", "updateTime": 0}


def _binance_contracts(path: str) -> Account:
    totals = {"feeTier": 0, "totalWalletBalance": TOTAL, "positions": []}
    return Account(
        f"GET {path}",
        {**totals, "assets": [_BINANCE_CONTRACTS_ROW, _NEVER_USED]},
        empty={**totals, "assets": [_NEVER_USED]},
    )


def _bybit() -> Account:
    def answer(coins: list[Any]) -> Any:
        wallet = {"accountType": "UNIFIED", "totalEquity": "3.31", "coin": coins}
        return {"retCode": 0, "retMsg": "OK", "result": {"list": [wallet]}, "time": 1730419200000}

    coin = {"coin": "BTC", "walletBalance": TOTAL, "locked": "0", "availableToWithdraw": FREE, "usdValue": "1"}
    return Account(
        "GET /v5/account/wallet-balance",
        answer([coin]),
        before={
            "GET /v5/user/query-api": {"retCode": 0, "retMsg": "", "result": {"unified": 0, "uta": 1}},
            "GET /v5/account/info": {"retCode": 0, "retMsg": "OK", "result": {"unifiedMarginStatus": 6}},
        },
        empty=answer([]),
    )


def _gate() -> Account:
    row = {"currency": "BTC", "available": FREE, "locked": USED, "update_id": 98}
    kind = {"user_id": 1667201533, "key": {"mode": 1}, "tier": 0}
    return _bare_list("GET /api/v4/spot/accounts", row, before={"GET /api/v4/account/detail": kind})


def _okx() -> Account:
    def answer(details: list[Any]) -> Any:
        account = {"uTime": "1730419200000", "totalEq": "55415.62", "details": details}
        return {"code": "0", "msg": "", "data": [account]}

    row = {"ccy": "BTC", "eq": TOTAL, "availEq": FREE, "availBal": FREE, "frozenBal": USED, "cashBal": TOTAL}
    return Account("GET /api/v5/account/balance", answer([row]), empty=answer([]))


def _orderly() -> Account:
    row = {"token": "BTC", "holding": bare(TOTAL), "frozen": bare(USED), "pending_short": 0}
    return _within("GET /v1/client/holding", row, "data.holding", {"success": True, "timestamp": 1730419200000})


def _hitbtc() -> Account:
    return _bare_list("GET /api/3/spot/balance", {"currency": "BTC", "available": FREE, "reserved": USED})


def _htx_like(asset: str) -> Account:
    account = {"id": 5202591, "type": "spot", "state": "working"}
    rows = [
        {"currency": asset, "type": "trade", "balance": FREE},
        {"currency": asset, "type": "frozen", "balance": USED},
    ]
    return Account(
        "GET /v1/account/accounts/5202591/balance",
        {"status": "ok", "data": {**account, "list": rows}},
        before={"GET /v1/account/accounts": {"status": "ok", "data": [{**account, "subtype": ""}]}},
        otherwise=("GET /v1/account/accounts/None/balance",),
        empty={"status": "ok", "data": {**account, "list": []}},
    )


def _kucoin() -> Account:
    row = {"id": "5", "currency": "BTC", "type": "trade", "balance": TOTAL, "available": FREE, "holds": USED}
    kind = {"code": "200000", "data": {"selfAccountMode": "CLASSIC"}}
    before = {"GET /api/ua/v1/account/mode": kind, "GET /api/v1/hf/accounts/opened": {"code": "200000", "data": False}}
    return _within("GET /api/v1/accounts", row, "data", {"code": "200000"}, before=before)


_ALPACA_ASSET = {
    "id": "64bbff51-59d6-4b3c-9351-13ad85e3c752",
    "class": "crypto",
    "exchange": "CRYPTO",
    "symbol": "BTC/USD",
    "name": "Bitcoin",
    "status": "active",
    "tradable": True,
    "marginable": False,
    "fractionable": True,
    "min_order_size": "0.00001",
    "min_trade_increment": "0.000000001",
    "price_increment": "0.01",
}
_ALPACA_ACCOUNT = {
    "status": "ACTIVE",
    "currency": "USD",
    "cash": FREE,
    "equity": "10.334567890123456800",
    "position_market_value": "9",
}

ACCOUNTS: Mapping[str, Account] = {
    "alpaca": Account(
        "GET /v2/positions",
        [{"symbol": "BTCUSD", "asset_class": "crypto", "qty": TOTAL, "qty_available": FREE, "side": "long"}],
        {"USD": HELD, "BTC": HELD},
        before={"GET /v2/assets": [_ALPACA_ASSET], "GET /v2/account": _ALPACA_ACCOUNT},
        lists=("GET /v2/assets",),
    ),
    "apex": Account(
        "GET /api/v3/account-balance",
        {"data": {"totalEquityValue": TOTAL, "availableBalance": FREE, "initialMargin": USED}},
        {"USDT": HELD},
    ),
    "backpack": Account("GET /api/v1/capital", {"BTC": {"available": FREE, "locked": USED, "staked": "0"}}, rows_at=""),
    "bequant": _hitbtc(),
    "bigone": _within(
        "GET /api/v3/viewer/accounts",
        {"asset_symbol": "BTC", "balance": TOTAL, "locked_balance": USED},
        "data",
        {"code": 0},
    ),
    "binance": _spot_like_binance("/api/v3/account", **_BINANCE_SPOT),
    "binancecoinm": _binance_contracts("/dapi/v1/account"),
    "binanceus": _spot_like_binance("/api/v3/account", **_BINANCE_SPOT),
    "binanceusdm": _binance_contracts("/fapi/v3/account"),
    "bingx": _within(
        "GET /openApi/spot/v1/account/balance",
        {"asset": "BTC", "free": FREE, "locked": USED},
        "data.balances",
        {"code": 0, "msg": "", "debugMsg": ""},
    ),
    "bit2c": Account(
        "GET /Account/Balance/v2",
        {"AVAILABLE_BTC": bare(FREE), "BTC": bare(TOTAL), "LOCKED_BTC": bare(USED), "Fees": {"BtcNis": {}}},
        assets={"BTC": "Btc"},
    ),
    "bitbank": _within(
        "GET /v1/user/assets",
        {"asset": "btc", "onhand_amount": TOTAL, "locked_amount": USED, "free_amount": FREE},
        "data.assets",
        {"success": 1},
    ),
    "bitbns": Account(
        "POST /api/trade/v1/currentCoinBalance/EVERYTHING",
        {
            "data": {"availableorderMoney": bare(FREE), "inorderMoney": bare(USED)},
            "status": 1,
            "error": None,
            "code": 200,
        },
        {"INR": HELD},
    ),
    "bitfinex": Account(
        "POST /v2/auth/r/wallets",
        [["exchange", "UST", bare(TOTAL), 0, bare(FREE), None, None], ["margin", "BTC", 3.5, 0, 3.5, None, None]],
        {"USDT": (*HELD, "UST")},
        assets={"USDT": "UST"},
        empty=[["margin", "BTC", 3.5, 0, 3.5, None, None]],
    ),
    "bitflyer": _bare_list(
        "GET /v1/me/getbalance", {"currency_code": "BTC", "amount": bare(TOTAL), "available": bare(FREE)}
    ),
    "bitget": _within(
        "GET /api/v2/spot/account/assets",
        {"coin": "btc", "available": FREE, "limitAvailable": "0", "frozen": USED, "locked": "0"},
        "data",
        {"code": "00000", "msg": "success"},
        otherwise=("GET /api/v3/account/assets",),
        before={"GET /api/v3/account/settings": {"code": "40084", "msg": "You are in Classic Account mode"}},
    ),
    "bithumb": _bare_list("GET /v1/accounts", {"currency": "BTC", "balance": FREE, "locked": USED}),
    "bitopro": _within(
        "GET /v3/accounts/balance", {"currency": "btc", "amount": TOTAL, "available": FREE, "stake": "0"}, "data", {}
    ),
    "bitrue": _spot_like_binance("/api/v1/account", "btc", updateTime=None, canTrade=False),
    "bitso": _within(
        "GET /api/v3/balance",
        {"currency": "btc", "available": FREE, "locked": USED, "total": TOTAL},
        "payload.balances",
        {"success": True},
    ),
    "bitstamp": _bare_list(
        "POST /api/v2/account_balances/", {"currency": "btc", "total": TOTAL, "available": FREE, "reserved": USED}
    ),
    "bitteam": Account(
        "GET /trade/api/ccxt/balance",
        {
            "ok": True,
            "result": {
                "free": {"BTC": FREE},
                "used": {"BTC": USED},
                "total": {"BTC": TOTAL},
                "BTC": {"free": FREE, "used": USED, "total": TOTAL},
            },
        },
        rows_at="result",
    ),
    "bittrade": _htx_like("btc"),
    "bitvavo": _bare_list("GET /v2/balance", {"symbol": "BTC", "available": FREE, "inOrder": USED}),
    "blockchaincom": _within(
        "GET /v3/exchange/accounts",
        {"currency": "BTC", "balance": bare(TOTAL), "available": bare(FREE), "rate": 3425.41},
        "primary",
        {},
    ),
    "blofin": _within(
        "GET /api/v1/account/balance",
        {"currency": "BTC", "equity": TOTAL, "available": FREE, "frozen": USED},
        "data.details",
        {"code": "0", "msg": "success"},
    ),
    "btcbox": Account(
        "POST /api/v1/balance",
        {"uid": 8, "nameauth": 0, "btc_balance": bare(FREE), "btc_lock": bare(USED)},
        assets={"BTC": "btc"},
    ),
    "btcmarkets": _bare_list(
        "GET /v3/accounts/me/balances", {"assetName": "BTC", "balance": TOTAL, "available": FREE, "locked": USED}
    ),
    "btcturk": _within(
        "GET /api/v1/users/balances",
        {"asset": "BTC", "assetname": "Bitcoin", "balance": TOTAL, "locked": USED, "free": FREE},
        "data",
        {"success": True, "code": 0},
    ),
    "btse": _within(
        "GET /public-api/wallet/v1/user/assets",
        {"asset": "BTC", "type": "CRYPTO", "totalAmount": TOTAL, "availableAmount": FREE},
        "data",
        {"code": 1, "msg": "Success", "success": True},
    ),
    "bybit": _bybit(),
    "bybiteu": _bybit(),
    "bybitid": _bybit(),
    "bydfi": _within(
        "GET /api/v1/account/assets",
        {"walletType": "spot", "asset": "BTC", "total": TOTAL, "available": FREE, "frozen": USED},
        "data",
        {"code": 200, "message": "success", "success": True},
    ),
    "cex": Account(
        "POST /api/spot/rest/get_my_wallet_balance",
        {"ok": "ok", "data": {"BTC": {"balance": TOTAL}}},
        {"BTC": (TOTAL, None, None)},
        empty={"ok": "ok", "data": {}},
        rows_at="data",
    ),
    "coinbase": _within(
        "GET /api/v3/brokerage/accounts",
        {
            "uuid": "8bfc20d7",
            "name": "BTC Wallet",
            "currency": "BTC",
            "type": "ACCOUNT_TYPE_CRYPTO",
            "available_balance": {"value": FREE, "currency": "BTC"},
            "hold": {"value": USED, "currency": "BTC"},
        },
        "accounts",
        {"has_next": False, "cursor": "", "size": 1},
    ),
    "coinbaseexchange": _bare_list(
        "GET /accounts", {"id": "71452118", "currency": "BTC", "balance": TOTAL, "available": FREE, "hold": USED}
    ),
    "coincheck": Account(
        "GET /api/accounts/balance",
        {"success": True, "btc": FREE, "btc_reserved": USED},
        assets={"BTC": "btc"},
    ),
    "coinmate": Account(
        "POST /api/balances",
        {
            "error": False,
            "errorMessage": None,
            "data": {"BTC": {"currency": "BTC", "balance": TOTAL, "reserved": USED, "available": FREE}},
        },
        rows_at="data",
    ),
    "coinone": Account(
        "POST /v2/account/balance",
        {"result": "success", "errorCode": "0", "normalWallets": [], "btc": {"avail": FREE, "balance": TOTAL}},
        rows_at="",
    ),
    "coinsph": _spot_like_binance("/openapi/v1/account", accountType="SPOT", canTrade=True, updateTime="1677430932528"),
    "coinspot": Account(
        "POST /api/my/balances",
        {"status": "ok", "balances": [{"BTC": {"balance": bare(TOTAL), "audbalance": 16.59, "rate": 165.95}}]},
        {"BTC": (TOTAL, None, None)},
        empty={"status": "ok", "balances": []},
        rows_at="balances.0",
    ),
    "cryptocom": Account(
        "POST /exchange/v1/private/user-balance",
        {
            "id": 11,
            "method": "private/user-balance",
            "code": 0,
            "result": {
                "data": [
                    {"position_balances": [{"instrument_name": "BTC", "quantity": TOTAL, "reserved_qty": USED}]},
                ]
            },
        },
        empty={"id": 11, "method": "private/user-balance", "code": 0, "result": {"data": [{"position_balances": []}]}},
    ),
    "cryptomus": _within(
        "GET /v2/user-api/exchange/account/balance", {"ticker": "BTC", "available": FREE, "held": USED}, "result", {}
    ),
    "deepcoin": _within(
        "GET /deepcoin/account/balances",
        {"ccy": "BTC", "bal": TOTAL, "frozenBal": USED, "availBal": FREE},
        "data",
        {"code": "0", "msg": ""},
    ),
    # Without its list of assets CCXT gives Delta's number for one.
    "delta": _within(
        "GET /v2/wallet/balances",
        {"asset_id": 3, "balance": TOTAL, "available_balance": FREE, "order_margin": USED},
        "result",
        {"success": True},
        rows={"3": HELD},
    ),
    "deribit": _within(
        "GET /api/v2/private/get_account_summaries",
        {
            "currency": "BTC",
            "available_funds": bare(FREE),
            "maintenance_margin": bare(USED),
            "equity": bare(TOTAL),
        },
        "result.summaries",
        {"jsonrpc": "2.0", "testnet": False},
    ),
    "derive": Account(
        "POST /v3/private/get_all_portfolios",
        {
            "id": "1",
            "result": [
                {
                    "subaccount_id": 86815,
                    "positions_initial_margin": f"-{USED}",
                    "open_orders_margin": "0",
                    "collaterals": [
                        {"asset_name": "USDC", "currency": "USDC", "amount": TOTAL},
                        {"asset_name": "BTC", "currency": "BTC", "amount": FREE},
                    ],
                }
            ],
        },
        {"USDC": HELD, "BTC": (FREE, None, None)},
        empty={"id": "1", "result": [{"subaccount_id": 86815, "positions_initial_margin": "0", "collaterals": []}]},
    ),
    "digifinex": _within(
        "GET /v3/spot/assets", {"currency": "BTC", "free": bare(FREE), "total": bare(TOTAL)}, "list", {"code": 0}
    ),
    "dydx": Account(
        f"GET /v4/addresses/0x{'1a' * 20}/subaccountNumber/0",
        {"subaccount": {"equity": TOTAL, "freeCollateral": FREE, "assetPositions": {}}},
        {"USDC": HELD},
    ),
    "extended": _within(
        "GET /api/v1/user/spot/balances",
        {"accountId": 123, "asset": "BTC", "balance": TOTAL, "availableToWithdraw": FREE},
        "data",
        {"status": "OK"},
    ),
    "fmfwio": _hitbtc(),
    "foxbit": _within(
        "GET /rest/v3/accounts",
        {"currency_symbol": "btc", "balance": TOTAL, "balance_available": FREE, "balance_locked": USED},
        "data",
        {},
    ),
    "gate": _gate(),
    "gateeu": _gate(),
    "gemini": _bare_list(
        "POST /v1/balances", {"type": "exchange", "currency": "BTC", "amount": TOTAL, "available": FREE}
    ),
    "hashkey": Account(
        "GET /api/v1/account",
        {"balances": [{"asset": "BTC", "total": TOTAL, "free": FREE, "locked": USED}], "userId": "1732885739"},
        empty={"balances": [], "userId": "1732885739"},
    ),
    "hibachi": Account(
        "GET /trade/account/info",
        {"assets": [{"quantity": TOTAL, "symbol": "USDT"}], "balance": TOTAL, "maximalWithdraw": FREE},
        {"USDT": HELD},
    ),
    "hitbtc": _hitbtc(),
    "hollaex": Account(
        "GET /v2/user/balance",
        {"updated_at": "2020-03-02T22:27:38.428Z", "btc_balance": bare(TOTAL), "btc_available": bare(FREE)},
        assets={"BTC": "btc"},
    ),
    "htx": _htx_like("btc"),
    "independentreserve": _bare_list(
        "POST /Private/GetAccounts",
        {
            "AccountGuid": "66dcac65",
            "AccountStatus": "Active",
            "AvailableBalance": bare(FREE),
            "CurrencyCode": "Xbt",
            "TotalBalance": bare(TOTAL),
        },
        assets={"BTC": "Xbt"},
        rows={"BTC": (*HELD, "Xbt")},
    ),
    "indodax": Account(
        "POST /tapi",
        {"success": 1, "return": {"server_time": 1619562628, "balance": {"btc": FREE}, "balance_hold": {"btc": USED}}},
        rows_at="return.balance",
    ),
    "kraken": Account(
        "POST /0/private/BalanceEx",
        {"error": [], "result": {"XXBT": {"balance": TOTAL, "hold_trade": USED}}},
        {"BTC": (*HELD, "XXBT")},
        empty={"error": [], "result": {}},
        rows_at="result",
    ),
    "krakenfutures": Account(
        "GET /derivatives/api/v3/accounts",
        {
            "result": "success",
            "accounts": {
                "flex": {
                    "currencies": {"XBT": {"quantity": bare(TOTAL), "value": 1, "available": bare(FREE)}},
                    "type": "multiCollateralMarginAccount",
                }
            },
            "serverTime": "2022-04-12T07:48:07.475Z",
        },
        {"BTC": (*HELD, "XBT")},
        empty={
            "result": "success",
            "accounts": {"flex": {"currencies": {}, "type": "multiCollateralMarginAccount"}},
            "serverTime": "2022-04-12T07:48:07.475Z",
        },
        rows_at="accounts.flex.currencies",
    ),
    "kucoin": _kucoin(),
    "kucoinfutures": Account(
        "GET /api/v1/account-overview",
        {"code": "200000", "data": {"accountEquity": bare(TOTAL), "availableBalance": bare(FREE), "currency": "USDT"}},
        {"USDT": HELD},
        before={"GET /api/ua/v1/account/mode": {"code": "200000", "data": {"selfAccountMode": "CLASSIC"}}},
    ),
    "latoken": _bare_list(
        "GET /v2/auth/account",
        {
            "id": "369df204",
            "type": "ACCOUNT_TYPE_SPOT",
            "timestamp": "1635920106504",
            "currency": "0c3a106d",
            "available": FREE,
            "blocked": USED,
        },
        assets={"BTC": "0c3a106d"},
        rows={"BTC": (*HELD, "0c3a106d")},
    ),
    "lbank": _within(
        "POST /v2/supplement/user_info_account.do",
        {"asset": "btc", "free": FREE, "locked": USED},
        "data.balances",
        {"result": "true", "error_code": 0, "ts": 1730419200000},
    ),
    "lighter": Account(
        "GET /api/v1/account",
        {"code": 200, "total": 1, "accounts": [{"index": 666666, "collateral": TOTAL, "available_balance": FREE}]},
        {"USDC": HELD},
        before={"GET /api/v1/accountsByL1Address": {"code": 200, "sub_accounts": [{"index": 666666}]}},
    ),
    "luno": _within(
        "GET /api/1/balance",
        {"account_id": "119", "asset": "XBT", "balance": TOTAL, "reserved": USED, "unconfirmed": "0.00"},
        "balance",
        {},
        rows={"BTC": (*HELD, "XBT")},
    ),
    "mercado": Account(
        "POST /tapi/v3/",
        {
            "response_data": {"balance": {"btc": {"available": FREE, "total": TOTAL}}},
            "status_code": 100,
            "server_unix_timestamp": "1453831028",
        },
        rows_at="response_data.balance",
    ),
    "mexc": _spot_like_binance("/api/v3/account", accountType="SPOT", canTrade=True, updateTime=None),
    "modetrade": _orderly(),
    "mudrex": Account(
        "GET /fapi/v1/futures/funds",
        {"success": True, "data": {"balance": FREE, "locked_amount": USED}},
        {"USDT": HELD},
        before={"GET /fapi/v1/futures": {"success": True, "data": [{"symbol": "BTCUSDT", "price_step": "0.1"}]}},
        lists=("GET /fapi/v1/futures",),
    ),
    "myokx": _okx(),
    "nado": Account(
        "GET /v1/query",
        {
            "status": "success",
            "data": {
                "exists": True,
                "spot_balances": [{"product_id": 0, "balance": {"amount": "1334567890123456800"}}],
            },
            "request_type": "query_subaccount_info",
        },
        {"USDT0": (TOTAL, TOTAL, "0")},
    ),
    "ndax": _bare_list(
        "GET /AP/GetAccountPositions",
        {
            "OMSId": 1,
            "AccountId": 449,
            "ProductSymbol": "BTC",
            "ProductId": 1,
            "Amount": bare(TOTAL),
            "Hold": bare(USED),
        },
        before={"GET /AP/GetUserAccounts": [449]},
        assets={"BTC": "1"},
        rows={"BTC": (*HELD, "1")},
    ),
    "okx": _okx(),
    "okxus": _okx(),
    "onetrading": _within(
        "GET /fast/v1/account/balances",
        {"account_id": "4b95934f", "currency_code": "BTC", "change": "10.0", "available": FREE, "locked": USED},
        "balances",
        {"account_id": "4b95934f"},
    ),
    "p2b": Account(
        "POST /api/v2/account/balances",
        {"success": True, "errorCode": "", "message": "", "result": {"BTC": {"available": FREE, "freeze": USED}}},
        empty={"success": True, "errorCode": "", "message": "", "result": {}},
        rows_at="result",
    ),
    "pacifica": Account(
        "GET /api/v1/account",
        {
            "success": True,
            "data": {
                "balance": TOTAL,
                "total_margin_used": USED,
                "spot_balances": [{"symbol": "SOL", "amount": TOTAL, "available_to_withdraw": FREE}],
                "updated_at": 1789394568220,
            },
        },
        {"USDC": HELD, "SOL": HELD},
    ),
    "paymium": Account(
        "GET /api/v1/user",
        {"name": "BC-U123456", "balance_btc": FREE, "locked_btc": USED},
        assets={"BTC": "btc"},
    ),
    "phemex": _within(
        "GET /spot/wallets",
        {
            "currency": "BTC",
            "balanceEv": bare("133456789012345680"),
            "lockedTradingBalanceEv": bare("10000000000000001"),
            "lockedWithdrawEv": 0,
            "lastUpdateTimeNs": 1592065834511322514,
        },
        "data",
        {"code": 0, "msg": ""},
        rows={"BTC": ("1334567890.1234568", "1234567890.12345679", "100000000.00000001")},
    ),
    "poloniex": Account(
        "GET /accounts/balances",
        [
            {
                "accountId": "7",
                "accountType": "SPOT",
                "balances": [{"currencyId": "28", "currency": "BTC", "available": FREE, "hold": USED}],
            }
        ],
        empty=[{"accountId": "7", "accountType": "SPOT", "balances": []}],
    ),
    "revolutx": _bare_list(
        "GET /api/1.0/balances", {"currency": "BTC", "available": FREE, "reserved": USED, "total": TOTAL}
    ),
    "tokocrypto": _within(
        "GET /open/v1/account/spot",
        {"asset": "BTC", "free": FREE, "locked": USED},
        "data.accountAssets",
        {"code": 0, "msg": "Success"},
    ),
    "toobit": Account(
        "GET /api/v1/account",
        {"userId": "912902020", "balances": [{"asset": "BTC", "total": TOTAL, "free": FREE, "locked": USED}]},
        empty={"userId": "912902020", "balances": []},
    ),
    "upbit": _bare_list("GET /v1/accounts", {"currency": "BTC", "balance": FREE, "locked": USED, "modified": False}),
    "weex": _spot_like_binance("/api/v3/account/", accountType="SPOT", canTrade=True, uid=8886281669),
    "whitebit": Account("POST /api/v4/trade-account/balance", {"BTC": {"available": FREE, "freeze": USED}}, rows_at=""),
    "woo": _within(
        "GET /v3/asset/balances",
        {"token": "BTC", "holding": bare(TOTAL), "frozen": bare(USED), "availableBalance": bare(FREE)},
        "data.holding",
        {"success": True, "timestamp": 1673323746259},
    ),
    "woofipro": _orderly(),
    "xt": _within(
        "GET /v4/balances",
        {"currency": "btc", "frozenAmount": USED, "availableAmount": FREE, "totalAmount": TOTAL},
        "result.assets",
        {"rc": 0, "mc": "SUCCESS", "ma": []},
    ),
    "zaif": Account(
        "POST /tapi",
        {"success": 1, "return": {"funds": {"btc": bare(FREE)}, "deposit": {"btc": bare(TOTAL)}, "open_orders": 0}},
        rows_at="return.funds",
    ),
    "zebpay": _within(
        "GET /api/v2/account/balance",
        {"currency": "BTC", "free": bare(FREE), "used": bare(USED), "total": bare(TOTAL)},
        "data",
        {"statusDescription": "Success", "statusCode": 200, "customMessage": ["OK"]},
    ),
}
