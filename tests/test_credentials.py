"""The credential store on SQLite and PostgreSQL, and the references kept in front of it."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from exchange_service.credentials import CredentialReference
from exchange_service.credentials.database import CALL_LIMIT
from exchange_service.credentials.references import CachedReferences
from exchange_service.credentials.sql import SqlCredentialStore, open_store, select_rows
from exchange_service.errors import CredentialInvalid, CredentialMissing, ServiceError, StoreUnavailable
from exchange_service.model import SANDBOX, Account, Credential, Secret
from tests.servers import PostgresServer

KEY = b"a key for the tests"
CANARY = "canary-7f3a"
# What a busy machine may add to a time limit.
SLACK = 0.5

USER = "3f0e9d6a-52c1-4d3b-9a53-0c2f7a4b8d11"
OANDA = Account(USER, "oanda")
FULL = Credential(Secret("key"), Secret("secret"), Secret("phrase"), {"account_id": "101-1", "nested": {"a": [1, 2]}})

# The owner's table as other programs may have made it.
OWNERS_TABLES = {
    "text": "CREATE TABLE bot_credentials (user_id text, exchange text, environment text DEFAULT 'production',"
    " api_key text, api_secret text, passphrase text, extra_metadata text)",
    "uuid and jsonb": "CREATE TYPE mood AS ENUM ('calm', 'wild'); CREATE TABLE bot_credentials ("
    " id uuid PRIMARY KEY DEFAULT gen_random_uuid(), created_at timestamptz NOT NULL DEFAULT now(),"
    " user_id uuid NOT NULL, exchange varchar(40) NOT NULL, environment varchar(20) DEFAULT 'production',"
    " api_key text NOT NULL, api_secret text NOT NULL, passphrase text, extra_metadata jsonb DEFAULT '{}',"
    " is_active boolean NOT NULL DEFAULT true, mood mood DEFAULT 'calm',"
    " UNIQUE (user_id, exchange, environment))",
    "uuid and json": "CREATE TABLE bot_credentials (id bigserial PRIMARY KEY, user_id uuid, exchange text,"
    " environment text, api_key text, api_secret text, passphrase text, extra_metadata json)",
}


async def seconds(work: Awaitable[object]) -> float:
    started = time.monotonic()
    await work
    return time.monotonic() - started


def everything_of(error: BaseException) -> str:
    """All that a log, a report or a debugger could show of an exception and of those behind it."""
    shown = "".join(traceback.format_exception(error))
    seen: BaseException | None = error
    while seen is not None:
        shown += f"{seen!r} {seen} {vars(seen)}"
        seen = seen.__cause__ or seen.__context__
    return shown


class Database:
    """A database that the test itself writes to, as the owner's other programs do."""

    def __init__(self, url: str) -> None:
        self.url = url

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        if self.url.startswith("sqlite"):
            with sqlite3.connect(self.url.removeprefix("sqlite:///")) as connection:
                rows = connection.execute(statement.replace("%s", "?"), values).fetchall()
            connection.close()
            return rows
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def insert(self, **row: Any) -> None:
        row = {"user_id": USER, "exchange": "oanda", "api_key": "key", "api_secret": "secret"} | row
        marks = ", ".join(["%s"] * len(row))
        self.run(f"INSERT INTO bot_credentials ({', '.join(row)}) VALUES ({marks})", *row.values())


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/credentials.db"


@pytest.fixture(params=["sqlite", "sqlite, the owner's", "postgres", *OWNERS_TABLES])
def database(request: pytest.FixtureRequest) -> Database:
    """Each kind of table that the store must serve; 'sqlite' and 'postgres' are empty, so the store makes its own."""
    if request.param.startswith("sqlite"):
        made = Database(request.getfixturevalue("sqlite_url"))
        if request.param != "sqlite":
            made.run(OWNERS_TABLES["text"])
    else:
        made = Database(request.getfixturevalue("postgres_database"))
        if request.param in OWNERS_TABLES:
            made.run(OWNERS_TABLES[request.param])
    return made


