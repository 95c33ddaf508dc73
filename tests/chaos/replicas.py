"""Replicas in processes of their own, that can be killed, frozen and started again at the same address."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import psutil

from benchmarks.names import ROOT, environment
from benchmarks.serving import free_port
from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import ServiceError
from tests.chaos.accounts import EXCHANGE, user_name
from tests.chaos.history import Footprint

# Seconds until a replica serves on a loaded machine, and until it has ended.
START_LIMIT, END_LIMIT = 60.0, 15.0
_READY = b"Serving on "
_OPEN = re.compile(r"^exchange_service_(?:calls|feeds|streams|fetches)_open (\S+)", re.MULTILINE)


class Replica:
    """One `exchange-service serve`, see the module `serve`. Its log is kept over restarts, to be searched."""

    def __init__(self, number: int, folder: Path, settings: Mapping[str, str]) -> None:
        self.number = number
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.generation = 0
        self.log = folder / f"replica-{number}.log"
        self.settings = dict(settings)
        self._metrics_port = free_port()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.returncode is None

    async def start(
        self, *, prefix: Sequence[str] = (), variables: Mapping[str, str] | None = None, wait: bool = True
    ) -> None:
        """Start it, and wait until it serves unless told otherwise. `prefix` are programs to start it with, such as
        prlimit; `variables` belong to this start alone. Raises RuntimeError if it ends."""
        self.generation += 1
        named = {"address": self.address, "metrics_address": f"127.0.0.1:{self._metrics_port}", **self.settings}
        own = {f"EXCHANGE_SERVICE_{name.upper()}": value for name, value in named.items()}
        paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        offset = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(*prefix, sys.executable, "-m", "tests.chaos.serve", "serve"),
                env=environment(**own, PYTHONPATH=paths, **(variables or {})),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            await self.until_serving(offset)

    async def until_serving(self, offset: int = 0) -> None:
        """Wait until it says in its log, from `offset` on, that it serves."""
        async with asyncio.timeout(START_LIMIT):
            while _READY not in (text := self.log.read_bytes()[offset:]):
                if not self.running:
                    raise RuntimeError(f"replica {self.number} ended: {text.decode(errors='replace')[-2000:]}")
                await asyncio.sleep(0.03)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it is there."""
        with suppress(ProcessLookupError):
            if self.running and self._process is not None:
                self._process.send_signal(number)

    def freeze(self) -> None:
        """Let it hang."""
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.signal(signal.SIGCONT)

    async def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)
        await self.ended()

    async def stop(self) -> int:
        """End it in order. Returns its exit code; it is killed if it takes too long."""
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(END_LIMIT):
                return await self.ended()
        except TimeoutError:
            await self.kill()
            return -9

    async def ended(self) -> int:
        """Wait for its end. Returns its exit code."""
        assert self._process is not None
        return await self._process.wait()

    async def ask(self, user: int, **options: Any) -> Any:
        """The balance of a user: the reply, or the ServiceError that came in its place. `options` as in the client."""
        async with ExchangeServiceClient(self.address) as client:
            try:
                return await client.get_balance(user_name(user), EXCHANGE, **options)
            except ServiceError as error:
                return error

    async def footprint(self, when: Literal["before", "after"]) -> Footprint:
        """What it holds now."""
        process = psutil.Process(self.pid)
        count = await asyncio.to_thread(self._open_count)
        memory = process.memory_info().rss
        files, threads = process.num_fds() - self._pooled(process), process.num_threads()
        return Footprint(self.number, when, time.monotonic(), files, memory, threads, count, self.generation)

    def _pooled(self, process: psutil.Process) -> int:
        """Its connections to Redis and to the database: pools keep what a busy moment has opened, up to their size."""
        ports = {urlsplit(self.settings[name]).port for name in ("cache_url", "database_url")}
        return sum(bool(one.raddr) and one.raddr.port in ports for one in process.net_connections("tcp"))

    def metrics(self) -> str:
        """Its metrics as text. Raises OSError if it does not answer."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def _open_count(self) -> int:
        return sum(int(float(count)) for count in _OPEN.findall(self.metrics()))
