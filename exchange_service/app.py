"""The composition: settings in, running service out. Everything is joined here and closed in reverse order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from exchange_service import clock
from exchange_service.accounts.audit import AccountAudit
from exchange_service.accounts.candidates import Candidates
from exchange_service.accounts.service import Accounts
from exchange_service.accounts.trying import Attempts, GatedVenues
from exchange_service.balances.cached import CachedBalances
from exchange_service.balances.credential_changes import CredentialChanges
from exchange_service.balances.freshness import Freshness, PollBackoff
from exchange_service.balances.instrumented import Instrumented, instrumented_opening
from exchange_service.balances.keys import BalanceKeys
from exchange_service.balances.known import LastFetches
from exchange_service.balances.leases import Leased
from exchange_service.balances.lineage import Lineage
from exchange_service.balances.push_room import PushRoom
from exchange_service.balances.refusals import Refusals
from exchange_service.balances.replacements import Replacements
from exchange_service.balances.service import BalanceReader, Balances, forced_below
from exchange_service.balances.single_flight import SingleFlight
from exchange_service.balances.watches import Watches
from exchange_service.cache import Cache, make_cache, open_link, open_sealed
from exchange_service.catalogue import Catalogue
from exchange_service.credentials import CredentialReference
from exchange_service.credentials.configured import configured_hash_key, open_configured_store
from exchange_service.credentials.configured_keyset import configured_wrapping, keep_token, wait_for_keyset
from exchange_service.credentials.key_check import KeyWatch
from exchange_service.credentials.references import CachedReferences
from exchange_service.credentials.sql import SqlCredentialStore
from exchange_service.gc_tuning import collect_while_quick
from exchange_service.grpc_server.account_servicer import AccountServicer
from exchange_service.grpc_server.certificates import (
    CertificateFiles,
    RenewedCertificates,
    UnusableCertificates,
    watch_ends,
)
from exchange_service.grpc_server.methods import ServiceMethods
from exchange_service.grpc_server.plugin_servicer import PluginServicer
from exchange_service.grpc_server.requests import RequestReader
from exchange_service.grpc_server.server import BindError, ConnectionLimits, Server, listen
from exchange_service.grpc_server.servicer import Servicer
from exchange_service.grpc_server.turns import Openings, Writes
from exchange_service.grpc_server.write_limit import WriteLimit
from exchange_service.identity.authenticator import Authenticator
from exchange_service.identity.methods import account_attempts, open_authenticator, who_may_call
from exchange_service.memory_limit import MemoryLimit
from exchange_service.model import Credential
from exchange_service.observability.health_pages import HealthPages
from exchange_service.observability.metrics import Build, Metrics, ProcessOfPlugin, PushConnections
from exchange_service.observability.metrics_server import MetricsNotShown, MetricsServer
from exchange_service.observability.redaction import LIVE
from exchange_service.observability.tracing import Tracing
from exchange_service.open_files import idle_seconds, shares_of_connections
from exchange_service.plugin_host.client import PluginClients, ProcessSettings
from exchange_service.plugin_host.discovery import open_registry
from exchange_service.plugin_host.report import PluginReport
from exchange_service.plugin_host.sandbox import own_ports
from exchange_service.plugin_host.supervisor import ProcessState
from exchange_service.settings import Settings, unknown_variables
from exchange_service.spare_memory import give_back_spare_memory
from exchange_service.startup_checks import (
    UnsafeSettings,
    check_plugin_settings,
    check_settings,
    open_egress,
    unencrypted_warnings,
    unused_settings,
    venue_overrides,
)
from exchange_service.streams.service import Streams, StreamSettings
from exchange_service.venue_gate import Gated, GateOptions
from exchange_service.venue_gate.status import VenueStatus
from exchange_service.venues.egress import Egress
from exchange_service.venues.fetching import Target, Venues
from exchange_service.venues.http_pool import VenueHttpPool
from exchange_service.venues.registry import PluginProblem, Registry
from exchange_service.venues.replacing import ReplaceCredential
from exchange_service.venues.sessions import Sessions
from exchange_service.web import Web, open_web

if TYPE_CHECKING:
    from exchange_service.cache.sealed_redis import SealedRedis

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Service:
    """A running service. Stop it with `stop`, or wait in `run_until_signal`."""

    settings: Settings
    server: Server
    registry: Registry
    store: SqlCredentialStore
    cache: Cache
    venues: PluginClients
    balances: Balances
    streams: Streams
    key_watch: KeyWatch
    metrics: Metrics
    status: VenueStatus
    # The address of the metrics, with the port that was taken; empty if they are not served.
    metrics_address: str
    # The same for /livez and /readyz.
    health_address: str
    web: Web
    _stack: AsyncExitStack

    @property
    def address(self) -> str:
        """Where it listens, with the port that was taken."""
        return self.server.address

    async def stop(self, delay: float = 0.0) -> None:
        """Say NOT_SERVING, and serve on for `delay` seconds; then end the streams with a reason, give calls their
        grace, and close everything."""
        self.key_watch.end()
        await self.server.set_serving(False)
        if delay:
            log.info("service.leaving", seconds=delay)
            await asyncio.sleep(delay)
        await self.streams.close()
        # Shortly before the grace is over, what still waits for a venue is told why, instead of being cut off.
        asyncio.get_running_loop().call_later(max(0.0, self.settings.shutdown_grace - 0.3), self.balances.end)
        grace = self.settings.shutdown_grace
        await asyncio.gather(self.server.stop(grace), self.web.stop(grace))
        await self._stack.aclose()

    async def run_until_signal(
        self, ready: Callable[[], None] = lambda: None, leaving: Callable[[], None] = lambda: None
    ) -> None:
        """Serve until SIGTERM or SIGINT, then stop. `ready` is called once they are heeded, `leaving` when one came."""
        loop = asyncio.get_running_loop()
        stopping: asyncio.Future[signal.Signals] = loop.create_future()

        def heed(name: signal.Signals) -> None:
            if not stopping.done():
                stopping.set_result(name)

        before = signal.getsignal(signal.SIGTERM)
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, heed, name)
        delay = 0.0
        try:
            ready()
            # A person who interrupts waits for the end; an orchestrator's load balancer has to notice it first.
            delay = self.settings.leaving_delay if await stopping is signal.SIGTERM else 0.0
            leaving()
        finally:
            # A second signal ends the process at once.
            for name in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(name)
            if before is not None:
                signal.signal(signal.SIGTERM, before)
            await self.stop(delay)


@dataclass(frozen=True, slots=True)
class BalanceOptions:
    """How balances are read: what the layers of the road are given. `venue_timeout` is in seconds."""

    hash_key: bytes = field(repr=False)
    freshness: Freshness = field(default_factory=Freshness)
    backoff: PollBackoff = field(default_factory=PollBackoff)
    gate: GateOptions = field(default_factory=GateOptions)
    venue_timeout: float = 8.0


def open_balances(
    venues: Venues,
    references: CachedReferences,
    cache: Cache,
    options: BalanceOptions,
    gated: Gated | None = None,
    replacements: Replacements | None = None,
) -> Balances:
    """GetBalance's use case. The road of a fetch is one stack: each layer has the next one inside; `gated` is what
    others go through as well, and `replacements` what stores tokens that rotate."""
    freshness, backoff, gate = options.freshness, options.backoff, options.gate
    refusals, fetches = Refusals(freshness.was_good_lately, freshness.now), LastFetches(freshness.now)
    seconds, now = options.venue_timeout, freshness.now

    def done(target: Target, error: BaseException | None) -> None:
        refusals.on_fetch_done(target, error)
        fetches.on_fetch_done(target, error)
        credentials.on_fetch_done(target, error)

    ttl = max(freshness.stale_grace, freshness.max_age)
    cached = CachedBalances(cache, ttl, longest_pause=2 * backoff.idle, now=now)
    gated = gated or Gated(Instrumented(venues, gate.metrics), gate)
    leased = Leased(gated, cached, backoff, now)
    road = SingleFlight(leased, seconds, done)
    keys, credentials = (
        BalanceKeys(options.hash_key),
        CredentialChanges(options.hash_key, references, venues, cached, refusals),
    )
    if replacements is not None:
        replacements.on_replaced, replacements.on_conflict = credentials.publish_replacement, references.forget
    lineage = replacements.lineage if replacements is not None else Lineage()
    parts = (references, road, cached, refusals, credentials, keys, freshness, leased.store_pushed, fetches, lineage)
    return Balances(*parts)


async def start_service(
    settings: Settings, *, registry: Registry | None = None, accounts_apart: bool = False
) -> Service:
    """Join all parts and listen. Raises UnsafeSettings, BindError, or KeysetInvalid for a wrapped keyset that does not
    open, each with a sentence for the operator.

    `accounts_apart` is for a demo, see GateOptions.
    """
    check_settings(settings)
    for text in unencrypted_warnings(settings):
        log.warning("settings.unencrypted", problem=text)
    for name in unknown_variables():
        log.warning("settings.unknown_variable", name=name)
    # Before the plugins: a sealed setting of theirs needs the keys.
    await wait_for_keyset(settings)
    stack = AsyncExitStack()
    try:
        return await _join(settings, registry or open_registry(settings), stack, accounts_apart)
    except BaseException:
        await stack.aclose()
        raise


@dataclass(frozen=True, slots=True)
class _Storage:
    """Where the service keeps and finds things."""

    hash_key: bytes = field(repr=False)
    store: SqlCredentialStore
    references: CachedReferences
    # What replicas share; None if there is one process only.
    shared: SealedRedis | None
    cache: Cache
    # Whether balances are cached in a Redis.
    has_redis: bool


async def _open_storage(settings: Settings, stack: AsyncExitStack) -> _Storage:
    hash_key = _hash_key(settings)
    store = await open_configured_store(settings, hash_key)
    stack.push_async_callback(store.close)
    link = open_link(settings.cache_url)
    sealed = None
    if link is not None:
        stack.push_async_callback(link.close)
        sealed = open_sealed(link, hash_key, prefix=settings.cache_prefix)
    cache = make_cache(sealed)
    stack.push_async_callback(cache.close)
    # With a key of its own a process shares nothing, and keeps to its part of the limits.
    shared = sealed if settings.hash_key is not None else None
    return _Storage(hash_key, store, CachedReferences(store), shared, cache, link is not None)


@dataclass(frozen=True, slots=True)
class _Road:
    """What reads balances, and tries credentials that are not stored."""

    venues: PluginClients
    gated: Gated
    balances: Balances
    candidates: Candidates


def _open_road(
    settings: Settings,
    registry: Registry,
    storage: _Storage,
    gate: GateOptions,
    metrics: Metrics,
    stack: AsyncExitStack,
) -> _Road:
    http = VenueHttpPool(timeout=settings.venue_timeout, traced=settings.traces != "off")
    stack.push_async_callback(http.close)
    candidates = Candidates(storage.hash_key)
    replacements = Replacements(storage.store, Lineage(storage.cache))
    # After the venues: a plugin may bring a new token until it is closed.
    stack.push_async_callback(replacements.close)
    from_store = instrumented_opening(storage.references.open, metrics)
    opening = candidates.opening(replacements.opening(from_store, registry.rotates))
    replacing = candidates.replacing(replacements.replace)
    venues = open_venues(settings, registry, opening, http, gate.status, replacing, gate.egress)
    stack.push_async_callback(venues.close)
    metrics.watch_connections(lambda: _push_connections(http, venues))
    gated = Gated(Instrumented(venues, metrics), gate)
    options = _balance_options(settings, storage.hash_key, gate)
    balances = open_balances(venues, storage.references, storage.cache, options, gated, replacements)
    stack.push_async_callback(balances.close)
    return _Road(venues, gated, balances, candidates)


async def _join(settings: Settings, registry: Registry, stack: AsyncExitStack, accounts_apart: bool) -> Service:
    """Make each part from the ones before it, and put its closing on the stack."""
    _log_problems(registry.problems)
    for sentence in unused_settings(settings, registry):
        log.warning("settings.unused", reason=sentence)
    stack.push_async_callback(registry.close)
    storage = await _open_storage(settings, stack)
    tracing = _open_tracing(settings, stack)
    status, metrics = VenueStatus(), Metrics(lambda: registry.listings, Build(settings.engine_in_use))
    if storage.has_redis:
        metrics.watch("redis", lambda: storage.cache.shared)
    egress = _open_egress(settings, registry, stack)
    gate = _gate_options(settings, storage.shared, status, metrics, egress, accounts_apart=accounts_apart)
    road = _open_road(settings, registry, storage, gate, metrics, stack)
    venues, balances = road.venues, road.balances
    limits, on_event_age = _stream_settings(settings), metrics.value_handed_out
    watches = _open_watches(settings, balances, venues, metrics, egress, stack, tracing)
    stored = storage.references.accounts
    streams = Streams(registry, balances, stored, limits, on_event_age=on_event_age, watches=watches, tracing=tracing)
    authenticator = _open_authenticator(settings, storage)
    stack.push_async_callback(authenticator.close)
    reader = _balance_reader(settings, balances, authenticator, metrics)
    writes = WriteLimit(settings.write_timeout, metrics.event_written)
    # The catalogue is made of this process's own plugins, so its answers stay in the process.
    catalogue = Catalogue(registry, status, egress)
    openings, turns = _turns(settings, metrics)
    servicer = Servicer(RequestReader(registry), authenticator, catalogue, reader, streams, writes, turns)
    plugins = PluginServicer(PluginReport(registry, venues, settings.plugin_sandbox))
    accounts = _accounts(settings, registry, storage, road, stack)
    managing = AccountServicer(accounts, authenticator, egress)
    # Before the first call: a service without the right keys must not be taken for one that works.
    key_watch = KeyWatch(storage.store)
    may_serve = await key_watch.first()
    pages = HealthPages(asyncio.get_running_loop())
    metrics_address, health_address = _serve_http(metrics, pages, settings, stack)
    services = (servicer.methods(), plugins.methods(), managing.methods())
    over_grpc, over_http = shares_of_connections(serves_http=settings.http_address is not None)
    server = await _listen(settings, services, authenticator, metrics, openings, over_grpc, tracing)
    # A running service stops it before all else; here it is stopped if a later step of the start fails.
    stack.push_async_callback(server.stop, 0.0)
    web = open_web(settings, server.direct, storage.hash_key, certificate_files(settings), over_http)
    stack.push_async_callback(web.stop)
    pages.is_serving = lambda: server.health.is_serving
    _watch(metrics, streams, server, lambda: _process_figures(registry, venues))
    await server.set_serving(may_serve)
    background = _background(settings, registry, venues, metrics)
    for work, name in (*background, (key_watch.run(server.set_serving), "proof of keys")):
        stack.push_async_callback(_end, asyncio.create_task(work, name=name))
    _log_start(settings, registry, server, web)
    parts = (registry, storage.store, storage.cache, venues, balances, streams, key_watch, metrics, status)
    return Service(settings, server, *parts, metrics_address, health_address, web, stack)


def _log_start(settings: Settings, registry: Registry, server: Server, web: Web) -> None:
    exchanges, serving = len(registry.listings), who_may_call(settings)
    engine = settings.engine_in_use
    log.info("service.listening", address=server.address, exchanges=exchanges, serving=serving, engine=engine)
    if web.address:
        log.info("http.listening", address=web.address)


def _accounts(
    settings: Settings, registry: Registry, storage: _Storage, road: _Road, stack: AsyncExitStack
) -> Accounts | None:
    """What manages accounts for callers; None unless the operator allows it."""
    if not settings.manage_accounts:
        return None
    balances, store = road.balances, storage.store
    limit = account_attempts(settings, storage.hash_key, storage.shared)
    venues = GatedVenues(road.gated, road.venues)
    attempts = Attempts(venues, road.candidates, limit, balances.keys.user_key, settings.venue_timeout)
    accounts = Accounts(registry, store, balances, attempts, AccountAudit(store.vault.audit.hash_user))
    stack.push_async_callback(accounts.close)
    return accounts


def _open_tracing(settings: Settings, stack: AsyncExitStack) -> Tracing | None:
    """What begins spans; None if the settings ask for none. Raises UnsafeSettings if it is not installed."""
    if settings.traces == "off":
        return None
    # Late, because a service without traces does without their library.
    from exchange_service.observability.spans import TracesNotInstalled, open_tracing

    try:
        tracing = open_tracing(settings.traces, settings.traces_endpoint, settings.traces_ratio)
    except TracesNotInstalled as missing:
        raise UnsafeSettings(
            f"traces=otlp needs {missing}, which is not installed: install exchange-service[traces]."
        ) from None
    except ValueError:
        # Not its text: one of them holds the receiver's key.
        raise UnsafeSettings(
            "traces=otlp: correct the environment variable OTEL_... that has no valid value."
        ) from None
    stack.push_async_callback(asyncio.to_thread, tracing.stop)
    return tracing


def _open_watches(
    settings: Settings,
    balances: Balances,
    venues: Venues,
    metrics: Metrics,
    egress: Egress,
    stack: AsyncExitStack,
    tracing: Tracing | None,
) -> Watches | None:
    """What follows venues' pushes; None if the operator has switched that off."""
    if not settings.push:
        return None
    room = PushRoom(balances.cached, settings.replicas)
    watches = Watches(balances, venues, room, metrics, egress=egress, tracing=tracing)
    metrics.watch_pushes(watches.counts)
    stack.push_async_callback(watches.close)
    return watches


