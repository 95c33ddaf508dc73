"""Attacks by what a user has another program store in the credential table: each first succeeds with the mitigation
switched off, and then fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from exchange_service.credentials import key_check
from exchange_service.credentials.key_check import check_keys
from exchange_service.credentials.key_providers import GivenKeys
from exchange_service.credentials.keysets import new_keyset
from exchange_service.credentials.sql import open_store
from exchange_service.model import Account, Credential
from tests.credential_tables import OWNERS_TABLES, Database

HASH_KEY = b"0123456789abcdef"
FULL = Credential.from_texts({"api_key": "the-key-of-alice", "api_secret": "the-secret-of-alice"})


@pytest.fixture
def table(tmp_path: Path) -> Database:
    made = Database(f"sqlite:///{tmp_path}/credentials.db")
    made.run(OWNERS_TABLES["text"])
    return made


@pytest.mark.threat("T51", attack=True)
@pytest.mark.parametrize(
    ("named", "mitigated"),
    [
        *(("ids that no keyset has", False), ("one id that no keyset has", False)),
        *(("ids that no keyset has", True), ("one id that no keyset has", True), ("the key in use", True)),
    ],
)
async def test_one_user_who_stores_texts_that_look_sealed_makes_every_replica_refuse_to_serve(
    table: Database, monkeypatch: pytest.MonkeyPatch, named: str, mitigated: bool
) -> None:
    if not mitigated:
        # Values were counted, and an id that no keyset has counted as a key that is missing.
        monkeypatch.setattr(key_check, "_number_of", sa.func.count)
        monkeypatch.setattr(key_check, "_are_strays", lambda strays, readable: sum(strays.values()) <= readable * 0.1)
    keyset = new_keyset()
    store = await open_store(table.url, HASH_KEY, keys=GivenKeys(keyset.as_text()))
    for user in range(20):
        await store.put(Account(f"user {user}", "oanda"), FULL)
    assert (await check_keys(store)).keys_fit
    for number in range(30):
        key_id = {"ids that no keyset has": f"none-{number}", "the key in use": keyset.primary}.get(named, "none")
        table.insert(user_id="mallory", exchange=f"fakex {number}", api_key=f"xs1:{key_id}:AAAA:AAAA")
    check = await check_keys(store)
    assert check.keys_fit is mitigated
    # The operator is told of an id that no keyset has all the same.
    assert bool(check.problems) == (named != "the key in use")
    await store.close()


@pytest.mark.threat("T51", attack=True)
@pytest.mark.parametrize("mitigated", [False, True])
async def test_without_a_keyset_one_text_that_looks_sealed_does_the_same(
    table: Database, monkeypatch: pytest.MonkeyPatch, mitigated: bool
) -> None:
    if not mitigated:
        monkeypatch.setattr(key_check, "_are_strays", lambda strays, readable: not strays)
    store = await open_store(table.url, HASH_KEY)
    for user in range(3):
        await store.put(Account(f"user {user}", "oanda"), FULL)
    table.insert(user_id="mallory", api_key="xs1:none:AAAA:AAAA")
    assert (await check_keys(store)).keys_fit is mitigated
    await store.close()


@pytest.mark.threat("T51")
async def test_a_replica_that_lacks_the_key_of_most_users_does_not_serve(table: Database) -> None:
    older = new_keyset()
    newer = older.with_new_key(primary=True)
    for keyset, users in ((older, range(3)), (newer, range(3, 7))):
        store = await open_store(table.url, HASH_KEY, keys=GivenKeys(keyset.as_text()))
        for user in users:
            await store.put(Account(f"user {user}", "oanda"), FULL)
        await store.close()
    store = await open_store(table.url, HASH_KEY, keys=GivenKeys(older.as_text()))
    assert not (await check_keys(store)).keys_fit
    table.run("DELETE FROM bot_credentials WHERE user_id = 'user 5' OR user_id = 'user 6'")
    assert (await check_keys(store)).keys_fit
    # A key that this process had is missing for sure, however few users it sealed for.
    assert not (await check_keys(store, frozenset({newer.primary}))).keys_fit
    await store.close()
