"""The road not taken: CCXT as most wrappers use it, with a new instance for each request.

    python ccxt_per_request.py URL KEY SECRET CALLS

prints the seconds that a balance takes, and the seconds of processor.
"""

import asyncio
import json
import sys
import time
from statistics import median

import ccxt.async_support as ccxt


async def balance(url, key, secret):
    # What the simulator does not play is left out; a real instance asks for it too.
    exchange = ccxt.binance({"apiKey": key, "secret": secret, "options": {"fetchMargins": False}})
    exchange.has["fetchCurrencies"] = False
    exchange.urls["api"] = {
        name: url + "/" + old.split("/", 3)[3] if old.count("/") > 2 else url
        for name, old in exchange.urls["api"].items()
    }
    try:
        return await exchange.fetch_balance()
    finally:
        await exchange.close()


async def main(url, key, secret, calls):
    await balance(url, key, secret)
    taken, began = [], time.process_time()
    for _ in range(calls):
        start = time.perf_counter()
        await balance(url, key, secret)
        taken.append(time.perf_counter() - start)
    print(json.dumps({"seconds": median(taken), "processor": (time.process_time() - began) / calls}))


asyncio.run(main(*sys.argv[1:4], int(sys.argv[4])))
