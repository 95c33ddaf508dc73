"""The ceiling for a CCXT balance: one instance with its markets loaded, and nothing of ours.

    python bare_ccxt.py URL KEY SECRET ACCOUNTS CALLS

prints the seconds of processor for a call, and the bytes of memory for one more account.
"""

import asyncio
import json
import resource
import sys
import time
from pathlib import Path

import aiohttp
import ccxt.async_support as ccxt


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def main(url: str, key: str, secret: str, accounts: int, calls: int) -> None:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:

        def instance(**credentials):
            made = ccxt.binance({"session": session, "enableRateLimit": False, **credentials})
            made.urls["api"] = {
                name: url + "/" + old.split("/", 3)[3] if old.count("/") > 2 else url
                for name, old in made.urls["api"].items()
            }
            return made

        markets = instance()
        await markets.load_markets()

        def account():
            made = instance(apiKey=key, secret=secret)
            made.set_markets_from_exchange(markets)
            return made

        first = account()
        await first.fetch_balance()
        began = time.process_time()
        for _ in range(calls):
            await first.fetch_balance()
        each = (time.process_time() - began) / calls
        before, kept = memory(), []
        for _ in range(accounts):
            kept.append(account())
            await kept[-1].fetch_balance()
        print(json.dumps({"seconds": each, "bytes": (memory() - before) / accounts}))
        for made in (markets, first, *kept):
            made.session = None


asyncio.run(main(*sys.argv[1:4], *map(int, sys.argv[4:])))
