"""The shape of an account's answer for each exchange: where its rows are, and which members are the venue's figures.

It also says what proves that an answer without rows is an empty account.

These are facts, taken from the venues' documents and from the code by which CCXT reads each exchange. `matching`,
`figures` and `emptiness` apply them. An exchange that is not in the table is never believed to be empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from exchange_service_ccxt_generic.formulas import members
from exchange_service_ccxt_generic.paths import at, figure

# Reasons why an answer without rows is an empty account.
_BARE = "The whole answer is the list of the account's assets, which is empty for an account without assets."
_WITHIN = "The list of assets is present with the other fields of a good answer, and is empty."
_BY_NAME = "The object of assets is present with the other fields of a good answer, and is empty."
_WALLETS = "Each wallet is present with its list of assets, and all these lists are empty."
_FILTERED = "The list is present, and each of its entries belongs to another wallet or was never used."

# Reasons why an answer without rows is never an empty account.
_ONE = "The account is one object with its figures, so it always has a row."
_ALL = "The venue lists every asset, also with zeros, so an answer without rows shows no account."
_FLAT = "Each asset is one of many fields, and without any of them nothing shows that this is an account."
_UNTOLD = "The answer would be an empty object, which gateways send too."

# Reasons why the figures of CCXT's result are shown.
_SCALED = "The amounts are whole numbers, which CCXT scales by the precision of the asset."
_ELSEWHERE = "A part of an asset's figures is in another list, which CCXT joins with the rows."
_MARGINS = "The venue states margins of the whole account, which CCXT counts as used of the asset that settles them."


@dataclass(frozen=True, slots=True)
class Figures:
    """The members of a row that are the venue's total, free, used and debt; empty if it states none.

    Each is a formula: "a+b-c" for a sum of members, of which all but the first may be missing, "a|b" for the first that
    the row has, and "." for the row itself. A debt is positive here, whatever its sign at the venue.
    """

    total: str = ""
    free: str = ""
    used: str = ""
    debt: str = ""
    # Whether the venue's total is free plus used, so that the third of them follows from two. Not where the total
    # counts open profit or debts that the parts do not count.
    adds_up: bool = True
    # Whether total, free and used are single members.
    plain: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        formulas = (self.total, self.free, self.used)
        object.__setattr__(self, "plain", all(_is_member(formula) for formula in formulas if formula))

    def formulas(self) -> tuple[str, ...]:
        """Every formula that is not empty."""
        return tuple(formula for formula in (self.total, self.free, self.used, self.debt) if formula)

    def of(self, name: str) -> Figures:
        """The figures of one asset, whose name stands for "{}" in each member."""
        total, free, used, debt = (
            formula.replace("{}", name) for formula in (self.total, self.free, self.used, self.debt)
        )
        return Figures(total, free, used, debt, self.adds_up)


def _is_member(formula: str) -> bool:
    """Whether a formula is the name of a single member of an object."""
    return not any(sign in formula for sign in ".|+-") and not formula.isdigit()


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of an answer are, and what a row must have.

    Paths are dotted, as `paths.at` reads them; `*` stands for all entries of a list. Of names that are joined by "|",
    the first one that is present counts.
    """

    # What holds the rows: a "list", an "object" of rows by asset, or "one" object that is itself the only row.
    kind: str
    path: str
    # The field with the venue's name of the asset, or "=" and the name if every row is of one asset; empty if the row
    # does not name it.
    asset: str = ""
    # Fields of a row that must hold amounts.
    amounts: tuple[str, ...] = ()
    # The members with the figures of a row. Without, CCXT's figures are shown, for the reason in `by_ccxt`.
    figures: Figures | None = None
    by_ccxt: str = ""
    # The figures of an asset among the fields of the whole answer, whose names hold the asset's: in capitals, or under
    # another name than the list of assets has.
    fields: Figures | None = None
    upper: bool = False
    aliases: tuple[tuple[str, str], ...] = ()
    # The fields beside the rows of an empty account, such as the code for success: one of these sets.
    beside: tuple[Mapping[str, Any], ...] = ({},)
    # Why an answer without rows is an empty account, or why it never is. Exactly one is set.
    empty: str = ""
    never_empty: str = ""
    # Whether several rows may be for one asset, which are added up.
    several: bool = False
    # The field in which such rows differ.
    identity: str = ""
    # The field in which rows for one asset differ, for example for the free and the frozen part, and its known values.
    apart: str = ""
    apart_known: tuple[str, ...] = ()
    # The fields of an entry of the list that are its rows, such as the two assets of a pair.
    parts: tuple[str, ...] = ()
    # Whether CCXT takes the name of the asset from the row, so that the row can be found in its result.
    named: bool = True
    # How to spell the name of the asset for CCXT; an empty text for one that is not known.
    spelled: Callable[[str], str] | None = None
    # The option of CCXT with the assets by number, if a row has only the number.
    numbered: str = ""
    # Which rows belong to the account: true or false, false for those of another account type, or the venue's name of a
    # kind of account that no type reads.
    taken: Callable[[Any], bool | str] | None = None
    # Whether CCXT reads only some of the rows.
    beyond: bool = False
    # Names in an object of rows that are not assets.
    others: tuple[str, ...] = ()
    # Figures outside the rows, of which CCXT makes another row.
    beside_rows: tuple[str, ...] = ()
    # Fields that the answer before the last must have, of which CCXT makes another row.
    before: tuple[str, ...] = ()
    # The fields of the last page. Without them some pages are missing.
    last_page: Mapping[str, Any] | None = None
    # Whether a path through a list of wallets needs at least one wallet.
    wallet_needed: bool = False
    # Whether the asset and each amount are single fields of the row, and every field that may hold an amount. `shapes`
    # sets both.
    by_field: bool = False
    amount_paths: tuple[str, ...] = ()

    @property
    def literal(self) -> str:
        """The asset of every row, if the table names it."""
        return self.asset[1:] if self.asset.startswith("=") else ""

    @property
    def has_rows(self) -> bool:
        """Whether the rows can be checked one by one."""
        return bool(self.kind)


