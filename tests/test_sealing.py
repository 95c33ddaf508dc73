"""Sealed values: bound to their place, opened by whoever holds the keys, and changed where they stand, safely."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sqlite3
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from exchange_service.credentials import rewriting
from exchange_service.credentials.audit import Audit
from exchange_service.credentials.configured import open_configured_store
from exchange_service.credentials.key_check import check_keys
from exchange_service.credentials.key_providers import FileKeys, GivenKeys
from exchange_service.credentials.keyset_files import create_keyset_file
from exchange_service.credentials.keysets import (
    Keyset,
    KeyUnknown,
    aead,
    encrypt,
    new_keyset,
)
from exchange_service.credentials.rewriting import Change, Choice, RewriteResult, rewrite, survey
from exchange_service.credentials.sealing import AssociatedData, is_sealed, key_id_of, open_value, seal, unseal
from exchange_service.credentials.sql import SqlCredentialStore, open_store
from exchange_service.errors import CredentialInvalid, CredentialUnreadable, StoreUnavailable
from exchange_service.model import Account, Credential, Secret
from exchange_service.settings import Settings
from tests.test_credentials import OWNERS_TABLES, Database, everything_of, found

KEY = b"a key for the tests"
CANARY = "canary-51d0"
USER = "3f0e9d6a-52c1-4d3b-9a53-0c2f7a4b8d11"
OTHER = str(uuid.UUID(int=7))
OANDA = Account(USER, "oanda")
FULL = Credential(
    Secret(f"{CANARY} key"),
    Secret(f"{CANARY} secret"),
    Secret(f"{CANARY} phrase"),
    {"private_key": CANARY, "a": [1, 2]},
)
SECRETS = "api_key, api_secret, passphrase, extra_metadata"
HERE = AssociatedData("bot_credentials", "api_key", USER, "oanda", "production")


def given_keys(keyset: Keyset) -> GivenKeys:
    return GivenKeys(keyset.as_text())


@pytest.fixture
def keyset() -> Keyset:
    return new_keyset()


@pytest.fixture
def keys(keyset: Keyset) -> GivenKeys:
    return given_keys(keyset)


class TestValue:
    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
    @given(value=st.text(st.characters(exclude_categories=["Cs"])))
    async def test_any_text_is_sealed_and_opened(self, keys: GivenKeys, value: str) -> None:
        sealed = await seal(value, HERE, keys)
        assert is_sealed(sealed)
        assert await unseal(sealed, HERE, keys) == value
        assert await unseal(json.dumps(sealed), HERE, keys) == value

    async def test_it_names_its_form_and_its_key(self, keys: GivenKeys, keyset: Keyset) -> None:
        sealed = await seal(CANARY, HERE, keys)
        assert sealed.split(":")[:2] == ["xs1", keyset.primary]
        assert key_id_of(sealed) == key_id_of(json.dumps(sealed)) == keyset.primary
        assert CANARY not in sealed

    @pytest.mark.parametrize(
        "place",
        [
            AssociatedData("other_table", "api_key", USER, "oanda", "production"),
            AssociatedData("bot_credentials", "api_secret", USER, "oanda", "production"),
            AssociatedData("bot_credentials", "api_key", OTHER, "oanda", "production"),
            AssociatedData("bot_credentials", "api_key", USER, "tradier", "production"),
            AssociatedData("bot_credentials", "api_key", USER, "oanda", "sandbox"),
            # The same letters, cut at another point.
            AssociatedData("bot_credentials", "api_key", USER + "o", "anda", "production"),
        ],
        ids=lambda place: f"{place.table} {place.column} {place.user_id[-4:]} {place.exchange} {place.environment}",
    )
    async def test_it_does_not_open_at_another_place(self, keys: GivenKeys, place: AssociatedData) -> None:
        sealed = await seal(CANARY, HERE, keys)
        with pytest.raises(CredentialUnreadable, match="does not open") as caught:
            await unseal(sealed, place, keys)
        assert CANARY not in everything_of(caught.value)
        assert caught.value.__context__ is None

    @pytest.mark.parametrize("environment", [None, "", "production", "Production", " production "])
    async def test_every_spelling_of_production_is_one_place(self, keys: GivenKeys, environment: str | None) -> None:
        sealed = await seal("value", HERE, keys)
        assert (
            await unseal(sealed, AssociatedData("bot_credentials", "api_key", USER, "OANDA", environment), keys)
            == "value"
        )

    async def test_no_character_of_it_can_be_changed(self, keys: GivenKeys) -> None:
        sealed = await seal("v", HERE, keys)
        for index, letter in enumerate(sealed):
            changed = sealed[:index] + ("A" if letter != "A" else "B") + sealed[index + 1 :]
            # The last character of each part holds bits that mean nothing.
            if index == len(sealed) - 1 or sealed[index + 1 : index + 2] == ":":
                continue
            assert is_sealed(changed) or index < 4
            with pytest.raises(CredentialUnreadable):
                await unseal(changed, HERE, keys)

    @pytest.mark.parametrize(
        "text", ["xs1:", "xs1:a", "xs1:a:b:c", "xs1:a:é:c", "xs2:a:AAAA:AAAA", '"xs1:a:b:c"', '"xs1:']
    )
    async def test_a_damaged_one_or_one_of_a_later_form_is_never_taken_for_plain(
        self, keys: GivenKeys, text: str
    ) -> None:
        assert is_sealed(text)
        with pytest.raises(CredentialUnreadable):
            await unseal(text, HERE, keys)
        with pytest.raises(CredentialUnreadable):
            open_value(text, new_keyset(), column="api_key", user_id=USER, exchange="oanda")

    @pytest.mark.parametrize("text", [None, "", "xs", "xs1", "a xs1:a:b:c", "xsX:a", '{"xs1:a": 1}', "XS1:a:b:c"])
    def test_what_only_looks_like_it_is_plain(self, text: str | None) -> None:
        assert not is_sealed(text)

    @pytest.mark.parametrize(("data_key", "value"), [(b"short", b""), (bytes(32), b"\xff" + CANARY.encode())])
    async def test_what_another_program_sealed_wrongly_is_unreadable_and_not_shown(
        self, keys: GivenKeys, keyset: Keyset, data_key: bytes, value: bytes
    ) -> None:
        place = HERE.encode()
        _, wrapped = keyset.wrap(data_key, place)
        body = encrypt(aead(bytes(32)), value, place)
        parts = [base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (wrapped, body)]
        sealed = ":".join(["xs1", keyset.primary, *parts])
        with pytest.raises(CredentialUnreadable, match="does not open") as caught:
            await unseal(sealed, HERE, keys)
        assert CANARY not in everything_of(caught.value)
        assert caught.value.__context__ is None
        with pytest.raises(CredentialUnreadable, match="does not open"):
            open_value(sealed, keyset, column="api_key", user_id=USER, exchange="oanda")

    async def test_a_key_that_is_missing_is_named(self, keys: GivenKeys, keyset: Keyset) -> None:
        sealed = await seal(CANARY, HERE, keys)
        with pytest.raises(CredentialUnreadable, match=f"the key {keyset.primary}, which the keyset does not have"):
            await unseal(sealed, HERE, given_keys(new_keyset()))


class RemoteKeys:
    """Keys as a KMS offers them: elsewhere, asked for each value, and at times out of reach."""

    def __init__(self) -> None:
        self.keyset = new_keyset()
        self.down = False
        self.asked = 0

    async def problem(self) -> str:
        return "The KMS does not answer." if self.down else ""

    async def primary(self) -> str:
        return self.keyset.primary

    async def known(self) -> frozenset[str]:
        return frozenset(self.keyset.keys)

    async def _ask(self) -> Keyset:
        self.asked += 1
        await asyncio.sleep(0)
        if self.down:
            raise StoreUnavailable("The KMS does not answer.")
        return self.keyset

    async def wrap(self, data_key: bytes, associated_data: bytes) -> tuple[str, bytes]:
        return (await self._ask()).wrap(data_key, associated_data)

    async def unwrap(self, key_id: str, wrapped: bytes, associated_data: bytes) -> bytes:
        if key_id not in self.keyset.keys:
            raise KeyUnknown
        return (await self._ask()).unwrap(key_id, wrapped, associated_data)


@pytest.fixture(params=["sqlite", "sqlite, the owner's", "postgres", *OWNERS_TABLES])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """Each kind of table; 'sqlite' and 'postgres' are empty, so the store makes its own."""
    if request.param.startswith("sqlite"):
        made = Database(f"sqlite:///{tmp_path}/credentials.db")
        if request.param != "sqlite":
            made.run(OWNERS_TABLES["text"])
    else:
        made = Database(request.getfixturevalue("postgres_database"))
        if request.param in OWNERS_TABLES:
            made.run(OWNERS_TABLES[request.param])
    return made


@pytest.fixture
def lite(tmp_path: Path) -> Database:
    made = Database(f"sqlite:///{tmp_path}/credentials.db")
    made.run(OWNERS_TABLES["text"])
    return made


class Stores:
    """Opens stores on one database, with other keys each, and closes them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.opened: list[SqlCredentialStore] = []

    async def __call__(self, keys: Any = None, **options: Any) -> SqlCredentialStore:
        store = await open_store(self.database.url, KEY, keys=keys, **options)
        # The table is there from now on.
        await store.problem()
        self.opened.append(store)
        return store