@pytest.fixture
async def store(database: Database) -> AsyncIterator[SqlCredentialStore]:
    opened = await open_store(database.url, KEY)
    yield opened
    await opened.close()


@pytest.fixture
async def lite(sqlite_url: str) -> AsyncIterator[SqlCredentialStore]:
    opened = await open_store(sqlite_url, KEY)
    yield opened
    await opened.close()


async def found(store: SqlCredentialStore, account: Account, **options: Any) -> CredentialReference:
    reference = await store.find(account, **options)
    assert reference is not None
    return reference


class TestEveryTable:
    async def test_nothing_is_stored_at_first(self, store: SqlCredentialStore) -> None:
        assert await store.find(OANDA) is None
        assert await store.accounts(USER) == []
        assert await store.all_accounts() == []
        assert await store.remove(OANDA) is False
        assert await store.problem() == ""

    async def test_what_is_put_is_found_and_opened(self, store: SqlCredentialStore) -> None:
        assert await store.put(OANDA, FULL) is True
        reference = await found(store, OANDA)
        assert reference.account == reference.stored_as == OANDA
        opened = await store.open(reference)
        assert opened == FULL

    async def test_putting_again_replaces_and_says_so(self, store: SqlCredentialStore) -> None:
        await store.put(OANDA, FULL)
        assert await store.put(OANDA, Credential(Secret("other"))) is False
        opened = await store.open(await found(store, OANDA))
        assert opened == Credential(Secret("other"))
        assert await store.accounts(USER) == [OANDA]

    async def test_many_who_put_at_once_make_one_row(self, store: SqlCredentialStore) -> None:
        results = await asyncio.gather(*(store.put(OANDA, FULL) for _ in range(8)))
        assert sorted(results) == [False] * 7 + [True]

    async def test_what_is_removed_is_gone_and_the_others_stay(self, store: SqlCredentialStore) -> None:
        sandbox = Account(USER, "oanda", SANDBOX)
        await store.put(OANDA, FULL)
        await store.put(sandbox, FULL)
        reference = await found(store, OANDA)
        assert await store.remove(OANDA) is True
        assert await store.find(OANDA) is None
        assert await store.accounts(USER) == [sandbox]
        with pytest.raises(CredentialMissing):
            await store.open(reference)

    async def test_a_plain_row_of_another_program_is_read_as_it_is(
        self, store: SqlCredentialStore, database: Database
    ) -> None:
        await store.problem()
        database.insert(passphrase="pass phrase", extra_metadata=json.dumps({"account_id": "7", "sandbox": True}))
        opened = await store.open(await found(store, OANDA))
        assert opened.api_key.reveal() == "key"
        assert opened.api_secret.reveal() == "secret"
        assert opened.passphrase.reveal() == "pass phrase"
        assert opened.metadata == {"account_id": "7", "sandbox": True}

    async def test_null_columns_are_empty(self, store: SqlCredentialStore, database: Database) -> None:
        await store.problem()
        database.insert(passphrase=None, extra_metadata=None)
        opened = await store.open(await found(store, OANDA))
        assert not opened.passphrase
        assert opened.metadata == {}

    async def test_the_version_changes_with_any_value_and_only_then(
        self, store: SqlCredentialStore, database: Database
    ) -> None:
        await store.problem()
        database.insert(extra_metadata='{"a": 1, "b": 2}')
        versions = [(await found(store, OANDA)).version]
        assert (await found(store, OANDA)).version == versions[0]
        for column, value in (
            ("api_key", "k2"),
            ("api_secret", "s2"),
            ("passphrase", "p2"),
            ("extra_metadata", '{"a": 1, "b": 3}'),
        ):
            database.run(f"UPDATE bot_credentials SET {column} = %s", value)
            versions.append((await found(store, OANDA)).version)
        assert len(set(versions)) == len(versions)
        database.run("UPDATE bot_credentials SET extra_metadata = %s", '{ "b":3,"a":1 }')
        assert (await found(store, OANDA)).version == versions[-1]

    async def test_a_user_id_that_the_column_cannot_hold_has_no_credential(self, store: SqlCredentialStore) -> None:
        for user in ("", "not a uuid", "a\x00b", "half \ud800", "' OR 1=1 --", "x" * 10_000):
            account = Account(user, "oanda")
            assert await store.find(account) is None
            assert await store.accounts(user) == []
            assert await store.remove(account) is False

    async def test_accounts_are_sorted_and_only_the_users_own(self, store: SqlCredentialStore) -> None:
        other = str(uuid.UUID(int=1))
        for account in (Account(USER, "tradier"), OANDA, Account(USER, "oanda", SANDBOX), Account(other, "oanda")):
            await store.put(account, FULL)
        mine = [OANDA, Account(USER, "oanda", SANDBOX), Account(USER, "tradier")]
        assert await store.accounts(USER) == mine
        assert await store.all_accounts() == [Account(other, "oanda"), *mine]

    async def test_the_exchange_id_is_taken_exactly_and_in_lower_case(
        self, store: SqlCredentialStore, database: Database
    ) -> None:
        await store.put(Account(USER, "OANDA"), FULL)
        assert database.run("SELECT exchange FROM bot_credentials") == [("oanda",)]
        assert (await found(store, Account(USER, "Oanda"))).stored_as == OANDA
        for near in ("oand", "oanda2", "oanda ", "%", "oand_"):
            assert await store.find(Account(USER, near)) is None


