"""Fixtures of this plugin's tests: the listings, a simulated Binance, and a venue with prepared answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest
from aiohttp import web
from exchange_service_ccxt_generic.simulator import BinanceSimulator, SimulatedWallet

from exchange_service.plugin_api import Balance, ExchangeMetadata
from exchange_service.testing import LoopbackVenue, venue_call

Read = Callable[..., Awaitable[Balance]]


@pytest.fixture(scope="session")
def listings() -> Mapping[str, ExchangeMetadata]:
    """Every listing by its id."""
    return {listing.id: listing for listing in plugin.exchange_manifest().exchanges}


@pytest.fixture
async def binance() -> AsyncIterator[BinanceSimulator]:
    """A simulated Binance with one wallet, key "alicekey"."""
    async with BinanceSimulator() as venue:
        assert isinstance(venue, BinanceSimulator)
        spot = {"BTC": ("0.48210000", "0.01000000"), "USDT": ("1.50000000", "2.00000000")}
        linear = {"USDT": ("50.5", "40.25", "10.25")}
        venue.add_wallet(SimulatedWallet("alicekey", "alicesecret", spot, linear))
        yield venue


@pytest.fixture
def read(listings: Mapping[str, ExchangeMetadata], binance: BinanceSimulator) -> Read:
    """Read the simulated wallet through the plugin, as the service would."""

    async def read_balance(exchange_id: str = "binance", **options: Any) -> Balance:
        options = {"api_key": "alicekey", "api_secret": "alicesecret", "timeout": 20.0, **options}
        async with venue_call(listings[exchange_id], override=binance.url, **options) as call:
            return await plugin.fetch_balance(call)

    return read_balance


class ScriptedVenue(LoopbackVenue):
    """A venue that answers each path with the body that a test sets, and every other path with `default`."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, bytes] = {}
        self.default = b"{}"
        self.content_type = "application/json"
        self.status = 200

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/{tail:.*}", self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        body = self.answers.get(request.path, self.default)
        return web.Response(body=body, content_type=self.content_type, status=self.status)


@pytest.fixture
async def venue() -> AsyncIterator[ScriptedVenue]:
    async with ScriptedVenue() as scripted:
        assert isinstance(scripted, ScriptedVenue)
        yield scripted


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip CCXT's pauses between requests: a venue on loopback has no limits."""
    from exchange_service_ccxt_generic.exact import Guarded

    async def no_pause(self: Guarded, cost: Any = None) -> None:
        return None

    monkeypatch.setattr(Guarded, "throttle", no_pause, raising=False)


@pytest.fixture
def without_markets(monkeypatch: pytest.MonkeyPatch, without_pauses: None) -> None:
    """Skip the loading of markets too, and have an invented one: what is tested is the account's own answer."""
    from exchange_service_ccxt_generic.exact import Guarded
    from exchange_service_ccxt_generic.instances import Instances

    async def no_markets(self: Instances, ccxt: Any) -> Any:
        instance = self.construct(ccxt, Guarded, None, 1000)
        instance.set_markets([instance.safe_market_structure({"id": "onetwo", "symbol": "ONE/TWO", "spot": True})])
        for name in instance.options.get("marketHelperProps", []):
            instance.options.setdefault(name, {})
        return instance

    monkeypatch.setattr(Instances, "load_markets", no_markets)
