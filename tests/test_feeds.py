"""The feeds without their server: mailboxes of latest values, pauses, and subscriptions that come and go."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exchange_service.balances.service import BalanceResult, PollBackoff
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
from exchange_service.streams.feeds import Feeds, Selector, Subscription
from exchange_service.v1 import balance_pb2, error_reason_pb2
from exchange_service.v1.exchange_service_pb2 import StreamBalancesResponse
from exchange_service.wire.replies import Source
from exchange_service.wire.stored import StoredBalance
from tests.harness import (
    USER,
    Bench,
    Gate,
    ScriptedPlugin,
    Shifted,
    bench,
    holding,
    listing,
    raising,
    returning,
    totals,
    until,
)

PAPER = Selector("paper")


class Reader:
    """Reads one subscription."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    async def next(self) -> Any:
        async with asyncio.timeout(10):
            return StreamBalancesResponse.FromString(await self._subscription.next_event())

    async def balance(self) -> dict[str, str]:
        event = await self.next()
        assert event.WhichOneof("event") == "balance", event
        return totals(event.balance.balance)

    async def reason(self) -> str:
        """The reason of the account error that comes next."""
        event = await self.next()
        assert event.WhichOneof("event") == "account_error", event
        name: str = error_reason_pb2.ErrorReason.Name(event.account_error.error.reason)
        return name.removeprefix("ERROR_REASON_")

    async def until_heartbeat(self) -> list[Any]:
        """Every event before the next heartbeat."""
        events: list[Any] = []
        while not events or events[-1].WhichOneof("event") != "heartbeat":
            events.append(await self.next())
        return events[:-1]


@asynccontextmanager
async def feeds_of(made: Bench, **options: Any) -> AsyncIterator[Feeds]:
    plain: dict[str, Any] = {"interval": 0.02, "heartbeat_interval": 600.0, "now": made.clock}
    options = plain | options
    made.balances._pace = PollBackoff(options["interval"], options["interval"])
    feeds = Feeds(made.registry, made.balances, made.store.accounts, **options)
    try:
        yield feeds
    finally:
        await feeds.close()


@pytest.fixture
def plugin() -> ScriptedPlugin:
    return ScriptedPlugin(listing("paper"), listing("pencil"))


@pytest.fixture
async def made(tmp_path: Path, plugin: ScriptedPlugin) -> AsyncIterator[Bench]:
    async with bench(tmp_path, plugin, max_age=0.0) as found:
        # A poll takes no kept balance that is as old as half of the interval, so here time has to pass.
        found.clock.ticking = True
        await found.put("paper")
        yield found


def _trouble(feeds: Feeds) -> str:
    """The reason for which the account cannot be read just now; empty where it can."""
    error = feeds._feeds[Account(USER, "paper")].error
    return error.reason if error else ""


async def polled(plugin: ScriptedPlugin, times: int) -> None:
    wanted = len(plugin.calls) + times
    await until(lambda: len(plugin.calls) >= wanted, "a poll")


