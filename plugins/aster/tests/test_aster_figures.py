"""Each figure that Aster states is the figure shown: over the recorded answers, and over made ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from exchange_service_aster import ASTER, parse
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange_service.plugin_api import VenueAccount, parse_json
from exchange_service.pytest_plugin import SWEEP
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
WALLET = "0x63dd5acc6b1aa0f563956c0e534dd30b6dcf7c4e"
# By the figure of a summary: Aster's member.
SUMMARY = {
    "total": "totalWalletBalance",
    "cash": "totalWalletBalance",
    "available": "availableBalance",
    "equity": "totalMarginBalance",
    "margin_used": "totalInitialMargin",
    "unrealised_pnl": "totalUnrealizedProfit",
}
# What is not zero of an asset that is more than lent.
HELD = ("walletBalance", "marginBalance", "unrealizedProfit", "initialMargin", "maintMargin")


def recorded() -> dict[str, Any]:
    """The recorded answers with accounts, by the name of the file."""
    answers = {path.stem: parse_json(read_payload(path)) for path in PAYLOADS.glob("*.json")}
    return {name: answer for name, answer in answers.items() if "assets" in answer or "balances" in answer}


def account_of(answer: Any) -> VenueAccount:
    return (parse.futures_account if "assets" in answer else parse.spot_account)(answer, WALLET)


def number(value: Any) -> Decimal | None:
    return None if value in (None, "") else Decimal(value)


def wrong_figures(answer: Mapping[str, Any]) -> list[str]:
    """What is wrong with an account: a figure that is not the stated one, or a row that is missing."""
    account = account_of(answer)
    shown = {row.asset: row for row in account.assets}
    wrong = []
    for entry in answer.get("assets", ()):
        row = shown.get(entry["asset"])
        stated = tuple(number(entry.get(name)) for name in ("walletBalance", "availableBalance", "initialMargin"))
        if row is None and any(number(entry.get(name)) for name in HELD):
            wrong.append(f"{entry['asset']} is missing")
        if row is not None and (row.total, row.free, row.used) != stated:
            wrong.append(f"{entry['asset']} in futures")
    for entry in answer.get("balances", ()):
        row = shown.get(entry["asset"])
        free, locked = number(entry["free"]), number(entry["locked"])
        if row is None or (row.free, row.used) != (free, locked) or row.mismatch():
            wrong.append(f"{entry['asset']} on spot")
        if row is not None and row.total is not None and row.total < 0:
            wrong.append(f"{entry['asset']} is negative")
    if account.summary is not None:
        wrong += [
            figure for figure, name in SUMMARY.items() if getattr(account.summary, figure) != number(answer.get(name))
        ]
    return wrong


def test_each_figure_of_a_recorded_answer_is_the_figure_shown(record_property: Callable[[str, object], None]) -> None:
    wrong = {name: texts for name, answer in recorded().items() if (texts := wrong_figures(answer))}
    record_property(SWEEP, ["the figures of recorded answers", ["aster"], len(recorded()), 0, len(wrong)])
    assert len(recorded()) >= 5
    assert wrong == {}


def test_every_listed_account_type_is_read_from_recorded_answers() -> None:
    held = {
        account.type for account in map(account_of, recorded().values()) if any(row.total for row in account.assets)
    }
    assert held == set(ASTER.account_types)


def test_a_true_account_has_the_figures_of_the_venue_and_its_total_counts_usdt_alone() -> None:
    account = account_of(recorded()["true_account_v3"])
    assert {row.asset: row.total for row in account.assets} == {
        "USDT": Decimal("23.72469206"),
        "BUSD": Decimal("103.12345678"),
    }
    assert account.summary is not None
    assert account.summary.total == Decimal("23.72469206")
    assert parse.notes([account]) == ()
    assert parse.overall_summary([account]) is None
    assert account.venue_time == datetime(2021, 7, 5, 8, 38, 24, 765000, tzinfo=UTC)


def test_a_true_list_of_agents_is_read() -> None:
    answer = parse_json(read_payload(PAYLOADS / "true_agents.json"))
    rights = parse.key_rights(answer, "0x2610d3935a008036af0ae12d014c8904b75fc5e9")
    assert (rights.trade, rights.withdraw) == (True, False)
    assert rights.expires == datetime(2029, 3, 11, 17, 43, 15, 40000, tzinfo=UTC)


AMOUNTS = st.one_of(
    st.decimals(min_value=-(10**6), max_value=10**9, places=8, allow_nan=False).map(lambda value: f"{value:f}"),
    st.sampled_from(["0", "0.00000000", "1e3", "-2.5E-7", "0E-8"]),
)
OPTIONAL = st.one_of(AMOUNTS, st.none(), st.just(""))
NAMES = st.sampled_from(["USDT", "BNB", "USDF", "ASTER"])
ASSETS = st.lists(
    st.fixed_dictionaries(
        {"asset": NAMES, "walletBalance": AMOUNTS},
        optional={
            "availableBalance": OPTIONAL,
            "initialMargin": OPTIONAL,
            "maintMargin": OPTIONAL,
            "marginBalance": OPTIONAL,
            "unrealizedProfit": OPTIONAL,
            "updateTime": st.sampled_from([0, 1764000000123, "soon", None, -1]),
        },
    ),
    unique_by=lambda entry: entry["asset"],
    max_size=4,
)
FUTURES = st.fixed_dictionaries(
    # No total, as a total beside a list in which nothing is held is refused.
    {"assets": ASSETS, "totalWalletBalance": st.just("0"), "totalMarginBalance": AMOUNTS},
    optional={"availableBalance": OPTIONAL, "totalInitialMargin": OPTIONAL, "totalUnrealizedProfit": OPTIONAL},
)
SPOT = st.fixed_dictionaries(
    {
        "balances": st.lists(
            st.fixed_dictionaries({"asset": NAMES, "free": AMOUNTS, "locked": AMOUNTS}),
            unique_by=lambda entry: entry["asset"],
            max_size=4,
        )
    },
    optional={"updateTime": st.sampled_from([0, 1764000000123456789, "soon", None])},
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(answer=st.one_of(FUTURES, SPOT))
def test_any_account_is_shown_as_it_is(answer: dict[str, Any]) -> None:
    assert wrong_figures(answer) == []
