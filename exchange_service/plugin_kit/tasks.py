"""Awaiting a plugin's own code inside a task."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def without_exit(work: Callable[[], Awaitable[T]], what: str) -> T:
    """The result of awaiting `work()`. Raises RuntimeError in place of SystemExit; its text says `what` called exit.

    `work` need not be a coroutine function, so the call itself may call exit too. A SystemExit that leaves a task ends
    the event loop, and with it the service.
    """
    try:
        return await work()
    except SystemExit:
        raise RuntimeError(f"{what} called exit") from None
