"""An honest plugin for the service's own process: measures how long the event loop was blocked, at worst."""

from __future__ import annotations

import asyncio
import time
from decimal import Decimal

from evil_common import listing

from exchange_service.plugin_api import AssetBalance, Balance, Manifest, VenueAccount, VenueCall, hookimpl

_EVERY = 0.01


class Watch:
    """Reads the clock a hundred times a second."""

    def __init__(self) -> None:
        self.worst = 0.0
        self._task = asyncio.create_task(self._measure(), name="watch over the event loop")

    async def _measure(self) -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(_EVERY)
            self.worst = max(self.worst, time.monotonic() - began - _EVERY)

    async def close(self) -> None:
        self._task.cancel()


class WatchPlugin:
    @hookimpl
    def exchange_manifest(self) -> Manifest:
        return Manifest(1, (listing("honest-watch"),))

    @hookimpl
    async def fetch_balance(self, call: VenueCall) -> Balance:
        """The longest delay in seconds since this was last asked."""
        watch = await call.plugin_state.get("watch", _begin, close=Watch.close)
        worst, watch.worst = watch.worst, 0.0
        return Balance((VenueAccount(assets=(AssetBalance("DELAY", total=Decimal(f"{worst:.6f}")),)),))


async def _begin() -> Watch:
    return Watch()


plugin = WatchPlugin()
