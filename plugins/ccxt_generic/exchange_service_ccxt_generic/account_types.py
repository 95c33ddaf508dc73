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
    "aster": ("spot", "swap"),  # witness: CCXT: aster.fetch_balance
    "bequant": ("spot", "funding"),  # witness: CCXT: bequant.fetch_balance
    "bigone": ("spot", "funding"),  # witness: CCXT: bigone.fetch_balance
    # witness: CCXT: binance.fetch_balance
    "binance": ("spot", "margin", "isolated", "future", "swap", "delivery", "funding", "papi"),
    "binancecoinm": ("delivery",),
    "binanceus": ("spot",),
    "binanceusdm": ("swap", "future"),
    "bingx": ("spot", "swap", "inverse", "standard", "funding"),  # witness: CCXT: bingx.fetch_balance
    "bitfinex": ("spot", "margin", "funding", "derivatives"),  # witness: CCXT: bitfinex.fetch_balance
    # witness: CCXT: bitget.fetch_balance
    "bitget": ("spot", "margin", "isolated", "swap", "usdc_swap", "future", "inverse", "funding", UNIFIED),
    "bitrue": ("spot", "swap", "inverse"),  # witness: CCXT: bitrue.fetch_balance
    "blofin": ("swap", "funding", "spot", "earn", "copy_trading"),  # witness: CCXT: blofin.fetch_balance
    "btse": ("spot", "swap"),  # witness: CCXT: btse.fetch_balance
    # witness: CCXT: bybit.fetch_balance
    "bybit": (UNIFIED, "swap", "future", "inverse", "spot", "funding"),
    "bybiteu": (UNIFIED, "spot", "funding"),
    "bybitid": (UNIFIED, "swap", "future", "inverse", "spot", "funding"),
    # witness: CCXT: bydfi.fetch_balance
    "bydfi": ("spot", "swap", "inverse", "funding", "copy_trading", "grid"),
    # witness: CCXT: coinbase.fetch_balance
    "coinbase": ("spot", "swap", "future"),
    "deepcoin": ("spot", "swap"),  # witness: CCXT: deepcoin.fetch_balance
    "digifinex": ("spot", "margin", "swap"),  # witness: CCXT: digifinex.fetch_balance
    "fmfwio": ("spot", "funding"),  # witness: CCXT: fmfwio.fetch_balance
    # witness: CCXT: gate.fetch_balance
    "gate": ("spot", "margin", "swap", "inverse", "future", "option", "funding", UNIFIED),
    "gateeu": ("spot", "funding", UNIFIED),
    "hashkey": ("spot", "swap"),  # witness: CCXT: hashkey.fetch_balance
    "hitbtc": ("spot", "funding", "swap"),  # witness: CCXT: hitbtc.fetch_balance
    # witness: CCXT: htx.fetch_balance
    "htx": ("spot", "margin", "isolated", "swap", "future", "inverse", "delivery"),
    "hyperliquid": ("swap", "spot"),  # witness: CCXT: hyperliquid.fetch_balance
    "krakenfutures": ("flex", "cash"),  # witness: CCXT: krakenfutures.fetch_balance
    # witness: CCXT: kucoin.fetch_balance
    "kucoin": ("spot", "funding", "margin", "isolated", "swap", "future", "inverse", UNIFIED),
    "kucoinfutures": ("swap", "inverse"),
    "latoken": ("spot", "funding"),  # witness: CCXT: latoken.fetch_balance
    "lighter": ("swap", "spot"),  # witness: CCXT: lighter.fetch_balance
    "mexc": ("spot", "swap"),  # witness: CCXT: mexc.fetch_balance
    "mudrex": ("swap", "spot"),  # witness: CCXT: mudrex.fetch_balance
    # witness: CCXT: okx.fetch_balance
    "myokx": ("trading", "funding"),
    "okx": ("trading", "funding"),
    "okxus": ("trading", "funding"),
    "phemex": ("spot", "swap", "inverse"),  # witness: CCXT: phemex.fetch_balance
    "poloniex": ("spot", "swap"),  # witness: CCXT: poloniex.fetch_balance
    "toobit": ("spot", "swap"),  # witness: CCXT: toobit.fetch_balance
    "weex": ("spot", "swap"),  # witness: CCXT: weex.fetch_balance
    "whitebit": ("spot", "funding", "swap"),  # witness: CCXT: whitebit.fetch_balance
    "xt": ("spot", "swap", "inverse"),  # witness: CCXT: xt.fetch_balance
    "zebpay": ("spot", "swap"),  # witness: CCXT: zebpay.fetch_balance
}

