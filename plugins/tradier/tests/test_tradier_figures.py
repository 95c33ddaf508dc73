"""Each figure that Tradier states under a known name is the figure shown, over true answers and over made-up ones."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_tradier import parse
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange_service.plugin_api import VenueAccount, VenueMalformed, parse_json
from exchange_service.pytest_plugin import SWEEP
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
BALANCES = sorted(path.name for path in PAYLOADS.glob("*.json") if b"total_cash" in path.read_bytes())
KINDS = ("margin", "pdt", "cash")
# The member that each figure of the summary is, of the answer or of the object for the kind of account.
WHOLE = {"total": "total_cash", "cash": "total_cash", "equity": "total_equity", "unrealised_pnl": "open_pl"}
MARGIN = WHOLE | {
    "available": "option_buying_power",
    "buying_power": "stock_buying_power",
    "margin_used": "current_requirement",
}
CASH = WHOLE | {"available": "cash_available"}
OPTIONS = {"total": "total_cash", "cash": "total_cash", "equity": "total_equity", "margin_used": "option_requirement"}
OPTION_ROWS = {"OPTION_LONG": "option_long_value", "OPTION_SHORT": "option_short_value"}
# How much is in use cannot be negative: such a figure is unknown.
IN_USE = ("current_requirement", "option_requirement")


def stated(figures: dict[str, Any], member: str) -> Decimal | None:
    block = next(figures[kind] for kind in KINDS if kind in figures)
    value = figures.get(member, block.get(member))
    number = None if value in (None, "") else Decimal(value)
    return None if member in IN_USE and number is not None and number < 0 else number


def wrong_in_summary(account: VenueAccount, figures: dict[str, Any], members: dict[str, str]) -> list[str]:
    assert account.summary is not None
    return [name for name, member in members.items() if getattr(account.summary, name) != stated(figures, member)]


def wrong_figures(answer: Any) -> list[str]:
    """The figures that are not the venue's, by name, in both listings; and a reckoned one that cannot be."""
    figures = answer["balances"]
    is_cash = "cash" in figures
    whole = parse.account(answer, figures["account_number"])
    assert whole.summary is not None
    (row,) = whole.assets
    assert (row.total, row.free) == (whole.summary.total, whole.summary.available)
    wrong = wrong_in_summary(whole, figures, CASH if is_cash else MARGIN)
    options = parse.options_account(answer, figures["account_number"])
    rows = {entry.asset: entry for entry in options.assets}
    available = {"available": "cash_available" if is_cash else "option_buying_power"}
    wrong += wrong_in_summary(options, figures, OPTIONS | available)
    wrong += [name for name, member in OPTION_ROWS.items() if abs(rows[name].total or 0) != abs(figures[member])]
    bound_is_explained = row.used is None or not is_cash or row.free is None or row.free + row.used == row.total
    negative = [entry for entry in (row, *rows.values()) if (entry.used or 0) < 0 or (entry.debt or 0) < 0]
    return wrong + ["used"] * (not bound_is_explained) + ["negative"] * bool(negative)


def test_each_figure_of_the_true_answers_is_the_figure_shown(
    record_property: Callable[[str, object], None],
) -> None:
    wrong = {name: wrong_figures(parse_json(read_payload(PAYLOADS / name))) for name in BALANCES}
    tried = len(BALANCES) * (len(MARGIN) + len(OPTIONS) + 1 + len(OPTION_ROWS))
    record_property(SWEEP, ["figures of brokers", ["tradier"], tried, 0, sum(map(len, wrong.values()))])
    assert len(BALANCES) == 6
    assert wrong == {name: [] for name in BALANCES}


def test_the_documented_cash_account_has_cash_that_nothing_explains_so_what_is_used_is_unknown() -> None:
    row = parse.account(parse_json(read_payload(PAYLOADS / "documented_cash.json")), "VA00000000").assets[0]
    assert (str(row.total), str(row.free)) == ("6363.860000000000000000000000", "4343.38000000")
    assert row.used is None


numbers = st.decimals(-(10**9), 10**9, allow_nan=False, allow_infinity=False, places=2)
exponents = st.builds(lambda digits, places: Decimal(f"{digits}E{places}"), st.integers(-999, 999), st.integers(-8, 8))
amounts = numbers | exponents | st.just(0)
REQUIRED = ("total_cash", "total_equity", *OPTION_ROWS.values())
OPTIONAL = ("open_pl", "current_requirement", "option_requirement", "pending_cash")
BLOCK = ("option_buying_power", "stock_buying_power", "cash_available", "unsettled_funds")
blocks = st.fixed_dictionaries({}, optional=dict.fromkeys(BLOCK, amounts))


@st.composite
def answers(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(KINDS))
    figures = draw(
        st.fixed_dictionaries(
            {"account_number": st.just("6YA00000"), "account_type": st.sampled_from([kind, "", None]), kind: blocks}
            | dict.fromkeys(REQUIRED, amounts),
            optional=dict.fromkeys(OPTIONAL, amounts),
        )
    )
    return {"balances": figures}


@settings(max_examples=150)
@given(answers())
def test_each_stated_figure_is_shown_and_none_that_is_reckoned_is_negative(answer: dict[str, Any]) -> None:
    assert wrong_figures(answer) == []


members = {
    "account_number": st.sampled_from(["1", "2", 3, "", None, True]),
    "type": st.sampled_from(["margin", "Cash", "pdt", "joint", None, 1]),
    "status": st.sampled_from(["active", "closed", "Closed", 0, None]),
    "option_level": st.sampled_from([0, 3, "6", None, "many"]),
}
entries = st.fixed_dictionaries({}, optional=members) | st.sampled_from([None, [], "1"])


@given(st.lists(entries, max_size=6))
def test_no_account_of_the_profile_disappears_and_only_a_closed_one_is_left_out(listed: list[Any]) -> None:
    shown = parse.listed_accounts({"profile": {"account": listed}})
    accounts = [entry if isinstance(entry, dict) else {} for entry in listed]
    numbers = [account.get("account_number") for account in accounts]
    names = ["" if number in (None, True) else str(number) for number in numbers]
    assert set(shown) == set(names)
    for account, name in zip(accounts, names, strict=True):
        if not name or names.count(name) > 1:
            assert isinstance(shown[name], VenueMalformed)
        elif not parse.is_open(shown[name]):
            assert str(account["status"]).lower() == "closed"


@pytest.mark.parametrize("name", [name for name in BALANCES if "cash" in name])
def test_a_cash_account_has_no_buying_power(name: str) -> None:
    answer = parse_json(read_payload(PAYLOADS / name))
    summary = parse.account(answer, answer["balances"]["account_number"]).summary
    assert summary is not None
    assert summary.buying_power is None
