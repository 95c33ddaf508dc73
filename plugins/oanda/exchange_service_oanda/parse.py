"""OANDA's payloads as the service's nouns. Pure: payload in, value out."""

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
    required_amount,
    text,
)


def account_ids(payload: Any) -> list[str]:
    """The ids of `GET /v3/accounts`."""
    accounts = as_list(as_object(payload, "the answer").get("accounts"), "accounts")
    ids = [text(as_object(entry, "accounts[]"), "id", "accounts[]") for entry in accounts]
    if len(set(ids)) != len(ids):
        # Read twice, its money would be in the summary twice.
        raise VenueMalformed("OANDA lists an account twice.")
    return ids


def account(payload: Any, account_id: str) -> VenueAccount:
    """One account from `GET /v3/accounts/{id}/summary`: a single row, in the account's own currency.

    `marginAvailable` is OANDA's own figure and not NAV less margin: it is reckoned with closeout prices.
    """
    found = as_object(as_object(payload, "the answer").get("account"), "account")
    if text(found, "id", "account") != account_id:
        raise VenueMalformed("OANDA answered for another account than the one asked for.")
    currency = text(found, "currency", "account")
    balance = required_amount(found, "balance", "account")
    available = amount(found, "marginAvailable", "account")
    margin_used = amount(found, "marginUsed", "account")
    return VenueAccount(
        id=account_id,
        type="forex",
        label=text(found, "alias", "account", required=False),
        assets=(AssetBalance(currency, total=balance, free=available, used=margin_used),),
        summary=Summary(
            currency,
            total=balance,
            cash=balance,
            available=available,
            equity=required_amount(found, "NAV", "account"),
            margin_used=margin_used,
            unrealised_pnl=amount(found, "unrealizedPL", "account"),
        ),
    )
