"""A venue's push connection that many accounts share: subscriptions, sorting, keep-alive, silence, pauses.

A plugin says how its venue's socket is spoken in a `PushLanguage`, and follows topics with `subscribed`:

    async with subscribed(call, AcmeLanguage(call.url("push")), [f"balance/{number}"]) as subscription:
        yield Changed()
        async for states in subscription:
            yield parse.balance(states)
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import AsyncIterator, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from contextvars import Context
from typing import Any, Protocol, TypeAlias

from exchange_service.errors import (
    PluginFailed,
    ServiceError,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.model import ExchangeMetadata, PushLimits
from exchange_service.plugin_kit.payload import parse_json
from exchange_service.plugin_kit.state import State
from exchange_service.tasks import TaskSet, beside_the_loop, without_origin

Topic: TypeAlias = Hashable

# Seconds that opening a connection with its greeting may take, and the acknowledgement of a subscription.
_OPENING_LIMIT = 10.0
_SUBSCRIBING_LIMIT = 15.0
# Seconds before the next connection after one that failed: twice as long each time, from the first to the second, and
# up to half of that less, by chance.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
# Seconds after which a connection that nobody follows is closed: the next account need not open another one.
_LINGER = 5.0
# Messages in a row that nobody can read, after which the connection is given up.
_MOST_UNREADABLE = 20
# Messages after which others get their turn, and characters of one that is read beside the loop.
_TURN = 20
_LARGE = 64 * 1024
# The part of a venue's limit on messages that is used: its minute is not ours.
_USED_PART = 0.9
_MINUTE = 60.0


class Socket(Protocol):
    """An open WebSocket of a venue."""

    async def send(self, message: str) -> None:
        """Send a text message. Raises VenueUnavailable if the connection has ended."""

    async def receive(self) -> str:
        """The next message. Raises VenueUnavailable when the connection ends, VenueTimeout when the venue is silent,
        VenueMalformed for a message that is too large."""


class SocketOpener(Protocol):
    """The part of `plugin_api.Http` that opens sockets."""

    def websocket(
        self, url: str, *, headers: Mapping[str, str] | None = None, silence: float = 60.0, ping: float = 20.0
    ) -> AbstractAsyncContextManager[Socket]:
        """See `plugin_api.Http`."""


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


class PushLanguage:
    """How one venue's socket is spoken. Subclass it, and override what the venue needs.

    One connection is shared by all who follow topics with a language of the same `url` and `login`.
    """

    # Seconds without a message after which the connection counts as broken, and between two pings of WebSocket itself.
    silence = 60.0
    ping = 20.0
    # Seconds between two messages of `keep_alive`; 0: none are sent.
    keep_alive_every = 0.0
    # Whether the venue acknowledges each subscription: `read` then gives an (topic, None) pair for it, or a state.
    acknowledges = True

    def __init__(self, url: str, login: str = "") -> None:
        """`login` tells connections apart that are logged in for different users; it may be a secret."""
        self.url = url
        self.login = login

    def __repr__(self) -> str:
        return type(self).__name__

    def headers(self) -> Mapping[str, str]:
        """The headers of the handshake."""
        return {}

    async def open(self, socket: Socket) -> None:
        """Say and wait for what comes before the first subscription, such as a login."""

    def keep_alive(self) -> str:
        """The message that keeps the connection open."""
        raise NotImplementedError

    def subscribe(self, topics: Sequence[Topic]) -> Iterable[str]:
        """The messages that subscribe to these topics."""
        raise NotImplementedError

    def unsubscribe(self, topics: Sequence[Topic]) -> Iterable[str]:
        """The messages that end these subscriptions; empty if the venue knows none."""
        return ()

    def reply(self, message: Any) -> str | None:
        """What a message of the venue is to be answered with, such as a pong; None: nothing."""
        return None

    def read(self, message: Any) -> Iterable[tuple[Topic, Any]]:
        """Sort a message, a JSON value with exact numbers: each part with the topic that the message itself names.

        A part of None acknowledges the topic's subscription; a VenueError ends it with this error. A message that
        concerns no topic gives nothing. Raises VenueMalformed for what is not a message of the venue, and another
        VenueError to end the whole connection.
        """
        raise NotImplementedError

    def state(self, topic: Topic, before: Any, part: Any) -> Any:
        """What is known of the topic after this part; `before` is what was known, None at first. Return None as long as
        it is not whole. The part itself, unless you override it for a venue that sends only what changed."""
        return part


class Subscription:
    """What one account follows. Iterate over it: each turn gives what is known of every topic by now, as a mapping, if
    anything is new; several messages that came meanwhile are one turn. Ends with a VenueError when the push breaks."""

    def __init__(self, topics: Sequence[Topic]) -> None:
        self.topics = tuple(dict.fromkeys(topics))
        self.states: dict[Topic, Any] = {}
        self._news = asyncio.Event()
        self._begun: set[Topic] = set()
        self._standing = asyncio.Event()
        self._error: VenueError | ServiceError | None = None

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Mapping[Topic, Any]:
        await self._news.wait()
        self._news.clear()
        if self._error is not None:
            self._news.set()
            raise self._error.with_traceback(None)
        return dict(self.states)

    async def stands(self) -> None:
        """Wait until the venue has acknowledged every topic. Raises what ended the subscription meanwhile."""
        await self._standing.wait()
        if self._error is not None:
            raise self._error.with_traceback(None)

    def begin(self, topic: Topic) -> None:
        """The topic's subscription stands."""
        self._begun.add(topic)
        if len(self._begun) == len(self.topics):
            self._standing.set()

    def put(self, topic: Topic, state: Any) -> None:
        """The topic's new state."""
        self.states[topic] = state
        self._news.set()

    def end(self, error: ServiceError) -> None:
        """Nothing more comes."""
        if self._error is None:
            self._error = without_origin(error)
        self._news.set()
        self._standing.set()


