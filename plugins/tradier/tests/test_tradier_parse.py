"""Tradier's payloads as the service's nouns."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_tradier import parse
from exchange_service_tradier.parse import ListedAccount

from exchange_service.plugin_api import AssetBalance, FeatureNotEnabled, Summary, VenueMalformed, parse_json
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
MARGIN, DAY_TRADER, CASH = "6YA00000", "6YD33333", "6YB11111"
NUMBERS = {"balances_margin.json": MARGIN, "balances_pdt.json": DAY_TRADER, "balances_cash.json": CASH}


def payload(name: str) -> Any:
    return parse_json(read_payload(PAYLOADS / name))


def changed(name: str, *, block: str = "", **changes: Any) -> Any:
    """A recorded answer with some fields changed, of the balances or of a block of theirs; `...` leaves one out."""
    answer = payload(name)
    figures = answer["balances"][block] if block else answer["balances"]
    for field, value in changes.items():
        if value is ...:
            del figures[field]
        else:
            figures[field] = value
    return answer


def margin_with(**changes: Any) -> Any:
    return changed("balances_margin.json", **changes)


def cash_with(**changes: Any) -> Any:
    return changed("balances_cash.json", **changes)


def summary_of(answer: Any, number: str = MARGIN) -> Summary:
    summary = parse.account(answer, number).summary
    assert summary is not None
    return summary


def options_summary_of(answer: Any, number: str = MARGIN) -> Summary:
    summary = parse.options_account(answer, number).summary
    assert summary is not None
    return summary


def rows_of(answer: Any, number: str = MARGIN) -> dict[str, AssetBalance]:
    return {row.asset: row for row in parse.options_account(answer, number).assets}


class TestTheAccountAsAWhole:
    def test_a_margin_account_is_one_row_of_cash(self) -> None:
        account = parse.account(payload("balances_margin.json"), MARGIN)
        cash, free, used = Decimal("18450.27"), Decimal("14203.77"), Decimal("11555.00")
        assert account.assets == (AssetBalance("USD", total=cash, free=free, used=used, kind="cash"),)
        assert (account.id, account.type, account.label) == (MARGIN, "margin", "")

    def test_its_summary_has_every_figure_of_the_worked_example(self) -> None:
        assert summary_of(payload("balances_margin.json")) == Summary(
            "USD",
            total=Decimal("18450.27"),
            cash=Decimal("18450.27"),
            equity=Decimal("40615.27"),
            available=Decimal("14203.77"),
            margin_used=Decimal("11555.00"),
            unrealised_pnl=Decimal("612.40"),
            buying_power=Decimal("28407.54"),
        )

    def test_a_pattern_day_trader_has_a_margin_account_with_figures_of_its_own(self) -> None:
        account = parse.account(payload("balances_pdt.json"), DAY_TRADER)
        summary = summary_of(payload("balances_pdt.json"), DAY_TRADER)
        assert account.type == "margin"
        assert (summary.available, summary.buying_power) == (Decimal("30100.00"), Decimal("60200.00"))
        assert summary.margin_used == Decimal("15050.00")

    def test_a_day_traders_buying_power_may_be_missing(self) -> None:
        answer = changed("balances_pdt.json", block="pdt", day_trade_buying_power=...)
        assert summary_of(answer, DAY_TRADER) == summary_of(payload("balances_pdt.json"), DAY_TRADER)

    def test_a_cash_account_has_its_available_cash_and_no_leverage(self) -> None:
        account = parse.account(payload("balances_cash.json"), CASH)
        summary = summary_of(payload("balances_cash.json"), CASH)
        cash, free, used = Decimal("5370.33"), Decimal("5120.33"), Decimal("250.00")
        assert account.type == "cash"
        assert account.assets == (AssetBalance("USD", total=cash, free=free, used=used, kind="cash"),)
        assert (summary.available, summary.margin_used, summary.buying_power) == (free, used, None)

    def test_the_used_cash_of_a_cash_account_is_unsettled_or_reserved_by_orders(self) -> None:
        answer = cash_with(pending_cash=Decimal("0.000000000000000000000001"))
        answer["balances"]["cash"]["cash_available"] = Decimal("5120.329999999999999999999999")
        used = parse.account(answer, CASH).assets[0].used
        assert str(used) == "250.000000000000000000000001"

    @pytest.mark.parametrize(
        "answer",
        [
            changed("balances_cash.json", pending_cash=...),
            changed("balances_cash.json", pending_cash=None),
            changed("balances_cash.json", block="cash", unsettled_funds=...),
            changed("balances_cash.json", pending_cash=Decimal(-251)),
            changed("balances_cash.json", pending_cash=Decimal(-1)),
            changed("balances_cash.json", block="cash", cash_available=...),
            changed("balances_cash.json", block="cash", cash_available=Decimal("5100.00")),
        ],
        ids=[
            "no pending cash",
            "pending cash null",
            "no unsettled funds",
            "less than nothing",
            "a part that is negative",
            "no available cash",
            "cash that the parts do not explain",
        ],
    )
    def test_if_a_part_of_it_is_unknown_so_is_the_used_cash(self, answer: Any) -> None:
        assert parse.account(answer, CASH).assets[0].used is None
        assert summary_of(answer, CASH).margin_used is None

    def test_no_digit_is_added_or_lost(self) -> None:
        row = parse.account(payload("balances_margin.json"), MARGIN).assets[0]
        assert str(row.total) == "18450.2700000000000000"
        long = '{"balances": {"account_number": "1", "total_cash": 1234567890123456789.012345678901234567890123,'
        answer = parse_json(long + '"total_equity": 1, "margin": {"option_buying_power": 98765432109876543210}}}')
        row = parse.account(answer, "1").assets[0]
        assert str(row.total) == "1234567890123456789.012345678901234567890123"
        assert str(row.free) == "98765432109876543210"

    def test_the_legacy_equity_is_never_used(self) -> None:
        assert summary_of(margin_with(equity=Decimal("99.99"))).equity == Decimal("40615.27")
        with pytest.raises(VenueMalformed, match="total_equity"):
            parse.account(margin_with(total_equity=..., equity=Decimal("99.99")), MARGIN)

    @pytest.mark.parametrize("value", [..., None, ""], ids=["missing", "null", "empty"])
    def test_a_figure_that_tradier_does_not_state_is_unknown_and_not_zero(self, value: Any) -> None:
        assert summary_of(margin_with(open_pl=value)).unrealised_pnl is None
        assert summary_of(margin_with(current_requirement=value)).margin_used is None
        assert summary_of(margin_with(block="margin", option_buying_power=value)).available is None
        assert summary_of(margin_with(block="margin", stock_buying_power=value)).buying_power is None
        assert summary_of(cash_with(block="cash", cash_available=value), CASH).available is None

    def test_debt_and_loss_are_taken_as_they_are(self) -> None:
        summary = summary_of(margin_with(total_cash=Decimal("-1200.50"), open_pl=Decimal("-3.10")))
        assert (summary.cash, summary.unrealised_pnl) == (Decimal("-1200.50"), Decimal("-3.10"))


class TestWhichFiguresCount:
    """The part of an answer that depends on the kind of account."""

    def test_the_account_type_chooses_among_several_blocks(self) -> None:
        block = {"option_buying_power": Decimal(1), "stock_buying_power": Decimal(2)}
        answer = margin_with(account_type="pdt", pdt=block)
        assert (summary_of(answer).available, summary_of(answer).buying_power) == (Decimal(1), Decimal(2))

    def test_it_is_read_in_any_case(self) -> None:
        assert summary_of(margin_with(account_type="MARGIN")).available == Decimal("14203.77")

    @pytest.mark.parametrize("name", NUMBERS)
    @pytest.mark.parametrize("kind", [..., None, "null", "portfolio"])
    def test_without_a_usable_type_the_block_that_is_present_counts(self, name: str, kind: Any) -> None:
        answer = changed(name, account_type=kind)
        assert parse.account(answer, NUMBERS[name]) == parse.account(payload(name), NUMBERS[name])

    @pytest.mark.parametrize("nothing", [..., None, "null"])
    def test_if_the_block_that_the_type_names_is_missing_the_other_counts(self, nothing: Any) -> None:
        answer = margin_with(account_type="pdt", pdt=None)
        if nothing is not ...:
            answer["balances"]["cash"] = nothing
        assert parse.account(answer, MARGIN) == parse.account(payload("balances_margin.json"), MARGIN)

    @pytest.mark.parametrize("nothing", [..., None, "null", [], "margin", 0])
    def test_an_answer_without_any_is_malformed(self, nothing: Any) -> None:
        with pytest.raises(VenueMalformed, match="margin"):
            parse.account(margin_with(margin=nothing), MARGIN)


class TestTheOptionsView:
    def test_the_figures_of_the_worked_example(self) -> None:
        assert options_summary_of(payload("balances_margin.json")) == Summary(
            "USD",
            total=Decimal("18450.27"),
            cash=Decimal("18450.27"),
            equity=Decimal("40615.27"),
            available=Decimal("14203.77"),
            margin_used=Decimal(0),
        )

    def test_its_rows_are_cash_as_options_may_use_it_and_the_options_values(self) -> None:
        account = parse.options_account(payload("balances_margin.json"), MARGIN)
        short = Decimal("-940.00")
        assert account.type == "options"
        assert account.assets == (
            AssetBalance("USD", total=Decimal("18450.27"), free=Decimal("14203.77"), used=Decimal(0), kind="cash"),
            AssetBalance("OPTION_LONG", total=Decimal("1875.00"), venue_asset="option_long_value"),
            AssetBalance("OPTION_SHORT", total=short, debt=Decimal("940.00"), venue_asset="option_short_value"),
            AssetBalance("OPTION_NET", total=Decimal("935.00")),
        )

    def test_no_digit_of_them_is_added_or_lost(self) -> None:
        rows = rows_of(payload("balances_margin.json"))
        assert [str(rows[name].total) for name in ("OPTION_LONG", "OPTION_SHORT", "OPTION_NET")] == [
            "1875.00",
            "-940.00",
            "935.00",
        ]
        assert str(rows["OPTION_SHORT"].debt) == "940.00"

    def test_the_sign_of_the_short_value_does_not_matter(self) -> None:
        old, new = margin_with(option_short_value=Decimal("940.00")), payload("balances_margin.json")
        assert parse.options_account(old, MARGIN) == parse.options_account(new, MARGIN)

    def test_nothing_short_is_a_plain_zero(self) -> None:
        assert str(rows_of(margin_with(option_short_value=0))["OPTION_SHORT"].total) == "0"

    def test_a_cash_account_buys_options_with_its_available_cash(self) -> None:
        summary = options_summary_of(payload("balances_cash.json"), CASH)
        assert (summary.available, summary.margin_used) == (Decimal("5120.33"), Decimal(0))

    def test_a_day_traders_own_figures_are_used(self) -> None:
        assert options_summary_of(payload("balances_pdt.json"), DAY_TRADER).available == Decimal("30100.00")

    def test_profit_that_includes_stocks_is_not_shown_for_options(self) -> None:
        assert options_summary_of(payload("balances_margin.json")).unrealised_pnl is None

    def test_the_requirement_may_be_more_than_that_of_the_whole_account(self) -> None:
        answer = margin_with(option_requirement=Decimal("12000.00"))
        assert options_summary_of(answer).margin_used == Decimal("12000.00")

    def test_a_requirement_that_is_not_stated_is_unknown(self) -> None:
        answer = margin_with(option_requirement=...)
        assert options_summary_of(answer).margin_used is None
        assert rows_of(answer)["USD"].used is None

    @pytest.mark.parametrize("nothing", [..., None, ""], ids=["missing", "null", "empty"])
    def test_an_account_without_options_figures_has_no_options_and_not_zeros(self, nothing: Any) -> None:
        answer = margin_with(option_long_value=nothing, option_short_value=nothing, option_requirement=nothing)
        with pytest.raises(FeatureNotEnabled, match=f"not enabled for the account {MARGIN}"):
            parse.options_account(answer, MARGIN)

    @pytest.mark.parametrize("field", ["option_long_value", "option_short_value"])
    def test_half_of_its_value_is_malformed(self, field: str) -> None:
        with pytest.raises(VenueMalformed, match=field):
            parse.options_account(margin_with(**{field: ...}), MARGIN)


class TestOpenCalls:
    def test_most_accounts_have_no_open_call(self) -> None:
        for name, number in NUMBERS.items():
            assert parse.open_calls(payload(name), number) == ()

    def test_each_has_a_note_with_its_amount(self) -> None:
        answer = margin_with(block="margin", maintenance_call=Decimal("1250.00"), fed_call=Decimal("3E+2"))
        assert parse.open_calls(answer, MARGIN) == (
            "Account 6YA00000: Tradier has an open maintenance call of 1250.00 USD.",
            "Account 6YA00000: Tradier has an open fed call of 300 USD.",
        )


class TestTheProfile:
    def test_one_account_stands_there_bare(self) -> None:
        assert parse.listed_accounts(payload("profile_one_account.json")) == {
            MARGIN: ListedAccount(MARGIN, "margin", option_level=Decimal(3))
        }

    def test_several_stand_in_a_list_and_numbers_are_texts(self) -> None:
        assert list(parse.listed_accounts(payload("profile_several_accounts.json")).values()) == [
            ListedAccount(MARGIN, "margin", option_level=Decimal(3)),
            ListedAccount("60911111", "cash", option_level=Decimal(0)),
            ListedAccount("6YC22222", "margin", option_level=Decimal(2), closed=True),
        ]

    def test_the_documented_one_has_three_accounts(self) -> None:
        assert list(parse.listed_accounts(payload("documented_profile.json")).values()) == [
            ListedAccount("VA000001", "margin", option_level=Decimal(6)),
            ListedAccount("VA000002", "margin", option_level=Decimal(3)),
            ListedAccount("VA000003", "cash", option_level=Decimal(2)),
        ]

    def test_an_old_one_has_a_number_as_the_status_and_no_option_level(self) -> None:
        assert list(parse.listed_accounts(payload("profile_of_2014.json")).values()) == [
            ListedAccount("60911111", "margin"),
            ListedAccount("60922222", "margin"),
        ]

    @pytest.mark.parametrize("profile", [{}, {"account": None}, {"account": "null"}, {"account": []}], ids=json.dumps)
    def test_an_empty_list_has_several_forms(self, profile: Any) -> None:
        assert parse.listed_accounts({"profile": profile}) == {}

    def test_a_figure_that_it_does_not_state_is_unknown(self) -> None:
        answer = {"profile": {"account": {"account_number": MARGIN, "type": "joint"}}}
        assert parse.listed_accounts(answer) == {MARGIN: ListedAccount(MARGIN)}

    @pytest.mark.parametrize("other", [60911111, "60911111"])
    def test_one_that_is_listed_twice_is_malformed_and_the_others_are_not(self, other: Any) -> None:
        accounts = [{"account_number": 60911111}, {"account_number": MARGIN}, {"account_number": other}]
        listed = parse.listed_accounts({"profile": {"account": accounts}})
        assert isinstance(listed["60911111"], VenueMalformed)
        assert listed[MARGIN] == ListedAccount(MARGIN)

    @pytest.mark.parametrize("number", [..., None, "", True, [], Decimal("1.5")], ids=str)
    def test_one_without_a_number_is_malformed_and_the_others_are_not(self, number: Any) -> None:
        broken = {} if number is ... else {"account_number": number}
        listed = parse.listed_accounts({"profile": {"account": [broken, None, {"account_number": MARGIN}]}})
        assert isinstance(listed[""], VenueMalformed)
        assert listed[MARGIN] == ListedAccount(MARGIN)

    def test_one_whose_option_level_cannot_be_read_is_malformed_and_the_others_are_not(self) -> None:
        accounts = [{"account_number": MARGIN, "option_level": "many"}, {"account_number": CASH}]
        listed = parse.listed_accounts({"profile": {"account": accounts}})
        assert isinstance(listed[MARGIN], VenueMalformed)
        assert listed[CASH] == ListedAccount(CASH)

    @pytest.mark.parametrize(
        "answer",
        [
            None,
            [],
            {},
            {"profile": None},
            {"profile": "null"},
            {"profile": []},
            {"profile": {"account": "6YA00000"}},
            {"profile": {"account": 7}},
        ],
        ids=json.dumps,
    )
    def test_one_of_another_shape_is_malformed(self, answer: Any) -> None:
        with pytest.raises(VenueMalformed):
            parse.listed_accounts(answer)


class TestWhatIsNoBalance:
    @pytest.fixture(params=[parse.account, parse.options_account], ids=["whole", "options"])
    def view(self, request: pytest.FixtureRequest) -> Any:
        return request.param

    @pytest.mark.parametrize("field", ["account_number", "total_cash", "total_equity"])
    @pytest.mark.parametrize("value", [..., None, ""], ids=["missing", "null", "empty"])
    def test_an_answer_without_the_required_figures_is_malformed(self, view: Any, field: str, value: Any) -> None:
        with pytest.raises(VenueMalformed, match=field):
            view(margin_with(**{field: value}), MARGIN)

    @pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400", "12,5", "many", True, [], {}])
    def test_a_figure_that_is_not_a_number_is_malformed(self, value: Any) -> None:
        for field in ("total_cash", "total_equity", "open_pl", "current_requirement"):
            with pytest.raises(VenueMalformed, match=field):
                parse.account(margin_with(**{field: value}), MARGIN)
        for field in ("option_long_value", "option_short_value", "option_requirement"):
            with pytest.raises(VenueMalformed, match=field):
                parse.options_account(margin_with(**{field: value}), MARGIN)
        for field in ("option_buying_power", "stock_buying_power"):
            with pytest.raises(VenueMalformed, match=field):
                parse.account(margin_with(block="margin", **{field: value}), MARGIN)

    def test_the_answer_for_another_account_is_malformed(self, view: Any) -> None:
        with pytest.raises(VenueMalformed, match="another account"):
            view(payload("balances_margin.json"), CASH)

    def test_a_number_of_digits_is_the_same_account_as_a_text_and_as_a_number(self, view: Any) -> None:
        as_number = margin_with(account_number=60911111)
        assert view(as_number, "60911111") == view(margin_with(account_number="60911111"), "60911111")
        with pytest.raises(VenueMalformed, match="another account"):
            view(as_number, "060911111")

    @pytest.mark.parametrize(
        "answer", [None, [], {}, "", 0, {"balances": None}, {"balances": "null"}, {"balances": []}], ids=json.dumps
    )
    def test_an_answer_of_another_shape_is_malformed(self, view: Any, answer: Any) -> None:
        with pytest.raises(VenueMalformed):
            view(answer, MARGIN)
