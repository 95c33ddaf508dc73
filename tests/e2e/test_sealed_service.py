"""The running service over sealed credentials: wrong keys, rotation and sealing under traffic, and its commands."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs
from typer.testing import CliRunner

from exchange_service.app import start_service
from exchange_service.cli import app
from exchange_service.credentials import key_check
from exchange_service.credentials.key_providers import FileKeys
from exchange_service.credentials.keyset_files import create_keyset_file
from exchange_service.credentials.keysets import Keyset, new_keyset, read_keyset
from exchange_service.credentials.sealing import is_sealed, key_id_of
from exchange_service.credentials.sql import SqlCredentialStore, open_store
from exchange_service.errors import CredentialUnreadable
from exchange_service.model import Account, Credential
from exchange_service.startup_checks import UnsafeSettings
from tests.credential_tables import OWNERS_TABLES, Database
from tests.harness import (
    USER,
    Running,
    ScriptedPlugin,
    Stream,
    balance_request,
    eventually,
    failure,
    registry_of,
    serving,
    settings_for,
    streaming,
    totals,
    until,
)
from tests.test_cli import call, environment

CANARY = "canary-77e0"
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.fixture
def keyset_file(tmp_path: Path) -> Path:
    path = tmp_path / "keyset.json"
    create_keyset_file(path)
    return path


@pytest.fixture
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_check, "INTERVAL", 0.05)


def write_keyset(path: Path, keyset: Keyset) -> None:
    path.write_text(keyset.as_text())
    path.chmod(0o600)


async def health(running: Running) -> int:
    stub = health_pb2_grpc.HealthStub(running.client.channel)
    return int((await stub.Check(health_pb2.HealthCheckRequest())).status)


@asynccontextmanager
async def sealed_by(folder: Path, keyset_file: Path) -> AsyncIterator[None]:
    """Afterwards there is a sealed credential of USER at "fakex" in the folder's database."""
    async with serving(folder, registry=registry_of(ScriptedPlugin()), keyset_file=keyset_file) as running:
        await running.store(api_key=CANARY)
        assert await health(running) == SERVING
    yield


def variables(home: Path, database: str = "", **extra: str) -> dict[str, str]:
    """The environment of a command: the database of the service under test, and what else is given."""
    return {"EXCHANGE_SERVICE_DATABASE_URL": database or f"sqlite:///{home / 'credentials.db'}", **extra}


def command(home: Path, *arguments: str, stdin: str = "", **extra: str) -> Any:
    """A command within this process, which is quicker than one of its own."""
    with capture_logs():
        return CliRunner().invoke(app, arguments, input=stdin, env=variables(home, **extra))


async def ran(home: Path, *arguments: str, **extra: str) -> Any:
    """A command in a process of its own, beside the service, to its good end."""
    done = await asyncio.to_thread(call, home, *arguments, **variables(home, **extra))
    assert done.returncode == 0, done.stderr
    return done


