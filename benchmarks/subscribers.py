"""Subscribers by the thousand, in a process of their own: `python -m benchmarks.subscribers`.

Reads a `StreamPlan` as a line of JSON, opens the streams and prints an `Opened`. Then it prints, for each line with a
number of seconds, the `Delays` of the messages in that time. Ends with its standard input.
"""

from __future__ import annotations

import asyncio
import json
import struct
import sys
import time
from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from benchmarks.http2 import Connection, connect, request_headers
from benchmarks.names import EXCHANGE, ROOT, SERVICE, environment, user
from exchange_service.v1.exchange_service_pb2 import AccountSelector, StreamBalancesRequest, StreamBalancesResponse
from exchange_service.wire.protobuf import to_seconds

# A gRPC server buffers 64 KiB of requests before it reads any; this many small ones fit.
STREAMS_A_CONNECTION = 250
# The tag of a BalanceEvent; heartbeats and errors have others.
_BALANCE = 0x0A
# The bytes of an event that hold the account, the fetch time and the version, behind its length fields.
_MARK = slice(6, 90)
# The first byte of the ceiling's messages; the time of sending follows.
_CEILING = 0xFF


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """What to open: `each` streams for each account from `first` on. `gap`: the least seconds between two accounts, so
    that their feeds do not all begin at once; 0: everything at once."""

    port: int
    metadata: tuple[tuple[str, str], ...]
    first: int
    accounts: int
    each: int
    gap: float
    # Seconds after which a stream without a balance counts as not opened.
    patience: float = 30.0

    @property
    def streams(self) -> int:
        """How many in all."""
        return self.accounts * self.each


@dataclass(frozen=True, slots=True)
class Opened:
    """The result of opening: `seconds` from the first request to the last stream's first event, or to the end of
    patience."""

    opened: int
    ended: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Delays:
    """The balances that arrived, and their delays after the venue's answer in milliseconds."""

    messages: int
    p50: float
    p99: float
    worst: float
    ended: int


class _Subscribers:
    def __init__(self, plan: StreamPlan) -> None:
        self._plan = plan
        self._connections: list[Connection] = []
        self._greeted: set[tuple[int, int]] = set()
        self._ended: set[tuple[int, int]] = set()
        self._settled: set[tuple[int, int]] = set()
        self._last = 0.0
        self._all_open = asyncio.Event()
        self._delays: array[float] | None = None
        self._fetched: dict[bytes, float] = {}

    async def open(self) -> Opened:
        plan = self._plan
        needed = -(-plan.streams // STREAMS_A_CONNECTION)
        for number in range(needed):
            message, ended = partial(self._message, number), partial(self._end, number)
            self._connections.append(await connect(plan.port, message, ended))
        # Opening the connections is not measured: clients have one already.
        await asyncio.sleep(0.5)
        began = time.time()
        headers = request_headers(plan.port, f"{SERVICE}StreamBalances", plan.metadata)
        opened = 0
        for account in range(plan.first, plan.first + plan.accounts):
            selector = AccountSelector(exchange_id=EXCHANGE)
            request = StreamBalancesRequest(user_id=user(account), accounts=[selector]).SerializeToString()
            for _ in range(plan.each):
                connection = self._connections[opened % needed]
                connection.send([connection.prepared(headers, request)])
                opened += 1
            if plan.gap:
                await asyncio.sleep(plan.gap)
                await self._caught_up(opened)
        try:
            async with asyncio.timeout(plan.patience):
                await self._all_open.wait()
        except TimeoutError:
            self._last = time.time()
        return Opened(len(self._greeted), len(self._ended), self._last - began)

    async def _caught_up(self, opened: int) -> None:
        """Wait for the streams that were opened before, so that none is refused because there are so many at once."""
        patience = time.monotonic() + self._plan.patience
        while len(self._settled) < opened and time.monotonic() < patience:  # noqa: ASYNC110
            await asyncio.sleep(0.002)

    def _message(self, connection: int, stream: int, message: bytes, arrival: float) -> None:
        key = (connection, stream)
        if key not in self._greeted:
            self._greeted.add(key)
            self._settle(key, arrival)
        elif self._delays is None:
            return
        elif message[0] == _BALANCE:
            self._delays.append(arrival - self._fetch_time(message))
        elif message[0] == _CEILING:
            self._delays.append(arrival - struct.unpack_from(">d", message, 1)[0])

    def _fetch_time(self, message: bytes) -> float:
        mark = message[_MARK]
        found = self._fetched.get(mark)
        if found is None:
            fetched = StreamBalancesResponse.FromString(message).balance.balance.fetch_time
            found = self._fetched[mark] = to_seconds(fetched)
        return found

    def _end(self, connection: int, stream: int) -> None:
        # An error arrives as trailers and as a reset, and counts once.
        key = (connection, stream)
        self._ended.add(key)
        self._settle(key, time.time())

    def _settle(self, key: tuple[int, int], now: float) -> None:
        """The stream has been answered or has ended."""
        if key not in self._settled:
            self._settled.add(key)
            self._last = now
            if len(self._settled) >= self._plan.streams:
                self._all_open.set()

    async def measure(self, seconds: float) -> Delays:
        self._fetched.clear()
        self._delays = array("d")
        await asyncio.sleep(seconds)
        delays, self._delays = sorted(self._delays), None
        if not delays:
            return Delays(0, 0.0, 0.0, 0.0, len(self._ended))
        p50, p99, worst = (delays[min(len(delays) - 1, int(len(delays) * part))] * 1e3 for part in (0.5, 0.99, 1))
        return Delays(len(delays), p50, p99, worst, len(self._ended))


@dataclass(slots=True)
class Client:
    """The process with the subscribers, as the benchmark sees it."""

    opened: Opened
    _process: asyncio.subprocess.Process

    async def measure(self, seconds: float) -> Delays:
        """The delays of the messages of the next `seconds`."""
        return Delays(**await _ask(self._process, seconds))


@asynccontextmanager
async def subscribed(port: int, metadata: Sequence[tuple[str, str]], **plan: Any) -> AsyncIterator[Client]:
    """A process whose streams are open; they are closed with it. `plan` as in `StreamPlan`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.subscribers"),
        cwd=ROOT,
        env=environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        whole = StreamPlan(port=port, metadata=tuple(metadata), **plan)
        yield Client(Opened(**await _ask(process, asdict(whole))), process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


async def _ask(process: asyncio.subprocess.Process, question: object) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(question).encode() + b"\n")
    answer = await process.stdout.readline()
    if not answer:
        raise RuntimeError("the subscribers' process has ended")
    return json.loads(answer)


async def _main() -> None:
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    plan = json.loads(await lines.readline())
    plan["metadata"] = tuple((name, value) for name, value in plan["metadata"])
    subscribers = _Subscribers(StreamPlan(**plan))
    _say(asdict(await subscribers.open()))
    while line := await lines.readline():
        _say(asdict(await subscribers.measure(json.loads(line))))


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_main())
