"""The composition: settings in, running service out. Everything is joined here and closed in reverse order."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog

from exchange_service.balances.cached import CachedBalances
from exchange_service.balances.instrumented import InstrumentedVenues, instrumented_opening, processes_of
from exchange_service.balances.service import Balances, PollBackoff
from exchange_service.cache import Cache, open_cache
from exchange_service.catalogue import Catalogue
from exchange_service.credentials import CredentialReference
from exchange_service.credentials.configured import configured_hash_key, open_configured_store
from exchange_service.credentials.proof import KeyWatch
from exchange_service.credentials.references import CachedReferences
from exchange_service.credentials.sql import SqlCredentialStore
from exchange_service.grpc_server.server import Server, credentials, listen
from exchange_service.grpc_server.servicer import Servicer
from exchange_service.identity.authenticator import Authenticator
from exchange_service.identity.methods import certificate_scopes, open_authenticator, who_may_call
from exchange_service.model import Credential
from exchange_service.observability.metrics import Metrics
from exchange_service.observability.metrics_server import MetricsNotShown, MetricsServer
from exchange_service.plugin_host.client import PluginClients, ProcessSettings
from exchange_service.plugin_host.discovery import open_registry
from exchange_service.plugin_host.report import PluginReport
from exchange_service.settings import Settings, unknown_variables
from exchange_service.streams.feeds import Feeds
from exchange_service.venue_gate import VenueGate
from exchange_service.venue_gate.status import VenueStatus
from exchange_service.venues.http import VenueHttpPool
from exchange_service.venues.registry import Registry
from exchange_service.venues.sessions import Sessions

log = structlog.get_logger(__name__)


class UnsafeSettings(Exception):
    """Settings that would open the service to others; the text says which to change."""


@dataclass(slots=True)
class Service:
    """A running service. Stop it with `stop`, or wait in `run_until_signal`."""

    settings: Settings
    server: Server
    registry: Registry
    store: SqlCredentialStore
    cache: Cache
    balances: Balances
    feeds: Feeds
    key_watch: KeyWatch
    metrics: Metrics
    # Where metrics are shown, with the port that was taken; empty where they are not.
    metrics_address: str
    _stack: AsyncExitStack

    @property
    def address(self) -> str:
        """Where it listens, with the port that was taken."""
        return self.server.address

    async def stop(self) -> None:
        """Say NOT_SERVING, end the streams with a reason, give calls their grace, then close everything."""
        self.key_watch.end()
        await self.server.set_serving(False)
        await self.feeds.close()
        # Shortly before the grace is over, what still waits for a venue is told why, instead of being cut off.
        asyncio.get_running_loop().call_later(max(0.0, self.settings.shutdown_grace - 0.3), self.balances.end)
        await self.server.stop(self.settings.shutdown_grace)
        await self._stack.aclose()

    async def run_until_signal(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGTERM or SIGINT, then stop. `ready` is called once they are heeded."""
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stopping.set)
        try:
            ready()
            await stopping.wait()
        finally:
            # A second signal ends the process at once.
            for name in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(name)
            await self.stop()


async def start_service(
    settings: Settings, *, registry: Registry | None = None, accounts_apart: bool = False
) -> Service:
    """Join all parts and listen. Raises UnsafeSettings or BindError with a sentence for the operator.

    `accounts_apart` is for a demo, see VenueGate.
    """
    check_safety(settings)
    for name in unknown_variables():
        log.warning("settings.unknown_variable", name=name)
    stack = AsyncExitStack()
    try:
        return await _join(settings, registry or open_registry(settings), stack, accounts_apart)
    except BaseException:
        await stack.aclose()
        raise


