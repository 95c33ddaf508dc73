"""Blocks its event loop for longer than any deadline."""

import time

from evil_common import EvilPlugin

from exchange_service.plugin_api import VenueCall


async def sleeps(call: VenueCall) -> None:
    time.sleep(3600)  # noqa: ASYNC251


plugin = EvilPlugin("evil-sleeps", sleeps)
