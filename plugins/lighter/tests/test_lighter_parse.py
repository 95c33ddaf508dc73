"""What Lighter's payloads mean, read from recorded shapes."""

from __future__ import annotations

import copy
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_lighter import parse

from exchange_service.plugin_api import (
    AccountUnknown,
    AssetBalance,
    Balance,
    Summary,
    VenueMalformed,
    VenueUnavailable,
    parse_json,
)
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
POOL = 281474976710654
LIT_POOL = 281474976624800


def payload(name: str) -> Any:
    return parse_json(read_payload(PAYLOADS / f"{name}.json"))


def read(answer: Any, collateral: str = "USDC") -> Balance:
    return parse.balance(parse.page(answer).accounts, collateral)


def changed(name: str = "account_classic", /, *, number: int = 0, **changes: Any) -> Any:
    """The payload with members of one of its accounts changed; `...` leaves one out."""
    answer = payload(name)
    account = {**answer["accounts"][number], **changes}
    answer["accounts"][number] = {key: value for key, value in account.items() if value is not ...}
    return answer


def with_inner(key: str, /, **changes: Any) -> Any:
    """The payload with members of the first position, asset or share changed; `...` leaves one out."""
    answer = payload("account_classic")
    entry = {**answer["accounts"][0][key][0], **changes}
    answer["accounts"][0][key][0] = {member: value for member, value in entry.items() if value is not ...}
    return answer


def figures(answer: Any) -> Summary:
    summary = read(answer).venue_accounts[0].summary
    assert summary is not None
    return summary


def row(asset: str, total: str, free: str, used: str) -> AssetBalance:
    return AssetBalance(asset, Decimal(total), Decimal(free), Decimal(used))


def digits(asset: AssetBalance) -> tuple[str, ...]:
    return (asset.asset, f"{asset.total:f}", f"{asset.free:f}", f"{asset.used:f}")


def test_the_worked_example_comes_out_to_the_digit() -> None:
    perpetual, spot, pool = read(payload("account_classic")).venue_accounts
    assert [account.identity for account in (perpetual, spot, pool)] == [
        ("90210", "perpetual", ""),
        ("90210", "spot", ""),
        ("90210", "pool", str(POOL)),
    ]
    assert [digits(asset) for asset in perpetual.assets] == [("USDC", "3200.500000", "3099.700000", "184.800000")]
    assert [digits(asset) for asset in spot.assets] == [
        ("USDC", "150.000000", "125.000000", "25.000000"),
        ("ETH", "0.50000000", "0.50000000", "0.00000000"),
    ]
    assert perpetual.summary == Summary(
        "USDC",
        total=Decimal("3200.5"),
        cash=Decimal("3200.5"),
        available=Decimal("3099.7"),
        equity=Decimal("3284.5"),
        margin_used=Decimal("184.8"),
        unrealised_pnl=Decimal("84"),
    )


def test_perpetual_and_spot_money_of_a_classic_account_are_never_added() -> None:
    perpetual, spot, _ = read(payload("account_classic")).venue_accounts
    assert (perpetual.assets[0].asset, spot.assets[0].asset) == ("USDC", "USDC")
    assert (perpetual.assets[0].total, spot.assets[0].total) == (Decimal("3200.5"), Decimal(150))


def test_the_margin_balance_of_a_classic_account_is_the_perpetuals_money_and_not_counted_again() -> None:
    answer = with_inner("assets", margin_balance="3200.500000", margin_mode="enabled")
    assert read(answer) == read(payload("account_classic"))


def test_there_is_no_summary_for_everything_if_other_assets_are_held() -> None:
    balance = read(payload("account_classic"))
    assert balance.summary is None
    assert any("USDC" in note for note in balance.notes)


