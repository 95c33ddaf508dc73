"""How often CCXT's exchanges may be asked, from what CCXT says of each. Starting values, on the cautious side."""

from __future__ import annotations

from exchange_service.plugin_api import RateLimit

_SECONDS = 60
# These count private requests by user or key, in their own documents; of all others it is taken that they count by
# address, as most do: a ban would hit everybody.
_BY_KEY = frozenset(
    {"alpaca", "bitget", "coinbase", "deribit", "gate", "gateeu", "kraken", "krakenfutures", "kucoin", "kucoinfutures"}
    | {"myokx", "okx", "okxus"}
)
# What one balance costs in CCXT's units, where it is more than one.
_COSTS = {"binance": 4, "binanceus": 4, "aster": 5, "hyperliquid": 4}


def limits_of(exchange_id: str, rate_limit: float) -> tuple[RateLimit, ...]:
    """The limits of an exchange that CCXT asks every `rate_limit` milliseconds at most; none where it says none."""
    if rate_limit <= 0:
        return ()
    count = max(1, int(_SECONDS * 1000 / rate_limit))
    cost = min(count, _COSTS.get(exchange_id, 1))
    return (RateLimit("key" if exchange_id in _BY_KEY else "address", count, _SECONDS, cost=cost),)
