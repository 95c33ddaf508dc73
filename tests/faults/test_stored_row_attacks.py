"""Attacks by what a user has another program store in the credential table: each first succeeds with the mitigation
switched off, and then fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa

from exchange_service.credentials import key_check, sql
from exchange_service.credentials import table as credential_table
from exchange_service.credentials.key_check import check_keys
from exchange_service.credentials.key_providers import GivenKeys
from exchange_service.credentials.keysets import new_keyset
from exchange_service.credentials.rewriting import Change, Choice, RewriteResult, rewrite, survey
from exchange_service.credentials.sql import SqlCredentialStore, open_store
from exchange_service.credentials.table import CredentialTable
from exchange_service.errors import CredentialInvalid
from exchange_service.model import Account, Credential
from tests.credential_tables import OWNERS_TABLES, USER, Database
from tests.harness import ScriptedPlugin, balance_request, failure, registry_of, serving, totals

HASH_KEY = b"0123456789abcdef"
FULL = Credential.from_texts({"api_key": "the-key-of-alice", "api_secret": "the-secret-of-alice"})


@pytest.fixture(autouse=True)
def queries_made_for_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The query for an account's rows is made once for a table; a mitigation within it could not be switched off."""
    monkeypatch.setattr(sql, "_rows_query", sql._rows_query.__wrapped__)


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


@pytest.mark.threat("T51", attack=True)
@pytest.mark.parametrize("mitigated", [False, True])
async def test_with_a_keyset_the_same_text_does_it_while_the_others_are_not_sealed_yet(
    table: Database, monkeypatch: pytest.MonkeyPatch, mitigated: bool
) -> None:
    async def none(_: SqlCredentialStore) -> int:
        return 0

    if not mitigated:
        # Only those were counted whose credentials a key opens.
        monkeypatch.setattr(key_check, "_count_plain_users", none)
    keyset = new_keyset()
    store = await open_store(table.url, HASH_KEY, keys=GivenKeys(keyset.as_text()))
    for user in range(20):
        table.insert(user_id=f"user {user}", api_key="in plain text")
    for key_id in ("none", keyset.primary):
        table.insert(user_id="mallory", exchange=f"fakex {key_id}", api_key=f"xs1:{key_id}:AAAA:AAAA")
        assert (await check_keys(store)).keys_fit is mitigated
    await store.close()
    # Where plain credentials are refused, they prove nothing.
    store = await open_store(table.url, HASH_KEY, keys=GivenKeys(keyset.as_text()), allow_plaintext=False)
    assert not (await check_keys(store)).keys_fit
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


# In every column that a program may write, and more than a program would.
LONG = '{"n": [' + "1," * 4_000_000 + "1]}"


async def longest_stall(work: Awaitable[object]) -> float:
    """How long the event loop stood still at most while the work was done, in seconds."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - began)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    with suppress(CredentialInvalid):
        await work
    await asyncio.sleep(0.01)
    ticking.cancel()
    return longest


@pytest.mark.threat("T52", attack=True)
async def test_megabytes_of_metadata_hold_the_loop_at_each_call_unless_they_stay_in_the_database(
    table: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.insert(user_id="mallory", extra_metadata=LONG)
    store = await open_store(table.url, HASH_KEY)
    with monkeypatch.context() as off:
        off.setattr(credential_table, "LONGEST_SECRET", 2**40)
        without = await longest_stall(store.find(Account("mallory", "oanda")))
    with_limit = await longest_stall(store.find(Account("mallory", "oanda")))
    assert without > 0.1
    assert with_limit < without / 2
    await store.close()


@pytest.mark.threat("T52")
@pytest.mark.parametrize("kind", ["sqlite", "postgres", "uuid and jsonb", "uuid and json"])
@pytest.mark.parametrize("column", ["api_key", "api_secret", "passphrase", "extra_metadata"])
async def test_a_text_that_is_too_long_is_refused_in_every_column_and_can_be_replaced(
    kind: str, column: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "sqlite":
        database = Database(f"sqlite:///{tmp_path}/credentials.db")
        database.run(OWNERS_TABLES["text"])
    else:
        database = Database(request.getfixturevalue("postgres_database"))
        database.run(OWNERS_TABLES.get(kind, OWNERS_TABLES["text"]))
    long = '{"a": "' + "\u00e4" * 32_800 + '"}'
    database.insert(user_id=USER, **{"extra_metadata": "{}", column: long})
    database.insert(user_id=USER, exchange="tradier", extra_metadata='{"a": "' + "b" * 60_000 + '"}')
    store = await open_store(database.url, HASH_KEY, keys=GivenKeys(new_keyset().as_text()))
    with pytest.raises(CredentialInvalid, match=f"The {column} of the stored oanda credential is longer than 64 KiB"):
        await store.find(Account(USER, "oanda"))
    assert await store.find(Account(USER, "tradier")) is not None
    assert (await survey(store)).rows == 2
    results = {row.result async for row in rewrite(store, Change.SEAL, Choice(exchange_id="oanda"))}
    assert results == {RewriteResult.TOO_LONG}
    assert len(await store.accounts(USER)) == 2
    assert await store.put(Account(USER, "oanda"), FULL) is False
    reference = await store.find(Account(USER, "oanda"))
    assert reference is not None
    assert await store.open(reference) == FULL
    longer = Credential.from_texts({column: "k" * 40_000})
    if column == "extra_metadata":
        longer = Credential.from_texts({"api_key": "key"}, {"a": "k" * 40_000})
    with pytest.raises(CredentialInvalid, match="longer than 32 KiB"):
        await store.put(Account(USER, "oanda"), longer)
    await store.close()


@pytest.mark.threat("T52", attack=True)
@pytest.mark.parametrize("mitigated", [False, True])
async def test_thousands_of_rows_of_one_user_are_read_at_each_call_unless_their_number_is_bounded(
    table: Database, monkeypatch: pytest.MonkeyPatch, mitigated: bool
) -> None:
    if not mitigated:
        monkeypatch.setattr("exchange_service.credentials.sql._MOST_ROWS", 10**6)
        monkeypatch.setattr("exchange_service.credentials.sql.MOST_ACCOUNTS", 10**6)
    table.run(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)"
        " INSERT INTO bot_credentials (user_id, exchange, environment, api_key)"
        " SELECT 'mallory', 'oanda', 'environment ' || i, 'key' FROM n"
    )
    table.insert(user_id="mallory", exchange="tradier", environment="e" * 2_000_000)
    store = await open_store(table.url, HASH_KEY)
    if mitigated:
        with pytest.raises(CredentialInvalid, match="More than 32 credentials of this user"):
            await store.find(Account("mallory", "oanda"))
        assert len(await store.accounts("mallory")) == 2000
    else:
        assert await store.find(Account("mallory", "oanda")) is None
        assert len(await store.accounts("mallory")) == 5000
    # A row whose own names are too long is nobody's.
    assert await store.find(Account("mallory", "tradier")) is None
    await store.close()


async def found(store: SqlCredentialStore, user: str) -> tuple[bool, int]:
    """Whether the user's credential is found, and how many accounts the user has."""
    return await store.find(Account(user, "oanda")) is not None, len(await store.accounts(user))


