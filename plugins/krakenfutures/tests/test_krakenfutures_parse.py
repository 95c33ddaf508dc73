"""Kraken Futures's payloads as the service's values."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_krakenfutures import parse

from exchange_service.plugin_api import (
    CASH,
    HOLDING,
    AssetBalance,
    KeyRights,
    Summary,
    VenueAccount,
    VenueMalformed,
    parse_json,
)
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"


def payload(name: str = "accounts") -> Any:
    return parse_json(read_payload(PAYLOADS / f"{name}.json"))


def accounts_with(name: str, **changes: Any) -> dict[str, VenueAccount]:
    """The accounts of the vendor's example by their types, with some members of one account changed."""
    answer = payload()
    answer["accounts"][name] |= changes
    return {account.type: account for account in parse.accounts(answer, lambda kind: True)}


def test_holding_wallets_are_rows_without_figures_of_the_whole() -> None:
    cash = accounts_with("cash")["cash"]
    assert (cash.id, cash.sub_account, cash.summary) == ("", "", None)
    assert cash.assets == (
        AssetBalance("BTC", Decimal("141.31756797"), venue_asset="xbt", kind=CASH),
        AssetBalance("XRP", Decimal("52465.1254"), venue_asset="xrp", kind=CASH),
    )


def test_multi_collateral_wallets_have_the_venues_figures_in_dollars() -> None:
    flex = accounts_with("flex")["flex"]
    bitcoin, dollars, _ = flex.assets
    held = Decimal("0.1185308247")
    assert bitcoin == AssetBalance("BTC", held, free=held, venue_asset="XBT", kind=CASH)
    assert dollars == AssetBalance("USD", Decimal(5000), free=Decimal(5000), kind=CASH)
    assert flex.summary == Summary(
        "USD",
        total=Decimal("34995.52"),
        available=Decimal("34122.66"),
        equity=Decimal("34995.52"),
        margin_used=Decimal(0),
        unrealised_pnl=Decimal(0),
    )


def test_a_single_collateral_wallet_has_its_contracts_and_figures_in_its_currency() -> None:
    margin = accounts_with("fi_xbtusd")["margin"]
    assert margin.sub_account == "fi_xbtusd"
    assert [(row.asset, row.total, row.kind) for row in margin.assets] == [
        ("FI_XBTUSD_171215", Decimal(50000), HOLDING),
        ("FI_XBTUSD_180615", Decimal(-15000), HOLDING),
        ("BTC", Decimal("141.31756797"), CASH),
        ("XRP", Decimal(0), CASH),
    ]
    assert margin.summary == Summary(
        "BTC",
        total=Decimal("141.31756797"),
        available=Decimal("100.73891563"),
        equity=Decimal("153.73891563"),
        margin_used=Decimal("52.8"),
        unrealised_pnl=Decimal("12.42134766"),
        cash=Decimal("141.31756797"),
    )


def test_the_equity_of_the_vendors_example_is_the_money_with_the_open_profit() -> None:
    summary = accounts_with("fi_xbtusd")["margin"].summary
    assert summary is not None
    assert summary.cash is not None
    assert summary.unrealised_pnl is not None
    assert summary.equity == summary.cash + summary.unrealised_pnl


def test_accounts_that_hold_nothing_are_read_too() -> None:
    margin, cash, flex = parse.accounts(payload("accounts_of_nothing"), lambda kind: True)
    assert all(row.is_zero() for account in (margin, cash, flex) for row in account.assets)
    assert [row.asset for row in cash.assets] == ["FEE", "USD CREDIT", "DOGE", "BTC"]
    assert flex.assets == ()


def test_only_the_wanted_types_are_read() -> None:
    answer = payload()
    answer["accounts"]["cash"] = "malformed"
    (flex,) = parse.accounts(answer, lambda kind: kind == "flex")
    assert flex.type == "flex"
    assert parse.accounts(payload("error_limit") | {"accounts": {"cash": {}}}, lambda kind: kind == "margin") == ()


def test_no_digit_is_lost_and_a_debt_stays_negative() -> None:
    digits = "-1234567890123456789012.345678901"
    (row,) = accounts_with("cash", balances={"usd": digits})["cash"].assets
    assert str(row.total) == digits
    summary = accounts_with("flex", availableMargin=parse_json("-0.00000000000000000001"))["flex"].summary
    assert summary is not None
    assert format(summary.available, "f") == "-0.00000000000000000001"


@pytest.mark.parametrize(
    ("name", "changes", "kind"),
    [
        ("cash", {"balances": None}, "cash"),
        ("cash", {"balances": {"usd": None}}, "cash"),
        ("cash", {"balances": {"usd": "1", "USD": "2"}}, "cash"),
        ("cash", {"balances": {" ": "1"}}, "cash"),
        ("cash", {"type": "new in 2030"}, "cash"),
        ("flex", {"currencies": None}, "flex"),
        ("flex", {"currencies": {"USD": {"quantity": 1}}}, "flex"),
        ("flex", {"portfolioValue": "NaN"}, "flex"),
        ("fi_xbtusd", {"currency": "eth"}, "margin"),
        ("fi_xbtusd", {"auxiliary": {}}, "margin"),
    ],
    ids=str,
)
def test_what_is_wrong_with_one_account_is_its_error_and_the_others_stand(
    name: str, changes: dict[str, Any], kind: str
) -> None:
    accounts = accounts_with(name, **changes)
    assert isinstance(accounts[kind].error, VenueMalformed)
    assert accounts[kind].assets == ()
    assert [account.type for account in accounts.values() if account.error is None] == [
        other for other in ("cash", "margin", "flex") if other != kind
    ]


@pytest.mark.parametrize("accounts", [None, {}, [], {"flex": None}, {"cash": {"type": "cashAccount"}}], ids=str)
def test_an_answer_without_a_readable_account_is_no_balance(accounts: Any) -> None:
    with pytest.raises(VenueMalformed):
        parse.accounts(payload() | {"accounts": accounts}, lambda kind: True)


@pytest.mark.parametrize(
    ("general", "transfer", "trade", "withdraw"),
    [
        ("READ_ONLY", "NO_ACCESS", False, False),
        ("FULL_ACCESS", "FULL_ACCESS", True, True),
        ("NEW_IN_2030", None, None, None),
    ],
)
def test_a_key_trades_and_withdraws_with_full_access_alone(
    general: str, transfer: str | None, trade: bool | None, withdraw: bool | None
) -> None:
    details = payload("key") | {"permissions": {"general": general, "transfer": transfer}}
    assert parse.key_rights(details) == KeyRights(trade=trade, withdraw=withdraw)


def test_a_key_without_a_list_of_addresses_is_pointed_out() -> None:
    assert parse.key_rights(payload("key") | {"allowedCidrBlocks": []}).notes