# Names that users of CCXT store for accounts that these venues keep as one.
_TRADING = dict.fromkeys(("spot", "margin", "swap", "future", "option"), "trading")
_SYNONYMS: Mapping[str, Mapping[str, str]] = {
    "binancecoinm": {"swap": "delivery", "future": "delivery"},  # witness: CCXT: binancecoinm.fetch_balance
    "deribit": _TRADING,  # witness: CCXT: deribit.fetch_balance
    "krakenfutures": {"swap": "flex", "future": "flex"},  # witness: CCXT: krakenfutures.fetch_balance
    "kucoinfutures": {"future": "swap"},  # witness: CCXT: kucoinfutures.fetch_balance
    # witness: CCXT: okx.fetch_balance
    "myokx": _TRADING,
    "okx": _TRADING,
    "okxus": _TRADING,
    "toobit": {"future": "swap"},  # witness: CCXT: toobit.fetch_balance
    "xt": {"future": "swap"},  # witness: CCXT: xt.fetch_balance
}

# One account serves every kind of market here, so the name of no market fits.
_SINGLE: Mapping[str, str] = {
    "deribit": "trading",  # witness: CCXT: deribit.fetch_balance
    "coinbaseinternational": "trading",  # witness: CCXT: coinbaseinternational.fetch_balance
}

# Why a type is not among those by which `all` reads each wallet once.
_REASONS: Mapping[str, Mapping[str, str]] = {
    # witness: CCXT: binance.fetch_balance
    "binance": {"swap": "the same wallet as future"},
    "binanceusdm": {"future": "the same wallet as swap"},
    "bitfinex": {"derivatives": "a part of margin"},  # witness: CCXT: bitfinex.fetch_balance
    # witness: CCXT: bitget.fetch_balance
    "bitget": {"future": "the same wallet as swap", "funding": "a part of spot unless the account is unified"},
    # witness: CCXT: bybit.fetch_balance
    "bybit": {"future": "the same wallet as swap", "inverse": "the same wallet as swap"},
    "bybitid": {"future": "the same wallet as swap", "inverse": "the same wallet as swap"},
    "coinbase": {"swap": "the same wallet as future"},  # witness: CCXT: coinbase.fetch_balance
    "htx": {"future": "the same wallet as swap"},  # witness: CCXT: htx.fetch_balance
    "kucoin": {"future": "the same wallet as swap"},  # witness: CCXT: kucoin.options
}
_NOT_UNIFIED = "this account is not unified"
_PART_OF_UNIFIED = "a part of the unified account"

# Wallets that `fetch_balance` distinguishes by more than a type, so that no type of the listing reads them.
_UNREAD: Mapping[str, str] = {
    # witness: CCXT: binance.fetch_balance
    "binance": "Options and savings are not read.",
    # witness: vendor: https://github.com/btsecom/docs/blob/master/source/futuresV2_3/en/index.html.md
    "btse": "Isolated futures wallets are not read: BTSE gives each by the name of its market alone.",
    # witness: CCXT: bydfi.fetch_balance
    "bydfi": "Of several futures sub-wallets only the main one is read.",
    # witness: CCXT: gate.fetch_balance
    "gate": "A cross margin account that is not part of a unified account is not read.",
    # witness: CCXT: krakenfutures.fetch_balance
    "krakenfutures": "Margin accounts of single markets are not read: CCXT reads each by the name of its market alone.",
    # witness: CCXT: mexc.fetch_balance
    "mexc": "Isolated margin is not read: MEXC gives it by the names of markets alone.",
    # witness: CCXT: mudrex.fetch_balance
    "mudrex": "Of each wallet the USDT is read: Mudrex gives other currencies by their names alone.",
    # witness: CCXT: phemex.fetch_balance
    "phemex": "Contracts that are settled in USDC are not read: CCXT has no request for their wallet.",
}


