"""The credential database away, slow, locked or full."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from tests.chaos.faults import fault
from tests.chaos.faults.ways import Way, half_open, in_weather, refused, repeated, reset, restarted_without
from tests.chaos.proxy import Weather
from tests.chaos.rig import Rig
from tests.harness import until

# Each fault that is one way of the replicas to PostgreSQL, by its name.
_WAYS: dict[str, Way] = {
    "postgres-refuse": refused,
    "postgres-silent": in_weather(Weather(silent=True)),
    # Each answer takes 0.7 s, so that a question with its transaction takes longer than a caller waits.
    "postgres-slow": in_weather(Weather(latency=0.35)),
    "postgres-half-open": half_open,
    "postgres-reset": reset(0.2),
}
# PostgreSQL's own limit, and what two replicas may have of it.
_MOST_CONNECTIONS, _OF_THE_REPLICAS = 100, 24


def _enter(name: str, way: Way) -> None:
    fault(name)(lambda rig: way(rig.postgres_proxies))


for _name, _way in _WAYS.items():
    _enter(_name, _way)
fault("postgres-boot-away")(lambda rig: restarted_without(rig, rig.postgres_proxies))


async def _connect(rig: Rig) -> psycopg.AsyncConnection:
    return await psycopg.AsyncConnection.connect(rig.postgres.url, autocommit=True)


@fault("postgres-freeze")
@asynccontextmanager
async def freeze(rig: Rig) -> AsyncIterator[None]:
    rig.postgres.freeze()
    try:
        yield
    finally:
        rig.postgres.thaw()


@fault("postgres-restart")
@asynccontextmanager
async def restart(rig: Rig) -> AsyncIterator[None]:
    """Stopped, and away for the whole time."""
    await asyncio.to_thread(rig.postgres.stop)
    try:
        yield
    finally:
        await asyncio.to_thread(rig.postgres.start)


@fault("postgres-locked")
@asynccontextmanager
async def locked(rig: Rig) -> AsyncIterator[None]:
    """Another program holds the table."""
    connection = await _connect(rig)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE bot_credentials IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


@fault("postgres-no-connections")
@asynccontextmanager
async def no_connections(rig: Rig) -> AsyncIterator[None]:
    """Others have all its connections, and take each that becomes free; those of the replicas were ended."""
    taken: list[psycopg.AsyncConnection] = []

    async def take() -> None:
        try:
            taken.append(await _connect(rig))
        except psycopg.OperationalError:
            await asyncio.sleep(0.01)

    try:
        async with repeated(take, 0.0), repeated(take, 0.0):
            await until(lambda: len(taken) >= _MOST_CONNECTIONS - _OF_THE_REPLICAS, "the use of the connections")
            for proxy in rig.postgres_proxies:
                proxy.reset()
            yield
    finally:
        for connection in taken:
            await connection.close()


@fault("postgres-cancelled")
@asynccontextmanager
async def cancelled(rig: Rig) -> AsyncIterator[None]:
    """Every statement of the replicas is cancelled, again and again, and their connections are ended in turn."""
    connection = await _connect(rig)
    others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"

    acts = itertools.cycle(["pg_terminate_backend", *["pg_cancel_backend"] * 4])

    async def step() -> None:
        await connection.execute(f"SELECT {next(acts)}(pid) {others}")

    try:
        async with repeated(step, 0.02):
            yield
    finally:
        await connection.close()