@pytest.fixture
async def open_with(database: Database) -> AsyncIterator[Stores]:
    stores = Stores(database)
    yield stores
    for store in stores.opened:
        await store.close()


@pytest.fixture
async def open_lite(lite: Database) -> AsyncIterator[Stores]:
    stores = Stores(lite)
    yield stores
    for store in stores.opened:
        await store.close()


async def done(
    store: SqlCredentialStore, change: Change, choice: Choice | None = None, **options: Any
) -> dict[RewriteResult, int]:
    return dict(Counter([item.result async for item in rewrite(store, change, choice or Choice(), **options)]))


def stored(database: Database, columns: str = SECRETS) -> list[tuple[str | None, ...]]:
    texts = ", ".join(f"CAST({name.strip()} AS text)" for name in columns.split(","))
    return database.run(f"SELECT {texts} FROM bot_credentials ORDER BY CAST(user_id AS text), exchange, environment")


async def problems_of(store: SqlCredentialStore) -> list[str]:
    return list((await check_keys(store)).problems)


async def opened(store: SqlCredentialStore, account: Account = OANDA) -> Credential:
    return await store.open(await found(store, account))


class TestEveryTable:
    async def test_what_is_put_with_keys_is_sealed_in_every_column_and_opened(
        self, open_with: Stores, database: Database, keys: GivenKeys, request: pytest.FixtureRequest
    ) -> None:
        store = await open_with(keys)
        assert await store.put(OANDA, FULL) is True
        assert all(is_sealed(text) for text in stored(database)[0])
        assert CANARY not in repr(database.run("SELECT * FROM bot_credentials"))
        assert await opened(store) == FULL
        # A uuid is the same in capitals.
        same = USER.upper() if "uuid" in request.node.name else USER
        assert await store.put(Account(same, "OANDA"), FULL) is False
        assert await opened(store) == await opened(store, Account(same, "Oanda")) == FULL

    async def test_plain_rows_are_sealed_opened_and_made_plain_again_to_the_last_letter(
        self, open_with: Stores, database: Database, keys: GivenKeys
    ) -> None:
        store = await open_with(keys)
        metadata = '{"account_id": "7", "amount": 1.10, "big": 12345678901234567890123, "k": "ü\\u0001"}'
        database.insert(passphrase="pass phrase", extra_metadata=metadata)
        before, credential = stored(database), await opened(store)
        assert await done(store, Change.SEAL) == {RewriteResult.CHANGED: 1}
        assert all(is_sealed(text) for text in stored(database)[0])
        assert await opened(store) == credential
        assert await done(store, Change.SEAL) == {RewriteResult.NOTHING_TO_DO: 1}
        assert await done(store, Change.UNSEAL) == {RewriteResult.CHANGED: 1}
        assert stored(database) == before

    async def test_what_is_null_or_empty_stays_so(self, open_with: Stores, database: Database, keys: GivenKeys) -> None:
        store = await open_with(keys)
        database.insert(api_secret="", passphrase=None, extra_metadata="{}")
        database.insert(exchange="tradier", extra_metadata=None, passphrase="")
        assert await done(store, Change.SEAL) == {RewriteResult.CHANGED: 2}
        oanda, tradier = stored(database)
        assert (is_sealed(oanda[0]), *oanda[1:]) == (True, "", None, "{}")
        assert ([is_sealed(text) for text in tradier[:2]], *tradier[2:]) == ([True, True], "", None)
        assert (await opened(store)).metadata == {}

    async def test_a_value_that_is_copied_to_another_row_is_refused(
        self, open_with: Stores, database: Database, keys: GivenKeys
    ) -> None:
        store = await open_with(keys)
        await store.put(OANDA, FULL)
        mallory = Account(OTHER, "oanda")
        await store.put(mallory, Credential(Secret("his own"), Secret("his own")))
        for column in ("api_key", "extra_metadata"):
            database.run(
                f"UPDATE bot_credentials SET {column} = (SELECT other.{column} FROM bot_credentials AS other"
                f" WHERE other.user_id = '{USER}') WHERE user_id = '{OTHER}'"
            )
            with pytest.raises(
                CredentialUnreadable, match=f"The {column} of the stored oanda credential does not open"
            ):
                await opened(store, mallory)
            await store.put(mallory, Credential(Secret("his own"), Secret("his own")))
        assert await opened(store) == FULL

    async def test_a_rotation_leaves_both_keys_in_use_until_the_rewrap(
        self, open_with: Stores, database: Database, keyset: Keyset
    ) -> None:
        first = await open_with(given_keys(keyset))
        await first.put(OANDA, FULL)
        rotated = keyset.with_new_key(primary=True)
        second = await open_with(given_keys(rotated))
        sandbox = Account(USER, "oanda", "sandbox")
        await second.put(sandbox, FULL)
        assert await opened(second) == await opened(second, sandbox) == FULL
        assert (await survey(second)).values_by_key == {keyset.primary: 4, rotated.primary: 4}
        before = await found(second, sandbox)
        assert await done(second, Change.REWRAP) == {RewriteResult.CHANGED: 1, RewriteResult.NOTHING_TO_DO: 1}
        assert (await survey(second)).values_by_key == {rotated.primary: 8}
        assert await done(second, Change.REWRAP) == {RewriteResult.NOTHING_TO_DO: 2}
        only_new = await open_with(given_keys(rotated.without(keyset.primary)))
        assert await opened(only_new) == FULL
        # A reference from before opens what is stored now.
        assert await only_new.open(before) == FULL
        with pytest.raises(CredentialUnreadable, match="which the keyset does not have"):
            await opened(first)

    async def test_the_keys_are_proven_by_opening_a_value_of_each(
        self, open_with: Stores, database: Database, keyset: Keyset
    ) -> None:
        none, right = await open_with(), await open_with(given_keys(keyset))
        assert await problems_of(none) == await problems_of(right) == []
        await right.put(OANDA, Credential(metadata={"private_key": CANARY}))
        assert await problems_of(right) == []
        (unset,) = await problems_of(none)
        assert "no keyset" in unset
        (missing,) = await problems_of(await open_with(given_keys(new_keyset())))
        assert f"the key {keyset.primary}, which the keyset does not have" in missing
        impostor = new_keyset()
        wrong = Keyset(keyset.primary, {keyset.primary: impostor.keys[impostor.primary]})
        (other,) = await problems_of(await open_with(given_keys(wrong)))
        assert f"The key {keyset.primary} of the keyset is not the one" in other

    async def test_only_what_was_chosen_is_sealed(self, open_with: Stores, database: Database, keys: GivenKeys) -> None:
        store = await open_with(keys)
        for user, exchange in ((USER, "oanda"), (USER, "tradier"), (OTHER, "oanda"), (OTHER, "tradier")):
            database.insert(user_id=user, exchange=exchange)

        async def plain() -> list[bool]:
            return [not is_sealed(row[0]) for row in stored(database, "api_key")]

        assert await done(store, Change.SEAL, Choice("nobody")) == {}
        assert await done(store, Change.SEAL, Choice(OTHER, "tradier"), dry_run=True) == {RewriteResult.CHANGED: 1}
        assert await plain() == [True] * 4
        assert await done(store, Change.SEAL, Choice(OTHER, "tradier")) == {RewriteResult.CHANGED: 1}
        # The other user's id sorts first.
        assert await plain() == [True, False, True, True]
        assert await done(store, Change.SEAL, Choice(exchange_id="oanda")) == {RewriteResult.CHANGED: 2}
        assert await plain() == [False, False, False, True]
        assert await done(store, Change.SEAL, Choice(USER)) == {
            RewriteResult.NOTHING_TO_DO: 1,
            RewriteResult.CHANGED: 1,
        }
        assert await plain() == [False] * 4


