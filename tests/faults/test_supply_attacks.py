"""Attacks by an installed distribution or a plugin. Each first succeeds with the mitigation switched off."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pluggy
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from exchange_service.plugin_api import Balance, VenueCall
from exchange_service.venues.registry import load_registry
from tests.harness import ScriptedPlugin, balance_request, failure, holding, registry_of, serving

ROOT = Path(__file__).parent.parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)(.*?)(?=^\S|\Z)", re.MULTILINE | re.DOTALL)


def pins(lock: Path) -> dict[str, tuple[str, int]]:
    """Each distribution's version and how many hashes it has."""
    pinned = _PIN.findall(lock.read_text())
    return {canonicalize_name(name): (version, rest.count("--hash=sha256:")) for name, version, rest in pinned}


def wheel(folder: Path, code: str) -> Path:
    """A wheel as an index serves it, with this one module."""
    path = folder / "somelib-1.0-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\nName: somelib\nVersion: 1.0\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {"somelib.py": code, "somelib-1.0.dist-info/METADATA": metadata, "somelib-1.0.dist-info/WHEEL": tags}
    record = "".join(f"{name},{_record_hash(text)},{len(text)}\n" for name, text in files.items())
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, "somelib-1.0.dist-info/RECORD": record}.items():
            archive.writestr(name, text)
    return path


