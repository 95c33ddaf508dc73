"""Our side: `exchange-service serve` in a child process with everything on, and accounts at the benchmarks' venue.

The venue is a plugin that is found by its entry point like any other, so the serving process does not differ from a
real one. Callers present a JWT; the quotas count every call, and are too high to refuse one.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import psutil

from benchmarks.engines import GRPCIO, NATIVE
from benchmarks.names import EXCHANGE, ROOT, environment, user
from benchmarks.runtime import Runtime, runtime_of
from exchange_service.client import ExchangeServiceClient
from exchange_service.credentials.sql import open_store
from exchange_service.model import Account, Credential

PROBE = "probe"
START_LIMIT = 30.0
_READY = re.compile(rb"Serving on ([^\s,]+)")


@dataclass(slots=True)
class Bed:
    """What several serving processes share: a database with accounts, the venue's plugin, a token, the venue's log."""

    folder: Path
    hash_key: str
    secret: str

    @property
    def database(self) -> str:
        """The database's URL."""
        return f"sqlite:///{self.folder / 'service.db'}"

    @property
    def token(self) -> str:
        """A JWT of a service that reads every user, for the `authorization` of each call."""
        claims = {"sub": "benchmark", "aud": "authenticated", "exp": int(time.time()) + 86_400}
        return jwt.encode({**claims, "exchange_service_users": "*"}, self.secret, algorithm="HS256")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of each call."""
        return (("authorization", f"Bearer {self.token}"),)

    @property
    def venue_log(self) -> Path:
        """One line for each time that a serving process asked the venue: user, process, time."""
        return self.folder / "venue.log"

    def venue_calls(self) -> int:
        """How often the venue was asked, by all processes."""
        return self.venue_log.read_bytes().count(b"\n") if self.venue_log.exists() else 0


@asynccontextmanager
async def bed(accounts: int = 1) -> AsyncIterator[Bed]:
    """A folder with a database of so many accounts, and the probe's; removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="exchange-service-benchmark-"))
    try:
        _install_venue(folder)
        made = Bed(folder, secrets.token_hex(16), secrets.token_hex(32))
        await _store_accounts(made, [PROBE, *(user(number) for number in range(accounts))])
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _install_venue(folder: Path) -> None:
    """The venue as pip would install it: its module, and the entry point by which the service finds it."""
    shutil.copy(ROOT / "benchmarks" / "venue" / "exchange_service_benchmark.py", folder)
    installed = folder / "exchange_service_benchmark-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: exchange-service-benchmark\nVersion: 1\n")
    (installed / "entry_points.txt").write_text("[exchange_service]\nbenchmark = exchange_service_benchmark\n")


async def _store_accounts(made: Bed, users: list[str]) -> None:
    store = await open_store(made.database, made.hash_key.encode())
    try:
        for name in users:
            await store.put(Account(name, EXCHANGE), Credential.from_texts({"api_key": f"key-of-{name}"}))
    finally:
        await store.close()


@dataclass(slots=True)
class Serving:
    """A serving process. `seconds` are from its start until it printed that it serves."""

    bed: Bed
    address: str
    pid: int
    seconds: float
    engine: str

    @property
    def port(self) -> int:
        """Where it listens on loopback."""
        return int(self.address.rpartition(":")[2])

    def memory(self) -> int:
        """Bytes that the process holds in memory."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def processor(self) -> float:
        """Seconds of processor that it has used."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def client(self) -> ExchangeServiceClient:
        """A real client, to check answers with."""
        return ExchangeServiceClient(self.address, token=self.bed.token)

    async def process(self) -> dict[str, Any]:
        """The state of the process, as the venue's plugin in it reports it."""
        async with self.client() as client:
            reply = await client.get_balance(PROBE, EXCHANGE, max_age=0)
            report: dict[str, Any] = json.loads(reply.balance.notes[0])
            return report

    async def runtime(self) -> Runtime:
        """Its loop, collector and options, for a ceiling. Raises RuntimeError if another engine serves."""
        process = await self.process()
        if process["native"] != (self.engine == NATIVE):
            raise RuntimeError(f"the service does not run on the engine {self.engine}")
        return runtime_of(process)


