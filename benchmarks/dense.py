"""How late the serving process's event loop runs while a venue answers with 1 MiB of dense JSON, under a steady load.
Guards how answers are read: parsing one takes many milliseconds.

The venue is Tradier, with its plugin where it runs by default.
"""

from __future__ import annotations

import asyncio

from benchmarks.bounds import bound
from benchmarks.dense_venue import EXCHANGE
from benchmarks.lines import Line
from benchmarks.loop_watch import Disturbed, stall_lines, tell, watch
from benchmarks.programs import program
from exchange_service.client import ExchangeServiceClient

# Seconds, and between two balances of one user: Tradier allows 30 balances a minute with one key.
_SECONDS, _PAUSE = 10.0, 0.4


async def dense(engine: str) -> list[Line]:
    """The goals, while a few users read such a balance again and again."""
    read = 0
    async with program("benchmarks.dense_venue") as venue:
        url, rows = venue.greeting
        users = {f"dense-{number}": row for number, row in enumerate(rows)}

        async def disturb(address: str) -> None:
            nonlocal read
            async with ExchangeServiceClient(address) as client:
                read = sum(await asyncio.gather(*(_read(client, user) for user in users)))

        disturbed = Disturbed([(user, EXCHANGE, row) for user, row in users.items()], {EXCHANGE: url})
        run = await watch(disturbed, disturb, engine=engine)
        padded = int(await venue.ended())
    if not padded:
        raise RuntimeError("the venue has sent no long answer")
    tell(f"dense: {read} balances, {padded} answers of 1 MiB", run)
    return [
        *stall_lines("dense", "loop stall, a venue answers 1 MiB of dense JSON", run),
        bound("dense/answers", "  such answers that were read", "", padded),
    ]


async def _read(client: ExchangeServiceClient, user: str) -> int:
    """Read the balance for so many seconds; an error is raised. Returns how often."""
    loop = asyncio.get_running_loop()
    ends, read = loop.time() + _SECONDS, 0
    while loop.time() < ends:
        await client.get_balance(user, EXCHANGE, max_age=0)
        read += 1
        await asyncio.sleep(_PAUSE)
    return read
