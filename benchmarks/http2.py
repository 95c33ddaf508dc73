"""A small HTTP/2 client: it sends one request again and again, or opens thousands of streams, at a small part of the
cost of the server that it measures.

gRPC's own Python client stops near 9,000 requests a second, so it would measure itself. This one knows only
the HTTP/2 that a measurement on loopback needs: it writes header blocks once and uncompressed, does not read those
that come, and counts a call as answered when a whole message has arrived.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_LARGEST_WINDOW = 2**31 - 1
# How many bytes of a connection may come before more are allowed.
_WINDOW_STEP = 2**28
_INITIAL_WINDOW_SIZE = 4
_head = struct.Struct(">HBBBI")


def request_headers(port: int, path: str, metadata: Sequence[tuple[str, str]]) -> bytes:
    """The header block of a gRPC call, every field as a literal."""
    fields = (
        *((":method", "POST"), (":scheme", "http"), (":path", path), (":authority", f"127.0.0.1:{port}")),
        *(("content-type", "application/grpc"), ("te", "trailers")),
        *metadata,
    )
    return b"".join(b"\x00" + _literal(name) + _literal(value) for name, value in fields)


def _literal(text: str) -> bytes:
    data = text.encode()
    length = len(data)
    if length < 127:
        return bytes([length]) + data
    prefix, rest = bytearray([127]), length - 127
    while rest >= 128:
        prefix.append(rest % 128 + 128)
        rest //= 128
    return bytes([*prefix, rest]) + data


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame as it goes over the wire."""
    return _head.pack(len(payload) >> 8, len(payload) & 0xFF, kind, flags, stream) + payload


@dataclass(slots=True)
class _Incoming:
    """The part of a stream's next message that has arrived."""

    data: bytes = b""


class Connection(asyncio.Protocol):
    """One connection. `message(stream, bytes, arrival)` is called for each whole message; `arrival` is
    when it was read, in seconds since the epoch; `ended(stream)` when the server has ended a stream, whichever way."""

    def __init__(self, message: Callable[[int, bytes, float], None], ended: Callable[[int], None]) -> None:
        self._message = message
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._partial: dict[int, _Incoming] = {}
        self._next_stream = 1
        self._taken = 0
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the preface, and open all windows as far as HTTP/2 allows."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        settings = struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)
        window = struct.pack(">I", _LARGEST_WINDOW - 65_535)
        transport.write(_PREFACE + frame(_SETTINGS, 0, 0, settings) + frame(_WINDOW_UPDATE, 0, 0, window))

    def connection_lost(self, error: Exception | None) -> None:
        """The connection has ended."""
        if not self.closed.done():
            self.closed.set_result(None)

    def prepared(self, headers: bytes, request: bytes) -> tuple[bytes, bytes]:
        """The two payloads of a call, to be sent by `send`."""
        return headers, b"\x00" + struct.pack(">I", len(request)) + request

    def send(self, calls: Sequence[tuple[bytes, bytes]]) -> list[int]:
        """Make these calls at once. Returns their streams."""
        assert self._transport is not None
        streams, out = [], []
        for headers, body in calls:
            stream, self._next_stream = self._next_stream, self._next_stream + 2
            streams.append(stream)
            out += frame(_HEADERS, _END_HEADERS, stream, headers), frame(_DATA, _END_STREAM, stream, body)
        self._transport.write(b"".join(out))
        return streams

    def data_received(self, data: bytes) -> None:
        """Split the bytes into frames and handle each."""
        now = time.time()
        self._window(len(data))
        data = self._rest + data
        at, end = 0, len(data)
        while end - at >= 9:
            high, low, kind, flags, stream = _head.unpack_from(data, at)
            after = at + 9 + (high << 8 | low)
            if after > end:
                break
            if kind == _DATA:
                self._take(stream, data[at + 9 : after], now)
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                self._answer(kind, data[at + 9 : after])
            if kind == _RST_STREAM or (kind in (_DATA, _HEADERS) and flags & _END_STREAM):
                self._partial.pop(stream, None)
                self._ended(stream)
            at = after
        self._rest = data[at:]

    def _take(self, stream: int, payload: bytes, now: float) -> None:
        partial = self._partial.get(stream)
        if partial is not None:
            payload = partial.data + payload
        while len(payload) >= 5:
            size = 5 + int.from_bytes(payload[1:5], "big")
            if len(payload) < size:
                break
            self._message(stream, payload[5:size], now)
            payload = payload[size:]
        if payload:
            self._partial[stream] = _Incoming(payload)
        elif partial is not None:
            del self._partial[stream]

    def _answer(self, kind: int, payload: bytes) -> None:
        assert self._transport is not None
        self._transport.write(frame(kind, _ACK, 0, payload if kind == _PING else b""))

    def _window(self, size: int) -> None:
        self._taken += size
        if self._taken >= _WINDOW_STEP:
            assert self._transport is not None
            self._transport.write(frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._taken)))
            self._taken = 0

    def close(self) -> None:
        """Close the connection and all its streams."""
        if self._transport is not None:
            self._transport.abort()


async def connect(port: int, message: Callable[[int, bytes, float], None], ended: Callable[[int], None]) -> Connection:
    """A connection to a server on loopback."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(message, ended), "127.0.0.1", port)
    return connection
