"""tastytrade's payloads as the service's nouns. Pure: payload in, value out."""

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
    required_amount,
    text,
)

# What the venue's documents state; used where an answer leaves it out.
_USUAL_LIFE = 900
_USUAL_CURRENCY = "USD"
# Seconds that a token is left unused at its end: a request that is on its way should still find it good.
_MARGIN = 60.0


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What reads are made with, and the event loop's time from which on another should be used."""

    secret: Secret
    renew_at: float


@dataclass(frozen=True, slots=True)
class ListedAccount:
    """One open account of the login; `type` is "cash" or "margin"."""

    number: str
    type: str
    label: str = ""


def access_token(payload: Any, asked: float) -> AccessToken:
    """The answer of `POST /oauth/token`, which was `asked` for at this time of the event loop. A life so short that the
    margin would eat it up is used by half."""
    answer = as_object(payload, "the answer")
    token = text(answer, "access_token", "the answer")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise VenueMalformed("tastytrade's access token holds other than plain characters.")
    stated = amount(answer, "expires_in", "the answer")
    life = float(_USUAL_LIFE if stated is None else stated)
    if life <= 0:
        raise VenueMalformed("tastytrade answered with an access token whose life is over.")
    return AccessToken(Secret(token), renew_at=asked + max(life - _MARGIN, life / 2))


def open_accounts(payload: Any) -> list[ListedAccount]:
    """The accounts of `GET /customers/me/accounts`, in order, without closed ones."""
    entries = [as_object(entry, "items[]") for entry in as_list(_data(payload).get("items"), "data.items")]
    accounts = [as_object(entry.get("account"), "items[].account") for entry in entries]
    numbers = [text(account, "account-number", "account") for account in accounts]
    if len(set(numbers)) != len(numbers):
        # Read twice, its money would be in the summary twice.
        raise VenueMalformed("tastytrade lists an account twice.")
    return [_listed(account) for account in accounts if not _is_closed(account)]


def account(payload: Any, number: str) -> VenueAccount:
    """One account from `GET /accounts/{number}/balances`: a single row, in the account's own currency.

    Its type and name are not in this answer, but in the list.

    The venue may as well answer with a list, one entry a currency. Then each is a row, and there is no summary,
    because no figure holds for all of them.
    """
    data = _data(payload)
    items = as_list(data["items"], "data.items") if "items" in data else [data]
    entries = [as_object(entry, "data") for entry in items]
    summaries = [_summary(entry, number) for entry in entries]
    if not summaries:
        raise VenueMalformed("tastytrade answered with an account that has no currency.")
    if len({summary.currency for summary in summaries}) != len(summaries):
        raise VenueMalformed("tastytrade names a currency twice.")
    times = [_time(entry, "updated-at") for entry in entries]
    return VenueAccount(
        id=number,
        assets=tuple(_row(summary) for summary in summaries),
        summary=summaries[0] if len(summaries) == 1 else None,
        venue_time=min((time for time in times if time is not None), default=None),
    )


def _listed(account: Mapping[str, Any]) -> ListedAccount:
    # An account that is not plainly cash can borrow; IRA and joint ones are of the two kinds as well.
    account_type = "cash" if text(account, "margin-or-cash", "account") == "Cash" else "margin"
    label = text(account, "nickname", "account", required=False)
    return ListedAccount(text(account, "account-number", "account"), account_type, label)


def _is_closed(account: Mapping[str, Any]) -> bool:
    closed = account.get("is-closed")
    if closed is not None and not isinstance(closed, bool):
        raise VenueMalformed("account.is-closed should be a truth value.")
    return closed is True


def _summary(found: Mapping[str, Any], number: str) -> Summary:
    """The figures of an account in one currency."""
    if text(found, "account-number", "balances") != number:
        raise VenueMalformed("tastytrade answered for another account than the one asked for.")
    cash = _required_figure(found, "cash-balance")
    return Summary(
        text(found, "currency", "balances", required=False) or _USUAL_CURRENCY,
        total=cash,
        cash=cash,
        available=_figure(found, "derivative-buying-power"),
        equity=_required_figure(found, "net-liquidating-value"),
        margin_used=_figure(found, "maintenance-requirement"),
        buying_power=_figure(found, "equity-buying-power"),
    )


def _row(summary: Summary) -> AssetBalance:
    return AssetBalance(summary.currency, total=summary.total, free=summary.available, used=summary.margin_used)


def _required_figure(found: Mapping[str, Any], key: str) -> Decimal:
    return _with_effect(required_amount(found, key, "balances"), found, key)


def _figure(found: Mapping[str, Any], key: str) -> Decimal | None:
    value = amount(found, key, "balances")
    return None if value is None else _with_effect(value, found, key)


def _with_effect(value: Decimal, found: Mapping[str, Any], key: str) -> Decimal:
    """The amount with the sign of its `*-effect`, where it has one: then it is stated without a sign of its own."""
    effect = text(found, f"{key}-effect", "balances", required=False)
    if not effect:
        return value
    if value < 0 or effect not in ("Credit", "Debit", "None") or (effect == "None" and value):
        raise VenueMalformed(f"balances.{key} and its effect contradict each other.")
    return value.copy_negate() if effect == "Debit" and value else value


def _time(found: Mapping[str, Any], key: str) -> datetime | None:
    """The instant at `key`, written as ISO 8601 with an offset; None where the venue does not say."""
    written = text(found, key, "balances", required=False)
    if not written:
        return None
    try:
        instant = datetime.fromisoformat(written)
        if instant.tzinfo is None:
            raise ValueError
        return instant.astimezone(UTC)
    except (ValueError, OverflowError):
        raise VenueMalformed(f"balances.{key} should be a time with an offset, and is another text.") from None


def _data(payload: Any) -> Mapping[str, Any]:
    """What the envelope holds."""
    return as_object(as_object(payload, "the answer").get("data"), "data")
