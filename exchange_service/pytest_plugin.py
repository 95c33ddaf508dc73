"""The contract suite as a pytest plugin: it tests an exchange-service plugin without a test file.

    pytest --exchange-plugin acme

tests the plugin whose entry point is called `acme`, with the simulators that its distribution names in the entry-point
group `exchange_service.simulators`. The line `exchange_plugin = "acme"` in a project's pytest settings adds the suite
to the project's own tests. In place of the name a folder with a pyproject.toml may stand, whose plugin need not be
installed; so does the name of the plugin in the folder where pytest runs. pytest loads this module in every project
where the service is installed, so the module imports nothing of the service.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

_SUITE = str(Path(__file__).parent / "testing" / "suite.py")
# The name of a test's property: an exchange's id, how many malformed answers were tried, how many were believed.
MALFORMED = "malformed answers"
# The name of a test's property: what a sweep is over, the ids that it tried, how many cases, of which the right answer
# is not known for so many, and so many came out wrong.
SWEEP = "sweep"
# The name of a test's property: how many facts have a witness, and how many are unproven.
WITNESSES = "witnesses"
# The plugins to test, by name or folder. The suite reads them when pytest collects it.
CHOSEN: list[str] = []
# The folder of the project that is tested, as a list of one.
ROOT: list[Path] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "Test the exchange-service plugin of this name, or in this folder; can be repeated."
    group = parser.getgroup("exchange-service")
    group.addoption("--exchange-plugin", action="append", default=[], metavar="NAME_OR_FOLDER", help=text)
    parser.addini("exchange_plugin", text, type="args", default=[])


def pytest_configure(config: pytest.Config) -> None:
    named = config.getoption("--exchange-plugin")
    CHOSEN[:] = dict.fromkeys([*named, *config.getini("exchange_plugin")])
    ROOT[:] = [config.rootpath]
    if not CHOSEN or _SUITE in config.args:
        return
    paths_given = config.args_source is config.ArgsSource.ARGS
    if paths_given and not named:
        # The command line names test files: run those alone.
        return
    if named and not paths_given:
        # The command line names a plugin and no test files: run this suite alone.
        config.args[:] = []
    config.args.append(_SUITE)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what all tests have counted, also those in workers of pytest-xdist."""
    counted = list(_counted(terminalreporter))
    malformed = [value for name, value in counted if name == MALFORMED]
    if tried := sum(value[1] for value in malformed):
        exchanges = {value[0] for value in malformed}
        believed = sum(value[2] for value in malformed)
        terminalreporter.write_line(
            f"malformed answers: {tried:,} tried at {len(exchanges)} exchanges, {believed} became a false balance"
        )
    sweeps = [value for name, value in counted if name == SWEEP]
    for subject in dict.fromkeys(value[0] for value in sweeps):
        parts = [value for value in sweeps if value[0] == subject]
        ids = {exchange_id for value in parts for exchange_id in value[1]}
        tried, unknown, wrong = (sum(value[place] for value in parts) for place in (2, 3, 4))
        terminalreporter.write_line(
            f"sweep of {subject}: {tried:,} tried at {len(ids)} ids, {unknown:,} unknown, wrong: {wrong}"
        )
    facts = [value for name, value in counted if name == WITNESSES]
    if facts:
        known, unproven = (sum(value[place] for value in facts) for place in (0, 1))
        terminalreporter.write_line(f"facts about venues: {known:,} with a witness, {unproven:,} unproven")


def _counted(terminalreporter: Any) -> Iterator[tuple[str, Any]]:
    """The properties of all tests. They are recorded at teardown, so that a failed test counts too."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "teardown":
                yield from getattr(report, "user_properties", ())
