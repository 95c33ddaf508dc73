"""Reads Aster's payloads into the service's values. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
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
_LENT = (
    "Some assets of the futures account are available although nothing of them is held: Aster would lend them on the "
    "others. They have no row."
)
HMAC_RIGHTS = "Aster does not say what an HMAC key may do. Agents, its newer keys, can be limited to reading."

_USDT = "USDT"
# The amounts that a row needs, or says nothing.
_FUTURES_ROW = ("walletBalance", "availableBalance", "initialMargin")
_SPOT_ROW = ("free", "locked")
# What is not zero if something of an asset is held or at risk.
_HOLDINGS = (
    "walletBalance",
    "marginBalance",
    "unrealizedProfit",
    "initialMargin",
    "maintMargin",
    "positionInitialMargin",
    "openOrderInitialMargin",
)
# What is not zero if there are positions, of the account and of an asset.
_POSITIONS = ("totalPositionInitialMargin", "totalUnrealizedProfit")
_POSITIONS_OF_ASSET = ("positionInitialMargin", "unrealizedProfit")
# A listen key becomes part of an address.
_LISTEN_KEY = re.compile(r"[0-9A-Za-z_-]{1,256}\Z", re.ASCII)
# The events after which the account's figures differ. Orders are among them: they bind what was available.
# witness: vendor: asterdex/api-docs V3(Recommended)/EN/aster-finance-futures-api-v3.md
_CHANGES = frozenset(
    {
        "ACCOUNT_UPDATE",
        "ACCOUNT_CONFIG_UPDATE",
        "MARGIN_CALL",
        "ORDER_TRADE_UPDATE",
        # witness: vendor: asterdex/api-docs V3(Recommended)/EN/aster-finance-spot-api-v3.md
        "outboundAccountPosition",
    }
)
# witness: vendor: asterdex/api-docs V3(Recommended)/EN/aster-finance-futures-api-v3.md
_KEY_EXPIRED = "listenKeyExpired"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A larger time counts nanoseconds. The spot account has been seen to send such times.
_NANOSECONDS_FROM = 10**17


def futures_account(payload: Any, account_id: str) -> VenueAccount:
    """The futures account with the venue's own figures, which need not add up.

    An asset that the venue would lend on the others, and of which nothing is held, has no row. If all its figures are
    zero, it keeps its row.
    """
    found = as_object(payload, "the answer")
    entries = [entry for entry in _futures_entries(found) if not _says_nothing(entry, _FUTURES_ROW)]
    rows = [_futures_row(entry) for entry in entries]
    check_unique((row.asset for row in rows), "Aster lists an asset twice.")
    times = [time for time in map(_time, entries) if time is not None]
    wallet = required_amount(found, "totalWalletBalance", "the answer")
    if wallet and not any(row.total for row in rows):
        raise VenueMalformed("Aster states a futures balance but lists no asset with a balance.")
    return VenueAccount(
        id=account_id,
        type=FUTURES,
        assets=tuple(row for row, entry in zip(rows, entries, strict=True) if not _is_lent(entry)),
        summary=Summary(
            _USDT,
            total=wallet,
            cash=wallet,
            available=amount(found, "availableBalance", "the answer"),
            equity=required_amount(found, "totalMarginBalance", "the answer"),
            margin_used=amount(found, "totalInitialMargin", "the answer"),
            unrealised_pnl=amount(found, "totalUnrealizedProfit", "the answer"),
        ),
        venue_time=_time(found) or max(times, default=None),
    )


def lends(payload: Any) -> bool:
    """Whether the futures account has an asset that is available although nothing of it is held."""
    return any(map(_is_lent, _futures_entries(as_object(payload, "the answer"))))


def moves_with_prices(payload: Any, account: VenueAccount) -> bool:
    """Whether prices alone move the futures account's figures: it has positions, or other assets count as well."""
    found = as_object(payload, "the answer")
    figures = [(found, member) for member in _POSITIONS]
    figures += [(entry, member) for entry in _futures_entries(found) for member in _POSITIONS_OF_ASSET]
    return not _counts_usdt_alone(account) or any(_may_be_held(entry, member) for entry, member in figures)


def listen_key(payload: Any) -> str:
    """The key in `POST /fapi/v3/listenKey`, a secret which opens the account's stream."""
    key = text(as_object(payload, "the answer"), "listenKey", "the answer")
    if not _LISTEN_KEY.match(key):
        # The text is not shown.
        raise VenueMalformed("Aster's listen key is not one.")
    return key


