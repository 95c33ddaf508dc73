"""The summary of wallets that hold many assets, by rules that a reader can repeat. Pure functions.

1. A wallet that was never opened holds nothing, and a row of zeros holds nothing.
2. If another wallet could not be read, there is no summary of all.
3. The currency is the one of USDT, USD and USDC of which most is held. If something is held, but none of these three,
   there is no summary. If nothing is held, it is the first of the three that has a row.
4. The figures are the sums of that currency's rows. A figure that a row lacks is absent, and so is what is available
   if one of several wallets is in deficit, because another wallet does not pay for it.
5. What the summary leaves out stands in a note, and so does each asset that is owed: a total may be before debts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal

from exchange_service.plugin_api import (
    AssetBalance,
    Balance,
    FeatureNotEnabled,
    Summary,
    VenueAccount,
    exact_sum,
)

_CURRENCIES = ("USDT", "USD", "USDC")
_MOST_NAMED = 5


def with_headline(balance: Balance) -> Balance:
    """The balance with its summary, and notes on what that leaves out."""
    closed = [account for account in balance.venue_accounts if isinstance(account.error, FeatureNotEnabled)]
    opened = [account for account in balance.venue_accounts if account not in closed]
    figures = None if any(account.error for account in opened) else _figures(opened)
    notes = [*balance.notes]
    if figures is not None:
        notes += _left_out(opened, figures.currency, "The summary")
        if closed:
            notes.append(f"Not opened at the venue, so that nothing is held there: {_named(_types(closed))}.")
    elif len(balance.venue_accounts) > 1:
        for account in opened:
            if account.summary is not None:
                notes += _left_out([account], account.summary.currency, f"The summary of {account.type}")
    return replace(balance, summary=figures, notes=tuple(notes))


def _figures(accounts: Sequence[VenueAccount]) -> Summary | None:
    """The summary of all accounts; that of a single one has been made already, if it has one."""
    made = accounts[0].summary if len(accounts) == 1 else None
    return made or summarize([row for account in accounts for row in account.assets])


def summarize(rows: Sequence[AssetBalance]) -> Summary | None:
    """The figures in the currency of which most is held; None if none of the three is held but something else is."""
    held = [row for row in rows if not row.is_zero()]
    known = {row.asset for row in held or rows if _amount(row) is not None}
    currencies = [currency for currency in _CURRENCIES if currency in known]
    if not currencies:
        return None
    currency = currencies[0] if len(currencies) == 1 else max(currencies, key=lambda code: _held(rows, code))
    own = [row for row in rows if row.asset == currency]
    frees = [row.free for row in own]
    deficit = len(own) > 1 and any(free is not None and free < 0 for free in frees)
    return Summary(currency, total=_sum([row.total for row in own]), available=None if deficit else _sum(frees))


def _held(rows: Sequence[AssetBalance], currency: str) -> Decimal:
    return exact_sum(_amount(row) or Decimal(0) for row in rows if row.asset == currency)


def _amount(row: AssetBalance) -> Decimal | None:
    return row.total if row.total is not None else row.free


def _sum(amounts: Sequence[Decimal | None]) -> Decimal | None:
    """The exact sum; None if an amount is not known."""
    known = [amount for amount in amounts if amount is not None]
    if len(known) != len(amounts):
        return None
    return known[0] if len(known) == 1 else exact_sum(known)


def _left_out(accounts: Sequence[VenueAccount], currency: str, subject: str) -> Iterator[str]:
    """A sentence on the other assets that are held, and one on all that are owed, if there are any."""
    rows = [row for account in accounts for row in account.assets]
    others = sorted(
        {row.asset for row in rows if row.asset != currency and not row.is_zero() and not _is_owed_alone(row)}
    )
    if others:
        yield f"{subject} counts {currency} alone. Also held: {_named(others)}."
    owed = sorted({row.asset for row in rows if _is_owed(row)})
    if owed:
        yield f"Owed at the venue: {_named(owed)}."


def _is_owed(row: AssetBalance) -> bool:
    return (row.debt is not None and row.debt > 0) or (row.total is not None and row.total < 0)


def _is_owed_alone(row: AssetBalance) -> bool:
    return _is_owed(row) and not any(amount and amount > 0 for amount in (row.total, row.free, row.used))


def _types(accounts: Sequence[VenueAccount]) -> list[str]:
    return [account.type for account in accounts]


def _named(names: Sequence[str]) -> str:
    """The names, at most five of them, and how many more there are."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
