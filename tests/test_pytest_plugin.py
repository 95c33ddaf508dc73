"""The contract suite by one line: on pytest's command line, or in a project's settings."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import exchange_service_oanda
import pytest
from exchange_service_oanda.simulator import OandaSimulator

from exchange_service.plugin_api import Capabilities, ExchangeMetadata, Manifest
from exchange_service.testing import suite
from exchange_service.testing.contract import PluginContract

SETTINGS = '[tool.pytest.ini_options]\nasyncio_default_fixture_loop_scope = "function"\n'


def pytest_in(folder: Path, *arguments: str, settings: str = "") -> subprocess.CompletedProcess[str]:
    """Run pytest in a project of its own."""
    (folder / "pyproject.toml").write_text(SETTINGS + settings)
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110)


@pytest.mark.project
def test_one_flag_tries_an_installed_plugin(tmp_path: Path) -> None:
    done = pytest_in(tmp_path, "--exchange-plugin", "oanda")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Test_oanda::test_nonsense_is_never_a_balance PASSED" in done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 45
    assert re.search(r"malformed answers: \d+ tried at 1 exchanges, 0 became a false balance", done.stdout)


def test_one_line_in_the_settings_adds_the_suite_to_a_projects_own_tests(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_our_own(): pass\n")
    done = pytest_in(tmp_path, "-k", "our_own or manifest", settings='exchange_plugin = "oanda"\n')
    assert done.returncode == 0, done.stdout[-3000:]
    assert "test_own.py::test_our_own PASSED" in done.stdout
    assert "Test_oanda::test_the_manifest_loads" in done.stdout


def test_a_file_that_is_named_runs_alone(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_our_own(): pass\n")
    assert "1 passed" in pytest_in(tmp_path, "test_own.py", settings='exchange_plugin = "oanda"\n').stdout


def test_a_name_that_no_plugin_has_fails_the_run_with_those_that_there_are(tmp_path: Path) -> None:
    done = pytest_in(tmp_path, "--exchange-plugin", "onada")
    assert done.returncode != 0
    assert "No installed plugin has the name 'onada'" in done.stdout
    assert "hyperliquid, krakenfutures, lighter, oanda" in done.stdout


FOLDER = """
[project]
name = "exchange-service-zinc"
version = "1"
[project.entry-points."exchange_service"]
zinc = "exchange_service_zinc"
[project.entry-points."exchange_service.simulators"]
zinc = "exchange_service_zinc:Simulator"
"""
MODULE = """
from exchange_service.plugin_api import *
from exchange_service.testing import DemoVenue

@hookimpl
def exchange_manifest():
    return Manifest(1, (ExchangeMetadata("zinc", "Zinc", "Crypto", "Spot", "24/7", (
        Environment("production", {"api": "https://zinc.example"}),
    )),))

@hookimpl
async def fetch_balance(call):
    return Balance(())

class Simulator(DemoVenue):
    exchange_id = "zinc"
"""


class TestFolders:
    @pytest.fixture
    def project(self, tmp_path: Path) -> Path:
        """The folder of a plugin that is not installed."""
        folder = tmp_path / "project"
        folder.mkdir()
        (folder / "pyproject.toml").write_text(FOLDER)
        (folder / "exchange_service_zinc.py").write_text(MODULE)
        return folder

    def test_a_folder_in_place_of_the_name_tries_a_plugin_that_is_not_installed(
        self, project: Path, tmp_path: Path
    ) -> None:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        done = pytest_in(elsewhere, "--exchange-plugin", str(project), "-k", "manifest")
        assert done.returncode == 0, done.stdout[-3000:]
        assert "Test_zinc::test_the_manifest_loads" in done.stdout

    def test_a_project_tests_itself_by_its_name_without_being_installed(self, project: Path) -> None:
        (project / "test_own.py").write_text("def test_our_own(): pass\n")
        done = pytest_in(project, "-k", "our_own or manifest", settings='exchange_plugin = "zinc"\n' + FOLDER)
        assert done.returncode == 0, done.stdout[-3000:]
        assert "test_own.py::test_our_own PASSED" in done.stdout
        assert "Test_zinc::test_the_manifest_loads" in done.stdout

    def test_a_folder_in_the_settings_is_meant_from_there(self, project: Path, tmp_path: Path) -> None:
        done = pytest_in(tmp_path, "-k", "manifest_loads", settings='exchange_plugin = "project"\n')
        assert done.returncode == 0, done.stdout[-3000:]
        assert "Test_zinc::test_the_manifest_loads" in done.stdout


def test_without_the_flag_nothing_is_added(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_our_own(): pass\n")
    assert "1 passed" in pytest_in(tmp_path).stdout


class TestSuites:
    def test_each_exchange_with_a_simulator_has_the_whole_contract(self) -> None:
        (suite_class,) = suite.suites(exchange_service_oanda, {"oanda": OandaSimulator})
        assert issubclass(suite_class, PluginContract)

    def test_a_plugin_without_a_simulator_fails_with_advice(self) -> None:
        (suite_class,) = suite.suites(exchange_service_oanda, {})
        assert not issubclass(suite_class, PluginContract)
        with pytest.raises(AssertionError, match=r"exchange_service\.simulators"):
            suite_class().test_a_simulator_plays_the_venue()

    def test_a_plugin_with_listings_alone_needs_no_simulator(self) -> None:
        listed = ExchangeMetadata(
            "soon",
            "Soon",
            "Crypto",
            "Spot",
            "24/7",
            (),
            capabilities=Capabilities(balance=False),
            unsupported_reason=".",
        )
        plugin = ModuleType("soon")
        plugin.exchange_manifest = lambda: Manifest(1, (listed,))  # type: ignore[attr-defined]
        (suite_class,) = suite.suites(plugin, {})
        assert not hasattr(suite_class, "test_a_simulator_plays_the_venue")
