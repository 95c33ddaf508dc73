"""The running service as its callers meet it: each kind of failure, health, reflection, addresses and TLS."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from exchange_service_ccxt_generic.simulator import BinanceSimulator
from exchange_service_ccxt_generic.simulator import SimulatedWallet as BinanceWallet
from exchange_service_hyperliquid.simulator import HyperliquidSimulator, SimulatedPerps, SimulatedWallet
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from exchange_service.app import UnsafeSettings, start_service
from exchange_service.client import ExchangeServiceClient, ServiceUnreachable
from exchange_service.errors import (
    CredentialMissing,
    CredentialRejected,
    DeadlinePassed,
    ExchangeUnknown,
    FieldInvalid,
    VenueUnavailable,
)
from exchange_service.grpc_server.handler_wrapper import Boundary
from exchange_service.grpc_server.server import BindError
from exchange_service.grpc_server.servicer import SERVICE
from exchange_service.plugin_api import Balance, Environment, VenueCall, VenueError
from exchange_service.testing import Fault, LoopbackVenue
from exchange_service.v1 import balance_pb2, error_reason_pb2, exchange_service_pb2_grpc
from exchange_service.v1 import exchange_service_pb2 as messages
from tests.harness import (
    USER,
    Answer,
    Gate,
    Running,
    ScriptedPlugin,
    balance_request,
    failure,
    holding,
    listing,
    raising,
    registry_of,
    returning,
    serving,
    settings_for,
    streaming,
    totals,
    until,
)

OANDA_TOKEN = "a-token-for-tests"
OANDA_ACCOUNT = "101-004-7654321-001"
WALLET = "0x" + "1f" * 20


def fill(venue: LoopbackVenue) -> None:
    """Let the venue know an account that holds something."""
    if isinstance(venue, OandaSimulator):
        venue.add_token(OANDA_TOKEN, SimulatedAccount(OANDA_ACCOUNT))
    elif isinstance(venue, HyperliquidSimulator):
        venue.add_wallet(WALLET, SimulatedWallet(spot=[("USDC", 0, "1250.44", "100.0")], perps={"": SimulatedPerps()}))
    elif isinstance(venue, BinanceSimulator):
        venue.add_wallet(BinanceWallet("testkey", "testsecret", spot={"BTC": ("0.48210000", "0.01000000")}))


CREDENTIALS: dict[str, dict[str, Any]] = {
    "oanda": {"api_key": OANDA_TOKEN},
    "hyperliquid": {"api_key": "", "metadata": {"wallet_address": WALLET}},
    "binance": {"api_key": "testkey", "api_secret": "testsecret"},
}


VENUES: dict[str, type[LoopbackVenue]] = {
    "oanda": OandaSimulator,
    "hyperliquid": HyperliquidSimulator,
    "binance": BinanceSimulator,
}


@asynccontextmanager
async def serving_with(folder: Path, exchange_id: str, **changes: Any) -> AsyncIterator[tuple[Running, Any]]:
    async with (
        VENUES[exchange_id]() as venue,
        serving(folder, venue_urls={exchange_id: venue.url}, **changes) as running,
    ):
        fill(venue)
        await running.store(exchange_id, **CREDENTIALS[exchange_id])
        yield running, venue


class TestBalance:
    async def test_the_figures_arrive_as_the_venue_wrote_them(self, tmp_path: Path) -> None:
        async with serving_with(tmp_path, "oanda") as (running, _):
            reply = await running.client.get_balance(USER, "oanda")
        (account,) = reply.balance.venue_accounts
        (row,) = account.assets
        assert (account.id, account.type) == (OANDA_ACCOUNT, "forex")
        assert (row.asset, row.total, row.free, row.used) == ("EUR", "25310.4426", "23246.1055", "1940.2271")
        assert not row.HasField("debt")
        assert reply.balance.summary.unrealised_pnl == "-127.9300"
        assert reply.balance.summary.equity == "25182.5126"
        assert (reply.balance.user_id, reply.balance.exchange_id) == (USER, "oanda")
        assert reply.balance.environment == "production"
        assert abs(reply.balance.fetch_time.ToSeconds() - time.time()) < 60

    async def test_a_second_call_is_answered_from_what_was_kept(self, tmp_path: Path) -> None:
        async with serving_with(tmp_path, "oanda") as (running, venue):
            first = await running.client.get_balance(USER, "oanda")
            asked = len(venue.requests)
            second = await running.client.get_balance(USER, "OANDA", environment="live")
            assert len(venue.requests) == asked
        assert first.freshness.source == balance_pb2.BALANCE_SOURCE_VENUE
        assert second.freshness.source == balance_pb2.BALANCE_SOURCE_CACHE
        assert second.balance == first.balance
        assert second.freshness.age.ToTimedelta() >= first.freshness.age.ToTimedelta()
        assert not second.freshness.HasField("stale")

    async def test_zero_rows_are_left_out_unless_asked_for(self, tmp_path: Path) -> None:
        async with serving_with(tmp_path, "binance") as (running, venue):
            venue.wallets["testkey"].spot["BNB"] = ("0.00000000", "0.00000000")
            short = await running.client.get_balance(USER, "binance")
            full = await running.client.get_balance(USER, "binance", include_zero=True)
        assert [row.asset for row in short.balance.venue_accounts[0].assets] == ["BTC"]
        assert sorted(row.asset for row in full.balance.venue_accounts[0].assets) == ["BNB", "BTC"]
        assert full.freshness.source == balance_pb2.BALANCE_SOURCE_CACHE


def _value(text: str) -> Callable[[], Awaitable[str]]:
    async def make() -> str:
        return text

    return make


def _of(max_age: float) -> Duration:
    return Duration(seconds=int(max_age), nanos=0)


BAD_BALANCE_REQUESTS = {
    "no user": (balance_request(user_id=""), "user_id"),
    "a blank user": (balance_request(user_id="  "), "user_id"),
    "a long user": (balance_request(user_id="a" * 257), "user_id"),
    "a user with a line break": (balance_request(user_id="a\nb"), "user_id"),
    "no exchange": (balance_request(""), "exchange_id"),
    "a long exchange": (balance_request("a" * 257), "exchange_id"),
    "a negative age": (balance_request(max_age=_of(-1)), "max_age"),
    "an unknown environment": (balance_request(environment="moon"), "environment"),
    "a long environment": (balance_request(environment="a" * 257), "environment"),
}
BAD_LIST_REQUESTS = {
    "a source that is none": (messages.ListExchangesRequest(source=9), "source"),  # type: ignore[arg-type]
    "a page too small": (messages.ListExchangesRequest(page_size=-1), "page_size"),
    "a page too large": (messages.ListExchangesRequest(page_size=501), "page_size"),
    "a token that is none": (messages.ListExchangesRequest(page_token="nonsense"), "page_token"),
    "a search that is too long": (messages.ListExchangesRequest(search="a" * 257), "search"),
}


# The first field of each request is a text.
NO_MESSAGES = {
    "bytes of nothing": b"\xff\xff\xff\xff",
    "a text that ends too early": b"\x0a\x7fabc",
    "a wire type that there is not": b"\x0f",
    "a text that is no UTF-8": b"\x0a\x04\xff\xfe\xfa\xc0",
    "half of a character as text": b"\x0a\x03\xed\xa0\x80",
}


class TestRefusals:
    @pytest.fixture
    async def running(self, tmp_path: Path) -> AsyncIterator[Running]:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            yield running

    @pytest.mark.parametrize("name", BAD_BALANCE_REQUESTS)
    async def test_a_bad_field_of_get_balance_is_named(self, running: Running, name: str) -> None:
        request, field = BAD_BALANCE_REQUESTS[name]
        failed = await failure(running.stub.GetBalance(request))
        assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
        assert failed.fields == [field]
        assert failed.message.startswith("FIELD_INVALID: ")

    @pytest.mark.parametrize("name", BAD_LIST_REQUESTS)
    async def test_a_bad_field_of_list_exchanges_is_named(self, running: Running, name: str) -> None:
        request, field = BAD_LIST_REQUESTS[name]
        failed = await failure(running.stub.ListExchanges(request))
        assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
        assert failed.fields == [field]

    async def test_a_bad_field_of_a_stream_is_named_with_its_place(self, running: Running) -> None:
        async with streaming(running, "paper", "") as stream:
            failed = await stream.failure()
        assert (failed.code, failed.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["accounts[1].exchange_id"])

    async def test_more_accounts_than_a_stream_may_follow_are_refused(self, running: Running) -> None:
        async with streaming(running, *["paper"] * 201) as stream:
            failed = await stream.failure()
        assert (failed.code, failed.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["accounts"])

    async def test_an_unknown_exchange_comes_with_a_near_match(self, running: Running) -> None:
        failed = await failure(running.stub.GetBalance(balance_request("papre")))
        assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "EXCHANGE_UNKNOWN")
        assert "Did you mean 'paper'?" in failed.message

    async def test_an_account_without_a_credential_is_not_found(self, running: Running) -> None:
        failed = await failure(running.stub.GetBalance(balance_request()))
        assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "CREDENTIAL_MISSING")
        assert "credentials add" in failed.message

    @pytest.mark.parametrize("name", NO_MESSAGES)
    @pytest.mark.parametrize("method", ["ListExchanges", "GetBalance", "StreamBalances"])
    async def test_bytes_that_are_no_message_are_refused_like_any_bad_field(
        self, running: Running, method: str, name: str
    ) -> None:
        open_call: Any = running.client.channel.unary_unary
        if method == "StreamBalances":
            open_call = running.client.channel.unary_stream
        call = open_call(f"/{SERVICE}/{method}")(NO_MESSAGES[name])
        failed = await failure(call.read() if method == "StreamBalances" else call)
        assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
        assert failed.fields == ["request"]
        assert failed.message.startswith("FIELD_INVALID: request: it is no exchange_service.v1.")
        # And nobody else has anything of it.
        assert (await running.client.list_exchanges()).stats.total == 1

    @pytest.mark.threat("T13")
    async def test_an_oversize_request_is_refused_unread(self, running: Running) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await running.stub.GetBalance(balance_request(user_id="a" * 70_000))
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

    async def test_an_unknown_method_is_unimplemented(self, running: Running) -> None:
        call: Any = running.client.channel.unary_unary(f"/{SERVICE}/Withdraw")
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call(b"")
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED

    async def test_the_client_raises_the_error_that_the_reason_stands_for(self, running: Running) -> None:
        with pytest.raises(FieldInvalid, match=r"^FIELD_INVALID: user_id"):
            await running.client.get_balance("", "paper")
        with pytest.raises(ExchangeUnknown):
            await running.client.get_balance(USER, "nowhere")
        with pytest.raises(CredentialMissing):
            await running.client.get_balance(USER, "paper")

    async def test_a_listed_exchange_without_balances_says_so(self, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        async with serving(tmp_path / "other") as running:
            entries = {entry.id: entry for entry in await running.client.all_exchanges(source="custom")}
            unsupported = [entry for entry in entries.values() if not entry.capabilities.balance]
            for entry in unsupported:
                await running.store(entry.id)
                failed = await failure(running.stub.GetBalance(balance_request(entry.id)))
                assert (failed.code, failed.reason) == (grpc.StatusCode.UNIMPLEMENTED, "NOT_SUPPORTED")
                assert entry.name.split()[0].lower() in failed.message.lower()


class TestVenueFailures:
    async def test_a_refused_key_says_so_and_holds_no_key(self, tmp_path: Path) -> None:
        async with serving_with(tmp_path, "oanda") as (running, _):
            await running.store("oanda", user="bob", api_key="a-key-that-was-revoked")
            failed = await failure(running.stub.GetBalance(balance_request("oanda", user_id="bob")))
            assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CREDENTIAL_REJECTED")
            assert "a-key-that-was-revoked" not in failed.message
            with pytest.raises(CredentialRejected):
                await running.client.get_balance("bob", "oanda")

    async def test_a_venue_that_limits_us_gives_the_delay_in_every_form(self, tmp_path: Path) -> None:
        async with serving_with(tmp_path, "oanda") as (running, venue):
            venue.fail(Fault.rate_limited("7"))
            failed = await failure(running.stub.GetBalance(balance_request("oanda")))
        assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "VENUE_RATE_LIMITED")
        assert failed.retry_delay == 7.0
        assert failed.trailers["grpc-retry-pushback-ms"] == "7000"

    async def test_a_venue_that_is_down_is_unavailable_with_a_delay(self, tmp_path: Path) -> None:
        async with serving_with(tmp_path, "oanda") as (running, venue):
            await venue.stop()
            failed = await failure(running.stub.GetBalance(balance_request("oanda")))
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "VENUE_UNAVAILABLE")
        assert failed.retry_delay is not None

    async def test_a_refused_account_stands_beside_the_readable_ones(self, tmp_path: Path) -> None:
        async with serving_with(tmp_path, "oanda") as (running, venue):
            refused = SimulatedAccount("101-004-7654321-003", refused=True)
            venue.add_token(OANDA_TOKEN, SimulatedAccount(OANDA_ACCOUNT), refused)
            balance = (await running.client.get_balance(USER, "oanda")).balance
        good, bad = balance.venue_accounts
        assert good.assets[0].total == "25310.4426"
        assert bad.HasField("error")
        assert not bad.assets
        assert not bad.HasField("summary")
        # A figure for all of them would leave the refused one out without a word.
        assert not balance.HasField("summary")


# None of these texts and delays could be sent as they are.
UNSENDABLE = {
    "half of a character": ("It \ud800 is down.", 1.0),
    "20 kB": ("x" * 20_000, 1.0),
    "20,000 letters of four bytes": ("\N{GRINNING FACE}" * 20_000, 1.0),
    "line breaks without end": ("\n" * 20_000, 1.0),
    "longer than a year can say": ("It is down.", 1e300),
    "no number": ("It is down.", float("nan")),
}


class TestUnsendableErrors:
    @pytest.mark.parametrize("name", UNSENDABLE)
    async def test_one_arrives_with_its_reason_and_a_delay_that_can_be_waited_for(
        self, tmp_path: Path, name: str
    ) -> None:
        text, delay = UNSENDABLE[name]
        plugin = ScriptedPlugin(answer=raising(VenueUnavailable(text, retry_after=delay)))
        async with serving(tmp_path, registry=registry_of(plugin)) as running:
            await running.store()
            # More than once: of trailers that are a little too large gRPC drops a part, by chance.
            for _ in range(8):
                failed = await failure(running.stub.GetBalance(balance_request()))
                assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "VENUE_UNAVAILABLE")
                assert failed.retry_delay is not None
                assert 0 < failed.retry_delay <= 3600

    async def test_a_balance_too_large_to_send_is_the_failure_of_its_plugin_and_account_alone(
        self, tmp_path: Path
    ) -> None:
        plugin = ScriptedPlugin(listing("paper"), listing("pencil"), answer=_too_much_for("paper"))
        async with serving(tmp_path, registry=registry_of(plugin)) as running:
            await running.store("paper")
            await running.store("pencil")
            failed = await failure(running.stub.GetBalance(balance_request()))
            assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "PLUGIN_FAILED")
            assert "cannot be written down" in failed.message
            assert totals((await running.client.get_balance(USER, "pencil")).balance) == {"BTC": "1.50"}

    async def test_as_much_as_may_be_kept_can_be_sent(self, tmp_path: Path) -> None:
        plugin = ScriptedPlugin(answer=returning(_long_codes(7_000)))
        async with serving(tmp_path, registry=registry_of(plugin)) as running:
            await running.store()
            reply = await running.client.get_balance(USER, "paper")
            assert len(totals(reply.balance)) == 7_000
            assert reply.ByteSize() > 1_900_000


def _long_codes(rows: int) -> Balance:
    """A balance of rows of about 280 bytes each."""
    return holding(*((f"{'X' * 128}{number:05}", "1") for number in range(rows)))


def _too_much_for(exchange_id: str) -> Answer:
    async def answer(call: VenueCall) -> Balance:
        return _long_codes(9_000) if call.exchange.id == exchange_id else holding(("BTC", "1.50"))

    return answer


NONSENSE = {
    "a page for people": Fault.html(200),
    "an empty list": Fault(body=b"[]"),
    "an empty object": Fault(body=b"{}"),
    "a truncated answer": Fault(body=b'{"account": {"id": "101-004'),
    "a bare NaN": Fault(body=b'{"balance": NaN, "account": NaN, "balances": NaN, "marginSummary": NaN}'),
    "nothing at all": Fault(body=b""),
    "null": Fault(body=b"null"),
}


@pytest.mark.threat("T15")
class TestNonsense:
    @pytest.mark.parametrize("exchange_id", VENUES)
    async def test_it_is_never_a_balance(self, tmp_path: Path, exchange_id: str) -> None:
        async with serving_with(tmp_path, exchange_id) as (running, venue):
            for name, fault in NONSENSE.items():
                user = name.replace(" ", "-")
                await running.store(exchange_id, user=user, **CREDENTIALS[exchange_id])
                venue.fail(fault)
                failed = await failure(running.stub.GetBalance(balance_request(exchange_id, user_id=user)))
                venue.recover()
                assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "VENUE_MALFORMED"), name
                # What was wrong is not kept: the next call is answered from the venue.
                reply = await running.client.get_balance(user, exchange_id)
                assert reply.freshness.source == balance_pb2.BALANCE_SOURCE_VENUE
                assert totals(reply.balance), name

    @pytest.mark.parametrize("exchange_id", VENUES)
    async def test_the_last_good_balance_is_given_in_its_place_and_marked(
        self, tmp_path: Path, exchange_id: str
    ) -> None:
        async with serving_with(tmp_path, exchange_id) as (running, venue):
            good = await running.client.get_balance(USER, exchange_id)
            for name, fault in NONSENSE.items():
                venue.fail(fault)
                reply = await running.client.get_balance(USER, exchange_id, max_age=1e-6)
                forced = await failure(running.stub.GetBalance(balance_request(exchange_id, max_age=_of(0))))
                venue.recover()
                assert reply.balance == good.balance, name
                assert reply.freshness.source == balance_pb2.BALANCE_SOURCE_LAST_GOOD
                assert reply.freshness.stale.reason == error_reason_pb2.ERROR_REASON_VENUE_MALFORMED, name
                assert forced.reason == "VENUE_MALFORMED", name
                # So many in a row would let the venue be left alone.
                good = await running.client.get_balance(USER, exchange_id, max_age=0)

    async def test_nonsense_after_the_markets_are_known_is_no_balance_either(self, tmp_path: Path) -> None:
        async with serving_with(tmp_path, "binance") as (running, venue):
            await running.client.get_balance(USER, "binance")
            for name, fault in NONSENSE.items():
                user = name.replace(" ", "-")
                await running.store("binance", user=user, **CREDENTIALS["binance"])
                venue.fail(replace(fault, path="/api/v3/account"))
                failed = await failure(running.stub.GetBalance(balance_request("binance", user_id=user)))
                venue.recover()
                # So many in a row would let the venue be left alone.
                await running.client.get_balance(USER, "binance", max_age=0)
                assert failed.reason == "VENUE_MALFORMED", name


class TestDeadlines:
    async def test_a_silent_venue_is_answered_for_before_the_callers_deadline(self, tmp_path: Path) -> None:
        async with serving_with(tmp_path, "oanda") as (running, venue):
            venue.fail(Fault(silent=True))
            failed = await failure(running.stub.GetBalance(balance_request("oanda"), timeout=0.8))
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "VENUE_TIMEOUT")

    async def test_a_caller_without_a_deadline_gets_the_configured_one(self, tmp_path: Path) -> None:
        gate = Gate()
        plugin = ScriptedPlugin(answer=gate)
        async with serving(tmp_path, registry=registry_of(plugin), call_timeout=0.3) as running:
            await running.store()
            failed = await failure(running.stub.GetBalance(balance_request()))
        assert failed.reason == "VENUE_TIMEOUT"

    async def test_five_milliseconds_are_too_little_to_ask_a_venue(self, tmp_path: Path) -> None:
        plugin = ScriptedPlugin()
        async with serving(tmp_path, registry=registry_of(plugin)) as running:
            await running.store()
            for _ in range(20):
                with pytest.raises(grpc.aio.AioRpcError) as refusal:
                    await running.stub.GetBalance(balance_request(), timeout=0.005)
                assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert plugin.calls == []

    async def test_a_call_that_is_given_up_does_not_reach_the_venue_to_its_end(self, tmp_path: Path) -> None:
        gate = Gate()
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin(answer=gate))) as running:
            await running.store()
            call = running.stub.GetBalance(balance_request())
            await gate.entered.wait()
            call.cancel()
            await asyncio.wait_for(gate.cancelled.wait(), 5)
            gate.opened.set()
            reply = await running.client.get_balance(USER, "paper")
            assert reply.balance.venue_accounts[0].assets[0].total == "1.50"


class TestHealthAndReflection:
    async def test_health_says_serving_for_the_server_and_the_service(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            stub: Any = health_pb2_grpc.HealthStub(running.client.channel)
            for name in ("", SERVICE):
                reply = await stub.Check(health_pb2.HealthCheckRequest(service=name))
                assert reply.status == health_pb2.HealthCheckResponse.SERVING

    async def test_who_watches_health_sees_the_service_leave(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            stub: Any = health_pb2_grpc.HealthStub(running.client.channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            await running.service.server.set_serving(False)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watch.cancel()

    @staticmethod
    async def services(running: Running) -> list[str]:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(running.client.channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        reply = await call.read()
        call.cancel()
        return [service.name for service in reply.list_services_response.service]

    async def test_reflection_lists_the_service_on_loopback(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            assert SERVICE in await self.services(running)

    async def test_reflection_can_be_switched_off(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), reflection=False) as running:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await self.services(running)
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED

    @pytest.mark.threat("T19")
    async def test_reflection_is_off_where_others_can_reach_the_service(self, tmp_path: Path) -> None:
        async with serving(
            tmp_path, registry=registry_of(ScriptedPlugin()), address="0.0.0.0:0", insecure=True
        ) as running:
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await self.services(running)
        assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED


class TestAddresses:
    async def test_a_second_service_on_the_same_port_is_told_so(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            settings = settings_for(tmp_path, address=running.service.address)
            with pytest.raises(BindError, match=running.service.address):
                await start_service(settings, registry=registry_of(ScriptedPlugin()))
            # The first one is none the worse for it.
            assert (await running.client.list_exchanges()).stats.total == 1

    async def test_a_port_is_free_again_after_the_stop(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            address = running.service.address
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), address=address) as running:
            assert (await running.client.list_exchanges()).stats.total == 1

    async def test_an_address_that_others_reach_needs_tls(self, tmp_path: Path) -> None:
        with pytest.raises(UnsafeSettings, match="TLS"):
            await start_service(settings_for(tmp_path, address="0.0.0.0:0"), registry=registry_of(ScriptedPlugin()))

    async def test_the_operator_may_insist_on_no_tls(self, tmp_path: Path) -> None:
        async with serving(
            tmp_path, registry=registry_of(ScriptedPlugin()), address="0.0.0.0:0", insecure=True
        ) as running:
            port = running.service.address.rpartition(":")[2]
            async with ExchangeServiceClient(f"127.0.0.1:{port}") as client:
                assert (await client.list_exchanges()).stats.total == 1

    async def test_a_certificate_without_its_key_is_refused(self, tmp_path: Path) -> None:
        certificate, _ = _certificate(tmp_path)
        with pytest.raises(UnsafeSettings, match="both"):
            await start_service(
                settings_for(tmp_path, tls_certificate=certificate), registry=registry_of(ScriptedPlugin())
            )

    async def test_an_address_that_takes_a_connection_and_never_answers_costs_the_deadline(
        self, silent_address: str
    ) -> None:
        async with ExchangeServiceClient(silent_address, timeout=0.3) as client:
            for call in (client.list_exchanges(), client.get_balance(USER, "paper")):
                with pytest.raises(DeadlinePassed, match=f"{silent_address} did not answer in time"):
                    await call

    async def test_a_call_that_takes_longer_than_its_client_waits_passed_its_deadline(self, tmp_path: Path) -> None:
        async def slow(*_: Any) -> bytes:
            await asyncio.sleep(30)
            return b""

        server = grpc.aio.server()
        handlers: dict[str, Any] = {"ListExchanges": grpc.unary_unary_rpc_method_handler(slow)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with ExchangeServiceClient(f"127.0.0.1:{port}", timeout=0.3) as client:
            with pytest.raises(DeadlinePassed):
                await client.list_exchanges()
        await server.stop(0)

    async def test_an_address_without_a_service_is_named_by_the_client(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            address = running.service.address
        async with ExchangeServiceClient(address) as client:
            with pytest.raises(ServiceUnreachable, match=address):
                await client.list_exchanges()


WITH_SANDBOX = (Environment("production", {}, aliases=("live",)), Environment("sandbox", {}, aliases=("practice",)))
WRONG_SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown exchange": ({"venue_urls": {"papre": "http://127.0.0.1:1"}}, "'papre'"),
    "an unknown exchange's sandbox": ({"venue_urls": {"papre.sandbox": "http://127.0.0.1:1"}}, "'papre.sandbox'"),
    "an unknown environment": ({"venue_urls": {"paper.moon": "http://127.0.0.1:1"}}, "'paper.moon'"),
    "an environment without a name": ({"venue_urls": {"paper.": "http://127.0.0.1:1"}}, "'paper.'"),
    "a distribution that is not installed": ({"exchange_plugins": {"paper": "exchange-service-papre"}}, "-papre'"),
}


class TestOverrides:
    @pytest.fixture
    def plugin(self) -> ScriptedPlugin:
        return ScriptedPlugin(listing("paper", environments=WITH_SANDBOX))

    @pytest.mark.parametrize("name", WRONG_SETTINGS)
    async def test_one_for_what_is_not_served_is_refused_by_its_name(
        self, tmp_path: Path, plugin: ScriptedPlugin, name: str
    ) -> None:
        settings, named = WRONG_SETTINGS[name]
        with pytest.raises(UnsafeSettings, match=named):
            await start_service(settings_for(tmp_path, **settings), registry=registry_of(plugin))

    @pytest.mark.parametrize("name", ["paper.sandbox", "paper.practice", "paper.PRACTICE"])
    async def test_an_alias_stands_for_its_environment_and_for_no_other(
        self, tmp_path: Path, plugin: ScriptedPlugin, name: str
    ) -> None:
        async with serving(tmp_path, registry=registry_of(plugin), venue_urls={name: "http://127.0.0.1:1"}) as running:
            await running.store(environment="sandbox")
            await running.store()
            await running.client.get_balance(USER, "paper", environment="practice")
            await running.client.get_balance(USER, "paper")
        assert [(call.environment.name, call.override) for call in plugin.calls] == [
            ("sandbox", "http://127.0.0.1:1"),
            ("production", ""),
        ]

    async def test_a_real_venues_own_word_leads_to_its_sandbox(self, tmp_path: Path) -> None:
        async with (
            OandaSimulator() as practice,
            serving(tmp_path, venue_urls={"oanda.practice": practice.url, "oanda": "http://127.0.0.1:1"}) as running,
        ):
            fill(practice)
            await running.store("oanda", environment="sandbox", api_key=OANDA_TOKEN)
            reply = await running.client.get_balance(USER, "oanda", environment="practice")
        assert reply.balance.environment == "sandbox"
        assert totals(reply.balance) == {"EUR": "25310.4426"}

    async def test_a_distribution_that_is_installed_may_be_chosen(self, tmp_path: Path, plugin: ScriptedPlugin) -> None:
        chosen = {"paper": "exchange-service-paper"}
        async with serving(tmp_path, registry=registry_of(plugin), exchange_plugins=chosen) as running:
            assert (await running.client.list_exchanges()).stats.total == 1


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key, as PEM files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "exchange-service")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


class TestTls:
    async def test_a_client_that_trusts_the_certificate_is_served(self, tmp_path: Path) -> None:
        certificate, key = _certificate(tmp_path)
        async with serving(
            tmp_path,
            registry=registry_of(ScriptedPlugin()),
            address="0.0.0.0:0",
            tls_certificate=certificate,
            tls_key=key,
            open_to_all=True,
        ) as running:
            port = running.service.address.rpartition(":")[2]
            trust = grpc.ssl_channel_credentials(certificate.read_bytes())
            async with ExchangeServiceClient(f"127.0.0.1:{port}", credentials=trust) as client:
                assert (await client.list_exchanges()).stats.total == 1
            async with ExchangeServiceClient(f"127.0.0.1:{port}", timeout=2) as client:
                with pytest.raises(ServiceUnreachable):
                    await client.list_exchanges()


class _BrokenHandlers:
    """Handlers behind the real boundary that fail as no code of ours should."""

    text = "https://api.example/balance?signature=48be&key=hunter2"

    async def unary(self, request: Any, context: Any) -> bytes:
        raise ValueError(self.text)

    async def stream(self, request: Any, context: Any) -> None:
        await context.write(messages.StreamBalancesResponse().SerializeToString())
        raise KeyError(self.text)


@pytest.mark.threat("T8")
class TestBoundary:
    @pytest.fixture
    async def stub(self) -> AsyncIterator[Any]:
        broken = _BrokenHandlers()
        server, boundary = grpc.aio.server(), Boundary()
        handlers: dict[str, Any] = {
            "GetBalance": grpc.unary_unary_rpc_method_handler(boundary.bounded("GetBalance", broken.unary)),
            "StreamBalances": grpc.unary_stream_rpc_method_handler(boundary.bounded("StreamBalances", broken.stream)),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield exchange_service_pb2_grpc.ExchangeServiceStub(channel)
        await server.stop(0)

    async def test_an_exception_leaves_with_a_reference_and_without_its_text(self, stub: Any) -> None:
        failed = await failure(stub.GetBalance(balance_request()))
        assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "SERVICE_FAILED")
        assert "hunter2" not in repr(failed)
        assert "ValueError" not in failed.message
        reference = failed.message.rpartition("under ")[2].split(".")[0]
        assert len(reference) == 12

    async def test_a_stream_that_breaks_ends_the_same_way_after_what_it_sent(self, stub: Any) -> None:
        call = stub.StreamBalances(messages.StreamBalancesRequest(user_id=USER))
        assert await call.read() is not grpc.aio.EOF
        failed = await failure(call.read())
        assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "SERVICE_FAILED")
        assert "hunter2" not in repr(failed)

    async def test_the_log_has_the_reference_and_not_the_text(self, stub: Any) -> None:
        with capture_logs() as lines:
            failed = await failure(stub.GetBalance(balance_request()))
        (line,) = [line for line in lines if line["event"] == "call.failed"]
        assert line["request_id"] in failed.message
        assert line["error"] == "ValueError"
        assert "hunter2" not in json.dumps(lines)


class TestStop:
    async def test_a_call_in_progress_is_answered_before_the_stop(self, tmp_path: Path) -> None:
        gate = Gate()
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin(answer=gate)), shutdown_grace=5) as running:
            await running.store()
            call = asyncio.ensure_future(running.client.get_balance(USER, "paper"))
            await gate.entered.wait()
            stopping = asyncio.ensure_future(running.service.server.stop(5))
            await until(lambda: not stopping.done())
            gate.opened.set()
            assert (await call).balance.venue_accounts
            await stopping

    async def test_a_call_that_waits_for_a_silent_venue_is_told_of_the_stop_within_the_grace(
        self, tmp_path: Path
    ) -> None:
        async with OandaSimulator() as venue:
            fill(venue)
            venue.fail(Fault(silent=True))
            settings = settings_for(tmp_path, venue_urls={"oanda": venue.url}, shutdown_grace=1.0)
            service = await start_service(settings)
            async with ExchangeServiceClient(service.address) as client:
                running = Running(service, client)
                await running.store("oanda", api_key=OANDA_TOKEN)
                call = asyncio.ensure_future(failure(running.stub.GetBalance(balance_request("oanda"))))
                await until(lambda: venue.requests, "the request to the venue")
                began = time.monotonic()
                stopping = asyncio.ensure_future(service.stop())
                failed = await call
                told = time.monotonic() - began
                await stopping
                took = time.monotonic() - began
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert failed.retry_delay is not None
        # Not at once: until then the venue may yet answer.
        assert 0.5 < told < 1.0
        assert took < 3.0

    async def test_a_closing_of_a_plugins_that_hangs_does_not_hold_up_the_stop(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("exchange_service.plugin_kit.state._CLOSE_LIMIT", 0.3)
        closing: list[str] = []

        async def answer(call: VenueCall) -> Balance:
            async def hang(value: str) -> None:
                closing.append(value)
                await asyncio.Event().wait()

            await call.account_state.get("client", _value("the account's"), close=hang)
            await call.plugin_state.get("markets", _value("the plugin's"), close=hang)
            return holding(("BTC", "1.50"))

        service = await start_service(
            settings_for(tmp_path, shutdown_grace=1.0), registry=registry_of(ScriptedPlugin(answer=answer))
        )
        async with ExchangeServiceClient(service.address) as client:
            running = Running(service, client)
            for user in ("alice", "bob", "carol"):
                await running.store(user=user)
                await client.get_balance(user, "paper")
        async with asyncio.timeout(5):
            await service.stop()
        assert sorted(closing) == ["the account's"] * 3 + ["the plugin's"]

    async def test_a_venue_error_of_a_kind_without_a_reason_is_the_plugins_failure(self, tmp_path: Path) -> None:
        plugin = ScriptedPlugin(answer=raising(VenueError("something")))
        async with serving(tmp_path, registry=registry_of(plugin)) as running:
            await running.store()
            failed = await failure(running.stub.GetBalance(balance_request()))
        assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "PLUGIN_FAILED")
