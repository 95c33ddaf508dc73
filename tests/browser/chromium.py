"""The browser of this machine, for tests, benchmarks and the pictures of the documents."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser, async_playwright

# No request of the browser's own, and nothing that a container lacks.
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
_NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_chromium() -> str | None:
    """The path of the browser: the one that the environment names, else one on PATH; None if there is none."""
    named = os.environ.get("EXCHANGE_SERVICE_TEST_CHROMIUM")
    return next((path for name in (named, *_NAMES) if name and (path := shutil.which(name))), None)


@asynccontextmanager
async def chromium(*flags: str) -> AsyncIterator[Browser]:
    """A running browser. Raises LookupError if this machine has none."""
    path = find_chromium()
    if path is None:
        raise LookupError("There is no Chromium here: run make test-browser, which says what to install.")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=[*FLAGS, *flags])
        try:
            yield browser
        finally:
            await browser.close()
