"""The programs that a benchmark starts beside itself: venues, serving processes, loads. Each ends with its block.

A program says that it is ready by one line; it ends when its standard input does, a serving process by SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from exchange_service.credentials.sql import open_store
from exchange_service.model import Account, Credential

ROOT = Path(__file__).parent.parent
HASH_KEY = "0123456789abcdef0123456789abcdef"
# Seconds.
_START, _END = 60.0, 30.0
_LONGEST_LINE = 2**24


def environment(**changes: str) -> dict[str, str]:
    """A child's environment: modules are found compiled, and no setting of the caller's own service comes along."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EXCHANGE_SERVICE_")}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    return kept | changes


@dataclass(frozen=True, slots=True)
class Program:
    """A program that runs. `said` is its first line of standard output, read as JSON."""

    process: asyncio.subprocess.Process
    said: Any

    async def ended(self) -> Any:
        """Let it end, and what it says last, read as JSON; None where it says nothing."""
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
            said = await process.stdout.readline()
        yield Program(process, json.loads(said))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@dataclass(frozen=True, slots=True)
class Serving:
    """A serving process; `seconds` are from its start until it said that it serves."""

    address: str
    pid: int
    seconds: float


@asynccontextmanager
async def serving(
    folder: Path, *command: str, variables: Mapping[str, str] | None = None, **settings: str
) -> AsyncIterator[Serving]:
    """A Python program that says "Serving on" by standard error when it serves, with the service's settings by name,
    and further environment `variables`."""
    named = {
        "address": f"127.0.0.1:{_free_port()}",
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
            while b"Serving on " not in (line := await process.stderr.readline()):
                if not line:
                    raise RuntimeError("the serving process ended at once")
                sys.stderr.buffer.write(line)
        seconds = loop.time() - began
        passing = asyncio.create_task(_pass_on(process.stderr))
        yield Serving(named["address"], process.pid, seconds)
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
    """Only what the service says of plugins' processes: under load it has much to say of calls that were too late."""
    async for line in lines:
        if b"plugin_host" in line or b"Traceback" in line:
            sys.stderr.buffer.write(line)
            sys.stderr.flush()


def database(folder: Path) -> str:
    """The URL of the benchmark's database."""
    return f"sqlite:///{folder / 'service.db'}"


async def store(folder: Path, rows: Iterable[tuple[str, str, Mapping[str, Any]]]) -> None:
    """Store credentials, each of a user at an exchange; the texts and `metadata` as `venue_call` takes them."""
    kept = await open_store(database(folder), HASH_KEY.encode())
    try:
        for user, exchange, row in rows:
            texts = {name: str(row[name]) for name in ("api_key", "api_secret", "passphrase") if row.get(name)}
            await kept.put(Account(user, exchange), Credential.from_texts(texts, row.get("metadata")))
    finally:
        await kept.close()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def _play(exchange: str) -> None:
    """A plugin's simulator, as a program: its URL, and a credential of the user who moves."""
    (point,) = entry_points(group="exchange_service.simulators", name=exchange)
    async with point.load()() as venue:
        sys.stdout.write(json.dumps([venue.url, dict(venue.demo_credential("moving"))]) + "\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


@asynccontextmanager
async def simulator(exchange: str) -> AsyncIterator[tuple[str, Mapping[str, Any]]]:
    """A simulated venue in a process of its own: its URL, and a credential that it knows."""
    async with program("benchmarks.programs", exchange) as running:
        yield running.said[0], running.said[1]


if __name__ == "__main__":
    asyncio.run(_play(sys.argv[1]))
