"""What a caller is told if a venue refuses, or a gateway before it answers, through the whole service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from exchange_service_ccxt_generic.exact import Guarded
from exchange_service_ccxt_generic.instances import Instances
from exchange_service_hyperliquid.simulator import HyperliquidSimulator, SimulatedPerps, SimulatedWallet
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount
from google.protobuf.duration_pb2 import Duration

from exchange_service.testing import Fault, LoopbackVenue
from exchange_service.v1 import balance_pb2, error_reason_pb2
from tests.harness import USER, Failure, Running, balance_request, failure, serving, totals

KEY = {
    "api_key": "abcdef0123456789",
    "api_secret": "MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTI=",
    "passphrase": "words",
}
WALLET = "0x" + "1f" * 20
PAGES = {
    "blocked": b"<!DOCTYPE html><html><head><title>Attention Required! | Cloudflare</title></head></html>",
    "challenge": b"<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>",
}


class AnyVenue(LoopbackVenue):
    """A venue that answers every path with the same body, until a fault is set."""

    body = b"{}"

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/{tail:.*}", self._answer)]

    async def _answer(self, _: web.Request) -> web.Response:
        return web.Response(body=self.body, content_type="application/json")


@pytest.fixture
def preset_markets(monkeypatch: pytest.MonkeyPatch) -> None:
    """CCXT's markets are preset, and there are no pauses: the account's own answers are what is tested."""

    async def no_pause(self: Guarded, cost: Any = None) -> None:
        return None

    async def markets(self: Instances, ccxt: Any) -> Any:
        instance = self.construct(ccxt, Guarded, None, 1000)
        market = {"id": "BTCAUD", "symbol": "BTC/AUD", "base": "BTC", "quote": "AUD", "spot": True}
        instance.set_markets([instance.safe_market_structure(market)])
        for name in instance.options.get("marketHelperProps", []):
            instance.options.setdefault(name, {})
        return instance

    monkeypatch.setattr(Guarded, "throttle", no_pause, raising=False)
    monkeypatch.setattr(Instances, "load_markets", markets)


@asynccontextmanager
async def through_ccxt(
    folder: Path, exchange_id: str, body: bytes = b"{}", **settings: Any
) -> AsyncIterator[tuple[Running, LoopbackVenue]]:
    """The service with one exchange of CCXT's, whose venue answers everything with `body`."""
    async with AnyVenue() as venue:
        assert isinstance(venue, AnyVenue)
        venue.body = body
        options: dict[str, Any] = {"plugin_processes": {"ccxt_generic": "in-process"}, **settings}
        async with serving(folder, venue_urls={exchange_id: venue.url}, **options) as running:
            await running.store(exchange_id, **KEY)
            yield running, venue


async def forced(running: Running, exchange_id: str) -> Failure:
    return await failure(running.stub.GetBalance(balance_request(exchange_id, max_age=Duration())))


async def passes(running: Running, venue: LoopbackVenue, exchange_id: str, page: bytes) -> None:
    """A page is a passing trouble: the last good balance is served and marked, and the key is not blamed."""
    good = await running.client.get_balance(USER, exchange_id)
    assert totals(good.balance)
    headers = {"Server": "cloudflare"}
    venue.fail(Fault(status=403, body=page, content_type="text/html", headers=headers))
    reply = await running.client.get_balance(USER, exchange_id, max_age=1e-6)
    failed = await forced(running, exchange_id)
    assert reply.balance == good.balance
    assert reply.freshness.source == balance_pb2.BALANCE_SOURCE_LAST_GOOD
    assert reply.freshness.stale.reason == error_reason_pb2.ERROR_REASON_VENUE_UNAVAILABLE
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "VENUE_UNAVAILABLE")
    assert not any(word in failed.message for word in ("key", "token", "allow-list"))


@pytest.mark.usefixtures("preset_markets")
@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
async def test_a_gateways_page_is_a_passing_trouble_at_btcmarkets(tmp_path: Path, page: bytes) -> None:
    body = b'[{"assetName":"BTC","balance":"1.5","available":"1.25","locked":"0.25"}]'
    async with through_ccxt(tmp_path, "btcmarkets", body) as (running, venue):
        await passes(running, venue, "btcmarkets", page)


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
async def test_a_gateways_page_is_a_passing_trouble_at_oanda_and_hyperliquid(tmp_path: Path, page: bytes) -> None:
    async with OandaSimulator() as oanda, HyperliquidSimulator() as hyperliquid:
        assert isinstance(oanda, OandaSimulator)
        assert isinstance(hyperliquid, HyperliquidSimulator)
        oanda.add_token("a-token-for-tests", SimulatedAccount("101-004-7654321-001"))
        perps = {"": SimulatedPerps()}
        hyperliquid.add_wallet(WALLET, SimulatedWallet(spot=[("USDC", 0, "1250.44", "100.0")], perps=perps))
        urls = {"oanda": oanda.url, "hyperliquid": hyperliquid.url}
        async with serving(tmp_path, venue_urls=urls) as running:
            await running.store("oanda", api_key="a-token-for-tests")
            await running.store("hyperliquid", metadata={"wallet_address": WALLET})
            await passes(running, oanda, "oanda", page)
            await passes(running, hyperliquid, "hyperliquid", page)


@pytest.mark.usefixtures("preset_markets")
@pytest.mark.parametrize(
    ("exchange_id", "status", "body", "reason"),
    [
        ("gate", 401, '{"label":"IP_FORBIDDEN","message":"Request IP not in whitelist: 203.0.113.9"}', "address"),
        ("mexc", 400, '{"code":700006,"msg":"IP [203.0.113.9] not in the ip white list"}', "address"),
        ("mexc", 400, '{"code":10072,"msg":"Api key info invalid"}', "key"),
        ("bingx", 200, '{"code":100419,"msg":"your request IP does not match IP whitelist"}', "address"),
        ("bitget", 400, '{"code":"40018","msg":"Invalid IP","data":null}', "address"),
    ],
)
async def test_the_venues_own_word_reaches_the_caller(
    tmp_path: Path, exchange_id: str, status: int, body: str, reason: str
) -> None:
    async with through_ccxt(tmp_path, exchange_id, outgoing_address="198.51.100.7") as (running, venue):
        venue.fail(Fault(status=status, body=body.encode()))
        failed = await forced(running, exchange_id)
        assert failed.code == grpc.StatusCode.FAILED_PRECONDITION
        assert failed.reason == {"address": "ADDRESS_NOT_ALLOWED", "key": "CREDENTIAL_REJECTED"}[reason]
        assert ("198.51.100.7" in failed.message) == (reason == "address")
        assert ("203.0.113.9" in failed.message) == ("203.0.113.9" in body)