class TestMailbox:
    async def test_who_reads_late_gets_the_latest_and_nothing_in_between(
        self, made: Bench, plugin: ScriptedPlugin
    ) -> None:
        amounts = itertools.count(1)
        last = 0

        async def rising(_: VenueCall) -> Balance:
            nonlocal last
            made.clock.now += 1
            last = next(amounts)
            return holding(("BTC", str(last)))

        plugin.answer = rising
        async with feeds_of(made) as feeds, feeds.subscribe(USER, [PAPER]) as subscription:
            reader = Reader(subscription)
            first = await reader.balance()
            await polled(plugin, 5)
            plugin.answer = returning(holding(("BTC", "1000")))
            await polled(plugin, 2)
            assert await reader.balance() == {"BTC": "1000"}
            assert int(first["BTC"]) + 4 <= last

    async def test_an_error_does_not_push_out_an_unread_balance(self, made: Bench, plugin: ScriptedPlugin) -> None:
        async with feeds_of(made) as feeds, feeds.subscribe(USER, [PAPER]) as subscription:
            await polled(plugin, 2)
            plugin.answer = raising(VenueUnavailable("It is down.", retry_after=0.0))
            await polled(plugin, 2)
            reader = Reader(subscription)
            assert await reader.balance() == {"BTC": "1.50"}
            assert (await reader.next()).WhichOneof("event") == "account_error"

    async def test_a_balance_pushes_out_an_unread_error(self, made: Bench, plugin: ScriptedPlugin) -> None:
        async with feeds_of(made) as feeds, feeds.subscribe(USER, [PAPER]) as subscription:
            plugin.answer = raising(VenueUnavailable("It is down.", retry_after=0.0))
            await polled(plugin, 2)
            plugin.answer = returning(holding(("BTC", "2")))
            await polled(plugin, 2)
            assert await Reader(subscription).balance() == {"BTC": "2"}

    async def test_no_account_starves_another(self, made: Bench, plugin: ScriptedPlugin) -> None:
        await made.put("pencil")
        amounts = itertools.count(1)

        async def rising(call: VenueCall) -> Balance:
            made.clock.now += 1
            return holding(("BTC", str(next(amounts))))

        plugin.answer = rising
        async with feeds_of(made) as feeds, feeds.subscribe(USER, [PAPER, Selector("pencil")]) as subscription:
            reader = Reader(subscription)
            seen = [(await reader.next()).balance.balance.exchange_id for _ in range(20)]
        assert min(seen.count("paper"), seen.count("pencil")) >= 5

    async def test_its_age_is_reckoned_when_it_is_handed_out(self, made: Bench, plugin: ScriptedPlugin) -> None:
        async with feeds_of(made) as feeds, feeds.subscribe(USER, [PAPER]) as subscription:
            await until(lambda: subscription._pending, "the first balance")
            made.clock.now += 50
            # More polls without a change must not make it younger either.
            await polled(plugin, 2)
            event = (await Reader(subscription).next()).balance
        age = event.freshness.age.ToTimedelta().total_seconds()
        assert 50 <= age < 60
        assert event.freshness.source == balance_pb2.BALANCE_SOURCE_VENUE

    async def test_so_is_that_of_the_state_that_a_newcomer_gets(self, made: Bench, plugin: ScriptedPlugin) -> None:
        async with feeds_of(made) as feeds, feeds.subscribe(USER, [PAPER]) as first:
            await Reader(first).balance()
            plugin.answer = Gate()
            async with feeds.subscribe(USER, [PAPER]) as second:
                made.clock.now += 50
                event = (await Reader(second).next()).balance
        assert event.freshness.source == balance_pb2.BALANCE_SOURCE_CACHE
        assert event.freshness.age.seconds >= 50

    async def test_the_fetch_time_that_a_newcomer_gets_is_that_of_the_newest_fetch(
        self, made: Bench, plugin: ScriptedPlugin
    ) -> None:
        async with feeds_of(made) as feeds, feeds.subscribe(USER, [PAPER]) as first:
            before = (await Reader(first).next()).balance.balance
            made.clock.now += 500
            # Nothing has changed, so the first subscriber hears nothing of these.
            await polled(plugin, 2)
            plugin.answer = Gate()
            async with feeds.subscribe(USER, [PAPER]) as second:
                event = (await Reader(second).next()).balance
        assert event.balance.version == before.version
        assert event.balance.fetch_time.seconds - before.fetch_time.seconds >= 500
        assert event.freshness.age.seconds < 100

    async def test_all_who_read_it_at_about_the_same_time_share_one_event(self, made: Bench) -> None:
        async with feeds_of(made) as feeds, feeds.subscribe(USER, [PAPER]) as first:
            await Reader(first).balance()
            made.clock.now, made.clock.ticking = made.clock(), False
            async with (
                feeds.subscribe(USER, [PAPER]) as second,
                feeds.subscribe(USER, [PAPER]) as third,
                feeds.subscribe(USER, [PAPER]) as late,
            ):
                feed = feeds._feeds[Account(USER, "paper")]
                stored = replace(await _current(feed), version=feed.version + 1)
                feed._receive(BalanceResult(stored, Source.VENUE, 0.0, None, feed._key))
                events = [await subscription.next_event() for subscription in (second, third)]
                made.clock.now += 0.05
                events.append(await first.next_event())
                made.clock.now += 50
                event = (await Reader(late).next()).balance
        assert events[0] is events[1] is events[2]
        # Whoever reads it later is told its age as it is then.
        assert event.freshness.age.seconds >= 50


