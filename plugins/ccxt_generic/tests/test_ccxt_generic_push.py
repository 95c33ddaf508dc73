"""Hints that an account may have changed, through CCXT's own classes for sockets, against venues on loopback."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import zlib
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest
from aiohttp import ClientConnectionResetError, web
from exchange_service_ccxt_generic import push, sockets
from exchange_service_ccxt_generic.listening import Listening
from exchange_service_ccxt_generic.pushed import PUSHED, WITHOUT_SANDBOX, why_not_pushed
from exchange_service_ccxt_generic.simulator import BinanceSimulator
from exchange_service_ccxt_generic.sockets import Signals, socket_class
from yarl import URL

from exchange_service.plugin_api import (
    ALL_ACCOUNT_TYPES,
    PRODUCTION,
    SANDBOX,
    Changed,
    CredentialRejected,
    ExchangeMetadata,
    NotSupported,
    RegionRestricted,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.testing import venue_call
from exchange_service.testing.push import PushFault
from plugins.ccxt_generic.tests.every_exchange.credentials import credential
from plugins.ccxt_generic.tests.pushing.scripts import SCRIPTS
from plugins.ccxt_generic.tests.pushing.venue import PushingVenue, pushing, soon, watching

Listings = Mapping[str, ExchangeMetadata]
ACCOUNTS = [(exchange_id, account_type) for exchange_id, types in PUSHED.items() for account_type in types]
# A packed message of a hundred bytes a kilobyte.
_BOMB = zlib.compress(b"[" + b"1," * 2_000_000 + b"1]", wbits=31)
# Within which a watch ends, in seconds: a venue has half of them to say goodbye.
_AT_ONCE = 2.0


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch, without_pauses: None) -> None:
    """A venue on loopback answers at once."""
    monkeypatch.setattr(push, "_QUIET", 0.05)
    monkeypatch.setattr(push, "_OPENING_LIMIT", 3.0)
    monkeypatch.setattr(push, "_USED_PART", 1e6)


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of the sockets as CCXT names them, before the operator's replaces them."""
    seen: list[str] = []
    connect = sockets.GuardedSocket.create_connection

    async def note(self: sockets.GuardedSocket, session: Any) -> Any:
        seen.append(self.url)
        return await connect(self, session)

    monkeypatch.setattr(sockets.GuardedSocket, "create_connection", note)
    return seen


def _origins(urls: Any) -> set[tuple[str | None, int | None]]:
    return {(URL(url).host, URL(url).port) for url in urls}


async def _until_it_breaks(watch: AsyncIterator[Changed]) -> None:
    """Read the hints of a watch. Raises what ends it, TimeoutError if nothing does."""
    async with asyncio.timeout(10):
        async for _ in watch:
            pass


def _environments() -> list[tuple[str, str, str]]:
    sandboxes = {
        listing.id
        for listing in plugin.exchange_manifest().exchanges
        if len(listing.environments) > 1 and listing.id not in WITHOUT_SANDBOX
    }
    live = [(exchange_id, account_type, PRODUCTION) for exchange_id, account_type in ACCOUNTS]
    return live + [(*account, SANDBOX) for account in ACCOUNTS if account[0] in sandboxes]


@pytest.mark.parametrize(("exchange_id", "account_type", "environment"), _environments(), ids=str)
async def test_a_pushed_change_is_a_hint_and_a_broken_connection_an_error(
    exchange_id: str, account_type: str, environment: str, listings: Listings, dialled: list[str]
) -> None:
    """The sockets lead to the listing's hosts in this environment, and over HTTP only what gets a key is sent."""
    listing, script = listings[exchange_id], SCRIPTS[f"{exchange_id} {account_type}"]
    async with pushing(listing, script, account_type, environment) as (venue, call):
        async with watching(call) as watch:
            assert await soon(watch) == Changed()
            await venue.announce()
            assert await soon(watch) == Changed()
        async with asyncio.timeout(_AT_ONCE):
            await venue.closed.wait()
        async with watching(call) as watch:
            await soon(watch)
            venue.drop()
            with pytest.raises(VenueUnavailable):
                await _until_it_breaks(watch)
        sent = {f"{request.method} {request.path}" for request in venue.requests if "Upgrade" not in request.headers}
    named = {found.name: _origins(found.urls.values()) for found in listing.environments}
    assert _origins(dialled) <= named[environment]
    assert dialled
    assert sent <= set(script.requests)


