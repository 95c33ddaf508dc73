"""Attacks by a program that can write to the table of service tokens: each first succeeds with the mitigation switched
off, and then fails."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from sqlalchemy import make_url
from structlog.testing import capture_logs

from exchange_service.cli.doctor import Severity, examine
from exchange_service.errors import StoreUnavailable
from exchange_service.identity import Scope
from exchange_service.identity import tokens as service_tokens
from exchange_service.identity.token_signatures import KeyUnusable, TokenSignatures, configured_signatures, key_warning
from exchange_service.identity.tokens import StoredToken, new_token
from exchange_service.startup_checks import UnsafeSettings
from tests.authenticated_service import authenticated_service, read_balance, run_in
from tests.credential_tables import Database
from tests.harness import Running, failure, settings_for
from tests.identities import bearer, service_token, token_store

ALICE = Scope(frozenset({"alice"}))
COLUMNS = "id, name, digest, scope, created, expires"
EARLIER = (
    "CREATE TABLE exchange_service_tokens (id TEXT PRIMARY KEY, name TEXT NOT NULL, digest TEXT NOT NULL,"
    " scope TEXT NOT NULL, created BIGINT NOT NULL, expires BIGINT, revoked BIGINT)"
)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        return Database(f"sqlite:///{tmp_path / 'credentials.db'}")
    return Database(request.getfixturevalue("postgres_database"))


def columns_of(database: Database) -> str:
    """The names of the table's columns."""
    if database.url.startswith("sqlite"):
        rows = database.run("SELECT name FROM pragma_table_info('exchange_service_tokens')")
    else:
        query = "SELECT column_name FROM information_schema.columns WHERE table_name = 'exchange_service_tokens'"
        rows = database.run(f"{query} ORDER BY ordinal_position")
    return ", ".join(row[0] for row in rows)


def insert(database: Database, stored: StoredToken, scope: str) -> None:
    values = (stored.id, stored.name, stored.digest, scope, stored.created, stored.expires)
    database.run(f"INSERT INTO exchange_service_tokens ({COLUMNS}) VALUES (%s, %s, %s, %s, %s, %s)", *values)


async def minted(running: Running, database: Database) -> str:
    """A token for every user, as an attacker makes it."""
    text, stored = new_token("the billing", ALICE)
    insert(database, stored, '"*"')
    return text


async def signed_with_another_key(running: Running, database: Database) -> str:
    text, stored = new_token("the billing", Scope(everybody=True))
    insert(database, stored, '"*"')
    signature = TokenSignatures(b"another secret").sign(stored)
    database.run("UPDATE exchange_service_tokens SET signature = %s WHERE id = %s", signature, stored.id)
    return text


async def widened(running: Running, database: Database) -> str:
    text, stored = await service_token(running, ALICE)
    database.run("UPDATE exchange_service_tokens SET scope = %s WHERE id = %s", '["alice", "bob"]', stored.id)
    return text


async def prolonged(running: Running, database: Database) -> str:
    text, stored = await service_token(running, Scope(frozenset({"bob"})), lifetime=-5.0)
    later = int(time.time()) + 1000
    database.run("UPDATE exchange_service_tokens SET expires = %s WHERE id = %s", later, stored.id)
    return text


async def given_another_secret(running: Running, database: Database) -> str:
    """The row of a token for every user gets the hash of the attacker's own secret."""
    _, stored = await service_token(running, Scope(everybody=True))
    text, other = new_token("mine", ALICE)
    database.run("UPDATE exchange_service_tokens SET digest = %s WHERE id = %s", other.digest, stored.id)
    return text.replace(other.id, stored.id)


async def brought_back(running: Running, database: Database) -> str:
    text, stored = await service_token(running, Scope(frozenset({"bob"})))
    async with token_store(database.url) as store:
        assert await store.revoke(stored.id)
    database.run("UPDATE exchange_service_tokens SET revoked = NULL WHERE id = %s", stored.id)
    return text


ATTACKS = (minted, signed_with_another_key, widened, prolonged, given_another_secret, brought_back)


