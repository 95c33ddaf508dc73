"""What stands between a balance that is wanted and the venue: places, budget, pauses, breaker and retries."""

from exchange_service.venue_gate.gate import NoMetrics, VenueGate, VenueMetrics
from exchange_service.venue_gate.priority import Priority

__all__ = ["NoMetrics", "Priority", "VenueGate", "VenueMetrics"]
