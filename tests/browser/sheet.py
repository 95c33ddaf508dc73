"""What a user does in the sheet, by mouse."""

from __future__ import annotations

from collections.abc import Mapping

from playwright.async_api import Locator, Page


async def open_sheet(page: Page) -> Locator:
    """The dialog, with the catalogue in it."""
    await page.get_by_role("link", name="Add exchange").first.click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_role("searchbox").wait_for()
    return dialog


async def open_form(page: Page, exchange: str) -> Locator:
    """The dialog, with the form of this exchange in it."""
    dialog = await open_sheet(page)
    await dialog.get_by_role("searchbox").fill(exchange)
    await dialog.get_by_role("link", name=exchange, exact=True).click()
    await dialog.get_by_role("button", name="Connect").wait_for()
    return dialog


async def type_fields(dialog: Locator, fields: Mapping[str, str]) -> None:
    """Type these values, by the names of the credential fields."""
    for name, value in fields.items():
        await dialog.locator(f"[name='{name}'], [name$='.{name}'], [name$='-{name}']").first.fill(value)


def shown_cards(dialog: Locator) -> Locator:
    """The exchanges that the search and the filter leave."""
    return dialog.locator("#exchange-cards > li:not([hidden])")
