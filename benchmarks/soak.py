"""`make soak`: looks for leaks, with two replicas under clients that come and go, restarts and a venue's faults.

Each serving process is measured from outside after a warm-up, without clients, and again at the end, when all clients
have gone. Its memory is also looked at under clients: it may not rise. Exits with 1 if it has not returned to where it
began.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import platform
import random
import re
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import linear_regression

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.engines import ENGINES, GRPCIO
from benchmarks.serving import Bed, Serving, bed, free_port, serving
from benchmarks.visitors import Visitors
from exchange_service.errors import VenueUnavailable
from tests.servers import RedisServer

DEFAULT_MINUTES = 20.0
ACCOUNTS, SUBSCRIBERS, CALLERS = 20, 40, 20
_REPLICAS = 2
_SETTINGS = {"poll_interval": "2", "replicas": f"{_REPLICAS}"}
# Seconds: of the warm-up, between two faults of the venue and of each, and until a process is drained.
_WARM_UP = 20.0
_FAULT_EVERY, _FAULT_LASTS = 25.0, 3.0
_DRAINING = 30.0
# Seconds after which a circuit breaker that the faults have opened is closed again.
_BREAKER = 120.0
# Seconds between two looks at a process's memory, from when on a new process's count, and for how long a slope takes.
_LOOK_EVERY, _FILLING, _SLOPE_TAKES = 5.0, 90.0, 240.0
# Seconds in which the process releases what has ended.
_SETTLING = 3.0
# The ways in which the venue fails, see its module; a number is the seconds of a slow answer.
_FAULTS = ("limited", "1.5", "broken", "unavailable", "malformed")
# What may fail while the venue does, and while a replica is restarted.
_EXPECTED = re.compile(r"VENUE_|PLUGIN_FAILED|SHUTTING_DOWN|ServiceUnreachable")
_OPEN = re.compile(r"^exchange_service_(calls|feeds|streams|fetches)_open (\S+)", re.MULTILINE)

console = Console(width=max(110, Console().width) if Console().is_terminal else 110, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of a process, in `unit`, and by how much it may have grown."""

    name: str
    unit: str
    margin: float


MEASURES = (
    Measure("memory", "MB", 12.0),
    Measure("tasks", "", 0.0),
    Measure("threads", "", 4.0),
    Measure("sockets of clients", "", 0.0),
    # A pool grows with the calls at one moment, to 64.
    Measure("sockets to Redis", "", 16.0),
    Measure("other file descriptors", "", 2.0),
    Measure("calls, feeds, streams and fetches", "", 0.0),
    Measure("slope of memory under clients", "MB a minute", 0.2),
)


def returned(measure: Measure, beginning: float, end: float) -> bool:
    """Whether the figure is back where it began, or lower."""
    return end <= beginning + measure.margin