def _list(path: str, asset: str, *amounts: str, empty: str = "", **options: Any) -> Rows:
    """A list of rows, which may be empty unless it is `never_empty`. Other options are fields beside the list."""
    if not empty and not options.get("never_empty"):
        empty = _WITHIN if path else _BARE
    names = {name for name in options if name in Rows.__slots__}
    beside = {name: value for name, value in options.items() if name not in names}
    given = {name: options[name] for name in names}
    return Rows("list", path, asset, amounts, **{"beside": (beside,), "empty": empty, **given})


def _object(path: str, *amounts: str, **options: Any) -> Rows:
    """An object of rows by asset, which may be empty unless it is `never_empty`."""
    rows = _list(path, "", *amounts, empty="" if options.get("never_empty") else _BY_NAME, **options)
    return replace(rows, kind="object")


def _one(path: str, *amounts: str, asset: str, **options: Any) -> Rows:
    """An account that is one object with its figures."""
    return Rows("one", path, asset, amounts, never_empty=_ONE, **options)


def _flat(fields: Figures, reason: str = _FLAT, **options: Any) -> Rows:
    """An answer whose rows are fields among others."""
    return Rows("", "", never_empty=reason, fields=fields, **options)


def _of_kind(path: str, own: tuple[Any, ...], others: tuple[Any, ...] = ()) -> Callable[[Any], bool | str]:
    """Whether a row names a kind of account that is the requested one, or one of another account type."""

    def taken(row: Any) -> bool | str:
        kind = at(row, path)
        if kind in own or kind in others:
            return kind in own
        return kind if isinstance(kind, str) and kind else True

    return taken


def _in_wallet(wallet: str) -> Callable[[Any], bool | str]:
    """Bitfinex: whether a row, which begins with the type of its wallet, has this type."""
    of_kind = _of_kind("0", (wallet,), ("exchange", "margin", "funding"))
    return lambda row: not _is_wallet(row) or of_kind(row)


def _is_wallet(row: Any) -> bool:
    """Bitfinex: whether a row is long enough."""
    return isinstance(row, list) and len(row) > 4


def _for_derivatives(row: Any) -> bool:
    """Bitfinex: whether a row is for an asset of derivatives, which the margin wallet names with the ending f0."""
    return not _is_wallet(row) or (row[0] == "margin" and str(row[1]).lower().endswith("f0"))


def _used_once(row: Any) -> bool:
    """Binance: whether the asset was ever used. Contract accounts also list assets without figures of their own."""
    held = (at(row, "walletBalance"), at(row, "marginBalance"))
    return str(at(row, "updateTime")) != "0" or any(figure(amount) for amount in held)


def _names_an_asset(row: Any) -> bool:
    """BingX: false for the row without an asset and with zeros that an empty contract account may have."""
    amounts = [figure(at(row, name)) for name in ("balance", "equity", "availableMargin")]
    return bool(at(row, "asset")) or any(amount is None or amount for amount in amounts)


def _crypto_of(symbol: str) -> str:
    """Alpaca: the asset of a position in crypto, which is named as the pair with the dollar."""
    base, slash, _ = symbol.partition("/")
    return base if slash else symbol.removesuffix("USD") if symbol.endswith("USD") else ""


# Figures of many exchanges.
_FREE_LOCKED = Figures("", "free", "locked")
_ALL_THREE = Figures("total", "free", "used")

