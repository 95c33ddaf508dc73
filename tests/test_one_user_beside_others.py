"""A property: whatever one user's venue answers, in whatever order and at whatever times, other users are served."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange_service.errors import (
    AccountUnknown,
    AddressNotAllowed,
    ClockSkew,
    CredentialInvalid,
    CredentialRejected,
    FeatureNotEnabled,
    NotSupported,
    PermissionMissing,
    PluginFailed,
    PluginUnavailable,
    RegionRestricted,
    RequestRefused,
    ServiceError,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.model import VenueReports
from exchange_service.plugin_api import RateLimit
from exchange_service.venue_gate.status import VenueStatus
from tests.gates import Venue, gated, outcome
from tests.harness import OffsetClock

KINDS = (
    *(VenueUnavailable, VenueTimeout, VenueMaintenance, VenueMalformed, VenueRateLimited),
    *(CredentialRejected, PermissionMissing, AddressNotAllowed, ClockSkew, RegionRestricted, AccountUnknown),
    *(FeatureNotEnabled, RequestRefused, NotSupported, CredentialInvalid, PluginFailed, PluginUnavailable),
)
LIMITS = [(), (RateLimit("address", 200, 60),), (RateLimit("key", 60, 60),), (RateLimit("address", 300, 10, cost=2),)]

# What the venue says to the bad user: an error with or without a delay, a broken plugin, a good answer; and what the
# plugin reports beside it. Then the seconds that pass, and how often the bad user asks.
errors = st.builds(
    lambda kind, delay: kind("It fails.", retry_after=delay),
    st.sampled_from(KINDS),
    st.sampled_from([None, 0.0, 7.0, 300.0, 86400.0]),
)
steps = st.tuples(
    st.one_of(errors, st.sampled_from(["hangs", "breaks", "good"])),
    st.sampled_from([None, "cooldown", "used up", "nearly used up"]),
    st.sampled_from([0.0, 0.2, 5.0, 31.0, 61.0, 400.0]),
    st.integers(1, 8),
    st.booleans(),
)


def answering(venue: Venue, answer: ServiceError | str) -> Callable[[], Awaitable[str]]:
    async def says() -> str:
        if answer == "good":
            return "a balance"
        if answer == "hangs":
            await asyncio.Event().wait()
        if answer == "breaks":
            raise RuntimeError("a bug")
        assert isinstance(answer, ServiceError)
        raise answer.with_traceback(None)

    return says


def reporting(report: str | None) -> Callable[[VenueReports], None]:
    def reports(into: VenueReports) -> None:
        if report == "cooldown":
            into.cooldown = 130.0
        elif report is not None:
            into.usage.update(dict.fromkeys((10, 60), (10**6 if report == "used up" else 190, 9.0)))
        into.on_report()

    return reports


@settings(deadline=None, max_examples=150)
@given(
    script=st.lists(steps, min_size=1, max_size=25),
    limits=st.sampled_from(LIMITS),
    polling=st.booleans(),
    attempts=st.sampled_from([1, 3]),
)
def test_other_users_are_served_whatever_one_user_meets(
    script: list[Any], limits: tuple[RateLimit, ...], polling: bool, attempts: int
) -> None:
    asyncio.run(one_user_beside_others(script, limits, polling, attempts))


async def one_user_beside_others(
    script: list[Any], limits: tuple[RateLimit, ...], polling: bool, attempts: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = OffsetClock(patch)
        venue, status = Venue(*limits), VenueStatus(lambda: asyncio.get_running_loop().time())
        gate = gated(attempts=attempts, status=status, now=lambda: asyncio.get_running_loop().time(), of_venue=4)
        hanging: list[asyncio.Future[Any]] = []
        for number, (answer, report, seconds, times, changes_key) in enumerate(script):
            venue.answer, venue.report = answering(venue, answer), reporting(report)
            for call in range(times):
                # Also a user who stores a new key each time, and one with accounts of several types.
                key = f"bad {number} {call}" if changes_key else "bad"
                fetch = asyncio.ensure_future(quietly(venue.through(gate, key=key, user="bad", polling=polling)))
                hanging.append(fetch)
                # A poll may wait for permits, and a hanging one for its deadline: nobody waits for them.
                for _ in range(20):
                    await asyncio.sleep(0)
                    if fetch.done():
                        break
            venue.answer, venue.report = venue.good, lambda reports: None
            for good in ("good", "another"):
                error = await outcome(venue.through(gate, key=good, timeout=2.0))
                assert error is None, (number, answer, report, error)
            status.pass_time()
            assert status.troubles == {}
            clock.advance(seconds)
        for fetch in hanging:
            fetch.cancel()
        await asyncio.wait(hanging)
        assert gate.in_flight == 0


async def quietly(fetch: Awaitable[Any]) -> None:
    try:
        await outcome(fetch)
    except RuntimeError:
        return
