"""The slots of a venue that pushes only so many accounts at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from exchange_service.balances import push_room
from exchange_service.balances.push_room import PushRoom
from exchange_service.cache.memory import LocalLease


class SharedLease:
    """A lease in Redis, until it is lost."""

    def __init__(self) -> None:
        self.shared = True

    async def renew(self) -> None:
        pass

    async def release(self) -> None:
        self.shared = False


class Leases:
    """The part of CachedBalances that gives slots; `taken` are those of another replica."""

    def __init__(self, *taken: str, shared: bool = True) -> None:
        self.taken = set(taken)
        self.shared = shared
        self.asked: list[str] = []
        self.answers = True

    async def slot_lease(self, name: str, seconds: float) -> Any:
        self.asked.append(name)
        if not self.answers:
            return LocalLease()
        return None if name in self.taken else SharedLease()


def room(leases: Leases, replicas: int = 1) -> PushRoom:
    cached: Any = leases
    return PushRoom(cached, replicas)


async def test_slots_that_another_replica_holds_are_not_given() -> None:
    places = room(Leases("acme 0", "acme 2"))
    given = [await places.take("acme", 3) for _ in range(3)]
    assert [slot is not None for slot in given] == [True, False, False]


async def test_a_venue_without_a_free_slot_is_not_looked_at_for_each_account() -> None:
    leases = Leases("acme 0", "acme 1")
    places = room(leases)
    for _ in range(20):
        assert await places.take("acme", 2) is None
    assert len(leases.asked) == 2


async def test_a_slot_that_comes_free_is_for_the_account_that_has_waited_longest() -> None:
    places = room(Leases())
    slot = await places.take("acme", 1)
    assert slot is not None
    assert await places.take("acme", 1) is None
    first = asyncio.create_task(places.wait("acme", 60, asyncio.Event()))
    await asyncio.sleep(0)
    second = asyncio.create_task(places.wait("acme", 60, asyncio.Event()))
    await asyncio.sleep(0)
    await slot.release()
    await first
    assert not second.done()
    assert await places.take("acme", 1) is not None
    second.cancel()


async def test_without_redis_each_replica_has_its_part_and_knows_that_it_is_alone() -> None:
    places = room(Leases(shared=False), replicas=3)
    given = [slot for _ in range(10) if (slot := await places.take("acme", 10)) is not None]
    assert len(given) == 3
    assert all(slot.alone for slot in given)


async def test_a_slot_whose_lease_redis_did_not_answer_for_is_to_be_taken_once_more() -> None:
    leases = Leases()
    leases.answers = False
    slot = await room(leases).take("acme", 10)
    assert slot is not None
    assert slot.alone


async def test_of_more_slots_than_replicas_agree_on_each_uses_its_part() -> None:
    places = room(Leases(), replicas=2)
    given = [slot for _ in range(300) if (slot := await places.take("acme", 500)) is not None]
    assert len(given) == 250
    assert not any(slot.alone for slot in given)


async def test_a_venue_without_a_limit_always_has_a_slot() -> None:
    places = room(Leases())
    slots = [await places.take("acme", None) for _ in range(1000)]
    assert all(slots)
    assert not any(slot.alone for slot in slots if slot is not None)


async def test_the_more_accounts_wait_the_less_often_each_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push_room, "_LOOKERS", 2)
    places, ended = room(Leases()), asyncio.Event()
    waiting = [asyncio.create_task(places.wait("acme", 0.05, ended)) for _ in range(40)]
    await asyncio.sleep(0.3)
    assert sum(task.done() for task in waiting) < 20
    ended.set()
    await asyncio.gather(*waiting)
