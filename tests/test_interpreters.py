"""A plugin on an interpreter of its own (plugin_interpreters) serves as beside the service, and what is wrong with its
environment keeps nothing else from serving."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from exchange_service import __version__
from exchange_service.cli.doctor import Severity, examine
from exchange_service.errors import PluginUnavailable, ServiceError
from exchange_service.model import Manifest
from exchange_service.operator.v1 import plugin_service_pb2 as plugins
from exchange_service.plugin_host import sandbox
from exchange_service.plugin_host.discovery import open_registry
from exchange_service.plugin_host.interpreters import InterpreterUnusable, find_elsewhere, read_description
from exchange_service.plugin_host.launch import ProcessPolicy, prepare_launch
from exchange_service.plugin_host.protocol import PROTOCOL
from exchange_service.startup_checks import UnsafeSettings, check_plugin_settings
from exchange_service.venues.loading import LoadedPlugin
from exchange_service.venues.manifests import manifest_digest
from exchange_service.venues.registry import PluginProblem, Registry
from tests.environments import PluginEnvironment, interpreter_of
from tests.harness import Running, eventually, listing, serving, settings_for
from tests.test_cli import call
from tests.test_plugin_host import install, processes

# Reports, as JSON in the notes of its balance, what its process runs on and what it may read.
GUEST = """
import json, os, resource, sys
from decimal import Decimal

from exchange_service.plugin_api import *

LISTING = ExchangeMetadata(
    id="guest", name="Guest", asset_class="Crypto", asset_types="Crypto Spot", market_hours="24/7 Trading",
    environments=(Environment("production", {"api": "https://guest.example"}),),
    capabilities=Capabilities(balance=True, sandbox=False),
)


@hookimpl
def exchange_manifest():
    return Manifest(1, (LISTING,))


@hookimpl
async def refresh_manifest():
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Manifest(1, (LISTING,), notes=(f"Refreshed by {sys.prefix} with {files} files.",))


def reads(path):
    try:
        open(path).close()
    except OSError as error:
        return type(error).__name__
    return "read"


@hookimpl
async def fetch_balance(call):
    import exchange_service
    report = {
        "process": os.getpid(),
        "executable": sys.executable,
        "prefix": sys.prefix,
        "page": exchange_service.__file__,
        "variables": sorted(os.environ),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "database": reads(call.credential.metadata.get("database", "/nowhere")),
        "address": call.url("api"),
    }
    rows = (AssetBalance("BTC", total=Decimal("1.5")),)
    return Balance((VenueAccount(id="1", type="spot", assets=rows),), notes=(json.dumps(report),))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> PluginEnvironment:
    """An environment with our library and no plugin."""
    return PluginEnvironment.with_library(tmp_path_factory.mktemp("library"))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> PluginEnvironment:
    """An environment with the guest."""
    environment = PluginEnvironment.with_library(tmp_path_factory.mktemp("environment"))
    install(environment.site, "guest", GUEST)
    return environment


@pytest.fixture
def copied(tmp_path: Path) -> PluginEnvironment:
    """An environment with the guest and a library of its own, both for one test."""
    environment = PluginEnvironment.with_copied_library(tmp_path / "copied")
    install(environment.site, "guest", GUEST)
    return environment


async def read_report(running: Running) -> dict[str, Any]:
    report: dict[str, Any] = {}

    async def serves() -> bool:
        try:
            reply = await running.client.get_balance("alice", "guest", max_age=0)
        except PluginUnavailable:
            return False
        report.update(json.loads(reply.balance.notes[0]))
        return True

    # The process was just started, which may take longer than a venue may.
    await eventually(serves, "the process")
    return report


async def status_of(running: Running) -> plugins.PluginStatus:
    reply = await running.client.list_plugins()
    return next(status for status in reply.plugins if status.plugin.name == "guest")


def plugin_of(registry: Registry) -> LoadedPlugin:
    return next(plugin for plugin in registry.plugins if plugin.info.name == "guest")


def problems_of(registry: Registry, name: str = "guest") -> list[PluginProblem]:
    return [problem for problem in registry.problems if problem.plugin.name == name]


