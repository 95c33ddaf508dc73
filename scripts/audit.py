"""Asks the advisory service about every version in requirements/run.lock: `make audit`.

It needs pip-audit and the network. It fails where a version is known to be vulnerable, and also where it learned
nothing about one: a check that could not look must not pass.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).parent.parent / "requirements" / "run.lock"
_PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==", re.MULTILINE)


def locked_names(lock: str) -> set[str]:
    """The distributions that a lock names, in the index's spelling."""
    return {re.sub(r"[-_.]+", "-", name).lower() for name in _PINNED.findall(lock)}


def problems(report: dict[str, Any], wanted: set[str]) -> list[str]:
    """What is wrong with the versions, or with the report itself, a sentence each."""
    found, answered = [], set()
    for entry in report.get("dependencies", []):
        name = re.sub(r"[-_.]+", "-", str(entry.get("name"))).lower()
        if "vulns" not in entry or "skip_reason" in entry:
            found.append(f"{name} was not looked at: {entry.get('skip_reason', 'no reason is given')}.")
            continue
        answered.add(name)
        known = ", ".join(sorted(str(advisory.get("id")) for advisory in entry["vulns"]))
        if known:
            found.append(f"{name} {entry.get('version')} is known to be vulnerable: {known}.")
    silent = sorted(wanted - answered)
    if silent or not wanted:
        found.append(f"Nothing was learned about {len(silent)} of {len(wanted)} distributions: {', '.join(silent)}.")
    return found


def main(*program: str) -> int:
    """Run pip-audit and judge what it says; 0 where every version was looked at and none is known to be vulnerable."""
    wanted = locked_names(LOCK.read_text())
    arguments = ("--strict", "--require-hashes", "--disable-pip", "--format", "json", "--requirement", str(LOCK))
    done = subprocess.run([*program, *arguments], capture_output=True, text=True)  # noqa: S603 - our own arguments
    try:
        report = json.loads(done.stdout)
    except ValueError:
        report = {}
    found = problems(report if isinstance(report, dict) else {}, wanted)
    for problem in found:
        print(problem)  # noqa: T201
    if done.returncode and (not found or not report):
        print(done.stderr.strip()[-1000:])  # noqa: T201
    if not found and not done.returncode:
        print(f"{len(wanted)} distributions were looked at, and none is known to be vulnerable.")  # noqa: T201
    return 1 if found or done.returncode else 0


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or ["pip-audit"])))