def _turns(settings: Settings, metrics: Metrics) -> tuple[Openings, Writes]:
    """The turns of streams that open, which need memory, and of writes to those that are open."""
    memory = MemoryLimit(settings.memory_limit)
    metrics.watch_memory(memory.left)
    openings = Openings(memory.has_room, calls_in_batches=settings.engine_in_use == "native")
    return openings, Writes(openings)


def _background(
    settings: Settings, registry: Registry, venues: PluginClients, metrics: Metrics
) -> Iterator[tuple[Coroutine[Any, Any, None], str]]:
    """What runs beside the calls until the service ends, with the names of the tasks."""
    yield _refresh_manifests(registry, venues), "newer manifests"
    yield give_back_spare_memory(), "spare memory"
    yield collect_while_quick(), "collection of circles"
    if (key := configured_wrapping(settings)) is not None and key.access.renews_token:
        yield keep_token(key), "token of the manager of keys"
    if (files := certificate_files(settings)) is not None:
        yield watch_ends(files, metrics.certificates), "ends of certificates"


def _balance_reader(
    settings: Settings, balances: Balances, authenticator: Authenticator, metrics: Metrics
) -> BalanceReader:
    return BalanceReader(
        balances,
        authenticator.take_refresh,
        metrics,
        call_timeout=settings.call_timeout,
        forced_below=forced_below(settings.max_age),
        return_refresh=authenticator.return_refresh,
    )


