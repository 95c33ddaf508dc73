"""Asks the advisory service about every version in requirements/run.lock: `make audit`.

It needs pip-audit and the network. It fails if a version is known to be vulnerable, and also if there is no answer
about one: a check that could not run must not pass.
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
    """The distributions that a lock file names, in the package index's spelling."""
    return {re.sub(r"[-_.]+", "-", name).lower() for name in _PINNED.findall(lock)}


def problems(report: dict[str, Any], wanted: set[str]) -> list[str]:
    """The problems of the versions, and of the report itself, a sentence each."""
    sentences, answered = [], set()
    for entry in report.get("dependencies", []):
        name = re.sub(r"[-_.]+", "-", str(entry.get("name"))).lower()
        if "vulns" not in entry or "skip_reason" in entry:
            sentences.append(f"{name} was not checked: {entry.get('skip_reason', 'no reason is given')}.")
            continue
        answered.add(name)
        known = ", ".join(sorted(str(advisory.get("id")) for advisory in entry["vulns"]))
        if known:
            sentences.append(f"{name} {entry.get('version')} is known to be vulnerable: {known}.")
    silent = sorted(wanted - answered)
    if silent or not wanted:
        sentences.append(f"There is no answer about {len(silent)} of {len(wanted)} distributions: {', '.join(silent)}.")
    return sentences


def main(*program: str) -> int:
    """Run pip-audit and print the problems; 0 if every version was checked and none is known to be vulnerable."""
    wanted = locked_names(LOCK.read_text())
    arguments = ("--strict", "--require-hashes", "--disable-pip", "--format", "json", "--requirement", str(LOCK))
    audit = subprocess.run([*program, *arguments], capture_output=True, text=True)  # noqa: S603 - our own arguments
    try:
        report = json.loads(audit.stdout)
    except ValueError:
        report = {}
    sentences = problems(report if isinstance(report, dict) else {}, wanted)
    for problem in sentences:
        print(problem)  # noqa: T201
    if audit.returncode and (not sentences or not report):
        print(audit.stderr.strip()[-1000:])  # noqa: T201
    if not sentences and not audit.returncode:
        print(f"{len(wanted)} distributions were checked, and none is known to be vulnerable.")  # noqa: T201
    return 1 if sentences or audit.returncode else 0


if __name__ == "__main__":
    sys.exit(main(*(sys.argv[1:] or ["pip-audit"])))
