"""The feeds without their server: mailboxes of latest values, pauses, and subscriptions that come and go."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from exchange_service.errors import (
    FieldInvalid,
    ServiceError,
    ShuttingDown,
    StoreUnavailable,
    StreamLifetimeReached,
    VenueRateLimited,
    VenueUnavailable,
)
from exchange_service.feeds import Feeds, Selector, Subscription
from exchange_service.plugin_api import Balance, VenueCall
from exchange_service.v1.exchange_service_pb2 import StreamBalancesResponse
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
        self._events = subscription.__aiter__()

    async def next(self) -> Any:
        async with asyncio.timeout(10):
            return StreamBalancesResponse.FromString(await anext(self._events))

    async def balance(self) -> dict[str, str]:
        event = await self.next()
        assert event.WhichOneof("event") == "balance", event
        return totals(event.balance.balance)


@asynccontextmanager
async def feeds_of(made: Bench, **options: Any) -> AsyncIterator[Feeds]:
    plain: dict[str, Any] = {"interval": 0.02, "heartbeat_interval": 600.0, "now": made.clock}
    feeds = Feeds(made.registry, made.balances, made.store.accounts, **(plain | options))
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
            pauses = [feeds.pause(error) for _ in range(50)]
        assert least <= min(pauses) <= max(pauses) <= most
        if least != most:
            assert len(set(pauses)) > 10, "feeds that start together drift apart"

    async def test_a_venue_that_limits_us_is_not_polled_meanwhile(self, made: Bench, plugin: ScriptedPlugin) -> None:
        plugin.answer = raising(VenueRateLimited("Wait.", retry_after=60.0))
        async with feeds_of(made) as feeds, feeds.subscribe(USER, [PAPER]) as subscription:
            event = await Reader(subscription).next()
            assert event.account_error.error.retry_delay.seconds == 60
            feed = feeds._feeds[next(iter(feeds._feeds))]
            assert feeds.pause(feed.error) == 60.0
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

        feeds = Feeds(made.registry, made.balances, accounts, interval=0.02, heartbeat_interval=0.1)
        async with feeds.subscribe(USER) as subscription:
            reader = Reader(subscription)
            await reader.balance()
            state["down"] = True
            for _ in range(3):
                beat = (await reader.next()).heartbeat
                assert [account.exchange_id for account in beat.accounts] == ["paper"]
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
