"""A venue's push connection that many accounts share: subscriptions, sorting, keep-alive, silence, pauses.

A plugin says how its venue's socket is spoken in a `PushLanguage`, and follows topics with `subscribed`:

    async with subscribed(call, AcmeLanguage(call.url("push")), [f"balance/{number}"]) as subscription:
        yield Changed()
        async for states in subscription:
            yield parse.balance(states)
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol
from urllib.parse import urlsplit

from exchange_service.errors import NotSupported, PluginFailed, ServiceError, VenueRateLimited, VenueUnavailable
from exchange_service.model import ExchangeMetadata, PushLimits
from exchange_service.plugin_kit.push_connection import MinuteLimit, PushConnection, Subscription, Traffic
from exchange_service.plugin_kit.push_language import PushLanguage, Socket, SocketOpener, Topic
from exchange_service.plugin_kit.state import State
from exchange_service.tasks import TaskSet, copy_of

__all__ = ["PushLanguage", "Socket", "Subscription", "Topic", "Watching", "subscribed"]

# Seconds before the next connection after one that failed: twice as long each time, from the first to the second, and
# up to half of that less, by chance. One that has stood for so long as the second has not failed at once.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
# Seconds after which an account that found no room may try again.
_NO_ROOM_DELAY = 60.0


class Watching(Protocol):
    """The part of `plugin_api.VenueCall` that a shared connection needs."""

    @property
    def exchange(self) -> ExchangeMetadata:
        """The listing."""

    @property
    def http(self) -> SocketOpener:
        """The guarded session."""

    @property
    def plugin_state(self) -> State:
        """What all accounts of the plugin share."""

    @property
    def way(self) -> str:
        """The address from which the venue sees the account, as a name to count by."""


class _Venue:
    """What all connections to one exchange share, of whatever login: how many they are, and how soon one may begin."""

    def __init__(self, name: str, limits: PushLimits) -> None:
        self.name = name
        self.limits = limits
        self.pace = MinuteLimit(limits.connects)
        self.traffic = Traffic(limits)
        # Those that are opened, open or not yet closed.
        self.connections: set[PushConnection] = set()

    async def make_room(self) -> None:
        """Return when one more connection may be opened; those that nobody uses make room. Raises VenueRateLimited."""
        while self.limits.connections is not None and len(self.connections) >= self.limits.connections:
            closing = [connection.closing for connection in self.connections if connection.end_if_unused()]
            if not closing:
                raise VenueRateLimited(
                    f"{self.name} allows no further connection for its messages.", retry_after=_NO_ROOM_DELAY
                )
            await asyncio.wait([task for task in closing if task is not None])

    def forget(self, connection: PushConnection) -> None:
        """The connection has ended: it counts until its socket is closed."""
        assert connection.closing is not None
        connection.closing.add_done_callback(lambda _: self.connections.discard(connection))


class _Connections:
    """The open connections of one language; one is opened at a time, and not at once after one that failed."""

    def __init__(self, venue: _Venue) -> None:
        self._venue = venue
        self._open: list[PushConnection] = []
        self._opening = asyncio.Lock()
        self._failures = 0
        self._not_before = 0.0
        # The last attempt that failed: when it did, and why.
        self._failed_at = float("-inf")
        self._failure: ServiceError | None = None
        # How many accounts wait for a connection or follow one.
        self.users = 0
        self._closing = TaskSet()
        self._closed = False

    @property
    def idle(self) -> bool:
        """Whether nothing is lost if it is forgotten."""
        used = self.users or self._open or len(self._closing)
        return not used and asyncio.get_running_loop().time() >= self._not_before

    async def join(self, http: SocketOpener, language: PushLanguage, topics: Sequence[Topic]) -> PushConnection:
        """A connection with room for these topics. Raises a VenueError if there is none and none can be opened."""
        most = self._venue.limits.subscriptions
        if most is not None and len(topics) > most:
            raise NotSupported(
                f"{self._venue.name} pushes {most} topics on one connection, and this account has {len(topics)}."
            )
        asked_at = asyncio.get_running_loop().time()
        while True:
            connection = self._with_room(topics)
            if connection is not None:
                return connection
            async with self._opening:
                if self._with_room(topics) is not None:
                    continue
                if self._failure is not None and self._failed_at >= asked_at:
                    raise copy_of(self._failure)
                return await self._open_one(http, language)

    def _with_room(self, topics: Sequence[Topic]) -> PushConnection | None:
        return next((connection for connection in self._open if connection.has_room(topics)), None)

    async def _open_one(self, http: SocketOpener, language: PushLanguage) -> PushConnection:
        venue = self._venue
        await asyncio.sleep(max(0.0, self._not_before - asyncio.get_running_loop().time()))
        await venue.pace.wait()
        await venue.make_room()
        connection = PushConnection(language, venue.limits, venue.name, venue.traffic, self._on_end)
        venue.connections.add(connection)
        try:
            await self._try_to_open(connection, http)
        except BaseException:
            venue.connections.discard(connection)
            raise
        self._open.append(connection)
        return connection

    async def _try_to_open(self, connection: PushConnection, http: SocketOpener) -> None:
        try:
            await connection.open(http)
        except ServiceError as error:
            self._note_failure(error)
            raise
        except Exception as error:
            self._note_failure(
                PluginFailed(f"The plugin for {self._venue.name} failed with {type(error).__name__} at a connection.")
            )
            raise
        if self._closed:
            await connection.close()
            raise self._was_closed()

    def _on_end(self, connection: PushConnection, error: ServiceError | None) -> None:
        """A connection has ended: the next one waits, longer if this one had just begun."""
        if connection in self._open:
            self._open.remove(connection)
        self._venue.forget(connection)
        assert connection.closing is not None
        self._closing.add(connection.closing)
        if error is not None:
            if asyncio.get_running_loop().time() - connection.opened_at >= _LONGEST_PAUSE:
                self._failures = 0
            self._note_failure(error)

    def _note_failure(self, error: ServiceError) -> None:
        loop = asyncio.get_running_loop()
        # A power that grows without an end overflows.
        longest = min(_SHORTEST_PAUSE * 2 ** min(self._failures, 20), _LONGEST_PAUSE)
        self._failures += 1
        pause = longest * random.uniform(0.5, 1.0)  # noqa: S311
        self._not_before = loop.time() + max(pause, error.given_delay or 0.0)
        self._failed_at, self._failure = loop.time(), copy_of(error)

    def _was_closed(self) -> VenueUnavailable:
        return VenueUnavailable(f"The connection to {self._venue.name} was closed.")

    def end(self) -> None:
        """End every connection, and open no other."""
        self._closed = True
        for connection in list(self._open):
            connection.end(self._was_closed())

    async def wait_until_closed(self) -> None:
        """Return when the sockets of all that have ended are closed."""
        await self._closing.wait()


class _Pool:
    """The connections that one state holds, by the class, the address and the login of their language. Both may be
    secret, so they are the names of nothing that is shown."""

    def __init__(self) -> None:
        self._by_language: dict[Hashable, _Connections] = {}

    def connections(self, language: PushLanguage, venue: _Venue) -> _Connections:
        """The connections that this language shares."""
        # An address may be new each time, for example with a key that the venue lends.
        self._by_language = {key: value for key, value in self._by_language.items() if not value.idle}
        key = (type(language), language.url, language.login)
        return self._by_language.setdefault(key, _Connections(venue))

    async def close(self) -> None:
        """Close every connection."""
        for connections in self._by_language.values():
            connections.end()
        for connections in self._by_language.values():
            await connections.wait_until_closed()


@asynccontextmanager
async def subscribed(
    call: Watching, language: PushLanguage, topics: Sequence[Topic], *, state: State | None = None
) -> AsyncIterator[Subscription]:
    """Follow `topics` on a connection that all accounts with this language's `url` and `login` share, for the length of
    an `async with`; it is entered when the venue has acknowledged them.

    `state` holds the connections: the plugin's by default. Give `call.account_state` where a connection is one
    account's alone. Raises ValueError without a topic; a VenueError if the subscription does not come to stand:
    VenueRateLimited where the manifest's `PushLimits` leave no room, NotSupported where they never do.
    """
    if not topics:
        raise ValueError("a subscription has at least one topic")
    exchange = call.exchange

    async def make_venue() -> _Venue:
        return _Venue(exchange.name, exchange.push)

    async def make_pool() -> _Pool:
        return _Pool()

    host = urlsplit(language.url).netloc
    venue = await call.plugin_state.get(f"push limits {exchange.id} {host} {call.way}", make_venue)
    holder = call.plugin_state if state is None else state
    pool = await holder.get(f"push {exchange.id} {call.way}".rstrip(), make_pool, close=_Pool.close)
    connections = pool.connections(language, venue)
    subscription = Subscription(topics)
    connections.users += 1
    try:
        connection = await connections.join(call.http, language, subscription.topics)
        connection.follow(subscription)
        try:
            await subscription.stands()
            yield subscription
        finally:
            connection.leave(subscription)
    finally:
        connections.users -= 1
