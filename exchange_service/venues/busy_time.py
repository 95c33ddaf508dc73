"""How long a coroutine keeps its event loop busy: a plugin that blocks the loop must not be taken for a slow venue."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from types import coroutine
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class BusyTime:
    """Adds up the seconds of the steps of one coroutine. Steps of tasks that it starts are not counted."""

    seconds: float = 0.0

    async def measure(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run the coroutine that `make` returns, and return its result."""
        return await self._step_through(make())

    @coroutine
    def _step_through(self, work: Coroutine[Any, Any, T]) -> Generator[Any, None, T]:
        raised: BaseException | None = None
        while True:
            began = time.perf_counter()
            try:
                awaited = work.send(None) if raised is None else work.throw(raised)
            except StopIteration as end:
                result: T = end.value
                return result
            finally:
                self.seconds += time.perf_counter() - began
            raised = None
            try:
                yield awaited
            except GeneratorExit:
                work.close()
                raise
            # A cancellation above all: it is the coroutine's to see.
            except BaseException as error:
                raised = error
