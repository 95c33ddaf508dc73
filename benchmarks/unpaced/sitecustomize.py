"""On PYTHONPATH of a serving process and its plugins' processes: no request waits for a venue's rate limit, nor for an
account's part of it.

On loopback the limits would dominate the figures. With BENCHMARK_UNPACED_CCXT set CCXT also leaves out the pauses that
venues want between requests, as the ceiling does.
"""

import os

from exchange_service.venue_gate.rate_limits import RateLimiter


def _acquire_local(self: RateLimiter, polling: bool, now: float, cost: int) -> bool:
    """There are always enough permits."""
    return True


def _take_part(self: RateLimiter, account: str, polling: bool, now: float, cost: int) -> float:
    """No account has used up its part."""
    return 0.0


async def _at_once(self: object, cost: object = None) -> None:
    """CCXT's pause before a request."""


RateLimiter.acquire_local = _acquire_local
RateLimiter.take_part = _take_part
if "BENCHMARK_UNPACED_CCXT" in os.environ:
    from exchange_service_ccxt_generic.exact import Guarded

    Guarded.throttle = _at_once
