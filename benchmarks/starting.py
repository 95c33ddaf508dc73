"""What a start costs, and the first answer after it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from exchange_service_ccxt_generic.catalogue import shipped

from benchmarks.lines import Line, repeated
from benchmarks.names import SERVICE
from benchmarks.serving import Bed, Serving, bed, serving
from exchange_service.client import ExchangeServiceClient

_STARTS = 5
_HEALTH = "/grpc.health.v1.Health/Check"
# HealthCheckResponse with status SERVING.
_SERVING = b"\x08\x01"
_REBUILD_LIMIT = 60.0


async def start(engine: str) -> list[Line]:
    """From the process's beginning to SERVING, and what it holds in memory then."""
    seconds, bytes_held = [], []
    async with bed() as made:
        # The first start compiles what has changed.
        async with serving(made, engine=engine):
            pass
        for _ in range(_STARTS):
            async with serving(made, engine=engine) as service, _channel(service) as channel:
                if await channel.unary_unary(_HEALTH)(b"") != _SERVING:
                    raise RuntimeError("the service says that it does not serve")
                seconds.append(service.seconds)
                bytes_held.append(service.memory())
    return [
        repeated("start/seconds", "start to SERVING, compiled", "s", seconds, 0.9),
        repeated("start/memory", "memory at SERVING", "MB", [held / 1e6 for held in bytes_held], 110),
    ]


async def first_list(engine: str) -> list[Line]:
    """The first ListExchanges of a process, and the stalls of its loop while CCXT's listings are rebuilt."""
    milliseconds, imported = [], False
    async with bed() as made:
        for _ in range(_STARTS):
            async with serving(made, engine=engine) as service, _channel(service) as channel:
                # The connection is open before the measurement; the catalogue has not been read.
                await channel.unary_unary(_HEALTH)(b"")
                began = time.perf_counter()
                await channel.unary_unary(f"{SERVICE}ListExchanges")(b"", metadata=made.metadata)
                milliseconds.append((time.perf_counter() - began) * 1e3)
                imported |= bool((await service.process())["ccxt"])
        _pretend_that_ccxt_is_newer(made)
        stalls = [await _worst_stall_of_a_rebuild(made, engine) for _ in range(_STARTS)]
    return [
        repeated("first_list/ms", "first ListExchanges after listening", "ms", milliseconds, 10),
        Line("first_list/ccxt", "CCXT imported by then", float(imported), 0.0, "", "no", not imported),
        repeated("first_list/stall", "worst stall of the loop while the snapshot is rebuilt", "ms", stalls, 10),
    ]


def _pretend_that_ccxt_is_newer(made: Bed) -> None:
    """From then on each start reads the listings of the installed CCXT in a child process."""
    seeming = made.folder / "ccxt-99.dist-info"
    seeming.mkdir()
    (seeming / "METADATA").write_text("Metadata-Version: 2.1\nName: ccxt\nVersion: 99\n")


async def _worst_stall_of_a_rebuild(made: Bed, engine: str) -> float:
    """In milliseconds. Raises RuntimeError if there was no rebuild to see."""
    stalls = {"BENCHMARK_LOOP_STALLS": "1"}
    async with serving(made, venue=stalls, engine=engine) as service, service.client() as client:
        if not await _lists_the_shipped_snapshot(client):
            raise RuntimeError("the catalogue was not the shipped one at first, so no rebuild was measured")
        async with asyncio.timeout(_REBUILD_LIMIT):
            # Only the catalogue itself shows that it is a new one.
            while await _lists_the_shipped_snapshot(client):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        # The cost of merging shows in the next answer.
        return float((await service.process())["stall_worst"])


async def _lists_the_shipped_snapshot(client: ExchangeServiceClient) -> bool:
    """Whether the catalogue says that its listings come from the snapshot in the plugin."""
    said = f"are of CCXT {shipped().ccxt_version}"
    return any(said in problem.reason for problem in (await client.list_exchanges()).problems)


@asynccontextmanager
async def _channel(service: Serving) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(service.address) as channel:
        await channel.channel_ready()
        yield channel
