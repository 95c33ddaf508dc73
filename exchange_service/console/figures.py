"""What the accounts page shows of balances: amounts to the last digit, what is read of each account, and the headline.

An amount is the text that the service gave. It is never a float, and never rounded; the headline's sums are exact.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from markupsafe import Markup, escape

from exchange_service.accounts.v1.account_service_pb2 import StoredAccount
from exchange_service.amounts import exact_sum, format_amount
from exchange_service.errors import leaves
from exchange_service.printable import printable
from exchange_service.v1 import balance_pb2, error_reason_pb2
from exchange_service.v1.balance_pb2 import AccountFault, Balance, Delivery, Freshness

_AMOUNT = re.compile(r"(-?)([0-9]+)(\.[0-9]+)?\Z")
# An amount of more characters may be broken into two lines.
_LONG = 16
_ZERO = re.compile(r"-?[0.]+\Z")
# Faults that say nothing about the account itself: its last good figures stay good, and are marked.
_TRANSIENT = frozenset(leaf.reason for leaf in leaves() if leaf.transient)
# A fault that a user mends at the venue or by another key.
REPAIRABLE = frozenset(
    (
        "CREDENTIAL_MISSING",
        "CREDENTIAL_INVALID",
        "CREDENTIAL_UNREADABLE",
        "CREDENTIAL_REJECTED",
        "PERMISSION_MISSING",
        "ADDRESS_NOT_ALLOWED",
        "ACCOUNT_UNKNOWN",
    )
)

SOURCES: Mapping[int, str] = {
    balance_pb2.BALANCE_SOURCE_VENUE: "from the venue",
    balance_pb2.BALANCE_SOURCE_CACHE: "from the cache",
    balance_pb2.BALANCE_SOURCE_LAST_GOOD: "the last good answer",
}
# The kinds of rows; the others are not marked.
KINDS: Mapping[int, str] = {balance_pb2.ASSET_KIND_CASH: "cash", balance_pb2.ASSET_KIND_HOLDING: "holding"}
POLLED_BECAUSE: Mapping[int, str] = {
    balance_pb2.POLLING_REASON_NO_PUSH: "the venue pushes no balances",
    balance_pb2.POLLING_REASON_STARTING: "the push is being set up",
    balance_pb2.POLLING_REASON_BROKEN: "the push broke and is tried again",
    balance_pb2.POLLING_REASON_NO_ROOM: "the venue pushes no further account now",
    balance_pb2.POLLING_REASON_REFUSED: "the venue does not push this account",
    balance_pb2.POLLING_REASON_SWITCHED_OFF: "the operator has switched pushes off",
}


class AccountKey(NamedTuple):
    """Which account of the user."""

    exchange_id: str
    environment: str
    account_type: str = ""

    @property
    def mark(self) -> str:
        """The account's name in ids of elements and names of events: letters and digits alone."""
        return hashlib.blake2s("\n".join(self).encode(), digest_size=8).hexdigest()


@dataclass(slots=True)
class LiveAccount:
    """One account as the page has it now. Times are monotonic, ages in seconds."""

    key: AccountKey
    name: str
    # The exchange whose credential it may share, so that both may show the same venue accounts.
    root: str
    stored: StoredAccount | None = None
    balance: Balance | None = None
    freshness: Freshness | None = None
    # Whether the stream follows it; None until the stream has said so.
    followed: bool | None = None
    # Why it could not be read, if nothing was read since.
    fault: AccountFault | None = None
    delivery: Delivery | None = None
    # When the balance's figures were last true.
    true_at: float | None = None
    # The rows whose amounts the newest balance has changed.
    changed: frozenset[tuple[str, ...]] = field(default_factory=frozenset)

    @property
    def failed(self) -> AccountFault | None:
        """Why it cannot be read; None if it can, or if figures that were read before are still its last good ones."""
        return self.fault if self.fault is not None and not self._is_passing(self.fault) else None

    @property
    def stale(self) -> AccountFault | None:
        """Why the figures are the last good ones; None if they are current, or are not good any more."""
        if self.fault is not None:
            return self.fault if self._is_passing(self.fault) else None
        if self.freshness is not None and self.freshness.HasField("stale"):
            return self.freshness.stale
        return None

    def _is_passing(self, fault: AccountFault) -> bool:
        """Whether the fault says nothing about what was read before."""
        return self.balance is not None and reason_name(fault) in _TRANSIENT

    @property
    def situation(self) -> str:
        """What the page says of it first: "waiting", "unserved", "error", "stale", "partial" or "current"."""
        if self.failed is not None:
            return "unserved" if reason_name(self.failed) == "EXCHANGE_RETIRED" else "error"
        if self.balance is None:
            return "unserved" if self.followed is False else "waiting"
        if self.stale is not None:
            return "stale"
        return "partial" if any(account.HasField("error") for account in self.balance.venue_accounts) else "current"

    def age(self) -> float | None:
        """How old the figures are now; None if there are no figures."""
        return None if self.true_at is None else max(0.0, time.monotonic() - self.true_at)

    def take_balance(self, balance: Balance, freshness: Freshness) -> None:
        """The newest balance, which also says that the account can be read."""
        before = _amounts_by_row(self.balance) if self.balance is not None else None
        self.balance, self.freshness, self.fault, self.followed = balance, freshness, None, True
        self.true_at = time.monotonic() - freshness.age.ToTimedelta().total_seconds()
        if freshness.HasField("delivery"):
            self.delivery = freshness.delivery
        self.changed = frozenset() if before is None else _changed_rows(before, _amounts_by_row(balance))


