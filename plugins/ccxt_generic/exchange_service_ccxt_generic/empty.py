"""What an account's answer looks like, for each exchange: where its rows lie, and what proves that there are none.

CCXT reads a maintenance page, `[]`, `{}` and an error in an unknown shape alike as a balance without rows, and leaves
out a row that it cannot read without a word. So the venue's raw answer is held against the shape from which CCXT's own
code for this exchange reads. Each row that holds something must be in CCXT's result, and an answer without rows is an
empty account only where the table says why it is one. An exchange that is not here is never believed to be empty.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from exchange_service.plugin_api import VenueMalformed, parse_amount
from exchange_service_ccxt_generic.exact import PLAIN_NUMBER

# Why an answer without rows is an empty account.
_BARE = "The whole answer is the list of the account's assets, and an account without assets has none in it."
_WITHIN = "The list of assets is there, beside what the venue says in a good answer, and has no entry."
_BY_NAME = "The object of assets is there, beside what the venue says in a good answer, and has no field."
_WALLETS = "Each wallet is there with its list of assets, and none of these has an entry."
_FILTERED = "The list is there, and each of its entries is of another wallet or was never used, which CCXT leaves out."

# Why an answer without rows is never an empty account.
_ONE = "The account is one object with its figures, and so has a row always."
_ALL = "The venue lists every asset, also with zeros, so that an answer without rows shows no account."
_FLAT = "Each asset is a field of its own among others, and without one nothing shows that this is an account at all."
_UNTOLD = "An empty object would be the answer, and gateways send the same."


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of an answer lie and what one must have.

    Paths are dotted; a number is a place in a list, "only" the one entry of a list, `*` stands for all entries, and ""
    is the value itself. Where names are joined by "|", the first counts that is there.
    """

    # The kind of what holds the rows: "list", "object" (of rows by asset) or "one", which is itself the only row.
    kind: str
    path: str
    # The field with the venue's name of the asset, empty where the row does not name it.
    asset: str = ""
    # Fields of a row that must hold amounts.
    amounts: tuple[str, ...] = ()
    # What stands beside the rows of an empty account, such as the code for success: any of these sets of fields.
    beside: tuple[Mapping[str, Any], ...] = ({},)
    # Why an answer without rows is an empty account, or why it never is: one of the two.
    empty: str = ""
    never_empty: str = ""
    # Whether several rows may be of one asset, as CCXT puts them together.
    several: bool = False
    # The field by which rows of one asset differ, for example the free from the frozen part.
    apart: str = ""
    # Whether CCXT names assets by what the row calls them, so that each row can be looked up in its result.
    named: bool = True
    # Which rows CCXT takes; the others are of another wallet.
    taken: Callable[[Any], bool] | None = None
    # Names in an object of rows that are no assets.
    others: tuple[str, ...] = ()
    # Figures outside the rows that CCXT makes a row of as well.
    figures: tuple[str, ...] = ()
    # Fields that the answer before the last must have, of which CCXT also makes a row.
    before: tuple[str, ...] = ()
    # What the last of several pages says; without it some pages are missing.
    last_page: Mapping[str, Any] | None = None
    # Whether there must be a wallet at least, where the path goes through a list of wallets.
    wallet_needed: bool = False
    # Whether a row's asset and amounts are each the value of one field of it; `shapes` finds out.
    by_field: bool = False

    @property
    def looked_at(self) -> bool:
        """Whether rows can be looked at one by one."""
        return bool(self.kind)


def _list(path: str, asset: str, *amounts: str, empty: str = "", **options: Any) -> Rows:
    """A list of rows; `empty` by default says why it may be without any."""
    if not empty and not options.get("never_empty"):
        empty = _WITHIN if path else _BARE
    names = {name for name in options if name in Rows.__slots__}
    beside = {name: value for name, value in options.items() if name not in names}
    given = {name: options[name] for name in names}
    return Rows("list", path, asset, amounts, **{"beside": (beside,), "empty": empty, **given})


