"""Letting CCXT walk through a large answer in a thread, so that the other exchanges are served meanwhile.

CCXT turns an answer into a balance in the middle of a coroutine, without awaiting anything. So the coroutine is run
step by step here: the step after a large answer runs in a thread, and ends where CCXT sends another request or returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import ContextVar
from types import coroutine
from typing import Any, TypeVar

from exchange_service.plugin_api import beside_the_loop

T = TypeVar("T")

# What a coroutine yields to be continued in a thread.
_ASIDE = object()
# The task whose coroutine `by_steps` runs. Tasks that CCXT starts in it inherit the variable, but are run by asyncio.
_STEPPED: ContextVar[asyncio.Task[Any] | None] = ContextVar("ccxt_stepped", default=None)


async def by_steps(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which may step aside."""
    token = _STEPPED.set(asyncio.current_task())
    try:
        return await _run(work)
    finally:
        _STEPPED.reset(token)


async def step_aside() -> None:
    """Go on in a thread, until `step_back` or the end. No effect in a coroutine that is not run by `by_steps`."""
    if _STEPPED.get() is asyncio.current_task():
        await _give(_ASIDE)


async def step_back() -> None:
    """Go on in the event loop. To be awaited before anything that needs it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        await _give(None)


@coroutine
def _give(what: object) -> Generator[Any, None, None]:
    yield what


@coroutine
def _run(work: Coroutine[Any, Any, T]) -> Generator[Any, None, T]:
    raised: BaseException | None = None
    aside = False
    while True:
        if aside:
            # If this is cancelled, the thread ends its step and nobody takes the result.
            has_ended, given = yield from beside_the_loop(_step, work, None).__await__()
        else:
            has_ended, given = _step(work, raised)
        if has_ended:
            result: T = given
            return result
        raised, aside = None, given is _ASIDE
        if aside:
            continue
        try:
            yield given
        except GeneratorExit:
            work.close()
            raise
        # A cancellation above all.
        except BaseException as error:
            raised = error


def _step(work: Coroutine[Any, Any, Any], raised: BaseException | None) -> tuple[bool, Any]:
    """Whether the coroutine has ended, and its result or what it waits for."""
    try:
        return False, work.send(None) if raised is None else work.throw(raised)
    except StopIteration as end:
        return True, end.value
