"""Reads OANDA's payloads into the service's values. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from exchange_service.plugin_api import (
    CASH,
    AssetBalance,
    Summary,
    VenueAccount,
    VenueMalformed,
    amount,
    as_list,
    as_object,
    read_account_list,
    require_account,
    required_amount,
    text,
)

# Digits of a transaction's number.
_LONGEST_NUMBER = 30


def listed_accounts(payload: Any) -> dict[str, str | VenueMalformed]:
    """The accounts of `GET /v3/accounts`: their ids, each by itself, or the error why an entry cannot be read."""
    accounts = as_list(as_object(payload, "the answer").get("accounts"), "accounts")
    return read_account_list(accounts, _id, _id)


def owner(account_id: str) -> str:
    """What the ids of a user's accounts have in common: all of 101-004-7654321-001 but the account's own number.

    OANDA's reference says so of `AccountID`: site, division, user and number (rest-live-v20/account-df).
    """
    return account_id.rpartition("-")[0]


def account(payload: Any, account_id: str) -> VenueAccount:
    """The account of `GET /v3/accounts/{id}/summary`: one row, in the account's own currency, hedging or not.

    All figures are OANDA's own. Those of the margin closeout (`marginCloseoutNAV` and so on) are not shown: they are
    the same figures at other prices.
    """
    entry = as_object(as_object(payload, "the answer").get("account"), "account")
    require_account(account_id, text(entry, "id", "account"), "OANDA")
    currency = text(entry, "currency", "account")
    balance = required_amount(entry, "balance", "account")
    available = amount(entry, "marginAvailable", "account")
    margin_used = _not_negative(amount(entry, "marginUsed", "account"))
    return VenueAccount(
        id=account_id,
        type="forex",
        label=_alias(entry),
        assets=(AssetBalance(currency, total=balance, free=available, used=margin_used, kind=CASH),),
        summary=Summary(
            currency,
            total=balance,
            cash=balance,
            available=available,
            equity=required_amount(entry, "NAV", "account"),
            margin_used=margin_used,
            unrealised_pnl=amount(entry, "unrealizedPL", "account"),
        ),
    )


def holds_trades(payload: Any) -> bool:
    """Whether the account of a summary has open trades, so that prices move it; also if OANDA does not say."""
    return as_object(as_object(payload, "the answer").get("account"), "account").get("openTradeCount") != 0


class StreamMessage(NamedTuple):
    """A line of an account's stream: the number of the newest transaction that it knows, and whether it is a heartbeat
    and not that transaction itself."""

    newest: int
    heartbeat: bool


def stream_message(payload: Any, account_id: str) -> StreamMessage | None:
    """A line of `GET /v3/accounts/{id}/transactions/stream`; None if it is a transaction of another account."""
    entry = as_object(payload, "the line")
    if text(entry, "type", "the line") == "HEARTBEAT":
        return StreamMessage(_number(entry, "lastTransactionID"), heartbeat=True)
    if text(entry, "accountID", "the line") != account_id:
        return None
    return StreamMessage(_number(entry, "id"), heartbeat=False)


def _number(entry: Mapping[str, Any], member: str) -> int:
    """OANDA numbers transactions in texts of digits."""
    digits = text(entry, member, "the line")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= _LONGEST_NUMBER):
        raise VenueMalformed(f"{member} of the line should be a number.")
    return int(digits)


def _id(entry: Mapping[str, Any]) -> str:
    return text(entry, "id", "accounts[]")


def _alias(entry: Mapping[str, Any]) -> str:
    """The name that the user gave the account; empty if there is none, or none that can be read."""
    alias = entry.get("alias")
    return alias if isinstance(alias, str) else ""


def _not_negative(figure: Decimal | None) -> Decimal | None:
    """The figure, or None if it is negative: then it does not say how much is in use."""
    return None if figure is None or figure < 0 else figure
