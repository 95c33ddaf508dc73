"""The demo's accounts, each in its situation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from exchange_service_ccxt_generic.simulator import BinanceSimulator

from exchange_service.plugin_api import Balance, CredentialRejected, VenueRateLimited, VenueUnavailable

Read = Callable[..., Awaitable[Balance]]


def stored(binance: BinanceSimulator, situation: str) -> dict[str, Any]:
    """What the demo stores for an account in this situation."""
    row = binance.demo_credential(situation)
    assert row is not None
    return dict(row)


async def test_a_moving_account_moves(read: Read, binance: BinanceSimulator) -> None:
    row = stored(binance, "moving")
    before = (await read(**row)).summary
    binance.move()
    after = (await read(**row)).summary
    assert before is not None
    assert after is not None
    assert before.total != after.total


async def test_an_empty_account_is_empty(read: Read, binance: BinanceSimulator) -> None:
    assert list((await read(**stored(binance, "empty"))).rows()) == []


async def test_a_refused_key_is_refused(read: Read, binance: BinanceSimulator) -> None:
    with pytest.raises(CredentialRejected):
        await read(**stored(binance, "refused"))


async def test_a_limited_account_names_its_delay(read: Read, binance: BinanceSimulator) -> None:
    with pytest.raises(VenueRateLimited) as caught:
        await read(**stored(binance, "limited"))
    assert caught.value.retry_after == 30.0


async def test_a_stale_account_answers_once(read: Read, binance: BinanceSimulator) -> None:
    row = stored(binance, "stale")
    await read(**row)
    with pytest.raises(VenueUnavailable):
        await read(**row)


async def test_a_slow_account_answers_in_the_end(read: Read, binance: BinanceSimulator) -> None:
    row = stored(binance, "slow")
    binance.faults[-1].delay = 0.2
    assert list((await read(**row)).rows())


def test_one_key_is_one_account_so_that_none_is_partly_readable(binance: BinanceSimulator) -> None:
    assert binance.demo_credential("partly") is None