@pytest.mark.threat("T58", attack=True)
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("mitigated", [False, True])
async def test_who_writes_to_the_table_of_tokens_reads_every_user_unless_its_rows_are_signed(
    attack: Callable[[Running, Database], Any],
    mitigated: bool,
    tmp_path: Path,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not mitigated:
        monkeypatch.setattr(TokenSignatures, "fits", lambda *_: True)
    options = {"database_url": database.url, "hash_key": "a-secret-of-the-operator"}
    async with authenticated_service(tmp_path, **options) as running:
        mine, _ = await service_token(running, ALICE)
        assert (await read_balance(running, bearer(mine))).balance.user_id == "alice"
        token = await attack(running, database)
        call = read_balance(running, bearer(token), "bob")
        if not mitigated:
            assert (await call).balance.user_id == "bob"
            return
        with capture_logs() as lines:
            failed = await failure(call)
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CALLER_UNKNOWN")
        assert "is not signed" in failed.message
        assert [line["event"] for line in lines] == ["token.not_signed"]
        # Other tokens still work.
        assert (await read_balance(running, bearer(mine))).balance.user_id == "alice"


@pytest.mark.threat("T58")
async def test_tokens_of_an_earlier_version_are_refused_until_the_operator_has_signed_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_tokens, "KEEP", 0.0)
    monkeypatch.setattr("exchange_service.identity.authenticator._REFUSAL_MEMORY", 0.0)
    database = Database(f"sqlite:///{tmp_path / 'credentials.db'}")
    database.run(EARLIER)
    text, stored = new_token("the desk", ALICE)
    insert(database, stored, '["alice"]')
    _, other = new_token("another", ALICE)
    insert(database, other, '"*"')
    settings = settings_for(tmp_path, service_tokens=True)
    async with authenticated_service(tmp_path) as running:
        failed = await failure(read_balance(running, bearer(text)))
        assert "tokens sign" in failed.message
    findings = [finding for finding in await examine(settings) if finding.subject == "tokens"]
    assert [finding.severity for finding in findings] == [Severity.ERROR]
    assert stored.id in findings[0].text
    listed = json.loads(run_in(tmp_path, "tokens", "list", "--output", "json").stdout)
    assert [entry["signed"] for entry in listed] == [False, False]
    assert run_in(tmp_path, "tokens", "sign").returncode == 2
    assert run_in(tmp_path, "tokens", "sign", "nobody").returncode == 3
    done = run_in(tmp_path, "tokens", "sign", stored.id)
    assert (done.returncode, "reads alice" in done.stderr) == (0, True), done.stderr
    async with authenticated_service(tmp_path) as running:
        assert (await read_balance(running, bearer(text))).balance.user_id == "alice"
    assert "reads all users" in run_in(tmp_path, "tokens", "sign", "--all").stderr
    findings = [finding for finding in await examine(settings) if finding.subject == "tokens"]
    assert [(finding.severity, finding.text) for finding in findings] == [(Severity.WELL, "2 in use, each signed.")]


@pytest.mark.threat("T58")
async def test_an_earlier_version_works_beside_this_one_and_accepts_what_this_one_has_signed(
    tmp_path: Path, database: Database
) -> None:
    database.run(EARLIER)
    text, stored = new_token("the desk", ALICE)
    insert(database, stored, '["alice"]')
    options = {"database_url": database.url, "hash_key": "k" * 16}
    settings = settings_for(tmp_path, service_tokens=True, **options)
    async with authenticated_service(tmp_path, **options) as running:
        assert "tokens sign" in (await failure(read_balance(running, bearer(text)))).message
        # A service changes no table that others use: it would wait for all of them, and they for it.
        assert columns_of(database) == COLUMNS + ", revoked"
        async with token_store(database.url) as store:
            assert await store.sign(stored, configured_signatures(settings).sign(stored))
    assert columns_of(database) == COLUMNS + ", revoked, signature"
    async with authenticated_service(tmp_path, **options) as running:
        assert (await read_balance(running, bearer(text))).balance.user_id == "alice"
        # The earlier version names no column that it does not know.
        _, other = new_token("of the earlier version", ALICE)
        insert(database, other, '["alice"]')
        assert database.run(f"SELECT {COLUMNS}, revoked FROM exchange_service_tokens WHERE id = %s", stored.id)


