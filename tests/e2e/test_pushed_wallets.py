"""Hyperliquid pushes ten wallets to one network address: the service lets ten be pushed, and polls the rest."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_hyperliquid.simulator import HyperliquidSimulator, SimulatedWallet

from exchange_service.testing.push import PushFault
from exchange_service.v1.balance_pb2 import PollingReason
from tests.harness import Running, Stream, serving, streaming, until

WALLETS = 30
PUSHED, NO_ROOM = "pushed", "NO_ROOM"


class Follower:
    """A user who follows one wallet."""

    def __init__(self, venue: HyperliquidSimulator, number: int) -> None:
        self.user = f"user{number}"
        self.address = f"0x{number:040x}"
        self.delivery = ""
        self.totals: list[Decimal] = []
        self.told_at = 0.0
        self.wallet = venue.add_wallet(self.address, SimulatedWallet(mode="unifiedAccount"))
        self.set(Decimal(1000 + number))
        self._stack = AsyncExitStack()
        self._task: asyncio.Task[None] | None = None

    def set(self, total: Decimal) -> None:
        """The wallet holds so much from now on."""
        self.wallet.spot = [("USDC", 0, str(total), "0.0")]

    async def open(self, running: Running) -> None:
        await running.store("hyperliquid", user=self.user, metadata={"wallet_address": self.address})
        stream = await self._stack.enter_async_context(streaming(running, "hyperliquid", user=self.user))
        self._task = asyncio.create_task(self._read(stream))

    async def _read(self, stream: Stream) -> None:
        while True:
            event = await stream.next()
            if event.WhichOneof("event") == "balance":
                self._take(event.balance.balance)
            elif event.WhichOneof("event") == "heartbeat":
                for state in event.heartbeat.accounts:
                    reason = PollingReason.Name(state.delivery.polling_reason).removeprefix("POLLING_REASON_")
                    self.delivery = PUSHED if reason == "UNSPECIFIED" else reason

    def _take(self, balance: Any) -> None:
        (row,) = [row for account in balance.venue_accounts for row in account.assets]
        self.totals.append(Decimal(row.total))
        self.told_at = time.monotonic()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        await self._stack.aclose()


@pytest.fixture
async def venue() -> AsyncIterator[HyperliquidSimulator]:
    async with HyperliquidSimulator() as simulator:
        yield simulator


async def test_of_thirty_wallets_ten_are_pushed_and_twenty_polled_within_the_weight(
    venue: HyperliquidSimulator, tmp_path: Path
) -> None:
    followers = [Follower(venue, number) for number in range(WALLETS)]
    settings = {"venue_urls": {"hyperliquid": venue.url}, "poll_interval": 3.0, "heartbeat_interval": 0.2}

    def delivered() -> Counter[str]:
        return Counter(follower.delivery for follower in followers)

    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(serving(tmp_path, **settings))
        for follower in followers:
            stack.push_async_callback(follower.close)
            await follower.open(running)
        await until(lambda: delivered() == {PUSHED: 10, NO_ROOM: 20}, "ten pushed, twenty polled")
        await until(lambda: all(follower.totals for follower in followers), "a balance for each")
        pushed = [follower for follower in followers if follower.delivery == PUSHED]
        assert venue.followed() == {follower.address for follower in pushed}

        # A change is with those that are pushed at once, and with the others at their next poll.
        changed_at = time.monotonic()
        for follower in followers:
            follower.set(follower.totals[-1] + 5000)
            venue.announce(follower.address)
        await until(lambda: all(follower.totals[-1] >= 6000 for follower in pushed), "the pushed change")
        assert max(follower.told_at for follower in pushed) - changed_at < 1.0
        await until(lambda: all(follower.totals[-1] >= 6000 for follower in followers), "the polled change")

        # One goes, and one of those that were polled has its place.
        gone = pushed[0]
        await gone.close()
        followers.remove(gone)
        await until(lambda: delivered() == {PUSHED: 10, NO_ROOM: 19}, "one has moved up")
        assert venue.followed() == {follower.address for follower in followers if follower.delivery == PUSHED}
        (moved,) = [follower for follower in followers if follower.delivery == PUSHED and follower not in pushed]
        moved.set(Decimal(9000))
        venue.announce(moved.address)
        await until(lambda: moved.totals[-1] == 9000, "its change")

    # Nobody has ever had another wallet's figure, and the venue had no reason to refuse anything.
    for follower in (*followers, gone):
        own = 1000 + int(follower.user.removeprefix("user"))
        assert set(follower.totals) <= {own, own + 5000, 9000 if follower is moved else own}
    assert venue.refused == 0
    assert venue.weight <= 1200


async def test_what_changes_while_the_socket_is_down_is_not_lost_and_the_push_comes_back(
    venue: HyperliquidSimulator, tmp_path: Path
) -> None:
    follower = Follower(venue, 1)
    settings = {"venue_urls": {"hyperliquid": venue.url}, "heartbeat_interval": 0.1}
    async with serving(tmp_path, **settings) as running:
        await follower.open(running)
        try:
            await until(lambda: follower.delivery == PUSHED and follower.totals, "the push")
            venue.push.fail(PushFault(refused=503))
            assert venue.push.drop_all() == 1
            await until(lambda: follower.delivery == "BROKEN", "the break")
            # Nobody is told of it now.
            follower.set(Decimal(7000))
            venue.announce(follower.address)
            venue.push.recover()
            await until(lambda: follower.delivery == PUSHED, "the push again")
            await until(lambda: follower.totals[-1] == 7000, "the change")
            follower.set(Decimal(8000))
            venue.announce(follower.address)
            await until(lambda: follower.totals[-1] == 8000, "the next change")
        finally:
            await follower.close()
    assert follower.totals == [1001, 7000, 8000]
