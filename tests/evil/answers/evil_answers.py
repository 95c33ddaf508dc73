"""Answers with values that are not balances."""

from dataclasses import replace
from decimal import Decimal
from typing import Any

from evil_common import WELL, EvilPlugin

from exchange_service.plugin_api import AssetBalance, Balance, VenueCall

(_ACCOUNT,) = WELL.venue_accounts


def _with_total(total: Any) -> Balance:
    """A balance whose amount was changed after its validation."""
    row = AssetBalance("BTC", total=Decimal(1))
    object.__setattr__(row, "total", total)
    return Balance((replace(_ACCOUNT, assets=(row,)),))


async def floats(call: VenueCall) -> Balance:
    return _with_total(0.1)


async def nans(call: VenueCall) -> Balance:
    return _with_total(Decimal("NaN"))


async def infinite(call: VenueCall) -> Balance:
    return _with_total(Decimal("Infinity"))


async def honest_float(call: VenueCall) -> Balance:
    amount: Any = 0.1
    return Balance((replace(_ACCOUNT, assets=(AssetBalance("BTC", total=amount),)),))


async def nothing(call: VenueCall) -> None:
    return None


async def text(call: VenueCall) -> str:
    return "1.50 BTC"


async def rows_of_another_kind(call: VenueCall) -> Balance:
    rows: Any = ("BTC", "1.50")
    return Balance((replace(_ACCOUNT, assets=rows),))


async def a_million_rows(call: VenueCall) -> Balance:
    return Balance((replace(_ACCOUNT, assets=_ACCOUNT.assets * 1_000_000),))


async def too_many_rows(call: VenueCall) -> Balance:
    rows = tuple(AssetBalance(f"COIN{number}", total=Decimal(number)) for number in range(10_001))
    return Balance((replace(_ACCOUNT, assets=rows),))


plugin = EvilPlugin(
    "evil-answers",
    *(floats, nans, infinite, honest_float, nothing, text, rows_of_another_kind, a_million_rows, too_many_rows),
)
