"""A circuit breaker compared with a model of it, and its pauses."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from exchange_service.venue_gate.breaker import (
    FAILURES_TO_OPEN,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    BreakerState,
    CircuitBreaker,
)


class BreakerMachine(RuleBasedStateMachine):
    """A breaker beside a model of it: failures in a row, and when a probe is due."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breaker = CircuitBreaker(lambda: self.now, jitter=lambda low, high: (low + high) / 2)
        self.in_progress: list[bool] = []
        self.failures = 0
        self.pause = 0.0
        self.due = 0.0

    def opened(self, pause: float) -> None:
        self.pause = min(pause, LONGEST_PAUSE)
        self.due = self.now + self.pause
        self.failures = 0

    @rule(seconds=st.sampled_from([0.1, 1.0, 29.0, 31.0, 200.0, 301.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.breaker.wait() is None)
    @rule()
    def a_call_enters(self) -> None:
        probe = self.breaker.enter()
        assert probe == bool(self.pause)
        assert not (probe and True in self.in_progress), "two probes at once"
        assert not probe or self.now >= self.due
        self.in_progress.append(probe)

    @precondition(lambda self: self.in_progress)
    @rule(data=st.data())
    def one_succeeds(self, data: st.DataObject) -> None:
        probe = self.leave(data)
        self.breaker.succeeded(probe)
        if probe:
            self.pause = 0.0
        if not self.pause:
            self.failures = 0

    @precondition(lambda self: self.in_progress)
    @rule(data=st.data())
    def one_fails(self, data: st.DataObject) -> None:
        probe = self.leave(data)
        self.breaker.failed(probe)
        if probe:
            self.opened(self.pause * 1.5)
        elif not self.pause:
            self.failures += 1
            if self.failures == FAILURES_TO_OPEN:
                self.opened(FIRST_PAUSE)

    @precondition(lambda self: self.in_progress)
    @rule(data=st.data())
    def one_says_nothing_of_the_venue(self, data: st.DataObject) -> None:
        self.breaker.abandoned(self.leave(data))

    def leave(self, data: st.DataObject) -> bool:
        return self.in_progress.pop(data.draw(st.integers(0, len(self.in_progress) - 1)))

    @invariant()
    def it_admits_as_the_model_says(self) -> None:
        wait = self.breaker.wait()
        if not self.pause:
            assert (wait, self.breaker.state) == (None, BreakerState.CLOSED)
        elif True in self.in_progress:
            assert wait is not None
            assert self.breaker.state is BreakerState.HALF_OPEN
        elif self.now < self.due:
            assert wait == pytest.approx(self.due - self.now)
            assert self.breaker.state is BreakerState.OPEN
        else:
            assert (wait, self.breaker.state) == (None, BreakerState.HALF_OPEN)


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("seed", range(20))
def test_a_breakers_delays_grow_up_to_five_minutes_and_differ_a_little(seed: int) -> None:
    now, chance = 0.0, random.Random(seed)
    breaker = CircuitBreaker(lambda: now, chance.uniform)
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(breaker.enter())
    pauses = []
    for _ in range(10):
        wait = breaker.wait()
        assert wait is not None
        pauses.append(wait)
        now += wait
        breaker.failed(breaker.enter())
    expected = [min(LONGEST_PAUSE, FIRST_PAUSE * 1.5**number) for number in range(10)]
    for pause, plain in zip(pauses, expected, strict=True):
        assert 0.9 * plain <= pause <= min(LONGEST_PAUSE, 1.1 * plain) + 1e-6
