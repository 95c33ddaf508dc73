"""A set of tasks: none is lost, none is logged by asyncio, and closing takes no longer than it may. And work beside the
loop, which gives way to it."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest

from exchange_service.tasks import TaskSet, beside_the_loop, retrieve_exception


async def fail() -> None:
    raise ValueError("nobody waits for this")


async def ignore_cancellation(until: asyncio.Event) -> None:
    while not until.is_set():
        try:
            await until.wait()
        except asyncio.CancelledError:
            continue


class TestTaskSet:
    async def test_a_task_is_referenced_until_it_ends_and_gives_its_result(self) -> None:
        tasks, go = TaskSet(), asyncio.Event()

        async def work() -> int:
            await go.wait()
            return 7

        task = tasks.start(work(), name="some work")
        assert task.get_name() == "some work"
        assert len(tasks) == 1
        gc.collect()
        go.set()
        assert await task == 7
        assert len(tasks) == 0

    async def test_a_failure_that_no_caller_awaits_is_not_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        tasks = TaskSet()
        tasks.start(fail(), name="fails")
        with caplog.at_level(logging.DEBUG, logger="asyncio"):
            assert await tasks.wait(1.0)
            gc.collect()
        assert [record for record in caplog.records if "never retrieved" in record.getMessage()] == []

    async def test_a_failure_reaches_the_caller_that_awaits_it(self) -> None:
        tasks = TaskSet()
        with pytest.raises(ValueError, match="nobody waits"):
            await tasks.start(fail(), name="fails")

    async def test_a_running_task_can_be_added(self) -> None:
        tasks = TaskSet()
        task = asyncio.create_task(asyncio.sleep(3600))
        assert tasks.add(task) is task
        assert await tasks.close(1.0)
        assert task.cancelled()

    async def test_closing_cancels_every_task_and_waits_for_their_ends(self) -> None:
        tasks, ended = TaskSet(), list[int]()

        async def work(number: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append(number)

        for number in range(3):
            tasks.start(work(number), name="work")
        await asyncio.sleep(0)
        assert await tasks.close(1.0)
        assert sorted(ended) == [0, 1, 2]
        assert len(tasks) == 0

    async def test_closing_does_not_wait_longer_for_a_task_that_ignores_its_cancellation(self) -> None:
        tasks, until = TaskSet(), asyncio.Event()
        task = tasks.start(ignore_cancellation(until), name="stubborn")
        await asyncio.sleep(0)
        began = time.monotonic()
        assert not await tasks.close(0.05)
        assert time.monotonic() - began < 0.5
        assert len(tasks) == 1
        until.set()
        await task
        assert len(tasks) == 0

    async def test_waiting_cancels_nothing(self) -> None:
        tasks, go = TaskSet(), asyncio.Event()
        task = tasks.start(go.wait(), name="work")
        assert not await tasks.wait(0.01)
        go.set()
        assert await tasks.wait()
        assert await task

    async def test_an_empty_set_is_closed_at_once(self) -> None:
        assert await TaskSet().close(0.0)
        assert await TaskSet().wait()


async def test_a_cancelled_task_has_no_exception_to_take() -> None:
    task = asyncio.create_task(asyncio.sleep(3600))
    task.cancel()
    await asyncio.wait({task})
    retrieve_exception(task)
    assert task.cancelled()


class TestBesideTheLoop:
    async def test_the_loop_has_the_interpreter_back_sooner_than_from_other_threads(self) -> None:
        with switching_every(0.005):
            assert await beside_the_loop(sys.getswitchinterval) < 0.001

    @pytest.mark.parametrize("fail", [False, True])
    async def test_afterwards_threads_switch_as_before(self, fail: bool) -> None:
        def work() -> None:
            if fail:
                raise ValueError("no")

        with switching_every(0.002) as before:
            with pytest.raises(ValueError, match="no") if fail else nullcontext():
                await beside_the_loop(work)
            assert sys.getswitchinterval() == before


@contextmanager
def switching_every(seconds: float) -> Iterator[float]:
    """What Python itself says of this interval between two switches of threads."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(seconds)
    try:
        yield sys.getswitchinterval()
    finally:
        sys.setswitchinterval(before)
