"""The credential database away, slow, locked or full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from tests.chaos.faults import fault
from tests.chaos.proxy import CLEAR, Weather
from tests.chaos.rig import Rig
from tests.harness import until

_STEP = 0.2
# PostgreSQL's own limit, and what two replicas may have of it.
_MOST_CONNECTIONS, _OF_THE_REPLICAS = 100, 24


@asynccontextmanager
async def _weather(rig: Rig, weather: Weather) -> AsyncIterator[None]:
    for proxy in rig.postgres_proxies:
        proxy.weather = weather
    try:
        yield
    finally:
        for proxy in rig.postgres_proxies:
            proxy.weather = CLEAR


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


@fault("postgres-refuse")
@asynccontextmanager
async def refuse(rig: Rig) -> AsyncIterator[None]:
    for proxy in rig.postgres_proxies:
        await proxy.refuse()
    try:
        yield
    finally:
        for proxy in rig.postgres_proxies:
            await proxy.accept()


@fault("postgres-silent")
@asynccontextmanager
async def silent(rig: Rig) -> AsyncIterator[None]:
    async with _weather(rig, Weather(silent=True)):
        yield


@fault("postgres-slow")
@asynccontextmanager
async def slow(rig: Rig) -> AsyncIterator[None]:
    """Each answer takes 0.7 s, so that a question with its transaction takes longer than a caller waits."""
    async with _weather(rig, Weather(latency=0.35)):
        yield


@fault("postgres-half-open")
@asynccontextmanager
async def half_open(rig: Rig) -> AsyncIterator[None]:
    for proxy in rig.postgres_proxies:
        proxy.vanish()
    yield


@fault("postgres-reset")
@asynccontextmanager
async def reset(rig: Rig) -> AsyncIterator[None]:
    """All connections are reset again and again; new ones are served in between."""

    async def repeat() -> None:
        while True:
            for proxy in rig.postgres_proxies:
                proxy.reset()
            await asyncio.sleep(_STEP)

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


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
        while True:
            try:
                taken.append(await _connect(rig))
            except psycopg.OperationalError:
                await asyncio.sleep(0.01)

    tasks = [asyncio.create_task(take()) for _ in range(2)]
    try:
        await until(lambda: len(taken) >= _MOST_CONNECTIONS - _OF_THE_REPLICAS, "the use of the connections")
        for proxy in rig.postgres_proxies:
            proxy.reset()
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for connection in taken:
            await connection.close()


@fault("postgres-cancelled")
@asynccontextmanager
async def cancelled(rig: Rig) -> AsyncIterator[None]:
    """Every statement of the replicas is cancelled, again and again, and their connections are ended in turn."""
    connection = await _connect(rig)
    others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"

    async def repeat() -> None:
        turn = 0
        while True:
            act = "pg_terminate_backend" if turn % 5 == 0 else "pg_cancel_backend"
            await connection.execute(f"SELECT {act}(pid) {others}")
            turn += 1
            await asyncio.sleep(0.02)

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        await connection.close()


@fault("postgres-boot-away")
@asynccontextmanager
async def boot_away(rig: Rig) -> AsyncIterator[None]:
    """One replica is started while the database is away from it."""
    await rig.postgres_proxies[0].refuse()
    try:
        await rig.restart_replica(0)
        yield
    finally:
        await rig.postgres_proxies[0].accept()
