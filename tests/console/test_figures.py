"""Amounts and sums on the accounts page are exact, and the headline counts nothing that a user could not trust."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exchange_service.console.figures import (
    AccountKey,
    Headline,
    LiveAccount,
    age_text,
    amount_markup,
    headline_of,
    holds_something,
    row_id,
)
from exchange_service.v1 import error_reason_pb2
from exchange_service.v1.balance_pb2 import (
    ASSET_KIND_CASH,
    ASSET_KIND_HOLDING,
    AccountFault,
    AssetBalance,
    Balance,
    Freshness,
    Summary,
    VenueAccount,
)
from tests.console.consoles import Elements

AMOUNTS = st.from_regex(r"-?[0-9]{1,40}(\.[0-9]{1,30})?", fullmatch=True)
FAULT = AccountFault(reason=error_reason_pb2.ERROR_REASON_VENUE_TIMEOUT, message="The venue is slow.")
REFUSAL = AccountFault(reason=error_reason_pb2.ERROR_REASON_CREDENTIAL_REJECTED, message="The venue refuses the key.")


def account(
    name: str, *, environment: str = "production", root: str = "", age: float = 0.0, **figures: Any
) -> LiveAccount:
    """An account that was read, whose summary has these figures."""
    made = LiveAccount(AccountKey(name, environment), name.title(), root or name)
    balance = Balance(exchange_id=name, venue_accounts=[VenueAccount()])
    if figures:
        balance.summary.CopyFrom(Summary(**({"currency": "USD"} | figures)))
    freshness = Freshness()
    freshness.age.FromMilliseconds(round(age * 1000))
    made.take_balance(balance, freshness)
    return made


def values(headline: Headline) -> dict[tuple[str, str], str]:
    return {(entry.environment, entry.currency): entry.value for entry in headline.sums}


def reasons(headline: Headline) -> dict[str, str]:
    return {left.account.name: left.why for left in headline.left_out}


class TestAmounts:
    @given(AMOUNTS)
    def test_the_text_of_an_amount_is_the_services_own(self, text: str) -> None:
        assert Elements(str(amount_markup(text))).text == text

    def test_thousands_stand_apart_by_markup_alone(self) -> None:
        markup = str(amount_markup("-1234567.089"))
        assert markup == (
            '<span class="amount">-1<span class="thousands">234<span class="thousands">567</span></span>'
            '<span class="decimals">.089</span></span>'
        )

    @pytest.mark.parametrize("text", ["1e5", "NaN", "+1", "1,000", "", " 1", "1.", "٣"])
    def test_what_is_no_amount_is_shown_as_it_is(self, text: str) -> None:
        assert str(amount_markup(text)) == text

    def test_a_row_of_zeros_holds_nothing_and_a_row_without_amounts_may(self) -> None:
        assert not holds_something(AssetBalance(asset="BTC", total="0.000", free="-0", used="0"))
        assert holds_something(AssetBalance(asset="BTC", total="0", debt="0.1"))
        assert holds_something(AssetBalance(asset="BTC"))


class TestHeadline:
    @given(st.lists(AMOUNTS, min_size=1, max_size=5))
    def test_sums_are_exact(self, amounts: list[str]) -> None:
        headline = headline_of(account(f"venue{at}", equity=text) for at, text in enumerate(amounts))
        (entry,) = headline.sums
        assert Fraction(entry.value) == sum(map(Fraction, amounts))

    def test_a_sum_of_long_amounts_loses_no_digit(self) -> None:
        headline = headline_of([account("a", equity="9" * 30 + ".1"), account("b", equity="0." + "0" * 29 + "1")])
        assert values(headline) == {("production", "USD"): "9" * 30 + ".1" + "0" * 28 + "1"}

    def test_currencies_and_environments_are_never_added_up(self) -> None:
        headline = headline_of(
            [
                account("a", equity="1"),
                account("b", equity="2", currency="EUR"),
                account("c", equity="4"),
                account("a", environment="sandbox", equity="8"),
            ]
        )
        assert values(headline) == {("production", "EUR"): "2", ("production", "USD"): "5", ("sandbox", "USD"): "8"}
        assert (headline.counted, headline.accounts) == (4, 4)

    def test_equity_counts_before_the_total_and_the_page_says_which(self) -> None:
        headline = headline_of([account("a", equity="3", total="1"), account("b", total="4")])
        (entry,) = headline.sums
        assert (entry.value, entry.accounts, entry.by_total) == ("7", 2, 1)

    def test_what_is_not_counted_is_named_with_its_reason(self) -> None:
        failed, unread = (
            account("failed", equity="1"),
            LiveAccount(AccountKey("unread", "production"), "Unread", "unread"),
        )
        failed.fault = REFUSAL
        partly = account("partly")
        assert partly.balance is not None
        partly.balance.venue_accounts.add(error=FAULT)
        headline = headline_of(
            [account("counted", equity="1"), failed, unread, partly, account("plain"), account("cash", cash="5")]
        )
        assert reasons(headline) == {
            "Failed": "it cannot be read now",
            "Unread": "it was not read yet",
            "Partly": "1 of its 2 venue accounts cannot be read",
            "Plain": "its venue gives no figure in one currency",
            "Cash": "its venue states no total",
        }
        assert (headline.counted, headline.accounts, values(headline)) == (1, 6, {("production", "USD"): "1"})

    def test_money_that_two_listings_show_by_one_credential_counts_once(self) -> None:
        headline = headline_of([account("tradier", equity="9"), account("tradier_options", root="tradier", equity="9")])
        assert values(headline) == {("production", "USD"): "9"}
        assert reasons(headline) == {"Tradier_Options": "it may show what Tradier shows already"}

    def test_an_amount_that_cannot_be_read_is_not_taken_for_zero(self) -> None:
        headline = headline_of([account("a", equity="1e400000"), account("b", equity="1")])
        assert values(headline) == {("production", "USD"): "1"}
        assert list(reasons(headline)) == ["A"]

    def test_a_passing_fault_leaves_the_last_good_figures_and_a_refusal_does_not(self) -> None:
        made = account("a", equity="1")
        situations = []
        for fault in (None, FAULT, REFUSAL):
            made.fault = fault
            situations.append(
                (made.situation, headline_of([made]).counted, [e.stale for e in headline_of([made]).sums])
            )
        assert situations == [("current", 1, [0]), ("stale", 1, [1]), ("error", 0, [])]
        unread = LiveAccount(AccountKey("b", "production"), "B", "b", fault=FAULT)
        assert (unread.situation, headline_of([unread]).counted) == ("error", 0)

    def test_stale_figures_are_counted_and_marked(self) -> None:
        stale = account("stale", equity="1", age=90)
        assert stale.freshness is not None
        stale.freshness.stale.CopyFrom(FAULT)
        (entry,) = headline_of([stale, account("b", equity="1")]).sums
        assert (entry.value, entry.stale) == ("2", 1)
        assert 90 <= entry.oldest < 100


class TestAges:
    def test_an_age_is_the_true_one_and_grows(self) -> None:
        made = account("a", age=30)
        made.true_at = time.monotonic() - 95
        assert 95 <= (made.age() or 0) < 100

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(0.4, "0 s"), (119.9, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (200_000, "2 d")],
    )
    def test_an_age_in_words(self, seconds: float, text: str) -> None:
        assert age_text(seconds) == text


def test_a_row_of_another_kind_is_another_row() -> None:
    cash = AssetBalance(asset="USD", total="5", kind=ASSET_KIND_CASH)
    stock = AssetBalance(asset="USD", total="7", kind=ASSET_KIND_HOLDING)
    assert len({row_id(cash), row_id(stock), row_id(AssetBalance(asset="USD"))}) == 3
