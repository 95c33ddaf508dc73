"""A plugin in a process of its own answers as in the service's process, and cannot disturb the service."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from math import inf
from pathlib import Path
from traceback import walk_tb
from types import FrameType
from typing import Any

import grpc
import psutil
import pytest
from exchange_service_ccxt_generic import exchange_manifest as ccxt_manifest
from structlog.testing import capture_logs

from exchange_service.cli.credential_check import open_checker
from exchange_service.credentials import CredentialReference
from exchange_service.credentials.references import CachedReferences
from exchange_service.credentials.sql import SqlCredentialStore
from exchange_service.errors import PluginFailed, PluginUnavailable, ServiceError, VenueRateLimited, from_reason
from exchange_service.model import Account, Credential, KeyRights, Manifest
from exchange_service.operator.v1 import plugin_service_pb2 as plugins
from exchange_service.plugin_host import protocol
from exchange_service.plugin_host.client import _answered_at
from exchange_service.plugin_host.connection import CallFailed, ProcessConnection
from exchange_service.plugin_host.discovery import open_registry, placement
from exchange_service.plugin_host.frames import FrameReader, Kind, write_frame
from exchange_service.plugin_host.health import HealthFault, check_health
from exchange_service.plugin_host.launch import MEBIBYTE, ProcessPolicy, StartFailed, third_party_manifest
from exchange_service.plugin_host.process import PluginProcess, ServeConfig
from exchange_service.plugin_host.restart_policy import RestartPolicy
from exchange_service.plugin_host.supervisor import ProcessState, Supervisor
from exchange_service.plugin_host.v1 import plugin_host_pb2 as messages
from exchange_service.v1 import exchange_pb2
from exchange_service.v1 import exchange_service_pb2 as public
from exchange_service.venues.egress import Way
from exchange_service.venues.manifests import read_manifest, write_manifest
from exchange_service.venues.push_figures import PushFigures
from exchange_service.venues.registry import Placement
from exchange_service.wire.balances import fault_message
from tests.harness import (
    PATIENCE,
    Clock,
    Running,
    eventually,
    failure,
    info,
    serving,
    settings_for,
    streaming,
    until,
)

# A plugin that reports what its process was given, as JSON in the notes of its balance.
GUEST = """
import asyncio, json, os, resource, sys, time
from decimal import Decimal

from exchange_service.plugin_api import *

LISTINGS = tuple(
    ExchangeMetadata(
        id=name, name=name.title(), asset_class="Crypto", asset_types="Crypto Spot", market_hours="24/7 Trading",
        environments=(Environment("production", {"api": "https://guest.example"}),),
        capabilities=Capabilities(balance=True, sandbox=False),
        limits=(RateLimit("key", 1000, 60),) if name == "guest_two" else (),
    )
    for name in ("guest", "guest_two")
)
made = []


@hookimpl
def exchange_manifest():
    return Manifest(1, LISTINGS)


@hookimpl
async def refresh_manifest():
    return Manifest(1, LISTINGS, notes=("Newer.",))


async def make():
    made.append(1)
    return len(made)


@hookimpl
async def fetch_balance(call):
    deed = call.credential.metadata.get("deed", "")
    session = await call.account_state.get("session", make)
    if deed == "end":
        os._exit(3)
    if deed == "sleep":
        await asyncio.sleep(60)
    if deed == "stubborn":
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass
    if deed == "block":
        time.sleep(60)
    if deed == "old":
        await asyncio.sleep(0.4)
        call.reports.answered_at = time.monotonic() - 0.3
    if deed == "report":
        call.report_cooldown(9.0)
    if deed == "dear":
        call.report_cost(1000)
    if deed == "limited":
        raise VenueRateLimited("Guest limits our requests.", retry_after=7.0)
    if deed == "hold back" and "held" not in made:
        made.append("held")
        error = VenueRateLimited("We keep to the limit.", retry_after=7.0)
        error.venue_was_asked = False
        raise error
    if deed == "fail":
        raise ValueError("a secret " + call.credential.api_key.reveal())
    if deed == "grow":
        made.append(bytearray(200 * 1024 * 1024))
    if deed == "print":
        print("hello " + call.credential.api_key.reveal())
    report = {
        "process": os.getpid(),
        "session": session,
        "key": call.credential.api_key.reveal(),
        "environment": sorted(os.environ),
        "home": os.environ["HOME"],
        "folder": os.getcwd(),
        "files": sorted(int(name) for name in os.listdir("/proc/self/fd")),
        "limits": [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)],
        "remaining": call.remaining(),
        "override": call.override,
        "grpc": "grpc" in sys.modules,
    }
    rows = (AssetBalance("BTC", total=Decimal("0.123456789012345678")),)
    return Balance((VenueAccount(id="1", type="spot", assets=rows),), notes=(json.dumps(report),))


