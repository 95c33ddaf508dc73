"""The simulator judges a request as tastytrade does, and shows the demo's situations and troubles."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
from exchange_service_tastytrade import TASTYTRADE, fetch_balance
from exchange_service_tastytrade.simulator import SimulatedAccount, TastytradeSimulator

from exchange_service.plugin_api import (
    Balance,
    CredentialRejected,
    PermissionMissing,
    VenueRateLimited,
    VenueUnavailable,
)
from exchange_service.testing import venue_call
from exchange_service.testing.venue import SITUATIONS

REFRESH, SECRET, NUMBER = "a-refresh-token-for-tests", "a-client-secret-for-tests", "5WX00000"
GRANT = {"grant_type": "refresh_token", "client_secret": SECRET, "refresh_token": REFRESH}
NAMED = {"User-Agent": "tests/1"}


async def ask(
    venue: TastytradeSimulator, path: str, *, headers: Mapping[str, str] = NAMED, grant: Any = None
) -> tuple[int, Any]:
    """The status and the body of an answer: to a GET, or to a POST of `grant`."""
    method = "GET" if grant is None else "POST"
    async with (
        aiohttp.ClientSession(skip_auto_headers=["User-Agent"]) as session,
        session.request(method, venue.url + path, headers=headers, json=grant) as answer,
    ):
        return answer.status, await (answer.json() if answer.content_type == "application/json" else answer.text())


async def token_of(venue: TastytradeSimulator) -> dict[str, str]:
    """The headers of a read with a fresh token."""
    _, answer = await ask(venue, "/oauth/token", grant=GRANT)
    return {**NAMED, "Authorization": f"Bearer {answer['access_token']}"}


async def read(venue: TastytradeSimulator, row: Mapping[str, Any] | None) -> Balance:
    assert row is not None
    secrets = {name: row[name] for name in ("api_secret", "passphrase")}
    metadata = row.get("extra_metadata")
    async with venue_call(TASTYTRADE, override=venue.url, metadata=metadata, **secrets) as call:
        return await fetch_balance(call)


def simulator(**settings: Any) -> TastytradeSimulator:
    venue = TastytradeSimulator()
    venue.add_grant(REFRESH, SECRET, SimulatedAccount(NUMBER), **settings)
    return venue


async def test_a_good_grant_gives_a_bearer_token_for_a_quarter_of_an_hour() -> None:
    async with simulator() as venue:
        status, answer = await ask(venue, "/oauth/token", grant=GRANT)
    assert status == 200
    assert set(answer) == {"access_token", "token_type", "expires_in"}
    assert (answer["token_type"], answer["expires_in"]) == ("Bearer", 900)


@pytest.mark.parametrize("wrong", ["client_secret", "refresh_token"])
async def test_a_wrong_grant_is_refused_with_a_flat_error(wrong: str) -> None:
    async with simulator() as venue:
        answer = await ask(venue, "/oauth/token", grant={**GRANT, wrong: "another"})
    assert answer == (400, {"error_code": "invalid_grant", "error_description": "Invalid JWT"})


@pytest.mark.parametrize("grant", [[], {}, {**GRANT, "client_id": "mine"}, {**GRANT, "grant_type": "password"}])
async def test_a_grant_of_another_shape_is_refused_in_the_envelope(grant: Any) -> None:
    async with simulator() as venue:
        status, answer = await ask(venue, "/oauth/token", grant=grant)
    assert (status, answer["error"]["code"]) == (400, "validation_error")


@pytest.mark.parametrize("path", ["/customers/me/accounts", f"/accounts/{NUMBER}/balances"])
async def test_a_read_needs_a_valid_token(path: str) -> None:
    async with simulator() as venue:
        good = await token_of(venue)
        assert (await ask(venue, path, headers=good))[0] == 200
        venue.end_tokens()
        for headers in (good, NAMED, {**NAMED, "Authorization": "Bearer made-up"}):
            status, answer = await ask(venue, path, headers=headers)
            assert (status, answer["error"]["code"]) == (401, "unauthorized")
        venue.token_life = 0
        assert (await ask(venue, path, headers=await token_of(venue)))[0] == 401


@pytest.mark.parametrize("path", ["/customers/me/accounts", f"/accounts/{NUMBER}/balances", "/oauth/token"])
async def test_a_request_without_a_user_agent_gets_the_gateways_page(path: str) -> None:
    async with simulator() as venue:
        headers = {name: value for name, value in (await token_of(venue)).items() if name != "User-Agent"}
        status, page = await ask(venue, path, headers=headers, grant=GRANT if path == "/oauth/token" else None)
    assert status == 401
    assert "nginx" in page


async def test_another_users_account_is_not_permitted() -> None:
    async with simulator() as venue:
        status, answer = await ask(venue, "/accounts/5WX99999/balances", headers=await token_of(venue))
    assert (status, answer["error"]["code"]) == (403, "not_permitted")


async def test_a_request_belongs_to_its_refresh_token() -> None:
    async with simulator() as venue:
        headers = await token_of(venue)
        await ask(venue, "/customers/me/accounts", headers=headers)
        await ask(venue, "/customers/me/accounts")
        assert [request.account for request in venue.requests] == [REFRESH, REFRESH, ""]


async def test_the_moving_account_is_the_worked_example_and_moves_consistently() -> None:
    async with TastytradeSimulator() as venue:
        assert isinstance(venue, TastytradeSimulator)
        row = venue.demo_credential("moving")
        before = (await read(venue, row)).summary
        venue.move()
        after = (await read(venue, row)).summary
    assert before is not None
    assert after is not None
    figures = (before.equity, before.cash, before.available, before.margin_used, before.unrealised_pnl)
    assert [str(figure) for figure in figures] == ["45230.412", "12875.412", "19735.412", "24380.0", "None"]
    assert after.equity != before.equity
    assert after.equity is not None
    assert after.available is not None
    assert after.equity - after.available == Decimal("45230.412") - Decimal("19735.412")


async def test_each_situation_is_what_its_name_says() -> None:
    async with TastytradeSimulator() as venue:
        assert isinstance(venue, TastytradeSimulator)
        rows = {situation: venue.demo_credential(situation) for situation in SITUATIONS}
        assert all(row is not None for row in rows.values())
        assert all(asset.is_zero() for _, asset in (await read(venue, rows["empty"])).rows())
        with pytest.raises(CredentialRejected):
            await read(venue, rows["refused"])
        with pytest.raises(VenueRateLimited) as limited:
            await read(venue, rows["limited"])
        assert limited.value.retry_after == 30
        partly = await read(venue, rows["partly"])
        assert [type(account.error) for account in partly.venue_accounts if account.error] == [PermissionMissing]
        assert [account.type for account in partly.venue_accounts] == ["margin", "cash", "margin"]
        # The trouble of one account does not affect another.
        assert (await read(venue, rows["moving"])).summary is not None


async def test_the_stale_account_answers_once() -> None:
    async with TastytradeSimulator() as venue:
        assert isinstance(venue, TastytradeSimulator)
        row = venue.demo_credential("stale")
        assert (await read(venue, row)).summary is not None
        with pytest.raises(VenueUnavailable):
            await read(venue, row)


async def say(venue: TastytradeSimulator, *messages: Mapping[str, Any]) -> list[Any]:
    """What the account streamer answers to each of these messages."""
    async with aiohttp.ClientSession(headers=NAMED) as session, session.ws_connect(venue.url) as socket:
        answers = []
        for number, message in enumerate(messages):
            await socket.send_json({**message, "request-id": number})
            answers.append(await socket.receive_json(timeout=5))
        return answers


async def test_the_streamer_connects_the_accounts_of_a_login_and_answers_heartbeats() -> None:
    async with simulator() as venue:
        token = (await token_of(venue))["Authorization"]
        connect = {"action": "connect", "value": [NUMBER], "auth-token": token}
        connected, beat = await say(venue, connect, {"action": "heartbeat", "auth-token": token})
    assert (connected["status"], connected["value"], connected["request-id"]) == ("ok", [NUMBER], 0)
    assert (beat["status"], beat["action"], beat["request-id"]) == ("ok", "heartbeat", 1)


@pytest.mark.parametrize(
    ("message", "refusal"),
    [
        ({"action": "heartbeat"}, "connect-not-completed"),
        ({"action": "quote-alerts-subscribe"}, "connect-not-completed"),
        ({"action": "connect", "value": [NUMBER], "auth-token": "Bearer of-nothing"}, "failed"),
        ({"action": "connect", "value": [NUMBER], "auth-token": "without-its-kind"}, "failed"),
        ({"action": "connect", "value": ["5WX99999"]}, "failed"),
        ({"action": "connect", "value": []}, "failed"),
    ],
    ids=str,
)
async def test_the_streamer_refuses_what_comes_too_early_a_wrong_token_and_another_logins_account(
    message: Mapping[str, Any], refusal: str
) -> None:
    async with simulator() as venue:
        [answer] = await say(venue, {"auth-token": (await token_of(venue))["Authorization"], **message})
    assert (answer["status"], answer["action"], answer["message"]) == ("error", message["action"], refusal)


async def test_the_streamer_refuses_a_heartbeat_with_a_token_that_has_ended() -> None:
    async with simulator() as venue:
        token = (await token_of(venue))["Authorization"]
        async with aiohttp.ClientSession(headers=NAMED) as session, session.ws_connect(venue.url) as socket:
            await socket.send_json({"action": "connect", "value": NUMBER, "auth-token": token})
            assert (await socket.receive_json(timeout=5))["status"] == "ok"
            venue.end_tokens()
            await socket.send_json({"action": "heartbeat", "auth-token": token})
            assert (await socket.receive_json(timeout=5))["status"] == "error"


async def test_the_streamer_ends_a_connection_without_heartbeats() -> None:
    async with simulator() as venue:
        venue.heartbeat_limit = 0.05
        async with aiohttp.ClientSession(headers=NAMED) as session, session.ws_connect(venue.url) as socket:
            assert (await socket.receive(timeout=5)).type is aiohttp.WSMsgType.CLOSE


async def test_moving_accounts_are_pushed_after_their_position() -> None:
    async with TastytradeSimulator() as venue:
        row = venue.demo_credential("moving")
        assert row is not None
        grant = {"grant_type": "refresh_token", "client_secret": row["api_secret"], "refresh_token": row["passphrase"]}
        _, answer = await ask(venue, "/oauth/token", grant=grant)
        async with aiohttp.ClientSession(headers=NAMED) as session, session.ws_connect(venue.url) as socket:
            token = f"Bearer {answer['access_token']}"
            await socket.send_json({"action": "connect", "value": [NUMBER], "auth-token": token})
            await socket.receive_json(timeout=5)
            venue.move()
            pushed = [await socket.receive_json(timeout=5) for _ in range(2)]
    assert [message["type"] for message in pushed] == ["CurrentPosition", "AccountBalance"]
    assert pushed[0]["timestamp"] < pushed[1]["timestamp"]
    assert pushed[1]["data"]["account-number"] == NUMBER