async def _join(settings: Settings, registry: Registry, stack: AsyncExitStack, accounts_apart: bool) -> Service:
    """Make each part from the ones before it, and put its closing on the stack."""
    hash_key = _hash_key(settings)
    for problem in registry.problems:
        log.warning("plugin.problem", plugin=problem.plugin.name, reason=problem.reason)
    stack.push_async_callback(registry.close)
    store = await open_configured_store(settings, hash_key)
    stack.push_async_callback(store.close)
    cache = await open_cache(settings.cache_url, prefix=settings.cache_prefix)
    stack.push_async_callback(cache.close)
    http = VenueHttpPool(timeout=settings.venue_timeout)
    stack.push_async_callback(http.close)
    references = CachedReferences(store)
    status = VenueStatus()
    metrics = Metrics(lambda: registry.listings)
    venues = open_venues(settings, registry, instrumented_opening(references.open, metrics), http, status)
    stack.push_async_callback(venues.close)
    gate = open_gate(settings, status, metrics, accounts_apart)
    stack.push_async_callback(gate.close)
    balances = Balances(
        registry,
        references,
        InstrumentedVenues(venues, metrics),
        CachedBalances(cache, max(settings.stale_grace, settings.max_age)),
        hash_key=hash_key,
        pace=PollBackoff(settings.poll_interval, max(settings.poll_interval, settings.poll_interval_still)),
        gate=gate,
        max_age=settings.max_age,
        stale_grace=settings.stale_grace,
        venue_timeout=settings.venue_timeout,
    )
    stack.push_async_callback(balances.close)
    feeds = Feeds(
        registry,
        balances,
        store.accounts,
        interval=settings.poll_interval,
        heartbeat_interval=settings.heartbeat_interval,
        lifetime=settings.stream_lifetime,
        venue_timeout=settings.venue_timeout,
        on_event_age=metrics.value_handed_out,
    )
    # The catalogue is made of this process's own plugins, so its answers stay in the process.
    catalogue = Catalogue(registry, status)
    callers = open_authenticator(settings, hash_key)
    stack.push_async_callback(callers.close)
    plugins = PluginReport(registry, venues)
    timeouts = settings.call_timeout, settings.write_timeout
    servicer = Servicer(callers, registry, catalogue, balances, feeds, plugins, *timeouts, metrics)
    # Before anybody can call: a service without the right keys is not to be taken for one that works.
    key_watch = KeyWatch(store)
    may_serve = await key_watch.first()
    metrics.watch("fetches", lambda: gate.in_flight)
    metrics.watch("feeds", lambda: feeds.counts()[0])
    metrics.watch("streams", lambda: feeds.counts()[1])
    metrics.watch_processes(lambda: processes_of(registry, venues))
    metrics_address = _show(metrics, settings, stack)
    server = await _listen(settings, servicer, callers, metrics)
    metrics.watch("calls", server.boundary.running)
    await server.set_serving(may_serve)
    for work, name in (
        (_refresh(registry, venues), "newer manifests"),
        (key_watch.run(server.set_serving), "proof of keys"),
    ):
        stack.push_async_callback(_end, asyncio.create_task(work, name=name))
    log.info(
        "service.listening",
        address=server.address,
        exchanges=len(registry.listings),
        serving=who_may_call(settings),
    )
    return Service(
        settings, server, registry, store, cache, balances, feeds, key_watch, metrics, metrics_address, stack
    )


def open_venues(
    settings: Settings,
    registry: Registry,
    open_credential: Callable[[CredentialReference], Awaitable[Credential]],
    http: VenueHttpPool,
    status: VenueStatus,
) -> PluginClients:
    """What reads accounts, in this process and in those of plugins. UnsafeSettings for what names no plugin."""
    overrides = check_overrides(settings, registry)
    here = Sessions(open_credential, http, overrides=overrides, idle_timeout=settings.session_idle)
    hosts = ProcessSettings(
        venue_timeout=settings.venue_timeout,
        session_idle=settings.session_idle,
        overrides=overrides,
        memory=settings.plugin_memory,
        processes=settings.plugin_process_counts,
        start_at_once=settings.plugin_start == "at-once",
    )
    return PluginClients(
        registry,
        here,
        open_credential,
        hosts,
        on_change=lambda plugin, trouble, serves: status.plugin_changed(plugin, trouble, time.time(), serves=serves),
    )


def open_gate(settings: Settings, status: VenueStatus, metrics: Metrics, accounts_apart: bool) -> VenueGate:
    """What stands before the venues, shared with the other replicas where they share a Redis."""
    shared = None
    if not settings.cache_url.startswith("memory:"):
        # Late, because a service without Redis does without its library.
        from exchange_service.venue_gate.shared import RedisShare

        shared = RedisShare(settings.cache_url, prefix=settings.cache_prefix)
    return VenueGate(
        status=status,
        shared=shared,
        metrics=metrics,
        replicas=settings.replicas,
        of_venue=settings.venue_fetches,
        of_plugin=settings.plugin_fetches,
        accounts_apart=accounts_apart,
    )


async def _refresh(registry: Registry, venues: PluginClients) -> None:
    """Take newer manifests, and tell the processes that serve by the older ones."""
    before = registry.generation
    await registry.refresh()
    if registry.generation != before:
        await venues.configure()


def check_safety(settings: Settings) -> None:
    """Raise UnsafeSettings for settings that would open the service to others unprotected."""
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise UnsafeSettings("Set both tls_certificate and tls_key, or neither.")
    _check_identity(settings)
    _check_openness(settings)
    if not settings.loopback and os.environ.get("GRPC_TRACE", "none") not in ("", "none"):
        # It is gRPC's own, and writes the metadata of every call, tokens among them, past our log.
        raise UnsafeSettings("GRPC_TRACE is set, which writes callers' tokens to standard error: unset it.")
    if not settings.metrics_on_loopback and not settings.metrics_open:
        raise UnsafeSettings(
            f"{settings.metrics_address} can be reached by others, and metrics tell who is served and how much: set "
            "metrics_address to a loopback one, or metrics_open=true to show them to anybody who reaches the port."
        )
    if settings.keyset_file is not None and settings.keyset is not None:
        raise UnsafeSettings("Set either keyset_file or keyset: nothing says which of two keysets seals.")
    if not settings.allow_plaintext and settings.keyset_file is None and settings.keyset is None:
        raise UnsafeSettings("allow_plaintext=false leaves nothing to read without a keyset: set keyset_file.")


