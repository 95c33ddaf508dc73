"""The venue's time and the nonces that all accounts share."""

from __future__ import annotations

import time

import pytest
from exchange_service_aster.clock import VenueClock

SECOND = 1_000_000


def now() -> int:
    return time.time_ns() // 1000


def set_ahead(clock: VenueClock, seconds: int) -> None:
    """Let the venue say that its clock is so far ahead of ours."""
    began = time.time_ns()
    clock.set(began // 1_000_000 + seconds * 1000, began, began)


def test_nonces_are_the_time_in_microseconds_and_rise_within_one() -> None:
    clock = VenueClock()
    nonces = [clock.next_nonce() for _ in range(1000)]
    assert nonces == sorted(set(nonces))
    assert abs(nonces[0] - now()) < 60 * SECOND


def test_a_measured_clock_moves_the_time_and_the_nonces() -> None:
    clock = VenueClock()
    set_ahead(clock, 3600)
    assert clock.microseconds() - now() == pytest.approx(3600 * SECOND, abs=5 * SECOND)
    assert clock.milliseconds() * 1000 == pytest.approx(clock.microseconds(), abs=5 * SECOND)
    assert clock.next_nonce() - now() == pytest.approx(3600 * SECOND, abs=5 * SECOND)


def test_the_venues_time_counts_from_the_middle_of_the_question() -> None:
    clock = VenueClock()
    ended = time.time_ns()
    began = ended - 2_000_000_000
    clock.set(ended // 1_000_000, began, ended)
    assert clock.microseconds() - now() == pytest.approx(SECOND, abs=SECOND // 2)


def test_nonces_of_a_clock_that_was_far_ahead_are_forgotten() -> None:
    clock = VenueClock()
    set_ahead(clock, 3600)
    clock.next_nonce()
    set_ahead(clock, 0)
    assert clock.next_nonce() - now() == pytest.approx(0, abs=5 * SECOND)


def test_nonces_that_the_venue_may_have_taken_are_counted_on_from() -> None:
    clock = VenueClock()
    set_ahead(clock, 8)
    taken = clock.next_nonce()
    set_ahead(clock, 0)
    assert clock.next_nonce() == taken + 1