PADDED = OWNERS_TABLES["text"].replace("user_id text", "user_id char(40)")
NOCASE = OWNERS_TABLES["text"].replace("user_id text", "user_id text COLLATE NOCASE")
EQUATED = {
    "capitals, in a column that ignores case": (NOCASE, "alice", "ALICE"),
    "digits, in a column of numbers": (OWNERS_TABLES["text"].replace("user_id text", "user_id integer"), "7", "07"),
    "a blank at the end, in a column of a fixed length": (PADDED, "alice", "alice "),
    "a uuid in capitals": (OWNERS_TABLES["uuid and jsonb"], USER, USER.upper()),
    "a uuid without its hyphens": (OWNERS_TABLES["uuid and jsonb"], USER, USER.replace("-", "")),
    "a uuid in braces": (OWNERS_TABLES["uuid and json"], USER, f"{{{USER}}}"),
}


@pytest.mark.threat("T53", attack=True)
@pytest.mark.parametrize("spelling", EQUATED)
async def test_an_id_that_the_database_equates_with_another_users_reads_nothing_of_that_user(
    spelling: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement, user, other = EQUATED[spelling]
    if statement is NOCASE or "integer" in statement:
        database = Database(f"sqlite:///{tmp_path}/credentials.db")
    else:
        database = Database(request.getfixturevalue("postgres_database"))
    database.run(statement)
    database.insert(user_id=user)
    store = await open_store(database.url, HASH_KEY)
    with monkeypatch.context() as off:
        off.setattr(CredentialTable, "is_exactly", lambda *_: sa.true())
        assert await found(store, other) == (True, 1)
    assert await found(store, other) == (False, 0)
    assert await found(store, user) == (True, 1)
    # What is stored for, or removed of, the other spelling is not this user's either.
    try:
        await store.put(Account(other, "oanda"), Credential.from_texts({"api_key": "mine"}))
    except CredentialInvalid:
        assert statement is not NOCASE
    await store.remove(Account(other, "oanda"))
    reference = await store.find(Account(user, "oanda"))
    assert reference is not None
    assert (await store.open(reference)).api_key.reveal() == "key"
    await store.close()


@pytest.mark.threat("T53", attack=True)
@pytest.mark.parametrize("mitigated", [False, True])
async def test_a_caller_of_one_spelling_gets_the_balance_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mitigated: bool
) -> None:
    if not mitigated:
        monkeypatch.setattr(CredentialTable, "is_exactly", lambda *_: sa.true())
    database = Database(f"sqlite:///{tmp_path}/credentials.db")
    database.run(NOCASE)
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), database_url=database.url) as running:
        await running.store(user="alice")
        call = running.stub.GetBalance(balance_request(user_id="ALICE"))
        if not mitigated:
            assert totals((await call).balance) == {"BTC": "1.50"}
        else:
            failed = await failure(call)
            assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "CREDENTIAL_MISSING")
        assert totals((await running.stub.GetBalance(balance_request(user_id="alice"))).balance) == {"BTC": "1.50"}
