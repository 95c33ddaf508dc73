"""Tasks that outlive their callers, kept until they end and ended in bounded time; and work beside the event loop."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache, partial
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
Error = TypeVar("Error", bound=BaseException)

# Seconds after which work beside the loop gives way to others that wait for the interpreter.
_SOON = 0.0001


def retrieve_exception(task: asyncio.Future[Any]) -> None:
    """Take the exception of a task that has ended, or asyncio logs it when no caller awaits it any more.

    A callback for `add_done_callback`; a caller that awaits the task still gets the exception.
    """
    if not task.cancelled():
        task.exception()


def without_origin(error: Error) -> Error:
    """The same error without the frames and the exception that it comes from. They hold a venue's answer and a
    credential, and an error may be kept for long."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


def copy_of(error: Error) -> Error:
    """The same error without its origin, to be kept, or for one more receiver: who raises the first one puts frames
    into it that the copy does not have. Nothing is called that a class of a plugin's own may do when it is made."""
    other = type(error).__new__(type(error))
    other.args = error.args
    vars(other).update(vars(error))
    return other


async def beside_the_loop(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """What `work` returns or raises, computed in a thread, so that the event loop serves others meanwhile.

    One thread does all such work, piece by piece: large answers are never computed at the same time, and the loop
    competes for the interpreter with one thread only. For plain functions that take some hundredths of a second.
    """
    run = partial(copy_context().run, work, *arguments, **options)
    return await asyncio.get_running_loop().run_in_executor(_thread(), _giving_way, run)


def _giving_way(run: Callable[[], T]) -> T:
    """What `run` returns or raises. Other threads that want the interpreter meanwhile have it soon.

    The event loop gives the interpreter up with each system call, some times in each turn, and to have it back would
    take Python's five milliseconds each time.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(_SOON)
    try:
        return run()
    finally:
        sys.setswitchinterval(before)


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="large answers")


class TaskSet:
    """Tasks that run beside their callers.

    The set keeps a reference to each task until it ends, because asyncio itself keeps none, and takes its exception.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run `work` as a task of this set and return the task, which may be awaited or left alone."""
        return self.add(asyncio.get_running_loop().create_task(work, name=name))

    def add(self, task: asyncio.Task[T]) -> asyncio.Task[T]:
        """Put a task that runs already into the set and return it."""
        self._tasks.add(task)
        task.add_done_callback(self._on_done)
        return task

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        retrieve_exception(task)

    def cancel(self) -> None:
        """Cancel every task, and wait for none of them."""
        for task in self._tasks:
            task.cancel()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until all tasks have ended, at most `timeout` seconds; whether they have. Their exceptions are not
        raised. Tasks that start meanwhile are not waited for."""
        if not self._tasks:
            return True
        _, running = await asyncio.wait(self._tasks, timeout=timeout)
        return not running

    async def close(self, timeout: float | None = None) -> bool:
        """Cancel every task and wait until all have ended, at most `timeout` seconds; whether they have.

        A task that ignores its cancellation runs on, and stays in the set until it ends.
        """
        self.cancel()
        return await self.wait(timeout)
