"""Redis away, slow, wrong or full."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import redis.asyncio as redis_client
from redis.exceptions import RedisError

from tests.chaos.accounts import REGULAR
from tests.chaos.faults import fault
from tests.chaos.faults.ways import Way, half_open, in_weather, refused, repeated, reset, restarted_without
from tests.chaos.proxy import Weather
from tests.chaos.rig import Rig
from tests.servers import RedisServer

# Seconds between two steps of a fault that goes on and on.
_STEP = 0.3
# Each fault that is one way of all replicas to Redis, by its name, and those of the first replica's way alone.
_WAYS: dict[str, Way] = {
    "redis-refuse": refused,
    "redis-slow": in_weather(Weather(latency=0.1)),
    "redis-uneven": in_weather(Weather(uneven=0.25)),
    "redis-black-hole": in_weather(Weather(silent=True)),
    "redis-half-open": half_open,
    "redis-narrow": in_weather(Weather(rate=4000)),
    "redis-sliced": in_weather(Weather(slices=40, slice_pause=0.002)),
    "redis-reset": reset(_STEP),
    "redis-pubsub-killed": reset(_STEP, subscribers_only=True),
    # Every tenth answer has a wrong bit.
    "redis-garbled": in_weather(Weather(garble=0.1)),
}
_WAYS_OF_ONE: dict[str, Way] = {
    "redis-away-from-one": refused,
    "redis-silent-for-one": in_weather(Weather(silent=True)),
}


def _enter(name: str, way: Way, replicas: slice) -> None:
    fault(name)(lambda rig: way(rig.redis_proxies[replicas]))


for _name, _way in _WAYS.items():
    _enter(_name, _way, slice(None))
for _name, _way in _WAYS_OF_ONE.items():
    _enter(_name, _way, slice(1))
fault("redis-boot-away")(lambda rig: restarted_without(rig, rig.redis_proxies))


@asynccontextmanager
async def _client(rig: Rig) -> AsyncIterator[redis_client.Redis]:
    """A client of the server itself."""
    client = redis_client.Redis(port=rig.redis.port, socket_timeout=5)
    try:
        yield client
    finally:
        await client.aclose()


@asynccontextmanager
async def _configured(rig: Rig, **options: str) -> AsyncIterator[None]:
    """The server's options changed, and changed back."""
    async with _client(rig) as client:
        before = {name: (await client.config_get(name))[name] for name in options}
        try:
            for name, value in options.items():
                await client.config_set(name, value)
            yield
        finally:
            for name, value in before.items():
                await client.config_set(name, value)


@fault("redis-freeze")
@asynccontextmanager
async def freeze(rig: Rig) -> AsyncIterator[None]:
    rig.redis.freeze()
    try:
        yield
    finally:
        rig.redis.thaw()


@fault("redis-kill")
@asynccontextmanager
async def kill(rig: Rig) -> AsyncIterator[None]:
    """Killed, and away for the whole time."""
    rig.redis.kill()
    try:
        yield
    finally:
        await asyncio.to_thread(rig.redis.start)


@fault("redis-restart-empty")
@asynccontextmanager
async def restart_empty(rig: Rig) -> AsyncIterator[None]:
    """Killed and started again at once, without its values, while the venue is down."""
    await rig.venue.set_mode("broken")
    try:
        await asyncio.sleep(0.5)
        rig.redis.kill()
        await asyncio.to_thread(rig.redis.start)
        yield
    finally:
        await rig.venue.set_mode("well")


@fault("redis-read-only")
@asynccontextmanager
async def read_only(rig: Rig) -> AsyncIterator[None]:
    """It has become a replica of a server that is there, as after a failover, and takes no writes."""
    async with _client(rig) as client:
        with RedisServer() as other:
            try:
                await client.replicaof("127.0.0.1", str(other.port))
                yield
            finally:
                await client.replicaof("NO", "ONE")


@fault("redis-loading")
@asynccontextmanager
async def loading(rig: Rig) -> AsyncIterator[None]:
    """Every command is refused, as while it loads its data: it follows a server that is not there."""
    async with _client(rig) as client, _configured(rig, **{"replica-serve-stale-data": "no"}):
        try:
            await client.replicaof("127.0.0.1", "1")
            yield
        finally:
            await client.replicaof("NO", "ONE")


@fault("redis-full")
@asynccontextmanager
async def full(rig: Rig) -> AsyncIterator[None]:
    async with _configured(rig, maxmemory="1", **{"maxmemory-policy": "noeviction"}):
        yield


@fault("redis-moved")
@asynccontextmanager
async def moved(rig: Rig) -> AsyncIterator[None]:
    """In its place stands a node of a cluster, which sends everybody elsewhere or says that the cluster is down."""
    with RedisServer("--cluster-enabled", "yes") as node:
        upstreams = [proxy.lead_to(("127.0.0.1", node.port)) for proxy in rig.redis_proxies]
        try:
            yield
        finally:
            for proxy, upstream in zip(rig.redis_proxies, upstreams, strict=True):
                proxy.lead_to(upstream)


@fault("redis-flushed")
@asynccontextmanager
async def flushed(rig: Rig) -> AsyncIterator[None]:
    async with _client(rig) as client:

        async def step() -> None:
            await client.flushall()

        async with repeated(step, _STEP, despite=(RedisError,)):
            yield


async def _rewrite(client: redis_client.Redis, change: Callable[[bytes], bytes]) -> int:
    """Change every value that is a string. Returns how many there were."""
    count = 0
    async for key in client.scan_iter(count=500):
        with suppress(RedisError):
            value = await client.get(key)
            if value:
                await client.set(key, change(value), keepttl=True)
                count += 1
    return count


@asynccontextmanager
async def _rewritten(rig: Rig, change: Callable[[bytes], bytes]) -> AsyncIterator[None]:
    """Every value changed so, again and again. AssertionError if there was nothing to change."""
    changed = 0
    async with _client(rig) as client:

        async def step() -> None:
            nonlocal changed
            changed += await _rewrite(client, change)

        async with repeated(step, _STEP, despite=(RedisError,)):
            yield
    assert changed > REGULAR, f"{changed} values were changed"


@fault("redis-bits-flipped")
@asynccontextmanager
async def bits_flipped(rig: Rig) -> AsyncIterator[None]:
    """One bit of each value, again and again."""

    def flip(value: bytes) -> bytes:
        changed = bytearray(value)
        changed[secrets.randbelow(len(changed))] ^= 1 << secrets.randbelow(8)
        return bytes(changed)

    async with _rewritten(rig, flip):
        yield


@fault("redis-foreign-values")
@asynccontextmanager
async def foreign_values(rig: Rig) -> AsyncIterator[None]:
    """Values of other accounts and of nobody stand in each other's places."""
    last = [b"not ours"]

    def swap(value: bytes) -> bytes:
        last.append(value)
        return last.pop(0)

    async with _rewritten(rig, swap):
        yield


@fault("redis-no-rights")
@asynccontextmanager
async def no_rights(rig: Rig) -> AsyncIterator[None]:
    """The user of the replicas may not do anything any more, and connections that are there end."""
    async with _client(rig) as admin:
        await admin.execute_command("ACL", "SETUSER", "admin", "on", ">admin", "~*", "&*", "+@all")
        await admin.execute_command("AUTH", "admin", "admin")
        await admin.execute_command("ACL", "SETUSER", "default", "-@all")
        try:
            for proxy in rig.redis_proxies:
                proxy.reset()
            yield
        finally:
            await admin.execute_command("ACL", "SETUSER", "default", "+@all")
            await admin.execute_command("ACL", "DELUSER", "admin")
