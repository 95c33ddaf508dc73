"""The accounts page while things happen: changes, a venue's outage, a restart of the service, many accounts."""

from __future__ import annotations

import time
from pathlib import Path

from playwright.async_api import expect

from exchange_service.app import Service, start_service
from exchange_service.cli.demo import MAIN_USER, Demo
from exchange_service.model import Account, Credential
from tests.browser.consoles import SETTINGS, serving_console, sign_in_url, url_of
from tests.browser.open_page import NARROW, PageOpener, overflow
from tests.browser.test_sheet import account, open_accounts
from tests.harness import ScriptedPlugin, holding, listing, registry_of, returning, settings_for, until

MANY = 200
# Seconds in which a page with so many accounts opens its dialog.
ANSWERS_WITHIN = 10.0
# Milliseconds: a polled account moves every two seconds and is read every half.
MOVED_WITHIN = 15_000


def name_of(demo: Demo, exchange_id: str) -> str:
    """The exchange's name, as the page shows it."""
    return demo.service.registry.listings[exchange_id].metadata.name


async def test_the_balances_of_every_venue_change_by_themselves(opener: PageOpener, demo: Demo) -> None:
    page = await open_accounts(opener, demo, MAIN_USER)
    for exchange_id in demo.users[MAIN_USER]:
        figures = account(page, name_of(demo, exchange_id))
        amounts = figures.locator(".amount")
        await expect(amounts.first).to_be_visible()
        before = await amounts.all_inner_texts()
        await expect(amounts).not_to_have_text(before, use_inner_text=True, timeout=MOVED_WITHIN)


async def test_a_venue_that_fails_leaves_marked_figures_and_recovers(opener: PageOpener, demo: Demo) -> None:
    page = await open_accounts(opener, demo, MAIN_USER)
    figures = account(page, name_of(demo, "lighter"))
    await expect(figures).to_contain_text("USDC")
    demo.site.fail("lighter")
    try:
        await expect(figures).to_contain_text("VENUE_UNAVAILABLE")
        await expect(figures).to_contain_text("USDC")
        # The others go on.
        await expect(account(page, "OANDA")).not_to_contain_text("VENUE_UNAVAILABLE")
    finally:
        demo.site.mend("lighter")
    await expect(figures).not_to_contain_text("VENUE_UNAVAILABLE", timeout=45_000)


async def test_a_page_goes_on_after_the_service_was_started_again(opener: PageOpener, tmp_path: Path) -> None:
    plugin = ScriptedPlugin(answer=returning(holding(("BTC", "1.50"))))
    settings = settings_for(tmp_path, **SETTINGS, poll_interval=0.5, hash_key="the same for both")
    service = await start_service(settings, registry=registry_of(plugin))
    await service.store.put(Account("alice", "fakex"), Credential.from_texts({"api_key": "a-key"}))
    again = settings.model_copy(update={"http_address": url_of(service).removeprefix("http://")})
    page = await opener.open(sign_in_url(service, "alice"))
    await expect(page.locator("main")).to_contain_text("1.50")
    opener.expected += ["Failed to load resource", "net::ERR", "[object Event]"]
    await service.stop()
    plugin.answer = returning(holding(("BTC", "2.75")))
    service = await start_service(again, registry=registry_of(plugin))
    try:
        await expect(page.locator("main")).to_contain_text("2.75", timeout=30_000)
    finally:
        await page.close()
        await service.stop()


async def test_two_hundred_accounts_fit_into_one_page(opener: PageOpener, tmp_path: Path) -> None:
    plugin = ScriptedPlugin(
        *(listing(f"venue{number:03}") for number in range(MANY)), answer=returning(holding(("BTC", "1.50")))
    )
    async with serving_console(tmp_path, registry=registry_of(plugin)) as console:
        for entry in plugin.manifest.exchanges:
            await console.store(entry.id)
        page = await opener.open(console.sign_in_url("alice"), width=NARROW)
        await expect(page.get_by_text("1.50")).to_have_count(MANY, timeout=60_000)
        assert await overflow(page) == 0
        began = time.monotonic()
        await page.get_by_role("link", name="Add exchange").first.click()
        await expect(page.get_by_role("dialog").get_by_role("searchbox")).to_be_focused()
        assert time.monotonic() - began < ANSWERS_WITHIN
        await page.close()


def streams(service: Service) -> int:
    """How many streams are open."""
    return service.streams.counts()[1]


async def test_closing_the_page_frees_its_stream_within_a_second(opener: PageOpener, tmp_path: Path) -> None:
    plugin = ScriptedPlugin(answer=returning(holding(("BTC", "1.50"))))
    async with serving_console(tmp_path, registry=registry_of(plugin)) as console:
        await console.store()
        page = await opener.open(console.sign_in_url("alice"))
        await expect(page.locator("main")).to_contain_text("1.50")
        assert streams(console.service) == 1
        began = time.monotonic()
        await page.close()
        await until(lambda: streams(console.service) == 0, "the end of the stream")
        assert time.monotonic() - began < 1.0
