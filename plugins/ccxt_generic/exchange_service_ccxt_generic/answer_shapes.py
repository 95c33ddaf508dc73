"""The shape of an account's answer for each exchange: where its rows are, and what proves that it has no rows.

These are facts, taken from the code by which CCXT reads each exchange. `empty` applies them. An exchange that is not in
the table is never believed to be empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

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


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the rows of an answer are, and what a row must have.

    Paths are dotted, as `paths.at` reads them; `*` stands for all entries of a list. Of names that are joined by "|",
    the first one that is present counts.
    """

    # What holds the rows: a "list", an "object" of rows by asset, or "one" object that is itself the only row.
    kind: str
    path: str
    # The field with the venue's name of the asset; empty if the row does not name it.
    asset: str = ""
    # Fields of a row that must hold amounts.
    amounts: tuple[str, ...] = ()
    # The fields beside the rows of an empty account, such as the code for success: one of these sets.
    beside: tuple[Mapping[str, Any], ...] = ({},)
    # Why an answer without rows is an empty account, or why it never is. Exactly one is set.
    empty: str = ""
    never_empty: str = ""
    # Whether several rows may be for one asset, because CCXT adds them up.
    several: bool = False
    # The field in which rows for one asset differ, for example for the free and the frozen part.
    apart: str = ""
    # Whether CCXT takes the name of the asset from the row, so that the row can be found in its result.
    named: bool = True
    # Which rows CCXT reads. The others belong to another wallet.
    taken: Callable[[Any], bool] | None = None
    # Names in an object of rows that are not assets.
    others: tuple[str, ...] = ()
    # Figures outside the rows, of which CCXT makes another row.
    figures: tuple[str, ...] = ()
    # Fields that the answer before the last must have, of which CCXT makes another row.
    before: tuple[str, ...] = ()
    # The fields of the last page. Without them some pages are missing.
    last_page: Mapping[str, Any] | None = None
    # Whether a path through a list of wallets needs at least one wallet.
    wallet_needed: bool = False
    # Whether the asset and each amount are single fields of the row. `shapes` sets it.
    by_field: bool = False

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


def _one(path: str, *amounts: str, asset: str = "") -> Rows:
    """An account that is one object with its figures."""
    return Rows("one", path, asset, amounts, never_empty=_ONE, named=bool(asset))


def _flat(reason: str = _FLAT) -> Rows:
    """An answer whose rows are fields among others."""
    return Rows("", "", never_empty=reason)


def _in_wallet(*types: str) -> Callable[[Any], bool]:
    """Bitfinex: whether a row, which begins with the type of its wallet, has one of these types."""
    return lambda row: not _is_wallet(row) or row[0] in types


def _is_wallet(row: Any) -> bool:
    """Bitfinex: whether a row is long enough."""
    return isinstance(row, list) and len(row) > 4


def _for_derivatives(row: Any) -> bool:
    """Bitfinex: whether a row is for an asset of derivatives, which the margin wallet names with the ending f0."""
    return not _is_wallet(row) or (row[0] == "margin" and str(row[1]).lower().endswith("f0"))


def _used_once(row: Any) -> bool:
    """Binance: whether the asset was ever used. Contract accounts also list assets without figures."""
    return str(at(row, "updateTime")) != "0"


def _names_an_asset(row: Any) -> bool:
    """BingX: false for the row without an asset and with zeros that an empty contract account may have."""
    amounts = [figure(at(row, name)) for name in ("balance", "equity", "availableMargin")]
    return bool(at(row, "asset")) or any(amount is None or amount for amount in amounts)


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
# All accounts are in one list. Each wallet takes those of its own type.
_COINBASE_ACCOUNTS = _list(
    "accounts",
    "available_balance.currency",
    "available_balance.value",
    "hold.value",
    several=True,
    has_next=False,
    last_page={"has_next": False},
)
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
_PHEMEX_CONTRACTS = _one(
    "data.account", "accountBalanceEv|accountBalanceRv", "totalUsedBalanceEv|totalUsedBalanceRv", asset="currency"
)

