"""The contract suite as a pytest plugin: it tests an exchange-service plugin without a test file.

    pytest --exchange-plugin acme

tests the plugin whose entry point is called `acme`, with the simulators that its distribution names in the entry-point
group `exchange_service.simulators`. The line `exchange_plugin = "acme"` in a project's pytest settings adds the suite
to the project's own tests. pytest loads this module in every project where the service is installed, so the module
imports nothing of the service.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

_SUITE = str(Path(__file__).parent / "testing" / "suite.py")
# The name of a test's property: an exchange's id, how many malformed answers were tried, how many were believed.
MALFORMED = "malformed answers"
# The names of the plugins to test. The suite reads them when pytest collects it.
CHOSEN: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "Test the exchange-service plugin whose entry point has this name; can be repeated."
    group = parser.getgroup("exchange-service")
    group.addoption("--exchange-plugin", action="append", default=[], metavar="NAME", help=text)
    parser.addini("exchange_plugin", text, type="args", default=[])


def pytest_configure(config: pytest.Config) -> None:
    named = config.getoption("--exchange-plugin")
    CHOSEN[:] = dict.fromkeys([*named, *config.getini("exchange_plugin")])
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
    """Print how many malformed answers all tests have tried, also those in workers of pytest-xdist."""
    exchanges: set[str] = set()
    tried = believed = 0
    for reports in terminalreporter.stats.values():
        for report in reports:
            # The property is recorded at teardown, so that a failed test counts too.
            if getattr(report, "when", "") != "teardown":
                continue
            for name, value in getattr(report, "user_properties", ()):
                if name == MALFORMED:
                    exchanges.add(value[0])
                    tried, believed = tried + value[1], believed + value[2]
    if tried:
        terminalreporter.write_line(
            f"malformed answers: {tried:,} tried at {len(exchanges)} exchanges, {believed} became a false balance"
        )
