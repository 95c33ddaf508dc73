"""Each figure that Hyperliquid states is the figure shown: over the recorded answers, and over made ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_hyperliquid import parse
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange_service.plugin_api import AssetBalance, parse_json
from exchange_service.pytest_plugin import SWEEP
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
ADDRESS = "0x8c967e73e6b15087c42a10d344cff4c96d877f1d"
MODES = [*sorted(parse.STANDARD_MODES), *sorted(parse.UNIFIED_MODES), parse.UNSET_MODE, "someNewMode"]


def recorded(prefix: str) -> dict[str, Any]:
    """The recorded answers of one kind, by the name of the file."""
    files = [path for path in PAYLOADS.glob("*.json") if path.stem.removeprefix("true_").startswith(prefix)]
    return {path.stem: parse_json(read_payload(path)) for path in files}


def number(value: Any) -> Decimal | None:
    return None if value in (None, "") else Decimal(value)


def wrong_spot_figures(entry: Mapping[str, Any], row: AssetBalance, *, lends: bool) -> list[str]:
    """What is wrong with a row: a figure that the venue states and the row does not, or an impossible one."""
    total, hold = number(entry["total"]), number(entry.get("hold"))
    whole, debt = number(entry.get("spotHold")), number(entry.get("borrowed"))
    netted = lends or any(entry.get(name) is not None for name in ("borrowed", "supplied", "ltv"))
    used = whole if whole is not None else None if netted and hold else hold
    wrong = [] if (row.total, row.debt) == (total, debt) else ["total or debt"]
    if row.used != (used if used is not None and used >= 0 else None):
        wrong.append("used")
    if row.used is not None and row.used < 0:
        wrong.append("negative used")
    if row.free is not None and row.free < 0:
        wrong.append("negative free")
    if row.mismatch() and None not in (row.free, row.used):
        wrong.append("parts that do not add up")
    if netted and whole and row.free is not None and row.free > (total or 0) - whole:
        wrong.append("free beyond what is owned")
    return wrong


def wrong_spot_state(answer: Mapping[str, Any]) -> list[str]:
    state = parse.spot_state(answer)
    rows = {row.asset: row for row in state.rows}
    told = [entry for entry in answer["balances"] if (entry["total"], entry.get("hold")) != ("", "")]
    if list(rows) != [entry["coin"] for entry in told]:
        return [f"rows: {list(rows)}"]
    lends = answer.get("portfolioMarginEnabled") is True
    wrong = [text for entry in told for text in wrong_spot_figures(entry, rows[entry["coin"]], lends=lends)]
    escrows = {row.asset: row.total for row in state.escrows}
    stated = {entry["coin"]: Decimal(entry["total"]) for entry in answer.get("evmEscrows") or []}
    return wrong if escrows == stated else [*wrong, "escrow"]


def wrong_perp_state(answer: Mapping[str, Any]) -> list[str]:
    state = parse.perp_state(answer)
    row = parse.wallet(ADDRESS, "default", parse.spot_state({"balances": []}), (state,)).accounts[0].assets[0]
    margin = answer["marginSummary"]
    stated = (margin["accountValue"], answer["withdrawable"], margin["totalMarginUsed"])
    profit = sum((Decimal(entry["position"]["unrealizedPnl"]) for entry in answer["assetPositions"]), Decimal(0))
    wrong = [] if (row.total, row.free, row.used) == tuple(map(Decimal, stated)) else ["a figure of the row"]
    return wrong if state.unrealised_pnl == profit else [*wrong, "unrealised profit"]


def test_each_figure_of_a_recorded_answer_is_the_figure_shown(record_property: Callable[[str, object], None]) -> None:
    results = {name: wrong_spot_state(answer) for name, answer in recorded("spot_state").items()}
    results |= {name: wrong_perp_state(answer) for name, answer in recorded("clearinghouse_state").items()}
    for name, answer in recorded("vault_equities").items():
        totals = [account.assets[0].total for account in parse.vault_accounts(answer, ADDRESS)]
        results[name] = [] if totals == [Decimal(entry["equity"]) for entry in answer] else ["equity"]
    for name, answer in recorded("delegator_summary").items():
        (row,) = parse.staking_account(answer, ADDRESS).assets
        parts = [Decimal(answer[part]) for part in ("undelegated", "delegated", "totalPendingWithdrawal")]
        results[name] = [] if (row.free, row.used, row.total) == (*parts[:2], sum(parts)) else ["a part"]
    wrong = {name: texts for name, texts in results.items() if texts}
    record_property(SWEEP, ["the figures of recorded answers", ["hyperliquid"], len(results), 0, len(wrong)])
    assert len(results) >= 20
    assert wrong == {}


@pytest.mark.parametrize("mode", MODES)
def test_no_recorded_row_that_holds_something_disappears_in_any_mode(mode: str) -> None:
    perps = [parse.perp_state(answer) for answer in recorded("clearinghouse_state").values()]
    for name, answer in recorded("spot_state").items():
        state = parse.spot_state(answer)
        for perp in perps:
            result = parse.wallet(ADDRESS, mode, state, (perp,))
            shown = {row.asset for account in result.accounts if account.type == "spot" for row in account.assets}
            assert shown >= {entry["coin"] for entry in answer["balances"]}, name
            assert shown >= {entry["coin"] for entry in answer.get("evmEscrows") or []}, name


AMOUNTS = st.one_of(
    st.decimals(min_value=-(10**9), max_value=10**9, places=8, allow_nan=False).map(lambda value: f"{value:f}"),
    st.sampled_from(["0", "0.0", "1e3", "2.5E-7", "0E-8", "-0.0"]),
)
COINS = st.sampled_from(["USDC", "HYPE", "UBTC", "+12", "o3", "#970"])
ROWS = st.lists(
    st.fixed_dictionaries(
        {"coin": COINS, "total": AMOUNTS},
        optional={
            "hold": st.one_of(AMOUNTS, st.none(), st.just("")),
            "spotHold": AMOUNTS,
            "borrowed": AMOUNTS.map(lambda value: value.removeprefix("-")),
            "supplied": AMOUNTS,
            "entryNtl": AMOUNTS,
        },
    ),
    unique_by=lambda entry: entry["coin"],
    max_size=4,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    rows=ROWS,
    fields=st.fixed_dictionaries(
        {},
        optional={
            "portfolioMarginEnabled": st.booleans(),
            "tokenToAvailableAfterMaintenance": st.just([[0, "1.0"]]),
            "evmEscrows": st.lists(
                st.fixed_dictionaries({"coin": COINS, "total": AMOUNTS}), unique_by=lambda entry: entry["coin"]
            ),
        },
    ),
    mode=st.sampled_from(MODES),
)
def test_any_spot_answer_is_shown_as_it_is(rows: list[dict[str, Any]], fields: dict[str, Any], mode: str) -> None:
    answer = {"balances": rows, **fields}
    assert wrong_spot_state(answer) == []
    state = parse.spot_state(answer)
    result = parse.wallet(ADDRESS, mode, state, ())
    shown = [row for account in result.accounts for row in account.assets]
    assert len(shown) >= len(state.rows)
    for account in result.accounts:
        summary = account.summary
        if summary is not None:
            assert summary.available is None or summary.available >= 0
            assert summary.margin_used is None or summary.margin_used >= 0
    holds = any(not row.is_zero() for row in (*state.rows, *state.escrows))
    summary, _ = parse.overall_summary(result.accounts)
    owes = any(row.debt for row in state.rows)
    if summary is not None and not owes:
        # A zero means that nothing is held.
        assert bool(summary.total) or not holds or len(result.accounts) > 1
