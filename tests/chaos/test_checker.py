"""Each invariant holds for a good history, and is seen to fail for one in which a single thing is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.accounts import amount_of, number_of_secret, read_amount, secret_of
from tests.chaos.checker import INVARIANTS, Expectation, check, recovery
from tests.chaos.figures import figures
from tests.chaos.history import Event, Footprint, History, Lag, Mark, Record, Reply, Sighting, VenueAnswer, read

USER, OTHER = "user-00001", "user-00002"
BEGIN, HEAL = 10.0, 15.0
EXPECTATION = Expectation(
    allowed=frozenset({"STORE_UNAVAILABLE", "VENUE_UNAVAILABLE"}), bare=frozenset({"UNAVAILABLE"})
)


def answer(seq: int, **changes: Any) -> VenueAnswer:
    """The venue's answer `seq`, given in the second of that number."""
    return replace(VenueAnswer(USER, "oanda", seq, float(seq), seq + 0.01, seq + 0.02), **changes)


def reply(seq: int, /, **changes: Any) -> Reply:
    """A call that ends 0.4 s after the venue's answer `seq`, with it."""
    fields: dict[str, Any] = {
        "caller": "plain-1",
        "replica": 0,
        "user": USER,
        "account": "oanda",
        "begin": seq + 0.1,
        "end": seq + 0.4,
        "deadline": 2.0,
        "code": "OK",
        "version": 1000 + seq,
        "value_user": USER,
        "seq": seq,
        "age": 0.38,
    }
    return Reply(**(fields | changes))


def failed(seq: int, /, reason: str, **changes: Any) -> Reply:
    nothing = {"code": "UNAVAILABLE", "version": 0, "value_user": "", "seq": 0, "age": 0.0}
    return reply(seq, reason=reason, **(nothing | changes))


def event(seq: int, /, kind: Any = "balance", **changes: Any) -> Event:
    """An event of one subscriber's stream, 0.5 s after the venue's answer `seq`."""
    fields: dict[str, Any] = {"subscriber": "fixed-1", "attempt": 0, "replica": 0, "time": seq + 0.5}
    fields |= {"version": 1000 + seq, "age": 0.48}
    if kind == "balance":
        fields |= {"value_user": USER, "seq": seq}
    return Event(user=USER, account="oanda", kind=kind, **(fields | changes))


def footprint(when: Any, **changes: Any) -> Footprint:
    return replace(Footprint(0, when, 1.0, 60, 200_000_000, 20, 100), **changes)


def good() -> Iterator[Record]:
    """Twenty seconds in which the venue answers each second, and a caller and a subscriber see each answer."""
    yield from (Mark("warm", 1.0), Mark("begin", BEGIN), Mark("heal", HEAL), Mark("well", 17.0), Mark("over", 20.5))
    for seq in range(1, 21):
        yield from (answer(seq), reply(seq), event(seq), event(seq, "heartbeat"))
    yield failed(12, "STORE_UNAVAILABLE", caller="new-1", new=True, user=OTHER)
    yield failed(12, "", caller="plain-2")
    yield event(13, "error", version=1012, reason="VENUE_TIMEOUT", age=None)
    yield from (footprint("before"), footprint("after", memory=201_000_000))


# What is wrong, by the invariant that must see it: one more record.
WRONG: dict[str, list[Record]] = {
    "own_user": [reply(5, value_user=OTHER)],
    "really_emitted": [reply(5, seq=77)],
    "true_age": [reply(5, age=1.2)],
    "staleness_told": [reply(10, caller="late-1", seq=5, version=1005, age=5.38)],
    "versions_rise": [event(11, "heartbeat", time=14.9, version=1009, age=5.88)],
    "asked_once": [answer(number, begin=8.0 + number / 100) for number in range(30, 60)],
    "ends_in_time": [reply(5, begin=2.9)],
    "reasons_given": [failed(12, "", code="DEADLINE_EXCEEDED")],
    "no_call_lost": [failed(12, "SERVICE_OVERLOADED")],
    "last_good_kept": [failed(12, "VENUE_UNAVAILABLE")],
    "well_after_balance": [event(19, "error", time=19.6, reason="VENUE_TIMEOUT"), event(19, "heartbeat", time=19.7)],
    "secrets_kept": [Sighting("replica-0.log", "chaos-canary")],
    "recovers": [reply(18, stale="VENUE_TIMEOUT")],
    "nothing_left": [footprint("before", generation=2), footprint("after", generation=2, files=200)],
}


def test_every_invariant_has_a_history_that_breaks_it() -> None:
    assert WRONG.keys() == INVARIANTS.keys()


