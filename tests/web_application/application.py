"""examples/web in a process of Node.js: the page and the back end of a web application, without a browser."""

from __future__ import annotations

import asyncio
import json
import shutil
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.harness import PATIENCE

FOLDER = Path(__file__).parents[2] / "examples" / "web"
DRIVER = FOLDER / "build" / "test" / "driver.js"
# A line holds the whole catalogue.
_LONGEST_LINE = 16 * 1024 * 1024


class WebApplication:
    """What the driver in examples/web/test does for a test, line by line."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._answers: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._news = asyncio.Event()
        # What came by itself, the newest last.
        self.events: list[dict[str, Any]] = []
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            if "done" in said:
                self._answers.put_nowait(said)
            else:
                self.events.append(said)
                self._news.set()

    async def act(self, name: str, **request: Any) -> dict[str, Any]:
        """Let the application do one thing; returns what came of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"act": name, **request}).encode() + b"\n")
        async with asyncio.timeout(2 * PATIENCE):
            answer = await self._answers.get()
        assert answer["done"] == name
        return answer

    async def event(self, name: str, check: Callable[[dict[str, Any]], Any] = lambda _: True) -> dict[str, Any]:
        """The first event of this name for which `check` is true, among those that no earlier call has passed over."""
        async with asyncio.timeout(PATIENCE):
            while True:
                while self.events:
                    event = self.events.pop(0)
                    if event["event"] == name and check(event):
                        return event
                self._news.clear()
                await self._news.wait()

    async def account(self, exchange_id: str, check: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """What the page shows of one account, once `check` is true of it."""

        def fits(event: dict[str, Any]) -> bool:
            return any(account["exchangeId"] == exchange_id and check(account) for account in event["accounts"])

        changed = await self.event("changed", fits)
        return next(account for account in changed["accounts"] if account["exchangeId"] == exchange_id)


@asynccontextmanager
async def web_application(url: str, secret: str, user: str, *, binary: bool = False) -> AsyncIterator[WebApplication]:
    """The application of one signed-in user, whose back end signs tokens with `secret`."""
    node = shutil.which("node")
    assert node, "There is no node here: run make test-web, which says what to install."
    assert DRIVER.exists(), "examples/web is not built: run make test-web."
    arguments = (str(DRIVER), url, secret, user, "binary" if binary else "json")
    process = await asyncio.create_subprocess_exec(node, *arguments, stdin=PIPE, stdout=PIPE, limit=_LONGEST_LINE)
    application = WebApplication(process)
    try:
        await application.event("ready")
        yield application
    finally:
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(PATIENCE):
            await process.wait()
            await application.reader