class _MinuteLimit:
    """Lets so many messages go in any minute; None: all."""

    def __init__(self, most: int | None) -> None:
        self._most = None if most is None else max(1, int(most * _USED_PART))
        self._sent: deque[float] = deque()

    async def wait(self) -> None:
        """Return when the next message may go, and count it."""
        loop = asyncio.get_running_loop()
        while self._most is not None:
            now = loop.time()
            while self._sent and self._sent[0] <= now - _MINUTE:
                self._sent.popleft()
            if len(self._sent) < self._most:
                self._sent.append(now)
                return
            await asyncio.sleep(self._sent[0] + _MINUTE - now)


class _Followed:
    """One topic of a connection: who follows it, and what is known of it."""

    def __init__(self) -> None:
        self.subscriptions: set[Subscription] = set()
        self.begun = False
        self.state: Any = None
        # Set when the venue has acknowledged it or refused it, and nobody follows it any more.
        self.answered = asyncio.Event()


class _Connection:
    """One open socket and what is followed on it."""

    def __init__(self, language: PushLanguage, limits: PushLimits, venue: str) -> None:
        self.language = language
        self._venue = venue
        self._limits = limits
        self._topics: dict[Topic, _Followed] = {}
        self._pace = _MinuteLimit(limits.messages)
        self._waiting = asyncio.Semaphore(limits.unacknowledged) if limits.unacknowledged else None
        self._tasks = TaskSet()
        self._stack = AsyncExitStack()
        self._socket: Socket | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self.error: ServiceError | None = None

    @property
    def ended(self) -> bool:
        """Whether it is of no use any more."""
        return self.error is not None

    def __len__(self) -> int:
        return len(self._topics)

    def has_room(self, topics: Sequence[Topic]) -> bool:
        """Whether these topics fit beside those that are followed."""
        most = self._limits.subscriptions
        new = sum(topic not in self._topics for topic in topics)
        return not self.ended and (most is None or len(self._topics) + new <= most)

    async def open(self, http: SocketOpener) -> None:
        """Connect and greet. Raises a VenueError."""
        language = self.language
        try:
            async with asyncio.timeout(_OPENING_LIMIT):
                opening = http.websocket(
                    language.url, headers=language.headers(), silence=language.silence, ping=language.ping
                )
                self._socket = await self._stack.enter_async_context(opening)
                await language.open(self._socket)
        except BaseException as error:
            await self._stack.aclose()
            if isinstance(error, TimeoutError):
                raise VenueTimeout(f"{self._venue} did not open a connection for its messages in time.") from None
            raise
        self._start(self._read(self._socket), "messages")
        if language.keep_alive_every:
            self._start(self._keep_alive(), "keep-alive")

    def _start(self, work: Any, name: str) -> None:
        # In a context of its own: the account that opened it is one of many.
        task = asyncio.get_running_loop().create_task(work, name=f"{name} of {self._venue}", context=Context())
        self._tasks.add(task)

    def follow(self, subscription: Subscription) -> None:
        """Begin to fill the subscription. `Subscription.stands` says when it is begun."""
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        new = []
        for topic in subscription.topics:
            followed = self._topics.get(topic)
            if followed is None:
                followed = self._topics[topic] = _Followed()
                new.append(topic)
            followed.subscriptions.add(subscription)
            if followed.begun:
                subscription.begin(topic)
            if followed.state is not None:
                subscription.put(topic, followed.state)
        if new:
            self._start(self._subscribe(new), "subscribing")

    async def _subscribe(self, topics: Sequence[Topic]) -> None:
        """Subscribe to one topic after the other, as the venue's limits allow."""
        for topic in topics:
            followed = self._topics.get(topic)
            if followed is None:
                continue
            if self._waiting is not None:
                await self._waiting.acquire()
            await self._send_or_end(self.language.subscribe([topic]))
            if not self.language.acknowledges:
                self._begin(topic, followed)
            self._start(self._wait_for_answer(followed), "acknowledgement")

    async def _wait_for_answer(self, followed: _Followed) -> None:
        try:
            async with asyncio.timeout(_SUBSCRIBING_LIMIT):
                await followed.answered.wait()
        except TimeoutError:
            _end_topic(followed, VenueTimeout(f"{self._venue} did not acknowledge a subscription in time."))
        finally:
            if self._waiting is not None:
                self._waiting.release()

    def _begin(self, topic: Topic, followed: _Followed) -> None:
        followed.answered.set()
        if not followed.begun:
            followed.begun = True
            for subscription in followed.subscriptions:
                subscription.begin(topic)

    def leave(self, subscription: Subscription) -> None:
        """Undo `follow`; the last one to leave a topic ends its subscription at the venue."""
        gone = []
        for topic in subscription.topics:
            followed = self._topics.get(topic)
            if followed is None:
                continue
            followed.subscriptions.discard(subscription)
            if not followed.subscriptions:
                del self._topics[topic]
                followed.answered.set()
                gone.append(topic)
        if gone and not self.ended and (messages := list(self.language.unsubscribe(gone))):
            self._start(self._send_or_end(messages), "unsubscribing")
        if not self._topics and not self.ended:
            self._lingering = asyncio.get_running_loop().call_later(_LINGER, self._end_unused)

    def _end_unused(self) -> None:
        if not self._topics:
            self.end(VenueUnavailable(f"Nobody follows {self._venue} on this connection any more."))

    async def _send_or_end(self, messages: Iterable[str]) -> None:
        assert self._socket is not None
        try:
            for message in messages:
                await self._pace.wait()
                await self._socket.send(message)
        except ServiceError as error:
            self.end(error)

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self.language.keep_alive_every)
            await self._send_or_end([self.language.keep_alive()])

    async def _read(self, socket: Socket) -> None:
        try:
            await self._read_on(socket)
        except ServiceError as error:
            self.end(error)
        except Exception as error:
            # Its text stays here: it may hold what the venue sent.
            self.end(PluginFailed(f"The plugin for {self._venue} failed with {type(error).__name__} at a message."))

    async def _read_on(self, socket: Socket) -> None:
        unreadable, count = 0, 0
        while True:
            text = await socket.receive()
            count += 1
            if count % _TURN == 0:
                # What has arrived already is read without a pause: others come first.
                await asyncio.sleep(0)
            try:
                message = parse_json(text.encode()) if len(text) < _LARGE else await beside_the_loop(_parse, text)
                self._sort(message)
                unreadable = 0
            except VenueMalformed:
                unreadable += 1
                if unreadable >= _MOST_UNREADABLE:
                    raise VenueMalformed(f"{self._venue} sends messages that are not its own.") from None
                continue
            answer = self.language.reply(message)
            if answer is not None:
                await socket.send(answer)

    def _sort(self, message: Any) -> None:
        for topic, part in self.language.read(message):
            followed = self._topics.get(topic)
            # Of an account that nobody follows here, or not any more.
            if followed is not None:
                self._take(topic, followed, part)

    def _take(self, topic: Topic, followed: _Followed, part: Any) -> None:
        """Pass a topic's part on to those that follow it, and what is wrong with it as well: to nobody else."""
        followed.answered.set()
        if isinstance(part, VenueError):
            _end_topic(followed, part)
            return
        self._begin(topic, followed)
        if part is None:
            return
        try:
            state = self.language.state(topic, followed.state, part)
        except VenueError as error:
            _end_topic(followed, error)
            return
        if state is None or state is followed.state:
            return
        followed.state = state
        for subscription in followed.subscriptions:
            subscription.put(topic, state)

    def end(self, error: ServiceError) -> None:
        """End every subscription with this error, and close the socket."""
        if self.ended:
            return
        self.error = without_origin(error)
        if self._lingering is not None:
            self._lingering.cancel()
        for followed in self._topics.values():
            followed.answered.set()
            for subscription in followed.subscriptions:
                subscription.end(_copy_of(error))
        self._topics.clear()
        # Not in the set: it ends what runs there, perhaps also what has called this.
        self._closing = asyncio.get_running_loop().create_task(self.close(), name=f"closing {self._venue}")

    async def close(self) -> None:
        """Close the socket and end what runs."""
        self._tasks.cancel()
        await self._stack.aclose()


