"""The demo as a program: its link, its users, its keys, and its end while a page is open."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import ClientSession
from playwright.async_api import expect

from tests.browser.open_page import PageOpener
from tests.browser.sheet import open_form, type_fields
from tests.browser.test_sheet import LIVE_WITHIN, account

ENDS_WITHIN = 5.0


@asynccontextmanager
async def program(home: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str, str]]:
    """The running program, the link that it prints, and the site of its venues."""
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "exchange_service",
            "demo",
            "--address",
            "127.0.0.1:0",
            "--http-address",
            "127.0.0.1:0",
        ),
        env={"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8"},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    text = (await process.stdout.readuntil(b"Interrupt (Ctrl-C)")).decode()
    link, site = (re.search(pattern, text, re.MULTILINE) for pattern in (r"^console +(\S+)", r"^keys .*(http\S+)"))
    assert link
    assert site
    try:
        yield process, link[1], site[1]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_from_the_printed_link_to_a_live_account_that_breaks_and_is_repaired(
    opener: PageOpener, tmp_path: Path
) -> None:
    async with program(tmp_path) as (process, link, site), ClientSession() as venue_site:
        page = await opener.open(link)
        await page.get_by_text("Users of this demo").click()
        await page.get_by_role("link", name="demo-refused", exact=True).click()
        await expect(account(page, "OANDA")).to_contain_text("CREDENTIAL_REJECTED")
        await page.get_by_text("Users of this demo").click()
        await page.get_by_role("link", name="demo-new", exact=True).click()
        dialog = await open_form(page, "OANDA")
        await type_fields(dialog, {"api_key": await dialog.locator(".demo-key code").inner_text()})
        await dialog.get_by_role("button", name="Connect").click()
        await dialog.get_by_role("link", name="Done").click()
        await expect(account(page, "OANDA")).to_contain_text("EUR", timeout=LIVE_WITHIN * 1000)
        await venue_site.post(f"{site}/oanda/revoke")
        await expect(account(page, "OANDA")).to_contain_text("CREDENTIAL_REJECTED")
        await account(page, "OANDA").get_by_role("link", name="Repair").first.click()
        await expect(dialog.locator(".demo-key code")).to_have_text("other-token")
        await type_fields(dialog, {"api_key": "other-token"})
        await dialog.get_by_role("button", name="Replace the key").click()
        await dialog.get_by_role("link", name="Done").click()
        await expect(account(page, "OANDA")).to_contain_text("77.7700")
        opener.expected += ["net::ERR", "[object Event]"]
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
        assert time.monotonic() - began < ENDS_WITHIN
        await expect(page.locator("#connection")).to_have_attribute("data-state", "lost")
        situation = account(page, "OANDA").locator(".situation")
        assert "last seen" in await situation.evaluate("(word) => getComputedStyle(word, '::after').content")
