"""Reads Tradier's payloads into the service's values. Pure functions. Every amount is in US dollars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from exchange_service.plugin_api import (
    CASH,
    AssetBalance,
    FeatureNotEnabled,
    RequestRefused,
    Summary,
    VenueAccount,
    VenueMalformed,
    VenueUnavailable,
    amount,
    as_list,
    as_object,
    exact_difference,
    exact_sum,
    read_account_list,
    require_account,
    required_amount,
    text,
)

USD = "USD"
# The account type of the listing tradier_options.
OPTIONS = "options"
# Values of option positions in dollars. They are not dollars that the account holds, so they have codes of their own.
OPTION_LONG = "OPTION_LONG"
OPTION_SHORT = "OPTION_SHORT"
OPTION_NET = "OPTION_NET"

# The object with the figures of each kind of account, and our account type for it. The account of a pattern day trader
# (pdt) is a margin account with one more figure.
# witness: vendor: https://docs.tradier.com/docs/balances
_TYPES = {"margin": "margin", "pdt": "margin", "cash": "cash"}
# witness: vendor: https://docs.tradier.com/docs/balances
_OPTION_FIELDS = ("option_long_value", "option_short_value", "option_requirement")
# witness: vendor: https://docs.tradier.com/docs/balances
_CALLS = {"maintenance_call": "maintenance call", "fed_call": "fed call"}
# What Tradier says, in lower case, when a user has a session already.
# witness: report: https://github.com/QuantConnect/Lean.Brokerages.Tradier/pull/15
SESSIONS_LIMITED = b"too many sessions"


@dataclass(frozen=True, slots=True)
class ListedAccount:
    """An account of the profile. `type` is empty and `option_level` is None if the profile does not state them."""

    number: str
    type: str = ""
    option_level: Decimal | None = None
    closed: bool = False


def listed_accounts(payload: Any) -> dict[str, ListedAccount | VenueMalformed]:
    """The accounts of `GET /user/profile` by their numbers, also closed ones. A malformed one is there as its error."""
    profile = as_object(as_object(payload, "the answer").get("profile"), "profile")
    return read_account_list(_collection(profile, "account"), _listed_number, _listed_account)


def owner(payload: Any) -> str:
    """The id of the user in `GET /user/profile`; empty if it has none that can be read."""
    user_id = as_object(as_object(payload, "the answer").get("profile"), "profile").get("id")
    return user_id if isinstance(user_id, str) else ""


def _listed_number(entry: Mapping[str, Any]) -> str:
    return _account_number(entry, "account[]")


def _listed_account(entry: Mapping[str, Any]) -> ListedAccount:
    return ListedAccount(
        number=_listed_number(entry),
        type=_TYPES.get(_word(entry, "type"), ""),
        option_level=amount(entry, "option_level", "account[]"),
        closed=_word(entry, "status") == "closed",
    )


def is_open(listed: ListedAccount | VenueMalformed) -> bool:
    """Whether the account may be open: also if its entry in the profile cannot be read."""
    return isinstance(listed, VenueMalformed) or not listed.closed


def _word(entry: Mapping[str, Any], key: str) -> str:
    """The word at `key` in lower case; empty for anything else: older answers have a number as the status."""
    value = entry.get(key)
    return value.lower() if isinstance(value, str) else ""


def account(payload: Any, number: str) -> VenueAccount:
    """The account of `GET /accounts/{number}/balances` as a whole: one row, its cash.

    On margin the stock buying power counts borrowed money. Available without borrowing is the option buying power.
    """
    entry = _balances(payload, number)
    block, figures = _block(entry)
    where = f"balances.{block}"
    cash = required_amount(entry, "total_cash", "balances")
    if block == "cash":
        available, buying_power = amount(figures, "cash_available", where), None
        bound = (amount(figures, "unsettled_funds", where), amount(entry, "pending_cash", "balances"))
        used = _bound_cash(cash, available, bound)
    else:
        available = amount(figures, "option_buying_power", where)
        buying_power = amount(figures, "stock_buying_power", where)
        used = _not_negative(amount(entry, "current_requirement", "balances"))
    return VenueAccount(
        id=number,
        type=_TYPES[block],
        assets=(AssetBalance(USD, total=cash, free=available, used=used, kind=CASH),),
        summary=Summary(
            USD,
            total=cash,
            cash=cash,
            available=available,
            # The field `equity` is obsolete and mostly 0.
            equity=required_amount(entry, "total_equity", "balances"),
            margin_used=used,
            unrealised_pnl=amount(entry, "open_pl", "balances"),
            buying_power=buying_power,
        ),
    )


def holds_positions(payload: Any, number: str) -> bool:
    """Whether the account of the same payload has positions, so that prices move its equity, or does not say it."""
    entry = _balances(payload, number)
    return any(entry.get(member) != 0 for member in ("long_market_value", "short_market_value"))


def session_id(payload: Any) -> str:
    """The id in `POST /accounts/events/session`. The address beside it is not used: ours is in the manifest."""
    return text(as_object(as_object(payload, "the answer").get("stream"), "stream"), "sessionid", "stream")


def is_order_event(message: Any) -> bool:
    """Whether an account event is about an order; others are heartbeats. Raises VenueUnavailable if it refuses the
    session, RequestRefused if it refuses anything else."""
    entry = as_object(message, "the event")
    if entry.get("error") is None:
        return text(entry, "event", "the event") == "order"
    if "session" in text(entry, "error", "the event").lower():
        raise VenueUnavailable("Tradier refuses the session for order events.")
    raise RequestRefused("Tradier refuses the subscription to order events.")


def options_account(payload: Any, number: str) -> VenueAccount:
    """The same payload with the options' figures first: the cash that options may use, and the value of positions.

    Raises FeatureNotEnabled if it has no figure of options.
    """
    entry = _balances(payload, number)
    block, figures = _block(entry)
    cash = required_amount(entry, "total_cash", "balances")
    equity = required_amount(entry, "total_equity", "balances")
    if all(amount(entry, field, "balances") is None for field in _OPTION_FIELDS):
        raise options_not_enabled(number)
    buying_power = "cash_available" if block == "cash" else "option_buying_power"
    available = amount(figures, buying_power, f"balances.{block}")
    requirement = _not_negative(amount(entry, "option_requirement", "balances"))
    return VenueAccount(
        id=number,
        type=OPTIONS,
        assets=(AssetBalance(USD, total=cash, free=available, used=requirement, kind=CASH), *_option_rows(entry)),
        # No unrealised_pnl: `open_pl` includes that of stocks.
        summary=Summary(USD, total=cash, cash=cash, available=available, equity=equity, margin_used=requirement),
    )


def options_not_enabled(number: str) -> FeatureNotEnabled:
    """The error of an account without options. Zeros in its place would look like an empty account."""
    return FeatureNotEnabled(
        f"Tradier: options are not enabled for the account {number}.",
        advice="Apply for an option level in Tradier's settings.",
    )


def open_calls(payload: Any, number: str) -> tuple[str, ...]:
    """A sentence for each open margin call of the account: money that the user must pay in."""
    block, figures = _block(_balances(payload, number))
    amounts = {name: amount(figures, field, f"balances.{block}") for field, name in _CALLS.items()}
    return tuple(
        f"Account {number}: Tradier has an open {name} of {value:f} {USD}." for name, value in amounts.items() if value
    )


def _option_rows(entry: Mapping[str, Any]) -> tuple[AssetBalance, ...]:
    """The rows for long, short and net.

    Tradier has changed the sign of the short value over the years: the fixtures of tradier/tradier.rb have a positive
    one. Here it is always negative, and its debt is what it costs to buy the positions back.
    """
    long = required_amount(entry, "option_long_value", "balances")
    short = required_amount(entry, "option_short_value", "balances").copy_abs()
    return (
        AssetBalance(OPTION_LONG, total=long, venue_asset="option_long_value"),
        AssetBalance(
            OPTION_SHORT, total=exact_difference(Decimal(0), short), debt=short, venue_asset="option_short_value"
        ),
        AssetBalance(OPTION_NET, total=exact_difference(long, short)),
    )


def _bound_cash(cash: Decimal, available: Decimal | None, parts: Sequence[Decimal | None]) -> Decimal | None:
    """The cash that a cash account cannot use: sales that have not settled, and the reserve for open orders.

    Tradier does not state it. It is known only if the parts explain the whole difference between all cash and what is
    available; the account may hold back other cash.
    """
    known = [part for part in parts if part is not None and part >= 0]
    if available is None or len(known) != len(parts):
        return None
    bound = exact_sum(known)
    return bound if exact_sum((available, bound)) == cash else None


def _not_negative(figure: Decimal | None) -> Decimal | None:
    """The figure, or None if it is negative: then it does not say how much is in use."""
    return None if figure is None or figure < 0 else figure


def _balances(payload: Any, number: str) -> Mapping[str, Any]:
    entry = as_object(as_object(payload, "the answer").get("balances"), "balances")
    require_account(number, _account_number(entry, "balances"), "Tradier")
    return entry


def _block(entry: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The name and the figures of the object for the kind of account: the one that `account_type` names, or the first
    that is present."""
    named = text(entry, "account_type", "balances", required=False).lower()
    for name in (named, *_TYPES):
        if name in _TYPES and not _is_null(entry.get(name)):
            return name, as_object(entry[name], f"balances.{name}")
    raise VenueMalformed("Tradier's answer has neither the figures of a margin account nor those of a cash account.")


def _account_number(source: Mapping[str, Any], where: str) -> str:
    """The account number as a text. Tradier has sent a number of digits alone as a JSON number."""
    value = source.get("account_number")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text(source, "account_number", where)


def _collection(source: Mapping[str, Any], key: str) -> list[Any]:
    """The elements of a collection. Tradier makes JSON from XML: one element is no list, and no element is null."""
    value = source.get(key)
    if _is_null(value):
        return []
    return [value] if isinstance(value, dict) else as_list(value, key)


def _is_null(value: Any) -> bool:
    return value is None or value == "null"
