"""What stands before the venues: bulkhead, rate limits, cooldowns, circuit breaker and retries."""

from exchange_service.venue_gate.gate import Gated, GateOptions

__all__ = ["GateOptions", "Gated"]
