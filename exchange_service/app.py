"""The composition: settings in, running service out. Everything is joined here and closed in reverse order."""

from __future__ import annotations

import asyncio
import secrets
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass

import structlog

from exchange_service.balances import Balances
from exchange_service.cache import Cache, open_cache
from exchange_service.cache.memory import MemoryCache
from exchange_service.catalogue import Catalogue
from exchange_service.credentials.references import CachedReferences
from exchange_service.credentials.sql import SqlCredentialStore, open_store
from exchange_service.feeds import Feeds
from exchange_service.grpc_server.server import Server, credentials, listen
from exchange_service.grpc_server.servicer import Servicer
from exchange_service.registry import Registry, load_registry
from exchange_service.sessions import Sessions
from exchange_service.settings import Settings, unknown_variables
from exchange_service.venue_http import VenueHttpPool
from exchange_service.venue_status import VenueStatus

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
    _stack: AsyncExitStack

    @property
    def address(self) -> str:
        """Where it listens, with the port that was taken."""
        return self.server.address

    async def stop(self) -> None:
        """Say NOT_SERVING, end the streams with a reason, give calls their grace, then close everything."""
        await self.server.set_serving(False)
        await self.feeds.close()
        # Shortly before the grace is over, what still waits for a venue is told why, instead of being cut off.
        asyncio.get_running_loop().call_later(max(0.0, self.settings.shutdown_grace - 0.3), self.balances.end)
        await self.server.stop(self.settings.shutdown_grace)
        await self._stack.aclose()

    async def run_until_signal(self) -> None:
        """Serve until SIGTERM or SIGINT, then stop."""
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, stopping.set)
        try:
            await stopping.wait()
        finally:
            # A second signal ends the process at once.
            for name in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(name)
            await self.stop()


async def start_service(settings: Settings, *, registry: Registry | None = None) -> Service:
    """Join all parts and listen. Raises UnsafeSettings or BindError with a sentence for the operator."""
    check_safety(settings)
    for name in unknown_variables():
        log.warning("settings.unknown_variable", name=name)
    stack = AsyncExitStack()
    try:
        return await _join(settings, registry or load_registry(choices=settings.exchange_plugins), stack)
    except BaseException:
        await stack.aclose()
        raise


async def _join(settings: Settings, registry: Registry, stack: AsyncExitStack) -> Service:
    """Make each part from the ones before it, and put its closing on the stack."""
    hash_key = _hash_key(settings)
    overrides = check_overrides(settings, registry)
    for problem in registry.problems:
        log.warning("plugin.problem", plugin=problem.plugin.name, reason=problem.reason)
    stack.push_async_callback(registry.close)
    store = await open_store(settings.database_url, hash_key)
    stack.push_async_callback(store.close)
    cache = await open_cache(settings.cache_url, prefix=settings.cache_prefix)
    stack.push_async_callback(cache.close)
    http = VenueHttpPool(timeout=settings.venue_timeout)
    stack.push_async_callback(http.close)
    references = CachedReferences(store)
    sessions = Sessions(references.open, http, overrides=overrides, idle_timeout=settings.session_idle)
    stack.push_async_callback(sessions.close)
    status = VenueStatus()
    balances = Balances(
        registry,
        references,
        sessions,
        cache,
        hash_key=hash_key,
        status=status,
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
    )
    # The catalogue is made of this process's own plugins, so its answers stay in the process.
    catalogue = Catalogue(registry, MemoryCache(), status)
    servicer = Servicer(registry, catalogue, balances, feeds, settings.call_timeout, settings.write_timeout)
    server = await _listen(settings, servicer)
    for work, name in ((registry.refresh(), "newer manifests"), (_look_at(store), "first look at the database")):
        stack.push_async_callback(_end, asyncio.create_task(work, name=name))
    await server.set_serving(True)
    log.info("service.listening", address=server.address, exchanges=len(registry.listings))
    return Service(settings, server, registry, store, cache, balances, feeds, stack)


def check_safety(settings: Settings) -> None:
    """Raise UnsafeSettings for settings that would open the service to others unprotected."""
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise UnsafeSettings("Set both tls_certificate and tls_key, or neither.")
    if not settings.loopback and not settings.tls_certificate and not settings.insecure:
        raise UnsafeSettings(
            f"{settings.address} can be reached by others and TLS is not set: set tls_certificate and tls_key, "
            "or insecure=true to serve anybody who reaches the port."
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
    return found


def _hash_key(settings: Settings) -> bytes:
    if settings.hash_key is not None:
        return settings.hash_key.get_secret_value().encode()
    if not settings.cache_url.startswith("memory:"):
        log.warning("settings.hash_key_unset", effect="this process shares no kept balances with other replicas")
    return secrets.token_bytes(32)


async def _listen(settings: Settings, servicer: Servicer) -> Server:
    tls = None
    if settings.tls_certificate and settings.tls_key:
        tls = credentials(settings.tls_certificate, settings.tls_key)
    reflect = settings.loopback if settings.reflection is None else settings.reflection
    return await listen(servicer, settings.address, tls=tls, reflect=reflect)


async def _look_at(store: SqlCredentialStore) -> None:
    """Say at once that the database does not answer, and not only when somebody needs it."""
    problem = await store.problem()
    if problem:
        log.warning("database.out_of_reach", problem=problem)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
