"""clients/typescript in a process of Node.js: a program that calls the service."""

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

FOLDER = Path(__file__).parents[2] / "clients" / "typescript"
BUILD = FOLDER / "build"
DRIVER = BUILD / "test" / "driver.js"
# A line holds the whole catalogue.
_LONGEST_LINE = 16 * 1024 * 1024


def node() -> str:
    """Where Node.js is, once the package is built."""
    found = shutil.which("node")
    assert found, "There is no node here: run make test-typescript, which says what to install."
    assert DRIVER.exists(), "clients/typescript is not built: run make test-typescript."
    return found


class Program:
    """What the driver in clients/typescript/test does for a test, line by line."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._news = asyncio.Event()
        # What came by itself, the newest last, and how many of these `event` has passed over.
        self.events: list[dict[str, Any]] = []
        self._seen = 0
        self.reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            said = json.loads(line)
            if "done" in said:
                self._answers.pop(said["done"]).set_result(said)
            else:
                self.events.append(said)
                self._news.set()

    async def act(self, name: str, **request: Any) -> dict[str, Any]:
        """Let the program do one thing; returns what came of it: the error too, as `error`."""
        assert self._process.stdin is not None
        number = len(self._answers) + 1
        while number in self._answers:
            number += 1
        self._answers[number] = asyncio.get_running_loop().create_future()
        answer = self._answers[number]
        self._process.stdin.write(json.dumps({"act": name, "number": number, **request}).encode() + b"\n")
        async with asyncio.timeout(4 * PATIENCE):
            return await answer

    async def create(self, address: str | list[str], client: str = "main", **options: Any) -> None:
        """Make a client. `tokens`: what its token function gives, one after the other."""
        tokens = {"tokens": options.pop("tokens")} if "tokens" in options else {}
        made = await self.act("create", client=client, options={"address": address, **options}, **tokens)
        assert "error" not in made, made

    async def call(self, method: str, request: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Make a call: its `reply` or its `error`, and `elapsedMs`."""
        return await self.act("call", method=method, request=request, **more)

    async def balance(self, user: str, exchange: str, **more: Any) -> dict[str, Any]:
        """Call GetBalance."""
        return await self.call("getBalance", {"userId": user, "exchangeId": exchange}, **more)

    async def event(
        self, name: str, check: Callable[[dict[str, Any]], Any] = lambda _: True, patience: float = PATIENCE
    ) -> dict[str, Any]:
        """The first event of this name for which `check` is true, among those that no earlier call has passed over."""
        async with asyncio.timeout(patience):
            while True:
                while self._seen < len(self.events):
                    event = self.events[self._seen]
                    self._seen += 1
                    if event["event"] == name and check(event):
                        return event
                self._news.clear()
                await self._news.wait()

    def versions(self, account: Callable[[dict[str, Any]], Any] = lambda _: True) -> list[int]:
        """The versions of the balances that came so far, in their order."""
        balances = [event["value"]["balance"] for event in self.events if event["event"] == "balance"]
        return [int(balance["version"]) for balance in balances if account(balance)]


@asynccontextmanager
async def program() -> AsyncIterator[Program]:
    """The driver, until the end of the block."""
    process = await asyncio.create_subprocess_exec(node(), str(DRIVER), stdin=PIPE, stdout=PIPE, limit=_LONGEST_LINE)
    made = Program(process)
    try:
        await made.event("ready")
        yield made
    finally:
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(PATIENCE):
            await process.wait()
            await made.reader


async def run_example(name: str, *arguments: str, seconds: float = 3 * PATIENCE) -> tuple[int, str]:
    """Run an example to its end: its exit code, and what it printed on both of its outputs."""
    command = (node(), str(BUILD / "examples" / f"{name}.js"), *arguments)
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=asyncio.subprocess.STDOUT)
    async with asyncio.timeout(seconds):
        output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()
