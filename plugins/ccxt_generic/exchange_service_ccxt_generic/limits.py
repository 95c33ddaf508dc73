"""The rate limits of CCXT's exchanges, from CCXT's own data. They are cautious estimates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from exchange_service.plugin_api import ALL_ACCOUNT_TYPES, ANSWER_LIMIT, PushLimits, RateLimit
from exchange_service_ccxt_generic.account_types import sum_of, wallets

_SECONDS = 60
# These count private requests by user or key, by their documents. All others are assumed to count by address, as most
# do, where a ban affects every user.
_BY_KEY = frozenset(
    {
        # witness: unproven: CCXT's source, which has the pace but not what it is counted by
        "alpaca",
        "bitget",
        "coinbase",
        "deribit",
        "gate",
        "gateeu",
        "kraken",
        "krakenfutures",
        "kucoin",
        "kucoinfutures",
        "myokx",
        "okx",
        "okxus",
    }
)
# The seconds in which a venue counts requests, where CCXT's class says so. There the limit is known: the service keeps
# to it, and CCXT's pauses between two requests are off. Of all others only a pace is known that is slow enough, and the
# requests of an account keep to it.
_WINDOWS: Mapping[str, int] = {
    # witness: CCXT: hitbtc.rollingWindowSize
    "bequant": 1,
    "fmfwio": 1,
    "hitbtc": 1,
    # witness: CCXT: binance.rollingWindowSize
    "binance": 60,
    "binancecoinm": 60,
    "binanceus": 60,
    "binanceusdm": 60,
    "bingx": 2,  # witness: CCXT: bingx.rollingWindowSize
    "bitget": 1,  # witness: CCXT: bitget.rollingWindowSize
    "bitvavo": 60,  # witness: CCXT: bitvavo.rollingWindowSize
    # witness: CCXT: bybit.rollingWindowSize
    "bybit": 5,
    "bybiteu": 5,
    "bybitid": 5,
    # witness: CCXT: gate.rollingWindowSize
    "gate": 5,
    "gateeu": 5,
    "htx": 2,  # witness: CCXT: htx.rollingWindowSize
    "kraken": 10,  # witness: CCXT: kraken.rollingWindowSize
    # witness: CCXT: kucoin.rollingWindowSize
    "kucoin": 30,
    "kucoinfutures": 30,
    "luno": 60,  # witness: CCXT: luno.rollingWindowSize
}
# What a balance of an account type takes in CCXT's units, if it is not one; that of "" is for all types that are not
# named. A test reads every type and counts.
_COSTS: Mapping[str, Mapping[str, float]] = {
    "alpaca": {"": 2},  # witness: CCXT: alpaca.api
    "bequant": {"": 15, "funding": 30},  # witness: CCXT: bequant.api
    "binance": {"spot": 4, "delivery": 5, "papi": 4, "funding": 0.1},  # witness: CCXT: binance.api
    "binancecoinm": {"": 5},  # witness: CCXT: binancecoinm.api
    "binanceus": {"": 10},  # witness: CCXT: binanceus.api
    "bingx": {"": 2, "funding": 1},  # witness: CCXT: bingx.api
    "bitfinex": {"": 2.7},  # witness: CCXT: bitfinex.api
    "bitget": {"": 2, "funding": 1, "unified": 1},  # witness: CCXT: bitget.api
    "bitrue": {"": 5, "spot": 25},  # witness: CCXT: bitrue.api
    "bittrade": {"": 0.2},  # witness: CCXT: bittrade.api
    "bitvavo": {"": 5},  # witness: CCXT: bitvavo.api
    "btse": {"": 5, "spot": 15},  # witness: CCXT: btse.api
    # witness: CCXT: bybit.api
    "bybit": {"funding": 25},
    "bybiteu": {"funding": 25},
    "bybitid": {"funding": 25},
    "cex": {"": 5},  # witness: CCXT: cex.api
    "coinsph": {"": 10},  # witness: CCXT: coinsph.api
    "cryptocom": {"": 10 / 3},  # witness: CCXT: cryptocom.api
    "deepcoin": {"": 5},  # witness: CCXT: deepcoin.api
    "fmfwio": {"": 15, "funding": 30},  # witness: CCXT: fmfwio.api
    "foxbit": {"": 2},  # witness: CCXT: foxbit.api
    # witness: CCXT: gate.api
    "gate": {"": 4 / 3, "spot": 1, "swap": 1, "inverse": 1},
    "gateeu": {"": 4 / 3, "spot": 1},
    "hitbtc": {"": 15, "funding": 30},  # witness: CCXT: hitbtc.api
    "htx": {"": 1, "spot": 0.2, "isolated": 0.2, "swap": 0.21, "future": 0.21},  # witness: CCXT: htx.api
    "indodax": {"": 4},  # witness: CCXT: indodax.api
    "kraken": {"": 3},  # witness: CCXT: kraken.api
    # witness: CCXT: kucoin.api
    "kucoin": {"": 10, "spot": 5, "funding": 5, "margin": 40, "isolated": 15},
    "kucoinfutures": {"": 10},  # witness: CCXT: kucoinfutures.api
    "lbank": {"": 2.5},  # witness: CCXT: lbank.api
    # The account's number is asked for besides, if it is not known yet.
    "lighter": {"": 1.5},  # witness: CCXT: lighter.api
    "mexc": {"": 2, "spot": 10},  # witness: CCXT: mexc.api
    "mudrex": {"": 5},  # witness: CCXT: mudrex.api
    # witness: CCXT: okx.api
    "myokx": {"": 5 / 3, "trading": 2},
    "okx": {"": 5 / 3, "trading": 2},
    "okxus": {"": 5 / 3, "trading": 2},
    "phemex": {"": 1, "spot": 5},  # witness: CCXT: phemex.api
    "poloniex": {"": 4},  # witness: CCXT: poloniex.api
    "toobit": {"": 5},  # witness: CCXT: toobit.api
    "upbit": {"": 0.67},  # witness: CCXT: upbit.api
    "weex": {"": 5, "swap": 10},  # witness: CCXT: weex.api
    "zaif": {"": 10},  # witness: CCXT: zaif.api
    "zebpay": {"": 10},  # witness: CCXT: zebpay.api
}
# Requests for which CCXT counts less than the venue does, by CCXT's interface and path: what they really take, and the
# account types that are read with them. CCXT takes 1 of its 1,200 units, and Binance 5 of 2,400.
_DEARER_REQUESTS: Mapping[str, Mapping[str, float]] = {
    # witness: vendor: https://github.com/binance/binance-connector-java
    "binance": {"fapiPrivateV2/account": 2.5, "fapiPrivateV3/account": 2.5},
    "binanceusdm": {"fapiPrivateV2/account": 2.5, "fapiPrivateV3/account": 2.5},
}
_DEARER_TYPES: Mapping[str, Mapping[str, float]] = {
    # witness: vendor: https://github.com/binance/binance-connector-java
    "binance": {"future": 2.5, "swap": 2.5},
    "binanceusdm": {"future": 2.5, "swap": 2.5},
}
# What the question for the kind of the account takes. It is asked before every second balance, and if one is empty.
_KIND_COSTS: Mapping[str, float] = {
    "bitget": 1,  # witness: CCXT: bitget.api
    # witness: CCXT: bybit.api
    "bybit": 10,
    "bybiteu": 10,
    "bybitid": 10,
    # witness: CCXT: gate.api
    "gate": 4 / 3,
    "gateeu": 4 / 3,
    # With the question whether spot trades in an account for high frequency.
    "kucoin": 62,  # witness: CCXT: kucoin.api
    "kucoinfutures": 60,  # witness: CCXT: kucoinfutures.api
}


# How many times the usual size an account's answers may have, where one of them lists more than the account holds. The
# longest elsewhere are Binance's: 700 assets in 60 kilobytes.
_LONG_ANSWERS = {
    # Each account loads its own markets.
    "alpaca": 8,  # witness: CCXT: alpaca.fetch_markets
    "mudrex": 8,  # witness: CCXT: mudrex.fetch_markets
    # It may list several entries for each of its assets, held or not.
    "htx": 4,  # witness: unproven: an answer of a true account was looked for in stored pages, code and test data
    # It lists contracts that were never traded, each with a kilobyte.
    "phemex": 4,  # witness: report: ccxt/ccxt#18099
}


# Connections for sockets, of which each account has one: the accounts at once, and the connections in a minute. The
# limits count by address. A watch begins again every 20 minutes or so, and so many accounts can.
_BINANCE_PUSH = PushLimits(accounts=1000, connects=60)
_BYBIT_PUSH = PushLimits(accounts=900, connects=100)
_OKX_PUSH = PushLimits(accounts=1000, connects=180)
_PUSH_LIMITS: Mapping[str, PushLimits] = {
    # witness: vendor: https://developers.binance.com/docs/binance-spot-api-docs/websocket-api/rate-limits
    "binance": _BINANCE_PUSH,
    "binancecoinm": _BINANCE_PUSH,
    "binanceusdm": _BINANCE_PUSH,
    # witness: vendor: https://www.bitget.com/api-doc/common/websocket-intro
    "bitget": PushLimits(accounts=90, connects=60),
    # witness: vendor: https://bybit-exchange.github.io/docs/v5/rate-limit
    "bybit": _BYBIT_PUSH,
    "bybiteu": _BYBIT_PUSH,
    "bybitid": _BYBIT_PUSH,
    # Reads count too.
    # witness: vendor: https://docs.deribit.com/articles/connection-management-best-practices
    "deribit": PushLimits(accounts=16, connects=30),
    # witness: vendor: https://docs.kraken.com/api/docs/guides/spot-ws-intro
    "kraken": PushLimits(accounts=200, connects=15),
    # witness: report: https://nautilustrader.io/docs/core-nightly/nautilus_okx/websocket/client/static.OKX_WS_QUOTA.html
    "myokx": _OKX_PUSH,
    "okx": _OKX_PUSH,
    "okxus": _OKX_PUSH,
}
# For all others, whose limits were not looked for: a cautious guess.
_CAUTIOUS_PUSH = PushLimits(accounts=100, connects=30)


def push_limits_of(exchange_id: str) -> PushLimits:
    """How many accounts of a pushed exchange are pushed at once, and how many connections may begin in a minute."""
    return _PUSH_LIMITS.get(exchange_id, _CAUTIOUS_PUSH)


def answer_limit_of(exchange_id: str) -> int:
    """The bytes that an answer about an account may have."""
    return ANSWER_LIMIT * _LONG_ANSWERS.get(exchange_id, 1)


def has_known_window(exchange_id: str) -> bool:
    """Whether it is known in which time the venue counts, so that its limit is ours to keep and not CCXT's."""
    return exchange_id in _WINDOWS


