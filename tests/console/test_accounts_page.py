"""The accounts page follows a user's balances: one stream for each open page, a fragment for each change."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from exchange_service.console import accounts_page, events, pages
from exchange_service.console.api import Api
from exchange_service.console.exchange_names import ExchangeNames
from exchange_service.console.figures import AccountKey
from exchange_service.plugin_api import CredentialRejected, RetiredExchange, VenueCall
from exchange_service.v1 import error_reason_pb2
from exchange_service.v1.balance_pb2 import AccountFault, AssetBalance, Balance, VenueAccount
from exchange_service.v1.exchange_service_pb2 import (
    AccountErrorEvent,
    AccountState,
    BalanceEvent,
    HeartbeatEvent,
    StreamBalancesResponse,
)
from tests.authenticated_service import USERS, authenticated_service
from tests.console.browsing import PATIENCE, Browser, Events
from tests.console.consoles import FAST, Elements, browsing, console_of, signed_in
from tests.harness import Running, ScriptedPlugin, holding, listing, raising, returning, until
from tests.identities import web_token

MARK = AccountKey("fakex", "production").mark
STATE, FIGURES = f"state-{MARK}", f"figures-{MARK}"


@pytest.fixture
def plugin() -> ScriptedPlugin:
    return ScriptedPlugin(listing("fakex"), listing("other_venue"))


@pytest.fixture
async def opened(tmp_path: Path, plugin: ScriptedPlugin, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    monkeypatch.setattr(events, "_MIN_INTERVAL", 0)
    async with browsing(tmp_path, plugin) as opened:
        yield opened


@pytest.fixture
def running(opened: tuple[Running, Browser]) -> Running:
    return opened[0]


@pytest.fixture
def browser(opened: tuple[Running, Browser]) -> Browser:
    return opened[1]


async def shown(page: Events, name: str, text: str) -> str:
    """The words of the next event of this name that hold the text."""
    async with asyncio.timeout(PATIENCE):
        while True:
            _, data = await page.next_of(name)
            if text in (words := Elements(data).words):
                return words


class TestBalances:
    async def test_a_page_shows_each_account_and_every_change(
        self, running: Running, browser: Browser, plugin: ScriptedPlugin
    ) -> None:
        await running.store()
        async with browser.events("/accounts/events") as page:
            words = await shown(page, FIGURES, "BTC")
            assert "BTC 1.50" in words
            plugin.answer = returning(holding(("BTC", "1234567.000000000000000001")))
            data = await page.until(FIGURES, "changed")
            assert "1234567.000000000000000001" in Elements(data).text
        assert page.head is not None
        assert dict(page.head["headers"])[b"content-type"].startswith(b"text/event-stream")

    async def test_an_account_says_how_old_it_is_and_how_it_is_delivered(
        self, running: Running, browser: Browser
    ) -> None:
        await running.store()
        async with browser.events("/accounts/events") as page:
            words = await shown(page, STATE, "polled")
        assert words.startswith("Current")
        assert "0 s old" in words
        assert words.endswith("polled: the venue pushes no balances")

    async def test_the_headline_follows_at_most_once_a_second(
        self, running: Running, browser: Browser, plugin: ScriptedPlugin
    ) -> None:
        await running.store()
        async with browser.events("/accounts/events") as page:
            seen: list[float] = []
            while len(seen) < 4:
                plugin.answer = returning(holding(("BTC", str(time.monotonic()))))
                name, _ = await page.next()
                if name == "headline":
                    seen.append(time.monotonic())
        assert all(later - earlier > 0.9 for earlier, later in pairwise(seen))

    async def test_an_account_that_is_stored_or_removed_comes_and_goes(
        self, running: Running, browser: Browser
    ) -> None:
        async with browser.events("/accounts/events") as page:
            await shown(page, "roster", "No account yet")
            await running.store()
            await shown(page, "roster", "Fakex")
            await running.remove()
            await shown(page, "roster", "No account yet")


class TestTrouble:
    async def test_a_refused_key_is_told_with_its_next_step_and_the_others_go_on(
        self, running: Running, browser: Browser, plugin: ScriptedPlugin
    ) -> None:
        async def answer(call: VenueCall) -> Any:
            if call.exchange.id == "fakex":
                raise CredentialRejected("Fakex refuses the key.", advice="Make a new one.")
            return holding(("ETH", "2"))

        plugin.answer = answer
        await running.store()
        await running.store("other_venue")
        other = AccountKey("other_venue", "production").mark
        async with browser.events("/accounts/events") as page:
            words = [await shown(page, name, text) for name, text in ((FIGURES, "refuses"),)]
            assert "Fakex refuses the key. Make a new one." in words[0]
            assert "CREDENTIAL_REJECTED" in words[0]
            plugin.answer = returning(holding(("ETH", "3")))
            await shown(page, f"figures-{other}", "ETH 3")

    async def test_an_account_of_a_retired_exchange_says_what_happened_and_can_be_removed(
        self, tmp_path: Path, plugin: ScriptedPlugin
    ) -> None:
        gone = RetiredExchange("oldex", "OldEx", "OldEx closed.", advice="Remove the credential.")
        plugin.manifest = dataclasses.replace(plugin.manifest, retired=(gone,))
        mark = AccountKey("oldex", "production").mark
        async with browsing(tmp_path, plugin, manage_accounts=True) as (running, browser):
            await running.store("oldex")
            async with browser.events("/accounts/events") as page:
                await shown(page, f"state-{mark}", "Not served")
                words = await shown(page, f"figures-{mark}", "OldEx closed.")
                assert "OldEx is not served any more. OldEx closed. Remove the credential." in words
                assert "EXCHANGE_RETIRED" in words
            assert "Remove oldex" in Elements((await browser.get("/accounts")).text).words

    async def test_figures_of_an_account_that_fails_are_marked_and_leave_the_headline(
        self, running: Running, browser: Browser, plugin: ScriptedPlugin
    ) -> None:
        plugin.answer = returning(holding(("BTC", "1.5")))
        await running.store()
        async with browser.events("/accounts/events") as page:
            await shown(page, FIGURES, "BTC 1.5")
            plugin.answer = raising(CredentialRejected("Fakex refuses the key."))
            words = await shown(page, FIGURES, "not confirmed since")
            assert "Fakex refuses the key." in words
            assert "BTC 1.5" in words
            await shown(page, "headline", "it cannot be read now")

    async def test_the_last_good_figures_say_that_they_are_and_why(
        self, running: Running, browser: Browser, plugin: ScriptedPlugin
    ) -> None:
        await running.store()
        async with browser.events("/accounts/events") as page:
            await shown(page, FIGURES, "BTC")
            # The first refusal of a key that worked a moment ago is doubted.
            plugin.answer = raising(CredentialRejected("Fakex refuses the key."))
            assert "the last good answer" in await shown(page, STATE, "Not current")
            words = await shown(page, FIGURES, "These figures are the last good ones.")
            assert "Fakex refuses the key." in words
            assert "BTC 1.50" in words

    async def test_a_user_outside_the_callers_scope_is_told_so_and_the_stream_ends(self, tmp_path: Path) -> None:
        async with authenticated_service(tmp_path, **FAST) as running:
            browser = Browser(console_of(running, authenticated=True))
            await browser.post("/login", {"token": web_token("alice"), "user": "alice"})
            async with browser.events(f"/accounts/events?user={USERS[1]}") as page:
                assert "outside the caller's scope" in await shown(page, "notice", "USER_FORBIDDEN")
                assert (await page.next_of("over"))[0] == "over"
                with pytest.raises(EOFError):
                    await page.next()

    async def test_a_stream_that_ends_by_its_age_goes_on_from_what_the_page_has(
        self, tmp_path: Path, plugin: ScriptedPlugin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(events, "_MIN_INTERVAL", 0)
        async with browsing(tmp_path, plugin, stream_lifetime=1.0) as (running, browser):
            await running.store()
            async with browser.events("/accounts/events") as page:
                await shown(page, FIGURES, "BTC 1.50")
                await shown(page, "notice", "STREAM_LIFETIME_REACHED")
                plugin.answer = returning(holding(("BTC", "2")))
                await shown(page, FIGURES, "BTC 2")


def test_trouble_and_its_end_are_spoken_once() -> None:
    place = {"exchange_id": "fakex", "environment": "production"}
    fault = AccountFault(reason=error_reason_pb2.ERROR_REASON_VENUE_TIMEOUT, message="Fakex is slow.")
    failed = StreamBalancesResponse(account_error=AccountErrorEvent(error=fault, **place))
    read = StreamBalancesResponse(balance=BalanceEvent(balance=Balance(**place)))
    live = events.LiveAccounts({})
    spoken = [live.apply(event).spoken for event in (read, failed, failed, read, read)]
    assert spoken == [(), ("fakex: Fakex is slow.",), (), ("fakex can be read again.",), ()]


class TestLife:
    async def test_closing_the_page_ends_its_stream_within_a_second(self, running: Running, browser: Browser) -> None:
        await running.store()
        async with browser.events("/accounts/events") as page:
            await shown(page, FIGURES, "BTC")
            assert running.service.streams.counts()[1] == 1
        closed = time.monotonic()
        await until(lambda: running.service.server.handler_wrapper.running() == 0, "the end of the stream")
        assert time.monotonic() - closed < 1
        assert running.service.streams.counts()[1] == 0

    @pytest.mark.threat("T86", attack=True)
    async def test_signing_out_empties_and_ends_other_pages_though_nothing_happens_there(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        quiet = {"poll_interval": 60.0, "poll_interval_still": 60.0, "heartbeat_interval": 60.0}
        async with browsing(tmp_path, ScriptedPlugin(), **quiet) as (running, browser):
            await running.store()
            copied = dict(browser.cookies)
            with monkeypatch.context() as off:
                off.setattr(events, "_SESSION_INTERVAL", 60.0)
                async with browser.events("/accounts/events") as page:
                    await page.until("figures-", "BTC")
                    await page.next_of("headline")
                    await browser.post("/logout", {})
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(page.next_of("over"), 1.5)
            browser = await signed_in(browser.app)  # type: ignore[arg-type]
            async with browser.events("/accounts/events") as page:
                await page.until("figures-", "BTC")
                await page.next_of("headline")
                await browser.post("/logout", {})
                await page.until("roster", "Signed out")
                assert await page.next_of("headline") == ("headline", "")
                assert (await page.next_of("over"))[0] == "over"
            async with Browser(browser.app, cookies=copied).events("/accounts/events") as page:
                await page.until("roster", "Signed out")

    async def test_the_end_of_the_service_leaves_the_page_to_come_back(
        self, tmp_path: Path, plugin: ScriptedPlugin
    ) -> None:
        async with browsing(tmp_path, plugin) as (running, browser):
            await running.store()
            async with browser.events("/accounts/events") as page:
                assert (await page.next())[0] == ""
                assert "BTC" in await shown(page, FIGURES, "BTC")
                stopping = asyncio.create_task(running.service.stop())
                # It just ends: a browser then connects again by itself, and "over" would tell it not to.
                with pytest.raises(EOFError):
                    await page.next_of("over")
                await stopping

    async def test_a_page_whose_session_has_ended_is_told_to_stop(self, browser: Browser) -> None:
        async with Browser(browser.app).events("/accounts/events") as page:
            assert "Signed out" in (await page.next_of("roster"))[1]
            assert (await page.next_of("over"))[0] == "over"


def balance_of(exchange_id: str, total: str) -> StreamBalancesResponse:
    row = AssetBalance(asset="BTC", total=total)
    balance = Balance(exchange_id=exchange_id, environment="production", venue_accounts=[VenueAccount(assets=[row])])
    return StreamBalancesResponse(balance=BalanceEvent(balance=balance))


async def test_a_change_among_200_accounts_sends_that_accounts_fragments_alone() -> None:
    live = events.LiveAccounts({})
    page = events.PageEvents(live, {"user": "alice", "manages": False, "link": lambda path, **parameters: path})
    ids = [f"venue{number:03}" for number in range(200)]
    heartbeat = HeartbeatEvent(accounts=[AccountState(exchange_id=name, environment="production") for name in ids])
    first = StreamBalancesResponse(heartbeat=heartbeat)
    assert [event.event async for event in page.of(live.apply(first))] == ["roster"]
    for exchange_id in ids:
        live.apply(balance_of(exchange_id, "1"))
    moving = AccountKey("venue100", "production").mark
    sent = [event async for event in page.of(live.apply(balance_of("venue100", "2")))]
    assert [event.event for event in sent] == [f"state-{moving}", f"figures-{moving}"]
    assert len(str(sent[1].data)) < 4000
    sent = [event async for event in page.of(live.apply(first))]
    assert {str(event.event).partition("-")[0] for event in sent} == {"state"}


CONTEXT: dict[str, Any] = {"user": "alice", "manages": True, "link": lambda path, **parameters: path}


def live_of(accounts: int, venue_accounts: int, rows: int) -> events.LiveAccounts:
    """A page's accounts with this many rows each."""
    live = events.LiveAccounts({})
    for number in range(accounts):
        balance = Balance(exchange_id=f"venue{number:04}", environment="production")
        for place in range(venue_accounts):
            assets = [AssetBalance(asset=f"A{row}", total="1") for row in range(rows)]
            balance.venue_accounts.add(id=str(place), assets=assets)
        live.apply(StreamBalancesResponse(balance=BalanceEvent(balance=balance)))
    return live


