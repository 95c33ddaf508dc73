"""A pytest plugin that writes what became of each test into a JSON file.

    pytest -p exchange_service.authoring.recorder --exchange-record FILE

`run_suite` in `suite_results` runs pytest with it. Where a project's own tests inherit the contract for an exchange,
the suite that `--exchange-plugin` adds is left out for it: they know which account to open and what must be set up.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exchange_service.testing.listing_contract import ListingContract

_SUITE = "exchange_service.testing.suite"
_OPTION = "--exchange-record"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("exchange-service").addoption(_OPTION, metavar="FILE", help="Write what became of each test here.")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption(_OPTION)
    if path:
        config.pluginmanager.register(_Recorder(Path(path)))


class _Recorder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._tests: dict[str, dict[str, Any]] = {}
        self._errors: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        own = {_exchange(item) for item in items if not _of_suite(item)} - {None}
        twice = [item for item in items if _of_suite(item) and _exchange(item) in own]
        if twice:
            config.hook.pytest_deselected(items=twice)
            items[:] = [item for item in items if item not in twice]
        self._tests = {item.nodeid: _describe(item) for item in items}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            # The last line of a traceback is the exception; paths of this machine stand above it.
            lines = [line for line in str(report.longrepr).splitlines() if line.strip()]
            self._errors.append(lines[-1].removeprefix("E").strip() if lines else "a file of tests cannot be read")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = self._tests.get(report.nodeid)
        if test is None or test["outcome"] == "failed":
            return
        if report.failed:
            test["outcome"] = "failed"
        elif report.skipped:
            test["outcome"] = "skipped"
        elif report.when == "call":
            test["outcome"] = "passed"

    def pytest_sessionfinish(self) -> None:
        self._path.write_text(json.dumps({"tests": list(self._tests.values()), "errors": self._errors}))


def _contract(item: pytest.Item) -> type[ListingContract] | None:
    """The class of the item's test, if it inherits the contract."""
    kind = getattr(item, "cls", None)
    return kind if isinstance(kind, type) and issubclass(kind, ListingContract) else None


def _of_suite(item: pytest.Item) -> bool:
    return item.path.parts[-3:] == ("exchange_service", "testing", "suite.py")


def _exchange(item: pytest.Item) -> tuple[str, str] | None:
    kind = _contract(item)
    return None if kind is None else (kind.plugin.__name__, kind.exchange_id)


def _describe(item: pytest.Item) -> dict[str, Any]:
    name = getattr(item, "originalname", None) or item.name
    described = {"id": item.nodeid, "plugin": "", "exchange": "", "name": name, "outcome": "not run"}
    kind = _contract(item)
    if kind is None:
        return described
    simulator = getattr(kind, "simulator", None)
    allowed = getattr(kind, "allowed_requests", ()) or getattr(simulator, "allowed_requests", ())
    return described | {
        "plugin": kind.plugin.__name__,
        "exchange": kind.exchange_id,
        "replaced": _is_replaced(kind, name),
        "requests_named": bool(allowed),
    }


def _is_replaced(kind: type[ListingContract], name: str) -> bool:
    """Whether the class has a test of its own in place of the contract's."""
    origins = [base.__module__ for base in kind.__mro__ if name in vars(base)]
    contract = [origin.startswith("exchange_service.testing.") and origin != _SUITE for origin in origins]
    return any(contract) and not contract[0]
