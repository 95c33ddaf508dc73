"""Reads Lighter's payloads into the service's values. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from exchange_service.plugin_api import (
    AccountUnknown,
    AssetBalance,
    Balance,
    Summary,
    VenueAccount,
    VenueError,
    VenueMalformed,
    VenueUnavailable,
    amount,
    as_list,
    as_object,
    check_unique,
    combined_summary,
    exact_difference,
    exact_sum,
    required_amount,
    text,
)

# Values of `account_trading_mode`. Classic: perpetuals and spot hold separate money. Unified: spot may be margin.
CLASSIC, UNIFIED = 0, 1
# Values of `account_type`: of a user, and of pools, which hold the money of many users.
_MASTER, _SUB_ACCOUNT = 0, 1
# witness: vendor: elliottech/lighter-python docs/DetailedAccountAccountTypeEnum.md
_POOLS = frozenset(
    {
        2,  # Public pool.
        3,  # Insurance fund.
        4,  # Staking pool.
    }
)
# The number of the collateral of perpetuals in every deployment. Its symbol differs.
COLLATERAL_ASSET = 3
# The symbols of assets by number, for amounts that name only the number.
# witness: vendor: https://apidocs.lighter.xyz/docs/evm-interop-tokens-transfers
_SYMBOLS: dict[int, str] = {1: "ETH", 2: "LIT"}
CROSS_MARGIN = 0
# The pool in which LIT is staked has its amounts in LIT. All other known pools have them in the collateral.
# witness: test data: public portfolio tracker, tests of its Lighter account parser (the index names no repository)
_ASSETS_OF_POOLS: dict[int, str] = {281474976624800: "LIT"}
# The sub-account name of what was taken out of a pool and is not paid out yet.
_UNLOCKS = "unlocks"

_UNIFIED_EQUITY = (
    "In unified mode equity is Lighter's own figure and counts what serves as margin. It may include spot rows: "
    "do not add them to it."
)
_NOTHING_COUNTED = "There is no summary, because it would count nothing of what is held."
_MARGIN_IN_OTHER_ASSETS = (
    "Assets besides the collateral serve as margin: they are rows of the perpetual account, and Lighter's equity "
    "counts their value as margin."
)
_POOL_SHARES = "Pool shares are shown by what was paid into them, and are in no summary."
_PENDING_UNLOCKS = "What was taken out of staking and is not paid out yet is shown apart, and is in no summary."
_POOL_WITHOUT_VALUE = "Shares in a pool are left out if Lighter does not state their value."
_ONLY_POOLS = "Lighter has a public pool there and no user's account."
_STORE_AN_ACCOUNT = "Store the wallet_address or account_index of an account of your own."


@dataclass(frozen=True, slots=True)
class PoolShare:
    """A share in a public pool. `asset` is empty for the collateral; `principal` is None if it is not stated."""

    pool: int
    asset: str
    principal: Decimal | None


@dataclass(frozen=True, slots=True)
class ReadAccount:
    """One account: the amounts of its perpetuals in the collateral, its spot rows and its shares in pools.

    `collateral_symbol` is empty if the account does not show the asset. `margins` are the other assets that serve as
    margin. `unlocks` has what was taken out of a pool and is not paid out yet, by symbol, empty for the collateral.
    """

    index: int
    l1_address: str
    kind: int
    mode: int
    name: str
    collateral_symbol: str
    collateral: Decimal
    equity: Decimal
    available: Decimal | None
    margin_used: Decimal | None
    unrealised_pnl: Decimal | None
    open_positions: int
    spot: tuple[AssetBalance, ...]
    margins: tuple[AssetBalance, ...]
    shares: tuple[PoolShare, ...]
    unlocks: tuple[tuple[str, Decimal], ...]

    @property
    def is_pool(self) -> bool:
        """Whether it holds the money of many users."""
        return self.kind in _POOLS

    @property
    def is_own(self) -> bool:
        """Whether it is one of the user's own accounts."""
        return self.kind in (_MASTER, _SUB_ACCOUNT)

    def is_empty(self) -> bool:
        """Whether nothing is held here."""
        figures = (self.collateral, self.equity, self.available, self.open_positions, self.margins, self.unlocks)
        shares = any(share.principal is None or share.principal for share in self.shares)
        return not any(figures) and not shares and all(row.is_zero() for row in self.spot)