def _object(path: str, *amounts: str, **options: Any) -> Rows:
    """An object of rows by asset, which proves an empty account unless it is `never_empty`."""
    rows = _list(path, "", *amounts, empty="" if options.get("never_empty") else _BY_NAME, **options)
    return replace(rows, kind="object")


def _one(path: str, *amounts: str, asset: str = "") -> Rows:
    """An account that is one object with its figures."""
    return Rows("one", path, asset, amounts, never_empty=_ONE, named=bool(asset))


def _flat(reason: str = _FLAT) -> Rows:
    """An answer whose rows have no place of their own."""
    return Rows("", "", never_empty=reason)


def _in_wallet(*types: str) -> Callable[[Any], bool]:
    """Bitfinex: whether a row, which begins with its wallet's type, is of one of these."""
    return lambda row: not _is_wallet(row) or row[0] in types


def _is_wallet(row: Any) -> bool:
    """Bitfinex: whether a row is long enough to be one."""
    return isinstance(row, list) and len(row) > 4


def _for_derivatives(row: Any) -> bool:
    """Bitfinex: of the margin wallet only the assets whose names end so."""
    return not _is_wallet(row) or (row[0] == "margin" and str(row[1]).lower().endswith("f0"))


def _used_once(row: Any) -> bool:
    """Binance's contract accounts list assets that were never used, whose figures are none."""
    return str(_at(row, "updateTime")) != "0"


def _names_an_asset(row: Any) -> bool:
    """BingX: an account for contracts that holds nothing may have a row without an asset and with zeros."""
    figures = [_figure(_at(row, name)) for name in ("balance", "equity", "availableMargin")]
    return bool(_at(row, "asset")) or any(figure is None or figure for figure in figures)


_SPOT_LIKE_BINANCE = _list("balances", "asset", "free", "locked")
# Spot says what kind of account it is beside its assets.
_BINANCE_SPOT = replace(_SPOT_LIKE_BINANCE, beside=({"accountType": "SPOT"}, {"canTrade": True}))
# The cross account lists assets, the isolated one pairs.
_BINANCE_MARGIN = (
    _list("userAssets", "asset", "free", "locked", "borrowed", "interest", tradeEnabled=True),
    _list(
        "assets", "symbol", "baseAsset.free", "baseAsset.locked", "quoteAsset.free", "quoteAsset.locked", named=False
    ),
)
_BINANCE_CONTRACTS = _list(
    "assets", "asset", "availableBalance", "initialMargin", "marginBalance", taken=_used_once, empty=_FILTERED
)
_BINGX_CONTRACTS = _list(
    "data",
    "asset",
    "availableMargin|availableBalance",
    "usedMargin",
    code=0,
    taken=_names_an_asset,
    empty=_FILTERED,
)
_BITFINEX = _list("", "1", "2", empty=_FILTERED)
# The classic account lists its assets in "data", the unified one below it.
_BITGET_SPOT = (
    _list("data", "coin", "available", "frozen", "locked", code="00000"),
    _list("data.assets", "coin", "available", "equity|balance", code="00000"),
)
_BITGET_UNIFIED = _BITGET_SPOT[1]
_BITGET_CONTRACTS = (_list("data", "marginCoin", "maxTransferOut", "accountEquity", code="00000"), _BITGET_UNIFIED)
_BITRUE_CONTRACTS = _list("data.account", "marginCoin", "accountNormal", "accountLock", code="0")
_BLOFIN_WALLET = _list("data", "currency", "balance", "available", "frozen", code="0")
# Each account's coins lie in the account; the funding wallet has them under "balance".
_BYBIT = _list(
    "result.list.*.coin", "coin", "walletBalance", "availableToWithdraw|free|locked", retCode=0, empty=_WALLETS
)
_BYBIT_FUNDING = _list("result.balance", "coin", "walletBalance", "transferBalance", retCode=0)
_COINBASE_CONTRACTS = _one("balance_summary", "total_usd_balance.value", "futures_buying_power.value")
_DIGIFINEX_SPOT = _list("list", "currency", "free", "total", code=0)
# The unified account has an object of assets, every other a list.
_GATE_SPOT = (
    _object("balances", "available", "freeze", locked=False),
    _list("", "currency", "available", "freeze|locked"),
)
_GATE_CONTRACTS = _one("", "total", "available", asset="currency")
_GATE_FUNDING = _list("", "currency", "available", "locked")
_HITBTC = _list("", "currency", "available", "reserved")
_HTX_LINEAR = _list("data.details", "currency", "available_margin", "equity", code=200)
_HTX_INVERSE = _list("data", "symbol", "margin_available", "margin_frozen", status="ok")
# The unified account lists accounts, each with its currencies.
_KUCOIN_UNIFIED = _list("data.accounts.*.currencies", "currency", "available", "hold", code="200000", empty=_WALLETS)
_KUCOIN_SPOT = (_list("data", "currency", "balance", "available", "holds", code="200000"), _KUCOIN_UNIFIED)
_KUCOIN_CONTRACTS = (_KUCOIN_UNIFIED, _one("data", "accountEquity", "availableBalance", asset="currency"))
_LATOKEN = _list("", "currency", "available", "blocked", empty=_FILTERED)
# A trading account is always one object in "data", its assets under "details".
_OKX = _list("data.only.details", "ccy", "eq", "availEq|availBal|frozenBal", code="0")
_OKX_FUNDING = _list("data", "ccy", "bal", "availBal", "frozenBal", code="0")
_ORDERLY = _list("data.holding", "token", "holding", "frozen", success=True)
_MUDREX = _one("data", "balance|total", "locked_amount|withdrawable")

