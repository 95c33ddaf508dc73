"""Leaves tasks and sockets open after each call."""

import asyncio
import socket

from evil_common import WELL, EvilPlugin

from exchange_service.plugin_api import Balance, VenueCall

KEPT: list[object] = []


async def leaks(call: VenueCall) -> Balance:
    for _ in range(100):
        KEPT.append(asyncio.create_task(asyncio.sleep(3600)))
        KEPT.append(socket.socket())
    return WELL


plugin = EvilPlugin("evil-leaks", leaks)
