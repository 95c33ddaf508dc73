"""Binance through the whole service, CCXT in a process of its own: forced reads wait for nothing but the limit."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

from exchange_service_ccxt_generic.simulator import BinanceSimulator, SimulatedWallet

from exchange_service.errors import ServiceError, VenueRateLimited
from tests.harness import Running, serving

# Binance's own weights, and how many it allows an address in a minute.
# witness: vendor: https://developers.binance.com/docs/binance-spot-api-docs/rest-api/account-endpoints
_WEIGHTS = {"/api/v3/account": 20, "/api/v3/exchangeInfo": 20, "/api/v3/time": 1}
_ALLOWED = 6000
# CCXT's pause behind a request of this cost.
_PAUSE = 0.2
_USERS = ("alice", "bob", "carol")


async def forced(running: Running, user: str) -> ServiceError | None:
    """The error of a read that takes no balance from before; None if there is none."""
    try:
        await running.client.get_balance(user, "binance", max_age=0)
    except ServiceError as error:
        return error
    return None


def weight(venue: BinanceSimulator) -> int:
    """What the requests to the host of spot have taken."""
    return sum(_WEIGHTS.get(path, 0) * times for path, times in Counter(one.path for one in venue.requests).items())


async def test_forced_reads_of_binance_follow_at_once_and_a_burst_stays_within_its_limit(tmp_path: Path) -> None:
    # The first read waits for CCXT to be imported.
    settings: dict[str, Any] = {"venue_timeout": 60.0, "call_timeout": 60.0}
    async with BinanceSimulator() as venue, serving(tmp_path, venue_urls={"binance": venue.url}, **settings) as running:
        for user in _USERS:
            venue.add_wallet(SimulatedWallet(f"{user}key", f"{user}secret", {"BTC": ("1.5", "0")}))
            await running.store("binance", user=user, api_key=f"{user}key", api_secret=f"{user}secret")
            assert await forced(running, user) is None

        began = time.monotonic()
        assert [await forced(running, "alice") for _ in range(6)] == [None] * 6
        assert time.monotonic() - began < 5 * _PAUSE

        errors: list[ServiceError | None] = []
        for _ in range(130):
            errors += await asyncio.gather(*(forced(running, user) for user in _USERS))
        assert weight(venue) <= _ALLOWED
        refused = [error for error in errors if error is not None]
        assert {type(error) for error in refused} == {VenueRateLimited}
        # Nearly all of the limit was used.
        assert weight(venue) > 0.9 * _ALLOWED
