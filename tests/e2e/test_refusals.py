"""What a caller is told if a venue refuses, or a gateway before it answers, through the whole service."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from exchange_service_hyperliquid.simulator import HyperliquidSimulator, SimulatedPerps, SimulatedWallet
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount
from google.protobuf.duration_pb2 import Duration

from exchange_service.testing import Fault, LoopbackVenue
from exchange_service.v1 import balance_pb2, error_reason_pb2
from tests.ccxt_service import through_ccxt
from tests.harness import USER, Failure, Running, balance_request, failure, serving, totals

WALLET = "0x" + "1f" * 20
PAGES = {
    "blocked": b"<!DOCTYPE html><html><head><title>Attention Required! | Cloudflare</title></head></html>",
    "challenge": b"<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>",
}


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


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
async def test_a_gateways_page_is_a_passing_trouble_at_btcmarkets(tmp_path: Path, page: bytes) -> None:
    body = b'[{"assetName":"BTC","balance":"1.5","available":"1.25","locked":"0.25"}]'
    async with through_ccxt(tmp_path, "btcmarkets") as (running, venue):
        venue.default = Fault(body=body)
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
