"""The push side of a venue on loopback: its open sockets and streams, and the faults that pushes have shown.

A simulator serves its route with `PushSide.serve` (a WebSocket) or `PushSide.stream` (JSON lines), notes what each
connection follows in `PushClient.topics`, and calls `publish` when an account changes.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

# Seconds between two looks whether the client of a stream has gone.
_LOOK_EVERY = 0.05


@dataclass(frozen=True, slots=True)
class PushFault:
    """How a venue's pushes misbehave. Several may hold at once; `PushSide.fail` begins one."""

    # No message comes any more, while the connection stays and pings are answered.
    silent: bool = False
    # As `silent`, and nothing is read: pings are not answered either, as if a router had forgotten the connection.
    half_open: bool = False
    # The status that new connections are refused with; 0: they are not.
    refused: int = 0
    # Sent before each message: a text, a frame that is no JSON, or one that is too large.
    before: tuple[str | bytes, ...] = ()
    # Each message comes again after the next one.
    replay: bool = False
    # Messages wait until so many are there, and come in any order; 0: they come as they are.
    shuffled: int = 0
    # Each message goes to every connection, whatever it follows.
    to_everybody: bool = False

    @staticmethod
    def nonsense() -> PushFault:
        """Frames that no venue means."""
        return PushFault(before=("<html>gateway</html>", "null", "[]", "{}", '{"channel":7}', b"\xff\xfe\x00", "NaN"))

    @staticmethod
    def oversized() -> PushFault:
        """A frame of more than 1 MiB."""
        return PushFault(before=('{"padding":"' + "0" * (1024 * 1024) + '"}',))


@dataclass(eq=False, slots=True)
class PushClient:
    """One open connection: whose it is, and what it follows. `notes` is for what the simulator keeps of it."""

    # Which account it belongs to, as the simulator says.
    account: str = ""
    # What it follows.
    topics: set[Hashable] = field(default_factory=set)
    notes: dict[str, Any] = field(default_factory=dict)
    # What came in, as JSON values.
    received: list[Any] = field(default_factory=list)
    # What is still to be sent; None ends the connection.
    outgoing: asyncio.Queue[str | bytes | None] = field(default_factory=asyncio.Queue)
    # Whether it has been dropped.
    closed: bool = False
    # The connection itself, once it is open.
    transport: asyncio.Transport | None = None

    def send(self, message: Any) -> None:
        """Send a message, a JSON value or the text itself, whatever faults there are."""
        self.outgoing.put_nowait(message if isinstance(message, str | bytes) else json.dumps(message))

    def close(self) -> None:
        """End the connection after what has been sent."""
        self.outgoing.put_nowait(None)

    def drop(self) -> None:
        """End the connection at once, without a word."""
        self.closed = True
        if self.transport is not None:
            self.transport.abort()


class PushSide:
    """The open connections of a venue."""

    def __init__(self) -> None:
        # The connections that are open.
        self.clients: list[PushClient] = []
        # How many connections were opened in all.
        self.opened = 0
        # How it misbehaves now.
        self.fault = PushFault()
        self._last: dict[PushClient, Any] = {}
        self._held: list[tuple[PushClient, Any]] = []
        self._order = random.Random(7)

    def fail(self, fault: PushFault) -> None:
        """Misbehave in this way from now on."""
        self.fault = fault

    def recover(self) -> None:
        """Behave again. Connections that were silent stay as they are: what they missed is not sent."""
        self.fault = PushFault()
        self._held.clear()

    def drop_all(self) -> int:
        """End every connection at once, without a word. Returns how many there were."""
        clients = list(self.clients)
        for client in clients:
            client.drop()
        return len(clients)

    def publish(self, topic: Hashable, message: Any) -> int:
        """Send a message to every connection that follows the topic, as the fault allows. Returns to how many."""
        fault, reached = self.fault, 0
        if fault.silent or fault.half_open:
            return 0
        for client in list(self.clients):
            if topic in client.topics or fault.to_everybody:
                reached += 1
                self._pass_on(client, message)
        return reached

    def _pass_on(self, client: PushClient, message: Any) -> None:
        fault = self.fault
        for noise in fault.before:
            client.send(noise)
        if fault.shuffled:
            self._held.append((client, message))
            if len(self._held) >= fault.shuffled:
                held, self._held = self._held, []
                self._order.shuffle(held)
                for receiver, waiting in held:
                    receiver.send(waiting)
            return
        client.send(message)
        if fault.replay:
            if client in self._last:
                client.send(self._last[client])
            self._last[client] = message

    async def serve(
        self,
        request: web.Request,
        answer: Callable[[PushClient, Any], Awaitable[None] | None],
        *,
        account: str = "",
        greet: Callable[[PushClient], None] = lambda client: None,
    ) -> web.StreamResponse:
        """Serve a WebSocket: `greet` a new connection, and `answer` each of its messages, a JSON value."""
        if self.fault.refused:
            return web.Response(status=self.fault.refused)
        response = web.WebSocketResponse(max_msg_size=1024 * 1024, autoping=False, autoclose=False)
        await response.prepare(request)
        client = self._admit(request, account)
        greet(client)
        writer = asyncio.create_task(_write_frames(response, client), name="a venue's frames")
        try:
            await self._read(response, client, answer)
            if not self.fault.half_open:
                await response.close()
        finally:
            self._dismiss(client)
            writer.cancel()
        return response

    async def _read(
        self,
        response: web.WebSocketResponse,
        client: PushClient,
        answer: Callable[[PushClient, Any], Awaitable[None] | None],
    ) -> None:
        while not client.closed:
            frame = await response.receive()
            if frame.type is WSMsgType.PING and not self.fault.half_open:
                await response.pong(frame.data)
            if frame.type in (WSMsgType.PING, WSMsgType.PONG):
                continue
            if frame.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                return
            message = json.loads(frame.data)
            client.received.append(message)
            if self.fault.half_open or self.fault.silent:
                continue
            done = answer(client, message)
            if done is not None:
                await done

    async def stream(self, request: web.Request, topic: Hashable, *, account: str = "") -> web.StreamResponse:
        """Serve an answer that goes on with a line for each message of this topic."""
        if self.fault.refused:
            return web.Response(status=self.fault.refused)
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        await response.prepare(request)
        client = self._admit(request, account)
        client.topics.add(topic)
        try:
            await _write_lines(response, client)
        finally:
            self._dismiss(client)
        return response

    def _admit(self, request: web.Request, account: str) -> PushClient:
        client = PushClient(account, transport=request.transport)
        self.clients.append(client)
        self.opened += 1
        return client

    def _dismiss(self, client: PushClient) -> None:
        client.closed = True
        self._last.pop(client, None)
        if client in self.clients:
            self.clients.remove(client)

    def close(self) -> None:
        """End every connection."""
        for client in list(self.clients):
            client.close()


async def _write_frames(response: web.WebSocketResponse, client: PushClient) -> None:
    with suppress(ConnectionError, RuntimeError):
        while (message := await client.outgoing.get()) is not None:
            await (response.send_bytes(message) if isinstance(message, bytes) else response.send_str(message))
        await response.close()


async def _write_lines(response: web.StreamResponse, client: PushClient) -> None:
    with suppress(ConnectionError, RuntimeError):
        while client.transport is not None and not client.transport.is_closing():
            # aiohttp does not say when a client has gone.
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY):
                    message = await client.outgoing.get()
                if message is None:
                    return
                await response.write((message if isinstance(message, bytes) else message.encode()) + b"\n")
