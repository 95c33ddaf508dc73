"""Cooldowns: venues, and keys there, that are not asked for a while because they said so, on all replicas."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from cachetools import LRUCache

from exchange_service.errors import ServiceError, VenueMaintenance, VenueRateLimited, VenueUnavailable
from exchange_service.recently_used import SeldomKnown

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
# Seconds for which it is known at the least that an account was sent away.
_LEAST_MEMORY = 60.0
# These end the names under which it is known, and for which account a plugin has reported it.
_SENT_AWAY = " sent away"
_REPORTED = " reported"


class GateKeys(NamedTuple):
    """The names by which a call's venue, its credential there, and its user are known on all replicas."""

    venue: str
    credential: str
    account: str


class SharedCooldowns(Protocol):
    """The cooldowns that all replicas know."""

    async def cooldowns(self, keys: Sequence[str]) -> list[tuple[str, str, float]]:
        """Which of the keys cool down, each with the reason and the seconds that are left."""

    async def cool_down(self, key: str, reason: str, seconds: float) -> None:
        """Let no replica ask for so long."""

    async def met(self, key: str, account: str, seconds: float) -> str | None:
        """Keep for so long that this account has met what `key` names. Returns the account that has met it before, if
        that is known; None if not."""

    async def forget_met(self, key: str) -> None:
        """Forget who has met what `key` names: the venue has answered an account since."""


@dataclass(frozen=True, slots=True)
class Cooldown:
    """A venue or a key is not asked until then, in the event loop's time."""

    until: float
    reason: str


@dataclass(frozen=True, slots=True)
class _Met:
    """An account that a venue wants no requests of; since when, and until when that is worth knowing."""

    account: str
    since: float
    until: float


class Cooldowns:
    """Cooldowns by the key of a venue, or of a credential there. `shared` is None if there is one process only.

    A venue that sends one account away is left alone for that account's credential only. It is left alone for all when
    it sends another account away as well, and has answered nobody between.
    """

    def __init__(self, shared: SharedCooldowns | None = None) -> None:
        self._shared = shared
        self._cooldowns: SeldomKnown[str, Cooldown] = SeldomKnown(
            _MOST_KEYS, ttu=lambda _, cooldown, now: cooldown.until, timer=_loop_time
        )
        # How often in a row a venue or a key has limited us without saying for how long.
        self._consecutive: LRUCache[str, int] = LRUCache(_MOST_KEYS)
        self._met: SeldomKnown[str, _Met] = SeldomKnown(_MOST_KEYS, ttu=lambda _, met, now: met.until, timer=_loop_time)

    def refusal(self, keys: GateKeys, venue: str) -> ServiceError | None:
        """The error for a call that a cooldown refuses, with the delay; None if no key cools down."""
        for key in (keys.venue, keys.credential):
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

    async def refresh(self, keys: GateKeys) -> None:
        """Learn what other replicas know of these keys."""
        if self._shared is None:
            return
        sent_away = keys.venue + _SENT_AWAY
        for key, word, seconds in await self._shared.cooldowns((keys.venue, keys.credential, sent_away)):
            left = min(seconds, _LONGEST)
            if key == sent_away:
                now = _loop_time()
                self._met.setdefault(key, _Met(word, now, now + left))
            elif word in _COOLING:
                self._keep(key, word, left)

    def hold(self, key: str, error: ServiceError) -> None:
        """Let `key` cool down in this process at once, for the time that the error names."""
        self._keep(key, error.reason, min(error.retry_after or 0.0, _LONGEST))

    async def cool_down(self, key: str, error: ServiceError) -> None:
        """Act on a venue's error on all replicas: if it asks to be left alone, `key` cools down for the time that it
        names. A rate limit without a time cools down for a guess: longer each time in a row, and fully jittered."""
        await self._cool_down(key, error, self._seconds(key, error))

    async def send_away(self, keys: GateKeys, error: ServiceError, *, by_credential: bool) -> None:
        """Act on the error that an account has met: its credential cools down, and the venue if another account has
        met one too; with `by_credential` the credential alone in any case."""
        seconds = self._seconds(keys.credential, error)
        await self._cool_down(keys.credential, error, seconds)
        if not seconds or by_credential:
            return
        if await self._another_met(keys.venue + _SENT_AWAY, keys.account, max(_LEAST_MEMORY, seconds)):
            await self.cool_down(keys.venue, error)

    async def report(self, keys: GateKeys, error: ServiceError, *, by_credential: bool) -> None:
        """Act on an answer that says that the venue wants no requests, good as it may be otherwise: its credential
        cools down, and the venue if an answer to another account has said so for the same time."""
        seconds = self._seconds(keys.credential, error)
        await self._cool_down(keys.credential, error, seconds)
        if seconds and not by_credential and await self._another_met(keys.venue + _REPORTED, keys.account, seconds):
            await self.cool_down(keys.venue, error)

    async def succeeded(self, keys: GateKeys, began: float) -> None:
        """The venue has answered what was asked at `began`, in the event loop's time: it leaves nobody else out, and
        the next guess is the first again."""
        self._consecutive.pop(keys.venue, None)
        self._consecutive.pop(keys.credential, None)
        name = keys.venue + _SENT_AWAY
        known = self._met.get(name)
        if known is not None and known.since <= began:
            del self._met[name]
            if self._shared is not None:
                await self._shared.forget_met(name)

    async def _another_met(self, name: str, account: str, memory: float) -> bool:
        """Whether another account has met this too; keeps for so many seconds that this one has."""
        now = _loop_time()
        known = self._met.get(name)
        another = known is not None and known.account != account
        self._met[name] = _Met(account, now, now + memory)
        if self._shared is not None:
            before = await self._shared.met(name, account, memory)
            another = another or (before is not None and before != account)
        return another

    def _seconds(self, key: str, error: ServiceError) -> float:
        """For how long the error asks to be left alone; zero if it does not."""
        if type(error) not in _COOLING.values():
            return 0.0
        if error.given_delay is not None:
            return min(error.retry_after or 0.0, _LONGEST)
        return self._guess(key) if isinstance(error, VenueRateLimited) else 0.0

    async def _cool_down(self, key: str, error: ServiceError, seconds: float) -> None:
        if not seconds:
            return
        self._keep(key, error.reason, seconds)
        if self._shared is not None:
            await self._shared.cool_down(key, error.reason, seconds)

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
