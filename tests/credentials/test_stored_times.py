"""When a credential was stored: what tables of ours and of other programs say of it."""

from __future__ import annotations

import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from exchange_service.credentials.sql import SqlCredentialStore, open_store
from exchange_service.model import Account, Credential
from tests.harness import HASH_KEY

ALICE = Account("alice", "fakex")
KEY = Credential.from_texts({"api_key": "a-key-for-tests"})
COLUMNS = "user_id text, exchange text, environment text, api_key text, api_secret text, passphrase text, {} "


async def stored_time(store: SqlCredentialStore) -> float | None:
    (entry,) = await store.stored("alice")
    assert (entry.account, entry.sealed) == (ALICE, False)
    return entry.stored_time


async def opened(url: str) -> SqlCredentialStore:
    return await open_store(url, HASH_KEY)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'credentials.db'}"
    url: str = request.getfixturevalue("postgres_database")
    return url


def execute(url: str, *statements: str) -> None:
    """Run statements as another program would."""
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()
    else:
        with psycopg.connect(url, autocommit=True) as server:
            for statement in statements:
                server.execute(statement.encode())


async def test_a_table_of_ours_says_when_a_credential_was_stored_last(database: str) -> None:
    store = await opened(database)
    before = time.time()
    await store.put(ALICE, KEY)
    first = await stored_time(store)
    assert first is not None
    assert before - 0.01 <= first <= time.time() + 0.01
    await store.put(ALICE, KEY)
    second = await stored_time(store)
    assert second is not None
    assert second > first or database.startswith("sqlite")
    await store.close()


@pytest.mark.parametrize("kind", ["timestamptz", "timestamp"])
async def test_another_programs_column_of_creation_is_read_and_left_alone(database: str, kind: str) -> None:
    columns = COLUMNS.format("extra_metadata text") + f", created_at {kind}"
    row = "'alice', 'fakex', 'production', 'k', null, null, null, '2026-03-01 12:00:00'"
    execute(database, f"CREATE TABLE bot_credentials ({columns})", f"INSERT INTO bot_credentials VALUES ({row})")
    store = await opened(database)
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
    assert await stored_time(store) == noon
    await store.put(ALICE, KEY)
    assert await stored_time(store) == noon
    await store.close()


@pytest.mark.parametrize("kind", ["timestamptz", "timestamp"])
async def test_the_last_change_goes_before_the_creation(database: str, kind: str) -> None:
    columns = COLUMNS.format("extra_metadata text") + f", created_at {kind}, updated_at {kind}"
    row = "'alice', 'fakex', 'production', 'k', null, null, null, '2026-03-01 12:00:00', null"
    execute(database, f"CREATE TABLE bot_credentials ({columns})", f"INSERT INTO bot_credentials VALUES ({row})")
    store = await opened(database)
    assert await stored_time(store) == datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()
    await store.put(ALICE, KEY)
    assert abs((await stored_time(store) or 0.0) - time.time()) < 5
    await store.close()


@pytest.mark.parametrize("more", ["", ", updated_at bigint", ", created_at boolean"])
async def test_a_table_that_does_not_say_works_as_before(database: str, more: str) -> None:
    columns = COLUMNS.format("extra_metadata text") + more
    execute(database, f"CREATE TABLE bot_credentials ({columns})")
    store = await opened(database)
    await store.put(ALICE, KEY)
    assert await stored_time(store) is None
    await store.close()


async def test_a_database_user_without_rights_on_the_column_stores_all_the_same(postgres_database: str) -> None:
    columns = COLUMNS.format("extra_metadata text") + ", updated_at timestamptz"
    ours = "user_id, exchange, environment, api_key, api_secret, passphrase, extra_metadata"
    execute(
        postgres_database,
        f"CREATE TABLE bot_credentials ({columns})",
        "DROP ROLE IF EXISTS narrow",
        "CREATE ROLE narrow LOGIN PASSWORD 'narrow'",
        f"GRANT SELECT ({ours}), INSERT ({ours}), UPDATE ({ours}), DELETE ON bot_credentials TO narrow",
    )
    address = postgres_database.partition("@")[2]
    store = await opened(f"postgresql://narrow:narrow@{address}")
    await store.put(ALICE, KEY)
    await store.put(ALICE, KEY)
    assert await stored_time(store) is None
    await store.close()
    execute(postgres_database, "DROP OWNED BY narrow", "DROP ROLE narrow")


@pytest.mark.parametrize(
    "text",
    # The last three are read as texts of the years 1701, 1 and 9999, in which no message has a time.
    ["yesterday", "2026-13-01", "", "1701011512345", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"],
)
async def test_a_text_that_is_no_instant_is_left_out(tmp_path: Path, text: str) -> None:
    url = f"sqlite:///{tmp_path / 'credentials.db'}"
    columns = COLUMNS.format("extra_metadata text") + ", updated_at text"
    row = f"'alice', 'fakex', 'production', 'k', null, null, null, '{text}'"
    execute(url, f"CREATE TABLE bot_credentials ({columns})", f"INSERT INTO bot_credentials VALUES ({row})")
    store = await opened(url)
    assert await stored_time(store) is None
    await store.close()
