"""Reads Hyperliquid's payloads into the service's values. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from exchange_service.plugin_api import (
    AssetBalance,
    Summary,
    VenueAccount,
    VenueError,
    VenueMalformed,
    amount,
    as_list,
    as_object,
    check_unique,
    combined_summary,
    exact_difference,
    exact_sum,
    milliseconds,
    parse_amount,
    required_amount,
    split_accounts,
    text,
)

USDC = "USDC"
# In these modes each dex and the spot wallet hold money of their own.
# witness: vendor: https://hyperliquid.gitbook.io/hyperliquid-docs/trading/account-abstraction-modes
STANDARD_MODES = frozenset(
    {
        "disabled",
        "default",
        "dexAbstraction",  # witness: report: JKorf/HyperLiquid.Net#83, which quotes the vendor's list of modes
    }
)
# In these modes the spot wallet is the collateral of everything, and its USDC includes the perpetuals' equity.
# witness: vendor: https://hyperliquid.gitbook.io/hyperliquid-docs/trading/account-abstraction-modes
UNIFIED_MODES = frozenset({"unifiedAccount", "portfolioMargin"})
# The answer null: the mode was never set.
UNSET_MODE = ""

# The sub-account names of what is not the wallet's main part.
ESCROW = "escrow"
# The number of the token USDC.
_USDC_TOKEN = 0
# Each costs at least three requests. No user's wallet has more.
_MAX_SUB_ACCOUNTS = 100

# Members that only the tokens of a wallet with portfolio margin have.
_OF_PORTFOLIO_MARGIN = ("borrowed", "supplied", "ltv")
# The code of a position in an outcome market: active ones are +N, settled ones oN, and #N is that of one side.
_OUTCOME = re.compile(r"[+#o][0-9]+\Z", re.ASCII)

_USDC_PART = "The summary of a wallet is its USDC part: Hyperliquid states no value of its other tokens here."
_NO_SINGLE_FIGURE = "There is no summary for everything, because not everything held is in USDC."
_DOUBTFUL_MODE = (
    "Hyperliquid states one mode for a wallet and answers as in another: its accounts may overlap, so they are shown "
    "without equity and without a summary."
)
_MODE_NEVER_SET = (
    "Hyperliquid states no mode for a wallet, because none was ever set: its accounts may overlap, so they are shown "
    "without equity and without a summary."
)
_NO_USDC_ROW = (
    "Hyperliquid shows the perpetuals of a unified wallet but not the USDC with their equity: "
    "the value of the wallet is unknown."
)
_OTHER_TOKENS_ALONE = (
    "There is no summary of a wallet that holds other tokens and no USDC: Hyperliquid states no value of them here."
)
_OUTCOMES = "Rows such as +12345 are positions in outcome markets: their amounts are numbers of shares."
_BORROWED = (
    "The wallet has borrowed. Hyperliquid does not document whether a total already leaves the debt out, "
    "so the wallet has no equity here."
)
_ESCROWED = (
    "Tokens from HyperEVM wait in escrow, because the wallet is not activated: deposit USDC to it at Hyperliquid, "
    "and they become its spot tokens."
)


@dataclass(frozen=True, slots=True)
class PerpState:
    """The perpetuals of one address on one dex, with amounts in `collateral`. `dex` is "" for the main dex."""

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
    """The spot tokens of one address, and what waits in escrow for its activation.

    `unified` is whether the answer has a field that only UNIFIED_MODES have, such as the amount of each token above the
    maintenance margin. `usdc_after_maintenance` is that of USDC, None if the venue does not state it.
    """

    rows: tuple[AssetBalance, ...]
    unified: bool
    usdc_after_maintenance: Decimal | None = None
    escrows: tuple[AssetBalance, ...] = ()

    def is_empty(self) -> bool:
        """Whether nothing is held here. What waits in escrow does not count."""
        return all(row.is_zero() for row in self.rows)

    def has_escrows(self) -> bool:
        """Whether something waits in escrow."""
        return not all(row.is_zero() for row in self.escrows)

    def has_usdc(self) -> bool:
        """Whether there is a USDC row."""
        return any(row.asset == USDC for row in self.rows)

    def has_outcomes(self) -> bool:
        """Whether there are positions in outcome markets."""
        return any(_OUTCOME.match(row.asset) and not row.is_zero() for row in self.rows)

    def has_debts(self) -> bool:
        """Whether a token is borrowed."""
        return any(row.debt for row in self.rows)

    def usdc(self) -> AssetBalance:
        """The USDC row. The list is complete, so a list without it means zero."""
        zero = Decimal(0)
        return next((row for row in self.rows if row.asset == USDC), AssetBalance(USDC, zero, zero, zero))

    def holds_other_than_usdc(self) -> bool:
        """Whether a figure in USDC leaves out something that is held."""
        return any(row.asset != USDC and not row.is_zero() for row in self.rows)

    def holds_only_other_tokens(self) -> bool:
        """Whether something is held, but no USDC: its zero would look like an empty wallet."""
        return self.holds_other_than_usdc() and self.usdc().is_zero()


@dataclass(frozen=True, slots=True)
class Role:
    """The role of an address: user, missing, vault, agent or subAccount. `master` is set for an agent alone."""

    name: str
    master: str = ""


@dataclass(frozen=True, slots=True)
class SubAccount:
    """A sub-account: an address of its own under the main wallet, or the error why its entry cannot be read."""

    address: str
    name: str
    error: VenueError | None = None


@dataclass(frozen=True, slots=True)
class WalletAnswers:
    """All that the venue has answered of one address: its mode and its states, in the order in which they are shown.

    `spot` may be the error of an answer with another shape; `unread` are the dexs that could not be read.
    """

    address: str
    mode: str
    spot: SpotState | VenueError
    perps: tuple[PerpState, ...]
    unread: tuple[VenueAccount, ...] = ()
    name: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether every part could be read."""
        return isinstance(self.spot, SpotState) and not self.unread

    @property
    def is_contradictory(self) -> bool:
        """Whether the spot state is one that a wallet of this mode does not get."""
        return isinstance(self.spot, SpotState) and contradicts(self.mode, self.spot)

    def wallet(self) -> Wallet:
        """What the address holds, by these answers."""
        if isinstance(self.spot, SpotState):
            made = wallet(self.address, self.mode, self.spot, self.perps, name=self.name, unread=self.unread)
        else:
            made = wallet_without_spot(self.address, self.spot, self.perps, name=self.name, unread=self.unread)
        return replace(made, answers=self)


