"""Ten thousand subscribers in one process, and thousands that come back at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from typing import Protocol

from benchmarks.engines import GRPCIO, NATIVE
from benchmarks.lines import Line
from benchmarks.names import EXCHANGE, user
from benchmarks.runtime import Runtime
from benchmarks.serving import bed, running_ceiling, serving
from benchmarks.subscribers import Delays, Opened, subscribed

ACCOUNTS, SUBSCRIBERS_EACH = 100, 100
STORM_ACCOUNTS, STORM_EACH = 100, 50
DEFAULT_SECONDS = 15.0
_STORM_SECONDS = 1.0
# Each balance changes at every poll, so each subscriber gets a message a second.
_POLLED = {"poll_interval": "1", "poll_interval_still": "1", "max_age": "1"}
# Feeds begin evenly over two of their intervals, as if subscribers came one by one.
_SPREAD = 2.0
_CEILINGS = {GRPCIO: "streams", NATIVE: "native_streams"}
# Seconds after the opening, and again after the first change, in which nothing is measured.
_SETTLING = 2.0


class Process(Protocol):
    """A serving process, ours or the ceiling's."""

    def memory(self) -> int:
        """Bytes."""

    def processor(self) -> float:
        """Seconds."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """What so many subscribers cost: `cores` of processor, `bytes_each` of memory for a stream."""

    streams: int
    opened: int
    seconds: float
    cores: float
    bytes_each: float
    delays: Delays

    @property
    def microseconds(self) -> float:
        """Of processor, for each message that came."""
        return self.cores * self.seconds / max(1, self.delays.messages) * 1e6


async def measure(engine: str, accounts: int, each: int, seconds: float) -> tuple[Streamed, Runtime, int]:
    """`accounts` at one message a second with `each` subscribers in one serving process; its runtime and the size of a
    balance, for the ceiling."""
    async with bed(accounts) as made:
        moves = made.folder / "moves"
        venue = {"BENCHMARK_VENUE_MOVES": str(moves)}
        async with serving(made, venue=venue, engine=engine, **_POLLED) as service:
            # Imports, pools and the first fetch are done before the first measurement.
            runtime = await service.runtime()
            async with service.client() as client:
                size = (await client.get_balance(user(0), EXCHANGE)).ByteSize()
            empty = service.memory()
            # Balances do not change until all streams are open: a busy process refuses new ones.
            work = {"first": 0, "accounts": accounts, "each": each, "gap": _SPREAD / accounts}
            async with subscribed(service.port, made.metadata, **work) as subscribers:
                await asyncio.sleep(_SETTLING)
                bytes_each = (service.memory() - empty) / max(1, subscribers.opened.opened)
                moves.touch()
                await asyncio.sleep(_SETTLING)
                cores, delays = await _watched(service, subscribers.measure(seconds), seconds)
                opened = subscribers.opened.opened
    return Streamed(accounts * each, opened, seconds, cores, bytes_each, delays), runtime, size


async def measure_ceiling(
    engine: str, accounts: int, each: int, seconds: float, runtime: Runtime, size: int
) -> Streamed:
    """The same with a server on the same engine that does nothing but write."""
    async with running_ceiling(_CEILINGS[engine], str(size), runtime.as_argument(), str(accounts)) as process:
        empty = process.memory()
        work = {"first": 0, "accounts": accounts, "each": each, "gap": _SPREAD / accounts}
        async with subscribed(process.port, (), **work) as subscribers:
            await asyncio.sleep(_SETTLING)
            bytes_each = (process.memory() - empty) / max(1, subscribers.opened.opened)
            cores, delays = await _watched(process, subscribers.measure(seconds), seconds)
            opened = subscribers.opened.opened
    return Streamed(accounts * each, opened, seconds, cores, bytes_each, delays)


async def _watched(process: Process, measuring: Awaitable[Delays], seconds: float) -> tuple[float, Delays]:
    before = process.processor()
    delays = await measuring
    return (process.processor() - before) / seconds, delays


async def streams(seconds: float, engine: str) -> list[Line]:
    """The lines of 10,000 subscribers: absolute goals, and the same load on a server that only writes."""
    found, runtime, size = await measure(engine, ACCOUNTS, SUBSCRIBERS_EACH, seconds)
    bare = await measure_ceiling(engine, ACCOUNTS, SUBSCRIBERS_EACH, seconds / 2, runtime, size)
    what = f"{found.streams:,} streams at a message a second"
    rate, least = found.delays.messages / seconds, 0.9 * found.streams
    came = rate >= least and found.opened == found.streams
    lines = [
        Line(
            "streams/opened",
            f"{what}: open",
            found.opened,
            found.streams,
            "streams",
            "all",
            found.opened == found.streams,
        ),
        Line(
            "streams/messages",
            f"{what}: messages",
            rate,
            found.streams,
            "a second",
            "at least 0.9 of it",
            rate >= least,
        ),
    ]
    return [*lines, *_goal_lines(found, what, came), *_ceiling_lines(found, bare)]


def _goal_lines(found: Streamed, what: str, came: bool) -> Iterator[Line]:
    """The lines with absolute goals. `came`: whether all messages arrived; if not, no goal is met."""
    for name, label, unit, value, goal in (
        ("processor", "processor", "cores", found.cores, 0.4),
        ("p99", "delay, p99", "ms", found.delays.p99, 10),
        ("worst", "delay, worst", "ms", found.delays.worst, 50),
        ("memory", "memory for one", "kB", found.bytes_each / 1e3, 40),
    ):
        goal_text = f"at most {goal:g} {unit}"
        yield Line(f"streams/{name}", f"{what}: {label}", value, goal, unit, goal_text, came and value <= goal)


def _ceiling_lines(found: Streamed, bare: Streamed) -> Iterator[Line]:
    """The same load on a server that only writes."""
    for name, label, unit, ours, ceiling in (
        ("processor for a message", "processor for a message", "µs", found.microseconds, bare.microseconds),
        ("p99 of the ceiling", "delay, p99", "ms", found.delays.p99, bare.delays.p99),
        ("memory of the ceiling", "memory for one", "kB", found.bytes_each / 1e3, bare.bytes_each / 1e3),
    ):
        what = f"the same against a server that only writes: {label}"
        yield Line(f"streams/{name}", what, ours, ceiling, unit, "", None)


async def storm(engine: str) -> list[Line]:
    """The lines of 5,000 streams that are opened at once, by two processes; and with a server that only writes."""
    async with bed(STORM_ACCOUNTS) as made, serving(made, engine=engine) as service:
        runtime = await service.runtime()
        opened = await _stormed(service.port, made.metadata)
    async with running_ceiling(_CEILINGS[engine], "1500", runtime.as_argument(), str(STORM_ACCOUNTS)) as process:
        bare = await _stormed(process.port, ())
    total = STORM_ACCOUNTS * STORM_EACH
    what = f"{total:,} streams opened at once"
    goal, met = f"at most {_STORM_SECONDS:g} s", opened.opened == total and opened.seconds <= _STORM_SECONDS
    last = f"{what}: until the last had its answer"
    return [
        Line("storm/opened", f"{what}: opened", opened.opened, total, "streams", "all", opened.opened == total),
        Line("storm/refused", f"{what}: refused or ended", opened.ended, 0, "streams", "none", not opened.ended),
        Line("storm/seconds", last, opened.seconds, _STORM_SECONDS, "s", goal, met),
        Line("storm/against", "  against a server that only writes", opened.seconds, bare.seconds, "s", "", None),
    ]


async def _stormed(port: int, metadata: tuple[tuple[str, str], ...]) -> Opened:
    """All streams, opened by two processes at the same time."""
    half = STORM_ACCOUNTS // 2
    work = {"accounts": half, "each": STORM_EACH, "gap": 0.0}
    parts = await asyncio.gather(*(_opened(port, metadata, first=first, **work) for first in (0, half)))
    return Opened(sum(p.opened for p in parts), sum(p.ended for p in parts), max(p.seconds for p in parts))


async def _opened(port: int, metadata: tuple[tuple[str, str], ...], **work: float) -> Opened:
    async with subscribed(port, metadata, **work) as subscribers:
        return subscribers.opened
