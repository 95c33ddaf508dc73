"""What a plugin's own process is kept to: the list that is handed to the kernel, and what honest plugins still do with
it. tests/faults/test_evil_plugins.py has what the others no longer do."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from exchange_service.cli.doctor import Finding, Severity, examine
from exchange_service.model import Environment, Manifest
from exchange_service.plugin_host import sandbox
from exchange_service.plugin_host.discovery import open_registry
from exchange_service.plugin_host.health import HealthFault, check_health
from exchange_service.plugin_host.launch import StartFailed, prepare_launch, third_party_manifest
from exchange_service.plugin_host.process import PluginProcess, ServeConfig
from exchange_service.plugin_host.restart_policy import RestartPolicy
from exchange_service.settings import Settings
from tests.harness import Clock, listing, serving, settings_for
from tests.identities import Authority
from tests.test_cli import call
from tests.test_plugin_host import guest, guest_manifest, install, policy, status_of

__all__ = ["guest"]

# Asks its venue by the host's name over TLS, and another machine by UDP, as a look-up of names does.
HONEST = """
import json, os, socket, subprocess, sys
from decimal import Decimal

from exchange_service.plugin_api import *


@hookimpl
def exchange_manifest():
    return Manifest(1, (
        ExchangeMetadata(
            id="honest", name="Honest", asset_class="Crypto", asset_types="Crypto Spot", market_hours="24/7 Trading",
            environments=(Environment("production", {"api": "https://honest.example"}),),
        ),
    ))


@hookimpl
async def fetch_balance(call):
    response = await call.http.get(call.url("api") + "/balance")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(5)
        datagrams.sendto(b"who?", ("127.0.0.1", int(call.credential.metadata["udp"])))
        said = datagrams.recv(64).decode()
    with open(os.path.join(os.environ["TMPDIR"], "kept"), "w+") as kept:
        kept.write("its own")
    child = subprocess.run([sys.executable, "-c", "print('a child')"], capture_output=True, text=True)
    with open("/proc/self/status") as status:
        more = [line.split()[1] for line in status if line.startswith("NoNewPrivs:")]
    notes = (json.dumps([said, child.stdout.strip(), os.path.getsize("kept"), more]),)
    rows = (AssetBalance("BTC", total=response.json()["total"]),)
    return Balance((VenueAccount(id="1", type="spot", assets=rows),), notes=notes)
"""


@asynccontextmanager
async def https_venue(authority: Authority) -> AsyncIterator[int]:
    """A venue at https://localhost; its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.sign("venue", "localhost"))

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b'{"total": 1.5}'
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


class _Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self._transport.sendto(b"127.0.0.1", address)


@asynccontextmanager
async def udp_answers() -> AsyncIterator[int]:
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(_Echo, ("127.0.0.1", 0))
    try:
        yield transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


