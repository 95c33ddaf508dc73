"""One open push connection: what is followed on it, and the messages that go and come."""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from contextvars import Context
from functools import partial
from typing import Any

from exchange_service.errors import (
    PluginFailed,
    ServiceError,
    VenueError,
    VenueMalformed,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.model import PushLimits
from exchange_service.plugin_kit.payload import parse_json
from exchange_service.plugin_kit.push_language import PushLanguage, Socket, SocketOpener, Topic
from exchange_service.plugin_kit.tasks import without_exit
from exchange_service.tasks import TaskSet, beside_the_loop, copy_of, without_origin

# Messages in a row that nobody can read, after which the connection is given up.
_MOST_UNREADABLE = 20
# Messages after which others get their turn, and characters of one that is read beside the loop.
_TURN = 20
_LARGE = 64 * 1024
# The part of a venue's limit on messages that is used: its minute is not ours.
_USED_PART = 0.9
# Seconds that a minute of a venue's limit lasts here: messages that left together may arrive apart.
_MINUTE = 62.0
# Seconds that ended tasks of a connection have until its socket is closed under them.
_ENDING_LIMIT = 1.0


def _place_of(error: Exception, language: PushLanguage) -> str:
    """The innermost function and line of the plugin that an exception has left, for its author; empty if none."""
    package = type(language).__module__.partition(".")[0]
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if frame.f_globals.get("__name__", "").partition(".")[0] == package:
            return f", in {frame.f_code.co_qualname}, line {line}"
    return ""


class Subscription:
    """What one account follows. Iterate over it: each turn gives what is known of every topic by now, as a mapping, if
    anything is new; several messages that came meanwhile are one turn. Ends with a VenueError when the push breaks."""

    def __init__(self, topics: Sequence[Topic]) -> None:
        # What is followed, each topic once.
        self.topics = tuple(dict.fromkeys(topics))
        # What is known of each topic by now.
        self.states: dict[Topic, Any] = {}
        self._news = asyncio.Event()
        self._begun: set[Topic] = set()
        self._standing = asyncio.Event()
        self._error: ServiceError | None = None

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Mapping[Topic, Any]:
        await self._news.wait()
        self._news.clear()
        if self._error is not None:
            self._news.set()
            raise self._error.with_traceback(None)
        return dict(self.states)

    async def next_within(self, seconds: float | None) -> Mapping[Topic, Any] | None:
        """The next turn, as iterating gives it; None if nothing is new within so many seconds, of which None sets no
        limit. No message is lost by that. For a watch whose figures also move without a message: it yields Changed()
        when this returns, whatever it returns. Raises as iterating does."""
        try:
            async with asyncio.timeout(seconds):
                return await anext(self)
        except TimeoutError:
            return None

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


class MinuteLimit:
    """Lets so many go in any minute; None: all."""

    def __init__(self, most: int | None) -> None:
        self._most = None if most is None else max(1, int(most * _USED_PART))
        # When the latest ones went.
        self._sent: deque[float] = deque(maxlen=self._most)

    async def wait(self) -> None:
        """Return when the next one may go, and count it."""
        loop = asyncio.get_running_loop()
        while len(self._sent) == self._most:
            left = self._sent[0] + _MINUTE - loop.time()
            if left <= 0:
                break
            await asyncio.sleep(left)
        self.count()

    def count(self) -> None:
        """Count one that cannot wait."""
        if self._most is not None:
            self._sent.append(asyncio.get_running_loop().time())


class Traffic:
    """What all connections to one venue may send together: venues count messages for the network address."""

    def __init__(self, limits: PushLimits) -> None:
        self.messages = MinuteLimit(limits.messages)
        # Free as long as another subscription may wait for the venue's word; None: any number may.
        self.unacknowledged = asyncio.Semaphore(limits.unacknowledged) if limits.unacknowledged else None


class _Followed:
    """One topic of a connection: which subscriptions follow it, and what is known of it."""

    def __init__(self) -> None:
        self.subscriptions: set[Subscription] = set()
        # Whether the venue was asked for it, and whether it has acknowledged it.
        self.requested = False
        self.begun = False
        self.state: Any = None
        # Set when the venue has acknowledged it or refused it, and when nobody follows it any more.
        self.answered = asyncio.Event()


class PushConnection:
    """One open socket and what is followed on it. `on_end` is called once, with the connection and the error that ended
    it; with None if it has ended because nobody used it."""

    def __init__(
        self,
        language: PushLanguage,
        limits: PushLimits,
        venue: str,
        traffic: Traffic,
        on_end: Callable[[PushConnection, ServiceError | None], None],
    ) -> None:
        self.language = language
        self.opened_at = 0.0
        self.ended = False
        # Closes the socket, once it has ended.
        self.closing: asyncio.Task[None] | None = None
        self._venue = venue
        self._limits = limits
        self._on_end = on_end
        self._topics: dict[Topic, _Followed] = {}
        # What is to be sent for subscriptions, in this order: a topic may be left and followed again at once.
        self._orders: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._traffic = traffic
        # How many of its subscriptions wait for the venue's word.
        self._waiting = 0
        self._tasks = TaskSet()
        self._stack = AsyncExitStack()
        self._socket: Socket | None = None
        self._lingering: asyncio.TimerHandle | None = None

    def has_room(self, topics: Sequence[Topic]) -> bool:
        """Whether these topics fit beside those that are followed."""
        most = self._limits.subscriptions
        new = sum(topic not in self._topics for topic in topics)
        return not self.ended and (most is None or len(self._topics) + new <= most)

    async def open(self, http: SocketOpener) -> None:
        """Connect and greet. Raises a VenueError."""
        language = self.language
        try:
            async with asyncio.timeout(language.opening_limit):
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
        self.opened_at = asyncio.get_running_loop().time()
        self._start(partial(self._read, self._socket), "messages")
        self._start(self._send_orders, "subscriptions")
        if language.keep_alive_every:
            self._start(self._keep_alive, "keep-alive")

    def _start(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        # In a context of its own: the account that opened it is one of many.
        guarded = self._end_if_it_fails(work, name)
        task = asyncio.get_running_loop().create_task(guarded, name=f"{name} of {self._venue}", context=Context())
        self._tasks.add(task)

    async def _end_if_it_fails(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        try:
            await without_exit(work, "a language")
        except ServiceError as error:
            self.end(error)
        except Exception as error:
            self.end(self._failure(error, name))

    def _failure(self, error: Exception, work: str) -> PluginFailed:
        # The exception's text stays here: it may hold what the venue sent.
        place = _place_of(error, self.language)
        return PluginFailed(f"The plugin for {self._venue} failed with {type(error).__name__} at its {work}{place}.")

    # What is followed.

    def follow(self, subscription: Subscription) -> None:
        """Begin to fill the subscription. `Subscription.stands` says when it is begun."""
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        for topic in subscription.topics:
            followed = self._topics.get(topic)
            if followed is None:
                followed = self._topics[topic] = _Followed()
                self._count()
                self._orders.put_nowait(partial(self._subscribe, topic, followed))
            followed.subscriptions.add(subscription)
            if followed.begun:
                subscription.begin(topic)
            if followed.state is not None:
                subscription.put(topic, followed.state)

    def leave(self, subscription: Subscription) -> None:
        """Undo `follow`; the last one to leave a topic ends its subscription at the venue."""
        left = []
        for topic in subscription.topics:
            followed = self._topics.get(topic)
            # It may have ended, and be followed again by another.
            if followed is None or subscription not in followed.subscriptions:
                continue
            followed.subscriptions.discard(subscription)
            if not followed.subscriptions:
                left.append((topic, followed))
        self._drop(left)

    def _drop(self, left: Sequence[tuple[Topic, _Followed]]) -> None:
        """Follow these topics no longer."""
        for topic, followed in left:
            del self._topics[topic]
            followed.answered.set()
        self._count()
        if left and not self.ended:
            self._orders.put_nowait(partial(self._unsubscribe, left))
        if not self._topics and not self.ended and self._lingering is None:
            self._lingering = asyncio.get_running_loop().call_later(self.language.linger, self.end_if_unused)

    def _end_topic(self, topic: Topic, followed: _Followed, error: ServiceError) -> None:
        """End what follows this topic, and nothing else."""
        if self._topics.get(topic) is followed:
            self._drop([(topic, followed)])
        for subscription in followed.subscriptions:
            subscription.end(copy_of(error))

    def _count(self) -> None:
        if self._socket is not None:
            self._socket.subscriptions = len(self._topics)

    # What goes.

    async def _send_orders(self) -> None:
        while True:
            order = await self._orders.get()
            await order()

    async def _subscribe(self, topic: Topic, followed: _Followed) -> None:
        if self._traffic.unacknowledged is not None:
            await self._traffic.unacknowledged.acquire()
        self._waiting += 1
        if self._topics.get(topic) is not followed:
            self._let_another_wait()
            return
        try:
            messages = list(self.language.subscribe([topic]))
        except VenueError as error:
            self._let_another_wait()
            self._end_topic(topic, followed, error)
            return
        followed.requested = True
        await self._send(messages)
        if not self.language.acknowledges:
            self._begin(topic, followed)
        self._start(partial(self._wait_for_answer, topic, followed), "acknowledgement")

    async def _wait_for_answer(self, topic: Topic, followed: _Followed) -> None:
        try:
            async with asyncio.timeout(self.language.acknowledging_limit):
                await followed.answered.wait()
        except TimeoutError:
            late = VenueTimeout(f"{self._venue} did not acknowledge a subscription in time.")
            self._end_topic(topic, followed, late)
        finally:
            self._let_another_wait()

    def _let_another_wait(self) -> None:
        if not self._waiting:
            # The connection has ended, and has let all others wait.
            return
        self._waiting -= 1
        if self._traffic.unacknowledged is not None:
            self._traffic.unacknowledged.release()

    async def _unsubscribe(self, left: Sequence[tuple[Topic, _Followed]]) -> None:
        topics = [topic for topic, followed in left if followed.requested]
        if topics:
            await self._send(self.language.unsubscribe(topics))

    async def _send(self, messages: Iterable[str]) -> None:
        assert self._socket is not None
        for message in messages:
            await self._traffic.messages.wait()
            await self._socket.send(message)

    async def _send_at_once(self, message: str) -> None:
        """Send what keeps the connection open: it waits for nothing."""
        assert self._socket is not None
        self._traffic.messages.count()
        await self._socket.send(message)

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self.language.keep_alive_every)
            message = self.language.keep_alive()
            await self._send_at_once(message if isinstance(message, str) else await message)

    # What comes.

    async def _read(self, socket: Socket) -> None:
        unreadable, count = 0, 0
        while True:
            text = await socket.receive()
            count += 1
            if count % _TURN == 0:
                # What has arrived already is read without a pause: others come first.
                await asyncio.sleep(0)
            try:
                message = parse_json(text) if len(text) < _LARGE else await beside_the_loop(parse_json, text)
                self._sort(message)
                unreadable = 0
            except VenueMalformed:
                unreadable += 1
                if unreadable >= _MOST_UNREADABLE:
                    raise VenueMalformed(f"{self._venue} sends messages that are not its own.") from None
                continue
            answer = self.language.reply(message)
            if answer is not None:
                await self._send_at_once(answer)

    def _sort(self, message: Any) -> None:
        for topic, part in self.language.read(message):
            followed = self._topics.get(topic)
            # Of an account that nobody follows here, or not any more.
            if followed is not None:
                self._take(topic, followed, part)

    def _take(self, topic: Topic, followed: _Followed, part: Any) -> None:
        """Pass a topic's part on to those that follow it, and what is wrong with it as well: to nobody else."""
        if isinstance(part, VenueError):
            # A subscription that the venue has refused need not be ended.
            followed.requested = followed.begun
            self._end_topic(topic, followed, part)
            return
        self._begin(topic, followed)
        if part is None:
            return
        try:
            state = self.language.state(topic, followed.state, part)
        except VenueError as error:
            self._end_topic(topic, followed, error)
            return
        except Exception as error:
            self._end_topic(topic, followed, self._failure(error, "messages"))
            return
        # A hint may be the same constant each time, so only a state that was left as it was is no news.
        if state is None or (state is followed.state and state is not part):
            return
        followed.state = state
        for subscription in followed.subscriptions:
            subscription.put(topic, state)

    def _begin(self, topic: Topic, followed: _Followed) -> None:
        followed.answered.set()
        if not followed.begun:
            followed.begun = True
            for subscription in followed.subscriptions:
                subscription.begin(topic)

    # The end.

    def end_if_unused(self) -> bool:
        """End it if nobody follows it and nobody has for a while. Returns whether it has ended, now or before."""
        if self._lingering is not None and not self._topics:
            self._end(VenueUnavailable(f"Nobody follows {self._venue} on this connection any more."), None)
        return self.ended

    def end(self, error: ServiceError) -> None:
        """End every subscription with this error, and close the socket."""
        self._end(error, error)

    def _end(self, error: ServiceError, reported: ServiceError | None) -> None:
        if self.ended:
            return
        self.ended = True
        if self._lingering is not None:
            self._lingering.cancel()
        for followed in self._topics.values():
            for subscription in followed.subscriptions:
                subscription.end(copy_of(error))
        self._topics.clear()
        # Not in the set: it ends what runs there, perhaps also what has called this.
        self.closing = asyncio.get_running_loop().create_task(
            self.close(), name=f"closing {self._venue}", context=Context()
        )
        self._on_end(self, reported)

    async def close(self) -> None:
        """Close the socket and end what runs."""
        self._tasks.cancel()
        await self._tasks.wait(_ENDING_LIMIT)
        while self._waiting:
            self._let_another_wait()
        await self._stack.aclose()
