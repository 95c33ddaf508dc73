"""What makes each alert true: a running service, and the trouble that it is in."""

from __future__ import annotations

import asyncio
import itertools
import resource
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from exchange_service_hyperliquid.simulator import HyperliquidSimulator
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import pushing_plugin
from benchmarks.pushing_plugin import EXCHANGE
from benchmarks.pushing_venue import PushingVenue
from exchange_service.balances import watches
from exchange_service.client import ExchangeServiceClient
from exchange_service.credentials.keyset_files import create_keyset_file
from exchange_service.errors import ClockSkew, ServiceError, VenueMalformed, VenueRateLimited, VenueUnavailable
from exchange_service.memory_limit import MEBIBYTE
from exchange_service.plugin_api import RateLimit
from exchange_service.testing.push import PushFault
from tests.alerts.prometheus import free_port
from tests.e2e.test_certificates import tls, write
from tests.e2e.test_pushes import KEY
from tests.harness import (
    USER,
    Running,
    ScriptedPlugin,
    holding,
    listing,
    raising,
    registry_of,
    serving,
    streaming,
)
from tests.servers import PostgresServer, RedisServer
from tests.test_metrics import read
from tests.test_runtime import started

METRICS = {"metrics_address": "127.0.0.1:0"}
GOOD = holding(("BTC", "1.50"))

Made = AbstractAsyncContextManager[Sequence[str]]


