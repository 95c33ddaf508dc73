"""Services with the console, for a browser: the demo, and one with venues of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from exchange_service.app import Service
from exchange_service.venues.registry import Registry
from tests.harness import Running, serving

# What switches the console on, at a free port.
SETTINGS: dict[str, Any] = {"http_address": "127.0.0.1:0", "console": True, "manage_accounts": True}


@dataclass(slots=True)
class ServedConsole(Running):
    """A service that serves the console on loopback, and a gRPC client of it."""

    @property
    def url(self) -> str:
        """Where the console is, such as http://127.0.0.1:40321."""
        return url_of(self.service)

    def sign_in_url(self, user: str = "") -> str:
        """A link that signs in once, and shows this user's accounts."""
        return sign_in_url(self.service, user)


def url_of(service: Service) -> str:
    """Where the service's console is."""
    return f"http://{service.web.address}"


def sign_in_url(service: Service, user: str = "") -> str:
    """A link that signs in once, and shows this user's accounts."""
    return service.web.console_url(user)


def page_url(service: Service, path: str, **parameters: str) -> str:
    """The address of a page."""
    return f"{url_of(service)}{path}?{urlencode(parameters)}"


@asynccontextmanager
async def serving_console(
    folder: Path, *, registry: Registry | None = None, **changes: Any
) -> AsyncIterator[ServedConsole]:
    """A service with the console, with the installed plugins unless others are given."""
    async with serving(folder, registry=registry, **(SETTINGS | changes)) as running:
        yield ServedConsole(running.service, running.client)
