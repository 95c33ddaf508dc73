"""A plugin in a process of its own: the same answers as in the service's, and the service's own peace."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from exchange_service_ccxt_generic import exchange_manifest as ccxt_manifest

from exchange_service.credentials import CredentialReference
from exchange_service.errors import PluginFailed, PluginUnavailable, ServiceError, VenueRateLimited, from_reason
from exchange_service.model import Account, Credential, KeyRights
from exchange_service.operator.v1 import plugin_service_pb2 as plugins
from exchange_service.plugin_host import protocol
from exchange_service.plugin_host.discovery import open_registry, placement
from exchange_service.plugin_host.launch import MEBIBYTE, StartFailed, Terms, introduction
from exchange_service.plugin_host.supervisor import PluginProcess, Supervisor, Work
from exchange_service.plugin_host.v1 import plugin_host_pb2 as messages
from exchange_service.v1 import exchange_pb2
from exchange_service.v1 import exchange_service_pb2 as public
from exchange_service.venues.registry import Placement
from exchange_service.wire.balances import fault_message
from tests.harness import Running, eventually, failure, info, serving, settings_for, until

# What a plugin in another process says of itself and of what it has been given: its answer is its diary.
GUEST = """
import asyncio, json, os, resource, sys, time
from decimal import Decimal

from exchange_service.plugin_api import *

