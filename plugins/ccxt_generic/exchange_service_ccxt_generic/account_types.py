"""The account types of each exchange, and CCXT's parameters for them.

CCXT passes an unknown type on, and the venue then answers for another wallet or not at all. So this table has only the
types that an exchange's `fetch_balance` is known to distinguish. Every other exchange has one account.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The type of an account in which the venue keeps everything together, if its user has chosen so.
UNIFIED = "unified"

# The types that CCXT's code for the exchange distinguishes. First the one that its users call their balance.
_BY_EXCHANGE: Mapping[str, tuple[str, ...]] = {
    "aster": ("spot", "swap"),
    "bequant": ("spot", "funding"),
    "bigone": ("spot", "funding"),
    "binance": ("spot", "margin", "future", "swap", "delivery", "funding", "papi"),
    "binancecoinm": ("delivery",),
    "binanceus": ("spot",),
    "binanceusdm": ("swap", "future"),
    "bingx": ("spot", "swap", "inverse", "funding"),
    "bitfinex": ("spot", "margin", "funding", "derivatives"),
    "bitget": ("spot", "margin", "swap", "future", "inverse", "funding", UNIFIED),
    "bitrue": ("spot", "swap", "inverse"),
    "blofin": ("swap", "funding", "spot", "earn", "copy_trading"),
    "btse": ("spot", "swap"),
    "bybit": (UNIFIED, "swap", "future", "spot", "funding"),
    "bybiteu": (UNIFIED, "spot", "funding"),
    "bybitid": (UNIFIED, "swap", "future", "spot", "funding"),
    "bydfi": ("spot", "swap", "inverse", "funding"),
    "coinbase": ("spot", "swap", "future"),
    "deepcoin": ("spot", "swap"),
    "digifinex": ("spot", "margin", "swap"),
    "fmfwio": ("spot", "funding"),
    "gate": ("spot", "margin", "swap", "future", "option", "funding", UNIFIED),
    "gateeu": ("spot", "funding", UNIFIED),
    "hashkey": ("spot", "swap"),
    "hitbtc": ("spot", "funding", "swap"),
    "htx": ("spot", "margin", "swap", "future", "inverse", "delivery"),
    "hyperliquid": ("swap", "spot"),
    "krakenfutures": ("flex", "cash"),
    "kucoin": ("spot", "funding", "margin", "swap", "future", UNIFIED),
    "kucoinfutures": ("swap",),
    "latoken": ("spot", "funding"),
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
    "whitebit": ("spot", "funding", "swap"),
    "xt": ("spot", "swap", "inverse"),
    "zebpay": ("spot", "swap"),
}

# Names that users of CCXT store for accounts that these venues keep as one.
_TRADING = dict.fromkeys(("spot", "margin", "swap", "future", "option"), "trading")
_SYNONYMS: Mapping[str, Mapping[str, str]] = {
    "binancecoinm": {"swap": "delivery", "future": "delivery"},
    "deribit": _TRADING,
    "krakenfutures": {"swap": "flex", "future": "flex"},
    "kucoinfutures": {"future": "swap"},
    "myokx": _TRADING,
    "okx": _TRADING,
    "okxus": _TRADING,
    "toobit": {"future": "swap"},
    "xt": {"future": "swap"},
}

# One account serves every kind of market here, so the name of no market fits.
_SINGLE: Mapping[str, str] = {"deribit": "trading", "coinbaseinternational": "trading"}

# If several types read the same wallet, or one reads a part of another: the types that read each wallet once.
# Binance's papi adds up margin, future and delivery; Bitfinex's derivatives are a part of margin.
_WALLETS: Mapping[str, tuple[str, ...]] = {
    "binance": ("spot", "margin", "future", "delivery", "funding"),
    "binanceusdm": ("swap",),
    "bitfinex": ("spot", "margin", "funding"),
    # Without a unified account the funding funds are in spot.
    "bitget": ("spot", "margin", "swap", "inverse"),
    "bybit": ("swap", "spot", "funding"),
    "bybiteu": ("spot", "funding"),
    "bybitid": ("swap", "spot", "funding"),
    "coinbase": ("spot", "future"),
    "gate": ("spot", "margin", "swap", "future", "option", "funding"),
    "gateeu": ("spot", "funding"),
    "htx": ("spot", "margin", "swap", "inverse", "delivery"),
    "kucoin": ("spot", "funding", "margin", "swap"),
}


@dataclass(frozen=True, slots=True)
class Unified:
    """An exchange where a user may have a unified account.

    CCXT sets one of `options` to true if the user has it. `wallets` are the types that then read each wallet once.
    """

    options: tuple[str, ...]
    wallets: tuple[str, ...]


_BYBIT = Unified(("enableUnifiedMargin", "enableUnifiedAccount"), (UNIFIED, "funding"))
_UNIFIED: Mapping[str, Unified] = {
    "bitget": Unified(("uta",), (UNIFIED, "funding")),
    "bybit": _BYBIT,
    "bybiteu": _BYBIT,
    "bybitid": _BYBIT,
    "gate": Unified(("unifiedAccount",), (UNIFIED,)),
    "gateeu": Unified(("unifiedAccount",), (UNIFIED,)),
    "kucoin": Unified(("uta",), (UNIFIED, "funding")),
}

# CCXT's parameters in place of the type, without which it reads another account than the one of that name. They are
# empty if CCXT itself finds out whether there is a unified account.
_PARAMETERS: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("binance", "delivery"): {"type": "delivery", "subType": "inverse"},
    ("bingx", "inverse"): {"type": "swap", "subType": "inverse"},
    ("bitget", "inverse"): {"type": "swap", "subType": "inverse"},
    ("bitget", "margin"): {"type": "spot", "marginMode": "cross"},
    ("bitget", UNIFIED): {},
    ("bitrue", "inverse"): {"type": "swap", "subType": "inverse"},
    ("bybit", UNIFIED): {},
    ("bybiteu", UNIFIED): {},
    ("bybitid", UNIFIED): {},
    ("gate", "future"): {"type": "future", "settle": "usdt"},
    ("gate", "margin"): {"type": "spot", "marginMode": "isolated"},
    ("gate", UNIFIED): {},
    ("gateeu", UNIFIED): {},
    ("htx", "delivery"): {"type": "future", "defaultSubType": "inverse"},
    ("htx", "inverse"): {"type": "swap", "defaultSubType": "inverse"},
    ("kucoin", UNIFIED): {},
    ("whitebit", "funding"): {"account": "main"},
    ("xt", "inverse"): {"type": "swap", "subType": "inverse"},
}

# Further parameters that `fetch_balance` has for an account type, with all known values. With another type it would
# read another account, so they are refused there.
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
    ("bybit", UNIFIED): _CONTRACTS,
    ("bybit", "swap"): _CONTRACTS,
    ("bybit", "future"): _CONTRACTS,
    ("gate", "margin"): _MARGIN,
    ("htx", "margin"): _MARGIN,
    ("xt", "swap"): _CONTRACTS,
}

# Coinbase's older interface shows no holds and only one page; CCXT reads all pages of the newer one. LBank's default
# answer has no row that CCXT reads.
_ALWAYS: Mapping[str, Mapping[str, Any]] = {
    "coinbase": {"v3": True},
    "lbank": {"method": "spotPrivatePostSupplementUserInfoAccount"},
}


def account_types(exchange_id: str, has: Mapping[str, Any]) -> tuple[str, ...]:
    """The types that can be asked for, the default first. `has` is CCXT's capability map."""
    if exchange_id in _BY_EXCHANGE:
        return _BY_EXCHANGE[exchange_id]
    if exchange_id in _SINGLE:
        return (_SINGLE[exchange_id],)
    return ("spot",) if has.get("spot") or not has.get("swap") else ("swap",)


