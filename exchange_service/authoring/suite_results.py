"""Runs the contract suite and a plugin's own tests, and says what became of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from exchange_service.testing.projects import PluginProject

# From the worst to the best: the outcome of a test that ran several times is the first of these that occurs.
_OUTCOMES = ("failed", "passed", "skipped", "not run")


@dataclass(frozen=True, slots=True)
class RecordedTest:
    """One test: `exchange` is empty if it is not one of the contract. `outcome` is passed, failed, skipped or not run.

    `replaced`: the plugin's class has a test of its own under the contract's name. `requests_named`: the requests that
    a balance may send are stated, so that others fail the test.
    """

    id: str
    plugin: str
    exchange: str
    name: str
    outcome: str
    replaced: bool = False
    requests_named: bool = False


@dataclass(frozen=True, slots=True)
class SuiteResults:
    """What became of the tests of one plugin, and a line for each file that could not be read."""

    tests: tuple[RecordedTest, ...] = ()
    errors: tuple[str, ...] = ()

    def outcome(self, exchange_id: str, name: str) -> str:
        """What became of a test of the contract: passed, failed, skipped or not run."""
        found = {test.outcome for test in self.tests if (test.exchange, test.name) == (exchange_id, name)}
        return next((outcome for outcome in _OUTCOMES if outcome in found), "not run")

    def replaced(self, exchange_id: str) -> list[str]:
        """The tests of the contract in whose place the plugin's class has its own."""
        return sorted({test.name for test in self.tests if test.exchange == exchange_id and test.replaced})

    def requests_named(self, exchange_id: str) -> bool:
        """Whether each class for this exchange states which requests a balance may send."""
        named = [test.requests_named for test in self.tests if test.exchange == exchange_id]
        return bool(named) and all(named)

    @property
    def own(self) -> tuple[RecordedTest, ...]:
        """The tests that are not the contract's."""
        return tuple(test for test in self.tests if not test.exchange)

    def as_passed(self, not_passed: Collection[str] = ()) -> SuiteResults:
        """The same tests as if each that was collected had passed, but for those that a report names, each as
        "exchange test outcome"."""
        known = {tuple(text.split(" ", 2)[:2]): text.split(" ", 2)[2] for text in not_passed}
        tests = (
            replace(test, outcome=known.get((test.exchange, test.name), "passed"))
            if test.outcome == "not run"
            else test
            for test in self.tests
        )
        return replace(self, tests=tuple(tests))


def can_run() -> bool:
    """Whether pytest and pytest-asyncio are installed, which run the suite."""
    return all(find_spec(name) is not None for name in ("pytest", "pytest_asyncio"))


def run_suite(project: PluginProject) -> SuiteResults:
    """Run the project's own tests and the contract suite, in a process of its own."""
    name = project.point.name if project.folder is None else str(project.folder)
    paths = [] if project.folder is None else own_tests(project.folder)
    with tempfile.TemporaryDirectory() as folder:
        results = run_pytest(
            ["--exchange-plugin", name, *(str(path) for path in paths)],
            working_folder=project.folder or Path(folder),
            importable=[] if project.folder is None else [project.folder, project.folder / "src"],
        )
    module = project.point.module
    tests = tuple(test for test in results.tests if test.plugin in ("", module))
    return replace(results, tests=tests)


def own_tests(folder: Path) -> list[Path]:
    """Where the tests of a project are."""
    return [folder / name for name in ("tests", "test") if (folder / name).is_dir()] or sorted(folder.glob("test_*.py"))


def run_pytest(arguments: Sequence[str], *, working_folder: Path, importable: Iterable[Path] = ()) -> SuiteResults:
    """Run pytest to its end and read what it recorded; if it recorded nothing, the last line that it printed is the
    error."""
    paths = [str(path) for path in importable if path.is_dir()]
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [*paths, environment.get("PYTHONPATH", "")]))
    with tempfile.TemporaryDirectory() as name:
        record = Path(name) / "record.json"
        # --rootdir is left to pytest: the project's own settings count.
        command = [sys.executable, "-m", "pytest", "-q", "-p", "exchange_service.authoring.recorder"]
        command += ["-p", "no:cacheprovider", "--exchange-record", str(record), *arguments]
        # The interpreter is ours and the arguments are the author's own: no input comes from outside.
        done = subprocess.run(  # noqa: S603
            command, cwd=working_folder, env=environment, capture_output=True, text=True, check=False
        )
        if not record.exists():
            lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            said = next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "no output")
            return SuiteResults(errors=(f"pytest ended with {done.returncode}: {said}",))
        return read_record(record)


def read_record(path: Path) -> SuiteResults:
    """What pytest's plugin `exchange_service.authoring.recorder` wrote to the file of `--exchange-record`."""
    content = json.loads(path.read_text())
    return SuiteResults(tuple(RecordedTest(**test) for test in content["tests"]), tuple(content["errors"]))
