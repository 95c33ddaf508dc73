"""One end of the connection between the service and a plugin's process: frames in, frames out, within bounds."""

from __future__ import annotations

import asyncio
from typing import cast

from exchange_service.plugin_host.frames import Frame, FrameError, FrameReader, Kind, write_frame

# Frames that are taken in one turn of the event loop: the other end may send as fast as it can.
_FRAMES_A_TURN = 32
# Bytes that wait to be sent, beyond which nothing further is sent until the other end has read.
_MOST_UNSENT = 256 * 1024


class FramePort(asyncio.Protocol):
    """An end of the connection. A subclass says what its frames mean.

    `fault` says what the other end did against the rules, a part of a sentence; empty if it did nothing.
    """

    def __init__(self) -> None:
        self.fault = ""
        self.ended = False
        self._reader = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._next_turn: asyncio.Handle | None = None
        self._reading = True

    def take_frame(self, frame: Frame) -> None:
        """Act on a frame. Raises FrameError if it is against the rules, which ends the connection."""
        raise NotImplementedError

    def on_end(self) -> None:
        """The connection has ended."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_MOST_UNSENT)
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.ended = True
        if self._next_turn is not None:
            self._next_turn.cancel()
        # Those that wait to send find that it has ended.
        self._writable.set()
        self.on_end()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._reader.feed(data)
        if self._next_turn is None:
            self._take_turn()

    def _take_turn(self) -> None:
        """Take some frames, and leave the rest for later turns; meanwhile nothing is read."""
        self._next_turn = None
        try:
            for _ in range(_FRAMES_A_TURN):
                frame = None if self.ended else self._reader.read()
                if frame is None:
                    break
                self.take_frame(frame)
            else:
                self._next_turn = asyncio.get_running_loop().call_soon(self._take_turn)
        except FrameError as error:
            self.end(str(error))
        self._choose_reading()

    def _choose_reading(self) -> None:
        reading = self._next_turn is None
        if reading is self._reading or self._transport is None or self._transport.is_closing():
            return
        self._reading = reading
        if reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    async def writable(self) -> None:
        """Wait until the other end has read enough of what was sent, or the connection has ended."""
        while not self._writable.is_set():
            await self._writable.wait()

    def send(self, kind: Kind, number: int, body: bytes = b"") -> None:
        """Send a frame, unless the connection has ended."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(write_frame(kind, number, body))

    def end(self, fault: str = "") -> None:
        """End the connection at once; `fault`: what the other end did against the rules."""
        self.fault = self.fault or fault
        self.ended = True
        if self._transport is not None:
            self._transport.abort()
