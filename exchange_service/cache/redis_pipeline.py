"""Single commands to Redis by one connection: written as they come, answered in their order.

A command costs neither a task nor a timer of its own. One task writes what has gathered, one reads the answers, and one
timer looks at the command that has waited longest. An answer that is lost, or one too many, would give each command the
answer to another one; so while the connection is used, a word that must come back is sent now and then.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeAlias

from hiredis import pack_command
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError

from exchange_service.tasks import TaskSet

# Seconds between the end of a command's time and that of its connection.
_READ_FIRST = 0.01

Command: TypeAlias = tuple[str | bytes | int, ...]
# In C, as redis-py's blocking client does it; in its asyncio client this would be a third of a command's cost. Its
# stub has a tuple of one.
_pack: Callable[[Command], bytes] = pack_command  # type: ignore[assignment]


class RedisPipeline:
    """The connection that is asked at present; when it has ended, the next command opens another one."""

    def __init__(self, make_connection: Callable[[], Any], tasks: TaskSet, *, limit: float) -> None:
        """`make_connection` makes a connection of redis-py, without time limits of its own, that is not connected yet.
        `tasks` run it, and end it. No command is waited for longer than `limit` seconds."""
        self._make_connection = make_connection
        self._tasks = tasks
        self._limit = limit
        self._line: _Line | None = None
        self._closed = False

    def ask(self, *command: str | bytes | int) -> asyncio.Future[Any]:
        """What Redis answers. Raises the library's ResponseError if that is an error, its ConnectionError if the
        connection ends before, and TimeoutError if the answer comes too late.

        A caller that is cancelled disturbs no other one.
        """
        line = self._line
        if line is None or line.ended:
            line = self._line = self._open()
        return line.ask(command)

    def _open(self) -> _Line:
        if self._closed:
            # A connection that began now would never be closed.
            raise RedisConnectionError("the link is closed")
        return _Line(self._make_connection(), self._tasks, self._limit)

    def reconnect(self) -> None:
        """Use another connection for the commands to come; the present one ends with its last answer."""
        line, self._line = self._line, None
        if line is not None:
            line.finish()

    def close(self) -> None:
        """Take no commands any more. The connection ends with its task."""
        self._closed = True


class _Line:
    """One connection, its commands that are not written yet, and all that are not answered."""

    def __init__(self, connection: Any, tasks: TaskSet, limit: float) -> None:
        self._connection = connection
        self._tasks = tasks
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._unsent: list[bytes] = []
        self._asked = asyncio.Event()
        # When each was asked, the oldest first.
        self._unanswered: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        # Whether anything was asked since the timer last looked.
        self._used = False
        self._finishing = False
        self._error: Exception = RedisConnectionError("the link is closed")
        # Without the context of the caller that happens to be the first one.
        self._task = self._loop.create_task(self._run(), name="redis pipeline", context=Context())
        # Not by the task itself, which may be cancelled before it begins.
        self._task.add_done_callback(self._fail)
        tasks.add(self._task)

    @property
    def ended(self) -> bool:
        """Whether it takes no commands any more."""
        return self._finishing or self._task.done()

    def ask(self, command: Command) -> asyncio.Future[Any]:
        # What cannot be packed is its caller's own failure.
        packed = _pack(command)
        self._used = True
        answer = self._loop.create_future()
        now = self._loop.time()
        self._unanswered.append((now, answer))
        self._unsent.append(packed)
        self._asked.set()
        if self._timer is None:
            self._timer = self._loop.call_at(now + self._limit, self._look)
        return answer

    def _look(self) -> None:
        """End the connection if its oldest command is not answered in time; look again when the next one is due."""
        now = self._loop.time()
        due = (self._unanswered[0][0] if self._unanswered else now) + self._limit
        if now >= due:
            # If the event loop was late itself, the answer may be there: it is read first.
            self._timer = self._loop.call_later(_READ_FIRST, self._end_without, self._unanswered[0][1])
        elif self._used or self._unanswered:
            self._timer = self._loop.call_at(due, self._look)
            self._ask_for_a_word()
            self._used = False
        else:
            self._timer = None

    def _end_without(self, answer: asyncio.Future[Any]) -> None:
        """End the connection if this is still what it owes first."""
        if self._unanswered and self._unanswered[0][1] is answer:
            self._end(TimeoutError())
        else:
            self._look()

    def _ask_for_a_word(self) -> None:
        """End the connection if another word comes back: then its answers are no longer those to its commands."""
        word = secrets.token_hex(8).encode()

        def compare(answer: asyncio.Future[Any]) -> None:
            if not answer.exception() and answer.result() != word:
                self._end(InvalidResponse("answers in another order than the commands"))

        self.ask(("PING", word)).add_done_callback(compare)

    def _end(self, error: Exception) -> None:
        self._error = error
        # What is asked before the task ends needs another connection.
        self._finishing = True
        self._task.cancel()

    def finish(self) -> None:
        """Take no commands any more, and end with the last answer."""
        self._finishing = True
        if not self._unanswered:
            self._task.cancel()

    async def _run(self) -> None:
        """Connect, then write commands and read answers until the connection ends."""
        writing: asyncio.Task[None] | None = None
        try:
            await self._connection.connect()
            writing = self._tasks.start(self._write(), name="redis pipeline, writing")
            await self._read()
        except Exception as error:
            self._error = error
        finally:
            if writing is not None:
                writing.cancel()
            await self._connection.disconnect(nowait=True)

    async def _write(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            commands, self._unsent = self._unsent, []
            # Without a look at the connection's health: its answer would come among ours.
            await self._connection.send_packed_command(b"".join(commands), check_health=False)

    async def _read(self) -> None:
        while not self._finishing or self._unanswered:
            try:
                answer = await self._connection.read_response()
            except ResponseError as error:
                answer = error
            if not self._unanswered:
                raise InvalidResponse("an answer that nobody has asked for")
            _settle(self._unanswered.popleft()[1], answer)

    def _fail(self, _: asyncio.Task[None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for _asked, answer in self._unanswered:
            _settle(answer, self._error)
        self._unanswered.clear()


def _settle(future: asyncio.Future[Any], answer: object) -> None:
    """Give the answer to its caller, if there still is one."""
    if future.done():
        return
    if isinstance(answer, Exception):
        future.set_exception(answer)
        # Or asyncio logs it when the caller goes at this very moment.
        future.exception()
    else:
        future.set_result(answer)
