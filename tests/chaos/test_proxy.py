"""The fault proxy spoils what it says, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.chaos.proxy import CLEAR, Proxy, Weather

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def echo() -> AsyncIterator[Proxy]:
    """A proxy before a server that sends back what it gets."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server, Proxy(("127.0.0.1", server.sockets[0].getsockname()[1])) as proxy:
        yield proxy


async def ask(ends: Ends, data: bytes = b"0123456789", limit: float = 5.0) -> bytes:
    reader, writer = ends
    writer.write(data)
    async with asyncio.timeout(limit):
        return await reader.readexactly(len(data))


async def connect(proxy: Proxy) -> Ends:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


@pytest.mark.parametrize(
    ("weather", "seconds"),
    [
        (CLEAR, 0.0),
        (Weather(latency=0.1), 0.2),
        (Weather(uneven=0.05), 0.0),
        (Weather(rate=50), 0.15),
        (Weather(slices=2, slice_pause=0.02), 0.08),
    ],
    ids=["clear", "latency", "uneven", "narrow", "sliced"],
)
async def test_it_delays_and_loses_nothing(weather: Weather, seconds: float) -> None:
    async with echo() as proxy:
        ends = await connect(proxy)
        proxy.weather = weather
        began = time.monotonic()
        assert await ask(ends) == b"0123456789"
        assert time.monotonic() - began >= seconds * 0.9
        ends[1].close()


async def test_a_black_hole_takes_connections_and_answers_only_afterwards() -> None:
    async with echo() as proxy:
        with proxy.within(Weather(silent=True)):
            ends = await connect(proxy)
            with pytest.raises(TimeoutError):
                await ask(ends, limit=0.1)
        assert await ends[0].readexactly(10) == b"0123456789"
        ends[1].close()


async def test_a_peer_that_vanished_stays_away_while_new_connections_are_served() -> None:
    async with echo() as proxy:
        old = await connect(proxy)
        await ask(old)
        assert proxy.vanish() == 1
        with pytest.raises(TimeoutError):
            await ask(old, limit=0.1)
        new = await connect(proxy)
        assert await ask(new) == b"0123456789"
        for ends in (old, new):
            ends[1].close()


async def test_it_refuses_and_accepts_again_at_the_same_port() -> None:
    async with echo() as proxy:
        ends = await connect(proxy)
        await ask(ends)
        await proxy.refuse()
        with pytest.raises(ConnectionError):
            await ask(ends, limit=1.0)
        with pytest.raises(ConnectionRefusedError):
            await connect(proxy)
        await proxy.accept()
        again = await connect(proxy)
        assert await ask(again) == b"0123456789"
        again[1].close()


async def test_it_cuts_only_the_connections_that_wait_for_messages() -> None:
    async with echo() as proxy:
        waits, asks = await connect(proxy), await connect(proxy)
        await ask(waits, b"*2\r\n$9\r\nSUBSCRIBE\r\n")
        await ask(asks)
        assert proxy.reset(subscribers_only=True) == 1
        with pytest.raises(ConnectionResetError):
            await waits[0].readexactly(1)
        assert await ask(asks) == b"0123456789"
        asks[1].close()


async def test_it_changes_one_byte_of_an_answer() -> None:
    async with echo() as proxy:
        ends = await connect(proxy)
        proxy.weather = Weather(garble=1.0)
        answer = await ask(ends)
        assert sum(one != other for one, other in zip(answer, b"0123456789", strict=True)) == 1
        ends[1].close()
