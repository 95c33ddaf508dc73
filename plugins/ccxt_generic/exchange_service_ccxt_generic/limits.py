"""The rate limits of CCXT's exchanges, from CCXT's own data. They are cautious estimates."""

from __future__ import annotations

from exchange_service.plugin_api import RateLimit

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


def limits_of(exchange_id: str, rate_limit: float) -> tuple[RateLimit, ...]:
    """The limits of an exchange to which CCXT sends one request in `rate_limit` milliseconds; () if that is 0."""
    if rate_limit <= 0:
        return ()
    count = max(1, int(_SECONDS * 1000 / rate_limit))
    cost = min(count, _COSTS.get(exchange_id, 1))
    return (RateLimit("key" if exchange_id in _BY_KEY else "address", count, _SECONDS, cost=cost),)
