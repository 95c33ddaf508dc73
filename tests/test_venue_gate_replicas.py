"""The gate of several replicas on one Redis: they keep to a venue's limits and cooldowns together."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis_client
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from exchange_service.app import BalanceOptions, open_balances
from exchange_service.balances.service import BalanceResult, Balances
from exchange_service.cache.memory import MemoryCache
from exchange_service.cache.redis_link import NoAnswer, RedisLink
from exchange_service.cache.sealed_redis import SealedRedis
from exchange_service.credentials.references import CachedReferences
from exchange_service.credentials.sql import open_store
from exchange_service.errors import (
    ServiceError,
    VenueRateLimited,
)
from exchange_service.model import Account, Credential
from exchange_service.plugin_api import Environment, RateLimit
from exchange_service.testing import Fault, LoopbackVenue
from exchange_service.venue_gate import GateOptions
from exchange_service.venue_gate.rate_limits import RateLimiter, Window
from exchange_service.venue_gate.redis_state import RedisSharedState
from exchange_service.venue_gate.shared_window import SharedWindow
from exchange_service.venues.http_pool import VenueHttpPool
from exchange_service.venues.registry import Listing
from exchange_service.venues.sessions import Sessions
from tests.gates import Answering, Recorder, over_http
from tests.harness import (
    OffsetClock,
    ScriptedPlugin,
    eventually,
    listing,
    registry_of,
)
from tests.servers import RedisServer

KEY = b"0123456789abcdef"
PER_MINUTE = RateLimit("address", 20, 60)
REPLICA = b"one     "


class CountsInMemory:
    """The counts of one replica, as Redis keeps them, by the event loop's clock."""

    def __init__(self) -> None:
        self.away = False
        self._window: SharedWindow | None = None

    async def take(self, key: str, allowed: int, seconds: int, count: int, unused: int = 0) -> float | None:
        if self.away:
            return None
        now = asyncio.get_running_loop().time()
        packed = self._window.pack() if self._window else b""
        window = SharedWindow.unpack(seconds, packed, now) if packed else SharedWindow(seconds, now)
        window.give_back(REPLICA, unused)
        wait = window.wait(count, allowed, now)
        if not wait:
            window.add(REPLICA, count)
            self._window = window
        return wait

    async def charge(self, key: str, seconds: int, count: int) -> bool:
        if self.away:
            return False
        now = asyncio.get_running_loop().time()
        packed = self._window.pack() if self._window else b""
        self._window = SharedWindow.unpack(seconds, packed, now) if packed else SharedWindow(seconds, now)
        self._window.add(REPLICA, count)
        return True

    def used(self) -> int:
        assert self._window is not None
        return sum(sum(counts) for counts in self._window._parts.values())


@dataclass
class Replica:
    """One replica: its own balances, cache and gate."""

    balances: Balances
    listing: Listing
    metrics: Recorder

    async def get(self, user: str, *, polling: bool = False) -> BalanceResult:
        account = Account(user, "fakex")
        deadline = asyncio.get_running_loop().time() + 10
        return await self.balances.get(account, self.listing, max_age=0, deadline=deadline, polling=polling)


@asynccontextmanager
async def replicas(
    folder: Path, venue: LoopbackVenue, redis_url: str, *limits: RateLimit, users: int = 1, prefix: str = ""
) -> AsyncIterator[list[Replica]]:
    """Three replicas on one Redis and one store; each caches balances for itself, so each asks the venue."""
    metadata = listing(limits=limits, environments=(Environment("production", {"api": "https://api.fakex.example"}),))
    registry = registry_of(ScriptedPlugin(metadata, answer=over_http))
    prefix = prefix or f"test-{random.getrandbits(64):x}:"
    async with AsyncExitStack() as stack:
        store = await open_store(f"sqlite:///{folder / 'credentials.db'}", KEY)
        stack.push_async_callback(store.close)
        for number in range(users):
            await store.put(Account(f"user{number}", "fakex"), Credential.from_texts({"api_key": f"key{number}"}))
        http = VenueHttpPool(timeout=5.0)
        stack.push_async_callback(http.close)
        sessions = Sessions(store.open, http, overrides={"fakex": venue.url})
        stack.push_async_callback(sessions.close)
        made = []
        for _ in range(3):
            link, metrics = RedisLink(redis_url), Recorder()
            stack.push_async_callback(link.close)
            references = CachedReferences(store, ttl=60.0)
            gate = GateOptions(
                shared=RedisSharedState(SealedRedis(link, KEY, prefix=prefix)), replicas=3, metrics=metrics
            )
            balances = open_balances(sessions, references, MemoryCache(), BalanceOptions(KEY, gate=gate))
            stack.push_async_callback(balances.close)
            made.append(Replica(balances, registry.listings["fakex"], metrics))
        yield made


