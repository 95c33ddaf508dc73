"""Reads tastytrade's payloads into the service's values. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeAlias

from exchange_service.plugin_api import (
    CASH,
    AssetBalance,
    Secret,
    Summary,
    VenueAccount,
    VenueMalformed,
    amount,
    as_list,
    as_object,
    check_unique,
    iso_time,
    read_account_list,
    require_account,
    required_amount,
    required_milliseconds,
    text,
)

# The values in the venue's documents, for answers without them.
_USUAL_LIFE = 900
_USUAL_CURRENCY = "USD"
# The figures that are read.
# witness: vendor: https://developer.tastytrade.com/docs/concepts/positions-and-balances
_FIGURES = (
    "cash-balance",
    "net-liquidating-value",
    "derivative-buying-power",
    "equity-buying-power",
    "maintenance-requirement",
)
_REQUIRED_FIGURES = _FIGURES[:2]
# The words of `margin-or-cash` in lower case, which are our account types.
# witness: test data: laustindasauce/tasty-go accounts_test.go
_TYPES = frozenset({"cash", "margin"})
# A token is not used in its last seconds, because it must still be valid when the request arrives.
_MARGIN = 60.0


@dataclass(frozen=True, slots=True)
class AccessToken:
    """An access token, and the event loop's time from which it must be renewed."""

    secret: Secret
    renew_at: float


@dataclass(frozen=True, slots=True)
class ListedAccount:
    """One account of the login; `type` is "cash" or "margin"."""

    number: str
    type: str
    label: str = ""
    closed: bool = False


# By account number; an account whose entry is malformed is its error.
Accounts = Mapping[str, ListedAccount | VenueMalformed]
PushOrder: TypeAlias = tuple[datetime, int]


def access_token(payload: Any, requested_at: float) -> AccessToken:
    """The token of `POST /oauth/token`; `requested_at` is in the event loop's time.

    A token whose life is hardly longer than the margin is used for half of its life.
    """
    answer = as_object(payload, "the answer")
    token = text(answer, "access_token", "the answer")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise VenueMalformed("tastytrade's access token holds other than plain characters.")
    stated = amount(answer, "expires_in", "the answer")
    life = float(_USUAL_LIFE if stated is None else stated)
    if life <= 0:
        raise VenueMalformed("tastytrade answered with an access token that has already expired.")
    return AccessToken(Secret(token), renew_at=requested_at + max(life - _MARGIN, life / 2))


def listed_accounts(payload: Any) -> Accounts:
    """The accounts of `GET /customers/me/accounts`, also closed ones, in the same order."""
    return read_account_list(as_list(_data(payload).get("items"), "data.items"), _listed_number, _listed_account)


def is_open(listed: ListedAccount | VenueMalformed) -> bool:
    """Whether the account may be open: also if its entry in the list cannot be read."""
    return isinstance(listed, VenueMalformed) or not listed.closed


def account(payload: Any, number: str) -> VenueAccount:
    """The account of `GET /accounts/{number}/balances`: one row, in the account's own currency, and its summary.

    The payload may also be a list with an entry for each currency. Then each entry is a row and there is no summary.
    The account's type and name are not in this payload.
    """
    data = _data(payload)
    items = as_list(data["items"], "data.items") if "items" in data else [data]
    entries = [as_object(entry, "data") for entry in items]
    if len(entries) > 1:
        entries = [entry for entry in entries if not _says_nothing(entry)]
    return _account_in(entries, number)


def pushed_messages(payload: Any) -> Sequence[Mapping[str, Any]]:
    """The messages of one frame of the account streamer: usually one, or those of the list `results`."""
    frame = as_object(payload, "the message")
    if "results" not in frame:
        return (frame,)
    # What is not an object among them names no account.
    return [message for message in as_list(frame["results"], "results") if isinstance(message, dict)]


def refuses(message: Mapping[str, Any]) -> bool:
    """Whether the message refuses what was sent, as `connect` before anything else."""
    return "status" in message and message["status"] != "ok"


def connected_accounts(message: Mapping[str, Any]) -> Collection[str] | None:
    """The numbers of the accounts that the answer to `connect` names; None for no names and for another message."""
    numbers = message.get("value")
    if message.get("action") != "connect" or not numbers:
        return None
    return {str(number) for number in ([numbers] if isinstance(numbers, str) else as_list(numbers, "value"))}


def pushed_number(message: Mapping[str, Any]) -> str:
    """The account number of an `AccountBalance`. Raises VenueMalformed if it has none."""
    return text(as_object(message.get("data"), "data"), "account-number", "data")


