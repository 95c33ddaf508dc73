"""Ends the process in the middle of a call."""

import os

from evil_common import EvilPlugin

from exchange_service.plugin_api import VenueCall


async def quits(call: VenueCall) -> None:
    os._exit(7)


plugin = EvilPlugin("evil-quits", quits)
