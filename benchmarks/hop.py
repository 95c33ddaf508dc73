"""What a plugin's own process adds to a balance: time, processor in both processes, bytes between them. And the whole
path to CCXT, the hop included, compared with CCXT alone. Guards how `plugin_host` passes a call on.

The serving process's share of a fetch is the difference between a balance that is fetched and a cached one.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.bounds import bound
from benchmarks.lines import Line, compared
from benchmarks.names import environment
from benchmarks.programs import Serving, serving, simulator, store
from exchange_service.client import ExchangeServiceClient
from exchange_service.credentials import CredentialReference
from exchange_service.model import Account
from exchange_service.plugin_host.protocol import write_call
from exchange_service.plugin_host.v1 import plugin_host_pb2 as messages
from exchange_service.v1.balance_pb2 import BALANCE_SOURCE_CACHE, BALANCE_SOURCE_VENUE

_PAIRS, _CALLS = 5, 200
# CCXT may make an account wait between its requests, so many accounts are read one after the other.
_ACCOUNTS, _AT_ONCE = 100, 20
_UNPACED = str(Path(__file__).parent / "unpaced")
_OANDA, _BINANCE = "oanda", "binance"
_WARMING = 100
_RATIO = 1.5
# Seconds that a balance may be old: an older one is fetched, as a poll does; for a forced one the credential is looked
# up in the database besides; and any of this benchmark's is young enough to come from memory.
_FETCHED, _FORCED, _CACHED = 0.001, 0.0, 3600.0
# Seconds without requests, after which no throttle makes an account wait.
_RESTED = 0.5
# Seconds that the first balance may take, which imports CCXT and loads the markets.
_PATIENCE = 60.0
_PATIENT = {"venue_timeout": "60", "call_timeout": "60"}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a call cost: milliseconds until it was answered, and of processor in the service and in its plugins."""

    p50: float
    service: float
    plugin: float


async def hop(engine: str) -> list[Line]:
    """The hop of a small plugin, which is the same in both processes, and the path to CCXT."""
    with tempfile.TemporaryDirectory(prefix="exchange-service-benchmark-") as name:
        folder = Path(name)
        async with AsyncExitStack() as stack:
            (oanda, token), (binance, row) = [
                await stack.enter_async_context(simulator(exchange)) for exchange in (_OANDA, _BINANCE)
            ]
            accounts = ((_OANDA, token), (_BINANCE, row))
            await store(folder, [(_user(n), *account) for n in range(_ACCOUNTS) for account in accounts])
            settings: dict[str, Any] = {
                "venue_urls": json.dumps({_OANDA: oanda, _BINANCE: binance}),
                "plugin_start": "at-once",
                "engine": engine,
            }

            def served(place: str) -> AbstractAsyncContextManager[Serving]:
                variables = {"PYTHONPATH": os.pathsep.join((_UNPACED, *_path()))}
                return serving(folder, plugin_processes=json.dumps({_OANDA: place}), variables=variables, **settings)

            async with served("own-process") as apart, served("in-process") as inside:
                lines = [*await _hop(apart, inside), *await _road_to_ccxt(inside, binance, row)]
            # This one keeps to all limits.
            async with serving(folder, **settings | _PATIENT) as paced:
                return [*lines, await _second_read(paced)]


def _path() -> list[str]:
    return [entry for entry in (os.environ.get("PYTHONPATH"),) if entry]


def _user(number: int) -> str:
    return f"user-{number:03}"


async def _hop(apart: Serving, inside: Serving) -> list[Line]:
    pairs = []
    async with ExchangeServiceClient(apart.address) as there, ExchangeServiceClient(inside.address) as here:
        for client in (there, here):
            await _calls(client, _OANDA, _WARMING)
        reply = await there.get_balance(_user(0), _OANDA, max_age=_FETCHED)
        for _ in range(_PAIRS):
            pairs.append(((await _cost(apart, there, _OANDA)), await _cost(inside, here, _OANDA)))
    ours, ceiling = (
        Cost(*(median(getattr(cost, field) for cost in side) for field in Cost.__slots__))
        for side in zip(*pairs, strict=True)
    )
    reference = CredentialReference(account := Account(_user(0), _OANDA), account, "0123456789abcdef")
    request = messages.FetchBalanceRequest(call=write_call(reference, "", 7.9)).ByteSize()
    # The plugin's process sends the balance without the fields that the service adds.
    answer = messages.FetchBalanceResponse(balance=reply.balance.SerializeToString()).ByteSize()
    return [
        bound("hop/p50", "OANDA balance fetched by its own process, p50 at c=1", "ms", ours.p50, ceiling.p50),
        bound("hop/service", "  processor in the service", "ms", ours.service, ceiling.service),
        bound("hop/plugin", "  processor in the plugin's process", "ms", ours.plugin),
        bound("hop/both", "  processor of both", "ms", ours.service + ours.plugin, ceiling.service),
        bound("hop/request", "  request to the process", "B", request),
        bound("hop/answer", "  its answer", "B", answer),
    ]


