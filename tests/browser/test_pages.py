"""Each page, light and dark, on a phone and on a wide screen: nothing that a person with less than perfect sight or
without a mouse could not use, and nothing to scroll sideways."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from exchange_service.cli.demo import Demo, user_of
from exchange_service.testing.venue import SITUATIONS
from tests.browser.consoles import page_url, sign_in_url
from tests.browser.open_page import NARROW, WIDE, PageOpener, accessibility_violations, overflow
from tests.browser.sheet import open_form, open_sheet, type_fields

looks = pytest.mark.parametrize(
    ("scheme", "width"), [("light", NARROW), ("dark", NARROW), ("light", WIDE), ("dark", WIDE)]
)


@looks
async def test_every_page_and_every_situation_can_be_used_by_everybody(
    opener: PageOpener, demo: Demo, scheme: str, width: int
) -> None:
    page = await opener.open(sign_in_url(demo.service), scheme=scheme, width=width)
    users = [user_of(situation) for situation in SITUATIONS]
    addresses = [page_url(demo.service, "/accounts", user=user) for user in [*users, "demo-new"]]
    addresses += [page_url(demo.service, path, user="demo") for path in ("/exchanges", "/plugins", "/connect")]
    addresses += [page_url(demo.service, path) for path in ("/accounts", "/login", "/nothing-here")]
    opener.expected.append("404")
    for address in addresses:
        await page.goto(address)
        await expect(page.get_by_role("heading", level=1)).to_have_count(1)
        assert await accessibility_violations(page) == [], address
        assert await overflow(page) == 0, address


@looks
async def test_the_open_dialog_can_be_used_by_everybody(
    opener: PageOpener, demo: Demo, scheme: str, width: int
) -> None:
    opener.expected.append("Failed to load resource")
    page = await opener.open(sign_in_url(demo.service, f"looking-{scheme}-{width}"), scheme=scheme, width=width)
    await open_sheet(page)
    assert await accessibility_violations(page) == []
    assert await overflow(page) == 0
    await page.keyboard.press("Escape")
    dialog = await open_form(page, "OANDA")
    assert await accessibility_violations(page) == []
    assert await overflow(page) == 0
    await type_fields(dialog, {"api_key": "0123456789-not-a-token"})
    await dialog.get_by_role("button", name="Connect").click()
    await expect(dialog.locator("#sheet-refusal")).to_be_visible()
    assert await accessibility_violations(page) == []
    await type_fields(dialog, demo.site.keys["oanda"][0])
    await dialog.get_by_role("button", name="Connect").click()
    await expect(dialog).to_contain_text("is connected")
    assert await accessibility_violations(page) == []
    assert await overflow(page) == 0
