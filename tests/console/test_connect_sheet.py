"""Accounts are added, repaired, checked and removed in a browser without JavaScript, at OANDA's simulator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount
from starlette.requests import Request

from exchange_service.accounts.v1.account_service_pb2 import (
    AccountCheck,
    ConnectAccountResponse,
    KeyRights,
    StoredAccount,
)
from exchange_service.console import connect_sheet
from exchange_service.console.figures import AccountKey
from exchange_service.console.pages import Visit, open_visit
from exchange_service.plugin_api import Capabilities
from exchange_service.v1.balance_pb2 import AccountFault, AssetBalance, Balance, Summary, VenueAccount
from tests.console.browsing import Browser, Page
from tests.console.consoles import Elements, browsing, console_of, signed_in
from tests.console.other_replies import browsing_replies
from tests.harness import USER, Running, ScriptedPlugin, listing, serving

TOKEN = "the-right-token-for-oanda"
WRONG = "another-token-that-is-refused"
FIRST, SECOND = "001-004-7654321-001", "001-004-7654321-002"
FORM = "/connect/oanda"
MARKUP = "<b onclick=alert(1)>"
ADDRESS = "203.0.113.7"


class Sheet:
    """A browser at the sheet of OANDA, with the service and the venue behind it."""

    def __init__(self, running: Running, browser: Browser, venue: OandaSimulator) -> None:
        self.running = running
        self.browser = browser
        self.venue = venue

    async def send(self, token: str = TOKEN, address: str = FORM, **more: str) -> Page:
        """The form with this token."""
        return await self.browser.post(address, {"field.api_key": token, "environment": "production", **more})

    async def change(self, path: str) -> Page:
        """A button of the account."""
        return await self.browser.post(path, {"exchange_id": "oanda", "environment": "production"})

    async def balance(self) -> Balance:
        return (await self.running.client.get_balance(USER, "oanda")).balance

    def refuse(self) -> None:
        """The venue withdraws the token."""
        del self.venue.tokens[TOKEN]


@pytest.fixture
async def sheet(tmp_path: Path) -> AsyncIterator[Sheet]:
    options = {"manage_accounts": True, "outgoing_address": ADDRESS}
    async with OandaSimulator() as venue:
        venue.add_token(TOKEN, SimulatedAccount(FIRST), SimulatedAccount(SECOND, currency="USD", alias="Hedge"))
        async with serving(tmp_path, venue_urls={"oanda": venue.url}, **options) as running:
            yield Sheet(running, await signed_in(console_of(running)), venue)


def words(page: Page) -> str:
    return Elements(page.text).words


class TestForm:
    @pytest.mark.threat("T83")
    async def test_it_says_for_whom_an_account_is_added(self, sheet: Sheet) -> None:
        assert "For alice" in words(await sheet.browser.get(FORM))
        # A link that somebody sends may name another user.
        assert "For mallory" in words(await sheet.browser.get(f"{FORM}?user=mallory"))

    async def test_it_says_where_the_key_is_made_and_from_where_the_venue_is_asked(self, sheet: Sheet) -> None:
        page = await sheet.browser.get(FORM)
        assert "generate a personal access token" in words(page)
        assert ADDRESS in words(page)
        links = {item["href"]: item for item in Elements(page.text).named("a")}
        made = links["https://www.oanda.com/account/tpa/personal_token"]
        assert (made["target"], made["rel"]) == ("_blank", "noopener noreferrer")

    async def test_a_secret_is_hidden_while_it_is_typed_and_left_to_no_browser(self, sheet: Sheet) -> None:
        inputs = {item.get("name"): item for item in Elements((await sheet.browser.get(FORM)).text).named("input")}
        assert inputs["field.api_key"]["type"] == "password"
        assert inputs["field.api_key"]["autocomplete"] == "new-password"
        assert "required" in inputs["field.api_key"]
        assert inputs["field.account_id"]["type"] == "text"
        assert "skip_check" not in inputs

    async def test_every_exchange_of_the_catalogue_has_its_form(self, sheet: Sheet) -> None:
        page = await sheet.browser.get("/connect")
        links = [str(item["href"]) for item in Elements(page.text).named("a")]
        forms = [link for link in links if link.startswith("/connect/")]
        assert len(forms) > 90
        for link in forms:
            shown = await sheet.browser.get(link)
            assert shown.status == 200, link
            assert 'name="field.' in shown.text, link


class TestConnect:
    async def test_the_outcome_shows_every_account_and_the_page_has_it_at_once(self, sheet: Sheet) -> None:
        page = await sheet.send()
        assert page.status == 200
        assert "OANDA is connected" in words(page)
        assert all(text in words(page) for text in (FIRST, SECOND, "25310.4426", "2 accounts"))
        assert TOKEN not in page.text
        mark = AccountKey("oanda", "production").mark
        assert f"/accounts?user=alice#account-{mark}" in [item.get("href") for item in Elements(page.text).named("a")]
        assert f'id="account-{mark}"' in (await sheet.browser.get("/accounts")).text
        assert len((await sheet.balance()).venue_accounts) == 2

    async def test_a_refused_key_is_told_and_nothing_is_stored(self, sheet: Sheet) -> None:
        page = await sheet.send(WRONG)
        assert page.status == 409
        assert "OANDA refuses the key" in words(page)
        assert "CREDENTIAL_REJECTED" in words(page)
        assert "What you typed here was not kept" in words(page)
        assert WRONG not in page.text
        assert "oanda" not in [account.exchange_id for account in await stored(sheet)]

    async def test_a_wrong_field_is_named_beside_it(self, sheet: Sheet) -> None:
        page = await sheet.send(**{"field.account_id": "12<b>"})
        wrong = [item for item in Elements(page.text).named("input") if item.get("aria-invalid") == "true"]
        assert [(item["name"], item["value"]) for item in wrong] == [("field.account_id", "12<b>")]
        described = str(wrong[0]["aria-describedby"]).split()
        ids = {attributes.get("id") for _, attributes in Elements(page.text).elements}
        assert set(described) <= ids
        assert TOKEN not in page.text

    async def test_only_after_the_venue_was_not_reached_it_can_be_stored_untried(self, sheet: Sheet) -> None:
        assert "skip_check" not in (await sheet.send(WRONG)).text
        await sheet.venue.stop()
        page = await sheet.send()
        assert page.status == 503
        assert "OANDA cannot be reached" in words(page)
        assert "skip_check" in page.text
        kept = await sheet.send(skip_check="yes")
        assert kept.status == 200
        assert "was not tried" in words(kept)
        assert [account.exchange_id for account in await stored(sheet)] == ["oanda"]

    @pytest.mark.threat("T88")
    async def test_values_name_no_host_and_no_path(self, sheet: Sheet) -> None:
        for value in ("../../../v3/users", "@169.254.169.254/", "http://169.254.169.254/latest", "001%2f..%2f"):
            page = await sheet.send(**{"field.account_id": value, "field.base_url": value, "base_url": value})
            assert page.status == 400, value
        assert (await sheet.send(address="/connect/http:%2f%2f169.254.169.254")).status == 404
        assert await stored(sheet) == []


class TestRepair:
    async def test_a_new_key_takes_the_place_of_one_that_is_refused(self, sheet: Sheet) -> None:
        await sheet.send()
        sheet.refuse()
        sheet.venue.add_token("the-next-token-of-oanda", SimulatedAccount(FIRST, currency="USD"))
        form = await sheet.browser.get(f"{FORM}?environment=production&repair=1")
        assert "Repair OANDA" in words(form)
        assert "stays as it is until the new one works" in words(form)
        page = await sheet.send("the-next-token-of-oanda", repair="1")
        assert "OANDA is repaired" in words(page)
        assert [account.id for account in (await sheet.balance()).venue_accounts] == [FIRST]

    async def test_a_refused_key_leaves_the_stored_one(self, sheet: Sheet) -> None:
        await sheet.send()
        page = await sheet.send(WRONG, repair="1")
        assert "Repair OANDA" in words(page)
        assert "OANDA refuses the key" in words(page)
        assert len((await sheet.balance()).venue_accounts) == 2


@pytest.mark.threat("T83", attack=True)
async def test_a_form_that_was_open_when_somebody_else_signed_in_changes_nothing_of_theirs(
    sheet: Sheet, monkeypatch: pytest.MonkeyPatch
) -> None:
    console: Any = sheet.browser.app

    async def stored_by_the_open_form() -> dict[str, int]:
        """How many accounts alice and bob have after alice's form is sent, in a browser in which bob has signed in."""
        await sheet.browser.get(console.new_login_path(USER))
        (form,) = (form for form in Elements((await sheet.browser.get(FORM)).text).named("form") if "data-busy" in form)
        await sheet.browser.get(console.new_login_path("bob"))
        assert (await sheet.send(address=form["action"] or "")).status == 200
        store = sheet.running.service.store
        found = {user: await store.accounts(user) for user in (USER, "bob")}
        for accounts in found.values():
            for account in accounts:
                await store.remove(account)
        return {user: len(accounts) for user, accounts in found.items()}

    with monkeypatch.context() as off:

        async def open_unnamed(request: Request) -> Visit:
            return open_visit(request)

        off.setattr(connect_sheet, "_open", open_unnamed)
        assert await stored_by_the_open_form() == {USER: 0, "bob": 1}
    assert await stored_by_the_open_form() == {USER: 1, "bob": 0}