class TestServing:
    async def test_a_plugin_that_is_installed_there_alone_is_listed_and_read_there(
        self, environment: PluginEnvironment, tmp_path: Path
    ) -> None:
        database = tmp_path / "credentials.db"
        async with serving(tmp_path, plugin_interpreters=interpreter_of(environment)) as running:
            await running.store("guest", metadata={"database": str(database)}, api_key="a-key")
            assert [entry.id for entry in (await running.client.list_exchanges(search="guest")).exchanges] == ["guest"]
            report = await read_report(running)
            status = await status_of(running)
        assert report["executable"] == environment.python
        assert Path(environment.python).is_relative_to(report["prefix"])
        assert not {"PYTHONPATH", "VIRTUAL_ENV"} & set(report["variables"])
        if sandbox.landlock_abi():
            assert report["database"] == "PermissionError"
        assert (status.interpreter, status.own_process) == (environment.python, True)
        assert list(status.libraries) == [f"exchange-service-plugin {__version__}"]
        assert status.python_version.startswith("3.")
        assert not processes()

    async def test_an_address_of_the_operator_reaches_it(self, environment: PluginEnvironment, tmp_path: Path) -> None:
        options = {"venue_urls": {"guest": "http://127.0.0.1:9"}, "plugin_interpreters": interpreter_of(environment)}
        async with serving(tmp_path, **options) as running:
            await running.store("guest")
            assert (await read_report(running))["address"] == "http://127.0.0.1:9"

    async def test_a_newer_manifest_is_made_there_too(self, environment: PluginEnvironment, tmp_path: Path) -> None:
        registry = open_registry(settings_for(tmp_path, plugin_interpreters=interpreter_of(environment)))
        await registry.refresh()
        (note,) = plugin_of(registry).manifest.notes
        assert note == f"Refreshed by {Path(environment.python).parent.parent} with 256 files."

    async def test_limits_are_those_of_the_distribution(
        self, environment: PluginEnvironment, library: PluginEnvironment, tmp_path: Path
    ) -> None:
        async with serving(tmp_path, plugin_interpreters=interpreter_of(environment)) as running:
            await running.store("guest")
            assert (await read_report(running))["files"] == 256
        ours = PluginEnvironment.with_library(tmp_path / "ours")
        install(ours.site, "guest", GUEST, "exchange-service-tradier")
        async with serving(tmp_path, plugin_interpreters=interpreter_of(ours)) as running:
            await running.store("guest")
            assert (await read_report(running))["files"] == 4096
            assert not running.service.registry.find("guest").plugin.third_party
        registry = open_registry(settings_for(tmp_path, plugin_interpreters=interpreter_of(ours)))
        await registry.refresh()
        (note,) = plugin_of(registry).manifest.notes
        assert note.endswith(" with 4096 files.")

    @pytest.mark.threat("T30")
    async def test_its_process_may_read_its_environment_and_not_the_services_projects(
        self, environment: PluginEnvironment, tmp_path: Path
    ) -> None:
        registry = open_registry(settings_for(tmp_path, plugin_interpreters=interpreter_of(environment)))
        runs_on = plugin_of(registry).interpreter
        assert runs_on is not None
        there = sandbox.readable(runs_on)
        assert str(environment.site / "guest_plugin.py") in there
        assert str(environment.site / "guest_plugin.py") not in sandbox.readable()
        own = {os.path.join(prefix, "lib") for prefix in {sys.prefix} - {sys.base_prefix}}
        assert own
        assert not own & set(there)

    async def test_it_serves_in_place_of_the_one_beside_the_service_with_a_notice(
        self, environment: PluginEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        beside = tmp_path / "site"
        beside.mkdir()
        install(beside, "guest", GUEST.replace('name="Guest"', 'name="Other"'))
        monkeypatch.syspath_prepend(str(beside))
        assert open_registry(settings_for(tmp_path)).find("guest").metadata.name == "Other"
        registry = open_registry(settings_for(tmp_path, plugin_interpreters=interpreter_of(environment)))
        assert registry.find("guest").metadata.name == "Guest"
        (problem,) = problems_of(registry)
        assert problem.notice
        assert "version 1.2 in the environment that plugin_interpreters names for it serves" in problem.reason

    def test_the_command_and_doctor_say_what_it_runs_on(self, environment: PluginEnvironment, tmp_path: Path) -> None:
        setting = json.dumps(interpreter_of(environment))
        done = call(tmp_path, "plugins", EXCHANGE_SERVICE_PLUGIN_INTERPRETERS=setting)
        assert f"guest runs on {environment.python}: Python 3." in done.stderr
        assert f"exchange-service-plugin {__version__}." in done.stderr

    async def test_doctor_says_what_it_runs_on(self, environment: PluginEnvironment, tmp_path: Path) -> None:
        findings = await examine(settings_for(tmp_path, plugin_interpreters=interpreter_of(environment)))
        texts = [item.text for item in findings if item.subject == "plugin guest" and item.severity is Severity.WELL]
        assert [text for text in texts if environment.python in text and "exchange-service-plugin" in text]


class TestTrust:
    @pytest.mark.threat("T11")
    def test_a_third_party_distribution_there_needs_to_be_allowed_as_anywhere(
        self, environment: PluginEnvironment, tmp_path: Path
    ) -> None:
        options = {"plugin_interpreters": interpreter_of(environment), "address": "0.0.0.0:0", "insecure": True}
        registry = open_registry(settings_for(tmp_path, **options))
        assert "guest" not in registry.listings
        assert 'set allowed_plugins=["acme-guest"]' in problems_of(registry)[0].reason
        assert "guest" in open_registry(settings_for(tmp_path, **options, allowed_plugins=["acme-guest"])).listings

    @pytest.mark.threat("T11")
    def test_a_third_party_distribution_there_does_not_take_the_name_of_one_of_ours(
        self, library: PluginEnvironment, tmp_path: Path
    ) -> None:
        thief = PluginEnvironment.with_library(tmp_path / "thief")
        install(thief.site, "oanda", GUEST, "zzz-thief")
        registry = open_registry(settings_for(tmp_path, plugin_interpreters=interpreter_of(thief, "oanda")))
        assert "guest" not in registry.listings
        assert registry.find("oanda").plugin.info.distribution == "exchange-service-oanda"
        (problem,) = problems_of(registry, "oanda")
        assert "'oanda' is exchange-service-oanda's; nothing of zzz-thief is loaded" in problem.reason

    def test_a_second_record_there_is_not_loaded(self, tmp_path: Path) -> None:
        environment = PluginEnvironment.with_library(tmp_path / "twice")
        install(environment.site, "guest", GUEST)
        left = environment.site / "acme_guest-1.1.dist-info"
        left.mkdir()
        (left / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-guest\nVersion: 1.1\n")
        found = find_elsewhere(interpreter_of(environment))["guest"]
        assert not isinstance(found, InterpreterUnusable)
        assert [(item.info.version, item.recorded) for item in found] in ([("1.2", True)], [("1.2", False)])
        registry = open_registry(settings_for(tmp_path, plugin_interpreters=interpreter_of(environment)))
        assert ("guest" in registry.listings) is found[0].recorded

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ({"guest": "bin/python"}, "should be an absolute path"),
            ({"ccxt_generic": "/opt/ccxt/bin/python"}, "cannot run in-process"),
        ],
    )
    def test_settings_that_cannot_be_meant_are_refused(self, value: dict[str, str], words: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=words):
            settings_for(tmp_path, plugin_interpreters=value, plugin_processes={"ccxt_generic": "in-process"})


