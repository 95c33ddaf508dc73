"""Kraken Futures over HTTP: what is sent, and which error each of the venue's errors becomes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from exchange_service_krakenfutures import KRAKENFUTURES, check_credential, fetch_balance
from exchange_service_krakenfutures.simulator import KrakenfuturesSimulator, SimulatedAccount

from exchange_service.plugin_api import (
    Balance,
    ClockSkew,
    CredentialInvalid,
    CredentialRejected,
    FeatureNotEnabled,
    PermissionMissing,
    RequestRefused,
    State,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    VenueUnavailable,
)
from exchange_service.testing import Fault, venue_call
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
KEY = "a-key-for-tests"
CHECK = "/api/auth/v1/api-keys/v3/check"


def row_of(venue: KrakenfuturesSimulator, **options: Any) -> Mapping[str, Any]:
    return venue.add_key(KEY, SimulatedAccount("an-account"), **options)


async def read(venue: KrakenfuturesSimulator, row: Mapping[str, Any], **options: Any) -> Balance:
    async with venue_call(KRAKENFUTURES, override=venue.url, **row, **options) as call:
        return await fetch_balance(call)


def named(word: str) -> bytes:
    return json.dumps({"result": "error", "error": word}).encode()


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, read_payload(PAYLOADS / "error_key.json"), CredentialRejected),
        (401, read_payload(PAYLOADS / "error_key.json"), CredentialRejected),
        (200, read_payload(PAYLOADS / "error_limit.json"), VenueRateLimited),
        (200, read_payload(PAYLOADS / "error_number.json"), RequestRefused),
        (200, named("nonceBelowThreshold"), ClockSkew),
        (200, named("nonceDuplicate"), ClockSkew),
        (200, named("accountInactive"), FeatureNotEnabled),
        (200, named("Server Error"), VenueUnavailable),
        (200, named("Unavailable"), VenueUnavailable),
        (200, named("notFound"), RequestRefused),
        (200, b'{"result": "error", "errors": ["apiLimitExceeded"]}', VenueRateLimited),
        (200, named("new in 2030"), VenueMalformed),
        (200, b'{"result": "new in 2030", "accounts": {}}', VenueMalformed),
        (401, named("new in 2030"), CredentialRejected),
        (503, named("new in 2030"), VenueUnavailable),
    ],
)
async def test_the_venues_word_chooses_the_error_and_then_the_status(
    status: int, body: bytes, expected: type[VenueError]
) -> None:
    async with KrakenfuturesSimulator() as venue:
        row = row_of(venue)
        venue.fail(Fault(status=status, body=body))
        with pytest.raises(expected):
            await read(venue, row)


async def test_a_page_of_a_gateway_blames_no_key() -> None:
    async with KrakenfuturesSimulator() as venue:
        row = row_of(venue)
        venue.fail(Fault.html(403))
        with pytest.raises(VenueUnavailable):
            await read(venue, row)


async def test_a_key_without_the_right_is_told_apart_from_a_wrong_key_by_one_more_request() -> None:
    async with KrakenfuturesSimulator() as venue:
        with pytest.raises(PermissionMissing):
            await read(venue, row_of(venue, general="NO_ACCESS"))
        assert [request.path for request in venue.requests][1:] == [CHECK]
        with pytest.raises(CredentialRejected):
            await read(venue, {**row_of(venue), "api_secret": "YW5vdGhlcg=="})


async def test_a_refusal_stays_a_refusal_if_nobody_can_explain_it() -> None:
    async with KrakenfuturesSimulator() as venue:
        row = row_of(venue, general="NO_ACCESS")
        venue.fail(Fault.html(503)).path = CHECK
        with pytest.raises(CredentialRejected):
            await read(venue, row)


@pytest.mark.parametrize("field", ["api_key", "api_secret"])
@pytest.mark.parametrize("text", ["", "two\nlines", "ключ"])
async def test_a_key_that_cannot_be_one_is_refused_before_a_request(field: str, text: str) -> None:
    async with KrakenfuturesSimulator() as venue:
        with pytest.raises(CredentialInvalid):
            await read(venue, {**row_of(venue), field: text})
        assert not venue.requests


async def test_two_users_of_one_key_share_its_rising_nonces() -> None:
    keys, row = State(), {}
    async with KrakenfuturesSimulator() as venue:
        row = row_of(venue)
        await asyncio.gather(*(read(venue, row, key_state=keys) for _ in range(20)))
        nonces = [int(request.headers["Nonce"]) for request in venue.requests]
    await keys.close()
    assert len(set(nonces)) == 20


async def test_one_request_reads_all_accounts_and_each_type_alone() -> None:
    async with KrakenfuturesSimulator() as venue:
        row = row_of(venue)
        everything = await read(venue, row)
        assert [account.type for account in everything.venue_accounts] == ["cash", "margin", "flex"]
        assert everything.summary is None
        assert everything.venue_time is not None
        assert everything.venue_time.isoformat() == "2026-11-30T12:00:00+00:00"
        for kind in KRAKENFUTURES.account_types:
            balance = await read(venue, row, account_type=kind)
            assert [account.type for account in balance.venue_accounts] == [kind]
        assert len(venue.requests) == 4


async def test_what_was_stored_for_ccxts_exchange_works_and_other_words_are_refused() -> None:
    async with KrakenfuturesSimulator() as venue:
        row = row_of(venue)
        balance = await read(venue, row, metadata={"defaultType": "swap", "marginMode": "cross"})
        assert len(balance.venue_accounts) == 3
        with pytest.raises(CredentialInvalid):
            await read(venue, row, metadata={"account": "flex"})


async def test_the_collateral_alone_has_an_overall_summary() -> None:
    async with KrakenfuturesSimulator() as venue:
        balance = await read(venue, row_of(venue), account_type="flex")
    assert balance.summary == balance.venue_accounts[0].summary


async def test_a_key_says_what_it_may_do() -> None:
    async with KrakenfuturesSimulator() as venue:
        row = row_of(venue, general="FULL_ACCESS")
        async with venue_call(KRAKENFUTURES, override=venue.url, **row) as call:
            rights = await check_credential(call)
    assert (rights.trade, rights.withdraw) == (True, False)


async def test_the_answer_about_another_key_is_not_believed() -> None:
    async with KrakenfuturesSimulator() as venue:
        row = row_of(venue)
        venue.fail(Fault(body=read_payload(PAYLOADS / "key.json")))
        async with venue_call(KRAKENFUTURES, override=venue.url, **row) as call:
            with pytest.raises(VenueMalformed):
                await check_credential(call)
