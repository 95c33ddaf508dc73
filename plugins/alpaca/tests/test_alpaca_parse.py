"""Alpaca's payloads as the service's values."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_alpaca import parse

from exchange_service.plugin_api import (
    CASH,
    HOLDING,
    AssetBalance,
    FeatureNotEnabled,
    Summary,
    VenueMalformed,
    parse_json,
)
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"


def payload(name: str) -> Any:
    return parse_json(read_payload(PAYLOADS / f"{name}.json"))


def row_of(position: dict[str, Any]) -> AssetBalance:
    """The row of one position in an account that has no other."""
    return parse.account(payload("account"), [position]).assets[1]


def test_an_account_is_its_money_its_positions_and_alpacas_own_figures() -> None:
    account = parse.account(payload("account"), payload("positions"))
    assert (account.id, account.type) == ("PALPACA_123", "margin")
    assert account.assets == (
        AssetBalance("USD", total=Decimal("122086.5"), kind=CASH),
        AssetBalance("AAPL", total=Decimal(5), free=Decimal(4), kind=HOLDING),
    )
    assert account.summary == Summary(
        "USD",
        total=Decimal("122086.5"),
        available=Decimal("122086.5"),
        equity=Decimal("123346.11"),
        margin_used=Decimal("629.8"),
        cash=Decimal("122086.5"),
        buying_power=Decimal("245432.61"),
    )


def test_a_loan_is_negative_money_and_what_is_not_stated_stays_unknown() -> None:
    account = parse.account(payload("account_on_loan"), [])
    assert account.assets == (AssetBalance("USD", total=Decimal("-23140.2"), kind=CASH),)
    assert account.summary is not None
    assert account.summary.available is None


def test_a_short_position_is_negative_and_has_nothing_available() -> None:
    row = row_of(payload("position_short") | {"qty_available": "-2478"})
    assert row == AssetBalance("SLM", total=Decimal(-2478), kind=HOLDING)
    assert not row.mismatch()


@pytest.mark.parametrize(
    ("symbol", "asset_class", "asset", "venue_asset"),
    [
        ("BTCUSD", "crypto", "BTC", "BTCUSD"),
        ("BTC/USD", "crypto", "BTC", "BTC/USD"),
        ("USDTUSD", "crypto", "USDT", "USDTUSD"),
        ("USD", "crypto", "USD", ""),
        ("AAPL241213C00250000", "us_option", "AAPL241213C00250000", ""),
        ("BTCUSD", "new in 2030", "BTCUSD", ""),
    ],
)
def test_a_crypto_position_is_its_coin_and_any_other_its_symbol(
    symbol: str, asset_class: str, asset: str, venue_asset: str
) -> None:
    row = row_of(payload("position_crypto") | {"symbol": symbol, "asset_class": asset_class})
    assert (row.asset, row.venue_asset, row.total) == (asset, venue_asset, Decimal("2.61937"))


def test_a_share_named_like_the_currency_is_a_row_of_its_own() -> None:
    money, share = parse.account(payload("account"), [payload("positions")[0] | {"symbol": "USD"}]).assets
    assert (money.asset, share.asset) == ("USD", "USD")
    assert money.identity != share.identity


def test_no_digit_is_lost() -> None:
    assert str(row_of(payload("positions")[0] | {"qty": "1234567890123456789012.345678901"}).total) == (
        "1234567890123456789012.345678901"
    )


@pytest.mark.parametrize(
    "changes",
    [{"symbol": None}, {"qty": None}, {"qty": "-5"}, {"side": "short"}, {"side": "both"}, {"asset_class": None}],
    ids=str,
)
def test_a_malformed_position_is_no_balance(changes: dict[str, Any]) -> None:
    with pytest.raises(VenueMalformed):
        row_of(payload("positions")[0] | changes)


@pytest.mark.parametrize("changes", [{"cash": None}, {"equity": None}, {"currency": None}, {"cash": "NaN"}], ids=str)
def test_an_account_without_its_figures_is_no_balance(changes: dict[str, Any]) -> None:
    with pytest.raises(VenueMalformed):
        parse.account(payload("account") | changes, [])


def test_a_position_that_is_listed_twice_is_no_balance() -> None:
    with pytest.raises(VenueMalformed):
        parse.account(payload("account"), payload("positions") * 2)


@pytest.mark.parametrize("status", ["ONBOARDING", "SUBMITTED", "APPROVAL_PENDING", "SUBMISSION_FAILED", "REJECTED"])
def test_an_application_is_not_an_account(status: str) -> None:
    answer = payload("account") | {"status": status, "crypto_status": "INACTIVE"}
    with pytest.raises(FeatureNotEnabled):
        parse.require_open(answer)
    parse.require_open(answer | {"crypto_status": "ACTIVE"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"account_blocked": True}, ["blocked"]),
        ({"status": "ACCOUNT_CLOSED", "trading_blocked": True}, ["closed", "no orders"]),
        ({"status": "SUBMITTED"}, ["crypto alone"]),
        ({"status": "NEW_IN_2030"}, ["not known here"]),
    ],
    ids=str,
)
def test_what_an_account_may_not_do_is_a_note_and_hides_no_figure(changes: dict[str, Any], words: list[str]) -> None:
    answer = payload("account") | changes
    parse.require_open(answer)
    notes = parse.notes(answer)
    assert len(notes) == len(words)
    assert all(word in note for word, note in zip(words, notes, strict=True))
    assert parse.account(answer, []).assets


@pytest.mark.parametrize(
    ("long", "short", "values", "expected"),
    [
        ("600", "0", ["600.0"], True),
        ("601.5", "0", ["598"], True),
        ("600", "-240", ["600", "-240"], True),
        ("0", "0", [], True),
        ("0.4", "0", [], True),
        (None, None, ["600"], True),
        ("600", "0", [None], True),
        ("600", "0", [], False),
        ("0", "0", ["600"], False),
        ("600", "0", ["-600"], False),
        ("600", "-240", ["600"], False),
        ("600", "0", ["1201"], False),
        ("600", "0", ["299"], False),
    ],
)
def test_positions_are_worth_what_the_account_says(
    long: str | None, short: str | None, values: list[str | None], expected: bool
) -> None:
    answer = payload("account") | {"long_market_value": long, "short_market_value": short}
    sides = ["short" if value and value.startswith("-") else "long" for value in values]
    rows = [{"side": side, "market_value": value} for side, value in zip(sides, values, strict=True)]
    assert parse.fits(answer, rows) is expected
