"""Each figure that Lighter states is the figure shown: over the recorded answers, and over made ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from exchange_service_lighter import parse
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange_service.plugin_api import AssetBalance, Balance, parse_json
from exchange_service.pytest_plugin import SWEEP
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"


def recorded() -> dict[str, Any]:
    """The recorded answers with accounts, by the name of the file."""
    answers = {path.stem: parse_json(read_payload(path)) for path in PAYLOADS.glob("*.json")}
    return {name: answer for name, answer in answers.items() if "accounts" in answer}


def number(value: Any) -> Decimal | None:
    return None if value in (None, "") else Decimal(value)


def parts(balance: Balance, account: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, AssetBalance]]:
    """The rows of one account by asset, by the type and the sub-account of the venue account."""
    own = [part for part in balance.venue_accounts if part.id == str(account["index"])]
    return {(part.type, part.sub_account): {row.asset: row for row in part.assets} for part in own}


def wrong_figures(account: Mapping[str, Any], balance: Balance) -> list[str]:
    """What is wrong with the rows of an account: a figure that is not the stated one, or an impossible one."""
    shown = parts(balance, account)
    perpetual, spot = shown[("perpetual", "")], shown[("spot", "")]
    wrong: list[str] = []
    collateral = next(iter(perpetual.values()))
    unified = account.get("account_trading_mode") == 1
    if (collateral.total, collateral.free) != (number(account["collateral"]), number(account["available_balance"])):
        margins = [number(asset.get("margin_balance")) for asset in account["assets"] if asset["asset_id"] == 3]
        if not unified or number(account["collateral"]) or collateral.total not in margins:
            wrong.append("collateral")
    for asset in account["assets"]:
        total, locked, margin = (number(asset.get(name)) for name in ("balance", "locked_balance", "margin_balance"))
        row = spot.get(asset["symbol"])
        if total is not None and (row is None or (row.total, row.used) != (total, locked)):
            wrong.append(f"{asset['symbol']} on spot")
        if row is not None and row.free is not None and (row.free < 0 or row.mismatch()):
            wrong.append(f"{asset['symbol']} free")
        moved = perpetual.get(asset["symbol"])
        if margin and asset["asset_id"] != 3 and (moved is None or moved.total != margin):
            wrong.append(f"{asset['symbol']} as margin")
        if margin and asset["asset_id"] == 3 and unified and not collateral.total:
            wrong.append("collateral as margin")
    for share in account.get("shares") or []:
        rows = shown.get(("pool", str(share["public_pool_index"])), {})
        if [row.total for row in rows.values()] != [number(share["principal_amount"])]:
            wrong.append("a share")
    unlocks = sum((Decimal(unlock["amount"]) for unlock in account.get("pending_unlocks") or []), Decimal(0))
    paid_later = [row.total for row in shown.get(("pool", "unlocks"), {}).values() if row.total is not None]
    if sum(paid_later, Decimal(0)) != unlocks:
        wrong.append("unlocks")
    if any(row.used is not None and row.used < 0 for rows in shown.values() for row in rows.values()):
        wrong.append("negative used")
    return wrong


def test_each_figure_of_a_recorded_answer_is_the_figure_shown(record_property: Callable[[str, object], None]) -> None:
    wrong: dict[str, list[str]] = {}
    for name, answer in recorded().items():
        balance = parse.balance(parse.page(answer).accounts, "USDC")
        shown = {account.id for account in balance.venue_accounts}
        texts = [
            text
            for account in answer["accounts"]
            if str(account["index"]) in shown
            for text in wrong_figures(account, balance)
        ]
        wrong |= {name: texts} if texts else {}
    record_property(SWEEP, ["the figures of recorded answers", ["lighter"], len(recorded()), 0, len(wrong)])
    assert len(recorded()) >= 8
    assert wrong == {}


def test_a_true_account_with_positions_has_every_figure_of_the_venue() -> None:
    balance = parse.balance(parse.page(recorded()["true_account_cross"]).accounts, "USDC")
    summary = balance.venue_accounts[0].summary
    assert summary is not None
    assert (summary.cash, summary.equity) == (Decimal("1837526.962274"), Decimal("1837610.4619429999"))
    assert (summary.available, summary.margin_used) == (Decimal("1753357.208845"), Decimal("84253.253098"))
    assert summary.unrealised_pnl == Decimal("83.499670")


def test_every_listed_account_type_is_read_from_recorded_answers() -> None:
    kinds = {
        account.type
        for answer in recorded().values()
        for account in parse.balance(parse.page(answer).accounts, "USDC").venue_accounts
        if any(row.total for row in account.assets)
    }
    assert kinds == {"perpetual", "spot", "pool"}


AMOUNTS = st.one_of(
    st.decimals(min_value=0, max_value=10**9, places=8, allow_nan=False).map(lambda value: f"{value:f}"),
    st.sampled_from(["0", "0.000000", "1e3", "2.5E-7", "0E-8"]),
)
OPTIONAL = st.one_of(AMOUNTS, st.none(), st.just(""))
ASSETS = st.lists(
    st.fixed_dictionaries(
        {"asset_id": st.integers(1, 5), "balance": AMOUNTS},
        optional={"locked_balance": OPTIONAL, "margin_balance": OPTIONAL},
    ),
    unique_by=lambda asset: asset["asset_id"],
    max_size=4,
).map(lambda assets: [{**asset, "symbol": f"A{asset['asset_id']}"} for asset in assets])
POSITIONS = st.lists(
    st.fixed_dictionaries(
        {"market_id": st.integers(0, 9), "position": AMOUNTS},
        optional={"unrealized_pnl": AMOUNTS, "margin_mode": st.sampled_from([0, 1]), "allocated_margin": OPTIONAL},
    ),
    unique_by=lambda position: position["market_id"],
    max_size=3,
)
UNLOCKS = st.lists(
    st.fixed_dictionaries({"asset_index": st.integers(1, 5), "amount": AMOUNTS, "unlock_timestamp": st.just(1)}),
    max_size=3,
)
ACCOUNTS = st.fixed_dictionaries(
    {
        "index": st.just(7),
        "account_type": st.just(0),
        "collateral": AMOUNTS,
        "total_asset_value": AMOUNTS,
        "available_balance": OPTIONAL,
        "positions": POSITIONS,
        "assets": ASSETS,
    },
    optional={
        "account_trading_mode": st.sampled_from([0, 1, 2]),
        "cross_initial_margin_requirement": OPTIONAL,
        "pending_unlocks": UNLOCKS,
    },
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(account=ACCOUNTS)
def test_any_account_is_shown_as_it_is(account: dict[str, Any]) -> None:
    balance = parse.balance(parse.page({"accounts": [account]}).accounts, "A3")
    assert wrong_figures(account, balance) == []
    for part in balance.venue_accounts:
        summary = part.summary
        if summary is not None:
            assert summary.margin_used is None or summary.margin_used >= 0
            assert part.type != "spot" or summary.available is None or summary.available >= 0
