"""Every benchmark by its name, with the hot path that it guards, in the order of the table.

A new one is a function that takes the engine and returns lines whose names begin with the benchmark's and a slash, and
an entry here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.ccxt_account import ccxt_balance
from benchmarks.dense import dense
from benchmarks.growth import growth
from benchmarks.hop import hop
from benchmarks.lines import Line
from benchmarks.loop_stall import loop_stall, loop_stall_in_process
from benchmarks.memory import memory
from benchmarks.pushes import DEFAULT_SECONDS as PUSHES_SECONDS
from benchmarks.pushes import pushes, pushes_killed
from benchmarks.replicas import DEFAULT_SECONDS as REPLICAS_SECONDS
from benchmarks.replicas import replicas
from benchmarks.road_not_taken import road_not_taken
from benchmarks.starting import first_list, start
from benchmarks.streaming import DEFAULT_SECONDS, storm, streams
from benchmarks.unary import balance_in_process, balance_redis, list_exchanges
from benchmarks.venue_calls import venue_calls

# Seconds after which a benchmark counts as failed.
_LIMIT, _LONG = 240.0, 1800.0


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`guards` is the hot path whose slowdown the figures show; `run` takes the engine."""

    name: str
    guards: str
    run: Callable[[str], Awaitable[list[Line]]]
    # Whether `make bench` runs it; otherwise it is run by its name.
    by_default: bool = True
    # Whether it runs once for each engine; otherwise once, with an empty name.
    by_engine: bool = True
    # Seconds.
    limit: float = _LIMIT

    def engines(self, wanted: Sequence[str]) -> Sequence[str]:
        """The engines of `wanted` that it runs on."""
        return wanted if self.by_engine else ("",)


def benchmarks(seconds: float | None = None) -> Sequence[Benchmark]:
    """The suite; `seconds` is how long streams, pushes and replicas are watched (default: a time of their own)."""
    return (*_of_goals(seconds), *_by_name(seconds))


def _of_goals(seconds: float | None) -> Sequence[Benchmark]:
    """Those that `make bench` runs: each goal is measured by one of them."""
    pushing = partial(pushes, seconds or PUSHES_SECONDS)
    return (
        Benchmark("list_exchanges", "warm ListExchanges: authentication, quota, serialized catalogue", list_exchanges),
        Benchmark("balance_in_process", "warm GetBalance: authentication, quota, cached bytes", balance_in_process),
        Benchmark("balance_redis", "warm GetBalance whose bytes come from Redis", balance_redis),
        Benchmark("first_list", "the first catalogue, and the loop while it is rebuilt", first_list),
        Benchmark("start", "imports and joining at the start", start),
        Benchmark("streams", "a feed's update to 10,000 subscribers", partial(streams, seconds or DEFAULT_SECONDS)),
        Benchmark("storm", "5,000 streams that are opened at once", storm),
        Benchmark("pushes", "a venue's push to its subscriber", pushing),
        Benchmark("venue_calls", "one refresh an account and interval", venue_calls),
        Benchmark("loop_stall", "the service's loop while CCXT imports and parses in its own process", loop_stall),
        Benchmark("dense", "the service's loop while a venue answers 1 MiB of dense JSON", dense),
        Benchmark("hop", "a call's way to a plugin's process and back", hop),
    )


def _by_name(seconds: float | None) -> Sequence[Benchmark]:
    """Those that take long, or have no goal of their own."""
    watching = partial(replicas, seconds or REPLICAS_SECONDS)
    killing = partial(pushes_killed, seconds or PUSHES_SECONDS)
    once = partial(Benchmark, by_default=False, by_engine=False, limit=_LONG)
    each = partial(Benchmark, by_default=False, limit=_LONG)
    return (
        each("memory", "what the serving process imports, without CCXT", memory),
        each("loop_stall_in_process", "the same loop with CCXT in its process", loop_stall_in_process),
        once("ccxt_balance", "one CCXT balance with a reused instance, one more account", ccxt_balance),
        once("road_not_taken", "a CCXT balance, compared with a new instance for each request", road_not_taken),
        each("replicas", "one refresh an account and interval, with one of three killed", watching),
        each("pushes_killed", "pushes with three replicas, of which one is killed", killing),
        once("growth", "how figures grow with callers, subscribers and accounts", growth),
    )
