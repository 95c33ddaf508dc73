"""How Lighter is asked, by which deployment and token, and what its answers and its trouble become."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_lighter import LIGHTER, check_credential, fetch_balance
from exchange_service_lighter.simulator import LighterSimulator, SimulatedAccount, SimulatedAsset

from exchange_service.plugin_api import (
    AccountUnknown,
    Balance,
    CredentialInvalid,
    CredentialRejected,
    KeyRights,
    RegionRestricted,
    RequestRefused,
    Response,
    VenueCall,
    VenueError,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.testing import Fault, venue_call
from exchange_service.testing.witnesses import read_payload

PAYLOADS = Path(__file__).parents[1] / "payloads"
WALLET = "0x8c967e73e6b15087c42a10d344cff4c96d877f1d"
OTHER_WALLET = "0x035605fc2f24d65300227189025e90a0d947f16c"
MASTER, SUB, SECOND_SUB = 61, 281474976700001, 281474976700002
LONG_AGO, FAR_OFF = 1700000000, 4102444800
PATH = "/api/v1/account"
SIGNED_TOKEN = f"{FAR_OFF}:12345:5:" + "82" * 80
LIGHTER_KEY = "0b" * 40


@asynccontextmanager
async def venue() -> AsyncIterator[LighterSimulator]:
    """A venue with one wallet: a master account of 1000, a sub-account of 60, and one that holds nothing."""
    simulator = LighterSimulator()
    simulator.add(
        SimulatedAccount(
            MASTER, WALLET, collateral=Decimal(1000), assets=[SimulatedAsset("USDC", 3, "40.000000", "15.500000")]
        ),
        SimulatedAccount(SUB, WALLET, kind=1, name="Hedge", collateral=Decimal(60)),
        SimulatedAccount(SECOND_SUB, WALLET, kind=1, name="Idle"),
    )
    async with simulator:
        yield simulator


def calling(simulator: LighterSimulator, api_key: str = "", **metadata: Any) -> Any:
    metadata = metadata or {"wallet_address": WALLET}
    return venue_call(LIGHTER, override=simulator.url, api_key=api_key, metadata=metadata)


async def read(simulator: LighterSimulator, api_key: str = "", **metadata: Any) -> Balance:
    async with calling(simulator, api_key, **metadata) as call:
        return await fetch_balance(call)


def answering(status: int, code: int, message: str = "no") -> Fault:
    return Fault(status=status, body=json.dumps({"code": code, "message": message}).encode())


async def refusal_of(fault: Fault, api_key: str = "", **metadata: Any) -> VenueError:
    async with venue() as simulator:
        simulator.fail(fault)
        with pytest.raises(VenueError) as refusal:
            await read(simulator, api_key, **metadata)
    return refusal.value


async def test_the_worked_example_comes_out_to_the_digit() -> None:
    async with LighterSimulator() as simulator:
        row = simulator.demo_credential("moving")
        assert row is not None
        balance = await read(simulator, **row["extra_metadata"])
    rows = {
        (account.type, asset.asset): [
            f"{value:f}" for value in (asset.total, asset.free, asset.used) if value is not None
        ]
        for account, asset in balance.rows()
    }
    assert rows == {
        ("perpetual", "USDC"): ["3200.500000", "3099.700000", "184.800000"],
        ("spot", "USDC"): ["150.000000", "125.000000", "25.000000"],
        ("spot", "ETH"): ["0.50000000", "0.50000000", "0.00000000"],
        ("pool", "USDC"): ["100.000000"],
    }
    summary = balance.venue_accounts[0].summary
    assert summary is not None
    assert (summary.currency, summary.equity, summary.cash) == ("USDC", Decimal("3284.5"), Decimal("3200.5"))
    assert (summary.available, summary.margin_used) == (Decimal("3099.7"), Decimal("184.8"))
    assert summary.unrealised_pnl == Decimal(84)
    assert {account.id for account in balance.venue_accounts} == {"90210"}


async def test_a_wallet_shows_each_of_its_accounts_in_one_request() -> None:
    async with venue() as simulator:
        balance = await read(simulator)
        requested = [(request.path, dict(request.query)) for request in simulator.requests]
    assert [account.identity for account in balance.venue_accounts] == [
        (str(MASTER), "perpetual", ""),
        (str(MASTER), "spot", ""),
        (str(SUB), "perpetual", ""),
        (str(SUB), "spot", ""),
    ]
    assert balance.venue_accounts[2].label == "Hedge"
    assert balance.summary is not None
    assert (balance.summary.total, balance.summary.available) == (Decimal(1100), Decimal("1084.5"))
    assert balance.notes == ()
    assert requested == [(PATH, {"by": "l1_address", "value": WALLET})]


@pytest.mark.parametrize("key", ["wallet_address", "l1_address", "user"])
async def test_the_address_is_taken_from_any_of_its_names_and_sent_in_lower_case(key: str) -> None:
    async with venue() as simulator:
        assert (await read(simulator, **{key: "0x" + WALLET[2:].upper()})).summary is not None
        assert simulator.requests[0].query["value"] == WALLET


async def test_an_address_instead_of_a_token_is_accepted_and_not_sent_as_a_token() -> None:
    async with venue() as simulator:
        async with venue_call(LIGHTER, override=simulator.url, api_key=WALLET) as call:
            assert (await fetch_balance(call)).summary is not None
        assert "Authorization" not in simulator.requests[0].headers


@pytest.mark.parametrize("index", [SUB, str(SUB)])
async def test_an_account_index_is_the_only_one_read(index: Any) -> None:
    async with venue() as simulator:
        balance = await read(simulator, account_index=index)
        assert dict(simulator.requests[0].query) == {"by": "index", "value": str(SUB)}
    assert {account.id for account in balance.venue_accounts} == {str(SUB)}
    assert balance.summary is not None
    assert balance.summary.total == Decimal(60)


async def test_an_empty_sub_account_that_is_requested_by_its_index_is_shown() -> None:
    async with venue() as simulator:
        balance = await read(simulator, account_index=SECOND_SUB)
    assert {account.id for account in balance.venue_accounts} == {str(SECOND_SUB)}
    assert all(asset.is_zero() for _, asset in balance.rows())


async def test_an_account_index_of_another_wallet_is_an_account_unknown() -> None:
    async with venue() as simulator:
        assert (await read(simulator, account_index=SUB, wallet_address=WALLET)).summary is not None
        with pytest.raises(AccountUnknown, match="another wallet"):
            await read(simulator, account_index=SUB, wallet_address=OTHER_WALLET)


@pytest.mark.parametrize(
    "metadata",
    [
        {"wallet_address": "0x12"},
        {"wallet_address": "0x" + "g" * 40},
        {"wallet_address": WALLET, "private_key": LIGHTER_KEY},
        {"wallet_address": WALLET, "account_index": "first"},
        {"account_index": -1},
        {"account_index": 2**53},
        {"account_index": True},
        {"wallet_address": WALLET, "deployment": "testnet"},
        {"wallet_address": WALLET, "deployment": "https://api.rh.lighter.xyz"},
    ],
    ids=str,
)
async def test_unknown_metadata_are_refused_before_a_request(metadata: dict[str, Any]) -> None:
    async with venue() as simulator:
        with pytest.raises(CredentialInvalid):
            await read(simulator, **metadata)
        assert not simulator.requests


@pytest.mark.parametrize("metadata", [{}, {"wallet_address": "", "account_index": None}])
async def test_if_neither_address_nor_index_is_stored_both_are_named(metadata: dict[str, Any]) -> None:
    async with venue() as simulator:
        async with venue_call(LIGHTER, override=simulator.url, metadata=metadata) as call:
            with pytest.raises(CredentialInvalid, match=r"wallet_address or .*account_index"):
                await fetch_balance(call)
        assert not simulator.requests


class RequestedUrl(Exception):
    """The address that a plugin asked for."""


class UrlRecordingHttp:
    """A session that reaches nothing and tells where it was sent."""

    client_session = None

    async def get(self, url: str, **options: Any) -> Response:
        raise RequestedUrl(url)

    async def post(self, url: str, **options: Any) -> Response:
        raise RequestedUrl(url)


@pytest.mark.parametrize(
    ("environment", "deployment", "host"),
    [
        ("production", "", "https://mainnet.zklighter.elliot.ai"),
        ("mainnet", "lighter", "https://mainnet.zklighter.elliot.ai"),
        ("testnet", "", "https://testnet.zklighter.elliot.ai"),
        ("production", "robinhood", "https://api.rh.lighter.xyz"),
        ("sandbox", "Robinhood", "https://api.rh-testnet.lighter.xyz"),
    ],
)
async def test_environment_and_deployment_choose_the_host(environment: str, deployment: str, host: str) -> None:
    metadata = {"wallet_address": WALLET, "deployment": deployment}
    async with venue_call(LIGHTER, environment=environment, metadata=metadata) as call:
        recorded_call: VenueCall = replace(call, http=UrlRecordingHttp())
        with pytest.raises(RequestedUrl, match=f"^{host}{PATH}$"):
            await fetch_balance(recorded_call)


async def test_robinhood_chain_has_its_own_dollar() -> None:
    async with venue() as simulator:
        body = read_payload(PAYLOADS / "account_robinhood.json")
        simulator.fail(Fault(body=body))
        balance = await read(simulator, account_index=77, deployment="robinhood")
        simulator.recover()
        bare = await read(simulator, account_index=SUB, deployment="robinhood")
    assert balance.summary is not None
    assert balance.summary.currency == "USDG"
    assert bare.venue_accounts[0].assets[0].asset == "USDG"


async def test_all_pages_are_read_in_their_order() -> None:
    async with venue() as simulator:
        whole = await read(simulator)
        simulator.page_size = 1
        assert await read(simulator) == whole
        cursors = [request.query.get("cursor") for request in simulator.requests[1:]]
    assert cursors == [None, "1", "2"]


async def test_a_repeated_cursor_is_malformed() -> None:
    async with venue() as simulator:
        simulator.fail(Fault(body=b'{"code": 200, "accounts": [], "next_cursor": "7"}'))
        with pytest.raises(VenueMalformed, match="repeat"):
            await read(simulator)
        assert len(simulator.requests) == 2


async def test_endless_pages_are_malformed() -> None:
    async with venue() as simulator:
        simulator.page_size = 1
        for number in range(20):
            simulator.add(SimulatedAccount(SECOND_SUB + 1 + number, WALLET, kind=1))
        with pytest.raises(VenueMalformed, match="pages"):
            await read(simulator)
        assert len(simulator.requests) == 10


async def test_an_account_on_two_pages_is_malformed() -> None:
    async with venue() as simulator:
        simulator.page_size = 2
        simulator.accounts[SECOND_SUB].changes = {"index": MASTER, "account_index": MASTER}
        with pytest.raises(VenueMalformed, match="twice"):
            await read(simulator)


async def test_a_page_that_fails_leaves_no_part_of_a_balance() -> None:
    async with venue() as simulator:
        simulator.page_size = 1
        simulator.fail(Fault.html(503))
        simulator.fail(Fault(pass_on=True, times=2))
        with pytest.raises(VenueUnavailable):
            await read(simulator)


async def test_fewer_accounts_than_lighter_counts_are_malformed() -> None:
    async with venue() as simulator:
        simulator.fail(
            Fault(body=read_payload(PAYLOADS / "account_classic.json").replace(b'"total": 2', b'"total": 3'))
        )
        with pytest.raises(VenueMalformed, match="fewer"):
            await read(simulator, wallet_address="0x" + "aa".rjust(40, "0"))


@pytest.mark.parametrize("address", [OTHER_WALLET, "", ...], ids=["another", "empty", "missing"])
async def test_the_answer_for_another_wallet_or_account_is_malformed(address: Any) -> None:
    async with venue() as simulator:
        simulator.accounts[SUB].changes = {"l1_address": address}
        with pytest.raises(VenueMalformed, match="another wallet"):
            await read(simulator)
        simulator.accounts[SUB].changes = {"index": MASTER, "account_index": MASTER}
        with pytest.raises(VenueMalformed, match="another account"):
            await read(simulator, account_index=SUB)


@pytest.mark.parametrize("metadata", [{"wallet_address": OTHER_WALLET}, {"account_index": 999}], ids=str)
async def test_an_account_that_lighter_does_not_know_is_unknown(metadata: dict[str, Any]) -> None:
    async with venue() as simulator:
        with pytest.raises(AccountUnknown, match=next(iter(metadata))):
            await read(simulator, **metadata)


async def test_for_a_wallet_that_never_deposited_the_message_explains_why_it_is_unknown() -> None:
    async with venue() as simulator:
        with pytest.raises(AccountUnknown, match="first deposit"):
            await read(simulator, wallet_address=OTHER_WALLET)


async def test_a_list_without_accounts_is_not_an_empty_balance() -> None:
    error = await refusal_of(Fault(body=b'{"code": 200, "total": 0, "accounts": []}'))
    assert isinstance(error, AccountUnknown)


async def test_a_token_is_sent_as_it_is_and_needs_no_remark() -> None:
    async with venue() as simulator:
        token = simulator.add_token(MASTER)
        balance = await read(simulator, token)
        assert [request.headers["Authorization"] for request in simulator.requests] == [token]
    assert balance.notes == ()


async def test_without_a_token_no_token_is_sent() -> None:
    async with venue() as simulator:
        await read(simulator)
        assert "Authorization" not in simulator.requests[0].headers


async def test_a_signed_token_is_sent_too() -> None:
    async with venue() as simulator:
        await read(simulator, SIGNED_TOKEN)
        assert simulator.requests[0].headers["Authorization"] == SIGNED_TOKEN


@pytest.mark.parametrize(
    "fault",
    [
        answering(400, 20013, "invalid auth token"),
        answering(200, 21120, "Auth token expired"),
        answering(400, 21109, "api key not found"),
        Fault(status=401),
    ],
    ids=["400", "200", "api key", "401"],
)
async def test_a_token_that_lighter_refuses_is_left_out_with_a_note(fault: Fault) -> None:
    async with venue() as simulator:
        simulator.fail(replace(fault, times=1))
        balance = await read(simulator, simulator.add_token(MASTER))
        assert ["Authorization" in request.headers for request in simulator.requests] == [True, False]
    assert balance.summary is not None
    assert any("refuses the stored token" in note for note in balance.notes)


async def test_a_refused_token_is_not_sent_again_for_a_while_and_the_note_stays() -> None:
    async with venue() as simulator, calling(simulator, SIGNED_TOKEN, wallet_address=WALLET) as call:
        simulator.page_size = 1
        notes = {(await fetch_balance(call)).notes for _ in range(3)}
        sent = [request for request in simulator.requests if "Authorization" in request.headers]
    assert len(sent) == 1
    assert len(notes) == 1
    assert notes != {()}


async def test_an_expired_token_is_not_sent_and_there_is_a_note() -> None:
    async with venue() as simulator:
        balance = await read(simulator, simulator.add_token(MASTER, expires=LONG_AGO))
        assert ["Authorization" in request.headers for request in simulator.requests] == [False]
    assert balance.summary is not None
    assert any("expired on 2023-11-14" in note for note in balance.notes)


async def test_if_lighter_needs_a_token_and_refuses_it_the_credential_is_rejected() -> None:
    fault = answering(400, 20013, "invalid auth")
    for api_key in ("", SIGNED_TOKEN):
        assert isinstance(await refusal_of(fault, api_key), CredentialRejected)


@pytest.mark.parametrize("key", [LIGHTER_KEY, "0x" + LIGHTER_KEY.upper(), "0x" + "5e" * 32, "5E" * 32])
async def test_a_private_key_is_refused_before_a_request_and_not_repeated(key: str) -> None:
    async with venue() as simulator:
        with pytest.raises(CredentialInvalid, match="private key") as refusal:
            await read(simulator, key)
        assert not simulator.requests
    assert key not in refusal.value.message


@pytest.mark.parametrize(
    "key",
    [
        "ro:61:all",
        f"ro:61:all:{FAR_OFF}:xyz",
        f"ro:61:some:{FAR_OFF}:abcdef",
        f"ro:61:all:{FAR_OFF}000000:abcdef",
        f"rw:61:all:{FAR_OFF}:abcdef",
        f"ro:61:all:{FAR_OFF}:abcdef\r\nX-Other: 1",
        SIGNED_TOKEN[:-1],
        SIGNED_TOKEN + "0",
        "Bearer " + SIGNED_TOKEN,
        "tökén",
    ],
)
async def test_an_invalid_token_is_refused_before_a_request_is_sent(key: str) -> None:
    async with venue() as simulator:
        with pytest.raises(CredentialInvalid, match="api_key"):
            await read(simulator, key)
        assert not simulator.requests


async def rights(api_key: str = "") -> KeyRights:
    async with venue_call(LIGHTER, api_key=api_key, metadata={"wallet_address": WALLET}) as call:
        return await check_credential(call)


async def test_without_a_key_nothing_can_be_done_but_reading() -> None:
    assert await rights() == KeyRights(trade=False, withdraw=False)


@pytest.mark.parametrize("token", [f"ro:61:single:{FAR_OFF}:abcdef", SIGNED_TOKEN])
async def test_a_token_can_only_read_and_its_end_is_known(token: str) -> None:
    assert await rights(token) == KeyRights(False, False, expires=datetime(2100, 1, 1, tzinfo=UTC))


async def test_the_check_of_an_expired_token_reports_its_end() -> None:
    result = await rights(f"ro:61:all:{LONG_AGO}:abcdef")
    assert result.expires == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert any("expired" in note for note in result.notes)


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (21100, AccountUnknown),
        (21109, CredentialRejected),
        (23000, VenueRateLimited),
        (23001, VenueRateLimited),
        (23002, VenueRateLimited),
        (23003, VenueRateLimited),
        (20558, RegionRestricted),
        (20001, RequestRefused),
    ],
)
async def test_lighters_own_code_decides_under_any_status(status: int, code: int, expected: type[VenueError]) -> None:
    error = await refusal_of(answering(status, code))
    assert type(error) is expected
    assert error.message.endswith(".")


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (answering(200, 29999), VenueMalformed),
        (answering(200, 0), VenueMalformed),
        (answering(400, 29999), RequestRefused),
        (answering(400, 200), RequestRefused),
        (Fault(body=b'{"code": "200", "accounts": []}'), VenueMalformed),
        (Fault(body=b'{"accounts": []}'), VenueMalformed),
        (Fault(status=202, body=b'{"code": 200, "accounts": []}'), VenueMalformed),
        (Fault(status=403, body=b"{}"), RegionRestricted),
        (Fault.html(403), VenueUnavailable),
        (Fault(status=403), VenueUnavailable),
        (Fault(status=403, body=b"<html>Lighter is not available in your country</html>"), RegionRestricted),
        (Fault(status=404), RequestRefused),
        (Fault(status=429), VenueRateLimited),
        (Fault(status=500, body=b'{"code": 20500, "message": "internal"}'), VenueUnavailable),
        (answering(500, 21100, "account not found"), VenueUnavailable),
        (answering(502, 20013, "auth service is down"), VenueUnavailable),
        (Fault.html(502), VenueUnavailable),
        (Fault(status=503, body=b"under maintenance"), VenueMaintenance),
        (Fault(status=504), VenueTimeout),
        (Fault.html(200), VenueMalformed),
    ],
    ids=lambda value: f"{value.status} {value.body[:30]!r}" if isinstance(value, Fault) else value.__name__,
)
async def test_each_error_of_lighter_becomes_the_right_error(fault: Fault, expected: type[VenueError]) -> None:
    assert type(await refusal_of(fault)) is expected


@pytest.mark.parametrize(("header", "seconds"), [("25", 25.0), ("", 10.0)])
async def test_a_limit_names_the_venues_delay_or_ten_seconds(header: str, seconds: float) -> None:
    limit = replace(answering(400, 23000), headers={"Retry-After": header} if header else {})
    assert (await refusal_of(limit)).retry_after == seconds


async def test_lighters_message_is_not_passed_on() -> None:
    for code in (20001, 20013, 20558, 21100, 23000, 29999):
        error = await refusal_of(answering(400, code, "auth of Jane Doe"))
        assert "Jane" not in error.message


async def test_an_account_that_lighter_could_not_read_does_not_hide_the_others() -> None:
    async with venue() as simulator:
        simulator.accounts[SUB].code = 20500
        balance = await read(simulator)
    assert [account.id for account in balance.venue_accounts] == [str(MASTER), str(MASTER), str(SUB)]
    assert isinstance(balance.venue_accounts[-1].error, VenueUnavailable)
    assert balance.summary is None