async def every(made: list[Replica], times: int, users: int = 1) -> list[ServiceError | None]:
    """Each replica fetches so many times, for all users one after the other, a few at the same time."""
    # The store opens a few credentials at a time, and this process plays all of the replicas.
    slots = asyncio.Semaphore(9)

    async def one(replica: Replica, number: int) -> ServiceError | None:
        async with slots:
            try:
                await replica.get(f"user{number % users}")
            except ServiceError as error:
                return error
            return None

    return await asyncio.gather(*(one(replica, number) for number in range(times) for replica in made))


async def counted_together(
    folder: Path, redis_url: str, limit: RateLimit, *, times: int
) -> tuple[int, list[ServiceError | None]]:
    """How many requests the venue received, and the error of each fetch or None, while Redis answered all replicas. If
    it did not, because the machine is too busy, the run is repeated."""
    for attempt in range(5):
        (subfolder := folder / str(attempt)).mkdir()
        async with Answering() as venue, replicas(subfolder, venue, redis_url, limit, users=times) as made:
            with capture_logs() as lines:
                outcomes = await every(made, times, users=times)
            if all(line["event"] != "redis.out_of_reach" for line in lines):
                return len(venue.requests), outcomes
    raise AssertionError("Redis did not answer all replicas in any run")


@pytest.mark.threat("T14")
class TestReplicas:
    async def test_a_venues_delay_holds_on_all_replicas_also_for_forced_calls(
        self, tmp_path: Path, redis_url: str
    ) -> None:
        async with Answering() as venue, replicas(tmp_path, venue, redis_url, users=3) as made:
            assert set(await every(made, 3, users=3)) == {None}
            venue.fail(Fault.rate_limited("7"))
            seen = len(venue.requests)
            # Two accounts on two replicas meet it.
            for replica, user in ((made[0], "user0"), (made[1], "user1")):
                with pytest.raises(VenueRateLimited):
                    await replica.get(user)
            assert len(venue.requests) == seen + 2
            venue.recover()
            for _ in range(4):
                outcomes = await every(made, 3, users=3)
                assert {type(outcome) for outcome in outcomes} == {VenueRateLimited}
                assert all(6 < (outcome.retry_after or 0) <= 7 for outcome in outcomes if outcome)
            assert len(venue.requests) == seen + 2

    async def test_one_accounts_delay_holds_for_it_on_all_replicas_and_for_no_other_account(
        self, tmp_path: Path, redis_url: str
    ) -> None:
        async with Answering() as venue, replicas(tmp_path, venue, redis_url, users=3) as made:
            venue.fail(Fault.rate_limited("300"))
            with pytest.raises(VenueRateLimited):
                await made[0].get("user0")
            venue.recover()
            for replica in made:
                with pytest.raises(VenueRateLimited):
                    await replica.get("user0")
                for user in ("user1", "user2"):
                    await replica.get(user)
            # The venue has answered since: a second account's delay is its own as well.
            venue.fail(Fault.rate_limited("300"))
            with pytest.raises(VenueRateLimited):
                await made[1].get("user1")
            venue.recover()
            for replica in made:
                await replica.get("user2")

    async def test_a_cooldown_ends_on_all_replicas_at_the_same_time(self, tmp_path: Path, redis_url: str) -> None:
        async with Answering() as venue, replicas(tmp_path, venue, redis_url) as made:
            venue.fail(Fault.rate_limited("1"))
            with pytest.raises(VenueRateLimited):
                await made[0].get("user0")
            limited_at = time.monotonic()
            venue.recover()
            while (await every(made, 1)).count(None) == 0:
                assert len(venue.requests) == 1
                await asyncio.sleep(0.02)
            assert 0.9 < time.monotonic() - limited_at < 1.5
            assert (await every(made, 1)) == [None] * 3

    async def test_all_replicas_together_respect_a_rate_limit(self, tmp_path: Path, redis_url: str) -> None:
        requests, outcomes = await counted_together(tmp_path, redis_url, RateLimit("address", 30, 60), times=30)
        assert outcomes.count(None) == requests == 30
        assert {type(outcome) for outcome in outcomes if outcome} == {VenueRateLimited}

    async def test_batches_of_permits_waste_little_of_a_limit(self, tmp_path: Path, redis_url: str) -> None:
        requests, _ = await counted_together(tmp_path, redis_url, RateLimit("address", 200, 60), times=100)
        # At most one batch is left over at each replica.
        assert 170 <= requests <= 200

    async def test_polling_leaves_a_fifth_of_a_limit_to_callers_on_any_replica(
        self, tmp_path: Path, redis_url: str
    ) -> None:
        async with Answering() as venue, replicas(tmp_path, venue, redis_url, PER_MINUTE, users=24) as made:
            for polling, allowed in ((True, 16), (False, 20)):
                for number in range(8):
                    for place, replica in enumerate(made):
                        with suppress(VenueRateLimited):
                            await replica.get(f"user{number + 8 * place}", polling=polling)
                assert len(venue.requests) == allowed

    async def test_while_redis_is_down_each_replica_uses_its_share_of_a_limit_and_logs_it_once(
        self, tmp_path: Path, redis_server: RedisServer
    ) -> None:
        limit = RateLimit("address", 30, 60)
        async with Answering() as venue, replicas(tmp_path, venue, redis_server.url, limit, users=30) as made:
            with capture_logs() as lines:
                assert await every(made, 1) == [None] * 3
                redis_server.kill()
                started = time.monotonic()
                outcomes = await every(made, 30, users=30)
                took = time.monotonic() - started
                await every(made, 1)
            assert {type(outcome) for outcome in outcomes} == {type(None), VenueRateLimited}
            assert 27 <= len(venue.requests) <= 30
            assert took < 3
            assert [line["event"] for line in lines if line["event"].startswith("redis.")] == ["redis.out_of_reach"] * 3
            redis_server.start()
            with capture_logs() as lines:

                async def is_shared_again() -> bool:
                    # A user whose part of the limit is used up is refused without a question to Redis.
                    with suppress(VenueRateLimited):
                        await made[0].get("user29")
                    return "redis.answers_again" in [line["event"] for line in lines]

                await eventually(is_shared_again)

    async def test_a_redis_that_hangs_delays_only_the_first_calls(
        self, tmp_path: Path, redis_server: RedisServer
    ) -> None:
        limit = RateLimit("address", 1000, 60)
        async with Answering() as venue, replicas(tmp_path, venue, redis_server.url, limit) as made:
            await every(made, 1)
            redis_server.freeze()
            took = []
            for _ in range(6):
                started = time.monotonic()
                assert await made[0].get("user0")
                took.append(time.monotonic() - started)
            redis_server.thaw()
            assert max(took) < 0.8
            assert max(took[3:]) < 0.2

    async def test_a_delay_holds_on_its_own_replica_while_redis_is_down(
        self, tmp_path: Path, redis_server: RedisServer
    ) -> None:
        async with Answering() as venue, replicas(tmp_path, venue, redis_server.url) as made:
            redis_server.kill()
            venue.fail(Fault.rate_limited("7"))
            with pytest.raises(VenueRateLimited):
                await made[0].get("user0")
            venue.recover()
            for _ in range(3):
                with pytest.raises(VenueRateLimited):
                    await made[0].get("user0")
            assert len(venue.requests) == 1

    async def test_nothing_in_redis_names_a_user_or_an_api_key(self, tmp_path: Path, redis_url: str) -> None:
        limits = RateLimit("address", 30, 60), RateLimit("key", 30, 60)
        prefix = f"test-{random.getrandbits(64):x}:"
        async with Answering() as venue, replicas(tmp_path, venue, redis_url, *limits, prefix=prefix) as made:
            venue.fail(Fault.rate_limited("7"))
            with pytest.raises(VenueRateLimited):
                await made[0].get("user0")
            async with redis_client.Redis.from_url(redis_url) as redis:
                names = [name async for name in redis.scan_iter(f"{prefix}*")]
                assert len(names) >= 3
                for name in names:
                    assert b"user0" not in name
                    assert b"key0" not in name


