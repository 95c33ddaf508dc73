"""A bulkhead: how many fetches are in flight at once, for each venue and each plugin, so that a slow one fills only its
own compartment."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from exchange_service.errors import ServiceOverloaded
from exchange_service.venues.priority import Priority

# Behind so many that wait for one venue, another fetch would only wait in vain.
_LONGEST_QUEUE = 4096


@dataclass(slots=True)
class _Queue:
    """One venue's slots in use, and the fetches that wait for one, numbered in the order in which they came."""

    taken: int = 0
    waiting: int = 0
    urgent: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque)
    polling: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque)

    def head(self) -> tuple[bool, int] | None:
        """The next one: whether it polls, and its number. Those that have left or were promoted are dropped."""
        for waiting in (self.urgent, self.polling):
            while waiting and waiting[0][1].done():
                waiting.popleft()
            if waiting:
                return (waiting is self.polling, waiting[0][0])
        return None

    def admit(self) -> None:
        """Admit the next one."""
        (self.urgent or self.polling).popleft()[1].set_result(None)


@dataclass(slots=True)
class _Compartment:
    """One plugin's slots in use, and the venues that it asks."""

    taken: int = 0
    queues: dict[str, _Queue] = field(default_factory=dict)


class Bulkhead:
    """At most `of_venue` fetches in flight for each venue, and `of_plugin` for each plugin."""

    def __init__(self, of_venue: int = 32, of_plugin: int = 128) -> None:
        self._of_venue = of_venue
        self._of_plugin = of_plugin
        self._compartments: dict[str, _Compartment] = {}
        self._number = 0

    @property
    def taken(self) -> int:
        """How many fetches are in flight, over all venues."""
        return sum(compartment.taken for compartment in self._compartments.values())

    def load(self, venue: str) -> tuple[int, int]:
        """How many of the venue's fetches are in flight, and how many wait for a slot."""
        queues = [c.queues[venue] for c in self._compartments.values() if venue in c.queues]
        return sum(queue.taken for queue in queues), sum(queue.waiting for queue in queues)

    async def acquire(self, plugin: str, venue: str, priority: Priority, latest: float) -> None:
        """Take a slot, to be returned with `release`. Raises ServiceOverloaded if no slot is free until `latest`, in
        the event loop's time."""
        compartment = self._compartments.setdefault(plugin, _Compartment())
        queue = compartment.queues.setdefault(venue, _Queue())
        if queue.taken >= self._of_venue or compartment.taken >= self._of_plugin:
            await self._wait(plugin, venue, queue, priority, latest)
        else:
            queue.taken += 1
            compartment.taken += 1

    async def _wait(self, plugin: str, venue: str, queue: _Queue, priority: Priority, latest: float) -> None:
        """Wait until `release` admits this fetch; the slot is counted as taken from then on."""
        loop = asyncio.get_running_loop()
        if queue.waiting >= _LONGEST_QUEUE or latest <= loop.time():
            raise _full(venue)
        admission: asyncio.Future[None] = loop.create_future()
        self._number += 1
        entry = (self._number, admission)
        (queue.polling if priority.polling else queue.urgent).append(entry)
        # It stays in the other queue too, which passes over it once it has been admitted.
        priority.on_promoted(lambda: queue.urgent.append(entry))
        queue.waiting += 1
        try:
            await asyncio.wait({admission}, timeout=latest - loop.time())
        except asyncio.CancelledError:
            if admission.done():
                self.release(plugin, venue)
            raise
        finally:
            queue.waiting -= 1
            admitted = admission.done()
            admission.cancel()
        if not admitted:
            raise _full(venue)

    def release(self, plugin: str, venue: str) -> None:
        """Return a slot: the next fetch that has room begins."""
        compartment = self._compartments[plugin]
        compartment.queues[venue].taken -= 1
        compartment.taken -= 1
        if not compartment.taken and not any(queue.waiting for queue in compartment.queues.values()):
            del self._compartments[plugin]
            return
        # If the plugin had room all the time, only this venue's fetches have waited for this slot.
        names = [venue] if compartment.taken + 1 < self._of_plugin else list(compartment.queues)
        heads = []
        for name in names:
            queue = compartment.queues[name]
            head = queue.head() if queue.waiting and queue.taken < self._of_venue else None
            if head is not None:
                heads.append((head, name))
        if heads and compartment.taken < self._of_plugin:
            queue = compartment.queues[min(heads)[1]]
            queue.taken += 1
            compartment.taken += 1
            queue.admit()


def _full(venue: str) -> ServiceOverloaded:
    name = venue.partition(" ")[0]
    return ServiceOverloaded(f"Too many balances of {name} are being read at once, and no slot became free in time.")
