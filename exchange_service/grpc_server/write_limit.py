"""Ends a stream whose subscriber leaves a message unread for too long, and no other."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from exchange_service.errors import SubscriberTooSlow
from exchange_service.grpc_server.handler_wrapper import Context


class WriteLimit:
    """The limit of `seconds` for each write of every stream.

    One timer looks after all writes under way, which stand here in the order in which they began: a timeout for each of
    them would cost more than all else that the service does for a message.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        # When each began, in the event loop's time.
        self._writing: dict[Writer, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def writer(self, context: Context) -> Writer:
        """For a stream, from its handler's own task."""
        return Writer(self, context)

    def begin(self, writer: Writer, loop: asyncio.AbstractEventLoop) -> None:
        """The writer writes from now on."""
        self._writing[writer] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self.seconds, self._look, loop)

    def end(self, writer: Writer) -> None:
        """It has written, or given up."""
        del self._writing[writer]

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake those who write for too long, and look again when the next one would."""
        self._timer = None
        now = loop.time()
        for writer, began in self._writing.items():
            if now < began + self.seconds:
                self._timer = loop.call_at(began + self.seconds, self._look, loop)
                return
            writer.give_up()


class Writer:
    """Writes the messages of one stream."""

    __slots__ = ("_context", "_late", "_limit", "_loop", "_task")

    def __init__(self, limit: WriteLimit, context: Context) -> None:
        task: asyncio.Task[Any] | None = asyncio.current_task()
        assert task is not None
        self._task = task
        # Kept, because asking for it costs a system call each time.
        self._loop = task.get_loop()
        self._limit = limit
        self._context = context
        self._late = False

    async def write(self, message: bytes) -> None:
        """Write; SubscriberTooSlow where that takes too long."""
        self._limit.begin(self, self._loop)
        try:
            await self._context.write(message)
        except asyncio.CancelledError:
            # Who leaves in the same moment has cancelled the call too, and is told nothing any more.
            if not self._late or self._task.uncancel():
                raise
            raise SubscriberTooSlow(f"A message lay unread for {self._limit.seconds:g} seconds.") from None
        except grpc.aio.InternalError:
            # The call ended under the write: the subscriber has left, which is no failure of ours.
            raise asyncio.CancelledError from None
        finally:
            self._limit.end(self)

    def give_up(self) -> None:
        """End the write that lasts too long."""
        if not self._late:
            self._late = True
            self._task.cancel()