_SPOT_LIKE_BINANCE = _list("balances", "asset", "free", "locked", figures=_FREE_LOCKED)
# Spot says what kind of account it is beside its assets.
_BINANCE_SPOT = replace(_SPOT_LIKE_BINANCE, beside=({"accountType": "SPOT"}, {"canTrade": True}))
# The cross account lists assets, the isolated one pairs.
_BINANCE_MARGIN = (
    _list(
        "userAssets",
        "asset",
        "free",
        "locked",
        "borrowed",
        "interest",
        figures=Figures("", "free", "locked", "borrowed+interest"),
        tradeEnabled=True,
    ),
    _list(
        "assets",
        "asset",
        "free",
        "locked",
        parts=("baseAsset", "quoteAsset"),
        several=True,
        figures=Figures("totalAsset", "free", "locked", "borrowed+interest"),
    ),
)
# The margin balance is the wallet's balance and the open profit.
_BINANCE_CONTRACTS = _list(
    "assets",
    "asset",
    "availableBalance",
    "initialMargin",
    "marginBalance",
    figures=Figures("marginBalance", "availableBalance", "initialMargin", adds_up=False),
    taken=_used_once,
    beyond=True,
    empty=_FILTERED,
)
_BINGX_CONTRACTS = _list(
    "data",
    "asset",
    "availableMargin|availableBalance",
    "usedMargin",
    figures=Figures("equity|balance", "availableMargin|availableBalance", "usedMargin"),
    code=0,
    taken=_names_an_asset,
    empty=_FILTERED,
)
_BITFINEX = _list("", "1", "2", figures=Figures("2", "4", "", "3"), empty=_FILTERED)
# The classic account lists its assets in "data", the unified one below it.
_BITGET_SPOT = (
    _list(
        "data",
        "coin",
        "available",
        "frozen",
        "locked",
        figures=Figures("", "available", "frozen+locked"),
        code="00000",
    ),
    _list(
        "data.assets",
        "coin",
        "available",
        "equity|balance",
        figures=Figures("equity|balance", "available", "locked|frozen", "debt", adds_up=False),
        code="00000",
    ),
)
_BITGET_UNIFIED = _BITGET_SPOT[1]
_BITGET_MARGIN = _list(
    "data",
    "coin",
    "totalAmount",
    "borrow",
    "interest",
    figures=Figures("totalAmount", "available|transferable", "frozen", "borrow+interest"),
    code="00000",
)
_BITGET_CONTRACTS = (
    _list(
        "data",
        "marginCoin",
        "maxTransferOut",
        "accountEquity",
        # What may be moved out, because "available" also counts what open positions need.
        figures=Figures("accountEquity", "maxTransferOut", "locked"),
        code="00000",
    ),
    _BITGET_UNIFIED,
)
_BITRUE_CONTRACTS = _list(
    "data.account",
    "marginCoin",
    "accountNormal",
    "accountLock",
    figures=Figures("totalEquity", "", "accountLock"),
    code="0",
)
_BLOFIN_WALLET = _list(
    "data",
    "currency",
    "balance",
    "available",
    "frozen",
    figures=Figures("balance", "available", "frozen"),
    code="0",
)
# Each account's coins lie in the account; the funding wallet has them under "balance".
_BYBIT = _list(
    "result.list.*.coin",
    "coin",
    "walletBalance",
    "availableToWithdraw|free|locked",
    figures=Figures(
        "walletBalance",
        "availableToWithdraw|free|walletBalance-totalPositionIM-totalOrderIM-locked",
        "totalPositionIM+totalOrderIM+locked",
        "borrowAmount+accruedInterest",
    ),
    retCode=0,
    empty=_WALLETS,
)
_BYBIT_FUNDING = _list(
    "result.balance",
    "coin",
    "walletBalance",
    "transferBalance",
    figures=Figures("walletBalance", "transferBalance"),
    retCode=0,
)
# All accounts are in one list. Each account type takes those of its own kind.
_COINBASE_ACCOUNTS = _list(
    "accounts",
    "available_balance.currency",
    "available_balance.value",
    "hold.value",
    figures=Figures("", "available_balance.value", "hold.value"),
    several=True,
    beyond=True,
    empty=_FILTERED,
    has_next=False,
    last_page={"has_next": False},
)
_COINBASE_WALLETS = (None, "", "ACCOUNT_TYPE_CRYPTO", "ACCOUNT_TYPE_FIAT")
_COINBASE_CONTRACTS = _one(
    "balance_summary",
    "total_usd_balance.value",
    "futures_buying_power.value",
    asset="=USD",
    figures=Figures("total_usd_balance.value", "futures_buying_power.value"),
)
_DIGIFINEX_SPOT = _list("list", "currency", "free", "total", figures=Figures("total", "free"), code=0)
# The unified account has an object of assets, every other a list.
_GATE_SPOT = (
    _object(
        "balances",
        "available",
        "freeze",
        figures=Figures("equity", "available", "freeze", "total_liab|borrowed+interest"),
        locked=False,
    ),
    _list("", "currency", "available", "freeze|locked", figures=Figures("", "available", "freeze|locked")),
)
_GATE_CONTRACTS = _one("", "total", "available", asset="currency", figures=Figures("total", "available"))
# What is lent out is the user's too.
_GATE_FUNDING = _list(
    "", "currency", "available", "locked", figures=Figures("available+locked+lent", "available", "locked")
)
_HITBTC = _list("", "currency", "available", "reserved", figures=Figures("", "available", "reserved"))
_HTX_LINEAR = _list(
    "data.details",
    "currency",
    "available_margin",
    "equity",
    figures=Figures("equity", "available_margin", "initial_margin"),
    code=200,
)
_HTX_INVERSE = _list(
    "data",
    "symbol",
    "margin_available",
    "margin_frozen",
    figures=Figures("margin_balance", "margin_available", "margin_frozen"),
    status="ok",
)
# Loans and interest are negative amounts.
_HTX_PARTS: Mapping[str, Any] = {
    "apart": "type",
    "apart_known": (
        "trade",
        "frozen",
        "lock",
        "bank",
        "loan",
        "interest",
        "loan-available",
        "transfer-out-available",
    ),
    "figures": Figures("", "trade", "frozen+lock+bank", "loan+interest"),
}
_HTX_ISOLATED = _list("data.*.list", "currency", "balance", several=True, empty=_WALLETS, status="ok", **_HTX_PARTS)
_HTX_SPOT = _list("data.list", "currency", "balance", status="ok", **_HTX_PARTS)
# The unified account lists accounts, each with its currencies.
_KUCOIN_UNIFIED = _list(
    "data.accounts.*.currencies",
    "currency",
    "available",
    "hold",
    figures=Figures("equity|balance", "available", "hold", "liability+interest"),
    beyond=True,
    code="200000",
    empty=_WALLETS,
)
_KUCOIN_SPOT = (
    _list(
        "data",
        "currency",
        "balance",
        "available",
        "holds",
        figures=Figures("balance", "available", "holds"),
        code="200000",
    ),
    _KUCOIN_UNIFIED,
)
_KUCOIN_CONTRACTS = (
    _KUCOIN_UNIFIED,
    _one(
        "data",
        "accountEquity",
        "availableBalance",
        asset="currency",
        figures=Figures("accountEquity", "availableBalance", "positionMargin+orderMargin+frozenFunds"),
    ),
)
_LATOKEN = _list("", "currency", "available", "blocked", figures=Figures("", "available", "blocked"), empty=_FILTERED)
# A trading account is always one object in "data", its assets under "details".
_OKX = _list(
    "data.only.details",
    "ccy",
    "eq",
    "availEq|availBal|frozenBal",
    figures=Figures("eq", "availEq|availBal", "frozenBal", "liab", adds_up=False),
    code="0",
)
_OKX_FUNDING = _list(
    "data",
    "ccy",
    "bal",
    "availBal",
    "frozenBal",
    figures=Figures("bal", "availBal", "frozenBal"),
    code="0",
)
_ORDERLY = _list("data.holding", "token", "holding", "frozen", figures=Figures("holding", "", "frozen"), success=True)
# The futures wallet states "balance", which is what is free, the spot wallet its total.
_MUDREX = _one(
    "data",
    "balance|total",
    "locked_amount|withdrawable",
    asset="=USDT",
    figures=Figures("total", "balance|withdrawable", "locked_amount"),
)

