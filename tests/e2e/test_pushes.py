"""A venue that pushes, seen by subscribers: what comes at once, what is read after a hint, and what happens when a push
breaks, is silent, lies or has no room."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from benchmarks import pushing_plugin
from benchmarks.push_faults import FAULTS, Endured, endure
from benchmarks.push_subscribers import Subscriber, key_of
from benchmarks.pushing_plugin import EXCHANGE, FEW, HINTS, MOST
from benchmarks.pushing_venue import PushingVenue
from exchange_service.balances import watches
from exchange_service.credentials.references import CachedReferences
from exchange_service.model import Account
from exchange_service.plugin_kit import push as push_connection
from exchange_service.streams import polling
from exchange_service.testing import Fault
from exchange_service.testing.push import PushFault
from exchange_service.v1.balance_pb2 import DELIVERY_MODE_PUSHED, PollingReason
from tests.harness import (
    PATIENCE,
    USER,
    Running,
    Stream,
    balance_request,
    registry_of,
    serving,
    streaming,
    totals,
    until,
)

KEY = "key-of-alice"
PUSHED = "pushed"
# Reconciling and polling come in no test that does not ask for them.
CALM: dict[str, Any] = {"heartbeat_interval": 0.1, "poll_interval": 30.0, "poll_interval_still": 30.0}
QUICK: dict[str, Any] = {"heartbeat_interval": 0.1, "poll_interval": 0.4, "poll_interval_still": 0.4}


@pytest.fixture
async def venue() -> AsyncIterator[PushingVenue]:
    async with PushingVenue() as made:
        yield made


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken pushes are begun again in a fraction of the usual time."""
    monkeypatch.setattr(pushing_plugin.Language, "silence", 60.0)
    monkeypatch.setattr(watches, "_SHORTEST_PAUSE", 0.2)
    monkeypatch.setattr(watches, "_LONGEST_PAUSE", 1.0)


@asynccontextmanager
async def service(venue: PushingVenue, folder: Path, **changes: Any) -> AsyncIterator[Running]:
    urls = dict.fromkeys((EXCHANGE, FEW, HINTS), venue.url)
    async with serving(folder, registry=registry_of(pushing_plugin), venue_urls=urls, **(CALM | changes)) as running:
        yield running


def word(delivery: Any) -> str:
    """ "pushed", or why not, such as "BROKEN"."""
    if delivery.mode == DELIVERY_MODE_PUSHED:
        return PUSHED
    return PollingReason.Name(delivery.polling_reason).removeprefix("POLLING_REASON_")


async def delivery_of(stream: Stream) -> Any:
    """The delivery of the one account, as the next heartbeat says."""
    while True:
        for state in (await stream.next_of("heartbeat")).accounts:
            return state.delivery


async def until_delivered(stream: Stream, wanted: str) -> Any:
    """Read heartbeats until the account is pushed, or polled for this reason; returns the delivery."""
    async with asyncio.timeout(PATIENCE):
        while word(delivery := await delivery_of(stream)) != wanted:
            pass
    return delivery


async def next_amount(stream: Stream) -> str:
    return totals((await stream.next_of("balance")).balance)["BTC"]


async def until_amount(stream: Stream, wanted: object) -> None:
    async with asyncio.timeout(PATIENCE):
        while await next_amount(stream) != str(wanted):
            pass


async def quiet(stream: Stream, beats: int = 4) -> None:
    """So many heartbeats without a balance or an error between them."""
    for _ in range(beats):
        event = await stream.next()
        assert event.WhichOneof("event") == "heartbeat", event


