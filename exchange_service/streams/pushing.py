"""Pushes as a feed's source: a whole balance is handed out as it comes, a hint makes the feed read soon, and a slow
clock reconciles. While the push does not stand, the feed polls."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum, auto

from exchange_service.balances.service import BalanceResult
from exchange_service.balances.watches import AccountWatch, Watches
from exchange_service.errors import CredentialMissing, ServiceError
from exchange_service.model import Account
from exchange_service.streams.polling import Polling, PollingSource, Read
from exchange_service.venues.registry import Listing
from exchange_service.wire.delivery import Delivery, PollingReason
from exchange_service.wire.stored import StoredBalance

# Seconds from a hint until the account is read, so that several hints cost one read, and between two such reads.
_AFTER_HINT, _BETWEEN_HINTS = 0.1, 2.0
# Each wait until a reconciling read differs by up to this share.
_JITTER = 0.1
# Seconds by which a replica that does not follow the pushes itself lets the one that does go first.
_PATIENCE = 30.0
# What asks the venue whatever is known: no balance is fetched later.
_NOW = float("inf")


class _Why(Enum):
    """Why a feed asks the venue: the clock; or while the push stands: a hint, a look whether the push has missed
    something, or because the last read has failed."""

    POLL = auto()
    HINT = auto()
    RECONCILE = auto()
    RECOVER = auto()


@dataclass(frozen=True, slots=True)
class Sources:
    """Makes the source of each feed. `reconcile_interval` is in seconds; the accounts of `polled_exchanges` are polled
    though their venue pushes."""

    polling: Polling
    watches: Watches | None
    reconcile_interval: float = 300.0
    polled_exchanges: frozenset[str] = frozenset()

    def make(self, account: Account, listing: Listing) -> PollingSource:
        """The account's source: pushes if its venue has them, else the clock."""
        if not listing.metadata.capabilities.push:
            return PollingSource(self.polling, account, listing, PollingReason.NO_PUSH)
        if self.watches is None or listing.metadata.id in self.polled_exchanges:
            return PollingSource(self.polling, account, listing, PollingReason.SWITCHED_OFF)
        return PushSource(self.polling, account, listing, self.watches, self.reconcile_interval)


class PushSource(PollingSource):
    """A venue's pushes as a feed's source, with the clock behind them."""

    def __init__(
        self, polling: Polling, account: Account, listing: Listing, watches: Watches, reconcile_interval: float
    ) -> None:
        super().__init__(polling, account, listing, PollingReason.STARTING)
        self._watches = watches
        self._interval = reconcile_interval
        # None until the account could be read: an account without a credential has nothing to follow.
        self._watch: AccountWatch | None = None
        self._was_pushed = False
        # All in monotonic time: when the next reconciling read is due; when the next read after a hint is, if there was
        # one; when the last such read began; and when polling that has just been resumed begins, so that the accounts
        # of one connection do not all poll at once.
        self._reconcile_at = 0.0
        self._hint_due: float | None = None
        self._hint_read_at = float("-inf")
        self._resume_at = 0.0
        self._why = _Why.POLL

    @property
    def delivery(self) -> Delivery:
        """See FeedSource."""
        return self._watch.delivery if self._watch is not None else self._delivery

    async def read(self, current: StoredBalance | None, ask_venue: bool, known_version: int) -> BalanceResult:
        """See ReadBalance."""
        why = self._why if ask_venue and self.delivery.pushed else _Why.POLL
        request = self._request(current, ask_venue, known_version, why)
        watch = self._watch
        if watch is None or why is _Why.POLL:
            return await self._polling.read(self._account, self._listing, request)
        began, hinted_at = self._polling.clock.monotonic(), watch.hinted_at
        self._hint_due, self._hint_read_at = None, began
        result = await self._polling.read(self._account, self._listing, request)
        if result.stale is None:
            if watch.hinted_at == hinted_at:
                # Another hint, that came meanwhile, may tell of what the venue did after it had answered.
                watch.hinted_at = 0.0
            self._plan_reconciling(began)
            if why is _Why.RECONCILE:
                watch.note_read(current, result, began)
        return result

    def _request(self, current: StoredBalance | None, ask_venue: bool, known_version: int, why: _Why) -> Read:
        if why is _Why.RECONCILE and not self._is_here:
            # The replica that follows the pushes has just done so, if it lives.
            return Read(self._interval + _PATIENCE, known_version)
        if why is not _Why.POLL:
            return Read(None, known_version, after=_NOW)
        if self._rests_on_pushes and current is not None and not ask_venue:
            # What was pushed is good however old it is.
            return Read(self._interval * 2, known_version)
        return self._polling.request(current, ask_venue, known_version)

    @property
    def _rests_on_pushes(self) -> bool:
        """Whether the push stands, or stood until a moment ago and polling has not begun yet."""
        return self.delivery.pushed or self._was_pushed or self._polling.clock.monotonic() < self._resume_at

    @property
    def _is_here(self) -> bool:
        return self._watch is not None and self._watch.here

    async def wait(self, result: BalanceResult | None, error: ServiceError | None) -> bool:
        """See FeedSource."""
        if isinstance(error, CredentialMissing):
            self._end_watch()
        elif result is not None and self._watch is None:
            self._watch = self._watches.open(self._account, self._listing, self._changed.set)
        elif result is not None and self._watch is not None and self._watch.key not in ("", result.key):
            self._watch.restart()
        return await super().wait(result, error)

    def _pause(self, result: BalanceResult | None, error: ServiceError | None) -> float:
        now, pushed = self._polling.clock.monotonic(), self.delivery.pushed
        if pushed is not self._was_pushed:
            self._was_pushed = pushed
            self._begin(now, pushed)
        polled = super()._pause(result, error)
        if not pushed:
            self._why = _Why.POLL
            return max(polled, self._resume_at - now)
        if error is not None or (result is not None and result.asked_in is not None):
            # Nothing may be pushed for long, and somebody waits for the recovery.
            self._why = _Why.RECOVER
            return polled
        hint_due = self._next_hint(now)
        self._why = _Why.RECONCILE if hint_due is None else _Why.HINT
        return max(0.0, (self._reconcile_at if hint_due is None else hint_due) - now)

    def _next_hint(self, now: float) -> float | None:
        """When the account is to be read because of a hint; None if there is no hint that no read has followed."""
        watch = self._watch
        if watch is None or not watch.here or not watch.hinted_at:
            return None
        if self._hint_due is None:
            self._hint_due = max(now + _AFTER_HINT, self._hint_read_at + _BETWEEN_HINTS)
        return self._hint_due

    def _begin(self, now: float, pushed: bool) -> None:
        """The push stands from now on, or does not any more."""
        if pushed:
            self._plan_reconciling(now)
        else:
            self._resume_at = now + random.uniform(0.0, self._polling.interval)  # noqa: S311

    def _plan_reconciling(self, now: float) -> None:
        pause = self._interval * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
        self._reconcile_at = now + pause + (0.0 if self._is_here else _PATIENCE)

    def _end_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def close(self) -> None:
        """Stop listening and following."""
        self._end_watch()
        super().close()
