"""tastytrade through the whole service: a login's accounts are pushed as one balance, and break and come back."""

from __future__ import annotations

from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_tastytrade.push import StreamerLanguage
from exchange_service_tastytrade.simulator import SimulatedAccount, TastytradeSimulator

from exchange_service.v1.balance_pb2 import DeliveryMode
from tests.harness import Stream, serving, streaming, until

REFRESH, SECRET = "a-refresh-token-for-tests", "a-client-secret-for-tests"
FIRST, SECOND = "5WX00000", "5WX00001"


async def next_with(stream: Stream, number: str, cash: str) -> Any:
    """The next balance of a stream in which the account has this much cash."""
    while True:
        balance = (await stream.next_of("balance")).balance
        if {account.id: account.summary.cash for account in balance.venue_accounts}.get(number) == cash:
            return balance


async def until_pushed(stream: Stream) -> None:
    """Wait until the service says that the account is pushed."""
    while True:
        heartbeat = await stream.next_of("heartbeat")
        if [state.delivery.mode for state in heartbeat.accounts] == [DeliveryMode.DELIVERY_MODE_PUSHED]:
            return


async def test_a_change_of_either_account_is_pushed_as_the_whole_login_and_again_after_a_token_ended_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StreamerLanguage, "keep_alive_every", 0.2)
    async with TastytradeSimulator() as venue:
        venue.add_grant(REFRESH, SECRET, SimulatedAccount(FIRST), SimulatedAccount(SECOND, margin_or_cash="Cash"))
        # Nothing is polled while the test lasts.
        settings = {"venue_urls": {"tastytrade": venue.url}, "poll_interval": 60.0, "heartbeat_interval": 0.1}
        async with AsyncExitStack() as stack:
            running = await stack.enter_async_context(serving(tmp_path, **settings))
            await running.store("tastytrade", api_secret=SECRET, passphrase=REFRESH)
            stream = await stack.enter_async_context(streaming(running, "tastytrade"))
            await next_with(stream, FIRST, "12875.412")
            await until_pushed(stream)

            for number, cash in ((SECOND, "7.5"), (FIRST, "8.25"), (SECOND, "9")):
                venue.change(REFRESH, number, cash=Decimal(cash))
                balance = await next_with(stream, number, cash)
                assert [account.id for account in balance.venue_accounts] == [FIRST, SECOND]
            assert balance.summary.cash == "17.25"

            # The next heartbeat is refused, and the login is connected again with another token.
            venue.end_tokens()
            await until(lambda: venue.push.opened == 2)
            venue.change(REFRESH, FIRST, cash=Decimal(10))
            await next_with(stream, FIRST, "10")
            await until_pushed(stream)