@pytest.mark.threat("T58")
async def test_a_database_user_who_cannot_change_a_table_of_an_earlier_version_still_reads_and_revokes(
    postgres_database: str,
) -> None:
    database = Database(postgres_database)
    database.run(EARLIER)
    _, stored = new_token("the desk", ALICE)
    insert(database, stored, '["alice"]')
    role = f"service_{uuid.uuid4().hex}"
    database.run(f"CREATE ROLE {role} LOGIN PASSWORD 'p'")
    try:
        database.run(f"GRANT SELECT, UPDATE ON exchange_service_tokens TO {role}")
        url = make_url(postgres_database).set(username=role, password="p").render_as_string(hide_password=False)
        async with token_store(url) as store:
            assert await store.find(stored.id) == stored
            with pytest.raises(StoreUnavailable, match="ALTER TABLE exchange_service_tokens ADD COLUMN signature"):
                await store.sign(stored, "signature")
            assert await store.revoke(stored.id)
            found = await store.find(stored.id)
            assert found is not None
            assert found.revoked
    finally:
        database.run(f"DROP OWNED BY {role}; DROP ROLE {role}")


@pytest.mark.threat("T58")
async def test_with_a_new_hash_key_tokens_are_signed_before_and_work_on_old_and_new_replicas(tmp_path: Path) -> None:
    async with authenticated_service(tmp_path, hash_key="o" * 16) as old:
        text, stored = await service_token(old, ALICE)
        assert run_in(tmp_path, "tokens", "sign", stored.id, EXCHANGE_SERVICE_HASH_KEY="n" * 16).returncode == 0
        assert (await read_balance(old, bearer(text))).balance.user_id == "alice"
    async with authenticated_service(tmp_path, hash_key="n" * 16) as new:
        assert (await read_balance(new, bearer(text))).balance.user_id == "alice"
    # Only the last two keys.
    assert run_in(tmp_path, "tokens", "sign", stored.id, EXCHANGE_SERVICE_HASH_KEY="m" * 16).returncode == 0
    async with token_store(settings_for(tmp_path).database_url) as store:
        (signed,) = await store.all()
    keys = ("o" * 16, "n" * 16, "m" * 16)
    assert [TokenSignatures(key.encode()).fits(signed) for key in keys] == [False, True, True]


@pytest.mark.threat("T58")
async def test_rows_that_are_no_tokens_hide_none_from_the_operator(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'credentials.db'}")
    assert run_in(tmp_path, "tokens", "create", "--name", "mine", "--user", "alice").returncode == 0
    odd: tuple[dict[str, Any], ...] = (
        {"created": 10**18},
        {"created": "never"},
        {"name": b"\xff"},
        {"scope": b'["alice"]'},
        {"digest": 7.5, "expires": "x"},
        {"scope": '["alice", 7]'},
    )
    for values in odd:
        _, stored = new_token("theirs", ALICE)
        insert(database, stored, '["alice"]')
        for column, value in values.items():
            database.run(f"UPDATE exchange_service_tokens SET {column} = %s WHERE id = %s", value, stored.id)
    listed = run_in(tmp_path, "tokens", "list", "--output", "json")
    assert [entry["name"] for entry in json.loads(listed.stdout) if entry["signed"]] == ["mine"]
    assert "mine" in run_in(tmp_path, "tokens", "list").stdout
    findings = await examine(settings_for(tmp_path, service_tokens=True))
    assert [finding.severity for finding in findings if finding.subject == "tokens"] == [Severity.ERROR]


def test_a_scope_that_the_row_spells_in_another_way_can_be_signed(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'credentials.db'}")
    assert run_in(tmp_path, "tokens", "list").returncode == 0
    _, stored = new_token("narrowed by hand", Scope(frozenset({"alice", "bob"})))
    insert(database, stored, '["bob","alice"]')
    done = run_in(tmp_path, "tokens", "sign", stored.id)
    assert (done.returncode, "Signed the token" in done.stderr) == (0, True), done.stderr


def test_a_token_that_could_not_be_read_again_is_not_made(tmp_path: Path) -> None:
    users = [text for number in range(9000) for text in ("--user", f"{number:036}")]
    for options in (("--name", "x", *users), ("--name", "x" * 2000, "--all-users")):
        done = run_in(tmp_path, "tokens", "create", *options)
        assert (done.returncode, done.stdout) == (2, "")
    assert json.loads(run_in(tmp_path, "tokens", "list", "--output", "json").stdout) == []


