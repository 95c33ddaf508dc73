"""Allocates more memory than it may: in one piece, and in many."""

import asyncio

from evil_common import WELL, EvilPlugin

from exchange_service.plugin_api import Balance, VenueCall

MEBIBYTE = 1024 * 1024
KEPT: list[bytes] = []


async def grabs(call: VenueCall) -> Balance:
    KEPT.append(b"x" * (64 * 1024 * MEBIBYTE))
    return WELL


async def hoards(call: VenueCall) -> Balance:
    while True:
        KEPT.append(b"x" * (8 * MEBIBYTE))
        await asyncio.sleep(0)


plugin = EvilPlugin("evil-hoards", grabs, hoards)
