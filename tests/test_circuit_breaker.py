"""A circuit breaker compared with a model of it, and its pauses."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from exchange_service.venue_gate.breaker import (
    FAILURES_TO_OPEN,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    MOST_OF_ONE,
    PROBES,
    BreakerState,
    CircuitBreaker,
    Entry,
)

ACCOUNTS = ("a", "b", "c", "d", "e", "f")


class BreakerMachine(RuleBasedStateMachine):
    """A breaker beside a model of it: who has failed since the last answer, and who has probed in vain."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breaker = CircuitBreaker(lambda: self.now, jitter=lambda low, high: (low + high) / 2)
        self.in_progress: list[Entry] = []
        # Each account's failures that count, with the time of its last one.
        self.failures: dict[str, tuple[int, float]] = {}
        # Accounts in trouble of their own, until when.
        self.own: dict[str, float] = {}
        self.pause = 0.0
        self.due = 0.0
        self.refuted: set[str] = set()
        self.next_probes: dict[str, float] = {}
        self.probing: list[Entry] = []

    def opened(self, pause: float) -> None:
        self.pause = min(pause, LONGEST_PAUSE)
        self.due = self.now + self.pause
        self.failures, self.refuted, self.next_probes, self.probing = {}, set(), {}, []

    def is_own(self, account: str) -> bool:
        return self.now < self.own.get(account, 0.0)

    def may_enter(self, account: str) -> bool:
        if not self.pause:
            return True
        if self.now < max(self.due, self.next_probes.get(account, 0.0)):
            return False
        if account in [entry.account for entry in self.probing]:
            return False
        trying = {entry.account for entry in self.probing if not self.is_own(entry.account)} | self.refuted
        return self.is_own(account) or account in trying or len(trying) < PROBES

    def count(self) -> int:
        return sum(min(count, MOST_OF_ONE) for name, (count, _) in self.failures.items() if not self.is_own(name))

    def fail(self, account: str) -> None:
        self.failures[account] = self.failures.get(account, (0, 0.0))[0] + 1, self.now

    @rule(seconds=st.sampled_from([0.1, 1.0, 29.0, 31.0, 200.0, 301.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.failures = {name: said for name, said in self.failures.items() if self.now < said[1] + 600}

    @rule(account=st.sampled_from(ACCOUNTS))
    def a_call_enters(self, account: str) -> None:
        wait = self.breaker.wait(account)
        assert (wait is None) == self.may_enter(account)
        if wait is not None:
            assert 0 < wait <= LONGEST_PAUSE
            return
        entry = self.breaker.enter(account)
        assert entry.probe == bool(self.pause)
        if entry.probe:
            self.probing.append(entry)
        self.in_progress.append(entry)

    @precondition(lambda self: self.in_progress)
    @rule(data=st.data())
    def one_succeeds(self, data: st.DataObject) -> None:
        entry = self.leave(data)
        self.breaker.succeeded(entry)
        if entry.probe:
            self.pause, self.refuted, self.next_probes, self.probing = 0.0, set(), {}, []
        if not self.pause:
            self.own.pop(entry.account, None)
            for name, (_, failed) in self.failures.items():
                if name != entry.account and failed <= entry.began:
                    self.own[name] = self.now + 600
            self.failures = {}

    @precondition(lambda self: self.in_progress)
    @rule(data=st.data())
    def one_fails(self, data: st.DataObject) -> None:
        entry = self.leave(data)
        is_probe = entry in self.probing
        self.breaker.failed(entry)
        if not self.pause:
            self.fail(entry.account)
            if self.count() >= FAILURES_TO_OPEN:
                self.opened(FIRST_PAUSE)
        elif is_probe:
            self.probing.remove(entry)
            self.fail(entry.account)
            self.next_probes[entry.account] = self.now + self.pause
            if not self.is_own(entry.account):
                self.refuted.add(entry.account)
            if len(self.refuted) >= PROBES:
                self.opened(self.pause * 1.5)

    @precondition(lambda self: self.in_progress)
    @rule(data=st.data())
    def one_says_nothing_of_the_venue(self, data: st.DataObject) -> None:
        entry = self.leave(data)
        self.breaker.abandoned(entry)
        if entry in self.probing:
            self.probing.remove(entry)

    def leave(self, data: st.DataObject) -> Entry:
        return self.in_progress.pop(data.draw(st.integers(0, len(self.in_progress) - 1)))

    @invariant()
    def its_state_is_the_models(self) -> None:
        closed, due = not self.pause, self.now >= self.due
        state = BreakerState.CLOSED if closed else BreakerState.HALF_OPEN if due else BreakerState.OPEN
        assert self.breaker.state is state
        assert self.breaker.failures == (self.count() if closed else 0)
        assert self.breaker.pause_left == pytest.approx(0.0 if closed else max(0.0, self.due - self.now))


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("seed", range(20))
def test_a_breakers_delays_grow_up_to_five_minutes_and_differ_a_little(seed: int) -> None:
    now, chance = 0.0, random.Random(seed)
    breaker = CircuitBreaker(lambda: now, chance.uniform)
    for number in range(FAILURES_TO_OPEN):
        breaker.failed(breaker.enter(str(number)))
    pauses = []
    for _ in range(10):
        wait = breaker.wait("1")
        assert wait is not None
        pauses.append(wait)
        now += wait
        for account in ("1", "2"):
            breaker.failed(breaker.enter(account))
    expected = [min(LONGEST_PAUSE, FIRST_PAUSE * 1.5**number) for number in range(10)]
    for pause, plain in zip(pauses, expected, strict=True):
        assert 0.9 * plain <= pause <= min(LONGEST_PAUSE, 1.1 * plain) + 1e-6


@settings(deadline=None)
@given(st.lists(st.sampled_from(["fails", "fails twice", "time passes"]), max_size=60))
def test_one_account_alone_never_opens_a_venues_breaker(steps: list[str]) -> None:
    now = 0.0
    breaker = CircuitBreaker(lambda: now)
    for step in steps:
        now += 40.0 if step == "time passes" else 0.1
        for _ in range(step.count("fails") + step.count("twice")):
            breaker.failed(breaker.enter("bad"))
    assert breaker.wait("good") is None
    assert breaker.failures <= MOST_OF_ONE


def test_an_account_that_fails_alone_does_not_prolong_a_pause() -> None:
    now = 0.0
    breaker = CircuitBreaker(lambda: now, lambda low, high: 1.0)
    for number in range(FAILURES_TO_OPEN):
        breaker.failed(breaker.enter(str(number)))
    for _ in range(5):
        now += FIRST_PAUSE
        breaker.failed(breaker.enter("1"))
        assert breaker.wait("1") == FIRST_PAUSE
        assert breaker.wait("good") is None
    breaker.succeeded(breaker.enter("good"))
    assert breaker.state is BreakerState.CLOSED