@dataclass(frozen=True)
class Trouble:
    """A trouble. `alerts` fire in it, those of `also` may, and no other does. `make` opens it, and gives the addresses
    of the metrics that Prometheus shall scrape."""

    name: str
    alerts: set[str]
    make: Callable[[Path], Made]
    also: set[str] = field(default_factory=set)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs `work` until the end of the block, and fails if it has ended before."""
    task = asyncio.create_task(work)
    try:
        yield
        assert not task.done() or task.exception() is None, task.exception()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def repeat(act: Callable[[], Awaitable[object]], every: float = 0.25) -> None:
    """Do it again and again, whatever error of the service it meets."""
    while True:
        with suppress(ServiceError):
            await act()
        await asyncio.sleep(every)


def new_users(running: Running, exchange: str = "fakex", **options: Any) -> Callable[[], Awaitable[object]]:
    """Reads the account of another user each time."""
    numbers = itertools.count()

    async def act() -> None:
        user = f"user-{next(numbers)}"
        await running.store(exchange, user=user)
        await running.client.get_balance(user, exchange, **options)

    return act


def venue(answer: Any, *limits: RateLimit, **settings: Any) -> Callable[[Path], Made]:
    """A service whose venue answers so, to new users all the time."""

    @asynccontextmanager
    async def made(folder: Path) -> AsyncIterator[Sequence[str]]:
        registry = registry_of(ScriptedPlugin(listing(limits=limits), answer=answer))
        async with (
            serving(folder, registry=registry, **METRICS, **settings) as running,
            beside(repeat(new_users(running), 0.2)),
        ):
            yield [running.service.metrics_address]

    return made


def mostly(error: ServiceError) -> Callable[[Any], Awaitable[Any]]:
    """A venue that fails but for one request in four, and so is not taken for down."""
    numbers = itertools.count()

    async def answer(_: Any) -> Any:
        if next(numbers) % 4 == 0:
            return GOOD
        raise error

    return answer


def slow(seconds: float) -> Callable[[Any], Awaitable[Any]]:
    async def answer(_: Any) -> Any:
        await asyncio.sleep(seconds)
        return GOOD

    return answer


def crowded_venue(plugin: ScriptedPlugin) -> Callable[[Path], Made]:
    """Five callers at the same time, each with a new user for each call."""

    @asynccontextmanager
    async def made(folder: Path) -> AsyncIterator[Sequence[str]]:
        async with (
            serving(folder, registry=registry_of(plugin), **METRICS) as running,
            AsyncExitStack() as stack,
        ):
            act = new_users(running)
            for _ in range(5):
                await stack.enter_async_context(beside(repeat(act)))
            yield [running.service.metrics_address]

    return made


@asynccontextmanager
async def impatient_callers(folder: Path) -> AsyncIterator[Sequence[str]]:
    registry = registry_of(ScriptedPlugin(answer=slow(2.0)))
    async with (
        serving(folder, registry=registry, **METRICS) as running,
        ExchangeServiceClient(running.service.address, timeout=0.6) as client,
        beside(repeat(new_users(Running(running.service, client)))),
    ):
        yield [running.service.metrics_address]


@asynccontextmanager
async def last_good(folder: Path) -> AsyncIterator[Sequence[str]]:
    """The first answer is good, and then the venue is down."""
    answers = itertools.chain([GOOD], itertools.repeat(None))

    async def answer(_: Any) -> Any:
        if (balance := next(answers)) is not None:
            return balance
        raise VenueUnavailable("The venue is down.")

    registry = registry_of(ScriptedPlugin(answer=answer))
    async with serving(folder, registry=registry, max_age=0.5, **METRICS) as running:
        await running.store()
        async with beside(repeat(lambda: running.client.get_balance(USER, "fakex"))):
            yield [running.service.metrics_address]


@asynccontextmanager
async def old_streams(folder: Path) -> AsyncIterator[Sequence[str]]:
    """Streams begin with a balance that was read more than a minute ago."""
    calm = {"max_age": 600.0, "poll_interval": 600.0, "poll_interval_still": 600.0, "stale_grace": 900.0}

    async with serving(folder, registry=registry_of(ScriptedPlugin()), **calm, **METRICS) as running:
        await running.store()
        await running.client.get_balance(USER, "fakex")
        read_at = time.monotonic()

        async def subscribe() -> None:
            if time.monotonic() - read_at > 62:
                async with streaming(running, "fakex") as stream:
                    await stream.next_of("balance")

        async with beside(repeat(subscribe)):
            yield [running.service.metrics_address]


@asynccontextmanager
async def missed_pushes(folder: Path) -> AsyncIterator[Sequence[str]]:
    """The venue pushes, and leaves changes out."""
    async with (
        PushingVenue() as pushing,
        serving(
            folder,
            registry=registry_of(pushing_plugin),
            venue_urls={EXCHANGE: pushing.url},
            reconcile_interval=1.0,
            **METRICS,
        ) as running,
        AsyncExitStack() as stack,
    ):
        await running.store(EXCHANGE, api_key=KEY)
        amounts = itertools.count(1000)

        async def change() -> None:
            pushing.change(KEY, next(amounts), push=False)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(watches, "_PUSH_LAG", 0.1)
            patch.setattr(watches, "_SHORTEST_PAUSE", 0.2)
            await stack.enter_async_context(streaming(running, EXCHANGE))
            await stack.enter_async_context(beside(repeat(change, 0.5)))
            yield [running.service.metrics_address]


@asynccontextmanager
async def broken_pushes(folder: Path) -> AsyncIterator[Sequence[str]]:
    """The venue takes no connection for its pushes."""
    async with (
        PushingVenue() as pushing,
        serving(folder, registry=registry_of(pushing_plugin), venue_urls={EXCHANGE: pushing.url}, **METRICS) as running,
        AsyncExitStack() as stack,
    ):
        pushing.push.fail(PushFault(refused=503))
        for number in range(30):
            await running.store(EXCHANGE, user=f"user-{number}", api_key=f"key-{number}")
            await stack.enter_async_context(streaming(running, EXCHANGE, user=f"user-{number}"))
        yield [running.service.metrics_address]


@asynccontextmanager
async def restarting_plugin(folder: Path) -> AsyncIterator[Sequence[str]]:
    """A plugin's own process is killed whenever it runs."""
    async with (
        HyperliquidSimulator() as simulator,
        serving(
            folder,
            venue_urls={"hyperliquid": simulator.url},
            plugin_processes={"hyperliquid": "own-process"},
            **METRICS,
        ) as running,
    ):
        row = dict(simulator.demo_credential("moving") or {})
        await running.store("hyperliquid", metadata=row.pop("extra_metadata", None), **row)

        async def kill() -> None:
            with suppress(ServiceError):
                await running.client.get_balance(USER, "hyperliquid", max_age=0)
            for plugin in (await running.client.list_plugins()).plugins:
                if plugin.plugin.name == "hyperliquid":
                    for process in plugin.processes:
                        if process.process_id:
                            with suppress(psutil.NoSuchProcess):
                                psutil.Process(process.process_id).kill()

        async with beside(repeat(kill, 0.3)):
            yield [running.service.metrics_address]


@asynccontextmanager
async def nobody(folder: Path) -> AsyncIterator[Sequence[str]]:
    """A replica that has ended."""
    async with serving(folder, registry=registry_of(ScriptedPlugin()), **METRICS) as running:
        address = running.service.metrics_address
    yield [address]


@asynccontextmanager
async def unknown(_: Path) -> AsyncIterator[Sequence[str]]:
    """Prometheus was told of no replica."""
    yield []


@asynccontextmanager
async def wrong_keyset(folder: Path) -> AsyncIterator[Sequence[str]]:
    """What is stored was sealed by other keys."""
    for name in ("one.json", "other.json"):
        create_keyset_file(folder / name)
    registry = registry_of(ScriptedPlugin())
    async with serving(folder, registry=registry, keyset_file=folder / "one.json") as running:
        await running.store()
    registry = registry_of(ScriptedPlugin())
    async with serving(folder, registry=registry, keyset_file=folder / "other.json", **METRICS) as running:
        yield [running.service.metrics_address]


