"""What a serving process runs on: its event loop, and how Python's garbage collector behaves in it.

For the commands that serve, and never for who imports the library.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Literal

LoopFactory = Callable[[], asyncio.AbstractEventLoop]

# How many more objects are made than freed before the youngest are looked at, how often that is until those that
# survived are, and how often that is until all are. With Python's own numbers (700, 10, 10) ten thousand streams wait
# for up to a sixth of a second while everything is looked at; a first number of 50,000 doubles the slowest calls.
_THRESHOLDS = (700, 10, 1000)


class LoopMissing(Exception):
    """The event loop that was asked for is not there; the text is a sentence for the operator."""


def loop_factory(wanted: Literal["auto", "asyncio", "uvloop"]) -> LoopFactory | None:
    """What makes the event loop; None for Python's own. LoopMissing where uvloop is wanted and is not installed.

    No dependency: there are platforms without it. Where CCXT is installed it is there.
    """
    if wanted == "asyncio":
        return None
    try:
        import uvloop
    except ImportError:
        if wanted == "auto":
            return None
        raise LoopMissing("uvloop is not installed: install it, or set event_loop to auto.") from None
    return uvloop.new_event_loop


def settle() -> None:
    """Tell the garbage collector, once the service has started, that what there is now stays."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
