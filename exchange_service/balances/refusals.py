"""Refusals: a venue that has refused a credential is not asked again for a while, unless a caller forces it.

A venue that refuses what it took a moment ago may have slipped. Its refusal is doubted first: it is asked once more,
and believed if it refuses again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from cachetools import LRUCache

from exchange_service import clock
from exchange_service.errors import (
    AccountUnknown,
    AddressNotAllowed,
    ClockSkew,
    CredentialInvalid,
    CredentialRejected,
    FeatureNotEnabled,
    PermissionMissing,
    RegionRestricted,
    RequestRefused,
    ServiceError,
)
from exchange_service.recently_used import SeldomKnown
from exchange_service.tasks import copy_of
from exchange_service.venues.fetching import Target

# A refused credential stays refused until its user acts.
_SECONDS = 60.0
_LONGEST = 3600.0
_MOST = 20_000
_REFUSALS = (CredentialRejected, PermissionMissing, AddressNotAllowed, CredentialInvalid)
# These hold for the credential, whatever account type is requested.
_OF_THE_CREDENTIAL = (CredentialRejected, AddressNotAllowed)
# A venue's last words, which it may have said by mistake if it has given a balance a moment ago.
_DOUBTED = (
    CredentialRejected,
    PermissionMissing,
    AddressNotAllowed,
    ClockSkew,
    RegionRestricted,
    AccountUnknown,
    FeatureNotEnabled,
    RequestRefused,
)
# Seconds after which the venue is asked for its second word, and after which a doubt is forgotten.
DOUBT_PAUSE = 2.0
_DOUBT = 60.0


@dataclass(frozen=True, slots=True)
class _Refusal:
    error: ServiceError
    # In the event loop's time.
    until: float
    # When the venue said so, in seconds since the epoch.
    at: float


@dataclass(frozen=True, slots=True)
class Doubt:
    """A refusal that is not believed yet, and when the venue is to be asked again, in the event loop's time; `at` is
    when it was said, in seconds since the epoch."""

    error: ServiceError
    ask_at: float
    at: float

    def left(self) -> float:
        """Seconds until the venue is to be asked again, never negative."""
        return max(0.0, self.ask_at - _loop_time())


class Refusals:
    """Remembers refusals by the keys of their targets, until a balance disproves them: one that came here, or one that
    another replica has read later. `was_good_lately` says whether a balance that was fetched at this time, in seconds
    since the epoch, may still be given; `now` is in these seconds too."""

    def __init__(
        self,
        was_good_lately: Callable[[float], bool] = lambda fetch_time: False,
        now: Callable[[], float] = clock.wall,
    ) -> None:
        self._was_good_lately = was_good_lately
        self._now = now
        self._refusals: SeldomKnown[str, _Refusal] = SeldomKnown(
            _MOST, ttu=lambda _, refusal, now: refusal.until, timer=_loop_time
        )
        self._doubts: SeldomKnown[str, Doubt] = SeldomKnown(
            _MOST, ttu=lambda _, doubt, now: doubt.ask_at + _DOUBT, timer=_loop_time
        )
        # Targets that were refused twice, and have given no balance since.
        self._believed: LRUCache[str, bool] = LRUCache(_MOST)

    def raise_known(self, target: Target) -> None:
        """Raise the venue's refusal of this target's credential, if it is remembered."""
        for key in (target.key, target.credential_key):
            refusal = self._refusals.get(key)
            if refusal is not None and refusal.at < target.newer_than:
                del self._refusals[key]
            elif refusal is not None:
                # Raised itself, the error would keep the frames of the call that it is raised in.
                raise copy_of(refusal.error)

    def forget(self, key: str) -> None:
        """Forget what a target with this key was told: its credential was stored again."""
        for remembered in (self._refusals, self._doubts, self._believed):
            remembered.pop(key, None)

    def doubt(self, target: Target) -> Doubt | None:
        """The refusal of this target that is not believed yet."""
        doubt = self._doubts.get(target.key)
        if doubt is not None and doubt.at < target.newer_than:
            del self._doubts[target.key]
            return None
        return doubt

    def on_fetch_done(self, target: Target, error: BaseException | None) -> None:
        """A fetch has ended: doubt or remember a refusal, and forget what a balance has disproved."""
        if error is None:
            for key in (target.key, target.credential_key):
                self._refusals.pop(key, None)
            self._doubts.pop(target.key, None)
            self._believed.pop(target.key, None)
        elif isinstance(error, _DOUBTED) and self._is_doubtful(target):
            doubt = Doubt(copy_of(error), _loop_time() + DOUBT_PAUSE, self._now())
            self._doubts.setdefault(target.key, doubt)
        elif isinstance(error, _DOUBTED):
            self._doubts.pop(target.key, None)
            self._believed[target.key] = True
            self._remember(target, error)
        elif isinstance(error, _REFUSALS):
            self._remember(target, error)

    def _is_doubtful(self, target: Target) -> bool:
        """Whether the venue has given a balance lately, and refused it once at most since."""
        doubt = self._doubts.get(target.key)
        if doubt is not None:
            return doubt.left() > 0
        return target.key not in self._believed and self._was_good_lately(target.newer_than)

    def _remember(self, target: Target, error: ServiceError) -> None:
        if isinstance(error, _REFUSALS):
            # Not for longer than a venue can mean it.
            seconds = min(_SECONDS if error.retry_after is None else error.retry_after, _LONGEST)
            key = target.credential_key if isinstance(error, _OF_THE_CREDENTIAL) else target.key
            self._refusals[key] = _Refusal(copy_of(error), _loop_time() + seconds, self._now())


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