def test_if_spot_holds_nothing_but_the_collateral_there_is_one_summary() -> None:
    answer = payload("account_classic")
    answer["accounts"][0]["assets"].pop()
    balance = read(answer)
    assert balance.summary == Summary(
        "USDC",
        total=Decimal("3350.5"),
        cash=Decimal("3350.5"),
        available=Decimal("3224.7"),
        equity=Decimal("3434.5"),
        margin_used=Decimal("184.8"),
        unrealised_pnl=Decimal(84),
    )


def test_an_account_without_any_spot_asset_has_the_figure_of_its_perpetuals() -> None:
    balance = read(changed(assets=[]))
    assert balance.venue_accounts[1].assets == ()
    assert balance.summary is not None
    assert balance.summary.equity == Decimal("3284.5")


def test_a_share_in_a_pool_shows_its_deposit_and_is_in_no_figure() -> None:
    answer = changed(assets=[])
    balance = read(answer)
    pool = balance.venue_accounts[-1]
    assert pool.assets == (AssetBalance("USDC", total=Decimal(100)),)
    assert pool.summary is None
    assert balance.summary == read(changed(assets=[], shares=[])).summary
    assert any("Pool shares" in note for note in balance.notes)


def test_staked_lit_is_not_taken_for_dollars() -> None:
    balance = read(with_inner("shares", public_pool_index=LIT_POOL))
    assert balance.venue_accounts[-1].assets == (AssetBalance("LIT", total=Decimal(100)),)


def test_a_share_of_unknown_value_is_left_out_with_a_note() -> None:
    balance = read(with_inner("shares", principal_amount=...))
    assert [account.type for account in balance.venue_accounts] == ["perpetual", "spot"]
    assert any("pool" in note for note in balance.notes)


def test_an_empty_sub_account_is_hidden() -> None:
    assert {account.id for account in read(payload("account_classic")).venue_accounts} == {"90210"}


@pytest.mark.parametrize(
    "holding",
    [
        {"collateral": "0.000001"},
        {"total_asset_value": "-1"},
        {"available_balance": "3"},
        {"assets": [{"symbol": "LIT", "asset_id": 2, "balance": "7"}]},
        {"shares": [{"public_pool_index": POOL, "principal_amount": "5"}]},
        {"shares": [{"public_pool_index": POOL}]},
        {"positions": [{"market_id": 0, "position": "1.0", "unrealized_pnl": "0"}]},
    ],
    ids=str,
)
def test_a_sub_account_that_holds_anything_is_shown(holding: dict[str, Any]) -> None:
    balance = read(changed(number=1, name="Hedge", **holding))
    shown = [account for account in balance.venue_accounts if account.id == "281474976700001"]
    assert [account.type for account in shown][:2] == ["perpetual", "spot"]
    assert {account.label for account in shown} == {"Hedge"}


@pytest.mark.parametrize("kind", [0, 1], ids=["master", "sub-account"])
def test_an_empty_account_that_is_the_only_one_is_shown_with_zeros(kind: int) -> None:
    answer = changed(number=1, account_type=kind)
    del answer["accounts"][0]
    balance = read(answer)
    assert [account.type for account in balance.venue_accounts] == ["perpetual", "spot"]
    assert all(asset.is_zero() for _, asset in balance.rows())
    assert balance.summary is not None
    assert (balance.summary.currency, balance.summary.equity) == ("USDC", Decimal(0))
    assert balance.notes == ()


def test_an_empty_master_stands_beside_its_sub_accounts() -> None:
    answer = payload("account_classic")
    answer["accounts"][0]["account_type"], answer["accounts"][1]["account_type"] = 1, 0
    assert len({account.id for account in read(answer).venue_accounts}) == 2


def test_master_and_sub_account_have_one_figure_together() -> None:
    answer = changed(number=1, collateral="10.25", total_asset_value="10.25", available_balance="10.25")
    answer["accounts"][0]["assets"] = []
    balance = read(answer)
    assert balance.summary is not None
    assert (balance.summary.equity, balance.summary.cash) == (Decimal("3294.75"), Decimal("3210.75"))


