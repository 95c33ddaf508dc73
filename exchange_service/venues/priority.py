"""How urgent a fetch is: one that a caller waits for goes before one that a feed polls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Priority:
    """`polling` until a caller waits for the fetch, and never again afterwards."""

    __slots__ = ("_on_promoted", "polling")

    def __init__(self, *, polling: bool = False) -> None:
        self.polling = polling
        self._on_promoted: list[Callable[[], None]] = []

    def promote(self) -> None:
        """A caller has joined the fetch."""
        if self.polling:
            self.polling = False
            for notify in self._on_promoted:
                notify()
            self._on_promoted.clear()

    def on_promoted(self, notify: Callable[[], None]) -> None:
        """Call `notify` when a caller joins; never if one has joined already."""
        if self.polling:
            self._on_promoted.append(notify)

    async def pause(self, seconds: float) -> None:
        """Wait for `seconds`, or until a caller joins."""
        promoted = asyncio.get_running_loop().create_future()

        def notify() -> None:
            if not promoted.done():
                promoted.set_result(None)

        self.on_promoted(notify)
        try:
            await asyncio.wait({promoted}, timeout=seconds)
        finally:
            promoted.cancel()
            if notify in self._on_promoted:
                self._on_promoted.remove(notify)
