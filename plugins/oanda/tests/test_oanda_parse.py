"""OANDA's payloads as the service's nouns."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_oanda import parse

from exchange_service.plugin_api import AssetBalance, Summary, VenueMalformed, parse_json
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
ACCOUNT_ID = "101-004-7654321-001"


def payload(name: str) -> Any:
    return parse_json(read_payload(PAYLOADS / name))


def summary_with(**changes: Any) -> Any:
    """The recorded summary with some fields changed; `...` leaves a field out."""
    answer = payload("summary.json")
    for name, value in changes.items():
        if value is ...:
            del answer["account"][name]
        else:
            answer["account"][name] = value
    return answer


def test_an_account_is_one_row_in_its_own_currency() -> None:
    account = parse.account(payload("summary.json"), ACCOUNT_ID)
    row = AssetBalance(
        "EUR", total=Decimal("48695.6580"), free=Decimal("39428.7580"), used=Decimal("9948.9000"), kind="cash"
    )
    assert account.assets == (row,)


def test_the_summary_has_every_figure_of_the_captured_answer() -> None:
    summary = parse.account(payload("summary.json"), ACCOUNT_ID).summary
    assert summary == Summary(
        "EUR",
        total=Decimal("48695.6580"),
        cash=Decimal("48695.6580"),
        equity=Decimal("49377.6580"),
        available=Decimal("39428.7580"),
        margin_used=Decimal("9948.9000"),
        unrealised_pnl=Decimal("682.0000"),
    )


def test_no_digit_is_added_or_lost() -> None:
    account = parse.account(payload("summary.json"), ACCOUNT_ID)
    assert account.summary is not None
    assert str(account.summary.unrealised_pnl) == "682.0000"
    exact = parse.account(summary_with(balance="1234567890123456789012.345678"), ACCOUNT_ID)
    assert str(exact.assets[0].total) == "1234567890123456789012.345678"


def test_the_available_amount_is_oandas_own_figure_and_not_computed() -> None:
    account = parse.account(summary_with(marginAvailable="39443.8580"), ACCOUNT_ID)
    assert account.summary is not None
    assert account.summary.available == account.assets[0].free == Decimal("39443.8580")


def test_the_account_has_its_id_kind_and_name() -> None:
    account = parse.account(payload("summary.json"), ACCOUNT_ID)
    assert (account.id, account.type, account.label) == (ACCOUNT_ID, "forex", "Primary")


def test_an_account_without_a_name_has_an_empty_label() -> None:
    assert parse.account(summary_with(alias=...), ACCOUNT_ID).label == ""


@pytest.mark.parametrize("field", ["marginAvailable", "marginUsed", "unrealizedPL"])
@pytest.mark.parametrize("value", [..., None, ""], ids=["missing", "null", "empty"])
def test_a_figure_that_oanda_does_not_state_is_unknown_and_not_zero(field: str, value: Any) -> None:
    account = parse.account(summary_with(**{field: value}), ACCOUNT_ID)
    assert account.summary is not None
    figure = {"marginAvailable": "available", "marginUsed": "margin_used", "unrealizedPL": "unrealised_pnl"}[field]
    assert getattr(account.summary, figure) is None


@pytest.mark.parametrize("field", ["id", "currency", "balance", "NAV"])
@pytest.mark.parametrize("value", [..., None, ""], ids=["missing", "null", "empty"])
def test_an_answer_without_the_required_figures_is_malformed(field: str, value: Any) -> None:
    with pytest.raises(VenueMalformed):
        parse.account(summary_with(**{field: value}), ACCOUNT_ID)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400", "12,5", "many", True, [], {}])
def test_a_figure_that_is_not_a_number_is_malformed(value: Any) -> None:
    for field in ("balance", "NAV", "marginAvailable", "marginUsed", "unrealizedPL"):
        with pytest.raises(VenueMalformed, match=field):
            parse.account(summary_with(**{field: value}), ACCOUNT_ID)


def test_a_negative_balance_is_taken_as_it_is() -> None:
    account = parse.account(summary_with(balance="-12.5000"), ACCOUNT_ID)
    assert account.assets[0].total == Decimal("-12.5")


def test_the_answer_for_another_account_is_malformed() -> None:
    with pytest.raises(VenueMalformed, match="another account"):
        parse.account(payload("summary.json"), "101-004-7654321-002")


def test_the_account_list_gives_the_ids_in_order() -> None:
    assert list(parse.listed_accounts(payload("accounts.json"))) == ["101-004-7654321-001", "101-004-7654321-002"]


def test_an_empty_account_list_is_one() -> None:
    assert parse.listed_accounts({"accounts": []}) == {}


def test_an_account_that_is_listed_twice_is_malformed_and_the_others_are_not() -> None:
    other = "101-004-7654321-002"
    listed = parse.listed_accounts({"accounts": [{"id": ACCOUNT_ID}, {"id": other}, {"id": ACCOUNT_ID}]})
    assert isinstance(listed[ACCOUNT_ID], VenueMalformed)
    assert listed[other] == other


@pytest.mark.parametrize("broken", [None, [], {}, {"id": None}, {"id": ""}, {"id": 7}, "101-004-7654321-002"], ids=str)
def test_an_entry_without_an_id_is_malformed_and_the_others_are_not(broken: Any) -> None:
    listed = parse.listed_accounts({"accounts": [broken, {"id": ACCOUNT_ID, "tags": "none"}]})
    assert listed[ACCOUNT_ID] == ACCOUNT_ID
    assert isinstance(listed[""], VenueMalformed)


@pytest.mark.parametrize("answer", [None, [], {}, "accounts", {"accounts": None}, {"accounts": {}}], ids=json.dumps)
def test_an_account_list_of_another_shape_is_malformed(answer: Any) -> None:
    with pytest.raises(VenueMalformed):
        parse.listed_accounts(answer)


def test_used_margin_that_is_negative_is_unknown() -> None:
    account = parse.account(summary_with(marginUsed="-0.0001"), ACCOUNT_ID)
    assert account.summary is not None
    assert account.assets[0].used is account.summary.margin_used is None


def test_a_negative_value_and_a_negative_available_amount_are_shown_as_they_are() -> None:
    account = parse.account(summary_with(NAV="-12.3400", marginAvailable="-0.5000"), ACCOUNT_ID)
    assert account.summary is not None
    assert (str(account.summary.equity), str(account.summary.available)) == ("-12.3400", "-0.5000")


def test_hedging_changes_no_figure() -> None:
    assert parse.account(summary_with(hedgingEnabled=True), ACCOUNT_ID) == parse.account(
        payload("summary.json"), ACCOUNT_ID
    )


@pytest.mark.parametrize("alias", [7, ["Primary"], None])
def test_a_name_that_cannot_be_read_is_left_out(alias: Any) -> None:
    assert parse.account(summary_with(alias=alias), ACCOUNT_ID).label == ""


@pytest.mark.parametrize("answer", [None, [], {}, "", 0, {"account": None}, {"account": []}], ids=json.dumps)
def test_a_summary_of_another_shape_is_malformed(answer: Any) -> None:
    with pytest.raises(VenueMalformed):
        parse.account(answer, ACCOUNT_ID)
