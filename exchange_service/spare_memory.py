"""Gives memory that is free within the process back to the system, after a crowd has left or an attack has ended."""

from __future__ import annotations

import asyncio
import ctypes
from contextlib import suppress
from pathlib import Path

_STATM = Path("/proc/self/statm")
# Seconds between two looks, and the growth in pages of 4 KiB after which something is given back.
_EVERY = 5.0
_GROWTH = 8192


async def give_back_spare_memory() -> None:
    """Look now and then, for ever. Ends at once where the system does not say how much memory the process has.

    glibc keeps what is freed in the middle of its heaps: a hundred thousand requests that were reset leave up to
    200 MiB behind.
    """
    least = _resident()
    while least is not None:
        await asyncio.sleep(_EVERY)
        now = _resident()
        if now is not None and now > least + _GROWTH:
            # In a thread: it may take a while.
            await asyncio.to_thread(_trim)
            least = _resident()
        elif now is not None:
            least = min(least, now)


def _resident() -> int | None:
    """How many pages the process has in memory."""
    try:
        return int(_STATM.read_bytes().split()[1])
    except (OSError, ValueError, IndexError):
        return None


def _trim() -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
