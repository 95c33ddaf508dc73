"""Run every benchmark, print the table and write `results.json`."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import ccxt_account
from benchmarks.lines import Line

RESULTS = Path(__file__).parent / "results.json"


async def _measure() -> list[Line]:
    return [*await ccxt_account.lines()]


def main() -> None:
    # It makes every import compile anew, so that start-up would be measured wrong.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    lines = asyncio.run(_measure())
    table = Table("what", "ours", "ceiling", "ratio", "goal", "met", box=None, pad_edge=False)
    for line in lines:
        ours, ceiling = (f"{value:.3g} {line.unit}" for value in (line.ours, line.ceiling))
        table.add_row(line.what, ours, ceiling, f"{line.ratio:.2f}", line.goal_text, "yes" if line.met else "no")
    Console(width=140).print(table)
    machine = {"python": platform.python_version(), "cores": os.cpu_count()}
    found = [asdict(line) | {"ratio": line.ratio, "met": line.met} for line in lines]
    RESULTS.write_text(json.dumps({"machine": machine, "lines": found}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
