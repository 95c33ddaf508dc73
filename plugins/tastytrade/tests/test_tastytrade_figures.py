"""Each figure that tastytrade states under a known name is the figure shown, over true answers and made-up ones."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from exchange_service_tastytrade import parse
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange_service.plugin_api import VenueMalformed, parse_json
from exchange_service.pytest_plugin import SWEEP
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
BALANCES = sorted(path.name for path in PAYLOADS.glob("balances*.json"))
# The member of tastytrade's answer that each figure is.
ROW = {"total": "cash-balance", "free": "derivative-buying-power", "used": "maintenance-requirement"}
SUMMARY = {
    "total": "cash-balance",
    "cash": "cash-balance",
    "available": "derivative-buying-power",
    "equity": "net-liquidating-value",
    "margin_used": "maintenance-requirement",
    "buying_power": "equity-buying-power",
}
REQUIRED = ("cash-balance", "net-liquidating-value")
# How much is in use cannot be negative: such a figure is unknown.
IN_USE = "maintenance-requirement"


def stated(data: dict[str, Any], member: str) -> Decimal | None:
    value = data.get(member)
    number = None if value in (None, "") else Decimal(value)
    if number is not None and data.get(f"{member}-effect") == "Debit":
        number = -number
    return None if member == IN_USE and number is not None and number < 0 else number


def wrong_figures(data: dict[str, Any]) -> list[str]:
    """The figures that are not the venue's, by name."""
    shown = parse.account({"data": data}, data["account-number"])
    assert shown.summary is not None
    (row,) = shown.assets
    assert row.asset == shown.summary.currency == (data.get("currency") or "USD")
    wrong = [name for name, member in ROW.items() if getattr(row, name) != stated(data, member)]
    return wrong + [name for name, member in SUMMARY.items() if getattr(shown.summary, name) != stated(data, member)]


def test_each_figure_of_the_true_answers_is_the_figure_shown(
    record_property: Callable[[str, object], None],
) -> None:
    wrong = {name: wrong_figures(parse_json(read_payload(PAYLOADS / name))["data"]) for name in BALANCES}
    tried = len(BALANCES) * (len(ROW) + len(SUMMARY))
    record_property(SWEEP, ["figures of brokers", ["tastytrade"], tried, 0, sum(map(len, wrong.values()))])
    assert BALANCES
    assert wrong == {name: [] for name in BALANCES}


texts = st.decimals(-(10**9), 10**9, allow_nan=False, allow_infinity=False, places=3).map(str)
exponents = st.builds("{}E{}".format, st.integers(-999, 999), st.integers(-8, 8))
amounts = texts | exponents
optional = {name: st.sampled_from([None, ""]) | amounts for name in {*SUMMARY.values()} - {*REQUIRED}}
times = st.none() | st.text(max_size=30) | st.integers() | st.just("2026-03-05T21:38:23.529+00:00")
answers = st.fixed_dictionaries(
    {"account-number": st.just("5WX00000"), "updated-at": times} | dict.fromkeys(REQUIRED, amounts),
    optional=optional | {"currency": st.sampled_from(["USD", "EUR", "", None])},
)


@settings(max_examples=150)
@given(answers)
def test_each_stated_figure_is_shown_whatever_its_sign_its_spelling_and_its_time(data: dict[str, Any]) -> None:
    assert wrong_figures(data) == []


members = {
    "account-number": st.sampled_from(["1", "2", "3", 7, "", None]),
    "margin-or-cash": st.sampled_from(["Margin", "Cash", "Portfolio", None, 1]),
    "is-closed": st.sampled_from([True, False, None, "no"]),
}
entries = st.fixed_dictionaries({"account": st.fixed_dictionaries({}, optional=members)}) | st.sampled_from([None, {}])


@given(st.lists(entries, max_size=6))
def test_no_account_of_the_list_disappears_and_none_that_cannot_be_read_passes_for_closed(listed: list[Any]) -> None:
    shown = parse.listed_accounts({"data": {"items": listed}})
    accounts = [(entry or {}).get("account", {}) for entry in listed]
    names = [str(account.get("account-number") or "") for account in accounts]
    assert set(shown) == set(names)
    for account, name in zip(accounts, names, strict=True):
        closed = account.get("is-closed") is True and account.get("margin-or-cash") in ("Margin", "Cash")
        hidden = not parse.is_open(shown[name])
        assert not hidden or closed
        known = account.get("margin-or-cash") in ("Margin", "Cash") and account.get("is-closed") != "no"
        if name not in ("", "7") and names.count(name) == 1:
            assert isinstance(shown[name], VenueMalformed) != known