def test_a_unified_account_has_lighters_own_equity_and_no_money_twice() -> None:
    balance = read(payload("account_unified"))
    perpetual, spot = balance.venue_accounts
    assert digits(perpetual.assets[0]) == ("USDC", "500.000000", "1049.439999", "185.000001")
    assert perpetual.assets[1:] == (AssetBalance("ETH", total=Decimal("0.25")),)
    assert spot.assets == (row("USDC", "20", "20", "0"), row("ETH", "0.5", "0.5", "0"))
    assert spot.summary is None
    assert perpetual.summary is not None
    assert str(perpetual.summary.equity) == "1234.4399999999998"
    assert perpetual.summary.unrealised_pnl == Decimal("-15.56")
    assert balance.summary == perpetual.summary
    assert any("do not add" in note for note in balance.notes)
    assert any("serve as margin" in note for note in balance.notes)


@pytest.mark.parametrize("mode", [0, 1])
def test_an_asset_that_is_held_only_as_margin_has_a_row(mode: int) -> None:
    moved = {"symbol": "ETH", "asset_id": 1, "balance": "0", "locked_balance": "0", "margin_balance": "2.5"}
    balance = read(changed("account_unified", assets=[moved], account_trading_mode=mode))
    perpetual, spot = balance.venue_accounts
    assert perpetual.assets[1] == AssetBalance("ETH", total=Decimal("2.5"))
    assert spot.assets == (row("ETH", "0", "0", "0"),)
    assert any("serve as margin" in note for note in balance.notes)


def test_a_collateral_that_is_stated_only_as_margin_is_the_perpetuals_total_in_unified_mode() -> None:
    moved = {"symbol": "USDC", "asset_id": 3, "balance": "0", "locked_balance": "0", "margin_balance": "750.25"}
    changes = {"assets": [moved], "collateral": "0.000000"}
    assert read(changed("account_unified", **changes)).venue_accounts[0].assets[0].total == Decimal("750.25")
    classic = read(changed("account_unified", account_trading_mode=0, **changes))
    assert classic.venue_accounts[0].assets[0].total == 0


def test_a_lock_that_is_larger_than_the_balance_leaves_free_unknown() -> None:
    balance = read(with_inner("assets", balance="20", locked_balance="35"))
    assert balance.venue_accounts[1].assets[0] == AssetBalance("USDC", total=Decimal(20), used=Decimal(35))


def test_a_row_whose_amounts_are_all_empty_says_nothing() -> None:
    balance = read(with_inner("assets", balance="", locked_balance="", margin_balance=""))
    assert [asset.asset for asset in balance.venue_accounts[1].assets] == ["ETH"]


def test_what_waits_to_be_paid_out_of_staking_is_shown_and_in_no_figure() -> None:
    unlocks = [
        {"unlock_timestamp": 1770000000, "asset_index": 2, "amount": "12.5"},
        {"unlock_timestamp": 1771000000, "asset_index": 2, "amount": "7.5"},
        {"unlock_timestamp": 1772000000, "asset_index": 3, "amount": "999"},
        {"unlock_timestamp": 1773000000, "asset_index": 1, "amount": "0"},
        {"unlock_timestamp": "soon", "asset_index": 44, "amount": "3"},
    ]
    balance = read(changed(assets=[], pending_unlocks=unlocks))
    unlocking = balance.venue_accounts[-1]
    assert unlocking.identity == ("90210", "pool", "unlocks")
    assert {asset.asset: asset.total for asset in unlocking.assets} == {"LIT": 20, "USDC": 999, "asset 44": 3}
    assert balance.summary == read(changed(assets=[])).summary
    assert any("paid out" in note for note in balance.notes)
    for nothing in (None, ..., []):
        assert read(changed(pending_unlocks=nothing)) == read(payload("account_classic"))


def test_a_sub_account_with_nothing_but_a_pending_payout_is_shown() -> None:
    unlocks = [{"unlock_timestamp": 1770000000, "asset_index": 2, "amount": "12.5"}]
    balance = read(changed(number=1, pending_unlocks=unlocks))
    assert "281474976700001" in {account.id for account in balance.venue_accounts}


