"""Frames: what goes over the connection between the service and a plugin's process. Bytes in, frames out; nothing here
knows a socket.

A frame is a header of 13 bytes and a body: the body's length (4 bytes), the kind (1 byte) and the number of the call
(8 bytes), all big-endian. The bodies are messages of plugin_host.proto.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

_HEADER = struct.Struct("!IBQ")
HEADER_SIZE = _HEADER.size
# Bytes of a body: the largest balance, and the message around it.
MAX_BODY = 4 * 1024 * 1024


class Kind(IntEnum):
    """What a frame says. The first two have the number 0 for their call, and come once."""

    # From the service: `Greeting`. From the process: `ConfigureResponse`.
    GREETING = 1
    WELCOME = 2
    # From the service: `Call`; that a call is to end; that one more item of a call's stream is wanted. The first item
    # is wanted without being asked for.
    CALL = 3
    CANCEL = 4
    MORE = 5
    # From the process: an item of a stream. And how a call ends, once for each call: the method's response,
    # the end of its stream, or `CallFailure`.
    ITEM = 6
    REPLY = 7
    END = 8
    FAILURE = 9
    # From the process, with a number of its own: `ReplaceCredentialRequest`. From the service, with the same number:
    # `ReplaceCredentialResponse`.
    ASK = 10
    ANSWER = 11


_KINDS = {int(kind): kind for kind in Kind}


class Frame(NamedTuple):
    """One frame: its kind, the number of its call, and its body."""

    kind: Kind
    number: int
    body: bytes


class FrameError(Exception):
    """The bytes are not frames; the text is a part of a sentence."""


def write_frame(kind: Kind, number: int, body: bytes = b"") -> bytes:
    """The bytes of a frame. `body` has at most `MAX_BODY` bytes."""
    return _HEADER.pack(len(body), kind, number) + body


class FrameReader:
    """Reads frames from bytes that come in pieces of any size.

    It holds what was fed and not read yet, and never makes room for what a header only announces.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._at = 0

    def __len__(self) -> int:
        """The bytes that it holds."""
        return len(self._bytes)

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        del self._bytes[: self._at]
        self._at = 0
        self._bytes += data

    def read(self) -> Frame | None:
        """The next frame, or None if it is not complete. Raises FrameError, then and ever after, if it is not one."""
        body_at = self._at + HEADER_SIZE
        if len(self._bytes) < body_at:
            return None
        length, kind, number = _HEADER.unpack_from(self._bytes, self._at)
        if kind not in _KINDS:
            raise FrameError(f"a frame of the unknown kind {kind}")
        if length > MAX_BODY:
            raise FrameError(f"a frame of {length} bytes")
        end = body_at + length
        if len(self._bytes) < end:
            return None
        with memoryview(self._bytes) as view:
            body = bytes(view[body_at:end])
        self._at = end
        return Frame(_KINDS[kind], number, body)
