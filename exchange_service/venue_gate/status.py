"""What this process has seen of each venue: whether the last fetches failed in a way that speaks of the venue."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from exchange_service import clock
from exchange_service.errors import (
    PluginFailed,
    ServiceError,
    VenueMaintenance,
    VenueMalformed,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.model import PRODUCTION, Trouble
from exchange_service.venue_gate.failing_accounts import FailingAccounts

# A refused key or a rate limit speaks of one account; these speak of the venue, or of its plugin. The sentences are
# ours: an error's own message was made for one user, and all callers read the catalogue.
_SENTENCES: dict[type[ServiceError], str] = {
    PluginFailed: "The plugin failed when the venue was last asked.",
    VenueMaintenance: "The venue said that it is in maintenance when last asked.",
    VenueMalformed: "The venue answered with something that is not a balance when last asked.",
    VenueTimeout: "The venue did not answer in time when last asked.",
    VenueUnavailable: "The venue could not be reached, or had trouble, when last asked.",
}


_LEFT_ALONE = "It failed for several accounts in a row, and is left alone for a while. "
_NOT_TRIED = "It failed for several accounts in a row, was left alone for a while, and has not been tried since. "
# So many accounts have to fail, and none to be answered between, before all callers are told.
_ACCOUNTS = 2
# Seconds after the last failure, or after the pause, when a trouble that nobody meets any more is taken for over.
_FORGOTTEN = 600.0


@dataclass(slots=True)
class _Seen:
    """What was seen of a venue's environment. The times are in seconds since the epoch."""

    failing: FailingAccounts = field(default_factory=FailingAccounts)
    trouble: Trouble | None = None
    # The sentence of the last failure.
    sentence: str = ""
    # Until when the venue is left alone, and when the trouble is forgotten.
    left_alone_until: float = 0.0
    forgotten_at: float = 0.0

    def next_change(self) -> float:
        """When time alone changes the trouble."""
        if self.trouble is None:
            return math.inf
        return self.forgotten_at if self.trouble.serves else self.left_alone_until


class VenueStatus:
    """The venues that are in trouble now, by `ExchangeMetadata.venue`. One good answer ends a trouble. What
    one account meets is not shown to all, see FailingAccounts.

    `plugin_troubles` are of plugins whose process is down, by the plugin's name. `now` is in seconds since the epoch.
    """

    def __init__(self, now: Callable[[], float] = clock.wall) -> None:
        self.troubles: dict[str, Trouble] = {}
        self.plugin_troubles: dict[str, Trouble] = {}
        self._now = now
        self._seen: dict[str, dict[str, _Seen]] = {}
        self._next_change = math.inf
        # Rises with every change: a copy made at an earlier number is out of date.
        self.generation = 0

    def failed(
        self,
        venue: str,
        error: ServiceError,
        now: float,
        *,
        account: str,
        environment: str = PRODUCTION,
        left_alone: float | None = None,
    ) -> None:
        """A fetch of `account` has failed; `left_alone` are the seconds for which the venue is not asked, None if it
        is asked."""
        reason = _SENTENCES.get(type(error))
        if reason is None:
            return
        seen = self._seen.setdefault(venue, {}).setdefault(environment, _Seen())
        counts = seen.failing.failed(account, now)
        if left_alone is None and (not counts or seen.failing.count(1, now) < _ACCOUNTS):
            return
        seen.sentence = reason
        seen.left_alone_until = now + (left_alone or 0.0)
        seen.forgotten_at = seen.left_alone_until + _FORGOTTEN
        text = reason if left_alone is None else _LEFT_ALONE + reason
        self._show(venue, seen, text, now, serves=left_alone is None)

    def answered(self, venue: str, environment: str = PRODUCTION, *, account: str, began: float, now: float) -> None:
        """A fetch of `account` that began at `began` has given a balance."""
        seen = self._seen.get(venue, {}).get(environment)
        if seen is None:
            return
        seen.failing.answered(account, began, now)
        if seen.trouble is not None:
            seen.trouble = None
            self._changed(venue)

    def pass_time(self) -> None:
        """Let troubles end that end by themselves: a venue is left alone for a time, and a trouble that nobody meets
        any more is forgotten."""
        now = self._now()
        if now < self._next_change:
            return
        for venue, environments in self._seen.items():
            for seen in environments.values():
                if now < seen.next_change():
                    continue
                if now >= seen.forgotten_at:
                    seen.trouble = None
                    seen.failing.forget()
                    self._changed(venue)
                elif seen.trouble is not None:
                    self._show(venue, seen, _NOT_TRIED + seen.sentence, seen.trouble.since, serves=True)
        self._plan()

    def _show(self, venue: str, seen: _Seen, text: str, now: float, *, serves: bool) -> None:
        known = seen.trouble
        if known is None or (known.reason, known.serves) != (text, serves):
            seen.trouble = Trouble(text, known.since if known else now, serves)
            self._changed(venue)
        self._plan()

    def _plan(self) -> None:
        """Find out when time alone changes something next."""
        changes = (seen.next_change() for environments in self._seen.values() for seen in environments.values())
        self._next_change = min(changes, default=math.inf)

    def _changed(self, venue: str) -> None:
        """A listing has one status: its production's trouble, else another environment's, in which it does serve."""
        troubles = {name: seen.trouble for name, seen in self._seen[venue].items() if seen.trouble is not None}
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