class StreamEvent(Enum):
    """What an event of a user stream means."""

    CHANGED = "the account's figures differ"
    EXPIRED = "the listen key has expired, and nothing more comes"
    OTHER = "neither"


def stream_event(message: Any) -> StreamEvent:
    """The meaning of a message. Raises VenueMalformed if it is not an event."""
    name = text(as_object(message, "the event"), "e", "the event")
    if name == _KEY_EXPIRED:
        return StreamEvent.EXPIRED
    return StreamEvent.CHANGED if name in _CHANGES else StreamEvent.OTHER


def spot_account(payload: Any, account_id: str) -> VenueAccount:
    """The spot account. It has no summary, because prices are not read."""
    found = as_object(payload, "the answer")
    entries = [as_object(entry, "balances[]") for entry in as_list(found.get("balances"), "balances")]
    rows = [_spot_row(entry) for entry in entries if not _says_nothing(entry, _SPOT_ROW)]
    check_unique((row.asset for row in rows), "Aster lists an asset twice.")
    return VenueAccount(id=account_id, type=SPOT, assets=tuple(rows), venue_time=_time(found))


def overall_summary(accounts: Sequence[VenueAccount]) -> Summary | None:
    """The futures account's summary, if USDT in that account is all that is held; otherwise None."""
    for account in accounts:
        covered = account.type == FUTURES
        if account.error or any(not row.is_zero() and not (covered and row.asset == _USDT) for row in account.assets):
            return None
    return next((account.summary for account in accounts if account.summary and _counts_usdt_alone(account)), None)


def notes(accounts: Sequence[VenueAccount], *, lent: bool = False) -> tuple[str, ...]:
    """Notes on the balance as a whole; `lent` is whether assets that the venue would lend have no row."""
    mode = () if all(map(_counts_usdt_alone, accounts)) else (_MULTI_ASSETS,)
    return (*mode, _LENT) if lent else mode


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


def _futures_entries(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [as_object(entry, "assets[]") for entry in as_list(found.get("assets"), "assets")]


def _says_nothing(entry: Mapping[str, Any], members: Sequence[str]) -> bool:
    """Whether the amounts of a row are all empty texts."""
    return all(entry.get(member) == "" for member in members)


def _futures_row(entry: Mapping[str, Any]) -> AssetBalance:
    return AssetBalance(
        text(entry, "asset", "assets[]"),
        total=required_amount(entry, "walletBalance", "assets[]"),
        free=amount(entry, "availableBalance", "assets[]"),
        used=amount(entry, "initialMargin", "assets[]"),
    )


def _spot_row(entry: Mapping[str, Any]) -> AssetBalance:
    free, locked = (required_amount(entry, key, "balances[]") for key in _SPOT_ROW)
    total = exact_sum((free, locked))
    # Nothing is owed on spot, so such a sum is not the holding.
    known = total if total >= 0 else None
    return AssetBalance(text(entry, "asset", "balances[]"), total=known, free=free, used=locked)


def _is_lent(entry: Mapping[str, Any]) -> bool:
    """Whether an asset is available although its balance and all that depends on one is zero."""
    return bool(amount(entry, "availableBalance", "assets[]")) and not any(
        _may_be_held(entry, member) for member in _HOLDINGS
    )


def _may_be_held(entry: Mapping[str, Any], member: str) -> bool:
    try:
        return bool(amount(entry, member, "assets[]"))
    except VenueMalformed:
        return True


def _counts_usdt_alone(account: VenueAccount) -> bool:
    """Whether there is no summary, or it states the total of the USDT row, as it does except in multi-assets mode."""
    held = next((row.total for row in account.assets if row.asset == _USDT), Decimal(0))
    return account.summary is None or account.summary.total == held


def _time(source: Mapping[str, Any]) -> datetime | None:
    """When the wallet last changed, in milliseconds or nanoseconds; None if it is not stated or cannot be read."""
    value = source.get("updateTime")
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
        value = int(value)
    if type(value) is int and value >= _NANOSECONDS_FROM:
        value //= 1_000_000
    return milliseconds({"updateTime": value}, "updateTime", "the answer")


def _any_right(entry: Mapping[str, Any], *names: str) -> bool | None:
    """Whether the agent has one of these rights; None if not all of them are stated and no stated one is granted."""
    rights = [entry.get(name) for name in names]
    if any(right is not None and not isinstance(right, bool) for right in rights):
        raise VenueMalformed(f"agents[].{names[0]} should be a truth value.")
    if True in rights:
        return True
    return None if None in rights else False