def row_id(row: balance_pb2.AssetBalance) -> tuple[str, ...]:
    """What names a row within a balance."""
    return (row.venue_account_id, row.account_type, row.sub_account, row.asset, row.venue_asset, str(row.kind))


def _amounts_by_row(balance: Balance) -> dict[tuple[str, ...], tuple[str, ...]]:
    return {
        row_id(row): (row.total, row.free, row.used, row.debt)
        for account in balance.venue_accounts
        for row in account.assets
    }


def _changed_rows(
    before: Mapping[tuple[str, ...], tuple[str, ...]], now: Mapping[tuple[str, ...], tuple[str, ...]]
) -> frozenset[tuple[str, ...]]:
    return frozenset(name for name, amounts in now.items() if before.get(name) != amounts)


def holds_something(row: balance_pb2.AssetBalance) -> bool:
    """Whether any amount of the row is not zero. A row without amounts says something too."""
    amounts = [getattr(row, name) for name in ("total", "free", "used", "debt") if row.HasField(name)]
    return not amounts or not all(_ZERO.match(amount) for amount in amounts)


def amount_markup(text: str) -> Markup:
    """An amount with its thousands apart, by markup alone: its text is exactly the one given."""
    match = _AMOUNT.match(text)
    if match is None:
        return escape(printable(text))
    sign, whole, fraction = match.groups(default="")
    head = len(whole) % 3 or 3
    groups = [whole[:head], *(whole[at : at + 3] for at in range(head, len(whole), 3))]
    joined = Markup('<span class="thousands">').join(escape(group) for group in groups)
    decimals = Markup('<span class="decimals">{}</span>').format(fraction) if fraction else ""
    kind = "amount long" if len(text) > _LONG else "amount"
    return Markup('<span class="{}">{}{}{}{}</span>').format(
        kind, sign, joined, Markup("</span>") * (len(groups) - 1), decimals
    )


def age_text(seconds: float) -> str:
    """An age in words, such as "12 s" or "3 min"; console.js writes the same as it grows."""
    whole = int(seconds)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def reason_name(fault: AccountFault) -> str:
    """The reason as errors.md names it, such as VENUE_TIMEOUT."""
    try:
        return error_reason_pb2.ErrorReason.Name(fault.reason).removeprefix("ERROR_REASON_")
    except ValueError:
        return "UNSPECIFIED"


@dataclass(frozen=True, slots=True)
class Sum:
    """What accounts hold together, in one currency and one environment: exact, and from each account its equity, or its
    total if its venue states no equity."""

    environment: str
    currency: str
    value: str
    # How many accounts it counts, how many of them by their totals, how many with figures that are not current, and how
    # many with notes, which say what a figure leaves out.
    accounts: int
    by_total: int
    stale: int
    noted: int
    # The age of its oldest figure.
    oldest: float


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An account that no sum counts, and why."""

    account: LiveAccount
    why: str


@dataclass(frozen=True, slots=True)
class Headline:
    """The sums, and what they leave out. `accounts` are all of the user's."""

    sums: tuple[Sum, ...]
    left_out: tuple[LeftOut, ...]
    accounts: int

    @property
    def counted(self) -> int:
        """How many accounts are in a sum."""
        return self.accounts - len(self.left_out)


class _Counted(NamedTuple):
    account: LiveAccount
    currency: str
    value: Decimal
    is_equity: bool


def headline_of(accounts: Iterable[LiveAccount]) -> Headline:
    """The headline of these accounts, of which each is in one sum or left out with its reason."""
    counted: list[_Counted] = []
    left_out: list[LeftOut] = []
    # The account that is counted of those that one credential opens: others may show the same money.
    by_credential: dict[tuple[str, str], LiveAccount] = {}
    total = 0
    for account in accounts:
        total += 1
        entry = _count(account)
        if isinstance(entry, _Counted):
            same = by_credential.setdefault((account.root, account.key.environment), account)
            if same is account:
                counted.append(entry)
                continue
            entry = f"it may show what {same.name} shows already"
        left_out.append(LeftOut(account, entry))
    return Headline(tuple(_sums(counted)), tuple(left_out), total)


def _count(account: LiveAccount) -> _Counted | str:
    """The account's figure, or why it has none."""
    if account.failed is not None:
        return "it cannot be read now"
    if account.balance is None:
        return "it was not read yet"
    if not account.balance.HasField("summary"):
        return _without_summary(account.balance)
    summary = account.balance.summary
    name = next((name for name in ("equity", "total") if summary.HasField(name)), "")
    text = getattr(summary, name) if name else ""
    if not _AMOUNT.match(text) or not summary.currency:
        return "its venue states no total"
    return _Counted(account, summary.currency, Decimal(text), name == "equity")


def _without_summary(balance: Balance) -> str:
    accounts = balance.venue_accounts
    unread = sum(account.HasField("error") for account in accounts)
    if unread:
        return f"{unread} of its {len(accounts)} venue accounts cannot be read"
    return "its venue gives no figure in one currency"


def _sums(counted: Iterable[_Counted]) -> Iterator[Sum]:
    groups: dict[tuple[str, str], list[_Counted]] = {}
    for entry in counted:
        groups.setdefault((entry.account.key.environment, entry.currency), []).append(entry)
    for (environment, currency), entries in sorted(
        groups.items(), key=lambda item: (item[0][0] != "production", item[0])
    ):
        yield Sum(
            environment,
            currency,
            format_amount(exact_sum(entry.value for entry in entries)),
            len(entries),
            sum(not entry.is_equity for entry in entries),
            sum(entry.account.stale is not None for entry in entries),
            sum(entry.account.balance is not None and bool(entry.account.balance.notes) for entry in entries),
            max(entry.account.age() or 0.0 for entry in entries),
        )