def _open_authenticator(settings: Settings, storage: _Storage) -> Authenticator:
    """Raises UnsafeSettings if a method of authentication cannot work."""
    try:
        return open_authenticator(settings, storage.hash_key, storage.shared)
    except ValueError as error:
        raise UnsafeSettings(str(error)) from None


def _watch(
    metrics: Metrics, streams: Streams, server: Server, process_figures: Callable[[], Iterable[ProcessOfPlugin]]
) -> None:
    """Let the metrics count what is open now."""
    metrics.watch("feeds", lambda: streams.counts()[0])
    metrics.watch("streams", lambda: streams.counts()[1])
    metrics.watch("calls", server.handler_wrapper.running)
    metrics.watch("serving", lambda: server.health.is_serving)
    metrics.watch_processes(process_figures)


def _stream_settings(settings: Settings) -> StreamSettings:
    return StreamSettings(
        interval=settings.poll_interval,
        heartbeat_interval=settings.heartbeat_interval,
        lifetime=settings.stream_lifetime,
        venue_timeout=settings.venue_timeout,
        reconcile_interval=settings.reconcile_interval,
        polled_exchanges=frozenset(settings.polled_exchanges),
    )


def _balance_options(settings: Settings, hash_key: bytes, gate: GateOptions) -> BalanceOptions:
    return BalanceOptions(
        hash_key,
        Freshness(settings.max_age, settings.stale_grace),
        PollBackoff(settings.poll_interval, max(settings.poll_interval, settings.poll_interval_still)),
        gate,
        settings.venue_timeout,
    )