def write_program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


class TestTroubles:
    def problem(self, tmp_path: Path, command: str) -> PluginProblem:
        """The only problem of the guest's, while the others serve."""
        registry = open_registry(settings_for(tmp_path, plugin_interpreters={"guest": command}))
        assert {"oanda", "tradier"} <= set(registry.listings)
        assert "guest" not in registry.listings
        (problem,) = problems_of(registry)
        assert not problem.notice
        # Callers read the reason.
        assert str(tmp_path) not in problem.reason
        assert command in problem.for_operators
        assert not processes()
        return problem

    def test_a_path_with_nothing_there(self, tmp_path: Path) -> None:
        assert "does not exist" in self.problem(tmp_path, str(tmp_path / "bin" / "python")).reason

    def test_a_file_that_may_not_be_executed(self, tmp_path: Path) -> None:
        (tmp_path / "python").write_text("")
        assert "may not be executed" in self.problem(tmp_path, str(tmp_path / "python")).reason

    @pytest.mark.parametrize("text", ["exit 0", "echo hello", 'echo "{}"', "echo '{\"python\": 3}'", "echo 5"])
    def test_a_program_that_is_not_python(self, text: str, tmp_path: Path) -> None:
        command = write_program(tmp_path / "python", text)
        assert "is not an interpreter of Python" in self.problem(tmp_path, command).reason

    def test_one_that_ends_without_an_answer(self, tmp_path: Path) -> None:
        command = write_program(tmp_path / "python", "kill -9 $$")
        assert "did not describe its environment (ended by signal 9)" in self.problem(tmp_path, command).reason

    def test_one_that_writes_without_end(self, tmp_path: Path) -> None:
        command = write_program(tmp_path / "python", "yes")
        assert "did not describe its environment" in self.problem(tmp_path, command).reason

    def test_one_that_does_not_come_back_is_given_up(self, tmp_path: Path) -> None:
        command = write_program(tmp_path / "python", "sleep 60 & sleep 60")
        found = find_elsewhere({"guest": command}, limit=0.7)["guest"]
        assert isinstance(found, InterpreterUnusable)
        assert "within 0.7 seconds" in str(found)

    def test_an_environment_without_the_library_gets_the_command_that_installs_it(self, tmp_path: Path) -> None:
        environment = PluginEnvironment(tmp_path / "empty")
        problem = self.problem(tmp_path, environment.python)
        assert problem.reason == "Its environment has no exchange-service-plugin."
        command = f"`{environment.python} -m pip install exchange-service-plugin=={__version__}`"
        assert problem.detail == f"Run {command}, and restart the service."

    def test_an_environment_whose_library_lacks_what_it_imports(self, tmp_path: Path) -> None:
        environment = PluginEnvironment(tmp_path / "broken")
        environment.record_library(environment.site)
        problem = self.problem(tmp_path, environment.python)
        assert problem.reason == f"exchange-service-plugin {__version__} cannot be imported in its environment."
        assert "No module named 'exchange_service'" in problem.detail

    def test_an_environment_without_the_plugin(self, library: PluginEnvironment, tmp_path: Path) -> None:
        problem = self.problem(tmp_path, library.python)
        assert problem.reason == "Its environment has no plugin with the name guest."
        assert f"{library.python} -m pip install" in problem.detail

    def test_another_protocol_names_both_versions_and_the_command(self, tmp_path: Path) -> None:
        environment = PluginEnvironment.with_copied_library(tmp_path / "newer", "9.9.0")
        install(environment.site, "guest", GUEST)
        environment.set_protocol(PROTOCOL + 1)
        problem = self.problem(tmp_path, environment.python)
        assert problem.reason == (
            f"Its environment has exchange-service-plugin 9.9.0, which speaks protocol {PROTOCOL + 1}, and this "
            f"service, {__version__}, speaks {PROTOCOL}."
        )
        assert f"{environment.python} -m pip install exchange-service-plugin=={__version__}" in problem.detail

    def test_another_version_with_the_same_protocol_serves(self, tmp_path: Path) -> None:
        environment = PluginEnvironment.with_copied_library(tmp_path / "newer", "9.9.0")
        install(environment.site, "guest", GUEST)
        registry = open_registry(settings_for(tmp_path, plugin_interpreters=interpreter_of(environment)))
        assert "guest" in registry.listings

    def test_an_older_python_is_named(self) -> None:
        with pytest.raises(InterpreterUnusable, match=r"has Python 3\.9\.2, and exchange-service-plugin needs 3\.11"):
            read_description("guest", "/opt/old/bin/python", b'\n{"python": "3.9.2"}\n')

    @pytest.mark.parametrize(
        "answer",
        [
            {"protocol": math.inf},
            {"protocol": "9x"},
            {"protocol": PROTOCOL, "prefixes": ["/a\0b"]},
            {"protocol": PROTOCOL, "prefixes": "/a"},
            7,
            "[" * 100_000,
        ],
        ids=["infinity", "a_text", "a_path_with_a_zero_byte", "no_list", "a_number", "deep"],
    )
    def test_whatever_it_answers_the_service_starts(self, answer: Any) -> None:
        described = {"python": "3.12.1", "library": "0.1.0", "failure": "", "plugins": []}
        paths = {key: [] for key in ("prefixes", "base_prefixes", "modules", "projects", "certificates")}
        value = answer if not isinstance(answer, dict) else {**described, **paths, **answer}
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        with pytest.raises(InterpreterUnusable, match="is not an interpreter of Python"):
            read_description("guest", "/opt/odd/bin/python", data)

    def test_a_plugin_that_fails_at_import_there_says_where(self, tmp_path: Path) -> None:
        environment = PluginEnvironment.with_library(tmp_path / "failing")
        install(environment.site, "guest", "raise KeyError('no')")
        assert "failed with KeyError" in self.problem(tmp_path, environment.python).reason

    def test_settings_that_name_a_plugin_whose_interpreter_is_missing_do_not_stop_the_start(
        self, tmp_path: Path
    ) -> None:
        options = {"plugin_memory": {"guest": 100}, "exchange_plugins": {"guest": "acme-guest"}}
        settings = settings_for(tmp_path, plugin_interpreters={"guest": "/nowhere/python"}, **options)
        check_plugin_settings(settings, open_registry(settings))
        with pytest.raises(UnsafeSettings, match="exchange_plugins"):
            check_plugin_settings(
                settings.model_copy(update={"plugin_interpreters": {}}), open_registry(settings_for(tmp_path))
            )

    async def test_callers_are_not_shown_the_path_and_operators_are(self, tmp_path: Path) -> None:
        async with serving(tmp_path, plugin_interpreters={"guest": "/nowhere/python"}) as running:
            listed = await running.client.list_exchanges()
            operators = await running.client.list_plugins()
        (shown,) = [item.reason for item in listed.problems if item.plugin.name == "guest"]
        assert "/nowhere" not in shown
        (named,) = [item.reason for item in operators.problems if item.plugin.name == "guest"]
        assert "/nowhere/python" in named


