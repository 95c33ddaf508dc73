"""Alpaca over HTTP: what is sent, what is reported, and which error each refusal becomes."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from exchange_service_alpaca import ALPACA, fetch_balance
from exchange_service_alpaca.simulator import AlpacaSimulator, SimulatedAccount

from exchange_service.plugin_api import (
    Balance,
    CredentialInvalid,
    CredentialRejected,
    PermissionMissing,
    VenueCall,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    VenueUnavailable,
)
from exchange_service.testing import Fault, venue_call

KEY = "PKFORTESTS"


def row_of(venue: AlpacaSimulator) -> Mapping[str, Any]:
    return venue.add_key(KEY, SimulatedAccount("an-id", "PA3TESTS0001"))


@asynccontextmanager
async def call_for(venue: AlpacaSimulator, row: Mapping[str, Any]) -> AsyncIterator[VenueCall]:
    async with venue_call(ALPACA, override=venue.url, **row) as call:
        yield call


async def read(venue: AlpacaSimulator, row: Mapping[str, Any]) -> Balance:
    async with call_for(venue, row) as call:
        return await fetch_balance(call)


async def test_key_and_secret_go_into_alpacas_headers() -> None:
    async with AlpacaSimulator() as venue:
        row = row_of(venue)
        await read(venue, row)
        assert [request.path for request in venue.requests] == ["/v2/account", "/v2/positions"]
        for request in venue.requests:
            assert request.headers["APCA-API-KEY-ID"] == row["api_key"]
            assert request.headers["APCA-API-SECRET-KEY"] == row["api_secret"]


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, {"code": 40110000, "message": "request is not authorized"}, CredentialRejected),
        (401, {"message": "unauthorized."}, CredentialRejected),
        (403, {"message": "forbidden."}, CredentialRejected),
        (403, {"code": 40310000, "message": "new in 2030"}, PermissionMissing),
        (401, ["new in 2030"], CredentialRejected),
        (429, {"message": "new in 2030"}, VenueRateLimited),
        (503, {}, VenueUnavailable),
    ],
)
async def test_alpacas_own_word_chooses_the_error(status: int, body: Any, expected: type[VenueError]) -> None:
    async with AlpacaSimulator() as venue:
        row = row_of(venue)
        venue.fail(Fault(status=status, body=json.dumps(body).encode()))
        with pytest.raises(expected):
            await read(venue, row)


async def test_a_page_of_a_gateway_blames_no_key() -> None:
    async with AlpacaSimulator() as venue:
        row = row_of(venue)
        venue.fail(Fault.html(403))
        with pytest.raises(VenueUnavailable):
            await read(venue, row)


async def test_a_limit_says_when_its_window_begins_again() -> None:
    async with AlpacaSimulator() as venue:
        row = row_of(venue)
        reset = str(int(time.time()) + 20)
        venue.fail(Fault(status=429, body=b'{"code":42910000}', headers={"X-RateLimit-Reset": reset}))
        with pytest.raises(VenueRateLimited) as caught:
            await read(venue, row)
        assert caught.value.retry_after is not None
        assert 15 < caught.value.retry_after <= 20


@pytest.mark.parametrize(
    ("left", "used"), [("0", 200), ("150", 50), ("900", 0), ("-1", None), ("new in 2030", None), ("9" * 13, None)]
)
async def test_what_is_left_of_the_limit_is_reported(left: str, used: int | None) -> None:
    async with AlpacaSimulator() as venue:
        row = row_of(venue)
        headers = {"X-RateLimit-Remaining": left, "X-RateLimit-Reset": str(int(time.time()) + 20)}
        venue.fail(Fault(body=b"[]", headers=headers))
        async with call_for(venue, row) as call:
            with pytest.raises(VenueMalformed):
                await fetch_balance(call)
            reported = call.reports.usage
        assert [units for units, _ in reported.values()] == ([] if used is None else [used])


async def test_a_key_of_several_lines_is_refused_before_a_request() -> None:
    async with AlpacaSimulator() as venue:
        row = row_of(venue)
        for field in ("api_key", "api_secret"):
            with pytest.raises(CredentialInvalid):
                await read(venue, {**row, field: "two\nlines"})
        assert not venue.requests


async def test_another_account_under_the_same_key_is_refused() -> None:
    async with AlpacaSimulator() as venue:
        row = row_of(venue)
        async with call_for(venue, row) as call:
            await fetch_balance(call)
            venue.keys[KEY].account.id = "the-id-of-another"
            with pytest.raises(VenueMalformed):
                await fetch_balance(call)


def test_paper_accounts_are_at_hosts_of_their_own() -> None:
    live, paper = ALPACA.environments
    assert "paper" in paper.aliases
    assert live.urls.keys() == paper.urls.keys()
    assert not set(live.urls.values()) & set(paper.urls.values())


async def test_an_order_that_is_filled_between_the_two_answers_is_read_again() -> None:
    async with AlpacaSimulator() as venue:
        row = row_of(venue)
        venue.fail(Fault(body=b"[]", path="/v2/positions", times=1))
        async with call_for(venue, row) as call:
            balance = await fetch_balance(call)
            assert call.reports.costs == {0: 4}
        assert [asset.asset for asset in balance.venue_accounts[0].assets] == ["USD", "AAPL", "BTC"]


async def test_positions_that_never_fit_the_account_are_no_balance() -> None:
    async with AlpacaSimulator() as venue:
        row = row_of(venue)
        venue.fail(Fault(body=b"[]", path="/v2/positions"))
        with pytest.raises(VenueMalformed):
            await read(venue, row)
