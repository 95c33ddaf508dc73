"""Several replicas and a venue that pushes: one follows an account for all, and all keep to the venue's limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks import pushing_plugin
from benchmarks.pushing_plugin import EXCHANGE, FEW, HINTS, MOST
from benchmarks.pushing_venue import PushingVenue
from exchange_service.balances import push_room, watches
from exchange_service.cache.redis_link import NoAnswer
from exchange_service.streams import pushing
from tests.e2e.test_pushes import KEY, PUSHED, word
from tests.harness import Running, Stream, eventually, registry_of, serving, streaming, totals, until
from tests.servers import RedisServer

LEASE = 1.5
SETTINGS: dict[str, Any] = {
    "heartbeat_interval": 0.1,
    "poll_interval": 30.0,
    "poll_interval_still": 30.0,
    "hash_key": "0123456789abcdef",
}


@pytest.fixture
async def venue() -> AsyncIterator[PushingVenue]:
    async with PushingVenue() as made:
        yield made


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease, and the looks at it, in a fraction of the usual time."""
    monkeypatch.setattr(watches, "PUSH_LEASE", LEASE)
    monkeypatch.setattr(push_room, "SLOT_LEASE", LEASE)
    monkeypatch.setattr(watches, "_RENEW_EVERY", LEASE * 0.4)
    monkeypatch.setattr(watches, "_LOOK_EVERY", LEASE * 0.5)
    monkeypatch.setattr(push_room, "_FULL_FOR", LEASE * 0.5)
    monkeypatch.setattr(watches, "_SHORTEST_PAUSE", 0.2)
    monkeypatch.setattr(pushing_plugin.Language, "silence", 60.0)


@asynccontextmanager
async def replicas(
    number: int, folder: Path, url: str, venue: PushingVenue, **changes: Any
) -> AsyncIterator[list[Running]]:
    shared = {"cache_url": url, "cache_prefix": f"{folder.name}:", "replicas": number}
    urls = dict.fromkeys((EXCHANGE, FEW, HINTS), venue.url)
    async with AsyncExitStack() as stack:
        started = [
            await stack.enter_async_context(
                serving(folder, registry=registry_of(pushing_plugin), venue_urls=urls, **(SETTINGS | shared | changes))
            )
            for _ in range(number)
        ]
        for running in started:
            cache: Any = running.service.cache
            await until(lambda one=cache: one.subscribed, "a replica's subscription")
        yield started


