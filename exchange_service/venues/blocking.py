"""Finds where a plugin keeps the event loop from others, while it does.

A step of a hook that waits without `await` stops every account of the plugin. When it has ended, nothing tells where it
was; and a process that does not answer is ended by its supervisor. So a thread looks at steps that take long.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass, field
from types import FrameType

import structlog

# Seconds of one step that are told as blocking, and between two looks.
LONGEST_STEP = 0.5
_BETWEEN_LOOKS = 0.1
# Looks without a step before the thread waits for the next one.
_IDLE_LOOKS = 50
# Lines of code that the log names, innermost last.
_MOST_PLACES = 4
# What its author reads.
BLOCKS = (
    "it blocks the event loop, so all accounts of the plugin wait: write `await asyncio.sleep(...)` in place of "
    "time.sleep, `call.http` in place of requests, and `await asyncio.to_thread(...)` for what cannot be awaited"
)

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Step:
    """One step of a hook of `plugin`, from one `await` to the next, in the thread that runs it. `places` are where it
    was when it had taken too long, as "file:line"; empty if it has not."""

    plugin: str
    thread: int = field(default_factory=threading.get_ident)
    began: float = field(default_factory=time.perf_counter)
    places: list[str] = field(default_factory=list)


class BlockingWatch:
    """Looks at the step that runs now, and logs one that takes too long, once."""

    def __init__(self) -> None:
        self._step: Step | None = None
        self._runs = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, plugin: str) -> Step:
        """A step begins in this thread."""
        self._step = step = Step(plugin)
        if not self._runs.is_set():
            self._wake()
        return step

    def end(self) -> None:
        """The step has ended."""
        self._step = None

    def _wake(self) -> None:
        self._runs.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._look_on, name="blocking watch", daemon=True)
            self._thread.start()

    def _look_on(self) -> None:
        idle = 0
        while True:
            if idle > _IDLE_LOOKS:
                self._runs.clear()
                idle = 0
            self._runs.wait()
            time.sleep(_BETWEEN_LOOKS)
            step = self._step
            idle = idle + 1 if step is None else 0
            if step is not None and not step.places and time.perf_counter() - step.began >= LONGEST_STEP:
                self._report(step)

    def _report(self, step: Step) -> None:
        frame = sys._current_frames().get(step.thread)
        if frame is None or self._step is not step:
            return
        step.places = _places(frame)
        log.error("plugin.blocks", plugin=step.plugin, problem=BLOCKS, at=step.places)


def _places(frame: FrameType | None) -> list[str]:
    """Where the step is: the innermost places below the one that began it, outermost first."""
    places = list[str]()
    while frame is not None and len(places) < _MOST_PLACES and frame.f_globals.get("__name__") != _STEPS:
        places.insert(0, f"{frame.f_code.co_filename}:{frame.f_lineno}")
        frame = frame.f_back
    return places


# The module that runs steps.
_STEPS = "exchange_service.venues.sessions"

# One for the process: there is one event loop that calls plugins.
WATCH = BlockingWatch()
