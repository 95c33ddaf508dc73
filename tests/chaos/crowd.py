"""A crowd of further clients, in a process of its own: it may be frozen and killed, and delays nobody's measuring.

async with Crowd(rig, "streams", 500) as crowd:     # until each has had an answer, or a failure
    crowd.freeze()
    result = await crowd.leave()
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import grpc

from exchange_service.v1 import exchange_service_pb2_grpc
from exchange_service.v1.exchange_service_pb2 import AccountSelector, GetBalanceRequest, StreamBalancesRequest
from tests.chaos.accounts import EXCHANGE, REGULAR, user_name
from tests.chaos.clients import OPTIONS, _reason
from tests.chaos.line_process import LineProcess

if TYPE_CHECKING:
    from tests.chaos.rig import Rig

# Streams on one connection, and the seconds between two reads of a slow subscriber.
_TOGETHER, _SLOW = 100, 3.0
# Seconds: of a call, and until a crowd has had its first answers.
_DEADLINE, _PATIENCE = 10.0, 60.0


@dataclass(frozen=True, slots=True)
class Result:
    """What a crowd had: how many were served, how the others failed, by code and reason, and the versions it saw.
    `slowest`: the seconds until the last one had its first answer."""

    served: int
    failures: dict[str, int]
    versions: list[int]
    slowest: float


class Crowd:
    """So many clients of one of KINDS, spread over the replicas, or over those of these numbers."""

    def __init__(self, rig: Rig, kind: str, count: int, *, user: int = -1, replicas: Sequence[int] = ()) -> None:
        addresses = [replica.address for replica in rig.replicas if not replicas or replica.number in replicas]
        self._process = LineProcess("tests.chaos.crowd", kind, str(count), str(user), *addresses)

    async def __aenter__(self) -> Self:
        await self._process.start()
        await self._line()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()

    def freeze(self) -> None:
        """Let it hang: nothing is read any more."""
        self._process.signal(signal.SIGSTOP)

    async def kill(self) -> None:
        """End it without a word to the servers."""
        await self._process.kill()

    async def again(self) -> None:
        """Let all leave and come back at once, and wait until each has had an answer."""
        await self._tell("again")

    async def leave(self) -> Result:
        """Let all leave. Returns what they had."""
        return Result(**json.loads(await self._tell("leave")))

    async def _tell(self, command: str) -> bytes:
        self._process.tell(command)
        return await self._line()

    async def _line(self) -> bytes:
        return await self._process.line(_PATIENCE + 10)


@dataclass(slots=True)
class _Members:
    """The clients themselves, in their process."""

    kind: str
    count: int
    user: int
    addresses: Sequence[str]
    outcomes: Counter[str] = field(default_factory=Counter)
    versions: set[int] = field(default_factory=set)
    slowest: float = 0.0
    channels: list[grpc.aio.Channel] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    began: float = 0.0
    # The numbers of those without an answer yet, and whether there are no more of them.
    waiting: set[int] = field(default_factory=set)
    all_had: asyncio.Event = field(default_factory=asyncio.Event)

    async def come(self) -> None:
        """Begin, and wait until each has had an answer or a failure."""
        self.began, self.waiting = time.monotonic(), set(range(self.count))
        self.all_had.clear()
        together = 1 if self.kind == "connections" else _TOGETHER
        connections = max(len(self.addresses), -(-self.count // together))
        self.channels = [
            grpc.aio.insecure_channel(self.addresses[number % len(self.addresses)], options=OPTIONS)
            for number in range(connections)
        ]
        self.tasks = [asyncio.create_task(KINDS[self.kind](self, number)) for number in range(self.count)]
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self.all_had.wait()
        if self.waiting:
            self.outcomes["nothing"] += len(self.waiting)

    async def go(self) -> None:
        """Leave."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for channel in self.channels:
            await channel.close()

    def had(self, number: int, outcome: str) -> None:
        """One has had this."""
        self.outcomes[outcome] += 1
        if number in self.waiting:
            self.waiting.discard(number)
            self.slowest = max(self.slowest, time.monotonic() - self.began)
        if not self.waiting:
            self.all_had.set()

    def stub(self, number: int) -> Any:
        """The stub of one's connection."""
        make: Any = exchange_service_pb2_grpc.ExchangeServiceStub
        return make(self.channels[number % len(self.channels)])

    def name(self, number: int) -> str:
        """Whose account one asks for."""
        return user_name(self.user if self.user >= 0 else number % REGULAR)

    def result(self) -> dict[str, Any]:
        """As a Result."""
        failures = {outcome: count for outcome, count in self.outcomes.items() if outcome != "served"}
        return {
            "served": self.outcomes["served"],
            "failures": failures,
            "versions": sorted(self.versions),
            "slowest": round(self.slowest, 2),
        }


async def _stream(members: _Members, number: int, pause: float = 0.0) -> None:
    """One stream. It does not come back by itself."""
    accounts = [AccountSelector(exchange_id=EXCHANGE)]
    call = members.stub(number).StreamBalances(StreamBalancesRequest(user_id=members.name(number), accounts=accounts))
    told = False
    try:
        while (event := await call.read()) is not grpc.aio.EOF:
            if event.HasField("balance") and not told:
                told = True
                members.had(number, "served")
            await asyncio.sleep(pause)
    except grpc.aio.AioRpcError as error:
        members.had(number, f"{error.code().name} {_reason(error)}".strip())
    finally:
        call.cancel()


async def _slow_stream(members: _Members, number: int) -> None:
    await _stream(members, number, _SLOW)


async def _call(members: _Members, number: int) -> None:
    """One call."""
    request = GetBalanceRequest(user_id=members.name(number), exchange_id=EXCHANGE)
    try:
        reply = await members.stub(number).GetBalance(request, timeout=_DEADLINE)
    except grpc.aio.AioRpcError as error:
        members.had(number, f"{error.code().name} {_reason(error)}".strip())
    else:
        members.versions.add(reply.balance.version)
        members.had(number, "served")


async def _flood(members: _Members, number: int) -> None:
    """Call after call."""
    while True:
        await _call(members, number)


KINDS: dict[str, Callable[[_Members, int], Coroutine[Any, Any, None]]] = {
    "streams": _stream,
    "slow streams": _slow_stream,
    "connections": _stream,
    "calls": _call,
    "flood": _flood,
}


async def main(arguments: Sequence[str]) -> None:
    """Be the crowd, until the standard input ends or says "leave"."""
    kind, count, user, *addresses = arguments
    members = _Members(kind, int(count), int(user), addresses)
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    await members.come()
    print("there", flush=True)
    while await commands.readline() == b"again\n":
        await members.go()
        await members.come()
        print("there", flush=True)
    await members.go()
    print(json.dumps(members.result()), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