@pytest.mark.threat("T70", attack=True)
async def test_a_list_of_many_rows_holds_everything_up_unless_others_have_their_turn_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    live = live_of(200, 1, 10)
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def turns_during_a_list() -> int:
        nonlocal turns
        turns = 0
        await events.render_roster(live, CONTEXT)
        return turns

    others = asyncio.ensure_future(take_turns())
    with monkeypatch.context() as off:
        off.setattr(pages, "_TURN", 1e6)
        assert await turns_during_a_list() == 0
    assert await turns_during_a_list() > 3
    others.cancel()


async def test_of_very_many_accounts_and_rows_a_page_shows_some_and_says_so() -> None:
    live = live_of(230, 1, 0)
    (key, *_) = live.accounts
    live.accounts[key].followed = False
    text = await events.render_roster(live, CONTEXT)
    assert text.count("<article") == 200
    assert "30 further accounts are stored" in text
    assert f"account-{key.mark}" not in text

    one = live_of(1, 50, 100)
    text = await events.render_roster(one, CONTEXT)
    assert text.count('scope="row"') == 300
    assert text.count("100 further assets are in") == 47
    assert "Nothing is held" not in text


class TestJson:
    async def test_accounts_that_are_not_known_in_time_are_no_empty_list(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def hang(*_: Any) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(accounts_page, "_SNAPSHOT_TIMEOUT", 0.1)
        async with browsing(tmp_path, ScriptedPlugin(), manage_accounts=False) as (running, browser):
            await running.store()
            monkeypatch.setattr(running.service.store, "accounts", hang)
            page = await browser.get("/accounts.json")
        assert (page.status, json.loads(page.body)["error"]["reason"]) == (504, "DEADLINE_PASSED")

    async def test_the_accounts_as_json_are_the_services_messages(
        self, running: Running, browser: Browser, plugin: ScriptedPlugin
    ) -> None:
        await running.store()
        content = json.loads((await browser.get("/accounts.json")).body)
        (account,) = content["accounts"]
        assert (content["user_id"], account["exchange_id"], account["environment"]) == ("alice", "fakex", "production")
        (row,) = account["balance"]["venue_accounts"][0]["assets"]
        assert (row["asset"], row["total"]) == ("BTC", "1.50")
        assert content["headline"]["counted"] == 0

    async def test_an_account_that_cannot_be_read_has_its_error(
        self, running: Running, browser: Browser, plugin: ScriptedPlugin
    ) -> None:
        plugin.answer = raising(CredentialRejected("Fakex refuses the key."))
        await running.store()
        (account,) = json.loads((await browser.get("/accounts.json")).body)["accounts"]
        assert account["error"]["reason"] == "ERROR_REASON_CREDENTIAL_REJECTED"
        assert "balance" not in account

    async def test_without_an_account_it_is_an_empty_list(self, browser: Browser) -> None:
        assert json.loads((await browser.get("/accounts.json")).body)["accounts"] == []


async def test_names_of_exchanges_are_read_again_only_if_the_catalogue_has_changed(running: Running) -> None:
    names, api = ExchangeNames(), Api(running.service.server.direct)
    first = await names.read(api)
    assert first["fakex"] == ("Fakex", "")
    assert await names.read(api) is first


async def test_the_first_page_is_the_accounts_of_the_user_in_the_address(browser: Browser) -> None:
    assert (await browser.get("/?user=bob")).headers["location"] == "/accounts?user=bob"


async def test_a_person_who_may_only_read_gets_no_buttons(running: Running, browser: Browser) -> None:
    await running.store()
    assert Elements((await browser.get("/accounts")).text).named("a")
    async with browser.events("/accounts/events") as page:
        data = await page.until("roster", "Fakex")
    assert not [link for link in Elements(data).named("a") if "data-sheet" in link]
    assert not Elements(data).named("form")
