"""Tradier's payloads as the service's nouns. Pure: payload in, value out. Every amount is in US dollars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from exchange_service.plugin_api import (
    AssetBalance,
    FeatureNotEnabled,
    Summary,
    VenueAccount,
    VenueMalformed,
    amount,
    as_list,
    as_object,
    exact_difference,
    exact_sum,
    required_amount,
    text,
)

USD = "USD"
# The account type of the options view.
OPTIONS = "options"
# Values of option positions. They are in dollars and no assets, so they never pass for dollars that could be added up.
OPTION_LONG = "OPTION_LONG"
OPTION_SHORT = "OPTION_SHORT"
OPTION_NET = "OPTION_NET"

# What the figures that depend on the kind of account stand in, and the type that it shows. Tradier keeps a pattern day
# trader's account (pdt) as a margin account with one figure more.
_TYPES = {"margin": "margin", "pdt": "margin", "cash": "cash"}
_OPTION_FIELDS = ("option_long_value", "option_short_value", "option_requirement")
_CALLS = {"maintenance_call": "maintenance call", "fed_call": "fed call"}


@dataclass(frozen=True, slots=True)
class ListedAccount:
    """An account as the profile lists it. `type` is empty, and `option_level` None, where the profile does not say."""

    number: str
    type: str = ""
    option_level: Decimal | None = None
    closed: bool = False


def listed_accounts(payload: Any) -> list[ListedAccount]:
    """The accounts of `GET /user/profile`, closed ones among them."""
    profile = as_object(as_object(payload, "the answer").get("profile"), "profile")
    entries = [as_object(entry, "account[]") for entry in _collection(profile, "account")]
    accounts = [_listed_account(entry) for entry in entries]
    if len({account.number for account in accounts}) != len(accounts):
        # Read twice, its money would be in the summary twice.
        raise VenueMalformed("Tradier lists an account twice.")
    return accounts


def _listed_account(entry: Mapping[str, Any]) -> ListedAccount:
    kind = text(entry, "type", "account[]", required=False).lower()
    return ListedAccount(
        number=_account_number(entry, "account[]"),
        type=_TYPES.get(kind, ""),
        option_level=amount(entry, "option_level", "account[]"),
        closed=text(entry, "status", "account[]", required=False).lower() == "closed",
    )


def account(payload: Any, number: str) -> VenueAccount:
    """The account as a whole, from `GET /accounts/{number}/balances`: one row, its cash.

    On margin the stock buying power is leveraged. What is available without borrowing is the option buying power.
    """
    found = _balances(payload, number)
    block, figures = _block(found)
    where = f"balances.{block}"
    cash = required_amount(found, "total_cash", "balances")
    if block == "cash":
        available, buying_power = amount(figures, "cash_available", where), None
        used = _bound_cash(amount(figures, "unsettled_funds", where), amount(found, "pending_cash", "balances"))
    else:
        available = amount(figures, "option_buying_power", where)
        buying_power = amount(figures, "stock_buying_power", where)
        used = amount(found, "current_requirement", "balances")
    used = _not_negative(used)
    return VenueAccount(
        id=number,
        type=_TYPES[block],
        assets=(AssetBalance(USD, total=cash, free=available, used=used),),
        summary=Summary(
            USD,
            total=cash,
            cash=cash,
            available=available,
            # The field called `equity` is a remnant and mostly 0.
            equity=required_amount(found, "total_equity", "balances"),
            margin_used=used,
            unrealised_pnl=amount(found, "open_pl", "balances"),
            buying_power=buying_power,
        ),
    )


def options_account(payload: Any, number: str) -> VenueAccount:
    """The same answer with the options' figures first: cash as options may use it, and the value of what is held in
    options. FeatureNotEnabled where it has no options' figures at all."""
    found = _balances(payload, number)
    block, figures = _block(found)
    cash = required_amount(found, "total_cash", "balances")
    equity = required_amount(found, "total_equity", "balances")
    if all(amount(found, field, "balances") is None for field in _OPTION_FIELDS):
        raise options_not_enabled(number)
    buying_power = "cash_available" if block == "cash" else "option_buying_power"
    available = amount(figures, buying_power, f"balances.{block}")
    requirement = _not_negative(amount(found, "option_requirement", "balances"))
    return VenueAccount(
        id=number,
        type=OPTIONS,
        assets=(AssetBalance(USD, total=cash, free=available, used=requirement), *_option_rows(found)),
        # Without profit: `open_pl` mixes that of stocks in.
        summary=Summary(USD, total=cash, cash=cash, available=available, equity=equity, margin_used=requirement),
    )


def options_not_enabled(number: str) -> FeatureNotEnabled:
    """What is said of an account that has no options, where zeros would look like an empty one."""
    return FeatureNotEnabled(
        f"Tradier: options are not enabled for the account {number}.",
        advice="Apply for an option level in Tradier's settings.",
    )


def open_calls(payload: Any, number: str) -> tuple[str, ...]:
    """A sentence for each call that Tradier has open on the account: money that must be paid in."""
    block, figures = _block(_balances(payload, number))
    amounts = {name: amount(figures, field, f"balances.{block}") for field, name in _CALLS.items()}
    return tuple(
        f"Account {number}: Tradier has a {name} open, of {value:f} {USD}." for name, value in amounts.items() if value
    )


def _option_rows(found: Mapping[str, Any]) -> tuple[AssetBalance, ...]:
    """Long, short and net. The venue's sign of the short value has changed over the years; here it is always negative,
    and what buying it back would cost is the debt."""
    long = required_amount(found, "option_long_value", "balances")
    short = required_amount(found, "option_short_value", "balances").copy_abs()
    return (
        AssetBalance(OPTION_LONG, total=long, venue_asset="option_long_value"),
        AssetBalance(
            OPTION_SHORT, total=exact_difference(Decimal(0), short), debt=short, venue_asset="option_short_value"
        ),
        AssetBalance(OPTION_NET, total=exact_difference(long, short)),
    )


def _bound_cash(unsettled: Decimal | None, pending: Decimal | None) -> Decimal | None:
    """What a cash account cannot use: sales that have not settled, and what open orders reserve."""
    return None if unsettled is None or pending is None else exact_sum((unsettled, pending))


def _not_negative(bound: Decimal | None) -> Decimal | None:
    """Less than nothing cannot be bound; such a figure means something else, and so is not known."""
    return None if bound is None or bound < 0 else bound


def _balances(payload: Any, number: str) -> Mapping[str, Any]:
    found = as_object(as_object(payload, "the answer").get("balances"), "balances")
    if _account_number(found, "balances") != number:
        raise VenueMalformed("Tradier answered for another account than the one asked for.")
    return found


def _block(found: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The name and figures of the part that depends on the kind of account: the one that `account_type` names, else
    the one that is there."""
    named = text(found, "account_type", "balances", required=False).lower()
    for name in (named, *_TYPES):
        if name in _TYPES and not _is_null(found.get(name)):
            return name, as_object(found[name], f"balances.{name}")
    raise VenueMalformed("Tradier's answer has the figures of neither a margin nor a cash account.")


def _account_number(source: Mapping[str, Any], where: str) -> str:
    """The account number as a text; Tradier has sent one that is all digits as a JSON number."""
    value = source.get("account_number")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text(source, "account_number", where)


def _collection(source: Mapping[str, Any], key: str) -> list[Any]:
    """A collection of Tradier's, whose JSON is made of XML: one element stands there bare, and none as null."""
    value = source.get(key)
    if _is_null(value):
        return []
    return [value] if isinstance(value, dict) else as_list(value, key)


def _is_null(value: Any) -> bool:
    return value is None or value == "null"