@hookimpl
async def check_credential(call):
    return KeyRights(trade=True, withdraw=None, notes=("It may trade.",))
"""


def install(folder: Path, name: str, module: str, distribution: str = "") -> None:
    """A distribution as pip leaves it: a module and its metadata."""
    distribution = distribution or f"acme-{name}"
    (folder / f"{name}_plugin.py").write_text(module)
    meta = folder / f"{distribution.replace('-', '_')}-1.2.dist-info"
    meta.mkdir(parents=True)
    (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
    (meta / "entry_points.txt").write_text(f"[exchange_service]\n{name} = {name}_plugin\n")


@pytest.fixture
def guest(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("site")
    install(folder, "guest", GUEST)
    monkeypatch.syspath_prepend(str(folder))
    return folder


async def read_report(running: Running, exchange_id: str = "guest") -> dict[str, Any]:
    reply = await running.client.get_balance("alice", exchange_id, max_age=0)
    (note,) = reply.balance.notes
    report: dict[str, Any] = json.loads(note)
    return report


async def first_report(running: Running) -> dict[str, Any]:
    """The report of a process that was just started, which may take longer than a venue may."""
    report: dict[str, Any] = {}

    async def serves() -> bool:
        try:
            report.update(await read_report(running))
        except PluginUnavailable:
            return False
        return True

    await eventually(serves, "the process")
    return report


def exists(path: str) -> bool:
    return Path(path).exists()


async def status_of(running: Running, name: str = "guest") -> plugins.PluginStatus:
    reply = await running.client.list_plugins()
    return next(status for status in reply.plugins if status.plugin.name == name)


async def process_of(running: Running, name: str = "guest") -> plugins.PluginProcess:
    (process,) = (await status_of(running, name)).processes
    return process


def processes() -> set[int]:
    """The ids of the plugins' processes below this one."""
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if any("plugin_host.main" in part for part in child.cmdline())
    }


