"""What is known of a plugin before it is judged: its manifest, its simulators, its files, its tests and its types."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from exchange_service.authoring.places import without_places
from exchange_service.authoring.suite_results import SuiteResults, own_tests
from exchange_service.plugin_api import ExchangeMetadata, Manifest
from exchange_service.testing.projects import PluginProject
from exchange_service.testing.venue import SITUATIONS, TROUBLES, DemoVenue
from exchange_service.testing.witnesses import Witness, parse_witness, payload_witness, witness_lines
from exchange_service.venues.loading import LoadedPlugin, load_plugin
from exchange_service.venues.manifests import PluginRejected

# Seconds that a simulator has to begin, to show its accounts and to end.
_LIMIT = 30.0


@dataclass(frozen=True, slots=True)
class SimulatorEvidence:
    """What a simulator plays. `lacking` are the situations and troubles that it does not show, and `witnesses` where
    each trouble that it shows is known from, None for one that does not say."""

    exchange_id: str
    in_demo: bool
    lacking: tuple[str, ...] = ()
    witnesses: Mapping[str, Witness | None] = field(default_factory=dict)
    named_by: str = ""
    has_other_user: bool = False


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A Python file of the plugin's package: its path, which begins with the package, its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def of_simulator(self) -> bool:
        """Whether it is a simulator, which the service never runs."""
        return any(part.startswith("simulator") for part in Path(self.path).parts)

    def calls(self) -> Iterator[ast.Call]:
        """Every call in the file."""
        return (node for node in ast.walk(self.tree) if isinstance(node, ast.Call))


@dataclass(frozen=True, slots=True)
class TypeCheck:
    """What `mypy --strict` says of the package: `first` is its first error, as file:line and text; empty if clean."""

    ran: bool
    first: str = ""


# A plugin's types are not looked at: mypy is not installed.
UNCHECKED = TypeCheck(False)


@dataclass(frozen=True)
class Evidence:
    """All that the rules judge. `refusal` is why the service does not load the plugin, empty if it does."""

    project: PluginProject
    plugin: LoadedPlugin | None
    refusal: str
    simulators: Mapping[str, SimulatorEvidence]
    simulator_fault: str
    results: SuiteResults
    types: TypeCheck

    @property
    def folder(self) -> Path | None:
        """The project's folder; None for a plugin that is installed from a wheel."""
        return self.project.folder

    @property
    def manifest(self) -> Manifest | None:
        """The manifest, if the plugin loads."""
        return None if self.plugin is None else self.plugin.manifest

    @cached_property
    def served(self) -> tuple[ExchangeMetadata, ...]:
        """The listings whose balances can be read."""
        listings = () if self.manifest is None else self.manifest.exchanges
        return tuple(listing for listing in listings if listing.capabilities.balance)

    @cached_property
    def tried(self) -> tuple[ExchangeMetadata, ...]:
        """Those of them that the contract calls with a simulator."""
        called = {test.exchange for test in self.results.tests if test.name == "test_a_good_credential_gives_a_balance"}
        return tuple(listing for listing in self.served if listing.id in called)

    def has_hook(self, name: str) -> bool:
        """Whether the plugin has this optional hook."""
        return self.plugin is not None and bool(getattr(self.plugin.hook, name).get_hookimpls())

    @cached_property
    def package(self) -> Path | None:
        """The folder of the plugin's package, or its one file; None if it cannot be found."""
        try:
            spec = find_spec(self.project.point.module)
        except (ImportError, ValueError):
            return None
        if spec is None or spec.origin is None:
            return None
        origin = Path(spec.origin)
        return origin.parent if origin.name == "__init__.py" else origin

    @cached_property
    def sources(self) -> tuple[SourceFile, ...]:
        """The Python files of the package. One that is not Python is left out: then the plugin does not load."""
        if self.package is None:
            return ()
        files = sorted(self.package.rglob("*.py")) if self.package.is_dir() else [self.package]
        return tuple(_read_sources(files, self.package.parent))

    @cached_property
    def metadata(self) -> Mapping[str, Any]:
        """The table [project] of pyproject.toml; empty for a plugin without its folder."""
        if self.folder is None:
            return {}
        content = tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))
        project: Mapping[str, Any] = content.get("project", {})
        return project

    @cached_property
    def readme(self) -> str:
        """The text of the README, in the folder or in the wheel's metadata; empty if there is none."""
        if self.folder is not None:
            found = sorted(path for path in self.folder.glob("README*") if path.is_file())
            return found[0].read_text(encoding="utf-8") if found else ""
        return str(_wheel_metadata(self.project.point).get("Description", ""))

    @cached_property
    def licence(self) -> str:
        """The licence by its name, or the name of its file; empty if it has none."""
        if self.folder is None:
            known = _wheel_metadata(self.project.point)
            return str(known.get("License-Expression") or known.get("License") or "")
        stated = self.metadata.get("license", "")
        if isinstance(stated, Mapping):
            stated = stated.get("text") or stated.get("file") or ""
        files = sorted(path.name for path in self.folder.glob("LICEN[SC]E*"))
        return str(stated) or (files[0] if files else "")

    @cached_property
    def payloads(self) -> Mapping[str, Witness | str]:
        """By its path: the witness of each payload file, or what is wrong with the file."""
        if self.folder is None:
            return {}
        found: dict[str, Witness | str] = {}
        for path in sorted((self.folder / "payloads").rglob("*.json")):
            try:
                found[path.relative_to(self.folder).as_posix()] = payload_witness(path)
            except ValueError as error:
                found[path.relative_to(self.folder).as_posix()] = str(error)
        return found

    @cached_property
    def payload_readers(self) -> tuple[str, ...]:
        """The files of tests that speak of payloads."""
        if self.folder is None:
            return ()
        files = [
            file
            for path in own_tests(self.folder)
            for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])
        ]
        return tuple(
            file.relative_to(self.folder).as_posix() for file in files if "payload" in file.read_text(encoding="utf-8")
        )

    def nearest(self, *patterns: str) -> tuple[Path, str] | None:
        """The first file that fits, in the project's folder or above it within its repository, with its name.

        It is named from where it was found, so that the place of the repository does not matter.
        """
        for folder in self._folders():
            for pattern in patterns:
                found = sorted(path for path in folder.glob(pattern) if path.is_file())
                if found:
                    where = "" if folder == self.folder else "of the repository"
                    return found[0], f"{found[0].relative_to(folder).as_posix()} {where}".strip()
        return None

    def _folders(self) -> Iterator[Path]:
        if self.folder is None:
            return
        yield self.folder
        roots = [folder for folder in self.folder.parents if (folder / ".git").exists()]
        if roots and not (self.folder / ".git").exists():
            yield from (folder for folder in self.folder.parents if folder.is_relative_to(roots[0]))


