"""Warm calls with authentication and quotas on, against a no-op server that returns the same bytes."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

import redis

from benchmarks.lines import Line, compared
from benchmarks.load import MANY, ONE, Measured, Shape, Target, load
from benchmarks.names import EXCHANGE, SERVICE, user
from benchmarks.serving import Ceiling, Serving, bed, ceiling, serving
from exchange_service.v1.exchange_service_pb2 import GetBalanceRequest, ListExchangesRequest
from tests.servers import RedisServer

PAIRS = 5
# Seconds of load for one figure: short enough that both sides of a pair meet the same machine.
_SECONDS = 1.2
_WARM_UP = 0.4
# The balances are fetched once and then only read.
_CACHED = {"max_age": "3600", "stale_grace": "7200"}


@dataclass(frozen=True, slots=True)
class Pair:
    """Ours and the ceiling's figures, measured one after the other."""

    ours: Measured
    ceiling: Measured
    # Microseconds of processor for a call, on each side: a busy machine changes them less than the rates.
    ours_cost: float
    ceiling_cost: float


async def list_exchanges() -> list[Line]:
    """Warm ListExchanges of the whole catalogue."""
    async with bed() as made, serving(made) as service:
        reply = await _answer(service, "ListExchanges", ListExchangesRequest().SerializeToString())
        target = target_of(service, "ListExchanges", ListExchangesRequest().SerializeToString(), len(reply))
        what = f"warm ListExchanges, {len(reply) / 1e3:.0f} kB"
        async with ceiling(made.folder, reply, await service.runtime()) as bare:
            ones, many = await _pairs(service, target, bare, ONE), await _pairs(service, target, bare, MANY)
        await _still_answers(service, "ListExchanges", target, reply)
    return _lines("list_exchanges", what, ones, many, rate=0.85, p99=1.5)


async def balance_in_process() -> list[Line]:
    """Warm GetBalance, from the memory of the process."""
    async with bed() as made, serving(made, **_CACHED) as service:
        target, reply = await _balance_target(service)
        what = f"warm GetBalance, in-process hit, {len(reply) / 1e3:.1f} kB"
        async with ceiling(made.folder, reply, await service.runtime()) as bare:
            ones, many = await _pairs(service, target, bare, ONE), await _pairs(service, target, bare, MANY)
        await _still_answers(service, "GetBalance", target, reply)
    return _lines("balance_in_process", what, ones, many, rate=0.85)


async def balance_redis() -> list[Line]:
    """Warm GetBalance whose value is read from Redis at every call, against the no-op, and against the in-process hit
    for one caller."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(RedisServer())
        made = await stack.enter_async_context(bed())
        # Local copies are switched off, so each call reads Redis.
        no_copies = {"BENCHMARK_NO_COPIES": "1"}
        service = await stack.enter_async_context(serving(made, venue=no_copies, cache_url=server.url, **_CACHED))
        beside = await stack.enter_async_context(serving(made, **_CACHED))
        target, reply = await _balance_target(service)
        hit, _ = await _balance_target(beside)
        bare = await stack.enter_async_context(ceiling(made.folder, reply, await service.runtime()))
        client = redis.Redis.from_url(server.url)
        stack.callback(client.close)
        before = _hits(client)
        many = await _pairs(service, target, bare, MANY)
        hits = _hits(client) - before
        if hits < sum(pair.ours.calls for pair in many):
            raise RuntimeError("Redis had fewer hits than the service had calls, so these were not hits in Redis")
        ones = await _pairs(service, target, beside, ONE, other=hit)
        await _still_answers(service, "GetBalance", target, reply)
    what = f"warm GetBalance, Redis hit, {len(reply) / 1e3:.1f} kB"
    return [
        compared(
            "balance_redis/c64",
            f"{what}, c=64",
            "calls/s",
            [(p.ours.rate, p.ceiling.rate) for p in many],
            at_least=0.45,
        ),
        compared("balance_redis/c64 p99", f"{what}, c=64, p99", "ms", [(p.ours.p99, p.ceiling.p99) for p in many]),
        compared(
            "balance_redis/c1 p50",
            f"{what}, c=1, p50, against the in-process hit",
            "ms",
            [(p.ours.p50, p.ceiling.p50) for p in ones],
            at_most=2.0,
        ),
    ]


def _hits(client: redis.Redis) -> int:
    return int(client.info("stats")["keyspace_hits"])


async def _balance_target(service: Serving) -> tuple[Target, bytes]:
    data = GetBalanceRequest(user_id=user(0), exchange_id=EXCHANGE).SerializeToString()
    # The first one asks the venue.
    await _answer(service, "GetBalance", data)
    reply = await _answer(service, "GetBalance", data)
    # Its age is a few bytes more or less.
    return target_of(service, "GetBalance", data, len(reply) - 8), reply


def target_of(service: Serving, method: str, request: bytes, reply_size: int) -> Target:
    """A method of the service, called with everything that a call needs."""
    return Target(service.port, SERVICE + method, (request,), service.bed.metadata, reply_size)


async def _answer(service: Serving, method: str, request: bytes) -> bytes:
    """The reply's bytes, to a real client; an error is raised."""
    async with service.client() as client:
        call = client.channel.unary_unary(SERVICE + method)
        reply: bytes = await call(request, metadata=service.bed.metadata, timeout=10)
        return reply


async def _still_answers(service: Serving, method: str, target: Target, reply: bytes) -> None:
    """After the load a real client gets the same answer as before."""
    again = await _answer(service, method, target.requests[0])
    if abs(len(again) - len(reply)) > 8:
        raise RuntimeError(f"{method} answers with {len(again)} bytes after the load, and with {len(reply)} before")


async def _pairs(
    service: Serving, target: Target, bare: Serving | Ceiling, shape: Shape, *, other: Target | None = None
) -> list[Pair]:
    """Measure ours and the other server alternately, after a warm-up of each."""
    beside = other or Target(bare.port, target.path, target.requests, target.metadata, target.reply_size)
    for side in (target, beside):
        await load(side, shape, _WARM_UP)
    pairs = []
    for _ in range(PAIRS):
        ours, ours_cost = await _load_with_cost(service, target, shape)
        unavoidable, ceiling_cost = await _load_with_cost(bare, beside, shape)
        pairs.append(Pair(ours, unavoidable, ours_cost, ceiling_cost))
    return pairs


async def _load_with_cost(process: Serving | Ceiling, target: Target, shape: Shape) -> tuple[Measured, float]:
    before = process.processor()
    measured = await load(target, shape, _SECONDS)
    return measured, (process.processor() - before) / measured.calls * 1e6


def _lines(
    name: str, what: str, ones: list[Pair], many: list[Pair], *, rate: float, p99: float | None = None
) -> list[Line]:
    lines = []
    for label, callers, pairs in (("c1", "c=1", ones), ("c64", "c=64", many)):
        rates = [(pair.ours.rate, pair.ceiling.rate) for pair in pairs]
        slowest = [(pair.ours.p99, pair.ceiling.p99) for pair in pairs]
        lines.append(compared(f"{name}/{label}", f"{what}, {callers}", "calls/s", rates, at_least=rate))
        lines.append(compared(f"{name}/{label} p99", f"{what}, {callers}, p99", "ms", slowest, at_most=p99))
    costs = [(pair.ours_cost, pair.ceiling_cost) for pair in many]
    lines.append(compared(f"{name}/c64 processor", f"{what}, c=64, processor", "µs a call", costs))
    return lines