async def _current(feed: Any) -> StoredBalance:
    await until(lambda: feed.current is not None)
    current: StoredBalance = feed.current
    return current


class TestIntervals:
    """A subscriber may want fewer balances than there are changes."""

    @pytest.fixture
    def rising(self, plugin: ScriptedPlugin) -> None:
        amounts = itertools.count(1)

        async def answer(_: VenueCall) -> Balance:
            return holding(("BTC", str(next(amounts))))

        plugin.answer = answer

    @pytest.mark.usefixtures("rising")
    async def test_changes_in_between_come_as_one_which_is_the_latest(
        self, made: Bench, plugin: ScriptedPlugin
    ) -> None:
        time = asyncio.get_running_loop().time
        async with feeds_of(made) as feeds, feeds.subscribe(USER, [PAPER], min_interval=0.3) as subscription:
            reader, arrivals, seen = Reader(subscription), [], []
            for _ in range(3):
                seen.append(int((await reader.balance())["BTC"]))
                arrivals.append(time())
                # The newest that the venue has said, but for one whose answer is under way.
                assert len(plugin.calls) - seen[-1] <= 1
        gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
        assert min(gaps) >= 0.28
        assert seen[2] - seen[1] > 1, "nothing was left out"

    @pytest.mark.usefixtures("rising")
    async def test_one_subscribers_interval_is_not_anothers(self, made: Bench) -> None:
        async with (
            feeds_of(made) as feeds,
            feeds.subscribe(USER, [PAPER], min_interval=600.0) as rarely,
            feeds.subscribe(USER, [PAPER]) as always,
        ):
            await Reader(rarely).balance()
            waiting = asyncio.ensure_future(Reader(rarely).balance())
            reader = Reader(always)
            seen = [(await reader.balance())["BTC"] for _ in range(5)]
            assert not waiting.done()
            waiting.cancel()
        assert len(set(seen)) == 5

    async def test_an_interval_is_one_accounts_alone(self, made: Bench) -> None:
        await made.put("pencil")
        both = [PAPER, Selector("pencil")]
        async with feeds_of(made) as feeds, feeds.subscribe(USER, both, min_interval=600.0) as subscription:
            reader = Reader(subscription)
            assert {(await reader.next()).balance.balance.exchange_id for _ in both} == {"paper", "pencil"}

    async def test_an_error_comes_at_once_and_again_behind_the_balance_that_was_held_back(
        self, made: Bench, plugin: ScriptedPlugin
    ) -> None:
        async with feeds_of(made) as feeds, feeds.subscribe(USER, [PAPER], min_interval=1.0) as subscription:
            reader = Reader(subscription)
            await reader.balance()
            began = asyncio.get_running_loop().time()
            following = asyncio.ensure_future(reader.reason())
            plugin.answer = returning(holding(("BTC", "2")))
            await until(lambda: subscription._held, "a balance that is held back")
            plugin.answer = raising(VenueUnavailable("It is down.", retry_after=0.0))
            assert await following == "VENUE_UNAVAILABLE"
            assert asyncio.get_running_loop().time() - began < 1.0
            # No state is lost, and an old one is not the last word.
            assert await reader.balance() == {"BTC": "2"}
            assert asyncio.get_running_loop().time() - began >= 0.98
            assert await reader.reason() == "VENUE_UNAVAILABLE"

    async def test_an_account_that_leaves_while_its_balance_is_held_back_says_nothing_more(
        self, made: Bench, plugin: ScriptedPlugin
    ) -> None:
        async with (
            feeds_of(made, heartbeat_interval=0.2) as feeds,
            feeds.subscribe(USER, min_interval=0.8) as subscription,
        ):
            reader = Reader(subscription)
            await reader.balance()
            plugin.answer = returning(holding(("BTC", "2")))
            following = asyncio.ensure_future(reader.until_heartbeat())
            await until(lambda: subscription._held, "a balance that is held back")
            await made.store.remove(Account(USER, "paper"))
            events = await following
            async with asyncio.timeout(10):
                while subscription._followed:
                    events += await reader.until_heartbeat()
            assert not [event for event in events if event.HasField("balance")]
            assert not subscription._held