@dataclass(frozen=True, slots=True)
class Wallet:
    """The accounts of one address, notes on them, and the times that the venue states.

    `is_empty`: nothing is shown to be held, except in escrow. `is_unified`: perpetuals have no account of their own.
    `answers` is what it was made of; None for what is not a wallet of its own, such as vaults.
    """

    accounts: tuple[VenueAccount, ...]
    notes: tuple[str, ...] = ()
    venue_times: tuple[datetime, ...] = ()
    is_empty: bool = False
    is_unified: bool = False
    has_escrows: bool = False
    answers: WalletAnswers | None = None


def mode(payload: Any) -> str:
    """The mode of `userAbstraction`, a bare JSON text, or UNSET_MODE for null."""
    return UNSET_MODE if payload is None else text({"mode": payload}, "mode", "the answer")


def role(payload: Any) -> Role:
    """The role of `userRole`, with the main wallet's address if the role is that of an API wallet."""
    found = as_object(payload, "the answer")
    name = text(found, "role", "the answer")
    if name != "agent":
        return Role(name)
    return Role(name, _address(as_object(found.get("data"), "data"), "user", "data"))


def perp_state(payload: Any, dex: str = "", collateral: str = USDC) -> PerpState:
    """The perpetuals of `clearinghouseState`. Raises VenueMalformed if any figure is missing."""
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
    """The spot tokens of `spotClearinghouseState`. A row whose amounts are all empty texts says nothing."""
    found = as_object(payload, "the answer")
    entries = [as_object(entry, "balances[]") for entry in as_list(found.get("balances"), "balances")]
    check_unique((text(entry, "coin", "balances[]") for entry in entries), "Hyperliquid lists a coin twice.")
    left = found.get("tokenToAvailableAfterMaintenance")
    # The field is absent for wallets that have nothing in escrow.
    escrows = [] if found.get("evmEscrows") is None else as_list(found["evmEscrows"], "evmEscrows")
    lends = found.get("portfolioMarginEnabled") is True
    return SpotState(
        rows=tuple(_spot_row(entry, lends) for entry in entries if not _says_nothing(entry, "total", "hold")),
        unified=left is not None or lends,
        usdc_after_maintenance=None if left is None else _after_maintenance(left).get(_USDC_TOKEN),
        escrows=_escrow_rows([as_object(entry, "evmEscrows[]") for entry in escrows]),
    )


