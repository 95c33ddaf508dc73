"""Signing in with a token and signing out, which are forms that the browser itself sends."""

from __future__ import annotations

from pathlib import Path

from playwright.async_api import expect

from tests.browser.consoles import serving_console
from tests.browser.open_page import PageOpener, accessibility_violations
from tests.harness import ScriptedPlugin, holding, registry_of, returning
from tests.identities import SECRET, web_token


async def test_a_person_signs_in_with_a_token_and_out_again(opener: PageOpener, tmp_path: Path) -> None:
    plugin = ScriptedPlugin(answer=returning(holding(("BTC", "1.50"))))
    async with serving_console(tmp_path, registry=registry_of(plugin), jwt_secret=SECRET) as console:
        await console.store()
        page = await opener.open(console.url)
        assert await accessibility_violations(page) == []
        opener.expected.append("status of 401")
        await page.get_by_label("Token", exact=True).fill("not a token")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("alert")).to_be_visible()
        assert await page.get_by_label("Token", exact=True).input_value() == ""
        await page.get_by_label("Token", exact=True).fill(web_token())
        await page.get_by_label("User if the token reads several").fill("alice")
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.locator("main")).to_contain_text("1.50")
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
        await page.goto(f"{console.url}/accounts")
        await expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