@dataclass(frozen=True, slots=True)
class UnreadAccount:
    """An account that Lighter lists but could not read itself, or whose figures cannot be read."""

    index: int
    l1_address: str
    error: VenueError


Account = ReadAccount | UnreadAccount


@dataclass(frozen=True, slots=True)
class Page:
    """One page of accounts; `next_cursor` is empty on the last, `total` counts those of all pages (0: not stated)."""

    accounts: tuple[Account, ...]
    total: int
    next_cursor: str


def page(payload: Any) -> Page:
    """A page of `GET /api/v1/account`."""
    found = as_object(payload, "the answer")
    entries = [as_object(entry, "accounts[]") for entry in as_list(found.get("accounts"), "accounts")]
    return Page(
        accounts=tuple(_account(entry) for entry in entries),
        total=integer(found, "total", "the answer", default=0),
        next_cursor=text(found, "next_cursor", "the answer", required=False),
    )


def balance(found: Sequence[Account], usual_collateral: str) -> Balance:
    """All accounts of a wallet, without empty sub-accounts and without pools that the wallet runs.

    `usual_collateral` is the collateral's symbol if no account shows it. Raises the error of an account that could not
    be read if no other one is shown, and AccountUnknown if there are only pools.
    """
    unread = [account for account in found if isinstance(account, UnreadAccount)]
    read = [account for account in found if isinstance(account, ReadAccount)]
    own = [account for account in read if account.is_own]
    unknown = [account for account in read if not (account.is_own or account.is_pool)]
    unread += [_of_unknown_kind(account) for account in unknown if not (own and account.is_empty())]
    if not own and not unread:
        raise AccountUnknown(_ONLY_POOLS, advice=_STORE_AN_ACCOUNT)
    shown = [account for account in own if account.kind == _MASTER or not account.is_empty()]
    if not shown and unread:
        raise unread[0].error
    shown = shown or own[:1]
    symbol = _collateral_symbol(read, usual_collateral)
    failed = [VenueAccount(id=str(account.index), error=account.error) for account in unread]
    parts = [part for account in shown for part in _parts(account, symbol)]
    summary, more = _overall_summary([*_figures(shown, symbol), *failed], symbol)
    if summary is not None and _hides_everything(summary, parts):
        summary, more = None, (_NOTHING_COUNTED,)
    notes = [note for account in shown for note in _notes(account)]
    notes += [_pool_left_out(account) for account in read if account.is_pool]
    return Balance((*parts, *failed), summary, notes=tuple(dict.fromkeys((*notes, *more))))


def _account(entry: Any) -> Account:
    index = integer(entry, "index", "accounts[]")
    address = text(entry, "l1_address", "accounts[]", required=False).lower()
    try:
        code = integer(entry, "code", "accounts[]", default=0)
        if code != 0:
            raise VenueUnavailable(f"Lighter could not read this account (code {code}).")
        return read_account(entry, index, address)
    except VenueError as error:
        return UnreadAccount(index, address, error)


def _of_unknown_kind(account: ReadAccount) -> UnreadAccount:
    error = VenueMalformed(f"Lighter lists an account of an unknown kind ({account.kind}).")
    return UnreadAccount(account.index, account.l1_address, error)