def test_there_is_no_summary_of_zero_beside_something_that_is_held() -> None:
    spot = {"symbol": "USDC", "asset_id": 3, "balance": "20", "locked_balance": "0", "margin_balance": "0"}
    nothing = {
        "collateral": "0",
        "total_asset_value": "0",
        "available_balance": "0",
        "cross_initial_margin_requirement": "0",
        "positions": [],
    }
    held = read(changed("account_unified", assets=[spot], **nothing))
    assert held.summary is None
    assert any("no summary" in note for note in held.notes)
    empty = read(changed("account_unified", assets=[{**spot, "balance": "0"}], **nothing))
    assert empty.summary is not None


def test_a_unified_account_without_spot_needs_no_remark() -> None:
    balance = read(payload("account_robinhood"))
    assert balance.summary is not None
    assert balance.notes == ()


def test_the_collaterals_symbol_is_the_venues_own() -> None:
    balance = read(payload("account_robinhood"))
    assert {asset.asset for _, asset in balance.rows()} == {"USDG"}
    assert balance.summary is not None
    assert balance.summary.currency == "USDG"


def test_if_no_account_shows_the_collateral_it_is_the_deployments_usual_one() -> None:
    assert read(changed("account_robinhood", assets=[]), "USDG").venue_accounts[0].assets[0].asset == "USDG"


def test_a_sub_account_without_assets_reckons_in_the_collateral_of_the_others() -> None:
    answer = changed(number=1, collateral="1")
    answer["accounts"][0]["assets"][0]["symbol"] = "USDG"
    assert {row.asset for _, row in read(answer).rows()} == {"USDG", "ETH"}


@pytest.mark.parametrize("mode", [2, 7])
def test_an_unknown_mode_gives_rows_without_figures_and_a_remark(mode: int) -> None:
    balance = read(changed(account_trading_mode=mode))
    assert [account.assets for account in balance.venue_accounts] == [
        account.assets for account in read(payload("account_classic")).venue_accounts
    ]
    assert [account.summary for account in balance.venue_accounts] == [None, None, None]
    assert balance.summary is None
    assert any(f"({mode})" in note for note in balance.notes)


def test_an_older_answer_without_the_recent_members_is_read() -> None:
    perpetual, spot = read(payload("account_sparse")).venue_accounts
    assert perpetual.summary is not None
    # Without Lighter's own figures: the worth less what is available, and less the collateral.
    assert perpetual.summary.margin_used == Decimal("50.000000")
    assert perpetual.summary.unrealised_pnl == Decimal("-9.75")
    assert perpetual.label == "Old"
    assert spot.assets == (row("USDC", "150", "125", "25"),)


def test_the_margin_of_isolated_positions_is_added_to_the_cross_margin() -> None:
    assert figures(with_inner("positions", margin_mode=1, allocated_margin="15.2")).margin_used == Decimal(200)


def test_the_allocation_of_a_cross_or_closed_position_is_not_margin() -> None:
    assert figures(with_inner("positions", margin_mode=0, allocated_margin="15.2")).margin_used == Decimal("184.8")
    closed = with_inner("positions", margin_mode=1, allocated_margin="15.2", position="0.00000")
    assert figures(closed).margin_used == Decimal("184.8")


@pytest.mark.parametrize(
    "answer",
    [
        changed(cross_initial_margin_requirement=...),
        changed(cross_initial_margin_requirement=""),
        with_inner("positions", margin_mode=1, allocated_margin=...),
    ],
    ids=["no cross margin", "empty cross margin", "no isolated margin"],
)
def test_missing_margin_is_equity_minus_available(answer: Any) -> None:
    assert figures(answer).margin_used == Decimal("184.8")


def test_margin_that_can_be_known_by_nothing_is_unknown() -> None:
    unknown = changed(cross_initial_margin_requirement=..., available_balance=...)
    assert figures(unknown).margin_used is None
    assert figures(unknown).available is None
    more = changed(cross_initial_margin_requirement=..., available_balance="9999")
    assert figures(more).margin_used is None


