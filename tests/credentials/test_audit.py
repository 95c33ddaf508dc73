"""The audit log of credentials."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from exchange_service.credentials.audit import Audit
from exchange_service.credentials.configured import open_configured_store
from exchange_service.credentials.key_providers import GivenKeys
from exchange_service.credentials.keysets import Keyset, new_keyset
from exchange_service.credentials.rewriting import Change
from exchange_service.credentials.sql import open_store
from exchange_service.errors import CredentialUnreadable
from exchange_service.model import Account
from exchange_service.settings import Settings
from tests.credential_tables import KEY, OANDA, USER, Database
from tests.sealed_stores import CANARY, FULL, OTHER, Stores, given_keys, open_credential, rewrite_all


class TestAudit:
    async def test_each_opening_is_a_line_with_hashes_and_without_values(
        self, open_sqlite: Stores, sqlite_database: Database, keyset: Keyset
    ) -> None:
        store = await open_sqlite(given_keys(keyset))
        with capture_logs() as lines:
            await store.put(OANDA, FULL)
            sqlite_database.insert(exchange="tradier", user_id=OTHER)
            for account in (OANDA, OANDA, Account(OTHER, "tradier")):
                await open_credential(store, account)
        events = [line for line in lines if line["event"].startswith("credential.")]
        assert [line["event"] for line in events] == ["credential.sealed", *["credential.opened"] * 3]
        assert [line["keys"] for line in events] == [[keyset.primary]] * 3 + [["plain"]]
        assert [line["exchange"] for line in events] == ["oanda"] * 3 + ["tradier"]
        assert len({line["user"] for line in events}) == 2
        for secret in (CANARY, USER, OTHER, "secret"):
            assert secret not in str(lines)

    async def test_the_hash_of_a_user_needs_the_key(self, sqlite_database: Database) -> None:
        stores = [await open_store(sqlite_database.url, key) for key in (KEY, KEY, b"another key")]
        hashes = [store.vault.audit.hash_user(USER) for store in stores]
        assert hashes[0] == hashes[1] != hashes[2]
        for store in stores:
            await store.close()

    async def test_a_commands_hashes_equal_the_services_and_need_the_hash_key(self, sqlite_database: Database) -> None:
        async def hashed(**changes: Any) -> str:
            store = await open_configured_store(Settings(database_url=sqlite_database.url, **changes))
            await store.close()
            return store.vault.audit.hash_user(USER)

        given = {"hash_key": "0123456789abcdef"}
        assert await hashed(**given) == await hashed(**given) == Audit(b"0123456789abcdef").hash_user(USER)
        assert await hashed() != await hashed()

    async def test_an_opening_that_is_refused_is_a_line_too(self, open_sqlite: Stores, keys: GivenKeys) -> None:
        await (await open_sqlite(keys)).put(OANDA, FULL)
        store = await open_sqlite(given_keys(new_keyset()))
        with capture_logs() as lines, pytest.raises(CredentialUnreadable):
            await open_credential(store)
        (line,) = lines
        assert (line["event"], line["log_level"]) == ("credential.refused", "warning")
        assert "which the keyset does not have" in line["problem"]
        assert USER not in str(line)

    async def test_a_rewrap_and_an_unsealing_say_what_the_value_was_opened_for(
        self, open_sqlite: Stores, keyset: Keyset
    ) -> None:
        await (await open_sqlite(given_keys(keyset))).put(OANDA, FULL)
        store = await open_sqlite(given_keys(keyset.with_new_key(primary=True)))
        with capture_logs() as lines:
            await rewrite_all(store, Change.REWRAP)
            await rewrite_all(store, Change.UNSEAL)
        assert [(line["event"], line.get("purpose")) for line in lines] == [
            ("credential.opened", "rewrap"),
            ("credential.sealed", None),
            ("credential.opened", "unseal"),
        ]
