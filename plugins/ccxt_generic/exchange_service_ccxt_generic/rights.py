"""What a key may do besides reading, at exchanges that say so. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from exchange_service.plugin_api import KeyRights, VenueMalformed, as_list, as_object, required_iso_time, text

# witness: vendor: https://developers.binance.com/docs/wallet/account/api-key-permission
_BINANCE_TRADES = (
    "enableSpotAndMarginTrading",
    "enableMargin",
    "enableFutures",
    "enableVanillaOptions",
    "enablePortfolioMarginTrading",
)
# witness: vendor: https://developers.binance.com/docs/wallet/account/api-key-permission
_BINANCE_MOVES = ("enableInternalTransfer", "permitsUniversalTransfer")
# Bybit's groups of rights that are not for trading.
# witness: vendor: https://bybit-exchange.github.io/docs/v5/user/apikey-info
_BYBIT_OTHERS = frozenset({"Wallet", "Exchange", "Earn", "Affiliate"})
_NO_ALLOW_LIST = "The key has no IP allow-list: it works from every address."


@dataclass(frozen=True, slots=True)
class Question:
    """CCXT's name of the request, which is a GET, and the function that reads its answer."""

    method: str
    read: Callable[[Any], KeyRights]


def _binance(answer: Any) -> KeyRights:
    rights = as_object(answer, "the key's rights")
    notes = [] if _flag(rights, "ipRestrict") else [_NO_ALLOW_LIST]
    if any(rights.get(name) is True for name in _BINANCE_MOVES):
        notes.append("The key may transfer between accounts.")
    return KeyRights(
        # A key need not have all of these. The first is always present.
        trade=_flag(rights, _BINANCE_TRADES[0]) or any(rights.get(name) is True for name in _BINANCE_TRADES),
        withdraw=_flag(rights, "enableWithdrawals"),
        notes=tuple(notes),
    )


def _bybit(answer: Any) -> KeyRights:
    result = as_object(as_object(answer, "the answer").get("result"), "result")
    permissions = as_object(result.get("permissions"), "result.permissions")
    granted = {name: as_list(rights, name) for name, rights in permissions.items()}
    # 1 for a key that only reads, whatever rights it names; otherwise 0.
    if result.get("readOnly") not in (0, 1):
        raise VenueMalformed("result.readOnly should be 0 or 1.")
    only_reads = result["readOnly"] == 1
    trades = any(rights for name, rights in granted.items() if name not in _BYBIT_OTHERS)
    return KeyRights(
        trade=trades and not only_reads,
        withdraw="Withdraw" in granted.get("Wallet", []) and not only_reads,
        expires=_instant(result, "expiredAt"),
        notes=(_NO_ALLOW_LIST,) if result.get("ips") == ["*"] else (),
    )


def _okx(answer: Any) -> KeyRights:
    accounts = as_list(as_object(answer, "the answer").get("data"), "data")
    if len(accounts) != 1:
        raise VenueMalformed("data should hold one account.")
    account = as_object(accounts[0], "data")
    granted = text(account, "perm", "data").split(",")
    notes = () if account.get("ip") else (_NO_ALLOW_LIST,)
    return KeyRights(trade="trade" in granted, withdraw="withdraw" in granted, notes=notes)


def _coinbase(answer: Any) -> KeyRights:
    rights = as_object(answer, "the key's rights")
    return KeyRights(trade=_flag(rights, "can_trade"), withdraw=_flag(rights, "can_transfer"))


def _flag(source: Mapping[str, Any], name: str) -> bool:
    value = source.get(name)
    if not isinstance(value, bool):
        raise VenueMalformed(f"{name} should be true or false.")
    return value


def _instant(source: Mapping[str, Any], name: str) -> datetime | None:
    """The time at `name`, in ISO 8601; None if the key does not expire."""
    return required_iso_time(source, name, "result") if text(source, name, "result", required=False) else None


_BINANCE_QUESTION = Question("sapiGetAccountApiRestrictions", _binance)
_BYBIT_QUESTION = Question("privateGetV5UserQueryApi", _bybit)
_OKX_QUESTION = Question("privateGetAccountConfig", _okx)

QUESTIONS: Mapping[str, Question] = {
    # witness: vendor: https://developers.binance.com/docs/wallet/account/api-key-permission
    "binance": _BINANCE_QUESTION,
    "binancecoinm": _BINANCE_QUESTION,
    "binanceusdm": _BINANCE_QUESTION,
    # witness: vendor: https://bybit-exchange.github.io/docs/v5/user/apikey-info
    "bybit": _BYBIT_QUESTION,
    "bybiteu": _BYBIT_QUESTION,
    "bybitid": _BYBIT_QUESTION,
    # witness: CCXT: coinbase.api
    "coinbase": Question("v3PrivateGetBrokerageKeyPermissions", _coinbase),
    # witness: CCXT: okx.api
    "myokx": _OKX_QUESTION,
    "okx": _OKX_QUESTION,
    "okxus": _OKX_QUESTION,
}


def unknown_rights(venue: str) -> KeyRights:
    """The rights of a key at an exchange that does not state them."""
    return KeyRights(notes=(f"{venue} does not state through CCXT what the key may do besides reading: see its site.",))
