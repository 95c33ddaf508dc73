"""Hyperliquid's payloads as the service's nouns. Pure: payload in, value out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from exchange_service.plugin_api import (
    AssetBalance,
    Summary,
    VenueAccount,
    VenueMalformed,
    amount,
    as_list,
    as_object,
    combined_summary,
    exact_difference,
    exact_sum,
    milliseconds,
    parse_amount,
    required_amount,
    text,
)

USDC = "USDC"
# Each dex and the spot wallet hold their own money.
STANDARD_MODES = frozenset({"disabled", "default", "dexAbstraction"})
# The spot wallet is the collateral of everything, and its USDC holds the perpetuals' equity already.
UNIFIED_MODES = frozenset({"unifiedAccount", "portfolioMargin"})

# The number that USDC has among the tokens.
_USDC_TOKEN = 0
# Each costs three requests and more; no wallet that a person looks at has more.
_MAX_SUB_ACCOUNTS = 100

_USDC_PART = "The summary of a wallet is its USDC part: Hyperliquid reckons no value for its other tokens here."
_NO_SINGLE_FIGURE = "There is no summary for everything, because not everything held is in USDC."
_DOUBTFUL_MODE = (
    "Hyperliquid says one mode of a wallet and answers as in another: its accounts may overlap, so they are shown "
    "without equity and without a summary."
)
_NO_USDC_ROW = (
    "Hyperliquid shows a unified wallet's perpetuals and not the USDC that holds their equity: "
    "what the wallet is worth is unknown."
)
_OUTCOMES_LEFT_OUT = "Outcome-market positions are held, and left out."


@dataclass(frozen=True, slots=True)
class PerpState:
    """The perpetuals of one address on one dex; amounts in `collateral`. `dex` is "" for the main one."""

    dex: str
    collateral: str
    account_value: Decimal
    withdrawable: Decimal
    margin_used: Decimal
    unrealised_pnl: Decimal
    positions: int
    venue_time: datetime | None

    def is_empty(self) -> bool:
        """Whether nothing is held here."""
        return not (self.account_value or self.withdrawable or self.margin_used or self.positions)


@dataclass(frozen=True, slots=True)
class SpotState:
    """The spot tokens of one address. `outcomes` counts held outcome-market rows, which are no assets.

    `unified` is whether the answer has what only those of UNIFIED_MODES have: what is left of a token above the
    maintenance margin, of which `usdc_after_maintenance` is the USDC. None where the venue does not say.
    """

    rows: tuple[AssetBalance, ...]
    outcomes: int
    unified: bool
    usdc_after_maintenance: Decimal | None = None

    def is_empty(self) -> bool:
        """Whether nothing is held here."""
        return not self.outcomes and all(row.is_zero() for row in self.rows)

    def has_usdc(self) -> bool:
        """Whether there is a USDC row."""
        return any(row.asset == USDC for row in self.rows)

    def usdc(self) -> AssetBalance:
        """The USDC row. The list is complete, so where it has none, none is held."""
        zero = Decimal(0)
        return next((row for row in self.rows if row.asset == USDC), AssetBalance(USDC, zero, zero, zero))

    def holds_other_than_usdc(self) -> bool:
        """Whether there is a value that a figure in USDC leaves out."""
        return bool(self.outcomes) or any(row.asset != USDC and not row.is_zero() for row in self.rows)


@dataclass(frozen=True, slots=True)
class Role:
    """What the venue knows an address as: user, missing, vault, agent, subAccount. `master` only of an agent."""

    name: str
    master: str = ""


@dataclass(frozen=True, slots=True)
class SubAccount:
    """A sub-account: an address of its own under the main wallet."""

    address: str
    name: str


@dataclass(frozen=True, slots=True)
class Wallet:
    """What one address shows: its accounts, remarks on them, and the times that the venue states.

    `is_empty` is whether nothing is seen to be held; `is_unified` whether perpetuals have no account of their own.
    """

    accounts: tuple[VenueAccount, ...]
    notes: tuple[str, ...] = ()
    venue_times: tuple[datetime, ...] = ()
    is_empty: bool = False
    is_unified: bool = False


def mode(payload: Any) -> str:
    """The mode of `userAbstraction`, a bare JSON text."""
    return text({"mode": payload}, "mode", "the answer")


def role(payload: Any) -> Role:
    """The role of `userRole`, with the main wallet's address where the one asked for is an API wallet's."""
    found = as_object(payload, "the answer")
    name = text(found, "role", "the answer")
    if name != "agent":
        return Role(name)
    return Role(name, _address(as_object(found.get("data"), "data"), "user", "data"))


def perp_state(payload: Any, dex: str = "", collateral: str = USDC) -> PerpState:
    """`clearinghouseState`. Every figure is required: a state that lacks one proves nothing about the account."""
    found = as_object(payload, "the answer")
    margin = as_object(found.get("marginSummary"), "marginSummary")
    positions = [_position(entry) for entry in as_list(found.get("assetPositions"), "assetPositions")]
    return PerpState(
        dex=dex,
        collateral=collateral,
        account_value=required_amount(margin, "accountValue", "marginSummary"),
        withdrawable=required_amount(found, "withdrawable", "the answer"),
        margin_used=required_amount(margin, "totalMarginUsed", "marginSummary"),
        unrealised_pnl=exact_sum(required_amount(entry, "unrealizedPnl", "position") for entry in positions),
        positions=len(positions),
        venue_time=milliseconds(found, "time", "the answer"),
    )


def spot_state(payload: Any) -> SpotState:
    """`spotClearinghouseState`. Outcome-market rows are counted and dropped: they are positions without a token."""
    found = as_object(payload, "the answer")
    entries = [as_object(entry, "balances[]") for entry in as_list(found.get("balances"), "balances")]
    outcomes = [entry for entry in entries if _is_outcome(entry)]
    if len({text(entry, "coin", "balances[]") for entry in entries}) != len(entries):
        raise VenueMalformed("Hyperliquid lists a coin twice.")
    left = found.get("tokenToAvailableAfterMaintenance")
    return SpotState(
        rows=tuple(_spot_row(entry) for entry in entries if not _is_outcome(entry)),
        outcomes=sum(1 for entry in outcomes if required_amount(entry, "total", "balances[]")),
        unified=left is not None,
        usdc_after_maintenance=None if left is None else _after_maintenance(left).get(_USDC_TOKEN),
    )


def sub_accounts(payload: Any, master: str) -> list[SubAccount]:
    """`subAccounts` of `master`: null where it has none. A nameless one is called by its address."""
    if payload is None:
        return []
    entries = [as_object(entry, "subAccounts[]") for entry in as_list(payload, "the answer")]
    if len(entries) > _MAX_SUB_ACCOUNTS:
        raise VenueMalformed(f"Hyperliquid lists more than {_MAX_SUB_ACCOUNTS} sub-accounts.")
    if any(_address(entry, "master", "subAccounts[]") != master for entry in entries):
        raise VenueMalformed("Hyperliquid lists a sub-account of another wallet.")
    found = [_sub_account(entry) for entry in entries]
    if len({master, *(sub.address for sub in found)}) != len(found) + 1:
        # Read twice, its money would be in the summary twice.
        raise VenueMalformed("Hyperliquid lists an address twice.")
    return found


def vault_accounts(payload: Any) -> tuple[VenueAccount, ...]:
    """`userVaultEquities`: an account for each vault. How much of it can be taken out now is not said."""
    entries = [as_object(entry, "vaults[]") for entry in as_list(payload, "the answer")]
    accounts = tuple(_vault(entry) for entry in entries)
    if len({account.id for account in accounts}) != len(accounts):
        raise VenueMalformed("Hyperliquid lists a vault twice.")
    return accounts


def staking_account(payload: Any, address: str) -> VenueAccount:
    """`delegatorSummary`: HYPE in the staking account; free is what is not delegated and not on its way out."""
    found = as_object(payload, "the answer")
    delegated = required_amount(found, "delegated", "the answer")
    undelegated = required_amount(found, "undelegated", "the answer")
    leaving = required_amount(found, "totalPendingWithdrawal", "the answer")
    total = exact_sum((delegated, undelegated, leaving))
    return VenueAccount(
        id=address, type="staking", assets=(AssetBalance("HYPE", total=total, free=undelegated, used=delegated),)
    )


def dex_names(payload: Any) -> frozenset[str]:
    """The builder dexs of `perpDexs`, where null stands for the main one; a list without it is none."""
    listed = as_list(payload, "the answer")
    if None not in listed:
        raise VenueMalformed("Hyperliquid's list of dexs lacks the main one.")
    entries = [entry for entry in listed if entry is not None]
    return frozenset(text(as_object(entry, "perpDexs[]"), "name", "perpDexs[]") for entry in entries)


def collateral_token(payload: Any) -> int:
    """The number of the token that a dex reckons in, from its `meta`."""
    return _token_number(as_object(payload, "the answer").get("collateralToken"), "collateralToken")


def token_names(payload: Any) -> dict[int, str]:
    """The codes of all tokens by number, from `spotMeta`; a table without USDC is none."""
    tokens = as_list(as_object(payload, "the answer").get("tokens"), "tokens")
    entries = [as_object(token, "tokens[]") for token in tokens]
    names = {_token_number(entry.get("index"), "tokens[].index"): text(entry, "name", "tokens[]") for entry in entries}
    if len(names) != len(entries):
        raise VenueMalformed("Hyperliquid's token table has a number twice.")
    if USDC not in names.values():
        raise VenueMalformed("Hyperliquid's token table lacks USDC.")
    return names


def contradicts(mode: str, spot: SpotState) -> bool:
    """Whether an answer is one that a wallet of this mode does not get. Of an unknown mode nothing is expected."""
    return mode in (STANDARD_MODES if spot.unified else UNIFIED_MODES)


def wallet(
    address: str,
    mode: str,
    spot: SpotState,
    perps: Sequence[PerpState],
    *,
    name: str = "",
    unread: tuple[VenueAccount, ...] = (),
) -> Wallet:
    """What one address holds, by its mode. `name` is that of a sub-account; `unread` are dexs that failed."""
    # Without anything in perpetuals there is nothing that could count twice, whatever the mode.
    doubtful = contradicts(mode, spot) and not all(perp.is_empty() for perp in perps)
    unified = mode in UNIFIED_MODES and not doubtful
    if unified:
        accounts: tuple[VenueAccount, ...] = (_unified_account(address, name, spot, perps, complete=not unread),)
        notes = _unified_notes(accounts[0], name, spot)
    else:
        known = mode in STANDARD_MODES and not doubtful
        accounts = (
            *(_perp_account(address, name, perp, with_summary=known) for perp in perps),
            _spot_account(address, name, spot, with_summary=known),
        )
        notes = [] if known else [_DOUBTFUL_MODE if doubtful else _unknown_mode(mode)]
    if spot.outcomes:
        notes.append(_OUTCOMES_LEFT_OUT)
    return Wallet(
        accounts=accounts + unread,
        notes=tuple(notes),
        venue_times=tuple(perp.venue_time for perp in perps if perp.venue_time is not None),
        is_empty=spot.is_empty() and all(perp.is_empty() for perp in perps),
        is_unified=unified,
    )


def dex_account_name(name: str, dex: str) -> str:
    """The sub-account name of a dex: its own, after the sub-account's where it is one's."""
    return "/".join(part for part in (name, dex) if part)


def overall_summary(accounts: Sequence[VenueAccount]) -> tuple[Summary | None, tuple[str, ...]]:
    """The one figure for all accounts, and a remark where there is none although all could be read.

    Accounts that hold nothing change no sum, so a missing summary or another currency of theirs is no hindrance.
    """
    holding = [account for account in accounts if account.error or not _holds_nothing(account)]
    summary = combined_summary(holding or accounts[:1])
    readable = all(account.error is None for account in accounts)
    reckoned = any(account.summary for account in accounts)
    return summary, (_NO_SINGLE_FIGURE,) if summary is None and readable and reckoned else ()


def _holds_nothing(account: VenueAccount) -> bool:
    """Whether it can be left out of a sum. Spot without a summary cannot: it may hold what has no row, as outcomes."""
    return all(row.is_zero() for row in account.assets) and (account.type != "spot" or account.summary is not None)


def _perp_account(address: str, name: str, perp: PerpState, *, with_summary: bool) -> VenueAccount:
    figures = Summary(
        perp.collateral,
        total=perp.account_value,
        available=perp.withdrawable,
        equity=perp.account_value,
        margin_used=perp.margin_used,
        unrealised_pnl=perp.unrealised_pnl,
    )
    row = AssetBalance(perp.collateral, total=perp.account_value, free=perp.withdrawable, used=perp.margin_used)
    return VenueAccount(
        id=address,
        type="perpetual",
        sub_account=dex_account_name(name, perp.dex),
        assets=(row,),
        summary=figures if with_summary else None,
        venue_time=perp.venue_time,
    )


def _spot_account(address: str, name: str, spot: SpotState, *, with_summary: bool) -> VenueAccount:
    """Spot beside separate perpetuals. Figures in USDC only where it holds nothing else: no prices are asked for."""
    usdc = spot.usdc()
    # Nothing on a standard spot wallet is bound as margin or marked to a market, so both are true zeros.
    figures = Summary(
        USDC,
        total=usdc.total,
        available=usdc.free,
        equity=usdc.total,
        margin_used=Decimal(0),
        unrealised_pnl=Decimal(0),
    )
    told = with_summary and not spot.holds_other_than_usdc()
    return VenueAccount(id=address, type="spot", sub_account=name, assets=spot.rows, summary=figures if told else None)


def _unified_account(
    address: str, name: str, spot: SpotState, perps: Sequence[PerpState], *, complete: bool
) -> VenueAccount:
    """Spot that is the collateral of everything. The dexs' own account values are in it and are not added.

    `hold` of USDC is what orders and positions bind. Unrealised profit is known in USDC only: a dex in another
    collateral, or one that could not be read, leaves it unknown. Perpetuals without a USDC row leave all unknown.
    """
    usdc = spot.usdc()
    in_usdc = complete and not any(perp.unrealised_pnl and perp.collateral != USDC for perp in perps)
    figures = Summary(
        USDC,
        total=usdc.total,
        available=usdc.free,
        equity=usdc.total,
        margin_used=usdc.used,
        unrealised_pnl=exact_sum(perp.unrealised_pnl for perp in perps) if in_usdc else None,
    )
    told = spot.has_usdc() or all(perp.is_empty() for perp in perps)
    return VenueAccount(id=address, type="spot", sub_account=name, assets=spot.rows, summary=figures if told else None)


def _unified_notes(account: VenueAccount, name: str, spot: SpotState) -> list[str]:
    if account.summary is None:
        return [_NO_USDC_ROW]
    return [*_venues_own_figure(name, spot), *([_USDC_PART] if spot.holds_other_than_usdc() else [])]


def _venues_own_figure(name: str, spot: SpotState) -> list[str]:
    """The venue's own word on what is available in USDC, where it is another than total less hold: it counts what
    lies between the initial and the maintenance margin too, so it is told and not taken."""
    left = spot.usdc_after_maintenance
    if left is None or left == spot.usdc().free:
        return []
    whose = f" of the sub-account {name}" if name else ""
    return [f"Hyperliquid's own figure for the available USDC{whose}, above the maintenance margin, is {left:f}."]


def _unknown_mode(mode: str) -> str:
    return (
        f"Hyperliquid keeps a wallet in a mode that is not known here, {mode[:40]!r}: its accounts may overlap, "
        "so they are shown without equity and without a summary."
    )


def _position(entry: Any) -> Any:
    return as_object(as_object(entry, "assetPositions[]").get("position"), "assetPositions[].position")


def _is_outcome(entry: Any) -> bool:
    return text(entry, "coin", "balances[]").startswith("+")


def _spot_row(entry: Any) -> AssetBalance:
    total = required_amount(entry, "total", "balances[]")
    hold = amount(entry, "hold", "balances[]")
    # The venue defines free as total less hold, and does not send it.
    free = None if hold is None else exact_difference(total, hold)
    return AssetBalance(text(entry, "coin", "balances[]"), total=total, free=free, used=hold)


def _after_maintenance(pairs: Any) -> dict[int, Decimal]:
    """The amounts by token number, from a list of pairs."""
    where = "tokenToAvailableAfterMaintenance"
    found: dict[int, Decimal] = {}
    for pair in as_list(pairs, where):
        entry = as_list(pair, f"{where}[]")
        left = parse_amount(entry[1], f"{where}[][1]") if len(entry) == 2 else None
        if left is None or _token_number(entry[0], f"{where}[][0]") in found:
            raise VenueMalformed(f"Hyperliquid's {where} should be a pair for each token, and is not.")
        found[entry[0]] = left
    return found


def _sub_account(entry: Mapping[str, Any]) -> SubAccount:
    address = _address(entry, "subAccountUser", "subAccounts[]")
    return SubAccount(address, text(entry, "name", "subAccounts[]", required=False) or address)


def _vault(entry: Any) -> VenueAccount:
    equity = required_amount(entry, "equity", "vaults[]")
    return VenueAccount(
        id=_address(entry, "vaultAddress", "vaults[]"),
        type="vault",
        assets=(AssetBalance(USDC, total=equity),),
        summary=Summary(USDC, total=equity, equity=equity),
    )


def _address(source: Any, key: str, where: str) -> str:
    """The address at `key` in lower case; VenueMalformed unless it is 0x and 40 hexadecimal digits."""
    value = text(source, key, where).lower()
    if len(value) != 42 or not value.startswith("0x") or set(value[2:]) - set("0123456789abcdef"):
        raise VenueMalformed(f"{where}.{key} should be an address, and is another text.")
    return value


def _token_number(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise VenueMalformed(f"{where} should be a token's number, and is none.")
    return value
