"""How old a balance is, and whether that is young enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from exchange_service import clock
from exchange_service.wire.stored import CLOCK_TOLERANCE, StoredBalance


@dataclass(frozen=True, slots=True)
class Freshness:
    """The operator's limits in seconds: a balance is fresh up to `max_age` unless the caller names another limit, and
    serves in place of a venue's passing trouble up to `stale_grace`. `now` is in seconds since the epoch."""

    max_age: float = 30.0
    stale_grace: float = 300.0
    now: Callable[[], float] = clock.wall

    def age(self, stored: StoredBalance) -> float:
        """Seconds since it was fetched, never negative."""
        return max(0.0, self.now() - stored.fetch_time)

    def fresh_age(self, stored: StoredBalance, max_age: float | None) -> float | None:
        """The age if it is at most `max_age` seconds (None: the operator's limit), else None. One from the future says
        that a clock is wrong, and nothing about its age."""
        limit = self.max_age if max_age is None else max_age
        age = self.now() - stored.fetch_time
        if limit > 0 and -CLOCK_TOLERANCE <= age <= limit:
            return age if age > 0 else 0.0
        return None

    def is_fresh(self, stored: StoredBalance, max_age: float | None) -> bool:
        """Whether it has a `fresh_age`."""
        return self.fresh_age(stored, max_age) is not None

    def not_before(self, max_age: float | None) -> float:
        """The earliest fetch time, in seconds since the epoch, that serves a caller who asks now. A replica's balance
        that comes while the caller waits may have been fetched by a clock that is behind."""
        return self.now() - max(self.max_age if max_age is None else max_age, CLOCK_TOLERANCE)

    def within_grace(self, stored: StoredBalance) -> bool:
        """Whether it may still be given in place of a venue's passing trouble; never one from the future."""
        return -CLOCK_TOLERANCE <= self.now() - stored.fetch_time <= self.stale_grace

    def was_good_lately(self, fetch_time: float) -> bool:
        """The same of a balance that was fetched then, in seconds since the epoch; 0 if there is none."""
        return fetch_time > 0 and -CLOCK_TOLERANCE <= self.now() - fetch_time <= self.stale_grace


@dataclass(frozen=True, slots=True)
class PollBackoff:
    """Seconds that feeds leave between two reads: `active` while something changes, more and more up to `idle` while
    nothing does."""

    active: float = 10.0
    idle: float = 30.0
    growth: float = 1.5

    def after(self, stored: StoredBalance, previous: StoredBalance | None) -> float:
        """The pause after this balance, which follows `previous`."""
        if previous is None or previous.version != stored.version:
            return self.active
        return max(self.active, min(self.idle, previous.pause * self.growth))
