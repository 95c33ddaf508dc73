"""How late the serving process's event loop runs while twenty CCXT exchanges load large markets for the first time,
under a steady load. Guards the plugin host: CCXT's import and parsing must not delay other calls.

The ceiling is the same meter in a process that does nothing, at the same time: what the machine's own scheduling costs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bounds import bound
from benchmarks.lines import Line
from benchmarks.programs import program, serving, simulator, store
from benchmarks.steady import EXCHANGE, user
from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import ServiceError

_USERS, _STREAMS = 200, 1000
# Seconds: of quiet before, for all exchanges to answer, and between two attempts of one.
_QUIET, _LIMIT, _AGAIN = 5.0, 60.0, 0.5
_COLD = "cold"
_P999, _WORST = 10.0, 50.0
_SHARES = (0.5, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class Ticks:
    """A meter's figures for a period, in milliseconds: how late the ticks were, and how late they would have been if
    the loop had never waited for a processor, both sorted; and the pauses of the garbage collector."""

    late: Sequence[float]
    own: Sequence[float]
    collections: Sequence[float]


def _at(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    return values[min(len(values) - 1, int(len(values) * share))]


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement: the serving process quiet and loading, and the idle process meanwhile."""

    quiet: Ticks
    loading: Ticks
    idle: Ticks
    seconds: float
    answered: int
    trouble: list[str]
    steady: dict[str, Any]
    memory: int


async def loop_stall() -> list[Line]:
    """The goals, with the plugin in its own process; and the figures with it in the service's."""
    async with program("benchmarks.big_markets") as venue, simulator(EXCHANGE) as broker:
        apart = await _run(venue.greeting, broker)
        inside = await _run(venue.greeting, broker, plugin_processes='{"ccxt_generic": "in-process"}')
    for name, run in (("own process", apart), ("in-process", inside)):
        _tell(name, run)
    failed = sum(apart.steady["failed"].values()) + _STREAMS - apart.steady["open"]
    what = "loop stall, 20 CCXT exchanges loading"
    found = []
    for name, share, goal in (("p99.9", 0.999, _P999), ("worst", 1.0, _WORST)):
        ceiling = _at(apart.idle.late, share)
        found += [
            bound(f"loop_stall/{name}", f"{what}, {name}", "ms", _at(apart.loading.late, share), ceiling, at_most=goal),
            bound(f"loop_stall/own_{name}", f"  of it its own doing, {name}", "ms", _at(apart.loading.own, share)),
            bound(
                f"loop_stall/in_process_{name}",
                f"  with CCXT in-process, {name}",
                "ms",
                _at(inside.loading.late, share),
                _at(inside.idle.late, share),
            ),
        ]
    return [
        *found,
        bound("loop_stall/answered", f"{what}: that answered", "exchanges", apart.answered, 20),
        bound("loop_stall/failed", "  calls and streams beside it that failed", "", failed, at_most=0),
    ]


def _tell(name: str, run: Run) -> None:
    """Print figures that the table has no room for."""
    say = sys.stderr.write
    say(
        f"{name}: {run.answered} of 20 answered, loading took {run.seconds:.1f} s, CCXT's side {run.memory >> 20} MiB\n"
    )
    for what, ticks in (("quiet", run.quiet), ("loading", run.loading), ("idle control", run.idle)):
        figures = (
            ", ".join([*(f"p{share * 100:g} {_at(values, share):.1f}" for share in _SHARES), f"worst {values[-1]:.1f}"])
            for values in (ticks.late, ticks.own)
        )
        say(f"  {what:12} {' ms; its own doing '.join(figures)} ms; {len(ticks.late)} ticks, ")
        say(f"{len(ticks.collections)} collections, the worst {max(ticks.collections, default=0):.1f} ms\n")
    say(f"  steady load: {json.dumps(run.steady)}\n")
    say(f"  cold calls that failed: {len(run.trouble)}; the last: {', '.join(run.trouble[-3:])}\n")


async def _run(rows: list[Any], broker: tuple[str, Any], **settings: str) -> Run:
    url, token = broker
    with tempfile.TemporaryDirectory(prefix="exchange-service-benchmark-") as name:
        folder = Path(name)
        await store(
            folder,
            [
                *((_COLD, exchange, row) for exchange, _, row in rows),
                *((user(number), EXCHANGE, token) for number in range(_USERS)),
            ],
        )
        venues = {EXCHANGE: url, **{exchange: address for exchange, address, _ in rows}}
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(_metered(folder, "idle"))
            served = await stack.enter_async_context(
                _metered(folder, "serve", venue_urls=json.dumps(venues), **settings)
            )
            load = await stack.enter_async_context(
                program("benchmarks.steady", served.address, str(_USERS), str(_STREAMS))
            )
            await asyncio.sleep(1)
            times = [time.monotonic()]
            await asyncio.sleep(_QUIET)
            times.append(time.monotonic())
            trouble: list[str] = []
            answered = await _load_all(served.address, [exchange for exchange, *_ in rows], trouble)
            times.append(time.monotonic())
            memory = _memory_below(served.pid)
            steady = await load.ended()
        found = {what: json.loads((folder / what).read_text()) for what in ("serve", "idle")}
    if found["serve"]["stacks"]:
        sys.stderr.write(json.dumps(found["serve"]["stacks"], indent=1) + "\n")
    begin, cold, end = times
    return Run(
        quiet=_ticks(found["serve"], begin, cold),
        loading=_ticks(found["serve"], cold, end),
        idle=_ticks(found["idle"], cold, end),
        seconds=end - cold,
        answered=answered,
        trouble=trouble,
        steady=steady,
        memory=memory,
    )


def _metered(folder: Path, what: str, **settings: Any) -> Any:
    return serving(folder, "-m", "benchmarks.metered", str(folder / what), what, **settings)


def _memory_below(pid: int) -> int:
    below = psutil.Process(pid).children(recursive=True)
    own = psutil.Process(pid)
    return int(max((process.memory_info().rss for process in below), default=own.memory_info().rss))


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


def _ticks(found: Mapping[str, list[float]], begin: float, end: float) -> Ticks:
    flat = found["ticks"]
    every = list(zip(*(flat[field::5] for field in range(5)), strict=True))
    late: list[float] = []
    own: list[float] = []
    last = 0
    for due, lateness, _, waited, _ in every:
        # The last tick before this one was due: what happened since then made it late.
        while last + 1 < len(every) and every[last + 1][0] + every[last + 1][1] <= due:
            last += 1
        if begin <= due < end:
            late.append(lateness * 1e3)
            own.append(max(0.0, lateness - (waited - every[last][3])) * 1e3)
    flat = found["collections"]
    pauses = [pause * 1e3 for at, pause in zip(flat[::3], flat[1::3], strict=True) if begin <= at < end]
    return Ticks(sorted(late), sorted(own), pauses)