@pytest.mark.threat("T58")
async def test_doctor_names_the_roles_that_can_change_the_table_of_tokens(
    tmp_path: Path, postgres_database: str
) -> None:
    settings = settings_for(tmp_path, service_tokens=True, database_url=postgres_database, hash_key="k" * 16)
    async with token_store(postgres_database) as store:
        await store.all()
    with psycopg.connect(postgres_database, autocommit=True) as connection:
        connection.execute("ALTER TABLE exchange_service_tokens DISABLE ROW LEVEL SECURITY")
        connection.execute("GRANT UPDATE ON exchange_service_tokens TO PUBLIC")
    texts = [finding.text for finding in await examine(settings) if finding.subject == "tokens"]
    assert any("can be changed by PUBLIC: REVOKE ALL ON exchange_service_tokens" in text for text in texts), texts
    assert any("row-level security is off on exchange_service_tokens" in text for text in texts), texts


class TestKey:
    """Where the key of the signatures comes from."""

    async def test_that_it_is_on_this_machine_only_is_said(self, tmp_path: Path, postgres_database: str) -> None:
        options = {"EXCHANGE_SERVICE_DATABASE_URL": postgres_database}
        done = run_in(tmp_path, "tokens", "create", "--name", "x", "--all-users", **options)
        assert (done.returncode, "set the same hash_key" in done.stderr) == (0, True), done.stderr
        settings = settings_for(tmp_path, service_tokens=True, database_url=postgres_database)
        texts = [finding.text for finding in await examine(settings) if finding.subject == "tokens"]
        assert any("set the same hash_key" in text for text in texts)
        for changes in ({"hash_key": "k" * 16}, {"database_url": f"sqlite:///{tmp_path / 'credentials.db'}"}):
            assert key_warning(settings_for(tmp_path, **({"database_url": postgres_database} | changes))) == ""

    async def test_to_look_makes_no_file(self, tmp_path: Path) -> None:
        """Another user who looks, such as root, would leave a file that the service cannot read."""
        assert run_in(tmp_path, "tokens", "list").returncode == 0
        await examine(settings_for(tmp_path, service_tokens=True))
        assert not (tmp_path / "credentials.db.service-token-key").exists()

    def test_it_is_derived_from_the_hash_key_or_kept_in_a_file_for_our_user_alone(self, tmp_path: Path) -> None:
        _, stored = new_token("x", ALICE)
        without = settings_for(tmp_path)
        signature = configured_signatures(without).sign(stored)
        assert configured_signatures(without).sign(stored) == signature
        file = tmp_path / "credentials.db.service-token-key"
        assert file.stat().st_mode & 0o777 == 0o600
        by_hash_key = settings_for(tmp_path, hash_key="k" * 16)
        assert configured_signatures(by_hash_key).sign(stored) == TokenSignatures(b"k" * 16).sign(stored) != signature

    @pytest.mark.parametrize("damage", ["readable", "short", "no hex", "a folder"])
    async def test_a_file_that_cannot_be_trusted_stops_the_start_and_the_commands(
        self, tmp_path: Path, damage: str
    ) -> None:
        file = tmp_path / "credentials.db.service-token-key"
        if damage == "a folder":
            file.mkdir()
        else:
            file.write_text({"readable": "ab" * 32, "short": "ab", "no hex": "x" * 64}[damage])
            file.chmod(0o644 if damage == "readable" else 0o600)
        settings = settings_for(tmp_path, service_tokens=True)
        with pytest.raises(KeyUnusable):
            configured_signatures(settings)
        with pytest.raises(UnsafeSettings, match=r"chmod 600|set hash_key"):
            async with authenticated_service(tmp_path):
                pass
        done = run_in(tmp_path, "tokens", "create", "--name", "x", "--all-users")
        assert (done.returncode, done.stdout) == (4, "")

    def test_every_value_that_says_what_a_token_may_do_is_signed(self) -> None:
        signatures = TokenSignatures(b"secret")
        _, stored = new_token("x", ALICE, lifetime=10)
        signed = replace(stored, signature=signatures.sign(stored))
        assert signatures.fits(signed)
        for name, value in {
            "id": "other",
            "name": "other",
            "digest": "other",
            "scope": Scope(everybody=True),
            "created": 1,
            "expires": None,
            "signature": "",
        }.items():
            changed: Any = {name: value}
            assert not signatures.fits(replace(signed, **changed)), name
