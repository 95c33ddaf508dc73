"""What Hyperliquid's payloads mean, read from recorded shapes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_hyperliquid import parse

from exchange_service.plugin_api import (
    AssetBalance,
    Summary,
    VenueAccount,
    VenueMalformed,
    VenueUnavailable,
    parse_json,
)
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
ADDRESS = "0x8c967e73e6b15087c42a10d344cff4c96d877f1d"
SUB = "0x035605fc2f24d65300227189025e90a0d947f16c"
UNIFIED = ["unifiedAccount", "portfolioMargin"]
STANDARD = ["disabled", "default", "dexAbstraction"]


def payload(name: str) -> Any:
    return parse_json(read_payload(PAYLOADS / f"{name}.json"))


def perps(name: str = "clearinghouse_state", dex: str = "", collateral: str = "USDC") -> parse.PerpState:
    return parse.perp_state(payload(name), dex, collateral)


def spot(name: str) -> parse.SpotState:
    return parse.spot_state(payload(name))


def wallet(mode: str, spot_name: str, *states: parse.PerpState, **options: Any) -> parse.Wallet:
    return parse.wallet(ADDRESS, mode, spot(spot_name), states or (perps(),), **options)


def row(asset: str, total: str, free: str, used: str) -> AssetBalance:
    return AssetBalance(asset, Decimal(total), Decimal(free), Decimal(used))


def sub_account(address: str, master: str = ADDRESS) -> dict[str, Any]:
    return {"subAccountUser": address, "master": master}


PERP_FIGURES = Summary(
    "USDC",
    total=Decimal("8420.118264"),
    equity=Decimal("8420.118264"),
    available=Decimal("7611.904113"),
    margin_used=Decimal("802.5"),
    unrealised_pnl=Decimal("321.5"),
)


@pytest.mark.parametrize("mode", STANDARD)
def test_a_standard_wallet_has_its_perpetuals_to_the_digit(mode: str) -> None:
    account = wallet(mode, "spot_state_empty").accounts[0]
    assert account.identity == (ADDRESS, "perpetual", "")
    assert account.assets == (row("USDC", "8420.118264", "7611.904113", "802.5"),)
    assert account.summary == PERP_FIGURES
    assert account.venue_time == datetime(2025, 11, 24, 16, 0, 0, 123000, tzinfo=UTC)


@pytest.mark.parametrize("mode", STANDARD)
def test_spot_is_separate_in_a_standard_wallet(mode: str) -> None:
    account = wallet(mode, "spot_state_standard").accounts[1]
    assert account.identity == (ADDRESS, "spot", "")
    assert account.assets == (
        row("USDC", "1250.4399999999998", "1150.4399999999997", "100.0000000000001"),
        row("HYPE", "31.25", "31.25", "0.0"),
    )
    assert account.summary is None


def test_free_is_exact_beyond_the_usual_precision() -> None:
    entry = {"coin": "PURR", "token": 1, "total": "12345678901234567890.123456789012345678", "hold": "0.1"}
    state = parse.spot_state({"balances": [entry]})
    assert state.rows[0].free == Decimal("12345678901234567890.023456789012345678")


def test_unrealised_profit_is_summed_exactly() -> None:
    state = payload("clearinghouse_state")
    first, second = (entry["position"] for entry in state["assetPositions"])
    first["unrealizedPnl"], second["unrealizedPnl"] = "100000000000000000000.1", "-0.000000000000000001"
    assert parse.perp_state(state).unrealised_pnl == Decimal("100000000000000000000.099999999999999999")


@pytest.mark.parametrize("mode", UNIFIED)
def test_a_unified_wallet_counts_its_equity_once(mode: str) -> None:
    result = wallet(mode, "spot_state_unified")
    assert [account.identity for account in result.accounts] == [(ADDRESS, "spot", "")]
    assert result.accounts[0].assets == (
        row("USDC", "5230.118264", "4387.618264", "842.5"),
        row("HYPE", "31.25", "31.25", "0.0"),
        row("UBTC", "0.0", "0.0", "0.0"),
    )
    assert result.accounts[0].summary == Summary(
        "USDC",
        total=Decimal("5230.118264"),
        equity=Decimal("5230.118264"),
        available=Decimal("4387.618264"),
        margin_used=Decimal("842.5"),
        unrealised_pnl=Decimal("321.5"),
    )
    assert any("USDC part" in note for note in result.notes)
    assert parse.overall_summary(result.accounts) == (result.accounts[0].summary, ())


def unified_usdc(left: str) -> parse.SpotState:
    """A unified wallet with 5230.118264 USDC, of which 4387.618264 are not on hold, and nothing else."""
    usdc = payload("spot_state_unified")["balances"][:1]
    return parse.spot_state({"balances": usdc, "tokenToAvailableAfterMaintenance": [[0, left], [150, "1.0"]]})


def test_a_unified_wallet_with_nothing_but_usdc_needs_no_remark() -> None:
    assert parse.wallet(ADDRESS, "unifiedAccount", unified_usdc("4387.6182640"), (perps(),)).notes == ()


def test_the_venues_own_available_figure_is_in_a_note_if_it_differs() -> None:
    result = parse.wallet(ADDRESS, "unifiedAccount", unified_usdc("4810.334120"), (perps(),), name="Hedge")
    assert result.accounts[0].summary is not None
    assert result.accounts[0].summary.available == Decimal("4387.618264")
    (note,) = result.notes
    assert "is 4810.334120." in note
    assert "sub-account Hedge" in note


def test_a_unified_wallet_with_perpetuals_and_without_their_usdc_has_an_unknown_value() -> None:
    state = parse.spot_state({"balances": [], "tokenToAvailableAfterMaintenance": []})
    result = parse.wallet(ADDRESS, "unifiedAccount", state, (perps(),))
    assert [account.summary for account in result.accounts] == [None]
    assert parse.overall_summary(result.accounts)[0] is None
    (note,) = result.notes
    assert "unknown" in note


def test_a_unified_wallet_without_perpetuals_and_a_usdc_row_holds_no_usdc() -> None:
    state = parse.spot_state({"balances": [], "tokenToAvailableAfterMaintenance": []})
    summary = parse.wallet(ADDRESS, "unifiedAccount", state, (perps("clearinghouse_state_empty"),)).accounts[0].summary
    assert summary is not None
    assert (summary.total, summary.available, summary.margin_used) == (0, 0, 0)


def test_unrealised_profit_in_another_collateral_is_not_added_to_usdc() -> None:
    gold = perps("clearinghouse_state_builder_dex", "flx", "USDH")
    summary = wallet("unifiedAccount", "spot_state_unified", perps(), gold).accounts[0].summary
    assert summary is not None
    assert summary.unrealised_pnl is None
    in_usdc = wallet("unifiedAccount", "spot_state_unified", perps(), perps("clearinghouse_state_builder_dex", "xyz"))
    assert in_usdc.accounts[0].summary is not None
    assert in_usdc.accounts[0].summary.unrealised_pnl == Decimal("342.0")


def test_a_dex_that_could_not_be_read_leaves_unified_profit_unknown() -> None:
    failed = VenueAccount(ADDRESS, "perpetual", "flx", error=VenueUnavailable("down"))
    result = wallet("unifiedAccount", "spot_state_unified", unread=(failed,))
    assert result.accounts[0].summary is not None
    assert result.accounts[0].summary.unrealised_pnl is None
    assert result.accounts[1] == failed


def test_an_unknown_mode_is_shown_without_equity_and_with_a_note() -> None:
    result = wallet("someNewMode", "spot_state_unified")
    assert [account.type for account in result.accounts] == ["perpetual", "spot"]
    assert [account.summary for account in result.accounts] == [None, None]
    assert result.accounts[0].assets == (row("USDC", "8420.118264", "7611.904113", "802.5"),)
    assert "someNewMode" in result.notes[0]
    assert parse.overall_summary(result.accounts) == (None, ())


@pytest.mark.parametrize("mode", [*STANDARD, *UNIFIED])
@pytest.mark.parametrize("name", ["spot_state_unified", "spot_state_standard", "spot_state_empty"])
def test_a_mode_and_an_answer_that_do_not_fit_give_rows_and_no_figure(mode: str, name: str) -> None:
    result = wallet(mode, name)
    fits = (mode in UNIFIED) == (name == "spot_state_unified")
    assert parse.contradicts(mode, spot(name)) is not fits
    assert any("answers as in another" in note for note in result.notes) is not fits
    if not fits:
        assert [account.type for account in result.accounts] == ["perpetual", "spot"]
        assert [account.summary for account in result.accounts] == [None, None]
        assert parse.overall_summary(result.accounts) == (None, ())


@pytest.mark.parametrize("mode", [*STANDARD, *UNIFIED])
@pytest.mark.parametrize("field", [{}, {"tokenToAvailableAfterMaintenance": [[0, "40.0"]]}], ids=["without", "with"])
def test_without_perpetuals_no_mode_is_doubtful(mode: str, field: dict[str, Any]) -> None:
    state = parse.spot_state({"balances": [{"coin": "USDC", "total": "40.0", "hold": "0.0"}], **field})
    result = parse.wallet(ADDRESS, mode, state, (perps("clearinghouse_state_empty"),))
    summary, _ = parse.overall_summary(result.accounts)
    assert result.notes == ()
    assert summary is not None
    assert (summary.total, summary.equity) == (40, 40)


def test_an_unknown_mode_contradicts_nothing() -> None:
    assert not parse.contradicts("someNewMode", spot("spot_state_unified"))
    assert not parse.contradicts("someNewMode", spot("spot_state_standard"))


def test_each_dex_is_an_account_in_its_own_collateral() -> None:
    result = wallet(
        "default", "spot_state_empty", perps(), perps("clearinghouse_state_builder_dex", dex="flx", collateral="USDH")
    )
    account = result.accounts[1]
    assert account.identity == (ADDRESS, "perpetual", "flx")
    assert account.assets == (row("USDH", "310.2499999999998", "248.1999999999998", "62.05"),)
    assert account.summary is not None
    assert account.summary.currency == "USDH"
    assert result.venue_times == (
        datetime(2025, 11, 24, 16, 0, 0, 123000, tzinfo=UTC),
        datetime(2025, 11, 24, 15, 59, 59, 876000, tzinfo=UTC),
    )


def test_a_sub_accounts_dex_is_named_after_both() -> None:
    result = wallet("default", "spot_state_empty", perps(), perps(dex="xyz"), name="Hedge")
    assert [account.sub_account for account in result.accounts] == ["Hedge", "Hedge/xyz", "Hedge"]


def test_perpetuals_and_spot_usdc_have_one_figure() -> None:
    state = parse.spot_state({"balances": [payload("spot_state_standard")["balances"][0]]})
    result = parse.wallet(ADDRESS, "default", state, (perps(),))
    summary, notes = parse.overall_summary(result.accounts)
    assert notes == ()
    assert summary == Summary(
        "USDC",
        total=Decimal("9670.5582639999998"),
        equity=Decimal("9670.5582639999998"),
        available=Decimal("8762.3441129999997"),
        margin_used=Decimal("802.5"),
        unrealised_pnl=Decimal("321.5"),
    )


def test_perpetuals_alone_are_the_figure_for_everything() -> None:
    assert parse.overall_summary(wallet("default", "spot_state_empty").accounts) == (PERP_FIGURES, ())


def test_other_tokens_beside_standard_perpetuals_leave_no_single_figure() -> None:
    summary, notes = parse.overall_summary(wallet("default", "spot_state_standard").accounts)
    assert summary is None
    assert notes


def test_an_empty_dex_in_another_collateral_does_not_hinder_the_figure() -> None:
    empty = perps("clearinghouse_state_empty", "flx", "USDH")
    result = wallet("default", "spot_state_empty", perps(), empty)
    assert parse.overall_summary(result.accounts) == (PERP_FIGURES, ())


def test_an_unread_account_leaves_no_single_figure() -> None:
    failed = VenueAccount(ADDRESS, "perpetual", "flx", error=VenueUnavailable("down"))
    assert parse.overall_summary(wallet("default", "spot_state_empty", unread=(failed,)).accounts) == (None, ())


def test_an_empty_wallet_is_worth_zero() -> None:
    result = wallet("default", "spot_state_empty", perps("clearinghouse_state_empty"))
    assert result.is_empty
    summary, _ = parse.overall_summary(result.accounts)
    assert summary is not None
    assert (summary.currency, summary.equity) == ("USDC", 0)


def test_a_spot_wallet_with_nothing_but_outcomes_is_not_empty_and_leaves_no_single_figure() -> None:
    state = parse.spot_state({"balances": [{"coin": "+12345", "token": None, "total": "10.0", "hold": "0.0"}]})
    assert not parse.wallet(ADDRESS, "default", state, (perps("clearinghouse_state_empty"),)).is_empty
    assert parse.overall_summary(parse.wallet(ADDRESS, "default", state, (perps(),)).accounts)[0] is None


@pytest.mark.parametrize("name", ["spot_state_unified", "spot_state_outcomes"])
def test_a_wallet_that_holds_something_is_not_empty(name: str) -> None:
    assert not wallet("default", name, perps("clearinghouse_state_empty")).is_empty
    assert not wallet("default", "spot_state_empty", perps()).is_empty


@pytest.mark.parametrize("coin", ["+12345", "o7", "#970"])
def test_positions_in_outcome_markets_are_rows_with_the_venues_code_and_a_note(coin: str) -> None:
    entry = {"coin": coin, "total": "10.0", "hold": "0.0", "entryNtl": "4.2"}
    state = parse.spot_state({"balances": [*payload("spot_state_empty")["balances"], entry]})
    assert state.rows == (row(coin, "10", "10", "0"),)
    result = parse.wallet(ADDRESS, "default", state, (perps(),))
    assert any("outcome" in note for note in result.notes)
    assert result.accounts[1].summary is None


def test_a_wallet_without_outcomes_needs_no_note_on_them() -> None:
    closed = {"coin": "+12345", "total": "0.0", "hold": "0.0"}
    state = parse.spot_state({"balances": [*payload("spot_state_standard")["balances"], closed]})
    assert not any("outcome" in note for note in parse.wallet(ADDRESS, "default", state, (perps(),)).notes)


def test_a_missing_hold_leaves_free_unknown() -> None:
    assert parse.spot_state({"balances": [{"coin": "HYPE", "total": "3"}]}).rows == (
        AssetBalance("HYPE", total=Decimal(3)),
    )


def test_a_row_whose_amounts_are_all_empty_says_nothing() -> None:
    told, empty = payload("spot_state_standard")["balances"][0], {"coin": "HYPE", "total": "", "hold": ""}
    assert parse.spot_state({"balances": [told, empty]}) == parse.spot_state({"balances": [told]})
    assert parse.spot_state({"balances": [], "evmEscrows": [{"coin": "USDC", "token": 0, "total": ""}]}).escrows == ()


def test_what_is_free_is_never_negative() -> None:
    (held,) = parse.spot_state({"balances": [{"coin": "USDC", "total": "5", "hold": "7.5"}]}).rows
    assert held == AssetBalance("USDC", total=Decimal(5), used=Decimal("7.5"))


def test_a_negative_hold_leaves_both_parts_unknown() -> None:
    (held,) = parse.spot_state({"balances": [{"coin": "USDC", "total": "10000.0", "hold": "-5.0"}]}).rows
    assert held == AssetBalance("USDC", total=Decimal("10000.0"))


@pytest.mark.parametrize(("total", "hold"), [("1.25e3", "5E+1"), ("1250", "50"), ("1.25E3", "50.0")])
def test_an_amount_with_an_exponent_takes_the_same_road_as_any_other(total: str, hold: str) -> None:
    assert parse.spot_state({"balances": [{"coin": "USDC", "total": total, "hold": hold}]}).rows == (
        row("USDC", "1250", "1200", "50"),
    )


PORTFOLIO = {"coin": "USDC", "total": "7.5", "hold": "1.5", "spotHold": "4.5", "borrowed": "0.2"}
AFTER = {"tokenToAvailableAfterMaintenance": [[0, "6.5"]]}


def test_under_portfolio_margin_what_is_reserved_is_stated_apart_and_a_debt_is_shown() -> None:
    state = parse.spot_state({"balances": [PORTFOLIO], **AFTER})
    debt = Decimal("0.2")
    assert state.rows == (AssetBalance("USDC", Decimal("7.5"), Decimal(3), Decimal("4.5"), debt=debt),)
    result = parse.wallet(ADDRESS, "portfolioMargin", state, (perps("clearinghouse_state_empty"),))
    summary = result.accounts[0].summary
    assert summary is not None
    assert (summary.total, summary.available, summary.equity) == (Decimal("7.5"), Decimal(3), None)
    assert any("borrowed" in note for note in result.notes)


def test_a_negative_debt_is_malformed() -> None:
    with pytest.raises(VenueMalformed, match="borrowed"):
        parse.spot_state({"balances": [{**PORTFOLIO, "borrowed": "-0.2"}]})


@pytest.mark.parametrize("usdc", [[], [{"coin": "USDC", "total": "0.0", "hold": "0.0"}]], ids=["no row", "zero"])
def test_a_unified_wallet_with_other_tokens_alone_has_no_figure_of_zero(usdc: list[Any]) -> None:
    state = parse.spot_state({"balances": [*usdc, {"coin": "HYPE", "total": "31.25", "hold": "0.0"}]})
    result = parse.wallet(ADDRESS, "unifiedAccount", state, (perps("clearinghouse_state_empty"),))
    assert result.accounts[0].summary is None
    assert any("no USDC" in note for note in result.notes)
    assert parse.overall_summary(result.accounts)[0] is None


def test_under_portfolio_margin_a_hold_alone_tells_neither_part() -> None:
    alone = {name: value for name, value in PORTFOLIO.items() if name != "spotHold"}
    held = parse.spot_state({"balances": [alone], **AFTER}).rows[0]
    assert (held.free, held.used, held.debt) == (None, None, Decimal("0.2"))
    flagged = {"balances": [{"coin": "USDC", "total": "7.5", "hold": "1.5"}], "portfolioMarginEnabled": True}
    assert parse.spot_state(flagged).rows[0].free is None
    # Tokens without any hold lack the other figure.
    idle = parse.spot_state({"balances": [{**alone, "hold": "0.0"}], **AFTER}).rows[0]
    assert (idle.free, idle.used) == (Decimal("7.5"), 0)


@pytest.mark.parametrize("field", [AFTER, {"portfolioMarginEnabled": True}], ids=str)
def test_either_field_of_portfolio_margin_contradicts_a_standard_mode(field: dict[str, Any]) -> None:
    state = parse.spot_state({"balances": [], **field})
    assert all(parse.contradicts(mode, state) for mode in STANDARD)
    assert not any(parse.contradicts(mode, state) for mode in UNIFIED)


def test_what_waits_in_escrow_is_an_account_of_its_own_with_a_note() -> None:
    state = spot("spot_state_escrow")
    result = parse.wallet(ADDRESS, "default", state, (perps("clearinghouse_state_empty"),))
    assert (result.is_empty, result.has_escrows) == (True, True)
    account = result.accounts[-1]
    assert account.identity == (ADDRESS, "spot", "escrow")
    assert account.assets == (AssetBalance("USDC", total=Decimal("250.75")),)
    summary, _ = parse.overall_summary(result.accounts)
    assert summary == Summary("USDC", total=Decimal("250.75"), equity=Decimal("250.75"))
    assert any("activated" in note for note in result.notes)


def test_other_tokens_in_escrow_leave_no_single_figure() -> None:
    state = parse.spot_state({"balances": [], "evmEscrows": [{"coin": "HYPE", "token": 150, "total": "2"}]})
    result = parse.wallet(ADDRESS, "default", state, (perps(),))
    assert parse.overall_summary(result.accounts)[0] is None


def test_an_escrow_of_nothing_is_not_shown() -> None:
    state = parse.spot_state({"balances": [], "evmEscrows": [{"coin": "USDC", "token": 0, "total": "0.0"}]})
    result = parse.wallet(ADDRESS, "default", state, (perps("clearinghouse_state_empty"),))
    assert [account.sub_account for account in result.accounts] == ["", ""]
    assert not result.has_escrows


def test_a_mode_that_was_never_set_gives_rows_without_a_sum() -> None:
    assert parse.mode(None) == parse.UNSET_MODE
    result = wallet(parse.UNSET_MODE, "spot_state_standard")
    assert [account.type for account in result.accounts] == ["perpetual", "spot"]
    assert [account.summary for account in result.accounts] == [None, None]
    assert result.accounts[0].assets == (row("USDC", "8420.118264", "7611.904113", "802.5"),)
    assert any("none was ever set" in note for note in result.notes)
    assert parse.overall_summary(result.accounts) == (None, ())


def test_a_mode_that_was_never_set_is_contradicted_by_a_unified_answer() -> None:
    assert parse.contradicts(parse.UNSET_MODE, spot("spot_state_unified"))
    assert not parse.contradicts(parse.UNSET_MODE, spot("spot_state_standard"))


def test_unread_perpetuals_leave_a_unified_wallet_without_usdc_unknown() -> None:
    failed = VenueAccount(ADDRESS, "perpetual", error=VenueMalformed("odd"))
    state = parse.spot_state({"balances": [], **AFTER})
    result = parse.wallet(ADDRESS, "unifiedAccount", state, (), unread=(failed,))
    assert result.accounts[0].summary is None
    assert not result.is_empty
    doubtful = parse.wallet(ADDRESS, "default", state, (), unread=(failed,))
    assert doubtful.accounts[0].summary is None


@pytest.mark.parametrize("time", [1764000000123, "1764000000123"])
def test_the_time_is_in_milliseconds_as_a_number_or_a_text(time: Any) -> None:
    state = parse.perp_state(changed("clearinghouse_state", time, "time"))
    assert state.venue_time == datetime(2025, 11, 24, 16, 0, 0, 123000, tzinfo=UTC)


def test_a_state_without_a_time_has_no_venue_time() -> None:
    state = payload("clearinghouse_state")
    del state["time"], state["crossMaintenanceMarginUsed"]
    for entry in state["assetPositions"]:
        del entry["position"]["cumFunding"]
    assert parse.perp_state(state).venue_time is None


@pytest.mark.parametrize("time", ["yesterday", Decimal("1764000000.123"), True, 10**18, -1, [], {}], ids=str)
def test_a_time_that_cannot_be_read_is_absent(time: Any) -> None:
    state = parse.perp_state(changed("clearinghouse_state", time, "time"))
    assert state.venue_time is None
    assert state.account_value == Decimal("8420.118264")


def test_vault_deposits_are_accounts_of_their_own() -> None:
    (account,) = parse.vault_accounts(payload("vault_equities"), ADDRESS)
    assert account.identity == ("0xdfc24b077bc1425ad1dea75bcb6f8158e10df303", "vault", "")
    assert account.assets == (AssetBalance("USDC", total=Decimal("742.500082")),)
    assert account.summary == Summary("USDC", total=Decimal("742.500082"), equity=Decimal("742.500082"))


@pytest.mark.parametrize(
    ("odd", "identity"),
    [
        (None, (ADDRESS, "vault", "vaults without an address")),
        ({"equity": "1"}, (ADDRESS, "vault", "vaults without an address")),
        ({"vaultAddress": SUB}, (SUB, "vault", "")),
        ({"vaultAddress": SUB, "equity": "NaN"}, (SUB, "vault", "")),
    ],
    ids=str,
)
def test_an_odd_vault_is_its_own_error(odd: Any, identity: tuple[str, str, str]) -> None:
    good, bad = parse.vault_accounts([*payload("vault_equities"), odd], ADDRESS)
    assert good.assets == (AssetBalance("USDC", total=Decimal("742.500082")),)
    assert bad.identity == identity
    assert isinstance(bad.error, VenueMalformed)


def test_a_vault_that_is_listed_twice_is_an_error_and_counts_not_once() -> None:
    other = {"vaultAddress": SUB, "equity": "1"}
    twice, once = parse.vault_accounts([*payload("vault_equities"), other, *payload("vault_equities")], ADDRESS)
    assert isinstance(twice.error, VenueMalformed)
    assert not twice.assets
    assert once.assets == (AssetBalance("USDC", total=Decimal(1)),)


def test_vaults_of_which_not_one_can_be_read_are_no_empty_account() -> None:
    with pytest.raises(VenueMalformed):
        parse.vault_accounts([{"vaultAddress": SUB}], ADDRESS)


def test_staked_hype_is_an_account_without_a_figure_in_usdc() -> None:
    account = parse.staking_account(payload("delegator_summary"), ADDRESS)
    assert account.assets == (row("HYPE", "12073.91529862", "3.5", "12060.16529862"),)
    assert account.summary is None


def test_sub_accounts_are_read_in_lower_case_and_may_be_absent() -> None:
    assert parse.sub_accounts(payload("sub_accounts"), ADDRESS) == [parse.SubAccount(SUB, "Hedge")]
    assert parse.sub_accounts(None, ADDRESS) == []


def test_a_nameless_sub_account_is_called_by_its_address() -> None:
    assert parse.sub_accounts([sub_account(SUB)], ADDRESS) == [parse.SubAccount(SUB, SUB)]


@pytest.mark.parametrize(
    "odd",
    [
        None,
        {"name": "Hedge"},
        sub_account("me"),
        {"subAccountUser": SUB},
        sub_account(SUB, SUB),
        sub_account(ADDRESS),
        sub_account("0x035605fc2f24d65300227189025e90a0d947f16C"),
    ],
    ids=str,
)
def test_an_odd_entry_of_a_sub_account_is_that_sub_accounts_error(odd: Any) -> None:
    good, bad = parse.sub_accounts([*payload("sub_accounts"), odd], ADDRESS)
    assert good == parse.SubAccount(SUB, "Hedge")
    assert (bad.address, bad.name) == (ADDRESS, "sub-account 2")
    assert isinstance(bad.error, VenueMalformed)


def test_an_agent_names_its_main_wallet() -> None:
    assert parse.role(payload("user_role_agent")) == parse.Role("agent", ADDRESS)
    assert parse.role({"role": "subAccount", "data": {"master": ADDRESS}}) == parse.Role("subAccount")


def test_the_tables_give_a_dexs_collateral() -> None:
    assert parse.dex_names(payload("perp_dexs")) == {"xyz", "flx"}
    token = parse.collateral_token(payload("meta_builder_dex"))
    assert parse.token_names(payload("spot_meta"))[token] == "USDH"


def without(name: str, *path: Any) -> Any:
    """The payload without the field at `path`."""
    value = copy.deepcopy(payload(name))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    del holder[path[-1]]
    return value


def changed(name: str, to: Any, *path: Any) -> Any:
    """The payload with `to` at `path`."""
    value = copy.deepcopy(payload(name))
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = to
    return value


PERP, SPOT = "clearinghouse_state", "spot_state_unified"
NONSENSE: list[tuple[Callable[[Any], Any], Any]] = [
    *((parse.perp_state, value) for value in (None, [], {}, "ok", 0, {"marginSummary": {}, "assetPositions": []})),
    (parse.perp_state, without(PERP, "marginSummary")),
    (parse.perp_state, without(PERP, "marginSummary", "accountValue")),
    (parse.perp_state, without(PERP, "marginSummary", "totalMarginUsed")),
    (parse.perp_state, without(PERP, "withdrawable")),
    (parse.perp_state, without(PERP, "assetPositions")),
    (parse.perp_state, without(PERP, "assetPositions", 0, "position")),
    (parse.perp_state, without(PERP, "assetPositions", 0, "position", "unrealizedPnl")),
    (parse.perp_state, changed(PERP, "NaN", "marginSummary", "accountValue")),
    (parse.perp_state, changed(PERP, True, "withdrawable")),
    *((parse.spot_state, value) for value in (None, [], {}, "ok", {"balances": None}, {"balances": {}})),
    (parse.spot_state, changed(SPOT, [None], "balances")),
    (parse.spot_state, without(SPOT, "balances", 0, "coin")),
    (parse.spot_state, without(SPOT, "balances", 0, "total")),
    (parse.spot_state, changed(SPOT, "Infinity", "balances", 0, "total")),
    (parse.spot_state, changed(SPOT, "much", "balances", 1, "hold")),
    (parse.spot_state, changed(SPOT, "USDC", "balances", 1, "coin")),
    *(
        (parse.spot_state, changed(SPOT, value, "tokenToAvailableAfterMaintenance"))
        for value in ({}, "ok", [None], [[]], [[0]], [[0, None]], [[0, "1", "2"]], [["0", "1"]], [[0, "1"], [0, "1"]])
    ),
    *(
        (parse.spot_state, changed(SPOT, value, "evmEscrows"))
        for value in ({}, "ok", [None], [{}], [{"coin": "USDC"}], [{"total": "1"}], [{"coin": "A", "total": "1"}] * 2)
    ),
    *((parse.mode, value) for value in ("", [], {}, 0, True)),
    *((parse.role, value) for value in (None, [], {}, "user", {"role": None}, {"role": "agent"})),
    (parse.role, {"role": "agent", "data": {"user": "0x12"}}),
    (parse.role, {"role": "agent", "data": {"user": "0x" + "g" * 40}}),
    *((lambda value: parse.sub_accounts(value, ADDRESS), value) for value in ({}, "ok", True)),
    *((lambda value: parse.vault_accounts(value, ADDRESS), value) for value in (None, {}, "ok")),
    *((lambda value: parse.staking_account(value, ADDRESS), value) for value in (None, [], {}, {"delegated": "1"})),
    *((parse.dex_names, value) for value in (None, {}, [], ["xyz"], [None, {}], [None, None, 3])),
    *((parse.collateral_token, value) for value in (None, {}, {"collateralToken": "360"}, {"collateralToken": True})),
    *((parse.token_names, value) for value in (None, {}, {"tokens": []}, {"tokens": [{"name": "USDC"}]})),
    (parse.token_names, {"tokens": [{"name": "USDC", "index": 0}, {"name": "HYPE", "index": 0}]}),
]


@pytest.mark.parametrize(("read", "value"), NONSENSE)
def test_an_answer_without_the_expected_shape_is_malformed(read: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises(VenueMalformed):
        read(value)
