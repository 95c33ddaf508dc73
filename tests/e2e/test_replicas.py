"""Several replicas on one Redis: one asks the venue, and all of them get its answer."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis_client

from exchange_service.balances.leases import LEASE
from exchange_service.cache import redis as redis_cache
from exchange_service.cache import redis_link
from exchange_service.cache.sealed_redis import SealedRedis
from exchange_service.credentials import credential_id
from exchange_service.errors import CredentialMissing, VenueUnavailable
from exchange_service.model import Account
from exchange_service.v1 import balance_pb2
from exchange_service.v1.exchange_service_pb2 import AccountSelector
from tests.harness import (
    Gate,
    Running,
    ScriptedPlugin,
    Stream,
    holding,
    raising,
    registry_of,
    returning,
    serving,
    streaming,
    totals,
    until,
)
from tests.servers import RedisServer

FAKEX = AccountSelector(exchange_id="fakex")


class Counting(ScriptedPlugin):
    """One venue for all replicas: each answer holds one more than the one before."""

    def __init__(self) -> None:
        super().__init__(answer=self.next)
        self.count = 0

    async def next(self, _: Any) -> Any:
        self.count += 1
        return holding(("BTC", str(self.count)))


@pytest.fixture
def plugin() -> Counting:
    return Counting()


@asynccontextmanager
async def replicas(
    number: int, folder: Path, url: str, plugin: ScriptedPlugin, **changes: Any
) -> AsyncIterator[list[Running]]:
    shared = {"cache_url": url, "cache_prefix": f"{folder.name}:", "hash_key": "0123456789abcdef"}
    async with AsyncExitStack() as stack:
        started = [
            await stack.enter_async_context(serving(folder, registry=registry_of(plugin), **(shared | changes)))
            for _ in range(number)
        ]
        for running in started:
            await until(lambda one=running: is_subscribed(one), "a replica's subscription")
        yield started


def is_subscribed(running: Running) -> bool:
    cache: Any = running.service.cache
    return bool(cache.subscribed)


def waiting_calls(several: list[Running]) -> int:
    """How many calls wait for a fetch, over all replicas."""
    return sum(running.service.balances.fetcher.snapshot()[1] for running in several)


async def key_of(running: Running) -> str:
    """The cache's key of alice's balance at fakex."""
    account = Account("alice", "fakex")
    reference = await running.service.store.find(account)
    assert reference is not None
    return running.service.balances.keys.key(account, reference)


async def next_total(stream: Stream) -> str:
    event = await stream.next_of("balance")
    total: str = event.balance.venue_accounts[0].assets[0].total
    return total


def late_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each replica's first lease be taken in Redis, and the answer come too late."""
    update, late = SealedRedis.update, set()

    async def answer_late(self: SealedRedis, key: str, *arguments: Any, **options: Any) -> bytes:
        head = await update(self, key, *arguments, **options)
        if key.startswith("lease:") and self not in late:
            late.add(self)
            raise redis_link.NoAnswer("TimeoutError")
        return head

    monkeypatch.setattr(SealedRedis, "update", answer_late)


