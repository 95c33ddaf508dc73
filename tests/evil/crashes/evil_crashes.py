"""Reads an address that is not mapped."""

import ctypes

from evil_common import EvilPlugin

from exchange_service.plugin_api import VenueCall


async def crashes(call: VenueCall) -> None:
    ctypes.string_at(0)


plugin = EvilPlugin("evil-crashes", crashes)
