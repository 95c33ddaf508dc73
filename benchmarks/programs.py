"""The programs that a benchmark starts: venues, serving processes, loads. Each ends with its block.

A program prints one line when it is ready; it ends when its standard input does, a serving process by SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from benchmarks.names import ROOT, environment
from benchmarks.serving import until_ready
from exchange_service.credentials.sql import open_store
from exchange_service.model import Account, Credential

HASH_KEY = "0123456789abcdef0123456789abcdef"
# Seconds.
_START, _END = 60.0, 30.0
_LONGEST_LINE = 2**24


@dataclass(frozen=True, slots=True)
class Program:
    """A running program. `greeting` is its first line of standard output, read as JSON."""

    process: asyncio.subprocess.Process
    greeting: Any

    async def ended(self) -> Any:
        """End it. Returns its last line, read as JSON; None if there is no such line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        async with asyncio.timeout(_END):
            last = await self.process.stdout.readline()
            await self.process.wait()
        return json.loads(last) if last else None


@asynccontextmanager
async def program(*arguments: str) -> AsyncIterator[Program]:
    """`python -m` these arguments."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *arguments), cwd=ROOT, env=environment(), stdin=pipe, stdout=pipe, limit=_LONGEST_LINE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_START):
            greeting = await process.stdout.readline()
        yield Program(process, json.loads(greeting))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@dataclass(frozen=True, slots=True)
class Serving:
    """A serving process; `seconds` are from its start until it printed that it serves."""

    address: str
    pid: int
    seconds: float


@asynccontextmanager
async def serving(
    folder: Path, *command: str, variables: Mapping[str, str] | None = None, **settings: str
) -> AsyncIterator[Serving]:
    """A Python program that prints "Serving on" to standard error when it serves, with the service's settings by
    name, and further environment `variables`."""
    named = {
        "address": "127.0.0.1:0",
        "database_url": database(folder),
        "hash_key": HASH_KEY,
        "log_level": "warning",
        **settings,
    }
    ours = {f"EXCHANGE_SERVICE_{name.upper()}": value for name, value in named.items()}
    loop = asyncio.get_running_loop()
    began = loop.time()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *(command or ("-m", "exchange_service", "serve"))),
        env=environment(**ours, **(variables or {})),
        cwd=ROOT,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    passing: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(_START):
            address = await until_ready(process.stderr)
        seconds = loop.time() - began
        passing = asyncio.create_task(_pass_on(process.stderr))
        yield Serving(address, process.pid, seconds)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(_END):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        if passing is not None:
            await passing


async def _pass_on(lines: asyncio.StreamReader) -> None:
    """Pass on only lines about plugins' processes: under load the service logs many calls that were too late."""
    async for line in lines:
        if b"plugin_host" in line or b"Traceback" in line:
            sys.stderr.buffer.write(line)
            sys.stderr.flush()


def database(folder: Path) -> str:
    """The URL of the benchmark's database."""
    return f"sqlite:///{folder / 'service.db'}"


async def store(folder: Path, rows: Iterable[tuple[str, str, Mapping[str, Any]]]) -> None:
    """Store credentials, each of a user at an exchange; the texts and `metadata` as `venue_call` takes them."""
    accounts = await open_store(database(folder), HASH_KEY.encode())
    try:
        for user, exchange, row in rows:
            texts = {name: str(row[name]) for name in ("api_key", "api_secret", "passphrase") if row.get(name)}
            await accounts.put(Account(user, exchange), Credential.from_texts(texts, row.get("metadata")))
    finally:
        await accounts.close()


async def _play(exchange: str) -> None:
    """A plugin's simulator in a process of its own: its URL, and a credential of the account whose balance moves."""
    (point,) = entry_points(group="exchange_service.simulators", name=exchange)
    async with point.load()() as venue:
        # A benchmark sends more than the venue would take.
        venue.lift_limits()
        sys.stdout.write(json.dumps([venue.url, dict(venue.demo_credential("moving"))]) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


@asynccontextmanager
async def simulator(exchange: str) -> AsyncIterator[tuple[str, Mapping[str, Any]]]:
    """A simulated venue in a process of its own: its URL, and a credential that it knows."""
    async with program("benchmarks.programs", exchange) as running:
        yield running.greeting[0], running.greeting[1]


if __name__ == "__main__":
    asyncio.run(_play(sys.argv[1]))
