"""The rate limits of CCXT's exchanges, from CCXT's own data. They are cautious estimates."""

from __future__ import annotations

from exchange_service.plugin_api import RateLimit

_SECONDS = 60
# These count private requests by user or key, by their documents. All others are assumed to count by address, as most
# do, where a ban affects every user.
_BY_KEY = frozenset(
    {"alpaca", "bitget", "coinbase", "deribit", "gate", "gateeu", "kraken", "krakenfutures", "kucoin", "kucoinfutures"}
    | {"myokx", "okx", "okxus"}
)
# The cost of one balance in CCXT's units, if it is more than one.
_COSTS = {"binance": 4, "binanceus": 4, "aster": 5, "hyperliquid": 4}


def limits_of(exchange_id: str, rate_limit: float) -> tuple[RateLimit, ...]:
    """The limits of an exchange to which CCXT sends one request in `rate_limit` milliseconds; () if that is 0."""
    if rate_limit <= 0:
        return ()
    count = max(1, int(_SECONDS * 1000 / rate_limit))
    cost = min(count, _COSTS.get(exchange_id, 1))
    return (RateLimit("key" if exchange_id in _BY_KEY else "address", count, _SECONDS, cost=cost),)