def sub_accounts(payload: Any, master: str) -> list[SubAccount]:
    """The sub-accounts in `subAccounts` of `master`, null if it has none. Without a name one has its address.

    An entry that cannot be read is a sub-account with the error.
    """
    if payload is None:
        return []
    entries = as_list(payload, "the answer")
    if len(entries) > _MAX_SUB_ACCOUNTS:
        raise VenueMalformed(f"Hyperliquid lists more than {_MAX_SUB_ACCOUNTS} sub-accounts.")
    found: list[SubAccount] = []
    for number, entry in enumerate(entries, start=1):
        taken = {master, *(sub.address for sub in found)}
        try:
            found.append(_sub_account(as_object(entry, "subAccounts[]"), master, taken))
        except VenueMalformed as error:
            found.append(SubAccount(master, f"sub-account {number}", error))
    return found


def vault_accounts(payload: Any, address: str) -> tuple[VenueAccount, ...]:
    """An account for each vault of `userVaultEquities`, by its address; one that cannot be read is an error.

    The venue does not state how much can be withdrawn now. Raises the error if not one of them can be read.
    """

    def unread(vault: str) -> VenueAccount:
        return VenueAccount(id=vault or address, type="vault", sub_account="" if vault else "vaults without an address")

    return split_accounts(as_list(payload, "the answer"), _vault_address, _vault, unread=unread)


def staking_account(payload: Any, address: str) -> VenueAccount:
    """The staking account of `delegatorSummary`, in HYPE. Free is what is neither delegated nor being withdrawn."""
    found = as_object(payload, "the answer")
    delegated = required_amount(found, "delegated", "the answer")
    undelegated = required_amount(found, "undelegated", "the answer")
    leaving = required_amount(found, "totalPendingWithdrawal", "the answer")
    # The venue states the three parts and not their sum.
    total = exact_sum((delegated, undelegated, leaving))
    return VenueAccount(
        id=address, type="staking", assets=(AssetBalance("HYPE", total=total, free=undelegated, used=delegated),)
    )


def dex_names(payload: Any) -> frozenset[str]:
    """The builder dexs of `perpDexs`. Null stands for the main dex; a list without null is VenueMalformed."""
    listed = as_list(payload, "the answer")
    if None not in listed:
        raise VenueMalformed("Hyperliquid's list of dexs lacks the main one.")
    entries = [entry for entry in listed if entry is not None]
    return frozenset(text(as_object(entry, "perpDexs[]"), "name", "perpDexs[]") for entry in entries)


def collateral_token(payload: Any) -> int:
    """The number of a dex's collateral token, from its `meta`."""
    return _token_number(as_object(payload, "the answer").get("collateralToken"), "collateralToken")


