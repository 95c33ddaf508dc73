"""Aster's payloads as the service's nouns."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_aster import parse

from exchange_service.plugin_api import (
    AssetBalance,
    KeyRights,
    Summary,
    VenueAccount,
    VenueMalformed,
    VenueUnavailable,
    parse_json,
)
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
WALLET = "0x63dd5acc6b1aa0f563956c0e534dd30b6dcf7c4e"
READER = "0x21cf8ae13bb72632562c6fff438652ba1a151bb0"
TRADER = "0x19e7e376e7c213b7e7e7e46cc70a5dd086daff2a"
CHANGED = datetime(2025, 11, 24, 16, 0, 0, 123000, tzinfo=UTC)


def payload(name: str) -> Any:
    return parse_json(read_payload(PAYLOADS / name))


def changed(answer: Any, **changes: Any) -> Any:
    """An object with some fields changed; `...` leaves a field out."""
    for name, value in changes.items():
        if value is ...:
            del answer[name]
        else:
            answer[name] = value
    return answer


def account_with(**changes: Any) -> Any:
    return changed(payload("account.json"), **changes)


def asset_with(**changes: Any) -> Any:
    """The recorded account with its one asset changed."""
    answer = payload("account.json")
    changed(answer["assets"][0], **changes)
    return answer


def spot_with(**changes: Any) -> Any:
    return changed(payload("spot_account.json"), **changes)


def test_the_futures_row_has_the_three_figures_of_the_venue() -> None:
    account = parse.futures_account(payload("account.json"), WALLET)
    assert account.assets == (
        AssetBalance("USDT", total=Decimal("5120.44"), free=Decimal("4594.54"), used=Decimal("610.10")),
    )
    assert (account.id, account.type) == (WALLET, "futures")


def test_the_summary_has_every_figure_of_the_worked_example() -> None:
    assert parse.futures_account(payload("account.json"), WALLET).summary == Summary(
        "USDT",
        total=Decimal("5120.44"),
        cash=Decimal("5120.44"),
        available=Decimal("4594.54"),
        equity=Decimal("5204.64"),
        margin_used=Decimal("610.10"),
        unrealised_pnl=Decimal("84.20"),
    )


def test_used_is_the_margin_that_aster_states_and_never_total_less_free() -> None:
    for free in ("9999.00000000", "0.00000000"):
        row = parse.futures_account(asset_with(availableBalance=free), WALLET).assets[0]
        assert row.used == Decimal("610.10")


@pytest.mark.parametrize("value", [..., None, ""], ids=["missing", "null", "empty"])
def test_a_figure_that_aster_does_not_state_is_unknown_and_not_zero(value: Any) -> None:
    row = parse.futures_account(asset_with(initialMargin=value, availableBalance=value), WALLET).assets[0]
    assert (row.free, row.used) == (None, None)
    answer = account_with(availableBalance=value, totalInitialMargin=value, totalUnrealizedProfit=value)
    summary = parse.futures_account(answer, WALLET).summary
    assert summary is not None
    assert (summary.available, summary.margin_used, summary.unrealised_pnl) == (None, None, None)


@pytest.mark.parametrize("value", [..., None, ""], ids=["missing", "null", "empty"])
@pytest.mark.parametrize("field", ["totalWalletBalance", "totalMarginBalance", "assets"])
def test_an_account_without_the_required_figures_is_malformed(field: str, value: Any) -> None:
    with pytest.raises(VenueMalformed):
        parse.futures_account(account_with(**{field: value}), WALLET)


@pytest.mark.parametrize("value", [..., None, ""], ids=["missing", "null", "empty"])
@pytest.mark.parametrize("field", ["asset", "walletBalance"])
def test_a_futures_row_without_name_or_balance_is_malformed(field: str, value: Any) -> None:
    with pytest.raises(VenueMalformed):
        parse.futures_account(asset_with(**{field: value}), WALLET)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e400", "12,5", "many", True, [], {}])
def test_a_figure_that_is_not_a_number_is_malformed(value: Any) -> None:
    for field in ("walletBalance", "availableBalance", "initialMargin"):
        with pytest.raises(VenueMalformed, match=field):
            parse.futures_account(asset_with(**{field: value}), WALLET)
    for field in ("free", "locked"):
        row = {"asset": "USDT", "free": "1", "locked": "0", field: value}
        with pytest.raises(VenueMalformed, match=field):
            parse.spot_account(spot_with(balances=[row]), WALLET)


def test_numbers_may_come_as_texts_or_bare_and_lose_no_digit() -> None:
    for value in ("12.3400000000000000000000000001", Decimal("12.3400000000000000000000000001")):
        row = parse.futures_account(asset_with(walletBalance=value), WALLET).assets[0]
        assert str(row.total) == "12.3400000000000000000000000001"
    row = parse.futures_account(asset_with(walletBalance=12), WALLET).assets[0]
    assert row.total == 12


def test_an_asset_that_is_listed_twice_is_malformed() -> None:
    answer = payload("account.json")
    answer["assets"].append(dict(answer["assets"][0], walletBalance="0"))
    with pytest.raises(VenueMalformed, match="twice"):
        parse.futures_account(answer, WALLET)
    row = {"asset": "USDT", "free": "1", "locked": "0"}
    with pytest.raises(VenueMalformed, match="twice"):
        parse.spot_account(spot_with(balances=[row, row]), WALLET)


def lent(**changes: Any) -> Any:
    """The recorded account with a second asset, which is available although nothing of it is held."""
    answer = payload("account.json")
    zeros = {name: "0.00000000" for name, value in answer["assets"][0].items() if isinstance(value, str)}
    lent_asset = {**zeros, "asset": "USDF", "availableBalance": "95.00000000", "maxWithdrawAmount": "95.00000000"}
    answer["assets"].append({**lent_asset, **changes})
    return answer


def test_an_asset_that_is_not_held_but_could_be_borrowed_has_no_row_and_a_note_says_so() -> None:
    answer = lent()
    assert [row.asset for row in parse.futures_account(answer, WALLET).assets] == ["USDT"]
    assert parse.lends(answer)
    assert not parse.lends(payload("account.json"))
    assert any("lend" in note for note in parse.notes([], lent=True))


@pytest.mark.parametrize("member", ["marginBalance", "unrealizedProfit", "initialMargin", "maintMargin"])
@pytest.mark.parametrize("value", ["-12.5", "12.5"])
def test_an_asset_without_a_balance_but_with_a_position_keeps_its_row(member: str, value: str) -> None:
    answer = lent(**{member: value})
    usdf = next(row for row in parse.futures_account(answer, WALLET).assets if row.asset == "USDF")
    assert (usdf.total, usdf.free) == (0, 95)
    assert not parse.lends(answer)


def test_a_member_that_is_not_shown_and_cannot_be_read_neither_fails_the_account_nor_drops_the_row() -> None:
    assert [row.asset for row in parse.futures_account(lent(maintMargin="many"), WALLET).assets] == ["USDT", "USDF"]


def test_a_row_whose_amounts_are_all_empty_texts_says_nothing() -> None:
    silent = {"asset": "USDF", "walletBalance": "", "availableBalance": "", "initialMargin": ""}
    answer = payload("account.json")
    answer["assets"].append(silent)
    assert [row.asset for row in parse.futures_account(answer, WALLET).assets] == ["USDT"]
    spot = spot_with(balances=[{"asset": "USDF", "free": "", "locked": ""}])
    assert parse.spot_account(spot, WALLET).assets == ()
    with pytest.raises(VenueMalformed, match="locked"):
        parse.spot_account(spot_with(balances=[{"asset": "USDF", "free": "1", "locked": ""}]), WALLET)


def test_a_spot_total_that_would_be_negative_is_unknown() -> None:
    (row,) = parse.spot_account(spot_with(balances=[{"asset": "X", "free": "-2", "locked": "1"}]), WALLET).assets
    assert (row.total, row.free, row.used) == (None, -2, 1)


def test_a_balance_that_no_listed_asset_makes_up_is_malformed() -> None:
    for answer in (account_with(assets=[]), asset_with(walletBalance="0.00000000")):
        with pytest.raises(VenueMalformed, match="lists no asset"):
            parse.futures_account(answer, WALLET)
    empty = parse.futures_account(account_with(assets=[], totalWalletBalance="0.00000000"), WALLET)
    assert empty.assets == ()


def test_a_total_that_is_not_that_of_usdt_gives_the_multi_assets_mode_away() -> None:
    usual = parse.futures_account(payload("account.json"), WALLET)
    assert parse.notes([usual]) == ()
    converted = parse.futures_account(account_with(totalWalletBalance="5119.90000000"), WALLET)
    assert "US dollars" in parse.notes([converted])[0]
    assert parse.overall_summary([converted]) is None
    bnb = parse.futures_account(asset_with(asset="BNB"), WALLET)
    assert parse.notes([VenueAccount(type="spot"), bnb])
    assert parse.notes([VenueAccount(type="futures", error=VenueUnavailable("Down."))]) == ()


def test_an_asset_without_any_figure_is_a_row_of_zeros() -> None:
    answer = asset_with(walletBalance="0", availableBalance="0.00000000", initialMargin="0")
    account = parse.futures_account(changed(answer, totalWalletBalance="0"), WALLET)
    assert account.assets == (AssetBalance("USDT", Decimal(0), Decimal(0), Decimal(0)),)


def test_a_debt_is_taken_as_it_is() -> None:
    row = parse.futures_account(asset_with(walletBalance="-3.5"), WALLET).assets[0]
    assert row.total == Decimal("-3.5")


def test_a_spot_row_is_free_and_locked_and_their_exact_sum() -> None:
    account = parse.spot_account(payload("spot_account.json"), WALLET)
    assert account.assets == (
        AssetBalance("USDT", total=Decimal("350.25"), free=Decimal("310.25"), used=Decimal("40.00")),
        AssetBalance("ASTER", total=Decimal(12), free=Decimal(12), used=Decimal(0)),
    )
    assert (account.id, account.type, account.summary) == (WALLET, "spot", None)
    long = {"asset": "X", "free": "1000000000000000000000.5", "locked": "0.000000000000000000000000000001"}
    assert parse.spot_account(spot_with(balances=[long]), WALLET).assets[0].total == Decimal(
        "1000000000000000000000.500000000000000000000000000001"
    )


@pytest.mark.parametrize("field", ["asset", "free", "locked"])
def test_a_spot_row_that_lacks_something_is_malformed(field: str) -> None:
    row = {"asset": "USDT", "free": "1", "locked": "0"}
    del row[field]
    with pytest.raises(VenueMalformed):
        parse.spot_account(spot_with(balances=[row]), WALLET)


@pytest.mark.parametrize("value", [1764000000123, "1764000000123", 1764000000123456789, "1764000000123456789"])
def test_a_time_may_count_milliseconds_or_nanoseconds_and_be_a_text(value: Any) -> None:
    assert parse.spot_account(spot_with(updateTime=value), WALLET).venue_time == CHANGED
    assert parse.futures_account(account_with(updateTime=value), WALLET).venue_time == CHANGED


@pytest.mark.parametrize("value", [..., None, 0, "0", ""], ids=["missing", "null", "0", "text 0", "empty"])
def test_a_time_that_aster_does_not_state_is_unknown(value: Any) -> None:
    assert parse.spot_account(spot_with(updateTime=value), WALLET).venue_time is None
    assert parse.futures_account(asset_with(updateTime=value), WALLET).venue_time is None


@pytest.mark.parametrize("value", ["soon", -1, True, 10**25, [], {}, Decimal("1.5")])
def test_a_time_that_cannot_be_read_is_unknown_and_leaves_the_figures(value: Any) -> None:
    assert parse.spot_account(spot_with(updateTime=value), WALLET).venue_time is None
    account = parse.futures_account(asset_with(updateTime=value), WALLET)
    assert account.venue_time is None
    assert account.assets


def test_futures_are_as_old_as_their_latest_change() -> None:
    answer = payload("account.json")
    answer["assets"].append(dict(answer["assets"][0], asset="BNB", updateTime=1763000000000))
    assert parse.futures_account(answer, WALLET).venue_time == CHANGED


@pytest.mark.parametrize("answer", [None, [], {}, "", 0, {"assets": {}}, {"assets": [None]}], ids=json.dumps)
def test_a_futures_account_of_another_shape_is_malformed(answer: Any) -> None:
    with pytest.raises(VenueMalformed):
        parse.futures_account(answer, WALLET)


@pytest.mark.parametrize("answer", [None, [], {}, "", 0, {"balances": {}}, {"balances": [None]}], ids=json.dumps)
def test_a_spot_account_of_another_shape_is_malformed(answer: Any) -> None:
    with pytest.raises(VenueMalformed):
        parse.spot_account(answer, WALLET)


def row(asset: str, total: int) -> AssetBalance:
    return AssetBalance(asset, Decimal(total), Decimal(total), Decimal(0))


FIGURES = Summary("USDT", total=Decimal(5), equity=Decimal(6))


@pytest.mark.parametrize(
    ("futures", "spot", "summary"),
    [
        ((row("USDT", 5), row("BNB", 0)), (row("USDT", 0),), FIGURES),
        ((row("USDT", 5),), (), FIGURES),
        ((row("USDT", 5), row("BNB", 1)), (), None),
        ((row("USDT", 5),), (row("ASTER", 1),), None),
        ((row("USDT", 5),), (row("USDT", 1),), None),
    ],
    ids=["zeros besides", "nothing besides", "another in futures", "another on spot", "USDT on spot"],
)
def test_the_summary_is_that_of_futures_if_it_leaves_nothing_out(
    futures: tuple[AssetBalance, ...], spot: tuple[AssetBalance, ...], summary: Summary | None
) -> None:
    accounts = [
        VenueAccount(type="futures", assets=futures, summary=FIGURES),
        VenueAccount(type="spot", assets=spot),
    ]
    assert parse.overall_summary(accounts) == summary


def test_there_is_no_summary_if_an_account_could_not_be_read_or_there_is_only_spot() -> None:
    futures = VenueAccount(type="futures", assets=(row("USDT", 5),), summary=FIGURES)
    unread = VenueAccount(type="spot", error=VenueUnavailable("Down."))
    assert parse.overall_summary([futures, unread]) is None
    assert parse.overall_summary([VenueAccount(type="spot")]) is None
    assert parse.overall_summary([futures]) == FIGURES


def test_the_venues_time_is_exact() -> None:
    assert parse.server_time({"serverTime": 1764000000123}) == 1764000000123


@pytest.mark.parametrize("answer", [{}, [], {"serverTime": 0}, {"serverTime": "now"}, {"serverTime": True}])
def test_an_invalid_time_of_the_venue_is_malformed(answer: Any) -> None:
    with pytest.raises(VenueMalformed):
        parse.server_time(answer)


def test_an_agent_is_found_by_its_address_in_any_case() -> None:
    reader = parse.key_rights(payload("agents.json"), READER)
    assert (reader.trade, reader.withdraw) == (False, False)
    assert reader.expires == datetime(2026, 12, 31, tzinfo=UTC)
    trader = parse.key_rights(payload("agents.json"), TRADER)
    assert (trader.trade, trader.withdraw) == (True, False)


def test_a_right_that_is_not_stated_is_unknown() -> None:
    rights = parse.key_rights([{"agentAddress": READER, "canSpotTrade": False}], READER)
    assert rights == KeyRights()


def test_an_agent_that_is_not_listed_has_no_known_rights() -> None:
    rights = parse.key_rights([], READER)
    assert (rights.trade, rights.withdraw, rights.expires) == (None, None, None)
    assert rights.notes


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        [None],
        [{}],
        [{"agentAddress": READER}] * 2,
        [{"agentAddress": READER, "canWithdraw": "no"}],
        [{"agentAddress": READER, "expired": "soon"}],
    ],
    ids=json.dumps,
)
def test_a_list_of_agents_of_another_shape_is_malformed(answer: Any) -> None:
    with pytest.raises(VenueMalformed):
        parse.key_rights(answer, READER)