class TestWhole:
    async def test_a_change_is_handed_out_as_it_comes_and_costs_no_request(
        self, venue: PushingVenue, tmp_path: Path
    ) -> None:
        async with service(venue, tmp_path) as running:
            await running.store(EXCHANGE, api_key=KEY)
            async with streaming(running, EXCHANGE) as stream:
                await until_delivered(stream, PUSHED)
                reads = venue.reads[KEY]
                for amount in range(10, 15):
                    venue.change(KEY, amount)
                    assert await next_amount(stream) == str(amount)
                    assert time.monotonic() - venue.changed_at[KEY, str(amount)] < 3
                assert venue.reads[KEY] == reads
                # GetBalance has what was pushed, with its age, and says how it comes.
                reply = await running.stub.GetBalance(balance_request(EXCHANGE))
                assert totals(reply.balance) == {"BTC": "14"}
                assert reply.freshness.age.ToNanoseconds() < 5e9
                assert word(reply.freshness.delivery) == PUSHED
                assert venue.reads[KEY] == reads

    async def test_what_changes_while_the_stream_opens_is_not_lost(self, venue: PushingVenue, tmp_path: Path) -> None:
        async with service(venue, tmp_path) as running:
            await running.store(EXCHANGE, api_key=KEY)
            venue.reading.clear()
            async with streaming(running, EXCHANGE) as stream:
                await until(lambda: venue.waiting, "the first read")
                # The read's answer is older than this, and nothing follows the account yet.
                venue.change(KEY, 7)
                venue.reading.set()
                await until_amount(stream, 7)
                await quiet(stream)

    async def test_the_same_balance_comes_back_although_a_read_found_another_one_in_between(
        self, venue: PushingVenue, tmp_path: Path
    ) -> None:
        async with service(venue, tmp_path) as running:
            await running.store(EXCHANGE, api_key=KEY)
            async with streaming(running, EXCHANGE) as stream:
                await until_delivered(stream, PUSHED)
                venue.change(KEY, 5)
                await until_amount(stream, 5)
                venue.change(KEY, 6, push=False)
                await running.client.get_balance(USER, EXCHANGE, max_age=0)
                await until_amount(stream, 6)
                venue.change(KEY, 5)
                await until_amount(stream, 5)

    async def test_a_flood_reaches_subscribers_as_its_last_balance_and_others_wait_for_nothing(
        self, venue: PushingVenue, tmp_path: Path
    ) -> None:
        async with service(venue, tmp_path) as running:
            await running.store(EXCHANGE, api_key=KEY)
            await running.store(EXCHANGE, user="bob", api_key="key-of-bob")
            async with (
                streaming(running, EXCHANGE) as stream,
                streaming(running, EXCHANGE, user="bob") as other,
            ):
                await until_delivered(stream, PUSHED)
                await until_delivered(other, PUSHED)
                for amount in range(2, 5002):
                    venue.change(KEY, amount)
                venue.change("key-of-bob", 3)
                await until_amount(other, 3)
                seen = 0
                while await next_amount(stream) != "5001":
                    seen += 1
                assert seen < 100


