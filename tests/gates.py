"""What the tests of the gate share: venues behind a gate, and a record of what the gate reports."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from aiohttp import web

from exchange_service.credentials import CredentialReference
from exchange_service.errors import (
    ServiceError,
)
from exchange_service.model import Account, VenueReports
from exchange_service.observability.metrics import Metrics
from exchange_service.plugin_api import Balance, RateLimit, VenueCall
from exchange_service.testing import LoopbackVenue
from exchange_service.venue_gate import Gated, GateOptions
from exchange_service.venues.fetching import Target
from exchange_service.venues.priority import Priority
from exchange_service.venues.registry import Listing
from tests.harness import (
    ScriptedPlugin,
    holding,
    listing,
    registry_of,
)


class Recorder(Metrics):
    """Metrics that record what the gate reports."""

    def __init__(self) -> None:
        super().__init__()
        self.budgets: list[tuple[str, str, float]] = []
        self.breakers: list[tuple[str, str, str]] = []
        self.retries = 0
        self.refusals: list[str] = []

    def budget_left(self, exchange: str, scope: str, share: float) -> None:
        self.budgets.append((exchange, scope, share))

    def breaker(self, exchange: str, environment: str, state: str, way: str = "") -> None:
        self.breakers.append((exchange, environment, state))

    def retried(self, exchange: str) -> None:
        self.retries += 1

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)


class Venue:
    """The layer inside a gate: it counts the fetches that reach it, and answers as the test says."""

    # By the id of the listing, for as long as the test holds the venue.
    by_listing: ClassVar[WeakValueDictionary[int, Venue]] = WeakValueDictionary()

    def __init__(self, *limits: RateLimit, name: str = "fakex", plugin: Any = None) -> None:
        registry = registry_of(plugin or ScriptedPlugin(listing(name, limits=limits)))
        self.listing: Listing = registry.listings[name]
        self.by_listing[id(self.listing)] = self
        self.fetches = 0
        self.now = self.most = 0
        self.answer: Callable[[], Awaitable[str]] = self.good
        # What the plugin reports of the venue's limits at each fetch.
        self.report: Callable[[VenueReports], None] = lambda reports: None

    async def good(self) -> str:
        await asyncio.sleep(0)
        return "a balance"

    async def read(self) -> str:
        self.fetches += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self.answer()
        finally:
            self.now -= 1

    def failing(self, error: ServiceError) -> None:
        async def fail() -> str:
            raise error.with_traceback(None)

        self.answer = fail

    def through(
        self, gate: Gated, *, key: str = "1", user: str = "", polling: bool = False, timeout: float = 8.0, **of: str
    ) -> Any:
        """A fetch of the account that this key opens; each key is another user's unless one is named. `of` is what else
        the account is told by."""
        return self.with_priority(gate, Priority(polling=polling), key=key, user=user, timeout=timeout, **of)

    def with_priority(
        self, gate: Gated, priority: Priority, *, key: str = "1", user: str = "", timeout: float = 8.0, **of: str
    ) -> Any:
        account = Account(user or f"user of {key}", self.listing.metadata.id, **of)
        deadline = asyncio.get_running_loop().time() + timeout
        reference = CredentialReference(account, account, key)
        return gate.fetch(Target(account, self.listing, reference), deadline, priority)


class _Venues:
    """Asks the venue that the target's listing belongs to."""

    async def fetch(self, target: Target, deadline: float, priority: Priority) -> Any:
        venue = Venue.by_listing[id(target.listing)]
        venue.report(target.reports)
        return await venue.read()


def gated(**options: Any) -> Gated:
    """A gate before all venues, with these GateOptions."""
    return Gated(_Venues(), GateOptions(**options))


async def outcome(fetch: Awaitable[str]) -> ServiceError | None:
    try:
        await fetch
    except ServiceError as error:
        return error
    return None


class Answering(LoopbackVenue):
    """Answers every request with a good balance."""

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/", self._answer)]

    async def _answer(self, _: web.Request) -> web.Response:
        return web.json_response({})


async def over_http(call: VenueCall) -> Balance:
    (await call.http.get(call.url() + "/")).raise_for_status()
    return holding(("BTC", "1.50"))
