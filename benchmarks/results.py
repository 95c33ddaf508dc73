"""`results.json`: the newest figures of each benchmark, in the order of the table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.lines import Line

RESULTS = Path(__file__).parent / "results.json"


def benchmark_of(entry: dict[str, Any]) -> str:
    """The name of the benchmark that measured this entry."""
    return str(entry["name"]).partition("/")[0]


def merged(known: Iterable[dict[str, Any]], lines: Iterable[Line], order: Sequence[str]) -> list[dict[str, Any]]:
    """The known entries, with new ones for the benchmarks that ran. `order` is the benchmarks' order in the table;
    entries of a benchmark that no longer exists are removed."""
    new = [line.as_result() for line in lines]
    measured = {benchmark_of(entry) for entry in new}
    kept = [entry for entry in known if benchmark_of(entry) not in measured]
    entries = [entry for entry in (*kept, *new) if benchmark_of(entry) in order]
    return sorted(entries, key=lambda entry: order.index(benchmark_of(entry)))


def read(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The entries of earlier runs; empty if the file is missing or has another format."""
    try:
        entries = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def write(entries: Sequence[dict[str, Any]], path: Path = RESULTS) -> None:
    """Write the entries for the next run, and for plots."""
    path.write_text(json.dumps(entries, indent=2) + "\n")