class TestHints:
    async def test_several_hints_lead_to_one_read_soon(self, venue: PushingVenue, tmp_path: Path) -> None:
        async with service(venue, tmp_path) as running:
            await running.store(HINTS, api_key=KEY)
            async with streaming(running, HINTS) as stream:
                await until_delivered(stream, PUSHED)
                # The first read, and the one after the subscription.
                await until(lambda: venue.reads[KEY] == 2, "the read after the subscription")
                began = time.monotonic()
                for amount in range(10, 20):
                    venue.change(KEY, amount)
                await until_amount(stream, 19)
                assert time.monotonic() - began < 5
                await quiet(stream)
                assert venue.reads[KEY] == 3

    async def test_a_hint_during_a_read_leads_to_another_read(self, venue: PushingVenue, tmp_path: Path) -> None:
        async with service(venue, tmp_path) as running:
            await running.store(HINTS, api_key=KEY)
            async with streaming(running, HINTS) as stream:
                await until_delivered(stream, PUSHED)
                await until(lambda: venue.reads[KEY] == 2, "the read after the subscription")
                venue.reading.clear()
                venue.change(KEY, 20)
                await until(lambda: venue.waiting, "the read after the hint")
                # The venue has looked already, and answers later.
                venue.change(KEY, 21)
                await quiet(stream)
                venue.reading.set()
                await until_amount(stream, 21)

    async def test_a_hint_is_not_answered_by_a_read_that_a_caller_began_before_it(
        self, venue: PushingVenue, tmp_path: Path
    ) -> None:
        async with service(venue, tmp_path) as running:
            await running.store(HINTS, api_key=KEY)
            async with streaming(running, HINTS) as stream:
                await until_delivered(stream, PUSHED)
                await until(lambda: venue.reads[KEY] == 2, "the read after the subscription")
                venue.reading.clear()
                calling = asyncio.create_task(running.client.get_balance(USER, HINTS, max_age=0))
                await until(lambda: venue.waiting, "the caller's read")
                venue.change(KEY, 22)
                await quiet(stream)
                venue.reading.set()
                assert totals((await calling).balance) == {"BTC": "1"}
                await until_amount(stream, 22)

    async def test_a_hint_is_not_lost_while_the_venue_fails(self, venue: PushingVenue, tmp_path: Path) -> None:
        async with service(venue, tmp_path, poll_interval=0.4, poll_interval_still=0.4) as running:
            await running.store(HINTS, api_key=KEY)
            async with streaming(running, HINTS) as stream:
                await until_delivered(stream, PUSHED)
                await until(lambda: venue.reads[KEY] == 2, "the read after the subscription")
                venue.fail(Fault(status=503, path=f"/balances/{KEY}"))
                venue.change(KEY, 23)
                await stream.next_of("account_error")
                venue.recover()
                await until_amount(stream, 23)

    async def test_a_hint_is_not_lost_while_the_venue_is_late(self, venue: PushingVenue, tmp_path: Path) -> None:
        async with service(venue, tmp_path, venue_timeout=0.5, **QUICK) as running:
            await running.store(HINTS, api_key=KEY)
            async with streaming(running, HINTS) as stream:
                await until_delivered(stream, PUSHED)
                await until(lambda: venue.reads[KEY] == 2, "the read after the subscription")
                venue.reading.clear()
                venue.change(KEY, 24)
                await until(lambda: venue.reads[KEY] >= 3, "the read after the hint")
                await asyncio.sleep(0.8)
                venue.change(KEY, 25)
                venue.reading.set()
                await until_amount(stream, 25)


