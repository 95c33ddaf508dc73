"""How figures grow: with callers, subscribers, replicas and accounts. Prints small tables and draws one picture."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import TypeAlias

from rich.console import Console
from rich.table import Table

from benchmarks.engines import ENGINES, is_installed
from benchmarks.lines import Line
from benchmarks.load import Shape, Target, load
from benchmarks.names import EXCHANGE, ROOT, SERVICE, user
from benchmarks.plot import Curve, draw
from benchmarks.serving import Serving, bed, serving
from benchmarks.streaming import measure
from exchange_service.v1.exchange_service_pb2 import GetBalanceRequest
from tests.servers import RedisServer

Rows: TypeAlias = Sequence[tuple[float, ...]]
Measure: TypeAlias = Callable[[str], Awaitable[Rows]]

PICTURE = ROOT / "docs" / "performance.png"
_CALLERS = (Shape(1, 1), Shape(1, 4), Shape(2, 8), Shape(4, 16), Shape(8, 32))
_SUBSCRIBERS = (100, 300, 1000, 3000, 10_000)
_REPLICAS = (1, 2, 3, 4)
_ACCOUNTS = (10, 100, 1000, 10_000)
_SECONDS = 2.0
_STREAM_SECONDS = 6.0
_CALLER_NAMES = ("calls/s", "p50 ms", "p99 ms")
_SUBSCRIBER_NAMES = ("messages/s", "cores", "delay p99 ms", "kB a stream")
_REPLICA_NAMES = ("calls/s of all", "p99 ms", "venue calls to warm 100 accounts")
_ACCOUNT_NAMES = ("calls/s", "p99 ms", "kB an account, including what the first one loads")
_CACHED = {"max_age": "3600", "stale_grace": "7200"}


async def growth(_: str) -> list[Line]:
    """Prints tables and draws a picture of the installed engines. Returns no lines: only the shape matters."""
    curves = [
        await _curve("GetBalance, in-process hit, by callers at once", "callers", _CALLER_NAMES, _with_callers),
        await _curve(
            "Streams at a message a second each, in one process, by subscribers",
            "subscribers",
            _SUBSCRIBER_NAMES,
            _with_subscribers,
        ),
        await _curve(
            "GetBalance through one Redis, by replicas, 8 callers each", "replicas", _REPLICA_NAMES, _with_replicas
        ),
        await _curve(
            "GetBalance, in-process hits in turn, by accounts, 16 callers", "accounts", _ACCOUNT_NAMES, _with_accounts
        ),
    ]
    console = Console(width=120)
    for curve in curves:
        console.print(curve.title)
        console.print(_table(curve))
        console.print()
    if draw(curves, PICTURE):
        console.print(f"drawn: {PICTURE.relative_to(ROOT)}")
    else:
        console.print("not drawn, because matplotlib is not installed (pip install matplotlib)")
    return []


async def _curve(title: str, grows: str, names: tuple[str, ...], measure: Measure) -> Curve:
    return Curve(title, grows, names, {engine: await measure(engine) for engine in ENGINES if is_installed(engine)})


def _table(curve: Curve) -> Table:
    table = Table("engine", curve.grows, *curve.names, box=None, pad_edge=False)
    for engine, rows in curve.rows.items():
        for row in rows:
            table.add_row(engine, *(f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in row))
    return table


async def _with_callers(engine: str) -> Rows:
    rows = []
    async with bed() as made, serving(made, engine=engine, **_CACHED) as service:
        target = await _warm(service, 1)
        for shape in _CALLERS:
            found = await load(target, shape, _SECONDS)
            rows.append((shape.callers, found.rate, found.p50, found.p99))
    return rows


async def _with_subscribers(engine: str) -> Rows:
    rows = []
    for count in _SUBSCRIBERS:
        accounts = min(100, count // 10)
        found, _, _ = await measure(engine, accounts, count // accounts, _STREAM_SECONDS)
        rate = found.delays.messages / found.seconds
        rows.append((count, rate, found.cores, found.delays.p99, found.bytes_each / 1e3))
    return rows


async def _with_replicas(engine: str) -> Rows:
    """Each replica has callers of its own, and all share one Redis. On two cores the machine is full with two."""
    rows = []
    async with bed(100) as made:
        for count in _REPLICAS:
            async with AsyncExitStack() as stack:
                server = stack.enter_context(RedisServer())
                options = {"cache_url": server.url, "engine": engine, **_CACHED}
                replicas = [await stack.enter_async_context(serving(made, **options)) for _ in range(count)]
                targets = [await _warm(replica, 100) for replica in replicas]
                found = await asyncio.gather(*(load(target, Shape(1, 8), _SECONDS) for target in targets))
                rate, slowest = sum(part.rate for part in found), max(part.p99 for part in found)
            calls = made.venue_calls()
            made.venue_log.unlink()
            rows.append((count, rate, slowest, calls))
    return rows


async def _with_accounts(engine: str) -> Rows:
    rows = []
    for count in _ACCOUNTS:
        async with bed(count) as made, serving(made, engine=engine, **_CACHED) as service:
            empty = service.memory()
            target = await _warm(service, count)
            bytes_each = (service.memory() - empty) / count
            found = await load(target, Shape(4, 4), _SECONDS)
            rows.append((count, found.rate, found.p99, bytes_each / 1e3))
    return rows


async def _warm(service: Serving, accounts: int) -> Target:
    """Read each account once, so that only hits are measured."""
    requests = tuple(
        GetBalanceRequest(user_id=user(number), exchange_id=EXCHANGE).SerializeToString() for number in range(accounts)
    )
    limit = asyncio.Semaphore(16)
    async with service.client() as client:
        call = client.channel.unary_unary(f"{SERVICE}GetBalance")

        async def ask(request: bytes) -> None:
            async with limit:
                await call(request, metadata=service.bed.metadata, timeout=20)

        await asyncio.gather(*map(ask, requests))
    return Target(service.port, f"{SERVICE}GetBalance", requests, service.bed.metadata, 1000)