BEAT: dict[str, Any] = {"heartbeat_interval": 0.3}


class TestNewcomers:
    """Who subscribes to a feed in trouble gets what GetBalance would give him."""

    async def test_a_refused_key_shows_no_old_balance(self, made: Bench, plugin: ScriptedPlugin) -> None:
        async with feeds_of(made, **BEAT) as feeds, feeds.subscribe(USER, [PAPER]) as first:
            reader = Reader(first)
            await reader.balance()
            plugin.answer = raising(CredentialRejected("The key is refused."))
            assert await reader.reason() == "CREDENTIAL_REJECTED"
            async with feeds.subscribe(USER, [PAPER]) as second:
                newcomer = Reader(second)
                assert await newcomer.reason() == "CREDENTIAL_REJECTED"
                assert await newcomer.until_heartbeat() == []

    async def test_a_removed_key_shows_none_either(self, made: Bench, plugin: ScriptedPlugin) -> None:
        async with feeds_of(made, **BEAT) as feeds, feeds.subscribe(USER, [PAPER]) as first:
            reader = Reader(first)
            await reader.balance()
            await made.store.remove(Account(USER, "paper"))
            assert await reader.reason() == "CREDENTIAL_MISSING"
            async with feeds.subscribe(USER, [PAPER]) as second:
                newcomer = Reader(second)
                event = (await newcomer.next()).account_error
                assert event.error.reason == error_reason_pb2.ERROR_REASON_CREDENTIAL_MISSING
                assert event.last_version == 0
                assert await newcomer.until_heartbeat() == []
            # Nor does it come back by another way: trouble of the venue, once there is a key again.
            plugin.answer = raising(VenueUnavailable("It is down.", retry_after=0.0))
            await made.put("paper", api_key="another-key")
            await until(lambda: _trouble(feeds) == "VENUE_UNAVAILABLE")
            async with feeds.subscribe(USER, [PAPER]) as third:
                newcomer = Reader(third)
                assert await newcomer.reason() == "VENUE_UNAVAILABLE"
                assert await newcomer.until_heartbeat() == []

    async def test_passing_trouble_shows_the_last_good_one_marked_and_then_the_error(
        self, made: Bench, plugin: ScriptedPlugin
    ) -> None:
        async with feeds_of(made, **BEAT) as feeds, feeds.subscribe(USER, [PAPER]) as first:
            reader = Reader(first)
            await reader.balance()
            plugin.answer = raising(VenueUnavailable("It is down.", retry_after=0.0))
            assert await reader.reason() == "VENUE_UNAVAILABLE"
            made.clock.now += 100
            async with feeds.subscribe(USER, [PAPER]) as second:
                newcomer = Reader(second)
                event = (await newcomer.next()).balance
                assert totals(event.balance) == {"BTC": "1.50"}
                assert event.freshness.source == balance_pb2.BALANCE_SOURCE_LAST_GOOD
                assert event.freshness.stale.reason == error_reason_pb2.ERROR_REASON_VENUE_UNAVAILABLE
                assert event.freshness.age.seconds >= 100
                assert await newcomer.reason() == "VENUE_UNAVAILABLE"
                assert await newcomer.until_heartbeat() == []

    async def test_beyond_the_grace_it_shows_the_error_alone(self, made: Bench, plugin: ScriptedPlugin) -> None:
        async with feeds_of(made, **BEAT) as feeds, feeds.subscribe(USER, [PAPER]) as first:
            reader = Reader(first)
            await reader.balance()
            plugin.answer = raising(VenueUnavailable("It is down.", retry_after=0.0))
            assert await reader.reason() == "VENUE_UNAVAILABLE"
            made.clock.now += 301
            async with feeds.subscribe(USER, [PAPER]) as second:
                newcomer = Reader(second)
                assert await newcomer.reason() == "VENUE_UNAVAILABLE"
                assert await newcomer.until_heartbeat() == []


