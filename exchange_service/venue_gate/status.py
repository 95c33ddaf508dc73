"""What this process has seen of each venue: whether the last fetch failed in a way that speaks of the venue."""

from __future__ import annotations

from exchange_service.errors import (
    PluginFailed,
    ServiceError,
    VenueMaintenance,
    VenueMalformed,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.model import PRODUCTION, Trouble

# A refused key or a rate limit speaks of one account; these speak of the venue, or of its plugin. The sentences are
# ours: an error's own message was made for one user, and all callers read the catalogue.
_SENTENCES: dict[type[ServiceError], str] = {
    PluginFailed: "The plugin failed when the venue was last asked.",
    VenueMaintenance: "The venue said that it is in maintenance when last asked.",
    VenueMalformed: "The venue answered with something that is not a balance when last asked.",
    VenueTimeout: "The venue did not answer in time when last asked.",
    VenueUnavailable: "The venue could not be reached, or had trouble, when last asked.",
}


_LEFT_ALONE = "It failed several times in a row, and is left alone for a while. "


class VenueStatus:
    """The venues that are in trouble now, by `ExchangeMetadata.venue`. One good answer ends a trouble.

    `plugin_troubles` are of plugins whose process is down, by the plugin's name.
    """

    def __init__(self) -> None:
        self.troubles: dict[str, Trouble] = {}
        self.plugin_troubles: dict[str, Trouble] = {}
        self._by_environment: dict[str, dict[str, Trouble]] = {}
        # Rises with every change: a copy made at an earlier number is out of date.
        self.generation = 0

    def failed(
        self, venue: str, error: ServiceError, now: float, *, environment: str = PRODUCTION, serves: bool = True
    ) -> None:
        """A fetch has failed; `serves` says whether the venue is still asked."""
        reason = _SENTENCES.get(type(error))
        if reason is None:
            return
        troubles = self._by_environment.setdefault(venue, {})
        known = troubles.get(environment)
        text = reason if serves else _LEFT_ALONE + reason
        if known is None or (known.reason, known.serves) != (text, serves):
            troubles[environment] = Trouble(text, known.since if known else now, serves)
            self._changed(venue)

    def answered(self, venue: str, environment: str = PRODUCTION) -> None:
        """A fetch has given a balance."""
        troubles = self._by_environment.get(venue)
        if troubles and troubles.pop(environment, None) is not None:
            self._changed(venue)

    def _changed(self, venue: str) -> None:
        """A listing has one status: its production's trouble, else another environment's, in which it does serve."""
        troubles = self._by_environment[venue]
        worst = troubles.get(PRODUCTION)
        for environment, trouble in troubles.items() if worst is None else ():
            worst = Trouble(f"{trouble.reason.removesuffix('.')} (its {environment}).", trouble.since)
        if worst is None:
            self.troubles.pop(venue, None)
        else:
            self.troubles[venue] = worst
        self.generation += 1

    def plugin_changed(self, plugin: str, trouble: str, now: float, *, serves: bool = False) -> None:
        """A plugin cannot be called, for the reason that `trouble` gives, or can be called again if it is empty.
        `serves`: it can be called for some accounts."""
        known = self.plugin_troubles.pop(plugin, None)
        if trouble:
            self.plugin_troubles[plugin] = Trouble(trouble, known.since if known else now, serves)
        if trouble or known:
            self.generation += 1
