"""tastytrade's payloads as the service's nouns."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_tastytrade import parse

from exchange_service.plugin_api import AssetBalance, Summary, VenueAccount, VenueMalformed, parse_json
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
NUMBER = "5WX00000"


def payload(name: str) -> Any:
    return parse_json(read_payload(PAYLOADS / name))


def changed(answer: Any, changes: dict[str, Any]) -> None:
    """Change some fields of an object; `...` leaves a field out."""
    for name, value in changes.items():
        if value is ...:
            answer.pop(name, None)
        else:
            answer[name] = value


def balances_with(**changes: Any) -> Any:
    """The recorded balances with some fields changed; `_` stands for the dash in their names."""
    answer = payload("balances.json")
    changed(answer["data"], {name.replace("_", "-"): value for name, value in changes.items()})
    return answer


def accounts_with(*several: dict[str, Any]) -> Any:
    """A list of accounts like the recorded one, each with some fields changed."""
    answer = payload("accounts.json")
    items = [payload("accounts.json")["data"]["items"][0] for _ in several]
    for item, changes in zip(items, several, strict=True):
        changed(item["account"], changes)
    answer["data"]["items"] = items
    return answer


def summary_of(account: VenueAccount) -> Summary:
    assert account.summary is not None
    return account.summary


def test_an_account_is_one_row_of_cash() -> None:
    account = parse.account(payload("balances.json"), NUMBER)
    row = AssetBalance(
        "USD", total=Decimal("44178.164"), free=Decimal("13278.164"), used=Decimal("30900.0"), kind="cash"
    )
    assert account.assets == (row,)
    assert account.id == NUMBER


def test_the_summary_has_every_figure_of_the_captured_answer() -> None:
    summary = summary_of(parse.account(payload("balances.json"), NUMBER))
    assert summary == Summary(
        "USD",
        total=Decimal("44178.164"),
        cash=Decimal("44178.164"),
        equity=Decimal("41409.164"),
        available=Decimal("13278.164"),
        margin_used=Decimal("30900.0"),
        buying_power=Decimal("26556.328"),
    )
    assert summary.unrealised_pnl is None


def test_no_digit_is_added_or_lost() -> None:
    summary = summary_of(parse.account(payload("balances.json"), NUMBER))
    assert str(summary.margin_used) == "30900.0"
    exact = parse.account(balances_with(cash_balance="1234567890123456789012.345678"), NUMBER)
    assert str(exact.assets[0].total) == "1234567890123456789012.345678"


def test_the_time_is_the_venues_in_utc() -> None:
    account = parse.account(balances_with(updated_at="2026-11-20T16:00:05.123-05:00"), NUMBER)
    assert account.venue_time == datetime(2026, 11, 20, 21, 0, 5, 123000, tzinfo=UTC)
    assert account.venue_time.utcoffset() is not None
    assert parse.account(balances_with(updated_at=...), NUMBER).venue_time is None


@pytest.mark.parametrize(
    "value",
    ["yesterday", "2026-11-20T21:00:05", "0001-01-01T00:00:00+23:59", 1764000000, True, [], {}, None, ""],
    ids=str,
)
def test_a_time_that_cannot_be_read_is_unknown_and_leaves_the_figures(value: Any) -> None:
    account = parse.account(balances_with(updated_at=value), NUMBER)
    assert account == replace(parse.account(payload("balances.json"), NUMBER), venue_time=None)


def test_an_older_answer_without_a_currency_is_in_dollars() -> None:
    account = parse.account(balances_with(currency=...), NUMBER)
    assert account.assets[0].asset == "USD"
    assert summary_of(account).currency == "USD"


def test_three_fields_are_enough_for_a_balance() -> None:
    least = {"account-number": NUMBER, "cash-balance": "10.50", "net-liquidating-value": "12"}
    account = parse.account({"data": least}, NUMBER)
    assert account.assets == (AssetBalance("USD", total=Decimal("10.50"), kind="cash"),)
    assert account.summary == Summary("USD", total=Decimal("10.50"), cash=Decimal("10.50"), equity=Decimal(12))


@pytest.mark.parametrize("field", ["account_number", "cash_balance", "net_liquidating_value"])
@pytest.mark.parametrize("value", [..., None, ""], ids=["missing", "null", "empty"])
def test_an_answer_without_the_required_figures_is_malformed(field: str, value: Any) -> None:
    with pytest.raises(VenueMalformed):
        parse.account(balances_with(**{field: value}), NUMBER)


@pytest.mark.parametrize(
    ("field", "figure"),
    [
        ("derivative_buying_power", "available"),
        ("maintenance_requirement", "margin_used"),
        ("equity_buying_power", "buying_power"),
    ],
)
@pytest.mark.parametrize("value", [..., None, ""], ids=["missing", "null", "empty"])
def test_a_figure_that_is_not_stated_is_unknown_and_not_zero(field: str, figure: str, value: Any) -> None:
    account = parse.account(balances_with(**{field: value}), NUMBER)
    assert getattr(summary_of(account), figure) is None


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400", "12,5", "many", True, [], {}])
@pytest.mark.parametrize(
    "field",
    [
        "cash_balance",
        "net_liquidating_value",
        "derivative_buying_power",
        "maintenance_requirement",
        "equity_buying_power",
    ],
)
def test_a_figure_that_is_not_a_number_is_malformed(field: str, value: Any) -> None:
    with pytest.raises(VenueMalformed, match=field.replace("_", "-")):
        parse.account(balances_with(**{field: value}), NUMBER)


def test_a_cash_account_uses_no_margin_and_shows_the_venues_zero() -> None:
    account = parse.account(balances_with(maintenance_requirement="0.0"), NUMBER)
    assert account.assets[0].used == 0


def test_negative_cash_is_taken_as_it_is() -> None:
    account = parse.account(balances_with(cash_balance="-12.5"), NUMBER)
    assert account.assets[0].total == Decimal("-12.5")


@pytest.mark.parametrize(
    ("value", "effect", "expected"),
    [
        ("12.50", "Credit", "12.50"),
        ("12.50", "Debit", "-12.50"),
        ("0.0", "Debit", "0.0"),
        ("0.0", "None", "0.0"),
        ("-12.50", None, "-12.50"),
    ],
)
def test_an_amount_with_an_effect_beside_it_takes_its_sign_from_there(value: str, effect: Any, expected: str) -> None:
    answer = balances_with(cash_balance=value, cash_balance_effect=effect)
    assert str(parse.account(answer, NUMBER).assets[0].total) == expected


@pytest.mark.parametrize(("value", "effect"), [("-1", "Debit"), ("-1", "Credit"), ("1", "None"), ("1", "Both")])
def test_an_effect_that_contradicts_its_amount_is_malformed(value: str, effect: str) -> None:
    with pytest.raises(VenueMalformed, match="effect"):
        parse.account(balances_with(cash_balance=value, cash_balance_effect=effect), NUMBER)


def test_an_effect_of_an_amount_that_is_not_read_changes_nothing() -> None:
    answer = balances_with(pending_cash="7000.0", pending_cash_effect="Credit")
    assert parse.account(answer, NUMBER) == parse.account(payload("balances.json"), NUMBER)


def test_the_answer_for_another_account_is_malformed() -> None:
    with pytest.raises(VenueMalformed, match="another account"):
        parse.account(payload("balances.json"), "5WX00001")


def test_a_list_of_currencies_gives_a_row_each_and_no_summary() -> None:
    dollars, euros = balances_with()["data"], balances_with(currency="EUR", cash_balance="3")["data"]
    account = parse.account({"data": {"items": [dollars, euros]}}, NUMBER)
    assert [(row.asset, row.total) for row in account.assets] == [("USD", Decimal("44178.164")), ("EUR", Decimal(3))]
    assert account.summary is None


def test_a_list_of_one_currency_is_that_currency() -> None:
    answer = {"data": {"items": [balances_with()["data"]]}}
    assert parse.account(answer, NUMBER) == parse.account(payload("balances.json"), NUMBER)


def test_a_list_with_a_repeated_or_missing_currency_is_malformed() -> None:
    entry = balances_with()["data"]
    for items in ([entry, entry], []):
        with pytest.raises(VenueMalformed, match="currency"):
            parse.account({"data": {"items": items}}, NUMBER)


@pytest.mark.parametrize(
    "answer", [None, [], {}, "", 0, {"data": None}, {"data": []}, {"data": {"items": None}}], ids=json.dumps
)
def test_balances_of_another_shape_are_malformed(answer: Any) -> None:
    with pytest.raises(VenueMalformed):
        parse.account(answer, NUMBER)


def test_the_list_gives_each_account_with_its_type_and_name() -> None:
    accounts = parse.listed_accounts(
        accounts_with(
            {"account-number": "5WX00000"},
            {"account-number": "5WX00001", "margin-or-cash": "CASH", "nickname": "Later"},
            {"account-number": "5WX00002", "is-closed": True},
            {"account-number": "5WX00003", "margin-or-cash": "Margin", "nickname": ...},
            {"account-number": "5WX00004", "nickname": ["Individual"]},
        )
    )
    assert list(accounts.values()) == [
        parse.ListedAccount("5WX00000", "margin", "Individual"),
        parse.ListedAccount("5WX00001", "cash", "Later"),
        parse.ListedAccount("5WX00002", "margin", "Individual", closed=True),
        parse.ListedAccount("5WX00003", "margin", ""),
        parse.ListedAccount("5WX00004", "margin", ""),
    ]
    assert list(accounts) == [f"5WX0000{digit}" for digit in range(5)]


def test_the_captured_list_has_a_retirement_account_a_margin_account_and_a_cash_account() -> None:
    assert list(parse.listed_accounts(payload("accounts_three.json")).values()) == [
        parse.ListedAccount("5YZ00000", "cash", "Roth IRA"),
        parse.ListedAccount("5WW00000", "margin", "Margin acct"),
        parse.ListedAccount("5WZ00000", "cash", "Individual"),
    ]


def test_a_login_without_accounts_has_an_empty_list() -> None:
    assert parse.listed_accounts({"data": {"items": []}}) == {}


def test_an_account_that_is_listed_twice_is_malformed_and_the_others_are_not() -> None:
    listed = parse.listed_accounts(accounts_with({}, {"account-number": "5WX00001"}, {"is-closed": True}))
    assert isinstance(listed[NUMBER], VenueMalformed)
    assert isinstance(listed["5WX00001"], parse.ListedAccount)


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"account-number": ...}, ""),
        ({"account-number": ""}, ""),
        ({"account-number": 7}, "7"),
        ({"is-closed": "true"}, NUMBER),
        ({"margin-or-cash": ...}, NUMBER),
        ({"margin-or-cash": None}, NUMBER),
        ({"margin-or-cash": True}, NUMBER),
        ({"margin-or-cash": "Portfolio"}, NUMBER),
    ],
    ids=str,
)
def test_an_account_of_another_shape_is_malformed_and_the_others_are_not(changes: dict[str, Any], number: str) -> None:
    listed = parse.listed_accounts(accounts_with(changes, {"account-number": "5WX00001"}))
    assert isinstance(listed[number], VenueMalformed)
    assert listed["5WX00001"] == parse.ListedAccount("5WX00001", "margin", "Individual")
    assert len(listed) == 2


@pytest.mark.parametrize("broken", [None, [], {}, {"account": []}, {"account": None}, "5WX00000"], ids=json.dumps)
def test_an_entry_that_is_no_account_is_malformed_and_the_others_are_not(broken: Any) -> None:
    answer = accounts_with({})
    answer["data"]["items"].append(broken)
    listed = parse.listed_accounts(answer)
    assert isinstance(listed[""], VenueMalformed)
    assert listed[NUMBER] == parse.ListedAccount(NUMBER, "margin", "Individual")


@pytest.mark.parametrize(
    "answer", [None, [], {}, {"data": None}, {"data": {}}, {"data": {"items": {}}}], ids=json.dumps
)
def test_a_list_of_another_shape_is_malformed(answer: Any) -> None:
    with pytest.raises(VenueMalformed):
        parse.listed_accounts(answer)


def test_a_requirement_that_is_negative_is_unknown() -> None:
    account = parse.account(balances_with(maintenance_requirement="-1"), NUMBER)
    assert account.assets[0].used is summary_of(account).margin_used is None


@pytest.mark.parametrize("nothing", [..., None, ""], ids=["missing", "null", "empty"])
def test_a_currency_whose_every_figure_is_empty_is_no_row_and_refuses_nothing(nothing: Any) -> None:
    figures = ("cash_balance", "net_liquidating_value", "derivative_buying_power", "equity_buying_power")
    empty = balances_with(currency="EUR", maintenance_requirement=nothing, **dict.fromkeys(figures, nothing))["data"]
    answer = {"data": {"items": [balances_with()["data"], empty]}}
    assert parse.account(answer, NUMBER) == parse.account(payload("balances.json"), NUMBER)


@pytest.mark.parametrize(
    ("stated", "used"), [(900, 840), ("900", 840), (3600, 3540), (120, 60), (60, 30), (1, 0.5), (..., 840), (None, 840)]
)
def test_an_access_token_is_left_a_minute_before_its_end(stated: Any, used: float) -> None:
    answer = payload("token.json")
    changed(answer, {"expires_in": stated})
    token = parse.access_token(answer, requested_at=1000.0)
    assert token.renew_at == 1000 + used
    assert token.secret.reveal() == "an.access.token"
    assert "an.access.token" not in repr(token)


@pytest.mark.parametrize("stated", [0, -1, "soon", True, "NaN", [], "1e400"])
def test_an_invalid_life_is_malformed(stated: Any) -> None:
    answer = payload("token.json")
    changed(answer, {"expires_in": stated})
    with pytest.raises(VenueMalformed):
        parse.access_token(answer, requested_at=0.0)


@pytest.mark.parametrize("token", [..., None, "", 7, "two words", "two\r\nlines", "tökén"])
def test_an_access_token_that_cannot_be_one_is_malformed_and_not_shown(token: Any) -> None:
    answer = payload("token.json")
    changed(answer, {"access_token": token})
    with pytest.raises(VenueMalformed, match=r"access.token") as refusal:
        parse.access_token(answer, requested_at=0.0)
    assert "words" not in refusal.value.message


def test_a_pushed_account_is_read_as_an_answer_is() -> None:
    [message] = parse.pushed_messages(payload("pushed_balance.json"))
    assert not parse.refuses(message)
    assert parse.connected_accounts(message) is None
    assert parse.pushed_number(message) == NUMBER
    assert parse.pushed_at(message) == (datetime(2026, 9, 17, 18, 32, 28, 424000, tzinfo=UTC), 2)
    assert parse.pushed_account(message, NUMBER) == parse.account(payload("balances.json"), NUMBER)


def test_an_answer_to_connect_names_its_accounts_or_refuses_them() -> None:
    connected, refused = payload("streamer_connected.json"), payload("streamer_refused.json")
    assert not parse.refuses(connected)
    assert parse.connected_accounts(connected) == {"5WX00000", "5WX00001"}
    assert parse.connected_accounts(connected | {"value": NUMBER}) == {NUMBER}
    assert parse.refuses(refused)


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({"data": None}, parse.pushed_number),
        ({"data": {}}, parse.pushed_number),
        ({"timestamp": None}, parse.pushed_at),
        ({"timestamp": "yesterday"}, parse.pushed_at),
    ],
)
def test_a_message_without_a_number_or_a_time_is_malformed(changes: dict[str, Any], read: Any) -> None:
    with pytest.raises(VenueMalformed):
        read(payload("pushed_balance.json") | changes)


@pytest.mark.parametrize("frame", [None, [], "a text", {"results": {}}])
def test_a_frame_that_is_not_of_the_venue_is_malformed(frame: Any) -> None:
    with pytest.raises(VenueMalformed):
        parse.pushed_messages(frame)
