"""What this replica knows of an account without asking anybody: its newest balance, and why it failed last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cachetools import LRUCache

from exchange_service import clock
from exchange_service.errors import ServiceError
from exchange_service.model import Account
from exchange_service.tasks import copy_of
from exchange_service.venues.fetching import Target
from exchange_service.wire.delivery import Delivery

_MOST_ACCOUNTS = 20_000


@dataclass(frozen=True, slots=True)
class KnownState:
    """An account as this replica knows it. `last_fetch_time` is in seconds since the epoch."""

    last_fetch_time: float | None = None
    error: ServiceError | None = None
    delivery: Delivery | None = None


@dataclass(frozen=True, slots=True)
class _Ended:
    """How the last fetch of an account ended, and when; None: well."""

    at: float
    error: ServiceError | None


class LastFetches:
    """Remembers how the last fetch of each account ended. `now` is in seconds since the epoch."""

    def __init__(self, now: Callable[[], float] = clock.wall) -> None:
        self._now = now
        self._ended: LRUCache[Account, _Ended] = LRUCache(_MOST_ACCOUNTS)

    def on_fetch_done(self, target: Target, error: BaseException | None) -> None:
        """A fetch has ended with this error, or well."""
        if error is None:
            self._ended[target.account.stored()] = _Ended(self._now(), None)
        elif isinstance(error, ServiceError) and not error.late:
            self._ended[target.account.stored()] = _Ended(self._now(), copy_of(error))

    def forget(self, account: Account) -> None:
        """The account has another credential now."""
        self._ended.pop(account, None)

    def state(self, account: Account, fetch_time: float | None, delivery: Delivery | None) -> KnownState:
        """The account's state, where the newest cached balance was fetched at `fetch_time`: a later balance, which
        another replica may have read, disproves an error."""
        ended = self._ended.get(account)
        if ended is None:
            return KnownState(fetch_time, None, delivery)
        if ended.error is None:
            return KnownState(max(ended.at, fetch_time or 0.0), None, delivery)
        disproved = fetch_time is not None and fetch_time > ended.at
        return KnownState(fetch_time, None if disproved else ended.error, delivery)
