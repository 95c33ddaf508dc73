"""Aster over HTTP: how requests are signed and timed, what is read, and Aster's errors as ours."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import exchange_service_aster
import pytest
from exchange_service_aster import ASTER
from exchange_service_aster.simulator import AsterSimulator, SimulatedAsset, SimulatedWallet, address_of

from exchange_service.plugin_api import (
    AddressNotAllowed,
    AssetBalance,
    Balance,
    ClockSkew,
    CredentialInvalid,
    CredentialRejected,
    KeyRights,
    PermissionMissing,
    RegionRestricted,
    RequestRefused,
    Response,
    State,
    Summary,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    VenueReports,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.testing import Fault, venue_call

pytest.importorskip("coincurve", reason="agents cannot sign here")

WALLET = "0x63dd5acc6b1aa0f563956c0e534dd30b6dcf7c4e"
PRIVATE_KEY = "4fd0a42218f3eae43a6ce26d22544e986139a01e5b34a62db53757ffca81bae1"
AGENT = "0x21cf8ae13bb72632562c6fff438652ba1a151bb0"
OTHER_KEY = "11" * 32
API_KEY, API_SECRET = "an-hmac-key-for-tests", "an-hmac-secret-for-tests"
FUTURES, SPOT = "/fapi/v3/accountWithJoinMargin", "/api/v3/account"
OLD_FUTURES, OLD_SPOT = "/fapi/v4/account", "/api/v1/account"
TIME = "/fapi/v1/time"

AGENT_ROW: dict[str, Any] = {"api_secret": PRIVATE_KEY, "metadata": {"wallet_address": WALLET}}
KEY_ROW: dict[str, Any] = {"api_key": API_KEY, "api_secret": API_SECRET}
BOTH_SCHEMES = pytest.mark.parametrize("row", [AGENT_ROW, KEY_ROW], ids=["agent", "HMAC key"])


@asynccontextmanager
async def venue_with(wallet: SimulatedWallet | None = None, **rights: Any) -> AsyncIterator[AsterSimulator]:
    """A venue that knows the wallet, its agent and an HMAC key for it."""
    async with AsterSimulator() as venue:
        venue.add_key(API_KEY, API_SECRET, venue.add_wallet(WALLET, wallet))
        venue.add_agent(WALLET, PRIVATE_KEY, **rights)
        yield venue


async def balance_of(
    venue: AsterSimulator, row: dict[str, Any] = AGENT_ROW, *, account_type: str = "", **options: Any
) -> Balance:
    async with venue_call(ASTER, override=venue.url, **row, **options) as call:
        request = replace(call, account=replace(call.account, account_type=account_type))
        return await exchange_service_aster.fetch_balance(request)


async def refusal_of(fault: Fault, row: dict[str, Any] = AGENT_ROW) -> VenueError:
    async with venue_with() as venue:
        venue.fail(fault)
        with pytest.raises(VenueError) as refusal:
            await balance_of(venue, row)
    return refusal.value


async def invalid(**row: Any) -> str:
    """The error for a stored credential that is refused before Aster is asked."""
    async with venue_with() as venue:
        with pytest.raises(CredentialInvalid) as refusal:
            await balance_of(venue, row)
    assert venue.requests == []
    return refusal.value.message


def saying(status: int, code: Any, message: str = "") -> Fault:
    return Fault(status=status, body=json.dumps({"code": code, "msg": message}).encode())


def paths(venue: AsterSimulator) -> list[str]:
    return sorted(request.path for request in venue.requests)


def rows(balance: Balance) -> dict[str, list[AssetBalance]]:
    """What is held, by account type."""
    return {account.type: [row for row in account.assets if not row.is_zero()] for account in balance.venue_accounts}


# What a balance holds.


@BOTH_SCHEMES
async def test_the_worked_example_comes_out_to_the_digit(row: dict[str, Any]) -> None:
    async with venue_with() as venue:
        balance = await balance_of(venue, row)
    held = {kind: [(r.asset, r.total, r.free, r.used) for r in assets] for kind, assets in rows(balance).items()}
    assert held == {
        "futures": [
            ("USDT", Decimal("5120.44"), Decimal("4594.54"), Decimal("610.10")),
            ("BNB", Decimal("1.5"), Decimal("1.5"), None),
        ],
        "spot": [
            ("USDT", Decimal("350.25"), Decimal("310.25"), Decimal("40.00")),
            ("ASTER", Decimal(12), Decimal(12), Decimal(0)),
        ],
    }
    futures, spot = balance.venue_accounts
    assert futures.summary == Summary(
        "USDT",
        total=Decimal("5120.44"),
        cash=Decimal("5120.44"),
        available=Decimal("4594.54"),
        equity=Decimal("5204.64"),
        margin_used=Decimal("610.10"),
        unrealised_pnl=Decimal("84.20"),
    )
    assert spot.summary is None
    assert balance.summary is None
    assert balance.notes == ()


async def test_an_account_has_the_wallets_address_if_it_is_known() -> None:
    async with venue_with() as venue:
        of_agent, of_key = await balance_of(venue), await balance_of(venue, KEY_ROW)
    assert [account.id for account in of_agent.venue_accounts] == [WALLET, WALLET]
    assert [account.id for account in of_key.venue_accounts] == ["", ""]


async def test_assets_that_are_not_held_are_rows_of_zeros() -> None:
    async with venue_with() as venue:
        futures, _ = (await balance_of(venue)).venue_accounts
    zeros = [row for row in futures.assets if row.is_zero()]
    assert len(zeros) == 5
    assert all(row.total == 0 for row in zeros)


async def test_in_multi_assets_mode_an_asset_that_aster_would_lend_is_not_a_holding() -> None:
    wallet = SimulatedWallet([SimulatedAsset("USDT", Decimal(100)), SimulatedAsset("USDF", lent=Decimal(95))])
    async with venue_with(wallet) as venue:
        balance = await balance_of(venue)
    futures, _ = balance.venue_accounts
    assert "USDF" not in [row.asset for row in futures.assets]
    assert any("lend" in note for note in balance.notes)


async def test_totals_of_all_assets_are_not_passed_off_as_those_of_usdt() -> None:
    assets = [SimulatedAsset("USDT", Decimal(100)), SimulatedAsset("BNB", Decimal(2), price=Decimal(600))]
    async with venue_with(SimulatedWallet(assets)) as venue:
        assert (await balance_of(venue)).notes == ()
        venue.wallets[WALLET].multi_assets = True
        balance = await balance_of(venue)
    futures, _ = balance.venue_accounts
    assert futures.summary is not None
    assert futures.summary.total == 1300
    assert balance.summary is None
    assert any("multi-assets mode" in note for note in balance.notes)


async def test_there_is_one_summary_only_if_nothing_but_the_usdt_of_futures_is_held() -> None:
    async with venue_with(SimulatedWallet([SimulatedAsset("USDT", Decimal(100))])) as venue:
        balance = await balance_of(venue)
        assert balance.summary == balance.venue_accounts[0].summary
        venue.wallets[WALLET].spot.append(("USDT", Decimal(1), Decimal(0)))
        assert (await balance_of(venue)).summary is None


@pytest.mark.parametrize(("account_type", "path"), [("futures", FUTURES), ("spot", SPOT)])
async def test_only_the_requested_account_is_read(account_type: str, path: str) -> None:
    async with venue_with() as venue:
        balance = await balance_of(venue, account_type=account_type)
    assert [account.type for account in balance.venue_accounts] == [account_type]
    assert paths(venue) == [path]


@pytest.mark.parametrize(("failing", "other"), [("futures", "spot"), ("spot", "futures")])
async def test_one_account_that_fails_stands_beside_the_other_with_its_error(failing: str, other: str) -> None:
    async with venue_with() as venue:
        venue.fail(Fault.html(500)).path = {"futures": FUTURES, "spot": SPOT}[failing]
        balance = await balance_of(venue)
    by_type = {account.type: account for account in balance.venue_accounts}
    assert isinstance(by_type[failing].error, VenueUnavailable)
    assert by_type[failing].id == WALLET
    assert by_type[other].assets
    assert balance.summary is None


async def test_a_key_that_one_host_refuses_is_refused_as_a_whole() -> None:
    async with venue_with() as venue:
        venue.fail(saying(400, -1000, "No agent found")).path = SPOT
        with pytest.raises(CredentialRejected):
            await balance_of(venue)


# How requests are signed.


async def test_an_agent_signs_a_nonce_the_wallet_and_itself_and_sends_no_key_in_a_header() -> None:
    async with venue_with() as venue:
        await balance_of(venue)
    for request in venue.requests:
        assert list(request.query) == ["nonce", "user", "signer", "signature"]
        assert (request.query["user"], request.query["signer"]) == (WALLET, AGENT)
        assert "X-MBX-APIKEY" not in request.headers
        assert request.headers["User-Agent"]
        assert request.method == "GET"


async def test_an_hmac_key_goes_in_its_header_and_the_signature_comes_last() -> None:
    async with venue_with() as venue:
        await balance_of(venue, KEY_ROW)
    assert paths(venue) == [OLD_SPOT, OLD_FUTURES]
    for request in venue.requests:
        assert list(request.query) == ["recvWindow", "timestamp", "signature"]
        assert request.headers["X-MBX-APIKEY"] == API_KEY


async def test_the_test_network_has_its_own_chain() -> None:
    async with venue_with() as venue:
        venue.chain_id = 714
        assert rows(await balance_of(venue, environment="sandbox"))["spot"]
        with pytest.raises(CredentialRejected, match="signature"):
            await balance_of(venue)


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
    ("environment", "account_type", "address"),
    [
        ("production", "futures", f"https://fapi.asterdex.com{FUTURES}"),
        ("production", "spot", f"https://sapi.asterdex.com{SPOT}"),
        ("testnet", "futures", f"https://fapi.asterdex-testnet.com{FUTURES}"),
        ("testnet", "spot", f"https://sapi.asterdex-testnet.com{SPOT}"),
    ],
)
async def test_each_account_is_read_from_its_own_host(environment: str, account_type: str, address: str) -> None:
    async with venue_call(ASTER, environment=environment, **AGENT_ROW) as call:
        recorded_call = replace(call, http=UrlRecordingHttp(), account=replace(call.account, account_type=account_type))
        with pytest.raises(RequestedUrl) as raised:
            await exchange_service_aster.fetch_balance(recorded_call)
    assert str(raised.value).partition("?")[0] == address


# Which scheme a credential is for.


@pytest.mark.parametrize(
    ("row", "paths_"),
    [
        ({"api_secret": f"0x{PRIVATE_KEY}", "metadata": {"wallet_address": WALLET}}, [SPOT, FUTURES]),
        ({"api_secret": PRIVATE_KEY.upper(), "metadata": {"user": WALLET.upper().replace("X", "x")}}, [SPOT, FUTURES]),
        ({"api_key": AGENT, "api_secret": PRIVATE_KEY, "metadata": {"wallet_address": WALLET}}, [SPOT, FUTURES]),
        ({"api_key": " 0x21cF8Ae13Bb72632562c6Fff438652Ba1a151bb0\n", **AGENT_ROW}, [SPOT, FUTURES]),
        ({"api_secret": PRIVATE_KEY, "metadata": {"wallet_address": WALLET, "scheme": "V3"}}, [SPOT, FUTURES]),
        (KEY_ROW, [OLD_SPOT, OLD_FUTURES]),
        ({**KEY_ROW, "metadata": {"scheme": "v1"}}, [OLD_SPOT, OLD_FUTURES]),
    ],
    ids=["0x", "other cases", "agent's address", "agent's address as written", "named v3", "HMAC", "named v1"],
)
async def test_the_scheme_follows_from_the_stored_fields(row: dict[str, Any], paths_: list[str]) -> None:
    async with venue_with() as venue:
        await balance_of(venue, row)
    assert paths(venue) == paths_


async def test_an_hmac_secret_may_look_like_a_private_key() -> None:
    async with venue_with() as venue:
        venue.add_key("dbefbc809e3e83c283a984c3a1459732", PRIVATE_KEY)
        await balance_of(venue, {"api_key": "dbefbc809e3e83c283a984c3a1459732", "api_secret": PRIVATE_KEY})
    assert paths(venue) == [OLD_SPOT, OLD_FUTURES]


async def test_the_wallets_own_key_is_refused_with_the_advice_to_delete_it() -> None:
    message = await invalid(api_secret=PRIVATE_KEY, metadata={"wallet_address": AGENT})
    assert "api_secret" in message
    assert "wallet itself" in message


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"api_secret": PRIVATE_KEY}, "wallet_address"),
        ({"api_key": AGENT, "api_secret": PRIVATE_KEY}, "wallet_address"),
        ({"api_secret": PRIVATE_KEY, "metadata": {"wallet_address": "0x12"}}, "wallet_address"),
        ({"api_secret": PRIVATE_KEY[:-1], "metadata": {"wallet_address": WALLET}}, "api_secret"),
        ({"api_secret": "0" * 64, "metadata": {"wallet_address": WALLET}}, "api_secret"),
        ({"api_secret": "f" * 64, "metadata": {"wallet_address": WALLET}}, "api_secret"),
        ({"api_secret": API_SECRET, "metadata": {"wallet_address": WALLET}}, "api_secret"),
        ({"api_key": API_KEY, **AGENT_ROW}, "api_key"),
        ({"api_key": WALLET, **AGENT_ROW}, "api_key"),
        ({"api_key": address_of(OTHER_KEY), **AGENT_ROW}, "api_key"),
        ({"api_secret": API_SECRET, "metadata": {"scheme": "v1"}}, "api_key"),
        ({"api_key": AGENT, "api_secret": API_SECRET, "metadata": {"scheme": "v1"}}, "api_key"),
        ({"api_key": "a key", "api_secret": API_SECRET}, "api_key"),
        ({"api_key": "a\r\nkey", "api_secret": API_SECRET}, "api_key"),
        ({"api_key": API_KEY, "api_secret": "sécret"}, "api_secret"),
        ({"api_key": API_KEY, "api_secret": f"0x{PRIVATE_KEY}"}, "api_secret"),
        ({**KEY_ROW, "metadata": {"scheme": "v1", "wallet_address": WALLET}}, "wallet_address"),
        ({**KEY_ROW, "metadata": {"scheme": "v1", "user": WALLET}}, "extra_metadata.user"),
        ({**KEY_ROW, "metadata": {"scheme": "v2"}}, "scheme"),
        ({"api_secret": PRIVATE_KEY, "metadata": {"wallet_address": WALLET, "user": AGENT}}, "different wallets"),
    ],
)
async def test_a_credential_of_no_scheme_is_refused_by_the_fields_name_before_a_request(
    row: dict[str, Any], field: str
) -> None:
    message = await invalid(**row)
    assert field in message
    assert PRIVATE_KEY not in message


# Time and nonces.


async def test_nonces_rise_for_all_that_ask_at_the_same_time() -> None:
    shared = State()
    async with venue_with() as venue:
        await asyncio.gather(*(balance_of(venue, plugin_state=shared) for _ in range(10)))
        await shared.close()
    assert set(paths(venue)) == {FUTURES, SPOT}
    nonces = [int(request.query["nonce"]) for request in venue.requests]
    assert len(set(nonces)) == 20
    now = time.time_ns() // 1000
    assert all(now - 60_000_000 < nonce <= now for nonce in nonces)


@BOTH_SCHEMES
@pytest.mark.parametrize("offset", [-40.0, 40.0], ids=["behind", "ahead"])
async def test_a_clock_that_differs_is_measured_once_and_then_applied(row: dict[str, Any], offset: float) -> None:
    async with venue_with() as venue, venue_call(ASTER, override=venue.url, **row) as call:
        venue.clock_offset = offset
        # Refused only after the clock was measured for the other.
        venue.fail(Fault(delay=0.1, pass_on=True, path=SPOT if row is AGENT_ROW else OLD_SPOT, times=1))
        first = await exchange_service_aster.fetch_balance(call)
        requested = paths(venue)
        await exchange_service_aster.fetch_balance(call)
    assert all(account.error is None for account in first.venue_accounts)
    assert requested.count(TIME) == 1
    assert len(requested) == 5
    assert len(venue.requests) == 7


async def test_the_time_is_requested_without_a_key() -> None:
    async with venue_with() as venue:
        venue.clock_offset = 40.0
        await balance_of(venue, KEY_ROW)
    time_request = next(request for request in venue.requests if request.path == TIME)
    assert dict(time_request.query) == {}
    assert "X-MBX-APIKEY" not in time_request.headers


async def test_a_nonce_that_is_refused_twice_is_a_clock_skew_about_the_nonce() -> None:
    async with venue_with() as venue:
        # Another program, whose clock is ahead, has used up what is remembered.
        ahead = time.time_ns() // 1000 + 60_000_000
        venue.wallets[WALLET].nonces = list(range(ahead, ahead + 100))
        with pytest.raises(ClockSkew, match="Another program"):
            await balance_of(venue)
    assert len(venue.requests) == 5


async def test_a_time_that_is_refused_twice_is_a_clock_skew() -> None:
    error = await refusal_of(replace(saying(400, -1021, "Timestamp is outside"), account=API_KEY), KEY_ROW)
    assert isinstance(error, ClockSkew)
    assert "clock" in error.message


async def test_an_invalid_time_is_malformed() -> None:
    async with venue_with() as venue:
        venue.clock_offset = 40.0
        venue.fail(Fault(body=b'{"serverTime": 0}')).path = TIME
        with pytest.raises(VenueMalformed):
            await balance_of(venue)


# Errors and limits.


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (saying(400, -1000, "No agent found"), CredentialRejected),
        (saying(400, -1000, "Signature check failed"), CredentialRejected),
        (saying(400, -1000, "An unknown error occurred."), VenueUnavailable),
        (saying(400, -1001), VenueUnavailable),
        (saying(401, -1002), CredentialRejected),
        (saying(400, -1003, "Too many requests"), VenueRateLimited),
        (saying(403, -1011), AddressNotAllowed),
        (saying(400, -1006), VenueUnavailable),
        (saying(400, -1007), VenueTimeout),
        (saying(400, -1016), VenueUnavailable),
        (saying(400, -1021), ClockSkew),
        (saying(400, -1022), CredentialRejected),
        (saying(400, -1102), RequestRefused),
        (saying(400, -1121), RequestRefused),
        (saying(401, -2014), CredentialRejected),
        (saying(401, -2015), CredentialRejected),
        (saying(400, "-2015"), CredentialRejected),
        (saying(400, -4225, "Nonce Expired"), ClockSkew),
        (saying(400, -9999, "Invalid nonce"), ClockSkew),
        (saying(400, -9999, "Invalid signature"), CredentialRejected),
        (saying(400, -9999), RequestRefused),
        (saying(403, -9999), PermissionMissing),
        (saying(200, -2015), CredentialRejected),
        (saying(200, "-1003"), VenueRateLimited),
        (saying(200, -9999), VenueMalformed),
        (saying(200, 200), VenueMalformed),
        (saying(503, -2015), VenueUnavailable),
        (Fault(status=401), CredentialRejected),
        (Fault(status=403, body=b"{}"), PermissionMissing),
        (Fault.html(403), VenueRateLimited),
        (Fault(status=403, body=b"<html>configured to block access from your country</html>"), RegionRestricted),
        (Fault(status=403, body=b'<html><div role="region">Blocked</div></html>'), VenueRateLimited),
        (Fault.html(404), VenueUnavailable),
        (Fault.html(401), VenueUnavailable),
        (Fault(status=404, body=b"{}"), RequestRefused),
        (Fault(status=418), VenueRateLimited),
        (Fault(status=429), VenueRateLimited),
        (Fault(status=451), RegionRestricted),
        (Fault.html(500), VenueUnavailable),
        (Fault.html(503), VenueUnavailable),
        (Fault.html(504), VenueTimeout),
        (Fault(status=202, body=b"{}"), VenueMalformed),
        (Fault.html(200), VenueMalformed),
    ],
    ids=lambda value: f"{value.status} {value.body[:60]!r}" if isinstance(value, Fault) else value.__name__,
)
async def test_each_of_asters_errors_becomes_the_right_error(fault: Fault, expected: type[VenueError]) -> None:
    # Not the time, which is asked for where a time or nonce is refused.
    assert type(await refusal_of(replace(fault, account=WALLET))) is expected


async def test_the_refused_key_may_be_the_address_or_a_right() -> None:
    message = (await refusal_of(saying(401, -2015))).message
    assert "right to read" in message
    assert "addresses" in message


async def test_asters_message_is_not_passed_on() -> None:
    error = await refusal_of(saying(400, -1102, "Jane Doe, card 4111"))
    assert "Jane" not in error.message


@pytest.mark.parametrize(
    ("fault", "low", "high"),
    [
        (Fault.rate_limited("7"), 7, 7),
        (Fault.rate_limited(""), 60, 60),
        (Fault(status=418), 120, 120),
        (Fault(status=418, headers={"Retry-After": "200"}), 200, 200),
        (Fault.html(403), 300, 300),
    ],
)
async def test_a_limit_comes_with_its_delay(fault: Fault, low: float, high: float) -> None:
    error = await refusal_of(fault)
    assert error.retry_after is not None
    assert low <= error.retry_after <= high


async def test_the_end_of_a_ban_is_read_from_its_text() -> None:
    end = time.time_ns() // 1_000_000 + 600_000
    error = await refusal_of(saying(429, -1003, f"Way too many requests; IP banned until {end}. Please use WebSocket."))
    assert error.retry_after is not None
    assert 590 < error.retry_after <= 600


async def reports_after(fault: Fault | None, row: dict[str, Any] = AGENT_ROW, *, used_weight: int = 10) -> VenueReports:
    """What a balance's call has reported of Aster's limits."""
    async with venue_with() as venue:
        venue.used_weight = used_weight
        if fault is not None:
            venue.fail(fault)
        async with venue_call(ASTER, override=venue.url, **row) as call:
            with suppress(VenueRateLimited):
                await exchange_service_aster.fetch_balance(call)
            return call.reports


async def test_a_ban_whose_text_names_an_end_far_away_is_tried_again_after_an_hour() -> None:
    reports = await reports_after(saying(429, -1003, "Way too many requests; IP banned until 9999999999999."))
    assert reports.cooldown == 3600


@BOTH_SCHEMES
async def test_a_ban_is_reported_for_all_accounts(row: dict[str, Any]) -> None:
    reports = await reports_after(Fault(status=418, headers={"Retry-After": "130"}), row)
    assert reports.cooldown == 130


async def test_a_plain_limit_on_one_account_does_not_block_the_others() -> None:
    shared = State()
    async with venue_with() as venue:
        venue.fail(Fault.rate_limited("7")).account = WALLET
        with pytest.raises(VenueRateLimited):
            await balance_of(venue, plugin_state=shared)
        assert rows(await balance_of(venue, KEY_ROW, plugin_state=shared))
        await shared.close()


async def test_a_plain_limit_is_reported_as_no_ban() -> None:
    assert (await reports_after(Fault.rate_limited("7"))).cooldown == 0


async def test_the_used_weight_of_a_minute_is_reported_with_the_time_until_it_ends() -> None:
    used, resets_after = (await reports_after(None, used_weight=2400)).usage[60]
    assert used == 2400
    assert 0 < resets_after <= 60


# What a key may do.


async def rights_of(venue: AsterSimulator, row: dict[str, Any] = AGENT_ROW) -> KeyRights:
    async with venue_call(ASTER, override=venue.url, **row) as call:
        return await exchange_service_aster.check_credential(call)


async def test_an_agent_that_only_reads_can_neither_trade_nor_withdraw() -> None:
    expires = datetime(2032, 1, 2, 3, tzinfo=UTC)
    async with venue_with(expired=int(expires.timestamp()) * 1000) as venue:
        rights = await rights_of(venue)
    assert (rights.trade, rights.withdraw, rights.expires) == (False, False, expires)
    assert rights.notes == ()


@pytest.mark.parametrize(
    ("right", "trade", "withdraw"),
    [("can_spot_trade", True, False), ("can_perp_trade", True, False), ("can_withdraw", False, True)],
)
async def test_the_rights_are_those_of_this_agent_and_not_of_the_wallets_others(
    right: str, trade: bool, withdraw: bool
) -> None:
    rights_of_this: dict[str, Any] = {right: True}
    async with venue_with(**rights_of_this) as venue:
        venue.add_agent(WALLET, OTHER_KEY, can_spot_trade=True, can_withdraw=True)
        rights = await rights_of(venue)
    assert (rights.trade, rights.withdraw) == (trade, withdraw)


async def test_the_rights_of_an_hmac_key_are_unknown_and_no_request_is_sent() -> None:
    async with venue_with() as venue:
        rights = await rights_of(venue, KEY_ROW)
    assert (rights.trade, rights.withdraw, rights.expires) == (None, None, None)
    assert "HMAC key" in rights.notes[0]
    assert venue.requests == []


# What the demo shows, and what goes wrong at the venue.


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        ("wrong key", CredentialRejected),
        ("missing right", AddressNotAllowed),
        ("wrong environment", CredentialRejected),
        ("rate limit", VenueRateLimited),
        ("outage", VenueUnavailable),
    ],
)
async def test_a_trouble_has_asters_own_answer_and_does_not_affect_other_accounts(
    trouble: str, expected: type[VenueError]
) -> None:
    async with venue_with() as venue:
        troubled = venue.troubled_credential(trouble)
        assert troubled is not None
        row = {"api_secret": troubled["api_secret"], "metadata": troubled["extra_metadata"]}
        with pytest.raises(VenueError) as refusal:
            await balance_of(venue, row)
        assert type(refusal.value) is expected
        assert rows(await balance_of(venue))


async def test_a_wallet_that_aster_does_not_know_is_refused_like_an_unknown_agent() -> None:
    async with venue_with() as venue:
        other_wallet = {"api_secret": PRIVATE_KEY, "metadata": {"wallet_address": "0x" + "12" * 20}}
        with pytest.raises(CredentialRejected, match="wallet_address"):
            await balance_of(venue, other_wallet)


async def test_the_demo_shows_futures_without_spot_if_the_spot_host_fails() -> None:
    async with venue_with() as venue:
        partly = venue.demo_credential("partly")
        assert partly is not None
        balance = await balance_of(venue, {"api_secret": partly["api_secret"], "metadata": partly["extra_metadata"]})
    futures, spot = balance.venue_accounts
    assert futures.assets
    assert isinstance(spot.error, VenueUnavailable)


async def test_the_demos_empty_account_holds_nothing_and_has_one_figure_for_that() -> None:
    async with venue_with() as venue:
        empty = venue.demo_credential("empty")
        assert empty is not None
        balance = await balance_of(venue, dict(empty))
    assert rows(balance) == {"futures": [], "spot": []}
    assert balance.summary is not None
    assert balance.summary.equity == 0
