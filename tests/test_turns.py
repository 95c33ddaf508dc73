"""Turns: few writes begin in a round of the event loop, and streams are opened one after the other."""

from __future__ import annotations

import asyncio
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


async def test_one_stream_is_opened_in_a_round_and_calls_come_first() -> None:
    openings, counted = Openings(), Rounds()

    async def open_stream() -> None:
        await openings.take()
        counted.done[-1] += 1

    await asyncio.gather(*(open_stream() for _ in range(50)))
    assert max(counted.done) == 1
    began = len(counted.done)
    opening = asyncio.gather(*(open_stream() for _ in range(50)))
    while not opening.done():
        openings.call_came()
        await asyncio.sleep(0)
    counted.end()
    assert len(counted.done) - began > 3 * 50


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
