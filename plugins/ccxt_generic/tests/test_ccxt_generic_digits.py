"""The amounts of a balance are the venue's digits, whether it sends texts or bare JSON numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Context, Decimal
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exchange_service.plugin_api import Balance, ExchangeMetadata
from exchange_service.testing import venue_call

Row = tuple[str, Decimal, Decimal]
Listings = Mapping[str, ExchangeMetadata]

MOST_DIGITS = 30
# Enough for any sum of two amounts of so many digits.
EXACT = Context(prec=3 * MOST_DIGITS)


@st.composite
def amounts(draw: st.DrawFn) -> Decimal:
    """An amount of up to thirty digits, the point anywhere among them."""
    digits = draw(st.integers(1, MOST_DIGITS))
    places = draw(st.integers(0, digits))
    return Decimal(draw(st.integers(0, 10**digits - 1))).scaleb(-places, EXACT)


# Letters that no exchange's table of other names begins with.
ASSETS = st.text("QWXYZ", min_size=4, max_size=6)
ROWS = st.lists(st.tuples(ASSETS, amounts(), amounts()), min_size=1, max_size=6, unique_by=lambda row: row[0])

each_with_one_server = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def written(amount: Decimal) -> str:
    """The amount with all its digits and no exponent."""
    return format(amount, "f")


def binances_texts(rows: Sequence[Row]) -> str:
    balances = [{"asset": name, "free": written(free), "locked": written(locked)} for name, free, locked in rows]
    return json.dumps({"canTrade": True, "accountType": "SPOT", "balances": balances})


def binances_numbers(rows: Sequence[Row]) -> str:
    balances = (
        f'{{"asset":"{name}","free":{written(free)},"locked":{written(locked)}}}' for name, free, locked in rows
    )
    return f'{{"canTrade":true,"accountType":"SPOT","balances":[{",".join(balances)}]}}'


def bitfinexs_numbers(rows: Sequence[Row]) -> str:
    """Bitfinex names the total and the free part, and sends bare numbers always."""
    wallets = (
        f'["exchange","{name}",{written(EXACT.add(free, locked))},0,{written(free)},"",null]'
        for name, free, locked in rows
    )
    return f"[{','.join(wallets)}]"


async def read(listing: ExchangeMetadata, venue: Any, path: str, body: str) -> Balance:
    venue.answers[path] = body.encode()
    options: dict[str, Any] = {"api_key": "abcdef0123456789", "api_secret": "c2VjcmV0", "timeout": 20.0}
    async with venue_call(listing, override=venue.url, **options) as call:
        return await plugin.fetch_balance(call)


def assert_every_digit(balance: Balance, rows: Sequence[Row]) -> None:
    shown = {row.asset: (row.total, row.free, row.used) for _, row in balance.rows()}
    assert shown == {name: (EXACT.add(free, locked), free, locked) for name, free, locked in rows}


@pytest.mark.usefixtures("without_markets")
@each_with_one_server
@given(rows=ROWS)
async def test_texts_lose_no_digit(listings: Listings, venue: Any, rows: Sequence[Row]) -> None:
    balance = await read(listings["binance"], venue, "/api/v3/account", binances_texts(rows))
    assert_every_digit(balance, rows)


@pytest.mark.usefixtures("without_markets")
@each_with_one_server
@given(rows=ROWS)
async def test_bare_numbers_lose_no_digit(listings: Listings, venue: Any, rows: Sequence[Row]) -> None:
    balance = await read(listings["binance"], venue, "/api/v3/account", binances_numbers(rows))
    assert_every_digit(balance, rows)


@pytest.mark.usefixtures("without_markets")
@each_with_one_server
@given(rows=ROWS)
async def test_numbers_of_a_venue_lose_no_digit(listings: Listings, venue: Any, rows: Sequence[Row]) -> None:
    balance = await read(listings["bitfinex"], venue, "/v2/auth/r/wallets", bitfinexs_numbers(rows))
    assert_every_digit(balance, rows)
