"""A sliding window in which each replica's permits are counted apart, as Redis keeps it.

A replica writes what it has taken altogether, and never "so many more". If an answer of Redis is lost, the replica does
not know whether its permits were counted; its next write says what it has, so lost answers use up nothing.
"""

from __future__ import annotations

import struct

from exchange_service.venue_gate.rate_limits import Window, until_room

# Bytes that name a replica.
REPLICA_LENGTH = 8
# When the current part of the window began; then each replica's counts of the previous and the current part.
_BEGAN = struct.Struct(">d")
_PART = struct.Struct(f">{REPLICA_LENGTH}sQQ")


class SharedWindow:
    """All replicas' counts. Times are by Redis's clock."""

    def __init__(self, seconds: int, now: float) -> None:
        self._seconds = seconds
        self._began = now
        self._parts: dict[bytes, tuple[int, int]] = {}

    @classmethod
    def unpack(cls, seconds: int, packed: bytes, now: float) -> SharedWindow:
        """The window that `pack` wrote, as it is now. Raises struct.error for other bytes."""
        window = cls(seconds, now)
        (window._began,) = _BEGAN.unpack_from(packed)
        window._parts = {
            replica: (previous, current) for replica, previous, current in _PART.iter_unpack(packed[_BEGAN.size :])
        }
        window._advance(now)
        return window

    def pack(self) -> bytes:
        """The counts as bytes."""
        parts = (_PART.pack(replica, *counts) for replica, counts in self._parts.items())
        return _BEGAN.pack(self._began) + b"".join(parts)

    def _advance(self, now: float) -> None:
        passed = int((now - self._began) // self._seconds)
        if passed <= 0:
            return
        kept = self._parts if passed == 1 else {}
        self._parts = {replica: (current, 0) for replica, (_, current) in kept.items() if current}
        # It begins with the first thing that is counted in it.
        self._began = self._began + self._seconds if self._parts else now

    def put(self, replica: bytes, known: Window | None, now: float) -> None:
        """Replace the counts of a replica by what it knows that it has taken."""
        self._parts.pop(replica, None)
        if known is not None and not self._parts:
            # Redis has lost the counts. In a window that began now, what was taken before would count as long again.
            self._began = known.began(now)
        counts = known.counts_in(self._began, now) if known is not None else (0, 0)
        if any(counts):
            self._parts[replica] = counts

    def add(self, replica: bytes, count: int) -> Window:
        """Count permits of a replica; returns what it has taken altogether."""
        previous, current = self._parts.get(replica, (0, 0))
        self._parts[replica] = previous, current + count
        return Window.of(self._seconds, self._began, previous, current + count)

    def give_back(self, replica: bytes, count: int) -> None:
        """Count so many permits of a replica no more, the oldest first: they count least."""
        previous, current = self._parts.pop(replica, (0, 0))
        of_previous = min(count, previous)
        counts = previous - of_previous, max(0, current - (count - of_previous))
        if any(counts):
            self._parts[replica] = counts

    def wait(self, count: int, allowed: int, now: float) -> float:
        """Seconds until `count` more are allowed; zero if they are allowed now."""
        left = min(max(0.0, self._began + self._seconds - now), self._seconds)
        previous, current = (sum(counts[place] for counts in self._parts.values()) for place in (0, 1))
        return until_room(previous, left, current, left, room=allowed - count, seconds=self._seconds)
