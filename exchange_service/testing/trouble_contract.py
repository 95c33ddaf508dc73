"""The part of the contract about a venue that refuses or fails: which error each trouble becomes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import pytest

from exchange_service.plugin_api import (
    AccountUnknown,
    AddressNotAllowed,
    CredentialRejected,
    FeatureNotEnabled,
    PermissionMissing,
    VenueError,
    VenueMaintenance,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.testing.calling_contract import GRACE, CallingContract
from exchange_service.testing.venue import TROUBLES, DemoVenue, Fault

# The errors that each of the TROUBLES may become.
ERRORS_OF_TROUBLES: Mapping[str, tuple[type[VenueError], ...]] = {
    "wrong key": (CredentialRejected,),
    "missing right": (PermissionMissing, AddressNotAllowed, AccountUnknown, FeatureNotEnabled),
    "wrong environment": (CredentialRejected, AccountUnknown),
    "unknown account": (AccountUnknown,),
    "rate limit": (VenueRateLimited,),
    "outage": (VenueUnavailable, VenueMaintenance, VenueTimeout),
}


class TroubleContract(CallingContract):
    """Which errors the plugin raises, and how often it sends a request to a venue that refuses it."""

    @pytest.mark.asyncio
    async def test_a_refused_key_is_no_passing_trouble(self) -> None:
        error, requests = await self._error_from(Fault(status=401, body=b"{}"), "HTTP 401")
        assert not error.transient, f"HTTP 401 became {type(error).__name__}: the last good value would hide it"
        assert requests <= 3, f"a refused key was sent {requests} times"

    @pytest.mark.asyncio
    async def test_a_rate_limit_keeps_the_venues_own_delay(self) -> None:
        async with self._open_venue() as (venue, row):
            await self._fetch_good(venue, row)
            usual = len(venue.requests)
            venue.fail(Fault.rate_limited("7"))
            error = await self._fetch_error(venue, row, "HTTP 429")
            more = len(venue.requests) - usual
        assert isinstance(error, VenueRateLimited), f"HTTP 429 became {type(error).__name__}"
        assert error.retry_after == 7, f"Retry-After: 7 became {error.retry_after}"
        assert more <= usual, "it sent more requests to a venue that limits it"

    @pytest.mark.asyncio
    async def test_a_rate_limit_without_a_delay_is_one_all_the_same(self) -> None:
        error, _ = await self._error_from(Fault.rate_limited(""), "HTTP 429 without Retry-After")
        assert isinstance(error, VenueRateLimited), f"HTTP 429 became {type(error).__name__}"
        assert error.retry_after, "without a delay the next request would be sent at once"

    @pytest.mark.asyncio
    @pytest.mark.parametrize("status", [500, 502, 503, 504])
    async def test_a_venue_in_trouble_says_nothing_about_the_key(self, status: int) -> None:
        for fault in (Fault.html(status), Fault(status=status), Fault(status=status, body=b"{}")):
            error, _ = await self._error_from(fault, f"HTTP {status}")
            assert error.transient, f"HTTP {status} became {type(error).__name__}"

    @pytest.mark.asyncio
    @pytest.mark.parametrize("status", [401, 403])
    async def test_a_key_that_was_good_before_is_refused_all_the_same(self, status: int) -> None:
        async with self._open_venue() as (venue, row), self._open_call(venue, row) as call:
            await self._fetch(call)
            venue.fail(Fault(status=status, body=b"{}"))
            with pytest.raises(VenueError) as refusal:
                await self._fetch(call)
            self._assert_safe_to_show(refusal.value, venue)
        kind = type(refusal.value).__name__
        assert not refusal.value.transient, f"HTTP {status} became {kind}: the last good value would hide it"

    @pytest.mark.asyncio
    async def test_a_ban_is_a_rate_limit(self) -> None:
        error, requests = await self._error_from(Fault(status=418, body=b"{}"), "HTTP 418")
        assert isinstance(error, VenueRateLimited), f"HTTP 418 became {type(error).__name__}"
        assert requests <= 3, f"a venue that bans us was sent {requests} requests"

    @pytest.mark.asyncio
    async def test_each_of_the_venues_troubles_becomes_its_error(self) -> None:
        async with self._open_venue() as (venue, good):
            if not isinstance(venue, DemoVenue):
                return
            # All of them at once, because one account's trouble must not affect another account.
            rows = {trouble: venue.troubled_credential(trouble) for trouble in TROUBLES}
            for trouble, row in rows.items():
                if row is None:
                    continue
                error = await self._fetch_error(venue, row, trouble)
                fits = isinstance(error, ERRORS_OF_TROUBLES[trouble])
                assert fits, f"the trouble {trouble!r} became {type(error).__name__}"
            await self._fetch_good(venue, good)

    @pytest.mark.asyncio
    async def test_an_ended_connection_is_a_passing_trouble(self) -> None:
        error, _ = await self._error_from(Fault(reset=True), "an ended connection")
        assert error.transient, f"an ended connection became {type(error).__name__}"

    @pytest.mark.asyncio
    async def test_nobody_listening_is_a_passing_trouble(self) -> None:
        async with self._open_venue() as (venue, row):
            await venue.stop()
            error = await self._fetch_error(venue, row, "a closed port")
        assert error.transient, f"a closed port became {type(error).__name__}"

    @pytest.mark.asyncio
    @pytest.mark.parametrize("fault", [Fault(silent=True), Fault(drip=True)], ids=["silence", "a byte a second"])
    async def test_it_ends_with_its_deadline(self, fault: Fault) -> None:
        async with self._open_venue() as (venue, row):
            venue.fail(replace(fault))
            began = asyncio.get_running_loop().time()
            error = await self._fetch_error(venue, row, "a venue without an answer", timeout=0.4)
            took = asyncio.get_running_loop().time() - began
        assert isinstance(error, VenueTimeout), f"it became {type(error).__name__}"
        assert took < 0.4 + GRACE / 2, f"a call with a deadline of 0.4 s took {took:.1f} s"