class TestCountsInRedis:
    """What replicas have taken of a limit of 20 a minute."""

    async def test_permits_whose_answers_were_lost_use_nothing_up(
        self, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        update, lost = SealedRedis.update, True

        async def late(self: SealedRedis, *arguments: Any, **options: Any) -> bytes:
            head = await update(self, *arguments, **options)
            if lost:
                raise NoAnswer("TimeoutError")
            return head

        async with states(redis_url) as (one, other, _):
            assert await one.take("v", 20, 60, 1) == 0
            monkeypatch.setattr(SealedRedis, "update", late)
            for _ in range(10):
                assert await one.take("v", 20, 60, 4) is None
            lost = False
            # Redis counts the last four still, in the place of those before.
            assert await other.take("v", 20, 60, 15) == 0
            assert await other.take("v", 20, 60, 1) != 0
            assert await one.take("v", 20, 60, 4) == 0
            assert await one.take("v", 20, 60, 1) != 0

    async def test_a_replica_tells_a_redis_that_has_lost_its_data_what_it_has_taken(
        self, redis_server: RedisServer
    ) -> None:
        async with states(redis_server.url) as (one, other, client):
            assert await one.take("v", 20, 60, 10) == 0
            await client.flushall()
            assert await one.take("v", 20, 60, 1) == 0
            assert await other.take("v", 20, 60, 10) != 0
            assert await other.take("v", 20, 60, 9) == 0

    async def test_permits_that_were_reserved_and_not_used_are_given_back(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock, counts = OffsetClock(monkeypatch), CountsInMemory()
        limiter = RateLimiter("v", RateLimit("address", 100, 60), counts, replicas=2)
        waits = []
        for _ in range(17):
            # The fourth of them reserves a batch, of which it uses one.
            waits += [await limiter.acquire(False, "alice", 1) for _ in range(4)]
            clock.advance(3.1)
        assert waits == [0.0] * 68
        # All that is reserved is what was used, and the last batch.
        assert counts.used() <= 68 + 3

    async def test_permits_that_are_too_few_for_a_dear_balance_serve_a_cheap_one(self) -> None:
        counts = CountsInMemory()
        limiter = RateLimiter("v", RateLimit("address", 400, 60), counts, replicas=2)
        taken = 0
        for cost in (1, 7, 1, 7, 7, 1, 1, 7, 1):
            assert await limiter.acquire(False, "alice", cost) == 0.0
            taken += cost
        # Redis counts what was taken, and the permits that this process holds: at most a batch of each kind.
        assert taken <= counts.used() <= taken + 400 // 20
        held = counts.used() - taken
        for _ in range(held):
            assert limiter.acquire_local(False, asyncio.get_running_loop().time(), 1)
        assert not limiter.acquire_local(False, asyncio.get_running_loop().time(), 1)

    @pytest.mark.parametrize("seed", range(30))
    async def test_two_replicas_let_nothing_but_reserved_permits_through_where_reported_costs_leave_no_room(
        self, seed: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock, counts, chance = OffsetClock(monkeypatch), CountsInMemory(), random.Random(seed)
        limiters = [RateLimiter("v", RateLimit("address", 100, 600, cost=2), counts, replicas=2) for _ in range(2)]
        used = beyond = 0
        for _ in range(60):
            # All within one window.
            clock.advance(chance.uniform(0, 5))
            limiter, cost = chance.choice(limiters), chance.choice([2, 2, 2, 3, 9, 40])
            if await limiter.acquire(False, "alice", 2) == 0.0:
                beyond += used + 2 > 100
                limiter.charge(cost - 2, "alice", asyncio.get_running_loop().time())
                await limiter.settle()
                used += cost
                # What is counted and not used is what both hold in reserve.
                assert used <= counts.used() <= used + 2 * 100 // 20
        # What the other one held in reserve when the limit was exceeded: a twentieth of it.
        assert beyond <= 100 // 20 // 2
        assert used > 90
        clock.advance(1300)
        assert await limiters[0].acquire(False, "alice", 2) == 0.0

    async def test_a_cost_that_redis_did_not_hear_of_is_told_when_it_answers(self) -> None:
        counts = CountsInMemory()
        limiter = RateLimiter("v", RateLimit("address", 40, 600), counts, replicas=1)
        assert await limiter.acquire(False, "alice", 1) == 0.0
        counts.away = True
        limiter.charge(20, "alice", asyncio.get_running_loop().time())
        await limiter.settle()
        counts.away = False
        assert await limiter.acquire(False, "alice", 1) == 0.0
        assert counts.used() >= 22

    async def test_a_cost_that_was_reported_late_holds_on_every_replica(self, redis_url: str) -> None:
        async with states(redis_url) as (one, other, client):
            assert await one.take("v", 20, 60, 4) == 0
            # The call of the first one has used all that was left, and more.
            assert await one.charge("v", 60, 30)
            for state in (one, other):
                wait = await state.take("v", 20, 60, 1)
                assert wait is not None
                assert 60 < wait <= 120
            await client.flushall()
            assert await one.take("v", 20, 60, 1) != 0, "it knows what it has used"

    async def test_what_was_used_long_ago_without_redis_is_not_counted_when_redis_is_back(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock, counts = OffsetClock(monkeypatch), CountsInMemory()
        limiter = RateLimiter("v", RateLimit("address", 20, 60), counts, replicas=2)
        counts.away = True
        for _ in range(10):
            # Four a minute for ten minutes.
            for _ in range(4):
                assert await limiter.acquire(False, "alice", 1) == 0.0
            clock.advance(61)
        clock.advance(-30)
        counts.away = False
        assert await limiter.acquire(False, "alice", 1) == 0.0
        assert counts.used() <= 6

    async def test_what_was_taken_by_a_clock_that_redis_no_longer_has_counts_no_more(
        self, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now, ahead = SealedRedis._now, 3600.0

        async def wrong(self: SealedRedis) -> float:
            return await now(self) + ahead

        monkeypatch.setattr(SealedRedis, "_now", wrong)
        async with states(redis_url) as (one, _, client):
            for _ in range(3):
                assert await one.take("v", 20, 60, 5) == 0
            # Another server takes over, whose clock is an hour behind and which has nothing.
            ahead = 0.0
            await client.flushall()
            assert await one.take("v", 20, 60, 5) == 0
            assert await one.take("v", 20, 60, 10) == 0

    def test_a_redis_that_loses_its_data_again_and_again_uses_nothing_up(self) -> None:
        now, known = 1000.0, dict[bytes, Window]()
        for number in range(200):
            now += 0.1
            me = REPLICA if number % 2 else b"other   "
            shared = SharedWindow(1, now)
            shared.put(me, known.get(me), now)
            assert shared.wait(1, 20, now) == 0.0
            known[me] = shared.add(me, 1)

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.floats(0, 90), st.integers(0, 5), st.booleans()), max_size=20))
    def test_two_replicas_count_as_one_would(self, takes: list[tuple[float, int, bool]]) -> None:
        now, alone, packed = 1000.0, Window(60), b""
        known: dict[bytes, Window] = {}
        for pause, count, first in takes:
            now += pause
            me = b"one     " if first else b"other   "
            shared = SharedWindow.unpack(60, packed, now) if packed else SharedWindow(60, now)
            shared.put(me, known.get(me), now)
            assert shared.wait(1, 20, now) == pytest.approx(alone.wait(1, 20, now))
            known[me] = shared.add(me, count)
            alone.add(count, now)
            packed = shared.pack()


@asynccontextmanager
async def states(url: str) -> AsyncIterator[tuple[RedisSharedState, RedisSharedState, redis_client.Redis]]:
    """What two replicas share, and a plain client."""
    prefix = f"test-{random.getrandbits(64):x}:"
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(2):
            link = RedisLink(url)
            stack.push_async_callback(link.close)
            made.append(RedisSharedState(SealedRedis(link, KEY, prefix=prefix)))
        client = await stack.enter_async_context(redis_client.Redis.from_url(url))
        yield made[0], made[1], client


async def test_a_limit_by_key_counts_each_key_apart_on_all_replicas(tmp_path: Path, redis_url: str) -> None:
    limit = RateLimit("key", 6, 60)
    async with Answering() as venue, replicas(tmp_path, venue, redis_url, limit, users=2) as made:
        for _ in range(5):
            await every(made, 2, users=2)
        assert len(venue.requests) == 12


def test_every_listing_of_our_plugins_declares_rate_limits() -> None:
    from exchange_service.plugin_host.discovery import open_registry
    from tests.harness import settings_for

    registry = open_registry(settings_for(Path("unused")))
    without = [name for name, entry in registry.listings.items() if not entry.metadata.limits]
    assert without == []
    views = registry.listings["tradier"].metadata, registry.listings["tradier_options"].metadata
    assert views[0].venue == views[1].venue == "tradier"
    assert views[0].limits == views[1].limits
