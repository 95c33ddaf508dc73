"""Attacks over the network and by the environment: each first succeeds with the mitigation switched off, and then
fails."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from exchange_service.app import start_service
from exchange_service.cli.doctor import Severity, examine
from exchange_service.credentials.keysets import new_keyset
from exchange_service.observability.metrics import Metrics
from exchange_service.observability.metrics_server import MetricsServer
from exchange_service.startup_checks import UnsafeSettings, check_settings, unencrypted_warnings
from tests.harness import ScriptedPlugin, registry_of, settings_for

_HANDSHAKE = """
import ssl, sys, threading, socket
from pathlib import Path
from typing import Any
from exchange_service.testing.certificates import untrusted_certificate
import aiohttp, asyncio
async def main():
    context = untrusted_certificate(Path(sys.argv[1]))
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    async with aiohttp.ClientSession() as session:
        try:
            async with session.get(f"https://127.0.0.1:{port}/", ssl=trusting):
                pass
        except aiohttp.ClientError:
            pass
    server.close()
asyncio.run(main())
"""


@pytest.mark.threat("T60", attack=True)
async def test_a_variable_writes_the_keys_of_venues_connections_to_a_file_and_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(keys))
    command = (sys.executable, "-c", _HANDSHAKE, str(tmp_path))
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE)
    _, said = await asyncio.wait_for(process.communicate(), 60)
    assert "TRAFFIC_SECRET" in keys.read_text(), said
    for address in ("127.0.0.1:0", "0.0.0.0:0"):
        with pytest.raises(UnsafeSettings, match="SSLKEYLOGFILE"):
            check_settings(settings_for(tmp_path, address=address, insecure=address != "127.0.0.1:0"))
    findings = await examine(settings_for(tmp_path))
    assert any(finding.severity is Severity.ERROR and "SSLKEYLOGFILE" in finding.text for finding in findings)
    monkeypatch.setenv("SSLKEYLOGFILE", "")
    check_settings(settings_for(tmp_path))


def ask(address: str, host: str) -> str:
    """The first line of the answer to a reader who calls the server by this name."""
    name, _, port = address.rpartition(":")
    with socket.create_connection((name.strip("[]"), int(port)), timeout=10) as connection:
        header = f"Host: {host}\r\n" if host else ""
        connection.sendall(f"GET /metrics HTTP/1.0\r\n{header}\r\n".encode())
        return connection.makefile().readline().strip()


EXPECTED = ["localhost:9464", "LOCALHOST", "127.0.0.1:9464", "[::1]:9464", "[::1]", "10.1.2.3", ""]
INSIDE = ["exchange-service:9464", "metrics.monitoring.svc", "node.internal."]
STRANGE = ["rebound.attacker.example:9464", "attacker.example", "127.0.0.1.nip.io", "localhost.attacker.example", "1"]


@pytest.mark.threat("T61", attack=True)
@pytest.mark.parametrize("mitigated", [False, True])
async def test_a_page_whose_name_leads_to_loopback_reads_the_metrics_unless_the_name_is_refused(
    mitigated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not mitigated:
        monkeypatch.setattr(MetricsServer, "_is_expected", lambda *_: True)
    server = MetricsServer(Metrics(), "127.0.0.1", 0, ["Metrics.Example.com"])
    try:
        for host in (*STRANGE, "exchange-service"):
            answer = await asyncio.to_thread(ask, server.address, host)
            assert ("200" in answer) != mitigated, host
        for host in (*EXPECTED, "metrics.example.com:9464"):
            assert "200" in await asyncio.to_thread(ask, server.address, host), host
    finally:
        await server.close()


@pytest.mark.threat("T61")
async def test_metrics_for_a_network_are_shown_under_names_that_only_such_a_network_has() -> None:
    server = MetricsServer(Metrics(), "0.0.0.0", 0)
    address = server.address.replace("0.0.0.0", "127.0.0.1")
    try:
        for host in (*EXPECTED, *INSIDE):
            assert "200" in await asyncio.to_thread(ask, address, host), host
        for host in ("attacker.example", "127.0.0.1.nip.io"):
            assert "421" in await asyncio.to_thread(ask, address, host), host
    finally:
        await server.close()


@pytest.mark.threat("T62")
@pytest.mark.parametrize(
    ("setting", "value", "warned"),
    [
        ("database_url", "postgresql://u:p@db.example/x", True),
        ("database_url", "postgres://u:p@10.0.0.7/x?sslmode=prefer", True),
        ("database_url", "postgresql://u:p@/x?host=db.example", True),
        ("database_url", "postgresql://u:p@db.example/x?sslmode=require", False),
        ("database_url", "postgresql://u:p@db.example/x?sslmode=verify-full", False),
        ("database_url", "postgresql://u:p@localhost/x", False),
        ("database_url", "postgresql://u:p@[::1]/x", False),
        ("database_url", "postgresql://u:p@/x?host=/var/run/postgresql", False),
        ("database_url", "postgresql://u:p@/x", False),
        ("database_url", "postgresql://u:p@localhost/x?hostaddr=10.0.0.7", True),
        ("database_url", "postgresql://u:p@/x?host=localhost:5432&host=127.0.0.1:5433", False),
        ("database_url", "postgresql://u:p@/x?host=localhost:5432&host=db.example:5433", True),
        ("cache_url", "redis://:p@cache.example:6379/0", True),
        ("cache_url", "redis://10.0.0.7", True),
        ("cache_url", "rediss://:p@cache.example:6379/0", False),
        ("cache_url", "redis://127.0.0.1:6379/0", False),
        ("cache_url", "unix:///run/redis.sock", False),
        ("cache_url", "memory://", False),
    ],
)
def test_a_connection_to_another_machine_without_encryption_is_warned_of(
    tmp_path: Path, setting: str, value: str, warned: bool
) -> None:
    warnings = unencrypted_warnings(settings_for(tmp_path, **{setting: value}))
    assert [setting in text for text in warnings] == [True] * warned
    # The addresses hold passwords.
    assert "example" not in str(warnings)


def test_callers_who_store_credentials_in_plain_text_are_warned_of(tmp_path: Path) -> None:
    known: dict[str, Any] = {"service_tokens": True, "manage_accounts": True}
    (warning,) = unencrypted_warnings(settings_for(tmp_path, **known))
    assert "stored in plain text: set keyset_file" in warning
    assert unencrypted_warnings(settings_for(tmp_path, **known, keyset=SecretStr(new_keyset().as_text()))) == []
    assert unencrypted_warnings(settings_for(tmp_path, service_tokens=True)) == []


@pytest.mark.threat("T62")
def test_a_host_that_only_the_environment_names_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(tmp_path, database_url="postgresql://u:p@/x")
    monkeypatch.setenv("PGHOST", "db.example")
    assert len(unencrypted_warnings(settings)) == 1
    monkeypatch.setenv("PGSSLMODE", "require")
    assert unencrypted_warnings(settings) == []


@pytest.mark.threat("T62", attack=True)
async def test_the_password_of_a_redis_is_read_off_the_network_and_the_log_says_so_at_the_start(tmp_path: Path) -> None:
    overheard = b""

    async def overhear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal overheard
        overheard += await reader.read(1024)
        writer.close()

    listener = await asyncio.start_server(overhear, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    here, elsewhere = f"redis://:the-password@127.0.0.1:{port}/0", "redis://:the-password@203.0.113.1:1/0"
    with capture_logs() as lines:
        for url in (here, elsewhere):
            service = await start_service(settings_for(tmp_path, cache_url=url), registry=registry_of(ScriptedPlugin()))
            await service.cache.problem()
            await service.stop()
    listener.close()
    assert b"the-password" in overheard
    (line,) = [line for line in lines if line["event"] == "settings.unencrypted"]
    assert "rediss://" in line["problem"]
    assert "the-password" not in str(lines)
