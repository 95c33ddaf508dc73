"""Callers and subscribers at a human pace over several replicas. Those whose replica ends go on at another one.

It counts what they see: how long each waits for the next balance, and whether a version ever goes back. Everything is
in one process and one loop, over the light client of `http2.py`: a thousand of them leave the processor to the
replicas.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.http2 import Connection, connect, request_headers
from benchmarks.names import EXCHANGE, SERVICE, user
from exchange_service.v1.exchange_service_pb2 import (
    AccountSelector,
    GetBalanceRequest,
    StreamBalancesRequest,
    StreamBalancesResponse,
)

STREAMS_A_CONNECTION = 100
# Seconds within which a subscriber whose replica has ended comes back, as our client does.
_COMEBACK = (0.2, 0.6)
# Seconds after which a call that has no answer counts as failed.
_PATIENCE = 8.0
# Seconds for opening everything.
_OPENING = 30.0


class _Taker(Protocol):
    """Receives the messages of one stream."""

    def message(self, data: bytes, arrival: float) -> None:
        """A whole message has arrived; `arrival` is in seconds since the epoch."""

    def ended(self) -> None:
        """The stream has ended."""


class _Wire:
    """A connection to a replica, and the receivers of its streams."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self._takers: dict[int, _Taker] = {}
        self._connection: Connection | None = None

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self._takers)

    async def connect(self) -> None:
        """Connect. Raises OSError if nothing listens there."""
        self._connection = await connect(self.replica.port, self._message, self._ended)
        self._connection.closed.add_done_callback(lambda _: self._lost())

    def send(self, headers: bytes, request: bytes, taker: _Taker) -> None:
        """Make a call."""
        assert self._connection is not None
        (stream,) = self._connection.send([self._connection.prepared(headers, request)])
        self._takers[stream] = taker

    def close(self) -> None:
        """Close the connection without notifying the receivers."""
        self._takers.clear()
        if self._connection is not None:
            self._connection.close()

    def _message(self, stream: int, data: bytes, arrival: float) -> None:
        taker = self._takers.get(stream)
        if taker is not None:
            taker.message(data, arrival)

    def _ended(self, stream: int) -> None:
        taker = self._takers.pop(stream, None)
        if taker is not None:
            taker.ended()

    def _lost(self) -> None:
        takers, self._takers = list(self._takers.values()), {}
        for taker in takers:
            taker.ended()


@dataclass(slots=True, eq=False)
class Replica:
    """A serving process on loopback, and the connections to it. The benchmark says whether it `lives`."""

    port: int
    lives: bool = True
    calls: list[_Wire] = field(default_factory=list)
    streams: list[_Wire] = field(default_factory=list)


class Subscriber:
    """One stream: its account, its replica, the newest version that it has received, and when."""

    def __init__(self, crowd: Crowd, account: int, replica: Replica) -> None:
        self.account = account
        self.replica = replica
        self.version = 0
        self.arrived = 0.0
        # Balances that it has received.
        self.updates = 0
        # Whether it has had to go to another replica.
        self.moved = False
        # The longest time between two balances since `forget_waits`, in seconds.
        self.longest = 0.0
        self._crowd = crowd

    def message(self, data: bytes, arrival: float) -> None:
        """An event."""
        event = StreamBalancesResponse.FromString(data)
        kind = event.WhichOneof("event")
        if kind == "account_error":
            self._crowd.troubles += 1
        if kind != "balance":
            return
        version = event.balance.balance.version
        if version < self.version:
            self._crowd.went_back += 1
        if self.arrived:
            self.longest = max(self.longest, arrival - self.arrived)
        self.version, self.arrived = version, arrival
        self.updates += 1

    def ended(self) -> None:
        """The replica has ended or refused the stream."""
        self._crowd.come_back(self)

    def waited(self, now: float) -> float:
        """The longest time without a balance, the present one included, in seconds."""
        return max(self.longest, now - self.arrived)


class _Call:
    """One call, until it is answered or has ended without an answer."""

    def __init__(self) -> None:
        self.answered = asyncio.get_running_loop().create_future()

    def message(self, data: bytes, arrival: float) -> None:
        """The answer."""
        if not self.answered.done():
            self.answered.set_result(True)

    def ended(self) -> None:
        """The call has failed, unless an answer has come before."""
        if not self.answered.done():
            self.answered.set_result(False)


