"""Generates docs/reliability.md: every fault, what is expected, and what it was seen to cost; run by `make docs`.

The faults are in faults.toml, and what was measured in faults_measured.json, which `make chaos JSON=...` writes.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FAULTS = Path(__file__).parent / "faults.toml"
MEASURED = Path(__file__).parent / "faults_measured.json"

# The headings by the first word of a fault's name.
_GROUPS = {
    "nothing": "No fault",
    "redis": "Redis",
    "postgres": "PostgreSQL",
    "venue": "Venues",
    "": "Processes and limits",
}
_MODULES = {"nothing": "control", "redis": "redis", "postgres": "postgres", "venue": "venues", "": "processes"}

_HEAD = """# Reliability

This page lists the faults that the service is tested with, what clients should see of each, and what they saw.
`make docs` generates it from `scripts/faults.toml` and `scripts/faults_measured.json`.

Two replicas share a Redis-compatible server and a PostgreSQL, each behind a proxy that can spoil its connections, and
read a venue on loopback. Twenty callers give each call two seconds; some name the version that they have, some ask for
a new answer, some ask for accounts that nobody has read before. Fifty subscribers follow accounts: some go on at the
other replica every few seconds, some read slowly. Every amount says for which user the venue gave it, and when. So a
checker can compare what clients saw with what the venue said. `make chaos FAULT=redis-freeze` puts one fault,
`make chaos` all of them. The tests put five, other ones each day.

The rig is quicker than the service as it is installed: a balance is fresh for two seconds, accounts are polled each
second, and a last good value is served for twelve seconds.

## What must hold

- A value is of the user who was asked for, and the venue has given it.
- Its age is true within half a second. What is older than it may be has a mark, and nothing is older than the grace.
- Versions rise: in a stream, also if it goes on at another replica; for a caller who names a version; for others at
  one replica.
- The venue is asked once for an account and interval, or once by each replica while Redis is away.
- While a venue fails, the last good balance is served with a mark until it is too old.
- Every call ends within its deadline, and what fails has a reason. Calls fail only where the table says so.
- After an account's error in a stream, a heartbeat says that it is well only after a balance.
- No secret is in a log, a reply, a status or Redis.
- After the fault all is fresh again within the time of the table, and the replicas hold no more than before.

## What was measured

"Failed" are all calls that ended with an error. "Lost" are those of them that the table does not allow, that gave no
reason, or that could have had the last good balance. "False" are values of another user, or that the venue never gave.
"Back" are versions that went back, "untold" ages that were not true and old values without a mark. "Other" are further
rules that were broken. The last column is the time from the end of the fault until no call fails and no value is stale.
Each figure is the greatest of the last runs, three at most, each with a seed of its own."""
_COLUMNS = """| fault | what happens | expected | failed of calls | lost | false | back | untold | other | well after |
|---|---|---|---|---|---|---|---|---|---|"""


def rows() -> dict[str, dict[str, Any]]:
    """The table of the faults by name."""
    return tomllib.loads(FAULTS.read_text())


def measured() -> dict[str, list[dict[str, Any]]]:
    """The figures of the last runs of each fault; empty if nothing was measured."""
    figures: dict[str, list[dict[str, Any]]] = json.loads(MEASURED.read_text()) if MEASURED.exists() else {}
    return figures


def group_of(name: str) -> str:
    """The first word of a fault's name if it is that of a group, else empty."""
    first = name.partition("-")[0]
    return first if first in _GROUPS else ""


def reliability_page() -> str:
    """docs/reliability.md."""
    table, figures = rows(), measured()
    lines = [_HEAD]
    for group, heading in _GROUPS.items():
        names = [name for name in table if group_of(name) == group]
        if names:
            lines += ["", f"### {heading}", "", f"In `tests/chaos/faults/{_MODULES[group]}.py`.", ""]
            lines += [_COLUMNS]
            lines += [_line(name, table[name], figures.get(name, [])) for name in names]
    lines += list(_open(table))
    return "\n".join(lines) + "\n"


def _line(name: str, row: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    return f"| `{name}` | {row['what']} | {row['expected']} | {' | '.join(_figures(runs))} |"


def _figures(runs: list[dict[str, Any]]) -> list[str]:
    """The greatest of each figure over the runs."""
    if not runs:
        return ["not measured", "", "", "", "", "", ""]
    failed, calls = (max(run[key] for run in runs) for key in ("failed", "calls"))
    counts = [str(max(run[key] for run in runs)) for key in ("lost", "false", "versions_back", "untold", "other")]
    seconds = [run["seconds"] for run in runs]
    return [f"{failed} of {calls:,}", *counts, "not seen" if None in seconds else f"{max(seconds):.1f} s"]


def _open(table: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What is known to be broken."""
    known = [(name, rule, text) for name, row in table.items() for rule, text in row.get("open", {}).items()]
    if known:
        yield from ("", "## What is known to be broken", "")
        yield from (f"- `{name}`, `{rule}`: {text}" for name, rule, text in known)
