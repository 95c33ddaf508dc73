"""Run benchmarks, print the table and keep the figures in `results.json`: `python -m benchmarks [NAME ...]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version

import grpc
import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks import load, results
from benchmarks.engines import ENGINES, NATIVE, is_installed
from benchmarks.lines import Line, unmeasured
from benchmarks.suite import Benchmark, benchmarks

console = Console(width=400, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the named benchmarks. Returns 2 for an unknown name and 1 if a benchmark failed, else 0: a missed goal is
    a result."""
    options = _options(arguments)
    suite = benchmarks(options.seconds)
    if options.list:
        for benchmark in suite:
            note = "" if benchmark.by_default else " (by its name only)"
            console.print(f"{benchmark.name:24}{benchmark.guards}{note}", highlight=False)
        return 0
    named = {benchmark.name: benchmark for benchmark in suite}
    if unknown := set(options.names) - named.keys():
        console.print(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(named)}")
        return 2
    chosen = [item for item in suite if (item.name in options.names if options.names else item.by_default)]
    failed = run(chosen, [benchmark.name for benchmark in suite], options.engine or ENGINES)
    for benchmark in suite if not options.names else ():
        if not benchmark.by_default:
            console.print(f"not run, because it takes long: make bench ONLY={benchmark.name}", highlight=False)
    return 1 if failed else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure against ceilings.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to run (default: all but the long ones)")
    parser.add_argument("--engine", action="append", choices=ENGINES, help="on this engine only (default: on both)")
    parser.add_argument("--list", action="store_true", help="list them, with the hot path that each guards")
    parser.add_argument(
        "--seconds", type=float, help="how long to watch streams, pushes and replicas (default: each its own time)"
    )
    return parser.parse_args(arguments)


def run(chosen: Sequence[Benchmark], order: Sequence[str], engines: Sequence[str]) -> list[str]:
    """Run them, print the table and keep the figures. Returns the names of those that failed."""
    console.print(_conditions(), highlight=False)
    began = time.monotonic()
    lines: list[Line] = []
    failed: list[str] = []
    for benchmark in chosen:
        for engine in benchmark.engines(engines):
            measured, well = _measured(benchmark, engine)
            lines += measured
            failed += [] if well else [f"{benchmark.name} {engine}".strip()]
    if lines:
        console.print(table_of(lines))
    results.write(results.merged(results.read(results.RESULTS), lines, order), results.RESULTS)
    console.print(f"measured in {(time.monotonic() - began) / 60:.1f} minutes", highlight=False)
    if failed:
        console.print(f"failed: {', '.join(failed)}", highlight=False)
    return failed


def _measured(benchmark: Benchmark, engine: str) -> tuple[list[Line], bool]:
    """Its lines on the engine, and whether it ran well. Instead of them a line with the reason if the engine is not
    installed, or if the benchmark fails, so that the other benchmarks run."""
    began = time.monotonic()
    if not is_installed(engine):
        return [unmeasured(benchmark.name, engine, benchmark.guards, "not installed")], True
    try:
        lines = asyncio.run(_awaited(benchmark, engine))
    except Exception as error:
        sys.stderr.write(f"{benchmark.name} {engine}: failed\n{traceback.format_exc()}")
        said = f"{type(error).__name__}: {error}".removesuffix(": ").partition("\n")[0]
        reason = f"failed after {time.monotonic() - began:.0f} s: {said}"
        return [unmeasured(benchmark.name, engine, benchmark.guards, reason)], False
    sys.stderr.write(f"{benchmark.name} {engine}: {time.monotonic() - began:.0f} s\n")
    return [replace(line, engine=engine) for line in lines], True


async def _awaited(benchmark: Benchmark, engine: str) -> list[Line]:
    async with asyncio.timeout(benchmark.limit):
        return await benchmark.run(engine)


def _conditions() -> str:
    """The conditions of this run, for readers of the figures."""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores (load {psutil.getloadavg()[0]:.1f} before), "
        f"Python {platform.python_version()}, grpcio {grpc.__version__}, {_native_version()}, load by {load.program()}"
    )


def _native_version() -> str:
    return f"pygrpc-native {version('pygrpc-native')}" if is_installed(NATIVE) else "pygrpc-native is not installed"


def table_of(lines: Sequence[Line]) -> Table:
    """The table, for the terminal."""
    table = Table(box=None, pad_edge=False)
    for name in ("what", "engine"):
        table.add_column(name, no_wrap=True)
    for name in ("ours", "ceiling", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("goal", no_wrap=True)
    table.add_column("met", no_wrap=True)
    for line in lines:
        if line.reason:
            table.add_row(line.what, line.engine, "-", "-", "-", escape(line.reason), "-")
            continue
        ours, ceiling = (f"{_shown(value)} {line.unit}".strip() for value in (line.ours, line.ceiling))
        met = {True: "yes", False: "NO", None: "-"}[line.met]
        table.add_row(line.what, line.engine, ours, ceiling, f"{line.ratio:.2f}", line.goal or "-", met)
    return table


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
