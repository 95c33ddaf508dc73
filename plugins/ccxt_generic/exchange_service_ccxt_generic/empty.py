"""What an empty account looks like, for each exchange: the only answers without rows that are believed.

CCXT reads a maintenance page, `[]`, `{}` and an error in an unknown shape alike as a balance without rows. So an answer
of CCXT without a row is taken for an empty account only where the venue's raw answer is the form that CCXT's own code
for this exchange reads rows from, with none in it. An exchange that is not here is never believed to be empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Form = Callable[[Any], bool]


def _at(value: Any, path: str) -> Any:
    """What lies at a dotted path; a number stands for a place in a list. None where there is nothing."""
    for step in path.split(".") if path else ():
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def _list(path: str = "", **expected: Any) -> Form:
    """A list without entries at `path`, with the `expected` values beside it, such as the code for success."""
    return lambda raw: _at(raw, path) == [] and _holds(raw, expected)


def _each(path: str, field: str, **expected: Any) -> Form:
    """A list at `path` whose entries, if any, are objects with `field`: CCXT leaves some of them out by intention."""

    def holds(raw: Any) -> bool:
        entries = _at(raw, path)
        fits = isinstance(entries, list) and all(isinstance(entry, dict) and field in entry for entry in entries)
        return fits and _holds(raw, expected)

    return holds


def _object(path: str, **expected: Any) -> Form:
    """An object without fields at `path`, with the `expected` values beside it."""
    return lambda raw: _at(raw, path) == {} and _holds(raw, expected)


def _holds(raw: Any, expected: Mapping[str, Any]) -> bool:
    """Whether each field has its value; "0" and 0 are one, as venues mix them, and true and 1 are not."""
    return all(
        name in raw
        and type(raw[name]) in ((type(value),) if isinstance(value, (bool, list)) else (str, int))
        and str(raw[name]) == str(value)
        for name, value in expected.items()
    )


def _any(*forms: Form) -> Form:
    return lambda raw: any(form(raw) for form in forms)


def _bitfinex(raw: Any) -> bool:
    """All wallets of the user in one list, each a list that begins with the wallet's type and asset."""
    return isinstance(raw, list) and all(isinstance(wallet, list) and len(wallet) > 4 for wallet in raw)


# The venue answers with a bare list of assets, in which an empty account has none.
_BARE_LIST = _list()
# Spot says what kind of account it is beside its assets.
_BINANCE_SPOT = _any(_list("balances", accountType="SPOT"), _list("balances", canTrade=True))
# Contract accounts list their assets with zeros, and CCXT leaves out those that were never used (updateTime 0).
_BINANCE_CONTRACTS = _each("assets", "updateTime")
# A trading account is always one object in "data", its assets under "details".
_OKX = _list("data.0.details", code="0")
# Each account's coins lie in the account; the funding wallet has them under "balance".
_BYBIT = _any(_each("result.list", "coin", retCode=0), _list("result.balance", retCode=0))
_ORDERLY = _list("data.holding", success=True)
_SPOT_LIKE_BINANCE = _list("balances")

