"""A venue on loopback that pushes by a script, and watches of accounts there."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import exchange_service_ccxt_generic as plugin
from aiohttp import WSMsgType, web
from exchange_service_ccxt_generic.client import CcxtClient
from exchange_service_ccxt_generic.instances import import_ccxt

from exchange_service.plugin_api import Changed, ExchangeMetadata, State, VenueCall
from exchange_service.testing import LoopbackVenue, venue_call
from plugins.ccxt_generic.tests.every_exchange.credentials import credential
from plugins.ccxt_generic.tests.every_exchange.venue import preset_markets
from plugins.ccxt_generic.tests.pushing.scripts import Script

ASSETS = MappingProxyType({"USDT": "USDT", "BTC": "BTC", "LTC": "LTC", "USDC": "USDC", "USD": "USD", "EUR": "EUR"})


class PushingVenue(LoopbackVenue):
    """It answers requests and messages by its script; `refuses` lets it refuse the key."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.script = script
        self.refuses = False
        # Whether messages and requests are answered.
        self.answers = True
        self.open: set[web.WebSocketResponse] = set()
        # How many connections were opened, and what came on them.
        self.opened = 0
        self.came: list[str] = []
        self.closed = asyncio.Event()
        # Whether a connection was asked for, or a message of ours has come; and whether connections are let in.
        self.asked, self.admits = asyncio.Event(), asyncio.Event()
        self.admits.set()

    def routes(self) -> list[web.RouteDef]:
        return [web.route("*", "/{tail:.*}", self._serve)]

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Upgrade", "").lower() == "websocket":
            if self.refuses and self.script.refused_handshake:
                return web.Response(status=self.script.refused_handshake)
            return await self._serve_socket(request)
        if self.refuses and self.script.refused_request is not None and request.method == "POST":
            status, body = self.script.refused_request
            return web.json_response(body, status=status)
        return web.json_response(self.script.requests.get(f"{request.method} {request.path}", {}))

    async def _serve_socket(self, request: web.Request) -> web.WebSocketResponse:
        if not self.admits.is_set():
            self.asked.set()
            await self.admits.wait()
        socket = web.WebSocketResponse(max_msg_size=1024 * 1024)
        await socket.prepare(request)
        self.open.add(socket)
        self.opened += 1
        self.closed.clear()
        try:
            if self.script.greeting is not None:
                await self._send(socket, self.script.greeting)
            async for message in socket:
                self.asked.set()
                if message.type is WSMsgType.TEXT and self.answers:
                    await self._answer(socket, message.data)
        finally:
            self.open.discard(socket)
            if not self.open:
                self.closed.set()
        return socket

    async def _answer(self, socket: web.WebSocketResponse, text: str) -> None:
        self.came.append(text)
        if self.refuses and self.script.refused is not None:
            await self._send(socket, self.script.refused, text)
            return
        for word, answer in self.script.answers:
            if word in text:
                await self._send(socket, answer, text)
                return

    async def _send(self, socket: web.WebSocketResponse, value: Any, to: str = "{}") -> None:
        if isinstance(value, bytes):
            await (socket.send_bytes(value) if self.script.packed else socket.send_str(value.decode()))
            return
        message = json.loads(to)
        names = ("id", "req_id", "cid") if isinstance(message, dict) else ()
        number = next((message[name] for name in names if name in message), None)
        text = json.dumps(value).replace('"$id"', json.dumps(number))
        await (socket.send_bytes(gzip.compress(text.encode())) if self.script.packed else socket.send_str(text))

    async def announce(self, value: Any = None) -> None:
        """Send a balance, or another message, on every connection."""
        for socket in list(self.open):
            await self._send(socket, self.script.push if value is None else value)

    def drop(self) -> None:
        """End every connection without a word."""
        for transport in self._transports():
            transport.abort()

    def stop_reading(self) -> None:
        """Read nothing more, so that pings are not answered, as if a router had forgotten the connections."""
        for transport in self._transports():
            transport.pause_reading()

    def _transports(self) -> list[asyncio.Transport]:
        requests = [socket._req for socket in self.open]
        return [request.transport for request in requests if request is not None and request.transport is not None]


@asynccontextmanager
async def pushing(
    listing: ExchangeMetadata, script: Script, account_type: str = "", environment: str = "production"
) -> AsyncIterator[tuple[PushingVenue, VenueCall]]:
    """The venue, listening, and a call for a watch of an account there, with the markets preset."""
    given, state = credential(listing), State()
    async with (
        PushingVenue(script) as venue,
        venue_call(
            listing,
            override=venue.url,
            environment=environment,
            plugin_state=state,
            timeout=100.0,
            account_type=account_type,
            **given,
        ) as call,
    ):
        ccxt = await state.get("ccxt", import_ccxt)
        await state.get(f"markets {listing.id} {environment} {venue.url}", partial(_markets, CcxtClient(call), ccxt))
        yield cast(PushingVenue, venue), call
    await state.close()


async def _markets(client: CcxtClient, ccxt: Any) -> Any:
    return preset_markets(client, ccxt, ASSETS)


@asynccontextmanager
async def watching(call: VenueCall) -> AsyncIterator[AsyncGenerator[Changed]]:
    """A watch through the plugin's hook, which is closed at the end."""
    watch = cast(AsyncGenerator[Changed], plugin.watch_balance(call))
    async with aclosing(watch):
        yield watch


async def soon(watch: AsyncIterator[Changed]) -> Changed:
    """The next word of a watch. Raises TimeoutError if none comes within seconds."""
    async with asyncio.timeout(10):
        return await anext(watch)