# All other settings are the defaults. No call may be refused because there are so many.
_SETTINGS = {
    "service_calls": "1000000",
    "service_refreshes": "1000000",
    "service_streams": "100000",
    "log_level": "warning",
    # In a process of its own the plugin could not report on the serving process.
    "plugin_processes": '{"benchmark": "in-process"}',
}


@asynccontextmanager
async def serving(
    made: Bed, *, venue: Mapping[str, str] | None = None, known: bytes = b"", **settings: str
) -> AsyncIterator[Serving]:
    """`exchange-service serve` on a port that it chooses. `venue` is the environment of the benchmarks' venue,
    `settings` the service's by name. Lines of its log with `known` in them are not shown."""
    named = {
        "address": "127.0.0.1:0",
        "database_url": made.database,
        "hash_key": made.hash_key,
        "jwt_secret": made.secret,
        **_SETTINGS,
        **settings,
    }
    named = {"shutdown_delay": "0", **named}
    variables = {f"EXCHANGE_SERVICE_{name.upper()}": value for name, value in named.items()}
    path = {
        "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(made.folder)))),
        "BENCHMARK_VENUE_LOG": str(made.venue_log),
    }
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "exchange_service", "serve"),
        env=environment(**variables, **path, **(venue or {})),
        cwd=made.folder,
        stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
    )
    draining: asyncio.Task[None] | None = None
    try:
        assert process.stderr is not None
        async with asyncio.timeout(START_LIMIT):
            address = await until_ready(process.stderr)
        seconds = time.perf_counter() - began
        draining = asyncio.create_task(_drain(process.stderr, known))
        yield Serving(made, address, process.pid, seconds, named.get("engine", GRPCIO))
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(15):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        if draining is not None:
            await draining
        if process.returncode:
            sys.stderr.write(f"exchange-service serve ended with {process.returncode}\n")


async def until_ready(lines: asyncio.StreamReader) -> str:
    """Read what the process prints until it serves. Returns its address; RuntimeError if it ends before."""
    output = b""
    while (ready := _READY.search(output)) is None:
        line = await lines.readline()
        if not line:
            raise RuntimeError(f"exchange-service serve ended: {output.decode(errors='replace')[-2000:]}")
        output += line
    return ready[1].decode()


async def _drain(lines: asyncio.StreamReader, known: bytes) -> None:
    """Show its log: a benchmark of a failing service would measure the failures."""
    while line := await lines.readline():
        if b"Stopped." not in line and not (known and known in line):
            sys.stderr.write(line.decode(errors="replace"))


def free_port() -> int:
    """A free port of loopback."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A ceiling's process."""

    port: int
    pid: int

    def memory(self) -> int:
        """Bytes that the process holds in memory."""
        return int(psutil.Process(self.pid).memory_info().rss)

    def processor(self) -> float:
        """Seconds of processor that it has used."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)


# The ceilings that the native engine has: grpc.aio's, which callers know, and its own library's.
AIO = "aio"
_NO_OPS = {AIO: "no_op", NATIVE: "native_no_op"}


def reply_file(folder: Path, reply: bytes) -> Path:
    """A file of these bytes, for the ceilings' programs."""
    file = folder / f"reply-{len(reply)}.bin"
    file.write_bytes(reply)
    return file


@asynccontextmanager
async def ceilings(folder: Path, reply: bytes, runtime: Runtime, engine: str) -> AsyncIterator[dict[str, Ceiling]]:
    """The no-op servers that answer with these bytes, by name: grpc.aio's, and for the native engine its own too."""
    file = reply_file(folder, reply)
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(running_ceiling(program, str(file), runtime.as_argument()))
            for name, program in _NO_OPS.items()
            if name in (AIO, engine)
        }


@asynccontextmanager
async def running_ceiling(name: str, *arguments: str) -> AsyncIterator[Ceiling]:
    """A program of `ceilings/` that serves, in a child process."""
    program = ROOT / "benchmarks" / "ceilings" / f"{name}.py"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program), *arguments),
        env=environment(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_LIMIT):
            line = await process.stdout.readline()
        if not line:
            raise RuntimeError(f"the ceiling {name} ended at once")
        yield Ceiling(int(line), process.pid)
    finally:
        # Closing ten thousand streams in order would take long, and nothing needs it.
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
