"""Turns: few writes begin in a round of the event loop, and streams are opened one after the other."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from exchange_service.errors import CallerUnknown, ServiceOverloaded
from exchange_service.grpc_server import turns
from exchange_service.grpc_server.authentication import Authentication
from exchange_service.grpc_server.turns import Openings, Writes
from exchange_service.identity import Caller
from exchange_service.identity.quotas import Action


class Rounds:
    """Counts what is done in each round of the loop."""

    def __init__(self) -> None:
        self.done = [0]
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._next)

    def _next(self) -> None:
        self.done.append(0)
        self._handle = self._loop.call_soon(self._next)

    def end(self) -> None:
        self._handle.cancel()


async def test_few_writes_begin_in_a_round_and_nobody_is_passed_over() -> None:
    writes, counted, order = Writes(), Rounds(), list[int]()

    async def write(number: int) -> None:
        await writes.take()
        order.append(number)
        counted.done[-1] += 1

    await asyncio.gather(*(write(number) for number in range(1000)))
    counted.end()
    assert max(counted.done) <= turns._WRITES + 1
    assert order == list(range(1000))


async def test_a_write_alone_does_not_wait() -> None:
    writes = Writes()
    for _ in range(turns._WRITES):
        # It ends without a round of the loop.
        with pytest.raises(StopIteration):
            writes.take().send(None)
        assert not len(writes)


async def test_a_caller_that_is_not_known_takes_no_turn() -> None:
    class Unknown(Openings):
        async def take(self) -> None:
            raise AssertionError("it took a turn")

    class Refusing:
        open_to_all = True

        async def admit(self, *_: Any) -> Caller:
            raise CallerUnknown("No token.")

    async def handler(request: Any, context: Any) -> None:
        raise AssertionError("it was handled")

    authentication = Authentication(Refusing(), Unknown())  # type: ignore[arg-type]
    with pytest.raises(CallerUnknown):
        await authentication.require_caller(handler, Action.OPENING)(None, None)


class Opener:
    """Opens streams, each of which takes so many seconds of a clock that the test turns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds
        monkeypatch.setattr(turns, "time", SimpleNamespace(monotonic=self._time, thread_time=self._time))
        self.counted = Rounds()

    def _time(self) -> float:
        return self.now

    async def open(self, openings: Openings) -> None:
        await openings.take()
        self.now += self.seconds
        self.counted.done[-1] += 1


async def test_streams_are_opened_for_a_short_time_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    openings, opener = Openings(), Opener(monkeypatch, turns._OPENING / 8)
    await asyncio.gather(*(opener.open(openings) for _ in range(500)))
    # It takes some rounds until their time is known.
    assert 7 <= max(opener.counted.done) <= 8
    assert len(opener.counted.done) < 150
    opener.seconds = turns._OPENING * 8
    await asyncio.gather(*(opener.open(openings) for _ in range(500)))
    opener.counted.end()
    assert opener.counted.done[-50:].count(1) >= 48


@pytest.mark.parametrize("in_batches", [False, True])
async def test_calls_that_wait_for_a_round_each_come_first_and_batches_of_calls_hold_up_no_opening(
    monkeypatch: pytest.MonkeyPatch, in_batches: bool
) -> None:
    openings, opener = Openings(calls_in_batches=in_batches), Opener(monkeypatch, turns._OPENING / 4)
    opening = asyncio.gather(*(opener.open(openings) for _ in range(50)))
    while not opening.done():
        openings.call_came()
        await asyncio.sleep(0)
    opener.counted.end()
    rounds = len(opener.counted.done)
    assert rounds < 30 if in_batches else rounds > 3 * 50
    assert in_batches or max(opener.counted.done) == 1


async def test_streams_that_would_wait_too_long_are_refused_with_a_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "_FIRST_GUESS", 1.0)
    openings = Openings()
    waiting = [asyncio.create_task(openings.take()) for _ in range(40)]
    await asyncio.sleep(0)
    refused = [task for task in waiting if task.done() and task.exception()]
    assert len(refused) > 25
    for task in refused:
        error = task.exception()
        assert isinstance(error, ServiceOverloaded)
        assert error.retry_after is not None
        assert error.retry_after >= turns.LONGEST_WAIT / 2
    waiting[5].cancel()
    served = [task for task in waiting if task not in refused and task is not waiting[5]]
    await asyncio.gather(*served)
    # With nobody waiting the next one is served.
    await openings.take()
