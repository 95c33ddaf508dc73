"""A Chromium for the session, and pages that notice what a page of the console must not do.

All tests here share one event loop with the browser, the service and the simulators.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from exchange_service.cli.demo import Demo, running_demo
from tests.browser.chromium import chromium
from tests.browser.consoles import SETTINGS
from tests.browser.open_page import PATIENCE, PageOpener
from tests.harness import settings_for

expect.set_options(timeout=PATIENCE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if pytest_asyncio.is_async_test(item):
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """One browser for all tests; each test has contexts of its own, and so cookies of its own."""
    async with chromium() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="session")
async def opener(browser: Browser) -> AsyncIterator[PageOpener]:
    """Opens pages, and fails the test at its end if one of them broke a rule; see PageOpener."""
    opener = PageOpener(browser)
    yield opener
    await opener.close()
    assert opener.breaches() == []


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def demo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Demo]:
    """A demo with the console, which all tests share: each uses users of its own, and mends what it breaks."""
    settings = settings_for(tmp_path_factory.mktemp("demo"), **SETTINGS, poll_interval=2.0, poll_interval_still=2.0)
    async with running_demo(settings) as running:
        yield running
