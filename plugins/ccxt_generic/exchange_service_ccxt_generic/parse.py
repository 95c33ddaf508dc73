"""CCXT's unified balance as the service's nouns. Pure: CCXT's structure in, value out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from exchange_service.plugin_api import AssetBalance, Balance, Summary, VenueAccount, as_object, parse_amount

# The first of these that has a row is the summary's currency, see the catalogue's rules.
_SUMMARY_CURRENCIES = ("USDT", "USD", "USDC")
_COLUMNS = ("total", "free", "used", "debt")
# Milliseconds between the years 2009 and 2100; what lies outside is no time of a balance.
_PLAUSIBLE_TIMES = range(1_230_768_000_000, 4_102_444_800_000)


def rows(result: Any, venue_codes: Mapping[str, list[str]]) -> tuple[AssetBalance, ...]:
    """The rows of a result of `fetch_balance`, without those that say nothing at all.

    They are read from the columns and not from the rows beside them, where an asset named "total" would collide.
    `venue_codes` holds what the venue calls each of CCXT's codes.
    """
    columns = {name: as_object(as_object(result, "the result").get(name, {}), name) for name in _COLUMNS}
    found = []
    for code in dict.fromkeys(code for column in columns.values() for code in column):
        amounts = {name: parse_amount(column.get(code), f"{name} of a row") for name, column in columns.items()}
        if any(amount is not None for amount in amounts.values()):
            own = [name for name in venue_codes.get(code, []) if name.upper() != code.upper()]
            found.append(AssetBalance(code, **amounts, venue_asset=own[0] if own else ""))
    return tuple(found)


def summary(assets: tuple[AssetBalance, ...]) -> Summary | None:
    """The figures of the first of USDT, USD and USDC that has a row; none of them: None, never a zero."""
    by_code = {row.asset: row for row in assets}
    for currency in _SUMMARY_CURRENCIES:
        if row := by_code.get(currency):
            return Summary(currency, total=row.total, available=row.free)
    return None


def venue_time(result: Mapping[str, Any]) -> datetime | None:
    """When the venue says that the balance was true, if it says."""
    stamp = result.get("timestamp")
    if not isinstance(stamp, int) or stamp not in _PLAUSIBLE_TIMES:
        return None
    return datetime.fromtimestamp(stamp / 1000, UTC)


def collision_notes(assets: tuple[AssetBalance, ...], venue_codes: Mapping[str, list[str]]) -> tuple[str, ...]:
    """A sentence for each row into which CCXT has put several of the venue's assets: it may show but one of them."""
    notes = []
    for code in sorted(row.asset for row in assets):
        own = {name.upper(): name for name in venue_codes.get(code, [])}
        if len(own) > 1:
            notes.append(f"CCXT names {', '.join(sorted(own.values()))} alike, {code}: its row may lack one of them.")
    return tuple(notes)


def balance(
    assets: tuple[AssetBalance, ...], account_type: str, when: datetime | None, notes: tuple[str, ...] = ()
) -> Balance:
    """One account's balance."""
    figures = summary(assets)
    account = VenueAccount(type=account_type, assets=assets, summary=figures, venue_time=when)
    return Balance(venue_accounts=(account,), summary=figures, venue_time=when, notes=notes)