class TestPlugin:
    async def test_it_answers_as_in_the_services_process_to_the_last_digit(self, guest: Path, tmp_path: Path) -> None:
        async with serving(tmp_path, venue_urls={"guest": "http://127.0.0.1:9"}) as running:
            await running.store("guest", api_key="the-guests-own-key")
            reply = await running.client.get_balance("alice", "guest")
            assert reply.balance.venue_accounts[0].assets[0].total == "0.123456789012345678"
            assert (reply.balance.user_id, reply.balance.exchange_id) == ("alice", "guest")
            report = await read_report(running)
            assert report["process"] not in (os.getpid(), 0)
            assert report["key"] == "the-guests-own-key"
            assert 0 < report["remaining"] <= 8
            assert report["override"] == "http://127.0.0.1:9"
            assert not report["grpc"]

    async def test_the_service_imports_no_code_of_it(self, guest: Path, tmp_path: Path) -> None:
        async with serving(tmp_path) as running:
            await running.store("guest")
            await read_report(running)
            assert "guest_plugin" not in sys.modules

    async def test_its_errors_arrive_with_their_reason_message_and_delay(self, guest: Path, tmp_path: Path) -> None:
        async with serving(tmp_path) as running:
            await running.store("guest", metadata={"deed": "limited"})
            with pytest.raises(VenueRateLimited, match="Guest limits our requests") as caught:
                await running.client.get_balance("alice", "guest")
            assert caught.value.retry_after == pytest.approx(7, abs=1)

    async def test_its_reports_of_its_venues_limits_reach_the_gate(self, guest: Path, tmp_path: Path) -> None:
        async with serving(tmp_path) as running:
            await running.store("guest", metadata={"deed": "report"})
            assert (await running.client.get_balance("alice", "guest")).balance.venue_accounts
            with pytest.raises(VenueRateLimited) as caught:
                await running.client.get_balance("alice", "guest", max_age=0)
            assert caught.value.retry_after == pytest.approx(9, abs=1)

    async def test_what_its_call_has_really_cost_is_charged_by_the_gate(self, guest: Path, tmp_path: Path) -> None:
        async with serving(tmp_path) as running:
            await running.store("guest_two", metadata={"deed": "dear"})
            assert (await running.client.get_balance("alice", "guest_two")).balance.venue_accounts
            with pytest.raises(VenueRateLimited, match="used up for now"):
                await running.client.get_balance("alice", "guest_two", max_age=0)

    async def test_a_call_that_it_holds_back_itself_is_no_word_of_its_venue(self, guest: Path, tmp_path: Path) -> None:
        async with serving(tmp_path) as running:
            await running.store("guest", metadata={"deed": "hold back"})
            with pytest.raises(VenueRateLimited, match="We keep to the limit"):
                await running.client.get_balance("alice", "guest")
            assert (await running.client.get_balance("alice", "guest", max_age=0)).balance.venue_accounts

    async def test_its_balance_is_as_old_as_the_venues_answer_to_it(self, guest: Path, tmp_path: Path) -> None:
        async with serving(tmp_path) as running:
            await running.store("guest")
            await first_report(running)
            await running.store("guest", user="bob", metadata={"deed": "old"})
            reply = await running.client.get_balance("bob", "guest")
            assert 0.3 <= reply.freshness.age.ToNanoseconds() / 1e9 < 3

    @pytest.mark.parametrize(("age", "answered"), [(2.0, 8.0), (0.0, 10.0), (99.0, 5.0), (-9.0, 10.0), (inf, 10.0)])
    def test_it_says_no_time_at_which_its_venue_cannot_have_answered(self, age: float, answered: float) -> None:
        assert _answered_at(age, 5.0, 10.0) == answered

    async def test_another_exceptions_text_stays_in_its_process(self, guest: Path, tmp_path: Path) -> None:
        async with serving(tmp_path) as running:
            await running.store("guest", api_key="a-key-that-nobody-sees", metadata={"deed": "fail"})
            with pytest.raises(PluginFailed, match=r"acme-guest\) failed with ValueError") as caught:
                await running.client.get_balance("alice", "guest")
            assert "a-key-that-nobody-sees" not in str(caught.value)

    async def test_a_call_that_takes_too_long_ends_in_time_and_others_go_on(self, guest: Path, tmp_path: Path) -> None:
        async with serving(tmp_path, venue_timeout=2.0) as running:
            await running.store("guest")
            await running.store("guest", user="bob", metadata={"deed": "sleep"})
            before = await first_report(running)
            with pytest.raises(ServiceError) as caught:
                await running.client.get_balance("bob", "guest")
            assert caught.value.reason == "VENUE_TIMEOUT"
            assert (await read_report(running))["process"] == before["process"]

    async def test_the_rights_of_a_key_are_read_in_its_process_too(self, guest: Path, tmp_path: Path) -> None:
        async with serving(tmp_path) as running:
            await running.store("guest")
            async with open_checker(settings_for(tmp_path)) as checker:
                rights = (await checker.check(Account("alice", "guest"))).rights
            assert rights == KeyRights(trade=True, notes=("It may trade.",))

    async def test_a_newer_manifest_is_read_apart_and_reaches_the_process(self, guest: Path, tmp_path: Path) -> None:
        async with serving(tmp_path) as running:
            registry = running.service.registry
            await until(lambda: any(item.reason == "Newer." for item in registry.problems), "the newer manifest")
            await running.store("guest")
            assert (await read_report(running))["session"] == 1


