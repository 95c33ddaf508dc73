"""Unary calls as fast as they are answered: by h2load if it is on PATH, else by processes of our own.

h2load is a C program and counts a gRPC error as a success. So the received bytes are compared with those of as many
replies.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.http2 import Connection, connect, request_headers
from benchmarks.names import ROOT, environment

H2LOAD = shutil.which("h2load")
_DONE = re.compile(r"requests: \d+ total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed, (\d+) errored")
_DATA = re.compile(r"\((\d+)\) data")


def program() -> str:
    """The program that makes the load, for the line above the table."""
    if H2LOAD:
        return "h2load"
    return (
        "one Python process of this folder for each connection, because h2load is not installed "
        "(apt-get install nghttp2-client): they take the processor from the native engine"
    )


@dataclass(frozen=True, slots=True)
class Target:
    """A method of a server on loopback, and what to send. Of several requests each call takes the next one."""

    port: int
    path: str
    requests: tuple[bytes, ...]
    metadata: tuple[tuple[str, str], ...]
    # Every reply has at least so many bytes; a shorter one is an error.
    reply_size: int


@dataclass(frozen=True, slots=True)
class Shape:
    """How many connections, and calls at once on each."""

    connections: int
    streams: int

    @property
    def callers(self) -> int:
        """How many calls are in progress at any time."""
        return self.connections * self.streams


ONE = Shape(1, 1)
MANY = Shape(4, 16)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one server did under load; latencies in milliseconds."""

    rate: float
    p50: float
    p99: float
    calls: int


class Unanswered(Exception):
    """Calls failed, so the figures would be meaningless."""


async def load(target: Target, shape: Shape, seconds: float) -> Measured:
    """Keep the server busy for `seconds`. Raises Unanswered if a call failed or a reply was too short."""
    if H2LOAD and len(target.requests) == 1:
        return await _by_h2load(target, shape, seconds)
    return await _by_process(target, shape, seconds)


async def _by_h2load(target: Target, shape: Shape, seconds: float) -> Measured:
    with tempfile.TemporaryDirectory(prefix="exchange-service-load-") as name:
        body, log = Path(name) / "request", Path(name) / "log"
        (request,) = target.requests
        body.write_bytes(b"\x00" + len(request).to_bytes(4, "big") + request)
        headers = (("content-type", "application/grpc"), ("te", "trailers"), *target.metadata)
        process = await asyncio.create_subprocess_exec(
            *(str(H2LOAD), f"--clients={shape.connections}", f"--max-concurrent-streams={shape.streams}"),
            *(f"--duration={round(seconds * 1000)}ms", "--warm-up-time=0", f"--data={body}", f"--log-file={log}"),
            *(f"--header={name}: {value}" for name, value in headers),
            f"http://127.0.0.1:{target.port}{target.path}",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        text = out.decode(errors="replace")
        done, data = _DONE.search(text), _DATA.search(text)
        if process.returncode or done is None or data is None:
            raise Unanswered(f"h2load failed: {text[-500:]}")
        calls = int(done[1])
        if int(done[2]) or int(done[3]) or int(data[1]) < calls * (target.reply_size + 5) or not calls:
            raise Unanswered(f"{target.path}: {done[0]}, {data[1]} bytes for replies of {target.reply_size}")
        milliseconds = [int(line.rpartition("\t")[2]) / 1e3 for line in log.read_text().splitlines()]
    return _measured(milliseconds, seconds)


def _measured(milliseconds: list[float], seconds: float) -> Measured:
    milliseconds.sort()
    calls = len(milliseconds)
    return Measured(calls / seconds, milliseconds[calls // 2], milliseconds[calls * 99 // 100], calls)


async def _by_process(target: Target, shape: Shape, seconds: float) -> Measured:
    """A process for each connection: one alone would measure itself."""
    connections = [_by_one_process(target, shape.streams, seconds) for _ in range(shape.connections)]
    parts = await asyncio.gather(*connections)
    return _measured([taken for part in parts for taken in part], seconds)


async def _by_one_process(target: Target, streams: int, seconds: float) -> list[float]:
    """The milliseconds of each call on one connection."""
    work = {
        "port": target.port,
        "path": target.path,
        "requests": [request.hex() for request in target.requests],
        "metadata": target.metadata,
        "reply_size": target.reply_size,
        "streams": streams,
        "seconds": seconds,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.load"),
        cwd=ROOT,
        env=environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(json.dumps(work).encode())
    if process.returncode:
        raise Unanswered(f"{target.path}: the load client failed")
    taken: list[float] = json.loads(out)
    return taken


class _Caller:
    """Our own load: each call that ends begins the next one."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._headers = request_headers(target.port, target.path, target.metadata)
        self._made = 0
        self._began: dict[tuple[Connection, int], float] = {}
        self._answered: set[tuple[Connection, int]] = set()
        self.milliseconds: list[float] = []
        self.stopped = False
        self.failed = 0

    async def start(self, streams: int) -> None:
        """Connect, and make the first calls."""
        held: list[Connection] = []
        message, ended = partial(self._message, held), partial(self._ended, held)
        connection = await connect(self._target.port, message, ended)
        held.append(connection)
        self._call(connection, streams)

    def _call(self, connection: Connection, count: int = 1) -> None:
        calls = []
        for _ in range(count):
            request = self._target.requests[self._made % len(self._target.requests)]
            self._made += 1
            calls.append(connection.prepared(self._headers, request))
        began = time.perf_counter()
        for stream in connection.send(calls):
            self._began[connection, stream] = began

    def _message(self, held: list[Connection], stream: int, message: bytes, _: float) -> None:
        if len(message) >= self._target.reply_size:
            self._answered.add((held[0], stream))

    def _ended(self, held: list[Connection], stream: int) -> None:
        key = (held[0], stream)
        began = self._began.pop(key, None)
        if began is None or self.stopped:
            return
        self.milliseconds.append((time.perf_counter() - began) * 1e3)
        self.failed += key not in self._answered
        self._answered.discard(key)
        self._call(held[0])


async def _work() -> None:
    work = json.loads(sys.stdin.read())
    requests = tuple(bytes.fromhex(request) for request in work["requests"])
    metadata = tuple((name, value) for name, value in work["metadata"])
    caller = _Caller(Target(work["port"], work["path"], requests, metadata, work["reply_size"]))
    await caller.start(work["streams"])
    await asyncio.sleep(work["seconds"])
    caller.stopped = True
    if caller.failed or not caller.milliseconds:
        raise SystemExit(f"{caller.failed} calls failed")
    sys.stdout.write(json.dumps([round(taken, 3) for taken in caller.milliseconds]))


if __name__ == "__main__":
    asyncio.run(_work())