class TestEnvironments:
    @pytest.mark.parametrize("stored", [None, "", "production", "Production"])
    async def test_null_and_empty_environments_are_production(
        self, stored: str | None, lite: SqlCredentialStore, sqlite_url: str
    ) -> None:
        Database(sqlite_url).run(OWNERS_TABLES["text"])
        Database(sqlite_url).insert(environment=stored)
        reference = await found(lite, OANDA)
        assert (await lite.open(reference)).api_key.reveal() == "key"
        assert await lite.find(Account(USER, "oanda", SANDBOX)) is None
        assert await lite.accounts(USER) == [Account(USER, "oanda", stored or "production")]
        assert await lite.put(OANDA, FULL) is False
        assert await lite.remove(OANDA) is True

    async def test_a_row_under_an_alias_of_the_environment_counts(self, lite: SqlCredentialStore) -> None:
        await lite.put(Account(USER, "oanda", "Practice"), FULL)
        sandbox = Account(USER, "oanda", SANDBOX)
        assert await lite.find(sandbox) is None
        reference = await found(lite, sandbox, aliases=("practice", "testnet"))
        assert reference.account == sandbox
        assert reference.stored_as == Account(USER, "oanda", "Practice")
        assert await lite.open(reference) == FULL

    async def test_two_rows_for_one_environment_are_refused(self, lite: SqlCredentialStore) -> None:
        await lite.put(Account(USER, "oanda", "practice"), FULL)
        await lite.put(Account(USER, "oanda", SANDBOX), FULL)
        with pytest.raises(CredentialInvalid, match="More than one credential is stored for oanda"):
            await lite.find(Account(USER, "oanda", SANDBOX), aliases=("practice",))

    async def test_two_rows_of_null_and_production_are_refused(self, lite: SqlCredentialStore, sqlite_url: str) -> None:
        Database(sqlite_url).run(OWNERS_TABLES["text"])
        for environment in (None, "production"):
            Database(sqlite_url).insert(environment=environment)
        for work in (lite.find(OANDA), lite.put(OANDA, FULL)):
            with pytest.raises(CredentialInvalid, match="More than one"):
                await work

    async def test_another_exchange_of_the_plugin_lends_its_credential(self, lite: SqlCredentialStore) -> None:
        options, stocks = Account(USER, "tradier_options"), Account(USER, "tradier")
        await lite.put(stocks, FULL)
        assert await lite.find(options) is None
        reference = await found(lite, options, credential_of="tradier")
        assert (reference.account, reference.stored_as) == (options, stocks)
        assert await lite.open(reference) == FULL
        assert await lite.find(Account(USER, "tradier_options", SANDBOX), credential_of="tradier") is None

    async def test_the_exchanges_own_credential_comes_before_the_lent_one(self, lite: SqlCredentialStore) -> None:
        options, stocks = Account(USER, "tradier_options"), Account(USER, "tradier")
        await lite.put(stocks, FULL)
        await lite.put(options, Credential(Secret("own")))
        reference = await found(lite, options, credential_of="tradier")
        assert reference.stored_as == options
        assert (await lite.open(reference)).api_key.reveal() == "own"


