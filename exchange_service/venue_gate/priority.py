"""How urgent a fetch is: one that somebody waits for goes before one that a feed polls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Priority:
    """`polling` until somebody begins to wait for the fetch, and never again afterwards."""

    __slots__ = ("_on_promoted", "polling")

    def __init__(self, *, polling: bool = False) -> None:
        self.polling = polling
        self._on_promoted: list[Callable[[], None]] = []

    def promote(self) -> None:
        """A caller has joined the fetch."""
        if self.polling:
            self.polling = False
            for tell in self._on_promoted:
                tell()
            self._on_promoted.clear()

    def on_promoted(self, tell: Callable[[], None]) -> None:
        """Call `tell` when somebody begins to wait; never, where somebody does already."""
        if self.polling:
            self._on_promoted.append(tell)

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until somebody begins to wait for the fetch."""
        raised = asyncio.get_running_loop().create_future()

        def tell() -> None:
            if not raised.done():
                raised.set_result(None)

        self.on_promoted(tell)
        try:
            await asyncio.wait({raised}, timeout=seconds)
        finally:
            raised.cancel()
            if tell in self._on_promoted:
                self._on_promoted.remove(tell)