class TestCheckAndRemove:
    async def test_a_check_shows_what_the_stored_key_sees(self, sheet: Sheet) -> None:
        await sheet.send()
        page = await sheet.change("/accounts/check")
        assert "OANDA works" in words(page)
        assert FIRST in words(page)

    async def test_a_check_that_fails_says_why_and_leads_to_the_repair(self, sheet: Sheet) -> None:
        await sheet.send()
        sheet.refuse()
        page = await sheet.change("/accounts/check")
        assert page.status == 409
        assert "OANDA refuses the key" in words(page)
        links = [str(item["href"]) for item in Elements(page.text).named("a")]
        assert f"{FORM}?environment=production&repair=1&user=alice" in links

    async def test_an_account_is_removed_only_after_the_question(self, sheet: Sheet) -> None:
        await sheet.send()
        asked = await sheet.browser.get("/accounts/remove?exchange_id=oanda&environment=production")
        assert "Remove OANDA?" in words(asked)
        assert [account.exchange_id for account in await stored(sheet)] == ["oanda"]
        page = await sheet.change("/accounts/remove")
        assert (page.status, page.headers["location"]) == (303, "/accounts?user=alice")
        assert await stored(sheet) == []
        again = await sheet.change("/accounts/remove")
        assert again.status == 404
        assert "No key is stored" in words(again)