def _check_identity(settings: Settings) -> None:
    """Raise UnsafeSettings where the ways to tell callers apart contradict each other."""
    if settings.jwt_jwks_url and settings.jwt_jwks_file:
        raise UnsafeSettings("Set jwt_jwks_url or jwt_jwks_file, not both.")
    if settings.knows_callers and (settings.open_to_all or settings.insecure):
        name = "open_to_all" if settings.open_to_all else "insecure"
        raise UnsafeSettings(f"{name} serves anybody, and other settings tell callers apart. Set one or the other.")
    if settings.tls_client_ca and not settings.tls_certificate:
        raise UnsafeSettings("tls_client_ca needs TLS: set tls_certificate and tls_key.")
    if settings.client_certificates and not settings.tls_client_ca:
        raise UnsafeSettings("client_certificates needs tls_client_ca, by which the certificates are checked.")
    if settings.tls_client_ca and not settings.knows_callers and not settings.open_to_all:
        raise UnsafeSettings("tls_client_ca alone says of nobody whom he may read: add client_certificates.")
    try:
        certificate_scopes(settings)
    except ValueError as error:
        raise UnsafeSettings(str(error)) from None


def _check_openness(settings: Settings) -> None:
    """Raise UnsafeSettings where others than this machine's programs could read unasked, or overhear."""
    if settings.loopback:
        return
    if not settings.tls_certificate and settings.knows_callers:
        raise UnsafeSettings(
            f"{settings.address} can be reached by others, and without TLS the callers' tokens would cross the "
            "network in the clear: set tls_certificate and tls_key."
        )
    if not settings.tls_certificate and not settings.insecure:
        raise UnsafeSettings(
            f"{settings.address} can be reached by others and TLS is not set: set tls_certificate and tls_key, and a "
            "way to tell callers apart, such as service_tokens; or insecure=true to serve anybody who reaches the port."
        )
    if not (settings.knows_callers or settings.open_to_all or settings.insecure):
        raise UnsafeSettings(
            f"{settings.address} can be reached by others, and nothing tells callers apart: set service_tokens, "
            "jwt_secret, jwt_jwks_url, or tls_client_ca with client_certificates; or open_to_all=true to show every "
            "user's balances to anybody who reaches the port."
        )


def check_overrides(settings: Settings, registry: Registry) -> dict[str, str]:
    """The operator's addresses by "id" or "id.environment". One for nothing that is served is refused: a slip of the
    pen would otherwise send real keys to the real venue."""
    found = {}
    for name, url in settings.venue_urls.items():
        exchange_id, dot, environment = name.partition(".")
        listing = registry.listings.get(exchange_id)
        known = listing.metadata.environment(environment) if listing and environment else None
        if listing is None or (dot and known is None):
            raise UnsafeSettings(f"venue_urls names {name!r}, which no plugin serves. It should be an exchange's id.")
        found[f"{exchange_id}.{known.name}" if known else exchange_id] = url
    installed = {plugin.info.distribution for plugin in registry.plugins}
    for exchange_id, distribution in settings.exchange_plugins.items():
        if distribution not in installed:
            raise UnsafeSettings(f"exchange_plugins gives {exchange_id!r} to {distribution!r}, which is not installed.")
    named = {item.info.name for item in registry.plugins} | {item.plugin.name for item in registry.problems}
    for setting in ("plugin_processes", "plugin_process_counts", "plugin_memory"):
        for name in getattr(settings, setting):
            if name not in named:
                raise UnsafeSettings(f"{setting} names {name!r}, which is no installed plugin.")
    return found


def _hash_key(settings: Settings) -> bytes:
    if settings.hash_key is None and not settings.cache_url.startswith("memory:"):
        log.warning("settings.hash_key_unset", effect="this process shares no kept balances with other replicas")
    return configured_hash_key(settings)


def _show(metrics: Metrics, settings: Settings, stack: AsyncExitStack) -> str:
    """Show metrics where the settings want them; the address, empty for nowhere. UnsafeSettings where it is taken."""
    if settings.metrics_address is None:
        return ""
    host, _, port = settings.metrics_address.rpartition(":")
    try:
        shown = MetricsServer(metrics, host.strip("[]"), int(port))
    except MetricsNotShown as error:
        raise UnsafeSettings(str(error)) from None
    stack.push_async_callback(_end, asyncio.create_task(metrics.run(), name="event loop's punctuality"))
    stack.push_async_callback(shown.close)
    log.info("metrics.shown", address=shown.address)
    return shown.address


async def _listen(settings: Settings, servicer: Servicer, callers: Authenticator, metrics: Metrics) -> Server:
    tls = None
    if settings.tls_certificate and settings.tls_key:
        tls = credentials(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    reflect = settings.loopback if settings.reflection is None else settings.reflection
    return await listen(servicer, callers, settings.address, tls=tls, reflect=reflect, metrics=metrics)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
