"""How often the venue is asked: once an account and interval, however many callers there are."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

from benchmarks.lines import Line
from benchmarks.load import MANY, Target, load
from benchmarks.names import EXCHANGE, SERVICE, user
from benchmarks.serving import Bed, Serving, bed, serving
from benchmarks.subscribers import subscribed
from exchange_service.client import ExchangeServiceClient
from exchange_service.v1.exchange_service_pb2 import GetBalanceRequest
from tests.servers import RedisServer

_INTERVAL = 1.0
_SECONDS = 6.0
_SETTINGS = {"poll_interval": "1", "poll_interval_still": "1", "max_age": "1"}
_CALLERS = MANY.callers
# At each replica, a few calls a second each. With more, three processes on two cores find Redis slow and go on alone,
# which is another case.
_PACED, _PAUSE = 8, 0.05
_SUBSCRIBERS = 50
_REPLICAS = 3
_FORCING = 64


async def venue_calls(engine: str) -> list[Line]:
    """Calls of one account in an interval, by callers, with subscribers, and over replicas; and forced ones at once."""
    settings = {"engine": engine, **_SETTINGS}
    async with bed() as made:
        async with serving(made, **settings) as service:
            alone = await _calls(made, [service], subscribers=0)
            streamed = await _calls(made, [service], subscribers=_SUBSCRIBERS)
        async with AsyncExitStack() as stack:
            server = stack.enter_context(RedisServer())
            replicas = [
                await stack.enter_async_context(serving(made, cache_url=server.url, **settings))
                for _ in range(_REPLICAS)
            ]
            shared = await _calls(made, replicas, subscribers=_SUBSCRIBERS)
        forced = await _forced(made, engine)
    return [
        counted("callers", f"{_CALLERS} callers", alone),
        counted("subscribers", f"{_CALLERS} callers and {_SUBSCRIBERS} subscribers", streamed),
        counted(
            "replicas",
            f"{_PACED} callers and {_SUBSCRIBERS} subscribers at each of {_REPLICAS} replicas",
            shared,
        ),
        Line(
            "venue_calls/forced", f"venue calls of {_FORCING} refreshes forced at once", forced, 1, "", "1", forced == 1
        ),
    ]


def counted(name: str, what: str, calls: int) -> Line:
    """The goal of one call an interval. One more is met, as it begins the first one; and one fewer, as the last one may
    end after the count."""
    intervals = _SECONDS / _INTERVAL
    met = intervals - 1 <= calls <= intervals + 1
    return Line(
        f"venue_calls/{name}", f"venue calls in {intervals:g} intervals: {what}", calls, intervals, "", "1 each", met
    )


async def _calls(made: Bed, replicas: Sequence[Serving], *, subscribers: int) -> int:
    """How often the venue was asked while all callers read the same account."""
    async with AsyncExitStack() as stack:
        for replica in replicas:
            if subscribers:
                work = {"first": 0, "accounts": 1, "each": subscribers, "gap": 0.0}
                await stack.enter_async_context(subscribed(replica.port, made.metadata, **work))
        callers = [_as_fast_as_it_goes(replicas[0])] if len(replicas) == 1 else [_paced(one) for one in replicas]
        before = made.venue_calls()
        await asyncio.gather(*callers)
        return made.venue_calls() - before


async def _as_fast_as_it_goes(service: Serving) -> None:
    request = GetBalanceRequest(user_id=user(0), exchange_id=EXCHANGE).SerializeToString()
    await load(Target(service.port, f"{SERVICE}GetBalance", (request,), service.bed.metadata, 1000), MANY, _SECONDS)


async def _paced(service: Serving) -> None:
    async with service.client() as client:
        ends = asyncio.get_running_loop().time() + _SECONDS

        async def call() -> None:
            while asyncio.get_running_loop().time() < ends:
                await client.get_balance(user(0), EXCHANGE)
                await asyncio.sleep(_PAUSE)

        await asyncio.gather(*(call() for _ in range(_PACED)))


async def _forced(made: Bed, engine: str) -> int:
    """How often the venue, which takes a moment, is asked by callers who all force a refresh at the same time."""
    slow = {"BENCHMARK_VENUE_SECONDS": "0.5"}
    async with serving(made, venue=slow, engine=engine) as service, service.client() as client:
        await client.get_balance(user(0), EXCHANGE)
        before = made.venue_calls()
        await asyncio.gather(*(_force(client) for _ in range(_FORCING)))
        return made.venue_calls() - before


async def _force(client: ExchangeServiceClient) -> None:
    await client.get_balance(user(0), EXCHANGE, max_age=0)
