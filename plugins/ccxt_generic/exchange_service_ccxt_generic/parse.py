"""Reads CCXT's unified balance into the service's values. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from exchange_service.plugin_api import (
    AssetBalance,
    Balance,
    CredentialRejected,
    PermissionMissing,
    VenueAccount,
    VenueError,
    as_object,
    parse_amount,
)
from exchange_service_ccxt_generic.headline import summarize

_COLUMNS = ("total", "free", "used", "debt")
_NOTHING = (None, None, None, None)
# A row takes some hundred bytes. It does not say whose it is.
_ROWS_KEPT = 4096
# Milliseconds from 2009 to 2100. Another time is not that of a balance.
_PLAUSIBLE_TIMES = range(1_230_768_000_000, 4_102_444_800_000)


def shown(result: Any) -> set[str]:
    """The codes of the assets in a result of `fetch_balance`."""
    balance = as_object(result, "the result")
    return {code for name in _COLUMNS for code in as_object(balance.get(name, {}), name)}


def rows(result: Any, venue_codes: Mapping[str, list[str]]) -> tuple[AssetBalance, ...]:
    """The rows of a result of `fetch_balance`, without rows that have no amount.

    They are read from the columns, not from the rows beside them, where an asset named "total" would collide.
    `venue_codes` has the venue's codes by CCXT's code. If CCXT gives several of the venue's assets one code, the row
    shows only one of them, and it is not known which, so its amounts are None.
    """
    balance = as_object(result, "the result")
    totals, frees, useds, debts = (as_object(balance.get(name, {}), name) for name in _COLUMNS)
    result_rows = []
    for code in {**totals, **frees, **useds, **debts}:
        names = venue_codes.get(code, ())
        figures = (totals.get(code), frees.get(code), useds.get(code), debts.get(code))
        try:
            row = _row(code, _own_name(code, names), *figures)
        except TypeError:
            # An unhashable value is not an amount. Without the cache it is refused as such.
            row = _row.__wrapped__(code, "", *figures)
        if _differ(names):
            result_rows.append(AssetBalance(code))
        elif row is not None:
            result_rows.append(row)
    return tuple(result_rows)


# Most rows are the same as in the call before, and many are zero for every user.
@lru_cache(maxsize=_ROWS_KEPT, typed=True)
def _row(code: str, own_name: str, total: Any, free: Any, used: Any, debt: Any) -> AssetBalance | None:
    """The row with the figures of CCXT's columns; None if it has no figure.

    CCXT computes parts that a venue does not state. A negative one is not known.
    """
    amounts = (
        parse_amount(total, "total of a row"),
        _unless_negative(parse_amount(free, "free of a row")),
        _unless_negative(parse_amount(used, "used of a row")),
        parse_amount(debt, "debt of a row"),
    )
    return None if amounts == _NOTHING else AssetBalance(code, *amounts, venue_asset=own_name)


def _unless_negative(amount: Decimal | None) -> Decimal | None:
    return None if amount is None or amount < 0 else amount


def venue_time(result: Mapping[str, Any]) -> datetime | None:
    """The venue's time of the balance; None if it is missing or implausible."""
    stamp = result.get("timestamp")
    if not isinstance(stamp, int) or stamp not in _PLAUSIBLE_TIMES:
        return None
    return datetime.fromtimestamp(stamp / 1000, UTC)


def collision_notes(assets: tuple[AssetBalance, ...], venue_codes: Mapping[str, list[str]]) -> tuple[str, ...]:
    """A sentence for each row whose amounts are unknown because it stands for several of the venue's assets."""
    if max(map(len, venue_codes.values()), default=0) < 2:
        return ()
    alike = sorted(row.asset for row in assets if row == AssetBalance(row.asset))
    return tuple(
        f"CCXT uses the code {code} for {', '.join(sorted(_different(venue_codes[code])))}: their amounts are unknown."
        for code in alike
    )


def _differ(names: Sequence[str]) -> bool:
    """Whether these are the names of several assets of the venue."""
    return len(names) > 1 and len(_different(names)) > 1


def _different(names: Sequence[str]) -> Collection[str]:
    """The names without those that differ from another one only in case."""
    return {name.upper(): name for name in names}.values()


def _own_name(code: str, names: Sequence[str]) -> str:
    """The venue's name of an asset; empty if it is CCXT's code."""
    for name in names:
        if name != code and name.upper() != code.upper():
            return name
    return ""


def balance(
    assets: tuple[AssetBalance, ...],
    account_type: str,
    when: datetime | None,
    notes: tuple[str, ...] = (),
    others: Mapping[str, tuple[AssetBalance, ...]] = MappingProxyType({}),
) -> Balance:
    """One account's balance, without the summary of all accounts.

    `others` are rows of further accounts in the same answer, by the venue's kind of them, which is no type of the
    listing and therefore stands in the place of a sub-account's name.
    """
    accounts = (
        VenueAccount(type=account_type, assets=assets, summary=summarize(assets), venue_time=when),
        *(
            VenueAccount(sub_account=_kind_name(kind), assets=rows, summary=summarize(rows), venue_time=when)
            for kind, rows in others.items()
        ),
    )
    return Balance(venue_accounts=accounts, venue_time=when, notes=notes)


def _kind_name(kind: str) -> str:
    """What to show for the venue's name of a kind of account."""
    return kind.lower().removeprefix("account_type_")


def joined(venue: str, account_type: str, results: Mapping[str, Balance | VenueError]) -> Balance:
    """One account from a read for each currency. The notes name what is refused; an error is raised if all are."""
    read = {code: result for code, result in results.items() if isinstance(result, Balance)}
    errors = {code: result for code, result in results.items() if isinstance(result, VenueError)}
    if not read:
        raise next(iter(errors.values()))
    assets = tuple(row for result in read.values() for account in result.venue_accounts for row in account.assets)
    notes = dict.fromkeys(note for result in read.values() for note in result.notes)
    if errors:
        notes[f"{venue} shows no {account_type} wallet for {', '.join(errors)}."] = None
    return balance(assets, account_type, None, tuple(notes))


def gather(venue: str, results: Mapping[str, Balance | VenueError]) -> Balance:
    """The balance of several reads, by requested type; a read that failed is an account with its error.

    Raises an error if all reads failed, preferably a transient one.
    """
    errors = [result for result in results.values() if isinstance(result, VenueError)]
    if len(errors) == len(results):
        # A transient error first: with it, nothing permanent is known of the key.
        raise next((error for error in errors if error.transient), errors[0])
    accounts: list[VenueAccount] = []
    notes: dict[str, None] = {}
    for account_type, result in results.items():
        if isinstance(result, VenueError):
            found = [VenueAccount(type=account_type, error=_beside_others(venue, result))]
        else:
            found = list(result.venue_accounts)
        # An answer may also have held an account of another type, which is then there already.
        known = {account.identity for account in accounts}
        accounts.extend(account for account in found if account.identity not in known)
        if isinstance(result, Balance):
            notes.update(dict.fromkeys(result.notes))
    return Balance(venue_accounts=tuple(accounts), notes=tuple(notes))


def _beside_others(venue: str, error: VenueError) -> VenueError:
    """The error of one account beside readable ones: the key as such is not refused then."""
    if isinstance(error, CredentialRejected):
        return PermissionMissing(
            f"{venue} accepts the key, but not for this account.", advice="Give it the right to read it."
        )
    return error
