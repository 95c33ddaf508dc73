"""Tries to end its process by a task that no code awaits."""

import asyncio

from evil_common import WELL, EvilPlugin

from exchange_service.plugin_api import Balance, VenueCall

TASKS: list[asyncio.Task[None]] = []


async def _exit() -> None:
    raise SystemExit(5)


async def revolts(call: VenueCall) -> Balance:
    TASKS.append(asyncio.create_task(_exit()))
    return WELL


plugin = EvilPlugin("evil-revolts", revolts)