def pushed_at(message: Mapping[str, Any]) -> PushOrder:
    """By what the messages of an account are in order: their time, and within the same millisecond their sequence.

    Raises VenueMalformed if it has no time.
    """
    sequence = message.get("ws-sequence")
    return required_milliseconds(message, "timestamp", "message"), sequence if type(sequence) is int else 0


def pushed_account(message: Mapping[str, Any], number: str) -> VenueAccount | None:
    """The account of an `AccountBalance`, as `account` reads an answer with one currency.

    None if it lacks a figure that every account has: then it says no more than that the account has changed.
    """
    data = as_object(message.get("data"), "data")
    if any(data.get(figure) in (None, "") for figure in _REQUIRED_FIGURES):
        return None
    return _account_in([data], number)


def _account_in(entries: Sequence[Mapping[str, Any]], number: str) -> VenueAccount:
    """The account whose entries these are, one for each currency."""
    summaries = [_summary(entry, number) for entry in entries]
    if not summaries:
        raise VenueMalformed("tastytrade answered with an account without a currency.")
    check_unique((summary.currency for summary in summaries), "tastytrade names a currency twice.")
    times = [iso_time(entry, "updated-at", "balances") for entry in entries]
    return VenueAccount(
        id=number,
        assets=tuple(_row(summary) for summary in summaries),
        summary=summaries[0] if len(summaries) == 1 else None,
        venue_time=min((time for time in times if time is not None), default=None),
    )


def _listed_number(entry: Mapping[str, Any]) -> str:
    """The account number, also one that is not a text as it should be, so that its error has a name."""
    number = _account(entry).get("account-number")
    return str(number) if type(number) is int else text(_account(entry), "account-number", "account")


def _listed_account(entry: Mapping[str, Any]) -> ListedAccount:
    account = _account(entry)
    # Retirement and joint accounts are cash or margin accounts too.
    account_type = text(account, "margin-or-cash", "account").lower()
    if account_type not in _TYPES:
        raise VenueMalformed(
            "tastytrade says of this account neither that it is a cash nor that it is a margin account."
        )
    nickname = account.get("nickname")
    return ListedAccount(
        number=text(account, "account-number", "account"),
        type=account_type,
        label=nickname if isinstance(nickname, str) else "",
        closed=_is_closed(account),
    )


def _account(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    return as_object(entry.get("account"), "items[].account")


def _is_closed(account: Mapping[str, Any]) -> bool:
    closed = account.get("is-closed")
    if closed is not None and not isinstance(closed, bool):
        raise VenueMalformed("account.is-closed should be a truth value.")
    return closed is True


def _summary(entry: Mapping[str, Any], number: str) -> Summary:
    """The figures of an account in one currency."""
    require_account(number, text(entry, "account-number", "balances"), "tastytrade")
    cash = _required_figure(entry, "cash-balance")
    return Summary(
        text(entry, "currency", "balances", required=False) or _USUAL_CURRENCY,
        total=cash,
        cash=cash,
        available=_figure(entry, "derivative-buying-power"),
        equity=_required_figure(entry, "net-liquidating-value"),
        margin_used=_not_negative(_figure(entry, "maintenance-requirement")),
        buying_power=_figure(entry, "equity-buying-power"),
    )


def _says_nothing(entry: Mapping[str, Any]) -> bool:
    """Whether this is a currency whose every figure is empty, beside others."""
    return all(entry.get(figure) in (None, "") for figure in _FIGURES)


def _not_negative(figure: Decimal | None) -> Decimal | None:
    """The figure, or None if it is negative: then it does not say how much is in use."""
    return None if figure is None or figure < 0 else figure


def _row(summary: Summary) -> AssetBalance:
    return AssetBalance(
        summary.currency, total=summary.total, free=summary.available, used=summary.margin_used, kind=CASH
    )


def _required_figure(entry: Mapping[str, Any], key: str) -> Decimal:
    return _with_effect(required_amount(entry, key, "balances"), entry, key)


def _figure(entry: Mapping[str, Any], key: str) -> Decimal | None:
    value = amount(entry, key, "balances")
    return None if value is None else _with_effect(value, entry, key)


def _with_effect(value: Decimal, entry: Mapping[str, Any], key: str) -> Decimal:
    """The amount with the sign that `{key}-effect` states. If there is an effect, the amount itself has no sign."""
    effect = text(entry, f"{key}-effect", "balances", required=False)
    if not effect:
        return value
    if value < 0 or effect not in ("Credit", "Debit", "None") or (effect == "None" and value):
        raise VenueMalformed(f"balances.{key} and its effect contradict each other.")
    return value.copy_negate() if effect == "Debit" and value else value


def _data(payload: Any) -> Mapping[str, Any]:
    """The content of the envelope."""
    return as_object(as_object(payload, "the answer").get("data"), "data")
