"""For tests of the service and of plugins: venues on loopback, and what a plugin needs to be called without a service.

Nothing here imports pytest; the contract suite, which does, stands in `exchange_service.testing.contract`.
"""

from exchange_service.testing.calls import venue_call
from exchange_service.testing.venue import TROUBLES, DemoVenue, Fault, LoopbackVenue, RecordedRequest

__all__ = ["TROUBLES", "DemoVenue", "Fault", "LoopbackVenue", "RecordedRequest", "venue_call"]
