"""Which accounts are pushed through CCXT's sockets, why others are not, and what is sent only to listen.

An account type is in the table if the tests show, against a venue on loopback that speaks as CCXT's class reads it,
that a change is a hint, and that a refused key and a broken connection are errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# CCXT's parameters of `watch_balance`.
_PLAIN: Mapping[str, Any] = {}
_SPOT: Mapping[str, Any] = {"type": "spot"}
_SWAP: Mapping[str, Any] = {"type": "swap"}
_FUTURE: Mapping[str, Any] = {"type": "future"}
_INVERSE: Mapping[str, Any] = {"type": "delivery", "subType": "inverse"}

# The account types that are pushed. None of them is believed to send whole balances.
PUSHED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "backpack": {"spot": _PLAIN},  # witness: CCXT: backpack.watch_balance
    "bequant": {"spot": _SPOT},  # witness: CCXT: bequant.watch_balance
    # witness: CCXT: binance.watch_balance
    "binance": {"spot": _SPOT, "future": _FUTURE, "swap": _SWAP, "delivery": _INVERSE},
    "binancecoinm": {"delivery": _INVERSE},  # witness: CCXT: binancecoinm.watch_balance
    "binanceusdm": {"swap": _SWAP, "future": _FUTURE},  # witness: CCXT: binanceusdm.watch_balance
    "bingx": {"spot": _SPOT, "swap": _SWAP},  # witness: CCXT: bingx.watch_balance
    "bitfinex": {"spot": {"wallet": "exchange"}},  # witness: CCXT: bitfinex.watch_balance
    "bitget": {"spot": _SPOT, "swap": _SWAP, "unified": {"uta": True}},  # witness: CCXT: bitget.watch_balance
    "bithumb": {"spot": _PLAIN},  # witness: CCXT: bithumb.watch_balance
    "bitrue": {"spot": _PLAIN},  # witness: CCXT: bitrue.watch_balance
    "blockchaincom": {"spot": _PLAIN},  # witness: CCXT: blockchaincom.watch_balance
    "bybit": {"unified": _PLAIN},  # witness: CCXT: bybit.watch_balance
    "bybiteu": {"unified": _PLAIN},  # witness: CCXT: bybiteu.watch_balance
    "bybitid": {"unified": _PLAIN},  # witness: CCXT: bybitid.watch_balance
    "bydfi": {"swap": _PLAIN},  # witness: CCXT: bydfi.watch_balance
    "cryptocom": {"spot": _PLAIN},  # witness: CCXT: cryptocom.watch_balance
    "deribit": {"trading": _PLAIN},  # witness: CCXT: deribit.watch_balance
    "extended": {"swap": _PLAIN},  # witness: CCXT: extended.watch_balance
    "gate": {"spot": _SPOT},  # witness: CCXT: gate.watch_balance
    "gateeu": {"spot": _SPOT},  # witness: CCXT: gateeu.watch_balance
    "hashkey": {"spot": _SPOT, "swap": _SWAP},  # witness: CCXT: hashkey.watch_balance
    "hitbtc": {"spot": _SPOT, "swap": _SWAP},  # witness: CCXT: hitbtc.watch_balance
    "hollaex": {"spot": _PLAIN},  # witness: CCXT: hollaex.watch_balance
    "htx": {"spot": _SPOT, "swap": _SWAP},  # witness: CCXT: htx.watch_balance
    "kraken": {"spot": _PLAIN},  # witness: CCXT: kraken.watch_balance
    "krakenfutures": {"flex": _PLAIN, "cash": _PLAIN},  # witness: CCXT: krakenfutures.watch_balance
    "kucoin": {"spot": _SPOT, "funding": {"type": "funding"}},  # witness: CCXT: kucoin.watch_balance
    "kucoinfutures": {"swap": _SWAP},  # witness: CCXT: kucoinfutures.watch_balance
    "lbank": {"spot": _PLAIN},  # witness: CCXT: lbank.watch_balance
    "mexc": {"spot": _SPOT},  # witness: CCXT: mexc.watch_balance
    "modetrade": {"swap": _PLAIN},  # witness: CCXT: modetrade.watch_balance
    "myokx": {"trading": _PLAIN},  # witness: CCXT: myokx.watch_balance
    "okx": {"trading": _PLAIN},  # witness: CCXT: okx.watch_balance
    "okxus": {"trading": _PLAIN},  # witness: CCXT: okxus.watch_balance
    "onetrading": {"spot": _PLAIN},  # witness: CCXT: onetrading.watch_balance
    "phemex": {"spot": _SPOT, "swap": _SWAP},  # witness: CCXT: phemex.watch_balance
    "poloniex": {"spot": _PLAIN},  # witness: CCXT: poloniex.watch_balance
    "toobit": {"spot": _SPOT, "swap": _SWAP},  # witness: CCXT: toobit.watch_balance
    "upbit": {"spot": _PLAIN},  # witness: CCXT: upbit.watch_balance
    "weex": {"spot": _SPOT, "swap": _SWAP},  # witness: CCXT: weex.watch_balance
    "whitebit": {"spot": _SPOT, "swap": _SWAP},  # witness: CCXT: whitebit.watch_balance
    "woofipro": {"swap": _PLAIN},  # witness: CCXT: woofipro.watch_balance
    "xt": {"spot": _SPOT},  # witness: CCXT: xt.watch_balance
}

# The POST with which CCXT gets a key or a token for listening, which changes nothing of the account.
_LISTENS: Mapping[str, str] = {
    "binance": "listenKey",  # witness: CCXT: binance.api
    "binancecoinm": "listenKey",  # witness: CCXT: binancecoinm.api
    "binanceusdm": "listenKey",  # witness: CCXT: binanceusdm.api
    "bingx": "userDataStream",  # witness: CCXT: bingx.api
    "bitrue": "poseidon/api/v1/listenKey",  # witness: CCXT: bitrue.api
    "hashkey": "api/v1/userDataStream",  # witness: CCXT: hashkey.api
    "kraken": "GetWebSocketsToken",  # witness: CCXT: kraken.api
    "kucoin": "bullet-private",  # witness: CCXT: kucoin.api
    "kucoinfutures": "bullet-private",  # witness: CCXT: kucoinfutures.api
    "lbank": "subscribe/get_key",  # witness: CCXT: lbank.api
    "mexc": "userDataStream",  # witness: CCXT: mexc.api
    "toobit": "api/v1/userDataStream",  # witness: CCXT: toobit.api
    "whitebit": "profile/websocket_token",  # witness: CCXT: whitebit.api
    "xt": "ws-token",  # witness: CCXT: xt.api
}

# These do not answer a subscription, so it is believed to stand if it is not refused.
UNANSWERED = frozenset(
    {
        # witness: unproven: neither CCXT's class nor a stored page of the vendor shows an answer
        "backpack",
        "bithumb",
        "lbank",
        "upbit",
    }
)

# CCXT has no socket of the test environment, or not for each account type.
WITHOUT_SANDBOX = frozenset(
    {
        "bingx",  # witness: CCXT: bingx.urls
        "blockchaincom",  # witness: CCXT: blockchaincom.urls
        "cryptocom",  # witness: CCXT: cryptocom.urls
        "gate",  # witness: CCXT: gate.urls
        "gateeu",  # witness: CCXT: gateeu.urls
        "hashkey",  # witness: CCXT: hashkey.urls
    }
)

# The addresses that the venue itself names with its token.
_NAMED_BY_VENUE: Mapping[str, str] = {
    # witness: unproven: other programs name these hosts, the vendor's page was not found, and CCXT's source has another
    "kucoin": "wss://ws-api-spot.kucoin.com",
    "kucoinfutures": "wss://ws-api-futures.kucoin.com",
}

# Ids that have a `watch_balance` and are not pushed.
_NOT_PUSHED: Mapping[str, str] = {
    "binanceus": "CCXT would send the signed key to binance.com",  # witness: CCXT: binanceus.urls
    "bitopro": "CCXT needs the login name, which reading does not need",  # witness: CCXT: bitopro.authenticate
    "cex": "CCXT only asks there, and hears of no change",  # witness: CCXT: cex.watch_balance
    "derive": "CCXT signs in with the wallet's key",  # witness: CCXT: derive.authenticate
    "lighter": "it is pushed by the plugin exchange-service-lighter",  # witness: CCXT: lighter.watch_balance
    "woo": "CCXT needs the user's number, which reading does not need",  # witness: CCXT: woo.authenticate
}


def why_not_pushed(exchange_id: str) -> str:
    """Why no account of this exchange is pushed; empty if one is."""
    if exchange_id in PUSHED:
        return ""
    return _NOT_PUSHED.get(exchange_id, "CCXT has no push of a balance for it")


def named_by_venue(exchange_id: str) -> Mapping[str, str]:
    """The addresses of sockets, by name, that CCXT learns from the venue."""
    url = _NAMED_BY_VENUE.get(exchange_id)
    return {"ws.named": url} if url else {}


def is_listening(exchange_id: str, method: str, path: str) -> bool:
    """Whether a request is known to get only a key or a token for listening. `path` is CCXT's."""
    return method == "POST" and path == _LISTENS.get(exchange_id)
