"""Attacks from the database, its backups, the shared Redis and the inside: each first succeeds with the mitigation
switched off, and then fails."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
import redis
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from exchange_service.cache.sealing import CacheSeal
from exchange_service.credentials.audit import Audit
from exchange_service.credentials.key_check import KeyWatch
from exchange_service.credentials.key_providers import GivenKeys, KeyProvider
from exchange_service.credentials.keysets import new_keyset
from exchange_service.credentials.sql import SqlCredentialStore, open_store
from exchange_service.errors import CredentialUnreadable
from exchange_service.model import Account, Credential
from exchange_service.v1 import balance_pb2
from exchange_service.wire.stored import decode_stored
from tests.canary import bytes_of
from tests.harness import (
    ScriptedPlugin,
    balance_request,
    failure,
    holding,
    registry_of,
    serving,
    totals,
)
from tests.servers import RedisServer

HASH_KEY = b"0123456789abcdef"
ALICE, BOB = Account("alice", "oanda"), Account("bob", "oanda")
SECRETS = {"api_key": "the-key-of-alice", "api_secret": "the-secret-of-alice", "passphrase": "the-words-of-alice"}
METADATA = {"private_key": "the-metadata-of-alice"}
FULL = Credential.from_texts(SECRETS, METADATA)


def columns_of(path: Path, user: str) -> dict[str, Any]:
    with sqlite3.connect(path) as connection:
        connection.row_factory = sqlite3.Row
        (row,) = connection.execute("SELECT * FROM bot_credentials WHERE user_id = ?", (user,)).fetchall()
    return dict(row)


def overwrite(path: Path, user: str, values: dict[str, Any]) -> None:
    """What another program with rights on the table does."""
    secret = {name: value for name, value in values.items() if name not in ("user_id", "exchange", "environment")}
    with sqlite3.connect(path) as connection:
        for column, value in secret.items():
            connection.execute(f"UPDATE bot_credentials SET {column} = ? WHERE user_id = ?", (value, user))


async def stored(path: Path, keys: KeyProvider | None, **options: Any) -> SqlCredentialStore:
    return await open_store(f"sqlite:///{path}", HASH_KEY, keys=keys, **options)


async def opened(store: SqlCredentialStore, account: Account) -> Credential:
    reference = await store.find(account)
    assert reference is not None
    return await store.open(reference)


@pytest.mark.threat("T2", attack=True)
async def test_a_public_data_api_can_read_an_ordinary_table_and_not_ours(
    postgres_database: str,
) -> None:
    """As Supabase sets a database up: every new table of the schema is for the role of its public API."""
    with psycopg.connect(postgres_database, autocommit=True) as connection:
        connection.execute(
            "DO $$ BEGIN CREATE ROLE anon; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )
        connection.execute("ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO anon")
        connection.execute("GRANT USAGE ON SCHEMA public TO anon")
        connection.execute("CREATE TABLE plain_credentials (api_key text)")
        connection.execute("INSERT INTO plain_credentials VALUES ('the-key-of-alice')")
        store = await open_store(postgres_database, HASH_KEY)
        await store.put(ALICE, FULL)
        await store.close()
        connection.execute("SET ROLE anon")
        assert connection.execute("SELECT api_key FROM plain_credentials").fetchall() == [("the-key-of-alice",)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT api_key FROM bot_credentials")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("UPDATE bot_credentials SET api_key = 'mine'")


@pytest.mark.threat("T3", attack=True)
async def test_a_copy_of_the_database_reveals_plain_secrets_and_no_sealed_ones(tmp_path: Path) -> None:
    wanted = [secret.encode() for secret in (*SECRETS.values(), *METADATA.values())]
    for keys, name in ((None, "plain"), (GivenKeys(new_keyset().as_text()), "sealed")):
        store = await stored(tmp_path / name, keys)
        await store.put(ALICE, FULL)
        copied = b"".join(bytes_of(tmp_path / name))
        assert [secret in copied for secret in wanted] == [keys is None] * 4
        assert (await opened(store, ALICE)).api_secret.reveal() == SECRETS["api_secret"]
        await store.close()


@pytest.mark.threat("T4", attack=True)
async def test_a_value_that_is_copied_to_another_row_opens_there_if_plain_and_not_if_sealed(
    tmp_path: Path,
) -> None:
    keys = GivenKeys(new_keyset().as_text())
    for provider, name in ((None, "plain"), (keys, "sealed")):
        path = tmp_path / name
        store = await stored(path, provider)
        await store.put(ALICE, FULL)
        await store.put(BOB, Credential.from_texts({"api_key": "bobs-own"}))
        overwrite(path, "bob", columns_of(path, "alice"))
        if provider is None:
            assert (await opened(store, BOB)).api_secret.reveal() == SECRETS["api_secret"]
        else:
            with pytest.raises(CredentialUnreadable):
                await opened(store, BOB)
        await store.close()


@pytest.mark.threat("T4", attack=True)
async def test_a_plain_value_that_replaces_a_sealed_one_is_used_unless_plaintext_is_forbidden(
    tmp_path: Path,
) -> None:
    keys, path = GivenKeys(new_keyset().as_text()), tmp_path / "sealed"
    lenient = await stored(path, keys)
    await lenient.put(ALICE, FULL)
    overwrite(path, "alice", {"api_key": "the-key-of-mallory"})
    assert (await opened(lenient, ALICE)).api_key.reveal() == "the-key-of-mallory"
    await lenient.close()
    strict = await stored(path, keys, allow_plaintext=False)
    with pytest.raises(CredentialUnreadable):
        await opened(strict, ALICE)
    await strict.close()


@pytest.mark.threat("T10", attack=True)
class TestSharedRedis:
    async def test_one_users_bytes_under_anothers_key_are_believed_only_without_the_check_of_the_account(
        self, tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plugin = ScriptedPlugin()
        settings = {"cache_url": redis_server.url, "hash_key": "the hash key of the replicas"}
        async with serving(tmp_path, registry=registry_of(plugin), **settings) as running:
            await running.store(user="alice")
            await running.client.get_balance("alice", "fakex")
            with redis.Redis.from_url(redis_server.url) as neighbour:
                (alices,) = neighbour.keys("*balance:*")
                plugin.answer = ScriptedPlugin(answer=_of("BTC", "999")).answer
                await running.store(user="bob")
                await running.client.get_balance("bob", "fakex")
                (bobs,) = set(neighbour.keys("*balance:*")) - {alices}
                foreign = neighbour.get(bobs)
                neighbour.set(alices, foreign)
        plugin.answer = ScriptedPlugin().answer
        # Two replicas with empty memory: one believes any well-formed balance, the other checks its account.
        with monkeypatch.context() as unguarded:
            unguarded.setattr(
                "exchange_service.balances.cached.decode_stored",
                lambda _, raw, bounds, known: decode_stored(Account("bob", "fakex"), raw, bounds),
            )
            # The seal belongs to the name as well.
            names = dict.fromkeys((alices.decode(), bobs.decode()), bobs.decode())
            opened = CacheSeal.open
            unguarded.setattr(
                CacheSeal, "open", lambda seal, name, sealed, now: opened(seal, names.get(name, name), sealed, now)
            )
            async with serving(tmp_path, registry=registry_of(plugin), **settings) as running:
                reply = await running.client.get_balance("alice", "fakex")
                assert totals(reply.balance) == {"BTC": "999"}
        async with serving(tmp_path, registry=registry_of(plugin), **settings) as running:
            reply = await running.client.get_balance("alice", "fakex")
            assert totals(reply.balance) == {"BTC": "1.50"}
            assert reply.freshness.source == balance_pb2.BALANCE_SOURCE_VENUE

    async def test_plain_cache_keys_reveal_accounts_and_hashed_ones_do_not(
        self, tmp_path: Path, redis_server: RedisServer
    ) -> None:
        with redis.Redis.from_url(redis_server.url) as neighbour:
            neighbour.set("balance:alice:fakex", b"as it is often done")
            assert neighbour.keys("*alice*") == [b"balance:alice:fakex"]
            neighbour.flushall()
            settings = {"cache_url": redis_server.url, "hash_key": "the hash key of the replicas"}
            async with serving(tmp_path, registry=registry_of(ScriptedPlugin()), **settings) as running:
                await running.store(user="alice")
                await running.client.get_balance("alice", "fakex")
            names = neighbour.keys("*")
            assert names
            assert not [name for name in names if b"alice" in name or b"fakex" in name]


def _of(asset: str, total: str) -> Any:
    async def answer(_: Any) -> Any:
        return holding((asset, total))

    return answer


@pytest.mark.threat("T17", attack=True)
async def test_a_replica_with_another_keyset_takes_calls_unless_the_keys_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = ScriptedPlugin()
    async with serving(tmp_path, registry=registry_of(plugin), keyset=new_keyset().as_text()) as running:
        await running.store()
        assert await _says(running.client.channel) == health_pb2.HealthCheckResponse.SERVING
    another = new_keyset().as_text()

    async def unproven(_: KeyWatch) -> bool:
        return True

    with monkeypatch.context() as unguarded:
        unguarded.setattr(KeyWatch, "first", unproven)
        async with serving(tmp_path, registry=registry_of(plugin), keyset=another) as running:
            assert await _says(running.client.channel) == health_pb2.HealthCheckResponse.SERVING
            failed = await failure(running.stub.GetBalance(balance_request()))
            assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CREDENTIAL_UNREADABLE")
    async with serving(tmp_path, registry=registry_of(plugin), keyset=another) as running:
        assert await _says(running.client.channel) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert plugin.calls == []


async def _says(channel: Any) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest())).status)


@pytest.mark.threat("T18", attack=True)
async def test_opening_a_credential_leaves_no_trace_except_in_the_audit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, keys = tmp_path / "sealed", GivenKeys(new_keyset().as_text())
    store = await stored(path, keys)
    await store.put(ALICE, FULL)
    before = columns_of(path, "alice")
    with monkeypatch.context() as unguarded, capture_logs() as lines:
        unguarded.setattr(Audit, "record_opening", lambda *_: None)
        await opened(store, ALICE)
    assert (lines, columns_of(path, "alice")) == ([], before)
    with capture_logs() as lines:
        for _ in range(3):
            await opened(store, ALICE)
    await store.close()
    assert [line["event"] for line in lines] == ["credential.opened"] * 3
    assert "alice" not in json.dumps(lines)
    assert not [secret for secret in (*SECRETS.values(), *METADATA.values()) if secret in json.dumps(lines)]
