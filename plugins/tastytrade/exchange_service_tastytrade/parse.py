"""Reads tastytrade's payloads into the service's values. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from exchange_service.plugin_api import (
    AssetBalance,
    Secret,
    Summary,
    VenueAccount,
    VenueMalformed,
    amount,
    as_list,
    as_object,
    check_unique,
    required_amount,
    text,
)

# The values in the venue's documents, for answers without them.
_USUAL_LIFE = 900
_USUAL_CURRENCY = "USD"
# A token is not used in its last seconds, because it must still be valid when the request arrives.
_MARGIN = 60.0


@dataclass(frozen=True, slots=True)
class AccessToken:
    """An access token, and the event loop's time from which it must be renewed."""

    secret: Secret
    renew_at: float


@dataclass(frozen=True, slots=True)
class ListedAccount:
    """One open account of the login; `type` is "cash" or "margin"."""

    number: str
    type: str
    label: str = ""


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


def open_accounts(payload: Any) -> list[ListedAccount]:
    """The accounts of `GET /customers/me/accounts` that are not closed, in the same order."""
    entries = [as_object(entry, "items[]") for entry in as_list(_data(payload).get("items"), "data.items")]
    accounts = [as_object(entry.get("account"), "items[].account") for entry in entries]
    numbers = [text(account, "account-number", "account") for account in accounts]
    check_unique(numbers, "tastytrade lists an account twice.")
    return [_listed_account(account) for account in accounts if not _is_closed(account)]


def account(payload: Any, number: str) -> VenueAccount:
    """The account of `GET /accounts/{number}/balances`: one row, in the account's own currency, and its summary.

    The payload may also be a list with an entry for each currency. Then each entry is a row and there is no summary.
    The account's type and name are not in this payload.
    """
    data = _data(payload)
    items = as_list(data["items"], "data.items") if "items" in data else [data]
    entries = [as_object(entry, "data") for entry in items]
    summaries = [_summary(entry, number) for entry in entries]
    if not summaries:
        raise VenueMalformed("tastytrade answered with an account without a currency.")
    check_unique((summary.currency for summary in summaries), "tastytrade names a currency twice.")
    times = [_time(entry, "updated-at") for entry in entries]
    return VenueAccount(
        id=number,
        assets=tuple(_row(summary) for summary in summaries),
        summary=summaries[0] if len(summaries) == 1 else None,
        venue_time=min((time for time in times if time is not None), default=None),
    )


def _listed_account(account: Mapping[str, Any]) -> ListedAccount:
    # Retirement and joint accounts are cash or margin accounts too. Any other word counts as margin.
    account_type = "cash" if text(account, "margin-or-cash", "account") == "Cash" else "margin"
    label = text(account, "nickname", "account", required=False)
    return ListedAccount(text(account, "account-number", "account"), account_type, label)


def _is_closed(account: Mapping[str, Any]) -> bool:
    closed = account.get("is-closed")
    if closed is not None and not isinstance(closed, bool):
        raise VenueMalformed("account.is-closed should be a truth value.")
    return closed is True


def _summary(entry: Mapping[str, Any], number: str) -> Summary:
    """The figures of an account in one currency."""
    if text(entry, "account-number", "balances") != number:
        raise VenueMalformed("tastytrade answered for another account than the requested one.")
    cash = _required_figure(entry, "cash-balance")
    return Summary(
        text(entry, "currency", "balances", required=False) or _USUAL_CURRENCY,
        total=cash,
        cash=cash,
        available=_figure(entry, "derivative-buying-power"),
        equity=_required_figure(entry, "net-liquidating-value"),
        margin_used=_figure(entry, "maintenance-requirement"),
        buying_power=_figure(entry, "equity-buying-power"),
    )


def _row(summary: Summary) -> AssetBalance:
    return AssetBalance(summary.currency, total=summary.total, free=summary.available, used=summary.margin_used)


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


def _time(entry: Mapping[str, Any], key: str) -> datetime | None:
    """The time at `key`, in ISO 8601 with an offset, in UTC; None if it is missing or empty."""
    stamp = text(entry, key, "balances", required=False)
    if not stamp:
        return None
    try:
        instant = datetime.fromisoformat(stamp)
        if instant.tzinfo is None:
            raise ValueError
        return instant.astimezone(UTC)
    except (ValueError, OverflowError):
        raise VenueMalformed(f"balances.{key} should be a time with an offset but is another text.") from None


def _data(payload: Any) -> Mapping[str, Any]:
    """The content of the envelope."""
    return as_object(as_object(payload, "the answer").get("data"), "data")
