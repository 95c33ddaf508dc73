"""A call whose balance another replica has stored: one look into Redis, and an answer without a handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis.asyncio as redis_client

from exchange_service.balances.cached import CachedBalances
from exchange_service.balances.service import BalanceReader
from exchange_service.model import Account
from tests.e2e.test_replicas import Counting, replicas
from tests.harness import Running, balance_request, failure_of, totals, until
from tests.servers import RedisServer


class Two:
    """Two replicas. Calls of the second one are known to it, and what its copy was is outdated."""

    def __init__(self, first: Running, second: Running, plugin: Counting, handled: list[Any]) -> None:
        self.first, self.second, self.plugin, self.handled = first, second, plugin, handled

    def shared_reads(self) -> str:
        lines = self.second.service.metrics.text().decode().splitlines()
        return next((line.split()[1] for line in lines if 'cache_reads_total{kind="shared"}' in line), "0.0")

    async def ask(self, timeout: float | None = 10.0) -> dict[str, str]:
        """The amounts that the second replica answers."""
        reply = await self.second.stub.GetBalance(balance_request(), timeout=timeout)
        return totals(reply.balance)

    async def change(self) -> None:
        """The first replica stores something newer, and the second has heard of it."""
        await self.first.client.get_balance("alice", "fakex", max_age=0)
        await until(lambda: not self.has_copy(), "the invalidation")

    def has_copy(self) -> bool:
        return bool(self.second.service.balances.cached._copies)


@pytest.fixture
def plugin() -> Counting:
    return Counting()


@asynccontextmanager
async def two(folder: Path, server: RedisServer, plugin: Counting, **changes: Any) -> AsyncIterator[Two]:
    handled: list[Any] = []
    get = BalanceReader.get

    async def noted(self: BalanceReader, *args: Any) -> Any:
        handled.append(args)
        return await get(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        async with replicas(2, folder, server.url, plugin, **changes) as (first, second):
            await first.store(user="alice")
            made = Two(first, second, plugin, handled)
            await made.ask()
            await made.ask()
            await made.change()
            patch.setattr(BalanceReader, "get", noted)
            yield made


def noted_reads(reads: list[str]) -> Any:
    """A read of the cache that is also put on this list."""
    read_once = CachedBalances._read_once

    def noted(self: CachedBalances, key: str, account: Account) -> Any:
        reads.append(key)
        return read_once(self, key, account)

    return noted


async def test_what_another_replica_has_stored_is_answered_without_a_handler_and_counted_as_shared(
    tmp_path: Path, redis_server: RedisServer, plugin: Counting
) -> None:
    async with two(tmp_path, redis_server, plugin) as both:
        before = both.shared_reads()
        assert await both.ask() == {"BTC": "2"}
        assert float(both.shared_reads()) == float(before) + 1
        # Now it has a copy.
        assert await both.ask() == {"BTC": "2"}
        assert float(both.shared_reads()) == float(before) + 1
        assert both.handled == []
        assert plugin.count == 2


async def test_callers_who_come_together_share_one_look(
    tmp_path: Path, redis_server: RedisServer, plugin: Counting
) -> None:
    async with two(tmp_path, redis_server, plugin) as both:
        async with redis_client.Redis.from_url(redis_server.url) as client:
            before = (await client.info("commandstats")).get("cmdstat_getrange", {"calls": 0})["calls"]
            answers = await asyncio.gather(*(both.ask() for _ in range(20)))
            after = (await client.info("commandstats"))["cmdstat_getrange"]["calls"]
        assert answers == [{"BTC": "2"}] * 20
        # Those that come after the first answer find the copy.
        assert after - before == 1
        assert both.handled == []


async def test_a_look_that_finds_nothing_leaves_the_call_to_the_handler(
    tmp_path: Path, redis_server: RedisServer, plugin: Counting
) -> None:
    async with two(tmp_path, redis_server, plugin) as both:
        async with redis_client.Redis.from_url(redis_server.url) as client:
            await client.flushall()
        assert await both.ask() == {"BTC": "3"}
        assert len(both.handled) == 1
        assert plugin.count == 3


async def test_a_copy_that_is_only_too_old_is_not_looked_for_first(
    tmp_path: Path, redis_server: RedisServer, plugin: Counting
) -> None:
    async with two(tmp_path, redis_server, plugin, max_age=1.0) as both:
        await both.ask()
        service = both.second.service
        await until(
            lambda: service.balances.get_local(Account("alice", "fakex", "production"), None) is None,
            "the end of the copy's time",
        )
        reads: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CachedBalances, "_read_once", noted_reads(reads))
            assert await both.ask() == {"BTC": "3"}
        # The handler's own read is the only one.
        assert len(reads) == 1


async def test_a_call_with_little_time_left_does_not_wait_for_a_look(
    tmp_path: Path, redis_server: RedisServer, plugin: Counting
) -> None:
    async with two(tmp_path, redis_server, plugin) as both:
        with redis_server.frozen(), pytest.raises(grpc.aio.AioRpcError) as caught:
            await both.ask(timeout=0.25)
        # The handler says why it is late; nothing else would.
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert any(key == "grpc-status-details-bin" for key, _ in caught.value.trailing_metadata() or ())
        assert len(both.handled) == 1


async def test_while_redis_is_silent_a_look_brings_what_this_process_stored_itself(
    tmp_path: Path, redis_server: RedisServer, plugin: Counting
) -> None:
    async with two(tmp_path, redis_server, plugin) as both:
        with redis_server.frozen():
            assert await both.ask() == {"BTC": "1"}


async def test_a_caller_that_leaves_during_a_look_leaves_nothing_behind_and_disturbs_no_other(
    tmp_path: Path, redis_server: RedisServer, plugin: Counting
) -> None:
    async with two(tmp_path, redis_server, plugin) as both:
        readings = both.second.service.balances.cached._readings
        with redis_server.frozen():
            leaving = asyncio.ensure_future(both.ask())
            staying = asyncio.ensure_future(both.ask())
            await until(lambda: bool(readings), "the look")
            leaving.cancel()
        assert await staying in ({"BTC": "1"}, {"BTC": "2"})
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await until(lambda: not readings, "the end of the look")
        # A native engine would wait for the call that it still knows.
        both.second.service.server.handler_wrapper.end_all()
        await asyncio.wait_for(both.second.service.server.engine.stop(5.0), 3.0)


async def test_a_call_that_looks_when_the_service_ends_is_told_so_or_answered(
    tmp_path: Path, redis_server: RedisServer, plugin: Counting
) -> None:
    async with two(tmp_path, redis_server, plugin) as both:
        with redis_server.frozen():
            call = asyncio.ensure_future(both.ask())
            await until(lambda: bool(both.second.service.balances.cached._readings), "the look")
            stopping = asyncio.ensure_future(both.second.service.stop())
            result = (await asyncio.gather(call, return_exceptions=True))[0]
        await stopping
        if isinstance(result, grpc.aio.AioRpcError):
            assert failure_of(result).reason == "SHUTTING_DOWN"
        else:
            assert result == {"BTC": "1"}