# By exchange, or by exchange and account type where an exchange has several. More than one shape: the first that fits.
_SHAPES: Mapping[str, Rows | tuple[Rows, ...]] = {
    # Shares are not read; the cash stands in the answer before.
    "alpaca": _list(
        "",
        "symbol",
        "qty",
        "qty_available",
        never_empty=_ONE,
        named=False,
        taken=lambda row: _at(row, "asset_class") != "us_equity",
        before=("currency", "cash"),
    ),
    "apex": _one("data", "availableBalance", "totalEquityValue"),
    "backpack": _object("", "available", "locked", "staked", never_empty=_UNTOLD),
    "bequant spot": _HITBTC,
    "bequant funding": _HITBTC,
    "bigone spot": _list("data", "asset_symbol", "balance", "locked_balance", code=0),
    "bigone funding": _list("data", "asset_symbol", "balance", "locked_balance", code=0),
    "binance spot": _BINANCE_SPOT,
    "binance margin": _BINANCE_MARGIN,
    "binance future": _BINANCE_CONTRACTS,
    "binance swap": _BINANCE_CONTRACTS,
    "binance delivery": _BINANCE_CONTRACTS,
    "binance papi": _list("", "asset", "totalWalletBalance", "umUnrealizedPNL", "cmUnrealizedPNL"),
    "binance funding": _list("", "asset", "free", "locked", "freeze", "withdrawing"),
    "binancecoinm": _BINANCE_CONTRACTS,
    "binanceus": _BINANCE_SPOT,
    "binanceusdm swap": _BINANCE_CONTRACTS,
    "binanceusdm future": _BINANCE_CONTRACTS,
    "bingx spot": _list("data.balances", "asset", "free", "locked", code=0),
    "bingx swap": _BINGX_CONTRACTS,
    "bingx inverse": _BINGX_CONTRACTS,
    "bingx funding": _list("data.assets", "asset", "free", "locked", code=0),
    "bit2c": _flat(_ALL),
    "bitbank": _list("data.assets", "asset", "free_amount", "locked_amount", "onhand_amount", success=1),
    "bitbns": _flat(_ALL),
    "bitfinex spot": replace(_BITFINEX, taken=_in_wallet("exchange")),
    "bitfinex margin": replace(_BITFINEX, taken=_in_wallet("margin")),
    "bitfinex funding": replace(_BITFINEX, taken=_in_wallet("funding")),
    "bitfinex derivatives": replace(_BITFINEX, taken=_for_derivatives),
    "bitflyer": _list("", "currency_code", "amount", "available"),
    "bitget spot": _BITGET_SPOT,
    "bitget margin": (_list("data", "coin", "totalAmount", "borrow", "interest", code="00000"), _BITGET_UNIFIED),
    "bitget swap": _BITGET_CONTRACTS,
    "bitget future": _BITGET_CONTRACTS,
    "bitget inverse": _BITGET_CONTRACTS,
    "bitget funding": _list("data", "coin", "available", "frozen", "balance", code="00000"),
    "bitget unified": _BITGET_UNIFIED,
    "bithumb": _list("", "currency", "balance", "locked"),
    "bitopro": _list("data", "currency", "amount", "available"),
    "bitrue spot": _SPOT_LIKE_BINANCE,
    "bitrue swap": _BITRUE_CONTRACTS,
    "bitrue inverse": _BITRUE_CONTRACTS,
    "bitso": _list("payload.balances", "currency", "available", "locked", "total", success=True),
    "bitstamp": _list("", "currency", "available", "reserved", "total"),
    "bitteam": _object("result", "free", "used", "total", others=("free", "used", "total"), never_empty=_ALL),
    "bittrade": _list("data.list", "currency", "balance", status="ok", apart="type"),
    "bitvavo": _list("", "symbol", "available", "inOrder"),
    "blockchaincom": _list("primary", "currency", "balance", "available"),
    "blofin swap": _list("data.details", "currency", "equity", "available|availableEquity", code="0"),
    "blofin funding": _BLOFIN_WALLET,
    "blofin spot": _BLOFIN_WALLET,
    "blofin earn": _BLOFIN_WALLET,
    "blofin copy_trading": _BLOFIN_WALLET,
    "btcbox": _flat(),
    "btcmarkets": _list("", "assetName", "balance", "locked"),
    "btcturk": _list("data", "asset", "balance", "free", "locked", success=True),
    "btse spot": _list("data", "asset", "totalAmount", "availableAmount", success=True, several=True),
    "btse swap": _list("*.assets", "currency", "balance", several=True, empty=_WALLETS, wallet_needed=True),
    "bybit unified": _BYBIT,
    "bybit swap": _BYBIT,
    "bybit future": _BYBIT,
    "bybit spot": _BYBIT,
    "bybit funding": _BYBIT_FUNDING,
    "bybiteu unified": _BYBIT,
    "bybiteu spot": _BYBIT,
    "bybiteu funding": _BYBIT_FUNDING,
    "bybitid unified": _BYBIT,
    "bybitid swap": _BYBIT,
    "bybitid future": _BYBIT,
    "bybitid spot": _BYBIT,
    "bybitid funding": _BYBIT_FUNDING,
    "bydfi": _list("data", "asset", "total|balance", "available|availableBalance", code=200),
    "cex": _object("data", "balance", ok="ok"),
    "coinbase spot": _list(
        "accounts",
        "available_balance.currency",
        "available_balance.value",
        "hold.value",
        several=True,
        has_next=False,
        last_page={"has_next": False},
        # Vaults and portfolios are accounts of other types.
        taken=lambda row: _at(row, "type") in (None, "", "ACCOUNT_TYPE_CRYPTO", "ACCOUNT_TYPE_FIAT"),
    ),
    "coinbase swap": _COINBASE_CONTRACTS,
    "coinbase future": _COINBASE_CONTRACTS,
    "coinbaseexchange": _list("", "currency", "available", "hold", "balance"),
    "coincheck": _flat(),
    "coinmate": _object("data", "available", "reserved", "balance", never_empty=_ALL),
    "coinone": _object(
        "", "avail", "balance", others=("errorCode", "result", "normalWallets", "errorMsg"), never_empty=_ALL
    ),
    "coinsph": _SPOT_LIKE_BINANCE,
    # A key that may only read gets a list of objects, each with assets by name.
    "coinspot": (
        replace(_object("balances.*", "balance", status="ok"), empty=_WITHIN),
        _object("balance", "", status="ok"),
    ),
    # One object for the account, its assets under "position_balances".
    "cryptocom": _list("result.data.only.position_balances", "instrument_name", "quantity", "reserved_qty", code=0),
    "cryptomus": _list("result", "ticker", "available", "held"),
    "deepcoin spot": _list("data", "ccy", "bal", "frozenBal", "availBal", code="0"),
    "deepcoin swap": _list("data", "ccy", "bal", "frozenBal", "availBal", code="0"),
    "delta": _list("result", "asset_id", "balance", "available_balance", success=True, named=False),
    "deribit": _list("result.summaries", "currency", "available_funds", "equity", "maintenance_margin"),
    "derive": _list("result.*.collaterals", "currency", "amount", several=True, empty=_WALLETS, wallet_needed=True),
    "digifinex spot": _DIGIFINEX_SPOT,
    "digifinex margin": _DIGIFINEX_SPOT,
    "digifinex swap": _list("data", "currency", "avail_balance", "equity", code=0),
    "dydx": _one("subaccount", "freeCollateral"),
    "extended": _list("data", "asset", "balance", "availableToWithdraw", status="OK"),
    "fmfwio spot": _HITBTC,
    "fmfwio funding": _HITBTC,
    "foxbit": _list("data", "currency_symbol", "balance", "balance_locked", "balance_available"),
    "gate spot": _GATE_SPOT,
    "gate unified": _GATE_SPOT,
    # The isolated account lists pairs, the cross one is an object of assets.
    "gate margin": (
        _object("balances", "available", "freeze", locked=False),
        _list("", "currency_pair", "base.available", "base.locked", "quote.available", "quote.locked", named=False),
    ),
    "gate swap": _GATE_CONTRACTS,
    "gate future": _GATE_CONTRACTS,
    "gate option": _GATE_CONTRACTS,
    "gate funding": _GATE_FUNDING,
    "gateeu spot": _GATE_SPOT,
    "gateeu unified": _GATE_SPOT,
    "gateeu funding": _GATE_FUNDING,
    "gemini": _list("", "currency", "amount", "available"),
    "hashkey spot": _list("balances", "asset", "free", "locked", "total"),
    "hashkey swap": _list("", "asset", "balance", "positionMargin", "orderMargin"),
    "hibachi": _one("", "balance", "maximalWithdraw"),
    "hitbtc spot": _HITBTC,
    "hitbtc funding": _HITBTC,
    "hitbtc swap": _HITBTC,
    "hollaex": _flat(_ALL),
    "htx spot": _list("data.list", "currency", "balance", status="ok", apart="type"),
    # The isolated account lists pairs, each with its assets.
    "htx margin": (
        _list("data.list", "currency", "balance", status="ok", apart="type"),
        _list("data.*.list", "currency", "balance", several=True, empty=_WALLETS, wallet_needed=True),
    ),
    "htx swap": _HTX_LINEAR,
    "htx future": _HTX_LINEAR,
    "htx inverse": _HTX_INVERSE,
    "htx delivery": _HTX_INVERSE,
    "independentreserve": _list("", "CurrencyCode", "AvailableBalance", "TotalBalance"),
    "indodax": _object("return.balance", "", never_empty=_ALL),
    # An account that never held anything has an empty object as its result.
    "kraken": _object("result", "balance", "hold_trade", error=[]),
    "krakenfutures flex": _object("accounts.flex.currencies", "quantity", "available", result="success"),
    "krakenfutures cash": _object("accounts.cash.balances", "", result="success"),
    "kucoin spot": _KUCOIN_SPOT,
    "kucoin funding": _KUCOIN_SPOT,
    "kucoin unified": _KUCOIN_UNIFIED,
    "kucoin margin": (
        _KUCOIN_UNIFIED,
        _list("data.accounts", "currency", "totalBalance", "availableBalance", "holdBalance", code="200000"),
    ),
    "kucoin swap": _KUCOIN_CONTRACTS,
    "kucoin future": _KUCOIN_CONTRACTS,
    "kucoinfutures": _KUCOIN_CONTRACTS,
    "latoken spot": replace(_LATOKEN, taken=lambda row: _at(row, "type") in (None, "ACCOUNT_TYPE_SPOT")),
    "latoken funding": replace(_LATOKEN, taken=lambda row: _at(row, "type") in (None, "ACCOUNT_TYPE_WALLET")),
    "lbank": _list("data.balances", "asset", "free", "locked", result="true"),
    "lighter spot": _list(
        "accounts.*.assets",
        "symbol",
        "balance",
        "locked_balance",
        several=True,
        empty=_WALLETS,
        wallet_needed=True,
        code=200,
    ),
    "lighter swap": _list("accounts", "index", "collateral", "available_balance", never_empty=_ONE, named=False),
    "luno": _list("balance", "asset", "balance", "reserved", "unconfirmed", several=True),
    "mercado": _object("response_data.balance", "available", "total", never_empty=_ALL),
    "mexc spot": replace(_SPOT_LIKE_BINANCE, beside=({"canTrade": True},)),
    "mexc swap": _list("data", "currency", "availableBalance", "frozenBalance", success=True),
    "modetrade": _ORDERLY,
    "mudrex swap": _MUDREX,
    "mudrex spot": _MUDREX,
    "myokx trading": _OKX,
    "myokx funding": _OKX_FUNDING,
    # Assets are numbers, for which CCXT looks up the names.
    "nado": _list(
        "data.spot_balances", "product_id", "balance.amount", named=False, empty="", never_empty=_ALL, status="success"
    ),
    "ndax": _list("", "ProductId", "Amount", "Hold"),
    "okx trading": _OKX,
    "okx funding": _OKX_FUNDING,
    "okxus trading": _OKX,
    "okxus funding": _OKX_FUNDING,
    "onetrading": _list("balances", "currency_code", "available", "locked"),
    "p2b": _object("result", "available", "freeze", success=True),
    # The cash stands beside the list.
    "pacifica": _list(
        "data.spot_balances",
        "symbol",
        "amount",
        "available_to_withdraw",
        never_empty=_ONE,
        figures=("data.balance", "data.total_margin_used"),
    ),
    "paymium": _flat(),
    "phemex spot": _list("data", "currency", "balanceEv", "lockedTradingBalanceEv", "lockedWithdrawEv", code=0),
    "phemex swap": _one(
        "data.account",
        "accountBalanceEv|accountBalanceRv",
        "totalUsedBalanceEv|totalUsedBalanceRv",
        asset="currency",
    ),
    # A list of accounts, each with its assets.
    "poloniex spot": _list("*.balances", "currency", "available", "hold", empty=_WALLETS, wallet_needed=True),
    "poloniex swap": _list("data.details", "ccy", "avail", "im", code="200"),
    "revolutx": (
        _list("", "currency", "available", "reserved", "total"),
        _list("data", "currency", "available", "reserved", "total"),
    ),
    "tokocrypto": _list("data.accountAssets", "asset", "free", "locked", code=0),
    "toobit spot": _list("balances", "asset", "free", "locked", "total"),
    "toobit swap": _list("", "asset", "balance", "availableBalance"),
    "upbit": _list("", "currency", "balance", "locked"),
    "weex spot": _SPOT_LIKE_BINANCE,
    "weex swap": _list("", "asset", "balance", "availableBalance", "frozen"),
    "whitebit spot": _object("", "available", "freeze", never_empty=_UNTOLD),
    "whitebit funding": _object("", "main_balance", never_empty=_UNTOLD),
    "whitebit swap": _object("", "", never_empty=_UNTOLD),
    "woo": _list("data.holding", "token", "holding", "availableBalance", success=True),
    "woofipro": _ORDERLY,
    "xt spot": _list("result.assets", "currency", "availableAmount", "frozenAmount", "totalAmount", rc=0),
    "xt swap": _list("result", "coin", "walletBalance", "availableBalance", returnCode=0),
    "xt inverse": _list("result", "coin", "walletBalance", "availableBalance", returnCode=0),
    "zaif": _object("return.funds", "", never_empty=_ALL),
    "zebpay spot": _list("data", "currency", "free", "used", "total"),
    "zebpay swap": _list("data", "currency", "free", "used", "total"),
}