def witness_comments(source: SourceFile) -> Iterator[tuple[int, Witness | None]]:
    """The line of every witness in a file, with None for one that cannot be read as a witness."""
    return ((line, read_witness(text)) for line, text in witness_lines(source.text))


def read_witness(text: str) -> Witness | None:
    """The witness that `text` names; None if it names none."""
    try:
        return parse_witness(text)
    except ValueError:
        return None


async def gather_evidence(project: PluginProject, results: SuiteResults, types: TypeCheck) -> Evidence:
    """All that is known of a plugin. Imports it and its simulators, and starts each simulator for a moment."""
    plugin, refusal = _load(project)
    simulators: dict[str, SimulatorEvidence] = {}
    fault = ""
    for point in project.simulators:
        try:
            async with asyncio.timeout(_LIMIT):
                found = await _try_simulator(point)
        except TimeoutError:
            fault = fault or f"{point.value}: the simulator did not begin and end within {_LIMIT:g} seconds"
        # A simulator is the author's own code, and may raise anything.
        except Exception as error:
            fault = fault or without_places(f"{point.value}: {type(error).__name__}: {error}", project.folder)
        else:
            simulators[found.exchange_id] = found
    return Evidence(project, plugin, refusal, simulators, fault, results, types)


def _load(project: PluginProject) -> tuple[LoadedPlugin | None, str]:
    try:
        return load_plugin(project.point.load(), project.info), ""
    except PluginRejected as rejection:
        return None, without_places(str(rejection), project.folder)
    except KeyboardInterrupt:
        raise
    # A module may do anything at import, sys.exit included.
    except BaseException as error:
        problem = f"importing {project.point.value} failed with {type(error).__name__}: {error}"
        return None, without_places(problem, project.folder)


async def _try_simulator(point: EntryPoint) -> SimulatorEvidence:
    venue = point.load()()
    if not isinstance(venue, DemoVenue):
        return SimulatorEvidence(getattr(venue, "exchange_id", point.name), in_demo=False)
    async with venue:
        lacking = [name for name in SITUATIONS if venue.demo_credential(name) is None]
        shown = [name for name in TROUBLES if venue.troubled_credential(name) is not None]
        other = venue.other_credential() is not None
    witnesses = {name: read_witness(venue.trouble_witnesses.get(name, "")) for name in shown}
    lacking += [name for name in TROUBLES if name not in shown]
    return SimulatorEvidence(venue.exchange_id, True, tuple(lacking), witnesses, venue.named_by, other)


def check_types(project: PluginProject, package: Path | None) -> TypeCheck:
    """What `mypy --strict` says of the plugin's package, in a process of its own; UNCHECKED if mypy is missing."""
    if package is None or find_spec("mypy") is None:
        return UNCHECKED
    folder = project.folder or package.parent
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context", "--no-pretty"]
    # The interpreter is ours and the path is the author's own.
    done = subprocess.run(  # noqa: S603
        [*command, str(package)], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return TypeCheck(True)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    first = next((line for line in lines if ": error:" in line), lines[0] if lines else f"exit code {done.returncode}")
    return TypeCheck(True, without_places(first, folder))


def _read_sources(files: list[Path], folder: Path) -> Iterator[SourceFile]:
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
            yield SourceFile(file.relative_to(folder).as_posix(), text, ast.parse(text))
        except (SyntaxError, ValueError):
            continue


def _wheel_metadata(point: EntryPoint) -> Mapping[str, str]:
    try:
        found = distribution(point.dist.name).metadata if point.dist is not None else None
    except PackageNotFoundError:
        return {}
    return {} if found is None else {name: found[name] for name in found}
