"""The rate limits of CCXT's exchanges, from CCXT's own data. They are cautious estimates."""

from __future__ import annotations

from collections.abc import Mapping

from exchange_service.plugin_api import ANSWER_LIMIT, PushLimits, RateLimit

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
# The cost of one balance in CCXT's units, if it is more than one. Where the kind of the account is asked for, half of
# that is in it, because it is asked for before every second balance.
_COSTS = {
    "binance": 4,  # witness: CCXT: binance.api
    "binanceus": 10,  # witness: CCXT: binanceus.api
    "bitget": 3,  # witness: CCXT: bitget.api
    # witness: CCXT: bybit.api
    "bybit": 6,
    "bybiteu": 6,
    "bybitid": 6,
    # witness: CCXT: gate.api
    "gate": 2,
    "gateeu": 2,
    "kucoin": 36,  # witness: CCXT: kucoin.api
    "kucoinfutures": 40,  # witness: CCXT: kucoinfutures.api
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


def limits_of(exchange_id: str, rate_limit: float) -> tuple[RateLimit, ...]:
    """The limits of an exchange to which CCXT sends one request in `rate_limit` milliseconds; () if that is 0."""
    if rate_limit <= 0:
        return ()
    count = max(1, int(_SECONDS * 1000 / rate_limit))
    cost = min(count, _COSTS.get(exchange_id, 1))
    return (RateLimit("key" if exchange_id in _BY_KEY else "address", count, _SECONDS, cost=cost),)
