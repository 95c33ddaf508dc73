"""When a venue is asked again: in this one layer only, and for a limited share of all calls."""

from __future__ import annotations

import random
from collections.abc import Callable

from exchange_service.errors import VenueTimeout, VenueUnavailable
from exchange_service.venue_gate.rate_limits import Window

# The first call and two retries.
ATTEMPTS = 3
# At most this share of all calls to a venue may be retries, but `FLOOR` in each window are always allowed.
SHARE = 0.2
FLOOR = 3
WINDOW = 10
# An account's retries in each window: those of one call.
OF_ONE = ATTEMPTS - 1
# A failure that took longer is not a slip, and the caller has waited long enough.
QUICK = 1.0
_FIRST_WAIT = 0.2
_LONGEST_WAIT = 2.0


class RetryBudget:
    """Counts one venue's calls and retries; `clock` is in seconds.

    One account has two retries in each window. Those of the account that has most do not count against the others, so
    that one account that fails all the time leaves the others theirs.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._calls = Window(WINDOW)
        self._retries: dict[str, Window] = {}

    def called(self) -> None:
        """Count a first call for a balance."""
        self._calls.add(1, self._clock())

    def take(self, account: str) -> bool:
        """Whether there may be one retry more for this account; if so it is counted."""
        now = self._clock()
        used = {name: count for name, window in self._retries.items() if (count := window.used(now))}
        self._retries = {name: self._retries[name] for name in used}
        if used.get(account, 0) >= OF_ONE:
            return False
        # The share is of first calls and retries together.
        allowed = max(FLOOR, int(self._calls.used(now) * SHARE / (1 - SHARE)))
        if sum(used.values()) - max(used.values(), default=0) >= allowed:
            return False
        self._retries.setdefault(account, Window(WINDOW)).add(1, now)
        return True


def worth_repeating(error: BaseException, seconds: float) -> bool:
    """Whether the failure, which took `seconds`, may be a slip. A venue that names a delay is left alone for it."""
    return isinstance(error, VenueUnavailable | VenueTimeout) and error.given_delay is None and seconds <= QUICK


def backoff(attempt: int) -> float:
    """Seconds to wait after the attempt of this number (the first is 1): growing, and fully jittered."""
    return random.uniform(0, min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (attempt - 1)))  # noqa: S311
