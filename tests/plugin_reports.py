"""Whether a run of all tests agrees with the reports of our plugins, which are not made again in the run."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PLUGINS = Path(__file__).parent.parent / "plugins"
_CONTRACT = re.compile(r"plugins/(?P<plugin>\w+)/tests/\S*contract\.py::\w+::(?P<test>test_\w+)")


def untold_skips(passed: Iterable[Any], skipped: Iterable[Any]) -> list[str]:
    """A sentence for each test of the contract that was skipped and never passed, and that quality.toml does not name.

    The test of a report's currency takes every test as passed that the report does not name, see `judge_as_passed`.
    """
    ran = {_contract(report.nodeid) for report in passed}
    missing = {_contract(report.nodeid) for report in skipped} - ran - {None}
    return [
        f"plugins/{plugin}: {test} was skipped, and quality.toml does not say so: run `exchange-service plugins check`"
        for plugin, test in sorted(key for key in missing if key is not None)
        if f"{test} skipped" not in (PLUGINS / plugin / "quality.toml").read_text()
    ]


def _contract(nodeid: str) -> tuple[str, str] | None:
    match = _CONTRACT.match(nodeid)
    return (match["plugin"], match["test"]) if match else None
