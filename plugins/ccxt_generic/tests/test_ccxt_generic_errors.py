"""What CCXT raises, as our errors: each class, and what Binance's statuses and codes mean."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic.answers import Answer
from exchange_service_ccxt_generic.failures import translate
from exchange_service_ccxt_generic.meanings import BY_CLASS, INHERITED
from exchange_service_ccxt_generic.simulator import BinanceSimulator

from exchange_service.plugin_api import (
    Balance,
    ClockSkew,
    CredentialRejected,
    ExchangeMetadata,
    FeatureNotEnabled,
    NotSupported,
    PermissionMissing,
    RegionRestricted,
    RequestRefused,
    VenueError,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.testing import Fault, venue_call

Read = Callable[..., Awaitable[Balance]]
ACCOUNT = "/api/v3/account"
SIGNED_TEXT = "binance GET https://api.binance.com/api/v3/account?timestamp=1&signature=48be31 400 {}"


def names(tree: Mapping[str, Any]) -> Iterator[str]:
    """Every class of CCXT's tree of errors."""
    for name, below in tree.items():
        yield name
        yield from names(below)


def test_every_error_of_ccxt_has_a_row_or_takes_its_parents_on_purpose() -> None:
    from ccxt.base.errors import BaseError, error_hierarchy

    def classes(root: type) -> Iterator[str]:
        yield root.__name__
        for child in root.__subclasses__():
            if child.__module__ == root.__module__:
                yield from classes(child)

    known = set(BY_CLASS) | INHERITED
    assert set(names(error_hierarchy)) == known
    assert set(classes(BaseError)) == known
    assert not set(BY_CLASS) & INHERITED


@pytest.mark.parametrize("name", sorted({*BY_CLASS, *INHERITED}))
def test_every_error_becomes_ours_and_loses_its_text(name: str) -> None:
    from ccxt.base import errors

    raised = getattr(errors, name)(SIGNED_TEXT)
    ours = translate(raised, Answer(), "kraken", "Kraken")
    row = next(base.__name__ for base in type(raised).__mro__ if base.__name__ in BY_CLASS)
    assert type(ours) is BY_CLASS[row][0]
    assert "Kraken" in ours.message
    assert "signature" not in ours.message
    assert "http" not in ours.message


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AuthenticationError", CredentialRejected),
        ("PermissionDenied", PermissionMissing),
        ("AccountNotEnabled", FeatureNotEnabled),
        ("NotSupported", NotSupported),
        ("RestrictedLocation", RegionRestricted),
        ("InvalidNonce", ClockSkew),
        ("RateLimitExceeded", VenueRateLimited),
        ("OnMaintenance", VenueMaintenance),
        ("RequestTimeout", VenueTimeout),
        ("NullResponse", VenueMalformed),
        ("BadSymbol", RequestRefused),
        ("NetworkError", VenueUnavailable),
    ],
)
def test_an_error_does_not_change_its_meaning(name: str, expected: type[VenueError]) -> None:
    from ccxt.base import errors

    assert type(translate(getattr(errors, name)("x"), Answer(), "okx", "OKX")) is expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, RequestRefused),
        (403, PermissionMissing),
        (404, RequestRefused),
        (407, VenueUnavailable),
        (418, VenueRateLimited),
        (429, VenueRateLimited),
        (451, RegionRestricted),
        (500, VenueUnavailable),
        (503, VenueUnavailable),
    ],
)
def test_a_status_that_ccxt_takes_for_an_outage_becomes_its_own_error(status: int, expected: type[VenueError]) -> None:
    from ccxt.base.errors import ExchangeNotAvailable

    answer = Answer(status=status, body="{}", is_json=True)
    assert type(translate(ExchangeNotAvailable("x"), answer, "okx", "OKX")) is expected


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("86400", 300.0),
        ("soon", 10.0),
        ("", 10.0),
        ("NaN", 10.0),
        ("-3", 10.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sat, 06 Nov 2094 08:49:37 GMT", 300.0),
    ],
)
def test_the_venues_own_delay_is_respected(value: str, seconds: float) -> None:
    from ccxt.base.errors import RateLimitExceeded

    answer = Answer(status=429, headers={"Retry-After": value})
    assert translate(RateLimitExceeded("x"), answer, "okx", "OKX").retry_after == seconds


