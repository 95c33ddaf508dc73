"""Replacing fields of stored rows: only if the row holds what was opened, and sealed as new values are."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from typing import Any

import pytest
from structlog.testing import capture_logs

from exchange_service.credentials import replacing
from exchange_service.credentials.key_providers import GivenKeys
from exchange_service.credentials.replacing import FieldReplacer, Fingerprints, Rewritten
from exchange_service.credentials.rewriting import Change, RewriteResult
from exchange_service.credentials.sealing import is_sealed
from exchange_service.credentials.sql import SqlCredentialStore
from exchange_service.errors import PluginFailed, StoreUnavailable
from exchange_service.model import Credential, Secret
from tests.credential_tables import FULL, OANDA, Database, find_reference
from tests.sealed_stores import Stores, open_credential, read_columns, rewrite_all

CHANGES = {"passphrase": Secret("canary-new-token"), "nested_token": Secret("canary-new-metadata")}
FINGERPRINTS = Fingerprints(secrets.token_bytes(32))


async def replace_fields(
    store: SqlCredentialStore, opened: Credential = FULL, changes: dict[str, Secret] | None = None
) -> Rewritten | None:
    async def note(_: Rewritten) -> None:
        pass

    replacer = FieldReplacer(store, FINGERPRINTS)
    chosen = CHANGES if changes is None else changes
    return await replacer.replace(OANDA, {FINGERPRINTS.of(opened)}, chosen, plugin="rota", on_write=note)


@pytest.fixture(params=["plain", "sealed"])
async def store(request: pytest.FixtureRequest, open_with: Stores, keys: GivenKeys) -> SqlCredentialStore:
    return await open_with(keys if request.param == "sealed" else None)


class TestReplacing:
    async def test_the_given_fields_change_and_all_others_stay(self, store: SqlCredentialStore) -> None:
        await store.put(OANDA, FULL)
        rewritten = await replace_fields(store)
        assert await open_credential(store) == FULL.with_fields(CHANGES)
        assert rewritten is not None
        assert rewritten.version == (await find_reference(store, OANDA)).version
        assert rewritten.fingerprint == FINGERPRINTS.of(FULL.with_fields(CHANGES))

    async def test_columns_that_are_not_concerned_keep_their_very_texts(
        self, store: SqlCredentialStore, database: Database
    ) -> None:
        await store.put(OANDA, FULL)
        before = read_columns(database, "api_key, api_secret, extra_metadata")
        await replace_fields(store, changes={"passphrase": Secret("another")})
        assert read_columns(database, "api_key, api_secret, extra_metadata") == before

    async def test_a_row_that_its_user_has_changed_is_left_as_it_is(
        self, store: SqlCredentialStore, database: Database
    ) -> None:
        await store.put(OANDA, replace(FULL, api_secret=Secret("the user's newer one")))
        before = read_columns(database)
        assert await replace_fields(store) is None
        assert read_columns(database) == before

    async def test_a_row_that_is_gone_is_not_stored_again(self, store: SqlCredentialStore, database: Database) -> None:
        await store.put(OANDA, FULL)
        await store.remove(OANDA)
        assert await replace_fields(store) is None
        assert read_columns(database) == []

    async def test_a_change_between_reading_and_writing_is_never_overwritten(
        self, store: SqlCredentialStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await store.put(OANDA, FULL)
        newer, replace_row = replace(FULL, passphrase=Secret("the user's newer one")), replacing.replace_row

        async def late(*arguments: Any) -> RewriteResult | None:
            await store.put(OANDA, newer)
            return await replace_row(*arguments)

        monkeypatch.setattr(replacing, "replace_row", late)
        assert await replace_fields(store) is None
        assert await open_credential(store) == newer

    async def test_of_two_writers_that_opened_the_same_row_one_wins(self, store: SqlCredentialStore) -> None:
        await store.put(OANDA, FULL)
        one, other = {"passphrase": Secret("one")}, {"passphrase": Secret("other")}
        results = await asyncio.gather(replace_fields(store, changes=one), replace_fields(store, changes=other))
        winner = one if results[0] is not None else other
        assert [result is None for result in results].count(True) == 1
        assert await open_credential(store) == FULL.with_fields(winner)

    async def test_the_same_write_again_finds_it_done(self, store: SqlCredentialStore) -> None:
        await store.put(OANDA, FULL)
        first = await replace_fields(store)
        assert await replace_fields(store, FULL.with_fields(CHANGES)) == first

    async def test_what_no_database_stores_is_the_plugins_fault_and_not_shown(self, store: SqlCredentialStore) -> None:
        await store.put(OANDA, FULL)
        with pytest.raises(PluginFailed, match="cannot be stored") as caught:
            await replace_fields(store, changes={"passphrase": Secret("xs1:canary")})
        assert "canary" not in str(caught.value)
        assert await open_credential(store) == FULL

    async def test_the_audit_names_the_plugin_and_the_fields_and_no_value(self, store: SqlCredentialStore) -> None:
        await store.put(OANDA, FULL)
        with capture_logs() as lines:
            await replace_fields(store)
        (line,) = [line for line in lines if line["event"] == "credential.replaced"]
        assert (line["plugin"], line["fields"]) == ("rota", ["nested_token", "passphrase"])
        assert "canary" not in str(lines)


class TestSealing:
    async def test_new_values_are_sealed_also_in_a_row_that_was_plain(
        self, open_with: Stores, database: Database, keys: GivenKeys
    ) -> None:
        await (await open_with()).put(OANDA, FULL)
        store = await open_with(keys)
        await replace_fields(store)
        assert [is_sealed(text) for text in read_columns(database)[0]] == [False, False, True, True]
        assert await open_credential(store) == FULL.with_fields(CHANGES)

    async def test_a_row_that_was_sealed_again_meanwhile_still_holds_what_was_opened(
        self, open_with: Stores, keys: GivenKeys
    ) -> None:
        await (await open_with()).put(OANDA, FULL)
        store = await open_with(keys)
        await rewrite_all(store, Change.SEAL)
        assert await replace_fields(store) is not None

    async def test_a_row_that_keeps_changing_is_reported_as_a_store_that_does_not_answer(
        self, open_with: Stores, keys: GivenKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = await open_with(keys)
        await store.put(OANDA, FULL)
        replace_row = replacing.replace_row

        async def late(*arguments: Any) -> RewriteResult | None:
            await store.put(OANDA, FULL)
            return await replace_row(*arguments)

        monkeypatch.setattr(replacing, "replace_row", late)
        with pytest.raises(StoreUnavailable):
            await replace_fields(store)
