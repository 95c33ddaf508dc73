"""`results.json`: the newest figures of each benchmark on each engine, in the order of the table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engines import ENGINES
from benchmarks.lines import Line

RESULTS = Path(__file__).parent / "results.json"
_ENGINES = ("", *ENGINES)


def benchmark_of(entry: dict[str, Any]) -> tuple[str, str]:
    """The name of the benchmark that measured this entry, and the engine; both empty for an entry of another form."""
    name, engine = entry.get("name"), entry.get("engine")
    known = isinstance(name, str) and engine in _ENGINES
    return (name.partition("/")[0], engine) if known else ("", "")


def merged(known: Iterable[dict[str, Any]], lines: Iterable[Line], order: Sequence[str]) -> list[dict[str, Any]]:
    """The known entries, with new ones for the benchmarks that ran on an engine. `order` is the benchmarks' order in
    the table; entries of a benchmark that no longer exists are removed."""
    new = [line.as_result() for line in lines]
    measured = {benchmark_of(entry) for entry in new}
    kept = [entry for entry in known if benchmark_of(entry) not in measured]
    entries = [entry for entry in (*kept, *new) if benchmark_of(entry)[0] in order]
    return sorted(entries, key=lambda entry: _place(entry, order))


def _place(entry: dict[str, Any], order: Sequence[str]) -> tuple[int, int]:
    name, engine = benchmark_of(entry)
    return order.index(name), _ENGINES.index(engine)


def read(path: Path) -> list[dict[str, Any]]:
    """The entries of earlier runs; empty if the file is missing or has another format."""
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def write(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """Write the entries for the next run, and for plots."""
    path.write_text(json.dumps(entries, indent=2) + "\n")
