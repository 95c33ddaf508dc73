"""Awaiting a plugin's own code inside a task."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def without_exit(work: Awaitable[T], what: str) -> T:
    """The result of `work`. Raises RuntimeError in place of SystemExit, naming `what` was running.

    A SystemExit that leaves a task ends the event loop, and with it the service.
    """
    try:
        return await work
    except SystemExit:
        raise RuntimeError(f"{what} called exit") from None
