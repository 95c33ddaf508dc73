"""Reads Aster's payloads into the service's values. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from exchange_service.plugin_api import (
    AssetBalance,
    KeyRights,
    Summary,
    VenueAccount,
    VenueMalformed,
    amount,
    as_list,
    as_object,
    check_unique,
    exact_sum,
    milliseconds,
    required_amount,
    required_milliseconds,
    text,
)

FUTURES = "futures"
SPOT = "spot"

_MULTI_ASSETS = (
    "The futures account seems to be in multi-assets mode, because Aster's total is not that of its USDT. Its summary "
    "then counts all assets, and may be in US dollars instead of USDT."
)
HMAC_RIGHTS = "Aster does not say what an HMAC key may do. Agents, its newer keys, can be limited to reading."

_USDT = "USDT"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A larger time counts nanoseconds. The spot account has been seen to send such times.
_NANOSECONDS_FROM = 10**17


def futures_account(payload: Any, account_id: str) -> VenueAccount:
    """The futures account with the venue's own figures, which need not add up.

    An asset whose wallet balance is zero is left out if another of its figures is not: that is what the venue would
    lend on the other assets. If all its figures are zero, it keeps its row.
    """
    found = as_object(payload, "the answer")
    entries = [as_object(entry, "assets[]") for entry in as_list(found.get("assets"), "assets")]
    rows = [_futures_row(entry) for entry in entries]
    check_unique((row.asset for row in rows), "Aster lists an asset twice.")
    times = [time for time in (_time(entry, "assets[]") for entry in entries) if time is not None]
    wallet = required_amount(found, "totalWalletBalance", "the answer")
    if wallet and not any(row.total for row in rows):
        raise VenueMalformed("Aster states a futures balance but lists no asset with a balance.")
    return VenueAccount(
        id=account_id,
        type=FUTURES,
        assets=tuple(row for row in rows if not _is_lent(row)),
        summary=Summary(
            _USDT,
            total=wallet,
            cash=wallet,
            available=amount(found, "availableBalance", "the answer"),
            equity=required_amount(found, "totalMarginBalance", "the answer"),
            margin_used=amount(found, "totalInitialMargin", "the answer"),
            unrealised_pnl=amount(found, "totalUnrealizedProfit", "the answer"),
        ),
        venue_time=_time(found, "the answer") or max(times, default=None),
    )


def spot_account(payload: Any, account_id: str) -> VenueAccount:
    """The spot account. It has no summary, because prices are not read."""
    found = as_object(payload, "the answer")
    rows = [_spot_row(as_object(entry, "balances[]")) for entry in as_list(found.get("balances"), "balances")]
    check_unique((row.asset for row in rows), "Aster lists an asset twice.")
    return VenueAccount(id=account_id, type=SPOT, assets=tuple(rows), venue_time=_time(found, "the answer"))


def overall_summary(accounts: Sequence[VenueAccount]) -> Summary | None:
    """The futures account's summary, if USDT in that account is all that is held; otherwise None."""
    for account in accounts:
        covered = account.type == FUTURES
        if account.error or any(not row.is_zero() and not (covered and row.asset == _USDT) for row in account.assets):
            return None
    return next((account.summary for account in accounts if account.summary and _counts_usdt_alone(account)), None)


def notes(accounts: Sequence[VenueAccount]) -> tuple[str, ...]:
    """Notes on the balance as a whole."""
    return () if all(map(_counts_usdt_alone, accounts)) else (_MULTI_ASSETS,)


def server_time(payload: Any) -> int:
    """The venue's time of `GET /fapi/v1/time`, in milliseconds since 1970."""
    time = required_milliseconds(as_object(payload, "the answer"), "serverTime", "the answer")
    return (time - _EPOCH) // timedelta(milliseconds=1)


def key_rights(payload: Any, agent: str) -> KeyRights:
    """The rights in `GET /fapi/v3/agent` of the agent with this address, which is in lower case."""
    agents = [as_object(entry, "agents[]") for entry in as_list(payload, "the answer")]
    ours = [entry for entry in agents if text(entry, "agentAddress", "agents[]").lower() == agent]
    if not ours:
        return KeyRights(notes=("Aster's list of the wallet's agents does not contain this agent.",))
    if len(ours) > 1:
        raise VenueMalformed("Aster lists an agent twice.")
    return KeyRights(
        trade=_any_right(ours[0], "canSpotTrade", "canPerpTrade"),
        withdraw=_any_right(ours[0], "canWithdraw"),
        expires=required_milliseconds(ours[0], "expired", "agents[]") if ours[0].get("expired") else None,
    )


def _futures_row(entry: Mapping[str, Any]) -> AssetBalance:
    return AssetBalance(
        text(entry, "asset", "assets[]"),
        total=required_amount(entry, "walletBalance", "assets[]"),
        free=amount(entry, "availableBalance", "assets[]"),
        used=amount(entry, "initialMargin", "assets[]"),
    )


def _spot_row(entry: Mapping[str, Any]) -> AssetBalance:
    free, locked = (required_amount(entry, key, "balances[]") for key in ("free", "locked"))
    return AssetBalance(text(entry, "asset", "balances[]"), total=exact_sum((free, locked)), free=free, used=locked)


def _is_lent(row: AssetBalance) -> bool:
    return not row.total and not row.is_zero()


def _counts_usdt_alone(account: VenueAccount) -> bool:
    """Whether there is no summary, or it states the total of the USDT row, as it does except in multi-assets mode."""
    held = next((row.total for row in account.assets if row.asset == _USDT), Decimal(0))
    return account.summary is None or account.summary.total == held


def _time(source: Mapping[str, Any], where: str) -> datetime | None:
    """When the wallet last changed, stated in milliseconds or nanoseconds; None if the venue does not state it."""
    value = source.get("updateTime")
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if type(value) is int and value >= _NANOSECONDS_FROM:
        value //= 1_000_000
    return milliseconds({"updateTime": value}, "updateTime", where)


def _any_right(entry: Mapping[str, Any], *names: str) -> bool | None:
    """Whether the agent has one of these rights; None if not all of them are stated and no stated one is granted."""
    rights = [entry.get(name) for name in names]
    if any(right is not None and not isinstance(right, bool) for right in rights):
        raise VenueMalformed(f"agents[].{names[0]} should be a truth value.")
    if True in rights:
        return True
    return None if None in rights else False