class TestMalformed:
    @pytest.mark.parametrize(
        "metadata",
        [f"{{{CANARY}", f'"{CANARY}"', f'["{CANARY}"]', "12", "true", '{"a": NaN}', "[" * 100_000, "9" * 10_000],
    )
    async def test_metadata_that_is_no_object_is_refused_without_being_shown(
        self, metadata: str, lite: SqlCredentialStore, sqlite_url: str
    ) -> None:
        await lite.problem()
        Database(sqlite_url).insert(extra_metadata=metadata)
        reference = await found(lite, OANDA)
        with pytest.raises(CredentialInvalid, match="not a JSON object") as caught:
            await lite.open(reference)
        assert CANARY not in everything_of(caught.value)
        assert caught.value.__context__ is None

    @pytest.mark.parametrize("metadata", ["", "  ", "null", "{}"])
    async def test_metadata_that_says_nothing_is_empty(
        self, metadata: str, lite: SqlCredentialStore, sqlite_url: str
    ) -> None:
        await lite.problem()
        Database(sqlite_url).insert(extra_metadata=metadata)
        assert (await lite.open(await found(lite, OANDA))).metadata == {}

    async def test_values_do_not_run_into_each_other_in_the_version(
        self, lite: SqlCredentialStore, sqlite_url: str
    ) -> None:
        await lite.problem()
        versions = set()
        for key, secret in (("ab", "c"), ("a", "bc"), ('a","b', "c"), ("a", 'b","c'), ("abc", ""), ("", "abc")):
            Database(sqlite_url).run("DELETE FROM bot_credentials")
            Database(sqlite_url).insert(api_key=key, api_secret=secret)
            versions.add((await found(lite, OANDA)).version)
        assert len(versions) == 6

    async def test_the_version_needs_the_key(self, sqlite_url: str, lite: SqlCredentialStore) -> None:
        await lite.put(OANDA, FULL)
        other = await open_store(sqlite_url, b"another key")
        assert (await found(other, OANDA)).version != (await found(lite, OANDA)).version
        await other.close()

    @pytest.mark.parametrize(
        "credential",
        [
            Credential(Secret(f"{CANARY}\x00")),
            Credential(metadata={CANARY: object()}),
            Credential(metadata={CANARY: float("nan")}),
        ],
    )
    async def test_what_a_database_cannot_store_is_refused(
        self, credential: Credential, lite: SqlCredentialStore
    ) -> None:
        with pytest.raises(CredentialInvalid) as caught:
            await lite.put(OANDA, credential)
        assert CANARY not in str(caught.value) + repr(caught.value)
        assert await lite.find(OANDA) is None


