"""A steady load from a process of its own, while something else is measured.

    python -m benchmarks.steady ADDRESS USERS STREAMS

opens STREAMS streams of the OANDA accounts of USERS users, and prints a line when they are open. From then on it lists
exchanges and forces balances. When its standard input ends it prints a line with the failures and the latencies of the
calls in milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import ServiceError

EXCHANGE = "oanda"
# Calls a second of each kind.
_RATE = 20
_CONNECTIONS = 4
# Streams that are opened at the same time; another benchmark measures a storm of them.
_OPENING = 50


def user(number: int) -> str:
    return f"steady-{number:04}"


class Steady:
    """The calls that are made, and their results."""

    def __init__(self) -> None:
        self.failed: Counter[str] = Counter()
        self.milliseconds: list[float] = []
        self.events = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def stream(self, client: ExchangeServiceClient, name: str, opened: asyncio.Semaphore) -> None:
        """Follow a user's accounts; the semaphore is released at the first event."""
        first = True
        try:
            async for _ in client.stream_balances(name):
                self.events += 1
                if first:
                    first = False
                    opened.release()
        except ServiceError as error:
            self.failed[f"stream {error.reason}"] += 1
        finally:
            if first:
                opened.release()

    async def every(self, make: Callable[[int], Awaitable[object]], kind: str) -> None:
        """Make a call at each tick, whether or not the last one has come back."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        for number in range(10**9):
            await asyncio.sleep(began + number / _RATE - loop.time())
            task = asyncio.create_task(self._call(make(number), kind))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _call(self, call: Awaitable[object], kind: str) -> None:
        began = time.perf_counter()
        try:
            await call
        except ServiceError as error:
            self.failed[f"{kind} {error.reason}"] += 1
        self.milliseconds.append((time.perf_counter() - began) * 1e3)


async def main(address: str, users: int, streams: int) -> None:
    """See the module."""
    steady, opened = Steady(), asyncio.Semaphore(0)
    clients = [ExchangeServiceClient(address) for _ in range(_CONNECTIONS)]
    for number in range(streams):
        client, name = clients[number % _CONNECTIONS], user(number % users)
        if number >= _OPENING:
            await opened.acquire()
        _TASKS.add(asyncio.create_task(steady.stream(client, name, opened)))
    for _ in range(min(streams, _OPENING)):
        await opened.acquire()
    _TASKS.add(asyncio.create_task(steady.every(lambda _: clients[0].list_exchanges(), "ListExchanges")))
    _TASKS.add(
        asyncio.create_task(
            steady.every(lambda n: clients[1].get_balance(user(n % users), EXCHANGE, max_age=0), "GetBalance")
        )
    )
    _say({"streams": streams})
    await asyncio.to_thread(sys.stdin.read)
    open_now = sum(not task.done() for task in _TASKS)
    steady.milliseconds.sort()
    count = len(steady.milliseconds)
    found = {"calls": count, "failed": steady.failed, "events": steady.events, "open": open_now - 2}
    _say({**found, "p50": steady.milliseconds[count // 2], "p99": steady.milliseconds[count * 99 // 100]})


_TASKS: set[asyncio.Task[None]] = set()


def _say(line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