class Slot:
    """A replica across its restarts: its present process, the address of its metrics, and its first measurement."""

    def __init__(self, number: int, made: Bed, redis: RedisServer, fault: Path, engine: str) -> None:
        self.number = number
        self.generation = 0
        self.beginning: Sequence[float] = ()
        # The tasks that ran in it at the last measurement, by the names of their coroutines.
        self.tasks: Counter[str] = Counter()
        # Whether clients are sent here.
        self.open = False
        # The memory of the present process under clients: seconds since they came, and megabytes.
        self._looks: list[tuple[float, float]] = []
        self._made = made
        self._redis = redis
        self._fault = fault
        self._engine = engine
        self._metrics_port = 0
        self._stack = AsyncExitStack()
        self._service: Serving | None = None

    @property
    def name(self) -> str:
        """For the table."""
        return f"replica {self.number}" + (f", after restart {self.generation - 1}" if self.generation > 1 else "")

    @property
    def service(self) -> Serving:
        """The present process."""
        assert self._service is not None
        return self._service

    async def start(self) -> None:
        """Start a process."""
        self.generation += 1
        self.tasks = Counter()
        self._looks = []
        self._metrics_port = free_port()
        self._service = await self._stack.enter_async_context(
            serving(
                self._made,
                venue={"BENCHMARK_VENUE_FAULT": str(self._fault)},
                known=b"plugin.failed",
                cache_url=self._redis.url,
                metrics_address=f"127.0.0.1:{self._metrics_port}",
                engine=self._engine,
                **_SETTINGS,
            )
        )
        # Raises if the service runs on another engine.
        await self._service.runtime()

    async def end(self) -> float:
        """End it by SIGTERM. Returns how many seconds that took."""
        self.open = False
        began = time.monotonic()
        await self._stack.aclose()
        return time.monotonic() - began

    async def drained(self) -> Sequence[float]:
        """The figures of MEASURES once all clients have gone, or after `_DRAINING` seconds."""
        await self._wait_until_drained()
        await asyncio.sleep(_SETTLING)
        # The question itself runs as a task each time. Tasks that the first one started are gone at the second.
        first = await self._running_tasks()
        await asyncio.sleep(_SETTLING)
        tasks = first & await self._running_tasks()
        if self.tasks and tasks - self.tasks:
            console.print(f"{self.name}: tasks that were not there: {dict(tasks - self.tasks)}", highlight=False)
        self.tasks = tasks
        await self._wait_until_drained()
        process = psutil.Process(self.service.pid)
        clients, redis = self._clients(), self._sockets(self._redis.port, remote=True)
        others = process.num_fds() - clients - redis
        megabytes = process.memory_info().rss / 1e6
        open_count = await self._open_count()
        counts = (tasks.total(), process.num_threads(), clients, redis, others, open_count)
        return (megabytes, *counts, self._slope())

    async def look(self) -> None:
        """Look at the memory again and again, for ever, while clients are sent here."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            if self.open:
                self._looks.append((time.monotonic(), self.service.memory() / 1e6))

    def _slope(self) -> float:
        """Megabytes a minute by which the memory has grown, once caches had been filled; 0 if that was not watched for
        long enough."""
        began = self._looks[0][0] + _FILLING if self._looks else 0.0
        looks = [look for look in self._looks if look[0] >= began]
        if not looks or looks[-1][0] - looks[0][0] < _SLOPE_TAKES:
            return 0.0
        return linear_regression(*zip(*looks, strict=True)).slope * 60

    async def _running_tasks(self) -> Counter[str]:
        """The names of the process's tasks. The venue's last fault may have opened the circuit breaker: wait for it."""
        async with asyncio.timeout(_BREAKER):
            while True:
                try:
                    return Counter((await self.service.process())["tasks"])
                except VenueUnavailable as error:
                    await asyncio.sleep(error.retry_after or 1.0)

    async def _wait_until_drained(self) -> None:
        patience = time.monotonic() + _DRAINING
        while time.monotonic() < patience:
            if not await self._open_count() + self._clients():
                return
            await asyncio.sleep(0.2)

    def _clients(self) -> int:
        return self._sockets(self.service.port, remote=False)

    def _sockets(self, port: int, *, remote: bool) -> int:
        connections = psutil.Process(self.service.pid).net_connections("tcp")
        ends = [connection.raddr if remote else connection.laddr for connection in connections if connection.raddr]
        return sum(end.port == port for end in ends)

    async def _open_count(self) -> int:
        text = await asyncio.to_thread(self._metrics)
        return sum(int(float(count)) for _, count in _OPEN.findall(text))

    def _metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())


async def soak(minutes: float, engine: str) -> bool:
    """Run for `minutes`. Returns whether everything has returned to where it began."""
    console.print(_conditions(minutes, engine), highlight=False)
    rows: list[tuple[str, Sequence[float], Sequence[float]]] = []
    async with bed(ACCOUNTS) as made, AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        fault = made.folder / "fault"
        slots = [Slot(number + 1, made, redis, fault, engine) for number in range(_REPLICAS)]
        for slot in slots:
            stack.push_async_callback(slot.end)
            await slot.start()
        await _warm(slots, made)
        visitors = Visitors(lambda: _address(slots), made.token, ACCOUNTS)
        visitors.come(SUBSCRIBERS, CALLERS)
        faults = asyncio.create_task(_faults(fault))
        looks = [asyncio.create_task(slot.look()) for slot in slots]
        for slot in slots:
            # The last quarters belong to processes that have seen another one go and come.
            await asyncio.sleep(minutes * 60 / 4)
            await _restart(slot, made)
        await asyncio.sleep(minutes * 60 / 2)
        for task in (faults, *looks):
            task.cancel()
        await asyncio.wait({faults, *looks})
        _mend(fault)
        await visitors.leave()
        for slot in slots:
            rows.append((slot.name, slot.beginning, await slot.drained()))
        load = psutil.getloadavg()[0]
    console.print(_table(rows))
    returned_all = all(returned(*figures) for _, *sides in rows for figures in zip(MEASURES, *sides, strict=True))
    return _print_summary(visitors, load) and returned_all


def _address(slots: Sequence[Slot]) -> str:
    return random.choice([slot for slot in slots if slot.open] or slots).service.address


async def _warm(slots: Sequence[Slot], made: Bed) -> None:
    """Let clients come and go, then measure: what a process loads for its first clients is not growth."""
    own = Visitors(lambda: random.choice(slots).service.address, made.token, ACCOUNTS)
    own.come(SUBSCRIBERS, CALLERS)
    await asyncio.sleep(_WARM_UP)
    await own.leave()
    for slot in slots:
        slot.beginning = await slot.drained()
    for slot in slots:
        slot.open = True


async def _restart(slot: Slot, made: Bed) -> None:
    name = slot.name
    seconds = await slot.end()
    console.print(f"{name}: ended {seconds:.1f} s after SIGTERM, and started again", highlight=False)
    await slot.start()
    await _warm([slot], made)


async def _faults(file: Path) -> None:
    for kind in itertools.cycle(_FAULTS):
        await asyncio.sleep(_FAULT_EVERY)
        _break(file, kind)
        await asyncio.sleep(_FAULT_LASTS)
        _mend(file)


def _break(file: Path, kind: str) -> None:
    file.write_text(kind)


def _mend(file: Path) -> None:
    file.unlink(missing_ok=True)


def _conditions(minutes: float, engine: str) -> str:
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, engine {engine}, {minutes:g} minutes, {os.cpu_count()} cores (load"
        f" {psutil.getloadavg()[0]:.1f} before), Python {platform.python_version()}"
    )


def _table(rows: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> Table:
    table = Table("process", "what", box=None, pad_edge=False)
    for name in ("beginning", "end", "may grow by"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("returned", no_wrap=True)
    for process, beginning, end in rows:
        for measure, first, last in zip(MEASURES, beginning, end, strict=True):
            figures = (f"{value:.4g} {measure.unit}".strip() for value in (first, last, measure.margin))
            table.add_row(process, measure.name, *figures, "yes" if returned(measure, first, last) else "NO")
            process = ""
    return table


def _print_summary(visitors: Visitors, load: float) -> bool:
    """Print what the clients did and saw. Returns whether nothing unexpected happened."""
    unexpected = {reason: count for reason, count in visitors.failures.items() if not _EXPECTED.match(reason)}
    console.print(
        f"{visitors.answered:,} calls answered, {visitors.streams:,} streams opened, {visitors.events:,} events,"
        f" {visitors.troubles.total():,} account errors received, load {load:.1f} in the end",
        highlight=False,
    )
    failures = ", ".join(f"{count} {reason}" for reason, count in sorted(visitors.failures.items()))
    console.print(f"calls that failed and streams that ended: {failures or 'none'}", highlight=False)
    console.print(
        f"unexpected among them: {sum(unexpected.values())}; versions back: {visitors.went_back}", highlight=False
    )
    return not unexpected and not visitors.went_back


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 0 if everything returned to where it began, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Look for leaks.")
    parser.add_argument("--minutes", type=float, default=DEFAULT_MINUTES, help="how long (default: %(default)g)")
    parser.add_argument("--engine", choices=ENGINES, default=GRPCIO, help="the service's (default: %(default)s)")
    options = parser.parse_args(arguments)
    well = asyncio.run(soak(options.minutes, options.engine))
    console.print("Everything returned to where it began." if well else "Not everything returned to where it began.")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
