"""Every benchmark by its name, with the hot path that it guards, in the order of the table.

A new one is a function that returns lines whose names begin with the benchmark's and a slash, and an entry here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.ccxt_account import ccxt_balance
from benchmarks.growth import growth
from benchmarks.hop import hop
from benchmarks.lines import Line
from benchmarks.loop_stall import loop_stall
from benchmarks.memory import memory
from benchmarks.pushes import DEFAULT_SECONDS as PUSHES_SECONDS
from benchmarks.pushes import pushes
from benchmarks.replicas import DEFAULT_SECONDS as REPLICAS_SECONDS
from benchmarks.replicas import replicas
from benchmarks.road_not_taken import road_not_taken
from benchmarks.starting import first_list, start
from benchmarks.streaming import DEFAULT_SECONDS, storm, streams
from benchmarks.unary import balance_in_process, balance_redis, list_exchanges
from benchmarks.venue_calls import venue_calls


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`guards` is the hot path whose slowdown the figures show."""

    name: str
    guards: str
    run: Callable[[], Awaitable[list[Line]]]
    # Whether `make bench` runs it; otherwise it is run by its name.
    by_default: bool = True


def benchmarks(seconds: float | None = None) -> Sequence[Benchmark]:
    """The suite; `seconds` is how long the streams and the replicas are watched (default: a time of their own)."""
    return (
        Benchmark(
            "list_exchanges",
            "warm ListExchanges: authentication, quota, serialized catalogue",
            list_exchanges,
        ),
        Benchmark(
            "balance_in_process",
            "warm GetBalance: authentication, quota, cached bytes",
            balance_in_process,
        ),
        Benchmark("balance_redis", "warm GetBalance whose bytes come from Redis", balance_redis),
        Benchmark("first_list", "the first catalogue, and the loop while it is rebuilt", first_list),
        Benchmark("start", "imports and joining at the start", start),
        Benchmark("streams", "a feed's update to 10,000 subscribers", partial(streams, seconds or DEFAULT_SECONDS)),
        Benchmark("storm", "5,000 streams that are opened at once", storm),
        Benchmark("venue_calls", "one refresh an account and interval", venue_calls),
        Benchmark("loop_stall", "the service's loop while CCXT imports and parses in its own process", loop_stall),
        Benchmark("hop", "a call's way to a plugin's process and back", hop),
        Benchmark("memory", "what the serving process imports, without CCXT", memory),
        Benchmark("ccxt_balance", "one CCXT balance with a reused instance, one more account", ccxt_balance),
        Benchmark("road_not_taken", "a CCXT balance, compared with a new instance for each request", road_not_taken),
        Benchmark(
            "replicas",
            "one refresh an account and interval over three replicas, with one killed",
            partial(replicas, seconds or REPLICAS_SECONDS),
            by_default=False,
        ),
        Benchmark(
            "pushes",
            "a venue's push to its subscriber, with one replica and with three of which one is killed",
            partial(pushes, seconds or PUSHES_SECONDS),
            by_default=False,
        ),
        Benchmark("growth", "how figures grow with callers, subscribers and accounts", growth, by_default=False),
    )