LISTINGS = tuple(
    ExchangeMetadata(
        id=name, name=name.title(), asset_class="Crypto", asset_types="Crypto Spot", market_hours="24/7 Trading",
        environments=(Environment("production", {"api": "https://guest.example"}),),
        capabilities=Capabilities(balance=True, sandbox=False),
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
    if deed == "limited":
        raise VenueRateLimited("Guest limits our requests.", retry_after=7.0)
    if deed == "fail":
        raise ValueError("a secret " + call.credential.api_key.reveal())
    if deed == "grow":
        made.append(bytearray(200 * 1024 * 1024))
    if deed == "print":
        print("hello " + call.credential.api_key.reveal())
    diary = {
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
    return Balance((VenueAccount(id="1", type="spot", assets=rows),), notes=(json.dumps(diary),))


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


@asynccontextmanager
async def hosting(folder: Path, **changes: Any) -> AsyncIterator[Running]:
    """A service that has found the guest among the installed plugins."""
    registry = open_registry(settings_for(folder, **changes))
    async with serving(folder, registry=registry, **changes) as running:
        yield running


async def diary(running: Running, exchange_id: str = "guest", **wish: Any) -> dict[str, Any]:
    reply = await running.client.get_balance("alice", exchange_id, **({"max_age": 0} | wish))
    (note,) = reply.balance.notes
    found: dict[str, Any] = json.loads(note)
    return found


async def begun(running: Running) -> dict[str, Any]:
    """The diary of a process that was just started, which may take longer than a venue may."""
    found: dict[str, Any] = {}

    async def serves() -> bool:
        try:
            found.update(await diary(running))
        except PluginUnavailable:
            return False
        return True

    await eventually(serves, "the process")
    return found


def is_there(path: str) -> bool:
    return Path(path).exists()


async def status_of(running: Running, name: str = "guest") -> plugins.PluginStatus:
    reply = await running.client.list_plugins()
    return next(status for status in reply.plugins if status.plugin.name == name)


async def process_of(running: Running, name: str = "guest") -> plugins.PluginProcess:
    (process,) = (await status_of(running, name)).processes
    return process


def processes() -> set[int]:
    """The processes of plugins below this one."""
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if any("plugin_host" in part for part in child.cmdline())
    }


class TestPlugin:
    async def test_it_answers_as_in_the_services_process_to_the_last_digit(self, guest: Path, tmp_path: Path) -> None:
        async with hosting(tmp_path, venue_urls={"guest": "http://127.0.0.1:9"}) as running:
            await running.store("guest", api_key="the-guests-own-key")
            reply = await running.client.get_balance("alice", "guest")
            assert reply.balance.venue_accounts[0].assets[0].total == "0.123456789012345678"
            assert (reply.balance.user_id, reply.balance.exchange_id) == ("alice", "guest")
            said = await diary(running)
            assert said["process"] not in (os.getpid(), 0)
            assert said["key"] == "the-guests-own-key"
            assert 0 < said["remaining"] <= 8
            assert said["override"] == "http://127.0.0.1:9"

    async def test_none_of_its_code_is_imported_by_the_service(self, guest: Path, tmp_path: Path) -> None:
        async with hosting(tmp_path) as running:
            await running.store("guest")
            await diary(running)
            assert "guest_plugin" not in sys.modules

    async def test_its_errors_cross_with_reason_sentence_and_delay(self, guest: Path, tmp_path: Path) -> None:
        async with hosting(tmp_path) as running:
            await running.store("guest", metadata={"deed": "limited"})
            with pytest.raises(VenueRateLimited, match="Guest limits our requests") as caught:
                await running.client.get_balance("alice", "guest")
            assert caught.value.retry_after == pytest.approx(7, abs=1)

    async def test_another_exceptions_text_stays_in_its_process(self, guest: Path, tmp_path: Path) -> None:
        async with hosting(tmp_path) as running:
            await running.store("guest", api_key="a-key-that-nobody-sees", metadata={"deed": "fail"})
            with pytest.raises(PluginFailed, match=r"acme-guest\) failed with ValueError") as caught:
                await running.client.get_balance("alice", "guest")
            assert "a-key-that-nobody-sees" not in str(caught.value)

    async def test_a_call_that_takes_too_long_ends_in_time_and_others_go_on(self, guest: Path, tmp_path: Path) -> None:
        async with hosting(tmp_path, venue_timeout=2.0) as running:
            await running.store("guest")
            await running.store("guest", user="bob", metadata={"deed": "sleep"})
            before = await begun(running)
            with pytest.raises(ServiceError) as caught:
                await running.client.get_balance("bob", "guest")
            assert caught.value.reason == "VENUE_TIMEOUT"
            assert (await diary(running))["process"] == before["process"]

    async def test_what_a_key_may_do_is_asked_there_too(self, guest: Path, tmp_path: Path) -> None:
        async with hosting(tmp_path) as running:
            await running.store("guest")
            account, listing = running.service.registry.account("alice", "guest", "")
            reference = await running.service.store.find(account)
            assert reference is not None
            deadline = asyncio.get_running_loop().time() + 10
            rights = await running.service.balances._venues.key_rights(reference, listing, deadline)
            assert rights == KeyRights(trade=True, notes=("It may trade.",))

    async def test_a_newer_manifest_is_read_apart_and_reaches_the_process(self, guest: Path, tmp_path: Path) -> None:
        async with hosting(tmp_path) as running:
            registry = running.service.registry
            await until(lambda: any(item.reason == "Newer." for item in registry.problems), "the newer manifest")
            await running.store("guest")
            assert (await diary(running))["session"] == 1


class TestCredential:
    async def test_it_crosses_once_for_a_session_and_not_with_every_call(
        self, guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = []
        async with hosting(tmp_path) as running:
            metered: Any = running.service.balances._venues
            venues = metered._venues
            open_credential = venues._open_credential

            async def counted(reference: CredentialReference) -> Credential:
                opened.append(reference.account)
                found: Credential = await open_credential(reference)
                return found

            monkeypatch.setattr(venues, "_open_credential", counted)
            await running.store("guest")
            first = await diary(running)
            second = await diary(running)
            assert (first["session"], second["session"]) == (1, 1)
            assert len(opened) == 1
            await running.store("guest", user="bob")
            await running.client.get_balance("bob", "guest")
            assert [account.user_id for account in opened] == ["alice", "bob"]

    async def test_a_changed_one_begins_a_new_session(self, guest: Path, tmp_path: Path) -> None:
        async with hosting(tmp_path) as running:
            await running.store("guest", api_key="the-first-key")
            assert (await diary(running))["session"] == 1
            await running.store("guest", api_key="the-second-key")
            references: Any = running.service.balances._references
            references.forget(Account("alice", "guest"))
            said = await diary(running)
            assert (said["session"], said["key"]) == (2, "the-second-key")

    async def test_a_new_process_asks_for_it_again(self, guest: Path, tmp_path: Path) -> None:
        async with hosting(tmp_path) as running:
            await running.store("guest", api_key="the-guests-own-key")
            first = await diary(running)
            os.kill(first["process"], signal.SIGKILL)
            await eventually(lambda: serves_again(running, first["process"]), "another process")
            assert (await diary(running))["key"] == "the-guests-own-key"


async def serves_again(running: Running, old: int) -> bool:
    try:
        return bool((await diary(running))["process"] != old)
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
            async with serving(tmp_path, registry=open_registry(settings_for(tmp_path))) as running:
                await running.store("guest")
                said = await diary(running)
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
        assert set(said["environment"]) <= known
        assert said["home"] == said["folder"]
        assert said["home"] not in (os.environ["HOME"], os.getcwd())
        assert not is_there(said["home"]), "its folder ends with it"
        assert len(said["files"]) < 25
        assert said["limits"] == [256, 0]

    async def test_what_it_prints_is_a_log_line_without_its_secrets(
        self, guest: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        async with hosting(tmp_path) as running:
            await running.store("guest", api_key="a-key-that-nobody-sees", metadata={"deed": "print"})
            await diary(running)
            text = ""

            def said() -> bool:
                nonlocal text
                captured = capfd.readouterr()
                text += captured.out + captured.err
                return "plugin.output" in text

            await until(said, "the line")
        assert "hello" in text
        assert "a-key-that-nobody-sees" not in text

    async def test_nobody_else_finds_its_socket_and_without_the_token_it_answers_nobody(self, guest: Path) -> None:
        process = await PluginProcess.start(terms(), work(guest_manifest()))
        try:
            assert not is_there(process._launch.socket)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await process._stub.CheckHealth(messages.CheckHealthRequest(), metadata=(("token", "another"),))
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        finally:
            await process.end()


def terms(name: str = "guest", memory: int = 512) -> Terms:
    return Terms(name, f"acme-{name}", memory * MEBIBYTE, stranger=True)


def guest_manifest() -> Any:
    return introduction(terms()).manifest


def work(manifest: Any) -> Work:
    return Work(manifest, {}, 8.0, 300.0)


class TestEnds:
    async def test_one_that_is_killed_is_told_of_and_back_within_seconds(self, guest: Path, tmp_path: Path) -> None:
        async with hosting(tmp_path) as running:
            await running.store("guest")
            before = await diary(running)
            os.kill(before["process"], signal.SIGKILL)

            async def told() -> bool:
                return (await process_of(running)).restart_count == 1

            await eventually(told, "the restart")
            await eventually(lambda: serves_again(running, before["process"]), "another process")
            process = await process_of(running)
            assert process.state == plugins.PLUGIN_PROCESS_STATE_RUNNING
            assert "signal 9" in process.last_end

    async def test_its_caller_gets_unavailable_or_the_last_good_value(self, guest: Path, tmp_path: Path) -> None:
        async with hosting(tmp_path) as running:
            await running.store("guest", metadata={"deed": "end"})
            found = await failure(
                running.stub.GetBalance(public.GetBalanceRequest(user_id="alice", exchange_id="guest"))
            )
            assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "PLUGIN_UNAVAILABLE")
            assert found.retry_delay is not None

    async def test_one_that_ends_again_and_again_is_started_after_longer_and_longer_pauses(self, guest: Path) -> None:
        manifest = guest_manifest()
        changes: list[str] = []
        supervisor = Supervisor(terms(), lambda: work(manifest), lambda: changes.append(supervisor.trouble))
        loop = asyncio.get_running_loop()
        try:
            pauses: list[float] = []
            for _ in range(3):
                process = await supervisor.process(loop.time() + 10)
                os.kill(process.process_id, signal.SIGKILL)
                await until(lambda gone=process: supervisor.running is not gone, "its end")
                pauses.append(supervisor._restart_at - loop.time())
                supervisor._start()
            assert pauses[0] <= 0.01 < pauses[1] < pauses[2]
            assert any("ended by signal 9" in text for text in changes)
        finally:
            await supervisor.close()

    async def test_while_it_is_down_the_catalogue_says_so_and_since_when(self, guest: Path, tmp_path: Path) -> None:
        async with hosting(tmp_path) as running:
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

    async def test_one_that_blocks_its_loop_is_ended_and_started_anew(
        self, guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("exchange_service.plugin_host.supervisor._UNANSWERED_AND_OVERDUE", 1.0)
        async with hosting(tmp_path, venue_timeout=2.0) as running:
            await running.store("guest")
            before = await begun(running)
            await running.store("guest", user="bob", metadata={"deed": "block"})
            with pytest.raises(ServiceError) as caught:
                await running.client.get_balance("bob", "guest")
            assert caught.value.reason == "VENUE_TIMEOUT"
            await eventually(lambda: serves_again(running, before["process"]), "another process")
            assert "blocked its event loop" in (await process_of(running)).last_end

    async def test_one_whose_calls_ignore_their_deadline_is_replaced_without_a_gap(
        self, guest: Path, tmp_path: Path
    ) -> None:
        async with hosting(tmp_path, venue_timeout=2.0) as running:
            await running.store("guest")
            before = await begun(running)
            await running.store("guest", user="bob", metadata={"deed": "stubborn"})
            with pytest.raises(ServiceError):
                await running.client.get_balance("bob", "guest")

            async def replaced() -> bool:
                # Every call in between is answered: by the old process, then by the new one.
                return bool((await diary(running))["process"] != before["process"])

            await eventually(replaced, "another process")
            assert "ran on after their deadline" in (await process_of(running)).last_end

    async def test_one_that_grows_beyond_its_memory_is_replaced(self, guest: Path, tmp_path: Path) -> None:
        async with hosting(tmp_path, plugin_memory={"guest": 150}) as running:
            await running.store("guest")
            before = await diary(running)
            await running.store("guest", user="bob", metadata={"deed": "grow"})
            await running.client.get_balance("bob", "guest")
            await eventually(lambda: serves_again(running, before["process"]), "another process")
            assert "more memory than plugin_memory allows" in (await process_of(running)).last_end

    async def test_all_end_with_the_service(self, guest: Path, tmp_path: Path) -> None:
        async with hosting(tmp_path) as running:
            await running.store("guest")
            await diary(running)
            assert processes()
        assert not processes()

    async def test_the_program_ends_when_its_keeper_is_killed(self, guest: Path) -> None:
        process = await PluginProcess.start(terms(), work(guest_manifest()))
        program = psutil.Process(process.process_id)
        os.kill(process._keeper.pid, signal.SIGKILL)
        await until(lambda: not program.is_running() or program.status() == psutil.STATUS_ZOMBIE, "its end")
        await process.end()


class TestSignals:
    async def test_one_that_a_process_manager_sends_to_all_alike_is_left_to_the_service(self, guest: Path) -> None:
        process = await PluginProcess.start(terms(), work(guest_manifest()))
        try:
            for pid in (process._keeper.pid, process.process_id):
                for name in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                    os.kill(pid, name)
            assert await process.look() == 0
            assert process.alive
        finally:
            await process.end()
        assert not processes()

    async def test_a_call_on_one_that_has_ended_says_so_and_is_nobodys_cancellation(
        self, guest: Path, tmp_path: Path
    ) -> None:
        async with hosting(tmp_path) as running:
            await running.store("guest")
            await diary(running)
            metered: Any = running.service.balances._venues
            hosted = metered._venues
            (supervisor,) = hosted._processes["guest"]
            ended = supervisor.running
            await ended.end()
            account, listing = running.service.registry.account("alice", "guest", "")
            reference = await running.service.store.find(account)
            assert reference is not None
            with pytest.raises(PluginUnavailable):
                await hosted._answer(supervisor, ended, "FetchBalance", messages.FetchBalanceRequest(), listing, 1e12)


class TestPlaces:
    @pytest.mark.threat("T11")
    def test_a_stranger_that_takes_the_name_of_one_of_ours_is_not_loaded_whatever_the_settings_say(
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

    def test_ours_run_in_the_service_but_for_ccxt_and_strangers_apart(self) -> None:
        found = {
            name: placement(info(name, distribution), {}, [])
            for name, distribution in (
                ("oanda", "exchange-service-oanda"),
                ("ccxt_generic", "exchange-service-ccxt-generic"),
                ("acme", "acme-exchange"),
            )
        }
        assert found == {
            "oanda": Placement.IN_PROCESS,
            "ccxt_generic": Placement.OWN_PROCESS,
            "acme": Placement.STRANGER,
        }

    def test_the_operator_may_wish_otherwise(self) -> None:
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

    async def test_several_processes_share_the_accounts_and_each_keeps_its_own(
        self, guest: Path, tmp_path: Path
    ) -> None:
        async with hosting(tmp_path, plugin_process_counts={"guest": 2}) as running:
            seen: dict[str, set[int]] = {}
            for user in ("alice", "bob", "carol", "dave", "erin", "frank"):
                await running.store("guest", user=user)
                for _ in range(2):
                    reply = await running.client.get_balance(user, "guest", max_age=0)
                    seen.setdefault(user, set()).add(json.loads(reply.balance.notes[0])["process"])
            assert all(len(found) == 1 for found in seen.values())
            assert len(set.union(*seen.values())) == 2
            assert len((await status_of(running)).processes) == 2

    async def test_nothing_is_started_before_somebody_asks_unless_the_operator_wants_it(
        self, guest: Path, tmp_path: Path
    ) -> None:
        async with hosting(tmp_path) as running:
            assert (await process_of(running)).state == plugins.PLUGIN_PROCESS_STATE_IDLE
        async with hosting(tmp_path, plugin_start="at-once") as running:

            async def runs() -> bool:
                return (await process_of(running)).state == plugins.PLUGIN_PROCESS_STATE_RUNNING

            await eventually(runs, "the process")


class TestIntroduction:
    def test_one_that_fails_at_import_says_which_error_and_the_service_hears_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        install(tmp_path, "broken", "raise KeyError('no')")
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(StartFailed, match="failed with KeyError"):
            introduction(terms("broken"))

    def test_one_that_ends_its_process_at_import_is_told_of(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        install(tmp_path, "quitter", "import os; os._exit(7)")
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(StartFailed, match="exit status 7"):
            introduction(terms("quitter"))

    def test_one_that_does_not_come_back_is_given_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("exchange_service.plugin_host.launch._INTRODUCTION_LIMIT", 0.7)
        install(tmp_path, "sleeper", "import time; time.sleep(60)")
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(StartFailed, match=r"within 0\.7 seconds"):
            introduction(terms("sleeper"))
        assert not processes()

    def test_what_is_no_manifest_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        wrong = GUEST.replace('market_hours="24/7 Trading"', "market_hours=24")
        install(tmp_path, "guest", wrong)
        monkeypatch.syspath_prepend(str(tmp_path))
        with pytest.raises(StartFailed, match="manifest"):
            introduction(terms())


class TestMessages:
    def test_every_manifest_survives_the_way_there_and_back(self) -> None:
        manifest = ccxt_manifest()
        assert protocol.read_manifest(protocol.write_manifest(manifest)) == manifest

    @pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"api_version": 1, "exchanges": [{"id": 5}]}', b"\xff"])
    def test_what_is_no_manifest_is_a_value_error(self, data: bytes) -> None:
        with pytest.raises(ValueError, match="Manifest"):
            protocol.read_manifest(data)

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
    def test_rights_survive_and_what_is_not_known_stays_unknown(self, rights: KeyRights) -> None:
        assert protocol.read_rights(protocol.write_rights(rights)) == rights

    def test_an_error_that_no_plugin_may_raise_is_its_failure(self) -> None:
        forged = fault_message(from_reason("CALLER_UNKNOWN", "Who are you?"))
        assert isinstance(protocol.read_error(forged, "guest"), PluginFailed)

    def test_a_number_that_has_no_reason_is_a_failure_too(self) -> None:
        fault = fault_message(from_reason("VENUE_TIMEOUT", "Late."))
        fault.reason = 999  # type: ignore[assignment]
        assert isinstance(protocol.read_error(fault, "guest"), PluginFailed)
