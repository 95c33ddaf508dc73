"""Pages of a browser that remember what no page of the console may do: ask another host, throw, or write an error to
the browser's console, as it does for a breach of the content security policy."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, Request

# The rules of WCAG 2.2 up to AA, and what is commonly held to be good practice.
AXE_OPTIONS = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"],
    "resultTypes": ["violations"],
}
NARROW, WIDE = 360, 1440
# Longer than anything takes on a busy machine, in milliseconds.
PATIENCE = 15_000


@dataclass
class PageOpener:
    """Opens pages at one host, and collects what they did wrong. Set `expected` to parts of messages that the test
    causes on purpose, such as a connection that is refused while the service is down."""

    browser: Browser
    expected: list[str] = field(default_factory=list)
    _hosts: set[str] = field(default_factory=set)
    _contexts: list[BrowserContext] = field(default_factory=list)
    _breaches: list[str] = field(default_factory=list)

    async def open(self, url: str, *, width: int = WIDE, height: int = 900, scheme: str = "light") -> Page:
        """A page in a context of its own, at this address."""
        self._hosts.add(urlsplit(url).netloc)
        context = await self.browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
        )
        self._contexts.append(context)
        context.set_default_timeout(PATIENCE)
        page = await context.new_page()
        self.watch(page)
        await page.goto(url)
        if urlsplit(url).path == "/login/link":
            # Its page leads on by itself.
            await page.wait_for_url("**/accounts*")
        return page

    def watch(self, page: Page) -> None:
        """Note what this page does wrong from now on."""
        page.on("request", self._on_request)
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self._breaches.append(f"threw {error}"))

    def _on_request(self, request: Request) -> None:
        if urlsplit(request.url).netloc not in self._hosts:
            self._breaches.append(f"asked {request.url}")

    def _on_console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._breaches.append(f"wrote {message.type}: {message.text} ({message.location.get('url', '')})")

    def breaches(self) -> list[str]:
        """What the pages did wrong so far, a line each."""
        return [line for line in self._breaches if not any(part in line for part in self.expected)]

    async def close(self) -> None:
        """Close every page."""
        for context in self._contexts:
            await context.close()
        self._contexts.clear()


async def accessibility_violations(page: Page) -> list[str]:
    """What axe finds wrong with the page as it is now: the rule and the first element of each, empty if all is well."""
    found: dict[str, Any] = (await Axe().run(page, options=AXE_OPTIONS)).response
    return [
        f"{violation['id']}: {violation['help']}: {node['html']} ({node.get('failureSummary', '')})"
        for violation in found["violations"]
        for node in violation["nodes"][:1]
    ]


async def overflow(page: Page) -> int:
    """How many pixels the page is wider than the window; more than 0 needs scrolling sideways."""
    wide: int = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return wide