class TestOwnersTable:
    async def test_columns_that_are_not_ours_keep_what_they_hold(self, postgres_database: str) -> None:
        database = Database(postgres_database)
        database.run(OWNERS_TABLES["uuid and jsonb"])
        database.insert(is_active=False, mood="wild")
        others = "SELECT id, created_at, is_active, mood FROM bot_credentials"
        before = database.run(others)
        store = await open_store(postgres_database, KEY)
        assert await store.put(OANDA, FULL) is False
        assert database.run(others) == before
        assert database.run("SELECT extra_metadata->>'account_id' FROM bot_credentials") == [("101-1",)]
        await store.close()

    async def test_empty_texts_are_null_where_the_column_takes_null(self, postgres_database: str) -> None:
        database = Database(postgres_database)
        database.run(OWNERS_TABLES["uuid and jsonb"])
        store = await open_store(postgres_database, KEY)
        await store.put(OANDA, Credential(Secret("only a key")))
        assert database.run("SELECT api_secret, passphrase FROM bot_credentials") == [("", None)]
        await store.close()

    async def test_a_new_user_id_that_is_no_uuid_is_refused_in_a_uuid_column(self, postgres_database: str) -> None:
        Database(postgres_database).run(OWNERS_TABLES["uuid and jsonb"])
        store = await open_store(postgres_database, KEY)
        with pytest.raises(CredentialInvalid, match="UUID"):
            await store.put(Account("me", "oanda"), FULL)
        await store.close()

    async def test_a_table_that_lacks_a_column_is_named_and_not_changed(self, sqlite_url: str) -> None:
        Database(sqlite_url).run("CREATE TABLE bot_credentials (user_id text, exchange text)")
        store = await open_store(sqlite_url, KEY)
        with pytest.raises(StoreUnavailable, match="lacks the column environment, api_key"):
            await store.find(OANDA)
        assert "lacks the column" in await store.problem()
        await store.close()

    async def test_a_table_that_changes_while_in_use_is_looked_at_again(self, postgres_database: str) -> None:
        database = Database(postgres_database)
        database.run(OWNERS_TABLES["text"])
        database.insert()
        store = await open_store(postgres_database, KEY)
        assert await store.find(OANDA) is not None
        database.run("ALTER TABLE bot_credentials ALTER COLUMN user_id TYPE uuid USING user_id::uuid")
        with pytest.raises(StoreUnavailable):
            await store.find(OANDA)
        assert await store.find(OANDA) is not None
        await store.close()

    async def test_the_search_path_of_the_url_names_the_schema(self, postgres_database: str) -> None:
        database = Database(postgres_database)
        database.run("CREATE SCHEMA elsewhere")
        mark = "&" if "?" in postgres_database else "?"
        store = await open_store(f"{postgres_database}{mark}options=-csearch_path%3Delsewhere", KEY)
        await store.put(OANDA, FULL)
        assert database.run("SELECT count(*) FROM elsewhere.bot_credentials") == [(1,)]
        await store.close()