@asynccontextmanager
async def damaged_row(folder: Path) -> AsyncIterator[Sequence[str]]:
    """One of several sealed credentials is damaged."""
    create_keyset_file(folder / "keyset.json")
    registry = registry_of(ScriptedPlugin())
    async with serving(folder, registry=registry, keyset_file=folder / "keyset.json", **METRICS) as running:
        for user in (USER, *(f"user-{number}" for number in range(20))):
            await running.store(user=user)
        with sqlite3.connect(folder / "credentials.db") as database:
            # The last sign carries the end of the seal.
            database.execute(
                "UPDATE bot_credentials SET api_key = substr(api_key, 1, length(api_key) - 8) || 'AAAAAAAA' "
                "WHERE user_id = ?",
                [USER],
            )
        database.close()
        async with beside(repeat(lambda: running.client.get_balance(USER, "fakex", max_age=0))):
            yield [running.service.metrics_address]


@asynccontextmanager
async def no_database(folder: Path) -> AsyncIterator[Sequence[str]]:
    """The PostgreSQL hangs."""
    with closing(PostgresServer()) as database:
        async with serving(
            folder, registry=registry_of(ScriptedPlugin()), database_url=database.url, **METRICS
        ) as running:
            await running.store()
            numbers = itertools.count()
            database.freeze()
            try:
                async with beside(repeat(lambda: running.client.get_balance(f"user-{next(numbers)}", "fakex"))):
                    yield [running.service.metrics_address]
            finally:
                database.thaw()


@asynccontextmanager
async def no_redis(folder: Path) -> AsyncIterator[Sequence[str]]:
    """The Redis has ended."""
    with RedisServer() as redis:
        async with serving(
            folder, registry=registry_of(ScriptedPlugin()), cache_url=redis.url, hash_key="k" * 20, **METRICS
        ) as running:
            redis.kill()
            async with beside(repeat(new_users(running))):
                yield [running.service.metrics_address]


