"""Consoles over services, and browsers that have signed in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from exchange_service.console.app import Console, make_console
from exchange_service.console.pages import ConsoleOptions
from tests.console.browsing import Browser
from tests.harness import HASH_KEY, USER, Running, ScriptedPlugin, registry_of, serving

# Balances are sent as they come, and heartbeats often, so that no test waits for them.
FAST: dict[str, Any] = {"poll_interval": 0.1, "poll_interval_still": 0.2, "heartbeat_interval": 0.2, "max_age": 0.0}


def console_of(running: Running, **options: Any) -> Console:
    """A console over the calls of a service; without authentication unless the options say so."""
    return make_console(running.service.server.direct, ConsoleOptions(HASH_KEY, **({"authenticated": False} | options)))


async def signed_in(console: Console, user: str = USER, **options: Any) -> Browser:
    """A browser that has opened a link of the console."""
    browser = Browser(console, **options)
    page = await browser.get(console.new_login_path(user))
    assert page.status == 200
    return browser


@asynccontextmanager
async def browsing(folder: Path, *plugins: ScriptedPlugin, **changes: Any) -> AsyncIterator[tuple[Running, Browser]]:
    """A service with these plugins and no stored account, and a browser that has signed in for the user."""
    async with serving(folder, registry=registry_of(*plugins), **(FAST | changes)) as running:
        yield running, await signed_in(console_of(running))


class Elements(HTMLParser):
    """The elements of a page, as (tag, attributes), and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of each element of this tag."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        """The text with single blanks."""
        return " ".join(self.text.split())
