"""Whether an open page of the console grows, and the service behind it: `python -m benchmarks.console_page`.

A Chromium shows twenty accounts of which each changes once a second, for five minutes (--minutes). Every ten seconds
the page's heap and nodes are read after a collection, and the memory that belongs to the service's process alone. It
prints them, and their slopes in MB a minute after the first minute, in which caches fill.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from statistics import linear_regression
from typing import Any

import psutil
from playwright.async_api import CDPSession

from tests.browser.chromium import chromium

_LOOK_EVERY, _FILLING = 10.0, 60.0
_MB = 1e6


@dataclass(frozen=True, slots=True)
class Look:
    """What was measured at one moment: `at` in seconds since the page was open, memory in MB."""

    at: float
    heap: float
    nodes: int
    listeners: int
    service: float
    updates: int


@asynccontextmanager
async def service(accounts: int) -> AsyncIterator[tuple[str, psutil.Process]]:
    """The serving process, and the address of its page."""
    with tempfile.TemporaryDirectory(prefix="exchange-service-benchmark-") as folder:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.console_service", folder, str(accounts)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield (await process.stdout.readline()).decode().strip(), psutil.Process(process.pid)
        finally:
            process.stdin.close()
            await process.wait()


async def _heap(session: CDPSession) -> dict[str, float]:
    """What the page holds after a collection: the least of three, because an event may come between."""
    found = []
    for _ in range(3):
        await session.send("HeapProfiler.collectGarbage")
        answer: dict[str, Any] = await session.send("Performance.getMetrics")
        found.append({entry["name"]: entry["value"] for entry in answer["metrics"]})
    return min(found, key=lambda metrics: metrics["JSHeapUsedSize"])


async def _look(session: CDPSession, page: Any, process: psutil.Process, began: float) -> Look:
    metrics = await _heap(session)
    return Look(
        time.monotonic() - began,
        metrics["JSHeapUsedSize"] / _MB,
        int(metrics["Nodes"]),
        int(metrics["JSEventListeners"]),
        process.memory_full_info().uss / _MB,
        await page.evaluate("window.updates"),
    )


async def measure(minutes: float, accounts: int) -> list[Look]:
    """A look every ten seconds."""
    looks = []
    async with service(accounts) as (url, process), chromium() as browser:
        page = await browser.new_page()
        await page.goto(url)
        await page.wait_for_url("**/accounts*")
        await page.evaluate(_COUNT_UPDATES)
        session = await page.context.new_cdp_session(page)
        await session.send("Performance.enable")
        began = time.monotonic()
        while (passed := time.monotonic() - began) < minutes * 60:
            looks.append(await _look(session, page, process, began))
            _print(looks[-1])
            await asyncio.sleep(max(0.0, _LOOK_EVERY - (time.monotonic() - began - passed)))
        looks.append(await _look(session, page, process, began))
        _print(looks[-1])
    return looks


# Counts how often something on the page has changed, to show that it was alive.
_COUNT_UPDATES = """() => {
  window.updates = 0;
  new MutationObserver(() => { window.updates += 1; }).observe(document.body, {childList: true, subtree: true});
}"""


def slope(looks: list[Look], value: Callable[[Look], float]) -> float:
    """By how much a figure rises a minute, after the first minute."""
    later = [look for look in looks if look.at >= min(_FILLING, looks[-1].at / 2)]
    return 60 * linear_regression([look.at for look in later], [value(look) for look in later]).slope


def _print(look: Look) -> None:
    sys.stdout.write(
        f"{look.at:5.0f} s   heap {look.heap:7.3f} MB   nodes {look.nodes:6}   listeners {look.listeners:5}   "
        f"service {look.service:7.2f} MB   {look.updates} updates\n"
    )
    sys.stdout.flush()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.console_page", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--accounts", type=int, default=20)
    options = parser.parse_args()
    looks = asyncio.run(measure(options.minutes, options.accounts))
    sys.stdout.write(
        f"slopes a minute: heap {slope(looks, lambda look: look.heap):+.3f} MB, "
        f"service {slope(looks, lambda look: look.service):+.3f} MB, "
        f"nodes {slope(looks, lambda look: look.nodes):+.1f}\n"
    )


if __name__ == "__main__":
    main()
