"""The instruments of these tests notice what they are there for."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from aiohttp import web

from tests.browser.open_page import NARROW, PageOpener, accessibility_violations, overflow

GOOD = "<!doctype html><html lang=en><title>Good</title><main><h1>Good</h1></main>"
PAGES = {
    "good": GOOD,
    "foreign": GOOD + "<img alt='' src='http://127.0.0.1:9/logo.png'>",
    "inline": GOOD + "<script>document.title = 'Changed'</script>",
    "throws": GOOD + "<script src='/throws.js'></script>",
    "unnamed": "<!doctype html><html><input></html>",
    "wide": GOOD + "<link rel=stylesheet href=/wide.css>",
}


@pytest_asyncio.fixture(loop_scope="session")
async def site() -> AsyncIterator[str]:
    """A server on loopback with the pages above, under a policy that allows no inline script."""
    policy = {"Content-Security-Policy": "script-src 'self'"}

    async def page(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name == "throws.js":
            return web.Response(text="throw new Error('broken')", content_type="text/javascript")
        if name == "wide.css":
            return web.Response(text="main { width: 500px }", content_type="text/css")
        return web.Response(text=PAGES[name], content_type="text/html", headers=policy)

    app = web.Application()
    app.add_routes([web.get("/favicon.ico", _nothing), web.get("/{name}", page)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def _nothing(_: web.Request) -> web.Response:
    return web.Response(status=204)


async def test_a_page_that_does_nothing_wrong_breaks_no_rule(opener: PageOpener, site: str) -> None:
    page = await opener.open(f"{site}/good", width=NARROW)
    assert await accessibility_violations(page) == []
    assert await overflow(page) == 0


@pytest.mark.parametrize(
    ("name", "breach"),
    [("foreign", "asked http://127.0.0.1:9/"), ("inline", "Content Security Policy"), ("throws", "threw")],
)
async def test_what_a_page_does_wrong_is_noticed(opener: PageOpener, site: str, name: str, breach: str) -> None:
    await opener.open(f"{site}/{name}")
    assert any(breach in line for line in opener.breaches()), opener.breaches()
    opener.expected.append("")


async def test_an_input_without_a_name_is_noticed(opener: PageOpener, site: str) -> None:
    page = await opener.open(f"{site}/unnamed")
    assert any(line.startswith("label:") for line in await accessibility_violations(page))


async def test_a_page_that_is_too_wide_is_noticed(opener: PageOpener, site: str) -> None:
    page = await opener.open(f"{site}/wide", width=NARROW)
    assert await overflow(page) > 0
