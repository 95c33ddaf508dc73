"""Reads OANDA's payloads into the service's values. Pure functions."""

from __future__ import annotations

from typing import Any

from exchange_service.plugin_api import (
    AssetBalance,
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


def account_ids(payload: Any) -> list[str]:
    """The ids of `GET /v3/accounts`."""
    accounts = as_list(as_object(payload, "the answer").get("accounts"), "accounts")
    ids = [text(as_object(entry, "accounts[]"), "id", "accounts[]") for entry in accounts]
    check_unique(ids, "OANDA lists an account twice.")
    return ids


def account(payload: Any, account_id: str) -> VenueAccount:
    """The account of `GET /v3/accounts/{id}/summary`: one row, in the account's own currency.

    `marginAvailable` is OANDA's own figure, computed with closeout prices. It is not NAV minus margin.
    """
    entry = as_object(as_object(payload, "the answer").get("account"), "account")
    if text(entry, "id", "account") != account_id:
        raise VenueMalformed("OANDA answered for another account than the requested one.")
    currency = text(entry, "currency", "account")
    balance = required_amount(entry, "balance", "account")
    available = amount(entry, "marginAvailable", "account")
    margin_used = amount(entry, "marginUsed", "account")
    return VenueAccount(
        id=account_id,
        type="forex",
        label=text(entry, "alias", "account", required=False),
        assets=(AssetBalance(currency, total=balance, free=available, used=margin_used),),
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
