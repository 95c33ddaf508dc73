"""What a CCXT balance costs: processor for each call, memory for each account. Guards the plugin `ccxt_generic`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path
from statistics import median

from benchmarks.lines import Line

_HERE = Path(__file__).parent
_PAIRS, _ACCOUNTS, _CALLS = 5, 200, 300


async def lines() -> list[Line]:
    """Both figures, from five pairs of processes against one venue, which has a process of its own."""
    async with _venue() as (url, key, secret):
        pairs = []
        for _ in range(_PAIRS):
            ours = await _run(_HERE / "ours_ccxt.py", url, key, secret)
            pairs.append((ours, await _run(_HERE / "ceilings" / "bare_ccxt.py", url, key, secret)))
    return [
        _line(
            "CCXT balance, processor for a call",
            "ms",
            1.5,
            [(a["seconds"] * 1e3, b["seconds"] * 1e3) for a, b in pairs],
        ),
        _line("CCXT account, memory for one more", "kB", 1.5, [(a["bytes"] / 1e3, b["bytes"] / 1e3) for a, b in pairs]),
    ]


def _scaled(pair: tuple[dict[str, float], dict[str, float]], name: str) -> tuple[float, float]:
    """Seconds as milliseconds, bytes as kilobytes."""
    factor = 1e3 if name == "seconds" else 1e-3
    ours, ceiling = pair
    return ours[name] * factor, ceiling[name] * factor


def _line(what: str, unit: str, at_most: float, pairs: list[tuple[float, float]]) -> Line:
    ours, ceiling = (median(side) for side in zip(*pairs, strict=True))
    return Line(what, ours, ceiling, unit, at_most, tuple(pairs))


async def _run(program: Path, *arguments: str) -> dict[str, float]:
    command = [str(program), *arguments, str(_ACCOUNTS), str(_CALLS)]
    process = await asyncio.create_subprocess_exec(sys.executable, *command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{program.name} failed")
    figures: dict[str, float] = json.loads(out)
    return figures


@asynccontextmanager
async def _venue() -> AsyncIterator[tuple[str, str, str]]:
    """Binance's simulator in a process of its own: its address, and a key and secret that it knows."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", __name__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url, key, secret = json.loads(await process.stdout.readline())
        yield url, key, secret
    finally:
        # The venue ends when nobody holds its standard input any more.
        process.stdin.close()
        await process.wait()


async def _play() -> None:
    (point,) = entry_points(group="exchange_service.simulators", name="binance")
    async with point.load()() as venue:
        row = venue.demo_credential("moving")
        sys.stdout.write(json.dumps([venue.url, row["api_key"], row["api_secret"]]) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_play())