class TestCredential:
    async def test_it_is_sent_once_for_a_session_and_not_with_every_call(
        self, guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = []
        open_credential = SqlCredentialStore.open

        async def counted(store: SqlCredentialStore, reference: CredentialReference) -> Credential:
            opened.append(reference.account)
            return await open_credential(store, reference)

        monkeypatch.setattr(SqlCredentialStore, "open", counted)
        async with serving(tmp_path) as running:
            await running.store("guest")
            first = await read_report(running)
            second = await read_report(running)
            assert (first["session"], second["session"]) == (1, 1)
            assert len(opened) == 1
            await running.store("guest", user="bob")
            await running.client.get_balance("bob", "guest")
            assert [account.user_id for account in opened] == ["alice", "bob"]

    async def test_a_changed_one_begins_a_new_session(
        self, guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The store is asked for each call, so that the change is seen at once.
        monkeypatch.setattr("exchange_service.app.CachedReferences", partial(CachedReferences, ttl=0.0))
        async with serving(tmp_path) as running:
            await running.store("guest", api_key="the-first-key")
            assert (await read_report(running))["session"] == 1
            await running.store("guest", api_key="the-second-key")
            report = await read_report(running)
            assert (report["session"], report["key"]) == (2, "the-second-key")

    async def test_a_new_process_asks_for_it_again(self, guest: Path, tmp_path: Path) -> None:
        async with serving(tmp_path) as running:
            await running.store("guest", api_key="the-guests-own-key")
            first = await read_report(running)
            os.kill(first["process"], signal.SIGKILL)
            await eventually(lambda: serves_again(running, first["process"]), "another process")
            assert (await read_report(running))["key"] == "the-guests-own-key"

    async def test_no_error_that_is_kept_leads_to_it(self, guest: Path, tmp_path: Path) -> None:
        account = Account("alice", "guest")
        async with serving(tmp_path) as running, streaming(running, "guest"):
            await running.store("guest", metadata={"deed": "end"}, api_secret=CANARY_SECRET)
            await failure(running.stub.GetBalance(public.GetBalanceRequest(user_id="alice", exchange_id="guest")))
            await until(lambda: isinstance(feed_error(running, account), PluginUnavailable), "the feed's error")
            for kept in (running.service.balances.known(account).error, feed_error(running, account)):
                assert isinstance(kept, PluginUnavailable)
                assert list(holders(CANARY_SECRET, kept)) == []
                assert list(origin_of(kept)) == [kept]


CANARY_SECRET = "a-secret-that-no-kept-error-leads-to"


def feed_error(running: Running, account: Account) -> ServiceError | None:
    feed = running.service.streams.snapshot().feeds.get(account)
    return None if feed is None else feed.error


def origin_of(error: BaseException) -> Iterator[BaseException | FrameType]:
    """The error, what it comes from, and the frames that these passed through."""
    left, seen = [error], set[int]()
    while left:
        one = left.pop()
        if id(one) not in seen:
            seen.add(id(one))
            yield one
            yield from (frame for frame, _ in walk_tb(one.__traceback__))
            left += [other for other in (one.__context__, one.__cause__) if other is not None]


def holders(secret: str, error: BaseException) -> Iterator[str]:
    """The variables of these frames in whose message or credential the secret is."""
    for frame in origin_of(error):
        if isinstance(frame, FrameType):
            for name, value in frame.f_locals.items():
                plain = value.api_secret.reveal() if isinstance(value, Credential) else str(value)
                if secret in plain:
                    yield f"{frame.f_code.co_qualname}: {name}"


async def serves_again(running: Running, old: int) -> bool:
    try:
        return bool((await read_report(running))["process"] != old)
    except PluginUnavailable:
        return False


class TestSurroundings:
    async def test_it_is_given_a_scrubbed_environment_a_folder_of_its_own_and_no_open_file(
        self, guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("EXCHANGE_SERVICE_TOKEN", "not for plugins")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not for plugins")
        with (tmp_path / "open").open("w") as mine:
            os.set_inheritable(mine.fileno(), True)
            async with serving(tmp_path) as running:
                await running.store("guest")
                report = await read_report(running)
        known = {"HOME", "TMPDIR", "PYTHONPATH", "PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "LANG", "LANGUAGE"}
        known |= {
            "GRPC_ENABLE_FORK_SUPPORT",
            "LC_ALL",
            "LC_CTYPE",
            "TZ",
            "PYTHONDONTWRITEBYTECODE",
            "PYTHONUTF8",
            "SSL_CERT_FILE",
            "SSL_CERT_DIR",
        }
        assert set(report["environment"]) <= known
        assert report["home"] == report["folder"]
        assert report["home"] not in (os.environ["HOME"], os.getcwd())
        assert not exists(report["home"]), "its folder ends with it"
        assert len(report["files"]) < 25
        assert report["limits"] == [256, 0]

    async def test_its_output_is_a_log_line_without_its_secrets(
        self, guest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        async with serving(tmp_path) as running:
            await running.store("guest", api_key="a-key-that-nobody-sees", metadata={"deed": "print"})
            await read_report(running)
            text = ""

            def printed() -> bool:
                nonlocal text
                captured = capfd.readouterr()
                text += captured.out + captured.err
                return "plugin.output" in text

            await until(printed, "the line")
        assert "hello" in text
        assert "a-key-that-nobody-sees" not in text

    async def test_no_other_process_finds_its_socket(self, guest: Path) -> None:
        process = await PluginProcess.start(policy(), config(await guest_manifest()))
        try:
            assert not exists(process.spec.socket)
            assert await process.health_check() == 0
        finally:
            await process.end()

    async def test_another_program_that_answers_in_its_place_is_not_believed(
        self, guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            frames = FrameReader()
            while (frame := frames.read()) is None:
                frames.feed(await reader.read(65536))
            greeting = messages.Greeting.FromString(frame.body)
            welcome = messages.ConfigureResponse(protocol_version=protocol.PROTOCOL, proof=greeting.proof)
            writer.write(write_frame(Kind.WELCOME, 0, welcome.SerializeToString()))
            await reader.read()
            writer.close()

        async with await asyncio.start_unix_server(answer, tmp_path / "socket"):
            there = partial(ProcessConnection.open, str(tmp_path / "socket"))
            monkeypatch.setattr(ProcessConnection, "open", lambda _: there())
            with pytest.raises(StartFailed, match="Something other than its process answered"):
                await PluginProcess.start(policy(), config(await guest_manifest()))

    async def test_an_older_one_that_overlooks_the_ways_out_is_not_used(
        self, guest: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("exchange_service.plugin_host.process.write_ways", lambda _: [])
        given = replace(config(await guest_manifest()), ways=(Way(), Way("second", local_address="127.0.0.2")))
        with pytest.raises(StartFailed, match="older than the setting egress"):
            await PluginProcess.start(policy(), given)


def policy(name: str = "guest", memory: int = 512, **changes: Any) -> ProcessPolicy:
    return ProcessPolicy(name, f"acme-{name}", memory * MEBIBYTE, third_party=True, **changes)


async def guest_manifest() -> Manifest:
    return (await third_party_manifest(policy())).manifest


def config(manifest: Manifest) -> ServeConfig:
    return ServeConfig(manifest, {}, 8.0, 300.0)


class TestEnds:
    async def test_one_that_is_killed_is_reported_and_serves_again_within_seconds(
        self, guest: Path, tmp_path: Path
    ) -> None:
        async with serving(tmp_path) as running:
            await running.store("guest")
            before = await read_report(running)
            os.kill(before["process"], signal.SIGKILL)

            async def restarted() -> bool:
                return (await process_of(running)).restart_count == 1

            await eventually(restarted, "the restart")
            await eventually(lambda: serves_again(running, before["process"]), "another process")
            process = await process_of(running)
            assert process.state == plugins.PLUGIN_PROCESS_STATE_RUNNING
            assert "signal 9" in process.last_end

    @pytest.mark.threat("T32")
    async def test_an_end_is_no_failure_of_the_watch_over_it(
        self, guest: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The watch looks at it again after its end, and before its end is known everywhere.
        monkeypatch.setattr("exchange_service.plugin_host.supervisor.HEALTH_CHECK_INTERVAL", 0.01)
        manifest = await guest_manifest()
        supervisor = Supervisor(policy(), lambda: config(manifest), lambda: None)
        try:
            with capture_logs() as lines:
                process = await supervisor.process(asyncio.get_running_loop().time() + PATIENCE)
                os.kill(process.process_id, signal.SIGKILL)
                await process.ended
                fault = await check_health(process, RestartPolicy(policy(), Clock()))
                assert fault == HealthFault("Its connection broke.", answers=False)
                with pytest.raises(CallFailed, match="UNAVAILABLE"):
                    await process.configure(config(manifest))
                await until(lambda: supervisor.snapshot().restarts == 1, "its end")
        finally:
            await supervisor.close()
        assert [line["event"] for line in lines if line["log_level"] == "error"] == []

    @pytest.mark.threat("T32")
    async def test_a_failure_of_our_own_at_its_start_is_logged_with_its_text_and_place(
        self, guest: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fails(*_: object) -> None:
            raise RuntimeError("a transport is closed")

        manifest = await guest_manifest()
        monkeypatch.setattr(PluginProcess, "start", fails)
        supervisor = Supervisor(policy(), lambda: config(manifest), lambda: None)
        try:
            with capture_logs() as lines, pytest.raises(PluginUnavailable):
                await supervisor.process(asyncio.get_running_loop().time() + PATIENCE)
        finally:
            await supervisor.close()
        (line,) = [line for line in lines if line["event"] == "plugin_host.start_failed"]
        assert (line["error"], line["text"]) == ("RuntimeError", "a transport is closed")
        assert "test_plugin_host.py:" in line["at"][-1]

    async def test_connections_for_pushes_that_it_had_opened_stay_counted(
        self, guest: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def say(process: PluginProcess) -> int:
            process.pushes = {"guest": PushFigures(connections=1, subscriptions=20, opened=3)}
            return 0

        monkeypatch.setattr("exchange_service.plugin_host.supervisor.HEALTH_CHECK_INTERVAL", 0.01)
        monkeypatch.setattr(PluginProcess, "health_check", say)
        manifest = await guest_manifest()
        supervisor = Supervisor(policy(), lambda: config(manifest), lambda: None)
        try:
            process = await supervisor.process(asyncio.get_running_loop().time() + PATIENCE)
            await until(lambda: supervisor.push_figures() == {"guest": PushFigures(1, 20, 3)}, "its first health check")
            os.kill(process.process_id, signal.SIGKILL)
            await until(lambda: supervisor.push_figures() == {"guest": PushFigures(opened=3)}, "its end")
            await until(lambda: supervisor.push_figures() == {"guest": PushFigures(1, 20, 6)}, "the next process")
        finally:
            await supervisor.close()

    async def test_its_caller_gets_unavailable_or_the_last_good_value(self, guest: Path, tmp_path: Path) -> None:
        async with serving(tmp_path) as running:
            await running.store("guest", metadata={"deed": "end"})
            failed = await failure(
                running.stub.GetBalance(public.GetBalanceRequest(user_id="alice", exchange_id="guest"))
            )
            assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "PLUGIN_UNAVAILABLE")
            assert failed.retry_delay is not None

    async def test_one_that_ends_again_and_again_is_started_after_longer_and_longer_delays(self, guest: Path) -> None:
        manifest = await guest_manifest()
        troubles: list[str] = []
        clock = Clock()
        # By a clock that stands still: how long the machine takes for an end or a start changes no pause.
        restarts = RestartPolicy(policy(), clock)
        supervisor = Supervisor(
            policy(), lambda: config(manifest), lambda: troubles.append(supervisor.trouble), restarts
        )
        loop = asyncio.get_running_loop()
        try:
            pauses: list[float] = []
            for number in range(1, 4):
                process = await supervisor.process(loop.time() + PATIENCE)
                os.kill(process.process_id, signal.SIGKILL)
                await until(lambda number=number: supervisor.snapshot().restarts == number, "its end")
                pauses.append(restarts.restart_delay())
                clock.now += pauses[-1]
            assert pauses == pytest.approx([0.01, 0.5, 1.0])
            assert any("ended by signal 9" in trouble for trouble in troubles)
        finally:
            await supervisor.close()

    async def test_one_that_is_down_is_not_started_by_calls_before_its_delay_is_over(self, guest: Path) -> None:
        manifest = await guest_manifest()
        clock = Clock()
        restarts = RestartPolicy(policy(), clock)
        restarts.process_ended(0.0)
        restarts.process_ended(0.0)
        supervisor = Supervisor(policy(), lambda: config(manifest), lambda: None, restarts)
        deadline = asyncio.get_running_loop().time() + PATIENCE
        try:
            with pytest.raises(PluginUnavailable, match="started again soon") as caught:
                await supervisor.process(deadline)
            assert caught.value.retry_after == pytest.approx(0.5)
            assert supervisor.snapshot().state is ProcessState.IDLE
            clock.now += 0.5
            assert await supervisor.process(deadline) is supervisor.running
            assert supervisor.snapshot().state is ProcessState.RUNNING
        finally:
            await supervisor.close()

    async def test_while_it_is_down_the_catalogue_reports_it_and_since_when(self, guest: Path, tmp_path: Path) -> None:
        async with serving(tmp_path) as running:
            await running.store("guest", metadata={"deed": "end"})
            for _ in range(2):
                with pytest.raises(ServiceError):
                    await running.client.get_balance("alice", "guest")

            async def shown() -> bool:
                reply = await running.client.list_exchanges(search="guest")
                return all(
                    entry.status.availability == exchange_pb2.AVAILABILITY_UNAVAILABLE
                    and "is being started again" in entry.status.reason
                    and entry.status.HasField("since_time")
                    for entry in reply.exchanges
                )

            await eventually(shown, "the status")

    async def test_one_that_blocks_its_loop_is_ended_and_started_again(
        self, guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("exchange_service.plugin_host.restart_policy.OVERDUE_ANSWER_LIMIT", 1.0)
        async with serving(tmp_path, venue_timeout=2.0) as running:
            await running.store("guest")
            before = await first_report(running)
            await running.store("guest", user="bob", metadata={"deed": "block"})
            with pytest.raises(ServiceError) as caught:
                await running.client.get_balance("bob", "guest")
            # The venue was never asked.
            assert caught.value.reason == "PLUGIN_UNAVAILABLE"
            await eventually(lambda: serves_again(running, before["process"]), "another process")
            assert "blocked its event loop" in (await process_of(running)).last_end

    async def test_one_whose_calls_ignore_their_deadline_is_replaced_without_a_gap(
        self, guest: Path, tmp_path: Path
    ) -> None:
        async with serving(tmp_path, venue_timeout=2.0) as running:
            await running.store("guest")
            before = await first_report(running)
            await running.store("guest", user="bob", metadata={"deed": "stubborn"})
            with pytest.raises(ServiceError):
                await running.client.get_balance("bob", "guest")

            async def replaced() -> bool:
                # Every call in between is answered: by the old process, then by the new one.
                return bool((await read_report(running))["process"] != before["process"])

            await eventually(replaced, "another process")
            assert "ran on after their deadline" in (await process_of(running)).last_end

    async def test_one_that_grows_beyond_its_memory_is_replaced(self, guest: Path, tmp_path: Path) -> None:
        async with serving(tmp_path, plugin_memory={"guest": 150}) as running:
            await running.store("guest")
            before = await read_report(running)
            await running.store("guest", user="bob", metadata={"deed": "grow"})
            await running.client.get_balance("bob", "guest")
            await eventually(lambda: serves_again(running, before["process"]), "another process")
            assert "more memory than plugin_memory allows" in (await process_of(running)).last_end

    async def test_all_end_with_the_service(self, guest: Path, tmp_path: Path) -> None:
        async with serving(tmp_path) as running:
            await running.store("guest")
            await read_report(running)
            assert processes()
        assert not processes()

    async def test_the_main_program_ends_when_its_reaper_is_killed(self, guest: Path) -> None:
        process = await PluginProcess.start(policy(), config(await guest_manifest()))
        program = psutil.Process(process.process_id)
        os.kill(process.reaper_id, signal.SIGKILL)
        await until(lambda: not program.is_running() or program.status() == psutil.STATUS_ZOMBIE, "its end")
        await process.end()


class TestSignals:
    async def test_a_signal_that_a_process_manager_sends_to_every_process_is_left_to_the_service(
        self, guest: Path
    ) -> None:
        process = await PluginProcess.start(policy(), config(await guest_manifest()))
        try:
            for pid in (process.reaper_id, process.process_id):
                for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    os.kill(pid, name)
            assert await process.health_check() == 0
            assert process.alive
        finally:
            await process.end()
        assert not processes()

    async def test_a_call_on_one_that_has_ended_is_unavailable_and_not_cancelled(
        self, guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        running_process = Supervisor.process

        async def ended_process(supervisor: Supervisor, deadline: float) -> PluginProcess:
            process = await running_process(supervisor, deadline)
            await process.end()
            return process

        async with serving(tmp_path) as running:
            await running.store("guest")
            await read_report(running)
            monkeypatch.setattr(Supervisor, "process", ended_process)
            with pytest.raises(PluginUnavailable, match="ended, and is started again"):
                await running.client.get_balance("alice", "guest", max_age=0)


class TestWhereItRuns:
    @pytest.mark.threat("T11")
    def test_a_third_party_plugin_with_the_name_of_one_of_ours_is_not_loaded_whatever_the_settings_say(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        thief = GUEST.replace('("guest", "guest_two")', '("thief",)')
        (tmp_path / "site").mkdir()
        install(tmp_path / "site", "ccxt_generic", thief, "zzz-thief")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        for wishes in ({}, {"ccxt_generic": "in-process"}):
            registry = open_registry(settings_for(tmp_path, plugin_processes=wishes))
            assert "thief" not in registry.listings
            owners = [item.info.distribution for item in registry.plugins if item.info.name == "ccxt_generic"]
            assert owners == ["exchange-service-ccxt-generic"]
            (problem,) = [item for item in registry.problems if item.plugin.distribution == "zzz-thief"]
            assert "exchange-service-ccxt-generic's" in problem.reason
        assert "ccxt_generic_plugin" not in sys.modules

    def test_ours_but_for_ccxt_run_in_the_service_and_third_party_ones_apart(self) -> None:
        placements = {
            name: placement(info(name, distribution), {}, [])
            for name, distribution in (
                ("oanda", "exchange-service-oanda"),
                ("ccxt_generic", "exchange-service-ccxt-generic"),
                ("acme", "acme-exchange"),
            )
        }
        assert placements == {
            "oanda": Placement.IN_PROCESS,
            "ccxt_generic": Placement.OWN_PROCESS,
            "acme": Placement.THIRD_PARTY,
        }

    def test_the_operator_may_choose_otherwise(self) -> None:
        wishes = {"oanda": "own-process", "ccxt_generic": "in-process", "acme": "in-process"}
        assert placement(info("oanda", "exchange-service-oanda"), wishes, []) is Placement.OWN_PROCESS
        assert placement(info("ccxt_generic", "exchange-service-ccxt-generic"), wishes, []) is Placement.IN_PROCESS
        assert placement(info("acme", "acme-exchange"), wishes, []) is Placement.IN_PROCESS

    @pytest.mark.threat("T11")
    async def test_a_distribution_that_is_not_allowed_is_never_imported(self, guest: Path, tmp_path: Path) -> None:
        registry = open_registry(settings_for(tmp_path, allowed_plugins=["another"]))
        assert "guest" not in registry.listings
        assert any("not among allowed_plugins" in problem.reason for problem in registry.problems)
        assert "guest_plugin" not in sys.modules

    async def test_several_processes_share_the_accounts_and_each_account_stays_with_one(
        self, guest: Path, tmp_path: Path
    ) -> None:
        async with serving(tmp_path, plugin_process_counts={"guest": 2}) as running:
            seen: dict[str, set[int]] = {}
            for user in ("alice", "bob", "carol", "dave", "erin", "frank"):
                await running.store("guest", user=user)
                for _ in range(2):
                    reply = await running.client.get_balance(user, "guest", max_age=0)
                    seen.setdefault(user, set()).add(json.loads(reply.balance.notes[0])["process"])
            assert all(len(numbers) == 1 for numbers in seen.values())
            assert len(set.union(*seen.values())) == 2
            assert len((await status_of(running)).processes) == 2

    async def test_nothing_is_started_before_the_first_call_unless_the_operator_wants_it(
        self, guest: Path, tmp_path: Path
    ) -> None:
        async with serving(tmp_path) as running:
            assert (await process_of(running)).state == plugins.PLUGIN_PROCESS_STATE_IDLE
        async with serving(tmp_path, plugin_start="at-once") as running:

            async def runs() -> bool:
                return (await process_of(running)).state == plugins.PLUGIN_PROCESS_STATE_RUNNING

            await eventually(runs, "the process")


class TestManifest:
    async def test_one_that_fails_at_import_is_reported_with_the_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        install(tmp_path, "broken", "raise KeyError('no')")
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(StartFailed, match="failed with KeyError"):
            await third_party_manifest(policy("broken"))

    async def test_one_that_ends_its_process_at_import_gives_the_exit_status(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        install(tmp_path, "quitter", "import os; os._exit(7)")
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(StartFailed, match="exit status 7"):
            await third_party_manifest(policy("quitter"))

    async def test_one_that_does_not_come_back_is_given_up(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        install(tmp_path, "sleeper", "import time; time.sleep(60)")
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(StartFailed, match=r"within 0\.7 seconds"):
            await third_party_manifest(policy("sleeper"), limit=0.7)
        assert not processes()

    async def test_an_answer_that_is_not_a_manifest_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wrong = GUEST.replace('market_hours="24/7 Trading"', "market_hours=24")
        install(tmp_path, "guest", wrong)
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(StartFailed, match="manifest"):
            await third_party_manifest(policy())

    async def test_one_that_writes_too_much_is_refused_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        endless = GUEST.replace(
            "return Manifest(1, LISTINGS)", 'return Manifest(1, LISTINGS, notes=("x" * 1999,) * 2000)'
        )
        install(tmp_path, "guest", endless)
        monkeypatch.syspath_prepend(str(tmp_path))
        began = time.monotonic()
        with pytest.raises(StartFailed, match="has more than 524288 bytes"):
            await third_party_manifest(policy(), limit=PATIENCE)
        assert time.monotonic() - began < PATIENCE

    async def test_a_cancelled_reading_leaves_no_process(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        install(tmp_path, "sleeper", "import time; time.sleep(60)")
        monkeypatch.syspath_prepend(str(tmp_path))
        reading = asyncio.create_task(third_party_manifest(policy("sleeper"), limit=60.0))
        await until(processes, "its process")
        reading.cancel()
        await asyncio.wait({reading})
        assert reading.cancelled()
        assert not processes()


class TestMessages:
    def test_every_manifest_survives_the_way_there_and_back(self) -> None:
        manifest = ccxt_manifest()
        assert read_manifest(write_manifest(manifest)) == manifest

    @pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"api_version": 1, "exchanges": [{"id": 5}]}', b"\xff"])
    def test_bytes_that_are_not_a_manifest_are_a_value_error(self, data: bytes) -> None:
        with pytest.raises(ValueError, match="Manifest"):
            read_manifest(data)

    def test_a_credential_survives_with_its_metadata(self) -> None:
        credential = Credential.from_texts(
            {"api_key": "key", "api_secret": "", "passphrase": "words"}, {"deep": {"list": [1, "zwei", None, True]}}
        )
        assert protocol.read_credential(protocol.write_credential(credential)) == credential

    @pytest.mark.parametrize(
        "rights",
        [
            KeyRights(),
            KeyRights(trade=False, withdraw=True, expires=datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC), notes=("a", "b")),
        ],
    )
    def test_rights_survive_and_unknown_ones_stay_unknown(self, rights: KeyRights) -> None:
        assert protocol.read_rights(protocol.write_rights(rights)) == rights

    def test_an_error_that_no_plugin_may_raise_is_its_failure(self) -> None:
        forged = fault_message(from_reason("CALLER_UNKNOWN", "Who are you?"))
        assert isinstance(protocol.read_error(forged, "guest"), PluginFailed)

    def test_a_number_that_has_no_reason_is_a_failure_too(self) -> None:
        fault = fault_message(from_reason("VENUE_TIMEOUT", "Late."))
        fault.reason = 999  # type: ignore[assignment]
        assert isinstance(protocol.read_error(fault, "guest"), PluginFailed)
