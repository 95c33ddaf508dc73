"""How late the serving process's event loop runs while a venue answers with 1 MiB of dense JSON, under a steady load.
Guards how answers are read: parsing one takes many milliseconds.

The venue is Tradier, with its plugin where it runs by default.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from benchmarks.bounds import bound
from benchmarks.dense_venue import EXCHANGE
from benchmarks.lines import Line
from benchmarks.loop_watch import Disturbed, stall_lines, tell, watch
from benchmarks.programs import program
from exchange_service.client import ExchangeServiceClient

_UNPACED = str(Path(__file__).parent / "unpaced")
# Seconds, and between two balances of one user.
_SECONDS, _PAUSE = 10.0, 0.1
_USERS = ("dense-1", "dense-2")


async def dense(engine: str) -> list[Line]:
    """The goals, while two users read such a balance again and again."""
    read = 0
    async with program("benchmarks.dense_venue") as venue:
        url, row = venue.greeting

        async def disturb(address: str) -> None:
            nonlocal read
            async with ExchangeServiceClient(address) as client:
                read = sum(await asyncio.gather(*(_read(client, user) for user in _USERS)))

        # The venue's limit would let only a few be read.
        path = {"PYTHONPATH": os.pathsep.join(filter(None, (_UNPACED, os.environ.get("PYTHONPATH"))))}
        disturbed = Disturbed([(user, EXCHANGE, row) for user in _USERS], {EXCHANGE: url})
        run = await watch(disturbed, disturb, path, engine=engine)
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