def test_a_closed_position_may_lack_a_profit() -> None:
    answer = payload("account_classic")
    answer["accounts"][0]["positions"].append({"market_id": 9, "position": "0.00000"})
    answer["accounts"][0]["total_asset_value"] = "9"
    assert figures(answer).unrealised_pnl == Decimal(84)


def test_missing_profit_is_equity_minus_collateral_in_classic_mode_alone() -> None:
    answer = with_inner("positions", unrealized_pnl=...)
    assert figures(answer).unrealised_pnl == Decimal(84)
    answer["accounts"][0]["account_trading_mode"] = 1
    assert figures(answer).unrealised_pnl is None


def test_an_account_without_positions_has_no_open_profit() -> None:
    assert figures(changed(positions=[])).unrealised_pnl == 0


def test_no_digit_of_a_noisy_figure_is_lost() -> None:
    noisy = "1250.4399999999998340000000000000000001"
    balance = read(with_inner("assets", balance=noisy, locked_balance="0.0000000000000000000000000000000001"))
    asset = balance.venue_accounts[1].assets[0]
    assert str(asset.total) == noisy
    assert str(asset.free) == "1250.4399999999998340000000000000000000"


def test_a_missing_lock_leaves_free_unknown() -> None:
    balance = read(with_inner("assets", locked_balance=...))
    assert balance.venue_accounts[1].assets[0] == AssetBalance("USDC", total=Decimal(150))


@pytest.mark.parametrize("time", [0, 1764000000, 1764000000000, 1764000000000000, None, ...])
def test_no_time_of_the_account_is_taken_for_the_time_of_its_figures(time: Any) -> None:
    balance = read(changed(transaction_time=time, created_at=time))
    assert balance.venue_time is None
    assert [account.venue_time for account in balance.venue_accounts] == [None, None, None]


def test_an_account_that_lighter_could_not_read_stands_with_its_error_beside_the_others() -> None:
    balance = read(changed(number=1, code=20500))
    failed = balance.venue_accounts[-1]
    assert (failed.id, failed.type, failed.assets) == ("281474976700001", "", ())
    assert isinstance(failed.error, VenueUnavailable)
    assert balance.summary is None


def test_if_lighter_could_not_read_any_account_its_error_is_raised() -> None:
    answer = changed(code=1)
    answer["accounts"][1]["code"] = 2
    with pytest.raises(VenueUnavailable):
        read(answer)


@pytest.mark.parametrize("kind", [5, 9])
def test_an_account_of_an_unknown_kind_that_holds_something_is_its_own_error(kind: int) -> None:
    balance = read(changed(number=1, account_type=kind, collateral="5"))
    failed = balance.venue_accounts[-1]
    assert failed.id == "281474976700001"
    assert isinstance(failed.error, VenueMalformed)
    assert balance.summary is None
    assert read(changed(number=1, account_type=kind)) == read(payload("account_classic"))


def test_an_account_of_an_unknown_kind_alone_is_malformed() -> None:
    answer = changed(number=1, account_type=9)
    del answer["accounts"][0]
    with pytest.raises(VenueMalformed, match="unknown kind"):
        read(answer)


@pytest.mark.parametrize("kind", [2, 3, 4])
def test_a_pool_that_the_wallet_runs_is_left_out_with_a_note(kind: int) -> None:
    balance = read(changed(number=1, account_type=kind, collateral="5000000"))
    assert {account.id for account in balance.venue_accounts} == {"90210"}
    assert any("281474976700001" in note and "public pool" in note for note in balance.notes)


def test_a_pool_alone_is_nobodys_balance() -> None:
    answer = changed(account_type=2)
    del answer["accounts"][1]
    with pytest.raises(AccountUnknown, match="public pool"):
        read(answer)


