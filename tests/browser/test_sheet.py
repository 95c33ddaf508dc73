"""The sheet on which a user adds, repairs and removes an account, in a browser."""

from __future__ import annotations

import pytest
from playwright.async_api import Locator, Page, expect

from exchange_service.cli.demo import Demo
from tests.browser.consoles import sign_in_url
from tests.browser.open_page import NARROW, WIDE, PageOpener
from tests.browser.sheet import open_form, open_sheet, shown_cards, type_fields

# Seconds from the click to the live account.
LIVE_WITHIN = 3.0
WRONG = "0123456789-not-a-token-of-oanda"


async def open_accounts(opener: PageOpener, demo: Demo, user: str, **options: int) -> Page:
    """A page with this user's accounts, signed in."""
    page = await opener.open(sign_in_url(demo.service, user), **options)
    await expect(page.get_by_role("heading", level=1)).to_have_text("Accounts")
    return page


def account(page: Page, name: str) -> Locator:
    """The part of the page that is about this account."""
    return page.locator("article").filter(has=page.get_by_role("heading", name=name, exact=True))


async def test_the_search_and_the_filters_leave_what_they_name(opener: PageOpener, demo: Demo) -> None:
    page = await open_accounts(opener, demo, "searching")
    dialog = await open_sheet(page)
    every = await shown_cards(dialog).count()
    assert every > 100
    await dialog.get_by_role("radio", name="Forex").check()
    await expect(shown_cards(dialog)).to_have_count(1)
    await expect(shown_cards(dialog)).to_contain_text("OANDA")
    await dialog.get_by_role("radio", name="Custom integrations").check()
    custom = await shown_cards(dialog).count()
    await dialog.get_by_role("radio", name="CCXT exchanges").check()
    assert custom + await shown_cards(dialog).count() == every
    await dialog.get_by_role("radio", name="All").check()
    for words in ("tradier_options", "hyperliquid", "Options"):
        await dialog.get_by_role("searchbox").fill(words)
        assert 0 < await shown_cards(dialog).count() < every
    await dialog.get_by_role("searchbox").fill("no such exchange")
    await expect(dialog.get_by_text("Nothing found.")).to_be_visible()
    await expect(shown_cards(dialog)).to_have_count(0)


async def test_an_account_is_connected_from_empty_to_live_within_three_seconds(opener: PageOpener, demo: Demo) -> None:
    page = await open_accounts(opener, demo, "connecting")
    dialog = await open_form(page, "OANDA")
    await type_fields(dialog, demo.site.keys["oanda"][0])
    await dialog.get_by_role("button", name="Connect").click()
    await expect(dialog).to_contain_text("is connected", timeout=LIVE_WITHIN * 1000)
    await dialog.get_by_role("link", name="Done").click()
    figures = account(page, "OANDA")
    await expect(figures).to_contain_text("EUR", timeout=LIVE_WITHIN * 1000)
    before = await figures.inner_text()
    await expect(figures).not_to_have_text(before)


async def test_a_refused_key_is_explained_and_is_nowhere_in_the_page(opener: PageOpener, demo: Demo) -> None:
    opener.expected.append("Failed to load resource")
    page = await open_accounts(opener, demo, "refused")
    dialog = await open_form(page, "OANDA")
    await type_fields(dialog, {"api_key": WRONG})
    await dialog.get_by_role("button", name="Connect").click()
    await expect(dialog.get_by_text("OANDA refuses the key")).to_be_visible()
    await expect(dialog.get_by_text("CREDENTIAL_REJECTED")).to_be_visible()
    assert WRONG not in await everything_in(page)


async def everything_in(page: Page) -> str:
    """All that the page holds: its markup, what is typed, its address, storage and history."""
    return str(
        await page.evaluate("""() => [
            document.documentElement.outerHTML, location.href, document.cookie, JSON.stringify(history.state),
            JSON.stringify({...localStorage}), JSON.stringify({...sessionStorage}),
            ...[...document.querySelectorAll("input, textarea")].map((input) => input.value),
        ].join("\\n")""")
    )


async def test_what_was_typed_leaves_the_page_with_the_dialog(opener: PageOpener, demo: Demo) -> None:
    page = await open_accounts(opener, demo, "leaving")
    dialog = await open_form(page, "OANDA")
    await type_fields(dialog, {"api_key": WRONG})
    assert WRONG in await everything_in(page)
    await page.keyboard.press("Escape")
    await expect(dialog.locator("input")).to_have_count(0)
    await expect(dialog).to_be_hidden()
    assert WRONG not in await everything_in(page)


