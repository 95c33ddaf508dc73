"""What the tests of the running service share: a service with its client, venues of their own making, and the whole of
what a failed call carries."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from exchange_service.app import BalanceOptions, Service, open_balances, start_service
from exchange_service.balances.freshness import Freshness
from exchange_service.balances.service import BalanceResult, Balances
from exchange_service.cache.memory import MemoryCache
from exchange_service.client import ExchangeServiceClient
from exchange_service.credentials.references import CachedReferences
from exchange_service.credentials.sql import SqlCredentialStore, open_store
from exchange_service.model import PluginInfo
from exchange_service.plugin_api import (
    SANDBOX,
    Account,
    AssetBalance,
    Balance,
    Capabilities,
    Credential,
    Environment,
    ExchangeMetadata,
    Manifest,
    VenueAccount,
    VenueCall,
    hookimpl,
)
from exchange_service.settings import Settings
from exchange_service.v1 import exchange_service_pb2 as messages
from exchange_service.v1 import exchange_service_pb2_grpc
from exchange_service.venue_gate import Gated, GateOptions
from exchange_service.venues.fetching import Target
from exchange_service.venues.http_pool import VenueHttpPool
from exchange_service.venues.loading import LoadedPlugin, load_plugin
from exchange_service.venues.priority import Priority
from exchange_service.venues.registry import Registry
from exchange_service.venues.sessions import Sessions
from exchange_service.wire.balances import FetchedBalance

USER = "alice"
HASH_KEY = b"0123456789abcdef"
# Longer than anything here takes, on a busy machine too; only a failing test waits for it.
PATIENCE = 15.0

Answer = Callable[[VenueCall], Awaitable[Any]]


def listing(exchange_id: str = "fakex", **changes: Any) -> ExchangeMetadata:
    """A listing with a production environment alone, unless `changes` say otherwise."""
    plain: dict[str, Any] = {
        "id": exchange_id,
        "name": exchange_id.title(),
        "asset_class": "Crypto",
        "asset_types": "Crypto Spot",
        "market_hours": "24/7 Trading",
        "environments": (Environment("production", {"api": "https://venue.example"}, aliases=("live",)),),
    }
    plain |= changes
    sandbox = any(environment.name == SANDBOX for environment in plain["environments"])
    return ExchangeMetadata(**({"capabilities": Capabilities(sandbox=sandbox)} | plain))


def holding(*rows: tuple[str, str], **changes: Any) -> Balance:
    """A balance of one venue account that holds these assets, each with its total."""
    assets = tuple(AssetBalance(asset, total=Decimal(total)) for asset, total in rows)
    return Balance((VenueAccount(id="1", type="spot", assets=assets),), **changes)


class ScriptedPlugin:
    """A plugin that answers as the test says; `calls` are those that reached it."""

    def __init__(self, *listings: ExchangeMetadata, answer: Answer | None = None, api_version: int = 1) -> None:
        self.manifest = Manifest(api_version, listings or (listing(),))
        self.calls: list[VenueCall] = []
        self.answer = answer or returning(holding(("BTC", "1.50")))

    @hookimpl
    def exchange_manifest(self) -> Manifest:
        return self.manifest

    @hookimpl
    async def fetch_balance(self, call: VenueCall) -> Balance:
        self.calls.append(call)
        balance: Balance = await self.answer(call)
        return balance


def returning(value: Any) -> Answer:
    """A venue that always answers this."""

    async def answer(_: VenueCall) -> Any:
        return value

    return answer


def raising(error: BaseException) -> Answer:
    """A venue, or a plugin, that always fails so."""

    async def answer(_: VenueCall) -> Any:
        raise error

    return answer


@dataclass
class Gate:
    """An answer that waits until the test lets it go."""

    value: Any = field(default_factory=lambda: holding(("BTC", "1.50")))
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, _: VenueCall) -> Any:
        self.entered.set()
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return self.value


def info(name: str = "fakex", distribution: str = "", version: str = "0.1.0") -> PluginInfo:
    return PluginInfo(name, version, distribution or f"exchange-service-{name}")


def loaded(plugin: object, name: str = "fakex", distribution: str = "") -> LoadedPlugin:
    return load_plugin(plugin, info(name, distribution))


def registry_of(*plugins: object) -> Registry:
    """These plugins and no others, named fakex, fakex2, …"""
    names = ["fakex", *(f"fakex{number}" for number in range(2, len(plugins) + 1))]
    return Registry([loaded(plugin, name) for plugin, name in zip(plugins, names, strict=True)])


@dataclass(slots=True)
class Running:
    """A service and a client of it."""

    service: Service
    client: ExchangeServiceClient

    @property
    def stub(self) -> Any:
        """The calls as gRPC makes them, with status, details and trailers."""
        return exchange_service_pb2_grpc.ExchangeServiceStub(self.client.channel)

    async def store(
        self,
        exchange_id: str = "fakex",
        *,
        user: str = USER,
        environment: str = "production",
        metadata: Mapping[str, Any] | None = None,
        **texts: str,
    ) -> None:
        """Store a credential; an API key is made up where none is given."""
        credential = Credential.from_texts(texts or {"api_key": "a-key-for-tests"}, metadata)
        await self.service.store.put(Account(user, exchange_id, environment), credential)

    async def remove(self, exchange_id: str = "fakex", *, user: str = USER) -> None:
        await self.service.store.remove(Account(user, exchange_id))


def settings_for(folder: Path, **changes: Any) -> Settings:
    plain: dict[str, Any] = {
        "address": "127.0.0.1:0",
        "database_url": f"sqlite:///{folder / 'credentials.db'}",
        "shutdown_grace": 1.0,
    }
    return Settings(**(plain | changes))


@asynccontextmanager
async def serving(folder: Path, *, registry: Registry | None = None, **changes: Any) -> AsyncIterator[Running]:
    """A service on a free port of loopback, with the installed plugins unless others are given."""
    service = await start_service(settings_for(folder, **changes), registry=registry)
    try:
        async with ExchangeServiceClient(service.address) as client:
            yield Running(service, client)
    finally:
        await service.stop()


@dataclass(frozen=True, slots=True)
class Failure:
    """All that a failed call carries."""

    code: grpc.StatusCode
    message: str
    details: tuple[Message, ...]
    trailers: Mapping[str, Any]

    def every(self, kind: type[Message]) -> list[Any]:
        return [detail for detail in self.details if isinstance(detail, kind)]

    @property
    def reason(self) -> str:
        (detail,) = self.every(error_details_pb2.ErrorInfo)
        assert detail.domain == "exchange-service"
        return str(detail.reason)

    @property
    def retry_delay(self) -> float | None:
        delays = self.every(error_details_pb2.RetryInfo)
        return delays[0].retry_delay.ToTimedelta().total_seconds() if delays else None

    @property
    def fields(self) -> list[str]:
        return [item.field for request in self.every(error_details_pb2.BadRequest) for item in request.field_violations]


_DETAILS = (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo)


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
    return Failure(error.code(), error.details() or "", unpacked(status), trailers)


def unpacked(status: status_pb2.Status) -> tuple[Message, ...]:
    details: list[Message] = []
    for packed in status.details:
        kind = next(kind for kind in _DETAILS if packed.Is(kind.DESCRIPTOR))
        details.append(kind.FromString(packed.value))
    return tuple(details)


async def failure(call: Awaitable[Any]) -> Failure:
    """How the call fails; that it does not is an error of the test."""
    try:
        reply = await call
    except grpc.aio.AioRpcError as error:
        return failure_of(error)
    raise AssertionError(f"the call should fail, and answered {reply}")


def balance_request(exchange_id: str = "fakex", **changes: Any) -> messages.GetBalanceRequest:
    return messages.GetBalanceRequest(**({"user_id": USER, "exchange_id": exchange_id} | changes))


async def until(check: Callable[[], Any], what: str = "it") -> None:
    """Wait for something that no event announces."""
    deadline = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < deadline, f"{what} did not come true in time"
        await asyncio.sleep(0.01)


async def eventually(check: Callable[[], Awaitable[Any]], what: str = "it") -> None:
    """The same for what has to be asked for."""
    deadline = time.monotonic() + PATIENCE
    while not await check():
        assert time.monotonic() < deadline, f"{what} did not come true in time"
        await asyncio.sleep(0.02)


class Stream:
    """An open StreamBalances call, read event by event."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def next(self) -> Any:
        """The next event of any kind; what the call ends with is raised."""
        async with asyncio.timeout(PATIENCE):
            event = await self.call.read()
        if event is grpc.aio.EOF:
            raise AssertionError(f"the stream ended with {await self.call.code()}")
        return event

    async def next_of(self, kind: str) -> Any:
        """The next "balance", "account_error" or "heartbeat"; events of other kinds are passed over."""
        while True:
            event = await self.next()
            if event.WhichOneof("event") == kind:
                return getattr(event, kind)

    async def failure(self) -> Failure:
        """How the stream ends."""
        try:
            while True:
                await self.next()
        except grpc.aio.AioRpcError as error:
            return failure_of(error)


