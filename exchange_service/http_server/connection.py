"""One connection of HTTP/1.1: uvicorn's, with a limit for all that a peer may leave unfinished."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

# Seconds in which the whole head of a request has to come, from its first byte or from the connection's begin.
HEAD_LIMIT = 10.0
# Seconds that a closed connection has to take what was written to it.
_LAST_BYTES = 5.0


class Connection(H11Protocol):
    """Closes itself if a request's head does not come to its end, or if the peer does not read.

    Bodies are limited by the guards, which read them whole, and idle connections by uvicorn.
    """

    # Seconds for which the peer may leave a full buffer unread; set by the server.
    write_limit = 35.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head_timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A peer has connected, and after that has the time for a head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Bytes have come: an idle connection has begun a head, or ended it."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop(self._head_timer)
            self._head_timer = None
        elif self._head_timer is None and self.timeout_keep_alive_task is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._stop(self._head_timer)
        self._stop(self._read_timer)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The buffer is full: the peer has to read."""
        super().pause_writing()
        self._stop(self._read_timer)
        self._read_timer = self.loop.call_later(self.write_limit, self.transport.abort)

    def resume_writing(self) -> None:
        """The peer has read."""
        super().resume_writing()
        self._stop(self._read_timer)
        self._read_timer = None

    def timeout_keep_alive_handler(self) -> None:
        """The connection has been idle for too long."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def shutdown(self) -> None:
        """The server ends: the response in progress is the last."""
        super().shutdown()
        if self.transport.is_closing():
            self._abort_later()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_LIMIT, self._end_silent)

    def _end_silent(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            if self.conn.our_state is not h11.ERROR:
                self.conn.send(h11.ConnectionClosed())
            self.transport.close()
            self._abort_later()

    def _abort_later(self) -> None:
        # Closing waits until the peer has read what was written, and it may never do so.
        self.loop.call_later(_LAST_BYTES, self.transport.abort)

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