@dataclass(frozen=True, slots=True)
class Sum:
    """A type that adds up several others. `all` reads it if the venue refuses one of these."""

    account_type: str
    of: tuple[str, ...]


# After a user has turned portfolio margin on, Binance refuses the accounts that it adds up.
_SUMS: Mapping[str, Sum] = {
    "binance": Sum("papi", ("margin", "future", "delivery")),  # witness: report: JKorf/Binance.Net#1485
}


@dataclass(frozen=True, slots=True)
class Unified:
    """An exchange where a user may have a unified account.

    CCXT sets one of `options` to true if the user has it. `wallets` are the types that then read each wallet once, and
    `apart` the type that the first version of the unified account did not contain.
    """

    options: tuple[str, ...]
    wallets: tuple[str, ...]
    apart: str = ""


_BYBIT = Unified(("enableUnifiedMargin", "enableUnifiedAccount"), (UNIFIED, "funding"), apart="inverse")
_UNIFIED: Mapping[str, Unified] = {
    "bitget": Unified(("uta",), (UNIFIED, "funding")),  # witness: CCXT: bitget.fetch_balance
    # witness: CCXT: bybit.fetch_balance
    "bybit": _BYBIT,
    "bybiteu": Unified(_BYBIT.options, _BYBIT.wallets),
    "bybitid": _BYBIT,
    # witness: CCXT: gate.fetch_balance
    "gate": Unified(("unifiedAccount",), (UNIFIED,)),
    "gateeu": Unified(("unifiedAccount",), (UNIFIED,)),
    "kucoin": Unified(("uta",), (UNIFIED, "funding")),  # witness: CCXT: kucoin.fetch_uta_balance
}
# Bybit's first version of the unified account has a smaller number in this option of CCXT.
_VERSION, _SECOND_VERSION = "unifiedMarginStatus", 5

