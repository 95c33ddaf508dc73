"""What stays open at a venue: guarded WebSockets, and answers that go on line by line."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast
from weakref import WeakSet

import aiohttp

from exchange_service.errors import VenueMalformed, VenueTimeout, VenueUnavailable
from exchange_service.venues.push_figures import PushFigures

# Bytes of one message or line.
MESSAGE_LIMIT = 1024 * 1024
# Seconds that a venue has to end a WebSocket from its side.
CLOSE_LIMIT = 1.0
# Bytes of a stream that are read at once.
_CHUNK = 16 * 1024


class OpenPushes:
    """Counts what a session opens: every WebSocket, whatever method opens it, and answers that go on line by line."""

    def __init__(self) -> None:
        self._sockets: WeakSet[Any] = WeakSet()
        self._streams = 0
        self._opened = 0

    def socket_class(self) -> type[aiohttp.ClientWebSocketResponse]:
        """The class of the session's WebSockets. `subscriptions` of one is what its plugin says that it follows."""
        pushes = self

        class CountedSocket(aiohttp.ClientWebSocketResponse):
            def __init__(self, *arguments: Any, **options: Any) -> None:
                super().__init__(*arguments, **options)
                self.subscriptions = 0
                pushes._sockets.add(self)
                pushes._opened += 1

        return CountedSocket

    @contextmanager
    def stream(self) -> Iterator[None]:
        """An answer goes on for the length of this block. It is one subscription."""
        self._streams += 1
        self._opened += 1
        try:
            yield
        finally:
            self._streams -= 1

    def figures(self) -> PushFigures:
        """What is open now."""
        sockets = [socket for socket in self._sockets if not socket.closed]
        subscriptions = self._streams + sum(socket.subscriptions for socket in sockets)
        return PushFigures(len(sockets) + self._streams, subscriptions, self._opened)


class VenueSocket:
    """An open WebSocket; see `plugin_kit.push.Socket`. Its errors hold nothing that the venue has sent."""

    def __init__(self, venue: str, opened: aiohttp.ClientWebSocketResponse, silence: float) -> None:
        self._venue = venue
        self._socket = opened
        self._silence = silence

    @property
    def subscriptions(self) -> int:
        """How many subscriptions it carries, for the metrics."""
        return int(cast("Any", self._socket).subscriptions)

    @subscriptions.setter
    def subscriptions(self, count: int) -> None:
        cast("Any", self._socket).subscriptions = count

    async def send(self, message: str) -> None:
        """Send a text."""
        try:
            await self._socket.send_str(message)
        except (aiohttp.ClientError, ConnectionError, RuntimeError):
            raise self._ended() from None

    async def receive(self) -> str:
        """The next text."""
        try:
            async with asyncio.timeout(self._silence):
                message = await self._next_message()
        except TimeoutError:
            raise VenueTimeout(f"{self._venue} sent nothing for {self._silence:g} seconds.") from None
        except (aiohttp.ClientError, ConnectionError):
            raise self._ended() from None
        if message.type is aiohttp.WSMsgType.TEXT:
            return str(message.data)
        if message.type is aiohttp.WSMsgType.BINARY:
            return bytes(message.data).decode(errors="replace")
        if isinstance(message.data, aiohttp.WebSocketError):
            raise VenueMalformed(f"{self._venue} sent a message that is too large, or is not one of a WebSocket.")
        if isinstance(message.data, TimeoutError):
            raise VenueTimeout(f"{self._venue} did not answer a ping.")
        raise self._ended()

    async def _next_message(self) -> aiohttp.WSMessage:
        """What comes next but for pings, which are answered, and pongs."""
        while (message := await self._socket.receive()).type in (aiohttp.WSMsgType.PING, aiohttp.WSMsgType.PONG):
            if message.type is aiohttp.WSMsgType.PING:
                await self._socket.pong(message.data)
            # Those that have arrived already are read without a pause: others come first.
            await asyncio.sleep(0)
        return message

    async def close(self) -> None:
        """End it from our side. A venue that reads no more is not waited for."""
        with self._second_handle() as connection:
            with suppress(TimeoutError):
                async with asyncio.timeout(2 * CLOSE_LIMIT):
                    await self._socket.close()
            if self._socket.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE:
                # What is not sent yet would keep it open for as long as the venue does not read.
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _second_handle(self) -> socket.socket:
        """A handle of our own on the connection: an event loop's own may refuse `shutdown`, as that of uvloop does."""
        connection = self._socket.get_extra_info("socket")
        with suppress(OSError):
            if connection is not None:
                return cast(socket.socket, connection.dup())
        return socket.socket()

    def _ended(self) -> VenueUnavailable:
        return VenueUnavailable(f"{self._venue} ended the connection for its messages.")


async def read_lines(venue: str, content: aiohttp.StreamReader, silence: float) -> AsyncIterator[bytes]:
    """The lines of an answer that goes on, without their ends, until it ends: VenueUnavailable."""
    rest = b""
    while True:
        try:
            async with asyncio.timeout(silence):
                chunk = await content.read(_CHUNK)
        except TimeoutError:
            raise VenueTimeout(f"{venue} sent nothing for {silence:g} seconds.") from None
        except (aiohttp.ClientPayloadError, ConnectionError):
            chunk = b""
        if not chunk:
            raise VenueUnavailable(f"{venue} ended the connection for its messages.")
        *lines, rest = (rest + chunk).split(b"\n")
        if max(map(len, (*lines, rest))) > MESSAGE_LIMIT:
            raise VenueMalformed(f"{venue} sent a line that is too large.")
        for line in lines:
            if line := line.strip():
                yield line
        # What has arrived already is read without a pause: others come first.
        await asyncio.sleep(0)