@cache
def shapes(exchange_id: str, account_type: str) -> tuple[Rows, ...]:
    """What answers for accounts of this type look like; none where it is not known."""
    known = _SHAPES.get(f"{exchange_id} {account_type}") or _SHAPES.get(exchange_id) or ()
    return tuple(
        replace(shape, by_field=all(_is_field(path) for path in (shape.asset, *shape.amounts)))
        for shape in (known if isinstance(known, tuple) else (known,))
    )


def proves_empty(exchange_id: str, account_type: str, raw: Any) -> bool:
    """Whether the raw answer is what this exchange sends for an account of this type without assets."""
    shape, rows = _found(exchange_id, account_type, raw)
    if shape is None or not shape.empty or any(shape.taken is None or shape.taken(row) for _, row in rows):
        return False
    if _problem_of_any(shape, rows):
        return False
    return any(_holds(raw, expected) for expected in shape.beside)


def lost_row(
    exchange_id: str,
    account_type: str,
    answers: Sequence[Any],
    venue_codes: Mapping[str, Collection[str]],
    shown: Collection[str],
) -> str:
    """What is wrong with a row that CCXT would drop, overwrite or make up, in words; empty where nothing is.

    `answers` are the call's raw answers, `venue_codes` the venue's names by CCXT's, `shown` CCXT's names in its result.
    """
    if not shapes(exchange_id, account_type):
        return ""
    last = answers[-1]
    shape, rows = _found(exchange_id, account_type, last)
    if shape is None:
        return "no list of assets"
    if not shape.looked_at:
        return ""
    if shape.last_page is not None:
        if not _holds(last, shape.last_page):
            return "a list of which pages are missing"
        rows = [row for answer in answers for row in _found(exchange_id, account_type, answer)[1]]
    return (
        _missing_figure(shape, answers)
        or _problem_of_any(shape, rows)
        or _repeated(shape, rows)
        or _left_out(shape, rows, venue_codes, shown)
    )


