"""What this process has seen of each venue: whether the last fetch failed in a way that speaks of the venue."""

from __future__ import annotations

from dataclasses import dataclass

from exchange_service.errors import (
    PluginFailed,
    ServiceError,
    VenueMaintenance,
    VenueMalformed,
    VenueTimeout,
    VenueUnavailable,
)

# A refused key or a rate limit speaks of one account; these speak of the venue, or of its plugin.
_OF_THE_VENUE = (PluginFailed, VenueMaintenance, VenueMalformed, VenueTimeout, VenueUnavailable)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why calls fail, a sentence, and since when, in seconds since the epoch."""

    reason: str
    since: float


class VenueStatus:
    """The venues that are in trouble now, by exchange id. One good answer ends a trouble."""

    def __init__(self) -> None:
        self.troubles: dict[str, Trouble] = {}
        # Rises with every change, so that whoever keeps something made of it can tell.
        self.generation = 0

    def failed(self, exchange_id: str, error: ServiceError, now: float) -> None:
        """A fetch has failed."""
        known = self.troubles.get(exchange_id)
        if not isinstance(error, _OF_THE_VENUE) or (known is not None and known.reason == error.message):
            return
        self.troubles[exchange_id] = Trouble(error.message, known.since if known else now)
        self.generation += 1

    def answered(self, exchange_id: str) -> None:
        """A fetch has given a balance."""
        if self.troubles.pop(exchange_id, None) is not None:
            self.generation += 1