class TestResuming:
    async def held(self, made: Bench, feeds: Feeds) -> int:
        """The version that a subscriber has when his stream ends."""
        async with feeds.subscribe(USER, [PAPER]) as subscription:
            version: int = (await Reader(subscription).next()).balance.balance.version
            return version

    async def test_who_has_the_version_already_gets_nothing(self, made: Bench) -> None:
        async with feeds_of(made, **BEAT) as feeds:
            selector = Selector("paper", known_version=await self.held(made, feeds))
            async with feeds.subscribe(USER, [selector]) as subscription:
                assert await Reader(subscription).until_heartbeat() == []

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (CredentialRejected("The key is refused."), "CREDENTIAL_REJECTED"),
            (StoreUnavailable("The database is down."), "PLUGIN_FAILED"),
        ],
    )
    async def test_after_an_error_the_recovery_is_told_though_the_balance_is_the_known_one(
        self, made: Bench, plugin: ScriptedPlugin, monkeypatch: pytest.MonkeyPatch, error: ServiceError, reason: str
    ) -> None:
        # A refused key would be left alone for a minute.
        monkeypatch.setattr("exchange_service.balances.service._REFUSAL_MEMORY", 0.0)
        good = plugin.answer
        async with feeds_of(made, **BEAT) as feeds:
            version = await self.held(made, feeds)
            plugin.answer = raising(error)
            # What is kept is too old to be given in its place.
            made.clock.now += 301
            async with feeds.subscribe(USER, [Selector("paper", known_version=version)]) as subscription:
                reader = Reader(subscription)
                assert await reader.reason() == reason
                plugin.answer = good
                event = (await reader.next()).balance
        assert event.balance.version == version
        assert not event.freshness.HasField("stale")

    async def test_so_is_it_where_the_error_is_still_unread(
        self, made: Bench, plugin: ScriptedPlugin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("exchange_service.balances.service._REFUSAL_MEMORY", 0.0)
        good = plugin.answer
        async with feeds_of(made, **BEAT) as feeds:
            version = await self.held(made, feeds)
            plugin.answer = raising(CredentialRejected("The key is refused."))
            made.clock.now += 301
            async with feeds.subscribe(USER, [Selector("paper", known_version=version)]) as subscription:
                await until(lambda: subscription._pending, "the error")
                plugin.answer = good
                await until(lambda: not _trouble(feeds), "the recovery")
                event = (await Reader(subscription).next()).balance
        assert event.balance.version == version


# None of these texts and delays could be sent as they are.
UNSENDABLE = {
    "half of a character": lambda: VenueUnavailable("It \ud800 is down.", retry_after=0.0),
    "20 kB": lambda: VenueUnavailable("x" * 20_000, retry_after=0.0),
    "20,000 letters of three bytes": lambda: VenueUnavailable("貨" * 20_000, retry_after=0.0),
    "longer than a year can say": lambda: VenueUnavailable("It is down.", retry_after=1e300),
    "no number": lambda: VenueUnavailable("It is down.", retry_after=float("nan")),
    "before now": lambda: VenueUnavailable("It is down.", retry_after=-1e300),
}


class TestUnsendableErrors:
    @pytest.mark.parametrize("name", UNSENDABLE)
    async def test_one_reaches_the_subscriber_and_the_feed_lives_on(
        self, made: Bench, plugin: ScriptedPlugin, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        async with feeds_of(made, **BEAT) as feeds:
            # However long the venue wants to be left alone.
            monkeypatch.setattr(feeds, "pause", lambda *_: 0.02)
            plugin.answer = _raising_anew(UNSENDABLE[name])
            async with feeds.subscribe(USER, [PAPER]) as subscription:
                reader = Reader(subscription)
                event = (await reader.next()).account_error
                assert event.error.reason == error_reason_pb2.ERROR_REASON_VENUE_UNAVAILABLE
                assert event.error.message
                assert 0 <= event.error.retry_delay.ToTimedelta().total_seconds() <= 3600
                plugin.answer = returning(holding(("BTC", "2")))
                # An hour later, at most.
                made.balances._gate._pauses.clear()
                assert await reader.balance() == {"BTC": "2"}

    @pytest.mark.parametrize("name", UNSENDABLE)
    async def test_one_of_a_single_venue_account_stands_in_the_balance(
        self, made: Bench, plugin: ScriptedPlugin, name: str
    ) -> None:
        async def partly(_: VenueCall) -> Balance:
            return Balance((*holding(("BTC", "1")).venue_accounts, VenueAccount("2", error=UNSENDABLE[name]())))

        plugin.answer = partly
        async with feeds_of(made) as feeds, feeds.subscribe(USER, [PAPER]) as subscription:
            event = (await Reader(subscription).next()).balance
        readable, unreadable = event.balance.venue_accounts
        assert readable.assets[0].total == "1"
        assert unreadable.error.reason == error_reason_pb2.ERROR_REASON_VENUE_UNAVAILABLE


def _raising_anew(make: Any) -> Any:
    async def answer(_: VenueCall) -> Any:
        raise make()

    return answer


class TestPause:
    @pytest.mark.parametrize(
        ("error", "least", "most"),
        [
            (None, 9.0, 11.0),
            (VenueUnavailable("Down."), 9.0, 11.0),
            (VenueRateLimited("Wait.", retry_after=60.0), 60.0, 60.0),
            (VenueRateLimited("Wait.", retry_after=86400.0), 300.0, 300.0),
        ],
    )
    async def test_a_feed_waits_as_long_as_the_venue_asks_within_reason(
        self, made: Bench, error: ServiceError | None, least: float, most: float
    ) -> None:
        async with feeds_of(made, interval=10.0) as feeds:
            pauses = [feeds.pause(None, error) for _ in range(50)]
        assert least <= min(pauses) <= max(pauses) <= most
        if least != most:
            assert len(set(pauses)) > 10, "feeds that start together drift apart"

    async def test_a_venue_that_limits_us_is_not_polled_meanwhile(self, made: Bench, plugin: ScriptedPlugin) -> None:
        plugin.answer = raising(VenueRateLimited("Wait.", retry_after=60.0))
        async with feeds_of(made) as feeds, feeds.subscribe(USER, [PAPER]) as subscription:
            event = await Reader(subscription).next()
            assert event.account_error.error.retry_delay.seconds == 60
            feed = feeds._feeds[next(iter(feeds._feeds))]
            assert feeds.pause(None, feed.error) == 60.0
        assert len(plugin.calls) == 1


class TestLife:
    async def test_a_stream_ends_when_its_life_is_over(self, made: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        async with feeds_of(made, lifetime=3600.0) as feeds, feeds.subscribe(USER, [PAPER]) as subscription:
            reader = Reader(subscription)
            await reader.balance()
            Shifted(monkeypatch).by(3600 * 1.11)
            with pytest.raises(StreamLifetimeReached):
                await reader.next()

    async def test_lives_differ_so_that_streams_do_not_all_come_back_at_once(self, made: Bench) -> None:
        ends = set()
        async with feeds_of(made, lifetime=3600.0) as feeds:
            for _ in range(10):
                async with feeds.subscribe(USER, [PAPER]) as subscription:
                    ends.add(round(subscription._dies - asyncio.get_running_loop().time()))
        assert len(ends) > 5
        assert min(ends) >= 3239
        assert max(ends) <= 3960

    async def test_a_failed_opening_leaves_nothing_behind(self, made: Bench, plugin: ScriptedPlugin) -> None:
        async def down(_: str) -> list[Any]:
            raise StoreUnavailable("The database is down.")

        feeds = Feeds(made.registry, made.balances, down)
        with pytest.raises(StoreUnavailable):
            await feeds.subscribe(USER).__aenter__()
        assert feeds.counts() == (0, 0)
        await feeds.close()

    async def test_a_store_that_fails_later_ends_nothing(self, made: Bench, plugin: ScriptedPlugin) -> None:
        state = {"down": False}

        async def accounts(user_id: str) -> list[Any]:
            if state["down"]:
                raise StoreUnavailable("The database is down.")
            return await made.store.accounts(user_id)

        made.balances._pace = PollBackoff(0.02, 0.02)

        feeds = Feeds(made.registry, made.balances, accounts, interval=0.02, heartbeat_interval=0.1)
        async with feeds.subscribe(USER) as subscription:
            reader = Reader(subscription)
            await reader.balance()
            state["down"] = True
            for _ in range(3):
                beat = (await reader.next()).heartbeat
                assert [account.exchange_id for account in beat.accounts] == ["paper"]
        await feeds.close()

    async def test_a_store_that_is_slow_later_holds_up_neither_balances_nor_heartbeats(
        self, made: Bench, plugin: ScriptedPlugin
    ) -> None:
        asked, answered, slow = asyncio.Event(), asyncio.Event(), False

        async def accounts(user_id: str) -> list[Any]:
            if slow:
                asked.set()
                await answered.wait()
            return await made.store.accounts(user_id)

        made.balances._pace = PollBackoff(0.02, 0.02)

        feeds = Feeds(made.registry, made.balances, accounts, interval=0.02, heartbeat_interval=0.1, now=made.clock)
        async with feeds.subscribe(USER) as subscription:
            reader = Reader(subscription)
            await reader.balance()
            slow = True
            beats = 0
            while not asked.is_set():
                await reader.next()
            for number in range(2, 6):
                plugin.answer = returning(holding(("BTC", str(number))))
                while (event := await reader.next()).WhichOneof("event") == "heartbeat":
                    beats += 1
                assert totals(event.balance.balance) == {"BTC": str(number)}
            while beats < 3:
                beats += (await reader.next()).WhichOneof("event") == "heartbeat"
            assert not answered.is_set()
            # And once it answers, what was added meanwhile joins.
            await made.put("pencil")
            slow = False
            answered.set()
            while (event := await reader.next()).balance.balance.exchange_id != "pencil":
                continue
        await feeds.close()
        assert feeds.counts() == (0, 0)

    async def test_who_leaves_while_the_store_is_asked_again_leaves_nothing_behind(self, made: Bench) -> None:
        asked, slow = asyncio.Event(), False

        async def accounts(user_id: str) -> list[Any]:
            if slow:
                asked.set()
                await asyncio.Event().wait()
            return await made.store.accounts(user_id)

        before = asyncio.all_tasks()
        made.balances._pace = PollBackoff(0.02, 0.02)
        feeds = Feeds(made.registry, made.balances, accounts, interval=0.02, heartbeat_interval=0.1, now=made.clock)
        async with feeds.subscribe(USER) as subscription:
            reader = Reader(subscription)
            slow = True
            while not asked.is_set():
                await reader.next()
        await until(lambda: not [task for task in asyncio.all_tasks() - before if "accounts" in task.get_name()])
        assert feeds.counts() == (0, 0)
        await feeds.close()

    async def test_nobody_subscribes_to_feeds_that_have_ended(self, made: Bench) -> None:
        async with feeds_of(made) as feeds:
            await feeds.close()
            with pytest.raises(ShuttingDown):
                await feeds.subscribe(USER, [PAPER]).__aenter__()

    async def test_the_end_ends_every_stream_and_every_poll(self, made: Bench, plugin: ScriptedPlugin) -> None:
        async with feeds_of(made) as feeds, feeds.subscribe(USER, [PAPER]) as subscription:
            reader = Reader(subscription)
            await reader.balance()
            plugin.answer = gate = Gate()
            await gate.entered.wait()
            await feeds.close()
            assert gate.cancelled.is_set()
            with pytest.raises(ShuttingDown):
                await reader.next()

    async def test_more_accounts_than_allowed_are_refused(self, made: Bench) -> None:
        async with feeds_of(made, max_accounts=2) as feeds:
            with pytest.raises(FieldInvalid, match="at most 2"):
                await feeds.subscribe(USER, [PAPER] * 3).__aenter__()
            assert feeds.counts() == (0, 0)

    async def test_an_account_named_twice_is_followed_once(self, made: Bench) -> None:
        twice = [PAPER, Selector("PAPER", "live")]
        async with feeds_of(made, heartbeat_interval=0.1) as feeds, feeds.subscribe(USER, twice) as subscription:
            reader = Reader(subscription)
            await reader.balance()
            beat = (await reader.next()).heartbeat
            assert len(beat.accounts) == 1
            assert feeds.counts() == (1, 1)
