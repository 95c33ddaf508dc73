"""Attacks by somebody who may write to the Redis: each first succeeds with the mitigation switched off, then fails."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import secrets
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis_client

from exchange_service.cache import redis_link
from exchange_service.cache.redis import RedisCache
from exchange_service.cache.sealed_redis import Conflict, Decide, SealedRedis
from exchange_service.cache.sealing import HEAD, CacheSeal, Opened
from exchange_service.credentials import credential_id
from exchange_service.errors import ServiceError, VenueRateLimited, VenueTimeout, VenueUnavailable
from exchange_service.gc_tuning import tune_gc
from exchange_service.model import Account
from exchange_service.plugin_api import RateLimit, VenueCall
from exchange_service.streams.polling import Polling, Read
from exchange_service.v1 import balance_pb2
from exchange_service.venue_gate.rate_limits import RateLimiter
from exchange_service.venue_gate.redis_state import RedisSharedState
from exchange_service.venue_gate.shared_window import REPLICA_LENGTH, SharedWindow
from exchange_service.wire.balances import fetched_balance
from exchange_service.wire.replies import Source
from exchange_service.wire.stored import StoredBalance, StoredBounds, store_balance
from tests.conftest import CANARY
from tests.harness import (
    HASH_KEY,
    Gate,
    Running,
    ScriptedPlugin,
    holding,
    listing,
    open_test_service,
    registry_of,
    serving,
    streaming,
    totals,
    until,
)
from tests.servers import RedisServer

# For how long the forger writes. The whole minute of the acceptance takes EXCHANGE_SERVICE_FORGED_SECONDS=60.
FORGED_SECONDS = float(os.environ.get("EXCHANGE_SERVICE_FORGED_SECONDS", "3"))
ALICE = Account("alice", "fakex")
_END = struct.Struct(">d")


class Unsealed:
    """The values as they would be without a seal: everybody can read and write them."""

    fingerprint = "plain"

    def __init__(self, hash_key: bytes = b"") -> None:
        """No key is needed."""

    def seal(self, name: str, payload: bytes, now: float, seconds: float) -> bytes:
        return secrets.token_bytes(HEAD) + _END.pack(now + seconds) + payload

    def open(self, name: str, sealed: bytes, now: float) -> Opened | None:
        if len(sealed) < HEAD + _END.size:
            return None
        return Opened(sealed[HEAD + _END.size :], max(0.0, _END.unpack_from(sealed, HEAD)[0] - now))


class Neighbour:
    """Another program that may read and write the Redis, but has no hash key."""

    def __init__(self, client: redis_client.Redis, seal: Any) -> None:
        self.client = client
        self._seal = seal

    async def names(self, part: str) -> list[str]:
        return [name.decode() async for name in self.client.scan_iter(f"*{part}*")]

    async def forge(self, name: str, payload: bytes, seconds: float = 300.0) -> None:
        """Write what would be a value of ours if nothing were sealed; it never ends by itself."""
        await self.client.set(name, self._seal.seal(name, payload, time.time(), seconds))

    async def forge_message(self, message: bytes) -> None:
        for channel in await self.client.pubsub_channels():
            await self.client.publish(channel, self._seal.seal(channel.decode(), b"12345678" + message, time.time(), 9))


def forged(total: str, **changes: Any) -> StoredBalance:
    """A balance of alice's that no venue has given."""
    stored = store_balance(
        ALICE, fetched_balance(holding(("BTC", total))), changes.pop("fetch_time", time.time()), None
    )
    if "version" in changes:
        message = balance_pb2.Balance.FromString(stored.data)
        message.version = changes["version"]
        stored = replace(stored, data=message.SerializeToString())
    return replace(stored, **changes)


