"""Run benchmarks, print the table and keep the figures in `results.json`: `python -m benchmarks [NAME ...]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import grpc
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import load, results
from benchmarks.lines import Line
from benchmarks.suite import Benchmark, benchmarks

console = Console(width=max(150, Console().width) if Console().is_terminal else 150, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks. Returns 2 for an unknown name, else 0, even if a goal is not met."""
    options = _options(arguments)
    suite = benchmarks(options.seconds)
    if options.list:
        for benchmark in suite:
            note = "" if benchmark.by_default else " (by its name only)"
            console.print(f"{benchmark.name:20}{benchmark.guards}{note}", highlight=False)
        return 0
    named = {benchmark.name: benchmark for benchmark in suite}
    if unknown := set(options.names) - named.keys():
        console.print(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(named)}")
        return 2
    chosen = [item for item in suite if (item.name in options.names if options.names else item.by_default)]
    console.print(_conditions(), highlight=False)
    lines = [line for benchmark in chosen for line in _measured(benchmark)]
    if lines:
        console.print(table_of(lines))
    order = [benchmark.name for benchmark in suite]
    results.write(results.merged(results.read(), lines, order))
    for benchmark in suite if not options.names else ():
        if not benchmark.by_default:
            console.print(f"not run, because it takes long: make bench ONLY={benchmark.name}", highlight=False)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure against ceilings.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to run (default: all but the long ones)")
    parser.add_argument("--list", action="store_true", help="list them, with the hot path that each guards")
    parser.add_argument(
        "--seconds", type=float, help="how long to watch the streams or the replicas (default: 20 and 60)"
    )
    return parser.parse_args(arguments)


def _measured(benchmark: Benchmark) -> list[Line]:
    """Its lines; none if it fails, which is printed, so that the other benchmarks run."""
    began = time.monotonic()
    try:
        lines = list(asyncio.run(_awaited(benchmark)))
    except Exception as error:
        console.print(f"{benchmark.name}: not measured: {type(error).__name__}: {error}", highlight=False, markup=False)
        return []
    sys.stderr.write(f"{benchmark.name}: {time.monotonic() - began:.0f} s\n")
    return lines


async def _awaited(benchmark: Benchmark) -> list[Line]:
    return await benchmark.run()


def _conditions() -> str:
    """The conditions of this run, for readers of the figures."""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores (load {psutil.getloadavg()[0]:.1f} before), "
        f"Python {platform.python_version()}, grpcio {grpc.__version__}, load by {load.program()}"
    )


def table_of(lines: Sequence[Line]) -> Table:
    """The table, for the terminal."""
    table = Table("what", box=None, pad_edge=False)
    for name in ("ours", "ceiling", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("goal", no_wrap=True)
    table.add_column("met", no_wrap=True)
    for line in lines:
        ours, ceiling = (f"{_shown(value)} {line.unit}".strip() for value in (line.ours, line.ceiling))
        met = {True: "yes", False: "NO", None: "-"}[line.met]
        table.add_row(line.what, ours, ceiling, f"{line.ratio:.2f}", line.goal or "-", met)
    return table


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
