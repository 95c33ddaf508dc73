"""What is open for pushes, for those that only tell it: they need no library for connections."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PushFigures:
    """The connections that are open for one exchange's pushes, the subscriptions on them as far as the plugin tells,
    and how many connections were opened so far."""

    connections: int = 0
    subscriptions: int = 0
    opened: int = 0

    def __add__(self, other: PushFigures) -> PushFigures:
        return PushFigures(
            self.connections + other.connections, self.subscriptions + other.subscriptions, self.opened + other.opened
        )