# By exchange, and for some by exchange and account type.
_FORMS: Mapping[str, Form] = {
    "bequant": _BARE_LIST,
    "bigone": _list("data", code=0),
    "binance": _BINANCE_SPOT,
    # The isolated account lists pairs, the cross one assets.
    "binance margin": _any(_list("userAssets", tradeEnabled=True), _list("assets")),
    "binance future": _BINANCE_CONTRACTS,
    "binance swap": _BINANCE_CONTRACTS,
    "binance delivery": _BINANCE_CONTRACTS,
    "binance funding": _BARE_LIST,
    "binancecoinm": _BINANCE_CONTRACTS,
    "binanceus": _BINANCE_SPOT,
    "binanceusdm": _BINANCE_CONTRACTS,
    "bingx": _list("data.balances", code=0),
    "bitbank": _list("data.assets", success=1),
    "bitfinex": _bitfinex,
    "bitflyer": _BARE_LIST,
    # The classic account lists its assets in "data", the unified one below it.
    "bitget": _any(_list("data", code="00000"), _list("data.assets", code="00000")),
    "bitopro": _list("data"),
    "bitrue": _SPOT_LIKE_BINANCE,
    "bitso": _list("payload.balances", success=True),
    "bitstamp": _BARE_LIST,
    "bitvavo": _BARE_LIST,
    "blofin": _list("data.details", code="0"),
    "blofin funding": _list("data", code="0"),
    "blofin spot": _list("data", code="0"),
    "btcmarkets": _BARE_LIST,
    "btcturk": _list("data", success=True),
    "bybit": _BYBIT,
    "bybiteu": _BYBIT,
    "bybitid": _BYBIT,
    "coinbase": _list("accounts", has_next=False),
    "coinbaseexchange": _BARE_LIST,
    "coinsph": _SPOT_LIKE_BINANCE,
    # One object for the account, its assets under "position_balances".
    "cryptocom": _list("result.data.0.position_balances", code=0),
    "delta": _list("result", success=True),
    "deribit": _list("result.summaries"),
    "digifinex": _list("list", code=0),
    "fmfwio": _BARE_LIST,
    "foxbit": _list("data"),
    "gate": _BARE_LIST,
    "gateeu": _BARE_LIST,
    "gemini": _BARE_LIST,
    "hashkey": _SPOT_LIKE_BINANCE,
    "hashkey swap": _BARE_LIST,
    "hitbtc": _BARE_LIST,
    "htx": _list("data.list", status="ok"),
    "htx swap": _list("data.details", code=200),
    "htx future": _list("data.details", code=200),
    "independentreserve": _BARE_LIST,
    # An account that never held anything has an empty object as its result.
    "kraken": _object("result", error=[]),
    # The unified account lists accounts, each with its currencies.
    "kucoin": _any(_list("data", code="200000"), _each("data.accounts", "currencies", code="200000")),
    "latoken": _each("", "available"),
    "luno": _list("balance"),
    "mexc": _list("balances", canTrade=True),
    "mexc swap": _list("data", success=True),
    "modetrade": _ORDERLY,
    "myokx": _OKX,
    "myokx funding": _list("data", code="0"),
    "okx": _OKX,
    "okx funding": _list("data", code="0"),
    "okxus": _OKX,
    "okxus funding": _list("data", code="0"),
    "onetrading": _SPOT_LIKE_BINANCE,
    "p2b": _object("result", success=True),
    "phemex": _list("data", code=0),
    # A list of accounts, each with its assets.
    "poloniex": _list("0.balances"),
    "revolutx": _BARE_LIST,
    "tokocrypto": _list("data.accountAssets", code=0),
    "toobit": _SPOT_LIKE_BINANCE,
    "toobit swap": _BARE_LIST,
    "upbit": _BARE_LIST,
    "weex": _SPOT_LIKE_BINANCE,
    "weex swap": _BARE_LIST,
    "woo": _ORDERLY,
    "woofipro": _ORDERLY,
    "xt": _list("result.assets", rc=0),
    "xt swap": _list("result", returnCode=0),
    "zebpay": _list("data"),
}


# Where the rows of an answer lie, and a row's asset and amounts: CCXT leaves out an entry that it cannot read without a
# word, and the rest would pass for the whole.
_ROWS: Mapping[str, tuple[str, str, tuple[str, ...]]] = {
    "binance spot": ("balances", "asset", ("free", "locked")),
    "binanceus spot": ("balances", "asset", ("free", "locked")),
    "mexc spot": ("balances", "asset", ("free", "locked")),
}


def lost_row(exchange_id: str, account_type: str, raw: Any) -> str:
    """What is wrong with a row of the raw answer that CCXT would drop or overwrite, in words; empty where nothing is,
    or where the exchange's rows are not known here."""
    known = _ROWS.get(f"{exchange_id} {account_type}")
    if known is None:
        return ""
    path, asset, amounts = known
    rows, seen = _at(raw, path), set()
    if not isinstance(rows, list):
        return "no list of assets"
    for row in rows:
        name = row.get(asset) if isinstance(row, dict) else None
        if not isinstance(name, str) or not name:
            return "a row without an asset"
        if name in seen:
            return "two rows for one asset"
        seen.add(name)
        if any(type(row.get(amount)) not in (str, int) or row[amount] == "" for amount in amounts):
            return "a row without its amounts"
    return ""


def proves_empty(exchange_id: str, account_type: str, raw: Any) -> bool:
    """Whether the raw answer is what this exchange sends for an account of this type without assets."""
    form = _FORMS.get(f"{exchange_id} {account_type}") or _FORMS.get(exchange_id)
    return form is not None and form(raw)
