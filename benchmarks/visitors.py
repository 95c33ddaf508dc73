"""Clients that come and go, with the real client library: subscribers for some seconds each, and callers.

Each visitor has a connection of its own and leaves as clients do: it cancels a stream, closes its channel, or its
replica ends. Failures are counted by reason.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence

from benchmarks.names import EXCHANGE, user
from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import ServiceError
from exchange_service.v1.exchange_service_pb2 import AccountSelector, StreamBalancesResponse

# Seconds that a visitor stays, and that a caller leaves between two calls.
_STAY = (1.0, 15.0)
_PAUSE = (0.2, 0.6)
_MOST_STREAMS = 4
# The shares of a caller's calls that force a refresh, and that list the exchanges.
_FORCED, _LISTED = 0.1, 0.1
# Seconds before a visitor comes again.
_AGAIN = 0.3


class Visitors:
    """`choose` returns the address for each new connection."""

    def __init__(self, choose: Callable[[], str], token: str, accounts: int) -> None:
        self._choose = choose
        self._token = token
        self._accounts = accounts
        self._tasks: list[asyncio.Task[None]] = []
        self.answered = 0
        self.events = 0
        self.streams = 0
        self.went_back = 0
        # Calls that failed and streams that ended, by reason; and account errors in streams.
        self.failures: Counter[str] = Counter()
        self.troubles: Counter[int] = Counter()

    def come(self, subscribers: int, callers: int) -> None:
        """Start so many visitors; each one that leaves is followed by another."""
        works = [self._subscriber] * subscribers + [self._caller] * callers
        self._tasks += [asyncio.create_task(work()) for work in works]

    async def leave(self) -> None:
        """End all visitors. Raises an unexpected exception of one of them."""
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome

    def _client(self) -> ExchangeServiceClient:
        own_connection = [("grpc.use_local_subchannel_pool", 1)]
        return ExchangeServiceClient(self._choose(), token=self._token, options=own_connection)

    async def _subscriber(self) -> None:
        await asyncio.sleep(random.uniform(0, _STAY[0]))
        while True:
            async with self._client() as client:
                count = random.randint(1, _MOST_STREAMS)
                streams = [asyncio.create_task(self._follow(client)) for _ in range(count)]
                try:
                    await asyncio.wait(streams, timeout=random.uniform(*_STAY))
                    # Some cancel their streams first, others close the connection.
                    if random.random() < 0.5:
                        await _cancelled(streams)
                finally:
                    leaving = asyncio.gather(*streams, return_exceptions=True)
                    for stream in streams:
                        stream.cancel()
                    await client.close()
                    await leaving
            await asyncio.sleep(_AGAIN)

    async def _follow(self, client: ExchangeServiceClient) -> None:
        selector = AccountSelector(exchange_id=EXCHANGE)
        version = 0
        self.streams += 1
        try:
            async for event in client.stream_balances(self._user(), [selector]):
                version = self._saw(event, version)
        except ServiceError as error:
            self.failures[error.reason or type(error).__name__] += 1

    def _saw(self, event: StreamBalancesResponse, version: int) -> int:
        """The newest version after this event."""
        self.events += 1
        kind = event.WhichOneof("event")
        if kind == "account_error":
            self.troubles[event.account_error.error.reason] += 1
        if kind != "balance":
            return version
        self.went_back += event.balance.balance.version < version
        return event.balance.balance.version

    async def _caller(self) -> None:
        while True:
            async with self._client() as client:
                for _ in range(random.randint(1, 40)):
                    try:
                        await self._call(client)
                        self.answered += 1
                    except ServiceError as error:
                        self.failures[error.reason or type(error).__name__] += 1
                        break
                    await asyncio.sleep(random.uniform(*_PAUSE))
            await asyncio.sleep(_AGAIN)

    async def _call(self, client: ExchangeServiceClient) -> None:
        which = random.random()
        if which < _LISTED:
            await client.list_exchanges()
        else:
            max_age = 0.0 if which < _LISTED + _FORCED else None
            await client.get_balance(self._user(), EXCHANGE, max_age=max_age)

    def _user(self) -> str:
        return user(random.randrange(self._accounts))


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
