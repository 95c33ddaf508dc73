"""State between calls: made once, shared, forgotten, closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from exchange_service.plugin_kit.state import State


class Maker:
    """Makes a new number each time, once `go` is set, and records which numbers were closed."""

    def __init__(self) -> None:
        self.made = 0
        self.closed: list[int] = []
        self.go = asyncio.Event()
        self.go.set()
        self.failure: Exception | None = None

    async def make(self) -> int:
        self.made += 1
        number = self.made
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        return number

    async def close(self, number: int) -> None:
        self.closed.append(number)


@pytest.fixture
async def advance(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the event loop's clock forward by so many seconds."""
    loop = asyncio.get_running_loop()
    true_time, ahead = loop.time, [0.0]
    monkeypatch.setattr(loop, "time", lambda: true_time() + sum(ahead))
    return ahead.append


async def soon() -> None:
    """Let the tasks that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_value_is_made_once() -> None:
    state, maker = State(), Maker()
    assert await state.get("markets", maker.make) == 1
    assert await state.get("markets", maker.make) == 1
    assert maker.made == 1


async def test_each_name_has_its_own_value() -> None:
    state, maker = State(), Maker()
    assert await state.get("markets", maker.make) == 1
    assert await state.get("clock", maker.make) == 2


async def test_concurrent_calls_make_one_value() -> None:
    state, maker = State(), Maker()
    numbers = await asyncio.gather(*(state.get("markets", maker.make) for _ in range(20)))
    assert set(numbers) == {1}


async def test_a_value_that_is_too_old_is_made_again(advance: Callable[[float], None]) -> None:
    state, maker = State(), Maker()
    assert await state.get("token", maker.make, max_age=20, close=maker.close) == 1
    advance(19)
    assert await state.get("token", maker.make, max_age=20, close=maker.close) == 1
    advance(2)
    assert await state.get("token", maker.make, max_age=20, close=maker.close) == 2
    await soon()
    assert maker.closed == [1]


async def test_the_age_counts_from_when_the_value_was_made(advance: Callable[[float], None]) -> None:
    state, maker = State(), Maker()
    maker.go.clear()
    first = asyncio.create_task(state.get("token", maker.make, max_age=50))
    await soon()
    advance(60)
    maker.go.set()
    assert await first == 1
    assert await state.get("token", maker.make, max_age=50) == 1


async def test_a_failure_is_raised_to_every_waiting_call_and_not_stored() -> None:
    state, maker = State(), Maker()
    maker.failure = ValueError("no token")
    results = await asyncio.gather(*(state.get("token", maker.make) for _ in range(3)), return_exceptions=True)
    assert [str(result) for result in results] == ["no token"] * 3
    assert maker.made == 1
    maker.failure = None
    assert await state.get("token", maker.make) == 2


async def test_a_cancelled_call_does_not_stop_the_value_being_made_for_the_others() -> None:
    state, maker = State(), Maker()
    maker.go.clear()
    impatient = asyncio.create_task(state.get("token", maker.make))
    patient = asyncio.create_task(state.get("token", maker.make))
    await soon()
    impatient.cancel()
    await soon()
    assert impatient.cancelled()
    maker.go.set()
    assert await patient == 1


async def test_the_value_that_a_cancelled_call_began_is_there_for_the_next() -> None:
    state, maker = State(), Maker()
    maker.go.clear()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await state.get("token", maker.make)
    maker.go.set()
    assert await state.get("token", maker.make) == 1


async def test_a_forgotten_value_is_closed_and_made_again() -> None:
    state, maker = State(), Maker()
    await state.get("token", maker.make, close=maker.close)
    state.forget("token")
    assert await state.get("token", maker.make, close=maker.close) == 2
    await soon()
    assert maker.closed == [1]


async def test_forgetting_an_unknown_name_does_nothing() -> None:
    State().forget("token")


async def test_forgetting_does_not_drop_a_newer_value_that_is_being_made() -> None:
    # Two calls were refused with one token: the first forgets it and has a new one made, then the second forgets.
    state, maker = State(), Maker()
    await state.get("token", maker.make, close=maker.close)
    state.forget("token")
    maker.go.clear()
    first = asyncio.create_task(state.get("token", maker.make, close=maker.close))
    await soon()
    state.forget("token")
    second = asyncio.create_task(state.get("token", maker.make, close=maker.close))
    maker.go.set()
    assert await asyncio.gather(first, second) == [2, 2]


async def test_closing_closes_every_value() -> None:
    state, maker = State(), Maker()
    await state.get("one", maker.make, close=maker.close)
    await state.get("two", maker.make, close=maker.close)
    await state.close()
    assert sorted(maker.closed) == [1, 2]


async def test_a_value_that_cannot_be_closed_does_not_stop_the_others_from_closing() -> None:
    async def refuse(number: int) -> None:
        raise OSError("it does not close")

    state, maker = State(), Maker()
    await state.get("one", maker.make, close=refuse)
    await state.get("two", maker.make, close=maker.close)
    await state.close()
    assert maker.closed == [2]


async def test_closing_waits_for_a_value_that_was_forgotten_just_before() -> None:
    closed: list[int] = []

    async def slowly(number: int) -> None:
        await soon()
        closed.append(number)

    state, maker = State(), Maker()
    await state.get("token", maker.make, close=slowly)
    state.forget("token")
    await state.close()
    assert closed == [1]


@pytest.mark.parametrize("with_close", [True, False])
async def test_closing_stops_a_value_being_made_and_raises_to_the_waiting_call_without_cancelling_it(
    with_close: bool,
) -> None:
    state, maker = State(), Maker()
    maker.go.clear()
    close: Callable[[int], Awaitable[None]] | None = maker.close if with_close else None
    waiting = asyncio.create_task(state.get("token", maker.make, close=close))
    await soon()
    await state.close()
    with pytest.raises(RuntimeError, match="closed"):
        await waiting
    assert not waiting.cancelled()
    assert maker.closed == []


async def test_a_closed_state_makes_nothing_more() -> None:
    state, maker = State(), Maker()
    await state.close()
    with pytest.raises(RuntimeError, match="closed"):
        await state.get("token", maker.make)
    assert maker.made == 0


async def test_no_task_is_left_behind() -> None:
    before = asyncio.all_tasks()
    state, maker = State(), Maker()
    maker.go.clear()
    waiting = asyncio.create_task(state.get("token", maker.make))
    await soon()
    waiting.cancel()
    await state.close()
    await soon()
    assert asyncio.all_tasks() == before


async def test_making_a_value_that_calls_exit_does_not_end_the_service() -> None:
    async def make() -> str:
        raise SystemExit(3)

    state = State()
    with pytest.raises(RuntimeError, match="exit"):
        await state.get("name", make)
    await state.close()
