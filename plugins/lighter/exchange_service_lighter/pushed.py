"""Reads what Lighter pushes of an account, and joins it with what the last read left. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from exchange_service.plugin_api import VenueMalformed, amount, as_object, exact_sum, required_amount
from exchange_service_lighter import parse

# The channels that are followed: what an account is worth, and what it holds. Both are public.
MONEY, HOLDINGS = "user_stats", "account_all"


@dataclass(frozen=True, slots=True)
class Money:
    """An account's own figures, of MONEY: amounts in the collateral. `mode` is None if it is not stated.

    `sent` is the venue's time of the message in milliseconds, 0 if it is not stated.
    """

    mode: int | None
    collateral: Decimal
    equity: Decimal
    available: Decimal
    sent: int


@dataclass(frozen=True, slots=True)
class Holdings:
    """Positions, assets and pools of an account, of HOLDINGS.

    `sizes` are the open positions by market, `isolated` those of them that have margin of their own. `assets` are the
    venue's entries by number, `pools` what was put into each pool, None if it is not stated. `pools_changed` is when
    the message came that changed the pools, in seconds of the caller's clock.
    """

    sizes: Mapping[int, Decimal]
    isolated: frozenset[int]
    assets: Mapping[int, Mapping[str, Any]]
    pools: Mapping[int, Decimal | None]
    pools_changed: float

    def amounts(self) -> Mapping[int, Decimal]:
        """How much of each asset lies on spot."""
        return {number: amount(asset, "balance", "assets[]") or Decimal(0) for number, asset in self.assets.items()}


@dataclass(frozen=True, slots=True)
class Pushed:
    """All that is pushed of one account."""

    money: Money
    holdings: Holdings


def money(before: Money | None, message: Mapping[str, Any], *, whole: bool) -> Money | None:
    """The figures after a message of MONEY; None until a whole one has come. Raises VenueMalformed.

    A message that is older than the one before changes nothing.
    """
    if before is None and not whole:
        return None
    stats = as_object(message.get("stats"), "stats")
    sent = parse.integer(message, "timestamp", "the message", default=0)
    if before is not None and 0 < sent < before.sent:
        return before
    known = None if whole else before
    return Money(
        mode=_mode(stats, known),
        collateral=_figure(stats, "collateral", known.collateral if known else None),
        equity=_figure(stats, "portfolio_value", known.equity if known else None),
        available=_figure(stats, "available_balance", known.available if known else None),
        sent=sent,
    )


def _mode(stats: Mapping[str, Any], known: Money | None) -> int | None:
    if stats.get("account_trading_mode") is None:
        return known.mode if known else None
    return parse.integer(stats, "account_trading_mode", "stats")


def _figure(stats: Mapping[str, Any], key: str, known: Decimal | None) -> Decimal:
    stated = amount(stats, key, "stats")
    if stated is not None:
        return stated
    return known if known is not None else required_amount(stats, key, "stats")


def holdings(before: Holdings | None, message: Mapping[str, Any], *, whole: bool, now: float) -> Holdings | None:
    """The holdings after a message of HOLDINGS, which came at `now`; None until a whole one has come.

    Only a whole message has every entry: another one has those that changed, or null. Raises VenueMalformed.
    """
    if before is None and not whole:
        return None
    known = None if whole else before
    positions = _entries(message, "positions", "market_id", required=whole)
    assets = _entries(message, "assets", "asset_id", required=whole)
    listed = _pools(message)
    if before is not None and not (whole or positions or assets or listed):
        # A trade, which comes with a message of its own for what it has moved.
        return before
    sizes = {number: required_amount(position, "position", "positions[]") for number, position in positions.items()}
    alone = {number for number, position in positions.items() if _is_isolated(position)}
    pools = {**(known.pools if known else {}), **listed}
    unchanged = before is not None and pools == before.pools
    return Holdings(
        sizes={number: size for number, size in {**(known.sizes if known else {}), **sizes}.items() if size},
        isolated=frozenset(((known.isolated if known else frozenset()) - sizes.keys()) | alone),
        assets=_merge(known.assets if known else {}, assets),
        pools=pools,
        pools_changed=before.pools_changed if unchanged and before else now,
    )


def _merge(
    known: Mapping[int, Mapping[str, Any]], new: Mapping[int, Mapping[str, Any]]
) -> Mapping[int, Mapping[str, Any]]:
    if not new:
        return known
    return {**known, **{number: {**known.get(number, {}), **entry} for number, entry in new.items()}}


def _is_isolated(position: Mapping[str, Any]) -> bool:
    mode = parse.integer(position, "margin_mode", "positions[]", default=parse.CROSS_MARGIN)
    return mode != parse.CROSS_MARGIN and bool(amount(position, "position", "positions[]"))


def _entries(message: Mapping[str, Any], key: str, number: str, *, required: bool) -> dict[int, Mapping[str, Any]]:
    """The objects of a map by number. Raises VenueMalformed if an entry names another number than its key."""
    if message.get(key) is None and not required:
        return {}
    entries = {}
    for name, value in as_object(message.get(key), key).items():
        entry = as_object(value, f"{key}[]")
        stated = parse.integer(entry, number, f"{key}[]")
        if name != str(stated):
            raise VenueMalformed(f"Lighter pushes an entry of {key} under another number than its own.")
        entries[stated] = entry
    return entries


def _pools(message: Mapping[str, Any]) -> dict[int, Decimal | None]:
    """What was put into each pool of the message. The documents show a list, and in another place one object."""
    listed = message.get("shares")
    if isinstance(listed, dict):
        listed = [listed] if "public_pool_index" in listed else list(listed.values())
    return {share.pool: share.principal for share in parse.pool_shares({"shares": listed})}


def account(base: parse.ReadAccount, read_at: float, pushed: Pushed) -> parse.ReadAccount | None:
    """The account as a read would give it now; None if what is pushed does not tell that.

    `base` is the account as a read of `read_at` left it: its name, its kind and its shares in pools are taken from
    there, and are as new as that read.
    """
    figures, held = pushed.money, pushed.holdings
    mode = base.mode if figures.mode is None else figures.mode
    if (mode, base.mode) != (parse.CLASSIC, parse.CLASSIC):
        # Equity also counts other assets then, so open profit does not follow from it.
        return None
    if held.isolated or base.margins or base.unlocks:
        return None
    if not (_knows_pools(base, held) or read_at > held.pools_changed):
        return None
    if not _tells_margin(figures, held):
        return None
    read = parse.read_account(_entry(base, figures, held), base.index, base.l1_address)
    return replace(read, shares=base.shares)


def _knows_pools(base: parse.ReadAccount, held: Holdings) -> bool:
    """Whether the read has the pools that are pushed."""
    read = {share.pool: share.principal for share in base.shares if share.principal != 0}
    pushed = {pool: principal for pool, principal in held.pools.items() if principal != 0}
    return read.keys() == pushed.keys() and all(pushed[pool] in (None, read[pool]) for pool in read)


def _tells_margin(figures: Money, held: Holdings) -> bool:
    """Whether the margin is what equity has more than is available, which the venue does not show below zero."""
    if figures.available == 0:
        return figures.equity == 0 and not held.sizes
    return 0 < figures.available <= figures.equity


def _entry(base: parse.ReadAccount, figures: Money, held: Holdings) -> Mapping[str, Any]:
    """An entry as a read has it. It leaves out the margin and the profit of positions, which are pushed only when they
    are traded: both follow from the figures."""
    order = {row.asset: place for place, row in enumerate(base.spot)}
    assets = sorted(held.assets.values(), key=lambda asset: order.get(str(asset.get("symbol")), len(order)))
    return {
        "account_type": base.kind,
        "account_trading_mode": parse.CLASSIC,
        "name": base.name,
        "collateral": figures.collateral,
        "total_asset_value": figures.equity,
        "available_balance": figures.available,
        "positions": [{"market_id": number, "position": size} for number, size in held.sizes.items()],
        "assets": assets,
    }


def something_left(before: Mapping[int, Pushed], after: Mapping[int, Pushed]) -> bool:
    """Whether the accounts hold less of an asset and more of none, without a trade: it may lie in a new account."""
    if before.keys() != after.keys():
        return False
    if any(before[index].holdings.sizes != pushed.holdings.sizes for index, pushed in after.items()):
        return False
    earlier, later = _held(before.values()), _held(after.values())
    changes = [later.get(asset, Decimal(0)) - earlier.get(asset, Decimal(0)) for asset in {*earlier, *later}]
    return min(changes, default=Decimal(0)) < 0 and max(changes) <= 0


def _held(accounts: Any) -> dict[int, Decimal]:
    """How much of each asset the accounts hold, the collateral of their perpetuals included."""
    parts: dict[int, list[Decimal]] = {}
    for pushed in accounts:
        parts.setdefault(parse.COLLATERAL_ASSET, []).append(pushed.money.collateral)
        for number, held in pushed.holdings.amounts().items():
            parts.setdefault(number, []).append(held)
    return {number: exact_sum(amounts) for number, amounts in parts.items()}