class TestWithoutTheKeys:
    async def test_a_sealed_row_is_refused_and_its_text_goes_nowhere(self, open_lite: Stores, keys: GivenKeys) -> None:
        await (await open_lite(keys)).put(OANDA, FULL)
        store = await open_lite()
        with pytest.raises(CredentialUnreadable, match="sealed, and there is no keyset"):
            await opened(store)

    async def test_a_sealed_row_is_not_replaced_by_a_plain_one(
        self, open_lite: Stores, keys: GivenKeys, lite: Database
    ) -> None:
        await (await open_lite(keys)).put(OANDA, FULL)
        before = stored(lite)
        store = await open_lite()
        with pytest.raises(CredentialUnreadable, match="no keyset to seal the new one"):
            await store.put(OANDA, Credential(Secret("new")))
        assert stored(lite) == before
        assert await store.remove(OANDA) is True
        assert await store.put(OANDA, Credential(Secret("new"))) is True

    async def test_nothing_is_stored_in_plain_text_when_the_keys_cannot_be_used(
        self, open_lite: Stores, lite: Database
    ) -> None:
        store = await open_lite(GivenKeys("no keyset"))
        with pytest.raises(CredentialUnreadable):
            await store.put(OANDA, FULL)
        assert stored(lite) == []
        lite.insert()
        assert await done(store, Change.SEAL) == {RewriteResult.UNREADABLE: 1}
        assert stored(lite, "api_key") == [("key",)]

    @pytest.mark.parametrize("sealing", [True, False])
    async def test_a_value_that_looks_sealed_is_not_stored_because_it_could_not_be_read_again(
        self, open_lite: Stores, lite: Database, keys: GivenKeys, sealing: bool
    ) -> None:
        store = await open_lite(keys if sealing else None)
        for name in ("api_key", "api_secret", "passphrase"):
            with pytest.raises(CredentialInvalid, match="begins as sealed values do") as caught:
                await store.put(OANDA, Credential.from_texts({name: f"xs1:{CANARY}"}, {}))
            assert CANARY not in everything_of(caught.value)
        assert stored(lite) == []