class TestUpgrades:
    async def stopped(self, running: Running) -> str:
        """What the operator reads once its process was ended and could not serve again."""
        (process,) = (await status_of(running)).processes
        os.kill(process.process_id, signal.SIGKILL)

        async def refused() -> bool:
            try:
                await running.client.get_balance("alice", "guest", max_age=0)
            except ServiceError as error:
                return "Restart the service" in str(error) or "changed since the service loaded it" in str(error)
            return False

        await eventually(refused, "the refusal")
        (process,) = (await status_of(running)).processes
        return process.last_end

    async def test_another_version_of_the_plugin_serves_after_a_restart(
        self, copied: PluginEnvironment, tmp_path: Path
    ) -> None:
        async with serving(tmp_path, plugin_interpreters=interpreter_of(copied)) as running:
            await running.store("guest")
            await read_report(running)
            record = copied.site / "acme_guest-1.2.dist-info" / "METADATA"
            record.write_text(record.read_text().replace("1.2", "1.3"))
            last_end = await self.stopped(running)
            assert "Restart the service: version 1.3 of acme-guest is installed" in last_end
        async with serving(tmp_path, plugin_interpreters=interpreter_of(copied)) as running:
            await read_report(running)
            assert (await status_of(running)).plugin.version == "1.3"

    async def test_another_protocol_of_the_library_is_named_by_both_numbers(
        self, copied: PluginEnvironment, tmp_path: Path
    ) -> None:
        async with serving(tmp_path, plugin_interpreters=interpreter_of(copied)) as running:
            await running.store("guest")
            await read_report(running)
            copied.set_protocol(PROTOCOL + 5)
            last_end = await self.stopped(running)
            assert "another version of exchange-service-plugin" in last_end
            assert f"It speaks protocol {PROTOCOL + 5}, and the service {PROTOCOL}." in last_end
            assert str(tmp_path) not in last_end


def test_a_manifest_has_the_same_digest_whether_or_not_a_version_knows_a_field_that_is_at_its_default() -> None:
    manifest = Manifest(1, (listing(),))
    adapter = sys.modules["exchange_service.venues.manifests"]._manifest_adapter()
    written = json.loads(adapter.dump_json(manifest, exclude_defaults=True))
    assert "notes" not in written
    assert manifest_digest(manifest) == manifest_digest(Manifest(1, (listing(),), notes=()))
    assert manifest_digest(manifest) != manifest_digest(Manifest(1, (listing(),), notes=("Other.",)))


async def test_the_reaper_is_the_services_own(environment: PluginEnvironment, tmp_path: Path) -> None:
    registry = open_registry(settings_for(tmp_path, plugin_interpreters=interpreter_of(environment)))
    interpreter = plugin_of(registry).interpreter
    spec = prepare_launch(ProcessPolicy("guest", "acme-guest", 512 << 20, third_party=True, interpreter=interpreter))
    try:
        assert spec.command[0] == sys.executable
        assert json.loads(spec.first_line)["command"][0] == environment.python
    finally:
        spec.close()
