"""A peer that keeps to no limit of HTTP/2: `python -m tests.raw_http2 KIND PORT ...`, in a process of its own.

    reset PORT SECONDS              open requests and reset each at once
    open PORT CONNECTIONS REQUESTS  open requests that never end, and hold them until standard input ends
    open ... FIELDS                 the same, each with so many fields of metadata, of one byte each on the wire
    silent PORT CONNECTIONS         open connections that say nothing, and hold them likewise

It prints what it did as a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import sys
import threading
import time

from benchmarks.http2 import frame, request_headers

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")
_HEADERS, _RST_STREAM = 1, 3
_END_HEADERS = 4
_CANCEL = struct.pack(">I", 8)
_PATH = "/exchange_service.v1.ExchangeService/GetBalance"
# A reference to a field of HPACK's static table: "accept-encoding: gzip, deflate".
_INDEXED = b"\x90"
# Requests that are open at a time before they are reset.
_WAVE = 250


class Peer:
    """One connection. `refused` counts the streams that the server has reset."""

    def __init__(self, port: int) -> None:
        self.refused = 0
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.sendall(_PREFACE)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self._socket.sendall(data)

    def _read(self) -> None:
        rest = b""
        with contextlib.suppress(OSError):
            while data := self._socket.recv(1 << 20):
                rest += data
                at = 0
                while len(rest) - at >= 9:
                    size = int.from_bytes(rest[at : at + 3], "big")
                    if len(rest) - at < 9 + size:
                        break
                    self.refused += rest[at + 3] == _RST_STREAM
                    at += 9 + size
                rest = rest[at:]


def _reset(port: int, seconds: float) -> None:
    end, count, headers = time.monotonic() + seconds, 0, request_headers(port, _PATH, ())
    while time.monotonic() < end:
        peer, stream = Peer(port), 1
        with contextlib.suppress(OSError):
            while time.monotonic() < end:
                wave = range(stream, stream + 2 * _WAVE, 2)
                opened = b"".join(frame(_HEADERS, _END_HEADERS, number, headers) for number in wave)
                peer.send(opened + b"".join(frame(_RST_STREAM, 0, number, _CANCEL) for number in wave))
                stream, count = wave.stop, count + _WAVE
    _say({"requests": count})


def _open(port: int, connections: int, requests: int, fields: int = 0) -> None:
    headers = request_headers(port, _PATH, ()) + _INDEXED * fields
    peers = [Peer(port) for _ in range(connections)]
    for peer in peers:
        with contextlib.suppress(OSError):
            for number in range(1, 2 * requests, 2):
                peer.send(frame(_HEADERS, _END_HEADERS, number, headers))
    # Until the server has answered all that it will answer.
    before = -1
    while before != (before := sum(peer.refused for peer in peers)):
        # Many fields take long to read.
        time.sleep(2.0 if fields else 0.5)
    _say({"refused": before})
    sys.stdin.read()


def _silent(port: int, connections: int) -> None:
    held = []
    for _ in range(connections):
        with contextlib.suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", port), timeout=0.5))
    _say({"connections": len(held)})
    sys.stdin.read()


def _say(answer: dict[str, int]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _KINDS = {"reset": _reset, "open": _open, "silent": _silent}
    _KINDS[sys.argv[1]](
        *(float(text) if sys.argv[1] == "reset" and at else int(text) for at, text in enumerate(sys.argv[2:]))
    )