class TestOneAsks:
    @pytest.mark.parametrize("late", [False, True])
    async def test_many_callers_at_every_replica_cost_the_venue_one_request(
        self, tmp_path: Path, redis_url: str, plugin: Counting, late: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plugin.answer = gate = Gate()
        if late:
            # As where a crowd holds the event loop for longer than Redis may take.
            late_leases(monkeypatch)
        async with replicas(3, tmp_path, redis_url, plugin) as several:
            await several[0].store()
            calls = [
                asyncio.ensure_future(running.client.get_balance("alice", "fakex"))
                for running in several
                for _ in range(30)
            ]
            await gate.entered.wait()
            await until(lambda: waiting_calls(several) == 90, "all calls, here or at another replica")
            gate.opened.set()
            replies = await asyncio.gather(*calls)
            assert len(plugin.calls) == 1
            assert len({reply.balance.version for reply in replies}) == 1

    async def test_the_venues_error_reaches_the_callers_of_every_replica(
        self, tmp_path: Path, redis_url: str, plugin: Counting
    ) -> None:
        async with replicas(3, tmp_path, redis_url, plugin) as several:
            await several[0].store()
            entered, opened = asyncio.Event(), asyncio.Event()

            async def down(_: Any) -> Any:
                entered.set()
                await opened.wait()
                raise VenueUnavailable("Fakex is down.")

            plugin.answer = down
            calls = [asyncio.ensure_future(running.client.get_balance("alice", "fakex")) for running in several]
            await entered.wait()
            await until(lambda: waiting_calls(several) == 3, "a call at each replica")
            opened.set()
            for call in calls:
                with pytest.raises(VenueUnavailable, match="Fakex"):
                    await call
            assert len({id(call.account) for call in plugin.calls}) == len(plugin.calls)

    async def test_a_replica_that_dies_during_a_fetch_is_replaced_within_the_lease(
        self, tmp_path: Path, redis_url: str, plugin: Counting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("exchange_service.balances.leases.LEASE", 1.0)
        async with replicas(2, tmp_path, redis_url, plugin) as (first, second):
            await first.store()
            # Taken, and never released.
            assert await first.service.balances.cached.lease(await key_of(first), 1.0) is not None
            began = time.monotonic()
            await second.client.get_balance("alice", "fakex")
            assert 0.5 < time.monotonic() - began < 3


class TestFeeds:
    async def test_streams_at_every_replica_cost_one_request_for_each_interval(
        self, tmp_path: Path, redis_url: str, plugin: Counting
    ) -> None:
        async with replicas(3, tmp_path, redis_url, plugin, poll_interval=0.4) as several:
            await several[0].store()
            async with AsyncExitStack() as stack:
                streams = [await stack.enter_async_context(streaming(running, FAKEX)) for running in several]
                first = [await next_total(stream) for stream in streams]
                assert set(first) == {"1"}
                began = time.monotonic()
                for wanted in range(2, 8):
                    # Every replica sees every state, so the venue was not asked in between.
                    assert {await next_total(stream) for stream in streams} == {str(wanted)}
                assert plugin.count == 7
                assert time.monotonic() - began > 5 * 0.4 * 0.8

    async def test_when_the_replica_that_polls_is_gone_another_takes_over(
        self, tmp_path: Path, redis_url: str, plugin: Counting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("exchange_service.streams.polling.LEASE", 0.5)
        async with replicas(2, tmp_path, redis_url, plugin, poll_interval=0.3) as (first, second):
            await first.store()
            async with streaming(second, FAKEX) as stays:
                async with streaming(first, FAKEX) as goes:
                    await next_total(goes)
                    last = int(await next_total(stays))
                await until(lambda: not first.service.streams.counts()[0], "the end of the first one's feed")
                for _ in range(3):
                    now = int(await next_total(stays))
                    assert now > last
                    last = now

    async def test_a_lost_invalidation_costs_only_time(
        self, tmp_path: Path, redis_url: str, plugin: Counting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("exchange_service.streams.polling.LEASE", 0.3)

        async def lose(*_: Any) -> None:
            """The invalidation is lost."""

        async with replicas(2, tmp_path, redis_url, plugin, poll_interval=0.3) as several:
            await several[0].store()
            monkeypatch.setattr(redis_cache.RedisCache, "publish", lose)
            async with streaming(several[0], FAKEX) as one, streaming(several[1], FAKEX) as other:
                for stream in (one, other):
                    seen = [int(await next_total(stream)) for _ in range(3)]
                    assert seen == sorted(set(seen))

    async def test_a_replica_that_hears_nothing_looks_at_the_cache_every_second(
        self, tmp_path: Path, redis_server: RedisServer, plugin: Counting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(redis_cache, "_RESUBSCRIBE_PAUSES", (60.0, 60.0))
        async with (
            replicas(2, tmp_path, redis_server.url, plugin) as (first, second),
            redis_client.Redis.from_url(redis_server.url) as client,
        ):
            await first.store()
            for running in (first, second):
                await running.client.get_balance("alice", "fakex")
            await client.client_kill_filter(_type="pubsub")
            await until(lambda: not is_subscribed(second), "the loss of the subscription")
            await first.client.get_balance("alice", "fakex", max_age=0)

            async def sees() -> bool:
                return totals((await second.client.get_balance("alice", "fakex")).balance) == {"BTC": "2"}

            await eventually_soon(sees)
            assert plugin.count == 2

    async def test_without_redis_each_replica_polls_for_itself(
        self, tmp_path: Path, redis_server: RedisServer, plugin: Counting
    ) -> None:
        async with replicas(2, tmp_path, redis_server.url, plugin, poll_interval=0.3) as several:
            await several[0].store()
            async with streaming(several[0], FAKEX) as one, streaming(several[1], FAKEX) as other:
                await next_total(one)
                await next_total(other)
                redis_server.kill()
                for stream in (one, other):
                    seen = [int(await next_total(stream)) for _ in range(3)]
                    assert seen == sorted(set(seen))


class TestCredential:
    async def test_a_changed_credential_is_used_by_every_replica_at_once(
        self, tmp_path: Path, redis_url: str, plugin: Counting
    ) -> None:
        async with replicas(2, tmp_path, redis_url, plugin) as (first, second):
            await first.store(api_key="the-first-key")
            for running in (first, second):
                await running.client.get_balance("alice", "fakex")
            await first.store(api_key="the-second-key")
            await first.service.balances.publish_credential_change(Account("alice", "fakex"))
            plugin.answer = returning(holding(("ETH", "1")))
            for running in (first, second):

                async def sees(one: Running = running) -> bool:
                    reply = await one.client.get_balance("alice", "fakex")
                    return bool(reply.balance.venue_accounts[0].assets[0].asset == "ETH")

                await eventually_soon(sees)

    async def test_a_removed_credential_is_gone_from_every_replica_at_once(
        self, tmp_path: Path, redis_url: str, plugin: Counting
    ) -> None:
        async with replicas(2, tmp_path, redis_url, plugin) as (first, second):
            await first.store()
            for running in (first, second):
                await running.client.get_balance("alice", "fakex")
            await first.remove()
            await first.service.balances.publish_credential_change(Account("alice", "fakex"))
            for running in (first, second):

                async def gone(one: Running = running) -> bool:
                    try:
                        await one.client.get_balance("alice", "fakex")
                    except CredentialMissing:
                        return True
                    return False

                await eventually_soon(gone)


async def eventually_soon(check: Any) -> None:
    """Wait until `check` is true, for a shorter time than a reference is remembered."""
    limit = time.monotonic() + 5
    while not await check():
        assert time.monotonic() < limit
        await asyncio.sleep(0.02)


def test_the_lease_is_shorter_than_a_call_may_take() -> None:
    assert LEASE < 8.0


async def test_the_command_that_stores_a_credential_notifies_the_replicas(
    tmp_path: Path, redis_url: str, plugin: Counting
) -> None:
    async with replicas(1, tmp_path, redis_url, plugin) as (running,):
        changed: list[bytes] = []
        running.service.balances.cached.on_credential = changed.append
        variables = {
            "EXCHANGE_SERVICE_CACHE_URL": redis_url,
            "EXCHANGE_SERVICE_CACHE_PREFIX": f"{tmp_path.name}:",
            "EXCHANGE_SERVICE_HASH_KEY": "0123456789abcdef",
            "EXCHANGE_SERVICE_DATABASE_URL": f"sqlite:///{tmp_path / 'credentials.db'}",
        }
        arguments = ("credentials", "add", "--user", "alice", "--exchange", "oanda", "--stdin", "--replace")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "exchange_service", *arguments),
            env={**os.environ, **variables},
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        _, errors = await process.communicate(b'{"api_key": "a-token-for-tests"}')
        assert process.returncode == 0, errors.decode()
        await until(lambda: changed, "the notification")
        assert changed[0] == credential_id(b"0123456789abcdef", Account("alice", "oanda"))


class TestLeases:
    """A replica that holds the lease and dies or gives up delays the others as little as possible."""

    async def test_one_of_the_replicas_that_wait_for_a_dead_holder_asks_the_venue(
        self, tmp_path: Path, redis_url: str, plugin: Counting
    ) -> None:
        async with replicas(3, tmp_path, redis_url, plugin) as several:
            await several[0].store()
            # Taken by another replica, and never released.
            cache: Any = several[0].service.cache
            holder = redis_cache.RedisCache(cache._sealed)
            assert await holder.lease(f"lease:{await key_of(several[0])}", 1.0) is not None
            calls = [running.client.get_balance("alice", "fakex") for running in several for _ in range(5)]
            replies = await asyncio.gather(*calls)
            assert plugin.count == 1
            assert len({reply.balance.version for reply in replies}) == 1

    async def test_a_venue_that_takes_longer_than_the_lease_is_asked_once(
        self, tmp_path: Path, redis_url: str, plugin: Counting, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("exchange_service.balances.leases.LEASE", 0.5)

        async def slow(call: Any) -> Any:
            # The lease expires by Redis's clock, which no test can move.
            await asyncio.sleep(1.5)
            return await plugin.next(call)

        plugin.answer = slow
        async with replicas(3, tmp_path, redis_url, plugin) as several:
            await several[0].store()
            await asyncio.gather(*(running.client.get_balance("alice", "fakex") for running in several))
            assert plugin.count == 1

    async def test_a_caller_that_gives_up_releases_the_lease_to_the_next_replica(
        self, tmp_path: Path, redis_url: str, plugin: Counting
    ) -> None:
        plugin.answer = gate = Gate()
        async with replicas(2, tmp_path, redis_url, plugin) as (first, second):
            await first.store()
            abandoned = asyncio.ensure_future(first.client.get_balance("alice", "fakex"))
            await gate.entered.wait()
            waits = asyncio.ensure_future(second.client.get_balance("alice", "fakex"))
            plugin.answer = plugin.next
            abandoned.cancel()
            began = time.monotonic()
            assert (await waits).balance.venue_accounts
            assert time.monotonic() - began < 2

    async def test_a_forced_call_never_gets_an_earlier_balance(
        self, tmp_path: Path, redis_url: str, plugin: Counting
    ) -> None:
        async with replicas(2, tmp_path, redis_url, plugin) as (first, second):
            await first.store()
            for wanted in range(1, 7):
                running = (first, second)[wanted % 2]
                reply = await running.client.get_balance("alice", "fakex", max_age=0)
                assert reply.balance.venue_accounts[0].assets[0].total == str(wanted)


class TestVersions:
    async def test_an_older_balance_in_the_cache_is_not_sent_to_a_stream(
        self, tmp_path: Path, redis_url: str, plugin: Counting
    ) -> None:
        async with replicas(2, tmp_path, redis_url, plugin, poll_interval=0.2) as (running, other):
            await running.store()
            cache = running.service.cache
            async with streaming(running, FAKEX) as stream:
                first = (await stream.next_of("balance")).balance
                key = await key_of(running)
                old = await cache.get(key)
                versions = [first.version]
                for _ in range(3):
                    versions.append((await stream.next_of("balance")).balance.version)
                    # A replica whose lease was over writes what it still had.
                    assert old is not None
                    await cache.set(key, old, 100)
                    await other.service.balances.cached.publish_abandoned(key)
                assert versions == sorted(versions)


async def test_the_last_good_balance_outlives_a_redis_that_restarts_empty_while_the_venue_is_down(
    tmp_path: Path, redis_server: RedisServer, plugin: Counting
) -> None:
    async with replicas(2, tmp_path, redis_server.url, plugin, max_age=0.2) as several:
        await several[0].store()
        for running in several:
            await running.client.get_balance("alice", "fakex")
        plugin.answer = raising(VenueUnavailable("Fakex is down."))
        redis_server.kill()
        redis_server.start()
        for running in several:
            cache: Any = running.service.cache
            await until(lambda one=cache: one.shared and one.subscribed, "the recovery")
            reply = await running.client.get_balance("alice", "fakex", max_age=0.0001)
            assert reply.freshness.source == balance_pb2.BALANCE_SOURCE_LAST_GOOD
            assert reply.balance.venue_accounts[0].assets[0].total == "1"


class TestFrozenRedis:
    """Each replica keeps balances for itself, and a caller may have a newer one of another replica."""

    async def test_a_call_with_a_known_version_gets_no_older_balance_from_another_replica(
        self, tmp_path: Path, redis_server: RedisServer, plugin: Counting
    ) -> None:
        async with replicas(2, tmp_path, redis_server.url, plugin) as (first, second):
            await first.store()
            for running in (first, second):
                await running.client.get_balance("alice", "fakex")
            redis_server.freeze()
            newer = (await first.client.get_balance("alice", "fakex", max_age=0)).balance.version
            # Without a word the other one gives what it has.
            assert (await second.client.get_balance("alice", "fakex")).balance.version < newer
            plugin.answer = raising(VenueUnavailable("Fakex is down."))
            with pytest.raises(VenueUnavailable):
                await second.client.get_balance("alice", "fakex", known_version=newer)
            plugin.answer = plugin.next
            last = {id(first): newer, id(second): newer}

            async def goes_on(running: Running, **changes: Any) -> None:
                reply = await running.client.get_balance("alice", "fakex", **changes)
                assert reply.balance.version >= last[id(running)]
                last[id(running)] = reply.balance.version

            await goes_on(second, known_version=newer)
            assert last[id(second)] > newer
            # Nor do the versions of one replica go back when Redis is there again, with an older balance.
            for running in (first, second):
                await goes_on(running, max_age=0)
            redis_server.thaw()
            await until(lambda: first.service.cache.shared and second.service.cache.shared, "Redis")
            for _ in range(3):
                for running in (second, first):
                    await goes_on(running)
                    await goes_on(running, max_age=0)

    async def test_a_stream_that_resumes_at_another_replica_goes_on_from_what_it_has(
        self, tmp_path: Path, redis_server: RedisServer, plugin: Counting
    ) -> None:
        # No feed reads by itself within the test.
        settings = {"poll_interval": 300.0, "poll_interval_still": 300.0, "heartbeat_interval": 0.3}
        async with replicas(2, tmp_path, redis_server.url, plugin, **settings) as (first, second):
            await first.store()
            async with streaming(second, FAKEX) as stays:
                older = (await stays.next_of("balance")).balance.version
                redis_server.freeze()
                newer = (await first.client.get_balance("alice", "fakex", max_age=0)).balance.version
                assert newer > older
                plugin.answer = gate = Gate(holding(("BTC", "9")))
                resumed = AccountSelector(exchange_id="fakex", known_version=newer)
                async with streaming(second, resumed) as stream:
                    for _ in range(2):
                        (state,) = (await stream.next_of("heartbeat")).accounts
                        assert (state.version, state.catching_up) == (newer, True)
                    await gate.entered.wait()
                    gate.opened.set()
                    event = await stream.next()
                    while event.HasField("heartbeat"):
                        event = await stream.next()
                    assert event.balance.balance.version > newer
                    assert (await stays.next_of("balance")).balance == event.balance.balance
                    (state,) = (await stream.next_of("heartbeat")).accounts
                    assert (state.version, state.catching_up) == (event.balance.balance.version, False)


async def test_an_error_that_a_retry_repairs_reaches_no_replica(
    tmp_path: Path, redis_url: str, plugin: Counting
) -> None:
    entered, opened, fetches = asyncio.Event(), asyncio.Event(), 0

    async def stumbling(call: Any) -> Any:
        nonlocal fetches
        fetches += 1
        entered.set()
        await opened.wait()
        if fetches == 1:
            raise VenueUnavailable("Fakex stumbled.")
        return await plugin.next(call)

    plugin.answer = stumbling
    async with replicas(2, tmp_path, redis_url, plugin) as several:
        await several[0].store()
        calls = [asyncio.ensure_future(running.client.get_balance("alice", "fakex")) for running in several]
        await entered.wait()
        await until(lambda: waiting_calls(several) == 2, "a call at each replica")
        opened.set()
        replies = await asyncio.gather(*calls)
        assert len({reply.balance.version for reply in replies}) == 1
        assert fetches == 2


async def test_a_replica_has_one_link_to_redis_and_closes_it(
    tmp_path: Path, redis_url: str, plugin: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, closed = [], []

    class RecordedLink(redis_link.RedisLink):
        def __init__(self, url: str) -> None:
            super().__init__(url)
            opened.append(self)

        async def close(self) -> None:
            await super().close()
            closed.append(self)

    monkeypatch.setattr(redis_link, "RedisLink", RecordedLink)
    # With authenticated callers the quotas are shared as well.
    async with replicas(1, tmp_path, redis_url, plugin, service_tokens=True):
        assert len(opened) == 1
        assert not closed
    assert closed == opened
