"""What is connected or removed on one replica acts on the other at once, also for those who asked a moment ago.

Everything that time alone would bring about is put off here, so that nothing but the replicas' messages can do it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from exchange_service.credentials import references
from exchange_service.errors import CallerRateLimited, CredentialMissing, CredentialRejected
from tests.e2e.test_connecting import GOOD, OTHER, WRONG, Venue, total
from tests.harness import USER, Running, eventually, registry_of, serving, streaming, totals, until


@pytest.fixture(autouse=True)
def _nothing_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "MISSING_TTL", 600.0)
    monkeypatch.setattr(references, "TTL", 600.0)


@asynccontextmanager
async def two_replicas(folder: Path, redis_url: str, **changes: int) -> AsyncIterator[tuple[Running, Running]]:
    """Two services on one database and one Redis, with one venue."""
    options = {
        "manage_accounts": True,
        "cache_url": redis_url,
        "cache_prefix": f"{folder.name}:",
        "hash_key": "0123456789abcdef",
        "poll_interval": 600.0,
        "poll_interval_still": 600.0,
        "heartbeat_interval": 600.0,
        **changes,
    }
    venue = Venue()
    async with AsyncExitStack() as stack:
        first, second = [
            await stack.enter_async_context(serving(folder, registry=registry_of(venue), **options)) for _ in range(2)
        ]
        for running in (first, second):
            await until(lambda one=running: one.service.cache.hears, "the subscription")  # type: ignore[misc]
        yield first, second


async def connect(running: Running, key: str, **changes: bool) -> None:
    await running.client.connect_account(USER, "fakex", {"api_key": key}, **changes)


class TestBalance:
    async def test_who_was_told_that_nothing_is_stored_reads_at_once(self, tmp_path: Path, redis_url: str) -> None:
        async with two_replicas(tmp_path, redis_url) as (first, second):
            for running in (first, second):
                for exchange in ("fakex", "options_view"):
                    with pytest.raises(CredentialMissing):
                        await running.client.get_balance(USER, exchange)
            await connect(first, GOOD)
            for running in (first, second):
                for exchange in ("fakex", "options_view"):

                    async def reads(one: Running = running, which: str = exchange) -> bool:
                        try:
                            return await total(one, which) == "1.5"
                        except CredentialMissing:
                            return False

                    await eventually(reads, "the connected account")

    async def test_who_was_told_that_the_key_is_refused_reads_at_once(self, tmp_path: Path, redis_url: str) -> None:
        async with two_replicas(tmp_path, redis_url) as (first, second):
            await connect(first, WRONG, skip_check=True)
            for running in (first, second):
                with pytest.raises(CredentialRejected):
                    await running.client.get_balance(USER, "fakex")
            await connect(first, GOOD)

            async def reads() -> bool:
                try:
                    return await total(second) == "1.5"
                except CredentialRejected:
                    return False

            await eventually(reads, "the repaired account")

    async def test_a_check_that_works_is_heeded_where_the_account_was_refused(
        self, tmp_path: Path, redis_url: str
    ) -> None:
        async with two_replicas(tmp_path, redis_url) as (first, second):
            venue = first.service.registry.plugins[0].hook.fetch_balance.get_hookimpls()[0].plugin
            await connect(first, GOOD, skip_check=True)
            venue.error = CredentialRejected("The venue is wrong for a while.")
            for _ in range(3):
                with pytest.raises(CredentialRejected):
                    await second.client.get_balance(USER, "fakex", max_age=0)
            venue.error = None
            with pytest.raises(CredentialRejected):
                await second.client.get_balance(USER, "fakex")
            await first.client.check_account(USER, "fakex")

            async def reads() -> bool:
                try:
                    return await total(second) == "1.5"
                except CredentialRejected:
                    return False

            await eventually(reads, "the account that works")

    async def test_a_removed_account_is_gone_at_once(self, tmp_path: Path, redis_url: str) -> None:
        async with two_replicas(tmp_path, redis_url) as (first, second):
            await connect(first, GOOD)
            await eventually(lambda: _reads(second), "the connected account")
            await first.client.remove_account(USER, "fakex")

            async def is_gone() -> bool:
                return not await _reads(second)

            await eventually(is_gone, "the removal")


async def _reads(running: Running) -> bool:
    try:
        return bool(await total(running))
    except CredentialMissing:
        return False


class TestStreams:
    async def test_a_stream_of_everything_shows_what_is_connected_and_removed(
        self, tmp_path: Path, redis_url: str
    ) -> None:
        async with two_replicas(tmp_path, redis_url) as (first, second), streaming(second) as stream:
            assert not (await stream.next_of("heartbeat")).accounts
            await connect(first, GOOD)
            assert totals((await stream.next_of("balance")).balance)["BTC"] == "1.5"
            await connect(first, OTHER)
            assert totals((await stream.next_of("balance")).balance)["BTC"] == "2.5"
            await first.client.remove_account(USER, "fakex")
            await until(lambda: not second.service.streams.counts()[0], "the end of the feed")

    @pytest.mark.parametrize("before", ["", WRONG])
    async def test_a_stream_that_waits_for_a_credential_gets_its_balance(
        self, tmp_path: Path, redis_url: str, before: str
    ) -> None:
        async with two_replicas(tmp_path, redis_url) as (first, second):
            if before:
                await connect(first, before, skip_check=True)
            async with streaming(second, "fakex") as stream:
                await stream.next_of("account_error")
                await connect(first, GOOD)
                assert totals((await stream.next_of("balance")).balance)["BTC"] == "1.5"
                await first.client.remove_account(USER, "fakex")
                error = await stream.next_of("account_error")
                assert "No credential is stored" in error.error.message


@pytest.mark.threat("T71")
async def test_replicas_count_wrong_keys_together(tmp_path: Path, redis_url: str) -> None:
    async with two_replicas(tmp_path, redis_url, failed_checks=3) as replicas:
        for number in range(3):
            with pytest.raises(CredentialRejected):
                await connect(replicas[number % 2], WRONG)
        for running in replicas:
            with pytest.raises(CallerRateLimited):
                await connect(running, WRONG)