async def stored(sheet: Sheet) -> list[object]:
    """The accounts whose credentials are stored."""
    return [row.account for row in await sheet.running.service.store.stored(USER)]


async def test_an_exchange_that_cannot_be_read_cannot_be_picked(tmp_path: Path) -> None:
    later = listing("later", capabilities=Capabilities(balance=False))
    async with browsing(tmp_path, ScriptedPlugin(listing("aster"), later), manage_accounts=True) as (_, browser):
        links = [str(item.get("href")) for item in Elements((await browser.get("/connect")).text).named("a")]
        assert [link for link in links if link.startswith("/connect/")] == ["/connect/aster?user=alice"]
        assert (await browser.get("/connect/later")).status == 501
        assert (await browser.get("/connect/unknown")).status == 404


async def test_an_outcome_has_the_venues_remarks_rights_and_what_it_could_not_read(tmp_path: Path) -> None:
    wallet = VenueAccount(type="spot", assets=[AssetBalance(asset=f"C{number}", total="0.10") for number in range(10)])
    refused = VenueAccount(id="2", error=AccountFault(message="It is closed."))
    balance = Balance(venue_accounts=[wallet, refused, VenueAccount(id="3")], notes=["The address was replaced."])
    balance.summary.CopyFrom(Summary(currency="USDT", equity="12.50"))
    rights = KeyRights(trade=True, withdraw=False, notes=["Protect it like a password."])
    rights.expire_time.FromJsonString("2027-01-02T00:00:00Z")
    check = AccountCheck(balance=balance, rights=rights, warnings=[f"It may trade. {MARKUP}"])
    reply = ConnectAccountResponse(account=StoredAccount(exchange_id="fakex", environment="sandbox"), check=check)
    async with browsing_replies(tmp_path, ConnectAccount=reply) as browser:
        page = await browser.post("/connect/fakex", {})
        shown = (
            "Sandbox, for tests",
            "12.50 USDT",
            "C7",
            "And 2 more assets.",
            "It is closed.",
            "Nothing is held here.",
        )
        remarks = ("The address was replaced.", "Protect it like a password.")
        said = ("Place orders yes", "Withdraw money no", "Expires 2 Jan 2027", MARKUP)
        assert [text for text in (*shown, *remarks, *said) if text not in words(page)] == []
        assert MARKUP not in page.text