# CCXT's parameters in place of the type, without which it reads another account than the one of that name. They are
# empty if CCXT itself finds out whether there is a unified account.
_PARAMETERS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("binance", "delivery"): {"type": "delivery", "subType": "inverse"},  # witness: CCXT: binance.fetch_balance
    ("binance", "isolated"): {"type": "margin", "marginMode": "isolated"},  # witness: CCXT: binance.fetch_balance
    ("bingx", "inverse"): {"type": "swap", "subType": "inverse"},  # witness: CCXT: bingx.fetch_balance
    ("bingx", "standard"): {"standard": True},  # witness: CCXT: bingx.fetch_balance
    # witness: CCXT: bitget.handle_product_type_and_params
    ("bitget", "inverse"): {"type": "swap", "subType": "inverse"},
    ("bitget", "isolated"): {"type": "spot", "marginMode": "isolated"},  # witness: CCXT: bitget.fetch_balance
    ("bitget", "margin"): {"type": "spot", "marginMode": "cross"},  # witness: CCXT: bitget.fetch_balance
    ("bitget", UNIFIED): {},  # witness: CCXT: bitget.handle_uta_and_params
    ("bitget", "usdc_swap"): {"type": "swap", "productType": "USDC-FUTURES"},  # witness: CCXT: bitget.fetch_balance
    ("bitrue", "inverse"): {"type": "swap", "subType": "inverse"},  # witness: CCXT: bitrue.fetch_balance
    # witness: CCXT: bybit.fetch_balance
    ("bybit", "inverse"): {"type": "swap", "subType": "inverse"},
    ("bybit", UNIFIED): {},
    ("bybiteu", UNIFIED): {},
    ("bybitid", "inverse"): {"type": "swap", "subType": "inverse"},
    ("bybitid", UNIFIED): {},
    # witness: CCXT: bydfi.fetch_balance
    ("bydfi", "copy_trading"): {"type": "COPY"},
    ("bydfi", "grid"): {"type": "GRID"},
    # witness: CCXT: gate.fetch_balance
    ("gate", "future"): {"type": "future", "settle": "usdt"},
    ("gate", "inverse"): {"type": "swap", "settle": "btc"},
    ("gate", "margin"): {"type": "spot", "marginMode": "isolated"},
    ("gate", UNIFIED): {},
    ("gateeu", UNIFIED): {},
    # witness: CCXT: htx.fetch_balance
    ("htx", "delivery"): {"type": "future", "defaultSubType": "inverse"},
    ("htx", "inverse"): {"type": "swap", "defaultSubType": "inverse"},
    ("htx", "isolated"): {"type": "margin", "marginMode": "isolated"},
    # CCXT takes each of these for the account of trades if that is one for high frequency, unless it is told.
    # witness: CCXT: kucoin.handle_hf_and_params
    ("kucoin", "isolated"): {"type": "isolated", "hf": False},
    ("kucoin", "margin"): {"type": "margin", "hf": False},
    # witness: CCXT: kucoin.fetch_contract_balance
    ("kucoin", "inverse"): {"type": "swap"},
    ("kucoinfutures", "inverse"): {"type": "swap"},
    ("kucoin", UNIFIED): {},  # witness: CCXT: kucoin.is_uta_enabled
    ("phemex", "inverse"): {"type": "swap"},  # witness: CCXT: phemex.fetch_balance
    ("whitebit", "funding"): {"account": "main"},  # witness: CCXT: whitebit.fetch_balance
    ("xt", "inverse"): {"type": "swap", "subType": "inverse"},  # witness: CCXT: xt.fetch_balance
}
# The parameters that a unified account does not have.
_OF_PLAIN_ACCOUNTS = frozenset({"hf", "code", "productType"})

# Types whose wallets are one for each currency in which contracts are settled. CCXT reads one by its parameter `code`.
# The currencies that follow are those of other types, or have no request.
_BY_SETTLEMENT: Mapping[tuple[str, str], tuple[str, ...]] = {
    # witness: CCXT: kucoin.fetch_contract_balance
    ("kucoin", "inverse"): ("USDT",),
    ("kucoinfutures", "inverse"): ("USDT",),
    ("phemex", "inverse"): ("USDT", "USDC"),  # witness: CCXT: phemex.fetch_balance
}

# Further parameters that `fetch_balance` has for an account type, with all known values. With another type it would
# read another account, so they are refused there.
_CONTRACTS = {"subType": ("linear", "inverse")}
_MARGIN = {"marginMode": ("cross", "isolated")}
_FURTHER: Mapping[tuple[str, str], Mapping[str, tuple[str, ...]]] = {
    # witness: CCXT: binance.fetch_balance
    ("binance", "future"): _CONTRACTS,
    ("binance", "swap"): _CONTRACTS,
    ("binance", "margin"): _MARGIN,
    ("bingx", "swap"): _CONTRACTS,  # witness: CCXT: bingx.fetch_balance
    # witness: CCXT: bitget.handle_product_type_and_params
    ("bitget", "swap"): _CONTRACTS,
    ("bitget", "future"): _CONTRACTS,
    ("bitget", "margin"): _MARGIN,  # witness: CCXT: bitget.fetch_balance
    ("bitrue", "swap"): _CONTRACTS,  # witness: CCXT: bitrue.fetch_balance
    # witness: CCXT: bybit.fetch_balance
    ("bybit", UNIFIED): _CONTRACTS,
    ("bybit", "swap"): _CONTRACTS,
    ("bybit", "future"): _CONTRACTS,
    ("gate", "margin"): _MARGIN,  # witness: CCXT: gate.fetch_balance
    ("htx", "margin"): _MARGIN,  # witness: CCXT: htx.fetch_balance
    ("xt", "swap"): _CONTRACTS,  # witness: CCXT: xt.fetch_balance
}

