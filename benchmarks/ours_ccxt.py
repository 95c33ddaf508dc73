"""Our side of `ccxt_account`: the plugin as the service calls it. In and out as in `ceilings/bare_ccxt.py`."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import exchange_service_ccxt_generic as plugin
from exchange_service_ccxt_generic.exact import Guarded

from exchange_service.plugin_api import State
from exchange_service.testing import venue_call


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def main(url: str, key: str, secret: str, accounts: int, calls: int) -> None:
    (binance,) = (entry for entry in plugin.exchange_manifest().exchanges if entry.id == "binance")
    shared = State()
    async with AsyncExitStack() as stack:

        async def account() -> object:
            return await stack.enter_async_context(
                venue_call(binance, override=url, api_key=key, api_secret=secret, timeout=300.0, plugin_state=shared)
            )

        first = await account()
        await plugin.fetch_balance(first)
        # The pauses that the venue wants are not measured; the ceiling leaves them out too.
        Guarded.throttle = _at_once
        began = time.process_time()
        for _ in range(calls):
            await plugin.fetch_balance(first)
        each = (time.process_time() - began) / calls
        before = memory()
        for _ in range(accounts):
            await plugin.fetch_balance(await account())
        sys.stdout.write(json.dumps({"seconds": each, "bytes": (memory() - before) / accounts}) + "\n")
    await shared.close()


async def _at_once(self: object, cost: object = None) -> None:
    """CCXT's pause before a request."""


asyncio.run(main(*sys.argv[1:4], *map(int, sys.argv[4:])))
