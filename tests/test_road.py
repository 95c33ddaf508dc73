"""The road of a cold GetBalance: which files stand between the servicer and the plugin's hook, each entered once."""

from __future__ import annotations

import gc
import inspect
import sys
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import exchange_service
from exchange_service.plugin_api import Balance, VenueCall
from tests.harness import ScriptedPlugin, holding, registry_of, serving

PACKAGE = Path(exchange_service.__file__).parent

# From the servicer to the plugin. docs/architecture.md tells the same walk in words.
ROAD = [
    "grpc_server/servicer.py",
    "balances/service.py",
    "balances/single_flight.py",
    "balances/leases.py",
    "venue_gate/gate.py",
    "balances/instrumented.py",
    "plugin_host/client.py",
    "venues/sessions.py",
]


def waiting_files(begin: str) -> list[str]:
    """The files of the suspended coroutines that begin in this file and wait for each other, outermost first: of the
    longest chain, because others that begin there renew the lease, or may be left from an earlier test."""
    # gRPC's own coroutines are compiled and do not lead to ours, so ours are looked for among all objects.
    suspended = [
        item for item in gc.get_objects() if inspect.iscoroutine(item) and item.cr_code.co_filename.endswith(begin)
    ]
    return max(map(chain_of, suspended), key=len)


def chain_of(waiting: Any) -> list[str]:
    """The files of this coroutine and of those that it waits for."""
    files: list[str] = []
    while (code := getattr(waiting, "cr_code", None)) is not None:
        files.append(code.co_filename)
        waiting = waiting.cr_await
    return files


def running_files() -> list[str]:
    """The files of the frames that run now, outermost first."""
    files, frame = [], sys._getframe()
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back  # type: ignore[assignment]
    return files[::-1]


def ours(files: list[str]) -> list[str]:
    """Those of the package, relative to it."""
    paths = [Path(file) for file in files]
    return [str(path.relative_to(PACKAGE)) for path in paths if path.is_relative_to(PACKAGE)]


async def test_a_cold_call_enters_at_most_eight_files_each_once(tmp_path: Path) -> None:
    stacks: list[list[str]] = []

    async def record(_: VenueCall) -> Balance:
        """One call is in progress: the caller's task waits for the fetch's, and that for the one that runs here."""
        stacks.extend(ours(waiting_files(begin)) for begin in (ROAD[0], ROAD[3]))
        stacks.append(ours(running_files()))
        return holding(("BTC", "1.50"))

    async with serving(tmp_path, registry=registry_of(ScriptedPlugin(answer=record))) as running:
        await running.store()
        await running.client.get_balance("alice", "fakex")
    assert [file for file, _ in groupby(chain(*stacks))] == ROAD
    assert len(ROAD) <= 8
