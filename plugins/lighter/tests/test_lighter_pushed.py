"""Lighter's pushed messages, as they were recorded, and joined with what a read left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_lighter import parse, pushed
from exchange_service_lighter.pushed import Holdings, Money, Pushed

from exchange_service.plugin_api import VenueMalformed, parse_json
from exchange_service.testing.witnesses import read_payload

RECORDED = parse_json(read_payload(Path(__file__).parents[1] / "payloads" / "true_push.json"))
BASE = parse.read_account(
    {
        "account_type": 0,
        "name": "Main",
        "collateral": "1",
        "total_asset_value": "1",
        "available_balance": "1",
        "positions": [],
        "assets": [],
    },
    8,
    "0x0000000000000000000000000000000000000000",
)
READ_AT, LATER = 100.0, 200.0


def money_of(*messages: Mapping[str, Any]) -> Money | None:
    known = None
    for message in messages:
        known = pushed.money(known, message, whole=message["type"].startswith("subscribed"))
    return known


def holdings_of(*messages: Mapping[str, Any], now: float = LATER) -> Holdings | None:
    known = None
    for message in messages:
        known = pushed.holdings(known, message, whole=message["type"].startswith("subscribed"), now=now)
    return known


def joined(moment: int, base: parse.ReadAccount = BASE, **changes: Any) -> parse.ReadAccount | None:
    """The account after so many of the recorded messages of each channel."""
    figures, held = money_of(*RECORDED["user_stats"][:moment]), holdings_of(*RECORDED["account_all"][:moment])
    assert figures is not None
    assert held is not None
    return pushed.account(base, READ_AT, Pushed(replace(figures, **changes), held))


def stated_profit(moment: int) -> Decimal:
    """The sum of what the positions state themselves."""
    positions: dict[str, Any] = {}
    for message in RECORDED["account_all"][:moment]:
        positions.update(message["positions"])
    return sum((Decimal(position["unrealized_pnl"]) for position in positions.values()), Decimal(0))


def stated_margin(moment: int) -> Decimal:
    """The sum of value times margin fraction."""
    positions: dict[str, Any] = {}
    for message in RECORDED["account_all"][:moment]:
        positions.update(message["positions"])
    parts = (Decimal(one["position_value"]) * Decimal(one["initial_margin_fraction"]) for one in positions.values())
    return sum(parts, Decimal(0)) / 100


@pytest.mark.parametrize("moment", range(1, 6))
def test_profit_and_margin_follow_from_the_pushed_figures_as_the_positions_state_them(moment: int) -> None:
    account = joined(moment)
    assert account is not None
    assert account.unrealised_pnl == stated_profit(moment)
    assert account.margin_used is not None
    # Lighter rounds each figure to six digits.
    assert abs(account.margin_used - stated_margin(moment)) <= Decimal("0.000002")


def test_the_last_recorded_moment_comes_out_to_the_digit() -> None:
    account = joined(5)
    assert account is not None
    assert (account.collateral, account.equity) == (Decimal("99974.368778"), Decimal("99974.368307"))
    assert (account.available, account.open_positions) == (Decimal("99974.321780"), 3)
    assert [(row.asset, row.total, row.used) for row in account.spot] == [
        ("ETH", 30, 0),
        ("LIT", 50000, 0),
        ("USDC", 100000, 0),
    ]
    assert (account.name, account.kind, account.margins) == ("Main", 0, ())


def test_rows_keep_the_order_of_the_read_and_new_ones_follow() -> None:
    base = replace(BASE, spot=tuple(parse.AssetBalance(symbol, total=Decimal(1)) for symbol in ("USDC", "LIT")))
    account = joined(1, base)
    assert account is not None
    assert [row.asset for row in account.spot] == ["USDC", "LIT", "ETH"]


def test_nothing_is_known_before_a_whole_message() -> None:
    assert money_of(*RECORDED["user_stats"][1:]) is None
    assert holdings_of(*RECORDED["account_all"][1:]) is None


def test_an_update_without_assets_leaves_them_and_a_whole_message_replaces_them() -> None:
    known = holdings_of(*RECORDED["account_all"])
    assert known is not None
    assert set(known.assets) == {1, 2, 3}
    assert set(known.sizes) == {0, 1, 2}
    whole = {**RECORDED["account_all"][0], "assets": {}, "positions": {}}
    again = pushed.holdings(known, whole, whole=True, now=LATER)
    assert again is not None
    assert (again.assets, again.sizes) == ({}, {})


def test_a_message_of_trades_alone_changes_nothing() -> None:
    known = holdings_of(*RECORDED["account_all"])
    trades = {**RECORDED["account_all"][1], "assets": None, "positions": {}}
    assert pushed.holdings(known, trades, whole=False, now=LATER) is known


def test_a_figure_that_an_update_leaves_out_stays() -> None:
    known = money_of(*RECORDED["user_stats"][:2])
    update = {"stats": {"available_balance": "5"}, "timestamp": 1785277056531}
    assert known is not None
    assert pushed.money(known, update, whole=False) == replace(known, available=Decimal(5), sent=1785277056531)
    assert pushed.money(known, {**update, "timestamp": 5}, whole=False) is known


@pytest.mark.parametrize("key", ["collateral", "portfolio_value", "available_balance"])
def test_a_whole_message_without_a_figure_is_malformed(key: str) -> None:
    message = RECORDED["user_stats"][0]
    stats = {name: value for name, value in message["stats"].items() if name != key}
    with pytest.raises(VenueMalformed):
        money_of({**message, "stats": stats})


@pytest.mark.parametrize(
    "changes",
    [
        {"assets": None},
        {"positions": None},
        {"positions": []},
        {"positions": {"1": {"market_id": 2, "position": "1"}}},
        {"positions": {"1": {"market_id": 1}}},
        {"positions": {"1": []}},
        {"assets": {"x": {"asset_id": 3}}},
        {"shares": "none"},
    ],
    ids=str,
)
def test_a_whole_message_that_lacks_or_mixes_up_entries_is_malformed(changes: Mapping[str, Any]) -> None:
    with pytest.raises(VenueMalformed):
        holdings_of({**RECORDED["account_all"][0], **changes})


@pytest.mark.parametrize(
    "shares",
    [
        [{"public_pool_index": 7, "principal_amount": "100", "shares_amount": 5}],
        {"public_pool_index": 7, "principal_amount": "100", "shares_amount": 5},
        {"7": {"public_pool_index": 7, "principal_amount": "100", "shares_amount": 5}},
        [{"public_pool_index": 7, "shares_amount": 5}],
    ],
    ids=["list", "object", "map", "without what was paid"],
)
def test_pools_are_those_of_a_read_that_is_newer_or_has_the_same(shares: Any) -> None:
    held = holdings_of({**RECORDED["account_all"][0], "shares": shares})
    figures = money_of(RECORDED["user_stats"][0])
    assert held is not None
    assert figures is not None
    both = Pushed(figures, held)
    assert pushed.account(BASE, READ_AT, both) is None
    share = parse.PoolShare(7, "", Decimal(100))
    known = replace(BASE, shares=(share,))
    account = pushed.account(known, READ_AT, both)
    assert account is not None
    assert account.shares == (share,)
    assert pushed.account(BASE, LATER + 1, both) is not None


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": 1},
        {"mode": 7},
        {"available": Decimal(0)},
        {"available": Decimal(-1)},
        {"available": Decimal(10**9)},
    ],
    ids=str,
)
def test_figures_that_do_not_tell_margin_and_profit_are_no_account(changes: Mapping[str, Any]) -> None:
    assert joined(1, **changes) is None


def test_a_message_without_a_mode_has_that_of_the_read() -> None:
    assert joined(1, mode=None) is not None
    assert joined(1, replace(BASE, mode=parse.UNIFIED), mode=None) is None
