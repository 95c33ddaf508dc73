"""What all accounts share: the venue's clock, its nonces, and the time for which it shuts us out."""

from __future__ import annotations

import time

import pytest
from exchange_service_aster.host import VenueHost

SECOND = 1_000_000


def now() -> int:
    return time.time_ns() // 1000


def set_ahead(host: VenueHost, seconds: int) -> None:
    """Let the venue say that its clock is so far ahead of ours."""
    began = time.time_ns()
    host.set_clock(began // 1_000_000 + seconds * 1000, began, began)


def test_nonces_are_the_time_in_microseconds_and_rise_within_one() -> None:
    host = VenueHost()
    nonces = [host.next_nonce() for _ in range(1000)]
    assert nonces == sorted(set(nonces))
    assert abs(nonces[0] - now()) < 60 * SECOND


def test_a_measured_clock_moves_the_time_and_the_nonces() -> None:
    host = VenueHost()
    set_ahead(host, 3600)
    assert host.microseconds() - now() == pytest.approx(3600 * SECOND, abs=5 * SECOND)
    assert host.milliseconds() * 1000 == pytest.approx(host.microseconds(), abs=5 * SECOND)
    assert host.next_nonce() - now() == pytest.approx(3600 * SECOND, abs=5 * SECOND)


def test_the_venues_time_counts_from_the_middle_of_the_question() -> None:
    host = VenueHost()
    ended = time.time_ns()
    began = ended - 2_000_000_000
    host.set_clock(ended // 1_000_000, began, ended)
    assert host.microseconds() - now() == pytest.approx(SECOND, abs=SECOND // 2)


def test_nonces_of_a_clock_that_was_far_ahead_are_forgotten() -> None:
    host = VenueHost()
    set_ahead(host, 3600)
    host.next_nonce()
    set_ahead(host, 0)
    assert host.next_nonce() - now() == pytest.approx(0, abs=5 * SECOND)


def test_nonces_that_the_venue_may_have_taken_are_counted_on_from() -> None:
    host = VenueHost()
    set_ahead(host, 8)
    taken = host.next_nonce()
    set_ahead(host, 0)
    assert host.next_nonce() == taken + 1


def test_a_shut_host_opens_by_itself_and_shuts_no_other() -> None:
    host = VenueHost()
    assert host.shut_for("one") == 0
    host.shut("one", 100)
    host.shut("one", 10)
    assert 90 < host.shut_for("one") <= 100
    assert host.shut_for("other") == 0
    host.shut("third", 0)
    assert host.shut_for("third") == 0
