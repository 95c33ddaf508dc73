"""docs/web-application.md, carried out: the TypeScript of examples/web talks to a running service by connect-web."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from exchange_service_hyperliquid.simulator import HyperliquidSimulator
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount

from exchange_service.app import Service
from exchange_service.testing import Fault
from tests.harness import USER, Running, eventually, serving
from tests.identities import SECRET
from tests.web import address_of
from tests.web_application.application import WebApplication, web_application

# Pushes are off: each change is then seen by a poll, in half a second.
QUICK: dict[str, Any] = {"heartbeat_interval": 0.2, "poll_interval": 0.4, "poll_interval_still": 0.4, "push": False}
TOKEN = "the-users-own-token"
# Connect's number of the code.
UNAVAILABLE = 14


@dataclass(slots=True)
class Scene:
    """A service with a door for browsers, two simulated venues, and the application of one user."""

    running: Running
    oanda: OandaSimulator
    hyperliquid: HyperliquidSimulator
    account: SimulatedAccount
    page: WebApplication

    async def store_both(self) -> None:
        """Store a working credential at both venues, as `credentials add` does."""
        await self.running.store("oanda", api_key=TOKEN)
        row = self.hyperliquid.demo_credential("moving")
        assert row is not None
        await self.running.store("hyperliquid", metadata=row["extra_metadata"], api_key="")


@pytest.fixture(params=["json", "binary"])
async def scene(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Scene]:
    async with OandaSimulator() as oanda, HyperliquidSimulator() as hyperliquid:
        account = SimulatedAccount("101-004-7654321-001")
        oanda.add_token(TOKEN, account)
        urls = {"oanda": oanda.url, "hyperliquid": hyperliquid.url}
        async with serving_browsers(tmp_path, venue_urls=urls) as running:
            url = f"http://{address_of(running)}"
            async with web_application(url, SECRET, USER, binary=request.param == "binary") as page:
                yield Scene(running, oanda, hyperliquid, account, page)


@asynccontextmanager
async def serving_browsers(folder: Path, **changes: Any) -> AsyncIterator[Running]:
    options = {"http_address": "127.0.0.1:0", "jwt_secret": SECRET, "manage_accounts": True} | QUICK | changes
    async with serving(folder, **options) as running:
        yield running


def open_streams(service: Service) -> int:
    """How many streams the service has."""
    _, streams = service.streams.counts()
    return streams


def total(account: dict[str, Any]) -> str | None:
    """The summary's total, as the page has it: a text."""
    figure = account.get("balance", {}).get("summary", {}).get("total")
    assert figure is None or isinstance(figure, str)
    return figure


async def test_the_list_comes_once_and_again_only_when_it_has_changed(scene: Scene) -> None:
    first, second = [await scene.page.act("list") for _ in range(2)]
    listed = {exchange["id"]: exchange for exchange in first["exchanges"]}
    assert {"oanda", "hyperliquid", "binance"} <= listed.keys()
    assert listed["oanda"]["colorClass"] == "bg-green-500/20 text-green-500"
    assert [field["name"] for field in listed["oanda"]["credentialFields"]] == ["api_key", "account_id"]
    assert (first["changed"], second["changed"]) == (True, False)
    assert second["exchanges"] == first["exchanges"]


FILTERS: tuple[tuple[dict[str, str], set[str]], ...] = (
    ({"assetClass": "forex"}, {"oanda"}),
    ({"search": "zksync"}, {"lighter"}),
    ({"search": "tradier", "assetClass": "options"}, {"tradier_options"}),
    ({"search": "no such exchange"}, set()),
)


async def test_the_list_is_filtered_by_the_service(scene: Scene) -> None:
    for wanted, ids in FILTERS:
        listed = await scene.page.act("list", filter=wanted)
        assert {exchange["id"] for exchange in listed["exchanges"]} == ids


async def test_a_balance_keeps_each_digit_and_its_version(scene: Scene) -> None:
    await scene.store_both()
    reply = (await scene.page.act("balance", exchangeId="oanda"))["reply"]
    assert reply["balance"]["summary"]["total"] == "25310.4426"
    again = await scene.page.act("balance", exchangeId="oanda", known=reply["balance"]["version"])
    assert again["reply"]["balance"]["version"] == reply["balance"]["version"]
    # More than 2^53 - 1 would hold is no rounded number.
    assert int(reply["balance"]["version"]) > 2**50