@asynccontextmanager
async def streaming(
    running: Running, *accounts: messages.AccountSelector | str, user: str = USER
) -> AsyncIterator[Stream]:
    """A stream of these accounts, of all where none is named; it is cancelled at the end."""
    selectors = [
        messages.AccountSelector(exchange_id=account) if isinstance(account, str) else account for account in accounts
    ]
    call = running.stub.StreamBalances(messages.StreamBalancesRequest(user_id=user, accounts=selectors))
    try:
        yield Stream(call)
    finally:
        call.cancel()


def totals(balance: Any) -> dict[str, str]:
    """Asset to total, over all venue accounts."""
    return {row.asset: row.total for account in balance.venue_accounts for row in account.assets}


@dataclass(slots=True)
class Clock:
    """A wall clock that a test moves; it also moves by itself if it is `ticking`."""

    now: float = 1_800_000_000.0
    ticking: bool = False

    def __call__(self) -> float:
        return self.now + (time.monotonic() if self.ticking else 0.0)


class OffsetClock:
    """The running event loop's clock, which `advance` moves ahead, so that a test need not wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        true_time = loop.time
        self.seconds = 0.0
        monkeypatch.setattr(loop, "time", lambda: true_time() + self.seconds)

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


class SessionsByTheTestsClock(Sessions):
    """Sessions whose answers are of the moment at which they are stored: the clock of a test stands still."""

    async def fetch(self, target: Target, deadline: float, priority: Priority) -> FetchedBalance:
        fetched = await super().fetch(target, deadline, priority)
        target.reports.answered_at = None
        return fetched


@dataclass(slots=True)
class TestService:
    """Balances with a store, sessions and a cache, as the service joins them, but without its server.

    References are looked up each time, so that a changed credential is seen at once, unless the test says otherwise.
    """

    # Pytest would collect it by its name.
    __test__ = False

    store: SqlCredentialStore
    sessions: Sessions
    balances: Balances
    registry: Registry
    cache: MemoryCache
    clock: Clock

    @property
    def gate(self) -> Gated:
        """The gate that every fetch passes."""
        fetcher: Any = self.balances.fetcher
        gate: Gated = fetcher.inner.inner
        return gate

    async def put(
        self, exchange_id: str = "fakex", *, user: str = USER, metadata: Mapping[str, Any] | None = None, **texts: str
    ) -> Account:
        account = Account(user, exchange_id)
        await self.store.put(account, Credential.from_texts(texts or {"api_key": "a-key-for-tests"}, metadata))
        return account

    async def get(
        self,
        exchange_id: str = "fakex",
        *,
        user: str = USER,
        max_age: float | None = None,
        timeout: float = 10.0,
        known_version: int = 0,
    ) -> BalanceResult:
        account, exchange = self.registry.account(user, exchange_id, "")
        deadline = asyncio.get_running_loop().time() + timeout
        return await self.balances.get(
            account, exchange, max_age=max_age, deadline=deadline, known_version=known_version
        )


@asynccontextmanager
async def open_test_service(
    folder: Path,
    *plugins: object,
    overrides: Mapping[str, str] | None = None,
    reference_ttl: float = 0.0,
    **options: Any,
) -> AsyncIterator[TestService]:
    registry = registry_of(*plugins)
    store = await open_store(f"sqlite:///{folder / 'credentials.db'}", HASH_KEY)
    http = VenueHttpPool(timeout=5.0)
    sessions = SessionsByTheTestsClock(store.open, http, overrides=overrides)
    cache, clock = options.pop("cache", MemoryCache()), Clock()
    references = CachedReferences(store, ttl=reference_ttl)
    limits = {name: options.pop(name) for name in ("max_age", "stale_grace") if name in options}
    # One attempt for each balance, so that a venue's calls can be counted; tests/test_venue_gate.py is about more.
    plain = {"gate": GateOptions(attempts=1), "freshness": Freshness(**limits, now=clock)}
    balances = open_balances(sessions, references, cache, BalanceOptions(HASH_KEY, **(plain | options)))
    try:
        yield TestService(store, sessions, balances, registry, cache, clock)
    finally:
        await balances.close()
        await sessions.close()
        await http.close()
        await cache.close()
        # SQLite's driver complains of a connection whose opening is cancelled.
        if references._requests:
            await asyncio.wait({request.answer for request in references._requests.values()})
        await store.close()
        await registry.close()


@contextmanager
def without_collections() -> Iterator[None]:
    """Whatever refers to itself stays in memory."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def alive(kind: type) -> int:
    return sum(type(found) is kind for found in gc.get_objects())
