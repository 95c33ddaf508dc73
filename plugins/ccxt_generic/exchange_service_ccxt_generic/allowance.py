"""What all requests to one venue take of its limit, counted as CCXT counts them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection

from exchange_service.plugin_api import RateLimit, VenueRateLimited

# Seconds. What would have to wait longer is refused, so that no call ends without a reason.
LONGEST_WAIT = 5.0


# Fractions of a unit that are only the rounding of a sum.
_ROUNDING = 1e-6


class Allowance:
    """One limit of a venue, which every instance that sends requests under it shares.

    Before a balance the service takes its usual cost of the limit. Here each request is counted with its own: also
    those for markets and for the kind of an account, and further pages. So the limit holds whatever a balance takes.
    """

    def __init__(self, venue: str, limit: RateLimit) -> None:
        self._venue = venue
        self._limit = limit
        # When each request of the window was sent, in the event loop's time, and its cost; the oldest first.
        self._sent: deque[tuple[float, float]] = deque()
        self._used = 0.0
        # The costs of those that wait, in turn. Only the first one sleeps, so that what a late event loop has delayed
        # is not sent all at once.
        self._waiting: dict[object, float] = {}
        self._first = asyncio.Lock()

    async def take(self, cost: float) -> None:
        """Return when a request of this cost may be sent: at once, if the limit has room for it, and in turn if not.

        Raises VenueRateLimited, with the delay, if there is no room within `LONGEST_WAIT`.
        """
        now = asyncio.get_running_loop().time()
        if self._refuse_late(self._room(cost, now, behind=self._waiting.values()) - now) > 0:
            await self._wait(cost)
        else:
            self._send(cost, now)

    async def _wait(self, cost: float) -> None:
        clock, ticket = asyncio.get_running_loop().time, object()
        self._waiting[ticket] = cost
        try:
            async with self._first:
                # Looked at again after each sleep, which may have been longer than it should.
                while (wait := self._refuse_late(self._room(cost, now := clock()) - now)) > 0:  # noqa: ASYNC110 - for time
                    await asyncio.sleep(wait)
                self._send(cost, now)
        finally:
            del self._waiting[ticket]

    def _send(self, cost: float, now: float) -> None:
        """Count a request at the moment at which it is sent."""
        self._sent.append((now, cost))
        self._used += cost

    def _refuse_late(self, wait: float) -> float:
        """The seconds to wait. Raises VenueRateLimited if they are too many."""
        if wait > LONGEST_WAIT:
            text = f"Our requests to {self._venue} are used up for now, so this one was not sent."
            error = VenueRateLimited(text, retry_after=wait)
            # The venue has not refused anything, so it is not left alone.
            error.venue_was_asked = False
            raise error
        return wait

    def _room(self, cost: float, now: float, behind: Collection[float] = ()) -> float:
        """When a request of this cost has room, after others of these costs. What has left the window is forgotten."""
        while self._sent and self._sent[0][0] + self._limit.seconds <= now:
            self._used -= self._sent.popleft()[1]
        if not self._sent:
            self._used = 0.0
        if not behind and self._has_room(cost, self._used):
            return now
        at, used, sent = now, self._used, self._sent.copy()
        for each in (*behind, cost):
            while sent and not self._has_room(each, used):
                moment, gone = sent.popleft()
                used, at = used - gone, max(at, moment + self._limit.seconds)
            sent.append((at, each))
            used += each
        return at

    def _has_room(self, cost: float, used: float) -> bool:
        """Whether so much may be sent besides what is used. What costs more than the limit is sent alone."""
        return used + min(cost, self._limit.count) <= self._limit.count + _ROUNDING