def token_names(payload: Any) -> dict[int, str]:
    """The codes of all tokens by number, from `spotMeta`. A table without USDC is VenueMalformed."""
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
    return mode in (STANDARD_MODES | {UNSET_MODE} if spot.unified else UNIFIED_MODES)


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
    doubtful = contradicts(mode, spot) and not _all_empty(perps, unread)
    unified = mode in UNIFIED_MODES and not doubtful
    if unified:
        accounts: tuple[VenueAccount, ...] = (_unified_account(address, name, spot, perps, complete=not unread),)
        notes = _unified_notes(accounts[0], name, spot, stated=_has_usdc_figure(spot, perps, complete=not unread))
    else:
        known = mode in STANDARD_MODES and not doubtful
        accounts = (
            *(_perp_account(address, name, perp, with_summary=known) for perp in perps),
            _spot_account(address, name, spot, with_summary=known),
        )
        notes = [] if known else [_unknown_mode(mode, doubtful=doubtful)]
    if spot.has_escrows():
        accounts += (_escrow_account(address, name, spot),)
        notes.append(_ESCROWED)
    if spot.has_outcomes():
        notes.append(_OUTCOMES)
    return Wallet(
        accounts=accounts + unread,
        notes=tuple(notes),
        venue_times=tuple(perp.venue_time for perp in perps if perp.venue_time is not None),
        is_empty=spot.is_empty() and all(perp.is_empty() for perp in perps) and not _main_is_unread(unread, name),
        is_unified=unified,
        has_escrows=spot.has_escrows(),
    )


def wallet_without_spot(
    address: str,
    error: VenueError,
    perps: Sequence[PerpState],
    *,
    name: str = "",
    unread: tuple[VenueAccount, ...] = (),
) -> Wallet:
    """What one address holds in perpetuals. Without the spot state its mode is not certain, so there is no summary."""
    unread_spot = VenueAccount(id=address, type="spot", sub_account=name, error=error)
    accounts = (*(_perp_account(address, name, perp, with_summary=False) for perp in perps), unread_spot)
    times = tuple(perp.venue_time for perp in perps if perp.venue_time is not None)
    return Wallet(accounts + unread, venue_times=times)


def dex_account_name(name: str, dex: str) -> str:
    """The sub-account name of a part, such as a dex: its own, after the sub-account's where it is one's."""
    return "/".join(part for part in (name, dex) if part)


def overall_summary(accounts: Sequence[VenueAccount]) -> tuple[Summary | None, tuple[str, ...]]:
    """The summary for all accounts, and a note if there is none although all accounts could be read.

    An account that holds nothing changes no sum, so it may lack a summary or have another currency.
    """
    holding = [account for account in accounts if account.error or not _holds_nothing(account)]
    summary = combined_summary(holding or accounts[:1])
    readable = all(account.error is None for account in accounts)
    stated = any(account.summary for account in accounts)
    return summary, (_NO_SINGLE_FIGURE,) if summary is None and readable and stated else ()


def _holds_nothing(account: VenueAccount) -> bool:
    """Whether a sum can leave it out. Not so spot without a summary, because its mode is not certain."""
    return all(row.is_zero() for row in account.assets) and (account.type != "spot" or account.summary is not None)


def _all_empty(perps: Sequence[PerpState], unread: Sequence[VenueAccount]) -> bool:
    """Whether perpetuals certainly hold nothing."""
    return not unread and all(perp.is_empty() for perp in perps)


def _main_is_unread(unread: Sequence[VenueAccount], name: str) -> bool:
    return any(account.sub_account == name for account in unread)


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
    """Spot beside separate perpetuals. It has a summary only if it holds USDC alone, because prices are not read."""
    usdc = spot.usdc()
    # A standard spot wallet has no margin and no positions, so both are true zeros.
    figures = Summary(
        USDC,
        total=usdc.total,
        available=usdc.free,
        equity=usdc.total,
        margin_used=Decimal(0),
        unrealised_pnl=Decimal(0),
    )
    stated = with_summary and not spot.holds_other_than_usdc()
    return VenueAccount(
        id=address, type="spot", sub_account=name, assets=spot.rows, summary=figures if stated else None
    )