def _end_topic(followed: _Followed, error: VenueError) -> None:
    for subscription in followed.subscriptions:
        subscription.end(_copy_of(error))


def _parse(text: str) -> Any:
    return parse_json(text.encode())


def _copy_of(error: ServiceError) -> ServiceError:
    """The same error for one more receiver."""
    return type(error)(error.message, retry_after=error.given_delay, advice=error.advice)


class _Connections:
    """The open connections of one language; one is opened at a time, and not at once after one that failed."""

    def __init__(self, venue: str, limits: PushLimits) -> None:
        self._venue = venue
        self._limits = limits
        self._open: list[_Connection] = []
        self._opening = asyncio.Lock()
        self._pace = _MinuteLimit(limits.connects)
        self._failures = 0
        self._not_before = 0.0
        # The last attempt that failed: when it did, and why.
        self._failed_at = float("-inf")
        self._failure: ServiceError | None = None

    async def join(self, http: SocketOpener, language: PushLanguage, topics: Sequence[Topic]) -> _Connection:
        """A connection with room for these topics. Raises a VenueError if there is none and none can be opened."""
        asked_at = asyncio.get_running_loop().time()
        while True:
            connection = self._with_room(topics)
            if connection is not None:
                return connection
            async with self._opening:
                if self._with_room(topics) is not None:
                    continue
                if self._failure is not None and self._failed_at >= asked_at:
                    raise _copy_of(self._failure)
                return await self._open_one(http, language)

    def _with_room(self, topics: Sequence[Topic]) -> _Connection | None:
        self._open = [connection for connection in self._open if not connection.ended]
        return next((connection for connection in self._open if connection.has_room(topics)), None)

    async def _open_one(self, http: SocketOpener, language: PushLanguage) -> _Connection:
        if self._limits.connections is not None and len(self._open) >= self._limits.connections:
            raise VenueRateLimited(f"{self._venue} allows no further connection for its messages.", retry_after=_MINUTE)
        await asyncio.sleep(max(0.0, self._not_before - asyncio.get_running_loop().time()))
        await self._pace.wait()
        connection = _Connection(language, self._limits, self._venue)
        try:
            await connection.open(http)
        except ServiceError as error:
            self._note_failure(error)
            raise
        self._open.append(connection)
        return connection

    def note_end(self, connection: _Connection) -> None:
        """A connection that was followed has ended: the next one waits, longer if none has brought anything."""
        if connection in self._open and connection.ended:
            self._open.remove(connection)
            assert connection.error is not None
            self._note_failure(connection.error)

    def note_success(self) -> None:
        """A subscription stands."""
        self._failures = 0

    def _note_failure(self, error: ServiceError) -> None:
        loop = asyncio.get_running_loop()
        pause = min(_SHORTEST_PAUSE * 2**self._failures, _LONGEST_PAUSE) * random.uniform(0.5, 1.0)  # noqa: S311
        self._failures += 1
        self._not_before = loop.time() + max(pause, min(error.given_delay or 0.0, _LONGEST_PAUSE))
        self._failed_at, self._failure = loop.time(), without_origin(error)

    async def close(self) -> None:
        """Close every connection."""
        for connection in self._open:
            connection.end(VenueUnavailable(f"The connection to {self._venue} was closed."))
        self._open.clear()


@asynccontextmanager
async def subscribed(
    call: Watching, language: PushLanguage, topics: Sequence[Topic], *, state: State | None = None
) -> AsyncIterator[Subscription]:
    """Follow `topics` on a connection that all accounts with this language's `url` and `login` share, for the length of
    an `async with`; it is entered when the venue has acknowledged them.

    `state` holds the connections: the plugin's by default. Give `call.account_state` where a connection is one
    account's alone. Raises a VenueError if the subscription does not come to stand: VenueRateLimited where the
    manifest's `PushLimits` leave no room.
    """
    holder = call.plugin_state if state is None else state

    async def make() -> _Connections:
        return _Connections(call.exchange.name, call.exchange.push)

    # The login may be a secret, and names are shown.
    login = hashlib.sha256(language.login.encode()).hexdigest()[:16] if language.login else ""
    name = f"push {type(language).__qualname__} {language.url} {login}"
    connections = await holder.get(name, make, close=_Connections.close)
    subscription = Subscription(topics)
    connection = await connections.join(call.http, language, subscription.topics)
    connection.follow(subscription)
    try:
        await subscription.stands()
        connections.note_success()
        yield subscription
    finally:
        connection.leave(subscription)
        connections.note_end(connection)