# By exchange, or by exchange and account type. Of several shapes the first one that fits counts.
_SHAPES: Mapping[str, Rows | tuple[Rows, ...]] = {
    # Shares are not read. The cash is in the answer before.
    "alpaca": _list(
        "",
        "symbol",
        "qty",
        "qty_available",
        never_empty=_ONE,
        named=False,
        taken=lambda row: at(row, "asset_class") != "us_equity",
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
    "binance isolated": _BINANCE_MARGIN,
    "binance papi": _list("", "asset", "totalWalletBalance", "umUnrealizedPNL", "cmUnrealizedPNL"),
    "binance funding": _list("", "asset", "free", "locked", "freeze", "withdrawing"),
    "binancecoinm": _BINANCE_CONTRACTS,
    "binanceus": _BINANCE_SPOT,
    "binanceusdm swap": _BINANCE_CONTRACTS,
    "binanceusdm future": _BINANCE_CONTRACTS,
    "bingx spot": _list("data.balances", "asset", "free", "locked", code=0),
    "bingx swap": _BINGX_CONTRACTS,
    "bingx inverse": _BINGX_CONTRACTS,
    "bingx standard": _list("data", "asset", "balance", "availableBalance", code=0),
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
    "bitget usdc_swap": _BITGET_CONTRACTS,
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
    "bybit inverse": _BYBIT,
    "bybit spot": _BYBIT,
    "bybit funding": _BYBIT_FUNDING,
    "bybiteu unified": _BYBIT,
    "bybiteu spot": _BYBIT,
    "bybiteu funding": _BYBIT_FUNDING,
    "bybitid unified": _BYBIT,
    "bybitid swap": _BYBIT,
    "bybitid future": _BYBIT,
    "bybitid inverse": _BYBIT,
    "bybitid spot": _BYBIT,
    "bybitid funding": _BYBIT_FUNDING,
    "bydfi": _list("data", "asset", "total|balance", "available|availableBalance", code=200),
    "cex": _object("data", "balance", ok="ok"),
    "coinbase spot": replace(
        _COINBASE_ACCOUNTS,
        # Vaults and portfolios are accounts of other types.
        taken=lambda row: at(row, "type") in (None, "", "ACCOUNT_TYPE_CRYPTO", "ACCOUNT_TYPE_FIAT"),
    ),
    "coinbase vault": replace(_COINBASE_ACCOUNTS, taken=lambda row: at(row, "type") == "ACCOUNT_TYPE_VAULT"),
    "coinbase perp_futures": replace(
        _COINBASE_ACCOUNTS, taken=lambda row: at(row, "type") == "ACCOUNT_TYPE_PERP_FUTURES"
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
    "gate inverse": _GATE_CONTRACTS,
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
    "htx isolated": _list("data.*.list", "currency", "balance", several=True, empty=_WALLETS, status="ok"),
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
    # The isolated account lists pairs.
    "kucoin isolated": (
        _KUCOIN_UNIFIED,
        _list("data.assets", "symbol", "baseAsset.available", "quoteAsset.available", named=False, code="200000"),
    ),
    "kucoin swap": _KUCOIN_CONTRACTS,
    "kucoin inverse": _KUCOIN_CONTRACTS,
    "kucoin future": _KUCOIN_CONTRACTS,
    "kucoinfutures": _KUCOIN_CONTRACTS,
    "latoken spot": replace(_LATOKEN, taken=lambda row: at(row, "type") in (None, "ACCOUNT_TYPE_SPOT")),
    "latoken funding": replace(_LATOKEN, taken=lambda row: at(row, "type") in (None, "ACCOUNT_TYPE_WALLET")),
    "lbank": _list("data.balances", "asset", "free", "locked", result="true"),
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
    # Assets are numbers, whose names CCXT looks up.
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
    # The cash is beside the list.
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
    "phemex swap": _PHEMEX_CONTRACTS,
    "phemex inverse": _PHEMEX_CONTRACTS,
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
    """The shapes of answers for accounts of this type; an empty tuple if they are not known."""
    known = _SHAPES.get(f"{exchange_id} {account_type}") or _SHAPES.get(exchange_id) or ()
    return tuple(
        replace(shape, by_field=all(is_field(path) for path in (shape.asset, *shape.amounts)))
        for shape in (known if isinstance(known, tuple) else (known,))
    )


def is_field(path: str) -> bool:
    """Whether a path is the name of a single field."""
    return bool(path) and "." not in path and "|" not in path
