"""Lighter through the whole service: a wallet's accounts are pushed as one balance, and break and come back."""

from __future__ import annotations

from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

from exchange_service_lighter.simulator import LighterSimulator, SimulatedAccount

from exchange_service.v1.balance_pb2 import PollingReason
from tests.harness import Stream, serving, streaming, until

WALLET = "0x8c967e73e6b15087c42a10d344cff4c96d877f1d"
MASTER, SUB, NEW = 61, 281474976700001, 281474976700002


async def next_with(stream: Stream, index: int, total: str) -> Any:
    """The next balance of a stream in which this account of perpetuals holds so much."""
    while True:
        balance = (await stream.next_of("balance")).balance
        held = {part.id: part.assets[0].total for part in balance.venue_accounts if part.type == "perpetual"}
        if held.get(str(index)) == total:
            return balance


async def until_delivered(stream: Stream, reason: str) -> None:
    """Wait until the account is polled for this reason; UNSPECIFIED: until it is pushed."""
    wanted = PollingReason.Value(f"POLLING_REASON_{reason}")
    while True:
        heartbeat = await stream.next_of("heartbeat")
        if [state.delivery.polling_reason for state in heartbeat.accounts] == [wanted]:
            return


async def test_a_change_of_any_account_is_pushed_as_the_whole_wallet_and_a_new_account_is_found(tmp_path: Path) -> None:
    async with LighterSimulator() as venue:
        venue.add(
            SimulatedAccount(MASTER, WALLET, collateral=Decimal(1000)),
            SimulatedAccount(SUB, WALLET, kind=1, collateral=Decimal(60)),
        )
        # Nothing is polled while the test lasts.
        settings = {"venue_urls": {"lighter": venue.url}, "poll_interval": 60.0, "heartbeat_interval": 0.1}
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(serving(tmp_path, **settings))
            await running.store("lighter", api_key="", metadata={"wallet_address": WALLET})
            stream = await stack.enter_async_context(streaming(running, "lighter"))
            await next_with(stream, MASTER, "1000.000000")
            await until_delivered(stream, "UNSPECIFIED")
            reads = len([request for request in venue.requests if request.path == "/api/v1/account"])

            for index, total in ((SUB, "61.500000"), (MASTER, "1002.000000")):
                venue.accounts[index].collateral = Decimal(total)
                venue.publish(index)
                balance = await next_with(stream, index, total)
            assert balance.summary.total == "1063.500000"
            assert len([request for request in venue.requests if request.path == "/api/v1/account"]) == reads

            venue.accounts[MASTER].collateral -= 100
            venue.add(SimulatedAccount(NEW, WALLET, kind=1, collateral=Decimal(100)))
            venue.publish(MASTER)
            balance = await next_with(stream, NEW, "100.000000")
            assert balance.summary.total == "1063.500000"

            await until(lambda: len(venue.push.clients[0].topics) == 6, "the new account's subscriptions")
            venue.channels.shut_down(close_in_ms=0)
            await until_delivered(stream, "BROKEN")
            await until_delivered(stream, "UNSPECIFIED")
            venue.accounts[NEW].collateral = Decimal(7)
            venue.publish(NEW)
            await next_with(stream, NEW, "7.000000")
        assert venue.push.opened == 2
