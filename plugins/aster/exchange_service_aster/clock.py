"""The venue's time and the nonces, shared by all accounts of one environment."""

from __future__ import annotations

import time
from dataclasses import dataclass

# Microseconds. The venue refuses a nonce that is further ahead of its time.
_NONCE_WINDOW = 10_000_000


@dataclass(slots=True)
class VenueClock:
    """The venue's clock, in microseconds since 1970, as the venue's nonces are."""

    # How far the venue's time is ahead of ours. It is measured after a refusal for the time, and zero until then.
    _ahead: int = 0
    _last_nonce: int = 0

    def microseconds(self) -> int:
        """The venue's time."""
        return time.time_ns() // 1000 + self._ahead

    def milliseconds(self) -> int:
        """The venue's time in milliseconds."""
        return self.microseconds() // 1000

    def next_nonce(self) -> int:
        """A nonce above all earlier ones. All wallets share one sequence, so it rises for each wallet."""
        self._last_nonce = max(self._last_nonce + 1, self.microseconds())
        return self._last_nonce

    def set(self, venue_milliseconds: int, began: int, ended: int) -> None:
        """Set the clock by the time that the venue stated between `began` and `ended`, in nanoseconds of our clock."""
        self._ahead = venue_milliseconds * 1000 - (began + ended) // 2000
        if self._last_nonce > self.microseconds() + _NONCE_WINDOW:
            # Our clock was ahead: the venue refused these nonces, and would refuse all that follow on them.
            self._last_nonce = 0
