"""On PYTHONPATH of a serving process and its plugins' processes: no request waits for a venue's rate limit, nor for an
account's part of it. On loopback the limits would dominate the figures.

A throttle is looked for without this folder. A plugin's process gets no other variables, so nothing here depends on
them.
"""

from exchange_service_ccxt_generic.allowance import Allowance

from exchange_service.venue_gate.rate_limits import RateLimiter


def _acquire_local(self: RateLimiter, polling: bool, now: float, cost: int) -> bool:
    """There are always enough permits."""
    return True


def _take_part(self: RateLimiter, account: str, polling: bool, now: float, cost: int) -> float:
    """No account has used up its part."""
    return 0.0


async def _take(self: Allowance, cost: float) -> None:
    """The venue's limit has always room."""


RateLimiter.acquire_local = _acquire_local
RateLimiter.take_part = _take_part
Allowance.take = _take
