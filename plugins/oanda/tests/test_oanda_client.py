"""OANDA over HTTP: which accounts are read, from which host, and OANDA's errors as ours."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any

import exchange_service_oanda
import pytest
from exchange_service_oanda import OANDA
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount

from exchange_service.plugin_api import (
    AccountUnknown,
    AssetBalance,
    Balance,
    CredentialInvalid,
    CredentialRejected,
    Http,
    PermissionMissing,
    RequestRefused,
    Response,
    Summary,
    VenueError,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.testing import Fault, venue_call

TOKEN = "a-token-for-tests"
FIRST, SECOND, THIRD = (f"101-004-7654321-00{number}" for number in (1, 2, 3))
LIST = "/v3/accounts"


@asynccontextmanager
async def venue_with(*accounts: SimulatedAccount) -> AsyncIterator[OandaSimulator]:
    async with OandaSimulator() as venue:
        venue.add_token(TOKEN, *accounts)
        yield venue


async def balance_of(
    venue: OandaSimulator, *, token: str = TOKEN, environment: str = "production", **metadata: Any
) -> Balance:
    async with venue_call(OANDA, override=venue.url, environment=environment, api_key=token, metadata=metadata) as call:
        return await exchange_service_oanda.fetch_balance(call)


async def refusal_of(fault: Fault, *, environment: str = "production", **metadata: Any) -> VenueError:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        venue.fail(fault)
        with pytest.raises(VenueError) as refusal:
            await balance_of(venue, environment=environment, **metadata)
    return refusal.value


def saying(status: int, message: str) -> Fault:
    return Fault(status=status, body=json.dumps({"errorMessage": message}).encode())


def paths(venue: OandaSimulator) -> list[str]:
    return [request.path for request in venue.requests]


async def test_every_account_of_the_token_is_an_account_of_the_balance() -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND)) as venue:
        balance = await balance_of(venue)
    assert [account.id for account in balance.venue_accounts] == [FIRST, SECOND]
    assert paths(venue)[0] == LIST
    assert sorted(paths(venue)[1:]) == [f"{LIST}/{FIRST}/summary", f"{LIST}/{SECOND}/summary"]


async def test_the_token_is_sent_as_a_bearer_and_json_is_requested() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        await balance_of(venue, token=f"  {TOKEN}\n")
    for request in venue.requests:
        assert request.headers["Authorization"] == f"Bearer {TOKEN}"
        assert request.headers["Accept"] == "application/json"


async def test_the_worked_example_is_reproduced_to_the_digit() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        balance = await balance_of(venue)
    (account,) = balance.venue_accounts
    assert [str(row) for row in account.assets] == [
        str(AssetBalance("EUR", Decimal("25310.4426"), Decimal("23246.1055"), Decimal("1940.2271"), kind="cash"))
    ]
    assert str(balance.summary) == str(
        Summary(
            "EUR",
            total=Decimal("25310.4426"),
            cash=Decimal("25310.4426"),
            equity=Decimal("25182.5126"),
            available=Decimal("23246.1055"),
            margin_used=Decimal("1940.2271"),
            unrealised_pnl=Decimal("-127.9300"),
        )
    )


async def test_one_currency_has_one_summary_over_all_accounts() -> None:
    second = SimulatedAccount(SECOND, "EUR", "Second", Decimal("0.0001"), Decimal(0), Decimal(1), Decimal(2))
    async with venue_with(SimulatedAccount(FIRST), second) as venue:
        balance = await balance_of(venue)
    assert balance.summary is not None
    assert balance.summary.currency == "EUR"
    assert balance.summary.total == Decimal("25310.4427")
    assert balance.summary.available == Decimal("23248.1055")


async def test_different_currencies_are_never_summed() -> None:
    async with venue_with(SimulatedAccount(FIRST, "EUR"), SimulatedAccount(SECOND, "JPY")) as venue:
        balance = await balance_of(venue)
    assert balance.summary is None
    summaries = [account.summary for account in balance.venue_accounts]
    assert [summary.currency for summary in summaries if summary] == ["EUR", "JPY"]


async def test_an_account_that_refuses_its_summary_stands_beside_the_others_with_its_error() -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND, refused=True)) as venue:
        balance = await balance_of(venue)
    good, refused = balance.venue_accounts
    assert good.error is None
    assert good.assets
    assert isinstance(refused.error, AccountUnknown)
    assert (refused.id, refused.type, refused.assets) == (SECOND, "forex", ())
    assert balance.summary is None


async def test_a_limit_on_one_account_leaves_the_others_readable() -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND)) as venue:
        venue.fail(Fault.rate_limited("7")).path = f"{LIST}/{SECOND}/summary"
        balance = await balance_of(venue)
    errors = [account.error for account in balance.venue_accounts]
    assert errors[0] is None
    assert isinstance(errors[1], VenueRateLimited)
    assert errors[1].retry_after == 7


async def test_of_four_accounts_one_that_fails_is_shown_and_nothing_is_summed_over_it() -> None:
    ids = [f"101-004-7654321-00{number}" for number in range(1, 5)]
    async with venue_with(*(SimulatedAccount(account_id) for account_id in ids)) as venue:
        venue.fail(Fault.html(503)).path = f"{LIST}/{ids[2]}/summary"
        balance = await balance_of(venue)
    assert [account.id for account in balance.venue_accounts] == ids
    assert [type(account.error) for account in balance.venue_accounts if account.error] == [VenueUnavailable]
    assert len(list(balance.rows())) == 3
    assert balance.summary is None


class CountingHttp:
    """A session that counts how many requests are on their way at the same time."""

    def __init__(self, http: Http) -> None:
        self._http = http
        self.client_session = http.client_session
        self.under_way = self.most = 0

    async def get(self, url: str, **options: Any) -> Response:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            return await self._http.get(url, **options)
        finally:
            self.under_way -= 1

    async def post(self, url: str, **options: Any) -> Response:
        return await self._http.post(url, **options)


async def test_no_more_than_two_accounts_are_read_at_the_same_time() -> None:
    ids = [f"101-004-7654321-00{number}" for number in range(1, 7)]
    async with (
        venue_with(*(SimulatedAccount(account_id) for account_id in ids)) as venue,
        venue_call(OANDA, override=venue.url, api_key=TOKEN) as call,
    ):
        http = CountingHttp(call.http)
        balance = await exchange_service_oanda.fetch_balance(replace(call, http=http))
    assert [account.id for account in balance.venue_accounts] == ids
    assert http.most == 2


async def test_if_every_account_is_refused_the_error_is_raised() -> None:
    async with venue_with(SimulatedAccount(FIRST, refused=True), SimulatedAccount(SECOND, refused=True)) as venue:
        with pytest.raises(AccountUnknown):
            await balance_of(venue)


async def test_a_token_that_dies_between_two_requests_is_refused_as_a_whole() -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND)) as venue:
        dead = saying(401, "Insufficient authorization to perform request.")
        venue.fail(replace(dead, path=f"{LIST}/{SECOND}/summary"))
        with pytest.raises(CredentialRejected):
            await balance_of(venue)


async def test_a_token_without_an_account_is_an_account_unknown_and_its_list_is_not_cached() -> None:
    async with venue_with() as venue, venue_call(OANDA, override=venue.url, api_key=TOKEN) as call:
        with pytest.raises(AccountUnknown, match="the token is valid but has no account"):
            await exchange_service_oanda.fetch_balance(call)
        venue.add_token(TOKEN, SimulatedAccount(FIRST))
        balance = await exchange_service_oanda.fetch_balance(call)
    assert [account.id for account in balance.venue_accounts] == [FIRST]
    assert paths(venue).count(LIST) == 2


async def test_a_stored_account_id_is_the_only_one_read() -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND, "USD")) as venue:
        balance = await balance_of(venue, account_id=SECOND)
    assert [account.id for account in balance.venue_accounts] == [SECOND]
    assert paths(venue) == [f"{LIST}/{SECOND}/summary"]
    assert balance.summary is not None
    assert balance.summary.currency == "USD"


async def test_another_users_account_id_is_an_unknown_account_and_not_a_bad_token() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        with pytest.raises(AccountUnknown, match="account_id"):
            await balance_of(venue, account_id=THIRD)


@pytest.mark.parametrize("account_id", ["7654321", 7654321])
async def test_an_account_id_of_the_retired_interface_is_refused_before_a_request(account_id: Any) -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        with pytest.raises(CredentialInvalid, match="retired v1 interface"):
            await balance_of(venue, account_id=account_id)
    assert venue.requests == []


@pytest.mark.parametrize("account_id", ["a/b", "a?b=c", "a#b", "a b", ".."])
async def test_an_account_id_that_could_change_the_path_is_refused(account_id: str) -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        with pytest.raises(CredentialInvalid, match="is not a v20 account id"):
            await balance_of(venue, account_id=account_id)
    assert venue.requests == []


@pytest.mark.parametrize("token", ["", "   ", "tökén", "two\r\nlines"])
async def test_a_text_that_cannot_be_a_token_is_refused_before_a_request(token: str) -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        with pytest.raises(CredentialInvalid, match="api_key"):
            await balance_of(venue, token=token)
    assert venue.requests == []


async def test_the_account_list_is_read_once_for_many_balances() -> None:
    async with (
        venue_with(SimulatedAccount(FIRST)) as venue,
        venue_call(OANDA, override=venue.url, api_key=TOKEN) as call,
    ):
        for _ in range(3):
            await exchange_service_oanda.fetch_balance(call)
    assert paths(venue).count(LIST) == 1
    assert paths(venue).count(f"{LIST}/{FIRST}/summary") == 3


async def test_a_list_that_failed_is_read_again() -> None:
    async with (
        venue_with(SimulatedAccount(FIRST)) as venue,
        venue_call(OANDA, override=venue.url, api_key=TOKEN) as call,
    ):
        venue.fail(replace(Fault.html(502), times=1))
        with pytest.raises(VenueUnavailable):
            await exchange_service_oanda.fetch_balance(call)
        balance = await exchange_service_oanda.fetch_balance(call)
    assert [account.id for account in balance.venue_accounts] == [FIRST]


@pytest.mark.parametrize(("environment", "other"), [("production", "practice"), ("sandbox", "live")])
@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_token_comes_with_the_advice_to_try_the_other_environment(
    environment: str, other: str, status: int
) -> None:
    fault = saying(status, "Insufficient authorization to perform request.")
    error = await refusal_of(fault, environment=environment)
    assert isinstance(error, CredentialRejected)
    assert f"{other} accounts" in error.text


@pytest.mark.parametrize("status", [401, 403])
async def test_a_forbidden_request_means_that_the_account_belongs_to_another_user(status: int) -> None:
    error = await refusal_of(saying(status, "The provided request was forbidden."), account_id=FIRST)
    assert isinstance(error, AccountUnknown)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (saying(400, "Invalid value specified for 'accountID'"), AccountUnknown),
        (saying(400, "Invalid value specified for 'count'"), RequestRefused),
        (Fault(status=401), CredentialRejected),
        (Fault.html(401), VenueUnavailable),
        (Fault.html(403), VenueUnavailable),
        (Fault(status=403, body=b"{}"), PermissionMissing),
        (saying(404, "No such account"), AccountUnknown),
        (Fault.html(404), VenueUnavailable),
        (Fault(status=405), RequestRefused),
        (Fault(status=416), RequestRefused),
        (Fault(status=418), VenueRateLimited),
        (Fault(status=429), VenueRateLimited),
        (Fault(status=500), VenueUnavailable),
        (Fault.html(502), VenueUnavailable),
        (Fault.html(503), VenueUnavailable),
        (Fault(status=503, body=b"<html>Scheduled Maintenance</html>"), VenueMaintenance),
        (Fault.html(504), VenueTimeout),
        (Fault(status=206, body=b"{}"), VenueMalformed),
        (Fault.html(200), VenueMalformed),
    ],
    ids=lambda value: f"{value.status} {value.body[:40]!r}" if isinstance(value, Fault) else value.__name__,
)
async def test_each_of_oandas_errors_becomes_the_right_error(fault: Fault, expected: type[VenueError]) -> None:
    assert type(await refusal_of(fault)) is expected


async def test_an_account_that_cannot_be_read_comes_with_advice() -> None:
    forbidden = saying(403, "The provided request was forbidden.")
    assert "Check the stored account_id" in (await refusal_of(forbidden, account_id=FIRST)).text
    assert "Store the account_id" in (await refusal_of(forbidden)).text
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND, refused=True)) as venue:
        error = (await balance_of(venue)).venue_accounts[1].error
    assert error is not None
    assert "another platform" in error.text


async def test_oandas_message_is_not_passed_on() -> None:
    error = await refusal_of(saying(400, "accountID of Jane Doe, card 4111"))
    assert "Jane" not in error.message


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, 503])
async def test_the_name_of_oandas_answer_is_not_passed_on(status: int) -> None:
    fault = replace(saying(status, "The provided request was forbidden."), headers={"RequestID": "42717890123456789"})
    error = await refusal_of(fault)
    assert "42717890123456789" not in f"{error!r} {error.args} {vars(error)}"


async def test_the_rights_of_a_token_are_unknown_and_a_note_states_it() -> None:
    async with venue_with() as venue, venue_call(OANDA, override=venue.url, api_key=TOKEN) as call:
        rights = await exchange_service_oanda.check_credential(call)
    assert (rights.trade, rights.withdraw, rights.expires) == (None, None, None)
    assert "no read-only tokens" in rights.notes[0]
    assert venue.requests == []


def listing_accounts(*entries: Any) -> Fault:
    return Fault(body=json.dumps({"accounts": entries}).encode(), path=LIST)


@pytest.mark.parametrize("odd", [None, {}, {"id": 7}, {"id": ""}, []], ids=json.dumps)
async def test_an_odd_entry_of_the_list_is_an_account_with_its_error_beside_the_others(odd: Any) -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        venue.fail(listing_accounts({"id": FIRST}, odd))
        balance = await balance_of(venue)
    good, broken = balance.venue_accounts
    assert good.assets
    assert isinstance(broken.error, VenueMalformed)
    assert (broken.id, balance.summary) == ("", None)


async def test_an_account_that_is_listed_twice_is_its_own_error() -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND)) as venue:
        venue.fail(listing_accounts({"id": FIRST}, {"id": SECOND}, {"id": FIRST}))
        balance = await balance_of(venue)
    assert [(account.id, type(account.error)) for account in balance.venue_accounts] == [
        (FIRST, VenueMalformed),
        (SECOND, type(None)),
    ]


async def test_a_list_with_nothing_but_odd_entries_is_malformed_and_not_kept() -> None:
    async with (
        venue_with(SimulatedAccount(FIRST)) as venue,
        venue_call(OANDA, override=venue.url, api_key=TOKEN) as call,
    ):
        venue.fail(replace(listing_accounts({}, None), times=1))
        with pytest.raises(VenueMalformed):
            await exchange_service_oanda.fetch_balance(call)
        balance = await exchange_service_oanda.fetch_balance(call)
    assert [account.id for account in balance.venue_accounts] == [FIRST]


@pytest.mark.parametrize("body", [b'{"account": null}', b'{"account": {"id": "another"}}', b"[]", b"<html>"])
async def test_one_accounts_odd_summary_is_its_own_error(body: bytes) -> None:
    async with venue_with(SimulatedAccount(FIRST), SimulatedAccount(SECOND)) as venue:
        venue.fail(Fault(body=body, path=f"{LIST}/{SECOND}/summary"))
        balance = await balance_of(venue)
    good, broken = balance.venue_accounts
    assert good.assets
    assert isinstance(broken.error, VenueMalformed)
    assert balance.summary is None


async def test_one_accounts_deficit_is_not_taken_from_another_account() -> None:
    flat = Decimal("0.0000")
    short = SimulatedAccount(SECOND, "EUR", "Second", Decimal("-5.0000"), flat, flat, Decimal("-5.0000"))
    async with venue_with(SimulatedAccount(FIRST), short) as venue:
        balance = await balance_of(venue)
    assert balance.summary is not None
    assert balance.summary.available is None
    assert balance.summary.total == Decimal("25305.4426")


async def test_the_list_of_another_user_is_refused_and_a_new_account_of_the_same_user_is_not() -> None:
    async with venue_with(SimulatedAccount(FIRST)) as venue:
        venue.add_token("of-another-user", SimulatedAccount("101-004-1112223-001"))
        await balance_of(venue, token="of-another-user")
        async with venue_call(OANDA, override=venue.url, api_key=TOKEN) as call:
            await exchange_service_oanda.fetch_balance(call)
            fault = venue.fail(Fault(account=TOKEN, as_account="of-another-user"))
            call.account_state.forget("accounts")
            with pytest.raises(VenueMalformed, match="another account than before"):
                await exchange_service_oanda.fetch_balance(call)
            venue.recover(fault)
            venue.add_token(TOKEN, SimulatedAccount(SECOND))
            balance = await exchange_service_oanda.fetch_balance(call)
    assert [account.id for account in balance.venue_accounts] == [SECOND]
