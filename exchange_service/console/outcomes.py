"""What a checked credential shows, for the page: the accounts it sees, what it may do, and warnings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from exchange_service.accounts.v1.account_service_pb2 import AccountCheck, KeyRights
from exchange_service.printable import printable
from exchange_service.v1.balance_pb2 import AssetBalance, Balance, Summary, VenueAccount

# More rows than this do not help a user who only wants to see that the key works; the page of accounts has them all.
_MAX_ROWS = 8
_FIGURES = (
    ("equity", "Equity"),
    ("total", "Total"),
    ("available", "Available"),
    ("margin_used", "Margin used"),
    ("unrealised_pnl", "Unrealised PnL"),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """An amount with its name, and its currency or nothing."""

    label: str
    amount: str
    currency: str = ""


@dataclass(frozen=True, slots=True)
class SeenAccount:
    """One of the venue's accounts that a key opens: its figures and rows, or why it could not be read."""

    title: str
    kind: str
    figures: tuple[Figure, ...]
    rows: tuple[Figure, ...]
    more_rows: int
    error: str


@dataclass(frozen=True, slots=True)
class KeyRight:
    """Something that a key may do; `tone` is "good", "warning" or "quiet"."""

    label: str
    word: str
    tone: str


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """All that the page says after a credential was tried."""

    headline: tuple[Figure, ...]
    accounts: tuple[SeenAccount, ...]
    rights: tuple[KeyRight, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def check_outcome(check: AccountCheck) -> CheckOutcome:
    """A check in words and figures. Amounts are the venue's own digits."""
    balance = check.balance
    return CheckOutcome(
        headline=_headline(balance),
        accounts=tuple(_seen_account(account) for account in balance.venue_accounts),
        rights=_rights(check.rights) if check.HasField("rights") else (),
        warnings=tuple(map(printable, check.warnings)),
        notes=tuple(map(printable, (*check.rights.notes, *balance.notes))),
    )


def _headline(balance: Balance) -> tuple[Figure, ...]:
    """The figures for all accounts together; none if the only account has figures of its own."""
    accounts = balance.venue_accounts
    alone = len(accounts) == 1 and accounts[0].HasField("summary")
    return _figures(balance.summary) if balance.HasField("summary") and not alone else ()


def _seen_account(account: VenueAccount) -> SeenAccount:
    names = [printable(text) for text in (account.label, account.id, account.sub_account) if text]
    figures = _figures(account.summary) if account.HasField("summary") else ()
    # A broker's one row is its cash, which the figures have already.
    told = bool(figures) and [asset.asset for asset in account.assets] == [account.summary.currency]
    rows = [] if told else [_row(asset) for asset in account.assets]
    return SeenAccount(
        title=" · ".join(names) or "Account",
        kind=printable(account.type),
        figures=figures,
        rows=tuple(rows[:_MAX_ROWS]),
        more_rows=max(0, len(rows) - _MAX_ROWS),
        error=printable(account.error.message) if account.HasField("error") else "",
    )


def _row(asset: AssetBalance) -> Figure:
    """An asset's total, or what the venue says in its place."""
    for name, label in (("total", ""), ("free", "free"), ("used", "used"), ("debt", "owed")):
        amount = _optional(asset, name)
        if amount is not None:
            return Figure(printable(asset.asset), amount, label)
    return Figure(printable(asset.asset), "", "not said")


def _figures(summary: Summary) -> tuple[Figure, ...]:
    currency = printable(summary.currency)
    amounts = [(label, _optional(summary, name)) for name, label in _FIGURES]
    return tuple(Figure(label, amount, currency) for label, amount in amounts if amount is not None)


def _optional(message: Message, name: str) -> Any:
    """A field's value; None if it is absent."""
    return getattr(message, name) if message.HasField(name) else None


def _rights(rights: KeyRights) -> tuple[KeyRight, ...]:
    """Reading, which has just worked, and what the venue says of the others."""
    found = [KeyRight("Read balances", "yes", "good")]
    found += [_right(rights, "trade", "Place orders"), _right(rights, "withdraw", "Withdraw money")]
    if rights.HasField("expire_time"):
        found.append(KeyRight("Expires", f"{rights.expire_time.ToDatetime():%-d %b %Y}", "quiet"))
    return tuple(found)


def _right(rights: KeyRights, name: str, label: str) -> KeyRight:
    allowed = _optional(rights, name)
    if allowed is None:
        return KeyRight(label, "the venue does not say", "quiet")
    return KeyRight(label, "yes", "warning") if allowed else KeyRight(label, "no", "good")
