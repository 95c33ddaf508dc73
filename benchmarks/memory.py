"""The serving process's memory, and the time until it serves. Guards what it imports: CCXT must not be imported."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.bounds import bound
from benchmarks.lines import Line
from benchmarks.programs import serving, simulator, store
from exchange_service.client import ExchangeServiceClient

_RUNS = 5
_USER, _EXCHANGE = "alice", "binance"
_MEMORY, _START = 110.0, 0.9


async def memory(engine: str) -> list[Line]:
    """The figures with CCXT in its own process, which have goals; as the ceiling those with CCXT in-process."""
    async with simulator(_EXCHANGE) as (url, row):
        with tempfile.TemporaryDirectory(prefix="exchange-service-benchmark-") as name:
            folder = Path(name)
            await store(folder, [(_USER, _EXCHANGE, row)])
            runs = []
            for _ in range(_RUNS):
                pair = [await _run(folder, url, place, engine) for place in ("own-process", "in-process")]
                runs.append([value for found in zip(*pair, strict=True) for value in found])
    start, start_in, fresh, fresh_in, used, used_in, beside, _ = (median(side) for side in zip(*runs, strict=True))
    return [
        bound("memory/serving", "memory of the serving process when it serves", "MB", fresh, fresh_in, at_most=_MEMORY),
        bound("memory/after_ccxt", "  after a CCXT balance", "MB", used, used_in, at_most=_MEMORY),
        bound("memory/beside", "  of the plugin's process and its reaper then", "MB", beside),
        bound("memory/start", "start to SERVING, compiled", "s", start, start_in, at_most=_START),
    ]


async def _run(folder: Path, url: str, place: str, engine: str) -> tuple[float, float, float, float]:
    """Seconds until it served, megabytes then and after a balance, and of its plugins' processes."""
    settings: dict[str, Any] = {
        "venue_urls": json.dumps({_EXCHANGE: url}),
        "plugin_processes": json.dumps({"ccxt_generic": place}),
        "engine": engine,
    }
    async with serving(folder, **settings) as served:
        service = psutil.Process(served.pid)
        fresh = service.memory_info().rss
        async with ExchangeServiceClient(served.address, timeout=30.0) as client:
            await client.get_balance(_USER, _EXCHANGE)
        below = sum(process.memory_info().rss for process in service.children(recursive=True))
        return served.seconds, fresh / 1e6, service.memory_info().rss / 1e6, below / 1e6
