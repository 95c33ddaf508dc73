"""Which accounts a venue fails for, so that one account's trouble is not taken for the venue's."""

from __future__ import annotations

from cachetools import TTLCache

_MOST_ACCOUNTS = 10_000
# Seconds for which an account's trouble is taken for its own after the venue has answered another one meanwhile.
_OWN = 600.0
# Seconds after which a failure says nothing any more.
_OLD = 600.0


class FailingAccounts:
    """Counts the accounts that have failed since the venue last answered any.

    If the venue answers one account after it has failed another one, the other one's trouble is its own: from then on
    it says nothing of the venue, until it is answered itself. Times are the caller's, in seconds.
    """

    def __init__(self) -> None:
        self._now = 0.0
        # How often each has failed in a row, and when last.
        self._failed: TTLCache[str, tuple[int, float]] = TTLCache(_MOST_ACCOUNTS, _OLD, timer=lambda: self._now)
        self._own: TTLCache[str, bool] = TTLCache(_MOST_ACCOUNTS, _OWN, timer=lambda: self._now)

    def failed(self, account: str, now: float) -> bool:
        """Count a failure. Returns whether it says something of the venue."""
        self._now = max(self._now, now)
        count, _ = self._failed.get(account, (0, 0.0))
        self._failed[account] = count + 1, now
        return account not in self._own

    def answered(self, account: str, began: float, now: float) -> None:
        """The venue has answered what this account asked at `began`."""
        self._now = max(self._now, now)
        if account in self._own:
            del self._own[account]
        if not self._failed:
            # Nearly always.
            return
        self._failed.pop(account, None)
        for other, (_, failed) in self._failed.items():
            if failed <= began:
                self._own[other] = True
        self._failed.clear()

    def is_own(self, account: str, now: float) -> bool:
        """Whether the account's trouble is its own."""
        self._now = max(self._now, now)
        return account in self._own

    def count(self, most_of_one: int, now: float) -> int:
        """How many failures speak of the venue, of one account at most so many."""
        self._now = max(self._now, now)
        counts = (min(count, most_of_one) for name, (count, _) in self._failed.items() if name not in self._own)
        return sum(counts)

    def forget(self) -> None:
        """Begin to count again."""
        self._failed.clear()