def least_cost(exchange_id: str, interface: str | Sequence[str], path: str) -> float:
    """What the venue counts for a request at least, in CCXT's units; 0 if CCXT's own cost is not known to be wrong."""
    dearer = _DEARER_REQUESTS.get(exchange_id)
    if dearer is None:
        return 0
    names = [interface] if isinstance(interface, str) else interface
    return dearer.get("/".join((*names, path)), 0)


def limits_of(exchange_id: str, rate_limit: float, account_types: Sequence[str]) -> tuple[RateLimit, ...]:
    """The limits of an exchange to which CCXT sends one request in `rate_limit` milliseconds; () if that is 0."""
    if rate_limit <= 0:
        return ()
    seconds = _WINDOWS.get(exchange_id, _SECONDS)
    # A whole number of milliseconds times a whole rate may come out a hair too low.
    count = max(1, int(seconds * 1000 / rate_limit + 1e-6))
    costs = {name: min(count, cost) for name, cost in _costs_of(exchange_id, account_types).items()}
    cost = costs[account_types[0]]
    others = {name: other for name, other in costs.items() if other != cost}
    return (RateLimit("key" if exchange_id in _BY_KEY else "address", count, seconds, cost=cost, costs=others),)


def _costs_of(exchange_id: str, account_types: Sequence[str]) -> Mapping[str, int]:
    """The whole units that a balance of each type takes, and one of all types."""
    known = {**_COSTS.get(exchange_id, {}), **_DEARER_TYPES.get(exchange_id, {})}
    kind = _KIND_COSTS.get(exchange_id, 0)
    each = {name: known.get(name, known.get("", 1)) for name in account_types}
    # An account that is empty or refused is asked for its kind each time. Where others would pay for that, each balance
    # takes all of it.
    usual = kind / 2 if exchange_id in _BY_KEY else kind
    costs = {name: _whole(cost + usual) for name, cost in each.items()}
    read = list(wallets(exchange_id, tuple(account_types), {}))
    if (added_up := sum_of(exchange_id)) is not None:
        read.append(added_up.account_type)
    # With several wallets one is often empty or refused.
    return {**costs, ALL_ACCOUNT_TYPES: _whole(sum(each[name] for name in read) + kind)}


def _whole(cost: float) -> int:
    """The next whole number of units; one at least."""
    return max(1, math.ceil(round(cost, 6)))
