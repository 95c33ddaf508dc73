"""The venue's time and the nonces, which all accounts of one environment share."""

from __future__ import annotations

import time
from dataclasses import dataclass

# The venue takes a nonce that is at most this far ahead of its time, in microseconds; one further ahead it refused.
_NONCE_WINDOW = 10_000_000


@dataclass(slots=True)
class VenueClock:
    """Counts in microseconds since 1970, as the venue's nonces do."""

    # How far the venue's time is ahead of ours; zero until a refusal gives a reason to measure it.
    _ahead: int = 0
    _last_nonce: int = 0

    def microseconds(self) -> int:
        """The venue's time."""
        return time.time_ns() // 1000 + self._ahead

    def milliseconds(self) -> int:
        """The venue's time in milliseconds."""
        return self.microseconds() // 1000

    def next_nonce(self) -> int:
        """A nonce above all before it. One row of them serves every wallet, and so rises for each."""
        self._last_nonce = max(self._last_nonce + 1, self.microseconds())
        return self._last_nonce

    def set(self, venue_milliseconds: int, began: int, ended: int) -> None:
        """Go by the time that the venue gave between `began` and `ended`, nanoseconds of our clock."""
        self._ahead = venue_milliseconds * 1000 - (began + ended) // 2000
        if self._last_nonce > self.microseconds() + _NONCE_WINDOW:
            # Of a clock that was ahead: the venue took none of these, and counting on from them would last for ever.
            self._last_nonce = 0
