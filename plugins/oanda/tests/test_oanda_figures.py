"""Each figure that OANDA states under a known name is the figure shown, over true answers and over made-up ones."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_oanda import parse
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange_service.plugin_api import AssetBalance, Summary, VenueMalformed, parse_json
from exchange_service.pytest_plugin import SWEEP
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
SUMMARIES = sorted(path.name for path in PAYLOADS.glob("summary*.json"))
# The member of OANDA's answer that each figure is.
ROW = {"total": "balance", "free": "marginAvailable", "used": "marginUsed"}
SUMMARY = {
    "total": "balance",
    "cash": "balance",
    "available": "marginAvailable",
    "equity": "NAV",
    "margin_used": "marginUsed",
    "unrealised_pnl": "unrealizedPL",
}
REQUIRED = ("balance", "NAV")
# How much is in use cannot be negative: such a figure is unknown.
IN_USE = "marginUsed"


def stated(account: dict[str, Any], member: str) -> Decimal | None:
    value = account.get(member)
    number = None if value in (None, "") else Decimal(value)
    return None if member == IN_USE and number is not None and number < 0 else number


def wrong_figures(answer: Any) -> list[str]:
    """The figures that are not the venue's, by name."""
    account = answer["account"]
    shown = parse.account(answer, account["id"])
    assert shown.summary is not None
    (row,) = shown.assets
    assert (row.asset, shown.summary.currency) == (account["currency"], account["currency"])
    wrong = [name for name, member in ROW.items() if getattr(row, name) != stated(account, member)]
    return wrong + [name for name, member in SUMMARY.items() if getattr(shown.summary, name) != stated(account, member)]


def test_each_figure_of_the_true_answers_is_the_figure_shown(
    record_property: Callable[[str, object], None],
) -> None:
    wrong = {name: wrong_figures(parse_json(read_payload(PAYLOADS / name))) for name in SUMMARIES}
    tried = len(SUMMARIES) * (len(ROW) + len(SUMMARY))
    record_property(SWEEP, ["figures of brokers", ["oanda"], tried, 0, sum(map(len, wrong.values()))])
    assert SUMMARIES
    assert wrong == {name: [] for name in SUMMARIES}


texts = st.decimals(-(10**9), 10**9, allow_nan=False, allow_infinity=False, places=4).map(str)
exponents = st.builds("{}E{}".format, st.integers(-999, 999), st.integers(-8, 8))
amounts = texts | exponents
optional = {name: st.sampled_from([None, ""]) | amounts for name in {*SUMMARY.values()} - {*REQUIRED}}
accounts = st.fixed_dictionaries(
    {"id": st.just("1"), "currency": st.sampled_from(["EUR", "JPY"]), "hedgingEnabled": st.booleans()}
    | dict.fromkeys(REQUIRED, amounts),
    optional=optional,
)


@settings(max_examples=150)
@given(accounts)
def test_each_stated_figure_is_shown_whatever_its_sign_and_its_spelling(account: dict[str, Any]) -> None:
    assert wrong_figures({"account": account}) == []


entries = st.sampled_from([{"id": "1"}, {"id": "2"}, {"id": "3", "tags": None}, {"id": 7}, {"id": ""}, {}, None, "4"])


@given(st.lists(entries, max_size=6))
def test_no_account_of_the_list_disappears(listed: list[Any]) -> None:
    shown = parse.listed_accounts({"accounts": listed})
    named = [entry["id"] for entry in listed if isinstance(entry, dict) and entry.get("id") in ("1", "2", "3")]
    assert set(shown) - {""} == set(named)
    assert ("" in shown) == (len(named) < len(listed))
    for name, account in shown.items():
        assert isinstance(account, VenueMalformed) == (name == "" or named.count(name) > 1)


@pytest.mark.parametrize("figures", [ROW, SUMMARY], ids=["row", "summary"])
def test_the_names_of_the_figures_are_those_of_the_model(figures: dict[str, str]) -> None:
    kind: Any = AssetBalance if figures is ROW else Summary
    assert set(figures) <= set(kind.__slots__)