def _open_egress(settings: Settings, registry: Registry, stack: AsyncExitStack) -> Egress:
    """The ways out. Until the service ends, no log line shows a password of theirs."""
    egress = open_egress(settings, registry)
    held = LIVE.hold(way.proxy.password.reveal() for way in egress.ways.values() if way.proxy is not None)
    stack.callback(held.release)
    return egress


def _gate_options(
    settings: Settings,
    sealed: SealedRedis | None,
    status: VenueStatus,
    metrics: Metrics,
    egress: Egress,
    *,
    accounts_apart: bool,
) -> GateOptions:
    shared = None
    if sealed is not None:
        # Late, because a service without Redis does without its library.
        from exchange_service.venue_gate.redis_state import RedisSharedState

        shared = RedisSharedState(sealed)
    return GateOptions(
        replicas=settings.replicas,
        of_venue=settings.venue_fetches,
        of_plugin=settings.plugin_fetches,
        accounts_apart=accounts_apart,
        shared=shared,
        status=status,
        metrics=metrics,
        egress=egress,
    )


def open_venues(
    settings: Settings,
    registry: Registry,
    open_credential: Callable[[CredentialReference], Awaitable[Credential]],
    http: VenueHttpPool,
    status: VenueStatus,
    replace_credential: ReplaceCredential,
    egress: Egress | None = None,
) -> PluginClients:
    """The plugins' accounts, read in this process and in those of plugins. Raises UnsafeSettings for a setting that
    names a plugin or an exchange that is not installed. `egress`: as `open_egress` gives it, if it is open already."""
    check_plugin_settings(settings, registry)
    overrides = venue_overrides(settings, registry)
    egress = egress or open_egress(settings, registry)
    here = Sessions(
        open_credential,
        http,
        overrides=overrides,
        idle_timeout=settings.session_idle,
        replace_credential=replace_credential,
        egress=egress,
    )
    hosts = ProcessSettings(
        venue_timeout=settings.venue_timeout,
        session_idle=settings.session_idle,
        overrides=overrides,
        memory=settings.plugin_memory,
        processes=settings.plugin_process_counts,
        start_at_once=settings.plugin_start == "at-once",
        sandbox=settings.plugin_sandbox,
        own_ports=own_ports(settings),
        egress=egress,
        traces=settings.traces != "off",
    )
    return PluginClients(
        registry,
        here,
        open_credential,
        hosts,
        replace_credential=replace_credential,
        on_change=lambda plugin, trouble, serves: status.plugin_changed(plugin, trouble, clock.wall(), serves=serves),
    )