async def test_a_key_that_its_owner_deleted_is_explained_and_repaired(opener: PageOpener, demo: Demo) -> None:
    opener.expected.append("Failed to load resource")
    page = await open_accounts(opener, demo, "repairing")
    dialog = await open_form(page, "Tradier")
    await type_fields(dialog, demo.site.keys["tradier"][0])
    await dialog.get_by_role("button", name="Connect").click()
    await dialog.get_by_role("link", name="Done").click()
    await expect(account(page, "Tradier")).to_contain_text("USD")
    demo.site.revoke("tradier")
    try:
        await expect(account(page, "Tradier")).to_contain_text("CREDENTIAL_REJECTED")
        await account(page, "Tradier").get_by_role("link", name="Repair").first.click()
        await type_fields(dialog, {"api_key": WRONG})
        await dialog.get_by_role("button", name="Replace the key").click()
        await expect(dialog.get_by_text("Tradier refuses the key")).to_be_visible()
        # Another key of the same owner, which the venue takes.
        await type_fields(dialog, demo.site.keys["tradier"][0])
        await dialog.get_by_role("button", name="Replace the key").click()
        await expect(dialog).to_contain_text("is repaired")
        await dialog.get_by_role("link", name="Done").click()
        await expect(account(page, "Tradier")).to_contain_text("77.77")
        await expect(account(page, "Tradier")).not_to_contain_text("CREDENTIAL_REJECTED")
    finally:
        demo.site.mend("tradier")


async def test_an_account_is_removed_after_a_question(opener: PageOpener, demo: Demo) -> None:
    page = await open_accounts(opener, demo, "removing")
    dialog = await open_form(page, "Hyperliquid")
    await type_fields(dialog, demo.site.keys["hyperliquid"][0])
    await dialog.get_by_role("button", name="Connect").click()
    await dialog.get_by_role("link", name="Done").click()
    await account(page, "Hyperliquid").get_by_role("link", name="Remove").click()
    await dialog.get_by_role("button", name="Remove the account").click()
    await expect(account(page, "Hyperliquid")).to_have_count(0)


@pytest.mark.parametrize("width", [NARROW, WIDE])
async def test_everything_works_by_keyboard_alone(opener: PageOpener, demo: Demo, width: int) -> None:
    opener.expected.append("Failed to load resource")
    page = await open_accounts(opener, demo, f"typing-{width}", width=width)
    await connect_by_keyboard(page, demo.site.keys["oanda"][0]["api_key"])
    await expect(account(page, "OANDA")).to_contain_text("EUR")
    demo.site.revoke("oanda")
    try:
        await expect(account(page, "OANDA")).to_contain_text("CREDENTIAL_REJECTED")
        await repair_by_keyboard(page, demo.site.keys["oanda"][0]["api_key"])
        await expect(account(page, "OANDA")).to_contain_text("77.7700")
    finally:
        demo.site.mend("oanda")


async def connect_by_keyboard(page: Page, token: str) -> None:
    """Close the sheet once, open it again, and connect OANDA at the second attempt."""
    dialog = page.get_by_role("dialog")
    await tab_to(page, "Add exchange")
    await page.keyboard.press("Enter")
    await expect(dialog.get_by_role("searchbox")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("link", name="Add exchange").first).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(dialog.get_by_role("searchbox")).to_be_focused()
    await page.keyboard.type("oanda")
    await page.keyboard.press("Enter")
    await page.keyboard.press("Enter")
    await expect(dialog.get_by_role("button", name="Connect")).to_be_visible()
    await tab_to(page, "api_key")
    await page.keyboard.type(WRONG)
    await page.keyboard.press("Enter")
    await expect(dialog.locator("#sheet-refusal")).to_be_focused()
    await tab_to(page, "api_key")
    await page.keyboard.type(token)
    await page.keyboard.press("Enter")
    await expect(dialog).to_contain_text("is connected")
    await tab_to(page, "Done")
    await page.keyboard.press("Enter")


async def repair_by_keyboard(page: Page, token: str) -> None:
    """Repair the only account that is broken."""
    dialog = page.get_by_role("dialog")
    await tab_to(page, "Repair")
    await page.keyboard.press("Enter")
    await expect(dialog.get_by_role("button", name="Replace the key")).to_be_visible()
    await tab_to(page, "api_key")
    await page.keyboard.type(token)
    await page.keyboard.press("Enter")
    await expect(dialog).to_contain_text("is repaired")
    await tab_to(page, "Done")
    await page.keyboard.press("Enter")


_FOCUSED = "[document.activeElement?.name, document.activeElement?.innerText].join(' ')"


async def tab_to(page: Page, name: str) -> None:
    """Press Tab until the focus is on the element with this text or name."""
    for _ in range(60):
        await page.keyboard.press("Tab")
        focused = str(
            await page.evaluate("(document.activeElement?.name || '') + ' ' + document.activeElement?.innerText")
        )
        if name in focused:
            return
    raise AssertionError(f"the focus does not come to {name}")