def test_a_good_history_breaks_nothing() -> None:
    assert check(History.of(good()), EXPECTATION) == []


@pytest.mark.parametrize("name", WRONG)
def test_an_invariant_sees_what_is_wrong_and_no_other_does(name: str) -> None:
    found = check(History.of([*good(), *WRONG[name]]), EXPECTATION)
    assert {violation.invariant for violation in found} == {name}


FURTHER = {
    "a reply that is older than it was asked to be": (
        "staleness_told",
        [reply(5, end=6.5, age=1.48, max_age=0.2)],
    ),
    "a stale value older than the grace": (
        "staleness_told",
        [reply(19, caller="late-1", seq=4, version=1004, age=15.38, stale="VENUE_TIMEOUT")],
    ),
    "a heartbeat whose age is not that of its version": ("true_age", [event(6, "heartbeat", age=2.0)]),
    "an older version than the one that the caller named": (
        "versions_rise",
        [reply(6, caller="named-1", known_version=1007)],
    ),
    "an older version at the same replica": (
        "versions_rise",
        [reply(6, caller="other"), reply(5, caller="other", begin=6.5, end=6.6, age=1.58)],
    ),
    "an older version in the stream that goes on elsewhere": (
        "versions_rise",
        [event(13, time=14.6, attempt=1, replica=1, age=1.58)],
    ),
    "an allowed reason, but after all is well": ("no_call_lost", [failed(18, "STORE_UNAVAILABLE", user=OTHER)]),
    "a new account that two replicas have asked for": (
        "asked_once",
        [reply(5, caller="new-1", new=True, user=OTHER), answer(5, user=OTHER), answer(6, user=OTHER)],
    ),
    "a stream that ends without a reason": ("reasons_given", [event(12, "end", code="INTERNAL")]),
    "a call that fails for good": ("recovers", [failed(16, "STORE_UNAVAILABLE", end=20.9, begin=16.9, deadline=9.0)]),
}


@pytest.mark.parametrize("what", FURTHER)
def test_it_also_sees(what: str) -> None:
    name, records = FURTHER[what]
    found = {violation.invariant for violation in check(History.of([*good(), *records]), EXPECTATION)}
    assert name in found


def test_an_older_version_at_another_replica_is_allowed_if_no_version_was_named() -> None:
    records = [reply(6, caller="other"), reply(5, caller="other", replica=1, begin=6.5, end=6.6, age=1.58)]
    assert check(History.of([*good(), *records]), EXPECTATION) == []


@pytest.mark.parametrize("name", ["true_age", "ends_in_time"])
def test_what_a_busy_machine_is_late_by_is_no_violation(name: str) -> None:
    wrong = WRONG[name]
    assert INVARIANTS[name](History.of([*good(), *wrong]), EXPECTATION)
    assert not INVARIANTS[name](History.of([*good(), *wrong, Lag(5.3, 0.9, "clients")]), EXPECTATION)


def test_the_recovery_is_measured_from_the_heal_to_the_last_bad_call() -> None:
    bad = reply(17, stale="VENUE_TIMEOUT")
    assert recovery(History.of([*good(), bad])) == pytest.approx(17.4 - HEAL)
    assert recovery(History.of(good())) == 0
    last = failed(20, "STORE_UNAVAILABLE", end=21.0)
    assert recovery(History.of([*good(), last])) is None


def test_the_figures_count_what_was_broken() -> None:
    history = History.of([*good(), *itertools.chain.from_iterable(WRONG.values())])
    found = figures(history, check(history, EXPECTATION))
    assert (found.false, found.versions_back >= 1, found.leaked) == (2, True, 1)
    assert (found.failed, found.lost) == (5, 3)


def test_an_amount_says_whose_it_is_and_nothing_else_does() -> None:
    for number, seq in ((0, 1), (7, 123_456), (4000, 999_999_999)):
        assert read_amount(str(amount_of(number, seq))) == (number, seq)
        assert number_of_secret(secret_of(number)) == number
    assert read_amount("3000000012.00") == (2, 12)
    for text in ("0", "-1", "1.50", "NaN", "Infinity", "abc", "17", "3000000000"):
        assert read_amount(text) == (-1, 0)


def test_a_history_is_read_from_its_file_as_it_was_written(tmp_path: Path) -> None:
    history = History.of([*good(), Lag(1.0, 0.2), Sighting("Redis", "x")])
    history.write(tmp_path / "history")
    records, offset = read(tmp_path / "history")
    assert History.of(records) == history
    with (tmp_path / "history").open("a") as file:
        file.write('{"kind_of_record": "Rep')
    assert read(tmp_path / "history", offset) == ([], offset)
