"""Cooldowns: venues, and keys there, that are not asked for a while because they said so, on all replicas."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cachetools import LRUCache, TLRUCache

from exchange_service.errors import ServiceError, VenueMaintenance, VenueRateLimited, VenueUnavailable

# The errors by which a venue asks to be left alone, by the reason that stands in Redis.
_COOLING: dict[str, type[ServiceError]] = {
    kind.reason: kind for kind in (VenueRateLimited, VenueMaintenance, VenueUnavailable)
}
_LONGEST = 3600.0
# If a venue limits us and does not say for how long: the first guess, which is the least, and the longest.
_FIRST_GUESS = 10.0
_LONGEST_GUESS = 300.0
_MOST_DOUBLINGS = 16
_MOST_KEYS = 10_000


class SharedCooldowns(Protocol):
    """The cooldowns that all replicas know."""

    async def cooldowns(self, keys: Sequence[str]) -> list[tuple[str, str, float]]:
        """Which of the keys cool down, each with the reason and the seconds that are left."""

    async def cool_down(self, key: str, reason: str, seconds: float) -> None:
        """Let no replica ask for so long."""


@dataclass(frozen=True, slots=True)
class Cooldown:
    """A venue or a key is not asked until then, in the event loop's time."""

    until: float
    reason: str


class Cooldowns:
    """Cooldowns by the key of a venue, or of a credential there. `shared` is None if there is one process only."""

    def __init__(self, shared: SharedCooldowns | None = None) -> None:
        self._shared = shared
        self._cooldowns: TLRUCache[str, Cooldown] = TLRUCache(
            _MOST_KEYS, ttu=lambda _, cooldown, now: cooldown.until, timer=_loop_time
        )
        # How often in a row a venue or a key has limited us without saying for how long.
        self._consecutive: LRUCache[str, int] = LRUCache(_MOST_KEYS)

    def refusal(self, keys: Sequence[str], venue: str) -> ServiceError | None:
        """The error for a call that a cooldown refuses, with the delay; None if no key cools down."""
        for key in keys:
            cooldown = self._cooldowns.get(key)
            if cooldown is not None:
                action = (
                    "limits our requests" if cooldown.reason == VenueRateLimited.reason else "asked to be left alone"
                )
                return _COOLING[cooldown.reason](
                    f"{venue} {action}, and is not asked before the delay is over.",
                    retry_after=cooldown.until - _loop_time(),
                )
        return None

    async def refresh(self, keys: Sequence[str]) -> None:
        """Learn what other replicas know of these keys."""
        for key, reason, left in await self._shared.cooldowns(keys) if self._shared is not None else ():
            self._keep(key, reason if reason in _COOLING else VenueRateLimited.reason, left)

    def hold(self, key: str, error: ServiceError) -> None:
        """Let `key` cool down in this process at once, for the time that the error names."""
        self._keep(key, error.reason, min(error.retry_after or 0.0, _LONGEST))

    async def cool_down(self, key: str, error: ServiceError) -> None:
        """Act on a venue's error on all replicas: if it asks to be left alone, `key` cools down for the time that it
        names. A rate limit without a time cools down for a guess: longer each time in a row, and fully jittered."""
        if type(error) not in _COOLING.values():
            return
        seconds = error.retry_after if error.given_delay is not None else None
        if seconds is None and isinstance(error, VenueRateLimited):
            seconds = self._guess(key)
        if not seconds:
            return
        seconds = min(seconds, _LONGEST)
        self._keep(key, error.reason, seconds)
        if self._shared is not None:
            await self._shared.cool_down(key, error.reason, seconds)

    def succeeded(self, keys: Sequence[str]) -> None:
        """The venue has answered: the next guess is the first again."""
        for key in keys:
            self._consecutive.pop(key, None)

    def _guess(self, key: str) -> float:
        count = self._consecutive[key] = min(self._consecutive.get(key, 0) + 1, _MOST_DOUBLINGS)
        longest = min(_LONGEST_GUESS, _FIRST_GUESS * 2**count)
        return _FIRST_GUESS + random.uniform(0, longest - _FIRST_GUESS)  # noqa: S311

    def _keep(self, key: str, reason: str, seconds: float) -> None:
        """Keep the later end of two."""
        until = _loop_time() + seconds
        known = self._cooldowns.get(key)
        if known is None or known.until < until:
            self._cooldowns[key] = Cooldown(until, reason)


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