async def die(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replica is gone for the others as if it had been killed: its sockets are closed, and its leases are not
    released."""

    async def refuse(*_: Any, **__: Any) -> Any:
        raise NoAnswer("killed")

    cache: Any = running.service.cache
    for way in ("call", "read"):
        monkeypatch.setattr(cache._sealed.link, way, refuse)
    await running.service.stop()


class Follower:
    """Reads a stream to its end, and keeps what it has brought."""

    def __init__(self, stream: Stream) -> None:
        self.amounts: list[str] = []
        self.versions: list[int] = []
        self.delivery = ""
        self.arrived_at = 0.0
        self._task = asyncio.create_task(self._read(stream))

    async def _read(self, stream: Stream) -> None:
        while True:
            event = await stream.next()
            if event.WhichOneof("event") == "balance":
                self.amounts.append(totals(event.balance.balance)["BTC"])
                self.versions.append(event.balance.balance.version)
                self.arrived_at = time.monotonic()
            elif event.WhichOneof("event") == "heartbeat":
                for state in event.heartbeat.accounts:
                    self.delivery = word(state.delivery)

    def has(self, amount: object) -> bool:
        """Whether it was the last one."""
        return self.amounts[-1:] == [str(amount)]

    def never_went_back(self) -> bool:
        return self.versions == sorted(self.versions)

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task})


async def follow(
    stack: AsyncExitStack, running: Running, exchange: str = EXCHANGE, user: str = "alice"
) -> tuple[Follower, Stream]:
    stream = await stack.enter_async_context(streaming(running, exchange, user=user))
    follower = Follower(stream)
    stack.push_async_callback(follower.end)
    return follower, stream


async def test_one_replica_follows_an_account_and_subscribers_of_all_get_every_change_also_when_it_is_killed(
    venue: PushingVenue, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replicas(3, tmp_path, redis_url, venue) as several, AsyncExitStack() as stack:
        await several[0].store(EXCHANGE, api_key=KEY)
        # The first one to follow holds it.
        followers = []
        for running in several:
            follower, _ = await follow(stack, running)
            followers.append(follower)
            await until(lambda one=follower: one.delivery == PUSHED, "a push at every replica")
        assert venue.followed() == {KEY: 1}
        reads = venue.reads[KEY]
        for amount in range(2, 12):
            venue.change(KEY, amount)
            await until(lambda wanted=amount: all(one.has(wanted) for one in followers), "a change at every replica")
        assert all(one.amounts[-10:] == [str(amount) for amount in range(2, 12)] for one in followers)
        assert venue.reads[KEY] == reads
        await die(several[0], monkeypatch)
        died_at, left = time.monotonic(), followers[1:]
        venue.change(KEY, 20)
        await until(lambda: all(one.has(20) for one in left), "the change at the others")
        # A lease, and what a busy machine adds; the next read that would bring it is far away.
        assert time.monotonic() - died_at < LEASE * 4
        await until(lambda: venue.followed() == {KEY: 1}, "one connection again")
        venue.change(KEY, 21)
        await until(lambda: all(one.has(21) for one in left), "the next change")
        assert all(one.never_went_back() for one in followers)


async def test_a_replica_that_ends_hands_over_at_once(
    venue: PushingVenue, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that only the word of the one that ends can be the reason.
    monkeypatch.setattr(watches, "_LOOK_EVERY", 60.0)
    async with replicas(2, tmp_path, redis_url, venue) as (first, second), AsyncExitStack() as stack:
        await first.store(EXCHANGE, api_key=KEY)
        goes, stream = await follow(stack, first)
        await until(lambda: goes.delivery == PUSHED, "the push")
        stays, _ = await follow(stack, second)
        await until(lambda: stays.delivery == PUSHED, "the push at the other one")
        stream.call.cancel()
        await until(lambda: not first.service.streams.counts()[0], "the end of the first one's feed")
        began = time.monotonic()
        venue.change(KEY, 5)
        await until(lambda: stays.has(5), "the change")
        assert time.monotonic() - began < LEASE


async def test_a_change_whose_message_is_lost_comes_within_a_lease(
    venue: PushingVenue, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose(_: bytes) -> None:
        """As when Redis drops the connection at this moment."""

    async with replicas(2, tmp_path, redis_url, venue) as (first, second), AsyncExitStack() as stack:
        await first.store(EXCHANGE, api_key=KEY)
        for running in (first, second):
            follower, _ = await follow(stack, running)
            await until(lambda one=follower: one.delivery == PUSHED, "a push at every replica")
        monkeypatch.setattr(first.service.cache, "publish", lose)
        venue.change(KEY, 5)
        began = time.monotonic()
        await until(lambda: follower.has(5), "the change")
        assert time.monotonic() - began < LEASE * 4
        assert venue.reads[KEY] == 1


async def test_what_the_follower_has_told_is_told_again_when_the_cache_has_lost_it(
    venue: PushingVenue, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "_TELL_EVERY", 0.1)
    async with replicas(2, tmp_path, redis_url, venue) as (first, second), AsyncExitStack() as stack:
        await first.store(EXCHANGE, api_key=KEY)
        for running in (first, second):
            follower, _ = await follow(stack, running)
            await until(lambda one=follower: one.delivery == PUSHED, "a push at every replica")
        (key,) = first.service.balances.deliveries
        await first.service.cache.delete(f"delivery:{key}")

        async def is_told() -> bool:
            told = await second.service.balances.cached.told_delivery(key)
            return told is not None and told.pushed

        await eventually(is_told, "the word once more")


async def test_a_hint_and_a_reconciling_read_cost_one_request_for_all_replicas(
    venue: PushingVenue, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "_PATIENCE", 0.4)
    async with (
        replicas(3, tmp_path, redis_url, venue, reconcile_interval=1.0) as several,
        AsyncExitStack() as stack,
    ):
        await several[0].store(HINTS, api_key=KEY)
        followers = [(await follow(stack, running, HINTS))[0] for running in several]
        await until(lambda: all(one.delivery == PUSHED for one in followers), "a push at every replica")
        await until(lambda: venue.reads[KEY] == 2, "the read after the subscription")
        venue.change(KEY, 2)
        await until(lambda: all(one.has(2) for one in followers), "the change at every replica")
        assert venue.reads[KEY] == 3
        venue.change(KEY, 3, push=False)
        await until(lambda: all(one.has(3) for one in followers), "what no hint told of")
        began = time.monotonic()
        await until(lambda: venue.reads[KEY] == 6, "two more reconciling reads")
        assert time.monotonic() - began > 2 * 1.0 * 0.8


async def test_without_redis_each_replica_follows_for_itself_and_one_does_for_all_when_it_is_back(
    venue: PushingVenue, tmp_path: Path, redis_server: RedisServer
) -> None:
    async with replicas(2, tmp_path, redis_server.url, venue) as several, AsyncExitStack() as stack:
        await several[0].store(EXCHANGE, api_key=KEY)
        followers = [(await follow(stack, running))[0] for running in several]
        await until(lambda: all(one.delivery == PUSHED for one in followers), "a push at every replica")
        assert venue.followed() == {KEY: 1}
        redis_server.kill()
        await until(lambda: venue.followed() == {KEY: 2}, "a push of each replica's own")
        venue.change(KEY, 30)
        await until(lambda: all(one.has(30) for one in followers), "the change")
        redis_server.start()
        await until(lambda: venue.followed() == {KEY: 1}, "one push for all")
        await until(lambda: all(one.delivery == PUSHED for one in followers), "a push at every replica")
        venue.change(KEY, 31)
        await until(lambda: all(one.has(31) for one in followers), "the next change")
        assert all(one.never_went_back() for one in followers)


async def test_the_venues_limit_holds_for_all_replicas_and_a_dead_ones_slots_come_free(
    venue: PushingVenue, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = [f"user{number}" for number in range(3 * MOST)]
    quick = {"poll_interval": 2.0, "poll_interval_still": 2.0}
    async with replicas(3, tmp_path, redis_url, venue, **quick) as several, AsyncExitStack() as stack:
        followers, streams = {}, {}
        for number, user in enumerate(users):
            await several[0].store(FEW, user=user, api_key=f"key-of-{user}")
            followers[user], streams[user] = await follow(stack, several[number % 3], FEW, user)

        def delivered(wanted: str, at: tuple[int, ...] = (0, 1, 2)) -> list[str]:
            return [
                user for number, user in enumerate(users) if number % 3 in at and followers[user].delivery == wanted
            ]

        await until(lambda: (len(delivered(PUSHED)), len(delivered("NO_ROOM"))) == (MOST, 2 * MOST), "ten of thirty")
        await until(lambda: len(venue.followed()) == MOST, "what the venue allows")
        polled = delivered("NO_ROOM")[0]
        venue.change(f"key-of-{polled}", 3)
        await until(lambda: followers[polled].has(3), "a change of a polled one")
        goes = delivered(PUSHED)[0]
        streams[goes].call.cancel()
        followers[goes].delivery = ""
        await until(lambda: len(delivered(PUSHED)) == MOST, "one that moves up")
        await until(lambda: len(venue.followed()) == MOST, "what the venue allows")
        dead = next(at for at in range(3) if delivered(PUSHED, (at,)))
        await die(several[dead], monkeypatch)
        living = tuple(at for at in range(3) if at != dead)
        await until(lambda: len(delivered(PUSHED, living)) == MOST, "the dead one's slots")
        await until(lambda: len(venue.followed()) == MOST, "what the venue allows")
