"""Sealing, unsealing and rewrapping stored rows, also while other programs write and where rows are damaged."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from exchange_service.credentials import rewriting
from exchange_service.credentials.key_check import check_keys
from exchange_service.credentials.key_providers import FileKeys, GivenKeys
from exchange_service.credentials.keyset_files import create_keyset_file
from exchange_service.credentials.keysets import Keyset, new_keyset
from exchange_service.credentials.rewriting import Change, Choice, RewriteResult, rewrite, survey
from exchange_service.credentials.sealing import is_sealed
from exchange_service.credentials.sql import SqlCredentialStore, open_store
from exchange_service.errors import StoreUnavailable
from exchange_service.model import Account, Credential, Secret
from tests.credential_tables import KEY, OANDA, OWNERS_TABLES, USER, Database
from tests.sealed_stores import (
    CANARY,
    FULL,
    OTHER,
    SECRETS,
    Stores,
    given_keys,
    open_credential,
    problems_of,
    read_columns,
    rewrite_all,
)


class TestWhileOthersWrite:
    async def test_a_change_by_another_program_is_never_overwritten(
        self, open_with: Stores, database: Database, keys: GivenKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = await open_with(keys)
        database.insert()
        replace = rewriting.replace_row
        calls: list[Any] = []

        async def late(*arguments: Any) -> RewriteResult | None:
            if not calls:
                database.run("UPDATE bot_credentials SET api_secret = %s", "newer")
            calls.append(arguments)
            return await replace(*arguments)

        monkeypatch.setattr(rewriting, "replace_row", late)
        assert await rewrite_all(store, Change.SEAL) == {RewriteResult.CHANGED: 1}
        assert len(calls) == 2
        assert (await open_credential(store)).api_secret.reveal() == "newer"

    async def test_a_row_that_is_changed_again_and_again_is_left_to_the_next_run(
        self, open_sqlite: Stores, sqlite_database: Database, keys: GivenKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = await open_sqlite(keys)
        sqlite_database.insert()
        sqlite_database.insert(exchange="tradier")
        replace = rewriting.replace_row

        async def late(store: SqlCredentialStore, row: Any, texts: Any) -> RewriteResult | None:
            sqlite_database.run("UPDATE bot_credentials SET api_secret = api_secret || '+' WHERE exchange = 'oanda'")
            return await replace(store, row, texts)

        monkeypatch.setattr(rewriting, "replace_row", late)
        assert await rewrite_all(store, Change.SEAL) == {RewriteResult.IN_USE: 1, RewriteResult.CHANGED: 1}
        monkeypatch.undo()
        assert await rewrite_all(store, Change.SEAL) == {RewriteResult.CHANGED: 1, RewriteResult.NOTHING_TO_DO: 1}

    async def test_a_row_that_is_removed_meanwhile_is_nothing_to_do(
        self, open_sqlite: Stores, sqlite_database: Database, keys: GivenKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = await open_sqlite(keys)
        sqlite_database.insert()
        replace = rewriting.replace_row

        async def late(*arguments: Any) -> RewriteResult | None:
            sqlite_database.run("DELETE FROM bot_credentials")
            return await replace(*arguments)

        monkeypatch.setattr(rewriting, "replace_row", late)
        assert await rewrite_all(store, Change.SEAL) == {RewriteResult.NOTHING_TO_DO: 1}
        assert read_columns(sqlite_database) == []

    async def test_a_run_that_ends_half_way_is_finished_by_the_next(
        self, open_with: Stores, database: Database, keys: GivenKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(rewriting, "PAGE_SIZE", 3)
        store = await open_with(keys)
        users = [str(uuid.UUID(int=number)) for number in range(1, 11)]
        for user in users:
            database.insert(user_id=user)
        half = 0
        async for item in rewrite(store, Change.SEAL, Choice()):
            half += item.result is RewriteResult.CHANGED
            if half == 4:
                break
        sealed = [is_sealed(row[0]) for row in read_columns(database, "api_key")]
        assert sealed == [True] * 4 + [False] * 6
        for user in users:
            assert (await open_credential(store, Account(user, "oanda"))).api_key.reveal() == "key"
        assert await rewrite_all(store, Change.SEAL) == {RewriteResult.NOTHING_TO_DO: 4, RewriteResult.CHANGED: 6}
        assert (await survey(store)).plain_rows == 0


class TestOwnersTable:
    @pytest.fixture
    def owners(self, postgres_database: str) -> Database:
        made = Database(postgres_database)
        made.run(OWNERS_TABLES["uuid and jsonb"])
        return made

    async def test_columns_of_other_programs_are_not_changed(self, owners: Database, keys: GivenKeys) -> None:
        others = (
            "SELECT id, created_at, user_id, exchange, environment, is_active, mood FROM bot_credentials ORDER BY id"
        )
        schema = (
            "SELECT column_name, data_type, is_nullable, column_default FROM information_schema.columns"
            " WHERE table_name = 'bot_credentials'"
        )
        for number in range(5):
            owners.insert(user_id=str(uuid.UUID(int=number)), is_active=number % 2 == 0, mood="wild", environment=None)
        before = owners.run(others), owners.run(schema)
        store = await open_store(owners.url, KEY, keys=keys)
        assert await rewrite_all(store, Change.SEAL) == {RewriteResult.CHANGED: 5}
        assert (owners.run(others), owners.run(schema)) == before
        assert await rewrite_all(store, Change.UNSEAL) == {RewriteResult.CHANGED: 5}
        assert (owners.run(others), owners.run(schema)) == before
        await store.close()

    async def test_a_column_that_is_too_narrow_leaves_its_row_plain_and_the_others_are_sealed(
        self, owners: Database, keys: GivenKeys
    ) -> None:
        owners.run(
            "ALTER TABLE bot_credentials ADD CONSTRAINT short CHECK (exchange <> 'tradier' OR length(api_key) < 9)"
        )
        for exchange in ("oanda", "tradier", "aster"):
            owners.insert(exchange=exchange, api_key=CANARY[:8])
        owners.run("ALTER TABLE bot_credentials ALTER COLUMN passphrase TYPE varchar(20)")
        owners.run("UPDATE bot_credentials SET passphrase = 'short' WHERE exchange = 'aster'")
        store = await open_store(owners.url, KEY, keys=keys)
        with capture_logs() as lines:
            assert await rewrite_all(store, Change.SEAL) == {RewriteResult.CHANGED: 1, RewriteResult.REFUSED: 2}
        assert CANARY[:8] not in str(lines)
        for exchange in ("oanda", "tradier", "aster"):
            assert (await open_credential(store, Account(USER, exchange))).api_key.reveal() == CANARY[:8]
        assert await rewrite_all(store, Change.SEAL) == {RewriteResult.NOTHING_TO_DO: 1, RewriteResult.REFUSED: 2}
        await store.close()

    async def test_a_row_that_is_locked_for_long_ends_the_run_and_the_next_one_finishes_it(
        self, owners: Database, keys: GivenKeys
    ) -> None:
        for exchange in ("oanda", "tradier"):
            owners.insert(exchange=exchange)
        store = await open_store(owners.url, KEY, keys=keys)
        with psycopg.connect(owners.url) as other:
            other.execute("SELECT * FROM bot_credentials WHERE exchange = 'tradier' FOR UPDATE")
            with pytest.raises(StoreUnavailable, match="QueryCanceled"):
                await rewrite_all(store, Change.SEAL)
        assert (await rewrite_all(store, Change.SEAL))[RewriteResult.CHANGED] >= 1
        assert (await survey(store)).plain_rows == 0
        await store.close()


class TestDamagedRows:
    async def test_a_row_that_does_not_open_is_left_as_it_is_and_named(
        self, open_sqlite: Stores, sqlite_database: Database, keyset: Keyset
    ) -> None:
        await (await open_sqlite(given_keys(keyset))).put(OANDA, FULL)
        store = await open_sqlite(given_keys(keyset.with_new_key(primary=True)))
        await store.put(Account(OTHER, "oanda"), FULL)
        sqlite_database.run("UPDATE bot_credentials SET api_key = 'xs1:' || substr(api_key, 5, 20)")
        before = read_columns(sqlite_database)
        assert await rewrite_all(store, Change.REWRAP) == {RewriteResult.UNREADABLE: 2}
        assert await rewrite_all(store, Change.UNSEAL) == {RewriteResult.UNREADABLE: 2}
        assert read_columns(sqlite_database) == before
        assert (await survey(store)).values_by_key[""] == 2

    async def test_one_damaged_row_does_not_prove_the_key_wrong(
        self, open_sqlite: Stores, sqlite_database: Database, keys: GivenKeys
    ) -> None:
        store = await open_sqlite(keys)
        for number in range(3):
            await store.put(Account(str(number), "oanda"), FULL)
        for column in SECRETS.split(", "):
            sqlite_database.run(f"UPDATE bot_credentials SET {column} = substr({column}, 1, 60) WHERE user_id = '0'")
        sqlite_database.run("UPDATE bot_credentials SET api_secret = 'xs1:!' WHERE user_id = '1'")
        assert await problems_of(store) == []
        sqlite_database.run("UPDATE bot_credentials SET api_key = 'xs1:other:AAAA:AAAA' WHERE user_id = '0'")
        (problem,) = await problems_of(store)
        assert "the key other, which the keyset does not have" in problem

    async def test_stray_values_that_look_sealed_are_logged_and_do_not_stop_the_service(
        self, open_with: Stores, database: Database, keys: GivenKeys, keyset: Keyset
    ) -> None:
        store = await open_with(keys)
        for number in range(8):
            await store.put(Account(str(uuid.UUID(int=number)), "oanda"), FULL)
        # What a user may type into another program, which stores it: an id that no keyset has, or one that it has.
        for text in ("xs1:none:AAAA:AAAA", f"xs1:{keyset.primary}:AAAA:AAAA"):
            database.insert(user_id=OTHER, exchange=f"fakex {len(text)}", api_key=text)
        check = await check_keys(store)
        assert (len(check.problems), check.keys_fit) == (1, True)
        assert "the key none, which" in check.problems[0]
        for other in (given_keys(new_keyset()), GivenKeys("no keyset"), None):
            assert not (await check_keys(await open_with(other))).keys_fit
        # As many as would be there if half of the rows were sealed with a key that this keyset lacks.
        database.run(f"UPDATE bot_credentials SET api_key = 'xs1:none:AAAA:AAAA' WHERE user_id <> '{OTHER}'")
        assert not (await check_keys(store)).keys_fit
        database.run("DELETE FROM bot_credentials")
        assert (await check_keys(store)).keys_fit

    async def test_a_keyset_file_that_breaks_is_reported_and_the_last_good_keys_stay_in_use(
        self, open_sqlite: Stores, tmp_path: Path
    ) -> None:
        file = tmp_path / "keyset.json"
        create_keyset_file(file)
        store = await open_sqlite(FileKeys(file))
        await store.put(OANDA, FULL)
        file.chmod(0o644)
        file.write_text("{")
        check = await check_keys(store)
        assert (len(check.problems), check.keys_fit) == (1, True)
        assert not (await check_keys(await open_sqlite(FileKeys(file)))).keys_fit

    async def test_a_crowd_of_ids_that_mean_nothing_does_not_hide_a_missing_key(
        self, open_sqlite: Stores, sqlite_database: Database, keys: GivenKeys
    ) -> None:
        store = await open_sqlite(keys)
        for number in range(60):
            sqlite_database.insert(user_id=f"a{number}", api_key=f"xs1:-{number}:AAAA:AAAA")
        for number in range(3):
            await store.put(Account(f"b{number}", "oanda"), Credential(Secret("key")))
        missing = f"the key {await keys.primary()}, which"
        assert missing in str(await problems_of(await open_sqlite(given_keys(new_keyset()))))