class TestReconciling:
    async def test_what_a_push_has_missed_is_read_and_reported_and_the_push_begins_again_at_the_second_time(
        self, venue: PushingVenue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watches, "_PUSH_LAG", 0.1)
        with capture_logs() as logs:
            async with service(venue, tmp_path, reconcile_interval=1.0) as running:
                await running.store(EXCHANGE, api_key=KEY)
                async with streaming(running, EXCHANGE) as stream:
                    await until_delivered(stream, PUSHED)
                    subscriptions = _subscriptions(venue)
                    for amount in (31, 32):
                        venue.change(KEY, amount, push=False)
                        await until_amount(stream, amount)
                    await until(lambda: _subscriptions(venue) > subscriptions, "the push's new beginning")
                    await until_delivered(stream, PUSHED)
                    venue.change(KEY, 33)
                    await until_amount(stream, 33)
                    assert b'push_differences_total{exchange="pushing"} 2' in running.service.metrics.text()
        differences = [line for line in logs if line["event"] == "push.difference"]
        # The second one is told with those that follow within seconds.
        assert differences[0]["in_a_row"] == 1
        assert KEY not in str(logs)

    async def test_nothing_is_reported_while_reads_and_pushes_agree(
        self, venue: PushingVenue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with capture_logs() as logs:
            async with service(venue, tmp_path, reconcile_interval=1.0) as running:
                await running.store(EXCHANGE, api_key=KEY)
                async with streaming(running, EXCHANGE) as stream:
                    await until_delivered(stream, PUSHED)
                    reads = venue.reads[KEY]
                    await until(lambda: venue.reads[KEY] >= reads + 2, "two reconciling reads")
        (line,) = [line for line in logs if line["event"].startswith("push.")]
        assert (line["event"], line["exchange"], line["accounts"]) == ("push.stands", EXCHANGE, 1)


class TestBroken:
    @pytest.mark.parametrize(
        ("fault", "status"),
        [
            (PushFault(silent=True), 0),
            (PushFault(half_open=True), 0),
            (PushFault(refused=503), 0),
            (PushFault.oversized(), 0),
        ],
        ids=["silent", "half open", "refused", "oversized"],
    )
    async def test_a_push_that_fails_is_replaced_by_polling_and_comes_back_by_itself(
        self, venue: PushingVenue, tmp_path: Path, fault: PushFault, status: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pushing_plugin.Language, "silence", 1.0)
        monkeypatch.setattr(pushing_plugin.Language, "ping", 0.4)
        async with service(venue, tmp_path, **QUICK) as running:
            await running.store(EXCHANGE, api_key=KEY)
            async with streaming(running, EXCHANGE) as stream:
                pushed_since = (await until_delivered(stream, PUSHED)).since_time.ToNanoseconds()
                venue.push.fail(fault)
                if fault.refused:
                    venue.push.drop_all()
                venue.change(KEY, 41)
                began = time.monotonic()
                await until_amount(stream, 41)
                # The silence, and two intervals.
                assert time.monotonic() - began < 1.0 + 2 * 0.4 + 3
                assert (await until_delivered(stream, "BROKEN")).since_time.ToNanoseconds() > pushed_since
                reply = await running.stub.GetBalance(balance_request(EXCHANGE))
                assert word(reply.freshness.delivery) in ("BROKEN", "STARTING")
                venue.push.recover()
                await until_delivered(stream, PUSHED)
                venue.change(KEY, 42)
                await until_amount(stream, 42)

    async def test_polling_is_resumed_spread_over_the_interval(
        self, venue: PushingVenue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A poll that another replica may bring is overdue at once, as it is after a long silence.
        monkeypatch.setattr(polling, "LEASE", 0.0)
        users = [f"user{number}" for number in range(20)]
        async with service(venue, tmp_path, **(QUICK | {"poll_interval": 1.0, "poll_interval_still": 1.0})) as running:
            for user in users:
                await running.store(EXCHANGE, user=user, api_key=f"key-of-{user}")
            async with AsyncExitStack() as stack:
                for user in users:
                    await stack.enter_async_context(streaming(running, EXCHANGE, user=user))
                await until(lambda: len(venue.followed()) == 20, "all subscriptions")
                # All balances are older than the interval, so that nothing else spreads the polls.
                await asyncio.sleep(1.2)
                reads = Counter(venue.reads)
                venue.push.fail(PushFault(refused=503))
                venue.push.drop_all()
                await asyncio.sleep(0.5)
                polled = sum((venue.reads - reads).values())
                assert 3 <= polled <= 17, polled
                await until(lambda: len(venue.reads - reads) == 20, "a poll of each")

    async def test_what_is_broken_for_one_account_leaves_the_others_on_the_connection(
        self, venue: PushingVenue, tmp_path: Path
    ) -> None:
        venue.revoked.add("key-of-bob")
        async with service(venue, tmp_path) as running:
            await running.store(EXCHANGE, api_key=KEY)
            await running.store(EXCHANGE, user="bob", api_key="key-of-bob")
            async with streaming(running, EXCHANGE) as stream, streaming(running, EXCHANGE, user="bob") as refused:
                await refused.next_of("account_error")
                await until_delivered(stream, PUSHED)
                opened = venue.push.opened
                venue.change(KEY, 51)
                await until_amount(stream, 51)
                assert venue.push.opened == opened == 1

    async def test_an_account_that_the_venue_does_not_push_is_polled_for_that_reason(
        self, venue: PushingVenue, tmp_path: Path
    ) -> None:
        async with service(venue, tmp_path, **QUICK) as running:
            await running.store(EXCHANGE, api_key=KEY, metadata={"push": "never"})
            async with streaming(running, EXCHANGE) as stream:
                await until_delivered(stream, "REFUSED")
                venue.change(KEY, 61)
                await until_amount(stream, 61)

    @pytest.mark.parametrize("off", [{"push": False}, {"polled_exchanges": [EXCHANGE]}], ids=["all", "one exchange's"])
    async def test_an_operator_can_switch_pushes_off(
        self, venue: PushingVenue, tmp_path: Path, off: dict[str, Any]
    ) -> None:
        async with service(venue, tmp_path, **off, **QUICK) as running:
            await running.store(EXCHANGE, api_key=KEY)
            async with streaming(running, EXCHANGE) as stream:
                await until_delivered(stream, "SWITCHED_OFF")
                venue.change(KEY, 71)
                await until_amount(stream, 71)
                assert not venue.push.opened


class TestEveryWayOfFailing:
    async def test_no_subscriber_gets_a_false_balance_or_an_end_and_all_are_soon_up_to_date(
        self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pushing_plugin.Language, "silence", 1.0)
        # A venue that falls silent may never answer the subscription that it was sent last.
        monkeypatch.setattr(pushing_plugin.Language, "acknowledging_limit", 2.0)
        monkeypatch.setattr(push_connection, "_LONGEST_PAUSE", 1.0)
        names = list(FAULTS)
        folders = [tmp_path_factory.mktemp("service") for _ in names]
        # At the same time, each at a venue and a service of its own.
        found = await asyncio.gather(*(_endured(name, folder) for name, folder in zip(names, folders, strict=True)))
        for name, endured in zip(names, found, strict=True):
            assert (endured.false, endured.went_back, endured.ended) == (0, 0, 0), (name, endured)
            # The silence and two intervals, on a busy machine.
            assert endured.behind < 1.0 + 2 * 0.4 + 3, (name, endured)
            assert endured.back_after < 5, (name, endured)


async def _endured(name: str, folder: Path) -> Endured:
    """What came of a fault of three seconds with five subscribers on one socket."""
    async with PushingVenue() as venue, service(venue, folder, **QUICK) as running, AsyncExitStack() as stack:
        subscribers = [Subscriber(venue, f"user{number}", number, ()) for number in range(5)]
        for one in subscribers:
            one.begin()
            await running.store(EXCHANGE, user=one.user, api_key=key_of(one.user))
            one.start([running.client.channel])
            stack.push_async_callback(one.close)
        await until(lambda: all(one.pushed for one in subscribers), "pushes")
        return await endure(venue, subscribers, FAULTS[name], 3.0, rate=4.0)


class TestRoom:
    async def test_beyond_the_venues_limit_accounts_are_polled_and_move_up_when_one_goes(
        self, venue: PushingVenue, tmp_path: Path
    ) -> None:
        users = [f"user{number}" for number in range(MOST + 2)]
        async with service(venue, tmp_path, **QUICK) as running, AsyncExitStack() as stack:
            streams = {}
            for user in users:
                await running.store(FEW, user=user, api_key=f"key-of-{user}")
                streams[user] = await stack.enter_async_context(streaming(running, FEW, user=user))
                await until_delivered(streams[user], PUSHED if len(streams) <= MOST else "NO_ROOM")
            assert len(venue.followed()) == MOST
            venue.change(f"key-of-{users[-1]}", 81)
            await until_amount(streams[users[-1]], 81)
            streams[users[0]].call.cancel()
            # The one that has waited longest.
            await until_delivered(streams[users[MOST]], PUSHED)
            assert word(await delivery_of(streams[users[-1]])) == "NO_ROOM"


class TestCredential:
    @pytest.mark.parametrize("told", [True, False], ids=["told", "found out"])
    async def test_a_changed_key_ends_the_push_of_the_old_one(
        self, venue: PushingVenue, tmp_path: Path, told: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watches, "_RENEW_EVERY", 0.3)
        monkeypatch.setattr(CachedReferences.__init__, "__defaults__", (0.3,))
        async with service(venue, tmp_path) as running:
            await running.store(EXCHANGE, api_key=KEY)
            async with streaming(running, EXCHANGE) as stream:
                await until_delivered(stream, PUSHED)
                venue.change("another-key", 92)
                await running.store(EXCHANGE, api_key="another-key")
                if told:
                    await running.service.balances.publish_credential_change(Account(USER, EXCHANGE))
                await until(lambda: KEY not in venue.followed(), "the end of the old push")
                venue.change(KEY, 91)
                await until_amount(stream, 92)
                await until(lambda: venue.followed() == {"another-key": 1}, "the new push")
                venue.change(KEY, 93)
                venue.change("another-key", 94)
                assert await next_amount(stream) == "94"

    @pytest.mark.parametrize("told", [True, False], ids=["told", "found out"])
    async def test_an_account_that_is_removed_is_followed_no_more(
        self, venue: PushingVenue, tmp_path: Path, told: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watches, "_RENEW_EVERY", 0.3)
        monkeypatch.setattr(CachedReferences.__init__, "__defaults__", (0.3,))
        async with service(venue, tmp_path, **QUICK) as running:
            await running.store(EXCHANGE, api_key=KEY)
            async with streaming(running, EXCHANGE) as stream:
                await until_delivered(stream, PUSHED)
                await running.remove(EXCHANGE)
                if told:
                    await running.service.balances.publish_credential_change(Account(USER, EXCHANGE))
                event = await stream.next_of("account_error")
                assert event.error.reason
                await until(lambda: not venue.followed(), "the end of the push")
                # And it is followed again when it is stored again.
                await running.store(EXCHANGE, api_key=KEY)
                await running.service.balances.publish_credential_change(Account(USER, EXCHANGE))
                await until_delivered(stream, PUSHED)


class TestEnd:
    async def test_a_service_that_stops_leaves_no_task_and_no_socket(self, venue: PushingVenue, tmp_path: Path) -> None:
        before = asyncio.all_tasks()
        async with service(venue, tmp_path) as running:
            await running.store(EXCHANGE, api_key=KEY)
            async with streaming(running, EXCHANGE) as stream:
                await until_delivered(stream, PUSHED)
                await running.service.stop()
                await until(lambda: not venue.push.clients, "the end of the socket")
        left = {task.get_name() for task in asyncio.all_tasks() - before}
        assert not [name for name in left if name.startswith(("push", "watch", "feed", "messages of", "lease"))], left

    async def test_streams_that_come_and_go_leave_nothing_behind(self, venue: PushingVenue, tmp_path: Path) -> None:
        async with service(venue, tmp_path) as running:
            await running.store(EXCHANGE, api_key=KEY)
            for number in range(60):
                async with streaming(running, EXCHANGE) as stream:
                    # Some leave before anything is read, some while the push begins.
                    await asyncio.sleep(number % 6 * 0.004)
                    if number % 10 == 9:
                        await until_delivered(stream, PUSHED)
            await until(lambda: not venue.followed(), "the end of the last push")
            await until(lambda: not running.service.balances.deliveries, "the end of all feeds")
            names = [task.get_name() for task in asyncio.all_tasks()]
            assert not [name for name in names if name.startswith(("push ", "watch ", "feed "))], names
            # And it is pushed as before.
            async with streaming(running, EXCHANGE) as stream:
                await until_delivered(stream, PUSHED)
                venue.change(KEY, 95)
                await until_amount(stream, 95)


def _subscriptions(venue: PushingVenue) -> int:
    return sum("subscribe" in message for client in venue.push.clients for message in client.received)
