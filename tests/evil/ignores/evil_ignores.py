"""Ignores its cancellation."""

import asyncio
import contextlib

from evil_common import EvilPlugin

from exchange_service.plugin_api import VenueCall


async def ignores(call: VenueCall) -> None:
    while True:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


plugin = EvilPlugin("evil-ignores", ignores)
