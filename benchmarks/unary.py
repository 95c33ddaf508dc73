"""Warm calls with authentication and quotas on, against no-op servers that return the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import redis

from benchmarks.engines import NATIVE
from benchmarks.lines import Line, compared, repeated
from benchmarks.load import MANY, ONE, Measured, Shape, Target, load
from benchmarks.names import EXCHANGE, SERVICE, user
from benchmarks.serving import AIO, Ceiling, Serving, bed, ceilings, reply_file, running_ceiling, serving
from exchange_service.v1.exchange_service_pb2 import (
    GetBalanceRequest,
    ListExchangesRequest,
    ListExchangesResponse,
)
from tests.servers import RedisServer

ROUNDS = 5
# Seconds of load for one figure: short enough that all sides of a round meet the same machine.
_SECONDS = 0.8
_WARM_UP = 0.4
# The balances are fetched once and then only read.
_CACHED = {"max_age": "3600", "stale_grace": "7200"}
_LABELS = {ONE: "c=1", MANY: "c=64"}
# By the figure and the ceiling, the least ratio; `p99` is the most.
_GRPCIO_GOALS = {("c=1", AIO): 0.90, ("c=64", AIO): 0.90}
_LIST_GOALS = {("c=64", AIO): 4.0}
_BALANCE_GOALS = {("c=64", AIO): 5.0, ("c=64", NATIVE): 0.5, ("c=1 p99", AIO): 1.0}
# Microseconds of processor for a call at c=64.
_BALANCE_COST, _REDIS_COST = 70.0, 200.0
_REDIS_P50 = 1.5


@dataclass(frozen=True, slots=True)
class Side:
    """A server that is loaded, and what it is asked."""

    process: Serving | Ceiling
    target: Target


@dataclass(frozen=True, slots=True)
class Sample:
    """What one server did, and the microseconds of processor that a call took: a busy machine changes these less than
    the rate."""

    measured: Measured
    cost: float


# One measurement of each side, by its name, one after the other.
Round = Mapping[str, Sample]
_OURS = "ours"
# The server that only reads from Redis.
_READING = "reading"


async def list_exchanges(engine: str) -> list[Line]:
    """Warm ListExchanges of the whole catalogue, and the answer that it has not changed."""
    data = ListExchangesRequest().SerializeToString()
    async with bed() as made, serving(made, engine=engine, **_CACHED) as service:
        reply = await _answer(service, "ListExchanges", data)
        target = target_of(service, "ListExchanges", data, len(reply))
        async with ceilings(made.folder, reply, await service.runtime(), engine) as bare:
            sides = _sides(service, target, bare)
            rounds = {shape: await _rounds(sides, shape) for shape in (ONE, MANY)}
        unchanged = await _unchanged(service, reply)
        await _still_answers(service, "ListExchanges", target, reply)
    what = f"warm ListExchanges, {len(reply) / 1e3:.0f} kB"
    goals = _LIST_GOALS if engine == NATIVE else _GRPCIO_GOALS
    return [*_lines("list_exchanges", what, rounds, goals), unchanged]


async def _unchanged(service: Serving, reply: bytes) -> Line:
    """The answer to a caller that has the catalogue, against a balance."""
    etag = ListExchangesResponse.FromString(reply).etag
    data = ListExchangesRequest(etag=etag).SerializeToString()
    short = await _answer(service, "ListExchanges", data)
    if len(short) * 10 > len(reply):
        raise RuntimeError(f"a catalogue that has not changed is answered with {len(short)} bytes")
    balance, _ = await _balance_target(service)
    target = target_of(service, "ListExchanges", data, len(short))
    rounds = await _rounds({_OURS: Side(service, target), "balance": Side(service, balance)}, MANY)
    what = f"unchanged ListExchanges, {len(short)} B, c=64, against GetBalance"
    return compared("list_exchanges/unchanged", what, "calls/s", _rates(rounds, "balance"), at_least=1.0)


async def balance_in_process(engine: str) -> list[Line]:
    """Warm GetBalance, from the memory of the process."""
    async with bed() as made, serving(made, engine=engine, **_CACHED) as service:
        target, reply = await _balance_target(service)
        async with ceilings(made.folder, reply, await service.runtime(), engine) as bare:
            sides = _sides(service, target, bare)
            rounds = {shape: await _rounds(sides, shape) for shape in (ONE, MANY)}
        await _still_answers(service, "GetBalance", target, reply)
    name, what = "balance_in_process", f"warm GetBalance, in-process hit, {len(reply) / 1e3:.1f} kB"
    goals = _BALANCE_GOALS if engine == NATIVE else _GRPCIO_GOALS
    return [*_lines(name, what, rounds, goals), _cost_line(name, what, rounds[MANY], _BALANCE_COST)]


async def balance_redis(engine: str) -> list[Line]:
    """Warm GetBalance whose value is read from Redis at every call, against the in-process hit for one caller, and
    against the no-op servers for many."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(RedisServer())
        made = await stack.enter_async_context(bed())
        options = {"engine": engine, **_CACHED}
        # Local copies are switched off, so each call reads Redis.
        no_copies = {"BENCHMARK_NO_COPIES": "1"}
        service = await stack.enter_async_context(serving(made, venue=no_copies, cache_url=server.url, **options))
        beside = await stack.enter_async_context(serving(made, **options))
        target, reply = await _balance_target(service)
        hit, _ = await _balance_target(beside)
        bare = await stack.enter_async_context(ceilings(made.folder, reply, await service.runtime(), engine))
        client = redis.Redis.from_url(server.url)
        stack.callback(client.close)
        before = _hits(client)
        many = await _rounds(_sides(service, target, bare), MANY)
        if _hits(client) - before < sum(one[_OURS].measured.calls for one in many):
            raise RuntimeError("Redis had fewer hits than the service had calls, so these were not hits in Redis")
        module = "pygrpc_native.aio" if engine == NATIVE else "grpc.aio"
        file, runtime = reply_file(made.folder, reply), (await service.runtime()).as_argument()
        reading = await stack.enter_async_context(
            running_ceiling("redis_read", str(file), runtime, module, str(server.port))
        )
        sides = {**_sides(service, target, {_READING: reading}), "hit": Side(beside, hit)}
        ones = await _rounds(sides, ONE)
        await _still_answers(service, "GetBalance", target, reply)
    name, what = "balance_redis", f"warm GetBalance, Redis hit, {len(reply) / 1e3:.1f} kB"
    against = f"{what}, c=1, p50, against"
    return [
        compared(f"{name}/c=1 p50", f"{against} the in-process hit", "ms", _medians(ones, "hit"), at_most=_REDIS_P50),
        compared(f"{name}/c=1 p50 {_READING}", f"{against} a server that reads it", "ms", _medians(ones, _READING)),
        *_lines(name, what, {MANY: many}, {}),
        _cost_line(name, what, many, _REDIS_COST),
    ]


