"""StreamBalances as subscribers see it: a snapshot, then changes, errors beside balances, and every way to end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import pytest
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount
from structlog.testing import capture_logs

from exchange_service.app import start_service
from exchange_service.client import ExchangeServiceClient, ServiceUnreachable
from exchange_service.errors import FieldInvalid, ServiceError, ServiceOverloaded, StreamLifetimeReached
from exchange_service.grpc_server import turns
from exchange_service.memory_limit import MemoryLimit
from exchange_service.plugin_api import (
    AssetBalance,
    Balance,
    CredentialRejected,
    VenueAccount,
    VenueCall,
    VenueUnavailable,
)
from exchange_service.testing import Fault
from exchange_service.v1 import balance_pb2, error_reason_pb2
from exchange_service.v1 import exchange_service_pb2 as messages
from tests.engines import NATIVE
from tests.harness import (
    USER,
    Gate,
    Running,
    ScriptedPlugin,
    Stream,
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
from tests.identities import SECRET, bearer, web_token

TOKEN = "a-token-for-tests"
FAKE_VENUE = messages.AccountSelector(exchange_id="fakex")
QUICK: dict[str, Any] = {"poll_interval": 0.1, "poll_interval_still": 0.1, "heartbeat_interval": 0.15}
# No heartbeat comes within a test.
CALM: dict[str, Any] = {"poll_interval": 0.1, "poll_interval_still": 0.1, "heartbeat_interval": 600.0}
# Notes so large that a few balances fill what a connection takes unread.
PADDING = tuple(f"{'x' * 1000}{number}" for number in range(2000))


@pytest.fixture
def fake_venue() -> ScriptedPlugin:
    return ScriptedPlugin(listing("fakex"))


@pytest.fixture
def other_venue() -> ScriptedPlugin:
    return ScriptedPlugin(listing("fakey"), answer=returning(holding(("ETH", "7"))))


@pytest.fixture
async def running(tmp_path: Path, fake_venue: ScriptedPlugin, other_venue: ScriptedPlugin) -> AsyncIterator[Running]:
    """Two venues; the user has a credential for the first."""
    async with serving(tmp_path, registry=registry_of(fake_venue, other_venue), **CALM) as running:
        await running.store("fakex")
        yield running


@pytest.fixture
async def quick(tmp_path: Path, fake_venue: ScriptedPlugin, other_venue: ScriptedPlugin) -> AsyncIterator[Running]:
    """The same with frequent heartbeats."""
    async with serving(tmp_path, registry=registry_of(fake_venue, other_venue), **QUICK) as running:
        await running.store("fakex")
        yield running


def rising(first: int = 1, **changes: Any) -> Any:
    """A venue whose amount is one greater with each answer."""
    amounts = itertools.count(first)

    async def answer(_: VenueCall) -> Balance:
        return holding(("BTC", str(next(amounts))), **changes)

    return answer


async def polled(plugin: ScriptedPlugin, times: int) -> None:
    """Wait until the venue was asked this many times more."""
    wanted = len(plugin.calls) + times
    await until(lambda: len(plugin.calls) >= wanted, "a poll")


class TestChanges:
    async def test_the_first_event_is_the_present_state_and_then_come_only_changes(
        self, running: Running, fake_venue: ScriptedPlugin
    ) -> None:
        async with streaming(running, "fakex") as stream:
            first = (await stream.next()).balance
            assert totals(first.balance) == {"BTC": "1.50"}
            assert first.balance.version > 0
            await polled(fake_venue, 3)
            fake_venue.answer = returning(holding(("BTC", "1.75")))
            # The next event of any kind: polls that found no change sent nothing.
            second = (await stream.next()).balance
            assert totals(second.balance) == {"BTC": "1.75"}
            assert second.balance.version > first.balance.version
            assert second.freshness.source == balance_pb2.BALANCE_SOURCE_VENUE

    async def test_a_real_venues_change_arrives_with_all_its_digits(self, tmp_path: Path) -> None:
        async with (
            OandaSimulator() as venue,
            serving(tmp_path, venue_urls={"oanda": venue.url}, **CALM) as running,
        ):
            account = SimulatedAccount("101-004-7654321-001")
            venue.add_token(TOKEN, account)
            await running.store("oanda", api_key=TOKEN)
            async with streaming(running, "oanda") as stream:
                assert (await stream.next_of("balance")).balance.summary.unrealised_pnl == "-127.9300"
                account.unrealized = Decimal("-127.9299")
                assert (await stream.next_of("balance")).balance.summary.unrealised_pnl == "-127.9299"

    async def test_a_row_once_reported_stays_at_zero(self, running: Running, fake_venue: ScriptedPlugin) -> None:
        fake_venue.answer = returning(holding(("BTC", "1.50"), ("ETH", "2")))
        async with streaming(running, "fakex") as stream:
            assert totals((await stream.next_of("balance")).balance) == {"BTC": "1.50", "ETH": "2"}
            fake_venue.answer = returning(holding(("BTC", "1.50")))
            assert totals((await stream.next_of("balance")).balance) == {"BTC": "1.50", "ETH": "0"}
            fake_venue.answer = returning(holding(("BTC", "1.60")))
            assert totals((await stream.next_of("balance")).balance) == {"BTC": "1.60", "ETH": "0"}

    async def test_a_zero_row_that_was_never_reported_is_left_out(
        self, running: Running, fake_venue: ScriptedPlugin
    ) -> None:
        fake_venue.answer = returning(holding(("BTC", "1.50"), ("DUST", "0.000")))
        async with streaming(running, "fakex") as stream:
            assert totals((await stream.next_of("balance")).balance) == {"BTC": "1.50"}

    async def test_an_account_that_becomes_unreadable_shows_no_rows(
        self, running: Running, fake_venue: ScriptedPlugin
    ) -> None:
        good = VenueAccount("1", "spot", assets=(AssetBalance("BTC", total=Decimal(1)),))
        other = VenueAccount("2", "spot", assets=(AssetBalance("ETH", total=Decimal(2)),))
        refused = VenueAccount("2", "spot", error=VenueUnavailable("Down."))
        fake_venue.answer = returning(Balance((good, other)))
        async with streaming(running, "fakex") as stream:
            await stream.next_of("balance")
            fake_venue.answer = returning(Balance((good, refused)))
            partly = (await stream.next_of("balance")).balance.venue_accounts
            assert [row.asset for row in partly[0].assets] == ["BTC"]
            assert partly[1].HasField("error")
            assert not partly[1].assets
            fake_venue.answer = returning(Balance((good, VenueAccount("2", "spot"))))
            # It is readable again without what it held: the row is at zero and is not forgotten.
            assert totals((await stream.next_of("balance")).balance) == {"BTC": "1", "ETH": "0"}

    async def test_a_known_version_skips_the_snapshot_and_not_the_next_change(
        self, running: Running, fake_venue: ScriptedPlugin
    ) -> None:
        held = (await running.client.get_balance(USER, "fakex")).balance
        selector = messages.AccountSelector(exchange_id="fakex", known_version=held.version)
        async with streaming(running, selector) as stream:
            await polled(fake_venue, 2)
            fake_venue.answer = returning(holding(("BTC", "9")))
            assert (await stream.next()).HasField("heartbeat")
            assert totals((await stream.next_of("balance")).balance) == {"BTC": "9"}

    async def test_an_old_version_brings_the_snapshot(self, running: Running) -> None:
        selector = messages.AccountSelector(exchange_id="fakex", known_version=7)
        async with streaming(running, selector) as stream:
            assert totals((await stream.next_of("balance")).balance) == {"BTC": "1.50"}

    async def test_a_subscriber_that_joins_a_running_feed_gets_its_state_at_once(
        self, running: Running, fake_venue: ScriptedPlugin
    ) -> None:
        async with streaming(running, "fakex") as first:
            await first.next_of("balance")
            gate = Gate()
            fake_venue.answer = gate
            await gate.entered.wait()
            # The venue hangs, and still the second subscriber has something to show.
            async with streaming(running, "fakex") as second:
                assert totals((await second.next_of("balance")).balance) == {"BTC": "1.50"}


class TestErrors:
    async def test_one_accounts_error_comes_beside_the_others_balance(
        self, running: Running, fake_venue: ScriptedPlugin
    ) -> None:
        await running.store("fakey")
        fake_venue.answer = raising(CredentialRejected("The key is refused."))
        async with streaming(running, "fakex", "fakey") as stream:
            events = [await stream.next() for _ in range(2)]
        kinds = {event.WhichOneof("event"): event for event in events}
        error = kinds["account_error"].account_error
        assert (error.exchange_id, error.environment, error.last_version) == ("fakex", "production", 0)
        assert error.error.reason == error_reason_pb2.ERROR_REASON_CREDENTIAL_REJECTED
        assert totals(kinds["balance"].balance.balance) == {"ETH": "7"}

    async def test_an_error_is_sent_once_and_its_end_is_a_balance(
        self, running: Running, fake_venue: ScriptedPlugin
    ) -> None:
        async with streaming(running, "fakex") as stream:
            good = (await stream.next_of("balance")).balance
            fake_venue.answer = raising(VenueUnavailable("It is down.", retry_after=0.1))
            error = await stream.next_of("account_error")
            assert error.error.reason == error_reason_pb2.ERROR_REASON_VENUE_UNAVAILABLE
            assert error.error.retry_delay.ToTimedelta().total_seconds() == pytest.approx(0.1)
            assert error.last_version == good.version
            await polled(fake_venue, 3)
            fake_venue.answer = returning(holding(("BTC", "1.50")))
            # No further error in between, and a balance though nothing has changed.
            recovery = (await stream.next()).balance
            assert recovery.balance.version == good.version
            assert not recovery.freshness.HasField("stale")

    async def test_a_subscriber_that_joins_during_an_error_gets_it(
        self, running: Running, fake_venue: ScriptedPlugin
    ) -> None:
        async with streaming(running, "fakex") as first:
            await first.next_of("balance")
            fake_venue.answer = raising(VenueUnavailable("It is down."))
            await first.next_of("account_error")
            async with streaming(running, "fakex") as second:
                balance = (await second.next()).balance
                assert balance.freshness.source == balance_pb2.BALANCE_SOURCE_LAST_GOOD
                assert balance.freshness.stale.reason == error_reason_pb2.ERROR_REASON_VENUE_UNAVAILABLE
                assert (await second.next()).WhichOneof("event") == "account_error"

    async def test_an_unknown_exchange_is_an_error_of_its_own_and_the_others_go_on(self, running: Running) -> None:
        async with streaming(running, "fakexe", "fakex") as stream:
            error = await stream.next_of("account_error")
            assert (error.exchange_id, error.error.reason) == (
                "fakexe",
                error_reason_pb2.ERROR_REASON_EXCHANGE_UNKNOWN,
            )
            assert "exchange-service exchanges" in error.error.message
            assert totals((await stream.next_of("balance")).balance) == {"BTC": "1.50"}

    async def test_an_account_without_a_credential_is_an_error_and_works_once_it_has_one(
        self, running: Running
    ) -> None:
        async with streaming(running, "fakey") as stream:
            error = await stream.next_of("account_error")
            assert error.error.reason == error_reason_pb2.ERROR_REASON_CREDENTIAL_MISSING
            await running.store("fakey")
            assert totals((await stream.next_of("balance")).balance) == {"ETH": "7"}

    async def test_a_malformed_answer_never_replaces_a_balance(self, tmp_path: Path) -> None:
        async with (
            OandaSimulator() as venue,
            serving(tmp_path, venue_urls={"oanda": venue.url}, **CALM) as running,
        ):
            venue.add_token(TOKEN, SimulatedAccount("101-004-7654321-001"))
            await running.store("oanda", api_key=TOKEN)
            async with streaming(running, "oanda") as stream:
                await stream.next_of("balance")
                venue.fail(Fault.html(200))
                error = (await stream.next()).account_error
                assert error.error.reason == error_reason_pb2.ERROR_REASON_VENUE_MALFORMED

    async def test_a_balance_too_large_to_send_is_one_accounts_error_and_the_stream_goes_on(
        self, running: Running, fake_venue: ScriptedPlugin, other_venue: ScriptedPlugin
    ) -> None:
        await running.store("fakey")
        codes = (f"{'X' * 128}{number:05}" for number in range(9_000))
        fake_venue.answer = returning(holding(*((code, "1") for code in codes)))
        async with streaming(running, "fakex", "fakey") as stream:
            kinds = {event.WhichOneof("event"): event for event in [await stream.next() for _ in range(2)]}
            error = kinds["account_error"].account_error
            assert (error.exchange_id, error.last_version) == ("fakex", 0)
            assert error.error.reason == error_reason_pb2.ERROR_REASON_PLUGIN_FAILED
            assert totals(kinds["balance"].balance.balance) == {"ETH": "7"}
            for amount in ("8", "9"):
                other_venue.answer = returning(holding(("ETH", amount)))
                assert totals((await stream.next()).balance.balance) == {"ETH": amount}
            fake_venue.answer = returning(holding(("BTC", "1")))
            assert totals((await stream.next()).balance.balance) == {"BTC": "1"}

    async def test_a_plugin_that_breaks_does_not_end_the_stream(
        self, running: Running, fake_venue: ScriptedPlugin
    ) -> None:
        fake_venue.answer = raising(SystemExit("signature=48be"))
        async with streaming(running, "fakex") as stream:
            error = await stream.next_of("account_error")
            assert error.error.reason == error_reason_pb2.ERROR_REASON_PLUGIN_FAILED
            assert "signature" not in error.error.message
            fake_venue.answer = returning(holding(("BTC", "2")))
            assert totals((await stream.next_of("balance")).balance) == {"BTC": "2"}


class TestHeartbeats:
    async def test_they_have_the_state_of_each_account(
        self, quick: Running, fake_venue: ScriptedPlugin, other_venue: ScriptedPlugin
    ) -> None:
        await quick.store("fakey")
        other_venue.answer = raising(CredentialRejected("No."))
        async with streaming(quick, "fakex", "fakey", "fakexe") as stream:
            balance = (await stream.next_of("balance")).balance

            def complete(beat: Any) -> bool:
                return all(state.version or state.HasField("error") for state in beat.accounts)

            beat = await stream.next_of("heartbeat")
            while not complete(beat):
                beat = await stream.next_of("heartbeat")
        states = {state.exchange_id: state for state in beat.accounts}
        assert set(states) == {"fakex", "fakey", "fakexe"}
        assert states["fakex"].version == balance.version
        assert states["fakex"].HasField("age")
        assert not states["fakex"].HasField("error")
        assert states["fakey"].error.reason == error_reason_pb2.ERROR_REASON_CREDENTIAL_REJECTED
        assert (states["fakey"].version, states["fakey"].HasField("age")) == (0, False)
        assert states["fakexe"].error.reason == error_reason_pb2.ERROR_REASON_EXCHANGE_UNKNOWN
        assert beat.server_time.seconds > 0

    async def test_they_come_when_nothing_else_happens(self, quick: Running) -> None:
        async with streaming(quick, user="nobody") as stream:
            for _ in range(3):
                beat = (await stream.next()).heartbeat
                assert list(beat.accounts) == []


class TestAllAccounts:
    async def test_an_empty_selection_follows_every_stored_account(self, running: Running) -> None:
        await running.store("fakey")
        await running.store("fakey", user="bob")
        async with streaming(running) as stream:
            balances = [(await stream.next_of("balance")).balance for _ in range(2)]
        assert {(balance.user_id, balance.exchange_id) for balance in balances} == {(USER, "fakex"), (USER, "fakey")}

    async def test_one_added_later_joins_and_one_removed_leaves(self, quick: Running) -> None:
        async with streaming(quick) as stream:
            assert (await stream.next_of("balance")).balance.exchange_id == "fakex"
            await quick.store("fakey")
            assert (await stream.next_of("balance")).balance.exchange_id == "fakey"
            await quick.remove("fakex")
            while [state.exchange_id for state in (await stream.next_of("heartbeat")).accounts] != ["fakey"]:
                continue
            assert quick.service.streams.counts() == (1, 1)

    async def test_a_stored_exchange_that_no_plugin_serves_is_an_error_and_the_others_go_on(
        self, running: Running
    ) -> None:
        await running.store("vanished")
        async with streaming(running) as stream:
            events = [await stream.next() for _ in range(2)]
        assert {event.WhichOneof("event") for event in events} == {"account_error", "balance"}


class TestCost:
    async def test_many_subscribers_cost_the_venue_one_poll_loop(
        self, running: Running, fake_venue: ScriptedPlugin
    ) -> None:
        streams = [streaming(running, "fakex") for _ in range(30)]
        opened = [await stream.__aenter__() for stream in streams]
        await asyncio.gather(*(stream.next_of("balance") for stream in opened))
        assert running.service.streams.counts() == (1, 30)
        fake_venue.answer = rising(2)
        before = len(fake_venue.calls)
        seen = [(await stream.next_of("balance")).balance for stream in opened for _ in range(3)]
        distinct = {totals(balance)["BTC"] for balance in seen}
        assert len(seen) == 90
        # Each value that was seen cost one request, however many subscribers read it.
        assert len(distinct) <= len(fake_venue.calls) - before + 1
        assert len(fake_venue.calls) - before < 45
        for stream in streams:
            await stream.__aexit__(None, None, None)

    async def test_a_stream_and_a_call_share_one_request(self, running: Running, fake_venue: ScriptedPlugin) -> None:
        fake_venue.answer = gate = Gate()
        async with streaming(running, "fakex") as stream:
            await gate.entered.wait()
            call = asyncio.ensure_future(running.client.get_balance(USER, "fakex"))
            gate.opened.set()
            assert totals((await stream.next_of("balance")).balance) == totals((await call).balance)
        assert len(fake_venue.calls) <= 2


class TestIntervals:
    async def test_balances_come_no_more_often_than_the_subscribers_interval(
        self, running: Running, fake_venue: ScriptedPlugin
    ) -> None:
        fake_venue.answer = rising()
        loop = asyncio.get_running_loop()
        events = running.client.stream_balances(USER, [FAKE_VENUE], min_interval=0.5)
        async with aclosing(events) as stream:  # type: ignore[type-var]
            arrivals = []
            async for event in stream:
                assert event.WhichOneof("event") == "balance"
                arrivals.append(loop.time())
                if len(arrivals) == 3:
                    break
        assert arrivals[2] - arrivals[0] >= 0.95

    @pytest.mark.parametrize("seconds", [-0.001, 3600.001])
    async def test_an_interval_out_of_bounds_is_refused_by_the_fields_name(
        self, running: Running, seconds: float
    ) -> None:
        with pytest.raises(FieldInvalid, match="min_interval"):
            await _to_the_end(running.client.stream_balances(USER, [FAKE_VENUE], min_interval=seconds))
        assert running.service.streams.counts() == (0, 0)


class TestReconnectStorms:
    async def test_a_thousand_streams_at_once_are_all_accepted_and_come_back_at_different_times(
        self, tmp_path: Path, fake_venue: ScriptedPlugin
    ) -> None:
        # All streams are of one caller, which may make few calls a second.
        settings = settings_for(tmp_path, jwt_secret=SECRET, service_calls=100, **CALM)
        service = await start_service(settings, registry=registry_of(fake_venue))
        async with AsyncExitStack() as stack:
            # One connection takes 250 calls.
            clients = [await stack.enter_async_context(ExchangeServiceClient(service.address)) for _ in range(10)]
            callers = [Running(service, client) for client in clients]
            await callers[0].store()
            token = bearer(web_token("desk", exchange_service_users="*"))
            request = messages.StreamBalancesRequest(user_id=USER, accounts=[FAKE_VENUE])
            streams = [
                Stream(caller.stub.StreamBalances(request, metadata=token)) for caller in callers for _ in range(100)
            ]
            firsts = await asyncio.gather(*(stream.next_of("balance") for stream in streams))
            assert {totals(first.balance)["BTC"] for first in firsts} == {"1.50"}
            assert service.streams.counts() == (1, 1000)
            stopping = asyncio.ensure_future(service.stop())
            ends = await asyncio.gather(*(stream.failure() for stream in streams))
            await stopping
        assert {end.reason for end in ends} == {"SHUTTING_DOWN"}
        delays = sorted(end.retry_delay or 0.0 for end in ends)
        # Spread evenly: about a quarter of the delays in each quarter of the time.
        assert delays[0] >= 0.2
        assert delays[-1] <= 3.0
        quarters = [sum(0.2 + 0.7 * part <= delay < 0.9 + 0.7 * part for delay in delays) for part in range(4)]
        assert min(quarters) > 150


class TestEnds:
    async def left(self, running: Running) -> None:
        await until(lambda: running.service.streams.counts() == (0, 0), "the end of the feed")

    async def test_a_feed_ends_with_its_last_subscriber(self, running: Running, fake_venue: ScriptedPlugin) -> None:
        async with streaming(running, "fakex") as first:
            await first.next_of("balance")
            async with streaming(running, "fakex") as second:
                await second.next_of("balance")
                assert running.service.streams.counts() == (1, 2)
            await until(lambda: running.service.streams.counts() == (1, 1))
        await self.left(running)
        # Only the feed's task polls.
        await until(lambda: not any(task.get_name().startswith("feed ") for task in asyncio.all_tasks()), "its end")

    async def test_leaving_during_a_fetch_cancels_its_request(
        self, running: Running, fake_venue: ScriptedPlugin
    ) -> None:
        fake_venue.answer = gate = Gate()
        async with streaming(running, "fakex"):
            await gate.entered.wait()
        assert await asyncio.wait_for(gate.cancelled.wait(), 5)
        await self.left(running)

    async def test_a_client_that_stops_iterating_leaves(self, running: Running) -> None:
        async with aclosing(running.client.stream_balances(USER)) as events:  # type: ignore[type-var]
            async for event in events:
                assert event.WhichOneof("event") == "balance"
                break
        await self.left(running)

    async def test_a_client_that_breaks_off_without_closing_leaves_too(self, running: Running) -> None:
        async for _ in running.client.stream_balances(USER):
            break
        await self.left(running)

    async def test_a_client_whose_connection_ends_leaves(self, running: Running) -> None:
        async with ExchangeServiceClient(running.service.address) as client:
            events = client.stream_balances(USER).__aiter__()
            await events.__anext__()
            assert running.service.streams.counts() == (1, 1)
        await self.left(running)

    async def test_a_refused_subscription_leaves_nothing_behind(self, running: Running) -> None:
        async with streaming(running, *["fakex"] * 201) as stream:
            await stream.failure()
        assert running.service.streams.counts() == (0, 0)

    async def test_a_stream_ends_after_its_lifetime_with_a_delay_of_zero(
        self, tmp_path: Path, fake_venue: ScriptedPlugin
    ) -> None:
        async with serving(tmp_path, registry=registry_of(fake_venue), stream_lifetime=1.0, **CALM) as running:
            await running.store()
            async with streaming(running, "fakex") as stream:
                failed = await stream.failure()
            assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "STREAM_LIFETIME_REACHED")
            assert failed.retry_delay == 0.0
            # The native engine cannot send it.
            assert NATIVE or failed.trailers["grpc-retry-pushback-ms"] == "0"
            await self.left(running)

    async def test_a_client_that_resumes_goes_on_without_a_second_snapshot(
        self, tmp_path: Path, fake_venue: ScriptedPlugin
    ) -> None:
        async with serving(tmp_path, registry=registry_of(fake_venue), stream_lifetime=1.0, **CALM) as running:
            await running.store()
            selected = [messages.AccountSelector(exchange_id="fakex")]
            events = running.client.stream_balances(USER, selected, resume=True)
            async with aclosing(events) as stream:  # type: ignore[type-var]
                first = (await anext(stream)).balance.balance
                # Nothing comes until then, although the first stream ends and the second begins.
                following = asyncio.ensure_future(_first_balance(stream))
                await until(lambda: running.service.streams.counts()[1] == 0, "the end of the first stream")
                await until(lambda: running.service.streams.counts()[1] == 1, "the second stream")
                await polled(fake_venue, 2)
                fake_venue.answer = returning(holding(("BTC", "2")))
                second = (await following).balance.balance
        assert (totals(first), totals(second)) == ({"BTC": "1.50"}, {"BTC": "2"})

    @pytest.mark.parametrize("selected", [[], [messages.AccountSelector(exchange_id="fakex")]], ids=["all", "its id"])
    async def test_a_client_whose_last_event_was_an_error_gets_the_balance_again_when_it_resumes(
        self, tmp_path: Path, fake_venue: ScriptedPlugin, selected: list[messages.AccountSelector]
    ) -> None:
        good = fake_venue.answer
        async with serving(tmp_path, registry=registry_of(fake_venue), stream_lifetime=1.0, **CALM) as running:
            await running.store()

            def recover(_: ServiceError) -> None:
                fake_venue.answer = good

            events = running.client.stream_balances(USER, selected, resume=True, on_interruption=recover)
            async with aclosing(events) as stream:  # type: ignore[type-var]
                first = (await anext(stream)).balance.balance
                fake_venue.answer = raising(VenueUnavailable("It is down."))
                assert (await anext(stream)).HasField("account_error")
                # The account is not said to be well before its balance was sent.
                (state,) = (await anext(stream)).heartbeat.accounts
                assert (state.version, state.catching_up) == (first.version, True)
                again = (await anext(stream)).balance
        assert again.balance.version == first.version
        assert not again.freshness.HasField("stale")

    @pytest.mark.parametrize(
        "selected",
        [
            [],
            [messages.AccountSelector(exchange_id="fakex")],
            [messages.AccountSelector(exchange_id=" FakeX ", environment="LIVE")],
            [messages.AccountSelector(exchange_id="FAKEX", account_type="All")],
            [messages.AccountSelector(exchange_id="fakex"), messages.AccountSelector(exchange_id="FAKEX")],
            # As many as a stream may follow: with one more the second stream would be refused.
            [
                messages.AccountSelector(exchange_id="FAKEX", environment="live"),
                *(messages.AccountSelector(exchange_id=f"none{number}") for number in range(199)),
            ],
        ],
        ids=["all", "its id", "an alias", "all types", "twice", "as many as may be"],
    )
    async def test_a_client_resumes_with_a_heartbeat_and_no_repetition_however_it_spelled_the_accounts(
        self, tmp_path: Path, fake_venue: ScriptedPlugin, selected: list[messages.AccountSelector]
    ) -> None:
        async with serving(tmp_path, registry=registry_of(fake_venue), stream_lifetime=1.0, **CALM) as running:
            await running.store()
            resumed = asyncio.Event()
            events = running.client.stream_balances(
                USER, selected, resume=True, on_interruption=lambda _: resumed.set()
            )
            async with aclosing(events) as stream:  # type: ignore[type-var]
                assert totals((await _first_balance(stream)).balance.balance) == {"BTC": "1.50"}
                event = await anext(stream)
                while not resumed.is_set():
                    event = await anext(stream)
                assert event.HasField("heartbeat")
                followed = [account for account in event.heartbeat.accounts if account.exchange_id == "fakex"]
                assert len(followed) == 1
                following = asyncio.ensure_future(_first_balance(stream))
                await until(lambda: running.service.streams.counts()[1] == 1, "the second stream")
                await polled(fake_venue, 2)
                fake_venue.answer = returning(holding(("BTC", "2")))
                # The first balance after the interruption is the changed one.
                assert totals((await following).balance.balance) == {"BTC": "2"}

    async def test_a_stream_of_all_accounts_takes_known_versions_beside_an_empty_selection(
        self, tmp_path: Path, fake_venue: ScriptedPlugin
    ) -> None:
        async with serving(tmp_path, registry=registry_of(fake_venue), **CALM) as running:
            await running.store()
            async with streaming(running) as stream:
                version = (await stream.next_of("balance")).balance.version
            for known, first in ((version, "heartbeat"), (version - 1, "heartbeat"), (0, "balance")):
                entry = messages.AccountSelector(exchange_id="fakex", environment="live", known_version=known)
                request = messages.StreamBalancesRequest(user_id=USER, known=[entry])
                call = running.stub.StreamBalances(request)
                event = await call.read()
                assert event.WhichOneof("event") == first
                if known != version:
                    while not event.HasField("balance"):
                        event = await call.read()
                    assert event.balance.balance.version == version
                call.cancel()
            entries = [messages.AccountSelector(exchange_id="fakex", known_version=1)] * 201
            failed = await failure(
                running.stub.StreamBalances(messages.StreamBalancesRequest(user_id=USER, known=entries)).read()
            )
            assert failed.reason == "FIELD_INVALID"

    async def test_a_client_brings_the_versions_it_has_stored_to_a_stream_of_all_accounts(
        self, tmp_path: Path, fake_venue: ScriptedPlugin
    ) -> None:
        async with serving(tmp_path, registry=registry_of(fake_venue), stream_lifetime=1.0, **CALM) as running:
            await running.store()
            stored = (await running.client.get_balance(USER, "fakex")).balance
            entry = messages.AccountSelector(exchange_id="fakex", known_version=stored.version)
            resumed = asyncio.Event()
            events = running.client.stream_balances(
                USER, known=[entry], resume=True, on_interruption=lambda _: resumed.set()
            )
            async with aclosing(events) as stream:  # type: ignore[type-var]
                assert [account.version for account in (await anext(stream)).heartbeat.accounts] == [stored.version]
                # It is brought again when the stream resumes, although this one has yielded no balance.
                following = asyncio.ensure_future(_first_balance(stream))
                await asyncio.wait_for(resumed.wait(), 10)
                await until(lambda: running.service.streams.counts()[1] == 1, "the second stream")
                await polled(fake_venue, 2)
                fake_venue.answer = returning(holding(("BTC", "2")))
                assert totals((await following).balance.balance) == {"BTC": "2"}
            entry.known_version = (await running.client.get_balance(USER, "fakex")).balance.version
            unconfirmed = messages.AccountSelector(exchange_id="fakex", unconfirmed=True)
            events = running.client.stream_balances(USER, [unconfirmed], known=[entry])
            async with aclosing(events) as stream:  # type: ignore[type-var]
                assert (await _first_balance(stream)).balance.balance.version == entry.known_version
            with pytest.raises(ValueError, match="200"):
                await anext(running.client.stream_balances(USER, known=[entry] * 201))

    async def test_a_client_whose_stream_was_open_comes_back_to_a_full_service_after_the_delay_it_names(
        self, tmp_path: Path, fake_venue: ScriptedPlugin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(turns, "_UNTIL_ROOM", (0.7, 0.7))
        full = False
        monkeypatch.setattr(MemoryLimit, "has_room", lambda _: not full)
        refusals: list[float] = []

        def on_interruption(error: ServiceError) -> None:
            nonlocal full
            full = isinstance(error, StreamLifetimeReached)
            if isinstance(error, ServiceOverloaded):
                refusals.append(asyncio.get_running_loop().time())

        async with serving(tmp_path, registry=registry_of(fake_venue), stream_lifetime=1.0, **CALM) as running:
            await running.store()
            events = running.client.stream_balances(USER, resume=True, on_interruption=on_interruption)
            async with aclosing(events) as stream:  # type: ignore[type-var]
                assert (await anext(stream)).HasField("balance")
                assert (await asyncio.wait_for(anext(stream), 20)).HasField("heartbeat")
                assert len(refusals) == 1
                assert asyncio.get_running_loop().time() - refusals[0] >= 0.7
            # One that was never taken is told so.
            full = True
            with pytest.raises(ServiceOverloaded):
                await anext(running.client.stream_balances(USER, resume=True))

    async def test_an_address_that_was_never_reached_is_an_error_also_for_a_client_that_resumes(self) -> None:
        interruptions: list[ServiceError] = []
        async with ExchangeServiceClient("127.0.0.1:9") as client:
            events = client.stream_balances(USER, resume=True, on_interruption=interruptions.append)
            with pytest.raises(ServiceUnreachable):
                await asyncio.wait_for(anext(events), 20)
        assert interruptions == []

    async def test_a_client_that_does_not_resume_gets_the_error(
        self, tmp_path: Path, fake_venue: ScriptedPlugin
    ) -> None:
        async with serving(tmp_path, registry=registry_of(fake_venue), stream_lifetime=1.0, **CALM) as running:
            await running.store()
            with pytest.raises(StreamLifetimeReached):
                await _to_the_end(running.client.stream_balances(USER))

    async def test_when_the_service_stops_streams_end_with_a_reason(
        self, tmp_path: Path, fake_venue: ScriptedPlugin
    ) -> None:
        service = await start_service(settings_for(tmp_path, **CALM), registry=registry_of(fake_venue))
        async with ExchangeServiceClient(service.address) as client:
            running = Running(service, client)
            await running.store()
            async with streaming(running, "fakex") as stream:
                await stream.next_of("balance")
                stopping = asyncio.ensure_future(service.stop())
                failed = await stream.failure()
                await stopping
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert failed.retry_delay is not None

    async def test_the_subscribers_of_a_replica_that_stops_come_back_at_different_times(
        self, tmp_path: Path, fake_venue: ScriptedPlugin
    ) -> None:
        service = await start_service(settings_for(tmp_path, **CALM), registry=registry_of(fake_venue))
        async with ExchangeServiceClient(service.address) as client, AsyncExitStack() as stack:
            running = Running(service, client)
            await running.store()
            streams = [await stack.enter_async_context(streaming(running, "fakex")) for _ in range(20)]
            for stream in streams:
                await stream.next_of("balance")
            stopping = asyncio.ensure_future(service.stop())
            ends = [await stream.failure() for stream in streams]
            await stopping
        assert {end.reason for end in ends} == {"SHUTTING_DOWN"}
        delays = [end.retry_delay or 0.0 for end in ends]
        assert 0.2 <= min(delays) < max(delays) <= 3.0
        assert len(set(delays)) > 10
        if not NATIVE:
            assert [int(end.trailers["grpc-retry-pushback-ms"]) / 1000 for end in ends] == delays

    async def test_a_service_that_is_about_to_stop_accepts_no_new_stream(self, running: Running) -> None:
        await running.service.streams.close()
        async with streaming(running, "fakex") as late:
            assert (await late.failure()).reason == "SHUTTING_DOWN"


async def _to_the_end(events: AsyncIterator[Any]) -> None:
    async for _ in events:
        continue


async def _first_balance(events: AsyncIterator[Any]) -> Any:
    async for event in events:
        if event.HasField("balance"):
            return event
    raise AssertionError("the stream ended")


class TestSlowReaders:
    async def test_a_slow_reader_gets_the_latest_whole_state_and_not_every_step(self, tmp_path: Path) -> None:
        plugin = ScriptedPlugin(answer=rising(notes=PADDING))
        async with serving(tmp_path, registry=registry_of(plugin), poll_interval=0.1, max_age=0.0) as running:
            await running.store()
            async with streaming(running, "fakex") as slow, streaming(running, "fakex") as quick:
                seen = [int(totals((await quick.next_of("balance")).balance)["BTC"]) for _ in range(20)]
                read: list[int] = []
                while not read or read[-1] < seen[-1]:
                    read.append(int(totals((await slow.next_of("balance")).balance)["BTC"]))
        assert read == sorted(set(read))
        assert len(read) < read[-1] - read[0] + 1, "nothing was skipped"

    async def test_a_subscriber_that_does_not_read_is_ended_and_no_other(self, tmp_path: Path) -> None:
        plugin = ScriptedPlugin(answer=rising(notes=PADDING))
        async with serving(
            tmp_path, registry=registry_of(plugin), poll_interval=0.1, max_age=0.0, write_timeout=0.3
        ) as running:
            await running.store()
            async with streaming(running, "fakex") as reader:
                await reader.next_of("balance")
                frozen = ExchangeServiceClient(running.service.address)
                call = Running(running.service, frozen).stub.StreamBalances(
                    messages.StreamBalancesRequest(user_id=USER)
                )
                await call.read()
                await until(lambda: running.service.streams.counts() == (1, 2))

                async def read_on() -> None:
                    while running.service.streams.counts() == (1, 2):
                        await reader.next_of("balance")

                await asyncio.wait_for(read_on(), 20)
                assert running.service.streams.counts() == (1, 1)
                assert (await reader.next_of("balance")).balance
                # Once the subscriber reads what is unread, they get the reason.
                failed = await Stream(call).failure()
                assert (failed.code, failed.reason) == (grpc.StatusCode.ABORTED, "SUBSCRIBER_TOO_SLOW")
                await frozen.close()

    async def test_leaving_while_a_message_is_unread_is_not_logged_as_a_failure(self, tmp_path: Path) -> None:
        plugin = ScriptedPlugin(answer=returning(holding(("BTC", "1"), notes=PADDING)))
        async with serving(tmp_path, registry=registry_of(plugin), **CALM) as running:
            await running.store()
            with capture_logs() as lines:
                async with ExchangeServiceClient(running.service.address) as client:
                    call = Running(running.service, client).stub.StreamBalances(
                        messages.StreamBalancesRequest(user_id=USER, accounts=[FAKE_VENUE])
                    )
                    await call.read()
                    plugin.answer = rising(2, notes=PADDING)
                    await polled(plugin, 5)
                await until(lambda: running.service.streams.counts() == (0, 0), "the end of the stream")
            assert "call.failed" not in {line["event"] for line in lines}

    async def test_each_of_two_subscribers_that_stop_reading_is_ended_in_time(self, tmp_path: Path) -> None:
        plugin = ScriptedPlugin(answer=rising(notes=PADDING))
        async with (
            serving(
                tmp_path, registry=registry_of(plugin), poll_interval=0.1, max_age=0.0, write_timeout=0.5
            ) as running,
            ExchangeServiceClient(running.service.address) as first,
            ExchangeServiceClient(running.service.address) as second,
        ):
            await running.store()
            request = messages.StreamBalancesRequest(user_id=USER, accounts=[FAKE_VENUE])
            for number, client in enumerate((first, second), start=1):
                call = Running(running.service, client).stub.StreamBalances(request)
                await call.read()
                await until(lambda open_now=number: running.service.streams.counts()[1] == open_now)  # type: ignore[misc]
            await until(lambda: running.service.streams.counts() == (0, 0), "the end of both")
