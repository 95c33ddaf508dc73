"""The deadline of the call that a task handles, and waiting that keeps to it.

A wait for a database or another process is never ended by cancelling it and waiting for that: drivers shield their
clean-up, for seconds if the other side is silent. What is waited for is a task of its own, which is left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

# Seconds before the caller's deadline: the caller must still get our answer after we have given up waiting.
ANSWER_MARGIN = 0.1


@dataclass(slots=True)
class Deadline:
    """The caller's deadline of the call that `task` handles, `at` in the event loop's time. `late` makes the error that
    tells what the task waits for, if that is known."""

    task: asyncio.Task[Any] | None
    at: float
    late: Callable[[], Exception] | None = None


_deadline: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


def set_deadline(at: float) -> Deadline:
    """Let the waits of this task keep to the caller's deadline.

    Tasks that it starts have none of it, although they inherit its context: their work may serve other callers.
    """
    deadline = Deadline(asyncio.current_task(), at)
    _deadline.set(deadline)
    return deadline


def _own() -> Deadline | None:
    deadline = _deadline.get()
    return deadline if deadline is not None and deadline.task is asyncio.current_task() else None


def time_remaining() -> float | None:
    """Seconds until the deadline of the call that this task handles, negative if it has passed; None without one."""
    own = _own()
    return None if own is None else own.at - asyncio.get_running_loop().time()


async def has_ended(work: asyncio.Future[Any], seconds: float | None = None) -> bool:
    """Wait for `work` for so many seconds at most, and not longer than the caller's deadline allows; whether it has
    ended. It goes on if it has not, and if the waiting is cancelled."""
    remaining = time_remaining()
    limits = [] if remaining is None else [remaining - ANSWER_MARGIN]
    if seconds is not None:
        limits.append(seconds)
    done, _ = await asyncio.wait({work}, timeout=max(0.0, min(limits)) if limits else None)
    return bool(done)


async def within(work: asyncio.Future[T], late: Callable[[], Exception]) -> T:
    """The result of `work`. Raises what `late` makes if the caller's deadline comes first; `work` then goes on."""
    own = _own()
    if own is not None:
        own.late = late
    if not await has_ended(work):
        raise late()
    if own is not None:
        own.late = None
    return work.result()
