"""The credential store on SQLite and PostgreSQL: what is stored, found, opened and removed."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from exchange_service.credentials.database import CALL_LIMIT
from exchange_service.credentials.sql import SqlCredentialStore, open_store
from exchange_service.errors import CredentialInvalid, CredentialMissing, StoreUnavailable
from exchange_service.model import SANDBOX, Account, Credential, Secret
from tests.credential_tables import (
    CANARY,
    FULL,
    KEY,
    OANDA,
    OWNERS_TABLES,
    SLACK,
    USER,
    Database,
    everything_of,
    find_reference,
)


class TestEveryTable:
    async def test_nothing_is_stored_at_first(self, store: SqlCredentialStore) -> None:
        assert await store.find(OANDA) is None
        assert await store.accounts(USER) == []
        assert await store.all_accounts() == []
        assert await store.remove(OANDA) is False
        assert await store.problem() == ""

    async def test_a_stored_credential_is_found_and_opened(self, store: SqlCredentialStore) -> None:
        assert await store.put(OANDA, FULL) is True
        reference = await find_reference(store, OANDA)
        assert reference.account == reference.stored_as == OANDA
        opened = await store.open(reference)
        assert opened == FULL

    async def test_storing_again_replaces_and_reports_it(self, store: SqlCredentialStore) -> None:
        await store.put(OANDA, FULL)
        assert await store.put(OANDA, Credential(Secret("other"))) is False
        opened = await store.open(await find_reference(store, OANDA))
        assert opened == Credential(Secret("other"))
        assert await store.accounts(USER) == [OANDA]

    async def test_storing_at_the_same_time_makes_one_row(self, store: SqlCredentialStore) -> None:
        results = await asyncio.gather(*(store.put(OANDA, FULL) for _ in range(8)))
        assert sorted(results) == [False] * 7 + [True]

    async def test_a_removed_credential_is_gone_and_the_others_stay(self, store: SqlCredentialStore) -> None:
        sandbox = Account(USER, "oanda", SANDBOX)
        await store.put(OANDA, FULL)
        await store.put(sandbox, FULL)
        reference = await find_reference(store, OANDA)
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
        opened = await store.open(await find_reference(store, OANDA))
        assert opened.api_key.reveal() == "key"
        assert opened.api_secret.reveal() == "secret"
        assert opened.passphrase.reveal() == "pass phrase"
        assert opened.metadata == {"account_id": "7", "sandbox": True}

    async def test_null_columns_are_empty(self, store: SqlCredentialStore, database: Database) -> None:
        await store.problem()
        database.insert(passphrase=None, extra_metadata=None)
        opened = await store.open(await find_reference(store, OANDA))
        assert not opened.passphrase
        assert opened.metadata == {}

    async def test_the_version_changes_with_any_value_and_only_then(
        self, store: SqlCredentialStore, database: Database
    ) -> None:
        await store.problem()
        database.insert(extra_metadata='{"a": 1, "b": 2}')
        versions = [(await find_reference(store, OANDA)).version]
        assert (await find_reference(store, OANDA)).version == versions[0]
        for column, value in (
            ("api_key", "k2"),
            ("api_secret", "s2"),
            ("passphrase", "p2"),
            ("extra_metadata", '{"a": 1, "b": 3}'),
        ):
            database.run(f"UPDATE bot_credentials SET {column} = %s", value)
            versions.append((await find_reference(store, OANDA)).version)
        assert len(set(versions)) == len(versions)
        database.run("UPDATE bot_credentials SET extra_metadata = %s", '{ "b":3,"a":1 }')
        assert (await find_reference(store, OANDA)).version == versions[-1]

    async def test_a_user_id_that_the_column_cannot_hold_has_no_credential(self, store: SqlCredentialStore) -> None:
        for user in ("", "not a uuid", "a\x00b", "half \ud800", "' OR 1=1 --", "x" * 10_000):
            account = Account(user, "oanda")
            assert await store.find(account) is None
            assert await store.accounts(user) == []
            assert await store.remove(account) is False

    async def test_accounts_are_sorted_and_belong_to_the_user_alone(self, store: SqlCredentialStore) -> None:
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
        assert (await find_reference(store, Account(USER, "Oanda"))).stored_as == OANDA
        for near in ("oand", "oanda2", "oanda ", "%", "oand_"):
            assert await store.find(Account(USER, near)) is None


class TestEnvironments:
    @pytest.mark.parametrize("stored", [None, "", "production", "Production"])
    async def test_null_and_empty_environments_are_production(
        self, stored: str | None, sqlite_store: SqlCredentialStore, sqlite_url: str
    ) -> None:
        Database(sqlite_url).run(OWNERS_TABLES["text"])
        Database(sqlite_url).insert(environment=stored)
        reference = await find_reference(sqlite_store, OANDA)
        assert (await sqlite_store.open(reference)).api_key.reveal() == "key"
        assert await sqlite_store.find(Account(USER, "oanda", SANDBOX)) is None
        assert await sqlite_store.accounts(USER) == [Account(USER, "oanda", stored or "production")]
        assert await sqlite_store.put(OANDA, FULL) is False
        assert await sqlite_store.remove(OANDA) is True

    async def test_a_row_under_an_alias_of_the_environment_counts(self, sqlite_store: SqlCredentialStore) -> None:
        await sqlite_store.put(Account(USER, "oanda", "Practice"), FULL)
        sandbox = Account(USER, "oanda", SANDBOX)
        assert await sqlite_store.find(sandbox) is None
        reference = await find_reference(sqlite_store, sandbox, aliases=("practice", "testnet"))
        assert reference.account == sandbox
        assert reference.stored_as == Account(USER, "oanda", "Practice")
        assert await sqlite_store.open(reference) == FULL

    async def test_two_rows_for_one_environment_are_refused(self, sqlite_store: SqlCredentialStore) -> None:
        await sqlite_store.put(Account(USER, "oanda", "practice"), FULL)
        await sqlite_store.put(Account(USER, "oanda", SANDBOX), FULL)
        with pytest.raises(CredentialInvalid, match="More than one credential is stored for oanda"):
            await sqlite_store.find(Account(USER, "oanda", SANDBOX), aliases=("practice",))

    async def test_two_rows_of_null_and_production_are_refused(
        self, sqlite_store: SqlCredentialStore, sqlite_url: str
    ) -> None:
        Database(sqlite_url).run(OWNERS_TABLES["text"])
        for environment in (None, "production"):
            Database(sqlite_url).insert(environment=environment)
        for work in (sqlite_store.find(OANDA), sqlite_store.put(OANDA, FULL)):
            with pytest.raises(CredentialInvalid, match="More than one"):
                await work

    async def test_another_exchange_of_the_plugin_lends_its_credential(self, sqlite_store: SqlCredentialStore) -> None:
        options, stocks = Account(USER, "tradier_options"), Account(USER, "tradier")
        await sqlite_store.put(stocks, FULL)
        assert await sqlite_store.find(options) is None
        reference = await find_reference(sqlite_store, options, credential_of="tradier")
        assert (reference.account, reference.stored_as) == (options, stocks)
        assert await sqlite_store.open(reference) == FULL
        assert await sqlite_store.find(Account(USER, "tradier_options", SANDBOX), credential_of="tradier") is None

    async def test_the_exchanges_own_credential_comes_before_the_lent_one(
        self, sqlite_store: SqlCredentialStore
    ) -> None:
        options, stocks = Account(USER, "tradier_options"), Account(USER, "tradier")
        await sqlite_store.put(stocks, FULL)
        await sqlite_store.put(options, Credential(Secret("own")))
        reference = await find_reference(sqlite_store, options, credential_of="tradier")
        assert reference.stored_as == options
        assert (await sqlite_store.open(reference)).api_key.reveal() == "own"


class TestMalformed:
    @pytest.mark.parametrize(
        "metadata",
        [f"{{{CANARY}", f'"{CANARY}"', f'["{CANARY}"]', "12", "true", '{"a": NaN}', "[" * 60_000, "9" * 10_000],
    )
    async def test_metadata_that_is_no_object_is_refused_without_being_shown(
        self, metadata: str, sqlite_store: SqlCredentialStore, sqlite_url: str
    ) -> None:
        await sqlite_store.problem()
        Database(sqlite_url).insert(extra_metadata=metadata)
        reference = await find_reference(sqlite_store, OANDA)
        with pytest.raises(CredentialInvalid, match="not a JSON object") as caught:
            await sqlite_store.open(reference)
        assert CANARY not in everything_of(caught.value)
        assert caught.value.__context__ is None

    @pytest.mark.parametrize("metadata", ["", "  ", "null", "{}"])
    async def test_null_and_empty_metadata_are_an_empty_object(
        self, metadata: str, sqlite_store: SqlCredentialStore, sqlite_url: str
    ) -> None:
        await sqlite_store.problem()
        Database(sqlite_url).insert(extra_metadata=metadata)
        assert (await sqlite_store.open(await find_reference(sqlite_store, OANDA))).metadata == {}

    async def test_values_do_not_run_into_each_other_in_the_version(
        self, sqlite_store: SqlCredentialStore, sqlite_url: str
    ) -> None:
        await sqlite_store.problem()
        versions = set()
        for key, secret in (("ab", "c"), ("a", "bc"), ('a","b', "c"), ("a", 'b","c'), ("abc", ""), ("", "abc")):
            Database(sqlite_url).run("DELETE FROM bot_credentials")
            Database(sqlite_url).insert(api_key=key, api_secret=secret)
            versions.add((await find_reference(sqlite_store, OANDA)).version)
        assert len(versions) == 6

    async def test_the_version_needs_the_key(self, sqlite_url: str, sqlite_store: SqlCredentialStore) -> None:
        await sqlite_store.put(OANDA, FULL)
        other = await open_store(sqlite_url, b"another key")
        assert (await find_reference(other, OANDA)).version != (await find_reference(sqlite_store, OANDA)).version
        await other.close()

    @pytest.mark.parametrize(
        "credential",
        [
            Credential(Secret(f"{CANARY}\x00")),
            Credential(metadata={CANARY: object()}),
            Credential(metadata={CANARY: float("nan")}),
        ],
    )
    async def test_a_text_that_the_database_cannot_store_is_refused(
        self, credential: Credential, sqlite_store: SqlCredentialStore
    ) -> None:
        with pytest.raises(CredentialInvalid) as caught:
            await sqlite_store.put(OANDA, credential)
        assert CANARY not in str(caught.value) + repr(caught.value)
        assert await sqlite_store.find(OANDA) is None


class TestOwnersTable:
    async def test_columns_of_other_programs_are_not_changed(self, postgres_database: str) -> None:
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

    async def test_a_table_that_changes_while_in_use_is_inspected_again(self, postgres_database: str) -> None:
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

    async def test_a_file_that_others_may_read_is_warned_about(
        self, tmp_path: Path, sqlite_store: SqlCredentialStore
    ) -> None:
        await sqlite_store.put(OANDA, FULL)
        os.chmod(tmp_path / "credentials.db", 0o644)
        assert "chmod 600" in (await sqlite_store.warnings())[0]

    async def test_a_writer_does_not_block_a_reader(self, sqlite_store: SqlCredentialStore, tmp_path: Path) -> None:
        await sqlite_store.put(OANDA, FULL)
        with sqlite3.connect(tmp_path / "credentials.db", isolation_level=None) as writer:
            writer.execute("BEGIN EXCLUSIVE")
            assert await sqlite_store.find(OANDA) is not None
            writer.execute("ROLLBACK")
        writer.close()

    async def test_a_locked_file_is_unavailable_in_time_and_works_afterwards(
        self, sqlite_store: SqlCredentialStore, tmp_path: Path
    ) -> None:
        await sqlite_store.put(OANDA, FULL)
        with sqlite3.connect(tmp_path / "credentials.db", isolation_level=None) as writer:
            writer.execute("BEGIN EXCLUSIVE")
            started = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await sqlite_store.put(OANDA, Credential(Secret(CANARY)))
            assert 0.5 < time.monotonic() - started < CALL_LIMIT + SLACK
            writer.execute("ROLLBACK")
        writer.close()
        assert await sqlite_store.put(OANDA, Credential(Secret("new"))) is False

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
        assert await store.open(await find_reference(store, OANDA)) == FULL
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