async def _refresh_manifests(registry: Registry, venues: PluginClients) -> None:
    """Take newer manifests, and pass them on to the plugins' processes."""
    before, known = registry.generation, set(registry.problems)
    await registry.refresh()
    if registry.generation != before:
        _log_problems(problem for problem in registry.problems if problem not in known)
        await venues.configure()


def _log_problems(problems: Iterable[PluginProblem]) -> None:
    for problem in problems:
        if problem.notice:
            log.warning("plugin.notice", plugin=problem.plugin.name, reason=problem.for_operators)
        else:
            log.warning("plugin.problem", plugin=problem.plugin.name, reason=problem.for_operators)


def _process_figures(registry: Registry, venues: PluginClients) -> Iterator[ProcessOfPlugin]:
    """The plugins' processes, for the metrics."""
    for plugin in registry.plugins:
        for number, status in enumerate(venues.statuses(plugin)):
            running = status.state is ProcessState.RUNNING
            yield ProcessOfPlugin(plugin.info.name, number, running, status.memory, status.restarts)


def _push_connections(http: VenueHttpPool, venues: PluginClients) -> Iterator[tuple[str, PushConnections]]:
    """What is open for pushes, here and in the plugins' processes, for the metrics."""
    for exchange, figures in (*http.push_figures().items(), *venues.push_figures()):
        yield exchange, PushConnections(figures.connections, figures.subscriptions, figures.opened)


