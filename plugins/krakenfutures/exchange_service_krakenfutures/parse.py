"""Reads Kraken Futures's payloads into the service's values. Pure functions: no request, no clock, no state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from exchange_service.plugin_api import (
    CASH,
    HOLDING,
    AssetBalance,
    KeyRights,
    Summary,
    VenueAccount,
    VenueMalformed,
    amount,
    as_object,
    check_unique,
    required_amount,
    split_accounts,
    text,
)

# The account types by the venue's own words.
# witness: vendor: https://docs.kraken.com/api/docs/futures-api/trading/get-accounts
TYPES: Mapping[str, str] = {
    "cashAccount": "cash",
    "multiCollateralMarginAccount": "flex",
    "marginAccount": "margin",
}
# The types of the accounts that every key has, by their names. All others are margin accounts of one market.
# witness: vendor: https://docs.kraken.com/api/docs/futures-api/trading/get-accounts
_NAMED: Mapping[str, str] = {"cash": "cash", "flex": "flex"}
# The venue's codes that differ from those that everybody uses.
# witness: vendor: https://docs.kraken.com/api/docs/guides/futures-introduction/
_CODES: Mapping[str, str] = {"XBT": "BTC"}
# What a right of a key allows.
# witness: vendor: https://docs.kraken.com/api/docs/futures-api/auth/check-v-3-api-key
_LEVELS: Mapping[str, bool] = {"NO_ACCESS": False, "READ_ONLY": False, "FULL_ACCESS": True}


def accounts(payload: Any, wants: Callable[[str], bool]) -> tuple[VenueAccount, ...]:
    """The accounts of the wanted types. What is wrong with one of them is its error, and the others stand."""
    named = as_object(as_object(payload, "the answer").get("accounts"), "accounts")
    if not named:
        raise VenueMalformed("Kraken Futures lists no account, and every key has two.")
    entries = [{"name": name, "account": entry} for name, entry in named.items() if wants(_type(name, entry))]
    return split_accounts(entries, lambda entry: text(entry, "name", "accounts"), _account, unread=_unread)


def key_rights(details: Mapping[str, Any]) -> KeyRights:
    """What a key may do besides reading, and from where."""
    rights = as_object(details.get("permissions"), "permissions")
    notes = () if details.get("allowedCidrBlocks") else ("Kraken Futures accepts the key from any network address.",)
    return KeyRights(trade=_allows(rights, "general"), withdraw=_allows(rights, "transfer"), notes=notes)


def _allows(rights: Mapping[str, Any], right: str) -> bool | None:
    return _LEVELS.get(text(rights, right, "permissions", required=False))


def _type(name: str, entry: Any) -> str:
    """The account's type: by the venue's word, or by the account's name where it has none that is known."""
    word = entry.get("type") if isinstance(entry, dict) else None
    known = TYPES.get(word) if isinstance(word, str) else None
    return known or _NAMED.get(name, "margin")


def _unread(name: str) -> VenueAccount:
    kind = _NAMED.get(name, "margin")
    return VenueAccount(type=kind, sub_account=name if kind == "margin" else "")


def _account(entry: Mapping[str, Any]) -> VenueAccount:
    name, found = text(entry, "name", "accounts"), as_object(entry.get("account"), "accounts{}")
    word = text(found, "type", "accounts{}", required=False)
    if word and word not in TYPES:
        raise VenueMalformed("Kraken Futures lists an account of an unknown type.")
    kind = _type(name, found)
    read = {"cash": _cash, "flex": _flex, "margin": _margin}[kind]
    rows, summary = read(found)
    check_unique((row.asset for row in rows), "Kraken Futures lists an asset twice.")
    return VenueAccount(type=kind, sub_account=name if kind == "margin" else "", assets=rows, summary=summary)


def _cash(found: Mapping[str, Any]) -> tuple[tuple[AssetBalance, ...], Summary | None]:
    """The holding wallets. The venue states one number of each."""
    return _rows(found), None


def _flex(found: Mapping[str, Any]) -> tuple[tuple[AssetBalance, ...], Summary | None]:
    """The multi-collateral wallets. The venue states the figures of the whole in US dollars."""
    where = "accounts.flex"
    currencies = as_object(found.get("currencies"), f"{where}.currencies")
    rows = tuple(_collateral(code, as_object(row, f"{where}.currencies{{}}")) for code, row in currencies.items())
    return rows, Summary(
        "USD",
        total=required_amount(found, "balanceValue", where),
        available=required_amount(found, "availableMargin", where),
        equity=required_amount(found, "portfolioValue", where),
        margin_used=required_amount(found, "initialMargin", where),
        unrealised_pnl=required_amount(found, "pnl", where),
    )


def _margin(found: Mapping[str, Any]) -> tuple[tuple[AssetBalance, ...], Summary | None]:
    """A single-collateral wallet with its contracts. Its figures are in its own currency."""
    where = "accounts{}"
    currency = text(found, "currency", where)
    held = required_amount(as_object(found.get("balances"), f"{where}.balances"), currency, f"{where}.balances")
    figures = as_object(found.get("auxiliary"), f"{where}.auxiliary")
    margins = as_object(found.get("marginRequirements"), f"{where}.marginRequirements")
    return _rows(found), Summary(
        _code(currency),
        total=held,
        available=required_amount(figures, "af", f"{where}.auxiliary"),
        equity=required_amount(figures, "pv", f"{where}.auxiliary"),
        margin_used=required_amount(margins, "im", f"{where}.marginRequirements"),
        unrealised_pnl=amount(figures, "pnl", f"{where}.auxiliary"),
        cash=held,
    )


def _collateral(code: str, row: Mapping[str, Any]) -> AssetBalance:
    return AssetBalance(
        _code(code),
        total=required_amount(row, "quantity", "currencies{}"),
        free=required_amount(row, "available", "currencies{}"),
        venue_asset=_own_code(code),
        kind=CASH,
    )


def _rows(found: Mapping[str, Any]) -> tuple[AssetBalance, ...]:
    balances = as_object(found.get("balances"), "balances")
    return tuple(
        AssetBalance(
            _code(symbol),
            total=required_amount(balances, symbol, "balances"),
            venue_asset=_own_code(symbol),
            kind=_kind(symbol),
        )
        for symbol in balances
    )


def _kind(symbol: str) -> str:
    # Symbols of contracts have the form FI_XBTUSD_180615, and no currency has such a line:
    # https://docs.kraken.com/api/docs/guides/futures-introduction/
    return HOLDING if "_" in symbol else CASH


def _code(symbol: str) -> str:
    if not symbol.strip():
        raise VenueMalformed("Kraken Futures lists a balance without a symbol.")
    return _CODES.get(symbol.upper(), symbol.upper())


def _own_code(symbol: str) -> str:
    return "" if symbol == _code(symbol) else symbol
