"""Ends a stream whose subscriber leaves a message unread for too long, and no other stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from exchange_service.errors import SubscriberTooSlow
from exchange_service.grpc_server.handler_wrapper import Context


class WriteLimit:
    """The limit of `seconds` for each write of every stream. `on_written` is called after each write.

    One timer covers all writes in progress, which are kept in the order in which they began. A timeout for each write
    would cost more than the rest of the work for a message.
    """

    def __init__(self, seconds: float, on_written: Callable[[], None] = lambda: None) -> None:
        self.seconds = seconds
        self.on_written = on_written
        # The start of each write, in the event loop's time.
        self._writing: dict[Writer, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def writer(self, context: Context) -> Writer:
        """The writer of a stream. Call it in the task of the stream's handler."""
        return Writer(self, context)

    def begin(self, writer: Writer, loop: asyncio.AbstractEventLoop) -> None:
        """Note that the writer begins a write."""
        self._writing[writer] = loop.time()
        if self._timer is None:
            self._timer = loop.call_later(self.seconds, self._cancel_late_writes, loop)

    def end(self, writer: Writer) -> None:
        """Note that the writer's write has ended."""
        del self._writing[writer]

    def _cancel_late_writes(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel the writes that take too long, and set the timer for the next one."""
        self._timer = None
        now = loop.time()
        for writer, began in self._writing.items():
            if now < began + self.seconds:
                self._timer = loop.call_at(began + self.seconds, self._cancel_late_writes, loop)
                return
            writer.cancel()


class Writer:
    """Writes the messages of one stream."""

    __slots__ = ("_context", "_late", "_limit", "_loop", "_send", "_task")

    def __init__(self, limit: WriteLimit, context: Context) -> None:
        task: asyncio.Task[Any] | None = asyncio.current_task()
        assert task is not None
        self._task = task
        # Stored, because asking for it costs a system call each time.
        self._loop = task.get_loop()
        self._limit = limit
        self._context = context
        self._late = False
        self._send: Callable[[bytes], bool] | None = getattr(context, "try_write", None)

    @property
    def is_direct(self) -> bool:
        """Whether the transport can send without waiting, for `try_write`."""
        return self._send is not None

    def try_write(self, message: bytes) -> bool:
        """Write a message if it can be sent at once; False if not, or if the call has ended."""
        if self._send is None or not self._send(message):
            return False
        self._limit.on_written()
        return True

    async def write(self, message: bytes) -> None:
        """Write a message. Raises SubscriberTooSlow if that takes too long."""
        self._limit.begin(self, self._loop)
        try:
            await self._context.write(message)
        except asyncio.CancelledError:
            # A subscriber that leaves at the same moment has cancelled the call too, and no error is sent.
            if not self._late or self._task.uncancel():
                raise
            raise SubscriberTooSlow(f"A message lay unread for {self._limit.seconds:g} seconds.") from None
        except grpc.aio.InternalError:
            # The call ended during the write: the subscriber has left, which is not our failure.
            raise asyncio.CancelledError from None
        finally:
            self._limit.end(self)
        self._limit.on_written()

    def cancel(self) -> None:
        """Cancel the write that takes too long."""
        if not self._late:
            self._late = True
            self._task.cancel()
