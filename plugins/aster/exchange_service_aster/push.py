"""Aster's user streams: a socket for the futures and one for the spot account, whose events are hints to read again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from exchange_service.plugin_api import (
    Changed,
    Socket,
    VenueCall,
    VenueMalformed,
    VenueUnavailable,
    parse_json,
)
from exchange_service_aster import parse
from exchange_service_aster.client import AsterClient

# Messages in a row that nobody can read, after which a stream is given up.
_MOST_UNREADABLE = 20
# Messages after which others get their turn: what has arrived already is read without a pause.
_TURN = 20
# Seconds that streams have to last: if their keys expire sooner, the next ones would too.
_LASTING = 60.0
_DAY = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: between two renewals of the listen keys, which live for an hour; after which the sockets are replaced,
    before Aster closes them after a day; between two hints while prices move the account; and between two keys that
    this process asks for, because the service's own limits do not count these requests."""

    renewal: float = 1800.0
    life: float = _DAY - 3600.0
    prices: float = 10.0
    openings: float = 0.2


async def watch_account(call: VenueCall, times: Times = Times()) -> AsyncGenerator[Changed, None]:
    """A hint when the streams stand, after each event, and every ten seconds while there are positions: equity moves
    with prices, of which no event tells. Raises a VenueError when a stream breaks."""
    client = await AsterClient.open(call)
    prices = await client.prices()
    loop = asyncio.get_running_loop()
    while True:
        begun = loop.time()
        async with _open_streams(call, client, times) as streams:
            # What came before, and while there was no stream, is read now.
            yield Changed()
            while not streams.expired and loop.time() < begun + times.life:
                told = await streams.wait(times.prices) or prices.may_move
                if told and not streams.expired:
                    yield Changed()
        if streams.expired and loop.time() < begun + min(_LASTING, times.life):
            raise VenueUnavailable("Aster's listen keys expire as soon as they are made.")


class _Streams:
    """The open streams of a wallet, and whether one of them has told something."""

    def __init__(self) -> None:
        # Whether a listen key is no longer good: nothing more comes with it.
        self.expired = False
        self._tasks: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()
        self._error: Exception | None = None

    def follow(self, socket: Socket) -> None:
        """Begin to read a stream."""
        self._start(self._read(socket), "events of Aster")

    def keep(self, client: AsterClient, keys: Mapping[str, str], every: float) -> None:
        """Renew the listen keys, by account type, in time."""
        self._start(self._renew(client, keys, every), "listen keys of Aster")

    async def wait(self, seconds: float) -> bool:
        """Whether a stream has told something within these seconds. Raises what ended one."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        if self._error is not None:
            raise self._error
        return True

    async def close(self) -> None:
        """Stop reading and renewing."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(self._noting_failure(work), name=name))

    async def _noting_failure(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self._error = error
            self._news.set()

    async def _read(self, socket: Socket) -> None:
        count = unreadable = 0
        while not self.expired:
            text = await socket.receive()
            count += 1
            if count % _TURN == 0:
                await asyncio.sleep(0)
            try:
                event = parse.stream_event(parse_json(text.encode()))
            except VenueMalformed:
                unreadable += 1
                if unreadable >= _MOST_UNREADABLE:
                    raise VenueMalformed("Aster's stream sends messages that are not events.") from None
                continue
            unreadable = 0
            if event is not parse.StreamEvent.OTHER:
                self.expired = self.expired or event is parse.StreamEvent.EXPIRED
                self._news.set()

    async def _renew(self, client: AsterClient, keys: Mapping[str, str], every: float) -> None:
        while True:
            await asyncio.sleep(every)
            for account_type, key in keys.items():
                if await client.listen_key(account_type) != key:
                    # The one that the stream was opened with has ended unnoticed.
                    self.expired = True
                    self._news.set()


@asynccontextmanager
async def _open_streams(call: VenueCall, client: AsterClient, times: Times) -> AsyncIterator[_Streams]:
    openings = await call.plugin_state.get("stream openings", _new_openings)
    async with AsyncExitStack() as stack:
        streams, keys = _Streams(), {}
        for account_type in filter(call.wants, call.exchange.account_types):
            await openings.wait(times.openings)
            key = keys[account_type] = await client.listen_key(account_type)
            # An account in which nothing happens sends nothing for days: pings tell whether the connection holds.
            address = f"{client.stream_address(account_type)}/ws/{key}"
            socket = await stack.enter_async_context(call.http.websocket(address, silence=_DAY))
            # Before the socket closes, nothing may read from it.
            stack.push_async_callback(streams.close)
            streams.follow(socket)
        streams.keep(client, keys, times.renewal)
        yield streams


class _Openings:
    """Lets the streams of all accounts of this process begin one after the other."""

    def __init__(self) -> None:
        self._next = 0.0

    async def wait(self, pause: float) -> None:
        """Return when the next stream may begin."""
        now = asyncio.get_running_loop().time()
        begin = max(now, self._next)
        self._next = begin + pause
        await asyncio.sleep(begin - now)


async def _new_openings() -> _Openings:
    return _Openings()
