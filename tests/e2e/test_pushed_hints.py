"""OANDA, Tradier and Aster through the whole service: they push that something has changed, and it is read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_aster.simulator import AsterSimulator, SimulatedAsset, SimulatedWallet
from exchange_service_oanda.simulator import OandaSimulator
from exchange_service_oanda.simulator import SimulatedAccount as OandaAccount
from exchange_service_tradier import TRADIER
from exchange_service_tradier.push import watch_orders
from exchange_service_tradier.simulator import TradierSimulator, cash_account

from exchange_service.testing import DemoVenue, venue_call
from exchange_service.v1.balance_pb2 import PollingReason
from tests.harness import Stream, serving, streaming

TOKEN, NUMBER = "a-token-for-tests", "6YA00000"
PUSHED, BROKEN = "UNSPECIFIED", "BROKEN"


class Oanda:
    """An account without open trades, whose balance a transaction changes."""

    exchange_id = "oanda"
    row: Mapping[str, Any] = {"api_key": TOKEN}

    def __init__(self) -> None:
        self.venue = OandaSimulator()
        self.venue.heartbeat_every = 0.2
        self._account = OandaAccount("101-004-7654321-001", open_trades=0)
        self.venue.add_token(TOKEN, self._account)

    def change(self, amount: Decimal) -> None:
        self.venue.trade(self._account, amount)


class Tradier:
    """A cash account, whose cash an order changes."""

    exchange_id = "tradier"
    row: Mapping[str, Any] = {"api_key": TOKEN}

    def __init__(self) -> None:
        self.venue = TradierSimulator()
        self.venue.add_token(TOKEN, cash_account(NUMBER))

    def change(self, amount: Decimal) -> None:
        self.venue.fill(TOKEN, NUMBER, amount)


class Aster:
    """A wallet without positions, whose futures balance an order changes."""

    exchange_id = "aster"
    row: Mapping[str, Any] = {"api_key": TOKEN, "api_secret": "a-secret-for-tests"}

    def __init__(self) -> None:
        self.venue = AsterSimulator()
        self._wallet = SimulatedWallet([SimulatedAsset("USDT", Decimal("5120.44"))])
        self.venue.add_key(TOKEN, "a-secret-for-tests", self._wallet)

    def change(self, amount: Decimal) -> None:
        self.venue.trade(self._wallet, amount)


def total(balance: Any) -> Decimal:
    """What the first row holds."""
    return Decimal(balance.balance.venue_accounts[0].assets[0].total)


async def next_total(stream: Stream, wanted: Decimal) -> None:
    while total(await stream.next_of("balance")) != wanted:
        pass


async def until_delivered(stream: Stream, reason: str) -> None:
    """Wait until the account is polled for this reason; UNSPECIFIED: until it is pushed."""
    wanted = PollingReason.Value(f"POLLING_REASON_{reason}")
    while True:
        heartbeat = await stream.next_of("heartbeat")
        if [state.delivery.polling_reason for state in heartbeat.accounts] == [wanted]:
            return


async def begin(stack: AsyncExitStack, case: Any, folder: Path, *, poll_interval: float) -> tuple[Stream, Decimal]:
    """A stream of the account, which is pushed, and what the account holds."""
    await stack.enter_async_context(case.venue)
    settings = {"venue_urls": {case.exchange_id: case.venue.url}, "heartbeat_interval": 0.1}
    running = await stack.enter_async_context(serving(folder, poll_interval=poll_interval, **settings))
    await running.store(case.exchange_id, **case.row)
    stream = await stack.enter_async_context(streaming(running, case.exchange_id))
    held = total(await stream.next_of("balance"))
    await until_delivered(stream, PUSHED)
    return stream, held


@pytest.mark.parametrize("kind", [Oanda, Aster], ids=lambda kind: kind.exchange_id)
async def test_hints_bring_changes_and_a_push_that_breaks_is_back_by_itself_and_has_missed_nothing(
    kind: type[Oanda | Aster], tmp_path: Path
) -> None:
    case = kind()
    async with AsyncExitStack() as stack:
        # Nothing is polled while the test lasts.
        stream, held = await begin(stack, case, tmp_path, poll_interval=60.0)
        case.change(Decimal(1))
        await next_total(stream, held + 1)
        case.venue.push.drop_all()
        case.change(Decimal(2))
        await next_total(stream, held + 3)
        await until_delivered(stream, PUSHED)
        case.change(Decimal(3))
        await next_total(stream, held + 6)


async def test_a_session_that_another_program_takes_is_left_to_it_and_the_account_is_polled(tmp_path: Path) -> None:
    case = Tradier()
    async with AsyncExitStack() as stack:
        stream, held = await begin(stack, case, tmp_path, poll_interval=1.0)
        case.change(Decimal(1))
        await next_total(stream, held + 1)

        call = await stack.enter_async_context(venue_call(TRADIER, override=case.venue.url, api_key=TOKEN))
        other = watch_orders(call)
        stack.push_async_callback(other.aclose)
        await anext(other)
        await until_delivered(stream, BROKEN)
        made = sessions_made(case.venue)
        case.change(Decimal(2))
        await next_total(stream, held + 3)
        await anext(other)
        assert sessions_made(case.venue) == made == 2


def sessions_made(venue: DemoVenue) -> int:
    return sum(request.method == "POST" for request in venue.requests)
