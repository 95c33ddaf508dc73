"""A process whose event loop is measured from within.

    python -m benchmarks.metered FILE serve     exchange-service serve, with its settings from the environment
    python -m benchmarks.metered FILE idle      an event loop that does nothing: the noise of the machine itself

Every 5 ms a tick notes how late it is. At the end the figures are written to FILE. With BENCHMARK_STACKS set they
include where the loop was in its stalls, from a thread that looks every 2 ms and disturbs the loop itself.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

# Seconds.
INTERVAL = 0.005
_STALLED = 0.008
_DEEPEST = 12


class Meter:
    """Notes for each tick when it was due by the monotonic clock, and how late it was; how long the loop's thread has
    run and has waited for a processor; and how long the whole process has run. All in seconds.

    A stall counts once for each tick that fell into it.
    """

    def __init__(self) -> None:
        self._figures = array("d")
        self._collections = array("d")
        self._stacks: Counter[tuple[str, ...]] = Counter()
        self._due = 0.0
        self._began = 0.0
        # Linux's statistics of this thread: nanoseconds in which it ran, and in which it waited for a processor.
        self._account = os.open("/proc/thread-self/schedstat", os.O_RDONLY)

    def start(self) -> None:
        """Begin, in the running loop."""
        gc.callbacks.append(self._on_collection)
        self._due = time.monotonic()
        self._next()
        if os.environ.get("BENCHMARK_STACKS"):
            threading.Thread(target=self._look, args=(threading.get_ident(),), daemon=True).start()

    def _next(self) -> None:
        self._due += INTERVAL
        # If that is past already, the loop runs it next.
        asyncio.get_running_loop().call_at(self._due, self._tick)

    def _tick(self) -> None:
        ran, waited, _ = os.pread(self._account, 100, 0).split()
        self._figures.extend(
            (self._due, time.monotonic() - self._due, int(ran) / 1e9, int(waited) / 1e9, time.process_time())
        )
        self._next()

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        now = time.monotonic()
        if phase == "start":
            self._began = now
        else:
            self._collections.extend((self._began, now - self._began, float(info["generation"])))

    def _look(self, thread: int) -> None:
        while True:
            time.sleep(0.002)
            if time.monotonic() - self._due > _STALLED:
                frames = traceback.extract_stack(sys._current_frames()[thread])[-_DEEPEST:]
                self._stacks[tuple(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames)] += 1

    def write(self, file: Path) -> None:
        """Write five figures for each tick and three for each collection, flat, and the stacks with their counts."""
        stacks = [[list(stack), count] for stack, count in self._stacks.most_common(60)]
        figures = {"ticks": list(self._figures), "collections": list(self._collections), "stacks": stacks}
        file.write_text(json.dumps(figures))


async def _idle() -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    print("Serving on nothing", file=sys.stderr, flush=True)
    await ended.wait()


def _serve(meter: Meter) -> None:
    """The command itself, with the meter started in its loop before anything else."""
    from exchange_service.cli import main, operate

    serve: Callable[..., Awaitable[None]] = operate._serve

    async def metered(*arguments: object) -> None:
        meter.start()
        await serve(*arguments)

    operate._serve = metered  # type: ignore[assignment]
    sys.argv[1:] = ["serve"]
    main()


async def _metered_idle(meter: Meter) -> None:
    meter.start()
    await _idle()


def run() -> None:
    """See the module."""
    file, what = Path(sys.argv[1]), sys.argv[2]
    meter = Meter()
    try:
        if what == "serve":
            _serve(meter)
        else:
            asyncio.run(_metered_idle(meter))
    finally:
        meter.write(file)


if __name__ == "__main__":
    run()
