"""What all requests to one venue take of its limit, counted as CCXT counts them."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from exchange_service.plugin_api import RateLimit, VenueRateLimited

# Seconds. What would have to wait longer is refused, so that no call ends without a reason.
LONGEST_WAIT = 5.0


# Fractions of a unit that are only the rounding of a sum.
_ROUNDING = 1e-6


@dataclass(slots=True)
class Reserved:
    """What one request takes, and when it is sent, in the event loop's time."""

    at: float
    cost: float


class Allowance:
    """One limit of a venue, which every instance that sends requests under it shares.

    Before a balance the service takes its usual cost of the limit. Here each request is counted with its own: also
    those for markets and for the kind of an account, and further pages. So the limit holds whatever a balance takes.
    """

    def __init__(self, venue: str, limit: RateLimit) -> None:
        self._venue = venue
        self._limit = limit
        # The oldest first.
        self._taken: deque[Reserved] = deque()
        self._used = 0.0

    async def take(self, cost: float) -> None:
        """Return when a request of this cost may be sent: at once, if the limit has room for it, and in turn if not.

        Raises VenueRateLimited, with the delay, if there is no room within `LONGEST_WAIT`.
        """
        now = asyncio.get_running_loop().time()
        taken = self.reserve(cost, now)
        if taken.at > now:
            await self._wait(taken, taken.at - now)

    def reserve(self, cost: float, now: float) -> Reserved:
        """What a request of this cost takes, and when it may be sent. Raises as `take` does."""
        at = self._room(min(cost, self._limit.count), now)
        if at - now > LONGEST_WAIT:
            text = f"Our requests to {self._venue} are used up for now: it limits them."
            raise VenueRateLimited(text, retry_after=at - now)
        taken = Reserved(at, cost)
        self._taken.append(taken)
        self._used += cost
        return taken

    def _room(self, cost: float, now: float) -> float:
        """When there is room for so much, not before those that wait already. What has left the window is forgotten."""
        while self._taken and self._taken[0].at + self._limit.seconds <= now:
            self._used -= self._taken.popleft().cost
        if not self._taken:
            self._used = 0.0
            return now
        at, used = max(now, self._taken[-1].at), self._used
        for taken in self._taken:
            if used + cost <= self._limit.count + _ROUNDING:
                break
            used -= taken.cost
            at = max(at, taken.at + self._limit.seconds)
        return at

    async def _wait(self, taken: Reserved, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            # It is not sent: those behind it may have its part.
            self._used -= taken.cost
            taken.cost = 0.0
            raise
