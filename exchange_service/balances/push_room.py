"""How many accounts a venue pushes at once: slots that all replicas share, or each replica's part of them."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque

from exchange_service.balances.cached import CachedBalances
from exchange_service.cache import Lease
from exchange_service.cache.memory import LocalLease

# Slots are counted together up to this many: each is a lease of its own. Of more each replica uses its part.
_MOST_SHARED = 64
# Seconds for which a slot outlives the replica that held it.
SLOT_LEASE = 6.0
# Seconds for which a venue without a free slot is not looked at again, except for those that become free here.
_FULL_FOR = 5.0
# Accounts that wait for a slot and look as often as if they were alone.
_LOOKERS = 50


class PushSlot:
    """One account's right to be pushed; `lease` is None where nothing is shared."""

    def __init__(self, room: PushRoom, venue: str, number: int, lease: Lease | None) -> None:
        self._room = room
        self._venue = venue
        self._number = number
        self._lease = lease

    @property
    def alone(self) -> bool:
        """Whether the other replicas should know of it, and could not be told."""
        return self._lease is not None and not self._lease.shared

    async def renew(self) -> bool:
        """Hold it for as long again. Returns whether it is still ours."""
        return self._lease is None or await held_on(self._lease)

    async def release(self) -> None:
        """Give it back, and let the next account of this replica have it."""
        try:
            if self._lease is not None:
                await self._lease.release()
        finally:
            self._room.free(self._venue, self._number)


class PushRoom:
    """The slots of all venues."""

    def __init__(self, cached: CachedBalances, replicas: int = 1) -> None:
        self._cached = cached
        self._replicas = replicas
        # The numbers of the slots that this replica holds.
        self._taken: dict[str, set[int]] = defaultdict(set)
        self._waiting: dict[str, deque[asyncio.Event]] = defaultdict(deque)
        self._full_until: dict[str, float] = {}

    async def take(self, venue: str, most: int | None) -> PushSlot | None:
        """A slot among the `most` of this venue; None if there is none. `most` None: there are always more."""
        taken = self._taken[venue]
        if most is None:
            return self._keep(venue, max(taken, default=-1) + 1, None)
        if most <= _MOST_SHARED and self._cached.shared:
            return await self._take_shared(venue, most)
        if len(taken) >= max(1, most // self._replicas):
            return None
        return self._keep(venue, min(set(range(most)) - taken), LocalLease() if most <= _MOST_SHARED else None)

    async def _take_shared(self, venue: str, most: int) -> PushSlot | None:
        if time.monotonic() < self._full_until.get(venue, 0.0):
            return None
        for number in range(most):
            if number in self._taken[venue]:
                continue
            # Before the answer: another account of this process would be given the same lease.
            self._taken[venue].add(number)
            try:
                lease = await self._cached.slot_lease(f"{venue} {number}", SLOT_LEASE)
            except BaseException:
                self._taken[venue].discard(number)
                raise
            if lease is not None:
                return self._keep(venue, number, lease)
            self._taken[venue].discard(number)
        self._full_until[venue] = time.monotonic() + _FULL_FOR
        return None

    def _keep(self, venue: str, number: int, lease: Lease | None) -> PushSlot:
        self._taken[venue].add(number)
        return PushSlot(self, venue, number, lease)

    def free(self, venue: str, number: int) -> None:
        """A slot of this replica is free again: the account that has waited longest looks first."""
        self._taken[venue].discard(number)
        self._full_until.pop(venue, None)
        waiting = self._waiting[venue]
        if waiting:
            waiting.popleft().set()

    async def wait(self, venue: str, seconds: float, freed: asyncio.Event) -> None:
        """Return when `freed` is set, as it is if a slot of this replica has become free, or after so many seconds; the
        longer, the more accounts wait, because each look costs the cache a little."""
        waiting = self._waiting[venue]
        waiting.append(freed)
        try:
            async with asyncio.timeout(seconds * max(1.0, len(waiting) / _LOOKERS)):
                await freed.wait()
        except TimeoutError:
            return
        finally:
            if freed in waiting:
                waiting.remove(freed)


async def held_on(lease: Lease) -> bool:
    """Renew the lease. Returns whether it is still ours, or was never shared."""
    shared = lease.shared
    await lease.renew()
    return lease.shared == shared
