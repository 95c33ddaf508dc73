"""The one figure to show of wallets that hold many assets: by which rules, and what it says of the rest."""

from __future__ import annotations

from decimal import Decimal

import pytest
from exchange_service_ccxt_generic.headline import summarize, with_headline
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange_service.plugin_api import (
    AssetBalance,
    Balance,
    FeatureNotEnabled,
    Summary,
    VenueAccount,
    VenueError,
    VenueUnavailable,
)


def wallet(kind: str = "spot", *, error: VenueError | None = None, **held: str | tuple[str, str]) -> VenueAccount:
    """A wallet with a row for each asset: its total, all of it free, or total and free."""
    rows = tuple(
        AssetBalance(asset, Decimal(figures[0]), Decimal(figures[1]))
        if isinstance(figures, tuple)
        else AssetBalance(asset, Decimal(figures), Decimal(figures))
        for asset, figures in held.items()
    )
    return VenueAccount(type=kind, assets=rows, error=error, summary=summarize(rows))


def headline(*wallets: VenueAccount) -> tuple[str | None, tuple[str, ...]]:
    """The summary as "currency total available", and the notes."""
    balance = with_headline(Balance(venue_accounts=wallets))
    figures = balance.summary
    text = None if figures is None else f"{figures.currency} {figures.total} {figures.available}"
    return text, balance.notes


def test_a_row_of_zeros_does_not_hide_what_is_held_elsewhere() -> None:
    assert headline(wallet(USDT="0", **{"USDT.F": "6016.5"})) == (None, ())
    assert headline(wallet(USDT="0", USD="7")) == ("USD 7 7", ())


def test_the_currency_is_the_one_of_which_most_is_held() -> None:
    expected = ("USDC 5000 5000", ("The summary counts USDC alone. Also held: USDT.",))
    assert headline(wallet(USDT="5", USDC="5000")) == expected
    assert headline(wallet(USDC="5", USD="5"))[0] == "USD 5 5"


def test_what_is_left_out_stands_in_a_note_with_at_most_five_names() -> None:
    others = dict.fromkeys(("ADA", "BTC", "DOT", "ETH", "SOL", "XRP", "ZEC"), "1")
    assert headline(wallet(USDT="3", BNB="0", **others)) == (
        "USDT 3 3",
        ("The summary counts USDT alone. Also held: ADA, BTC, DOT, ETH, SOL and 2 more.",),
    )


def test_an_account_that_holds_nothing_has_a_summary_of_zero_and_one_without_rows_has_none() -> None:
    assert headline(wallet(BTC="0", USD="0", USDC="0")) == ("USD 0 0", ())
    assert headline(wallet()) == (None, ())
    assert headline(wallet(BTC="1")) == (None, ())


def test_wallets_are_added_up_and_empty_ones_take_nothing_away() -> None:
    wallets = (wallet(USDT="1.5"), wallet("swap", USDT=("2", "0.5")), wallet("funding"), wallet("margin", EUR="0"))
    assert headline(*wallets) == ("USDT 3.5 2.0", ())


def test_a_wallet_that_was_never_opened_holds_nothing() -> None:
    closed = wallet("margin", error=FeatureNotEnabled("Not enabled."))
    note = "Not opened at the venue, so that nothing is held there: margin."
    assert headline(wallet(USDT="1.5"), closed) == ("USDT 1.5 1.5", (note,))


def test_a_wallet_that_could_not_be_read_takes_the_summary_away() -> None:
    broken = wallet("margin", error=VenueUnavailable("It is down."))
    text, notes = headline(wallet(USDT="1.5", BTC="1"), broken)
    assert text is None
    assert notes == ("The summary of spot counts USDT alone. Also held: BTC.",)


def test_another_wallet_does_not_pay_for_a_deficit() -> None:
    assert headline(wallet(USDT="10"), wallet("swap", USDT=("5", "-3")))[0] == "USDT 15 None"
    assert headline(wallet("swap", USDT=("5", "-3")))[0] == "USDT 5 -3"


def test_a_figure_that_one_row_lacks_is_absent() -> None:
    lacking = VenueAccount(type="swap", assets=(AssetBalance("USDT", total=Decimal(1)),))
    assert headline(wallet(USDT="10"), lacking)[0] == "USDT 11 None"


def test_what_is_owed_is_not_called_held_and_is_named_beside_the_summary() -> None:
    borrowed = AssetBalance("USDT", Decimal(6), Decimal(5), Decimal(1), Decimal("20.25"))
    owed = VenueAccount(type="margin", assets=(borrowed, AssetBalance("BTC", total=Decimal(0), debt=Decimal(1))))
    assert headline(owed) == ("USDT 6 5", ("Owed at the venue: BTC, USDT.",))
    assert headline(wallet(USDC="4.25", USDT="-10.5")) == ("USDC 4.25 4.25", ("Owed at the venue: USDT.",))


_AMOUNTS = st.none() | st.decimals(min_value=-(10**6), max_value=10**6, places=3)
_ROWS = st.builds(
    AssetBalance, st.sampled_from(("USDT", "USD", "USDC", "BTC", "EUR")), total=_AMOUNTS, free=_AMOUNTS, debt=_AMOUNTS
)
_WALLETS = st.lists(
    st.lists(_ROWS, unique_by=lambda row: row.asset).map(lambda rows: VenueAccount(assets=tuple(rows))), max_size=3
)


@settings(max_examples=200, deadline=None)
@given(wallets=_WALLETS)
def test_nothing_that_is_held_is_neither_counted_nor_noted(wallets: list[VenueAccount]) -> None:
    named = [VenueAccount(type=f"w{number}", assets=one.assets) for number, one in enumerate(wallets)]
    balance = with_headline(Balance(venue_accounts=tuple(named)))
    if balance.summary is None:
        return
    for _, row in balance.rows():
        if row.asset != balance.summary.currency and not row.is_zero():
            assert row.asset in " ".join(balance.notes)
    counted = [row.total for _, row in balance.rows() if row.asset == balance.summary.currency]
    if None not in counted:
        assert balance.summary.total == sum(amount for amount in counted if amount is not None)


@pytest.mark.parametrize("currency", ["USDT", "USD", "USDC"])
def test_one_currency_alone_is_its_row(currency: str) -> None:
    assert summarize(wallet(**{currency: ("3", "1")}).assets) == Summary(
        currency, total=Decimal(3), available=Decimal(1)
    )