def _record_hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256={base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def install(index: Path, target: Path, requirements: Path) -> bool:
    """Whether pip, called as in the Makefile, installs from these requirements."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--find-links", str(index)]
    command += ["--target", str(target), "--disable-pip-version-check", "--requirement", str(requirements)]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


class Stubborn:
    """A hook that ignores its cancellation until the test releases it."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.entered = asyncio.Event()

    async def __call__(self, _: VenueCall) -> Balance:
        self.entered.set()
        while not self.released.is_set():
            with suppress(asyncio.CancelledError):
                await self.released.wait()
        return holding(("BTC", "1.50"))


@pytest.mark.threat("T12", attack=True)
async def test_a_plugin_that_ignores_its_cancellation_delays_code_that_awaits_it_and_not_its_caller_here(
    tmp_path: Path,
) -> None:
    hook = Stubborn()
    plugin = ScriptedPlugin(answer=hook)

    async def await_with_a_timeout() -> None:
        async with asyncio.timeout(0.1):
            await plugin.answer(None)  # type: ignore[arg-type]

    waiting = asyncio.ensure_future(await_with_a_timeout())
    done, _ = await asyncio.wait({waiting}, timeout=0.6)
    assert not done
    async with serving(tmp_path, registry=registry_of(plugin)) as running:
        await running.store()
        failed = await failure(running.stub.GetBalance(balance_request(), timeout=0.5))
        assert failed.reason == "VENUE_TIMEOUT"
        hook.released.set()
    with suppress(TimeoutError):
        await waiting


@pytest.mark.threat("T12", attack=True)
def test_one_plugin_that_breaks_at_its_import_ends_the_loading_of_all_and_here_its_own_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_broken_plugin.py").write_text("import no_such_module\n")
    (tmp_path / "a_good_plugin.py").write_text(
        "from tests.harness import ScriptedPlugin, listing\nplugin = ScriptedPlugin(listing('good'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    group = "exchange_service.plugins"
    points = [
        importlib.metadata.EntryPoint("broken", "a_broken_plugin", group),
        importlib.metadata.EntryPoint("good", "a_good_plugin:plugin", group),
    ]
    manager = pluggy.PluginManager("exchange_service")
    # As pluggy itself loads plugins, one after the other.
    with pytest.raises(ImportError):
        _ = [manager.register(point.load()) for point in points]
    assert manager.list_name_plugin() == []
    registry = load_registry(points=points)
    assert list(registry.listings) == ["good"]
    assert [problem.plugin.name for problem in registry.problems] == ["broken"]


@pytest.mark.threat("T20", attack=True)
def test_a_wheel_that_was_replaced_on_the_index_is_installed_by_its_version_and_not_by_its_hash(
    tmp_path: Path,
) -> None:
    honest = hashlib.sha256(wheel(tmp_path, "print('well')").read_bytes()).hexdigest()
    by_version, by_hash = tmp_path / "by_version.txt", tmp_path / "by_hash.txt"
    by_version.write_text("somelib==1.0\n")
    by_hash.write_text(f"somelib==1.0 --hash=sha256:{honest}\n")
    assert install(tmp_path, tmp_path / "first", by_hash)
    wheel(tmp_path, "print('mine')")
    assert install(tmp_path, tmp_path / "second", by_version)
    assert "mine" in (tmp_path / "second" / "somelib.py").read_text()
    assert not install(tmp_path, tmp_path / "third", by_hash)


@pytest.mark.threat("T20")
@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_locked_version_has_a_hash_and_no_index_is_named(lock: Path) -> None:
    locked = pins(lock)
    assert locked
    assert [name for name, (_, hashes) in locked.items() if not hashes] == []
    assert not re.search(r"^\s*(--(extra-)?index-url|--find-links|-i )|^\S+ @ |://", lock.read_text(), re.MULTILINE)


@pytest.mark.threat("T20")
@pytest.mark.parametrize("name", ["run.lock", "dev.lock"])
def test_the_service_and_every_plugin_fit_the_one_set_of_versions(name: str) -> None:
    locked = pins(ROOT / "requirements" / name)
    parts = sorted(
        path for folder in ("clients", "packages", "plugins") for path in (ROOT / folder).glob("*/pyproject.toml")
    )
    projects = [ROOT / "pyproject.toml", *parts]
    ours: set[str] = {canonicalize_name(tomllib.loads(project.read_text())["project"]["name"]) for project in projects}
    wanted = [
        (project.relative_to(ROOT).as_posix(), text)
        for project in projects
        for text in tomllib.loads(project.read_text())["project"].get("dependencies", [])
    ]
    # And what each of the locked distributions requires of the others, if it is installed here.
    wanted += [(package, text) for package in locked for text in _requirements_of(package)]
    assert _unmet(wanted, locked, ours) == []


def _requirements_of(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _unmet(wanted: list[tuple[str, str]], locked: dict[str, tuple[str, int]], ours: set[str]) -> list[str]:
    unmet = []
    for origin, text in wanted:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        if name in ours or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        version = locked.get(name, ("", 0))[0]
        if not version or not requirement.specifier.contains(version, prereleases=True):
            unmet.append(f"{origin} wants {text}, and the lock has {version or 'none'}")
    return unmet


@pytest.mark.threat("T20")
def test_pins_that_do_not_fit_are_found() -> None:
    locked = {"urllib3": ("2.8.0", 1)}
    assert _unmet([("lighter-sdk", "urllib3<2.1"), ("other", "absent>=1"), ("fits", "urllib3>=2")], locked, set()) == [
        "lighter-sdk wants urllib3<2.1, and the lock has 2.8.0",
        "other wants absent>=1, and the lock has none",
    ]


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / "scripts" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def auditor(folder: Path, report: object, code: int = 0) -> list[str]:
    """The command of a program that replaces pip-audit and gives this report."""
    program = folder / "auditor.py"
    program.write_text(f"import sys\nsys.stdout.write({json.dumps(report)!r})\nsys.exit({code})\n")
    return [sys.executable, str(program)]


@pytest.mark.threat("T20")
class TestAudit:
    def test_versions_that_were_all_audited_without_a_finding_pass(self, audit: ModuleType, tmp_path: Path) -> None:
        well = [{"name": name, "version": "1", "vulns": []} for name in audit.locked_names(audit.LOCK.read_text())]
        assert audit.main(*auditor(tmp_path, {"dependencies": well})) == 0

    @pytest.mark.parametrize("report", [{}, {"dependencies": []}, [], "offline"])
    def test_an_audit_of_nothing_fails_though_its_program_does_not(
        self, audit: ModuleType, tmp_path: Path, report: object, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert audit.main(*auditor(tmp_path, report)) == 1
        assert "There is no answer about" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "entry",
        [
            {"name": "aiohttp", "version": "1", "vulns": [{"id": "PYSEC-1"}]},
            {"name": "aiohttp", "skip_reason": "not on the index"},
        ],
    )
    def test_one_vulnerable_or_skipped_version_fails(self, audit: ModuleType, tmp_path: Path, entry: object) -> None:
        names = audit.locked_names(audit.LOCK.read_text()) - {"aiohttp"}
        well = [{"name": name, "version": "1", "vulns": []} for name in names]
        assert audit.main(*auditor(tmp_path, {"dependencies": [*well, entry]})) == 1

    def test_a_failing_audit_program_fails_the_audit(self, audit: ModuleType, tmp_path: Path) -> None:
        well = [{"name": name, "version": "1", "vulns": []} for name in audit.locked_names(audit.LOCK.read_text())]
        assert audit.main(*auditor(tmp_path, {"dependencies": well}, code=1)) == 1


@pytest.mark.threat("T20")
def test_no_tool_is_installed_without_its_hash() -> None:
    """Also those that compile and check the locks."""
    for line in (ROOT / "Makefile").read_text().splitlines():
        if ("pip install" in line and not line.startswith("PIP_INSTALL =")) or "PIP_INSTALL)" in line:
            # Our own projects have no hash, and bring nothing with them.
            assert "--require-hashes" in line or "--no-deps" in line, line
    assert set(pins(ROOT / "requirements" / "lock.lock")) == {"uv"}
    assert "pip-audit" in pins(ROOT / "requirements" / "audit.lock")


@pytest.mark.threat("T20")
def test_the_images_base_can_be_given_by_its_digest() -> None:
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${BASE}", "${BASE}"]
    assert "@sha256:" in text