def _medians(rounds: Sequence[Round], other: str) -> list[tuple[float, float]]:
    return [(one[_OURS].measured.p50, one[other].measured.p50) for one in rounds]


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


def _sides(service: Serving, target: Target, bare: Mapping[str, Ceiling]) -> dict[str, Side]:
    """Ours and the ceilings, with the same request."""
    same = {
        name: Side(process, Target(process.port, target.path, target.requests, target.metadata, target.reply_size))
        for name, process in bare.items()
    }
    return {_OURS: Side(service, target), **same}


async def _rounds(sides: Mapping[str, Side], shape: Shape) -> list[Round]:
    """Measure all sides in turn, after a warm-up of each."""
    for side in sides.values():
        await load(side.target, shape, _WARM_UP)
    return [{name: await _sample(side, shape) for name, side in sides.items()} for _ in range(ROUNDS)]


async def _sample(side: Side, shape: Shape) -> Sample:
    before = side.process.processor()
    measured = await load(side.target, shape, _SECONDS)
    return Sample(measured, (side.process.processor() - before) / measured.calls * 1e6)


def _rates(rounds: Sequence[Round], other: str) -> list[tuple[float, float]]:
    return [(one[_OURS].measured.rate, one[other].measured.rate) for one in rounds]


def _lines(
    name: str, what: str, rounds: Mapping[Shape, Sequence[Round]], goals: Mapping[tuple[str, str], float]
) -> list[Line]:
    """Rates, p99 and, for many callers, processor, against each ceiling."""
    lines = []
    for shape, measured in rounds.items():
        for ceiling in (name for name in measured[0] if name != _OURS):
            label = _LABELS[shape]
            key, text, against = f"{name}/{label} against {ceiling}", f"{what}, {label}", f"against {ceiling}"
            slowest = [(one[_OURS].measured.p99, one[ceiling].measured.p99) for one in measured]
            costs = [(one[_OURS].cost, one[ceiling].cost) for one in measured]
            rate, p99 = goals.get((label, ceiling)), goals.get((f"{label} p99", ceiling))
            lines += [
                compared(key, f"{text}, {against}", "calls/s", _rates(measured, ceiling), at_least=rate),
                compared(f"{key} p99", f"{text}, p99, {against}", "ms", slowest, at_most=p99),
            ]
            if shape == MANY:
                lines.append(compared(f"{key} processor", f"{text}, processor, {against}", "µs a call", costs))
    return lines


def _cost_line(name: str, what: str, many: Sequence[Round], at_most: float) -> Line:
    costs = [one[_OURS].cost for one in many]
    return repeated(f"{name}/processor", f"{what}, c=64, processor", "µs a call", costs, at_most)
