"""A Binance balance through the service, compared with CCXT with a new instance for each request.

The simulator's list of markets is a few lines long. The real one has megabytes, which a new instance loads each time.
"""

from __future__ import annotations

import time
from statistics import median

from benchmarks.ccxt_account import run_program, venue
from benchmarks.lines import Line
from benchmarks.names import user
from benchmarks.serving import Bed, Serving, bed, serving
from exchange_service.client import ExchangeServiceClient
from exchange_service.credentials.sql import open_store
from exchange_service.model import Account, Credential

_EXCHANGE = "binance"
_CALLS = 20


async def road_not_taken(_: str) -> list[Line]:
    """How long a balance takes and how much processor: cached, forced, and with a new CCXT instance for each call."""
    async with venue() as (url, key, secret), bed() as made:
        await _store(made, key, secret)
        other = await run_program("ccxt_per_request", url, key, secret, str(_CALLS))
        settings = {"venue_urls": f'{{"{_EXCHANGE}": "{url}"}}'}
        async with serving(made, **settings) as service, service.client() as client:
            # Imports CCXT and loads the markets, once for the process.
            await client.get_balance(user(0), _EXCHANGE)
            cached, _ = await _measured(service, client, max_age=None)
            forced, processor = await _measured(service, client, max_age=0)
    what = "Binance balance against a new CCXT instance a call"
    return [
        _line("kept", f"{what}: cached", cached * 1e3, other["seconds"] * 1e3),
        _line("forced", f"{what}: forced", forced * 1e3, other["seconds"] * 1e3),
        _line("processor", f"{what}: processor", processor * 1e3, other["processor"] * 1e3),
    ]


def _line(name: str, what: str, ours: float, other: float) -> Line:
    return Line(f"road_not_taken/{name}", what, ours, other, "ms", "", None)


async def _store(made: Bed, key: str, secret: str) -> None:
    store = await open_store(made.database, made.hash_key.encode())
    try:
        credential = Credential.from_texts({"api_key": key, "api_secret": secret})
        await store.put(Account(user(0), _EXCHANGE), credential)
    finally:
        await store.close()


async def _measured(service: Serving, client: ExchangeServiceClient, *, max_age: float | None) -> tuple[float, float]:
    """The median seconds of calls that are made one after the other, and the serving process's processor for a call."""
    taken, before = [], service.processor()
    for _ in range(_CALLS):
        began = time.perf_counter()
        await client.get_balance(user(0), _EXCHANGE, max_age=max_age)
        taken.append(time.perf_counter() - began)
    return median(taken), (service.processor() - before) / _CALLS
