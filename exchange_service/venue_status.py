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

# A refused key or a rate limit speaks of one account; these speak of the venue, or of its plugin. The sentences are
# ours: an error's own message was made for one user, and the catalogue is for everybody.
_SENTENCES: dict[type[ServiceError], str] = {
    PluginFailed: "The plugin failed when the venue was last asked.",
    VenueMaintenance: "The venue said that it is in maintenance when last asked.",
    VenueMalformed: "The venue answered with something that is no balance when last asked.",
    VenueTimeout: "The venue did not answer in time when last asked.",
    VenueUnavailable: "The venue could not be reached, or had trouble, when last asked.",
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why calls fail, a sentence, and since when, in seconds since the epoch."""

    reason: str
    since: float


class VenueStatus:
    """The venues that are in trouble now, by exchange id. One good answer ends a trouble.

    `plugin_troubles` are of plugins whose process is down, by the plugin's name.
    """

    def __init__(self) -> None:
        self.troubles: dict[str, Trouble] = {}
        self.plugin_troubles: dict[str, Trouble] = {}
        # Rises with every change, so that whoever keeps something made of it can tell.
        self.generation = 0

    def failed(self, exchange_id: str, error: ServiceError, now: float) -> None:
        """A fetch has failed."""
        known = self.troubles.get(exchange_id)
        reason = _SENTENCES.get(type(error))
        if reason is None or (known is not None and known.reason == reason):
            return
        self.troubles[exchange_id] = Trouble(reason, known.since if known else now)
        self.generation += 1

    def answered(self, exchange_id: str) -> None:
        """A fetch has given a balance."""
        if self.troubles.pop(exchange_id, None) is not None:
            self.generation += 1

    def plugin_changed(self, plugin: str, trouble: str, now: float) -> None:
        """A plugin cannot be called, for the reason that `trouble` gives, or can be again where it is empty."""
        known = self.plugin_troubles.pop(plugin, None)
        if trouble:
            self.plugin_troubles[plugin] = Trouble(trouble, known.since if known else now)
        if trouble or known:
            self.generation += 1
