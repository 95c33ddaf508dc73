"""A browser without a screen: it asks an ASGI application for pages, and keeps the cookies that it gets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message

HOST = "127.0.0.1:50052"
PATIENCE = 15.0


@dataclass(slots=True)
class Page:
    """A response."""

    status: int
    headers: Headers
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(slots=True)
class Browser:
    """One browser: its cookies, and the headers that browsers send with each request."""

    app: ASGIApp
    scheme: str = "http"
    host: str = HOST
    cookies: dict[str, str] = field(default_factory=dict)

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> Page:
        """A page that the person opens."""
        navigating = {"sec-fetch-site": "none", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
        return await self.request("GET", path, {**navigating, **(headers or {})})

    async def post(self, path: str, form: Mapping[str, str], headers: Mapping[str, str] | None = None) -> Page:
        """A form of our own pages that the person sends."""
        own = {
            "sec-fetch-site": "same-origin",
            "origin": f"{self.scheme}://{self.host}",
            "content-type": "application/x-www-form-urlencoded",
        }
        return await self.request("POST", path, {**own, **(headers or {})}, urlencode(form).encode())

    async def request(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> Page:
        """One request with exactly these headers, beside the host and the cookies."""
        messages = [message async for message in self._messages(method, path, headers, body)]
        head = messages[0]
        page = Page(
            head["status"], Headers(raw=head["headers"]), b"".join(message.get("body", b"") for message in messages)
        )
        self._keep(page.headers)
        return page

    async def _messages(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> AsyncIterator[Message]:
        sent: asyncio.Queue[Message] = asyncio.Queue()
        await self._run(method, path, headers, body, sent, asyncio.Event())
        while not sent.empty():
            yield sent.get_nowait()

    async def _run(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes,
        sent: asyncio.Queue[Message],
        gone: asyncio.Event,
    ) -> None:
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        await self.app(self._scope(method, path, headers), receive, sent.put)

    def _scope(self, method: str, path: str, headers: Mapping[str, str]) -> dict[str, Any]:
        plain, _, query = path.partition("?")
        cookie = {"cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())}
        every = {"host": self.host, **(cookie if self.cookies else {}), **headers}
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": self.scheme,
            "path": plain,
            "raw_path": plain.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in every.items()],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 50052),
        }

    def _keep(self, headers: Headers) -> None:
        for line in headers.getlist("set-cookie"):
            for name, morsel in SimpleCookie(line).items():
                if morsel["max-age"] == "0":
                    self.cookies.pop(name, None)
                else:
                    self.cookies[name] = morsel.value

    @asynccontextmanager
    async def events(self, path: str) -> AsyncIterator[Events]:
        """An open stream of events; at the end the page is closed."""
        sent: asyncio.Queue[Message] = asyncio.Queue()
        gone = asyncio.Event()
        headers = {"sec-fetch-site": "same-origin", "sec-fetch-mode": "cors", "accept": "text/event-stream"}
        task = asyncio.ensure_future(self._run("GET", path, headers, b"", sent, gone))
        try:
            yield Events(sent, task, gone)
        finally:
            gone.set()
            async with asyncio.timeout(PATIENCE):
                await task


@dataclass(slots=True)
class Events:
    """The events of an open page, as (name, data)."""

    sent: asyncio.Queue[Message]
    task: asyncio.Task[None]
    gone: asyncio.Event
    head: Message | None = None
    text: str = ""

    async def next(self) -> tuple[str, str]:
        """The next event. Raises EOFError if the stream has ended."""
        async with asyncio.timeout(PATIENCE):
            while "\r\n\r\n" not in self.text:
                message = await self.sent.get()
                if message["type"] == "http.response.start":
                    self.head = message
                self.text += message.get("body", b"").decode()
                if message["type"] == "http.response.body" and not message.get("more_body") and not self.text:
                    raise EOFError
        block, _, self.text = self.text.partition("\r\n\r\n")
        lines = [line.partition(":") for line in block.split("\r\n")]
        values = [(name, value.removeprefix(" ")) for name, _, value in lines]
        name = next((value for key, value in values if key == "event"), "")
        return name, "\n".join(value for key, value in values if key == "data")

    async def next_of(self, prefix: str) -> tuple[str, str]:
        """The next event whose name begins so; others are passed over."""
        while True:
            name, data = await self.next()
            if name.startswith(prefix) and (name or not prefix):
                return name, data

    async def until(self, prefix: str, text: str) -> str:
        """The data of the next event whose name begins so and that holds the text."""
        while True:
            _, data = await self.next_of(prefix)
            if text in data:
                return data