@pytest.mark.parametrize(("exchange_id", "account_type"), ACCOUNTS, ids=str)
async def test_a_refused_key_is_an_error_and_no_hint(
    exchange_id: str, account_type: str, listings: Listings, caplog: pytest.LogCaptureFixture
) -> None:
    listing, script = listings[exchange_id], SCRIPTS[f"{exchange_id} {account_type}"]
    async with pushing(listing, script, account_type) as (venue, call):
        venue.refuses = True
        async with watching(call) as watch:
            with pytest.raises(script.error) as refused:
                await soon(watch)
    del watch
    gc.collect()
    shown = f"{refused.value} {refused.value!r} {caplog.text}"
    given = credential(listing)
    assert not any(given[name] in shown for name in ("api_key", "api_secret"))
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_what_is_pushed_of_a_balance_is_never_shown(
    binance: BinanceSimulator, listings: Listings, dialled: list[str]
) -> None:
    """Binance pushes only the assets that have changed. The hint leads to a read, which shows all of them."""
    wallet = binance.wallets["alicekey"]
    key = {"api_key": "alicekey", "api_secret": "alicesecret"}
    async with venue_call(listings["binance"], override=binance.url, timeout=20.0, **key) as call:
        async with watching(call) as watch:
            await soon(watch)
            wallet.spot["BTC"] = ("0.5", "0")
            binance.announce(wallet, "BTC")
            hints = [await soon(watch)]
            balance = await plugin.fetch_balance(call)
        paths = {request.path for request in binance.requests}
    assert hints == [Changed()]
    assert {row.asset: row.total for _, row in balance.rows()} == {"BTC": Decimal("0.5"), "USDT": Decimal("3.5")}
    # Binance has switched its keys for listening to spot off (HTTP 410). CCXT signs in on the socket instead.
    assert [URL(url).path for url in dialled] == ["/ws-api/v3"]
    assert "/api/v3/userDataStream" not in paths


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (PushFault(refused=401), CredentialRejected),
        (PushFault(refused=429), VenueRateLimited),
        (PushFault(refused=451), RegionRestricted),
        (PushFault(refused=503), VenueUnavailable),
        (PushFault(silent=True), VenueTimeout),
    ],
    ids=["401", "429", "451", "503", "silence"],
)
async def test_a_refused_connection_says_why(
    fault: PushFault, error: type[VenueError], binance: BinanceSimulator, listings: Listings
) -> None:
    binance.push.fail(fault)
    key = {"api_key": "alicekey", "api_secret": "alicesecret"}
    async with (
        venue_call(listings["binance"], override=binance.url, timeout=20.0, **key) as call,
        watching(call) as watch,
    ):
        with pytest.raises(error):
            await soon(watch)


