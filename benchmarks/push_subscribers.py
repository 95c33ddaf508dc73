"""Subscribers to a venue that pushes: how far each is behind the venue, and what it should never have been given."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

import grpc

from benchmarks.pushing_plugin import EXCHANGE
from benchmarks.pushing_venue import PushingVenue
from exchange_service.v1 import exchange_service_pb2 as messages
from exchange_service.v1 import exchange_service_pb2_grpc
from exchange_service.v1.balance_pb2 import DELIVERY_MODE_PUSHED

# Accounts hold so much more than the one before: an amount tells whose it is.
_APART = 10_000_000
_RETRY = 0.2


def key_of(user: str) -> str:
    """The key of the user's account at the venue."""
    return f"key-of-{user}"


class Subscriber:
    """One stream of one account, opened again at the next service when it breaks.

    `delays` are the seconds from each change at the venue until a message had it, or a later one."""

    def __init__(self, venue: PushingVenue, user: str, number: int, metadata: Sequence[tuple[str, str]]) -> None:
        self.user = user
        self.delays: list[float] = []
        self.pushed = False
        # Messages with an amount that the account never held, or held before the last one; and versions that went back.
        self.false, self.went_back, self.versions_back = 0, 0, 0
        self.ended, self.errors = 0, 0
        self._venue = venue
        self._metadata = metadata
        self._base = (number + 1) * _APART
        self._count = 0
        self._last = 0
        self._version = 0
        # Changes that no message had yet: the amount, and when.
        self._pending: deque[tuple[int, float]] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def behind(self) -> float:
        """Seconds for which the venue has had a change that no message had yet."""
        return time.monotonic() - self._pending[0][1] if self._pending else 0.0

    def begin(self) -> None:
        """Give the account an amount of its own, before anybody reads it."""
        self._venue.change(key_of(self.user), self._base)

    def change(self) -> None:
        """Change the account at the venue."""
        self._count += 1
        self._pending.append((self._base + self._count, time.monotonic()))
        self._venue.change(key_of(self.user), self._base + self._count)

    def start(self, channels: Sequence[grpc.aio.Channel]) -> None:
        """Subscribe at the first of these; at the next one when that fails."""
        self._task = asyncio.create_task(self._run(channels))

    async def close(self) -> None:
        """End the stream."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self, channels: Sequence[grpc.aio.Channel]) -> None:
        at = 0
        while True:
            with suppress(grpc.aio.AioRpcError):
                await self._read(channels[at])
            self.ended += 1
            self.pushed = False
            at = (at + 1) % len(channels)
            await asyncio.sleep(_RETRY)

    async def _read(self, channel: grpc.aio.Channel) -> None:
        stub = exchange_service_pb2_grpc.ExchangeServiceStub(channel)
        selector = messages.AccountSelector(exchange_id=EXCHANGE, known_version=self._version)
        request = messages.StreamBalancesRequest(user_id=self.user, accounts=[selector])
        async for event in stub.StreamBalances(request, metadata=self._metadata):
            kind = event.WhichOneof("event")
            if kind == "balance":
                self._take(event.balance.balance)
            elif kind == "heartbeat":
                for state in event.heartbeat.accounts:
                    self.pushed = state.delivery.mode == DELIVERY_MODE_PUSHED
            elif kind == "account_error":
                self.errors += 1

    def _take(self, balance: object) -> None:
        now = time.monotonic()
        (row,) = balance.venue_accounts[0].assets  # type: ignore[attr-defined]
        version = balance.version  # type: ignore[attr-defined]
        amount = int(row.total)
        self.versions_back += version < self._version
        self._version = max(self._version, version)
        self.false += not self._base <= amount <= self._base + self._count
        self.went_back += amount < self._last
        self._last = max(self._last, amount)
        while self._pending and self._pending[0][0] <= amount:
            self.delays.append(now - self._pending.popleft()[1])
