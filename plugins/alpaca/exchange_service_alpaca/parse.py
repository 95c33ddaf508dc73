"""Reads Alpaca's payloads into the service's values. Pure functions: no request, no clock, no state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from exchange_service.plugin_api import (
    CASH,
    HOLDING,
    AssetBalance,
    FeatureNotEnabled,
    Summary,
    VenueAccount,
    VenueMalformed,
    amount,
    as_list,
    as_object,
    check_unique,
    exact_sum,
    required_amount,
    text,
)

_ACCOUNT, _POSITION = "account", "positions[]"
_ACTIVE = "ACTIVE"
# The sign of a position's quantity and of its worth. Alpaca's own notes on positions say the same of short ones, in
# https://github.com/alpacahq/alpaca-docs content/api-references/trading-api/_index.md.
_SIGNS: Mapping[str, int] = {
    "long": 1,  # witness: vendor: https://docs.alpaca.markets/docs/websocket-streaming
    "short": -1,  # witness: report: https://github.com/alpacahq/Alpaca-API/issues/86
}
# What the symbol of a crypto position ends with.
# witness: CCXT: alpaca.parse_balance
_QUOTED_IN = "USD"
# A worth in dollars below which rounding decides.
_HARDLY_ANYTHING = Decimal(1)

# Statuses of an application: there is no account yet that could hold something.
# witness: vendor: https://github.com/alpacahq/alpaca-docs content/api-references/broker-api/accounts/accounts.md
_NOT_OPEN: Mapping[str, str] = {
    "ONBOARDING": "its owner has not been identified yet",
    "SUBMITTED": "the application is being reviewed",
    "EDITED": "the application is being reviewed",
    "ACTION_REQUIRED": "the application needs something of its owner",
    "APPROVAL_PENDING": "the application is being reviewed",
    "APPROVED": "it is approved, and not yet active",
    "SUBMISSION_FAILED": "the application could not be submitted",
    "REJECTED": "the application was rejected",
}
# Statuses of an account that is open, or was: its figures stand, and a note says what is the matter.
# witness: vendor: https://github.com/alpacahq/alpaca-docs content/api-references/broker-api/accounts/accounts.md
_RESTRICTED: Mapping[str, str] = {
    "INACTIVE": "The account is not set to trade stocks.",
    "DISABLED": "Alpaca has disabled the account.",
    "ACCOUNT_CLOSED": "The account is closed.",
    # witness: vendor: https://github.com/alpacahq/cli api/specs/trading-api.json, AccountStatus
    "ACCOUNT_UPDATED": "Alpaca is updating the data of the account's owner. It may not trade for a short time.",
}
# witness: vendor: https://github.com/alpacahq/cli api/specs/trading-api.json, Account
_FLAGS: Mapping[str, str] = {
    "account_blocked": "Alpaca has blocked the account.",
    "trading_blocked": "Alpaca lets the account place no orders.",
    "transfers_blocked": "Alpaca lets the account request no transfers of money.",
    "trade_suspended_by_user": "The account's owner has suspended its orders.",
}


def account_id(payload: Any) -> str:
    """The id of the account that an answer is of. Alpaca always names it."""
    return text(as_object(payload, _ACCOUNT), "id", _ACCOUNT)


def require_open(payload: Any) -> None:
    """Raise FeatureNotEnabled if the account is still an application, neither for stocks nor for crypto more."""
    answer = as_object(payload, _ACCOUNT)
    status = text(answer, "status", _ACCOUNT)
    if status in _NOT_OPEN and text(answer, "crypto_status", _ACCOUNT, required=False) != _ACTIVE:
        raise FeatureNotEnabled(
            f"Alpaca has not opened this account: {_NOT_OPEN[status]}.",
            advice="Look on Alpaca's dashboard what it waits for.",
        )


def notes(payload: Any) -> tuple[str, ...]:
    """Sentences about what the account may not do; its figures stand all the same."""
    answer = as_object(payload, _ACCOUNT)
    status = text(answer, "status", _ACCOUNT)
    found = [_FLAGS[name] for name in _FLAGS if answer.get(name) is True]
    if status in _RESTRICTED:
        found.insert(0, _RESTRICTED[status])
    elif status in _NOT_OPEN:
        found.insert(0, f"The account is open for crypto alone: {_NOT_OPEN[status]}.")
    elif status != _ACTIVE:
        found.insert(0, "Alpaca gives the account a status that is not known here. Look on Alpaca's dashboard.")
    return tuple(found)


def fits(payload: Any, positions: Any) -> bool:
    """Whether the positions are worth what the account says, with room for prices that move between the two answers.

    The answer about positions names no account, and an empty one looks like any other, so this alone tells that it is
    of the same account and whole.
    """
    answer = as_object(payload, _ACCOUNT)
    rows = [as_object(entry, _POSITION) for entry in as_list(positions, "positions")]
    sides = (("long", "long_market_value"), ("short", "short_market_value"))
    return all(_is_worth(amount(answer, name, _ACCOUNT), _values(rows, side)) for side, name in sides)


def _values(rows: Iterable[Mapping[str, Any]], side: str) -> list[Decimal | None]:
    return [amount(row, "market_value", _POSITION) for row in rows if row.get("side") == side]


def _is_worth(stated: Decimal | None, values: Sequence[Decimal | None]) -> bool:
    """Whether positions of these values can be the stated one: at least half of it and at most double. What is not
    stated can be anything."""
    known = [value for value in values if value is not None]
    if stated is None or len(known) < len(values):
        return True
    found, stated = abs(exact_sum(known)), abs(stated)
    if max(found, stated) < _HARDLY_ANYTHING:
        return True
    return found <= exact_sum([stated, stated]) and stated <= exact_sum([found, found])


def account(payload: Any, positions: Any) -> VenueAccount:
    """The account: a row of money, one of each position, and Alpaca's own figures for the whole.

    The money may be negative: it is a loan then.
    """
    answer = as_object(payload, _ACCOUNT)
    rows = [as_object(entry, _POSITION) for entry in as_list(positions, "positions")]
    check_unique((row.get("symbol") for row in rows), "Alpaca lists a position twice.")
    currency, cash = text(answer, "currency", _ACCOUNT), required_amount(answer, "cash", _ACCOUNT)
    return VenueAccount(
        id=text(answer, "account_number", _ACCOUNT, required=False) or account_id(answer),
        type="margin",
        assets=(AssetBalance(currency, total=cash, kind=CASH), *map(_position, rows)),
        summary=Summary(
            currency,
            total=cash,
            cash=cash,
            equity=required_amount(answer, "equity", _ACCOUNT),
            available=amount(answer, "non_marginable_buying_power", _ACCOUNT),
            buying_power=amount(answer, "buying_power", _ACCOUNT),
            margin_used=amount(answer, "initial_margin", _ACCOUNT),
        ),
    )


def _position(row: Mapping[str, Any]) -> AssetBalance:
    """A position, its amounts a number of shares, contracts or coins, negative if it is short.

    What is available of a short one is left out: Alpaca does not say what it would mean.
    """
    symbol, quantity = text(row, "symbol", _POSITION), required_amount(row, "qty", _POSITION)
    _check_side(text(row, "side", _POSITION), quantity)
    available = amount(row, "qty_available", _POSITION)
    asset = _asset(symbol, text(row, "asset_class", _POSITION))
    return AssetBalance(
        asset,
        total=quantity,
        free=available if quantity >= 0 else None,
        venue_asset="" if asset == symbol else symbol,
        kind=HOLDING,
    )


def _check_side(side: str, quantity: Decimal) -> None:
    """Raise VenueMalformed unless a long position is positive and a short one negative."""
    if side not in _SIGNS:
        raise VenueMalformed(f"{_POSITION}.side is neither long nor short.")
    if quantity and (quantity < 0) != (_SIGNS[side] < 0):
        raise VenueMalformed(f"{_POSITION}.qty has another sign than its side.")


def _asset(symbol: str, asset_class: str) -> str:
    """The coin of a crypto position, such as BTC of BTCUSD or BTC/USD; the symbol itself of everything else."""
    if asset_class != "crypto":
        return symbol
    coin, slash, _ = symbol.partition("/")
    return (coin if slash else symbol.removesuffix(_QUOTED_IN)) or symbol