# Coinbase's older interface shows no holds and only one page; CCXT reads all pages of the newer one. LBank's default
# answer has no row that CCXT reads.
_ALWAYS: Mapping[str, Mapping[str, Any]] = {
    "coinbase": {"v3": True},  # witness: CCXT: coinbase.fetch_balance
    "lbank": {"method": "spotPrivatePostSupplementUserInfoAccount"},  # witness: CCXT: lbank.fetch_balance
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
    return UNIFIED if is_unified(exchange_id, options) else wallets(exchange_id, offered, options)[0]


def wallets(exchange_id: str, offered: tuple[str, ...], options: Mapping[str, Any]) -> tuple[str, ...]:
    """The types that together read each wallet of the user once; `options` as in `is_unified`."""
    if is_unified(exchange_id, options):
        unified = _UNIFIED[exchange_id]
        version = options.get(_VERSION)
        first_version = unified.apart and isinstance(version, int) and version < _SECOND_VERSION
        return (*unified.wallets, unified.apart) if first_version else unified.wallets
    added_up = sum_of(exchange_id)
    left = {UNIFIED, *_REASONS.get(exchange_id, {}), *((added_up.account_type,) if added_up else ())}
    return tuple(name for name in offered if name not in left)


def sum_of(exchange_id: str) -> Sum | None:
    """The type of this exchange that adds up others; None if there is no such type."""
    return _SUMS.get(exchange_id)


def left_out(exchange_id: str, offered: tuple[str, ...], options: Mapping[str, Any]) -> Mapping[str, str]:
    """The types that `wallets` leaves out, each with the reason. A sum of others has none: it may be read."""
    read = wallets(exchange_id, offered, options)
    added_up = sum_of(exchange_id)
    unified = is_unified(exchange_id, options)
    return {
        name: _PART_OF_UNIFIED if unified else _REASONS.get(exchange_id, {}).get(name, _NOT_UNIFIED)
        for name in offered
        if name not in read and (added_up is None or name != added_up.account_type)
    }


def unread(exchange_id: str) -> str:
    """A sentence about the wallets that no type of the listing reads; empty if none is known."""
    return _UNREAD.get(exchange_id, "")


def settlement_currencies(
    exchange_id: str, account_type: str, markets: Mapping[str, Any], options: Mapping[str, Any]
) -> tuple[str, ...] | None:
    """The currencies that each have a wallet of this type, by the exchange's `markets`; None for any other type."""
    others = _BY_SETTLEMENT.get((exchange_id, account_type))
    if others is None or is_unified(exchange_id, options):
        return None
    settled = {market.get("settle") for market in markets.values() if market.get("contract")}
    return tuple(sorted(code for code in settled if code and code not in others))


def type_parameters(exchange_id: str, account_type: str | None) -> dict[str, Any]:
    """CCXT's parameters for the type; None is CCXT's default.

    An exchange with one account gets no type, because CCXT would send it as a parameter of the venue.
    """
    parameters = dict(_ALWAYS.get(exchange_id, {}))
    if account_type is not None and exchange_id in _BY_EXCHANGE:
        parameters.update(_PARAMETERS.get((exchange_id, account_type), {"type": account_type}))
    return parameters


def without_plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters for a unified account."""
    return {name: value for name, value in parameters.items() if name not in _OF_PLAIN_ACCOUNTS}


def further_parameters(exchange_id: str, account_type: str) -> Mapping[str, tuple[str, ...]]:
    """The further parameters of this exchange for the type, with their values."""
    return _FURTHER.get((exchange_id, account_type), {})


def further_names() -> tuple[str, ...]:
    """Every name of a further parameter."""
    return ("subType", "marginMode")