def _escrow_account(address: str, name: str, spot: SpotState) -> VenueAccount:
    """What waits in escrow: the wallet's own, but nothing can be done with it before the wallet is activated."""
    total = exact_sum(row.total for row in spot.escrows if row.total is not None)
    only_usdc = all(row.asset == USDC or row.is_zero() for row in spot.escrows)
    figures = Summary(USDC, total=total, equity=total) if only_usdc else None
    section = dex_account_name(name, ESCROW)
    return VenueAccount(id=address, type="spot", sub_account=section, assets=spot.escrows, summary=figures)


def _unified_account(
    address: str, name: str, spot: SpotState, perps: Sequence[PerpState], *, complete: bool
) -> VenueAccount:
    """Spot as the collateral of everything. It includes the account values of the dexs, which are not added.

    What is used of USDC is what orders and positions use. Unrealised profit is unknown if a dex has another collateral
    or could not be read, and equity if something is borrowed. With perpetuals and without a USDC row there is no
    summary, and none if other tokens are held and no USDC.
    """
    usdc = spot.usdc()
    in_usdc = complete and not any(perp.unrealised_pnl and perp.collateral != USDC for perp in perps)
    figures = Summary(
        USDC,
        total=usdc.total,
        available=usdc.free,
        equity=None if spot.has_debts() else usdc.total,
        margin_used=usdc.used,
        unrealised_pnl=exact_sum(perp.unrealised_pnl for perp in perps) if in_usdc else None,
    )
    stated = _has_usdc_figure(spot, perps, complete=complete) and not spot.holds_only_other_tokens()
    return VenueAccount(
        id=address, type="spot", sub_account=name, assets=spot.rows, summary=figures if stated else None
    )


def _has_usdc_figure(spot: SpotState, perps: Sequence[PerpState], *, complete: bool) -> bool:
    """Whether the USDC of a unified wallet is stated, or is certainly zero."""
    return spot.has_usdc() or (complete and all(perp.is_empty() for perp in perps))


def _unified_notes(account: VenueAccount, name: str, spot: SpotState, *, stated: bool) -> list[str]:
    borrowed = [_BORROWED] if spot.has_debts() else []
    if account.summary is None:
        return [_OTHER_TOKENS_ALONE if stated else _NO_USDC_ROW, *borrowed]
    part = [_USDC_PART] if spot.holds_other_than_usdc() else []
    return [*_own_figure_note(name, spot), *part, *borrowed]


def _own_figure_note(name: str, spot: SpotState) -> list[str]:
    """A note with the venue's own figure for available USDC, if it is not total minus hold.

    It counts the USDC between initial and maintenance margin too, so it does not become `available`.
    """
    left = spot.usdc_after_maintenance
    if left is None or left == spot.usdc().free:
        return []
    whose = f" of the sub-account {name}" if name else ""
    return [f"Hyperliquid's own figure for the available USDC{whose}, above the maintenance margin, is {left:f}."]


def _unknown_mode(mode: str, *, doubtful: bool) -> str:
    if mode == UNSET_MODE:
        return _MODE_NEVER_SET
    if doubtful:
        return _DOUBTFUL_MODE
    return (
        f"Hyperliquid keeps a wallet in an unknown mode, {mode[:40]!r}: its accounts may overlap, "
        "so they are shown without equity and without a summary."
    )


def _position(entry: Any) -> Any:
    return as_object(as_object(entry, "assetPositions[]").get("position"), "assetPositions[].position")


def _says_nothing(entry: Any, *amounts: str) -> bool:
    """Whether every amount of a row is an empty text."""
    return all(entry.get(name) == "" for name in amounts)


