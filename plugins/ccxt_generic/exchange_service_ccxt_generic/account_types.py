"""Which accounts of an exchange can be asked for, and by which words.

CCXT passes an unknown account type on, and the venue then answers for another wallet or not at all. So only types
that an exchange's `fetch_balance` is known to tell apart stand here; every other exchange has one account.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The types that an exchange's own code tells apart. The one that CCXT takes by default is put first.
_BY_EXCHANGE: Mapping[str, tuple[str, ...]] = {
    "aster": ("spot", "swap"),
    "bequant": ("spot", "funding"),
    "bigone": ("spot", "funding"),
    "binance": ("spot", "margin", "future", "swap", "delivery", "funding"),
    "binancecoinm": ("delivery",),
    "binanceus": ("spot",),
    "binanceusdm": ("swap", "future"),
    "bingx": ("spot", "swap", "funding"),
    "bitfinex": ("spot", "margin", "funding", "derivatives"),
    "bitget": ("spot", "margin", "swap", "future"),
    "bitrue": ("spot", "swap"),
    "blofin": ("swap", "funding", "spot"),
    "btse": ("spot", "swap"),
    "bybit": ("swap", "future", "spot", "funding"),
    "bybiteu": ("spot", "funding"),
    "bybitid": ("swap", "future", "spot", "funding"),
    "coinbase": ("spot", "swap", "future"),
    "deepcoin": ("spot", "swap"),
    "digifinex": ("spot", "margin", "swap"),
    "fmfwio": ("spot", "funding"),
    "gate": ("spot", "swap", "future", "option", "funding"),
    "gateeu": ("spot", "funding"),
    "hashkey": ("spot", "swap"),
    "hitbtc": ("spot", "funding", "swap"),
    "htx": ("spot", "margin", "swap", "future"),
    "hyperliquid": ("swap", "spot"),
    "kucoin": ("spot", "funding", "margin", "swap", "future"),
    "lighter": ("swap", "spot"),
    "mexc": ("spot", "swap"),
    "mudrex": ("swap", "spot"),
    "myokx": ("trading", "funding"),
    "okx": ("trading", "funding"),
    "okxus": ("trading", "funding"),
    "phemex": ("spot", "swap"),
    "poloniex": ("spot", "swap"),
    "toobit": ("spot", "swap"),
    "weex": ("spot", "swap"),
    "whitebit": ("spot", "swap"),
    "xt": ("spot", "swap"),
    "zebpay": ("spot", "swap"),
}

# Words that users of CCXT store for an account that these venues keep as one.
_TRADING = dict.fromkeys(("spot", "margin", "swap", "future", "option"), "trading")
_SYNONYMS: Mapping[str, Mapping[str, str]] = {
    "binancecoinm": {"swap": "delivery", "future": "delivery"},
    "deribit": _TRADING,
    "krakenfutures": {"swap": "flex", "future": "flex"},
    "myokx": _TRADING,
    "okx": _TRADING,
    "okxus": _TRADING,
    "toobit": {"future": "swap"},
    "xt": {"future": "swap"},
}

# Where one account serves every kind of market, the name of no market fits it.
_SINGLE: Mapping[str, str] = {"deribit": "trading", "coinbaseinternational": "trading", "krakenfutures": "flex"}

# What CCXT must be told besides the type, or it reads another account than the one of that name.
_MEANING: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("binance", "delivery"): {"type": "delivery", "subType": "inverse"},
    ("bitget", "margin"): {"type": "spot", "marginMode": "cross"},
    ("gate", "future"): {"type": "future", "settle": "usdt"},
}

# What else `fetch_balance` reads for an account type, with all the values it knows. For another type it would read
# another account, so that the wish is refused there.
_CONTRACTS = {"subType": ("linear", "inverse")}
_MARGIN = {"marginMode": ("cross", "isolated")}
_FURTHER: Mapping[tuple[str, str], Mapping[str, tuple[str, ...]]] = {
    ("binance", "future"): _CONTRACTS,
    ("binance", "swap"): _CONTRACTS,
    ("binance", "margin"): _MARGIN,
    ("bingx", "swap"): _CONTRACTS,
    ("bitget", "swap"): _CONTRACTS,
    ("bitget", "future"): _CONTRACTS,
    ("bitget", "margin"): _MARGIN,
    ("bitrue", "swap"): _CONTRACTS,
    ("bybit", "swap"): _CONTRACTS,
    ("bybit", "future"): _CONTRACTS,
    ("htx", "margin"): _MARGIN,
    ("xt", "swap"): _CONTRACTS,
}

# Coinbase's older interface shows no holds and ends its list at a page; the newer one is read to its end.
_ALWAYS: Mapping[str, Mapping[str, Any]] = {"coinbase": {"v3": True}}


def account_types(exchange_id: str, has: Mapping[str, Any]) -> tuple[str, ...]:
    """The types that can be asked for, the default first. `has` is CCXT's capability map."""
    if exchange_id in _BY_EXCHANGE:
        return _BY_EXCHANGE[exchange_id]
    if exchange_id in _SINGLE:
        return (_SINGLE[exchange_id],)
    return ("spot",) if has.get("spot") or not has.get("swap") else ("swap",)


def known_words(exchange_id: str, offered: tuple[str, ...]) -> tuple[str, ...]:
    """Every word that a user may store for one of the `offered` types of this exchange."""
    return (*offered, *_SYNONYMS.get(exchange_id, {}))


def canonical(exchange_id: str, word: str) -> str:
    """The offered type that a known word stands for."""
    return _SYNONYMS.get(exchange_id, {}).get(word, word)


def type_parameters(exchange_id: str, account_type: str | None) -> dict[str, Any]:
    """The parameters by which CCXT is asked for the type; None is CCXT's default. An exchange with one account takes no
    type, and would be sent it as if it were the venue's own parameter."""
    parameters = dict(_ALWAYS.get(exchange_id, {}))
    if account_type is not None and exchange_id in _BY_EXCHANGE:
        parameters.update(_MEANING.get((exchange_id, account_type), {"type": account_type}))
    return parameters


def further_parameters(exchange_id: str, account_type: str) -> Mapping[str, tuple[str, ...]]:
    """The other parameters that this exchange takes for the type, with their values."""
    return _FURTHER.get((exchange_id, account_type), {})


def further_names() -> tuple[str, ...]:
    """Every name of a further parameter."""
    return ("subType", "marginMode")
