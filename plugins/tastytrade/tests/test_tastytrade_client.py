"""tastytrade over HTTP: the access token and its renewal, which accounts are read, and tastytrade's errors as ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from importlib.metadata import version
from typing import Any

import exchange_service_tastytrade
import pytest
from exchange_service_tastytrade import TASTYTRADE
from exchange_service_tastytrade.client import USER_AGENT
from exchange_service_tastytrade.simulator import SimulatedAccount, TastytradeSimulator

from exchange_service.plugin_api import (
    AccountUnknown,
    Balance,
    CredentialInvalid,
    CredentialRejected,
    PermissionMissing,
    RequestRefused,
    VenueCall,
    VenueError,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.testing import Fault, venue_call

REFRESH, SECRET = "a-refresh-token-for-tests", "a-client-secret-for-tests"
FIRST, SECOND, THIRD = (f"5WX0000{number}" for number in range(3))
TOKEN, LIST = "/oauth/token", "/customers/me/accounts"


def balances(number: str) -> str:
    return f"/accounts/{number}/balances"


@asynccontextmanager
async def venue_with(*accounts: SimulatedAccount) -> AsyncIterator[TastytradeSimulator]:
    async with TastytradeSimulator() as venue:
        venue.add_grant(REFRESH, SECRET, *accounts)
        yield venue


def calling(
    venue: TastytradeSimulator,
    *,
    environment: str = "production",
    api_key: str = "",
    secret: str = SECRET,
    refresh: str = REFRESH,
    **metadata: Any,
) -> AbstractAsyncContextManager[VenueCall]:
    return venue_call(
        TASTYTRADE,
        override=venue.url,
        environment=environment,
        api_key=api_key,
        api_secret=secret,
        passphrase=refresh,
        metadata=metadata,
    )


async def fetch(call: VenueCall) -> Balance:
    return await exchange_service_tastytrade.fetch_balance(call)


async def balance_of(venue: TastytradeSimulator, **row: Any) -> Balance:
    async with calling(venue, **row) as call:
        return await fetch(call)


async def refusal_of(fault: Fault, path: str, **row: Any) -> VenueError:
    """What a call comes to where the venue answers so at `path`."""
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        venue.fail(replace(fault, path=path))
        with pytest.raises(VenueError) as refusal:
            await balance_of(venue, **row)
    return refusal.value


def saying(status: int, code: str, message: str = "Something of theirs") -> Fault:
    return Fault(status=status, body=json.dumps({"error": {"code": code, "message": message}}).encode())


def flat(status: int, code: str) -> Fault:
    return Fault(status=status, body=json.dumps({"error_code": code, "error_description": "Invalid JWT"}).encode())


def paths(venue: TastytradeSimulator) -> list[str]:
    return [request.path for request in venue.requests]


def tokens_used(venue: TastytradeSimulator) -> list[str]:
    return [request.headers["Authorization"] for request in venue.requests if request.method == "GET"]


async def test_a_balance_takes_a_token_the_list_and_each_accounts_balances() -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND)) as venue:
        balance = await balance_of(venue)
    assert [account.id for account in balance.venue_accounts] == [FIRST, SECOND]
    assert paths(venue)[:2] == [TOKEN, LIST]
    assert sorted(paths(venue)[2:]) == [balances(FIRST), balances(SECOND)]


async def test_the_token_is_requested_with_the_secret_and_the_refresh_token_alone() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        await balance_of(venue, api_key="a-client-id", secret=f" {SECRET}\n", refresh=f"  {REFRESH} ")
    request = venue.requests[0]
    assert (request.method, request.path) == ("POST", TOKEN)
    assert json.loads(request.body) == {
        "grant_type": "refresh_token",
        "client_secret": SECRET,
        "refresh_token": REFRESH,
    }
    assert request.headers["Content-Type"] == "application/json"
    assert "Authorization" not in request.headers
    assert not request.query


async def test_every_request_names_the_service_and_requests_json() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        await balance_of(venue)
    for request in venue.requests:
        assert request.headers["User-Agent"] == USER_AGENT
        assert request.headers["Accept"] == "application/json"
    assert set(tokens_used(venue)) == {"Bearer simulated.access-token.00000001"}


def test_the_name_that_is_sent_has_the_version_of_the_plugin() -> None:
    assert f"exchange-service-tastytrade/{version('exchange-service-tastytrade')}" == USER_AGENT


async def test_the_client_id_may_be_left_empty() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        assert await balance_of(venue, api_key="") == await balance_of(venue, api_key="a-client-id")


async def test_the_refresh_token_may_stand_in_the_metadata() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        balance = await balance_of(venue, refresh="", refresh_token=REFRESH)
        assert await balance_of(venue, refresh_token="an-older-one") == balance


async def test_one_token_serves_many_balances() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue, calling(venue) as call:
        for _ in range(3):
            await fetch(call)
    assert venue.token_requests == 1
    assert paths(venue).count(LIST) == 1
    assert paths(venue).count(balances(FIRST)) == 3


async def test_many_callers_at_once_take_one_token() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue, calling(venue) as call:
        await asyncio.gather(*(fetch(call) for _ in range(20)))
    assert venue.token_requests == 1


async def test_a_token_is_renewed_before_the_venue_ends_it() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue, calling(venue) as call:
        venue.stated_life = 0.04
        venue.fail(Fault(delay=0.03, pass_on=True, path=balances(FIRST)))
        await fetch(call)
        before = venue.token_requests
        await fetch(call)
    assert venue.token_requests == before + 1
    # In truth each lived on, so it was the stated life alone that counted.
    assert tokens_used(venue)[-1] != tokens_used(venue)[0]


async def test_many_callers_at_once_renew_a_token_once() -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND)) as venue, calling(venue) as call:
        await fetch(call)
        venue.end_tokens()
        balance, *others = await asyncio.gather(*(fetch(call) for _ in range(20)))
    assert venue.token_requests == 2
    assert all(account.error is None for account in balance.venue_accounts)
    assert all(other == balance for other in others)


async def test_a_token_that_the_venue_ended_early_is_renewed_and_the_read_repeated() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue, calling(venue) as call:
        first = await fetch(call)
        venue.end_tokens()
        assert await fetch(call) == first
    assert paths(venue)[3:] == [balances(FIRST), TOKEN, balances(FIRST)]


async def test_a_late_refusal_of_an_old_token_uses_the_token_renewed_meanwhile() -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND)) as venue, calling(venue) as call:
        await fetch(call)
        venue.end_tokens()
        venue.fail(Fault(delay=0.1, pass_on=True, path=balances(SECOND), times=1))
        balance = await fetch(call)
    assert [account.error for account in balance.venue_accounts] == [None, None]
    assert venue.token_requests == 2


@pytest.mark.parametrize("code", ["unauthorized", "invalid_session", "token_invalid", "anything"])
@pytest.mark.parametrize("path", [LIST, balances(FIRST)])
async def test_a_fresh_token_that_is_refused_is_renewed_once_and_then_the_grant_is_refused(
    code: str, path: str
) -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        venue.fail(replace(saying(401, code), path=path))
        with pytest.raises(CredentialRejected, match="Create another grant"):
            await balance_of(venue)
    assert venue.token_requests == 2
    assert paths(venue).count(path) == 2


async def test_a_grant_that_is_revoked_meanwhile_is_refused_as_a_whole() -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND)) as venue, calling(venue) as call:
        await fetch(call)
        del venue.grants[REFRESH]
        with pytest.raises(CredentialRejected, match="refresh token"):
            await fetch(call)
    assert venue.token_requests == 2


async def test_a_failed_token_request_is_repeated_by_the_next_call() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue, calling(venue) as call:
        venue.fail(replace(Fault.html(502), times=1))
        with pytest.raises(VenueUnavailable):
            await fetch(call)
        assert (await fetch(call)).summary is not None


@pytest.mark.parametrize("row", [{"secret": "another-secret"}, {"refresh": "another-token"}])
async def test_for_a_refused_grant_the_message_names_the_secret_and_the_token(row: dict[str, str]) -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        with pytest.raises(CredentialRejected, match="client secret or the refresh token") as refusal:
            await balance_of(venue, **row)
    assert paths(venue) == [TOKEN]
    assert all(text not in refusal.value.message for text in ("another", REFRESH, SECRET, "JWT"))


@pytest.mark.parametrize("status", [400, 401])
@pytest.mark.parametrize(("environment", "other"), [("production", "sandbox"), ("sandbox", "live venue")])
async def test_a_refused_grant_comes_with_the_advice_to_try_the_other_environment(
    status: int, environment: str, other: str
) -> None:
    error = await refusal_of(flat(status, "invalid_grant"), TOKEN, environment=environment)
    assert isinstance(error, CredentialRejected)
    assert other in error.text


@pytest.mark.parametrize(
    "row",
    [
        {"login": "jane"},
        {"username": "jane"},
        {"password": "correct horse"},
        {"remember_token": "abc"},
        {"api_key": "jane@example.com"},
        {"api_key": "jane", "secret": "correct horse", "refresh": ""},
        {"refresh": ""},
        {"refresh": "  "},
        {"refresh": "", "secret": ""},
    ],
    ids=str,
)
async def test_a_password_login_is_refused_with_advice_and_no_request_is_sent(row: dict[str, str]) -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        with pytest.raises(CredentialInvalid, match=r"on 2025-12-01.*passphrase") as refusal:
            await balance_of(venue, **row)
    assert venue.requests == []
    assert "horse" not in refusal.value.message


async def test_a_missing_client_secret_is_named_before_a_request() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        with pytest.raises(CredentialInvalid, match="api_secret"):
            await balance_of(venue, secret=" ")
    assert venue.requests == []


async def test_each_account_keeps_its_type_and_name() -> None:
    retirement = SimulatedAccount(SECOND, "Retirement", "Roth IRA", "Cash", cash=Decimal("912.5"))
    async with venue_with(SimulatedAccount(FIRST), retirement) as venue:
        balance = await balance_of(venue)
    types = [(account.id, account.type, account.label) for account in balance.venue_accounts]
    assert types == [(FIRST, "margin", "Individual"), (SECOND, "cash", "Retirement")]
    assert balance.venue_accounts[1].assets[0].used == 0


async def test_closed_accounts_are_left_out() -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND, closed=True)) as venue:
        balance = await balance_of(venue)
    assert [account.id for account in balance.venue_accounts] == [FIRST]
    assert balances(SECOND) not in paths(venue)


@pytest.mark.parametrize(
    ("requested", "read"), [("cash", [SECOND]), ("margin", [FIRST]), ("", [FIRST, SECOND]), ("all", [FIRST, SECOND])]
)
async def test_only_the_requested_type_of_account_is_read(requested: str, read: list[str]) -> None:
    accounts = SimulatedAccount(FIRST), SimulatedAccount(SECOND, margin_or_cash="Cash")
    async with venue_with(*accounts) as venue, calling(venue) as call:
        balance = await fetch(replace(call, account=replace(call.account, account_type=requested)))
    assert [account.id for account in balance.venue_accounts] == read
    assert sorted(paths(venue)[2:]) == [balances(number) for number in read]


async def test_one_currency_has_one_summary_over_all_accounts() -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND, cash=Decimal("0.0001"))) as venue:
        balance = await balance_of(venue)
    assert balance.summary is not None
    assert balance.summary.currency == "USD"
    assert balance.summary.cash == Decimal("12875.4121")
    assert balance.summary.equity == Decimal("77585.4121")
    assert balance.summary.margin_used == Decimal("48760.0")


async def test_different_currencies_are_never_summed() -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND, currency="EUR")) as venue:
        balance = await balance_of(venue)
    assert balance.summary is None
    summaries = [account.summary for account in balance.venue_accounts]
    assert [summary.currency for summary in summaries if summary] == ["USD", "EUR"]


async def test_an_account_that_is_refused_stands_beside_the_others_with_its_error() -> None:
    refused = SimulatedAccount(SECOND, "Joint", margin_or_cash="Cash", refused=True)
    async with venue_with(SimulatedAccount(FIRST), refused) as venue:
        balance = await balance_of(venue)
    good, other = balance.venue_accounts
    assert good.error is None
    assert good.assets
    assert isinstance(other.error, PermissionMissing)
    assert (other.id, other.type, other.label, other.assets) == (SECOND, "cash", "Joint", ())
    assert balance.summary is None


async def test_a_limit_on_one_account_leaves_the_others_readable() -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND)) as venue:
        venue.fail(Fault.rate_limited("7")).path = balances(SECOND)
        balance = await balance_of(venue)
    errors = [account.error for account in balance.venue_accounts]
    assert errors[0] is None
    assert isinstance(errors[1], VenueRateLimited)
    assert errors[1].retry_after == 7


async def test_if_every_account_is_refused_the_error_is_raised() -> None:
    async with venue_with(SimulatedAccount(FIRST, refused=True), SimulatedAccount(SECOND, refused=True)) as venue:
        with pytest.raises(PermissionMissing, match="scope read"):
            await balance_of(venue)


async def test_a_login_without_an_open_account_is_an_account_unknown_and_its_list_is_not_cached() -> None:
    async with venue_with(SimulatedAccount(FIRST, closed=True)) as venue, calling(venue) as call:
        with pytest.raises(AccountUnknown, match="no open account"):
            await fetch(call)
        venue.add_grant(REFRESH, SECRET, SimulatedAccount(SECOND))
        balance = await fetch(call)
    assert [account.id for account in balance.venue_accounts] == [SECOND]
    assert paths(venue).count(LIST) == 2


async def test_a_stored_account_id_is_the_only_one_read_and_keeps_its_type() -> None:
    accounts = SimulatedAccount(FIRST), SimulatedAccount(SECOND, "Cash only", margin_or_cash="Cash")
    async with venue_with(*accounts) as venue:
        balance = await balance_of(venue, account_id=SECOND)
    assert [(account.id, account.type, account.label) for account in balance.venue_accounts] == [
        (SECOND, "cash", "Cash only")
    ]
    assert balances(FIRST) not in paths(venue)
    assert balance.summary is not None


@pytest.mark.parametrize("account_id", [THIRD, SECOND, 7654321, "../../sessions", "a?b=c"])
async def test_a_stored_account_id_that_is_not_open_here_is_unknown(account_id: Any) -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND, closed=True)) as venue:
        with pytest.raises(AccountUnknown, match="account_id"):
            await balance_of(venue, account_id=account_id)
    assert paths(venue) == [TOKEN, LIST]


async def test_an_account_that_was_opened_since_the_list_was_read_is_found() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue, calling(venue, account_id=SECOND) as call:
        with pytest.raises(AccountUnknown):
            await fetch(call)
        venue.add_grant(REFRESH, SECRET, SimulatedAccount(FIRST), SimulatedAccount(SECOND))
        balance = await fetch(call)
    assert [account.id for account in balance.venue_accounts] == [SECOND]


async def test_the_time_of_a_balance_is_the_oldest_of_its_accounts() -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND, refused=True)) as venue:
        balance = await balance_of(venue)
    assert balance.venue_time == balance.venue_accounts[0].venue_time
    assert balance.venue_time is not None


async def test_the_rights_of_a_grant_are_not_guessed() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue, calling(venue) as call:
        rights = await exchange_service_tastytrade.check_credential(call)
    assert (rights.trade, rights.withdraw, rights.expires) == (None, None, None)
    assert any("scope read" in note for note in rights.notes)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (saying(400, "validation_error"), RequestRefused),
        (saying(401, "invalid_credentials"), CredentialRejected),
        (Fault(status=401), CredentialRejected),
        (Fault.html(401), VenueUnavailable),
        (saying(403, "not_permitted"), PermissionMissing),
        (Fault.html(403), VenueUnavailable),
        (saying(404, "record_not_found"), AccountUnknown),
        (Fault.html(404), VenueUnavailable),
        (saying(422, "validation_error"), RequestRefused),
        (Fault(status=429), VenueRateLimited),
        (Fault.html(429), VenueRateLimited),
        (Fault(status=500), VenueUnavailable),
        (Fault.html(502), VenueUnavailable),
        (Fault.html(503), VenueUnavailable),
        (Fault(status=503, body=b"<html>Scheduled Maintenance</html>"), VenueMaintenance),
        (Fault.html(504), VenueTimeout),
        (Fault(status=206, body=b"{}"), VenueMalformed),
        (saying(200, "unauthorized"), VenueMalformed),
        (Fault.html(200), VenueMalformed),
    ],
    ids=lambda value: f"{value.status} {value.body[:40]!r}" if isinstance(value, Fault) else value.__name__,
)
@pytest.mark.parametrize("path", [LIST, balances(FIRST)])
async def test_each_of_tastytrades_errors_becomes_the_right_error(
    fault: Fault, expected: type[VenueError], path: str
) -> None:
    assert type(await refusal_of(fault, path)) is expected


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (flat(400, "invalid_request"), RequestRefused),
        (flat(400, "invalid_client"), CredentialRejected),
        (saying(400, "validation_error"), RequestRefused),
        (saying(401, "unauthorized"), CredentialRejected),
        (Fault(status=401), CredentialRejected),
        (Fault.html(401), VenueUnavailable),
        (Fault.html(403), VenueUnavailable),
        (Fault.html(404), VenueUnavailable),
        (Fault(status=429), VenueRateLimited),
        (Fault.html(502), VenueUnavailable),
        (Fault.html(504), VenueTimeout),
        (Fault(status=202, body=b"{}"), VenueMalformed),
        (Fault.html(200), VenueMalformed),
    ],
    ids=lambda value: f"{value.status} {value.body[:40]!r}" if isinstance(value, Fault) else value.__name__,
)
async def test_each_refusal_of_a_token_becomes_the_right_error(fault: Fault, expected: type[VenueError]) -> None:
    assert type(await refusal_of(fault, TOKEN)) is expected


@pytest.mark.parametrize("fault", [Fault.html(401), saying(401, "invalid_credentials")])
async def test_a_refusal_that_no_token_can_heal_is_not_answered_with_another(fault: Fault) -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        venue.fail(replace(fault, path=LIST))
        with pytest.raises(VenueError):
            await balance_of(venue)
    assert paths(venue) == [TOKEN, LIST]


async def test_tastytrades_message_is_not_passed_on() -> None:
    error = await refusal_of(saying(403, "not_permitted", "Jane Doe, card 4111"), LIST)
    assert "Jane" not in error.message


def listing_accounts(*accounts: Any) -> Fault:
    items = [{"account": account, "authority-level": "owner"} for account in accounts]
    return Fault(body=json.dumps({"data": {"items": items}}).encode(), path=LIST)


def entry(number: Any, **changes: Any) -> dict[str, Any]:
    """An account of the list; `...` leaves a member out, `_` stands for the dash in its name."""
    members = {"account-number": number, "margin-or-cash": "Margin", "is-closed": False, "nickname": "Mine"}
    members |= {name.replace("_", "-"): value for name, value in changes.items()}
    return {name: value for name, value in members.items() if value is not ...}


@pytest.mark.parametrize(
    "changes",
    [{"margin_or_cash": ...}, {"margin_or_cash": None}, {"margin_or_cash": "Portfolio"}, {"is_closed": "no"}],
    ids=str,
)
async def test_an_account_of_another_shape_is_its_own_error_beside_the_others(changes: dict[str, Any]) -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND)) as venue:
        venue.fail(listing_accounts(entry(FIRST, **changes), entry(SECOND)))
        balance = await balance_of(venue)
        with pytest.raises(VenueMalformed):
            await balance_of(venue, account_id=FIRST)
        alone = await balance_of(venue, account_id=SECOND)
    broken, good = balance.venue_accounts
    assert isinstance(broken.error, VenueMalformed)
    assert (broken.id, good.id, balance.summary) == (FIRST, SECOND, None)
    assert good.assets
    assert alone.summary is not None


@pytest.mark.parametrize("odd", [None, [], {}, {"margin-or-cash": "Cash"}], ids=json.dumps)
async def test_an_entry_without_a_number_is_an_account_with_its_error_beside_the_others(odd: Any) -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        venue.fail(listing_accounts(odd, entry(FIRST)))
        balance = await balance_of(venue)
        # It may be the stored account, so that one is not called unknown.
        with pytest.raises(VenueMalformed):
            await balance_of(venue, account_id=THIRD)
    broken, good = balance.venue_accounts
    assert isinstance(broken.error, VenueMalformed)
    assert (broken.id, good.id, balance.summary) == ("", FIRST, None)
    assert good.assets


async def test_a_broken_list_is_not_kept() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue, calling(venue) as call:
        venue.fail(replace(listing_accounts(entry(FIRST, margin_or_cash=...)), times=1))
        with pytest.raises(VenueMalformed):
            await fetch(call)
        assert (await fetch(call)).summary is not None


async def test_closed_accounts_are_left_out_with_a_note() -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND, closed=True)) as venue:
        balance = await balance_of(venue)
    assert [account.id for account in balance.venue_accounts] == [FIRST]
    assert balance.notes == (f"Closed at tastytrade, and left out: {SECOND}.",)


@pytest.mark.parametrize("body", [b'{"data": null}', b'{"data": {"items": []}}', b'{"data": {"account-number": "x"}}'])
async def test_one_accounts_odd_balances_are_its_own_error(body: bytes) -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND)) as venue:
        venue.fail(Fault(body=body, path=balances(SECOND)))
        balance = await balance_of(venue)
    good, broken = balance.venue_accounts
    assert good.assets
    assert isinstance(broken.error, VenueMalformed)
    assert (broken.type, broken.label, balance.summary) == ("margin", "Individual", None)


@pytest.mark.parametrize("stamp", ["yesterday", 1764000000, "2026-11-20T21:00:05", [], None], ids=json.dumps)
async def test_a_time_that_cannot_be_read_fails_no_balance(stamp: Any) -> None:
    figures = {"account-number": FIRST, "cash-balance": "10.5", "net-liquidating-value": "12", "updated-at": stamp}
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        venue.fail(Fault(body=json.dumps({"data": figures}).encode(), path=balances(FIRST)))
        balance = await balance_of(venue)
    assert balance.venue_time is None
    assert balance.summary is not None
    assert balance.summary.total == Decimal("10.5")


async def test_one_accounts_deficit_is_not_taken_from_another_account() -> None:
    short = SimulatedAccount(SECOND, cash=Decimal("-10000.0"), long_equity=Decimal("12000.0"))
    async with venue_with(SimulatedAccount(FIRST), short) as venue:
        balance = await balance_of(venue)
    assert balance.summary is not None
    assert (balance.summary.available, balance.summary.buying_power) == (None, None)
    assert balance.summary.cash == Decimal("2875.412")


@pytest.mark.parametrize("code", ["invalid_grant", "invalid_client"])
async def test_a_refused_grant_may_be_told_in_oauths_own_shape(code: str) -> None:
    fault = Fault(status=400, body=json.dumps({"error": code, "error_description": "Invalid JWT"}).encode())
    assert isinstance(await refusal_of(fault, TOKEN), CredentialRejected)


async def test_the_list_of_another_user_is_refused_and_a_new_account_of_the_same_user_is_not() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        venue.add_grant("of-another-user", SECRET, SimulatedAccount("5WX77777"))
        await balance_of(venue, refresh="of-another-user")
        async with calling(venue) as call:
            await fetch(call)
            fault = venue.fail(Fault(account=REFRESH, as_account="of-another-user", path=LIST))
            call.account_state.forget("accounts")
            with pytest.raises(VenueMalformed, match="another account than before"):
                await fetch(call)
            venue.recover(fault)
            venue.grants[REFRESH].accounts = {
                FIRST: SimulatedAccount(FIRST, closed=True),
                SECOND: SimulatedAccount(SECOND),
            }
            balance = await fetch(call)
    assert [account.id for account in balance.venue_accounts] == [SECOND]
