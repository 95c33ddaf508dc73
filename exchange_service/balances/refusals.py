"""Refused credentials: a venue that has refused one is not asked again for a while, unless a caller forces it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from cachetools import TLRUCache

from exchange_service.errors import (
    AddressNotAllowed,
    CredentialInvalid,
    CredentialRejected,
    PermissionMissing,
    ServiceError,
)
from exchange_service.venues.fetching import Target

# A refused credential stays refused until its user acts.
_SECONDS = 60.0
_MOST = 20_000
_REFUSALS = (CredentialRejected, PermissionMissing, AddressNotAllowed, CredentialInvalid)
# These hold for the credential, whatever account type is requested.
_OF_THE_CREDENTIAL = (CredentialRejected, AddressNotAllowed)


@dataclass(frozen=True, slots=True)
class _Refusal:
    error: ServiceError
    # In the event loop's time.
    until: float


class Refusals:
    """Remembers refusals by the keys of their targets."""

    def __init__(self) -> None:
        self._refusals: TLRUCache[str, _Refusal] = TLRUCache(
            _MOST, ttu=lambda _, refusal, now: refusal.until, timer=_loop_time
        )

    def raise_known(self, target: Target) -> None:
        """Raise the venue's refusal of this target's credential, if it is remembered."""
        for key in (target.key, target.credential_key):
            refusal = self._refusals.get(key)
            if refusal is not None:
                # Raised again and again, an error would gather a longer traceback each time.
                raise refusal.error.with_traceback(None)

    def on_fetch_done(self, target: Target, error: BaseException | None) -> None:
        """A fetch has ended: remember a refusal, and forget what a balance has disproved."""
        if error is None:
            for key in (target.key, target.credential_key):
                self._refusals.pop(key, None)
        elif isinstance(error, _REFUSALS):
            seconds = _SECONDS if error.retry_after is None else error.retry_after
            key = target.credential_key if isinstance(error, _OF_THE_CREDENTIAL) else target.key
            self._refusals[key] = _Refusal(error, _loop_time() + seconds)


def _loop_time() -> float:
    return asyncio.get_running_loop().time()
