"""What a gateway answers in a venue's place is told from the venue's own answers."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from exchange_service.errors import (
    CredentialRejected,
    PermissionMissing,
    RegionRestricted,
    VenueError,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.testing import Fault
from exchange_service.testing.malformed import gateway_answers
from exchange_service.venues.http import VenueResponse

PAGE = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head></html>"


def answer(status: int, body: bytes, **headers: str) -> VenueResponse:
    return VenueResponse("Acme", status, CIMultiDict(headers), body)


def raised(response: VenueResponse) -> VenueError:
    read = response.json if response.status < 300 else response.raise_for_status
    with pytest.raises(VenueError) as caught:
        read()
    return caught.value


@pytest.mark.parametrize(("name", "fault"), list(gateway_answers()))
def test_no_answer_of_a_gateway_says_anything_about_the_key(name: str, fault: Fault) -> None:
    response = answer(fault.status, fault.body)
    error = raised(response)
    assert error.transient, name
    assert "key" not in error.text


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, PAGE, VenueMalformed),
        (200, b"<?xml version='1.0'?><balances/>", VenueMalformed),
        (200, b"OK", VenueMalformed),
        (401, PAGE, VenueUnavailable),
        (401, b"Invalid Access Token", CredentialRejected),
        (401, b"{}", CredentialRejected),
        (403, PAGE, VenueUnavailable),
        (403, b"\xef\xbb\xbf  " + PAGE, VenueUnavailable),
        (403, b"error code: 1020", VenueUnavailable),
        (403, b"RBAC: access denied", VenueUnavailable),
        (403, b"", VenueUnavailable),
        (403, b'{"message": "Forbidden"}', PermissionMissing),
        (403, b'{"title": "Error 1010: Access denied", "cloudflare_error": true}', VenueUnavailable),
        (403, b"<html>The distribution is configured to block access from your country.</html>", RegionRestricted),
        (403, b"<html>This service is not available in your region.</html>", RegionRestricted),
        (403, b"error code: 1009", RegionRestricted),
        (403, b'<html><div role="region">Access denied</div></html>', VenueUnavailable),
        (407, b"", VenueUnavailable),
        (511, PAGE, VenueUnavailable),
        (429, PAGE, VenueRateLimited),
        (451, PAGE, RegionRestricted),
        (503, b"<html>Scheduled maintenance</html>", VenueMaintenance),
        (504, PAGE, VenueTimeout),
    ],
)
def test_a_page_is_told_from_the_venues_word(status: int, body: bytes, expected: type[VenueError]) -> None:
    assert type(raised(answer(status, body))) is expected


@pytest.mark.parametrize("kind", ["ForbiddenException", "MissingAuthenticationTokenException:http://x/"])
def test_a_refusal_of_amazons_gateway_in_json_says_nothing_about_the_key(kind: str) -> None:
    response = answer(403, b'{"message":"Forbidden"}', **{"X-Amzn-ErrorType": kind})
    assert type(raised(response)) is VenueUnavailable


def test_what_a_venue_decides_behind_amazons_gateway_is_its_own_word() -> None:
    response = answer(403, b'{"message":"Forbidden"}', **{"X-Amzn-ErrorType": "AccessDeniedException"})
    assert type(raised(response)) is PermissionMissing


def test_a_gateways_delay_is_kept() -> None:
    assert raised(answer(403, PAGE, **{"Retry-After": "12"})).retry_after == 12
