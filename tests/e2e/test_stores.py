"""The service with Redis and PostgreSQL by URL, as an operator runs it with several replicas."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount

from exchange_service.errors import CredentialMissing
from exchange_service.testing import Fault
from exchange_service.v1 import balance_pb2
from tests.harness import (
    USER,
    Running,
    ScriptedPlugin,
    balance_request,
    eventually,
    failure,
    holding,
    registry_of,
    returning,
    serving,
    streaming,
    totals,
    until,
)
from tests.servers import RedisServer

TOKEN = "a-token-for-tests"
ACCOUNT = "101-004-7654321-001"
HASH_KEY = "the same for all replicas"


def sharing(url: str, **changes: Any) -> dict[str, Any]:
    """Settings of a replica; the prefix is the test's own, because the Redis is not."""
    return {"cache_url": url, "hash_key": HASH_KEY, "cache_prefix": f"test-{uuid.uuid4().hex}:"} | changes


class TestRedis:
    async def test_a_second_replica_serves_what_the_first_has_fetched(self, tmp_path: Path, redis_url: str) -> None:
        shared = sharing(redis_url)
        async with OandaSimulator() as venue:
            shared["venue_urls"] = {"oanda": venue.url}
            venue.add_token(TOKEN, SimulatedAccount(ACCOUNT))
            async with serving(tmp_path, **shared) as first, serving(tmp_path, **shared) as second:
                await first.store("oanda", api_key=TOKEN)
                fetched = await first.client.get_balance(USER, "oanda")
                before = len(venue.requests)
                served = await second.client.get_balance(USER, "oanda")
                assert len(venue.requests) == before
        assert served.freshness.source == balance_pb2.BALANCE_SOURCE_CACHE
        assert served.balance == fetched.balance

    async def test_a_replica_with_another_hash_key_finds_nothing(self, tmp_path: Path, redis_url: str) -> None:
        shared = sharing(redis_url)
        one, two = ScriptedPlugin(), ScriptedPlugin()
        async with (
            serving(tmp_path, registry=registry_of(one), **shared) as first,
            serving(tmp_path, registry=registry_of(two), **shared | {"hash_key": "a key of its own"}) as second,
        ):
            await first.store()
            await first.client.get_balance(USER, "fakex")
            reply = await second.client.get_balance(USER, "fakex")
        assert reply.freshness.source == balance_pb2.BALANCE_SOURCE_VENUE
        assert (len(one.calls), len(two.calls)) == (1, 1)

    async def test_the_version_rises_over_replicas(self, tmp_path: Path, redis_url: str) -> None:
        shared = sharing(redis_url)
        one, two = ScriptedPlugin(), ScriptedPlugin(answer=returning(holding(("BTC", "2"))))
        async with (
            serving(tmp_path, registry=registry_of(one), **shared) as first,
            serving(tmp_path, registry=registry_of(two), **shared) as second,
        ):
            await first.store()
            versions = [
                (await replica.client.get_balance(USER, "fakex", max_age=0)).balance.version
                for replica in (first, second, first, second)
            ]
        assert versions == sorted(set(versions))

    async def test_the_last_good_balance_of_another_replica_is_returned(self, tmp_path: Path, redis_url: str) -> None:
        shared = sharing(redis_url)
        async with OandaSimulator() as venue:
            shared["venue_urls"] = {"oanda": venue.url}
            venue.add_token(TOKEN, SimulatedAccount(ACCOUNT))
            async with serving(tmp_path, **shared) as first, serving(tmp_path, **shared) as second:
                await first.store("oanda", api_key=TOKEN)
                await first.client.get_balance(USER, "oanda")
                venue.fail(Fault.html(503))
                reply = await second.client.get_balance(USER, "oanda", max_age=1e-6)
        assert reply.freshness.source == balance_pb2.BALANCE_SOURCE_LAST_GOOD
        assert reply.freshness.HasField("stale")

    async def test_no_call_is_lost_when_redis_dies_and_comes_back(
        self, tmp_path: Path, redis_server: RedisServer
    ) -> None:
        plugin = ScriptedPlugin()
        async with serving(tmp_path, registry=registry_of(plugin), **sharing(redis_server.url)) as running:
            users = [f"user{number}" for number in range(10)]
            for user in users:
                await running.store(user=user)
            answered: list[float] = []
            enough = asyncio.Event()

            async def call_on(user: str) -> None:
                while not enough.is_set():
                    started = time.monotonic()
                    reply = await running.client.get_balance(user, "fakex")
                    answered.append(time.monotonic() - started)
                    assert totals(reply.balance) == {"BTC": "1.50"}
                    assert reply.balance.user_id == user

            async def answered_more(calls: int) -> None:
                wanted = len(answered) + calls
                await until(lambda: len(answered) >= wanted, "an answer")

            async def redis_works() -> bool:
                return not await running.service.cache.problem()

            callers = [asyncio.ensure_future(call_on(user)) for user in users]
            async with asyncio.timeout(40):
                await answered_more(100)
                redis_server.kill()
                await answered_more(200)
                redis_server.start()
                await eventually(redis_works, "a working Redis")
                await answered_more(200)
                redis_server.freeze()
                await answered_more(50)
                redis_server.thaw()
                await answered_more(50)
            enough.set()
            # Each caller would have raised here.
            await asyncio.gather(*callers)
        assert max(answered) < 2.0

    async def test_a_service_starts_and_serves_without_its_redis(self, tmp_path: Path) -> None:
        nobody = "redis://127.0.0.1:1/0"
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), **sharing(nobody)) as running:
            await running.store()
            assert totals((await running.client.get_balance(USER, "fakex")).balance) == {"BTC": "1.50"}
            async with streaming(running, "fakex") as stream:
                assert totals((await stream.next_of("balance")).balance) == {"BTC": "1.50"}


