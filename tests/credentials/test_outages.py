"""The credential store while PostgreSQL is down, frozen, slow or restarted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from exchange_service.credentials import database
from exchange_service.credentials.database import CALL_LIMIT
from exchange_service.credentials.sql import SqlCredentialStore, open_store
from exchange_service.errors import StoreUnavailable
from tests.credential_tables import (
    FULL,
    KEY,
    OANDA,
    OWNERS_TABLES,
    SLACK,
    Database,
    find_reference,
    seconds,
)
from tests.harness import eventually, until
from tests.servers import PostgresServer


class TestCrowd:
    async def test_a_crowd_waits_for_its_turns_while_the_database_answers(self, tmp_path: Path) -> None:
        store = await open_store(f"sqlite:///{tmp_path / 'crowd.db'}", KEY)

        async def work(connection: AsyncConnection, _table: object) -> int:
            # Thirty times as many calls as connections, each as long as a slow machine needs for one.
            await asyncio.sleep(0.05)
            return int((await connection.execute(sa.text("SELECT 1"))).scalar_one())

        assert sum(await asyncio.gather(*(store.call(work) for _ in range(300)))) == 300
        await store.close()


class TestPostgresInTrouble:
    async def test_a_database_that_is_down_at_the_start_is_used_when_it_comes(
        self, own_postgres_database: str, postgres_server: PostgresServer
    ) -> None:
        postgres_server.stop()
        try:
            store = await open_store(own_postgres_database, KEY)
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match="cannot be used"):
                    await store.find(OANDA)
            assert await store.problem()
        finally:
            postgres_server.start()
        assert await store.find(OANDA) is None
        assert await store.problem() == ""
        await store.close()

    async def test_a_restarted_database_is_used_again_at_once(
        self, own_postgres_database: str, postgres_server: PostgresServer
    ) -> None:
        store = await open_store(own_postgres_database, KEY)
        await store.put(OANDA, FULL)
        postgres_server.stop()
        postgres_server.start()
        assert await store.find(OANDA) is not None
        await store.close()

    async def test_a_frozen_database_is_unavailable_in_time_and_used_again_when_thawed(
        self, own_postgres_database: str, postgres_server: PostgresServer
    ) -> None:
        store = await open_store(own_postgres_database, KEY)
        await store.put(OANDA, FULL)

        async def refused() -> float:
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await store.find(OANDA)
            return time.monotonic() - started

        with postgres_server.frozen():
            waits = await asyncio.gather(*(refused() for _ in range(30)))
            waits.append(await refused())
        assert max(waits) < CALL_LIMIT + SLACK

        async def has_recovered() -> bool:
            return not await store.problem()

        await eventually(has_recovered, "the store's recovery")
        assert await store.open(await find_reference(store, OANDA)) == FULL
        await store.close()

    async def test_a_frozen_database_does_not_hold_up_closing(
        self, own_postgres_database: str, postgres_server: PostgresServer
    ) -> None:
        store = await open_store(own_postgres_database, KEY)
        await store.put(OANDA, FULL)
        with postgres_server.frozen():
            finding = asyncio.ensure_future(store.find(OANDA))
            # One turn of the event loop: the call is under way.
            await asyncio.sleep(0)
            assert await seconds(store.close()) < CALL_LIMIT + SLACK
            with pytest.raises(StoreUnavailable):
                await finding

    async def test_a_slow_statement_is_ended_by_the_server_itself(self, postgres_database: str) -> None:
        database = Database(postgres_database)
        database.run(OWNERS_TABLES["text"])
        store = await open_store(postgres_database, KEY)
        await store.find(OANDA)
        with psycopg.connect(postgres_database) as other:
            other.execute("LOCK TABLE bot_credentials IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StoreUnavailable, match="QueryCanceled"):
                await store.find(OANDA)
        assert await store.find(OANDA) is None
        await store.close()

    async def test_no_statement_is_prepared_on_the_server(self, postgres_database: str) -> None:
        # A pooler gives the next transaction another server connection, which would not know it.
        store = await open_store(postgres_database, KEY)
        for _ in range(20):
            await store.find(OANDA)
        count = sa.text("SELECT count(*) FROM pg_prepared_statements")
        assert await store.call(lambda connection, _: connection.scalar(count)) == 0
        await store.close()

    async def test_cancelled_callers_use_up_no_connections(self, postgres_database: str) -> None:
        store = await open_store(postgres_database, KEY)
        await store.put(OANDA, FULL)
        for number in range(60):
            callers = [asyncio.create_task(store.find(OANDA)) for _ in range(3)]
            for _ in range(number):
                await asyncio.sleep(0)
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
        answers = await asyncio.gather(*(store.find(OANDA) for _ in range(20)))
        assert all(answers)
        await store.close()


class Holding:
    """A call that has a connection until it is let go, whatever its caller and the store do meanwhile."""

    def __init__(self, store: SqlCredentialStore) -> None:
        self._connected, self._let_go = asyncio.Event(), asyncio.Event()
        self.call = asyncio.create_task(store.call(self._work))

    async def _work(self, connection: AsyncConnection, _: object) -> int:
        self._connected.set()
        letting_go = asyncio.create_task(self._let_go.wait())
        while not letting_go.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(letting_go)
        return int(await connection.scalar(sa.text("SELECT 7")) or 0)

    async def begins(self) -> None:
        await self._connected.wait()

    def ends(self) -> None:
        self._let_go.set()


class TestConnections:
    @pytest.fixture(params=["postgres", "sqlite"])
    def url(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        if request.param == "sqlite":
            return f"sqlite:///{tmp_path / 'credentials.db'}"
        return str(request.getfixturevalue("postgres_database"))

    @pytest.fixture
    def limits(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        """From then on a call, and the closing, is given up soon."""

        def shorten() -> None:
            monkeypatch.setattr(database, "CALL_LIMIT", 0.05)
            monkeypatch.setattr(database, "CLOSE_LIMIT", 0.05)

        return shorten

    async def test_none_stays_open_that_was_in_use_when_another_call_was_given_up(
        self, postgres_database: str, limits: Callable[[], None]
    ) -> None:
        store = await open_store(postgres_database, KEY)
        in_time = Holding(store)
        await in_time.begins()
        limits()
        too_slow = Holding(store)
        with pytest.raises(StoreUnavailable, match="did not answer"):
            await too_slow.call
        assert connections(postgres_database) == 2
        in_time.ends()
        too_slow.ends()
        assert await in_time.call == 7
        await until(lambda: connections(postgres_database) == 0, "the end of all connections")
        await store.close()

    async def test_none_stays_open_that_was_in_use_when_the_store_was_closed(
        self, url: str, limits: Callable[[], None]
    ) -> None:
        store = await open_store(url, KEY)
        await store.find(OANDA)
        holding = [Holding(store) for _ in range(3)]
        for each in holding:
            await each.begins()
        limits()
        await store.close()
        assert connections(url) == 3
        for each in holding:
            each.ends()
        assert await asyncio.gather(*(each.call for each in holding)) == [7, 7, 7]
        await until(lambda: connections(url) == 0, "the end of all connections")


def connections(url: str) -> int:
    """How many connections to the database are open: as its server tells, or as files of this process."""
    if url.startswith("sqlite"):
        return sum(file.path == url.removeprefix("sqlite:///") for file in psutil.Process().open_files())
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    return int(Database(url).run(f"SELECT count(*) {others}")[0][0])
