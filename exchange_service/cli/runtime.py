"""The event loop of a serving process. Only the commands that serve choose one; the library does not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Literal

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


class LoopMissing(Exception):
    """The requested event loop is not installed; the text is a sentence for the operator."""


def loop_factory(wanted: Literal["auto", "asyncio", "uvloop"]) -> LoopFactory | None:
    """The factory of the event loop; None for Python's own. LoopMissing if uvloop is requested and not installed.

    uvloop is not a dependency, because some platforms lack it. CCXT installs it.
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


def end_at_sigterm() -> None:
    """Let SIGTERM end the process at once, until the service heeds it, and again once it stops.

    That is the default, which the kernel does not apply to the first process of a container.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))
