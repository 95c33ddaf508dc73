"""What a CCXT balance costs: processor for each call, memory for each account. Guards the plugin `ccxt_generic`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import entry_points
from pathlib import Path

from benchmarks.lines import Line, compared
from benchmarks.names import ROOT, environment

_HERE = Path(__file__).parent
_PAIRS, _ACCOUNTS, _CALLS = 5, 80, 300


async def ccxt_balance(_: str) -> list[Line]:
    """Both figures, from five pairs of processes against one venue in a process of its own."""
    sizes = str(_ACCOUNTS), str(_CALLS)
    pairs = []
    async with venue() as (url, key, secret):
        for _ in range(_PAIRS):
            ours = await _run(_HERE / "ours_ccxt.py", url, key, secret, *sizes)
            pairs.append((ours, await run_program("bare_ccxt", url, key, secret, *sizes)))
    seconds = [(ours["seconds"] * 1e3, bare["seconds"] * 1e3) for ours, bare in pairs]
    memory = [(ours["bytes"] / 1e3, bare["bytes"] / 1e3) for ours, bare in pairs]
    return [
        compared("ccxt_balance/processor", "CCXT balance, processor for a call", "ms", seconds, at_most=1.5),
        compared("ccxt_balance/memory", "CCXT account, memory for one more", "kB", memory, at_most=1.5),
    ]


async def run_program(name: str, *arguments: str) -> dict[str, float]:
    """The figures that a program of `ceilings/` prints."""
    return await _run(_HERE / "ceilings" / f"{name}.py", *arguments)


async def _run(program: Path, *arguments: str) -> dict[str, float]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program), *arguments), env=environment(), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{program.name} failed")
    figures: dict[str, float] = json.loads(out)
    return figures


@asynccontextmanager
async def venue() -> AsyncIterator[tuple[str, str, str]]:
    """Binance's simulator in a process of its own: its address, and a key and secret that it knows."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__),
        cwd=ROOT,
        env=environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        url, key, secret = json.loads(await process.stdout.readline())
        yield url, key, secret
    finally:
        # The venue ends when its standard input is closed.
        process.stdin.close()
        await process.wait()


async def _play() -> None:
    (point,) = entry_points(group="exchange_service.simulators", name="binance")
    async with point.load()() as played:
        played.lift_limits()
        row = played.demo_credential("moving")
        sys.stdout.write(json.dumps([played.url, row["api_key"], row["api_secret"]]) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_play())
