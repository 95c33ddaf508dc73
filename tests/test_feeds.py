"""Streams without the server: mailboxes of latest values, polls, and subscriptions that come and go."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exchange_service.balances.freshness import PollBackoff
from exchange_service.balances.service import BalanceResult
from exchange_service.errors import (
    CredentialRejected,
    FieldInvalid,
    ServiceError,
    ShuttingDown,
    StoreUnavailable,
    StreamLifetimeReached,
    VenueRateLimited,
    VenueUnavailable,
)
from exchange_service.plugin_api import Account, Balance, VenueAccount, VenueCall
from exchange_service.streams.accounts import Selector
from exchange_service.streams.clock import Clock
from exchange_service.streams.feed import Feed
from exchange_service.streams.mailbox import Mailbox
from exchange_service.streams.polling import Polling
from exchange_service.streams.service import Streams, StreamSettings
from exchange_service.streams.subscription import Subscription
from exchange_service.streams.update import Update
from exchange_service.v1 import balance_pb2, error_reason_pb2
from exchange_service.v1.exchange_service_pb2 import StreamBalancesResponse
from exchange_service.wire.delivery import Delivery, PollingReason
from exchange_service.wire.replies import Source
from tests.harness import (
    USER,
    Gate,
    OffsetClock,
    ScriptedPlugin,
    TestService,
    holding,
    listing,
    open_test_service,
    raising,
    returning,
    totals,
    until,
)

FAKE_VENUE = Selector("fakex")
ACCOUNT = Account(USER, "fakex")
# Seconds between two polls.
INTERVAL = 0.02


class Reader:
    """Reads one subscription."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def next(self) -> Any:
        async with asyncio.timeout(10):
            return StreamBalancesResponse.FromString(await self._subscription.next_event())

    async def next_news(self) -> Any:
        """The next event that is not a heartbeat."""
        while (event := await self.next()).WhichOneof("event") == "heartbeat":
            continue
        return event

    async def balance(self) -> dict[str, str]:
        """Asset to total; an account error instead fails the test."""
        event = await self.next_news()
        assert event.WhichOneof("event") == "balance", event
        return totals(event.balance.balance)

    async def reason(self) -> str:
        """The reason of an account error; a balance instead fails the test."""
        event = await self.next_news()
        assert event.WhichOneof("event") == "account_error", event
        name: str = error_reason_pb2.ErrorReason.Name(event.account_error.error.reason)
        return name.removeprefix("ERROR_REASON_")

    async def until_heartbeat(self) -> list[Any]:
        """Every event before the next heartbeat."""
        events: list[Any] = []
        while not events or events[-1].WhichOneof("event") != "heartbeat":
            events.append(await self.next())
        return events[:-1]


async def doubted(reader: Reader) -> str:
    """The reason that the next balance is marked with."""
    event = await reader.next_news()
    assert event.WhichOneof("event") == "balance", event
    name: str = error_reason_pb2.ErrorReason.Name(event.balance.freshness.stale.reason)
    return name.removeprefix("ERROR_REASON_")


@asynccontextmanager
async def streams_of(service: TestService, *, accounts_of: Any = None, **options: Any) -> AsyncIterator[Streams]:
    settings = StreamSettings(**({"interval": INTERVAL, "heartbeat_interval": 600.0} | options))
    accounts_of = accounts_of or service.store.accounts
    streams = Streams(service.registry, service.balances, accounts_of, settings, clock=Clock(wall=service.clock))
    try:
        yield streams
    finally:
        await streams.close()


@pytest.fixture
def plugin() -> ScriptedPlugin:
    return ScriptedPlugin(listing("fakex"), listing("fakey"))


@pytest.fixture
async def service(tmp_path: Path, plugin: ScriptedPlugin) -> AsyncIterator[TestService]:
    async with open_test_service(tmp_path, plugin, max_age=0.0, backoff=PollBackoff(INTERVAL, INTERVAL)) as service:
        # A poll accepts no cached balance older than half of the interval, so here time has to pass.
        service.clock.ticking = True
        await service.put("fakex")
        yield service


@pytest.fixture
def rising(plugin: ScriptedPlugin) -> None:
    """The venue's amount is the number of the answer, from 1."""
    amounts = itertools.count(1)

    async def answer(_: VenueCall) -> Balance:
        return holding(("BTC", str(next(amounts))))

    plugin.answer = answer


@pytest.fixture
async def loop_clock(monkeypatch: pytest.MonkeyPatch) -> OffsetClock:
    return OffsetClock(monkeypatch)