def _hash_key(settings: Settings) -> bytes:
    if settings.hash_key is None and not settings.cache_url.startswith("memory:"):
        log.warning("settings.hash_key_unset", effect="this process shares nothing with other replicas")
    return configured_hash_key(settings)


def _serve_http(metrics: Metrics, pages: HealthPages, settings: Settings, stack: AsyncExitStack) -> tuple[str, str]:
    """Serve metrics and health over HTTP if the settings ask for it. Returns their addresses, empty if not;
    UnsafeSettings if one is taken."""
    shown, health = settings.metrics_address, settings.health_address
    # Port 0 is a port of its own each time.
    together = shown == health and not (shown or "").endswith(":0")
    names = settings.metrics_hosts
    at_metrics = _show(shown, metrics, pages if together else None, stack, names)
    at_health = at_metrics if together else _show(health, None, pages, stack, names)
    if at_metrics:
        stack.push_async_callback(_end, asyncio.create_task(metrics.run(), name="event loop's punctuality"))
        log.info("metrics.shown", address=at_metrics)
    if at_health:
        log.info("health.shown", address=at_health)
    return at_metrics, at_health


def _show(
    address: str | None, metrics: Metrics | None, pages: HealthPages | None, stack: AsyncExitStack, names: Sequence[str]
) -> str:
    """Serve these over HTTP until the stack is closed, metrics to readers that call the server by one of its `names`.

    Returns the address with its port; empty without one.
    """
    if address is None:
        return ""
    host, _, port = address.rpartition(":")
    try:
        server = MetricsServer(metrics, host.strip("[]"), int(port), names, pages)
    except MetricsNotShown as error:
        raise UnsafeSettings(str(error)) from None
    stack.push_async_callback(server.close)
    return server.address


async def _listen(
    settings: Settings,
    services: Sequence[ServiceMethods],
    authenticator: Authenticator,
    metrics: Metrics,
    openings: Openings,
    connections: int | None,
    tracing: Tracing | None,
) -> Server:
    files = certificate_files(settings)
    try:
        tls = None if files is None else RenewedCertificates(files).credentials()
    except UnusableCertificates as error:
        raise BindError(str(error)) from None
    reflect = settings.loopback if settings.reflection is None else settings.reflection
    limits = ConnectionLimits(settings.connection_streams, connections, idle_seconds())
    return await listen(
        services,
        authenticator,
        settings.address,
        tls=tls,
        reflect=reflect,
        metrics=metrics,
        limits=limits,
        call_timeout=settings.call_timeout,
        openings=openings,
        engine=settings.engine_in_use,
        tracing=tracing,
    )


def certificate_files(settings: Settings) -> CertificateFiles | None:
    """The files of the server's TLS identity; None without TLS."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return CertificateFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