def _spot_row(entry: Any, lends: bool) -> AssetBalance:
    total = required_amount(entry, "total", "balances[]")
    used = _reserved(entry, lends)
    # The venue defines free as total minus what is reserved and does not send it.
    free = None if used is None else exact_difference(total, used)
    return AssetBalance(
        text(entry, "coin", "balances[]"),
        total=total,
        free=free if free is None or free >= 0 else None,
        used=used,
        debt=_borrowed(entry),
    )


def _borrowed(entry: Any) -> Decimal | None:
    debt = amount(entry, "borrowed", "balances[]")
    if debt is not None and debt < 0:
        raise VenueMalformed("balances[].borrowed is negative.")
    return debt


def _reserved(entry: Any, lends: bool) -> Decimal | None:
    """What orders and positions reserve of a token; None if it is not stated. `lends` is whether the venue would lend.

    Under portfolio margin `hold` is less than that by what the wallet could borrow, and may be negative. `spotHold` is
    the whole. Tokens without any hold lack `spotHold`.
    """
    hold = amount(entry, "hold", "balances[]")
    whole = amount(entry, "spotHold", "balances[]")
    netted = lends or any(entry.get(name) is not None for name in _OF_PORTFOLIO_MARGIN)
    known = whole if whole is not None else None if netted and hold else hold
    return known if known is None or known >= 0 else None


def _escrow_rows(entries: Sequence[Any]) -> tuple[AssetBalance, ...]:
    told = [entry for entry in entries if not _says_nothing(entry, "total")]
    rows = tuple(
        AssetBalance(text(entry, "coin", "evmEscrows[]"), total=required_amount(entry, "total", "evmEscrows[]"))
        for entry in told
    )
    check_unique((row.asset for row in rows), "Hyperliquid lists a coin twice.")
    return rows


def _after_maintenance(pairs: Any) -> dict[int, Decimal]:
    """The amounts by token number, from a list of pairs."""
    where = "tokenToAvailableAfterMaintenance"
    found: dict[int, Decimal] = {}
    for pair in as_list(pairs, where):
        entry = as_list(pair, f"{where}[]")
        left = parse_amount(entry[1], f"{where}[][1]") if len(entry) == 2 else None
        if left is None or _token_number(entry[0], f"{where}[][0]") in found:
            raise VenueMalformed(f"Hyperliquid's {where} should be a pair for each token.")
        found[entry[0]] = left
    return found


def _sub_account(entry: Mapping[str, Any], master: str, taken: set[str]) -> SubAccount:
    """The sub-account of an entry. Raises VenueMalformed if it is of another wallet or one of the `taken` addresses."""
    if _address(entry, "master", "subAccounts[]") != master:
        raise VenueMalformed("Hyperliquid lists a sub-account of another wallet.")
    address = _address(entry, "subAccountUser", "subAccounts[]")
    if address in taken:
        raise VenueMalformed("Hyperliquid lists an address twice.")
    return SubAccount(address, text(entry, "name", "subAccounts[]", required=False) or address)


def _vault_address(entry: Any) -> str:
    return _address(entry, "vaultAddress", "vaults[]")


def _vault(entry: Any) -> VenueAccount:
    equity = required_amount(entry, "equity", "vaults[]")
    return VenueAccount(
        id=_vault_address(entry),
        type="vault",
        assets=(AssetBalance(USDC, total=equity),),
        summary=Summary(USDC, total=equity, equity=equity),
    )


def _address(source: Any, key: str, where: str) -> str:
    """The address at `key` in lower case; VenueMalformed unless it is 0x and 40 hexadecimal digits."""
    value = text(source, key, where).lower()
    if len(value) != 42 or not value.startswith("0x") or set(value[2:]) - set("0123456789abcdef"):
        raise VenueMalformed(f"{where}.{key} should be an address but is another text.")
    return value


def _token_number(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise VenueMalformed(f"{where} should be the number of a token.")
    return value
