"""On PYTHONPATH of a serving process and its plugins' processes: CCXT sends requests without the pauses that venues
want, as the ceiling does. On loopback the pauses would dominate the figures."""

from exchange_service_ccxt_generic.exact import Guarded


async def _at_once(self: object, cost: object = None) -> None:
    """CCXT's pause before a request."""


Guarded.throttle = _at_once