_PHEMEX_CONTRACTS = _one(
    "data.account",
    "accountBalanceEv|accountBalanceRv",
    "totalUsedBalanceEv|totalUsedBalanceRv",
    asset="currency",
    by_ccxt=_SCALED,
)
_XT_CONTRACTS = _list(
    "result",
    "coin",
    "walletBalance",
    "availableBalance",
    figures=Figures(
        "walletBalance",
        "availableBalance",
        "openOrderMarginFrozen+isolatedMargin+crossedMargin",
    ),
    returnCode=0,
)

# By exchange, or by exchange and account type. Of several shapes the first one that fits counts.
_SHAPES: Mapping[str, Rows | tuple[Rows, ...]] = {
    # Shares and options are not read. The cash is in the answer before.
    # witness: CCXT: alpaca.parse_balance
    "alpaca": _list(
        "",
        "symbol",
        "qty",
        "qty_available",
        figures=Figures("qty", "qty_available"),
        never_empty=_ONE,
        spelled=_crypto_of,
        beyond=True,
        taken=lambda row: at(row, "asset_class") not in ("us_equity", "us_option"),
        before=("currency", "cash"),
    ),
    # witness: CCXT: apex.parse_balance
    "apex": _one(
        "data",
        "availableBalance",
        "totalEquityValue",
        asset="=USDT",
        figures=Figures("totalEquityValue", "availableBalance"),
    ),
    # witness: CCXT: backpack.parse_balance
    "backpack": _object(
        "",
        "available",
        "locked",
        "staked",
        figures=Figures("", "available", "locked+staked"),
        never_empty=_UNTOLD,
    ),
    # witness: CCXT: bequant.parse_balance
    "bequant spot": _HITBTC,
    "bequant funding": _HITBTC,
    # witness: CCXT: bigone.parse_balance
    "bigone spot": _list(
        "data", "asset_symbol", "balance", "locked_balance", figures=Figures("balance", "", "locked_balance"), code=0
    ),
    "bigone funding": _list(
        "data", "asset_symbol", "balance", "locked_balance", figures=Figures("balance", "", "locked_balance"), code=0
    ),
    # witness: CCXT: binance.fetch_balance
    "binance spot": _BINANCE_SPOT,
    "binance margin": _BINANCE_MARGIN,
    "binance future": _BINANCE_CONTRACTS,
    "binance swap": _BINANCE_CONTRACTS,
    "binance delivery": _BINANCE_CONTRACTS,
    "binance isolated": _BINANCE_MARGIN,
    # The free and the locked part are stated for the margin account alone, which is one of three parts.
    "binance papi": _list(
        "",
        "asset",
        "totalWalletBalance",
        "umUnrealizedPNL",
        "cmUnrealizedPNL",
        figures=Figures(
            "totalWalletBalance",
            debt="crossMarginBorrowed+crossMarginInterest",
            adds_up=False,
        ),
    ),
    "binance funding": _list(
        "",
        "asset",
        "free",
        "locked",
        "freeze",
        "withdrawing",
        figures=Figures("", "free", "locked+freeze+withdrawing"),
    ),
    # witness: CCXT: binancecoinm.fetch_balance
    "binancecoinm": _BINANCE_CONTRACTS,
    # witness: CCXT: binanceus.fetch_balance
    "binanceus": _BINANCE_SPOT,
    # witness: CCXT: binanceusdm.fetch_balance
    "binanceusdm swap": _BINANCE_CONTRACTS,
    "binanceusdm future": _BINANCE_CONTRACTS,
    # witness: CCXT: bingx.parse_balance
    "bingx spot": _list("data.balances", "asset", "free", "locked", figures=_FREE_LOCKED, code=0),
    "bingx swap": _BINGX_CONTRACTS,
    "bingx inverse": _BINGX_CONTRACTS,
    "bingx standard": _list(
        "data",
        "asset",
        "balance",
        "availableBalance",
        figures=Figures("balance", "availableBalance"),
        code=0,
    ),
    "bingx funding": _list("data.assets", "asset", "free", "locked", figures=_FREE_LOCKED, code=0),
    # witness: CCXT: bit2c.parse_balance
    "bit2c": _flat(Figures("{}", "AVAILABLE_{}", "LOCKED_{}"), _ALL, upper=True),
    # witness: CCXT: bitbank.parse_balance
    "bitbank": _list(
        "data.assets",
        "asset",
        "free_amount",
        "locked_amount",
        "onhand_amount",
        figures=Figures("onhand_amount", "free_amount", "locked_amount"),
        success=1,
    ),
    # witness: CCXT: bitbns.parse_balance
    "bitbns": _flat(
        Figures("", "data.availableorder{}", "data.inorder{}"),
        _ALL,
        # The rupee is called money.
        aliases=(("INR", "Money"),),
    ),
    # witness: CCXT: bitfinex.fetch_balance
    "bitfinex spot": replace(_BITFINEX, taken=_in_wallet("exchange")),
    "bitfinex margin": replace(_BITFINEX, taken=_in_wallet("margin")),
    "bitfinex funding": replace(_BITFINEX, taken=_in_wallet("funding")),
    "bitfinex derivatives": replace(_BITFINEX, taken=_for_derivatives),
    # witness: CCXT: bitflyer.parse_balance
    "bitflyer": _list("", "currency_code", "amount", "available", figures=Figures("amount", "available")),
    # witness: CCXT: bitget.fetch_balance
    "bitget spot": _BITGET_SPOT,
    "bitget margin": (_BITGET_MARGIN, _BITGET_UNIFIED),
    # The isolated account lists the two assets of each pair.
    "bitget isolated": (replace(_BITGET_MARGIN, several=True, identity="symbol"), _BITGET_UNIFIED),
    "bitget swap": _BITGET_CONTRACTS,
    "bitget future": _BITGET_CONTRACTS,
    "bitget inverse": _BITGET_CONTRACTS,
    "bitget usdc_swap": _BITGET_CONTRACTS,
    "bitget funding": _list(
        "data",
        "coin",
        "available",
        "frozen",
        "balance",
        figures=Figures("balance", "available", "frozen"),
        code="00000",
    ),
    "bitget unified": _BITGET_UNIFIED,
    # "balance" is what orders may use.
    # witness: CCXT: bithumb.parse_balance
    "bithumb": _list("", "currency", "balance", "locked", figures=Figures("", "balance", "locked")),
    # witness: CCXT: bitopro.fetch_balance
    "bitopro": _list("data", "currency", "amount", "available", figures=Figures("amount", "available")),
    # witness: CCXT: bitrue.parse_balance
    "bitrue spot": _SPOT_LIKE_BINANCE,
    # witness: CCXT: bitrue.fetch_balance
    "bitrue swap": _BITRUE_CONTRACTS,
    "bitrue inverse": _BITRUE_CONTRACTS,
    # witness: CCXT: bitso.parse_balance
    "bitso": _list(
        "payload.balances",
        "currency",
        "available",
        "locked",
        "total",
        figures=Figures("total", "available", "locked"),
        success=True,
    ),
    # witness: CCXT: bitstamp.parse_balance
    "bitstamp": _list(
        "", "currency", "available", "reserved", "total", figures=Figures("total", "available", "reserved")
    ),
    # witness: CCXT: bitteam.parse_balance
    "bitteam": _object(
        "result",
        "free",
        "used",
        "total",
        figures=_ALL_THREE,
        others=("free", "used", "total"),
        never_empty=_ALL,
    ),
    # witness: CCXT: bittrade.parse_balance
    "bittrade": _HTX_SPOT,
    # witness: CCXT: bitvavo.parse_balance
    "bitvavo": _list("", "symbol", "available", "inOrder", figures=Figures("", "available", "inOrder")),
    # witness: CCXT: blockchaincom.fetch_balance
    "blockchaincom": _list("primary", "currency", "balance", "available", figures=Figures("balance", "available")),
    # witness: CCXT: blofin.parse_balance
    "blofin swap": _list(
        "data.details",
        "currency",
        "equity",
        "available|availableEquity",
        figures=Figures("equity", "available|availableEquity", "frozen"),
        code="0",
    ),
    "blofin funding": _BLOFIN_WALLET,
    "blofin spot": _BLOFIN_WALLET,
    "blofin earn": _BLOFIN_WALLET,
    "blofin copy_trading": _BLOFIN_WALLET,
    # witness: CCXT: btcbox.parse_balance
    "btcbox": _flat(Figures("", "{}_balance", "{}_lock")),
    # witness: CCXT: btcmarkets.parse_balance
    "btcmarkets": _list("", "assetName", "balance", "locked", figures=Figures("balance", "available", "locked")),
    # witness: CCXT: btcturk.parse_balance
    "btcturk": _list(
        "data",
        "asset",
        "balance",
        "free",
        "locked",
        figures=Figures("balance", "free", "locked"),
        success=True,
    ),
    # witness: CCXT: btse.fetch_balance
    "btse spot": _list(
        "data",
        "asset",
        "totalAmount",
        "availableAmount",
        figures=Figures("totalAmount", "availableAmount"),
        success=True,
        several=True,
    ),
    # witness: CCXT: btse.parse_balance
    "btse swap": _list(
        "*.assets",
        "currency",
        "balance",
        by_ccxt=_ELSEWHERE,
        several=True,
        empty=_WALLETS,
        wallet_needed=True,
    ),
    # witness: CCXT: bybit.parse_balance
    "bybit unified": _BYBIT,
    "bybit swap": _BYBIT,
    "bybit future": _BYBIT,
    "bybit inverse": _BYBIT,
    "bybit spot": _BYBIT,
    "bybit funding": _BYBIT_FUNDING,
    # witness: CCXT: bybiteu.parse_balance
    "bybiteu unified": _BYBIT,
    "bybiteu spot": _BYBIT,
    "bybiteu funding": _BYBIT_FUNDING,
    # witness: CCXT: bybitid.parse_balance
    "bybitid unified": _BYBIT,
    "bybitid swap": _BYBIT,
    "bybitid future": _BYBIT,
    "bybitid inverse": _BYBIT,
    "bybitid spot": _BYBIT,
    "bybitid funding": _BYBIT_FUNDING,
    # witness: CCXT: bydfi.fetch_balance
    "bydfi": _list(
        "data",
        "asset",
        "total|balance",
        "available|availableBalance",
        figures=Figures("total|balance", "available|availableBalance", "frozen+positionMargin"),
        code=200,
    ),
    # witness: CCXT: cex.fetch_balance
    "cex": _object("data", "balance", figures=Figures("balance", "", "balanceOnHold"), ok="ok"),
    # Vaults and portfolios of perpetuals are accounts of other types, and are shown beside the wallets.
    # witness: CCXT: coinbase.fetch_balance
    "coinbase spot": replace(_COINBASE_ACCOUNTS, taken=_of_kind("type", _COINBASE_WALLETS)),
    # witness: CCXT: coinbase.parse_custom_balance
    "coinbase swap": _COINBASE_CONTRACTS,
    "coinbase future": _COINBASE_CONTRACTS,
    # witness: CCXT: coinbaseexchange.parse_balance
    "coinbaseexchange": _list(
        "", "currency", "available", "hold", "balance", figures=Figures("balance", "available", "hold")
    ),
    # witness: CCXT: coincheck.parse_balance
    "coincheck": _flat(Figures("", "{}", "{}_reserved", "{}_debt")),
    # witness: CCXT: coinmate.parse_balance
    "coinmate": _object(
        "data",
        "available",
        "reserved",
        "balance",
        figures=Figures("balance", "available", "reserved"),
        never_empty=_ALL,
    ),
    # witness: CCXT: coinone.parse_balance
    "coinone": _object(
        "",
        "avail",
        "balance",
        figures=Figures("balance", "avail"),
        others=("errorCode", "result", "normalWallets", "errorMsg"),
        never_empty=_ALL,
    ),
    # witness: CCXT: coinsph.parse_balance
    "coinsph": _SPOT_LIKE_BINANCE,
    # A key that may only read gets a list of objects, each with assets by name.
    # witness: CCXT: coinspot.parse_balance
    "coinspot": (
        replace(_object("balances.*", "balance", figures=Figures("balance"), status="ok"), empty=_WITHIN),
        _object("balance", "", figures=Figures("."), status="ok"),
    ),
    # One object for the account, its assets under "position_balances".
    # witness: CCXT: cryptocom.parse_balance
    "cryptocom": _list(
        "result.data.only.position_balances",
        "instrument_name",
        "quantity",
        "reserved_qty",
        figures=Figures("quantity", "", "reserved_qty"),
        code=0,
    ),
    # witness: CCXT: cryptomus.parse_balance
    "cryptomus": _list("result", "ticker", "available", "held", figures=Figures("", "available", "held")),
    # witness: CCXT: deepcoin.parse_balance
    "deepcoin spot": _list(
        "data",
        "ccy",
        "bal",
        "frozenBal",
        "availBal",
        figures=Figures("bal", "availBal", "frozenBal"),
        code="0",
    ),
    "deepcoin swap": _list(
        "data",
        "ccy",
        "bal",
        "frozenBal",
        "availBal",
        figures=Figures("bal", "availBal", "frozenBal"),
        code="0",
    ),
    # witness: CCXT: delta.parse_balance
    "delta": _list(
        "result",
        "asset_id",
        "balance",
        "available_balance",
        figures=Figures("balance", "available_balance", "blocked_margin"),
        numbered="currenciesByNumericId",
        success=True,
        named=False,
    ),
    # witness: CCXT: deribit.parse_balance
    "deribit": _list(
        "result.summaries",
        "currency",
        "available_funds",
        "equity",
        "maintenance_margin",
        figures=Figures("equity", "available_funds", "initial_margin|maintenance_margin", adds_up=False),
    ),
    # witness: CCXT: derive.parse_balance
    "derive": _list(
        "result.*.collaterals",
        "currency",
        "amount",
        by_ccxt=_MARGINS,
        several=True,
        empty=_WALLETS,
        wallet_needed=True,
    ),
    # witness: CCXT: digifinex.fetch_balance
    "digifinex spot": _DIGIFINEX_SPOT,
    "digifinex margin": _DIGIFINEX_SPOT,
    "digifinex swap": _list(
        "data",
        "currency",
        "avail_balance",
        "equity",
        figures=Figures("equity", "avail_balance", "margin+frozen_margin+frozen_money"),
        code=0,
    ),
    # witness: CCXT: dydx.fetch_balance
    "dydx": _one("subaccount", "freeCollateral", asset="=USDC", figures=Figures("equity", "freeCollateral")),
    # witness: CCXT: extended.fetch_balance
    "extended": _list(
        "data",
        "asset",
        "balance",
        "availableToWithdraw",
        figures=Figures("balance", "availableToWithdraw"),
        status="OK",
    ),
    # witness: CCXT: fmfwio.parse_balance
    "fmfwio spot": _HITBTC,
    "fmfwio funding": _HITBTC,
    # witness: CCXT: foxbit.fetch_balance
    "foxbit": _list(
        "data",
        "currency_symbol",
        "balance",
        "balance_locked",
        "balance_available",
        figures=Figures("balance", "balance_available", "balance_locked"),
    ),
    # witness: CCXT: gate.fetch_balance
    "gate spot": _GATE_SPOT,
    "gate unified": _GATE_SPOT,
    # The isolated account lists pairs, the cross one is an object of assets.
    "gate margin": (
        _object(
            "balances",
            "available",
            "freeze",
            figures=Figures("equity", "available", "freeze", "total_liab|borrowed+interest"),
            locked=False,
        ),
        _list(
            "",
            "currency",
            "available",
            "locked",
            parts=("base", "quote"),
            several=True,
            figures=Figures("", "available", "locked", "borrowed+interest"),
        ),
    ),
    "gate swap": _GATE_CONTRACTS,
    "gate future": _GATE_CONTRACTS,
    "gate inverse": _GATE_CONTRACTS,
    "gate option": _GATE_CONTRACTS,
    "gate funding": _GATE_FUNDING,
    # witness: CCXT: gateeu.fetch_balance
    "gateeu spot": _GATE_SPOT,
    "gateeu unified": _GATE_SPOT,
    "gateeu funding": _GATE_FUNDING,
    # witness: CCXT: gemini.parse_balance
    "gemini": _list("", "currency", "amount", "available", figures=Figures("amount", "available")),
    # witness: CCXT: hashkey.parse_balance
    "hashkey spot": _list("balances", "asset", "free", "locked", "total", figures=Figures("total", "free", "locked")),
    # witness: CCXT: hashkey.fetch_balance
    "hashkey swap": _list(
        "",
        "asset",
        "balance",
        "positionMargin",
        "orderMargin",
        figures=Figures("balance", "availableBalance", "positionMargin+orderMargin"),
        beyond=True,
    ),
    # witness: CCXT: hibachi.parse_balance
    "hibachi": _one("", "balance", "maximalWithdraw", asset="=USDT", figures=Figures("balance", "maximalWithdraw")),
    # witness: CCXT: hitbtc.parse_balance
    "hitbtc spot": _HITBTC,
    "hitbtc funding": _HITBTC,
    "hitbtc swap": _HITBTC,
    # witness: CCXT: hollaex.parse_balance
    "hollaex": _flat(Figures("{}_balance", "{}_available"), _ALL),
    # witness: CCXT: htx.fetch_balance
    "htx spot": _HTX_SPOT,
    # The isolated account lists pairs, each with its assets.
    "htx margin": (_HTX_SPOT, replace(_HTX_ISOLATED, wallet_needed=True)),
    "htx isolated": _HTX_ISOLATED,
    "htx swap": _HTX_LINEAR,
    "htx future": _HTX_LINEAR,
    "htx inverse": _HTX_INVERSE,
    "htx delivery": _HTX_INVERSE,
    # witness: CCXT: independentreserve.parse_balance
    "independentreserve": _list(
        "",
        "CurrencyCode",
        "AvailableBalance",
        "TotalBalance",
        figures=Figures("TotalBalance", "AvailableBalance"),
    ),
    # witness: CCXT: indodax.parse_balance
    "indodax": _object(
        "return.balance", "", fields=Figures("", "return.balance.{}", "return.balance_hold.{}"), never_empty=_ALL
    ),
    # An account that never held anything has an empty object as its result. A credit line may be traded too.
    # witness: vendor: https://docs.kraken.com/api-reference/account-data/get-extended-balance.md
    "kraken": _object(
        "result",
        "balance",
        "hold_trade",
        figures=Figures("balance", "balance+credit-credit_used-hold_trade", "hold_trade", "credit_used"),
        error=[],
    ),
    # witness: CCXT: krakenfutures.parse_balance
    "krakenfutures flex": _object(
        "accounts.flex.currencies",
        "quantity",
        "available",
        figures=Figures("quantity", "available"),
        result="success",
    ),
    # Nothing in the cash account can be in use.
    # witness: CCXT: krakenfutures.fetch_balance
    "krakenfutures cash": _object("accounts.cash.balances", "", figures=Figures(".", "."), result="success"),
    # witness: CCXT: kucoin.fetch_balance
    "kucoin spot": _KUCOIN_SPOT,
    "kucoin funding": _KUCOIN_SPOT,
    # witness: CCXT: kucoin.fetch_uta_balance
    "kucoin unified": _KUCOIN_UNIFIED,
    # witness: CCXT: kucoin.fetch_balance
    "kucoin margin": (
        _KUCOIN_UNIFIED,
        _list(
            "data.accounts",
            "currency",
            "totalBalance",
            "availableBalance",
            "holdBalance",
            figures=Figures("totalBalance", "availableBalance", "holdBalance", "liability+interest"),
            code="200000",
        ),
    ),
    # The isolated account lists pairs.
    "kucoin isolated": (
        _KUCOIN_UNIFIED,
        _list(
            "data.assets",
            "currency",
            "available",
            "hold",
            parts=("baseAsset", "quoteAsset"),
            several=True,
            figures=Figures("total", "available", "hold", "liability+interest"),
            code="200000",
        ),
    ),
    "kucoin swap": _KUCOIN_CONTRACTS,
    "kucoin inverse": _KUCOIN_CONTRACTS,
    "kucoin future": _KUCOIN_CONTRACTS,
    # witness: CCXT: kucoinfutures.fetch_balance
    "kucoinfutures": _KUCOIN_CONTRACTS,
    # witness: CCXT: latoken.fetch_balance
    "latoken spot": replace(_LATOKEN, taken=_of_kind("type", (None, "ACCOUNT_TYPE_SPOT"), ("ACCOUNT_TYPE_WALLET",))),
    "latoken funding": replace(_LATOKEN, taken=_of_kind("type", (None, "ACCOUNT_TYPE_WALLET"), ("ACCOUNT_TYPE_SPOT",))),
    # witness: CCXT: lbank.parse_balance
    "lbank": _list("data.balances", "asset", "free", "locked", figures=_FREE_LOCKED, result="true"),
    # witness: CCXT: lighter.fetch_balance
    "lighter spot": _list(
        "accounts.*.assets",
        "symbol",
        "balance",
        "locked_balance",
        figures=Figures("balance", "", "locked_balance"),
        several=True,
        empty=_WALLETS,
        wallet_needed=True,
        code=200,
    ),
    "lighter swap": _list(
        "accounts",
        "=USDC",
        "collateral",
        "available_balance",
        figures=Figures("collateral", "available_balance"),
        several=True,
        identity="index",
        never_empty=_ONE,
    ),
    # witness: CCXT: luno.parse_balance
    "luno": _list(
        "balance",
        "asset",
        "balance",
        "reserved",
        "unconfirmed",
        figures=Figures("balance", "", "reserved"),
        several=True,
    ),
    # witness: CCXT: mercado.parse_balance
    "mercado": _object(
        "response_data.balance", "available", "total", figures=Figures("total", "available"), never_empty=_ALL
    ),
    # witness: CCXT: mexc.fetch_balance
    "mexc spot": replace(_SPOT_LIKE_BINANCE, beside=({"canTrade": True},)),
    "mexc swap": _list(
        "data",
        "currency",
        "availableBalance",
        "frozenBalance",
        figures=Figures("equity", "availableBalance", "frozenBalance"),
        success=True,
    ),
    # witness: CCXT: modetrade.fetch_balance
    "modetrade": _ORDERLY,
    # witness: CCXT: mudrex.parse_balance
    "mudrex swap": _MUDREX,
    "mudrex spot": _MUDREX,
    # witness: CCXT: myokx.fetch_balance
    "myokx trading": _OKX,
    "myokx funding": _OKX_FUNDING,
    # Assets are numbers, whose names CCXT looks up.
    # witness: CCXT: nado.fetch_balance
    "nado": _list(
        "data.spot_balances",
        "product_id",
        "balance.amount",
        by_ccxt=_SCALED,
        named=False,
        empty="",
        never_empty=_ALL,
        status="success",
    ),
    # witness: CCXT: ndax.parse_balance
    "ndax": _list("", "ProductId", "Amount", "Hold", figures=Figures("Amount", "", "Hold")),
    # witness: CCXT: okx.fetch_balance
    "okx trading": _OKX,
    "okx funding": _OKX_FUNDING,
    # witness: CCXT: okxus.fetch_balance
    "okxus trading": _OKX,
    "okxus funding": _OKX_FUNDING,
    # witness: CCXT: onetrading.parse_balance
    "onetrading": _list("balances", "currency_code", "available", "locked", figures=Figures("", "available", "locked")),
    # witness: CCXT: p2b.parse_balance
    "p2b": _object("result", "available", "freeze", figures=Figures("", "available", "freeze"), success=True),
    # The cash is beside the list, in USDC, which CCXT would read from there alone.
    # witness: CCXT: pacifica.fetch_balance
    "pacifica": _list(
        "data.spot_balances",
        "symbol",
        "amount",
        "available_to_withdraw",
        figures=Figures("amount", "available_to_withdraw"),
        never_empty=_ONE,
        spelled=lambda symbol: "" if symbol == "USDC" else symbol,
        beside_rows=("data.balance", "data.total_margin_used"),
    ),
    # witness: CCXT: paymium.parse_balance
    "paymium": _flat(Figures("", "balance_{}", "locked_{}")),
    # witness: CCXT: phemex.fetch_balance
    "phemex spot": _list(
        "data",
        "currency",
        "balanceEv",
        "lockedTradingBalanceEv",
        "lockedWithdrawEv",
        by_ccxt=_SCALED,
        code=0,
    ),
    "phemex swap": _PHEMEX_CONTRACTS,
    "phemex inverse": _PHEMEX_CONTRACTS,
    # A list of accounts, each with its assets.
    # witness: CCXT: poloniex.parse_balance
    "poloniex spot": _list(
        "*.balances",
        "currency",
        "available",
        "hold",
        figures=Figures("", "available", "hold"),
        empty=_WALLETS,
        wallet_needed=True,
    ),
    # witness: CCXT: poloniex.fetch_balance
    "poloniex swap": _list("data.details", "ccy", "avail", "im", figures=Figures("eq", "avail", "im"), code="200"),
    # witness: CCXT: revolutx.fetch_balance
    "revolutx": (
        _list(
            "",
            "currency",
            "available",
            "reserved",
            "total",
            figures=Figures("total", "available", "reserved"),
        ),
        _list(
            "data",
            "currency",
            "available",
            "reserved",
            "total",
            figures=Figures("total", "available", "reserved"),
        ),
    ),
    # witness: CCXT: tokocrypto.fetch_balance
    "tokocrypto": _list("data.accountAssets", "asset", "free", "locked", figures=_FREE_LOCKED, code=0),
    # witness: CCXT: toobit.parse_balance
    "toobit spot": _list("balances", "asset", "free", "locked", "total", figures=Figures("total", "free", "locked")),
    # witness: CCXT: toobit.fetch_balance
    "toobit swap": _list(
        "",
        "asset",
        "balance",
        "availableBalance",
        figures=Figures("balance", "availableBalance", "positionMargin+orderMargin"),
    ),
    # "balance" is what orders may use.
    # witness: CCXT: upbit.parse_balance
    "upbit": _list("", "currency", "balance", "locked", figures=Figures("", "balance", "locked")),
    # witness: CCXT: weex.parse_balance
    "weex spot": _SPOT_LIKE_BINANCE,
    # The test host's asset has another name than the one that CCXT gives it.
    "weex swap": _list(
        "",
        "asset",
        "balance",
        "availableBalance",
        "frozen",
        figures=Figures("balance", "availableBalance", "frozen"),
        beyond=True,
    ),
    # witness: CCXT: whitebit.parse_balance
    "whitebit spot": _object(
        "", "available", "freeze", figures=Figures("", "available", "freeze"), never_empty=_UNTOLD
    ),
    "whitebit funding": _object(
        "", "main_balance", figures=Figures("main_balance", "main_balance"), never_empty=_UNTOLD
    ),
    "whitebit swap": _object("", "", figures=Figures("."), never_empty=_UNTOLD),
    # witness: CCXT: woo.fetch_balance
    "woo": _list(
        "data.holding",
        "token",
        "holding",
        "availableBalance",
        figures=Figures("holding", "availableBalance", "frozen"),
        success=True,
    ),
    # witness: CCXT: woofipro.fetch_balance
    "woofipro": _ORDERLY,
    # witness: CCXT: xt.fetch_balance
    "xt spot": _list(
        "result.assets",
        "currency",
        "availableAmount",
        "frozenAmount",
        "totalAmount",
        figures=Figures("totalAmount", "availableAmount", "frozenAmount"),
        rc=0,
    ),
    # witness: CCXT: xt.parse_balance
    "xt swap": _XT_CONTRACTS,
    "xt inverse": _XT_CONTRACTS,
    # witness: CCXT: zaif.parse_balance
    "zaif": _object(
        "return.funds",
        "",
        fields=Figures("return.deposit.{}|return.funds.{}", "return.funds.{}"),
        never_empty=_ALL,
    ),
    # witness: CCXT: zebpay.parse_balance
    "zebpay spot": _list("data", "currency", "free", "used", "total", figures=_ALL_THREE),
    "zebpay swap": _list("data", "currency", "free", "used", "total", figures=_ALL_THREE),
}


@cache
def shapes(exchange_id: str, account_type: str) -> tuple[Rows, ...]:
    """The shapes of answers for accounts of this type; an empty tuple if they are not known."""
    known = _SHAPES.get(f"{exchange_id} {account_type}") or _SHAPES.get(exchange_id) or ()
    return tuple(
        replace(
            shape,
            by_field=not shape.literal and all(is_field(path) for path in (shape.asset, *shape.amounts)),
            amount_paths=_amount_paths(shape),
        )
        for shape in (known if isinstance(known, tuple) else (known,))
    )


def _amount_paths(shape: Rows) -> tuple[str, ...]:
    """Every field of a row that may hold an amount."""
    paths = [path for amount in shape.amounts for path in amount.split("|")]
    if shape.figures is not None:
        paths.extend(path for formula in shape.figures.formulas() for path in members(formula))
    return tuple(path for path in dict.fromkeys(paths) if path not in ("", "."))


def is_field(path: str) -> bool:
    """Whether a path is the name of a single field."""
    return bool(path) and "." not in path and "|" not in path
