"""A Chromium for the session, and pages that notice what a page of the console must not do.

All tests here share one event loop with the browser, the service and the simulators.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.browser.open_page import PageOpener

# No request of the browser's own, and nothing that a container lacks.
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


def find_chromium() -> str:
    """The path of the browser. Raises pytest.UsageError if this machine has none."""
    names = (os.environ.get("EXCHANGE_SERVICE_TEST_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    for name in names:
        if name and (path := shutil.which(name)):
            return path
    raise pytest.UsageError("There is no Chromium here: run make test-browser, which says what to install.")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """One browser for all tests; each test has contexts of its own, and so cookies of its own."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def opener(browser: Browser) -> AsyncIterator[PageOpener]:
    """Opens pages, and fails the test at its end if one of them broke a rule; see PageOpener."""
    opener = PageOpener(browser)
    yield opener
    await opener.close()
    assert opener.breaches() == []