class TestPlaintext:
    async def test_rows_of_both_kinds_and_rows_of_a_mixed_kind_are_read(
        self, open_lite: Stores, keys: GivenKeys, lite: Database
    ) -> None:
        store = await open_lite(keys)
        await store.put(OANDA, FULL)
        lite.insert(exchange="tradier")
        lite.run("UPDATE bot_credentials SET api_secret = 'plain' WHERE exchange = 'oanda'")
        assert (await opened(store)).api_secret.reveal() == "plain"
        assert (await opened(store)).api_key == FULL.api_key
        assert (await opened(store, Account(USER, "tradier"))).api_key.reveal() == "key"
        assert await done(store, Change.SEAL) == {RewriteResult.CHANGED: 2}
        assert (await opened(store)).api_secret.reveal() == "plain"

    async def test_a_plain_value_is_refused_where_it_is_not_allowed(
        self, open_lite: Stores, keys: GivenKeys, lite: Database
    ) -> None:
        store = await open_lite(keys, allow_plaintext=False)
        await store.put(OANDA, FULL)
        assert await opened(store) == FULL
        lite.run("UPDATE bot_credentials SET api_secret = 'slipped in'")
        with pytest.raises(CredentialUnreadable, match="allow_plaintext=false refuses"):
            await opened(store)
        # It can be sealed nevertheless, once the operator says so.
        assert await done(store, Change.SEAL) == {RewriteResult.CHANGED: 1}
        assert (await opened(store)).api_secret.reveal() == "slipped in"

    async def test_metadata_that_are_no_object_are_refused_when_sealed_as_when_plain(
        self, open_lite: Stores, keys: GivenKeys, lite: Database
    ) -> None:
        store = await open_lite(keys)
        lite.insert(extra_metadata=f"{{{CANARY}")
        assert await done(store, Change.SEAL) == {RewriteResult.CHANGED: 1}
        assert CANARY not in repr(stored(lite))
        with pytest.raises(CredentialInvalid, match="not a JSON object") as caught:
            await opened(store)
        assert CANARY not in everything_of(caught.value)


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
        assert await done(store, Change.SEAL) == {RewriteResult.CHANGED: 1}
        assert len(calls) == 2
        assert (await opened(store)).api_secret.reveal() == "newer"

    async def test_a_row_that_is_changed_again_and_again_is_left_to_the_next_run(
        self, open_lite: Stores, lite: Database, keys: GivenKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = await open_lite(keys)
        lite.insert()
        lite.insert(exchange="tradier")
        replace = rewriting.replace_row

        async def late(store: SqlCredentialStore, row: Any, texts: Any) -> RewriteResult | None:
            lite.run("UPDATE bot_credentials SET api_secret = api_secret || '+' WHERE exchange = 'oanda'")
            return await replace(store, row, texts)

        monkeypatch.setattr(rewriting, "replace_row", late)
        assert await done(store, Change.SEAL) == {RewriteResult.IN_USE: 1, RewriteResult.CHANGED: 1}
        monkeypatch.undo()
        assert await done(store, Change.SEAL) == {RewriteResult.CHANGED: 1, RewriteResult.NOTHING_TO_DO: 1}

    async def test_a_row_that_is_removed_meanwhile_is_nothing_to_do(
        self, open_lite: Stores, lite: Database, keys: GivenKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = await open_lite(keys)
        lite.insert()
        replace = rewriting.replace_row

        async def late(*arguments: Any) -> RewriteResult | None:
            lite.run("DELETE FROM bot_credentials")
            return await replace(*arguments)

        monkeypatch.setattr(rewriting, "replace_row", late)
        assert await done(store, Change.SEAL) == {RewriteResult.NOTHING_TO_DO: 1}
        assert stored(lite) == []

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
        sealed = [is_sealed(row[0]) for row in stored(database, "api_key")]
        assert sealed == [True] * 4 + [False] * 6
        for user in users:
            assert (await opened(store, Account(user, "oanda"))).api_key.reveal() == "key"
        assert await done(store, Change.SEAL) == {RewriteResult.NOTHING_TO_DO: 4, RewriteResult.CHANGED: 6}
        assert (await survey(store)).plain_rows == 0


class TestOwnersTable:
    @pytest.fixture
    def owners(self, postgres_database: str) -> Database:
        made = Database(postgres_database)
        made.run(OWNERS_TABLES["uuid and jsonb"])
        return made

    async def test_columns_that_are_not_ours_keep_what_they_hold(self, owners: Database, keys: GivenKeys) -> None:
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
        assert await done(store, Change.SEAL) == {RewriteResult.CHANGED: 5}
        assert (owners.run(others), owners.run(schema)) == before
        assert await done(store, Change.UNSEAL) == {RewriteResult.CHANGED: 5}
        assert (owners.run(others), owners.run(schema)) == before
        await store.close()

    async def test_a_column_that_is_too_narrow_keeps_its_row_plain_and_the_others_are_sealed(
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
            assert await done(store, Change.SEAL) == {RewriteResult.CHANGED: 1, RewriteResult.REFUSED: 2}
        assert CANARY[:8] not in str(lines)
        for exchange in ("oanda", "tradier", "aster"):
            assert (await opened(store, Account(USER, exchange))).api_key.reveal() == CANARY[:8]
        assert await done(store, Change.SEAL) == {RewriteResult.NOTHING_TO_DO: 1, RewriteResult.REFUSED: 2}
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
                await done(store, Change.SEAL)
        assert (await done(store, Change.SEAL))[RewriteResult.CHANGED] >= 1
        assert (await survey(store)).plain_rows == 0
        await store.close()


class TestDamagedRows:
    async def test_a_row_that_does_not_open_is_left_as_it_is_and_named(
        self, open_lite: Stores, lite: Database, keyset: Keyset
    ) -> None:
        await (await open_lite(given_keys(keyset))).put(OANDA, FULL)
        store = await open_lite(given_keys(keyset.with_new_key(primary=True)))
        await store.put(Account(OTHER, "oanda"), FULL)
        lite.run("UPDATE bot_credentials SET api_key = 'xs1:' || substr(api_key, 5, 20)")
        before = stored(lite)
        assert await done(store, Change.REWRAP) == {RewriteResult.UNREADABLE: 2}
        assert await done(store, Change.UNSEAL) == {RewriteResult.UNREADABLE: 2}
        assert stored(lite) == before
        assert (await survey(store)).values_by_key[""] == 2

    async def test_one_damaged_row_says_nothing_about_the_key(
        self, open_lite: Stores, lite: Database, keys: GivenKeys
    ) -> None:
        store = await open_lite(keys)
        for number in range(3):
            await store.put(Account(str(number), "oanda"), FULL)
        for column in SECRETS.split(", "):
            lite.run(f"UPDATE bot_credentials SET {column} = substr({column}, 1, 60) WHERE user_id = '0'")
        lite.run("UPDATE bot_credentials SET api_secret = 'xs1:!' WHERE user_id = '1'")
        assert await problems_of(store) == []
        lite.run("UPDATE bot_credentials SET api_key = 'xs1:other:AAAA:AAAA' WHERE user_id = '0'")
        (problem,) = await problems_of(store)
        assert "the key other, which the keyset does not have" in problem

    async def test_stray_values_that_look_sealed_are_said_and_do_not_stop_the_service(
        self, open_with: Stores, database: Database, keys: GivenKeys, keyset: Keyset
    ) -> None:
        store = await open_with(keys)
        for number in range(8):
            await store.put(Account(str(uuid.UUID(int=number)), "oanda"), FULL)
        # What a user may type into another program, which stores it: an id that no keyset has, or one that it has.
        for text in ("xs1:none:AAAA:AAAA", f"xs1:{keyset.primary}:AAAA:AAAA"):
            database.insert(user_id=OTHER, exchange=f"paper {len(text)}", api_key=text)
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

    async def test_a_keyset_file_that_breaks_is_said_and_the_last_good_keys_go_on(
        self, open_lite: Stores, tmp_path: Path
    ) -> None:
        file = tmp_path / "keyset.json"
        create_keyset_file(file)
        store = await open_lite(FileKeys(file))
        await store.put(OANDA, FULL)
        file.chmod(0o644)
        file.write_text("{")
        check = await check_keys(store)
        assert (len(check.problems), check.keys_fit) == (1, True)
        assert not (await check_keys(await open_lite(FileKeys(file)))).keys_fit

    async def test_a_crowd_of_ids_that_mean_nothing_does_not_hide_a_missing_key(
        self, open_lite: Stores, lite: Database, keys: GivenKeys
    ) -> None:
        store = await open_lite(keys)
        for number in range(60):
            lite.insert(user_id=f"a{number}", api_key=f"xs1:-{number}:AAAA:AAAA")
        for number in range(3):
            await store.put(Account(f"b{number}", "oanda"), Credential(Secret("key")))
        missing = f"the key {await keys.primary()}, which"
        assert missing in str(await problems_of(await open_lite(given_keys(new_keyset()))))


class TestKeysElsewhere:
    async def test_a_kms_seals_and_opens_through_the_same_door(self, open_lite: Stores) -> None:
        keys = RemoteKeys()
        store = await open_lite(keys)
        await store.put(OANDA, FULL)
        assert await opened(store) == FULL
        assert keys.asked == 8
        assert await problems_of(store) == []

    async def test_one_that_is_out_of_reach_is_passing_trouble(self, open_lite: Stores, lite: Database) -> None:
        keys = RemoteKeys()
        store = await open_lite(keys)
        await store.put(OANDA, FULL)
        keys.down = True
        for work in (opened(store), store.put(OANDA, FULL)):
            with pytest.raises(StoreUnavailable, match="KMS"):
                await work
        assert await store.find(OANDA) is not None


class TestAudit:
    async def test_each_opening_is_a_line_with_hashes_and_without_values(
        self, open_lite: Stores, lite: Database, keyset: Keyset
    ) -> None:
        store = await open_lite(given_keys(keyset))
        with capture_logs() as lines:
            await store.put(OANDA, FULL)
            lite.insert(exchange="tradier", user_id=OTHER)
            for account in (OANDA, OANDA, Account(OTHER, "tradier")):
                await opened(store, account)
        events = [line for line in lines if line["event"].startswith("credential.")]
        assert [line["event"] for line in events] == ["credential.sealed", *["credential.opened"] * 3]
        assert [line["keys"] for line in events] == [[keyset.primary]] * 3 + [["plain"]]
        assert [line["exchange"] for line in events] == ["oanda"] * 3 + ["tradier"]
        assert len({line["user"] for line in events}) == 2
        for shown in (CANARY, USER, OTHER, "secret"):
            assert shown not in str(lines)

    async def test_the_hash_of_a_user_needs_the_key(self, lite: Database) -> None:
        stores = [await open_store(lite.url, key) for key in (KEY, KEY, b"another key")]
        hashes = [store.vault.audit.hash_user(USER) for store in stores]
        assert hashes[0] == hashes[1] != hashes[2]
        for store in stores:
            await store.close()

    async def test_a_commands_hashes_are_those_of_the_service_and_need_a_key_that_nobody_knows(
        self, lite: Database
    ) -> None:
        async def hashed(**changes: Any) -> str:
            store = await open_configured_store(Settings(database_url=lite.url, **changes))
            await store.close()
            return store.vault.audit.hash_user(USER)

        given = {"hash_key": "0123456789abcdef"}
        assert await hashed(**given) == await hashed(**given) == Audit(b"0123456789abcdef").hash_user(USER)
        assert await hashed() != await hashed()

    async def test_an_opening_that_is_refused_is_a_line_too(self, open_lite: Stores, keys: GivenKeys) -> None:
        await (await open_lite(keys)).put(OANDA, FULL)
        store = await open_lite(given_keys(new_keyset()))
        with capture_logs() as lines, pytest.raises(CredentialUnreadable):
            await opened(store)
        (line,) = lines
        assert (line["event"], line["log_level"]) == ("credential.refused", "warning")
        assert "which the keyset does not have" in line["problem"]
        assert USER not in str(line)

    async def test_a_rewrap_and_an_unsealing_say_what_the_value_was_opened_for(
        self, open_lite: Stores, keyset: Keyset
    ) -> None:
        await (await open_lite(given_keys(keyset))).put(OANDA, FULL)
        store = await open_lite(given_keys(keyset.with_new_key(primary=True)))
        with capture_logs() as lines:
            await done(store, Change.REWRAP)
            await done(store, Change.UNSEAL)
        assert [(line["event"], line.get("purpose")) for line in lines] == [
            ("credential.opened", "rewrap"),
            ("credential.sealed", None),
            ("credential.opened", "unseal"),
        ]


async def test_no_secret_is_in_the_databases_files(open_lite: Stores, lite: Database, keys: GivenKeys) -> None:
    store = await open_lite(keys)
    await store.put(OANDA, FULL)
    for number in range(50):
        lite.insert(user_id=f"user {number}", api_key=f"{CANARY} {number}", extra_metadata=f'{{"a": "{CANARY}"}}')
    assert (await done(store, Change.SEAL))[RewriteResult.CHANGED] == 50
    await store.close()
    folder = Path(lite.url.removeprefix("sqlite:///")).parent
    assert all(CANARY.encode() not in file.read_bytes() for file in folder.iterdir())


def open_all(rows: Sequence[sqlite3.Row], keyset: Keyset) -> list[dict[str, str | None]]:
    """As another program does it."""
    return [
        {
            column: open_value(
                row[column],
                keyset,
                column=column,
                user_id=row["user_id"],
                exchange=row["exchange"],
                environment=row["environment"],
            )
            for column in ("api_key", "api_secret", "passphrase", "extra_metadata")
        }
        for row in rows
    ]


async def test_another_program_that_holds_the_keys_reads_both_kinds_of_rows(
    open_lite: Stores, lite: Database, keyset: Keyset
) -> None:
    store = await open_lite(given_keys(keyset))
    await store.put(OANDA, FULL)
    lite.insert(user_id=OTHER, passphrase=None, environment=None)
    with sqlite3.connect(lite.url.removeprefix("sqlite:///")) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM bot_credentials ORDER BY user_id DESC").fetchall()
    connection.close()
    sealed, plain = open_all(rows, keyset)
    assert sealed["api_key"] == f"{CANARY} key"
    assert json.loads(sealed["extra_metadata"] or "") == FULL.metadata
    assert plain == {"api_key": "key", "api_secret": "secret", "passphrase": None, "extra_metadata": None}
    with pytest.raises(CredentialUnreadable):
        open_all(rows, new_keyset())
    with pytest.raises(CredentialUnreadable):
        open_value(rows[0]["api_key"], keyset, column="api_key", user_id=OTHER, exchange="oanda")


def test_the_documented_program_runs(tmp_path: Path, keyset: Keyset) -> None:
    database = Database(f"sqlite:///{tmp_path}/exchange-service.db")

    async def fill() -> None:
        store = await open_store(database.url, KEY, keys=given_keys(keyset))
        await store.put(OANDA, FULL)
        await store.close()

    asyncio.run(fill())
    database.insert(user_id=OTHER, extra_metadata="{}")
    (tmp_path / "keyset.json").touch(mode=0o600)
    (tmp_path / "keyset.json").write_text(keyset.as_text())
    page = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
    (program,) = re.findall(r"<!-- runs with a sealed table -->\n```python\n(.*?)```", page, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = [f"{OTHER} oanda 3 []", f"{USER} oanda {len(CANARY) + 4} ['a', 'private_key']"]
    assert sorted(done.stdout.splitlines()) == lines


class TestOtherKindsOfColumns:
    """Types that compare texts in their own way; what is sealed under one spelling has to open under the stored one."""

    PADDED = (
        "CREATE TABLE bot_credentials (user_id char(50), exchange char(20), environment char(20),"
        " api_key text, api_secret text, passphrase text, extra_metadata text)"
    )

    async def test_padded_columns_are_surveyed_sealed_and_opened(
        self, postgres_database: str, keys: GivenKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database = Database(postgres_database)
        monkeypatch.setattr(rewriting, "PAGE_SIZE", 1)
        database.run(self.PADDED)
        database.insert()
        database.insert(user_id="alice")
        store = await open_store(database.url, KEY, keys=keys)
        assert (await survey(store)).plain_rows == 2
        assert await done(store, Change.SEAL) == {RewriteResult.CHANGED: 2}
        assert (await opened(store)).api_key.reveal() == "key"
        assert await store.put(OANDA, FULL) is False
        assert await opened(store) == FULL
        assert await done(store, Change.UNSEAL) == {RewriteResult.CHANGED: 2}
        await store.close()

    async def test_a_column_that_ignores_case_opens_what_was_put_under_another_spelling(
        self, tmp_path: Path, keys: GivenKeys
    ) -> None:
        database = Database(f"sqlite:///{tmp_path}/credentials.db")
        database.run(OWNERS_TABLES["text"].replace("user_id text", "user_id text COLLATE NOCASE"))
        database.insert(user_id="Alice")
        store = await open_store(database.url, KEY, keys=keys)
        assert await store.put(Account("ALICE", "oanda"), FULL) is False
        assert stored(database, "user_id") == [("Alice",)]
        assert await opened(store, Account("alice", "oanda")) == FULL
        await store.close()