async def test_a_failed_call_says_its_reason_what_to_do_and_when(scene: Scene) -> None:
    missing = (await scene.page.act("balance", exchangeId="oanda"))["problem"]
    assert missing["reason"] == "CREDENTIAL_MISSING"
    assert "credential" in missing["message"]
    assert not missing["message"].startswith("CREDENTIAL_MISSING")
    forbidden = (await scene.page.act("balance", exchangeId="oanda", user="bob"))["problem"]
    assert forbidden["reason"] == "USER_FORBIDDEN"
    unnamed = (await scene.page.act("balance", exchangeId=""))["problem"]
    assert (unnamed["reason"], list(unnamed["fields"])) == ("FIELD_INVALID", ["exchange_id"])
    await scene.running.store("oanda", api_key=TOKEN)
    scene.oanda.fail(Fault.rate_limited("7"))
    limited = (await scene.page.act("balance", exchangeId="oanda", now=True))["problem"]
    assert limited["reason"] == "VENUE_RATE_LIMITED"
    assert 0 < limited["retryAfterMilliseconds"] <= 7000


async def test_a_stream_shows_the_first_balances_each_change_and_that_it_is_alive(scene: Scene) -> None:
    await scene.store_both()
    await scene.page.act("follow")
    first = await scene.page.account("oanda", total)
    assert total(first) == "25310.4426"
    scene.account.balance += Decimal("0.0001")
    changed = await scene.page.account("oanda", lambda account: total(account) == "25310.4427")
    assert int(changed["balance"]["version"]) > int(first["balance"]["version"])
    # Nothing moves now: heartbeats alone say that the figure was read again.
    later = changed["confirmedAt"] + 1000
    confirmed = await scene.page.account("oanda", lambda account: account["confirmedAt"] >= later)
    assert confirmed["balance"]["version"] == changed["balance"]["version"]


async def test_one_accounts_error_stands_beside_its_last_balance_and_the_others_go_on(scene: Scene) -> None:
    await scene.store_both()
    await scene.page.act("follow")
    await scene.page.account("oanda", total)
    scene.oanda.tokens.clear()
    broken = await scene.page.account("oanda", lambda account: account.get("fault"))
    assert broken["fault"]["reason"] == "ERROR_REASON_CREDENTIAL_REJECTED"
    assert total(broken) == "25310.4426"
    version = (await scene.page.account("hyperliquid", lambda _: True))["balance"]["version"]
    scene.hyperliquid.move()
    moved = await scene.page.account("hyperliquid", lambda account: account["balance"]["version"] != version)
    assert "fault" not in moved


async def test_leaving_the_page_ends_the_services_stream_within_a_second(scene: Scene) -> None:
    await scene.store_both()
    await scene.page.act("follow")
    await scene.page.account("oanda", total)
    assert open_streams(scene.running.service) == 1
    before = time.monotonic()
    await scene.page.act("leave")
    await scene.page.event("left")

    async def gone() -> bool:
        return open_streams(scene.running.service) == 0

    await eventually(gone, "the end of the stream")
    assert time.monotonic() - before < 1.0


async def test_a_token_that_is_refused_ends_the_following_with_its_reason(scene: Scene) -> None:
    url = f"http://{address_of(scene.running)}"
    async with web_application(url, "another-secret-of-at-least-32-bytes-in-length", USER) as page:
        await page.act("follow")
        given_up = await page.event("gave up")
    assert given_up["problem"]["reason"] == "CALLER_UNKNOWN"


async def test_a_stream_that_says_nothing_for_too_long_is_opened_again_with_what_the_page_has(tmp_path: Path) -> None:
    async with OandaSimulator() as oanda:
        oanda.add_token(TOKEN, SimulatedAccount("101-004-7654321-001"))
        urls = {"oanda": oanda.url}
        async with serving_browsers(tmp_path, venue_urls=urls, heartbeat_interval=3600) as running:
            await running.store("oanda", api_key=TOKEN)
            async with web_application(f"http://{address_of(running)}", SECRET, USER) as page:
                await page.act("follow", silence=500)
                shown = await page.account("oanda", total)
                silent = await page.event("changed", lambda event: event.get("interruption"))
                assert silent["interruption"]["code"] == UNAVAILABLE
                assert "nothing for too long" in silent["interruption"]["message"]
                reopened = await page.event("opened")
                (known,) = reopened["request"]["known"]
                assert known == {
                    "exchangeId": "oanda",
                    "environment": "production",
                    "knownVersion": shown["balance"]["version"],
                }


async def test_after_a_restart_of_the_service_the_page_goes_on_with_what_it_has(tmp_path: Path) -> None:
    async with OandaSimulator() as oanda:
        account = SimulatedAccount("101-004-7654321-001")
        oanda.add_token(TOKEN, account)
        options: dict[str, Any] = {"venue_urls": {"oanda": oanda.url}}
        async with serving_browsers(tmp_path, **options) as running:
            address = address_of(running)
            await running.store("oanda", api_key=TOKEN)
            async with web_application(f"http://{address}", SECRET, USER) as page:
                await page.act("follow")
                first = await page.account("oanda", total)
                await running.service.stop()
                interrupted = await page.event("changed", lambda event: event.get("interruption"))
                (kept,) = interrupted["accounts"]
                assert total(kept) == "25310.4426"
                account.balance += 1
                async with serving_browsers(tmp_path, **options | {"http_address": address}):
                    reopened = await page.event("opened", lambda event: event["request"].get("known"))
                    (known,) = reopened["request"]["known"]
                    assert known["knownVersion"] == first["balance"]["version"]
                    back = await page.account("oanda", lambda account: total(account) == "25311.4426")
                    assert int(back["balance"]["version"]) > int(first["balance"]["version"])


