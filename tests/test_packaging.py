"""The built wheels work in a clean environment, without the source tree."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from exchange_service_oanda.simulator import OandaSimulator

from tests.test_docs import write_documented_plugin

# Building and installing takes a while on a busy machine.
pytestmark = [pytest.mark.project, pytest.mark.timeout(300)]

ROOT = Path(__file__).parent.parent
# The three distributions of the service's package.
CLIENT, KIT = ROOT / "clients" / "python", ROOT / "packages" / "exchange-service-plugin"
SERVICE = (ROOT, CLIENT, KIT)
_PINNED = re.compile(r"^([A-Za-z0-9_.-]+==[^\\\n]+?)\s*\\?$", re.MULTILINE)


def run(*command: object, **options: Any) -> str:
    """Run a command; its output, or a failure that shows what it printed."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=280, **options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


def build_wheels(folder: Path, *projects: Path) -> dict[str, Path]:
    """The wheels of projects by the names in their files, built with the tools that are installed here."""
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, *projects)
    return {wheel.name.partition("-")[0]: wheel for wheel in folder.glob("*.whl")}


def install(programs: Path, *what: object) -> None:
    """Install into another environment. What a program does not load is not compiled there."""
    pip = (sys.executable, "-m", "pip", "--python", programs / "python", "install", "-q", "--no-compile")
    run(*pip, *what)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels by their folders: of the service "core", of the clients "client", of what plugins need "plugin", and
    those of plugins."""
    plugins = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
    built = build_wheels(tmp_path_factory.mktemp("wheels"), *SERVICE, *plugins)
    return {name.removeprefix("exchange_service").removeprefix("_") or "core": wheel for name, wheel in built.items()}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, Path]) -> Path:
    """A new environment with the core and OANDA's plugin alone; the folder of its programs."""
    return new_environment(
        tmp_path_factory.mktemp("clean"), *(wheels[name] for name in ("core", "client", "plugin", "oanda"))
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, Path]) -> Path:
    """A new environment with OANDA's plugin and its test kit, and without the service; the folder of its programs."""
    # The extra, by the wheel's address: no index is asked for it.
    kit = f"exchange-service-plugin[testing] @ {wheels['plugin'].as_uri()}"
    return new_environment(tmp_path_factory.mktemp("small"), kit, wheels["client"], wheels["oanda"])


def new_environment(folder: Path, *what: object) -> Path:
    """A new virtual environment with `what` and what it needs, in the locked versions; the folder of its programs."""
    venv.create(folder / "venv")
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(_PINNED.findall((ROOT / "requirements" / "dev.lock").read_text())))
    programs = folder / "venv" / "bin"
    install(programs, "-c", constraints, *what)
    return programs


