"""The benchmarks' own venue: a plugin like any other, which answers from memory.

Every balance differs from the one before; with BENCHMARK_VENUE_MOVES only while a file of that name exists. With
BENCHMARK_VENUE_FAULT it fails while a file of that name exists, in the way that its text names. With
BENCHMARK_VENUE_LOG each fetch appends a line to that file, which the processes of several replicas share. The balance
of the user `probe` reports the state of the serving process in a note; with BENCHMARK_LOOP_STALLS also how late its
event loop was.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import sys
import time
from collections import Counter
from decimal import Decimal

from exchange_service.plugin_api import (
    AssetBalance,
    Balance,
    Environment,
    ExchangeMetadata,
    Manifest,
    VenueAccount,
    VenueCall,
    VenueMalformed,
    VenueRateLimited,
    VenueUnavailable,
    hookimpl,
)

# As many rows as make a balance of about 1.5 kB.
_ROWS = 26
_count = itertools.count(1)
_log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if (path := os.environ.get("BENCHMARK_VENUE_LOG")) else -1
_moves = os.environ.get("BENCHMARK_VENUE_MOVES", "")
_fault = os.environ.get("BENCHMARK_VENUE_FAULT", "")
# Seconds that the venue takes for an answer.
_delay = float(os.environ.get("BENCHMARK_VENUE_SECONDS", "0"))
# Seconds between two ticks of the loop, and how late each was since the last report.
_TICK = 0.002
_late: list[float] = []
_watching: list[asyncio.Task[None]] = []
_still = tuple(
    AssetBalance(f"COIN{number:02}", total=Decimal("12.34567800"), free=Decimal("11.34567800"), used=Decimal("1"))
    for number in range(1, _ROWS)
)


if "BENCHMARK_NO_COPIES" in os.environ:
    # A warm call then finds its balance in Redis, and not in the process; callers of one account share no read, as if
    # each had an account of its own; and the bytes are new to the process, as if another replica had just written them.
    from exchange_service.balances.cached import CachedBalances
    from exchange_service.balances.service import BalanceQuery, BalanceReader, BalanceResult

    _ready = BalanceReader.ready

    def _ready_after_a_look(
        self: BalanceReader, query: BalanceQuery, *, has_looked: bool = False
    ) -> BalanceResult | None:
        return _ready(self, query, has_looked=True) if has_looked else None

    BalanceReader.ready = _ready_after_a_look  # type: ignore[method-assign]
    CachedBalances.look = lambda self, key, account: asyncio.ensure_future(self.read(key, account))  # type: ignore[method-assign]
    CachedBalances.last_good = lambda self, key: None  # type: ignore[method-assign]


@hookimpl
def exchange_manifest() -> Manifest:
    listing = ExchangeMetadata(
        id="benchmark",
        name="Benchmark",
        asset_class="Crypto",
        asset_types="Crypto Spot",
        market_hours="24/7 Trading",
        environments=(Environment("production", {"api": "https://guest.example"}),),
    )
    return Manifest(api_version=1, exchanges=(listing,))


@hookimpl
async def refresh_manifest() -> None:
    """There is no newer manifest. The service calls this once it listens, so the watch of its loop begins here."""
    if "BENCHMARK_LOOP_STALLS" in os.environ:
        _watching.append(asyncio.create_task(_watch(), name="loop stalls"))


async def _watch() -> None:
    while True:
        wanted = time.perf_counter() + _TICK
        await asyncio.sleep(_TICK)
        _late.append(max(0.0, time.perf_counter() - wanted))


@hookimpl
async def fetch_balance(call: VenueCall) -> Balance:
    if call.account.user_id == "probe":
        return Balance((_account(Decimal(1)),), notes=(json.dumps(_process()),))
    if _log >= 0:
        os.write(_log, f"{call.account.user_id} {os.getpid()} {time.time()}\n".encode())
    if _delay:
        await asyncio.sleep(_delay)
    if _fault:
        await _fail()
    moving = not _moves or os.path.exists(_moves)  # noqa: ASYNC240
    return Balance((_account(Decimal(next(_count) if moving else 0)),))


async def _fail() -> None:
    """Fail as the file says, if it exists: a venue's error, a slow answer, or a broken plugin."""
    try:
        with open(_fault) as file:  # noqa: ASYNC230
            kind = file.read()
    except FileNotFoundError:
        return
    if kind == "unavailable":
        raise VenueUnavailable("The venue is down.")
    if kind == "limited":
        raise VenueRateLimited("The venue limits us.", retry_after=2.0)
    if kind == "malformed":
        raise VenueMalformed("The venue answered with something else.")
    if kind == "broken":
        raise RuntimeError("The plugin is broken.")
    # Seconds.
    await asyncio.sleep(float(kind))


def _account(moving: Decimal) -> VenueAccount:
    first = AssetBalance("MOVING", total=moving, free=moving, used=Decimal(0))
    return VenueAccount(id="1", type="spot", assets=(first, *_still))


def _process() -> dict[str, object]:
    """The state of this process: what a ceiling must have too, and what is imported."""
    late = sorted(_late)
    _late.clear()
    loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    return {
        "loop": loop,
        "thresholds": gc.get_threshold(),
        "frozen": gc.get_freeze_count() > 0,
        "ccxt": "ccxt" in sys.modules,
        "native": "pygrpc_native" in sys.modules,
        "tasks": Counter(getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()),
        # Milliseconds; 0 without the watch.
        "stall_worst": late[-1] * 1e3 if late else 0.0,
        "stall_p999": late[len(late) * 999 // 1000] * 1e3 if late else 0.0,
    }