@asynccontextmanager
async def attacked(
    folder: Path, server: RedisServer, plugin: ScriptedPlugin, seal: Any, **changes: Any
) -> AsyncIterator[tuple[Running, Neighbour]]:
    """A service whose values are sealed by `seal`, and a neighbour who forges such values with a key of its own."""
    settings: dict[str, Any] = {"cache_url": server.url, "hash_key": "the hash key of the replicas"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exchange_service.cache.sealed_redis.CacheSeal", seal)
        async with (
            redis_client.Redis.from_url(server.url) as client,
            serving(folder, registry=registry_of(plugin), **(settings | changes)) as running,
        ):
            await client.flushall()
            cache: Any = running.service.cache
            await until(lambda: cache.subscribed, "the subscription")
            await running.store(user="alice")
            yield running, Neighbour(client, seal(b"a key of the neighbour's"))


def sealed_name(running: Running, key: str) -> str:
    cache: Any = running.service.cache
    return str(cache._sealed.name(key))


async def balance_key(running: Running, account: Account = ALICE) -> str:
    reference = await running.service.store.find(account)
    assert reference is not None
    return running.service.balances.keys.key(account, reference)


@pytest.mark.threat("T40", attack=True)
class TestForgedBalances:
    async def test_whoever_writes_to_redis_shows_any_balance_unless_values_are_sealed(
        self, tmp_path: Path, redis_server: RedisServer
    ) -> None:
        for seal, seen in ((Unsealed, "999"), (CacheSeal, "1.50")):
            async with attacked(tmp_path, redis_server, ScriptedPlugin(), seal) as (running, neighbour):
                name = sealed_name(running, await balance_key(running))
                await neighbour.forge(name, forged("999").encode())
                reply = await running.client.get_balance("alice", "fakex")
                assert totals(reply.balance) == {"BTC": seen}

    async def test_a_flipped_bit_makes_a_false_balance_unless_values_are_sealed(
        self, tmp_path: Path, redis_server: RedisServer
    ) -> None:
        chance = random.Random(7)
        for seal in (Unsealed, CacheSeal):
            async with attacked(tmp_path, redis_server, ScriptedPlugin(), seal) as (running, neighbour):
                await running.client.get_balance("alice", "fakex")
                key = await balance_key(running)
                name, false = sealed_name(running, key), 0
                good = await neighbour.client.get(name)
                for _ in range(200):
                    flipped = bytearray(good)
                    flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
                    await neighbour.client.set(name, bytes(flipped))
                    running.service.balances.cached.drop_local(key)
                    reply = await running.client.get_balance("alice", "fakex")
                    false += totals(reply.balance) != {"BTC": "1.50"}
                assert bool(false) == (seal is Unsealed)

    async def test_whoever_reads_redis_sees_amounts_and_users_unless_values_are_sealed(
        self, tmp_path: Path, redis_server: RedisServer
    ) -> None:
        for seal in (Unsealed, CacheSeal):
            async with attacked(tmp_path, redis_server, ScriptedPlugin(), seal) as (running, neighbour):
                await running.client.get_balance("alice", "fakex")
                names = [name for name in await neighbour.names("") if not name.endswith("doctor")]
                values = b"".join([await neighbour.client.get(name) or b"" for name in names])
                assert values
                assert [word in values for word in (b"alice", b"1.50", b"BTC")] == [seal is Unsealed] * 3

    async def test_a_version_that_is_years_ahead_stays_for_good_unless_it_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The bounds hold behind the seal too: a replica with a broken clock seals what it writes."""
        for believed in (True, False):
            with monkeypatch.context() as patch:
                if believed:
                    patch.setattr(StoredBounds, "allow", lambda *_: True)
                async with open_test_service(tmp_path, ScriptedPlugin()) as service:
                    await service.put()
                    key = (await service.get()).key
                    ahead = forged("999", version=2**62, fetch_time=service.clock.now)
                    await service.cache.set(key, ahead.encode(), 300)
                    service.balances.cached.drop_local(key)
                    service.clock.now += 1
                    fetched = await service.get(max_age=0)
                    assert (fetched.stored.version > 2**62) == believed
                    assert figures(fetched) == {"BTC": "1.50"}

    async def test_a_fetch_time_in_the_future_is_fresh_for_ever_unless_it_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        year_2096 = 3_976_000_000.0
        for believed in (True, False):
            with monkeypatch.context() as patch:
                if believed:
                    patch.setattr("exchange_service.balances.freshness.CLOCK_TOLERANCE", float("inf"))
                async with open_test_service(tmp_path, ScriptedPlugin()) as service:
                    await service.put()
                    key = (await service.get()).key
                    ahead = forged("999", version=int(service.clock.now * 1e6), fetch_time=year_2096)
                    await service.cache.set(key, ahead.encode(), 300)
                    for _ in range(3):
                        service.balances.cached.drop_local(key)
                        result = await service.get()
                        assert figures(result) == {"BTC": "999" if believed else "1.50"}
                        assert (result.source is Source.CACHE) == (believed or result.age > 0)
                        service.clock.now += 31

    async def test_a_pause_of_a_day_stops_the_polls_unless_it_is_refused(
        self, tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also with the seal broken."""
        for believed in (True, False):
            with monkeypatch.context() as patch:
                if believed:
                    patch.setattr(StoredBounds, "allow", lambda *_: True)
                plugin = ScriptedPlugin()
                intervals = {"poll_interval": 0.2, "poll_interval_still": 0.3}
                async with attacked(tmp_path, redis_server, plugin, Unsealed, **intervals) as (running, neighbour):
                    name = sealed_name(running, await balance_key(running))
                    await neighbour.forge(name, forged("999", pause=86_400.0).encode())
                    async with streaming(running, "fakex") as stream:
                        first = await stream.next_of("balance")
                        assert totals(first.balance) == {"BTC": "999" if believed else "1.50"}
                        if believed:
                            await asyncio.sleep(1)
                            assert plugin.calls == []
                        else:
                            await until(lambda one=plugin: len(one.calls) >= 3, "the polls")

    async def test_a_stream_that_has_seen_a_version_ahead_shows_nothing_more_unless_the_next_one_is_above_it(
        self, tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A version of less than a day ahead, which the bounds allow; the neighbour breaks the seal."""
        read = Polling.read

        async def forgetful(self: Polling, account: Any, listing: Any, request: Read) -> Any:
            return await read(self, account, listing, replace(request, known_version=0))

        for told in (False, True):
            with monkeypatch.context() as patch:
                if not told:
                    patch.setattr(Polling, "read", forgetful)
                    patch.setattr("exchange_service.streams.feed._MOST_LOWER", 10**9)
                patch.setattr("exchange_service.streams.polling.LEASE", 0.2)
                plugin = ScriptedPlugin()
                intervals = {"poll_interval": 0.1, "poll_interval_still": 0.1}
                async with attacked(tmp_path, redis_server, plugin, Unsealed, **intervals) as (running, neighbour):
                    key = await balance_key(running)
                    ahead = forged("999", version=int((time.time() + 80_000) * 1e6))
                    await neighbour.forge(sealed_name(running, key), ahead.encode())
                    async with streaming(running, "fakex") as stream:
                        assert totals((await stream.next_of("balance")).balance) == {"BTC": "999"}
                        await neighbour.client.flushall()
                        running.service.balances.cached.drop_local(key)
                        calls = len(plugin.calls)
                        await until(lambda one=plugin, had=calls: len(one.calls) >= had + 5, "the polls")
                        version = running.service.streams.snapshot().feeds[ALICE].version
                        assert (version > ahead.version) == told
                        if told:
                            assert totals((await stream.next_of("balance")).balance) == {"BTC": "1.50"}


def figures(result: Any) -> dict[str, str]:
    return totals(balance_pb2.Balance.FromString(result.stored.data))


@pytest.mark.threat("T41", attack=True)
class TestShutOut:
    async def test_a_forged_cooldown_shuts_a_venue_for_all_unless_values_are_sealed(
        self, tmp_path: Path, redis_server: RedisServer
    ) -> None:
        for seal in (Unsealed, CacheSeal):
            async with attacked(tmp_path, redis_server, ScriptedPlugin(), seal) as (running, neighbour):
                await neighbour.forge(sealed_name(running, "venue:fakex production"), b"VENUE_RATE_LIMITED", 1e6)
                if seal is CacheSeal:
                    assert totals((await running.client.get_balance("alice", "fakex")).balance) == {"BTC": "1.50"}
                    continue
                with pytest.raises(VenueRateLimited) as refused:
                    await running.client.get_balance("alice", "fakex")
                # It is at most an hour even so.
                assert 3590 < (refused.value.retry_after or 0) <= 3600

    async def test_a_forged_count_uses_a_limit_up_unless_values_are_sealed(
        self, tmp_path: Path, redis_server: RedisServer
    ) -> None:
        limit = RateLimit("address", 20, 60)
        for seal in (Unsealed, CacheSeal):
            plugin = ScriptedPlugin(listing(limits=(limit,)))
            async with attacked(tmp_path, redis_server, plugin, seal) as (running, neighbour):
                await running.client.get_balance("alice", "fakex", max_age=0)
                (name,) = await neighbour.names("venue-permits:")
                used_up = SharedWindow(60, time.time() + 1e9)
                used_up.add(b"a replica"[:REPLICA_LENGTH], 20)
                await neighbour.forge(name, used_up.pack())
                # What was taken from Redis before is used up by its time.
                await asyncio.sleep(60 / 20 * 0.05)
                outcome = None
                with suppress(VenueRateLimited):
                    outcome = await running.client.get_balance("alice", "fakex", max_age=0)
                assert (outcome is None) == (seal is Unsealed)

    async def test_a_count_that_somebody_writes_all_the_time_shuts_its_venue_out_unless_conflicts_are_known_by_limit(
        self, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The counts of other venues are left in peace."""
        link = redis_link.RedisLink(redis_url)
        sealed = SealedRedis(link, HASH_KEY, prefix=f"test-{secrets.token_hex(4)}:")
        update = SealedRedis.update

        async def always_late(self: SealedRedis, key: str, decide: Decide, *, new: bool = False) -> bytes:
            if key.endswith("attacked"):
                raise Conflict
            return await update(self, key, decide, new=new)

        monkeypatch.setattr(SealedRedis, "update", always_late)
        for by_limit in (False, True):
            state: Any = RedisSharedState(sealed)
            outcomes = []
            for _ in range(20):
                outcomes.append(await state.take("attacked", 100, 60, 1))
                assert await state.take("other", 100, 60, 1) == 0.0
                if not by_limit:
                    state._conflicts.clear()
            # None is to count alone.
            assert (None in outcomes) == by_limit
        await link.close()

    async def test_counts_that_are_removed_again_and_again_let_one_process_send_no_more_than_the_limit(
        self, tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for own_count in (False, True):
            plugin = ScriptedPlugin(listing(limits=(RateLimit("address", 10, 60),)))
            with monkeypatch.context() as patch:
                if not own_count:
                    patch.setattr(RateLimiter, "_own_wait", lambda *_: 0.0)
                    # Nor does it tell Redis again what it has taken.
                    patch.setattr(SharedWindow, "put", lambda *_: None)
                async with attacked(tmp_path, redis_server, plugin, CacheSeal) as (running, neighbour):
                    for number in range(16):
                        # Half of a limit is the most that one user gets.
                        await running.store(user=f"user{number}")
                        await neighbour.client.flushall()
                        with suppress(VenueRateLimited):
                            await running.client.get_balance(f"user{number}", "fakex", max_age=0)
            assert len(plugin.calls) == (10 if own_count else 16)

    async def test_a_forged_lease_without_end_delays_every_fetch_unless_values_are_sealed(
        self, tmp_path: Path, redis_server: RedisServer
    ) -> None:
        for seal in (Unsealed, CacheSeal):
            async with attacked(tmp_path, redis_server, ScriptedPlugin(), seal, venue_timeout=2.0) as (
                running,
                neighbour,
            ):
                name = sealed_name(running, f"lease:{await balance_key(running)}")
                await neighbour.forge(name, b"mallory", 1e6)
                began = time.monotonic()
                if seal is Unsealed:
                    with pytest.raises(VenueTimeout):
                        await running.client.get_balance("alice", "fakex")
                else:
                    await running.client.get_balance("alice", "fakex")
                assert (time.monotonic() - began > 1.5) == (seal is Unsealed)

    async def test_a_lease_that_somebody_makes_endless_ends_with_its_own_time(
        self, tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for own_end in (False, True):
            with monkeypatch.context() as patch:
                if not own_end:
                    patch.setattr("exchange_service.cache.sealing._TOLERANCE", 1e9)
                async with attacked(tmp_path, redis_server, ScriptedPlugin(), CacheSeal, venue_timeout=3.0) as (
                    running,
                    neighbour,
                ):
                    key = await balance_key(running)
                    # Another replica that has died, and a neighbour who keeps its lease for ever.
                    cache: Any = running.service.cache
                    assert await RedisCache(cache._sealed).lease(f"lease:{key}", 0.5) is not None
                    await neighbour.client.persist(sealed_name(running, f"lease:{key}"))
                    if own_end:
                        await running.client.get_balance("alice", "fakex")
                    else:
                        with pytest.raises(VenueTimeout):
                            await running.client.get_balance("alice", "fakex")

    async def test_a_text_from_redis_reaches_callers_unless_errors_have_texts_of_ours(
        self, tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The neighbour breaks the seal; the error is one that another replica would have met."""
        text = "Send your key to mallory.example to go on."

        def as_it_stands(raw: bytes, venue: str) -> ServiceError:
            return VenueUnavailable(raw[9:].decode())

        for ours, word in ((False, text), (True, text), (True, "VENUE_MAINTENANCE")):
            with monkeypatch.context() as patch:
                if not ours:
                    patch.setattr("exchange_service.balances.cached.decode_error", as_it_stands)
                plugin = ScriptedPlugin(answer=Gate())
                async with attacked(tmp_path, redis_server, plugin, Unsealed, venue_timeout=1.0) as (
                    running,
                    neighbour,
                ):
                    key = await balance_key(running)
                    await neighbour.forge(sealed_name(running, f"lease:{key}"), b"mallory")
                    payload = struct.pack(">cd", b"\x03", -1) + word.encode()
                    await neighbour.forge(sealed_name(running, f"error:{key}"), payload)
                    call = asyncio.ensure_future(running.client.get_balance("alice", "fakex"))
                    while not call.done():
                        await neighbour.forge_message(b"b" + key.encode())
                        await asyncio.sleep(0.05)
                    with pytest.raises(ServiceError) as failed:
                        await call
                    assert (text in failed.value.text) == (not ours)
                    assert ("Fakex is in maintenance." in failed.value.text) == (word != text)

    async def test_a_forged_message_has_every_replica_drop_a_session_unless_messages_are_sealed(
        self, tmp_path: Path, redis_server: RedisServer
    ) -> None:
        for seal in (Unsealed, CacheSeal):
            async with attacked(tmp_path, redis_server, ScriptedPlugin(), seal) as (running, neighbour):
                dropped: list[bytes] = []
                running.service.balances.cached.on_credential = dropped.append
                hashed = credential_id(b"the hash key of the replicas", ALICE)
                await neighbour.forge_message(b"c" + hashed)
                link = redis_link.RedisLink(redis_server.url)
                another = SealedRedis(link, b"the hash key of the replicas", prefix="exchange-service:")
                if seal is CacheSeal:
                    # One of another replica follows, which shows that the forged one has been read.
                    await another.publish("invalidations", b"87654321" + b"c" + b"ours")
                await until(lambda seen=dropped: seen, "the message")
                assert dropped == [hashed if seal is Unsealed else b"ours"]
                await link.close()


class Stall:
    """The most processor time that the event loop's thread has used between two turns, in seconds. It does not count
    what other programs on the machine use."""

    def __init__(self) -> None:
        self.longest = 0.0
        self.longest_wall = 0.0

    async def watch(self) -> None:
        while True:
            began, wall = time.thread_time(), time.perf_counter()
            await asyncio.sleep(0.001)
            self.longest = max(self.longest, time.thread_time() - began)
            self.longest_wall = max(self.longest_wall, time.perf_counter() - wall)


@asynccontextmanager
async def watched() -> AsyncIterator[Stall]:
    stall = Stall()
    task = asyncio.create_task(stall.watch())
    try:
        yield stall
    finally:
        task.cancel()


@pytest.mark.threat("T42", attack=True)
class TestSize:
    async def test_a_value_of_many_megabytes_is_fetched_unless_its_length_is_looked_at_first(
        self, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def read_whole(self: SealedRedis, name: str) -> bytes:
            return bytes(await self.link.redis.get(name) or b"")

        fed = 0
        receive = asyncio.StreamReader.read

        async def counted(self: asyncio.StreamReader, most: int = -1) -> bytes:
            nonlocal fed
            received = await receive(self, most)
            fed += len(received)
            return received

        monkeypatch.setattr(asyncio.StreamReader, "read", counted)
        monkeypatch.setattr(redis_link, "MOST_ANSWERED", 2**40)
        for bounded in (False, True):
            with monkeypatch.context() as patch:
                if not bounded:
                    patch.setattr(SealedRedis, "_read_long", read_whole)
                link = redis_link.RedisLink(redis_server.url)
                sealed = SealedRedis(link, HASH_KEY, prefix="x:")
                async with redis_client.Redis.from_url(redis_server.url) as client:
                    await client.set(sealed.name("a"), bytes(30 * 1024 * 1024))
                await sealed.ask_the_time()
                fed = 0
                with suppress(redis_link.NoAnswer):
                    assert await sealed.get("a") is None
                assert (fed > 1024 * 1024) == (not bounded)
                await link.close()

    async def test_long_values_in_the_place_of_delays_put_redis_out_of_reach_unless_only_short_ones_are_read(
        self, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for short in (False, True):
            with monkeypatch.context() as patch:
                if not short:
                    patch.setattr("exchange_service.cache.sealed_redis._SHORT", 2 * 1024 * 1024)
                link = redis_link.RedisLink(redis_server.url)
                sealed = SealedRedis(link, HASH_KEY, prefix="x:")
                names = ["one", "two", "three"]
                async with redis_client.Redis.from_url(redis_server.url) as client:
                    for name in names:
                        await client.set(sealed.name(f"venue:{name}"), bytes(2_000_000))
                for _ in range(3):
                    assert await RedisSharedState(sealed).cooldowns(names) == []
                assert link.available == short
                await link.close()

    async def test_a_message_of_many_megabytes_is_read_unless_the_parser_refuses_it(
        self, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for bounded in (False, True):
            with monkeypatch.context() as patch:
                if not bounded:
                    patch.setattr(redis_link, "MOST_IN_A_MESSAGE", 2**40)
                link = redis_link.RedisLink(redis_server.url)
                async with (
                    redis_client.Redis.from_url(redis_server.url) as client,
                    link.subscriber.pubsub(ignore_subscribe_messages=True) as channel,
                ):
                    await channel.subscribe("x")
                    await channel.get_message(timeout=1.0)
                    await client.publish("x", bytes(8 * 1024 * 1024))
                    received = None
                    with suppress(redis_client.ConnectionError):
                        received = await channel.get_message(timeout=5.0)
                    assert (received is None) == bounded
                await link.close()

    async def test_a_message_of_ours_that_is_repeated_thousands_of_times_is_acted_on_unless_it_counts_once(
        self, tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for once in (False, True):
            with monkeypatch.context() as patch:
                if not once:
                    patch.setattr(SealedRedis, "_is_first", lambda *_: True)
                async with attacked(tmp_path, redis_server, ScriptedPlugin(), CacheSeal) as (running, neighbour):
                    dropped: list[bytes] = []
                    running.service.balances.cached.on_credential = dropped.append
                    cache: Any = running.service.cache
                    link = redis_link.RedisLink(redis_server.url)
                    another = SealedRedis(link, b"the hash key of the replicas", prefix="exchange-service:")
                    async with neighbour.client.pubsub(ignore_subscribe_messages=True) as listener:
                        await listener.psubscribe("*")
                        await listener.get_message(timeout=5.0)
                        await another.publish("invalidations", b"87654321" + b"c" + b"ours")
                        message = None
                        while message is None:
                            message = await listener.get_message(timeout=5.0)
                    flood = neighbour.client.pipeline(transaction=False)
                    for _ in range(3000):
                        flood.publish(message["channel"], message["data"])
                    await flood.execute()
                    if once:
                        await until(lambda one=cache: not one.subscribed, "the end of the subscription")
                        await until(lambda one=cache: one.subscribed, "the next subscription")
                        assert dropped == [b"ours"]
                    else:
                        await until(lambda seen=dropped: len(seen) == 3001, "the whole flood")
                    await link.close()

    async def test_a_flood_of_messages_is_read_to_its_end_unless_the_subscription_is_given_up(
        self, tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[bytes] = []
        opened = SealedRedis.open_message

        def counted(self: SealedRedis, channel: str, data: bytes) -> bytes | None:
            read.append(data)
            return opened(self, channel, data)

        monkeypatch.setattr(SealedRedis, "open_message", counted)
        for bounded in (False, True):
            read.clear()
            with monkeypatch.context() as patch:
                if not bounded:
                    patch.setattr("exchange_service.cache.redis._MOST_FOREIGN", 10**9)
                async with attacked(tmp_path, redis_server, ScriptedPlugin(), CacheSeal) as (running, neighbour):
                    (channel,) = await neighbour.client.pubsub_channels()
                    flood = neighbour.client.pipeline(transaction=False)
                    for _ in range(3000):
                        flood.publish(channel, b"x" * 60)
                    await flood.execute()
                    cache: Any = running.service.cache
                    if bounded:
                        await until(lambda: len(read) > 200, "the end of the subscription")
                        assert len(read) < 1500
                        await until(lambda one=cache: one.subscribed, "the next subscription")
                    else:
                        await until(lambda: len(read) >= 3000, "the whole flood")
                    assert totals((await running.client.get_balance("alice", "fakex")).balance) == {"BTC": "1.50"}


class Counting(ScriptedPlugin):
    """A venue that gives each user other amounts, and knows what it has given to whom and when."""

    def __init__(self) -> None:
        super().__init__(listing(limits=(RateLimit("address", 3000, 60),)), answer=self.next)
        self.given: dict[tuple[str, str], float] = {}

    async def next(self, call: VenueCall) -> Any:
        total = f"{len(self.given) + 1}.{secrets.randbelow(10**9):09}1"
        self.given[call.account.user_id, total] = time.time()
        return holding(("BTC", total))

    def is_false(self, user: str, balance: Any) -> bool:
        """Whether a balance is another one than was given to this user, or its fetch time another one."""
        (total,) = totals(balance).values()
        given = self.given.get((user, total))
        return balance.user_id != user or given is None or abs(balance.fetch_time.ToNanoseconds() / 1e9 - given) > 1.5


USERS = [f"user{number}" for number in range(8)]


class Watch:
    """Callers and streams at two replicas; what they got, and how."""

    def __init__(self, plugin: Counting, several: list[Running]) -> None:
        self._plugin, self._several = plugin, several
        self.replies = self.events = 0
        self.false: list[Any] = []
        self.errors: dict[str, int] = {}

    async def call(self, running: Running, user: str) -> None:
        """Ask again and again, for a balance of the last second or for any fresh one."""
        while True:
            for max_age in (None, 1.0):
                try:
                    reply = await running.client.get_balance(user, "fakex", max_age=max_age)
                except ServiceError as error:
                    self.errors[error.reason] = self.errors.get(error.reason, 0) + 1
                else:
                    self.replies += 1
                    if self._plugin.is_false(user, reply.balance):
                        self.false.append(reply)
                await asyncio.sleep(0.02)

    async def follow(self, running: Running, user: str) -> None:
        """Read a stream."""
        async with streaming(running, "fakex", user=user) as stream:
            while True:
                event = await stream.next()
                if event.WhichOneof("event") == "balance":
                    self.events += 1
                    if self._plugin.is_false(user, event.balance.balance):
                        self.false.append(event)
                elif event.WhichOneof("event") == "account_error":
                    reason = f"stream {event.account_error.error.reason}"
                    self.errors[reason] = self.errors.get(reason, 0) + 1

    async def is_as_before(self) -> bool:
        """Whether the replicas work together: what one fetches, the other has without asking the venue."""
        for running in self._several:
            cache: Any = running.service.cache
            if not cache.subscribed or not cache.shared:
                return False
        one, other = self._several
        for user in USERS:
            try:
                fetched = await one.client.get_balance(user, "fakex", max_age=0)
                read = await other.client.get_balance(user, "fakex")
            except ServiceError:
                return False
            if read.balance.version < fetched.balance.version:
                return False
        return True


@pytest.mark.threat("T40")
@pytest.mark.threat("T41")
@pytest.mark.threat("T42")
async def test_whatever_somebody_writes_to_redis_no_balance_is_false_nothing_stalls_and_all_is_well_soon_after(
    tmp_path: Path, redis_server: RedisServer, record_property: Callable[[str, object], None]
) -> None:
    plugin = Counting()
    settings: dict[str, Any] = {
        "cache_url": redis_server.url,
        "hash_key": "the hash key of the replicas",
        "poll_interval": 0.5,
        "poll_interval_still": 1.0,
        "max_age": 3.0,
    }
    async with AsyncExitStack() as stack:
        several = [
            await stack.enter_async_context(serving(tmp_path, registry=registry_of(plugin), **settings))
            for _ in range(2)
        ]
        for user in USERS:
            await several[0].store(user=user)
        keys = {user: await balance_key(several[0], Account(user, "fakex")) for user in USERS}
        users = json.dumps({sealed_name(several[0], key): user for user, key in keys.items()})
        watch = Watch(plugin, several)
        await until_async(watch.is_as_before)
        stack.enter_context(garbage_as_in_serve())
        tasks = [
            stack.enter_context(cancelled(asyncio.create_task(work(running, user))))
            for running in several
            for work, users in ((watch.call, USERS[:5]), (watch.follow, USERS[3:]))
            for user in users
        ]
        async with watched() as before:
            await asyncio.sleep(1.0)
        async with watched() as stall:
            command = (sys.executable, "-m", "tests.forger", redis_server.url, str(FORGED_SECONDS), "7")
            forger = await asyncio.create_subprocess_exec(*command, users, stdout=asyncio.subprocess.PIPE)
            output, _ = await forger.communicate()
            ended = time.monotonic()
        assert forger.returncode == 0
        await until_async(watch.is_as_before)
        took = time.monotonic() - ended
        await asyncio.sleep(0.5)
        for task in tasks:
            assert not task.done(), task.exception()
    busy, wall, least = (seconds * 1000 for seconds in (stall.longest, stall.longest_wall, before.longest))
    record_property(
        CANARY,
        f"Redis written at random for {FORGED_SECONDS:g} s: {json.loads(output)}; {watch.replies} replies and"
        f" {watch.events} events, {len(watch.false)} false, errors {watch.errors}, the event loop busy for at most"
        f" {busy:.0f} ms at once ({least:.0f} before; {wall:.0f} by the wall clock), as before after {took:.1f} s",
    )
    assert watch.false == []
    assert watch.replies > 20 * FORGED_SECONDS
    assert stall.longest < 0.05
    assert took < 10


@contextmanager
def garbage_as_in_serve() -> Iterator[None]:
    """Python's garbage collector as the service sets it; with a test's own settings it stops the loop by itself."""
    thresholds = gc.get_threshold()
    tune_gc()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


@contextmanager
def cancelled(task: asyncio.Task[None]) -> Iterator[asyncio.Task[None]]:
    """The task, which ends with the block."""
    try:
        yield task
    finally:
        task.cancel()


async def until_async(check: Callable[[], Any]) -> None:
    """Wait until it is true; the caller judges how long that took."""
    deadline = time.monotonic() + 60
    while not await check():
        assert time.monotonic() < deadline, "it is not as before"
        await asyncio.sleep(0.05)
