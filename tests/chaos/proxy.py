"""A TCP proxy that spoils what passes through it, in ways that are switched while it runs."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

# Where the proxy leads: a host and a port, or the file of a Unix socket.
Upstream = tuple[str, int] | Path
_CHUNK = 65_536
# A server that is told to close so sends a reset instead of an end.
_RESET = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens to each piece of data, in both directions unless it says otherwise. Nothing by default."""

    # Seconds that a piece is late, and seconds of chance on top.
    latency: float = 0.0
    uneven: float = 0.0
    # Bytes a second; 0: as many as come.
    rate: float = 0.0
    # Pieces of so many bytes, with a pause after each; 0: as they come.
    slices: int = 0
    slice_pause: float = 0.01
    # Nothing passes; what comes meanwhile passes afterwards.
    silent: bool = False
    # The share of the pieces from the server in which a bit is changed.
    garble: float = 0.0


CLEAR = Weather()


@dataclass(eq=False, slots=True)
class _Connection:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter | None = None
    # Whether it is one of Redis's that waits for messages.
    subscribes: bool = False
    # Whether its peer has vanished without a word.
    vanished: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self) -> None:
        """End both sides by a reset."""
        for writer in (self.client, self.server):
            if writer is None:
                continue
            with suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class Proxy:
    """`async with Proxy(upstream, seed=...) as proxy`: `proxy.port` of loopback leads to `upstream`, in its weather."""

    def __init__(self, upstream: Upstream, *, seed: int = 0) -> None:
        self._upstream = upstream
        self._random = random.Random(seed)
        self._weather = CLEAR
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self.port = 0
        # How many connections were taken.
        self.taken = 0

    async def __aenter__(self) -> Proxy:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        if self._serving:
            await asyncio.wait(set(self._serving))

    @property
    def weather(self) -> Weather:
        """What happens now."""
        return self._weather

    @weather.setter
    def weather(self, weather: Weather) -> None:
        self._weather = weather
        self._changed.set()
        self._changed = asyncio.Event()

    @contextmanager
    def within(self, weather: Weather) -> Iterator[None]:
        """That weather inside the block, and none after it."""
        self.weather = weather
        try:
            yield
        finally:
            self.weather = CLEAR

    async def accept(self) -> None:
        """Listen, on the same port as before; nothing if it does."""
        if self._server is None:
            self._server = await asyncio.start_server(self._take, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Take no connections any more, and end those that are there."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.reset()

    def reset(self, *, subscribers_only: bool = False) -> int:
        """End the connections, or those that wait for Redis's messages, by a reset. Returns how many there were."""
        chosen = [one for one in self._connections if one.subscribes or not subscribers_only]
        for connection in chosen:
            connection.reset()
            for task in connection.tasks:
                task.cancel()
        return len(chosen)

    def lead_to(self, upstream: Upstream) -> Upstream:
        """Lead elsewhere; the present connections end. Returns where it has led until now."""
        before, self._upstream = self._upstream, upstream
        self.reset()
        return before

    def vanish(self) -> int:
        """Let the peers of the present connections vanish: nothing passes on them ever again, and nobody is told."""
        for connection in self._connections:
            connection.vanished = True
        return len(self._connections)

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.taken += 1
        task = asyncio.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer)
        self._connections.add(connection)
        try:
            server, connection.server = await self._connect()
            pumps = ((reader, connection.server, False), (server, writer, True))
            connection.tasks = [asyncio.create_task(self._pump(connection, *pump)) for pump in pumps]
            await asyncio.wait(connection.tasks, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            connection.reset()
        finally:
            self._connections.discard(connection)
            for task in connection.tasks:
                task.cancel()
            for one in (writer, connection.server):
                if one is not None:
                    one.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self._upstream, Path):
            return await asyncio.open_unix_connection(self._upstream)
        return await asyncio.open_connection(*self._upstream)

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                connection.subscribes |= not answers and b"SUBSCRIBE" in data.upper()
                while connection.vanished or self._weather.silent:
                    await (asyncio.Event() if connection.vanished else self._changed).wait()
                await self._pass(data, writer, answers)

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter, answers: bool) -> None:
        weather = self._weather
        if answers and self._random.random() < weather.garble:
            data = self._garbled(data)
        if weather.latency or weather.uneven:
            await asyncio.sleep(weather.latency + self._random.random() * weather.uneven)
        step = weather.slices or (max(1, int(weather.rate / 20)) if weather.rate else len(data))
        for place in range(0, len(data), step):
            writer.write(data[place : place + step])
            await writer.drain()
            if weather.rate:
                await asyncio.sleep(step / weather.rate)
            elif weather.slices:
                await asyncio.sleep(weather.slice_pause)

    def _garbled(self, data: bytes) -> bytes:
        changed = bytearray(data)
        changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        return bytes(changed)