# What the browser sends of itself: a page needs nobody's leave for these.
_OF_THE_BROWSER = re.compile(r"host|connection|accept.*|user-agent|content-length|origin|sec-.*|cache-control|pragma")


@asynccontextmanager
async def recorder() -> AsyncIterator[tuple[str, set[str]]]:
    """A server that answers nothing useful: its URL, and the names of the headers that it was sent."""
    names: set[str] = set()

    async def record(request: web.Request) -> web.Response:
        names.update(name.lower() for name in request.headers)
        return web.Response(status=503)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", record)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", names
    finally:
        await runner.cleanup()


async def test_a_page_of_an_allowed_origin_may_send_every_header_that_the_libraries_send(tmp_path: Path) -> None:
    async with recorder() as (url, names), web_application(url, SECRET, USER) as page:
        assert (await page.act("balance", exchangeId="oanda"))["problem"]["reason"] == ""
        await page.act("follow")
        await page.event("changed", lambda event: event["interruption"]["code"] == UNAVAILABLE)
    needed = {name for name in names if not _OF_THE_BROWSER.fullmatch(name)}
    assert "authorization" in needed
    origin = "https://app.example.com"
    async with serving_browsers(tmp_path, http_origins=[origin]) as running, ClientSession() as session:
        target = f"http://{address_of(running)}/exchange_service.v1.ExchangeService/GetBalance"
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        async with session.options(target, headers=asked) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == origin
            allowed = answer.headers["Access-Control-Allow-Headers"].lower().replace(" ", "").split(",")
    assert needed <= set(allowed)


async def test_an_account_is_connected_breaks_and_is_repaired_from_the_form(scene: Scene) -> None:
    page = scene.page
    await page.act("follow")
    assert "accounts" not in (await page.act("accounts"))["reply"]

    refused = await page.act("connect", exchangeId="oanda", values={"api_key": "a-token-that-nobody-made"})
    assert refused["problem"]["reason"] == "CREDENTIAL_REJECTED"
    # What was typed is still there to be corrected, and nothing was stored.
    assert refused["inputs"][0]["value"] == "a-token-that-nobody-made"
    assert "accounts" not in (await page.act("accounts"))["reply"]

    before = time.monotonic()
    connected = await page.act("connect", exchangeId="oanda", values={"api_key": TOKEN})
    assert connected["reply"]["account"]["exchangeId"] == "oanda"
    assert connected["reply"]["check"]["balance"]["venueAccounts"][0]["id"] == "101-004-7654321-001"
    assert [entry["value"] for entry in connected["inputs"]] == ["", ""]
    await page.account("oanda", total)
    assert time.monotonic() - before < 3.0

    scene.oanda.tokens.clear()
    await page.account("oanda", lambda account: account.get("fault"))
    assert (await page.act("check", exchangeId="oanda"))["problem"]["reason"] == "CREDENTIAL_REJECTED"

    scene.oanda.add_token("a-new-token", scene.account)
    repaired = await page.act("connect", exchangeId="oanda", values={"api_key": "a-new-token"})
    assert repaired["reply"]["replaced"] is True
    await page.account("oanda", lambda account: total(account) and not account.get("fault"))

    await page.act("remove", exchangeId="oanda")
    await page.event("changed", lambda event: event["accounts"] == [])
    assert "accounts" not in (await page.act("accounts"))["reply"]


async def test_a_field_that_cannot_be_right_is_named_beside_its_input(scene: Scene) -> None:
    answer = await scene.page.act("connect", exchangeId="oanda", values={"account_id": "101-004-7654321-001"})
    assert answer["problem"]["reason"] == "FIELD_INVALID"
    assert [entry["name"] for entry in answer["inputs"] if entry["fault"]] == ["api_key"]


AMOUNTS: tuple[tuple[list[str | None], list[str], str], ...] = (
    (["0.1", "0.2"], ["0,1", "0,2"], "0.3"),
    (
        ["12345678901234567.890123456789012345"],
        ["12.345.678.901.234.567,890123456789012345"],
        "12345678901234567.890123456789012345",
    ),
    (["-3.50", "1"], ["-3,50", "1"], "-2.50"),
    (["-0.05", "0.01"], ["-0,05", "0,01"], "-0.04"),
    ([None, "1.00"], ["–", "1,00"], "1.00"),
)


async def test_amounts_are_shown_and_added_with_every_digit() -> None:
    async with web_application("http://127.0.0.1:9", SECRET, USER) as page:
        for amounts, shown, added in AMOUNTS:
            answer = await page.act("amounts", amounts=amounts, locale="de")
            assert (answer["shown"], answer["sum"]) == (shown, added)
