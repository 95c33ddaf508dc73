"""Aster's user streams: a socket for the futures and one for the spot account, whose events are hints to read again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from exchange_service.plugin_api import (
    Changed,
    Socket,
    VenueCall,
    VenueMalformed,
    VenueRateLimited,
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
    """Seconds."""

    # Between two renewals of the listen keys, which live for an hour.
    renewal: float = 1800.0
    # After which the sockets are replaced, before Aster closes them after a day.
    life: float = _DAY - 3600.0
    # Between two hints while prices move the account.
    prices: float = 10.0
    # Between two pings.
    pings: float = 20.0
    # Between two requests of this process for a key.
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
        self._start(partial(self._read, socket), "events of Aster")

    def keep(self, keys: Mapping[str, str], ask: Callable[[str], Awaitable[str]], every: float) -> None:
        """Renew the listen keys, by account type, in time, by asking for them again."""
        self._start(partial(self._renew, keys, ask, every), "listen keys of Aster")

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

    def _start(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(self._noting_failure(work), name=name))

    async def _noting_failure(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            # Called here: a task that is cancelled before its first turn would leave a coroutine behind.
            await work()
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

    async def _renew(self, keys: Mapping[str, str], ask: Callable[[str], Awaitable[str]], every: float) -> None:
        while True:
            await asyncio.sleep(every)
            for account_type, key in keys.items():
                if await ask(account_type) != key:
                    # The one that the stream was opened with has ended unnoticed.
                    self.expired = True
                    self._news.set()


@asynccontextmanager
async def _open_streams(call: VenueCall, client: AsterClient, times: Times) -> AsyncIterator[_Streams]:
    requests = await call.plugin_state.get(f"listen keys {call.way}", _new_key_requests)

    async def ask(account_type: str) -> str:
        async with requests.turn(times.openings):
            return await client.listen_key(account_type)

    async with AsyncExitStack() as stack:
        streams, keys = _Streams(), {}
        for account_type in filter(call.wants, call.exchange.account_types):
            key = keys[account_type] = await ask(account_type)
            # An account in which nothing happens sends nothing for days: pings tell whether the connection holds.
            address = f"{client.stream_address(account_type)}/ws/{key}"
            socket = await stack.enter_async_context(call.http.websocket(address, silence=_DAY, ping=times.pings))
            socket.subscriptions = 1
            # Before the socket closes, nothing may read from it.
            stack.push_async_callback(streams.close)
            streams.follow(socket)
        streams.keep(keys, ask, times.renewal)
        yield streams


class _KeyRequests:
    """The requests for listen keys of all accounts of this process. The service's limits and cooldowns do not reach
    them, so they are sent one after the other, and not at all while Aster limits one of them."""

    def __init__(self) -> None:
        self._next = 0.0
        self._limited_until = 0.0

    @asynccontextmanager
    async def turn(self, pause: float) -> AsyncIterator[None]:
        """Entered when the next request may be sent. Raises VenueRateLimited if none may be sent for now."""
        loop = asyncio.get_running_loop()
        self._check(loop.time())
        begin = max(loop.time(), self._next)
        self._next = begin + pause
        await asyncio.sleep(begin - loop.time())
        self._check(loop.time())
        try:
            yield
        except VenueRateLimited as error:
            self._limited_until = loop.time() + (error.retry_after or 0.0)
            raise

    def _check(self, now: float) -> None:
        if now < self._limited_until:
            raise VenueRateLimited(
                "Aster limits the requests from this service's address, so no listen key is asked for.",
                retry_after=self._limited_until - now,
            )


async def _new_key_requests() -> _KeyRequests:
    return _KeyRequests()
