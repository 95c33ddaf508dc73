"""Binance's spot through the whole service: it pushes only what has changed, and each balance of a stream is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exchange_service_ccxt_generic.simulator import BinanceSimulator, SimulatedWallet

from exchange_service.v1.balance_pb2 import PollingReason
from tests.harness import Stream, serving, streaming


async def next_rows(stream: Stream) -> dict[str, str]:
    """The totals of the next balance."""
    balance: Any = (await stream.next_of("balance")).balance
    return {row.asset: row.total for account in balance.venue_accounts for row in account.assets}


async def until_delivered(stream: Stream, reason: str) -> None:
    """Wait until the account is polled for this reason; UNSPECIFIED: until it is pushed."""
    wanted = PollingReason.Value(f"POLLING_REASON_{reason}")
    while True:
        heartbeat = await stream.next_of("heartbeat")
        if [state.delivery.polling_reason for state in heartbeat.accounts] == [wanted]:
            return


async def test_a_pushed_part_of_a_balance_is_never_shown_as_the_balance(tmp_path: Path) -> None:
    async with BinanceSimulator() as venue:
        wallet = SimulatedWallet("alicekey", "alicesecret", {"BTC": ("1.5", "0"), "USDT": ("20", "0")})
        venue.add_wallet(wallet)
        # Nothing is polled while the test lasts.
        settings = {"venue_urls": {"binance": venue.url}, "poll_interval": 60.0, "heartbeat_interval": 0.1}
        async with serving(tmp_path, **settings) as running:
            await running.store("binance", api_key="alicekey", api_secret="alicesecret")
            async with streaming(running, "binance") as stream:
                assert await next_rows(stream) == {"BTC": "1.5", "USDT": "20"}
                await until_delivered(stream, "UNSPECIFIED")

                for amount in ("0.75", "0.5"):
                    wallet.spot["BTC"] = (amount, "0")
                    venue.announce(wallet, "BTC")
                    assert await next_rows(stream) == {"BTC": amount, "USDT": "20"}

                venue.push.drop_all()
                await until_delivered(stream, "BROKEN")
                await until_delivered(stream, "UNSPECIFIED")
                wallet.spot["USDT"] = ("7", "0")
                venue.announce(wallet, "USDT")
                assert await next_rows(stream) == {"BTC": "0.5", "USDT": "7"}
