"""For pytest: the contract suite for a plugin by one line, without a test file.

    pytest --exchange-plugin acme

tries the plugin whose entry point is called `acme`, against the simulators that its distribution names in the group
`exchange_service.simulators`. In a project's own settings the line `exchange_plugin = "acme"` adds the suite to its
other tests. pytest loads this module wherever the service is installed, so it imports nothing of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

_SUITE = str(Path(__file__).parent / "testing" / "suite.py")
# A property of a test: an exchange's id, how many malformed answers were tried, how many became a balance.
MALFORMED = "malformed answers"
# The names of the plugins to try, for the suite to read when it is collected.
CHOSEN: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "Try the exchange-service plugin whose entry point has this name; can be repeated."
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
        # Who names a file of his own wants that one.
        return
    if named and not paths_given:
        # Named on the command line, without a path: this suite alone.
        config.args[:] = []
    config.args.append(_SUITE)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many malformed answers were tried, over all tests and also over the workers of pytest-xdist."""
    exchanges: set[str] = set()
    tried = believed = 0
    for reports in terminalreporter.stats.values():
        for report in reports:
            # Recorded when the test has ended, so that a failed one counts too.
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
