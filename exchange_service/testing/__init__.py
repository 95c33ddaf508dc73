"""For tests of the service and of plugins: venues on loopback, and a call of a plugin without a service.

Nothing here imports pytest. The contract suite does, and is in `exchange_service.testing.contract`.
"""

from exchange_service.testing.calls import StoredRow, venue_call
from exchange_service.testing.recordings import RecordedAnswer, RecordedVenue, Recording, recorded
from exchange_service.testing.situations import bearer_token, json_object, show_situation
from exchange_service.testing.venue import SITUATIONS, TROUBLES, DemoVenue, Fault, LoopbackVenue, RecordedRequest

__all__ = [
    "SITUATIONS",
    "TROUBLES",
    "DemoVenue",
    "Fault",
    "LoopbackVenue",
    "RecordedAnswer",
    "RecordedRequest",
    "RecordedVenue",
    "Recording",
    "StoredRow",
    "bearer_token",
    "json_object",
    "recorded",
    "show_situation",
    "venue_call",
]
