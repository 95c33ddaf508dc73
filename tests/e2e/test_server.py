"""The running service as its callers meet it: each kind of failure, health and reflection."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from exchange_service_ccxt_generic.simulator import BinanceSimulator
from exchange_service_ccxt_generic.simulator import SimulatedWallet as BinanceWallet
from exchange_service_hyperliquid.simulator import HyperliquidSimulator, SimulatedPerps, SimulatedWallet
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from structlog.testing import capture_logs

from exchange_service.errors import (
    CredentialMissing,
    CredentialRejected,
    ExchangeUnknown,
    FieldInvalid,
    VenueUnavailable,
)
from exchange_service.grpc_server.handler_wrapper import HandlerWrapper
from exchange_service.grpc_server.servicer import SERVICE
from exchange_service.plugin_api import Balance, VenueCall, VenueError
from exchange_service.testing import Fault, LoopbackVenue
from exchange_service.v1 import balance_pb2, error_reason_pb2, exchange_service_pb2_grpc
from exchange_service.v1 import exchange_service_pb2 as messages
from tests.engines import NATIVE
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
    streaming,
    totals,
)

OANDA_TOKEN = "a-token-for-tests"
OANDA_ACCOUNT = "101-004-7654321-001"
WALLET = "0x" + "1f" * 20


def fill(venue: LoopbackVenue) -> None:
    """Add an account that holds something to the venue."""
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

    async def test_a_second_call_is_answered_from_the_cache(self, tmp_path: Path) -> None:
        async with serving_with(tmp_path, "oanda") as (running, venue):
            first = await running.client.get_balance(USER, "oanda")
            requests = len(venue.requests)
            second = await running.client.get_balance(USER, "OANDA", environment="live")
            assert len(venue.requests) == requests
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
    "an unknown source": (messages.ListExchangesRequest(source=9), "source"),  # type: ignore[arg-type]
    "a page too small": (messages.ListExchangesRequest(page_size=-1), "page_size"),
    "a page too large": (messages.ListExchangesRequest(page_size=501), "page_size"),
    "an unknown token": (messages.ListExchangesRequest(page_token="nonsense"), "page_token"),
    "a search that is too long": (messages.ListExchangesRequest(search="a" * 257), "search"),
}


# The first field of each request is a text.
INVALID_BYTES = {
    "bytes of nothing": b"\xff\xff\xff\xff",
    "a text that ends too early": b"\x0a\x7fabc",
    "an unknown wire type": b"\x0f",
    "a text that is not UTF-8": b"\x0a\x04\xff\xfe\xfa\xc0",
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

    async def test_a_bad_field_of_a_stream_is_named_with_its_path(self, running: Running) -> None:
        async with streaming(running, "fakex", "") as stream:
            failed = await stream.failure()
        assert (failed.code, failed.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["accounts[1].exchange_id"])

    async def test_more_accounts_than_a_stream_may_follow_are_refused(self, running: Running) -> None:
        async with streaming(running, *["fakex"] * 201) as stream:
            failed = await stream.failure()
        assert (failed.code, failed.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["accounts"])

    async def test_an_unknown_exchange_comes_with_a_near_match(self, running: Running) -> None:
        failed = await failure(running.stub.GetBalance(balance_request("fakexe")))
        assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "EXCHANGE_UNKNOWN")
        assert "Did you mean 'fakex'?" in failed.message

    async def test_an_account_without_a_credential_is_not_found(self, running: Running) -> None:
        failed = await failure(running.stub.GetBalance(balance_request()))
        assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "CREDENTIAL_MISSING")
        assert "credentials add" in failed.message

    @pytest.mark.parametrize("name", INVALID_BYTES)
    @pytest.mark.parametrize("method", ["ListExchanges", "GetBalance", "StreamBalances"])
    async def test_bytes_that_are_not_a_message_are_refused_like_any_bad_field(
        self, running: Running, method: str, name: str
    ) -> None:
        open_call: Any = running.client.channel.unary_unary
        if method == "StreamBalances":
            open_call = running.client.channel.unary_stream
        call = open_call(f"/{SERVICE}/{method}")(INVALID_BYTES[name])
        failed = await failure(call.read() if method == "StreamBalances" else call)
        assert (failed.code, failed.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
        assert failed.fields == ["request"]
        assert failed.message.startswith("FIELD_INVALID: request: its bytes are not of the message ")
        # Other calls are not affected.
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
            await running.client.get_balance("", "fakex")
        with pytest.raises(ExchangeUnknown):
            await running.client.get_balance(USER, "nowhere")
        with pytest.raises(CredentialMissing):
            await running.client.get_balance(USER, "fakex")

    async def test_a_listed_exchange_without_balances_is_not_supported(self, tmp_path: Path) -> None:
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
    async def test_the_error_for_a_refused_key_does_not_hold_the_key(self, tmp_path: Path) -> None:
        async with serving_with(tmp_path, "oanda") as (running, _):
            await running.store("oanda", user="bob", api_key="a-key-that-was-revoked")
            failed = await failure(running.stub.GetBalance(balance_request("oanda", user_id="bob")))
            assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CREDENTIAL_REJECTED")
            assert "a-key-that-was-revoked" not in failed.message
            with pytest.raises(CredentialRejected):
                await running.client.get_balance("bob", "oanda")

    async def test_the_delay_of_a_venue_that_limits_us_is_sent_in_every_form(self, tmp_path: Path) -> None:
        async with serving_with(tmp_path, "oanda") as (running, venue):
            venue.fail(Fault.rate_limited("7"))
            failed = await failure(running.stub.GetBalance(balance_request("oanda")))
        assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "VENUE_RATE_LIMITED")
        assert failed.retry_delay == 7.0
        # The native engine cannot send it.
        assert NATIVE or failed.trailers["grpc-retry-pushback-ms"] == "7000"

    async def test_a_venue_that_is_down_is_unavailable_with_a_delay(self, tmp_path: Path) -> None:
        async with serving_with(tmp_path, "oanda") as (running, venue):
            await venue.stop()
            failed = await failure(running.stub.GetBalance(balance_request("oanda")))
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "VENUE_UNAVAILABLE")
        assert failed.retry_delay is not None

    async def test_a_refused_account_is_listed_beside_the_readable_ones(self, tmp_path: Path) -> None:
        async with serving_with(tmp_path, "oanda") as (running, venue):
            refused = SimulatedAccount("101-004-7654321-003", refused=True)
            venue.add_token(OANDA_TOKEN, SimulatedAccount(OANDA_ACCOUNT), refused)
            balance = (await running.client.get_balance(USER, "oanda")).balance
        good, bad = balance.venue_accounts
        assert good.assets[0].total == "25310.4426"
        assert bad.HasField("error")
        assert not bad.assets
        assert not bad.HasField("summary")
        # A figure for all of them would leave out the refused account without saying so.
        assert not balance.HasField("summary")

    async def test_a_venue_error_of_a_kind_without_a_reason_is_the_plugins_failure(self, tmp_path: Path) -> None:
        plugin = ScriptedPlugin(answer=raising(VenueError("something")))
        async with serving(tmp_path, registry=registry_of(plugin)) as running:
            await running.store()
            failed = await failure(running.stub.GetBalance(balance_request()))
        assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "PLUGIN_FAILED")


# These texts and delays cannot be sent as they are.
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
        plugin = ScriptedPlugin(listing("fakex"), listing("fakey"), answer=_too_much_for("fakex"))
        async with serving(tmp_path, registry=registry_of(plugin)) as running:
            await running.store("fakex")
            await running.store("fakey")
            failed = await failure(running.stub.GetBalance(balance_request()))
            assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "PLUGIN_FAILED")
            assert "cannot be serialized" in failed.message
            assert totals((await running.client.get_balance(USER, "fakey")).balance) == {"BTC": "1.50"}

    async def test_the_largest_balance_that_is_accepted_can_be_sent(self, tmp_path: Path) -> None:
        plugin = ScriptedPlugin(answer=returning(_long_codes(3_600)))
        async with serving(tmp_path, registry=registry_of(plugin)) as running:
            await running.store()
            reply = await running.client.get_balance(USER, "fakex")
            assert len(totals(reply.balance)) == 3_600
            assert reply.ByteSize() > 1_900_000


def _long_codes(rows: int) -> Balance:
    """A balance of rows of about 540 bytes each."""
    return holding(*((f"{'X' * 256}{number:05}", "1") for number in range(rows)))


def _too_much_for(exchange_id: str) -> Answer:
    async def answer(call: VenueCall) -> Balance:
        return _long_codes(4_800) if call.exchange.id == exchange_id else holding(("BTC", "1.50"))

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
                # The wrong answer is not cached: the next call is answered by the venue.
                reply = await running.client.get_balance(user, exchange_id)
                assert reply.freshness.source == balance_pb2.BALANCE_SOURCE_VENUE
                assert totals(reply.balance), name

    @pytest.mark.parametrize("exchange_id", VENUES)
    async def test_the_last_good_balance_is_returned_instead_and_marked(self, tmp_path: Path, exchange_id: str) -> None:
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
                # A success, because so many failures in a row would open the venue's breaker.
                good = await running.client.get_balance(USER, exchange_id, max_age=0)

    async def test_a_malformed_answer_after_the_markets_are_known_is_not_a_balance_either(self, tmp_path: Path) -> None:
        async with serving_with(tmp_path, "binance") as (running, venue):
            await running.client.get_balance(USER, "binance")
            for name, fault in NONSENSE.items():
                user = name.replace(" ", "-")
                await running.store("binance", user=user, **CREDENTIALS["binance"])
                venue.fail(replace(fault, path="/api/v3/account"))
                failed = await failure(running.stub.GetBalance(balance_request("binance", user_id=user)))
                venue.recover()
                # A success, because so many failures in a row would open the venue's breaker.
                await running.client.get_balance(USER, "binance", max_age=0)
                assert failed.reason == "VENUE_MALFORMED", name


class TestDeadlines:
    async def test_a_silent_venue_is_reported_before_the_callers_deadline(self, tmp_path: Path) -> None:
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

    async def test_a_cancelled_call_cancels_its_request_to_the_venue(self, tmp_path: Path) -> None:
        gate = Gate()
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin(answer=gate))) as running:
            await running.store()
            call = running.stub.GetBalance(balance_request())
            await gate.entered.wait()
            call.cancel()
            await asyncio.wait_for(gate.cancelled.wait(), 5)
            gate.opened.set()
            reply = await running.client.get_balance(USER, "fakex")
            assert reply.balance.venue_accounts[0].assets[0].total == "1.50"


class TestHealthAndReflection:
    async def test_health_reports_serving_for_the_server_and_the_service(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            stub: Any = health_pb2_grpc.HealthStub(running.client.channel)
            for name in ("", SERVICE):
                reply = await stub.Check(health_pb2.HealthCheckRequest(service=name))
                assert reply.status == health_pb2.HealthCheckResponse.SERVING

    async def test_a_health_watcher_sees_the_service_stop(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            stub: Any = health_pb2_grpc.HealthStub(running.client.channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            await running.service.server.set_serving(False)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            watch.cancel()

    @staticmethod
    async def reflect(running: Running, package: str, **request: str) -> Any:
        """One answer of reflection, under one of its two names. Both have the same messages."""
        call: Any = running.client.channel.stream_stream(
            f"/{package}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )(iter([reflection_pb2.ServerReflectionRequest(**request)]))
        reply = await call.read()
        call.cancel()
        return reply

    async def services(self, running: Running, package: str = "grpc.reflection.v1") -> list[str]:
        reply = await self.reflect(running, package, list_services="")
        return [service.name for service in reply.list_services_response.service]

    async def test_reflection_describes_every_service_on_loopback_under_both_of_its_names(self, tmp_path: Path) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            names = await self.services(running)
            assert {SERVICE, "grpc.reflection.v1.ServerReflection"} <= set(names)
            assert await self.services(running, "grpc.reflection.v1alpha") == names
            for name in names:
                described = await self.reflect(running, "grpc.reflection.v1", file_containing_symbol=name)
                files = map(FileDescriptorProto.FromString, described.file_descriptor_response.file_descriptor_proto)
                assert name in {f"{file.package}.{service.name}" for file in files for service in file.service}

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


class _BrokenHandlers:
    """Handlers within the real wrapper that raise what no code of ours should raise."""

    text = "https://api.example/balance?signature=48be&key=hunter2"

    async def unary(self, request: Any, context: Any) -> bytes:
        raise ValueError(self.text)

    async def stream(self, request: Any, context: Any) -> None:
        await context.write(messages.StreamBalancesResponse().SerializeToString())
        raise KeyError(self.text)


@pytest.mark.threat("T8")
class TestHandlerWrapper:
    @pytest.fixture
    async def stub(self) -> AsyncIterator[Any]:
        broken = _BrokenHandlers()
        server, wrapper = grpc.aio.server(), HandlerWrapper()
        handlers: dict[str, Any] = {
            "GetBalance": grpc.unary_unary_rpc_method_handler(wrapper.wrap("GetBalance", broken.unary)),
            "StreamBalances": grpc.unary_stream_rpc_method_handler(wrapper.wrap("StreamBalances", broken.stream)),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield exchange_service_pb2_grpc.ExchangeServiceStub(channel)
        await server.stop(0)

    async def test_an_exception_is_sent_as_a_reference_without_its_text(self, stub: Any) -> None:
        failed = await failure(stub.GetBalance(balance_request()))
        assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "SERVICE_FAILED")
        assert "hunter2" not in repr(failed)
        assert "ValueError" not in failed.message
        reference = failed.message.rpartition("under the reference ")[2].split(".")[0]
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
