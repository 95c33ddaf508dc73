"""CCXT's unified balance as the service's nouns. Pure: CCXT's structure in, value out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from exchange_service.plugin_api import (
    AssetBalance,
    Balance,
    CredentialRejected,
    PermissionMissing,
    Summary,
    VenueAccount,
    VenueError,
    as_object,
    combined_summary,
    parse_amount,
)

# The first of these that has a row is the summary's currency, see the catalogue's rules.
_SUMMARY_CURRENCIES = ("USDT", "USD", "USDC")
_COLUMNS = ("total", "free", "used", "debt")
_NOTHING = (None, None, None, None)
# Rows are values of some hundred bytes, which tell nothing of whose they are.
_ROWS_KEPT = 4096
# Milliseconds between the years 2009 and 2100; what lies outside is no time of a balance.
_PLAUSIBLE_TIMES = range(1_230_768_000_000, 4_102_444_800_000)


def rows(result: Any, venue_codes: Mapping[str, list[str]]) -> tuple[AssetBalance, ...]:
    """The rows of a result of `fetch_balance`, without those that say nothing at all.

    They are read from the columns and not from the rows beside them, where an asset named "total" would collide.
    `venue_codes` holds what the venue calls each of CCXT's codes. A row into which CCXT has put several of the venue's
    assets shows but one of them, and nobody can tell which, so that its amounts are unknown.
    """
    balance = as_object(result, "the result")
    totals, frees, useds, debts = (as_object(balance.get(name, {}), name) for name in _COLUMNS)
    found = []
    for code in {**totals, **frees, **useds, **debts}:
        names = venue_codes.get(code, ())
        figures = (totals.get(code), frees.get(code), useds.get(code), debts.get(code))
        try:
            row = _row(code, _own_name(code, names), *figures)
        except TypeError:
            # What is no key of a dict is no amount either, and refused as such.
            row = _row.__wrapped__(code, "", *figures)
        if _differ(names):
            found.append(AssetBalance(code))
        elif row is not None:
            found.append(row)
    return tuple(found)


# Most rows are those of the call before, and many are everybody's: an asset of which one has nothing.
@lru_cache(maxsize=_ROWS_KEPT, typed=True)
def _row(code: str, own_name: str, total: Any, free: Any, used: Any, debt: Any) -> AssetBalance | None:
    """A row with the figures that CCXT has in its columns; None for one that says nothing."""
    amounts = (
        parse_amount(total, "total of a row"),
        parse_amount(free, "free of a row"),
        parse_amount(used, "used of a row"),
        parse_amount(debt, "debt of a row"),
    )
    return None if amounts == _NOTHING else AssetBalance(code, *amounts, venue_asset=own_name)


def summary(assets: tuple[AssetBalance, ...]) -> Summary | None:
    """The figures of the first of USDT, USD and USDC that has a row; none of them: None, never a zero."""
    by_code = {row.asset: row for row in assets}
    for currency in _SUMMARY_CURRENCIES:
        if row := by_code.get(currency):
            known = row.total is not None or row.free is not None
            return Summary(currency, total=row.total, available=row.free) if known else None
    return None


def venue_time(result: Mapping[str, Any]) -> datetime | None:
    """When the venue says that the balance was true, if it says."""
    stamp = result.get("timestamp")
    if not isinstance(stamp, int) or stamp not in _PLAUSIBLE_TIMES:
        return None
    return datetime.fromtimestamp(stamp / 1000, UTC)


def collision_notes(assets: tuple[AssetBalance, ...], venue_codes: Mapping[str, list[str]]) -> tuple[str, ...]:
    """A sentence for each row into which CCXT has put several of the venue's assets."""
    if max(map(len, venue_codes.values()), default=0) < 2:
        return ()
    alike = sorted(row.asset for row in assets if _differ(venue_codes.get(row.asset, ())))
    return tuple(
        f"CCXT names {', '.join(sorted(_different(venue_codes[code])))} alike, {code}: what they hold is not known."
        for code in alike
    )


def _differ(names: Sequence[str]) -> bool:
    """Whether several of the venue's assets have these names."""
    return len(names) > 1 and len(_different(names)) > 1


def _different(names: Sequence[str]) -> Collection[str]:
    """The names, of those that differ in their case alone one."""
    return {name.upper(): name for name in names}.values()


def _own_name(code: str, names: Sequence[str]) -> str:
    """What the venue calls an asset, if not what CCXT does."""
    for name in names:
        if name != code and name.upper() != code.upper():
            return name
    return ""


def balance(
    assets: tuple[AssetBalance, ...], account_type: str, when: datetime | None, notes: tuple[str, ...] = ()
) -> Balance:
    """One account's balance."""
    figures = summary(assets)
    account = VenueAccount(type=account_type, assets=assets, summary=figures, venue_time=when)
    return Balance(venue_accounts=(account,), summary=figures, venue_time=when, notes=notes)


def gathered(venue: str, outcomes: Mapping[str, Balance | VenueError]) -> Balance:
    """The accounts of several reads by the type that was asked for, those that failed with their errors. Where all
    failed one error is raised, one that passes before one that lasts. There is a summary where one currency holds for
    all that have any row."""
    errors = [outcome for outcome in outcomes.values() if isinstance(outcome, VenueError)]
    if len(errors) == len(outcomes):
        # Trouble that passes first: with it, nothing that lasts is known of the key.
        raise next((error for error in errors if error.transient), errors[0])
    accounts: list[VenueAccount] = []
    notes: dict[str, None] = {}
    for account_type, outcome in outcomes.items():
        if isinstance(outcome, VenueError):
            accounts.append(VenueAccount(type=account_type, error=_beside_others(venue, outcome)))
        else:
            accounts.extend(outcome.venue_accounts)
            notes.update(dict.fromkeys(outcome.notes))
    figures = combined_summary([account for account in accounts if account.assets or account.error])
    return Balance(venue_accounts=tuple(accounts), summary=figures, notes=tuple(notes))


def _beside_others(venue: str, error: VenueError) -> VenueError:
    """The error of one account where others were read: a key that serves for them is not refused as such."""
    if isinstance(error, CredentialRejected):
        return PermissionMissing(f"{venue} takes the key, but not for this account.")
    return error