def files_of(wheel: Path) -> set[str]:
    """The files of a wheel below exchange_service/."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if name.startswith("exchange_service/")}


def test_each_file_of_the_package_is_in_one_of_the_three_wheels(wheels: dict[str, Path]) -> None:
    tree = (path for path in (ROOT / "exchange_service").rglob("*") if path.is_file())
    files = {path.relative_to(ROOT).as_posix() for path in tree if path.parent.name != "__pycache__"}
    parts = [files_of(wheels[name]) for name in ("core", "client", "plugin")]
    assert set().union(*parts) == files
    assert sum(map(len, parts)) == len(files)
    assert "exchange_service/py.typed" in files_of(wheels["client"])


@pytest.mark.parametrize(("project", "name"), [(KIT, "plugin"), (CLIENT, "client")])
def test_the_smaller_wheels_can_be_built_from_their_source_distributions(
    wheels: dict[str, Path], tmp_path: Path, project: Path, name: str
) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=project)
    (source,) = tmp_path.glob("*.tar.gz")
    (built,) = build_wheels(tmp_path / "wheels", source).values()
    assert files_of(built) == files_of(wheels[name])


def test_a_plugin_is_tested_where_the_service_is_not_installed(small: Path, tmp_path: Path) -> None:
    installed = {item["name"].lower() for item in json.loads(pip_list(small))}
    assert "exchange-service-oanda" in installed
    assert not installed & {"exchange-service", "sqlalchemy", "redis", "typer", "uvloop", "psutil", "rich"}
    command = (small / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--exchange-plugin", "oanda")
    output = run(*command, "-k", "manifest or good_credential or missing_field", cwd=tmp_path)
    assert re.search(r"\b\d+ passed", output), output


def pip_list(programs: Path) -> str:
    """What is installed in an environment, as JSON."""
    return run(sys.executable, "-m", "pip", "--python", programs / "python", "list", "--format", "json")


def test_the_wheel_has_every_template_and_static_file_of_the_console(wheels: dict[str, Path]) -> None:
    folder = ROOT / "exchange_service" / "console"
    files = [path for name in ("templates", "static") for path in (folder / name).iterdir()]
    assert len(files) > 20
    with zipfile.ZipFile(wheels["core"]) as wheel:
        assert {path.relative_to(ROOT).as_posix() for path in files} <= set(wheel.namelist())


def test_the_wheel_has_every_file_of_the_template_for_plugins(wheels: dict[str, Path]) -> None:
    files = [path for path in (ROOT / "exchange_service" / "authoring" / "template").rglob("*") if path.is_file()]
    assert len(files) > 20
    with zipfile.ZipFile(wheels["core"]) as wheel:
        assert {path.relative_to(ROOT).as_posix() for path in files} <= set(wheel.namelist())


class Installed:
    """The command line of the clean environment, with a database of its own."""

    def __init__(self, programs: Path, home: Path) -> None:
        self.program = programs / "exchange-service"
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "EXCHANGE_SERVICE_DATABASE_URL": f"sqlite:///{home / 'data' / 'service.db'}",
        }

    async def call(self, *arguments: str, stdin: str = "", code: int = 0) -> str:
        """Run a command to its end and return its output."""
        process = await self._start(*arguments)
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), timeout=30)
        assert process.returncode == code, err.decode()
        return out.decode()

    async def _start(self, *arguments: str) -> asyncio.subprocess.Process:
        pipe = subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            str(self.program), *arguments, env=self.environment, stdin=pipe, stdout=pipe, stderr=pipe
        )

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """`serve` on a free port; its address."""
        process = await self._start("serve", "--address", "127.0.0.1:0")
        assert process.stderr is not None
        try:
            while line := (await asyncio.wait_for(process.stderr.readline(), timeout=20)).decode():
                if match := re.search(r"Serving on (127\.0\.0\.1:\d+)", line):
                    break
            else:
                raise AssertionError("serve ended before it listened")
            yield match[1]
        finally:
            process.terminate()
            await asyncio.wait_for(process.communicate(), timeout=20)
        assert process.returncode == 0


def test_every_project_builds_a_wheel_with_its_data(wheels: dict[str, Path]) -> None:
    assert set(wheels) == {
        "core",
        "client",
        "plugin",
        "alpaca",
        "aster",
        "ccxt_generic",
        "hyperliquid",
        "krakenfutures",
        "lighter",
        "oanda",
        "tastytrade",
        "tradier",
    }
    listing = run(sys.executable, "-m", "zipfile", "-l", wheels["ccxt_generic"])
    assert "exchange_service_ccxt_generic/snapshot.json" in listing
    assert "exchange_service_ccxt_generic/retired.json" in listing
    listing = run(sys.executable, "-m", "zipfile", "-l", wheels["client"])
    assert "exchange_service/v1/exchange_service_pb2.py" in listing
    assert "exchange_service/operator/v1/plugin_service_pb2.py" in listing
    listing = run(sys.executable, "-m", "zipfile", "-l", wheels["core"])
    assert "exchange_service/monitoring/alerts.yaml" in listing
    assert [line for line in listing.splitlines() if line.startswith("tests/")] == []


async def test_the_core_and_one_plugin_serve_without_ccxt(clean: Path, tmp_path: Path) -> None:
    missing = run(clean / "python", "-c", "import importlib.util; print(importlib.util.find_spec('ccxt'))")
    assert missing.strip() == "None"
    installed = Installed(clean, tmp_path)
    async with installed.serving() as address:
        listed = json.loads(await installed.call("exchanges", "-o", "json", "--address", address))["exchanges"]
        assert [entry["id"] for entry in listed] == ["oanda"]
        assert "SERVING" in await installed.call("health", "--address", address)
        await installed.call("balance", "-u", "nobody", "-e", "oanda", "--address", address, code=3)


async def test_a_plugin_runs_in_the_other_environment_where_the_service_is_not_installed(
    clean: Path, small: Path, tmp_path: Path
) -> None:
    installed = Installed(clean, tmp_path)
    interpreter = str(small / "python")
    installed.environment["EXCHANGE_SERVICE_PLUGIN_INTERPRETERS"] = json.dumps({"oanda": interpreter})
    async with OandaSimulator() as venue:
        installed.environment["EXCHANGE_SERVICE_VENUE_URLS"] = json.dumps({"oanda": venue.url})
        row = json.dumps(venue.demo_credential("good"))
        await installed.call("credentials", "add", "-u", "alice", "-e", "oanda", "--stdin", stdin=row)
        async with installed.serving() as address:
            of_alice = ("-u", "alice", "-e", "oanda", "-o", "json", "--address", address)
            reply = json.loads(await installed.call("balance", *of_alice))
            listed = json.loads(await installed.call("plugins", "-o", "json", "--address", address))
    assert reply["balance"]["venue_accounts"]
    (plugin,) = [item for item in listed["plugins"] if item["name"] == "oanda"]
    assert (plugin["interpreter"], plugin["own_process"]) == (interpreter, True)
    assert plugin["processes"][0]["process_id"]


async def test_the_guides_plugin_can_be_installed_is_listed_and_gives_a_balance(clean: Path, tmp_path: Path) -> None:
    project = tmp_path / "acme"
    write_documented_plugin(project)
    install(clean, "--no-deps", *build_wheels(tmp_path / "wheels", project).values())
    installed = Installed(clean, tmp_path)
    simulator = load_simulator(project / "exchange_service_acme" / "simulator.py")
    async with simulator() as venue:
        installed.environment["EXCHANGE_SERVICE_VENUE_URLS"] = json.dumps({"acme": venue.url})
        row = json.dumps({"api_key": "good-token-0123456789"})
        await installed.call("credentials", "add", "-u", "alice", "-e", "acme", "--stdin", stdin=row)
        async with installed.serving() as address:
            listed = json.loads(await installed.call("exchanges", "-o", "json", "--address", address))["exchanges"]
            assert [entry["id"] for entry in listed] == ["acme", "oanda"]
            reply = json.loads(
                await installed.call("balance", "-u", "alice", "-e", "acme", "-o", "json", "--address", address)
            )
    (account,) = reply["balance"]["venue_accounts"]
    assert [(row["asset"], row["total"]) for row in account["assets"]] == [("ACME", "12.50")]
    assert len(venue.requests) == 1


def load_simulator(path: Path) -> Any:
    """The guide's simulator class, straight from its file."""
    spec = importlib.util.spec_from_file_location("acme_simulator", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.AcmeSimulator


@pytest.mark.parametrize("project", ["examples/web", "clients/typescript"])
def test_packages_from_npm_are_locked_by_their_hashes_and_name_no_server(project: str) -> None:
    folder = ROOT / project
    locked = json.loads((folder / "package-lock.json").read_text())["packages"]
    packages = {path: entry for path, entry in locked.items() if path}
    assert len(packages) > 5
    assert [path for path, entry in packages.items() if not entry["integrity"].startswith("sha512-")] == []
    texts = [path.read_text() for path in (folder / "package-lock.json", folder / ".npmrc")]
    assert [text for text in texts if "://" in text or '"resolved"' in text] == []