async def test_a_change_that_comes_while_nothing_waits_for_it_is_a_hint(
    listings: Listings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CCXT drops a balance that nothing waits for at that moment."""
    waiting = asyncio.Event()

    async def wait_for_nothing(self: push.Listener, parameters: Mapping[str, Any]) -> None:
        await asyncio.wait_for(asyncio.shield(self._instance.watch_balance(dict(parameters))), 5)
        waiting.set()

    monkeypatch.setattr(push.Listener, "_pump", wait_for_nothing)
    async with pushing(listings["binance"], SCRIPTS["binance spot"]) as (venue, call), watching(call) as watch:
        await soon(watch)
        await venue.announce()
        await soon(watch)
        await waiting.wait()
        await venue.announce()
        assert await soon(watch) == Changed()


@pytest.mark.parametrize(
    ("frame", "packed"),
    [
        (json.dumps({"padding": "0" * 1024 * 1024}).encode(), False),
        (b'{"e":', False),
        (b"[" * 500_000, False),
        (_BOMB, True),
        (b"not packed", True),
    ],
    ids=["too large", "cut off", "deep", "a bomb", "not packed"],
)
async def test_a_frame_that_cannot_be_read_ends_the_watch(frame: bytes, packed: bool, listings: Listings) -> None:
    account = ("bingx", "swap") if packed else ("binance", "spot")
    async with pushing(listings[account[0]], SCRIPTS[" ".join(account)], account[1]) as (venue, call):
        async with watching(call) as watch:
            await soon(watch)
            await venue.announce(frame)
            with pytest.raises(VenueMalformed):
                await _until_it_breaks(watch)
        async with asyncio.timeout(_AT_ONCE):
            await venue.closed.wait()


@pytest.mark.parametrize("value", ["<html>gateway</html>", None, [], {}, {"e": 7}, 5, {"e": "outboundAccountPosition"}])
async def test_an_unknown_message_does_not_end_the_watch(value: Any, listings: Listings) -> None:
    async with pushing(listings["binance"], SCRIPTS["binance spot"]) as (venue, call), watching(call) as watch:
        await soon(watch)
        await venue.announce(json.dumps(value).encode())
        await venue.announce()
        assert await soon(watch) == Changed()


async def test_a_venue_that_does_not_answer_in_time_is_no_push(
    listings: Listings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "_OPENING_LIMIT", 0.5)
    async with pushing(listings["okx"], SCRIPTS["okx trading"]) as (venue, call), watching(call) as watch:
        venue.answers = False
        with pytest.raises(VenueTimeout):
            await soon(watch)


async def test_a_connection_without_an_answer_to_pings_is_an_error(
    listings: Listings, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_alive = Listening._make_socket

    def hurried_socket(self: Listening, url: str) -> Any:
        socket = keep_alive(self, url)
        socket.keepAlive = 100
        return socket

    monkeypatch.setattr(Listening, "_make_socket", hurried_socket)
    async with pushing(listings["binance"], SCRIPTS["binance spot"]) as (venue, call), watching(call) as watch:
        await soon(watch)
        venue.stop_reading()
        with pytest.raises(VenueTimeout):
            await _until_it_breaks(watch)


@pytest.mark.parametrize(
    "error", [ConnectionResetError(), RuntimeError("closing"), ClientConnectionResetError()], ids=type
)
async def test_a_ping_that_cannot_be_written_is_a_broken_connection(
    error: Exception, listings: Listings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pushing(listings["binance"], SCRIPTS["binance spot"]) as (_, call), watching(call) as watch:
        sockets_made: list[Any] = []
        make = Listening._make_socket
        monkeypatch.setattr(
            Listening, "_make_socket", lambda self, url: sockets_made.append(make(self, url)) or sockets_made[-1]
        )
        await soon(watch)
        sockets_made[-1].on_error(error)
        with pytest.raises(VenueUnavailable):
            await _until_it_breaks(watch)


@pytest.mark.parametrize("answers", [True, False], ids=["when it stands", "while it signs in"])
async def test_a_closed_watch_ends_at_once_and_closes_its_sockets(answers: bool, listings: Listings) -> None:
    async with pushing(listings["okx"], SCRIPTS["okx trading"]) as (venue, call):
        venue.answers = answers
        async with watching(call) as watch:
            following = asyncio.ensure_future(soon(watch))
            async with asyncio.timeout(10):
                await (following if answers else venue.asked.wait())
            following.cancel()
            await asyncio.wait({following})
        async with asyncio.timeout(_AT_ONCE):
            await venue.closed.wait()
        assert following.cancelled() or following.exception() is None


async def test_a_watch_that_is_closed_while_it_connects_opens_nothing(listings: Listings) -> None:
    async with pushing(listings["okx"], SCRIPTS["okx trading"]) as (venue, call):
        venue.admits.clear()
        async with watching(call) as watch:
            following = asyncio.ensure_future(soon(watch))
            async with asyncio.timeout(10):
                await venue.asked.wait()
            following.cancel()
            await asyncio.wait({following})
        dialling = [task for task in asyncio.all_tasks() if "Client.open" in repr(task.get_coro())]
        venue.admits.set()
    assert dialling == []


async def test_connections_begin_one_after_the_other(monkeypatch: pytest.MonkeyPatch, listings: Listings) -> None:
    """A venue bans an address that begins too many."""
    monkeypatch.setattr(push, "_USED_PART", 1.0)
    turns = push.ConnectionTurns(listings["binance"].push.connects or 0)
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(round(seconds))

    monkeypatch.setattr(push.asyncio, "sleep", pause)
    for _ in range(4):
        await turns.wait()
    assert pauses == [0, 1, 2, 3]


async def test_a_watch_begins_again_before_its_key_expires(listings: Listings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "_LONGEST_WATCH", 0.3)
    async with pushing(listings["binance"], SCRIPTS["binance future"], "future") as (venue, call):
        async with watching(call) as watch:
            for _ in range(3):
                assert await soon(watch) == Changed()
        keys = [request for request in venue.requests if request.path == "/fapi/v1/listenKey"]
    assert [request.method for request in keys] == ["POST"] * venue.opened
    assert venue.opened >= 3


async def test_a_socket_leads_only_to_the_hosts_of_the_manifest(listings: Listings) -> None:
    async with venue_call(listings["binance"], api_key="k", api_secret="s") as call:
        signals = Signals()
        socket = _bare_socket("wss://thief.example/ws", signals)
        await socket.open(call.http.client_session)
    assert signals.failure is not None
    assert type(signals.failure.error).__name__ == "PluginFailed"


async def test_a_redirect_of_a_socket_is_not_followed(listings: Listings) -> None:
    class Redirecting(PushingVenue):
        async def _serve(self, request: web.Request) -> web.StreamResponse:
            raise web.HTTPFound("/elsewhere")

    async with (
        Redirecting(SCRIPTS["binance spot"]) as venue,
        venue_call(listings["binance"], override=venue.url) as call,
    ):
        signals = Signals()
        await _bare_socket(f"{venue.url}/ws", signals).open(call.http.client_session)
        asked = [request.path for request in venue.requests]
    assert signals.failure is not None
    assert isinstance(signals.failure.error, VenueMalformed)
    assert asked == ["/ws"]


def _bare_socket(url: str, signals: Signals) -> Any:
    """A socket that no instance has made."""
    import ccxt.pro  # noqa: F401 - the class of sockets is made from it

    def nothing(*_: Any) -> None:
        return None

    socket = socket_class()(url, nothing, nothing, nothing, nothing, {"asyncio_loop": asyncio.get_running_loop()})
    socket.signals, socket.rebased, socket.refuse_status = signals, str, nothing
    return socket


@pytest.mark.parametrize(
    ("exchange_id", "account_type", "environment", "reason"),
    [
        ("binance", "papi", PRODUCTION, "and not papi"),
        ("binance", ALL_ACCOUNT_TYPES, PRODUCTION, "and not margin or isolated or funding"),
        ("gate", "", SANDBOX, "not pushed in its test environment"),
        ("woo", "", PRODUCTION, "needs the user's number"),
        ("bitstamp", "", PRODUCTION, "CCXT has no push"),
    ],
)
async def test_what_is_not_pushed_says_why(
    exchange_id: str, account_type: str, environment: str, reason: str, listings: Listings
) -> None:
    async with pushing(listings[exchange_id], SCRIPTS["binance spot"], account_type, environment) as (venue, call):
        async with watching(call) as watch:
            with pytest.raises(NotSupported, match=reason):
                await soon(watch)
        assert venue.opened == 0


async def test_all_accounts_are_pushed_where_each_of_them_is(listings: Listings) -> None:
    account = listings["kraken"], SCRIPTS["kraken spot"], ALL_ACCOUNT_TYPES
    async with pushing(*account) as (venue, call), watching(call) as watch:
        assert await soon(watch) == Changed()
        await venue.announce()
        assert await soon(watch) == Changed()


def test_every_exchange_with_a_watch_is_pushed_or_says_why_not(listings: Listings) -> None:
    import ccxt.pro

    page = Path(__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    section = page.partition("## What is pushed")[2].partition("\n## ")[0]
    offered = {listing.id for listing in listings.values() if listing.capabilities.push}
    assert offered == set(PUSHED)
    assert [exchange_id for exchange_id in PUSHED if f"`{exchange_id}`" not in section] == []
    for exchange_id in set(ccxt.pro.exchanges) & set(listings):
        if getattr(ccxt.pro, exchange_id)().has.get("watchBalance") and listings[exchange_id].capabilities.balance:
            assert exchange_id in PUSHED or why_not_pushed(exchange_id) != why_not_pushed("nobody"), exchange_id
