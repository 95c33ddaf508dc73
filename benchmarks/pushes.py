"""500 accounts that a venue pushes: from its change to the subscriber's message, with one replica and with three of
which one is killed; and with `--faults` every way in which pushes fail: `python -m benchmarks.pushes`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from statistics import quantiles

import grpc
import psutil

from benchmarks.engines import ENGINES, GRPCIO
from benchmarks.lines import Line, bounded
from benchmarks.names import ROOT, user
from benchmarks.push_faults import FAULTS, Endured, endure
from benchmarks.push_subscribers import Subscriber, key_of
from benchmarks.pushing_plugin import EXCHANGE
from benchmarks.pushing_venue import PushingVenue
from benchmarks.serving import Bed, Serving, bed, serving
from exchange_service.balances.watches import PUSH_LEASE
from exchange_service.credentials.sql import open_store
from exchange_service.model import Account, Credential
from tests.servers import RedisServer

ACCOUNTS, REPLICAS, FAULT_SUBSCRIBERS = 500, 3, 50
DEFAULT_SECONDS, DEFAULT_FAULT_SECONDS = 10.0, 60.0
# Changes of all accounts together, in a second.
_RATE = 100
# Seconds: until all accounts are pushed, at most; and the goals.
_START_LIMIT = 60.0
_MEDIAN, _WORST_HUNDREDTH, _GAP = 0.050, 0.250, 10.0
# Seconds of silence after which a push counts as broken, and between two polls, where pushes fail.
_SILENCE, _INTERVAL = 5.0, 5.0
# Channels that the subscribers of one replica share.
_CHANNELS = 5


@dataclass(slots=True)
class _Field:
    """A venue, its accounts and their subscribers, at one or several replicas."""

    made: Bed
    venue: PushingVenue
    services: list[Serving]
    subscribers: list[Subscriber]

    async def change(self, seconds: float, rate: float) -> float:
        """Change accounts in turn, so many in a second. Returns the most seconds that a subscriber was behind."""
        began, done, behind = time.monotonic(), 0, 0.0
        while (passed := time.monotonic() - began) < seconds:
            while done < passed * rate:
                self.subscribers[done % len(self.subscribers)].change()
                done += 1
            behind = max(behind, max(one.behind for one in self.subscribers))
            await asyncio.sleep(0.005)
        return behind

    def forget(self) -> None:
        """Begin to measure."""
        for one in self.subscribers:
            one.delays.clear()
        self.venue.reads.clear()


@asynccontextmanager
async def _field(
    replicas: int, accounts: int, venue: dict[str, str] | None = None, **settings: str
) -> AsyncIterator[_Field]:
    """Accounts that are all pushed, with a subscriber each."""
    async with bed(0) as made, PushingVenue() as playing, AsyncExitStack() as stack:
        await _install(made, accounts)
        if replicas > 1:
            settings["cache_url"] = stack.enter_context(RedisServer()).url
            settings["replicas"] = str(replicas)
        settings |= {
            "venue_urls": json.dumps({EXCHANGE: playing.url}),
            "plugin_processes": json.dumps({"benchmark": "in-process", "pushing": "in-process"}),
            "heartbeat_interval": "1",
        }
        services = [await stack.enter_async_context(serving(made, venue=venue, **settings)) for _ in range(replicas)]
        subscribers = [Subscriber(playing, user(number), number, made.metadata) for number in range(accounts)]
        # Before the channels: what is entered last is closed first.
        channels = [[await stack.enter_async_context(_channel(one)) for _ in range(_CHANNELS)] for one in services]
        for number, one in enumerate(subscribers):
            one.begin()
            first = number % replicas
            one.start([channels[(first + at) % replicas][number % _CHANNELS] for at in range(replicas)])
            stack.push_async_callback(one.close)
        await _until_pushed(subscribers)
        yield _Field(made, playing, services, subscribers)


async def _until_pushed(subscribers: Sequence[Subscriber]) -> None:
    async with asyncio.timeout(_START_LIMIT):
        while True:
            if all(one.pushed for one in subscribers):
                return
            await asyncio.sleep(0.1)


def _channel(service: Serving) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(service.address, options=[("grpc.use_local_subchannel_pool", 1)])


async def _install(made: Bed, accounts: int) -> None:
    """The plugin as pip would install it, and a credential for each account."""
    shutil.copy(ROOT / "benchmarks" / "pushing_plugin.py", made.folder / "exchange_service_pushing.py")
    installed = made.folder / "exchange_service_pushing-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: exchange-service-pushing\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[exchange_service]\npushing = exchange_service_pushing\n")
    store = await open_store(made.database, made.hash_key.encode())
    try:
        for name in map(user, range(accounts)):
            await store.put(Account(name, EXCHANGE), Credential.from_texts({"api_key": key_of(name)}))
    finally:
        await store.close()


async def pushed(seconds: float, accounts: int = ACCOUNTS, *, engine: str) -> list[Line]:
    """Delays and polls with one replica."""
    async with _field(1, accounts, engine=engine) as field:
        await field.change(2.0, _RATE)
        field.forget()
        behind = await field.change(seconds, _RATE)
        return _lines("one", f"{accounts} pushed accounts, {_RATE} changes a second, one replica", field, behind)


async def killed(seconds: float, accounts: int = ACCOUNTS, *, engine: str) -> list[Line]:
    """The same with three replicas on one Redis, before and after one of them is killed."""
    async with _field(REPLICAS, accounts, engine=engine) as field:
        await field.change(2.0, _RATE)
        field.forget()
        behind = await field.change(seconds, _RATE)
        lines = _lines("three", f"the same with {REPLICAS} replicas", field, behind)
        connections = len(field.venue.push.clients)
        field.forget()
        os.kill(field.services[0].pid, signal.SIGKILL)
        gap = await field.change(max(seconds, 2 * _GAP), _RATE)
        lost = sum(one.behind > 1 for one in field.subscribers)
        sys.stderr.write(f"pushes: {connections} connections before the kill, {len(field.venue.push.clients)} after;")
        sys.stderr.write(f" {sum(field.venue.reads.values())} reads after it; lease {PUSH_LEASE:g} s\n")
        backwards = sum(one.versions_back + one.went_back for one in field.subscribers)
        return [
            *lines,
            bounded("pushes/gap", "  one killed: longest time behind the venue", "s", gap, _GAP),
            Line("pushes/lost", "  subscribers still behind in the end", lost, 0, "", "none", not lost),
            Line("pushes/back", "  versions or amounts that went back", backwards, 0, "", "none", not backwards),
        ]


def _lines(name: str, what: str, field: _Field, behind: float) -> list[Line]:
    delays = [delay for one in field.subscribers for delay in one.delays]
    hundredths = quantiles(delays, n=100)
    polls = sum(field.venue.reads.values())
    false = sum(one.false for one in field.subscribers)
    return [
        bounded(f"pushes/{name} median", f"{what}: median delay", "ms", hundredths[49] * 1000, _MEDIAN * 1000),
        bounded(f"pushes/{name} p99", "  one in a hundred", "ms", hundredths[98] * 1000, _WORST_HUNDREDTH * 1000),
        Line(f"pushes/{name} longest", "  longest time behind the venue", behind * 1000, 0, "ms", "", None),
        Line(f"pushes/{name} polls", f"  reads of the venue, {len(delays):,} changes", polls, 0, "", "none", not polls),
        Line(f"pushes/{name} false", "  amounts of others, or never held", false, 0, "", "none", not false),
    ]


async def faults(seconds: float, accounts: int = FAULT_SUBSCRIBERS, *, engine: str) -> list[Line]:
    """Each way of failing for so many seconds, on the one socket of all accounts."""
    lines = []
    names = {"BENCHMARK_PUSH_SILENCE": f"{_SILENCE:g}"}
    settings = {"poll_interval": f"{_INTERVAL:g}", "poll_interval_still": f"{_INTERVAL:g}", "engine": engine}
    async with _field(1, accounts, names, **settings) as field:
        for name, fault in FAULTS.items():
            found = await endure(field.venue, field.subscribers, fault, seconds)
            lines += _fault_lines(name, found)
            sys.stderr.write(f"{name}: {found}\n")
    return lines


def _fault_lines(name: str, found: Endured) -> list[Line]:
    wrong = found.false + found.went_back + found.ended
    what = "false balances, steps back, streams ended"
    return [
        bounded(f"push_faults/{name}", f"{name}: longest time behind", "s", found.behind, _SILENCE + 2 * _INTERVAL),
        Line(f"push_faults/{name} wrong", f"  {what}", wrong, 0, "", "none", not wrong),
        Line(f"push_faults/{name} back", "  pushed again after", found.back_after, 0, "s", "", None),
    ]


async def pushes(seconds: float, engine: str) -> list[Line]:
    """With one replica, for the suite."""
    return await pushed(seconds, engine=engine)


async def pushes_killed(seconds: float, engine: str) -> list[Line]:
    """With three replicas, for the suite."""
    lines = await killed(seconds, engine=engine)
    return [replace(line, name=line.name.replace("pushes/", "pushes_killed/")) for line in lines]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table. Returns 1 if a goal is missed."""
    from benchmarks.__main__ import console, table_of

    parser = argparse.ArgumentParser(prog="python -m benchmarks.pushes", description=__doc__)
    parser.add_argument("--faults", action="store_true", help="measure the ways of failing")
    parser.add_argument("--engine", choices=ENGINES, default=GRPCIO, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, help="how long, or for each fault (default: 10 and 60)")
    parser.add_argument("--accounts", type=int, help="how many (default: 500 and 50)")
    options = parser.parse_args(arguments)
    console.print(f"load {psutil.getloadavg()[0]:.1f} before, {os.cpu_count()} cores")
    if options.faults:
        work = faults(
            options.seconds or DEFAULT_FAULT_SECONDS, options.accounts or FAULT_SUBSCRIBERS, engine=options.engine
        )
        lines = asyncio.run(work)
    else:
        sizes = options.seconds or DEFAULT_SECONDS, options.accounts or ACCOUNTS
        lines = asyncio.run(_both(*sizes, options.engine))
    console.print(table_of(lines))
    return 0 if all(line.met is not False for line in lines) else 1


async def _both(seconds: float, accounts: int, engine: str) -> list[Line]:
    return [*await pushed(seconds, accounts, engine=engine), *await killed(seconds, accounts, engine=engine)]


if __name__ == "__main__":
    sys.exit(main())