@cache
def _steps(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()


@cache
def _alternatives(names: str) -> tuple[tuple[str, bool], ...]:
    """The paths that are joined, each with whether it is the name of a field and no more."""
    return tuple((path, _is_field(path)) for path in names.split("|"))


def _is_field(path: str) -> bool:
    """Whether a path is the name of one field and no more."""
    return bool(path) and "." not in path and "|" not in path


def _at(value: Any, path: str) -> Any:
    """What lies at a dotted path; None where there is nothing. The paths are the table's."""
    for step in _steps(path):
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step == "only":
            value = value[0] if len(value) == 1 else None
        elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def _any_of(row: Any, names: str) -> Any:
    """The first of the joined names that is there and not empty."""
    for path, is_field in _alternatives(names):
        value = row.get(path) if is_field and type(row) is dict else _at(row, path)
        if value is not None and value != "":
            return value
    return None


def _found(exchange_id: str, account_type: str, raw: Any) -> tuple[Rows | None, list[tuple[Any, Any]]]:
    """The first shape that the answer has, and its rows, each with the venue's name of its asset."""
    for shape in shapes(exchange_id, account_type):
        if not shape.looked_at:
            return shape, []
        rows = _rows(shape, raw)
        if rows is not None:
            return shape, rows
    return None, []


def _rows(shape: Rows, raw: Any) -> list[tuple[Any, Any]] | None:
    """The rows of an answer; None where it has another shape."""
    before, star, after = shape.path.partition("*")
    if star:
        wallets = _at(raw, before.removesuffix("."))
        if not isinstance(wallets, list) or (shape.wallet_needed and not wallets):
            return None
        holders = [_at(wallet, after.removeprefix(".")) for wallet in wallets]
    else:
        holders = [_at(raw, shape.path)]
    if shape.kind == "list":
        fits = all(isinstance(holder, list) for holder in holders)
        return [(_name(shape, row), row) for holder in holders for row in holder] if fits else None
    if not all(isinstance(holder, dict) for holder in holders):
        return None
    if shape.kind == "one":
        return [(_name(shape, row), row) for row in holders]
    return [item for holder in holders for item in holder.items() if item[0] not in shape.others]


def _name(shape: Rows, row: Any) -> Any:
    if shape.by_field and type(row) is dict and type(field := row.get(shape.asset)) is str and field:
        return field
    name = _any_of(row, shape.asset) if shape.asset else ""
    return str(name) if type(name) is int else name


def _is_taken(shape: Rows, row: Any) -> bool:
    return shape.taken is None or shape.taken(row)


def _problem_of_any(shape: Rows, rows: Sequence[tuple[Any, Any]]) -> str:
    """What is wrong with the first row that has something wrong."""
    for name, row in rows:
        if problem := _problem(shape, name, row):
            return problem
    return ""


def _problem(shape: Rows, name: Any, row: Any) -> str:
    """What is wrong with a row of its own; empty where nothing is."""
    if shape.by_field and type(row) is dict and type(name) is str and name:
        # Nearly every row: this is what the rest would find out.
        for amount in shape.amounts:
            value = row.get(amount)
            if type(value) is not str or not PLAIN_NUMBER.match(value):
                break
        else:
            return ""
    plain = shape.kind == "object" and shape.amounts == ("",)
    if not plain and not isinstance(row, (dict, list)):
        return "a row that is none"
    if not _is_taken(shape, row):
        return ""
    if not isinstance(name, str) or (not name and (shape.asset or shape.kind == "object")):
        return "a row without an asset"
    if plain and not shape.path and name != name.upper():
        return "a field that is no asset among its assets"
    for amount in shape.amounts:
        if _figure(_any_of(row, amount)) is None:
            return "a row without its amounts"
    return ""


def _figure(value: Any) -> Any:
    """An amount; None for what is none."""
    try:
        return parse_amount(value, "a row")
    except VenueMalformed:
        return None


def _missing_figure(shape: Rows, answers: Sequence[Any]) -> str:
    if any(_figure(_at(answers[-1], path)) is None for path in shape.figures):
        return "a list of assets without the figures beside it"
    if shape.before and (len(answers) < 2 or any(not _at(answers[-2], path) for path in shape.before)):
        return "an account without its cash"
    return ""


def _repeated(shape: Rows, rows: Sequence[tuple[Any, Any]]) -> str:
    if shape.several:
        return ""
    # Whatever the case: CCXT's names of assets know none.
    taken = [(name.casefold(), row) for name, row in rows if name and (shape.taken is None or shape.taken(row))]
    names = {(name, str(_at(row, shape.apart)) if shape.apart else "") for name, row in taken}
    return "two rows for one asset" if len(names) != len(taken) else ""


def _left_out(
    shape: Rows, rows: Sequence[tuple[Any, Any]], venue_codes: Mapping[str, Collection[str]], shown: Collection[str]
) -> str:
    """A complaint about a row that holds something and is not in CCXT's result."""
    if not shape.named:
        return ""
    seen = {name.casefold() for code, names in venue_codes.items() if code in shown for name in names}
    for name, row in rows:
        if not _is_taken(shape, row) or name.casefold() in seen:
            continue
        if any(_figure(_any_of(row, amount)) for amount in shape.amounts):
            return "a row that CCXT leaves out"
    return ""


def _holds(raw: Any, expected: Mapping[str, Any]) -> bool:
    """Whether each field has its value; "0" and 0 are one, as venues mix them, and true and 1 are not."""
    return all(
        name in raw
        and type(raw[name]) in ((type(value),) if isinstance(value, (bool, list)) else (str, int))
        and str(raw[name]) == str(value)
        for name, value in expected.items()
    )