def known_words(exchange_id: str, offered: tuple[str, ...]) -> tuple[str, ...]:
    """Every name that a user may store for one of the `offered` types of this exchange."""
    return (*offered, *_SYNONYMS.get(exchange_id, {}))


def canonical(exchange_id: str, word: str) -> str:
    """The offered type that a known name stands for."""
    return _SYNONYMS.get(exchange_id, {}).get(word, word)


def is_unified(exchange_id: str, options: Mapping[str, Any]) -> bool:
    """Whether the user has a unified account, by CCXT's `options` after it has read the account."""
    known = _UNIFIED.get(exchange_id)
    return known is not None and any(options.get(name) is True for name in known.options)


def true_type(exchange_id: str, account_type: str, options: Mapping[str, Any], offered: tuple[str, ...]) -> str:
    """The type of the account that CCXT reads for no type, or for the unified one; `options` as in `is_unified`."""
    if UNIFIED not in offered:
        return account_type
    return UNIFIED if is_unified(exchange_id, options) else _WALLETS[exchange_id][0]


def wallets(exchange_id: str, offered: tuple[str, ...], options: Mapping[str, Any]) -> tuple[str, ...]:
    """The types that together read each wallet of the user once; `options` as in `is_unified`."""
    if is_unified(exchange_id, options):
        return _UNIFIED[exchange_id].wallets
    return _WALLETS.get(exchange_id, offered)


def type_parameters(exchange_id: str, account_type: str | None) -> dict[str, Any]:
    """CCXT's parameters for the type; None is CCXT's default.

    An exchange with one account gets no type, because CCXT would send it as a parameter of the venue.
    """
    parameters = dict(_ALWAYS.get(exchange_id, {}))
    if account_type is not None and exchange_id in _BY_EXCHANGE:
        parameters.update(_PARAMETERS.get((exchange_id, account_type), {"type": account_type}))
    return parameters


def further_parameters(exchange_id: str, account_type: str) -> Mapping[str, tuple[str, ...]]:
    """The further parameters of this exchange for the type, with their values."""
    return _FURTHER.get((exchange_id, account_type), {})


def further_names() -> tuple[str, ...]:
    """Every name of a further parameter."""
    return ("subType", "marginMode")
