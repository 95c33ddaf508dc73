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

This page is for you if you want to know what clients see while something that the service needs fails. It lists the
faults that the service is tested with, what clients should see of each, and what they saw.
`make docs` generates it from `scripts/faults.toml` and `scripts/faults_measured.json`.

Two replicas share a Redis-compatible server and a PostgreSQL, each behind a proxy that can spoil its connections, and
read a venue on loopback. Twenty callers give each call two seconds; some name the version that they have, some ask for
a new answer, some ask for accounts that nobody has read before. Fifty subscribers follow accounts: some go on at the
other replica every few seconds, some read slowly. Every amount says for which user the venue gave it, and when. So a
checker can compare what clients saw with what the venue said. `make chaos FAULT=redis-freeze` causes one fault,
`make chaos` all of them. The tests cause five, other ones each day.

The rig is quicker than the service as it is installed, so that a run need not wait:

| | in the rig | as installed |
|---|---|---|
| a balance is fresh for (`max_age`) | 2 s | 30 s |
| a last good balance is served until it is as old as (`stale_grace`) | 12 s | 300 s |
| streamed accounts are read every (`poll_interval`, `poll_interval_still`) | 1 s | 10 to 30 s |
| a venue has for a whole balance (`venue_timeout`) | 1.6 s | 8 s |
| the circuit breaker of a venue or an account pauses for (`tests/chaos/serve.py`) | 2 to 4 s | 30 to 300 s |

## The words

- **mark**: the field `freshness.stale` of a reply or an event. It says that a balance is older than it should be, and
  why.
- **grace**: the setting `stale_grace`, the greatest age at which a last good balance is served. It then has a mark.
- **new**: a call for an account that nobody has asked for before. There is no last good balance for it.
- **forced**: a call that asks for a newer answer, by `max_age` or by `known_version`.
- **any**: every call, new and forced ones included.
- **bare**: gRPC codes without a reason, where there was no process that could have given one.

## What must hold

- `own_user`: a value is of the user who was asked for.
- `really_emitted`: the venue has given that value.
- `true_age`: an age is true within half a second.
- `staleness_told`: what is older than it may be has a mark, and nothing is older than the grace.
- `versions_rise`: versions rise in a stream, also if it goes on at another replica; for a caller who names a version;
  for others at one replica.
- `asked_once`: the venue is asked once for an account and interval, or once by each replica while Redis is away.
- `last_good_kept`: while a venue fails, the last good balance is served with a mark until it is too old.
- `ends_in_time`: every call ends within its deadline.
- `reasons_given`: what fails has a reason.
- `no_call_lost`: calls fail only as the table says.
- `well_after_balance`: after an account's error in a stream, a heartbeat says that it is well only after a balance.
- `secrets_kept`: no secret is in a log, a reply, a status or Redis.
- `recovers`: after the fault all is fresh again within the time of the table.
- `nothing_left`: afterwards the replicas hold no more than before.
- `as_described`: the fault itself finds what its row says, such as that the venue was asked once, or that a process
  ended with an error. It also fails if nothing has met the fault.

## What was measured

"May fail with" are the reasons and codes with which calls may end, and for which calls. "Well within" is the time after
the fault in which all must be fresh again. The other columns are figures of runs:

- "Failed" are all calls that ended with an error. "Lost" are those of them that the table does not allow, that gave no
  reason, or that could have had the last good balance.
- "False" are values of another user, or that the venue never gave. "Back" are versions that went back.
- "Untold" are ages that were not true, and old values without a mark. "Leaked" are secrets that were seen.
- "Other" are further rules that were broken.
- "Well after" is the time from the end of the fault until no call fails and no value is stale.

Each figure is the greatest of the last runs, three at most, each with a seed of its own.

Some faults of venues may take half a minute and more until all is well. Each replica has a circuit breaker for the
venue and one for each account, and each stays open until a call after its pause succeeds. A venue's breaker lets two
accounts try at a time, and a try that fails makes the pause half as long again, up to the four seconds of the rig. With
the pauses of an installed service the same takes minutes. A refused key is another matter: what the venue has refused
twice is not sent again for up to a minute, unless another replica reads a later balance."""
_COLUMNS = (
    "fault",
    "what happens",
    "expected",
    "may fail with",
    "well within",
    "failed of calls",
    "lost",
    "false",
    "back",
    "untold",
    "leaked",
    "other",
    "well after",
)
_HEADER = f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}"
# The figures of a run that the page has as they are, in the order of the columns.
_COUNTS = ("lost", "false", "versions_back", "untold", "leaked", "other")
# The fields of the table with what may fail, and the word for these calls.
_ALLOWED = {"allowed": "any", "allowed_new": "new", "allowed_forced": "forced", "bare": "bare"}
# Seconds, if a row names no other: the ttl of the rig.
_RECOVERY = 2


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
            lines += [_HEADER]
            lines += [_line(name, table[name], figures.get(name, [])) for name in names]
    lines += list(_open(table))
    return "\n".join(lines) + "\n"


def _line(name: str, row: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    said = [f"`{name}`", row["what"], row["expected"], _may_fail(row), f"{row.get('recovery', _RECOVERY)} s"]
    return f"| {' | '.join([*said, *_figures(runs)])} |"


def _may_fail(row: dict[str, Any]) -> str:
    """Which calls may fail, and with what; calls with the same reasons stand together."""
    calls: dict[tuple[str, ...], list[str]] = {}
    for key, word in _ALLOWED.items():
        if row.get(key):
            calls.setdefault(tuple(row[key]), []).append(word)
    said = [f"{', '.join(words)}: {', '.join(f'`{one}`' for one in reasons)}" for reasons, words in calls.items()]
    return "; ".join(said) or "nothing"


def _figures(runs: list[dict[str, Any]]) -> list[str]:
    """The greatest of each figure over the runs."""
    if not runs:
        return ["not measured", *([""] * (len(_COUNTS) + 1))]
    failed, calls = (max(run[key] for run in runs) for key in ("failed", "calls"))
    counts = [str(max(run[key] for run in runs)) for key in _COUNTS]
    seconds = [run["seconds"] for run in runs]
    return [f"{failed} of {calls:,}", *counts, "not seen" if None in seconds else f"{max(seconds):.1f} s"]


def _open(table: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What is known to be broken: each sentence once, with the faults that it is about."""
    faults: dict[tuple[str, str], list[str]] = {}
    for name, row in table.items():
        for rule, text in row.get("open", {}).items():
            faults.setdefault((rule, text), []).append(f"`{name}`")
    yield from ("", "## What is known to be broken", "")
    if not faults:
        yield "Nothing."
    for (rule, text), names in faults.items():
        yield f"- `{rule}`, in {len(names)} {'fault' if len(names) == 1 else 'faults'}: {text} ({', '.join(names)})"