def read_account(entry: Any, index: int, address: str) -> ReadAccount:
    """The account of an entry without an error of its own. Raises VenueMalformed."""
    if entry.get("account_index") is not None and integer(entry, "account_index", "accounts[]") != index:
        raise VenueMalformed("Lighter states two numbers for an account.")
    mode = integer(entry, "account_trading_mode", "accounts[]", default=CLASSIC)
    positions = _entries(entry, "positions", "market_id")
    assets = _entries(entry, "assets", "asset_id")
    collateral = _collateral(required_amount(entry, "collateral", "accounts[]"), assets, mode)
    equity = required_amount(entry, "total_asset_value", "accounts[]")
    available = amount(entry, "available_balance", "accounts[]")
    return ReadAccount(
        index=index,
        l1_address=address,
        kind=integer(entry, "account_type", "accounts[]"),
        mode=mode,
        name=text(entry, "name", "accounts[]", required=False),
        collateral_symbol=next((_symbol(asset) for asset in assets if asset["asset_id"] == COLLATERAL_ASSET), ""),
        collateral=collateral,
        equity=equity,
        available=available,
        margin_used=_margin_used(entry, positions, equity, available),
        unrealised_pnl=_unrealised_pnl(positions, equity, collateral, mode),
        open_positions=sum(1 for position in positions if _is_open(position)),
        spot=_spot_rows(assets),
        margins=tuple(_margin_row(asset) for asset in assets if _is_other_margin(asset)),
        shares=pool_shares(entry),
        unlocks=_unlocks(entry, {asset["asset_id"]: _symbol(asset) for asset in assets}),
    )


def _collateral(stated: Decimal, assets: Sequence[Any], mode: int) -> Decimal:
    """The collateral. In unified mode it may be stated only as the asset's margin."""
    if stated or mode != UNIFIED:
        return stated
    margins = [amount(asset, "margin_balance", "assets[]") for asset in assets if asset["asset_id"] == COLLATERAL_ASSET]
    return next((margin for margin in margins if margin), stated)


def _margin_used(entry: Any, positions: Sequence[Any], equity: Decimal, available: Decimal | None) -> Decimal | None:
    """Cross margin plus the margin of isolated positions; if one is not stated, equity minus available.

    None if that is not stated either, or negative.
    """
    cross = amount(entry, "cross_initial_margin_requirement", "accounts[]")
    isolated = [_isolated_margin(position) for position in positions]
    known = [margin for margin in (cross, *isolated) if margin is not None]
    if len(known) == len(isolated) + 1:
        return exact_sum(known)
    rest = None if available is None else exact_difference(equity, available)
    return rest if rest is not None and rest >= 0 else None


def _isolated_margin(position: Any) -> Decimal | None:
    """The margin of an isolated position, None if not stated; zero for a position on cross margin or a closed one."""
    mode = integer(position, "margin_mode", "positions[]", default=CROSS_MARGIN)
    own = amount(position, "allocated_margin", "positions[]")
    return own if mode != CROSS_MARGIN and _is_open(position) else Decimal(0)


def _unrealised_pnl(positions: Sequence[Any], equity: Decimal, collateral: Decimal, mode: int) -> Decimal | None:
    """The sum of the positions' own figures. If an open position states none: equity minus collateral.

    The latter only in classic mode, because in the other modes equity counts more than these.
    """
    found = [amount(position, "unrealized_pnl", "positions[]") for position in positions]
    known = [profit for profit in found if profit is not None]
    incomplete = any(profit is None and _is_open(position) for profit, position in zip(found, positions, strict=True))
    if not incomplete:
        return exact_sum(known)
    return exact_difference(equity, collateral) if mode == CLASSIC else None


def _is_open(position: Any) -> bool:
    """Whether the position is open. Closed positions stay in the list with size zero."""
    return amount(position, "position", "positions[]") != 0


def _spot_rows(assets: Sequence[Any]) -> tuple[AssetBalance, ...]:
    """The spot holdings, without `margin_balance`: for the collateral that is the perpetuals' money.

    A row whose amounts are all empty texts says nothing.
    """
    check_unique((_symbol(asset) for asset in assets), "Lighter lists an asset twice.")
    return tuple(_spot_row(asset) for asset in assets if not _says_nothing(asset))


