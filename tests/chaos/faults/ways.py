"""What is done to the way between the replicas and a server: each lasts while its block does.

Each takes the proxies on that way: those of Redis or of PostgreSQL, of all replicas or of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

from tests.chaos.proxy import Proxy, Weather

if TYPE_CHECKING:
    from tests.chaos.rig import Rig

Way = Callable[[Sequence[Proxy]], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def repeated(
    step: Callable[[], Awaitable[None]], seconds: float, *, despite: tuple[type[Exception], ...] = ()
) -> AsyncIterator[None]:
    """That step again and again, with a pause of so many seconds after each. The errors `despite` do not end it."""
    over = False

    async def repeat() -> None:
        # Not by its cancellation alone: Python 3.11's `wait_for`, by which redis-py writes, may pass over it.
        while not over:
            with suppress(*despite):
                await step()
            await asyncio.sleep(seconds)

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        over = True
        task.cancel()
        await asyncio.wait({task})


def in_weather(weather: Weather) -> Way:
    """The way with that weather on it."""

    @asynccontextmanager
    async def way(proxies: Sequence[Proxy]) -> AsyncIterator[None]:
        with ExitStack() as stack:
            for proxy in proxies:
                stack.enter_context(proxy.within(weather))
            yield

    return way


@asynccontextmanager
async def refused(proxies: Sequence[Proxy]) -> AsyncIterator[None]:
    """Connections end, and new ones are refused."""
    for proxy in proxies:
        await proxy.refuse()
    try:
        yield
    finally:
        for proxy in proxies:
            await proxy.accept()


@asynccontextmanager
async def half_open(proxies: Sequence[Proxy]) -> AsyncIterator[None]:
    """The peers of the present connections vanish without a word; new connections work."""
    for proxy in proxies:
        proxy.vanish()
    yield


def reset(seconds: float, *, subscribers_only: bool = False) -> Way:
    """All connections, or those that wait for Redis's messages, are reset with such pauses; new ones are served in
    between."""

    @asynccontextmanager
    async def way(proxies: Sequence[Proxy]) -> AsyncIterator[None]:
        async def step() -> None:
            for proxy in proxies:
                proxy.reset(subscribers_only=subscribers_only)

        async with repeated(step, seconds):
            yield

    return way


@asynccontextmanager
async def restarted_without(rig: Rig, proxies: Sequence[Proxy]) -> AsyncIterator[None]:
    """The first replica is restarted while the server is away from it. `proxies` are those of all replicas."""
    async with refused(proxies[:1]):
        await rig.restart_replica(0)
        yield
