"""Attacks by a venue's answers: each first stops the event loop with the bounds switched off, and then does not.

What is measured is the processor time of the whole process between two turns of the loop, not the time on the clock, so
that a busy machine changes nothing.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import exchange_service_alpaca
import exchange_service_aster
import exchange_service_ccxt_generic
import exchange_service_hyperliquid
import exchange_service_krakenfutures
import exchange_service_lighter
import exchange_service_oanda
import exchange_service_tastytrade
import exchange_service_tradier
import pytest
from aiohttp import web
from exchange_service_alpaca.simulator import AlpacaSimulator
from exchange_service_aster.simulator import AsterSimulator
from exchange_service_ccxt_generic.simulator import BinanceSimulator, SimulatedWallet
from exchange_service_hyperliquid.simulator import HyperliquidSimulator
from exchange_service_krakenfutures.simulator import KrakenfuturesSimulator
from exchange_service_lighter.simulator import LighterSimulator
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount
from exchange_service_tastytrade.simulator import TastytradeSimulator
from exchange_service_tradier.simulator import TradierOptionsSimulator, TradierSimulator

from exchange_service import gc_tuning
from exchange_service.errors import ServiceError, VenueMalformed
from exchange_service.model import ANSWER_LIMIT, LARGEST_ANSWER_LIMIT, ExchangeMetadata
from exchange_service.plugin_api import State
from exchange_service.plugin_kit import payload, several_accounts
from exchange_service.pytest_plugin import SWEEP
from exchange_service.testing import DemoVenue, Fault, LoopbackVenue, venue_call
from exchange_service.venues import answers, http
from tests.harness import loaded

MEBIBYTE = 1024 * 1024
# Seconds. The event loop stands still for less.
LONGEST = 0.050

PLUGINS: Mapping[str, tuple[Any, Callable[[], DemoVenue]]] = {
    "alpaca": (exchange_service_alpaca, AlpacaSimulator),
    "aster": (exchange_service_aster, AsterSimulator),
    "hyperliquid": (exchange_service_hyperliquid, HyperliquidSimulator),
    "krakenfutures": (exchange_service_krakenfutures, KrakenfuturesSimulator),
    "lighter": (exchange_service_lighter, LighterSimulator),
    "oanda": (exchange_service_oanda, OandaSimulator),
    "tastytrade": (exchange_service_tastytrade, TastytradeSimulator),
    "tradier": (exchange_service_tradier, TradierSimulator),
    "tradier_options": (exchange_service_tradier, TradierOptionsSimulator),
}


def filled(open: bytes, item: bytes, close: bytes, size: int) -> bytes:
    """JSON of about `size` bytes: as many of the items as fit, with commas between them."""
    return open + b",".join([item] * ((size - len(open) - len(close)) // (len(item) + 1))) + close


# Each is filled to any size, and costs as much as possible to read.
WORST: Mapping[str, Callable[[int], bytes]] = {
    "lists": lambda size: filled(b"[", b"[]", b"]", size),
    "objects": lambda size: filled(b"[", b"{}", b"]", size),
    "numbers": lambda size: filled(b"[", b"1", b"]", size),
    "fractions": lambda size: filled(b"[", b"5e1", b"]", size),
    "exponents": lambda size: filled(b"[", b"1e999999999", b"]", size),
    "rows": lambda size: filled(b'{"balances":[', b'{"coin":"A","asset":"A","total":"1"}', b"]}", size),
    "keys": lambda size: b"{" + b",".join(b'"%d":1' % number for number in range(size // 10)) + b"}",
    "a key twice": lambda size: filled(b"{", b'"a":1', b"}", size),
    "nesting": lambda size: b"[" * (size // 2) + b"]" * (size // 2),
    "a long number": lambda size: b"[1" + b"0" * (size - 3) + b"]",
    "a long fraction": lambda size: b"[1." + b"1" * (size - 4) + b"]",
    "a long text": lambda size: b'{"message":"' + b"a" * (size - 14) + b'"}',
    "a long message": lambda size: filled(b'{"errorMessage":[', b"1", b'],"msg":{"a":[1]},"fault":[[]]}', size),
    "escapes": lambda size: b'["' + b"\\u0041" * (size // 6 - 2) + b'"]',
}


def as_many_as_allowed(body_of: Callable[[int], bytes]) -> bytes:
    """An answer with as many values as are allowed, padded with blanks to the allowed size."""
    sample = body_of(10_000)
    marks = max(1, payload.count_marks(sample)) / len(sample)
    return body_of(int(min(ANSWER_LIMIT, 0.98 * ANSWER_LIMIT / 8 / marks))).ljust(ANSWER_LIMIT)


@cache
def bodies() -> Mapping[str, bytes]:
    """The worst answers of the allowed size: those of too many values too."""
    allowed = {f"{name}, as many as allowed": as_many_as_allowed(body_of) for name, body_of in WORST.items()}
    return {name: body_of(ANSWER_LIMIT) for name, body_of in WORST.items()} | allowed


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """As in the service, the collector leaves alone what was there before."""
    before = gc.get_threshold()
    gc_tuning.tune_gc()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


@asynccontextmanager
async def watched() -> AsyncIterator[list[float]]:
    """The longest time, in seconds of the processor, for which the loop did not turn inside."""
    held = [0.0]

    async def turn() -> None:
        last = time.process_time()
        while True:
            await asyncio.sleep(0.001)
            now = time.process_time()
            held[0] = max(held[0], now - last)
            last = now

    task = asyncio.ensure_future(turn())
    await asyncio.sleep(0.005)
    held[0] = 0.0
    try:
        yield held
        await asyncio.sleep(0.005)
    finally:
        task.cancel()


@contextmanager
def unbounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Answers as they were read before: eight mebibytes, of any number of values, on the event loop."""

    async def at_once(work: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return work(*arguments, **options)

    with monkeypatch.context() as patch:
        # Those that take it from `plugin_api` come first: they are imported here, and would keep what is put there.
        for module in (
            "exchange_service_ccxt_generic.answers",
            "exchange_service_ccxt_generic.aside",
            "exchange_service.venues.http",
            "exchange_service.venues.answers",
            "exchange_service.plugin_api",
        ):
            patch.setattr(f"{module}.beside_the_loop", at_once)
        patch.setattr("exchange_service_ccxt_generic.exact.is_large", lambda size: False)
        patch.setattr(http, "_BYTES_FOR_A_MARK", 1)
        patch.setattr(http, "_MOST_MARKS", 1 << 40)
        patch.setattr(answers, "MAX_ROWS", 1 << 40)
        patch.setattr(several_accounts, "MOST_ACCOUNTS", 1 << 40)
        yield


class Venue(LoopbackVenue):
    """Answers every request with one body."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self.body = body

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/{path:.*}", self._answer)]

    async def _answer(self, request: web.Request) -> web.Response:
        return web.Response(body=self.body, content_type="application/json")


def listing_of(plugin: Any, exchange_id: str) -> ExchangeMetadata:
    found: ExchangeMetadata = next(entry for entry in plugin.exchange_manifest().exchanges if entry.id == exchange_id)
    return found


def credential_of(simulator: DemoVenue) -> dict[str, Any]:
    row = dict(simulator.demo_credential("stale") or simulator.demo_credential("moving") or {})
    return {("metadata" if name == "extra_metadata" else name): value for name, value in row.items()}


async def read(plugin: Any, exchange: ExchangeMetadata, url: str, credential: Mapping[str, Any]) -> object:
    """One reading through the hook, as the service does it: the balance as bytes, or the error."""
    entry = loaded(plugin, exchange.id)
    async with venue_call(exchange, override=url, timeout=30, **credential) as call:
        try:
            listing: Any = SimpleNamespace(plugin=entry, metadata=exchange)
            return await answers.read_balance(await plugin.fetch_balance(call=call), listing, call)
        except ServiceError as error:
            return error


@pytest.mark.threat("T70", attack=True)
async def test_a_dense_answer_stops_the_loop_and_is_refused_here(monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = replace(listing_of(exchange_service_oanda, "oanda"), answer_limit=LARGEST_ANSWER_LIMIT)
    credential = credential_of(OandaSimulator())
    async with Venue(filled(b"[", b"{}", b"]", LARGEST_ANSWER_LIMIT)) as venue:
        with unbounded(monkeypatch):
            async with watched() as held:
                await read(exchange_service_oanda, exchange, venue.url, credential)
        assert held[0] > 4 * LONGEST
        async with watched() as held:
            refused = await read(exchange_service_oanda, exchange, venue.url, credential)
    assert isinstance(refused, VenueMalformed)
    assert "more values than" in refused.message
    assert held[0] < LONGEST


@pytest.mark.threat("T70", attack=True)
async def test_eight_answers_at_once_fill_the_memory_and_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    plugin, credential = exchange_service_oanda, credential_of(OandaSimulator())
    exchange = listing_of(plugin, "oanda")

    async def peak(body: bytes, limit: int, calls: int) -> int:
        async with Venue(body) as venue:
            tracemalloc.start()
            await asyncio.gather(
                *(read(plugin, replace(exchange, answer_limit=limit), venue.url, credential) for _ in range(calls))
            )
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        return most

    with unbounded(monkeypatch):
        # One of half the size does for the attack.
        alone = await peak(filled(b"[", b"{}", b"]", LARGEST_ANSWER_LIMIT // 2), LARGEST_ANSWER_LIMIT, calls=1)
    assert alone > 80 * MEBIBYTE
    assert await peak(bodies()["objects, as many as allowed"], ANSWER_LIMIT, calls=8) < 80 * MEBIBYTE


@pytest.mark.threat("T70", attack=True)
async def test_a_long_list_of_accounts_makes_a_request_for_each_and_is_refused_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with OandaSimulator() as venue:
        venue.add_token("k", *(SimulatedAccount(f"101-004-7654321-{number}") for number in range(1, 402)))
        exchange = listing_of(exchange_service_oanda, "oanda")
        with unbounded(monkeypatch):
            await read(exchange_service_oanda, exchange, venue.url, {"api_key": "k"})
        assert len(venue.requests) == 402
        venue.requests.clear()
        refused = await read(exchange_service_oanda, exchange, venue.url, {"api_key": "k"})
        assert isinstance(refused, VenueMalformed)
        assert "more than 200 accounts" in refused.message
        assert len(venue.requests) == 1


@pytest.mark.threat("T70")
@pytest.mark.parametrize("exchange_id", PLUGINS)
async def test_no_worst_answer_holds_the_loop_for_fifty_milliseconds(
    exchange_id: str, record_property: Callable[[str, object], None]
) -> None:
    plugin, simulator = PLUGINS[exchange_id]
    exchange, credential = listing_of(plugin, exchange_id), credential_of(simulator())
    lags: dict[str, float] = {}
    async with Venue(b"") as venue:
        for name, body in bodies().items():
            venue.body = body
            async with watched() as held:
                result = await read(plugin, exchange, venue.url, credential)
            assert isinstance(result, ServiceError), name
            lags[name] = held[0]
    too_long = {name: lag for name, lag in lags.items() if lag >= LONGEST}
    record_property(SWEEP, ["answers that hold the loop for 50 ms", [exchange_id], len(lags), 0, len(too_long)])
    assert too_long == {}


@asynccontextmanager
async def raw_venue(answer: bytes) -> AsyncIterator[str]:
    """The URL of a venue that sends these bytes to every request, and hangs up."""

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with suppress(ConnectionError):
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(send, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.threat("T70", attack=True)
async def test_a_flood_of_interim_responses_takes_the_processor_and_ends_here(monkeypatch: pytest.MonkeyPatch) -> None:
    exchange, credential = listing_of(exchange_service_oanda, "oanda"), credential_of(OandaSimulator())

    async def spent(url: str) -> float:
        began = time.process_time()
        assert isinstance(await read(exchange_service_oanda, exchange, url, credential), ServiceError)
        return time.process_time() - began

    async with raw_venue(b"HTTP/1.1 100 C\r\n\r\n" * 60_000) as url:
        with monkeypatch.context() as patch:
            patch.setattr(http, "_MOST_RESPONSES", 1 << 40)
            patch.setattr(http, "_PART", 1 << 40)
            assert await spent(url) > 2 * LONGEST
        assert await spent(url) < LONGEST / 2


@pytest.mark.threat("T70")
async def test_a_body_in_pieces_of_one_byte_holds_no_loop() -> None:
    exchange, credential = listing_of(exchange_service_oanda, "oanda"), credential_of(OandaSimulator())
    drip = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 300_000 + b"0\r\n\r\n"
    longest = []
    # It takes two thirds of that, and half as much again while both cores are busy: the best of three counts.
    for _ in range(3):
        async with raw_venue(drip) as url, watched() as held:
            result = await read(exchange_service_oanda, exchange, url, credential)
        assert isinstance(result, VenueMalformed)
        longest.append(held[0])
    assert min(longest) < LONGEST


def grown(body: bytes, size: int, *, innermost: bool) -> bytes:
    """A true answer in which one list of objects is filled up to the size with copies of other names."""
    try:
        answer = json.loads(body)
    except ValueError:
        return body
    lists = [found for found in _lists_in(answer) if found and isinstance(found[0], dict)]
    if not lists:
        return body
    longest = lists[-1] if innermost else max(lists, key=len)
    sample, left = json.dumps(longest[0]), size - len(body)
    for number in range(left // (len(sample) + 8)):
        longest.append({name: _renamed(value, number) for name, value in longest[0].items()})
    return json.dumps(answer).encode()


def _renamed(value: Any, number: int) -> Any:
    """Another name for what looks like one, so that no entry is there twice; amounts stay."""
    if isinstance(value, dict):
        return {name: _renamed(below, number) for name, below in value.items()}
    if isinstance(value, str) and value[:2] == "0x":
        return f"0x{number:040x}"
    return f"{value}{number}" if isinstance(value, str) and value.isalpha() and value.isupper() else value


def _lists_in(value: Any) -> Iterator[list[Any]]:
    if isinstance(value, list):
        yield value
    for below in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _lists_in(below)


def let_grow(venue: DemoVenue, size: int, *, innermost: bool = False) -> None:
    """Let a simulator answer truly, with one of its lists filled up. An answer is made once, for its first request."""
    made: dict[str, bytes] = {}

    async def misbehave(fault: Fault, request: web.Request, handler: Any) -> web.StreamResponse:
        answer = await handler(request)
        key = f"{request.path} {await request.read()!r}"
        if key not in made:
            made[key] = grown(answer.body, size, innermost=innermost)
        answer.body = made[key]
        return answer

    venue.fail(Fault())
    venue._misbehave = misbehave  # type: ignore[method-assign]


@pytest.mark.threat("T70")
@pytest.mark.parametrize("exchange_id", PLUGINS)
@pytest.mark.parametrize("innermost", [False, True], ids=["the longest list", "the innermost list"])
@pytest.mark.parametrize("size", [60_000, 900_000])
async def test_no_true_answer_of_very_many_rows_holds_the_loop(exchange_id: str, size: int, innermost: bool) -> None:
    plugin, make = PLUGINS[exchange_id]
    exchange = listing_of(plugin, exchange_id)
    async with make() as venue:
        credential = credential_of(venue)
        let_grow(venue, size, innermost=innermost)
        # The simulator makes the answers.
        await read(plugin, exchange, venue.url, credential)
        async with watched() as held:
            await read(plugin, exchange, venue.url, credential)
    assert held[0] < LONGEST


ALICE = {"api_key": "alicekey", "api_secret": "alicesecret"}


@pytest.fixture
async def binance() -> AsyncIterator[BinanceSimulator]:
    async with BinanceSimulator() as running:
        running.add_wallet(SimulatedWallet("alicekey", "alicesecret", {"BTC": ("0.48210000", "0.01000000")}))
        yield running


async def hold_of_ccxt(
    binance: BinanceSimulator,
    exchange: ExchangeMetadata,
    body: bytes,
    content_type: str = "application/json",
    status: int = 200,
) -> float:
    """How long CCXT's exchanges stand still for this answer of one of them, once its markets are there."""
    plugin = exchange_service_ccxt_generic
    entry, state = loaded(plugin, exchange.id), State()
    async with venue_call(exchange, override=binance.url, timeout=30, plugin_state=state, **ALICE) as call:
        listing: Any = SimpleNamespace(plugin=entry, metadata=exchange)
        await answers.read_balance(await plugin.fetch_balance(call=call), listing, call)
        binance.fail(Fault(status=status, body=body, content_type=content_type)).path = "/api/v3/account"
        async with watched() as held:
            with suppress(ServiceError):
                await answers.read_balance(await plugin.fetch_balance(call=call), listing, call)
        binance.recover()
    await state.close()
    return held[0]


def binance_account(size: int) -> bytes:
    rows = b",".join(b'{"asset":"A%d","free":"1.5","locked":"0.5"}' % number for number in range(size // 45))
    return b'{"accountType":"SPOT","balances":[' + rows + b"]}"


def empty_rows(size: int) -> bytes:
    return filled(b'{"accountType":"SPOT","balances":[', b"{}", b"]}", size)


@pytest.mark.threat("T70", attack=True)
async def test_an_answer_stops_ccxts_exchanges_and_not_here(
    binance: BinanceSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = listing_of(exchange_service_ccxt_generic, "binance")
    with unbounded(monkeypatch):
        wide = replace(exchange, answer_limit=LARGEST_ANSWER_LIMIT)
        long = await hold_of_ccxt(binance, wide, binance_account(LARGEST_ANSWER_LIMIT // 4))
    assert long > 4 * LONGEST
    held = {
        "rows of its own": await hold_of_ccxt(binance, exchange, as_many_as_allowed(binance_account)),
        "rows without anything": await hold_of_ccxt(binance, exchange, as_many_as_allowed(empty_rows)),
        # As long as what is read on the loop may be.
        "few rows": await hold_of_ccxt(binance, exchange, binance_account(39_000)),
        "few rows without anything": await hold_of_ccxt(binance, exchange, empty_rows(18_000)),
    }
    for name in ("lists", "numbers", "fractions", "rows", "keys", "a key twice", "a long message"):
        held[name] = await hold_of_ccxt(binance, exchange, bodies()[f"{name}, as many as allowed"])
    assert max(held.values()) < LONGEST, held


@pytest.mark.threat("T70", attack=True)
async def test_an_encoding_stops_ccxts_exchanges_and_is_not_believed_here(
    binance: BinanceSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = listing_of(exchange_service_ccxt_generic, "binance")
    answer = (b"a-" + b"a" * 90_000, "application/json; charset=punycode")
    with monkeypatch.context() as patch:
        patch.setattr("exchange_service_ccxt_generic.exact._ENCODINGS", {"punycode"})
        assert await hold_of_ccxt(binance, exchange, *answer) > 3 * LONGEST
    assert await hold_of_ccxt(binance, exchange, *answer) < LONGEST


@pytest.mark.threat("T70", attack=True)
async def test_a_long_message_of_an_error_stops_ccxts_exchanges_and_is_cut_here(
    binance: BinanceSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = listing_of(exchange_service_ccxt_generic, "binance")
    message = b'{"code":-1,"msg":"' + b"a" * 15_000 + b'"}'
    with monkeypatch.context() as patch:
        patch.setattr("exchange_service_ccxt_generic.error_members._LONGEST_MESSAGE", 1 << 40)
        patch.setattr("exchange_service_ccxt_generic.error_members._LONGEST_TEXT", 1 << 40)
        assert await hold_of_ccxt(binance, exchange, message, status=400) > 4 * LONGEST
    held = {"a long message": await hold_of_ccxt(binance, exchange, message, status=400)}
    for name in ("a long text", "rows, as many as allowed", "keys, as many as allowed"):
        held[name] = await hold_of_ccxt(binance, exchange, bodies()[name], status=400)
    assert max(held.values()) < LONGEST, held
