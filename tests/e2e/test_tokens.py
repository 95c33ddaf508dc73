"""Service tokens: the commands that make, list and revoke them, and their table."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import psycopg
import pytest

from exchange_service.client import ExchangeServiceClient
from exchange_service.identity import tokens
from tests import identities
from tests.authenticated_service import (
    EVERYBODY,
    amount,
    authenticated_service,
    run_in,
    tls_settings,
)
from tests.harness import (
    PATIENCE,
)
from tests.identities import Authority, client_of, web_token


class TestCommands:
    async def test_a_token_is_made_used_listed_and_revoked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tokens, "KEEP", 0.0)
        made = run_in(tmp_path, "tokens", "create", "--name", "the desk", "--user", "alice", "--expires", "90d")
        assert made.returncode == 0, made.stderr
        token = made.stdout.strip()
        assert "not shown again" in made.stderr
        assert "service_tokens=true" in made.stderr
        token_id = token.split("_")[1]
        async with authenticated_service(tmp_path) as running:

            async def balance(user: str, presented: str = token) -> subprocess.CompletedProcess[str]:
                arguments = ("balance", "--user", user, "--exchange", "fakex", "--address", running.service.address)
                return await asyncio.to_thread(run_in, tmp_path, *arguments, EXCHANGE_SERVICE_TOKEN=presented)

            assert amount("alice", "fakex") in (await balance("alice")).stdout
            refused = await balance("bob")
            assert (refused.returncode, "USER_FORBIDDEN" in refused.stderr) == (4, True)
            assert "CALLER_UNKNOWN" in (await balance("alice", "")).stderr
            listed = run_in(tmp_path, "tokens", "list", "--output", "json")
            (entry,) = json.loads(listed.stdout)
            assert (entry["id"], entry["name"], entry["scope"]) == (token_id, "the desk", ["alice"])
            assert "the desk" in run_in(tmp_path, "tokens", "list").stdout
            secret = token.split("_", 2)[2]
            assert secret not in listed.stdout + listed.stderr + refused.stderr + made.stderr
            assert run_in(tmp_path, "tokens", "revoke", token_id).returncode == 0
            assert run_in(tmp_path, "tokens", "revoke", token_id).returncode == 3
            again = await balance("alice")
            assert (again.returncode, "revoked" in again.stderr) == (4, True)
        # Not before the end: to close a file is to give up SQLite's locks on it, for the whole process.
        stored = await asyncio.to_thread((tmp_path / "credentials.db").read_bytes)
        assert token_id.encode() in stored
        assert secret.encode() not in stored

    def test_a_token_is_made_with_the_right_to_manage(self, tmp_path: Path) -> None:
        made = run_in(tmp_path, "tokens", "create", "--name", "the app", "--user", "alice", "--manage")
        assert "alice, and may manage their accounts" in made.stderr
        assert "manage_accounts=true" in made.stderr
        (entry,) = json.loads(run_in(tmp_path, "tokens", "list", "--output", "json").stdout)
        assert entry["scope"] == {"users": ["alice"], "manage": True}

    def test_a_token_needs_one_clear_scope_and_a_clear_end(self, tmp_path: Path) -> None:
        for arguments in (
            (),
            ("--all-users", "--act-as"),
            ("--user", "alice", "--all-users"),
            ("--user", "*"),
            ("--all-users", "--expires", "soon"),
            ("--all-users", "--expires", "0d"),
        ):
            done = run_in(tmp_path, "tokens", "create", "--name", "x", *arguments)
            assert (done.returncode, done.stdout) == (2, ""), arguments
        assert json.loads(run_in(tmp_path, "tokens", "list", "--output", "json").stdout) == []

    def test_a_token_is_not_sent_to_another_machine_in_plaintext(self, tmp_path: Path) -> None:
        arguments = ("exchanges", "--address", "192.0.2.1:50051", "--plaintext")
        for done in (
            run_in(tmp_path, *arguments, EXCHANGE_SERVICE_TOKEN="xst_a_b"),
            run_in(tmp_path, *arguments, "--header", "authorization=Bearer xst_a_b"),
        ):
            assert done.returncode == 2
            assert "a token is not sent to 192.0.2.1:50051 in plaintext" in done.stderr
            assert "xst_a_b" not in done.stderr
            assert "Traceback" not in done.stderr
        with pytest.raises(ValueError, match="plaintext"):
            ExchangeServiceClient("192.0.2.1:50051", token="xst_a_b")

    @pytest.mark.threat("T9")
    async def test_a_token_for_this_machine_goes_through_no_proxy_that_the_environment_names(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        connected = asyncio.Event()

        async def proxy(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connected.set()
            writer.close()

        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("no_grpc_proxy", raising=False)
        async with (
            server,
            authenticated_service(tmp_path) as running,
            client_of(running, token=web_token(), timeout=PATIENCE) as client,
        ):
            assert (await client.get_balance("alice", "fakex")).balance.user_id == "alice"
        assert not connected.is_set()

    def test_a_token_in_the_metadata_is_a_token_too(self) -> None:
        with pytest.raises(ValueError, match="plaintext"):
            ExchangeServiceClient("192.0.2.1:50051", metadata=[("Authorization", "Bearer xst_a_b")])

    def test_a_whole_token_given_instead_of_its_id_is_not_repeated(self, tmp_path: Path) -> None:
        done = run_in(tmp_path, "tokens", "revoke", "xst_aaaaaaaaaaaa_topsecretpart")
        assert done.returncode == 3
        assert "topsecretpart" not in done.stdout + done.stderr

    @pytest.mark.needs_grpcio("The native engine has no TLS.")
    async def test_a_client_certificate_is_given_by_flags(self, tmp_path: Path) -> None:
        authority = Authority.create(tmp_path / "authority")
        options = tls_settings(authority, tls_client_ca=authority.file, client_certificates={"desk": ["alice"]})
        certificate, key = map(str, authority.sign("desk"))
        async with authenticated_service(tmp_path, service_tokens=False, **options) as running:
            address = f"127.0.0.1:{running.service.address.rpartition(':')[2]}"
            flags = ("--address", address, "--tls-ca", str(authority.file))
            identification = ("--tls-certificate", certificate, "--tls-key", key)
            arguments = ("balance", "--user", "alice", "--exchange", "fakex")
            done = await asyncio.to_thread(run_in, tmp_path, *arguments, *flags, *identification)
            assert amount("alice", "fakex") in done.stdout, done.stderr
            half = await asyncio.to_thread(run_in, tmp_path, *arguments, *flags, *identification[:2])
            assert half.returncode == 2
            probe = ("EXCHANGE_SERVICE_CLIENT_CERTIFICATE", certificate), ("EXCHANGE_SERVICE_CLIENT_KEY", key)
            healthy = await asyncio.to_thread(run_in, tmp_path, "health", *flags, **dict(probe))
            assert healthy.stdout.strip() == "SERVING", healthy.stderr


class TestTokenTable:
    async def test_on_postgresql_the_table_is_closed_to_other_roles(self, postgres_database: str) -> None:
        text, stored = tokens.new_token("x", EVERYBODY)
        with psycopg.connect(postgres_database, autocommit=True) as connection:
            for role in ("anon", "authenticated"):
                connection.execute(f"DO $$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
            connection.execute("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO anon, authenticated, PUBLIC")
        async with identities.token_store(postgres_database) as one, identities.token_store(postgres_database) as two:
            # Two replicas that meet a database without the table at the same moment.
            await asyncio.gather(one.add(stored), two.all())
            assert await two.find(stored.id) == stored
        with psycopg.connect(postgres_database, autocommit=True) as connection:
            secured_rows = connection.execute(
                "SELECT relrowsecurity FROM pg_class WHERE relname = 'exchange_service_tokens'"
            ).fetchone()
            assert secured_rows == (True,)
            for role in ("anon", "authenticated"):
                connection.execute(f"SET ROLE {role}")
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute("SELECT * FROM exchange_service_tokens")
                connection.execute("RESET ROLE")
            dump = str(connection.execute("SELECT * FROM exchange_service_tokens").fetchall())
        assert text.split("_", 2)[2] not in dump