@pytest.mark.parametrize(
    ("ends_in", "shortest", "longest"), [(2.0, 1.0, 2.6), (-60.0, 10.0, 10.0), (9000.0, 10.0, 10.0), (None, 10.0, 10.0)]
)
def test_bybits_limit_ends_at_the_time_that_bybit_states(
    ends_in: float | None, shortest: float, longest: float
) -> None:
    from ccxt.base.errors import RateLimitExceeded

    ends = "soon" if ends_in is None else str(int((time.time() + ends_in) * 1000))
    body = '{"retCode":10006,"retMsg":"Too many visits!"}'
    answer = Answer(status=200, headers={"X-Bapi-Limit-Reset-Timestamp": ends}, body=body, is_json=True)
    delay = translate(RateLimitExceeded("x"), answer, "bybit", "Bybit").retry_after
    assert delay is not None
    assert shortest <= delay <= longest


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault.rate_limited("7"), VenueRateLimited),
        (Fault(status=418, body=b'{"code":-1003,"msg":"Way too many requests"}'), VenueRateLimited),
        (
            Fault(status=451, body=b'{"code":0,"msg":"Service unavailable from a restricted location"}'),
            RegionRestricted,
        ),
        # Its firewall, which refuses an address that has asked too much; a missing right is -2015.
        (Fault.html(403), VenueRateLimited),
        (Fault.html(502), VenueUnavailable),
        (Fault(status=503, body=b"Under maintenance", content_type="text/plain"), VenueMaintenance),
        (Fault(status=504, body=b""), VenueTimeout),
        (Fault(status=401, body=b"{}"), CredentialRejected),
        (Fault(reset=True), VenueUnavailable),
    ],
)
async def test_binances_answer_is_named(
    read: Read, binance: BinanceSimulator, fault: Fault, expected: type[VenueError]
) -> None:
    fault.path = ACCOUNT
    binance.fail(fault)
    with pytest.raises(expected) as caught:
        await read()
    assert type(caught.value) is expected
    assert "signature" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    if fault.status == 429:
        assert caught.value.retry_after == 7.0


@pytest.mark.parametrize(
    ("key", "secret", "expected"),
    [
        ("unknownkey", "alicesecret", CredentialRejected),
        ("not-a-key", "alicesecret", CredentialRejected),
        ("alicekey", "wrongsecret", CredentialRejected),
    ],
)
async def test_a_wrong_key_is_rejected(read: Read, key: str, secret: str, expected: type[VenueError]) -> None:
    with pytest.raises(expected):
        await read(api_key=key, api_secret=secret)


async def test_a_wrong_clock_is_a_clock_skew(read: Read, binance: BinanceSimulator) -> None:
    binance.clock_ahead = 60_000
    with pytest.raises(ClockSkew):
        await read()


async def test_a_key_revoked_after_it_has_worked_is_rejected_and_not_called_a_ban(
    listings: Mapping[str, ExchangeMetadata], binance: BinanceSimulator
) -> None:
    options: dict[str, Any] = {"api_key": "alicekey", "api_secret": "alicesecret", "timeout": 20.0}
    async with venue_call(listings["binance"], override=binance.url, **options) as call:
        await plugin.fetch_balance(call)
        del binance.wallets["alicekey"]
        with pytest.raises(CredentialRejected, match="IP allow-list"):
            await plugin.fetch_balance(call)


async def test_an_unreachable_venue_is_unavailable(listings: Mapping[str, ExchangeMetadata]) -> None:
    options: dict[str, Any] = {"api_key": "alicekey", "api_secret": "alicesecret", "timeout": 20.0}
    async with venue_call(listings["binance"], override="http://127.0.0.1:9", **options) as call:
        with pytest.raises(VenueUnavailable):
            await plugin.fetch_balance(call)
