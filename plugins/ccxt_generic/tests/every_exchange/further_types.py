"""What each exchange answers for its further account types, beside the first one, which `well_formed` has.

The shapes are those of CCXT's sample answers; the figures are made up, with more digits than a float keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from plugins.ccxt_generic.tests.every_exchange.well_formed import (
    ACCOUNTS,
    FREE,
    HELD,
    TOTAL,
    USED,
    Account,
    bare,
)

_FREE_AND_LOCKED = {"asset": "BTC", "free": FREE, "locked": USED}
_MARGIN_FIGURES = {"free": FREE, "locked": USED, "borrowed": "0", "interest": "0", "netAsset": TOTAL}
_NOTHING = {"asset": "USDT", "free": "0", "locked": "0", "borrowed": "0", "interest": "0", "totalAsset": "0"}
# The sums of two pairs.
_TWICE = ("2.6691357802469136", "2.469135780246913578", "0.200000000000000022")
_NO_USDT = {"USDT": ("0", "0", "0")}


def _at_data(request: str, data: Any, rows: Mapping[str, Any] | None = None, **beside: Any) -> Account:
    return Account(request, {**beside, "data": data}, rows or {"BTC": HELD})


def _beside_kind(exchange_id: str, account: Account) -> Account:
    """The account with the answers about its kind that its first type has."""
    return replace(account, before=ACCOUNTS[exchange_id].before)


_BINANCE_CONTRACTS = ACCOUNTS["binanceusdm"]
_BINANCE_INVERSE = ACCOUNTS["binancecoinm"]
_BINGX_CONTRACT = {
    "asset": "BTC",
    "balance": TOTAL,
    "equity": TOTAL,
    "unrealizedProfit": "0",
    "availableMargin": FREE,
    "usedMargin": USED,
    "freezedMargin": "0",
}
_BITGET_CONTRACT = {
    "marginCoin": "BTC",
    "locked": USED,
    "available": FREE,
    "maxTransferOut": FREE,
    "accountEquity": TOTAL,
}
_BITGET_MARGIN = {"available": FREE, "transferable": FREE, "frozen": USED, "borrow": "0", "interest": "0"}
_BITRUE_CONTRACT = {
    "marginCoin": "BTC",
    "accountNormal": bare(TOTAL),
    "accountLock": bare(USED),
    "totalEquity": bare(TOTAL),
}
_BLOFIN_ROW = {"currency": "BTC", "balance": TOTAL, "available": FREE, "frozen": USED, "bonus": "0"}
_BYBIT_FUND = {
    "memberId": "1",
    "accountType": "FUND",
    "balance": [{"coin": "BTC", "transferBalance": FREE, "walletBalance": TOTAL, "bonus": ""}],
}
_CFM = {"balance_summary": {"total_usd_balance": {"value": TOTAL}, "futures_buying_power": {"value": FREE}}}
_GATE_PAIR = {
    "currency_pair": "BTC_USDT",
    "locked": False,
    "base": {"currency": "BTC", "available": FREE, "locked": USED, "borrowed": "0", "interest": "0"},
    "quote": {"currency": "USDT", "available": "0", "locked": "0", "borrowed": "0", "interest": "0"},
}
_GATE_UNIFIED = {
    "user_id": 10001,
    "locked": False,
    "balances": {"BTC": {"available": FREE, "freeze": USED, "borrowed": "0", "equity": TOTAL}},
}
_GATE_UNIFIED_KIND = {"user_id": 10001, "key": {"mode": 2}, "tier": 0}
_HTX_ROWS = [
    {"currency": "btc", "type": "trade", "balance": FREE},
    {"currency": "btc", "type": "frozen", "balance": USED},
]
_HTX_INVERSE = {"symbol": "BTC", "margin_balance": bare(TOTAL), "margin_available": bare(FREE)}
_KUCOIN_SIDE = {"currency": "BTC", "total": TOTAL, "available": FREE, "hold": USED, "liability": "0", "interest": "0"}
_KUCOIN_PAIR = {
    "symbol": "BTC-USDT",
    "status": "EFFECTIVE",
    "baseAsset": _KUCOIN_SIDE,
    "quoteAsset": dict.fromkeys(_KUCOIN_SIDE, "0") | {"currency": "USDT"},
}
_KUCOIN_UNIFIED_KIND = {"code": "200000", "data": {"selfAccountMode": "UNIFIED"}}
_PHEMEX_LINEAR = {"currency": "USDT", "accountBalanceRv": TOTAL, "totalUsedBalanceRv": USED}
_PHEMEX_INVERSE = {
    "currency": "BTC",
    "accountBalanceEv": bare("133456789012345680"),
    "totalUsedBalanceEv": bare("10000000000000001"),
}
_ROUNDED = ("1334567890.1234568", "1234567890.12345679", "100000000.00000001")


def _gate(request: str, **figures: Any) -> Account:
    return _beside_kind("gate", Account(f"GET /api/v4{request}", {"user": "6333333", "currency": "BTC", **figures}))


def _kucoin(request: str, data: Any, **options: Any) -> Account:
    return _beside_kind("kucoin", Account(request, {"code": "200000", "data": data}, **options))


def _bybit(exchange_id: str, *types: str) -> dict[str, Account]:
    """The unified account under each name of a market, and the funding account."""
    funding = Account(
        "GET /v5/asset/transfer/query-account-coins-balance",
        {"retCode": 0, "retMsg": "success", "result": _BYBIT_FUND},
        before=ACCOUNTS[exchange_id].before,
    )
    return {**{f"{exchange_id} {name}": ACCOUNTS[exchange_id] for name in types}, f"{exchange_id} funding": funding}


def _of_first_type(exchange_id: str, request: str) -> Account:
    return replace(ACCOUNTS[exchange_id], request=request)


_KUCOIN_OVERVIEW = {"accountEquity": bare(TOTAL), "availableBalance": bare(FREE), "currency": "XBT"}

FURTHER: Mapping[str, Account] = {
    "bequant funding": _of_first_type("bequant", "GET /api/3/wallet/balance"),
    "bigone funding": _of_first_type("bigone", "GET /api/v3/viewer/fund/accounts"),
    "binance margin": Account(
        "GET /sapi/v1/margin/account", {"tradeEnabled": True, "userAssets": [{"asset": "BTC", **_MARGIN_FIGURES}]}
    ),
    "binance isolated": Account(
        "GET /sapi/v1/margin/isolated/account",
        {
            "assets": [
                {
                    "symbol": "BTCUSDT",
                    "baseAsset": {"asset": "BTC", **_MARGIN_FIGURES, "totalAsset": TOTAL},
                    "quoteAsset": _NOTHING,
                    "enabled": True,
                }
            ]
        },
        {"BTC": HELD, **_NO_USDT},
    ),
    "binance future": _BINANCE_CONTRACTS,
    "binance swap": _BINANCE_CONTRACTS,
    "binance delivery": _BINANCE_INVERSE,
    "binance funding": Account(
        "POST /sapi/v1/asset/get-funding-asset", [{**_FREE_AND_LOCKED, "freeze": "0", "withdrawing": "0"}]
    ),
    "binance papi": Account(
        "GET /papi/v1/balance",
        [{"asset": "BTC", "totalWalletBalance": TOTAL, "umUnrealizedPNL": "0", "cmUnrealizedPNL": "0"}],
        {"BTC": (TOTAL, None, None)},
    ),
    "binanceusdm future": _BINANCE_CONTRACTS,
    "bingx swap": _at_data("GET /openApi/swap/v3/user/balance", [_BINGX_CONTRACT], code=0, msg=""),
    "bingx inverse": _at_data("GET /openApi/cswap/v1/user/balance", [_BINGX_CONTRACT], code=0, msg=""),
    "bingx standard": _at_data(
        "GET /openApi/contract/v1/balance",
        [{"asset": "BTC", "balance": TOTAL, "availableBalance": FREE, "maxWithdrawAmount": TOTAL}],
        code=0,
    ),
    "bingx funding": _at_data("GET /openApi/fund/v1/account/balance", {"assets": [_FREE_AND_LOCKED]}, code=0, msg=""),
    "bitfinex margin": Account("POST /v2/auth/r/wallets", [["margin", "BTC", bare(TOTAL), 0, bare(FREE), None, None]]),
    "bitfinex funding": Account(
        "POST /v2/auth/r/wallets", [["funding", "BTC", bare(TOTAL), 0, bare(FREE), None, None]]
    ),
    "bitfinex derivatives": Account(
        "POST /v2/auth/r/wallets",
        [["margin", "BTCF0", bare(TOTAL), 0, bare(FREE), None, None]],
        {"BTCF0": HELD},
    ),
    "bitget margin": _beside_kind(
        "bitget",
        _at_data(
            "GET /api/v2/margin/crossed/account/assets",
            [{"coin": "BTC", "totalAmount": TOTAL, **_BITGET_MARGIN}],
            code="00000",
        ),
    ),
    "bitget isolated": _beside_kind(
        "bitget",
        _at_data(
            "GET /api/v2/margin/isolated/account/assets",
            [{"symbol": pair, "coin": "BTC", "totalAmount": TOTAL, **_BITGET_MARGIN} for pair in ("BTCUSDT", "ETHBTC")],
            {"BTC": _TWICE},
            code="00000",
        ),
    ),
    **{
        f"bitget {name}": _beside_kind(
            "bitget", _at_data("GET /api/v2/mix/account/accounts", [_BITGET_CONTRACT], code="00000")
        )
        for name in ("swap", "usdc_swap", "future", "inverse")
    },
    "bitget funding": Account(
        "GET /api/v3/account/funding-assets",
        {"code": "00000", "data": [{"coin": "BTC", "available": FREE, "frozen": USED, "balance": TOTAL}]},
        before={"GET /api/v3/account/settings": {"code": "00000", "data": {"assetMode": "union"}}},
    ),
    "bitget unified": Account(
        "GET /api/v3/account/assets",
        {
            "code": "00000",
            "data": {"assets": [{"coin": "BTC", "equity": TOTAL, "available": FREE, "locked": USED, "debt": "0"}]},
        },
        before={"GET /api/v3/account/settings": {"code": "00000", "data": {"assetMode": "union"}}},
    ),
    "bitrue swap": _at_data("GET /fapi/v2/account", {"account": [_BITRUE_CONTRACT]}, code="0"),
    "bitrue inverse": _at_data("GET /dapi/v2/account", {"account": [_BITRUE_CONTRACT]}, code="0"),
    **{
        f"blofin {name}": _at_data("GET /api/v1/asset/balances", [_BLOFIN_ROW], code="0", msg="success")
        for name in ("funding", "spot", "earn", "copy_trading")
    },
    "btse swap": Account(
        "GET /futures/api/v2.3/user/wallet",
        [
            {
                "wallet": "CROSS@",
                "assets": [{"balance": bare(TOTAL), "currency": "BTC"}],
                "assetsInUse": [{"balance": bare(USED), "currency": "BTC"}],
            }
        ],
    ),
    **_bybit("bybit", "swap", "future", "inverse", "spot"),
    **_bybit("bybiteu", "spot"),
    **_bybit("bybitid", "swap", "future", "inverse", "spot"),
    **{f"bydfi {name}": ACCOUNTS["bydfi"] for name in ("swap", "inverse", "funding", "copy_trading", "grid")},
    "coinbase swap": Account("GET /api/v3/brokerage/cfm/balance_summary", _CFM, {"USD": HELD}),
    "coinbase future": Account("GET /api/v3/brokerage/cfm/balance_summary", _CFM, {"USD": HELD}),
    "deepcoin swap": ACCOUNTS["deepcoin"],
    "digifinex margin": _of_first_type("digifinex", "GET /v3/margin/assets"),
    "digifinex swap": _at_data(
        "GET /swap/v2/account/balance", [{"currency": "BTC", "equity": TOTAL, "avail_balance": FREE}], code=0
    ),
    "fmfwio funding": _of_first_type("fmfwio", "GET /api/3/wallet/balance"),
    "gate margin": _beside_kind(
        "gate", Account("GET /api/v4/margin/accounts", [_GATE_PAIR], {"BTC": HELD, **_NO_USDT})
    ),
    "gate swap": _gate("/futures/usdt/accounts", total=TOTAL, available=FREE),
    "gate inverse": _gate("/futures/btc/accounts", total=TOTAL, available=FREE),
    "gate future": _gate("/delivery/usdt/accounts", total=TOTAL, available=FREE),
    "gate option": _gate("/options/accounts", total=TOTAL, available=FREE),
    "gate funding": _of_first_type("gate", "GET /api/v4/margin/funding_accounts"),
    "gate unified": Account(
        "GET /api/v4/unified/accounts", _GATE_UNIFIED, before={"GET /api/v4/account/detail": _GATE_UNIFIED_KIND}
    ),
    "gateeu funding": _of_first_type("gateeu", "GET /api/v4/margin/funding_accounts"),
    "gateeu unified": Account(
        "GET /api/v4/unified/accounts", _GATE_UNIFIED, before={"GET /api/v4/account/detail": _GATE_UNIFIED_KIND}
    ),
    "hashkey swap": Account(
        "GET /api/v1/futures/balance",
        [{"asset": "BTC", "balance": TOTAL, "availableBalance": FREE, "positionMargin": USED, "orderMargin": "0"}],
    ),
    "hitbtc funding": _of_first_type("hitbtc", "GET /api/3/wallet/balance"),
    "hitbtc swap": _of_first_type("hitbtc", "GET /api/3/futures/balance"),
    "htx margin": _at_data(
        "GET /v1/cross-margin/accounts/balance",
        {"id": 51015302, "type": "cross-margin", "state": "working", "list": _HTX_ROWS},
        status="ok",
    ),
    "htx isolated": _at_data(
        "GET /v1/margin/accounts/balance",
        [{"id": 18264, "type": "margin", "state": "working", "symbol": "btcusdt", "list": _HTX_ROWS}],
        status="ok",
    ),
    **{
        f"htx {name}": _at_data(
            "GET /v5/account/balance",
            {"state": "normal", "details": [{"currency": "BTC", "equity": TOTAL, "available_margin": FREE}]},
            code=200,
        )
        for name in ("swap", "future")
    },
    "htx inverse": _at_data(
        "POST /swap-api/v1/swap_account_info", [{**_HTX_INVERSE, "margin_frozen": bare(USED)}], status="ok"
    ),
    "htx delivery": _at_data(
        "POST /api/v1/contract_account_info", [{**_HTX_INVERSE, "margin_frozen": bare(USED)}], status="ok"
    ),
    "krakenfutures cash": Account(
        "GET /derivatives/api/v3/accounts",
        {
            "result": "success",
            "accounts": {
                "flex": {"type": "multiCollateralMarginAccount", "currencies": {}},
                "cash": {"type": "cashAccount", "balances": {"xbt": bare(TOTAL)}},
            },
        },
        {"BTC": (TOTAL, TOTAL, "0", "xbt")},
        assets={"BTC": "xbt"},
    ),
    "kucoin funding": _kucoin(
        "GET /api/v1/accounts",
        [{"id": "5", "currency": "BTC", "type": "main", "balance": TOTAL, "available": FREE, "holds": USED}],
    ),
    "kucoin margin": _kucoin(
        "GET /api/v1/margin/account",
        {"accounts": [{"currency": "BTC", "totalBalance": TOTAL, "availableBalance": FREE, "holdBalance": USED}]},
    ),
    "kucoin isolated": _kucoin(
        "GET /api/v3/isolated/accounts", {"assets": [_KUCOIN_PAIR]}, rows={"BTC": HELD, **_NO_USDT}
    ),
    "kucoin swap": _kucoin("GET /api/v1/account-overview", {**_KUCOIN_OVERVIEW, "currency": "BTC"}),
    "kucoin future": _kucoin("GET /api/v1/account-overview", {**_KUCOIN_OVERVIEW, "currency": "BTC"}),
    "kucoin inverse": _kucoin(
        "GET /api/v1/account-overview", _KUCOIN_OVERVIEW, rows={"BTC": (*HELD, "XBT")}, assets={"BTC": "XBT"}
    ),
    "kucoin unified": Account(
        "GET /api/ua/v1/unified/account/balance",
        {"code": "200000", "data": {"accounts": [{"accountSubtype": "unified", "currencies": [_KUCOIN_SIDE]}]}},
        before={"GET /api/ua/v1/account/mode": _KUCOIN_UNIFIED_KIND},
    ),
    "kucoinfutures inverse": replace(
        ACCOUNTS["kucoinfutures"],
        answer={"code": "200000", "data": _KUCOIN_OVERVIEW},
        rows={"BTC": (*HELD, "XBT")},
        assets={"BTC": "XBT"},
    ),
    "latoken funding": replace(
        ACCOUNTS["latoken"], answer=[{**ACCOUNTS["latoken"].answer[0], "type": "ACCOUNT_TYPE_WALLET"}]
    ),
    "lighter spot": replace(
        ACCOUNTS["lighter"],
        answer={
            "code": 200,
            "accounts": [{"index": 666666, "assets": [{"symbol": "BTC", "balance": TOTAL, "locked_balance": USED}]}],
        },
        rows={"BTC": HELD},
    ),
    "mexc swap": _at_data(
        "GET /api/v1/private/account/assets",
        [{"currency": "BTC", "availableBalance": bare(FREE), "frozenBalance": bare(USED), "equity": bare(TOTAL)}],
        success=True,
    ),
    "mudrex spot": replace(
        ACCOUNTS["mudrex"],
        request="GET /fapi/v1/wallet/funds",
        answer={"success": True, "data": {"total": TOTAL, "withdrawable": FREE}},
    ),
    **{
        f"{name} funding": _at_data(
            "GET /api/v5/asset/balances",
            [{"ccy": "BTC", "bal": TOTAL, "availBal": FREE, "frozenBal": USED}],
            code="0",
            msg="",
        )
        for name in ("okx", "okxus", "myokx")
    },
    "phemex swap": _at_data(
        "GET /g-accounts/accountPositions", {"account": _PHEMEX_LINEAR}, {"USDT": HELD}, code=0, msg=""
    ),
    "phemex inverse": _at_data(
        "GET /accounts/accountPositions", {"account": _PHEMEX_INVERSE}, {"BTC": _ROUNDED}, code=0, msg=""
    ),
    "poloniex swap": _at_data(
        "GET /v3/account/balance", {"details": [{"ccy": "BTC", "eq": TOTAL, "avail": FREE, "im": USED}]}, code="200"
    ),
    "toobit swap": Account(
        "GET /api/v1/futures/balance", [{"asset": "BTC", "balance": TOTAL, "availableBalance": FREE}]
    ),
    "weex swap": Account(
        "GET /capi/v3/account/balance", [{"asset": "BTC", "balance": TOTAL, "availableBalance": FREE, "frozen": USED}]
    ),
    "whitebit funding": Account(
        "POST /api/v4/main-account/balance", {"BTC": {"main_balance": TOTAL}}, {"BTC": (TOTAL, TOTAL, "0")}
    ),
    "whitebit swap": Account("POST /api/v4/collateral-account/balance", {"BTC": TOTAL}, {"BTC": (TOTAL, None, None)}),
    **{
        f"xt {name}": Account(
            "GET /future/user/v1/balance/list",
            {
                "returnCode": 0,
                "result": [
                    {
                        "coin": "btc",
                        "walletBalance": TOTAL,
                        "availableBalance": FREE,
                        "openOrderMarginFrozen": "0",
                        "isolatedMargin": USED,
                        "crossedMargin": "0",
                    }
                ],
            },
        )
        for name in ("swap", "inverse")
    },
    "zebpay swap": _of_first_type("zebpay", "GET /api/v1/wallet/balance"),
}
