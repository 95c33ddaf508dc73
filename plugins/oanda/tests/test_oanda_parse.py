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
    row = AssetBalance("EUR", total=Decimal("25310.4426"), free=Decimal("23246.1055"), used=Decimal("1940.2271"))
    assert account.assets == (row,)


def test_the_summary_has_every_figure_of_the_worked_example() -> None:
    summary = parse.account(payload("summary.json"), ACCOUNT_ID).summary
    assert summary == Summary(
        "EUR",
        total=Decimal("25310.4426"),
        cash=Decimal("25310.4426"),
        equity=Decimal("25182.5126"),
        available=Decimal("23246.1055"),
        margin_used=Decimal("1940.2271"),
        unrealised_pnl=Decimal("-127.9300"),
    )


def test_no_digit_is_added_or_lost() -> None:
    account = parse.account(payload("summary.json"), ACCOUNT_ID)
    assert account.summary is not None
    assert str(account.summary.unrealised_pnl) == "-127.9300"
    exact = parse.account(summary_with(balance="1234567890123456789012.345678"), ACCOUNT_ID)
    assert str(exact.assets[0].total) == "1234567890123456789012.345678"


def test_the_available_amount_is_oandas_own_figure_and_not_computed() -> None:
    account = parse.account(payload("summary.json"), ACCOUNT_ID)
    assert account.summary is not None
    assert account.summary.equity is not None
    assert account.summary.margin_used is not None
    assert account.summary.available != account.summary.equity - account.summary.margin_used


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
    assert parse.account_ids(payload("accounts.json")) == ["101-004-7654321-001", "101-004-7654321-002"]


def test_an_empty_account_list_is_one() -> None:
    assert parse.account_ids({"accounts": []}) == []


def test_an_account_list_that_names_one_twice_is_malformed() -> None:
    with pytest.raises(VenueMalformed, match="twice"):
        parse.account_ids({"accounts": [{"id": ACCOUNT_ID}, {"id": "101-004-7654321-002"}, {"id": ACCOUNT_ID}]})


@pytest.mark.parametrize(
    "answer",
    [None, [], {}, "accounts", {"accounts": None}, {"accounts": {}}, {"accounts": [None]}, {"accounts": [{"id": 7}]}],
    ids=json.dumps,
)
def test_an_account_list_of_another_shape_is_malformed(answer: Any) -> None:
    with pytest.raises(VenueMalformed):
        parse.account_ids(answer)


@pytest.mark.parametrize("answer", [None, [], {}, "", 0, {"account": None}, {"account": []}], ids=json.dumps)
def test_a_summary_of_another_shape_is_malformed(answer: Any) -> None:
    with pytest.raises(VenueMalformed):
        parse.account(answer, ACCOUNT_ID)
