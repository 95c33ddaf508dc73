"""Several accounts behind one credential: each is read on its own, and one summary covers all that can be summed."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields, replace
from decimal import Decimal
from typing import Any

import pytest
from exchange_service_oanda import OANDA
from hypothesis import given
from hypothesis import strategies as st

from exchange_service.errors import (
    AccountUnknown,
    CredentialRejected,
    FeatureNotEnabled,
    VenueError,
    VenueMalformed,
    VenueTimeout,
)
from exchange_service.model import AssetBalance, Summary, VenueAccount
from exchange_service.plugin_kit.payload import required_amount, text
from exchange_service.plugin_kit.several_accounts import (
    combined_summary,
    deficit_notes,
    gather_accounts,
    read_account_list,
    split_accounts,
)
from exchange_service.testing import venue_call


def account(id: str, total: str = "1", currency: str = "EUR") -> VenueAccount:
    amount = Decimal(total)
    return VenueAccount(id=id, assets=(AssetBalance(currency, total=amount),), summary=Summary(currency, total=amount))


async def gather(**outcomes: VenueAccount | Exception) -> tuple[VenueAccount, ...]:
    async def read(account_id: str) -> VenueAccount:
        outcome = outcomes[account_id]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return await gather_accounts(list(outcomes), read, type="cash")


@pytest.mark.parametrize("requested", ["", "cash", "margin", "all"])
async def test_every_call_wants_the_account_whose_type_nobody_could_read(requested: str) -> None:
    two_types = replace(OANDA, account_types=("cash", "margin"), default_account_types=("cash",))
    async with venue_call(two_types, account_type=requested) as call:
        assert call.wants("")
        assert call.wants("margin") is (requested in ("margin", "all"))


async def test_accounts_come_in_the_order_of_their_ids() -> None:
    quick_is_read = asyncio.Event()

    async def read(account_id: str) -> VenueAccount:
        if account_id == "slow":
            await quick_is_read.wait()
        else:
            quick_is_read.set()
        return account(account_id)

    accounts = await gather_accounts(["slow", "quick"], read)
    assert [entry.id for entry in accounts] == ["slow", "quick"]


async def test_accounts_are_read_at_the_same_time() -> None:
    together = asyncio.Barrier(3)

    async def read(account_id: str) -> VenueAccount:
        async with asyncio.timeout(2):
            await together.wait()
        return account(account_id)

    assert len(await gather_accounts(["1", "2", "3"], read)) == 3


async def test_so_many_accounts_are_read_at_the_same_time() -> None:
    running, most = 0, 0

    async def read(account_id: str) -> VenueAccount:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return account(account_id)

    assert len(await gather_accounts([str(number) for number in range(100)], read)) == 100
    assert most == 16


async def test_an_error_does_not_keep_the_answer_that_led_to_it() -> None:
    class Answer:
        pass

    answers: list[weakref.ref[Answer]] = []

    async def read(account_id: str) -> VenueAccount:
        if account_id == "last":
            await asyncio.sleep(0)
            assert [answer() for answer in answers] == [None, None]
            return account(account_id)
        answer = Answer()
        answers.append(weakref.ref(answer))
        try:
            raise ValueError(answer)
        except ValueError:
            raise VenueMalformed("It cannot be read.") from None

    accounts = await gather_accounts(["one", "two", "last"], read)
    assert [entry.error is None for entry in accounts] == [False, False, True]


async def test_an_account_that_fails_is_in_the_result_with_its_error() -> None:
    error = AccountUnknown("No such account.")
    good, failed = await gather(good=account("good"), failed=error)
    assert good.error is None
    assert failed == VenueAccount(id="failed", type="cash", error=error)


async def test_if_all_fail_the_first_error_is_raised() -> None:
    first = VenueTimeout("Too slow.")
    with pytest.raises(VenueTimeout) as raised:
        await gather(one=first, two=AccountUnknown("No such account."))
    assert raised.value is first


async def test_a_refused_key_is_raised_whatever_the_others_gave() -> None:
    with pytest.raises(CredentialRejected):
        await gather(one=account("one"), two=VenueTimeout("Too slow."), three=CredentialRejected("No."))


async def test_without_ids_there_are_no_accounts() -> None:
    assert await gather() == ()


async def test_an_exception_that_is_not_a_venue_error_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        await gather(one=account("one"), two=ZeroDivisionError())


async def test_when_one_read_breaks_the_others_have_ended_before_it_is_raised() -> None:
    finished = []

    async def read(account_id: str) -> VenueAccount:
        if account_id == "broken":
            raise ZeroDivisionError
        for _ in range(5):
            await asyncio.sleep(0)
        finished.append(account_id)
        return account(account_id)

    before = asyncio.all_tasks()
    with pytest.raises(ZeroDivisionError):
        await gather_accounts(["slow", "broken"], read)
    assert asyncio.all_tasks() == before
    assert finished == ["slow"]


async def test_a_cancelled_call_cancels_every_read() -> None:
    cancelled = []
    both_began = asyncio.Barrier(3)

    async def read(account_id: str) -> VenueAccount:
        try:
            await both_began.wait()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(account_id)
            raise
        return account(account_id)

    task = asyncio.create_task(gather_accounts(["1", "2"], read))
    await both_began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(cancelled) == ["1", "2"]


def test_one_accounts_summary_is_the_summary_of_all() -> None:
    only = account("one", "12.50")
    assert combined_summary([only]) is only.summary


amounts = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30, places=18)


@given(st.lists(amounts, min_size=2, max_size=6))
def test_a_sum_over_accounts_is_exact(totals: list[Decimal]) -> None:
    summary = combined_summary([account(str(number), str(total)) for number, total in enumerate(totals)])
    assert summary is not None
    assert summary.total is not None
    assert _units(summary.total) == sum(map(_units, totals))


def _units(number: Decimal) -> int:
    """The number in units of its eighteenth digit, by whole numbers alone."""
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    value = int("".join(map(str, digits))) * 10 ** (exponent + 18)
    return -value if sign else value


def test_a_figure_that_one_account_does_not_state_is_not_summed() -> None:
    one = VenueAccount(id="1", summary=Summary("EUR", total=Decimal(1), equity=Decimal(2)))
    two = VenueAccount(id="2", summary=Summary("EUR", total=Decimal(3)))
    assert combined_summary([one, two]) == Summary("EUR", total=Decimal(4))


@pytest.mark.parametrize(
    "others",
    [
        [account("2", currency="USD")],
        [VenueAccount(id="2", error=VenueTimeout("Too slow."))],
        [VenueAccount(id="2", assets=(AssetBalance("EUR", total=Decimal(1)),))],
    ],
    ids=["another currency", "an error", "no summary"],
)
def test_there_is_no_summary_if_it_would_leave_something_out(others: list[VenueAccount]) -> None:
    assert combined_summary([account("1"), *others]) is None


def broker_account(id: str, **figures: str) -> VenueAccount:
    return VenueAccount(id=id, summary=Summary("USD", **{name: Decimal(value) for name, value in figures.items()}))


SPENDABLE = pytest.mark.parametrize(
    ("figure", "words"), [("available", "available amount"), ("buying_power", "buying power")]
)


@SPENDABLE
@pytest.mark.parametrize("values", [("100", "-20"), ("-20", "100"), ("-1", "-2"), ("-0.01", "0")])
def test_a_deficit_of_one_account_is_neither_paid_by_another_nor_taken_from_it(
    figure: str, words: str, values: tuple[str, str]
) -> None:
    accounts = [broker_account(str(place), total="1", **{figure: value}) for place, value in enumerate(values)]
    summary = combined_summary(accounts)
    assert summary == Summary("USD", total=Decimal(2))
    (note,) = deficit_notes(accounts, summary)
    assert words in note
    named = note.partition(" in ")[2].partition(":")[0]
    assert named == ", ".join(str(place) for place, value in enumerate(values) if value.startswith("-"))


@SPENDABLE
def test_what_can_be_spent_in_each_account_is_added(figure: str, words: str) -> None:
    accounts = [broker_account("1", **{figure: "100"}), broker_account("2", **{figure: "0"})]
    summary = combined_summary(accounts)
    assert summary is not None
    assert getattr(summary, figure) == 100
    assert deficit_notes(accounts, summary) == ()


def test_a_single_account_keeps_its_own_deficit() -> None:
    accounts = [broker_account("1", available="-20")]
    summary = combined_summary(accounts)
    assert summary == Summary("USD", available=Decimal(-20))
    assert deficit_notes(accounts, summary) == ()


def test_an_account_that_holds_nothing_takes_nothing_away() -> None:
    held = broker_account("1", total="5", available="4", buying_power="8")
    flat = AssetBalance("EUR", total=Decimal("0.0000"), used=Decimal(0))
    empty = VenueAccount("2", assets=(flat,), summary=Summary("EUR", total=Decimal(0), equity=Decimal("0.0000")))
    assert combined_summary([empty, held]) == combined_summary([held, empty]) == held.summary
    assert combined_summary([empty, empty]) == empty.summary


@pytest.mark.parametrize(
    "other",
    [
        VenueAccount("2", summary=Summary("EUR")),
        VenueAccount("2", summary=Summary("EUR", total=Decimal(0), equity=Decimal(3))),
        VenueAccount("2", assets=(AssetBalance("EUR", total=Decimal(1)),), summary=Summary("EUR", equity=Decimal(0))),
    ],
    ids=["states nothing", "holds positions", "holds a row"],
)
def test_an_account_counts_unless_its_every_figure_is_a_zero(other: VenueAccount) -> None:
    assert combined_summary([broker_account("1", total="5"), other]) is None


@pytest.mark.parametrize("figure", ["total", "cash", "equity", "unrealised_pnl", "margin_used"])
def test_money_and_losses_are_added_with_their_signs(figure: str) -> None:
    accounts = [broker_account("1", **{figure: "100"}), broker_account("2", **{figure: "-20"})]
    summary = combined_summary(accounts)
    assert summary is not None
    assert getattr(summary, figure) == 80
    assert deficit_notes(accounts, summary) == ()


def test_without_a_summary_there_is_nothing_to_explain() -> None:
    accounts = [broker_account("1", available="-1"), VenueAccount(id="2", error=VenueTimeout("Too slow."))]
    assert deficit_notes(accounts, combined_summary(accounts)) == ()


FIGURES = [item.name for item in fields(Summary) if item.name != "currency"]
summaries = st.fixed_dictionaries({name: st.none() | st.integers(-5, 5).map(Decimal) for name in FIGURES})


@given(st.lists(summaries, min_size=2, max_size=4))
def test_every_figure_of_a_sum_follows_the_rules_that_are_written_down(accounts: list[Mapping[str, Decimal]]) -> None:
    read = [VenueAccount(str(place), summary=Summary("USD", **figures)) for place, figures in enumerate(accounts)]
    summary = combined_summary(read)
    assert summary is not None
    known_zeros = [[figure for figure in figures.values() if figure is not None] for figures in accounts]
    counted = [
        figures for figures, known in zip(accounts, known_zeros, strict=True) if any(known) or not known
    ] or accounts[:1]
    if len(counted) == 1:
        assert summary == Summary("USD", **counted[0])
        return
    for name in FIGURES:
        values = [figures[name] for figures in counted]
        known = None not in values
        spendable = name not in ("available", "buying_power") or (known and min(values) >= 0)
        assert getattr(summary, name) == (sum(values) if known and spendable else None)


def listed(*entries: Any) -> dict[str, Any]:
    """The list as accounts with an id and a kind, both texts."""

    def identify(entry: Mapping[str, Any]) -> str:
        return text(entry, "id", "entry")

    return read_account_list(entries, identify, lambda entry: text(entry, "kind", "entry"))


def test_an_account_list_gives_each_account_by_its_id_in_order() -> None:
    accounts = listed({"id": "b", "kind": "cash"}, {"id": "a", "kind": "margin"})
    assert list(accounts.items()) == [("b", "cash"), ("a", "margin")]


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"id": "odd"}, "odd"),
        ({"id": "odd", "kind": 7}, "odd"),
        ({"kind": "cash"}, ""),
        (None, ""),
        ([], ""),
        ("a", ""),
    ],
    ids=str,
)
def test_a_malformed_entry_is_the_error_of_that_account_alone(entry: Any, named: str) -> None:
    accounts = listed(entry, {"id": "good", "kind": "cash"})
    assert accounts["good"] == "cash"
    assert isinstance(accounts[named], VenueMalformed)
    assert len(accounts) == 2


def test_an_account_that_is_listed_twice_is_its_own_error() -> None:
    twice = {"id": "a", "kind": "cash"}
    accounts = listed(twice, {"id": "b", "kind": "cash"}, twice)
    assert isinstance(accounts["a"], VenueMalformed)
    assert "twice" in accounts["a"].message
    assert accounts["b"] == "cash"


def test_several_entries_without_an_id_stand_together() -> None:
    accounts = listed({}, None, {"id": "a", "kind": "cash"})
    assert "several" in accounts[""].message
    assert accounts["a"] == "cash"


def kept(entry: Mapping[str, Any]) -> VenueAccount:
    """The account of an entry; one that is locked has an error of its own."""
    if entry.get("locked"):
        raise FeatureNotEnabled("This account is locked.")
    if entry.get("refused"):
        raise CredentialRejected("The key is refused.")
    return account(text(entry, "id", "entry"), str(required_amount(entry, "total", "entry")))


def split(*entries: Any, **options: Any) -> tuple[VenueAccount, ...]:
    return split_accounts(entries, lambda entry: text(entry, "id", "entry"), kept, **options)


def test_an_answer_with_several_accounts_is_split_into_them_in_order() -> None:
    assert split({"id": "b", "total": "1"}, {"id": "a", "total": "2"}) == (account("b", "1"), account("a", "2"))
    assert split() == ()


@pytest.mark.parametrize(
    ("entry", "named", "error"),
    [
        ({"id": "odd"}, "odd", VenueMalformed),
        ({"id": "odd", "total": "NaN"}, "odd", VenueMalformed),
        ({"id": "odd", "locked": True}, "odd", FeatureNotEnabled),
        ({"total": "1"}, "", VenueMalformed),
        (None, "", VenueMalformed),
        ([], "", VenueMalformed),
    ],
    ids=str,
)
def test_an_entry_that_cannot_be_read_is_the_error_of_that_account_alone(
    entry: Any, named: str, error: type[VenueError]
) -> None:
    broken, good = split(entry, {"id": "good", "total": "1"}, type="cash")
    assert good == account("good", "1")
    assert broken.type == "cash"
    assert type(broken.error) is error
    named_too = split(entry, {"id": "good", "total": "1"}, unread=lambda name: VenueAccount(name, label="mine"))[0]
    assert (named_too.id, named_too.label) == (named, "mine")


def test_an_account_that_one_answer_holds_twice_is_its_error_and_neither_of_its_figures() -> None:
    twice, once = split({"id": "a", "total": "1"}, {"id": "b", "total": "5"}, {"id": "a", "total": "2"})
    assert "twice" in str(twice.error)
    assert not twice.assets
    assert once == account("b", "5")


@pytest.mark.parametrize(
    "entries", [({"id": "a"},), ({}, None), ({"id": "a", "total": "1"}, {"id": "b", "refused": True})], ids=str
)
def test_an_answer_that_says_nothing_of_any_account_or_refuses_the_key_is_an_error(entries: tuple[Any, ...]) -> None:
    with pytest.raises((VenueMalformed, CredentialRejected)):
        split(*entries)


def test_an_answer_is_split_into_at_most_200_accounts() -> None:
    entries = [{"id": str(number), "total": "1"} for number in range(201)]
    assert len(split(*entries[:200])) == 200
    with pytest.raises(VenueMalformed, match="more than 200 accounts"):
        split(*entries)


def test_no_account_has_no_summary() -> None:
    assert combined_summary([]) is None


def test_an_error_that_a_plugin_may_raise_is_a_venue_error() -> None:
    assert issubclass(AccountUnknown, VenueError)


async def exiting_coroutine(account_id: str) -> VenueAccount:
    raise SystemExit(3)


def exiting_call(account_id: str) -> Awaitable[VenueAccount]:
    raise SystemExit(3)


@pytest.mark.parametrize("read", [exiting_coroutine, exiting_call])
async def test_a_read_that_calls_exit_does_not_end_the_service(
    read: Callable[[str], Awaitable[VenueAccount]],
) -> None:
    with pytest.raises(RuntimeError, match="exit"):
        await gather_accounts(["1", "2"], read)


class TestTooMany:
    """Each account costs a request, so there is a limit to how many a venue may list."""

    async def test_two_hundred_accounts_are_read(self) -> None:
        ids = [str(number) for number in range(200)]
        assert len(await gather(**{name: account(name) for name in ids})) == 200
        assert (
            len(read_account_list([{"id": name} for name in ids], lambda entry: text(entry, "id", "it"), dict)) == 200
        )

    async def test_of_more_none_is_read(self) -> None:
        read: list[str] = []

        async def reads(account_id: str) -> VenueAccount:
            read.append(account_id)
            return account(account_id)

        with pytest.raises(VenueMalformed, match="more than 200 accounts") as refused:
            await gather_accounts([str(number) for number in range(201)], reads)
        assert read == []
        assert "account_id" in str(refused.value.advice)

    def test_a_longer_list_is_malformed(self) -> None:
        entries = ({"id": str(number)} for number in range(201))
        with pytest.raises(VenueMalformed, match="more than 200 accounts"):
            read_account_list(entries, lambda entry: text(entry, "id", "it"), dict)