@contextmanager
def kernel(abi: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A kernel with this version of Landlock."""
    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "landlock_abi", lambda: abi)
        yield


class TestHonestPlugin:
    @pytest.mark.threat("T30")
    async def test_it_reaches_its_venue_over_tls_asks_by_udp_starts_programs_and_writes_in_its_own_folder(
        self, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site = tmp_path_factory.mktemp("site")
        install(site, "honest", HONEST)
        monkeypatch.syspath_prepend(str(site))
        authority = Authority.create(tmp_path / "tls")
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        async with https_venue(authority) as port, udp_answers() as udp:
            urls = {"honest": f"https://localhost:{port}"}
            async with serving(tmp_path, venue_urls=urls) as running:
                await running.store("honest", metadata={"udp": str(udp)})
                reply = await running.client.get_balance("alice", "honest")
                assert (await status_of(running, "honest")).sandbox == sandbox.level("auto")
        assert reply.balance.venue_accounts[0].assets[0].total == "1.5"
        assert json.loads(reply.balance.notes[0]) == ["127.0.0.1", "a child", 7, ["1"]]


class TestPorts:
    def test_they_are_https_and_those_of_the_manifest_and_of_the_operator(self) -> None:
        places = (
            Environment("production", {"api": "https://a.example", "socket": "wss://a.example:8443/ws"}),
            Environment("sandbox", {"api": "http://test.a.example", "old": "ws://test.a.example:81"}),
        )
        manifest = Manifest(1, (listing("a", environments=places),))
        overrides = {"a": "http://127.0.0.1:9001", "a.sandbox": "https://proxy.example"}
        assert sandbox.venue_ports(manifest, overrides, ()) == {53, 80, 81, 443, 8443, 9001}

    @pytest.mark.threat("T30")
    def test_a_manifest_opens_none_of_the_services_own_and_the_operator_may(self) -> None:
        places = (Environment("production", {"a": "https://a.example:6379", "b": "https://a.example:50051"}),)
        manifest = Manifest(1, (listing("a", environments=places),))
        own = frozenset({6379, 50051})
        assert sandbox.venue_ports(manifest, {}, own) == {53, 443}
        assert sandbox.venue_ports(manifest, {"a": "http://127.0.0.1:6379"}, own) == {53, 443, 6379}

    @pytest.mark.parametrize(
        ("settings", "ports"),
        [
            ({}, {50051}),
            ({"address": "unix:/run/service", "metrics_address": "127.0.0.1:9464"}, {9464}),
            ({"http_address": "127.0.0.1:50052", "health_address": "127.0.0.1:8086"}, {50051, 50052, 8086}),
            ({"cache_url": "redis://cache/0"}, {50051, 6379}),
            ({"cache_url": "rediss://:word@cache:7000/0"}, {50051, 7000}),
            ({"database_url": "postgresql+psycopg://a:b@db/name"}, {50051, 5432}),
            ({"database_url": "postgres://a:b@db:6543/name"}, {50051, 6543}),
        ],
    )
    def test_the_services_own_are_its_addresses_its_redis_and_its_database(
        self, settings: dict[str, Any], ports: set[int]
    ) -> None:
        assert sandbox.own_ports(Settings(**settings)) == ports

    async def test_a_process_whose_newer_manifest_names_others_is_replaced(self, guest: Path) -> None:
        manifest = await guest_manifest()
        process = await PluginProcess.start(policy(), ServeConfig(manifest, {}, 8.0, 300.0, frozenset({443})))
        try:
            restarts = RestartPolicy(policy(), Clock())
            assert await check_health(process, restarts) is None
            await process.configure(ServeConfig(manifest, {}, 8.0, 300.0, frozenset({443, 8443})))
            fault = HealthFault("Its newer manifest names ports to which it could not connect.", answers=True)
            assert await check_health(process, restarts) == fault
        finally:
            await process.end()


async def test_a_process_that_could_not_look_names_up_any_more_is_replaced(
    guest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await PluginProcess.start(policy(), ServeConfig(await guest_manifest(), {}, 8.0, 300.0))
    try:
        assert process.outgrown() == ""
        monkeypatch.setattr("exchange_service.plugin_host.sandbox.lookup_files", lambda: ((1, 2),))
        assert process.outgrown() == (
            "The files by which names of hosts are looked up were replaced, and it could not read them."
        )
    finally:
        await process.end()


@pytest.mark.threat("T30")
def test_of_a_project_that_is_installed_in_place_only_the_modules_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("acme/__init__.py", "acme/data/rates.json", "shared/acme_two/__init__.py", "deploy/run.py", "one.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for name in (".env", "keyset.json", "service.db", "deploy/keyset.json", "docs/keys.md", ".git/config"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    # One that leads to itself cannot be looked into, and keeps nothing else from being found.
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.syspath_prepend(str(tmp_path))
    read = {str(Path(path).relative_to(tmp_path)) for path in sandbox.readable() if path.startswith(str(tmp_path))}
    assert read == {"acme", "shared/acme_two", "deploy/run.py", "one.py"}
    assert str(tmp_path) in sandbox.searched()


LEVELS = [
    (0, "none: the kernel has no Landlock, or does not let this process use it", 0),
    (1, "files (Landlock ABI 1)", 1),
    (3, "files (Landlock ABI 3)", 1),
    (4, "files, network ports (Landlock ABI 4)", 2),
    (5, "files, network ports (Landlock ABI 5)", 2),
    (6, "files, network ports, signals (Landlock ABI 6)", 3),
    (7, "files, network ports, signals (Landlock ABI 7)", 3),
]


class TestOlderKernels:
    @pytest.mark.parametrize(("abi", "text", "kinds"), LEVELS)
    def test_what_a_kernel_restricts_is_used_and_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abi: int, text: str, kinds: int
    ) -> None:
        with kernel(abi, monkeypatch):
            assert sandbox.level("auto") == text
            assert sandbox.level("off") == "none: plugin_sandbox is off"
            reach = sandbox.reach(tmp_path, {443})
            assert (0 if reach is None else len(reach["restricted"])) == kinds

    @pytest.mark.parametrize("abi", [1, 2, 3, 4, 5, 6])
    async def test_a_process_starts_with_what_each_of_them_can_restrict(
        self, guest: Path, monkeypatch: pytest.MonkeyPatch, abi: int
    ) -> None:
        if abi > sandbox.landlock_abi():
            pytest.skip(f"this kernel has not so much: {sandbox.level('auto')}")
        with kernel(abi, monkeypatch):
            assert (await third_party_manifest(policy())).manifest.exchanges

    async def test_one_that_must_be_confined_is_not_started_where_not_all_can_be_restricted(
        self, guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        required = settings_for(tmp_path, plugin_sandbox="require")
        with kernel(5, monkeypatch):
            registry = open_registry(required)
            findings = await examine(required)
        assert "guest" not in registry.listings
        (problem,) = [item for item in registry.problems if item.plugin.name == "guest"]
        assert problem.reason == (
            "plugin_sandbox=require needs a kernel that restricts files, network ports and signals (Linux 6.12). This "
            "one: files, network ports (Landlock ABI 5)."
        )
        (finding,) = [item for item in findings if item.subject == "plugin processes"]
        assert finding.severity is Severity.ERROR
        if sandbox.complete():
            assert "guest" in open_registry(required).listings

    async def test_a_process_that_the_kernel_does_not_restrict_as_told_is_not_begun(
        self, guest: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if not sandbox.landlock_abi():
            pytest.skip(sandbox.level("auto"))
        monkeypatch.setattr(sandbox, "reach", lambda *_: {"restricted": [0], "paths": [], "ports": []})
        with pytest.raises(StartFailed, match="the kernel did not restrict what it may reach; see plugin_sandbox"):
            await third_party_manifest(policy())

    def test_with_it_off_nothing_is_handed_to_the_kernel(self) -> None:
        for mode, handed in (("off", False), ("auto", bool(sandbox.landlock_abi()))):
            spec = prepare_launch(policy(confined=mode))
            spec.close()
            assert bool(json.loads(spec.first_line)["reach"]) is handed


class TestReports:
    async def findings(self, settings: Settings) -> list[Finding]:
        return [item for item in await examine(settings) if item.subject == "plugin processes"]

    async def test_doctor_says_what_holds_and_warns_where_code_of_others_is_less_confined(
        self, guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = settings_for(tmp_path)
        for abi, severity in ((0, Severity.WARNING), (6, Severity.WELL)):
            with kernel(abi, monkeypatch):
                # Its processes are started by the real list: only the report is of that kernel.
                monkeypatch.setattr(sandbox, "reach", lambda *_: None)
                (finding,) = await self.findings(settings)
            assert (finding.severity, sandbox_text(abi) in finding.text) == (severity, True)

    async def test_doctor_names_a_secret_that_lies_among_modules(
        self, guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (guest / "acme").mkdir()
        (guest / "acme" / "__init__.py").touch()
        settings = settings_for(tmp_path, database_url=f"sqlite:///{guest / 'acme' / 'service.db'}")
        *_, finding = await self.findings(settings)
        assert finding.severity is Severity.WARNING
        assert finding.text.startswith(f"database_url ({guest}/acme/service.db) lies in a folder of modules")

    def test_the_command_shows_it_with_the_plugins(self, tmp_path: Path) -> None:
        done = call(tmp_path, "plugins", "--address", "127.0.0.1:9")
        assert f"Plugins' own processes are kept to: {sandbox.level('auto')}." in done.stderr
        rows = json.loads(call(tmp_path, "plugins", "--address", "127.0.0.1:9", "-o", "json").stdout)["plugins"]
        levels = {row["name"]: row["sandbox"] for row in rows}
        assert levels["ccxt_generic"] == sandbox.level("auto")
        assert levels["oanda"] == ""

    async def test_a_service_tells_it_to_operators(self, guest: Path, tmp_path: Path) -> None:
        registry = open_registry(settings_for(tmp_path, plugin_sandbox="off"))
        async with serving(tmp_path, registry=registry, plugin_sandbox="off") as running:
            assert (await status_of(running)).sandbox == "none: plugin_sandbox is off"


def sandbox_text(abi: int) -> str:
    return next(text for known, text, _ in LEVELS if known == abi)