async def _road_to_ccxt(served: Serving, url: str, row: Any) -> list[Line]:
    """Fetched balances and forced ones, against CCXT alone, which are measured in turn."""
    what = "CCXT balance with the hop, processor of the fetch"
    fetches, forces, details = [], [], []
    async with ExchangeServiceClient(served.address, timeout=_PATIENCE) as client:
        # The first loads the markets, each further one its account.
        await client.get_balance(_user(0), _BINANCE)
        await _calls(client, _BINANCE, _ACCOUNTS, at_once=_AT_ONCE)
        for _ in range(_PAIRS):
            fetched, cached, forced = [
                await _cost(served, client, _BINANCE, max_age=max_age, at_once=_AT_ONCE)
                for max_age in (_FETCHED, _CACHED, _FORCED)
            ]
            bare = await _bare(url, row)
            fetches.append((fetched.service - cached.service + fetched.plugin, bare))
            forces.append((forced.service - cached.service + forced.plugin, bare))
            details.append((fetched.p50, fetched.service, cached.service, fetched.plugin, bare))
    p50, service, cached_service, plugin, bare = (median(side) for side in zip(*details, strict=True))
    sys.stderr.write(f"{what}: p50 {p50:.1f} ms with {_AT_ONCE} at once; service {service:.2f} ms, of it ")
    sys.stderr.write(f"{cached_service:.2f} for any call; plugin's process {plugin:.2f} ms; bare {bare:.2f} ms\n")
    return [
        compared("hop/ccxt", what, "ms", fetches, at_most=_RATIO),
        compared("hop/forced", "  of a forced one, whose credential is looked up", "ms", forces),
    ]


async def _second_read(served: Serving) -> Line:
    """How long a forced balance takes right after another one of the same account. The venue's limit has room for
    it, so a throttle beside that limit shows here: CCXT's own pause, or one of ours."""
    pairs = []
    async with ExchangeServiceClient(served.address, timeout=_PATIENCE) as client:
        await client.get_balance(_user(0), _BINANCE)
        for _ in range(_PAIRS):
            await asyncio.sleep(_RESTED)
            first = await _calls(client, _BINANCE, 1, max_age=_FORCED)
            pairs.append((await _calls(client, _BINANCE, 1, max_age=_FORCED), first))
    return compared("hop/throttle", "a second forced CCXT balance at once, against the first", "ms", pairs, at_most=1.5)


async def _bare(url: str, row: Any) -> float:
    """Milliseconds of processor for a balance by CCXT alone."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).parent / "ceilings" / "bare_ccxt.py")),
        *(url, row["api_key"], row["api_secret"], "1", str(_CALLS)),
        env=environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError("bare_ccxt.py failed")
    return float(json.loads(out)["seconds"]) * 1e3


async def _cost(
    served: Serving, client: ExchangeServiceClient, exchange: str, *, max_age: float = _FETCHED, at_once: int = 1
) -> Cost:
    before = _processor(served.pid)
    p50 = await _calls(client, exchange, _CALLS, max_age=max_age, at_once=at_once)
    after = _processor(served.pid)
    service, plugin = ((late - early) / _CALLS * 1e3 for early, late in zip(before, after, strict=True))
    return Cost(p50, service, plugin)


def _processor(pid: int) -> tuple[float, float]:
    """Seconds of processor that the service and its plugins' processes have used."""
    service = psutil.Process(pid)
    times = [process.cpu_times() for process in (service, *service.children(recursive=True))]
    own, *others = [each.user + each.system for each in times]
    return own, sum(others)


async def _calls(
    client: ExchangeServiceClient, exchange: str, count: int, *, max_age: float = _FETCHED, at_once: int = 1
) -> float:
    """Make `count` calls over all accounts, `at_once` at a time. Returns their median in milliseconds."""
    taken: list[float] = []
    # A last good balance would be given in place of a failure, and a fetched one in place of one that was forgotten.
    source = BALANCE_SOURCE_VENUE if max_age < _CACHED else BALANCE_SOURCE_CACHE
    numbers = iter(range(count))

    async def caller() -> None:
        for number in numbers:
            began = time.perf_counter()
            reply = await client.get_balance(_user(number % _ACCOUNTS), exchange, max_age=max_age)
            taken.append((time.perf_counter() - began) * 1e3)
            if reply.freshness.source != source:
                raise RuntimeError(f"the balance came from {reply.freshness}, not from {source}")

    await asyncio.gather(*(caller() for _ in range(at_once)))
    return median(taken)