@pytest.fixture
def api_roles(postgres_database: str) -> None:
    """The roles of Supabase's public Data API, with the rights that Supabase gives them by default."""
    database = Database(postgres_database)
    for role in ("anon", "authenticated"):
        database.run(
            f"DO $$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )
        database.run(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO {role}")
        database.run(f"GRANT USAGE ON SCHEMA public TO {role}")


@pytest.mark.threat("T2")
@pytest.mark.usefixtures("api_roles")
class TestWhoElseMayRead:
    async def test_our_own_table_is_closed_to_the_public(self, postgres_database: str) -> None:
        store = await open_store(postgres_database, KEY)
        await store.put(OANDA, FULL)
        for role in ("anon", "authenticated"):
            for statement in ("SELECT * FROM bot_credentials", "DELETE FROM bot_credentials"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    Database(postgres_database).run(f"SET ROLE {role}; {statement}")
        assert await store.warnings() == []
        await store.close()

    async def test_an_open_table_of_the_owner_is_warned_about_and_left_as_it_is(self, postgres_database: str) -> None:
        database = Database(postgres_database)
        database.run(OWNERS_TABLES["text"] + "; GRANT SELECT ON bot_credentials TO PUBLIC")
        store = await open_store(postgres_database, KEY)
        warnings = await store.warnings()
        assert [any(word in warning for warning in warnings) for word in ("row-level", "PUBLIC", "anon", "auth")] == [
            True
        ] * 4
        assert len(warnings) == 4
        assert database.run("SELECT relrowsecurity FROM pg_class WHERE relname = 'bot_credentials'") == [(False,)]
        await store.close()

    async def test_warnings_end_when_their_advice_is_followed(self, postgres_database: str) -> None:
        database = Database(postgres_database)
        database.run(OWNERS_TABLES["text"])
        store = await open_store(postgres_database, KEY)
        for warning in await store.warnings():
            database.run(warning.rpartition(": ")[2])
        assert await store.warnings() == []
        await store.close()


class TestSqliteFile:
    async def test_the_file_and_its_folders_are_for_us_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "folders" / "credentials.db"
        store = await open_store(f"sqlite:///{path}", KEY)
        assert not path.parent.exists()
        await store.put(OANDA, FULL)
        assert [stat.S_IMODE(folder.stat().st_mode) for folder in (path.parent, path.parent.parent)] == [0o700] * 2
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
        assert await store.warnings() == []
        await store.close()

    async def test_a_file_that_others_may_read_is_warned_about(self, tmp_path: Path, lite: SqlCredentialStore) -> None:
        await lite.put(OANDA, FULL)
        os.chmod(tmp_path / "credentials.db", 0o644)
        assert "chmod 600" in (await lite.warnings())[0]

    async def test_a_reader_is_not_kept_out_by_a_writer(self, lite: SqlCredentialStore, tmp_path: Path) -> None:
        await lite.put(OANDA, FULL)
        with sqlite3.connect(tmp_path / "credentials.db", isolation_level=None) as writer:
            writer.execute("BEGIN EXCLUSIVE")
            assert await lite.find(OANDA) is not None
            writer.execute("ROLLBACK")
        writer.close()

    async def test_a_locked_file_is_unavailable_in_time_and_works_afterwards(
        self, lite: SqlCredentialStore, tmp_path: Path
    ) -> None:
        await lite.put(OANDA, FULL)
        with sqlite3.connect(tmp_path / "credentials.db", isolation_level=None) as writer:
            writer.execute("BEGIN EXCLUSIVE")
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await lite.put(OANDA, Credential(Secret(CANARY)))
            assert 0.5 < time.monotonic() - started < CALL_LIMIT + SLACK
            writer.execute("ROLLBACK")
        writer.close()
        assert await lite.put(OANDA, Credential(Secret("new"))) is False

    async def test_a_path_that_is_no_database_is_a_sentence_at_the_first_use(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("this is no database, but quite a long text " * 50)
        for path in (tmp_path / "text", tmp_path / "text" / "below", tmp_path):
            store = await open_store(f"sqlite:///{path}", KEY)
            with pytest.raises(StoreUnavailable):
                await store.find(OANDA)
            assert await store.problem()
            await store.close()

    async def test_a_database_in_memory_works(self) -> None:
        store = await open_store("sqlite://", KEY)
        await store.put(OANDA, FULL)
        assert await store.open(await found(store, OANDA)) == FULL
        await store.close()

    def test_a_program_that_closes_its_store_ends(self, sqlite_url: str) -> None:
        program = (
            "import asyncio\n"
            "from exchange_service.credentials.sql import open_store\n"
            "async def main():\n"
            f"    store = await open_store({sqlite_url!r}, b'key')\n"
            "    print(repr(await store.problem()))\n"
            "    await store.close()\n"
            "asyncio.run(main())\n"
        )
        ended = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=30, check=False
        )
        assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, "''", "")


class TestSecrecy:
    async def test_nothing_that_is_shown_holds_a_secret(self, store: SqlCredentialStore) -> None:
        secret = Credential(*(Secret(CANARY) for _ in range(3)), {"private_key": CANARY})
        await store.put(OANDA, secret)
        reference = await found(store, OANDA)
        opened = await store.open(reference)
        rows = await store.call(lambda connection, table: select_rows(connection, table, USER, ["oanda"]))
        assert rows
        assert CANARY not in repr(rows)
        assert CANARY not in f"{store!r} {reference!r} {opened!r} {opened} {await store.accounts(USER)!r}"

    async def test_a_refused_statement_shows_no_value(self, postgres_database: str) -> None:
        database = Database(postgres_database)
        database.run(OWNERS_TABLES["uuid and jsonb"])
        database.run("ALTER TABLE bot_credentials ADD CONSTRAINT short CHECK (length(api_key) < 3)")
        store = await open_store(postgres_database, KEY)
        with pytest.raises(StoreUnavailable, match="refused a statement") as caught:
            await store.put(OANDA, Credential(Secret(CANARY), Secret(CANARY), metadata={"key": CANARY}))
        assert CANARY not in everything_of(caught.value)
        assert caught.value.__context__ is None
        assert caught.value.__cause__ is None
        await store.close()

    @pytest.mark.parametrize(
        "url", [f"mysql://u:{CANARY}@host/db", f"postgresql://u:{CANARY}@host:port/db", CANARY, ""]
    )
    async def test_a_url_that_cannot_be_used_is_refused_without_showing_it(self, url: str) -> None:
        with pytest.raises(ValueError, match="the credential database must be") as caught:
            await open_store(url, KEY)
        assert CANARY not in everything_of(caught.value)

    async def test_a_refused_login_does_not_show_the_password(self, postgres_server: PostgresServer) -> None:
        address = postgres_server.url.replace("postgres:@", f"nobody:{CANARY}@")
        assert CANARY in address
        store = await open_store(address, KEY)
        with pytest.raises(StoreUnavailable) as caught:
            await store.find(OANDA)
        assert CANARY not in everything_of(caught.value) + repr(store) + await store.problem()
        await store.close()

    @pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+asyncpg"])
    async def test_every_spelling_of_postgresql_is_served(self, scheme: str, postgres_database: str) -> None:
        store = await open_store(scheme + postgres_database[postgres_database.index("://") :], KEY)
        assert await store.problem() == ""
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
        deadline = time.monotonic() + 20
        while await store.problem():
            assert time.monotonic() < deadline, "the store did not recover"
            await asyncio.sleep(0.1)
        assert await store.open(await found(store, OANDA)) == FULL
        await store.close()

    async def test_a_frozen_database_does_not_hold_up_closing(
        self, own_postgres_database: str, postgres_server: PostgresServer
    ) -> None:
        store = await open_store(own_postgres_database, KEY)
        await store.put(OANDA, FULL)
        with postgres_server.frozen():
            finding = asyncio.ensure_future(store.find(OANDA))
            await asyncio.sleep(0.05)
            assert await seconds(store.close()) < 2.0 + SLACK
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
            await asyncio.sleep(0.0005 * (number % 6))
            for caller in callers:
                caller.cancel()
            await asyncio.gather(*callers, return_exceptions=True)
        answers = await asyncio.gather(*(store.find(OANDA) for _ in range(20)))
        assert all(answers)
        await store.close()


class FakeStore:
    """A store that counts the questions, waits when told to, and fails when told to."""

    def __init__(self) -> None:
        self.questions = 0
        self.version: str | None = "1"
        self.error: ServiceError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def find(
        self, account: Account, *, aliases: Sequence[str] = (), credential_of: str = ""
    ) -> CredentialReference | None:
        self.questions += 1
        version, error = self.version, self.error
        await self.gate.wait()
        if error is not None:
            raise error
        return None if version is None else CredentialReference(account, account, version)

    async def open(self, reference: CredentialReference) -> Credential:
        return FULL


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def fake() -> FakeStore:
    return FakeStore()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def references(fake: FakeStore, clock: Clock) -> CachedReferences:
    return CachedReferences(fake, clock=clock, max_accounts=3)  # type: ignore[arg-type]


async def version_of(references: CachedReferences) -> str | None:
    reference = await references.find(OANDA)
    return reference.version if reference else None


class TestReferences:
    async def test_the_store_is_asked_once_in_thirty_seconds(
        self, references: CachedReferences, fake: FakeStore, clock: Clock
    ) -> None:
        for _ in range(5):
            assert await version_of(references) == "1"
        fake.version = "2"
        clock.now += 29.9
        assert await version_of(references) == "1"
        assert fake.questions == 1
        clock.now += 0.1
        assert await version_of(references) == "2"

    async def test_a_credential_that_is_added_works_within_two_seconds(
        self, references: CachedReferences, fake: FakeStore, clock: Clock
    ) -> None:
        fake.version = None
        assert [await version_of(references) for _ in range(3)] == [None] * 3
        assert fake.questions == 1
        fake.version = "1"
        clock.now += 2
        assert await version_of(references) == "1"

    async def test_callers_at_the_same_time_share_one_question(
        self, references: CachedReferences, fake: FakeStore
    ) -> None:
        fake.gate.clear()
        callers = [asyncio.create_task(version_of(references)) for _ in range(50)]
        await asyncio.sleep(0)
        callers[0].cancel()
        await asyncio.sleep(0)
        fake.gate.set()
        answers = await asyncio.gather(*callers, return_exceptions=True)
        assert answers[1:] == ["1"] * 49
        assert isinstance(answers[0], asyncio.CancelledError)
        assert fake.questions == 1

    async def test_a_forgotten_account_is_asked_for_again(self, references: CachedReferences, fake: FakeStore) -> None:
        await version_of(references)
        fake.version = "2"
        references.forget(OANDA)
        assert await version_of(references) == "2"

    async def test_an_answer_from_before_the_change_is_not_kept(
        self, references: CachedReferences, fake: FakeStore
    ) -> None:
        fake.gate.clear()
        early = asyncio.create_task(version_of(references))
        await asyncio.sleep(0.01)
        fake.version = "2"
        references.forget(OANDA)
        fake.gate.set()
        assert await early == "1"
        assert await version_of(references) == "2"

    async def test_a_known_reference_outlives_the_store_for_five_minutes(
        self, references: CachedReferences, fake: FakeStore, clock: Clock
    ) -> None:
        await version_of(references)
        fake.error = StoreUnavailable("down")
        clock.now += 30
        for _ in range(10):
            assert await version_of(references) == "1"
        # One try, and then not again for some seconds: each try may take its whole time limit.
        assert fake.questions == 2
        clock.now += 269.9
        assert await version_of(references) == "1"
        clock.now += 0.2
        with pytest.raises(StoreUnavailable):
            await version_of(references)

    async def test_the_store_is_used_again_soon_after_it_is_back(
        self, references: CachedReferences, fake: FakeStore, clock: Clock
    ) -> None:
        await version_of(references)
        fake.error = StoreUnavailable("down")
        clock.now += 30
        await version_of(references)
        fake.error, fake.version = None, "2"
        clock.now += 5
        assert await version_of(references) == "2"

    async def test_an_unknown_account_is_unavailable_while_the_store_is(
        self, references: CachedReferences, fake: FakeStore, clock: Clock
    ) -> None:
        fake.version = None
        await version_of(references)
        fake.error = StoreUnavailable("down")
        clock.now += 2
        with pytest.raises(StoreUnavailable):
            await version_of(references)

    async def test_an_ambiguous_credential_ends_the_known_one(
        self, references: CachedReferences, fake: FakeStore, clock: Clock
    ) -> None:
        await version_of(references)
        clock.now += 30
        fake.error = CredentialInvalid("more than one")
        with pytest.raises(CredentialInvalid):
            await version_of(references)
        fake.error = StoreUnavailable("down")
        with pytest.raises(StoreUnavailable):
            await version_of(references)

    async def test_it_remembers_a_bounded_number_of_accounts(
        self, references: CachedReferences, fake: FakeStore
    ) -> None:
        for number in range(10):
            await references.find(Account(str(number), "oanda"))
        await references.find(Account("9", "oanda"))
        assert fake.questions == 10
        await references.find(Account("0", "oanda"))
        assert fake.questions == 11

    async def test_opening_goes_to_the_store(self, references: CachedReferences) -> None:
        reference = await references.find(OANDA)
        assert reference is not None
        assert await references.open(reference) == FULL
