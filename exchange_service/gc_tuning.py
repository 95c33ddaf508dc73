"""Python's garbage collector in our own processes: the service and the plugin processes.

A program that imports the library keeps its own settings.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager

# The collector examines the youngest objects after 700 more allocations than deallocations, the survivors after ten
# such runs, and all objects after a thousand of those. With Python's own numbers (700, 10, 10) ten thousand streams
# wait for up to a sixth of a second while all objects are examined, and loading a venue's markets takes twice as long.
# A first number of 50,000 doubles the duration of the slowest calls.
_THRESHOLDS = (700, 10, 1000)
# Seconds between two examinations of all objects, and how many there may be for it: it takes some milliseconds.
_EVERY, _FEW = 60.0, 30_000


def set_thresholds() -> None:
    """Let the collector examine all objects less often."""
    gc.set_threshold(*_THRESHOLDS)


@contextmanager
def uncollected() -> Iterator[None]:
    """While modules are imported and parts are joined: examine nothing, and never the objects that are there then.

    Nearly all of them stay. To examine them again and again while their number grows takes a fifth of a start.
    """
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if before:
            gc.enable()


def tune_gc() -> None:
    """Once the service has started: never examine the existing objects again, and the later ones less often."""
    gc.freeze()
    set_thresholds()


async def collect_while_quick() -> None:
    """For ever: examine all objects each minute while they are few. What libraries and failed calls leave in circles
    would otherwise stay until the collector comes by itself, after half an hour of ordinary load."""
    while True:
        await asyncio.sleep(_EVERY)
        if len(gc.get_objects(generation=2)) < _FEW:
            gc.collect()
