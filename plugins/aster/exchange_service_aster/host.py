"""What all accounts of one environment share: the venue's clock, the nonces, and how long it has shut us out."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

# The venue takes a nonce that is at most this far ahead of its clock; one further ahead it has refused.
_NONCE_WINDOW = 10_000_000


@dataclass(slots=True)
class VenueHost:
    """The clock and the nonces count in microseconds since 1970, as the venue's nonces do."""

    # How far the venue's clock is ahead of ours; zero until a refusal gives a reason to measure it.
    _ahead: int = 0
    _last_nonce: int = 0
    # When the host at an address may be asked again, in monotonic seconds.
    _shut_until: dict[str, float] = field(default_factory=dict)

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

    def set_clock(self, venue_milliseconds: int, began: int, ended: int) -> None:
        """Go by the time that the venue gave between `began` and `ended`, nanoseconds of our clock."""
        self._ahead = venue_milliseconds * 1000 - (began + ended) // 2000
        if self._last_nonce > self.microseconds() + _NONCE_WINDOW:
            # Of a clock that was ahead: the venue took none of these, and counting on from them would last for ever.
            self._last_nonce = 0

    def shut(self, address: str, seconds: float) -> None:
        """Do not ask the host at `address` for so long."""
        self._shut_until[address] = max(time.monotonic() + seconds, self._shut_until.get(address, 0.0))

    def shut_for(self, address: str) -> float:
        """For how many seconds the host at `address` must not be asked; zero where it may."""
        return max(0.0, self._shut_until.get(address, 0.0) - time.monotonic())