OWNERS_TABLE = """
CREATE TABLE bot_credentials (
    id bigserial PRIMARY KEY,
    user_id uuid NOT NULL,
    exchange text NOT NULL,
    environment text DEFAULT 'production',
    api_key text,
    api_secret text,
    passphrase text,
    extra_metadata jsonb,
    created_at timestamptz NOT NULL DEFAULT now(),
    note text
)
"""


class TestPostgres:
    @pytest.fixture
    def owner(self, postgres_database: str) -> str:
        """The owner's table as it is: plain rows, written by another program."""
        with psycopg.connect(postgres_database, autocommit=True) as connection:
            connection.execute(OWNERS_TABLE)
        return postgres_database

    def insert(self, url: str, user: str, exchange: str, environment: str | None = "production", **values: Any) -> None:
        metadata = values.pop("metadata", None)
        columns = {
            "user_id": user,
            "exchange": exchange,
            "environment": environment,
            "extra_metadata": None if metadata is None else json.dumps(metadata),
            "note": "not ours",
        } | values
        names, marks = ", ".join(columns), ", ".join(["%s"] * len(columns))
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"INSERT INTO bot_credentials ({names}) VALUES ({marks})", list(columns.values()))

    async def test_the_owners_rows_are_read_as_they_are(self, tmp_path: Path, owner: str) -> None:
        user, other = str(uuid.uuid4()), str(uuid.uuid4())
        async with OandaSimulator() as venue:
            venue.add_token(TOKEN, SimulatedAccount(ACCOUNT), SimulatedAccount("101-004-7654321-002", "USD"))
            self.insert(owner, user, "oanda", api_key=TOKEN, metadata={"account_id": ACCOUNT})
            self.insert(owner, other, "oanda", environment=None, api_key=TOKEN, metadata={})
            async with serving(tmp_path, database_url=owner, venue_urls={"oanda": venue.url}) as running:
                chosen = (await running.client.get_balance(user, "oanda")).balance
                every = (await running.client.get_balance(other, "oanda")).balance
                async with streaming(running, user=user) as stream:
                    followed = (await stream.next_of("balance")).balance
        assert [account.id for account in chosen.venue_accounts] == [ACCOUNT]
        assert len(every.venue_accounts) == 2
        assert (followed.user_id, followed.version) == (user, chosen.version)

    async def test_a_user_that_cannot_be_a_uuid_is_one_without_a_credential(self, tmp_path: Path, owner: str) -> None:
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), database_url=owner) as running:
            with pytest.raises(CredentialMissing):
                await running.client.get_balance("alice", "fakex")
            async with streaming(running, user="alice") as stream:
                call = asyncio.ensure_future(stream.next())
                assert (await running.client.list_exchanges()).stats.total == 1
                assert not call.done()
                call.cancel()

    async def test_the_stored_metadata_choose_the_test_host(self, tmp_path: Path, owner: str) -> None:
        user = str(uuid.uuid4())
        self.insert(owner, user, "oanda", api_key=TOKEN, metadata={"sandbox": True})
        async with OandaSimulator() as venue:
            venue.add_token(TOKEN, SimulatedAccount(ACCOUNT))
            async with serving(
                tmp_path, database_url=owner, venue_urls={"oanda.sandbox": venue.url, "oanda": "http://127.0.0.1:1"}
            ) as running:
                assert (await running.client.get_balance(user, "oanda")).balance.venue_accounts

    async def test_a_database_that_is_down_is_reported_and_the_catalogue_is_served(self, tmp_path: Path) -> None:
        down = "postgresql://nobody:hunter2@127.0.0.1:1/none"
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), database_url=down) as running:
            failed = await failure(running.stub.GetBalance(balance_request()))
            assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
            assert failed.retry_delay is not None
            assert "hunter2" not in repr(failed)
            async with streaming(running) as stream:
                assert (await stream.failure()).reason == "STORE_UNAVAILABLE"
            assert (await running.client.list_exchanges()).stats.total == 1

    async def test_the_schema_is_not_touched(self, tmp_path: Path, owner: str) -> None:
        def columns() -> list[Any]:
            query = "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'bot_credentials'"
            with psycopg.connect(owner) as connection:
                return connection.execute(query).fetchall()

        before = columns()
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), database_url=owner) as running:
            await _store_and_read(running, str(uuid.uuid4()))
        assert columns() == before


async def _store_and_read(running: Running, user: str) -> None:
    await running.store(user=user, metadata={"account_id": "1"})
    assert totals((await running.client.get_balance(user, "fakex")).balance) == {"BTC": "1.50"}