def _says_nothing(asset: Any) -> bool:
    return asset.get("balance") == "" and asset.get("locked_balance") in ("", None)


def _spot_row(asset: Any) -> AssetBalance:
    total = required_amount(asset, "balance", "assets[]")
    locked = amount(asset, "locked_balance", "assets[]")
    # The venue defines free as balance minus locked and does not send it. Unified, more may be locked than is on spot.
    free = None if locked is None else exact_difference(total, locked)
    return AssetBalance(_symbol(asset), total=total, free=free if free is None or free >= 0 else None, used=locked)


def _margin_row(asset: Any) -> AssetBalance:
    """What was moved from spot to the perpetuals' margin. The venue does not say how much of it is free."""
    return AssetBalance(_symbol(asset), total=required_amount(asset, "margin_balance", "assets[]"))


def _is_other_margin(asset: Any) -> bool:
    return bool(amount(asset, "margin_balance", "assets[]")) and asset["asset_id"] != COLLATERAL_ASSET


def _symbol(asset: Any) -> str:
    return text(asset, "symbol", "assets[]")


def pool_shares(entry: Any) -> tuple[PoolShare, ...]:
    """The shares in pools. Unlike the other lists this one may be missing, because nothing else depends on it."""
    if entry.get("shares") is None:
        return ()
    return tuple(
        PoolShare(
            pool=share["public_pool_index"],
            asset=_ASSETS_OF_POOLS.get(share["public_pool_index"], ""),
            principal=amount(share, "principal_amount", "shares[]"),
        )
        for share in _entries(entry, "shares", "public_pool_index")
    )


def _unlocks(entry: Any, symbols: dict[int, str]) -> tuple[tuple[str, Decimal], ...]:
    """What was taken out of pools and is not paid out yet: the sum for each asset. The list may be missing."""
    sums: dict[str, Decimal] = {}
    listed = [] if entry.get("pending_unlocks") is None else entry["pending_unlocks"]
    for unlock in as_list(listed, "pending_unlocks"):
        found = as_object(unlock, "pending_unlocks[]")
        asset = integer(found, "asset_index", "pending_unlocks[]")
        known = "" if asset == COLLATERAL_ASSET else symbols.get(asset) or _SYMBOLS.get(asset) or f"asset {asset}"
        part = required_amount(found, "amount", "pending_unlocks[]")
        sums[known] = exact_sum((sums.get(known, Decimal(0)), part))
    return tuple((symbol, total) for symbol, total in sums.items() if total)


def _entries(source: Any, key: str, number: str) -> list[Any]:
    """The objects of a list. Raises VenueMalformed if two of them have the same `number`."""
    entries = [as_object(entry, f"{key}[]") for entry in as_list(source.get(key), key)]
    check_unique((integer(entry, number, f"{key}[]") for entry in entries), f"Lighter lists an entry of {key} twice.")
    return entries


def integer(source: Any, key: str, where: str, *, default: int | None = None) -> int:
    """The whole number at `key`; if it is missing, `default`. Raises VenueMalformed without a default."""
    value = source.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or value < 0:
        raise VenueMalformed(f"{where}.{key} should be a whole number of 0 or more.")
    return value


def _collateral_symbol(accounts: Sequence[ReadAccount], default: str) -> str:
    symbols = {account.collateral_symbol for account in accounts if account.collateral_symbol}
    if len(symbols) > 1:
        raise VenueMalformed("Lighter states two symbols for the collateral.")
    return next(iter(symbols), default)


def _parts(account: ReadAccount, symbol: str) -> tuple[VenueAccount, ...]:
    """The venue accounts of one index: perpetuals, spot, and one for each pool with shares."""
    pools = tuple(
        VenueAccount(
            id=str(account.index),
            type="pool",
            sub_account=str(share.pool),
            label=account.name,
            assets=(AssetBalance(share.asset or symbol, total=share.principal),),
        )
        for share in account.shares
        if share.principal is not None
    )
    rows = tuple(AssetBalance(asset or symbol, total=total) for asset, total in account.unlocks)
    unlocks = VenueAccount(id=str(account.index), type="pool", sub_account=_UNLOCKS, label=account.name, assets=rows)
    return (_perpetual(account, symbol), _spot(account, symbol), *pools, *((unlocks,) if rows else ()))