@asynccontextmanager
async def no_memory(folder: Path) -> AsyncIterator[Sequence[str]]:
    """The process has as much memory as it may have."""
    limit = max(psutil.Process().memory_info().rss // MEBIBYTE, 1)
    async with serving(folder, registry=registry_of(ScriptedPlugin()), memory_limit=limit, **METRICS) as running:
        await running.store()

        async def subscribe() -> None:
            async for _ in running.client.stream_balances(USER):
                break

        async with beside(repeat(subscribe)):
            yield [running.service.metrics_address]


@asynccontextmanager
async def bug(folder: Path) -> AsyncIterator[Sequence[str]]:
    """A part of the service raises what no code of ours should raise."""
    async with serving(folder, registry=registry_of(ScriptedPlugin()), **METRICS) as running:

        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError

        running.service.streams.subscribe = broken  # type: ignore[assignment, method-assign]

        async def subscribe() -> None:
            async for _ in running.client.stream_balances(USER):
                pass

        async with beside(repeat(subscribe)):
            yield [running.service.metrics_address]


@asynccontextmanager
async def blocked_loop(folder: Path) -> AsyncIterator[Sequence[str]]:
    """Something keeps the event loop of a service, which has a thread of its own here."""
    address: list[str] = []
    begun, ending = threading.Event(), threading.Event()

    async def block() -> None:
        async with serving(folder, registry=registry_of(ScriptedPlugin()), **METRICS) as running:
            address.append(running.service.metrics_address)
            begun.set()
            while not ending.is_set():
                time.sleep(0.4)  # noqa: ASYNC251
                await asyncio.sleep(0.02)

    thread = threading.Thread(target=lambda: asyncio.run(block()))
    thread.start()
    try:
        assert await asyncio.to_thread(begun.wait, 20)
        yield address
    finally:
        ending.set()
        await asyncio.to_thread(thread.join)


@asynccontextmanager
async def few_files(folder: Path) -> AsyncIterator[Sequence[str]]:
    """A process that may have hardly more open files than it has."""
    arguments = ("serve", "--address", "127.0.0.1:0", "--metrics-address", f"127.0.0.1:{free_port()}")
    with started(folder, *arguments) as process:
        await until_scraped(arguments[-1])
        files = await asyncio.to_thread(open_files, arguments[-1])
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (files * 10 // 9, files * 10 // 9))
        yield [arguments[-1]]


def ending_certificate(days: float) -> Callable[[Path], Made]:
    """A server's certificate that ends in so many days."""

    @asynccontextmanager
    async def made(folder: Path) -> AsyncIterator[Sequence[str]]:
        settings = tls(write(folder, "exchange-service", days))
        async with serving(folder, registry=registry_of(ScriptedPlugin()), **settings, **METRICS) as running:
            yield [running.service.metrics_address]

    return made


@asynccontextmanager
async def unknown_callers(folder: Path) -> AsyncIterator[Sequence[str]]:
    """Calls without a token, where one is needed."""
    registry = registry_of(ScriptedPlugin())
    async with (
        serving(folder, registry=registry, service_tokens=True, hash_key="k" * 20, **METRICS) as running,
        beside(repeat(lambda: running.client.get_balance(USER, "fakex"))),
    ):
        yield [running.service.metrics_address]


async def until_scraped(address: str) -> None:
    """Wait until the metrics are served there."""
    async with asyncio.timeout(30):
        while True:
            try:
                await asyncio.to_thread(read, address)
                return
            except OSError:
                await asyncio.sleep(0.1)


def open_files(address: str) -> int:
    """How many files the process that serves these metrics has open."""
    for family in text_string_to_metric_families(read(address)):
        if family.name == "process_open_fds":
            return int(family.samples[0].value)
    raise AssertionError("the process does not show its open files")


LIMITS = (RateLimit("address", 20, 5),)
DOWN = VenueUnavailable("The venue is down.")
TOO_MANY = VenueRateLimited("Too many requests.", retry_after=0.01)
TROUBLES = (
    Trouble("ended", {"ExchangeServiceDown"}, nobody),
    Trouble("unknown", {"ExchangeServiceMissing"}, unknown),
    Trouble("wrong-keyset", {"ExchangeServiceNotServing"}, wrong_keyset),
    Trouble("no-database", {"ExchangeServiceStoreAway"}, no_database),
    Trouble("no-redis", {"ExchangeServiceRedisAway"}, no_redis),
    Trouble("no-memory", {"ExchangeServiceMemoryLow", "ExchangeServiceOverloaded"}, no_memory),
    Trouble("bug", {"ExchangeServiceFails"}, bug),
    # A call whose time ends while the database owes answers is told so: each of these callers asks for a new account.
    Trouble("impatient-callers", {"ExchangeServiceTooSlow"}, impatient_callers, {"ExchangeServiceStoreAway"}),
    Trouble("blocked-loop", {"ExchangeServiceLoopStalls"}, blocked_loop),
    Trouble("few-files", {"ExchangeServiceFilesLow"}, few_files),
    Trouble("certificate-10", {"ExchangeServiceCertificateEnds"}, ending_certificate(10)),
    Trouble(
        "certificate-2",
        {"ExchangeServiceCertificateEnds", "ExchangeServiceCertificateEndsSoon"},
        ending_certificate(2),
    ),
    Trouble("unknown-callers", {"ExchangeServiceCallersUnknown"}, unknown_callers),
    Trouble("damaged-row", {"ExchangeServiceCredentialsUnreadable"}, damaged_row),
    Trouble(
        "venue-away",
        {"ExchangeServiceVenueAway"},
        venue(raising(DOWN)),
        {"ExchangeServiceVenueFails"},
    ),
    Trouble("venue-fails", {"ExchangeServiceVenueFails"}, venue(mostly(DOWN))),
    Trouble(
        "malformed",
        {"ExchangeServiceVenueMalformed"},
        venue(mostly(VenueMalformed("The answer has no balance."))),
    ),
    Trouble("limited", {"ExchangeServiceVenueLimitsUs"}, venue(raising(TOO_MANY)), {"ExchangeServiceVenueAway"}),
    Trouble("budget", {"ExchangeServiceVenueBudgetSpent"}, crowded_venue(ScriptedPlugin(listing(limits=LIMITS)))),
    Trouble("slow-venue", {"ExchangeServiceVenueSlow"}, crowded_venue(ScriptedPlugin(answer=slow(3.0)))),
    Trouble("clock", {"ExchangeServiceClockSkew"}, venue(raising(ClockSkew("Timestamp is ahead.")))),
    Trouble(
        "last-good",
        {"ExchangeServiceLastGood"},
        last_good,
        {"ExchangeServiceVenueAway", "ExchangeServiceVenueFails"},
    ),
    Trouble("old-streams", {"ExchangeServiceStreamsOld"}, old_streams),
    Trouble("missed-pushes", {"ExchangeServicePushesMissed"}, missed_pushes),
    Trouble("broken-pushes", {"ExchangeServicePushesBreak"}, broken_pushes),
    Trouble("failing-plugin", {"ExchangeServicePluginFails"}, venue(raising(RuntimeError("a bug of a plugin")))),
    Trouble("restarting-plugin", {"ExchangeServicePluginRestarts"}, restarting_plugin),
)
