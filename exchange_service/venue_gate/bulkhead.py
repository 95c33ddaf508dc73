"""How many fetches are in flight at once: for each venue and for each plugin, so that a slow one fills only its own."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from exchange_service.errors import ServiceOverloaded
from exchange_service.venue_gate.priority import Priority

# Beyond so many that wait for one venue another one would only wait in vain.
_LONGEST_QUEUE = 4096


@dataclass(slots=True)
class _Queue:
    """One venue's places that are taken, and who waits for one: numbered by when he came."""

    taken: int = 0
    waiting: int = 0
    urgent: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque)
    polling: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque)

    def head(self) -> tuple[bool, int] | None:
        """Who is next: whether he polls, and his number. Who has left, or moved ahead, is dropped on the way."""
        for waiting in (self.urgent, self.polling):
            while waiting and waiting[0][1].done():
                waiting.popleft()
            if waiting:
                return (waiting is self.polling, waiting[0][0])
        return None

    def admit(self) -> None:
        """Let in who is next."""
        (self.urgent or self.polling).popleft()[1].set_result(None)


@dataclass(slots=True)
class _Shelf:
    """One plugin's places that are taken, and the venues that it asks."""

    taken: int = 0
    queues: dict[str, _Queue] = field(default_factory=dict)


class Places:
    """At most `of_venue` fetches in flight for each venue, and `of_plugin` for each plugin."""

    def __init__(self, of_venue: int = 32, of_plugin: int = 128) -> None:
        self._of_venue = of_venue
        self._of_plugin = of_plugin
        self._shelves: dict[str, _Shelf] = {}
        self._number = 0

    @property
    def taken(self) -> int:
        """How many are in flight, over all venues."""
        return sum(shelf.taken for shelf in self._shelves.values())

    async def take(self, plugin: str, venue: str, priority: Priority, latest: float) -> None:
        """Take a place, and give it back with `give_back`. ServiceOverloaded where none is free until `latest`, in the
        event loop's time."""
        shelf = self._shelves.setdefault(plugin, _Shelf())
        queue = shelf.queues.setdefault(venue, _Queue())
        if queue.taken >= self._of_venue or shelf.taken >= self._of_plugin:
            await self._wait(plugin, venue, queue, priority, latest)
        else:
            queue.taken += 1
            shelf.taken += 1

    async def _wait(self, plugin: str, venue: str, queue: _Queue, priority: Priority, latest: float) -> None:
        """Wait until somebody who gives his place back has admitted us, which counts the place as ours already."""
        loop = asyncio.get_running_loop()
        if queue.waiting >= _LONGEST_QUEUE or latest <= loop.time():
            raise _full(venue)
        turn: asyncio.Future[None] = loop.create_future()
        self._number += 1
        place = (self._number, turn)
        (queue.polling if priority.polling else queue.urgent).append(place)
        # He keeps his place in the other queue, too, where he is passed over once he has been admitted.
        priority.on_promoted(lambda: queue.urgent.append(place))
        queue.waiting += 1
        try:
            await asyncio.wait({turn}, timeout=latest - loop.time())
        except asyncio.CancelledError:
            if turn.done():
                self.give_back(plugin, venue)
            raise
        finally:
            queue.waiting -= 1
            admitted = turn.done()
            turn.cancel()
        if not admitted:
            raise _full(venue)

    def give_back(self, plugin: str, venue: str) -> None:
        """The fetch has ended: whoever is next, and has room, begins."""
        shelf = self._shelves[plugin]
        shelf.queues[venue].taken -= 1
        shelf.taken -= 1
        # Where the plugin had room all the time, only this venue's fetches have waited for this place.
        names = [venue] if shelf.taken + 1 < self._of_plugin else list(shelf.queues)
        heads = []
        for name in names:
            queue = shelf.queues[name]
            head = queue.head() if queue.waiting and queue.taken < self._of_venue else None
            if head is not None:
                heads.append((head, name))
        if heads and shelf.taken < self._of_plugin:
            queue = shelf.queues[min(heads)[1]]
            queue.taken += 1
            shelf.taken += 1
            queue.admit()


def _full(venue: str) -> ServiceOverloaded:
    name = venue.partition(" ")[0]
    return ServiceOverloaded(
        f"As many balances of {name} are being read as may be at once, and none has ended in time."
    )