def trouble(streams: Streams) -> str:
    """The reason why the account cannot be read now; empty if it can be read."""
    error = streams.snapshot().feeds[ACCOUNT].error
    return error.reason if error else ""


async def polled(plugin: ScriptedPlugin, times: int) -> None:
    wanted = len(plugin.calls) + times
    await until(lambda: len(plugin.calls) >= wanted, "a poll")


class TestMailbox:
    @pytest.mark.usefixtures("rising")
    async def test_a_late_reader_gets_the_latest_and_nothing_in_between(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        async with streams_of(service) as streams, streams.subscribe(USER, [FAKE_VENUE]) as subscription:
            reader = Reader(subscription)
            first = await reader.balance()
            await polled(plugin, 5)
            assert int(first["BTC"]) + 4 <= len(plugin.calls)
            plugin.answer = returning(holding(("BTC", "1000")))
            await polled(plugin, 2)
            assert await reader.balance() == {"BTC": "1000"}

    async def test_an_error_does_not_push_out_an_unread_balance(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        async with streams_of(service) as streams, streams.subscribe(USER, [FAKE_VENUE]) as subscription:
            await polled(plugin, 2)
            plugin.answer = raising(VenueUnavailable("It is down.", retry_after=0.0))
            await polled(plugin, 2)
            reader = Reader(subscription)
            assert await reader.balance() == {"BTC": "1.50"}
            assert (await reader.next()).WhichOneof("event") == "account_error"

    async def test_a_balance_pushes_out_an_unread_error(self, service: TestService, plugin: ScriptedPlugin) -> None:
        async with streams_of(service) as streams, streams.subscribe(USER, [FAKE_VENUE]) as subscription:
            plugin.answer = raising(VenueUnavailable("It is down.", retry_after=0.0))
            await polled(plugin, 2)
            plugin.answer = returning(holding(("BTC", "2")))
            await polled(plugin, 2)
            assert await Reader(subscription).balance() == {"BTC": "2"}

    @pytest.mark.usefixtures("rising")
    async def test_no_account_starves_another(self, service: TestService) -> None:
        await service.put("fakey")
        async with (
            streams_of(service) as streams,
            streams.subscribe(USER, [FAKE_VENUE, Selector("fakey")]) as subscription,
        ):
            reader = Reader(subscription)
            seen = [(await reader.next()).balance.balance.exchange_id for _ in range(20)]
        assert min(seen.count("fakex"), seen.count("fakey")) >= 5

    async def test_a_balances_age_is_computed_when_it_is_handed_out(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        async with streams_of(service) as streams, streams.subscribe(USER, [FAKE_VENUE]) as subscription:
            await until(lambda: subscription.snapshot().pending, "the first balance")
            service.clock.now += 50
            # More polls without a change must not make it younger either.
            await polled(plugin, 2)
            event = (await Reader(subscription).next()).balance
        age = event.freshness.age.ToTimedelta().total_seconds()
        assert 50 <= age < 60
        assert event.freshness.source == balance_pb2.BALANCE_SOURCE_VENUE

    async def test_so_is_the_age_of_the_state_that_a_new_subscriber_gets(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        async with streams_of(service) as streams, streams.subscribe(USER, [FAKE_VENUE]) as first:
            await Reader(first).balance()
            plugin.answer = Gate()
            async with streams.subscribe(USER, [FAKE_VENUE]) as second:
                service.clock.now += 50
                event = (await Reader(second).next()).balance
        assert event.freshness.source == balance_pb2.BALANCE_SOURCE_CACHE
        assert event.freshness.age.seconds >= 50

    async def test_the_fetch_time_that_a_new_subscriber_gets_is_that_of_the_newest_fetch(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        async with streams_of(service) as streams, streams.subscribe(USER, [FAKE_VENUE]) as first:
            before = (await Reader(first).next()).balance.balance
            service.clock.now += 500
            # Nothing has changed, so the first subscriber gets no event for these.
            await polled(plugin, 2)
            plugin.answer = Gate()
            async with streams.subscribe(USER, [FAKE_VENUE]) as second:
                event = (await Reader(second).next()).balance
        assert event.balance.version == before.version
        assert event.balance.fetch_time.seconds - before.fetch_time.seconds >= 500
        assert event.freshness.age.seconds < 100

    async def test_readers_at_about_the_same_time_share_one_event(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        async with streams_of(service) as streams, AsyncExitStack() as stack:
            subscriptions = [await stack.enter_async_context(streams.subscribe(USER, [FAKE_VENUE])) for _ in range(4)]
            for subscription in subscriptions:
                await Reader(subscription).balance()
            plugin.answer = returning(holding(("BTC", "2")))
            await until(lambda: all(subscription.snapshot().pending for subscription in subscriptions), "an update")
            service.clock.now, service.clock.ticking = service.clock(), False
            first, second, third, late = subscriptions
            events = [await subscription.next_event() for subscription in (first, second)]
            service.clock.now += 0.05
            events.append(await third.next_event())
            service.clock.now += 50
            event = (await Reader(late).next()).balance
        assert events[0] is events[1] is events[2]
        # A later reader gets the age at that time.
        assert event.freshness.age.seconds >= 50

    async def test_a_balance_that_is_held_back_can_be_taken_once_it_is_due(self, service: TestService) -> None:
        result, wall = await service.get(), service.clock()
        update = Update(result.stored, result.stored.compact, result.source, None, lambda age: None)
        mailbox = Mailbox(Clock(wall=lambda: wall), min_interval=5.0)
        slot = mailbox.add_slot()
        slot.put_balance(update)
        assert mailbox.take(100.0) == (update.event(wall), None)
        slot.put_balance(update)
        assert mailbox.take(104.9) == (None, None)
        assert (len(mailbox.pending), mailbox.held) == (0, 1)
        assert mailbox.has_news(105.0)
        assert mailbox.take(105.0) == (update.event(wall), None)
        assert (len(mailbox.pending), mailbox.held) == (0, 0)


class ManualSource:
    """A feed's source that the test controls."""

    delivery = Delivery(PollingReason.NO_PUSH, 0.0)

    def __init__(self) -> None:
        self.closed = False
        self._answers: asyncio.Queue[bool] = asyncio.Queue()

    def read_again(self, *, ask_venue: bool) -> None:
        self._answers.put_nowait(ask_venue)

    async def wait(self, result: BalanceResult | None, error: ServiceError | None) -> bool:
        return await self._answers.get()

    def read_now(self) -> None:
        self.read_again(ask_venue=False)

    def close(self) -> None:
        self.closed = True


class TestSources:
    async def test_a_feed_reads_when_its_source_triggers_and_asks_the_venue_if_the_source_requests_it(
        self, service: TestService
    ) -> None:
        result, reads, source = await service.get(), list[bool](), ManualSource()

        async def read(_: Any, ask_venue: bool, known_version: int) -> BalanceResult:
            reads.append(ask_venue)
            return result

        feed = Feed(ACCOUNT, read, source, within_grace=lambda _: True)
        mailbox = Mailbox(Clock())
        feed.join(mailbox.add_slot())
        feed.start()
        await until(lambda: mailbox.pending, "the first balance")
        assert reads == [False]
        source.read_again(ask_venue=True)
        source.read_again(ask_venue=False)
        await until(lambda: len(reads) == 3, "two more reads")
        assert reads == [False, True, False]
        feed.stop()
        await until(lambda: source.closed, "the end of the feed")

    async def test_a_cached_copy_from_before_an_error_is_no_recovery_and_the_venues_answer_is(
        self, service: TestService
    ) -> None:
        fresh, source = await service.get(), ManualSource()
        cached = replace(fresh, source=Source.CACHE)
        answers = iter([fresh, VenueUnavailable("It is down."), cached, fresh, fresh])
        # What the feed has for an error before each read.
        errors: list[ServiceError | None] = []

        async def read(*_: Any) -> BalanceResult:
            errors.append(feed.snapshot().error)
            answer = next(answers)
            if isinstance(answer, ServiceError):
                raise answer
            return answer

        feed = Feed(ACCOUNT, read, source, within_grace=lambda _: True)
        for _ in range(4):
            source.read_again(ask_venue=False)
        feed.start()
        await until(lambda: len(errors) == 5, "the last read")
        assert [error is not None for error in errors] == [False, False, True, True, False]
        feed.stop()
        await until(lambda: source.closed, "the end of the feed")


class TestIntervals:
    """A subscriber may want fewer balances than there are changes."""

    @pytest.mark.usefixtures("rising")
    async def test_changes_in_between_come_as_one_which_is_the_latest(
        self, service: TestService, plugin: ScriptedPlugin, loop_clock: OffsetClock
    ) -> None:
        async with (
            streams_of(service) as streams,
            streams.subscribe(USER, [FAKE_VENUE], min_interval=5.0) as subscription,
        ):
            reader = Reader(subscription)
            seen = [int((await reader.balance())["BTC"])]
            for _ in range(2):
                following = asyncio.ensure_future(reader.balance())
                await polled(plugin, 3)
                assert not following.done()
                loop_clock.advance(5.0)
                seen.append(int((await following)["BTC"]))
                # The newest balance of the venue, except for one whose answer is on its way.
                assert len(plugin.calls) - seen[-1] <= 1
        assert seen[2] - seen[1] > 1, "nothing was left out"

    @pytest.mark.usefixtures("rising")
    async def test_one_subscribers_interval_is_not_anothers(self, service: TestService) -> None:
        async with (
            streams_of(service) as streams,
            streams.subscribe(USER, [FAKE_VENUE], min_interval=600.0) as rarely,
            streams.subscribe(USER, [FAKE_VENUE]) as always,
        ):
            await Reader(rarely).balance()
            waiting = asyncio.ensure_future(Reader(rarely).balance())
            reader = Reader(always)
            seen = [(await reader.balance())["BTC"] for _ in range(5)]
            assert not waiting.done()
            waiting.cancel()
        assert len(set(seen)) == 5

    async def test_an_interval_applies_to_each_account_alone(self, service: TestService) -> None:
        await service.put("fakey")
        both = [FAKE_VENUE, Selector("fakey")]
        async with streams_of(service) as streams, streams.subscribe(USER, both, min_interval=600.0) as subscription:
            reader = Reader(subscription)
            assert {(await reader.next()).balance.balance.exchange_id for _ in both} == {"fakex", "fakey"}

    async def test_an_error_comes_at_once_and_again_behind_the_balance_that_was_held_back(
        self, service: TestService, plugin: ScriptedPlugin, loop_clock: OffsetClock
    ) -> None:
        async with (
            streams_of(service) as streams,
            streams.subscribe(USER, [FAKE_VENUE], min_interval=5.0) as subscription,
        ):
            reader = Reader(subscription)
            await reader.balance()
            following = asyncio.ensure_future(reader.reason())
            plugin.answer = returning(holding(("BTC", "2")))
            await until(lambda: subscription.snapshot().held, "a balance that is held back")
            plugin.answer = raising(VenueUnavailable("It is down.", retry_after=0.0))
            assert await following == "VENUE_UNAVAILABLE"
            # No state is lost, and an old one is not the last event.
            held_back = asyncio.ensure_future(reader.balance())
            await polled(plugin, 2)
            assert not held_back.done()
            loop_clock.advance(5.0)
            assert await held_back == {"BTC": "2"}
            assert await reader.reason() == "VENUE_UNAVAILABLE"

    async def test_an_account_that_leaves_while_its_balance_is_held_back_sends_nothing_more(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        async with (
            streams_of(service, heartbeat_interval=0.2) as streams,
            streams.subscribe(USER, min_interval=0.8) as subscription,
        ):
            reader = Reader(subscription)
            await reader.balance()
            plugin.answer = returning(holding(("BTC", "2")))
            following = asyncio.ensure_future(reader.until_heartbeat())
            await until(lambda: subscription.snapshot().held, "a balance that is held back")
            await service.store.remove(ACCOUNT)
            events = await following
            async with asyncio.timeout(10):
                while subscription.snapshot().accounts:
                    events += await reader.until_heartbeat()
            assert not [event for event in events if event.HasField("balance")]
            assert not subscription.snapshot().held


BEAT: dict[str, Any] = {"heartbeat_interval": 0.3}


class TestNewSubscribers:
    """A new subscriber of a failing account gets what GetBalance would return."""

    async def test_a_refused_key_shows_no_old_balance(
        self, service: TestService, plugin: ScriptedPlugin, loop_clock: OffsetClock
    ) -> None:
        async with streams_of(service, **BEAT) as streams, streams.subscribe(USER, [FAKE_VENUE]) as first:
            reader = Reader(first)
            await reader.balance()
            plugin.answer = raising(CredentialRejected("The key is refused."))
            assert await doubted(reader) == "CREDENTIAL_REJECTED"
            loop_clock.advance(2.6)
            assert await reader.reason() == "CREDENTIAL_REJECTED"
            async with streams.subscribe(USER, [FAKE_VENUE]) as second:
                new_reader = Reader(second)
                assert await new_reader.reason() == "CREDENTIAL_REJECTED"
                assert await new_reader.until_heartbeat() == []

    async def test_a_refusal_is_shown_beside_the_balance_until_the_venue_has_been_asked_again(
        self, service: TestService, plugin: ScriptedPlugin, loop_clock: OffsetClock
    ) -> None:
        good = plugin.answer
        async with streams_of(service, **BEAT) as streams, streams.subscribe(USER, [FAKE_VENUE]) as first:
            reader = Reader(first)
            await reader.balance()
            plugin.answer = raising(CredentialRejected("The key is refused."))
            assert await doubted(reader) == "CREDENTIAL_REJECTED"
            async with streams.subscribe(USER, [FAKE_VENUE]) as second:
                assert await doubted(Reader(second)) == "CREDENTIAL_REJECTED"
            assert trouble(streams) == ""
            plugin.answer = good
            calls = len(plugin.calls)
            loop_clock.advance(2.6)
            event = (await reader.next_news()).balance
            assert not event.freshness.HasField("stale")
            assert len(plugin.calls) > calls

    async def test_a_poll_that_waits_for_our_own_requests_is_late_and_no_error(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        late = VenueRateLimited("Our requests are used up.", retry_after=0.05)
        late.late = True
        polls = asyncio.Event()
        fetch = service.balances.fetcher.inner.fetch

        async def used_up(*_: Any) -> Any:
            polls.set()
            raise late

        async with streams_of(service, **BEAT) as streams, streams.subscribe(USER, [FAKE_VENUE]) as first:
            reader = Reader(first)
            await reader.balance()
            service.balances.fetcher.inner.fetch = used_up  # type: ignore[method-assign]
            for _ in range(3):
                polls.clear()
                service.clock.now += 31
                await polls.wait()
            assert trouble(streams) == ""
            beat = await reader.next()
            while beat.WhichOneof("event") != "heartbeat" or beat.heartbeat.accounts[0].age.seconds < 60:
                assert beat.WhichOneof("event") == "heartbeat", beat
                beat = await reader.next()
            # A subscriber that comes now is told that it may be old, and so is a call.
            async with streams.subscribe(USER, [FAKE_VENUE]) as second:
                freshness = (await Reader(second).next()).balance.freshness
                assert freshness.stale.reason == error_reason_pb2.ERROR_REASON_VENUE_RATE_LIMITED
            result = await service.get()
            assert (result.source, result.stale) == (Source.LAST_GOOD, late)
            service.balances.fetcher.inner.fetch = fetch  # type: ignore[method-assign]
            plugin.answer = returning(holding(("BTC", "2")))
            assert await reader.balance() == {"BTC": "2"}

    async def test_a_removed_key_shows_no_old_balance_either(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        async with streams_of(service, **BEAT) as streams, streams.subscribe(USER, [FAKE_VENUE]) as first:
            reader = Reader(first)
            await reader.balance()
            await service.store.remove(ACCOUNT)
            assert await reader.reason() == "CREDENTIAL_MISSING"
            async with streams.subscribe(USER, [FAKE_VENUE]) as second:
                new_reader = Reader(second)
                event = (await new_reader.next()).account_error
                assert event.error.reason == error_reason_pb2.ERROR_REASON_CREDENTIAL_MISSING
                assert event.last_version == 0
                assert await new_reader.until_heartbeat() == []
            # A failing venue does not bring it back either, once there is a key again.
            plugin.answer = raising(VenueUnavailable("It is down.", retry_after=0.0))
            await service.put("fakex", api_key="another-key")
            await until(lambda: trouble(streams) == "VENUE_UNAVAILABLE")
            async with streams.subscribe(USER, [FAKE_VENUE]) as third:
                new_reader = Reader(third)
                assert await new_reader.reason() == "VENUE_UNAVAILABLE"
                assert await new_reader.until_heartbeat() == []

    async def test_a_transient_error_shows_the_last_good_balance_marked_and_then_the_error(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        async with streams_of(service, **BEAT) as streams, streams.subscribe(USER, [FAKE_VENUE]) as first:
            reader = Reader(first)
            await reader.balance()
            plugin.answer = raising(VenueUnavailable("It is down.", retry_after=0.0))
            assert await reader.reason() == "VENUE_UNAVAILABLE"
            service.clock.now += 100
            async with streams.subscribe(USER, [FAKE_VENUE]) as second:
                new_reader = Reader(second)
                event = (await new_reader.next()).balance
                assert totals(event.balance) == {"BTC": "1.50"}
                assert event.freshness.source == balance_pb2.BALANCE_SOURCE_LAST_GOOD
                assert event.freshness.stale.reason == error_reason_pb2.ERROR_REASON_VENUE_UNAVAILABLE
                assert event.freshness.age.seconds >= 100
                assert await new_reader.reason() == "VENUE_UNAVAILABLE"
                assert await new_reader.until_heartbeat() == []

    async def test_beyond_the_grace_it_shows_only_the_error(self, service: TestService, plugin: ScriptedPlugin) -> None:
        async with streams_of(service, **BEAT) as streams, streams.subscribe(USER, [FAKE_VENUE]) as first:
            reader = Reader(first)
            await reader.balance()
            plugin.answer = raising(VenueUnavailable("It is down.", retry_after=0.0))
            assert await reader.reason() == "VENUE_UNAVAILABLE"
            service.clock.now += 301
            async with streams.subscribe(USER, [FAKE_VENUE]) as second:
                new_reader = Reader(second)
                assert await new_reader.reason() == "VENUE_UNAVAILABLE"
                assert await new_reader.until_heartbeat() == []


class TestResuming:
    async def held(self, service: TestService, streams: Streams) -> int:
        """The version that a subscriber has when their stream ends."""
        async with streams.subscribe(USER, [FAKE_VENUE]) as subscription:
            version: int = (await Reader(subscription).next()).balance.balance.version
            return version

    async def test_a_subscriber_with_the_current_version_gets_nothing(self, service: TestService) -> None:
        async with streams_of(service, **BEAT) as streams:
            selector = Selector("fakex", known_version=await self.held(service, streams))
            async with streams.subscribe(USER, [selector]) as subscription:
                assert await Reader(subscription).until_heartbeat() == []

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (CredentialRejected("The key is refused."), "CREDENTIAL_REJECTED"),
            (StoreUnavailable("The database is down."), "PLUGIN_FAILED"),
        ],
    )
    async def test_after_an_error_the_recovery_is_sent_even_if_the_balance_is_the_known_one(
        self, service: TestService, plugin: ScriptedPlugin, loop_clock: OffsetClock, error: ServiceError, reason: str
    ) -> None:
        good = plugin.answer
        async with streams_of(service) as streams:
            version = await self.held(service, streams)
            plugin.answer = raising(error)
            # The cached balance is too old to be returned in its place.
            service.clock.now += 301
            async with streams.subscribe(USER, [Selector("fakex", known_version=version)]) as subscription:
                reader = Reader(subscription)
                assert await reader.reason() == reason
                plugin.answer = good
                # A venue that refused the key is not asked for a minute.
                loop_clock.advance(61.0)
                event = (await reader.next()).balance
        assert event.balance.version == version
        assert not event.freshness.HasField("stale")

    async def test_so_is_it_if_the_error_is_still_unread(
        self, service: TestService, plugin: ScriptedPlugin, loop_clock: OffsetClock
    ) -> None:
        good = plugin.answer
        async with streams_of(service) as streams:
            version = await self.held(service, streams)
            plugin.answer = raising(CredentialRejected("The key is refused."))
            service.clock.now += 301
            async with streams.subscribe(USER, [Selector("fakex", known_version=version)]) as subscription:
                await until(lambda: subscription.snapshot().pending, "the error")
                plugin.answer = good
                loop_clock.advance(61.0)
                await until(lambda: not trouble(streams), "the recovery")
                reader = Reader(subscription)
                # A stream that resumes begins with a heartbeat.
                assert (await reader.next()).HasField("heartbeat")
                event = (await reader.next()).balance
        assert event.balance.version == version


# These texts and delays cannot be sent as they are.
UNSENDABLE = {
    "half of a character": lambda: VenueUnavailable("It \ud800 is down.", retry_after=0.0),
    "20 kB": lambda: VenueUnavailable("x" * 20_000, retry_after=0.0),
    "20,000 letters of three bytes": lambda: VenueUnavailable("貨" * 20_000, retry_after=0.0),
    "too long for a duration": lambda: VenueUnavailable("It is down.", retry_after=1e300),
    "not a number": lambda: VenueUnavailable("It is down.", retry_after=float("nan")),
    "before now": lambda: VenueUnavailable("It is down.", retry_after=-1e300),
}


class TestUnsendableErrors:
    @pytest.mark.parametrize("name", UNSENDABLE)
    async def test_one_reaches_the_subscriber_and_the_feed_lives_on(
        self, service: TestService, plugin: ScriptedPlugin, loop_clock: OffsetClock, name: str
    ) -> None:
        async with streams_of(service, heartbeat_interval=1e6, lifetime=1e6) as streams:
            plugin.answer = raising_a_new(UNSENDABLE[name])
            async with streams.subscribe(USER, [FAKE_VENUE]) as subscription:
                reader = Reader(subscription)
                event = (await reader.next()).account_error
                assert event.error.reason == error_reason_pb2.ERROR_REASON_VENUE_UNAVAILABLE
                assert event.error.message
                assert 0 <= event.error.retry_delay.ToTimedelta().total_seconds() <= 3600
                plugin.answer = returning(holding(("BTC", "2")))
                # No cooldown is longer than an hour.
                loop_clock.advance(3601.0)
                assert await reader.balance() == {"BTC": "2"}

    @pytest.mark.parametrize("name", UNSENDABLE)
    async def test_one_of_a_single_venue_account_is_part_of_the_balance(
        self, service: TestService, plugin: ScriptedPlugin, name: str
    ) -> None:
        async def partly(_: VenueCall) -> Balance:
            return Balance((*holding(("BTC", "1")).venue_accounts, VenueAccount("2", error=UNSENDABLE[name]())))

        plugin.answer = partly
        async with streams_of(service) as streams, streams.subscribe(USER, [FAKE_VENUE]) as subscription:
            event = (await Reader(subscription).next()).balance
        readable, unreadable = event.balance.venue_accounts
        assert readable.assets[0].total == "1"
        assert unreadable.error.reason == error_reason_pb2.ERROR_REASON_VENUE_UNAVAILABLE


def raising_a_new(make: Any) -> Any:
    """A venue whose every answer is a new error."""

    async def answer(_: VenueCall) -> Any:
        raise make()

    return answer


class TestPollDelays:
    @pytest.mark.parametrize(
        ("error", "least", "most"),
        [
            (None, 9.0, 11.0),
            (VenueUnavailable("Down."), 9.0, 11.0),
            (VenueRateLimited("Wait.", retry_after=60.0), 60.0, 60.0),
            (VenueRateLimited("Wait.", retry_after=86400.0), 300.0, 300.0),
        ],
    )
    async def test_a_feed_waits_as_long_as_the_venue_asks_up_to_five_minutes(
        self, service: TestService, error: ServiceError | None, least: float, most: float
    ) -> None:
        polling = Polling(service.balances, interval=10.0)
        pauses = [polling.pause(None, error) for _ in range(50)]
        assert least <= min(pauses) <= max(pauses) <= most
        if least != most:
            assert len(set(pauses)) > 10, "feeds that start together drift apart"

    async def test_a_venue_that_limits_us_is_not_polled_meanwhile(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        plugin.answer = raising(VenueRateLimited("Wait.", retry_after=60.0))
        async with streams_of(service) as streams, streams.subscribe(USER, [FAKE_VENUE]) as subscription:
            event = await Reader(subscription).next()
            assert event.account_error.error.retry_delay.seconds == 60
            error = streams.snapshot().feeds[ACCOUNT].error
        assert Polling(service.balances).pause(None, error) == 60.0
        assert len(plugin.calls) == 1


class TestLifetime:
    async def test_a_stream_ends_when_its_lifetime_is_over(self, service: TestService, loop_clock: OffsetClock) -> None:
        async with (
            streams_of(service, lifetime=3600.0) as streams,
            streams.subscribe(USER, [FAKE_VENUE]) as subscription,
        ):
            reader = Reader(subscription)
            await reader.balance()
            loop_clock.advance(3600 * 1.11)
            with pytest.raises(StreamLifetimeReached):
                await reader.next()

    async def test_lifetimes_differ_so_that_streams_do_not_all_come_back_at_once(self, service: TestService) -> None:
        ends = set()
        async with streams_of(service, lifetime=3600.0) as streams:
            for _ in range(10):
                async with streams.subscribe(USER, [FAKE_VENUE]) as subscription:
                    ends.add(round(subscription.snapshot().ends - asyncio.get_running_loop().time()))
        assert len(ends) > 5
        assert min(ends) >= 3239
        assert max(ends) <= 3960

    async def test_a_failed_opening_leaves_nothing_behind(self, service: TestService, plugin: ScriptedPlugin) -> None:
        async def down(_: str) -> list[Any]:
            raise StoreUnavailable("The database is down.")

        async with streams_of(service, accounts_of=down) as streams:
            with pytest.raises(StoreUnavailable):
                await streams.subscribe(USER).__aenter__()
            assert streams.counts() == (0, 0)

    async def test_a_store_that_fails_later_ends_nothing(self, service: TestService, plugin: ScriptedPlugin) -> None:
        state = {"down": False}

        async def accounts(user_id: str) -> list[Any]:
            if state["down"]:
                raise StoreUnavailable("The database is down.")
            return await service.store.accounts(user_id)

        async with (
            streams_of(service, accounts_of=accounts, heartbeat_interval=0.1) as streams,
            streams.subscribe(USER) as subscription,
        ):
            reader = Reader(subscription)
            await reader.balance()
            state["down"] = True
            for _ in range(3):
                beat = (await reader.next()).heartbeat
                assert [account.exchange_id for account in beat.accounts] == ["fakex"]

    async def test_a_store_that_is_slow_later_holds_up_neither_balances_nor_heartbeats(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        requested, answered, slow = asyncio.Event(), asyncio.Event(), False

        async def accounts(user_id: str) -> list[Any]:
            if slow:
                requested.set()
                await answered.wait()
            return await service.store.accounts(user_id)

        async with (
            streams_of(service, accounts_of=accounts, heartbeat_interval=0.1) as streams,
            streams.subscribe(USER) as subscription,
        ):
            reader = Reader(subscription)
            await reader.balance()
            slow = True
            beats = 0
            while not requested.is_set():
                await reader.next()
            for number in range(2, 6):
                plugin.answer = returning(holding(("BTC", str(number))))
                while (event := await reader.next()).WhichOneof("event") == "heartbeat":
                    beats += 1
                assert totals(event.balance.balance) == {"BTC": str(number)}
            while beats < 3:
                beats += (await reader.next()).WhichOneof("event") == "heartbeat"
            assert not answered.is_set()
            # Once it answers, what was added meanwhile joins.
            await service.put("fakey")
            slow = False
            answered.set()
            while (event := await reader.next()).balance.balance.exchange_id != "fakey":
                continue
        assert streams.counts() == (0, 0)

    async def test_leaving_during_a_query_to_the_store_leaves_nothing_behind(self, service: TestService) -> None:
        requested, slow = asyncio.Event(), False

        async def accounts(user_id: str) -> list[Any]:
            if slow:
                requested.set()
                await asyncio.Event().wait()
            return await service.store.accounts(user_id)

        before = asyncio.all_tasks()
        async with (
            streams_of(service, accounts_of=accounts, heartbeat_interval=0.1) as streams,
            streams.subscribe(USER) as subscription,
        ):
            reader = Reader(subscription)
            slow = True
            while not requested.is_set():
                await reader.next()
        await until(lambda: not [task for task in asyncio.all_tasks() - before if "accounts" in task.get_name()])
        assert streams.counts() == (0, 0)

    async def test_no_caller_can_subscribe_after_the_end(self, service: TestService) -> None:
        async with streams_of(service) as streams:
            await streams.close()
            with pytest.raises(ShuttingDown):
                await streams.subscribe(USER, [FAKE_VENUE]).__aenter__()

    async def test_the_end_ends_every_stream_and_every_poll(self, service: TestService, plugin: ScriptedPlugin) -> None:
        async with streams_of(service) as streams, streams.subscribe(USER, [FAKE_VENUE]) as subscription:
            reader = Reader(subscription)
            await reader.balance()
            plugin.answer = gate = Gate()
            await gate.entered.wait()
            await streams.close()
            assert gate.cancelled.is_set()
            with pytest.raises(ShuttingDown):
                await reader.next()

    async def test_more_accounts_than_allowed_are_refused(self, service: TestService) -> None:
        async with streams_of(service, max_accounts=2) as streams:
            with pytest.raises(FieldInvalid, match="at most 2"):
                await streams.subscribe(USER, [FAKE_VENUE] * 3).__aenter__()
            assert streams.counts() == (0, 0)

    async def test_an_account_named_twice_is_followed_once(self, service: TestService) -> None:
        twice = [FAKE_VENUE, Selector("FAKEX", "live")]
        async with (
            streams_of(service, heartbeat_interval=0.1) as streams,
            streams.subscribe(USER, twice) as subscription,
        ):
            reader = Reader(subscription)
            await reader.balance()
            beat = (await reader.next()).heartbeat
            assert len(beat.accounts) == 1
            assert streams.counts() == (1, 1)