class Crowd:
    """All callers and subscribers. A caller waits for `pause` seconds between two calls."""

    def __init__(
        self, replicas: Sequence[Replica], metadata: Sequence[tuple[str, str]], accounts: int, pause: float
    ) -> None:
        self._replicas = list(replicas)
        self._metadata = tuple(metadata)
        self._accounts = accounts
        self._pause = pause
        self._turn = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()
        self._headers: dict[tuple[int, str], bytes] = {}
        self.subscribers: list[Subscriber] = []
        self.went_back = 0
        # Account errors that subscribers have received.
        self.troubles = 0
        self.answered = 0
        # Calls that failed at a replica that lives, and at one that does not.
        self.failed = 0
        self.failed_at_the_dead = 0
        # How often a stream at a replica that lives ended.
        self.ended = 0

    async def open(self, callers: int, subscribers: int) -> None:
        """Open all streams and start all callers. The first subscribers of the accounts go to the replicas in turn, so
        each replica feeds some of the accounts. Raises TimeoutError if a subscriber gets no balance."""
        for replica in self._replicas:
            wire = _Wire(replica)
            await wire.connect()
            replica.calls.append(wire)
        for number in range(subscribers):
            account = number % self._accounts
            replica = self._replicas[(account + number // self._accounts) % len(self._replicas)]
            subscriber = Subscriber(self, account, replica)
            self.subscribers.append(subscriber)
            await self._subscribe(subscriber)
            if number < self._accounts:
                # The replica of the first subscriber feeds the account.
                await self._greeted([subscriber])
        await self._greeted(self.subscribers)
        for number in range(callers):
            self._start(self._caller(number))

    async def _greeted(self, subscribers: Sequence[Subscriber]) -> None:
        async with asyncio.timeout(_OPENING):
            while not all(subscriber.updates for subscriber in subscribers):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def forget_waits(self) -> None:
        """Measure the longest waits from now on, each from the last balance."""
        for subscriber in self.subscribers:
            subscriber.longest = 0.0

    async def close(self) -> None:
        """Close all connections and end all callers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for replica in self._replicas:
            for wire in (*replica.calls, *replica.streams):
                wire.close()

    def come_back(self, subscriber: Subscriber) -> None:
        """Open the stream again elsewhere, with the version that it has."""
        if subscriber.replica.lives:
            self.ended += 1
        self._start(self._come_back(subscriber))

    async def _come_back(self, subscriber: Subscriber) -> None:
        subscriber.moved = True
        while True:
            await asyncio.sleep(random.uniform(*_COMEBACK))
            subscriber.replica = self._living()
            try:
                await self._subscribe(subscriber)
            except OSError:
                continue
            return

    def _living(self) -> Replica:
        living = [replica for replica in self._replicas if replica.lives]
        return living[next(self._turn) % len(living)]

    async def _subscribe(self, subscriber: Subscriber) -> None:
        wires = subscriber.replica.streams
        if not wires or wires[-1].streams >= STREAMS_A_CONNECTION:
            wire = _Wire(subscriber.replica)
            await wire.connect()
            wires.append(wire)
        selector = AccountSelector(exchange_id=EXCHANGE, known_version=subscriber.version)
        request = StreamBalancesRequest(user_id=user(subscriber.account), accounts=[selector])
        headers = self._headers_of(subscriber.replica, "StreamBalances")
        wires[-1].send(headers, request.SerializeToString(), subscriber)

    async def _caller(self, number: int) -> None:
        request = GetBalanceRequest(user_id=user(number % self._accounts), exchange_id=EXCHANGE).SerializeToString()
        replica = self._replicas[number % len(self._replicas)]
        await asyncio.sleep(random.uniform(0, self._pause))
        while True:
            if not replica.lives:
                replica = self._living()
            call = _Call()
            replica.calls[0].send(self._headers_of(replica, "GetBalance"), request, call)
            done, _ = await asyncio.wait({call.answered}, timeout=_PATIENCE)
            if done and call.answered.result():
                self.answered += 1
            elif replica.lives:
                self.failed += 1
            else:
                self.failed_at_the_dead += 1
            await asyncio.sleep(self._pause)

    def _headers_of(self, replica: Replica, method: str) -> bytes:
        known = self._headers.get((replica.port, method))
        if known is None:
            known = request_headers(replica.port, f"{SERVICE}{method}", self._metadata)
            self._headers[replica.port, method] = known
        return known

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def longest_wait(subscribers: Sequence[Subscriber]) -> float:
    """The longest time without a balance of all these, in seconds; 0 if there are no subscribers."""
    now = time.time()
    return max((subscriber.waited(now) for subscriber in subscribers), default=0.0)
