"""The simulator of Kraken Futures: what it answers, and what it refuses."""

from __future__ import annotations

from decimal import Decimal

import pytest
from exchange_service_krakenfutures import KRAKENFUTURES, fetch_balance
from exchange_service_krakenfutures.signing import Nonces
from exchange_service_krakenfutures.simulator import KrakenfuturesSimulator, SimulatedAccount

from exchange_service.plugin_api import ClockSkew, CredentialRejected
from exchange_service.testing import venue_call


async def test_its_numbers_keep_their_digits() -> None:
    account = SimulatedAccount("an-account", collateral={"USD": Decimal("1234567890123456789.123456789")})
    async with (
        KrakenfuturesSimulator() as venue,
        venue_call(KRAKENFUTURES, override=venue.url, account_type="flex", **venue.add_key("a-key", account)) as call,
    ):
        ((row,),) = [found.assets for found in (await fetch_balance(call)).venue_accounts]
    assert row.total == Decimal("1234567890123456789.123456789")


async def test_it_tolerates_nonces_out_of_order_and_refuses_those_far_below() -> None:
    async with KrakenfuturesSimulator() as venue:
        row = venue.add_key("a-key", SimulatedAccount("an-account"))
        async with venue_call(KRAKENFUTURES, override=venue.url, **row) as call:
            last = int(Nonces().next())
            venue.keys["a-key"].last_nonce = last + 5_000
            await fetch_balance(call)
            venue.keys["a-key"].last_nonce = last + 60_000
            with pytest.raises(ClockSkew):
                await fetch_balance(call)


async def test_a_deleted_key_is_refused_until_the_situation_is_made_again() -> None:
    async with KrakenfuturesSimulator() as venue:
        row = venue.demo_credential("moving")
        assert row is not None
        assert venue.revoke_demo_key()
        assert not venue.revoke_demo_key()
        async with venue_call(KRAKENFUTURES, override=venue.url, **row) as call:
            with pytest.raises(CredentialRejected):
                await fetch_balance(call)
            assert venue.demo_credential("moving") == row
            assert (await fetch_balance(call)).venue_accounts


async def test_only_the_moving_account_moves() -> None:
    venue = KrakenfuturesSimulator()
    venue.demo_credential("moving")
    venue.demo_credential("slow")
    venue.move()
    moved, still = (venue.keys[f"demo-{situation}-key"].account for situation in ("moving", "slow"))
    assert moved.profit != still.profit == SimulatedAccount("another").profit