def test_the_next_page_is_named_by_its_cursor() -> None:
    assert parse.page({**payload("account_classic"), "next_cursor": "abc"}).next_cursor == "abc"
    for last in (None, ""):
        assert parse.page({**payload("account_classic"), "next_cursor": last}).next_cursor == ""
    assert parse.page(payload("account_classic")).next_cursor == ""


def doubled(key: str) -> Any:
    answer = payload("account_classic")
    answer["accounts"][0][key].append(copy.deepcopy(answer["accounts"][0][key][0]))
    return answer


@pytest.mark.parametrize(
    "answer",
    [
        *(doubled(key) for key in ("positions", "assets", "shares")),
        with_inner("assets", symbol="ETH"),
        changed(account_index=90211),
        changed("account_robinhood", assets=[{"symbol": "USDG", "asset_id": 3}, {"symbol": "USDC", "asset_id": 3}]),
        {"code": 200, "accounts": [*payload("account_classic")["accounts"], *payload("account_robinhood")["accounts"]]},
    ],
    ids=["position", "asset", "share", "symbol", "two numbers", "asset number", "two collaterals"],
)
def test_repeated_entries_are_malformed(answer: Any) -> None:
    with pytest.raises(VenueMalformed):
        read(answer)


def test_an_odd_account_is_its_own_error_beside_the_others() -> None:
    for field in ("account_type", "collateral", "total_asset_value", "positions", "assets", "account_index"):
        balance = read(changed(number=1, **{field: {}}))
        assert balance.venue_accounts[:3] == read(payload("account_classic")).venue_accounts
        failed = balance.venue_accounts[-1]
        assert (failed.id, type(failed.error)) == ("281474976700001", VenueMalformed)
        assert balance.summary is None


def test_if_the_master_is_odd_an_empty_sub_account_does_not_stand_for_the_wallet() -> None:
    with pytest.raises(VenueMalformed):
        read(changed(collateral="NaN"))


def test_an_account_that_cannot_be_told_from_others_makes_the_list_malformed() -> None:
    for field in ("index", "l1_address"):
        with pytest.raises(VenueMalformed):
            parse.page(changed(number=1, **{field: {}}))


@pytest.mark.parametrize("field", ["index", "account_type", "collateral", "total_asset_value", "positions", "assets"])
@pytest.mark.parametrize("value", [..., None, "", {}, True], ids=str)
def test_an_account_without_the_required_figures_is_malformed(field: str, value: Any) -> None:
    with pytest.raises(VenueMalformed):
        read(changed(**{field: value}))


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400", "12,5", "many", True, [], {}], ids=str)
def test_a_figure_that_is_not_a_number_is_malformed(value: Any) -> None:
    accounts = ("collateral", "total_asset_value", "available_balance", "cross_initial_margin_requirement")
    answers = [changed(**{field: value}) for field in accounts]
    answers += [with_inner("positions", **{field: value}) for field in ("position", "unrealized_pnl")]
    answers += [with_inner("assets", **{field: value}) for field in ("balance", "locked_balance", "margin_balance")]
    answers += [with_inner("positions", margin_mode=1, allocated_margin=value)]
    answers += [with_inner("shares", principal_amount=value)]
    for answer in answers:
        with pytest.raises(VenueMalformed):
            read(answer)


@pytest.mark.parametrize("value", ["0", True, -1, [], {}, Decimal("0.5")], ids=str)
def test_a_code_kind_or_mode_that_is_not_a_number_is_malformed(value: Any) -> None:
    for field in ("code", "account_type", "account_trading_mode", "index", "account_index"):
        with pytest.raises(VenueMalformed):
            read(changed(**{field: value}))


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        {},
        "ok",
        0,
        {"accounts": None},
        {"accounts": {}},
        {"accounts": [None]},
        {"accounts": [], "next_cursor": 1},
        {"accounts": [], "total": "2"},
    ],
    ids=str,
)
def test_an_answer_of_another_shape_is_malformed(answer: Any) -> None:
    with pytest.raises(VenueMalformed):
        parse.page(answer)