class TestWrongKeys:
    @pytest.mark.parametrize("kind", ["another key of the same name", "another key", "no keyset", "no file", "no JSON"])
    async def test_the_service_reports_not_serving_with_the_reason_and_the_row_never_reaches_the_venue(
        self, tmp_path: Path, keyset_file: Path, kind: str
    ) -> None:
        plugin, right = ScriptedPlugin(), read_keyset(keyset_file)
        async with sealed_by(tmp_path, keyset_file):
            changes: dict[str, Any] = {"keyset_file": keyset_file}
            other = new_keyset()
            if kind == "another key of the same name":
                write_keyset(keyset_file, Keyset(right.primary, {right.primary: other.keys[other.primary]}))
                reason = f"The key {right.primary} of the keyset is not the one"
            elif kind == "another key":
                write_keyset(keyset_file, other)
                reason = f"the key {right.primary}, which the keyset does not have"
            elif kind == "no keyset":
                changes = {}
                reason = "there is no keyset"
            elif kind == "no file":
                os.unlink(keyset_file)
                reason = "cannot be read"
            else:
                changes = {"keyset": CANARY}
                reason = "not a JSON object"
            with capture_logs() as lines:
                async with serving(tmp_path, registry=registry_of(plugin), **changes) as running:
                    assert await health(running) == NOT_SERVING
                    failed = await failure(running.stub.GetBalance(balance_request()))
                    assert (await running.client.list_exchanges()).stats.total == 1
        assert (failed.code, failed.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CREDENTIAL_UNREADABLE")
        (line,) = [line for line in lines if line["event"] == "keys.unproven"]
        assert reason in line["problem"]
        assert plugin.calls == []
        for secret in (CANARY, "xs1:", str(tmp_path)):
            assert secret not in repr(failed)
        assert CANARY not in str(lines)

    @pytest.mark.usefixtures("quick_checks")
    async def test_it_serves_as_soon_as_the_right_key_is_there(self, tmp_path: Path, keyset_file: Path) -> None:
        right = read_keyset(keyset_file)
        async with sealed_by(tmp_path, keyset_file):
            write_keyset(keyset_file, new_keyset())
            with capture_logs() as lines:
                async with serving(
                    tmp_path, registry=registry_of(ScriptedPlugin()), keyset_file=keyset_file
                ) as running:
                    assert await health(running) == NOT_SERVING
                    write_keyset(keyset_file, right)

                    async def serves() -> bool:
                        return bool(await health(running) == SERVING)

                    await eventually(serves, "serving")
                    assert totals((await running.client.get_balance(USER, "fakex")).balance) == {"BTC": "1.50"}
        events = [line["event"] for line in lines]
        # It reported the problem once, however often it checked.
        assert (events.count("keys.unproven"), events.count("keys.proven")) == (1, 1)

    @pytest.mark.usefixtures("quick_checks")
    async def test_a_database_that_does_not_answer_leaves_it_serving_until_it_does(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database = Database(f"sqlite:///{tmp_path / 'credentials.db'}")
        database.run("CREATE TABLE bot_credentials (user_id text)")
        async with serving(tmp_path, registry=registry_of(ScriptedPlugin())) as running:
            assert await health(running) == SERVING
            database.run("DROP TABLE bot_credentials")
            database.run(OWNERS_TABLES["text"])
            database.insert(api_key="xs1:0000:AAAA:AAAA")

            async def refuses() -> bool:
                return bool(await health(running) == NOT_SERVING)

            await eventually(refuses, "not serving")

    async def test_a_stop_is_not_undone_by_a_proof_that_comes_late(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reports: list[bool] = []
        looking, looked = asyncio.Event(), asyncio.Event()

        async def slow(*_: Any) -> key_check.KeyCheck:
            looking.set()
            await looked.wait()
            return key_check.KeyCheck((), True)

        async def say(serving: bool) -> None:
            reports.append(serving)

        monkeypatch.setattr(key_check, "INTERVAL", 0.0)
        monkeypatch.setattr(key_check, "check_keys", slow)
        store = await open_store(f"sqlite:///{tmp_path / 'credentials.db'}", b"key")
        watch = key_check.KeyWatch(store)
        running = asyncio.ensure_future(watch.run(say))
        await looking.wait()
        watch.end()
        looked.set()
        await running
        assert reports == []
        await store.close()

    @pytest.mark.usefixtures("quick_checks")
    async def test_keys_that_are_lost_while_it_serves_are_noticed_by_the_first_call_and_reported_until_they_are_back(
        self, tmp_path: Path, keyset_file: Path
    ) -> None:
        right, plugin = read_keyset(keyset_file), ScriptedPlugin()
        async with serving(tmp_path, registry=registry_of(plugin), keyset_file=keyset_file) as running:
            await running.store(api_key=CANARY)
            # As by an older copy of the file that is put in its place.
            write_keyset(keyset_file, new_keyset())
            running.service.store.vault.keys.reread()  # type: ignore[union-attr]
            failed = await failure(running.stub.GetBalance(balance_request()))
            assert failed.reason == "CREDENTIAL_UNREADABLE"

            async def says(state: int) -> bool:
                return await health(running) == state

            await eventually(lambda: says(NOT_SERVING), "not serving")
            write_keyset(keyset_file, right)
            await eventually(lambda: says(SERVING), "serving")
            assert totals((await running.client.get_balance(USER, "fakex")).balance) == {"BTC": "1.50"}

    async def test_with_two_keysets_or_without_plaintext_and_keyset_it_does_not_start(
        self, tmp_path: Path, keyset_file: Path
    ) -> None:
        for changes, named in (
            ({"keyset_file": keyset_file, "keyset": new_keyset().as_text()}, "either keyset_file or keyset"),
            ({"allow_plaintext": False}, "allow_plaintext=false"),
        ):
            with pytest.raises(UnsafeSettings, match=named):
                await start_service(settings_for(tmp_path, **changes), registry=registry_of(ScriptedPlugin()))

    async def test_a_value_that_is_copied_to_another_users_row_is_refused(
        self, tmp_path: Path, keyset_file: Path
    ) -> None:
        plugin = ScriptedPlugin()
        async with serving(tmp_path, registry=registry_of(plugin), keyset_file=keyset_file) as running:
            await running.store(api_key=CANARY)
            await running.store(user="mallory", api_key="another key")
            Database(running.service.settings.database_url).run(
                "UPDATE bot_credentials SET api_key = (SELECT api_key FROM bot_credentials WHERE user_id = %s)"
                " WHERE user_id = 'mallory'",
                USER,
            )
            failed = await failure(running.stub.GetBalance(balance_request(user_id="mallory")))
            assert totals((await running.client.get_balance(USER, "fakex")).balance) == {"BTC": "1.50"}
        assert failed.reason == "CREDENTIAL_UNREADABLE"
        assert [call.account.user_id for call in plugin.calls] == [USER]

    async def test_a_plain_row_is_refused_where_it_is_not_allowed(self, tmp_path: Path, keyset_file: Path) -> None:
        async with sealed_by(tmp_path, keyset_file):
            database = Database(f"sqlite:///{tmp_path / 'credentials.db'}")
            database.insert(user_id="bob", exchange="fakex")
            for allowed in (True, False):
                async with serving(
                    tmp_path,
                    registry=registry_of(ScriptedPlugin()),
                    keyset_file=keyset_file,
                    allow_plaintext=allowed,
                ) as running:
                    assert await health(running) == SERVING
                    assert (await running.client.get_balance(USER, "fakex")).balance
                    if allowed:
                        assert (await running.client.get_balance("bob", "fakex")).balance
                    else:
                        with pytest.raises(CredentialUnreadable, match="plain text"):
                            await running.client.get_balance("bob", "fakex")


class Traffic:
    """Callers that read without a pause. Each call asks the database and opens the credential again."""

    def __init__(self, running: Running, users: list[str]) -> None:
        self.running = running
        self.answered = 0
        self._enough = asyncio.Event()
        self._callers = [asyncio.ensure_future(self._call_on(user)) for user in users]

    async def _call_on(self, user: str) -> None:
        balances = self.running.service.balances
        while not self._enough.is_set():
            account, _ = self.running.service.registry.account(user, "fakex", "")
            await balances.publish_credential_change(account)
            reply = await self.running.client.get_balance(user, "fakex", max_age=0)
            assert reply.balance.user_id == user
            self.answered += 1

    async def more(self, calls: int) -> None:
        """Wait for this number of further calls; raise the exception of a failed one."""
        wanted = self.answered + calls
        await until(lambda: self.answered >= wanted or any(caller.done() for caller in self._callers), "the calls")
        for caller in self._callers:
            if caller.done():
                caller.result()

    async def end(self) -> int:
        """Stop, and say how many calls were answered; one that failed is raised."""
        self._enough.set()
        await asyncio.gather(*self._callers)
        return self.answered


@pytest.fixture
def openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whose credential was opened, for each time."""
    counted: list[str] = []
    really = SqlCredentialStore.open

    async def counting(store: SqlCredentialStore, reference: Any) -> Any:
        credential = await really(store, reference)
        counted.append(reference.stored_as.user_id)
        return credential

    monkeypatch.setattr(SqlCredentialStore, "open", counting)
    return counted


class TestUnderTraffic:
    async def test_keys_are_rotated_rewrapped_and_retired_without_a_failed_call(
        self, tmp_path: Path, keyset_file: Path, openings: list[str]
    ) -> None:
        plugin = ScriptedPlugin()
        keyset = {"EXCHANGE_SERVICE_KEYSET_FILE": str(keyset_file)}
        users = [f"user{number}" for number in range(10)]
        with capture_logs() as lines:
            async with serving(
                tmp_path,
                registry=registry_of(plugin),
                keyset_file=keyset_file,
                poll_interval=0.1,
                poll_interval_still=0.1,
            ) as running:
                database = Database(running.service.settings.database_url)
                for user in users:
                    await running.store(user=user, api_key=f"{CANARY} of {user}")
                first = read_keyset(keyset_file).primary
                async with streaming(running, "fakex", user=users[0]) as stream:
                    events: list[str] = []
                    follower = asyncio.ensure_future(follow(stream, events))
                    traffic = Traffic(running, users)
                    await traffic.more(50)
                    await ran(tmp_path, "keys", "rotate", **keyset)
                    second = read_keyset(keyset_file).primary
                    # Sealed with the new key by another program, perhaps before the service has read the file again.
                    await stored_elsewhere(database.url, keyset_file, users[1], f"{CANARY} of {users[1]}")
                    await traffic.more(50)
                    await ran(tmp_path, "credentials", "rewrap", **keyset)
                    await traffic.more(50)
                    assert {key_id_of(row[0]) for row in database.run("SELECT api_key FROM bot_credentials")} == {
                        second
                    }
                    await ran(tmp_path, "keys", "retire", first, **keyset)
                    assert list(read_keyset(keyset_file).keys) == [second]
                    await traffic.more(50)
                    answered = await traffic.end()
                    assert not follower.done()
                    follower.cancel()
                assert await health(running) == SERVING
        assert answered >= 200
        assert events.count("balance") >= 2
        assert set(events) <= {"balance", "heartbeat"}
        assert all(call.credential.api_key.reveal() == f"{CANARY} of {call.account.user_id}" for call in plugin.calls)
        openings_in_log = [
            line for line in lines if line["event"] == "credential.opened" and line["purpose"] == "venue"
        ]
        assert len(openings_in_log) == len(openings) >= answered
        assert {key for line in openings_in_log for key in line["keys"]} == {first, second}
        assert not [line for line in lines if line["log_level"] in ("warning", "error")]
        assert CANARY not in str(lines)

    async def test_the_owners_table_is_sealed_while_it_is_in_use_by_a_run_that_is_killed_and_another(
        self, tmp_path: Path, keyset_file: Path, postgres_database: str
    ) -> None:
        database = Database(postgres_database)
        database.run(OWNERS_TABLES["uuid and jsonb"])
        users = [str(uuid.UUID(int=number)) for number in range(1, 21)]
        for user in users:
            secret = f"{CANARY} of {user}"
            database.insert(
                user_id=user, exchange="fakex", api_key=secret, extra_metadata=json.dumps({"private_key": secret})
            )
        others = (
            "SELECT id, created_at, user_id, exchange, environment, is_active, mood FROM bot_credentials ORDER BY id"
        )
        before = database.run(others)
        settings = {"EXCHANGE_SERVICE_KEYSET_FILE": str(keyset_file)}
        plugin = ScriptedPlugin()

        def sealed() -> int:
            return sum(is_sealed(row[0]) for row in database.run("SELECT api_key FROM bot_credentials"))

        async with serving(
            tmp_path, registry=registry_of(plugin), database_url=postgres_database, keyset_file=keyset_file
        ) as running:
            traffic = Traffic(running, users[:10])
            await traffic.more(30)
            with psycopg.connect(postgres_database) as writer:
                # The run comes this far and waits.
                writer.execute("SELECT * FROM bot_credentials WHERE user_id = %s FOR UPDATE", [users[12]])
                with killed_at_the_end(seal_all(tmp_path, postgres_database, settings)):
                    await until(lambda: sealed() == 12, "twelve sealed rows")
                await traffic.more(30)
            assert sealed() == 12
            done = await ran(tmp_path, "credentials", "seal", "--all", database=postgres_database, **settings)
            assert "8 changed, 12 with nothing to do, 0 left" in done.stderr
            await traffic.more(30)
            again = await ran(tmp_path, "credentials", "seal", "--all", database=postgres_database, **settings)
            assert "0 changed, 20 with nothing to do" in again.stderr
            assert await traffic.end() >= 90
            for user in users:
                assert (await running.client.get_balance(user, "fakex", max_age=0)).balance.user_id == user
        for seen in plugin.calls:
            secret = f"{CANARY} of {seen.account.user_id}"
            assert (seen.credential.api_key.reveal(), seen.credential.metadata) == (secret, {"private_key": secret})
        assert database.run(others) == before
        assert CANARY not in repr(database.run("SELECT * FROM bot_credentials"))


async def follow(stream: Stream, events: list[str]) -> None:
    """Note the kind of each event."""
    while True:
        events.append((await stream.next()).WhichOneof("event"))


async def stored_elsewhere(url: str, keyset_file: Path, user: str, api_key: str) -> None:
    store = await open_store(url, b"another process", keys=FileKeys(keyset_file))
    await store.put(Account(user, "fakex"), Credential.from_texts({"api_key": api_key}))
    await store.close()


def seal_all(home: Path, database: str, settings: dict[str, str]) -> subprocess.Popen[bytes]:
    given = environment(home, **variables(home, database, **settings))
    arguments = [sys.executable, "-m", "exchange_service", "credentials", "seal", "--all"]
    return subprocess.Popen(arguments, env=given, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class killed_at_the_end:
    """A process that is ended at once, without a word, when the block ends."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        assert self._process.poll() is None, "it ended by itself"
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def add(home: Path, **extra: str) -> Any:
    arguments = ("credentials", "add", "-u", "alice", "-e", "oanda", "--stdin")
    return command(home, *arguments, stdin=json.dumps({"api_key": CANARY}), **extra)


def findings(home: Path, **extra: str) -> tuple[int, list[tuple[str, str]]]:
    """The exit code of doctor, and what it says of the keys."""
    done = command(home, "doctor", "-o", "json", **extra)
    return done.exit_code, [
        (entry["severity"], entry["text"]) for entry in json.loads(done.stdout) if entry["subject"] == "keys"
    ]


def plain_in(home: Path) -> bool:
    return CANARY in repr(Database(f"sqlite:///{home / 'credentials.db'}").run("SELECT * FROM bot_credentials"))


class TestCommands:
    @pytest.fixture
    def keys(self, tmp_path: Path) -> dict[str, str]:
        done = command(tmp_path, "keys", "create", str(tmp_path / "keyset.json"))
        assert done.exit_code == 0
        assert read_keyset(tmp_path / "keyset.json").primary in done.stderr
        return {"EXCHANGE_SERVICE_KEYSET_FILE": str(tmp_path / "keyset.json")}

    def test_a_keyset_is_never_made_twice(self, tmp_path: Path, keys: dict[str, str]) -> None:
        before = (tmp_path / "keyset.json").read_bytes()
        again = command(tmp_path, "keys", "create", str(tmp_path / "keyset.json"))
        assert (again.exit_code, "exists already" in again.stderr) == (4, True)
        assert (tmp_path / "keyset.json").read_bytes() == before

    def test_add_seals_with_a_keyset_and_warns_without_one(self, tmp_path: Path, keys: dict[str, str]) -> None:
        warned = add(tmp_path)
        assert (warned.exit_code, "plain text" in warned.stderr) == (0, True)
        assert plain_in(tmp_path)
        command(tmp_path, "credentials", "remove", "-u", "alice", "-e", "oanda", "--yes")
        sealed = add(tmp_path, **keys)
        assert (sealed.exit_code, "plain text" in sealed.stderr, "sealed" in sealed.stderr) == (0, False, True)
        assert not plain_in(tmp_path)
        assert CANARY not in warned.stderr + sealed.stderr

    def test_add_stores_nothing_when_the_keyset_cannot_be_used(self, tmp_path: Path, keys: dict[str, str]) -> None:
        (tmp_path / "keyset.json").chmod(0o644)
        refused = add(tmp_path, **keys)
        assert refused.exit_code == 4
        assert command(tmp_path, "credentials", "list", "-o", "json").stdout.strip() == "[]"

    def test_doctor_reports_the_state_of_the_credentials_and_what_to_do(
        self, tmp_path: Path, keys: dict[str, str]
    ) -> None:
        add(tmp_path)
        code, ((severity, text),) = findings(tmp_path)
        assert (code, severity) == (0, "warning")
        assert "no keyset" in text
        assert "1 now" in text
        code, entries = findings(tmp_path, **keys)
        assert [severity for severity, _ in entries] == ["ok", "warning"]
        assert "credentials seal" in entries[1][1]
        assert findings(tmp_path, **keys, EXCHANGE_SERVICE_ALLOW_PLAINTEXT="false")[0] == 4
        assert command(tmp_path, "credentials", "seal", "--all", **keys).exit_code == 0
        assert findings(tmp_path, **keys) == (0, [("ok", "sealed values: 1; the keys open them.")])
        command(tmp_path, "keys", "rotate", **keys)
        code, entries = findings(tmp_path, **keys)
        assert (code, "credentials rewrap" in entries[1][1]) == (0, True)
        code, entries = findings(tmp_path)
        assert (code, [severity for severity, _ in entries]) == (4, ["error"])
        (tmp_path / "keyset.json").unlink()
        code, entries = findings(tmp_path, **keys)
        assert (code, entries[0][0], "cannot be read" in entries[0][1]) == (4, "error", True)

    def test_status_counts_what_each_key_seals_and_a_key_in_use_is_not_retired(
        self, tmp_path: Path, keys: dict[str, str]
    ) -> None:
        def status() -> list[tuple[str, bool, int]]:
            entries = json.loads(command(tmp_path, "keys", "status", "-o", "json", **keys).stdout)
            return [(entry["key"], entry["primary"], entry["values"]) for entry in entries]

        add(tmp_path, **keys)
        first = read_keyset(tmp_path / "keyset.json").primary
        assert status() == [(first, True, 1)]
        assert command(tmp_path, "keys", "retire", first, **keys).exit_code == 4
        assert command(tmp_path, "keys", "rotate", **keys).exit_code == 0
        second = read_keyset(tmp_path / "keyset.json").primary
        assert sorted(status()) == sorted([(first, False, 1), (second, True, 0)])
        refused = command(tmp_path, "keys", "retire", first, **keys)
        assert (refused.exit_code, "still seals: 1;" in refused.stderr) == (4, True)
        assert command(tmp_path, "credentials", "rewrap", **keys).exit_code == 0
        # Another database, such as the one of a shell without the setting, says nothing of what a key seals.
        elsewhere = f"sqlite:///{tmp_path / 'another.db'}"
        other = command(tmp_path, "keys", "retire", first, **keys, EXCHANGE_SERVICE_DATABASE_URL=elsewhere)
        assert (other.exit_code, "check database_url" in other.stderr) == (4, True)
        assert status() == sorted([(first, False, 0), (second, True, 1)], key=lambda entry: entry[1])
        retired = command(tmp_path, "keys", "retire", first, **keys)
        assert (retired.exit_code, f"keyset.json.retired-{first}" in retired.stderr) == (0, True)
        assert list(read_keyset(tmp_path / f"keyset.json.retired-{first}").keys) == [first]
        assert status() == [(second, True, 1)]
        assert command(tmp_path, "keys", "retire", second, **keys).exit_code == 4
        status = command(tmp_path, "keys", "status", **keys)
        material = json.loads((tmp_path / "keyset.json").read_text())["keys"][second]["key"]
        assert second in status.stdout
        assert material not in status.stdout + status.stderr

    def test_a_key_may_be_distributed_before_it_seals(self, tmp_path: Path, keys: dict[str, str]) -> None:
        file = tmp_path / "keyset.json"
        first = read_keyset(file).primary
        assert command(tmp_path, "keys", "rotate", "--add-only", **keys).exit_code == 0
        assert read_keyset(file).primary == first
        (second,) = read_keyset(file).keys.keys() - {first}
        assert command(tmp_path, "keys", "rotate", "--to", second, **keys).exit_code == 0
        assert (read_keyset(file).primary, len(read_keyset(file).keys)) == (second, 2)
        assert command(tmp_path, "keys", "rotate", "--to", "none", **keys).exit_code == 4
        assert command(tmp_path, "keys", "rotate", "--to", first, "--add-only", **keys).exit_code == 2

    def test_sealing_needs_a_selection_and_a_keyset_and_unsealing_a_confirmation(
        self, tmp_path: Path, keys: dict[str, str]
    ) -> None:
        add(tmp_path)
        # A variable of a shell that is empty does not stand for all.
        for arguments in ((), ("--all", "--user", "alice"), ("--exchange", " "), ("--user", "", "--exchange", "")):
            assert command(tmp_path, "credentials", "seal", *arguments, **keys).exit_code == 2
        assert command(tmp_path, "credentials", "seal", "--all").exit_code == 4
        dry = command(tmp_path, "credentials", "seal", "--all", "--dry-run", **keys)
        assert "1 would be changed" in dry.stderr
        assert plain_in(tmp_path)
        assert command(tmp_path, "credentials", "seal", "-e", "OANDA", **keys).exit_code == 0
        assert not plain_in(tmp_path)
        assert command(tmp_path, "credentials", "unseal", "--all", **keys).exit_code == 130
        assert not plain_in(tmp_path)
        assert command(tmp_path, "credentials", "unseal", "-u", "alice", "--yes", **keys).exit_code == 0
        assert plain_in(tmp_path)

    def test_nothing_is_sealed_where_two_keysets_are_given(self, tmp_path: Path, keys: dict[str, str]) -> None:
        both = keys | {"EXCHANGE_SERVICE_KEYSET": new_keyset().as_text()}
        refused = add(tmp_path, **both)
        assert (refused.exit_code, "either keyset_file or keyset" in refused.stderr) == (2, True)
        assert not (tmp_path / "credentials.db").exists()

    def test_a_second_keyset_does_not_seal_into_a_table_by_mistake(self, tmp_path: Path, keys: dict[str, str]) -> None:
        add(tmp_path, **keys)
        Database(f"sqlite:///{tmp_path / 'credentials.db'}").insert(user_id="bob", api_key=CANARY)
        write_keyset(tmp_path / "keyset.json", new_keyset())
        refused = command(tmp_path, "credentials", "seal", "--all", **keys)
        assert (refused.exit_code, "nothing was sealed" in refused.stderr) == (4, True)
        assert plain_in(tmp_path)

    def test_a_keyset_of_the_environment_seals_and_is_not_changed_here(
        self, tmp_path: Path, keys: dict[str, str]
    ) -> None:
        given = {"EXCHANGE_SERVICE_KEYSET": (tmp_path / "keyset.json").read_text()}
        assert add(tmp_path, **given).exit_code == 0
        assert not plain_in(tmp_path)
        assert json.loads(command(tmp_path, "keys", "status", "-o", "json", **given).stdout)[0]["values"] == 1
        refused = command(tmp_path, "keys", "rotate", **given)
        assert (refused.exit_code, "where it is stored" in refused.stderr) == (2, True)

    def test_a_selection_that_matches_no_row_is_an_error(self, tmp_path: Path, keys: dict[str, str]) -> None:
        add(tmp_path, **keys)
        done = command(tmp_path, "credentials", "seal", "--user", "nobody", **keys)
        assert (done.exit_code, "no credential is stored for this choice" in done.stderr) == (3, True)

    def test_a_row_that_cannot_be_opened_is_named_and_the_exit_code_is_an_error(
        self, tmp_path: Path, keys: dict[str, str]
    ) -> None:
        add(tmp_path, **keys)
        write_keyset(tmp_path / "keyset.json", new_keyset())
        done = command(tmp_path, "credentials", "rewrap", **keys)
        assert done.exit_code == 4
        assert "alice at oanda (production): cannot be opened" in done.stderr
        assert "0 changed, 0 with nothing to do, 1 left" in done.stderr


def test_a_service_without_a_keyset_does_without_cryptography(tmp_path: Path) -> None:
    program = (
        "import sys, exchange_service.credentials.configured, exchange_service.credentials.key_check,"
        " exchange_service.cli; print('cryptography' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
