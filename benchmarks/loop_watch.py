"""How late the serving process's event loop runs while something disturbs it, under a steady load.

The ceiling is the same meter in a process that does nothing, at the same time: what the machine's own scheduling costs.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bounds import bound
from benchmarks.lines import Line
from benchmarks.programs import program, serving, simulator, store
from benchmarks.steady import EXCHANGE, user

_USERS, STREAMS = 200, 1000
# Seconds of quiet before, and the goals in milliseconds.
_QUIET = 5.0
_GOALS = (("p99.9", 0.999, 10.0), ("worst", 1.0, 50.0))
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
class Watched:
    """One measurement: the serving process quiet and disturbed, and the idle process meanwhile. `steady` is what the
    steady load saw; `memory` are the bytes of the largest process below the service's, or of that one itself."""

    quiet: Ticks
    disturbed: Ticks
    idle: Ticks
    seconds: float
    steady: dict[str, Any]
    memory: int

    @property
    def failed(self) -> int:
        """Calls and streams of the steady load that failed."""
        return int(sum(self.steady["failed"].values()) + STREAMS - self.steady["open"])


@dataclass(frozen=True, slots=True)
class Disturbed:
    """What is read while the loop is watched: credentials to store, and the addresses of their venues."""

    credentials: Iterable[tuple[str, str, Mapping[str, Any]]]
    venues: Mapping[str, str]


async def watch(disturbed: Disturbed, disturb: Callable[[str], Awaitable[None]], **settings: str) -> Watched:
    """Watch the loop of a service with these settings while `disturb`, which is given the service's address, runs."""
    async with simulator(EXCHANGE) as (url, token), AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="exchange-service-benchmark-")))
        steady_accounts = [(user(number), EXCHANGE, token) for number in range(_USERS)]
        await store(folder, [*disturbed.credentials, *steady_accounts])
        settings |= {"venue_urls": json.dumps({EXCHANGE: url, **disturbed.venues})}
        async with AsyncExitStack() as running:
            await running.enter_async_context(_metered(folder, "idle"))
            served = await running.enter_async_context(_metered(folder, "serve", **settings))
            load = await running.enter_async_context(
                program("benchmarks.steady", served.address, str(_USERS), str(STREAMS))
            )
            await asyncio.sleep(1)
            times = [time.monotonic()]
            await asyncio.sleep(_QUIET)
            times.append(time.monotonic())
            await disturb(served.address)
            times.append(time.monotonic())
            memory = _memory_below(served.pid)
            steady = await load.ended()
        found = {what: json.loads((folder / what).read_text()) for what in ("serve", "idle")}
    if found["serve"]["stacks"]:
        sys.stderr.write(json.dumps(found["serve"]["stacks"], indent=1) + "\n")
    begin, middle, end = times
    return Watched(
        quiet=_ticks(found["serve"], begin, middle),
        disturbed=_ticks(found["serve"], middle, end),
        idle=_ticks(found["idle"], middle, end),
        seconds=end - middle,
        steady=steady,
        memory=memory,
    )


def _metered(folder: Path, what: str, **settings: Any) -> Any:
    return serving(folder, "-m", "benchmarks.metered", str(folder / what), what, **settings)


def _memory_below(pid: int) -> int:
    below = psutil.Process(pid).children(recursive=True)
    own = psutil.Process(pid)
    return int(max((process.memory_info().rss for process in below), default=own.memory_info().rss))


def stall_lines(name: str, what: str, run: Watched, *, goals: bool = True) -> list[Line]:
    """How late the loop was, and how much of it was its own doing; and what failed in the steady load."""
    lines = []
    for label, share, goal in _GOALS:
        late, idle, own = (_at(values, share) for values in (run.disturbed.late, run.idle.late, run.disturbed.own))
        at_most = goal if goals else None
        lines += [
            bound(f"{name}/{label}", f"{what}, {label}", "ms", late, idle, at_most=at_most),
            bound(f"{name}/own_{label}", f"  of it its own doing, {label}", "ms", own),
        ]
    failed = bound(f"{name}/failed", "  calls and streams beside it that failed", "", run.failed, at_most=0)
    return [*lines, failed]


def tell(name: str, run: Watched) -> None:
    """Print figures that the table has no room for."""
    say = sys.stderr.write
    say(f"{name}: disturbed for {run.seconds:.1f} s, the largest other process has {run.memory >> 20} MiB\n")
    for what, ticks in (("quiet", run.quiet), ("disturbed", run.disturbed), ("idle control", run.idle)):
        figures = (
            ", ".join([*(f"p{share * 100:g} {_at(values, share):.1f}" for share in _SHARES), f"worst {values[-1]:.1f}"])
            for values in (ticks.late, ticks.own)
        )
        say(f"  {what:12} {' ms; its own doing '.join(figures)} ms; {len(ticks.late)} ticks, ")
        say(f"{len(ticks.collections)} collections, the worst {max(ticks.collections, default=0):.1f} ms\n")
    say(f"  steady load: {json.dumps(run.steady)}\n")


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
