"""How late the serving process's event loop runs while twenty CCXT exchanges load large markets for the first time,
under a steady load. Guards the plugin host: CCXT's import and parsing must not delay other calls.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence

from benchmarks.bounds import bound
from benchmarks.lines import Line
from benchmarks.loop_watch import Disturbed, stall_lines, tell, watch
from benchmarks.programs import program
from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import ServiceError

_EXCHANGES = 20
# Seconds: for all exchanges to answer, and between two attempts of one.
_LIMIT, _AGAIN = 60.0, 0.5
_COLD = "cold"
_WHAT = f"loop stall, {_EXCHANGES} CCXT exchanges loading"


async def loop_stall(engine: str) -> list[Line]:
    """The goals, with CCXT in its own process."""
    return await _loading("loop_stall", _WHAT, goals=True, engine=engine)


async def loop_stall_in_process(engine: str) -> list[Line]:
    """The same with CCXT in the service's process, which has no goals."""
    places = '{"ccxt_generic": "in-process"}'
    what = f"{_WHAT} in its process"
    return await _loading("loop_stall_in_process", what, goals=False, engine=engine, plugin_processes=places)


async def _loading(name: str, what: str, *, goals: bool, **settings: str) -> list[Line]:
    answered, trouble = 0, list[str]()
    async with program("benchmarks.big_markets") as venue:
        rows = venue.greeting

        async def load(address: str) -> None:
            nonlocal answered
            answered = await _load_all(address, [exchange for exchange, *_ in rows], trouble)

        credentials = [(_COLD, exchange, row) for exchange, _, row in rows]
        venues = {exchange: url for exchange, url, _ in rows}
        run = await watch(Disturbed(credentials, venues), load, **settings)
    tell(f"{name}: {answered} of {_EXCHANGES} answered", run)
    sys.stderr.write(f"  cold calls that failed: {len(trouble)}; the last: {', '.join(trouble[-3:])}\n")
    if answered < _EXCHANGES:
        raise RuntimeError(f"only {answered} of {_EXCHANGES} exchanges answered, so the loop was disturbed too little")
    return [
        *stall_lines(name, what, run, goals=goals),
        bound(f"{name}/answered", "  exchanges that answered", "", answered, _EXCHANGES),
    ]


async def _load_all(address: str, exchanges: Sequence[str], trouble: list[str]) -> int:
    """Read each account until it answers. Returns how many did; errors are added to `trouble`."""
    began = time.monotonic()

    async def read(client: ExchangeServiceClient, exchange: str) -> bool:
        while time.monotonic() - began < _LIMIT:
            try:
                await client.get_balance(_COLD, exchange)
            except ServiceError as error:
                trouble.append(f"{exchange} {error.reason} after {time.monotonic() - began:.1f} s")
                await asyncio.sleep(max(_AGAIN, error.retry_after or 0.0))
            else:
                return True
        return False

    async with ExchangeServiceClient(address) as client:
        return sum(await asyncio.gather(*(read(client, exchange) for exchange in exchanges)))
