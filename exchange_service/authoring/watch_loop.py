"""Sees what a plugin's code does to the event loop: how long its steps keep it, where, and which tasks it leaves."""

from __future__ import annotations

import asyncio
import linecache
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from exchange_service.authoring.tracing import AuthorsFiles

T = TypeVar("T")

# Seconds for which a step may keep the loop: meanwhile all other accounts wait.
BLOCKED = 0.05
# Seconds between two looks at what runs.
_LOOK = 0.005

# Set within a call of the plugin, and in every task that it starts.
_in_call: ContextVar[bool] = ContextVar("in_call", default=False)


@dataclass(frozen=True, slots=True)
class Blocking:
    """A step of the plugin that kept the loop for `seconds`. `place` is the line of the author's that ran meanwhile,
    such as `acme/client.py:31 in fetch`, and `code` what stands there; empty if it was not one of theirs."""

    seconds: float
    place: str
    code: str


class LoopWatch:
    """Measures the steps of a call and of the tasks that it starts. Use it as a context manager in the loop's thread;
    `measured` wraps the call."""

    def __init__(self, files: AuthorsFiles) -> None:
        self._files = files
        self._began: float | None = None
        self._place = ("", "")
        self._ended = threading.Event()
        self._thread = threading.get_ident()
        self._tasks: list[asyncio.Task[Any]] = []
        self.busy = 0.0
        self.blockings: list[Blocking] = []

    def __enter__(self) -> LoopWatch:
        asyncio.get_running_loop().set_task_factory(self._make_task)
        threading.Thread(target=self._look, name="looks at what runs", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        asyncio.get_running_loop().set_task_factory(None)

    def left_tasks(self) -> list[asyncio.Task[Any]]:
        """The tasks that were started within the call and have not ended."""
        return [task for task in self._tasks if not task.done()]

    async def measured(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns or raises; its steps and those of its tasks are measured."""
        _in_call.set(True)
        return await _Stepped(work, self)

    def _make_task(self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
        if not _in_call.get():
            return asyncio.Task(work, loop=loop, **options)
        task = asyncio.Task(_run(_Stepped(work, self)), loop=loop, **options)
        self._tasks.append(task)
        return task

    def begin(self) -> None:
        """A step begins."""
        self._place = ("", "")
        self._began = time.perf_counter()

    def end(self) -> None:
        """The step has ended."""
        if self._began is None:
            return
        seconds, self._began = time.perf_counter() - self._began, None
        self.busy += seconds
        if seconds >= BLOCKED:
            self.blockings.append(Blocking(seconds, *self._place))

    def _look(self) -> None:
        """In a thread: note where a step is that takes long."""
        while not self._ended.wait(_LOOK):
            began = self._began
            if began is None or time.perf_counter() - began < BLOCKED / 2 or self._place[0]:
                continue
            frame = sys._current_frames().get(self._thread)
            while frame is not None:
                if frame.f_code.co_filename in self._files:
                    name = self._files.short(frame.f_code.co_filename)
                    self._place = (f"{name}:{frame.f_lineno} in {frame.f_code.co_name}", _code(frame))
                    break
                frame = frame.f_back


def _code(frame: Any) -> str:
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()


class _Stepped(Generic[T]):
    """Awaits a coroutine, and tells the watch when each of its steps begins and ends."""

    def __init__(self, work: Coroutine[Any, Any, T], watch: LoopWatch) -> None:
        self._work = work
        self._watch = watch

    def __await__(self) -> Generator[Any, Any, T]:
        inner: Any = self._work.__await__()
        step: Callable[[], Any] = partial(next, inner)
        while True:
            self._watch.begin()
            try:
                wanted = step()
            except StopIteration as stop:
                result: T = stop.value
                return result
            finally:
                self._watch.end()
            try:
                step = partial(inner.send, (yield wanted))
            except GeneratorExit:
                inner.close()
                raise
            except BaseException as error:
                step = partial(inner.throw, error)


async def _run(stepped: _Stepped[T]) -> T:
    return await stepped