def _figures(accounts: Sequence[ReadAccount], symbol: str) -> list[VenueAccount]:
    """The venue accounts to sum for the whole balance. In unified mode without spot, which equity may include."""
    perpetuals = [_perpetual(account, symbol) for account in accounts]
    return perpetuals + [_spot(account, symbol) for account in accounts if account.mode != UNIFIED]


def _perpetual(account: ReadAccount, symbol: str) -> VenueAccount:
    figures = Summary(
        symbol,
        total=account.collateral,
        cash=account.collateral,
        available=account.available,
        equity=account.equity,
        margin_used=account.margin_used,
        unrealised_pnl=account.unrealised_pnl,
    )
    row = AssetBalance(symbol, total=account.collateral, free=account.available, used=account.margin_used)
    return VenueAccount(
        id=str(account.index),
        type="perpetual",
        label=account.name,
        assets=(row, *account.margins),
        summary=figures if account.mode in (CLASSIC, UNIFIED) else None,
    )


def _spot(account: ReadAccount, symbol: str) -> VenueAccount:
    """Spot. It has a summary only in classic mode and if it holds the collateral alone, because prices are not read."""
    nothing = AssetBalance(symbol, Decimal(0), Decimal(0), Decimal(0))
    money = next((row for row in account.spot if row.asset == symbol), nothing)
    # A classic spot account has no margin and no positions, so both are true zeros.
    figures = Summary(
        symbol,
        total=money.total,
        cash=money.total,
        available=money.free,
        equity=money.total,
        margin_used=Decimal(0),
        unrealised_pnl=Decimal(0),
    )
    holds_other_assets = any(row.asset != symbol and not row.is_zero() for row in account.spot)
    return VenueAccount(
        id=str(account.index),
        type="spot",
        label=account.name,
        assets=account.spot,
        summary=figures if account.mode == CLASSIC and not holds_other_assets else None,
    )


def _overall_summary(accounts: Sequence[VenueAccount], symbol: str) -> tuple[Summary | None, tuple[str, ...]]:
    """The summary for these accounts, and a note if there is none because of other assets on spot."""
    summary = combined_summary(accounts)
    stated = all(account.summary for account in accounts if account.type != "spot")
    missing = f"There is no summary for everything, because not everything held is in {symbol}."
    return summary, (missing,) if summary is None and stated else ()


def _hides_everything(summary: Summary, parts: Sequence[VenueAccount]) -> bool:
    """Whether the summary is zero although something is held, such as spot in unified mode or a share in a pool."""
    held = not all(row.is_zero() for part in parts for row in part.assets)
    return held and not any((summary.total, summary.equity, summary.available, summary.margin_used))


def _notes(account: ReadAccount) -> list[str]:
    notes = []
    if account.mode not in (CLASSIC, UNIFIED):
        notes.append(
            f"Lighter keeps account {account.index} in an unknown mode ({account.mode}): its perpetual "
            "and its spot account may overlap, so they are shown without equity and without a summary."
        )
    if account.mode == UNIFIED and not all(row.is_zero() for row in account.spot):
        notes.append(_UNIFIED_EQUITY)
    if account.margins:
        notes.append(_MARGIN_IN_OTHER_ASSETS)
    if any(share.principal is not None for share in account.shares):
        notes.append(_POOL_SHARES)
    if any(share.principal is None for share in account.shares):
        notes.append(_POOL_WITHOUT_VALUE)
    if account.unlocks:
        notes.append(_PENDING_UNLOCKS)
    return notes


def _pool_left_out(account: ReadAccount) -> str:
    return (
        f"Account {account.index} of the wallet is a public pool. It is left out, because its money belongs to all "
        "users who paid into it."
    )
