"""Texts of venues, plugins and addresses run nothing in a real browser, and lead to no other host."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.async_api import expect

from exchange_service.plugin_api import VenueUnavailable
from tests.browser.consoles import serving_console
from tests.browser.open_page import PageOpener
from tests.harness import Answer, ScriptedPlugin, holding, listing, raising, registry_of, returning

STOLEN = "<script>window.stolen = 1</script><img src=x onerror='window.stolen = 1'>"


@pytest.mark.parametrize(
    "answer",
    [returning(holding(("BTC", "1.50"), notes=(f"note {STOLEN}",))), raising(VenueUnavailable(f"note {STOLEN}"))],
    ids=["balance", "error"],
)
async def test_a_text_that_would_be_markup_stays_text(opener: PageOpener, tmp_path: Path, answer: Answer) -> None:
    plugin = ScriptedPlugin(listing(instructions=f"instructions {STOLEN}"), answer=answer)
    async with serving_console(tmp_path, registry=registry_of(plugin)) as console:
        await console.store(user=STOLEN)
        page = await opener.open(console.sign_in_url())
        for path in ("/accounts", "/exchanges", "/connect", "/connect/fakex"):
            await page.goto(f"{console.url}{path}?user={quote(STOLEN)}")
            await expect(page.get_by_role("heading", level=1)).to_have_count(1)
            if path == "/accounts":
                await expect(page.get_by_text("note <script>").first).to_be_visible()
            if path == "/connect/fakex":
                await expect(page.get_by_text("instructions <script>").first).to_be_visible()
            assert await page.evaluate("window.stolen") is None
        await page.close()
