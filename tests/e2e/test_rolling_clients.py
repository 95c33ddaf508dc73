"""A rolling restart under the clients of every language: 20 calls a second each and open streams, and nothing is lost.

`make nginx` and `make envoy` run it; the name of a way in `EXCHANGE_SERVICE_TEST_CLIENTS`: "round robin", "nginx" or
"envoy". Each language's program takes addresses and seconds, and says at its end: calls N failed M.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import ServiceError
from tests.e2e.test_rolling_restart import documented_service_config
from tests.proxies import WAYS, proxy
from tests.test_deploy import Replicas, start_replicas

ROOT = Path(__file__).parent.parent.parent
CLIENTS = ROOT / "clients"
GO = os.environ.get("EXCHANGE_SERVICE_TEST_GO", "")
WANTED = os.environ.get("EXCHANGE_SERVICE_TEST_CLIENTS", "")
# Seconds: of the calls, which is longer than both restarts; of shutdown_delay, as the files for proxies ask for; and
# between two restarts.
SECONDS, LEAVING, PAUSE = 45, 5, 4
RATE = 20
pytestmark = pytest.mark.skipif(not WANTED, reason="it takes a minute; see `make envoy`")


# Calls by the Python client with the documented service config.
PYTHON = """
import asyncio, json, sys, time
from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import ServiceError

async def main(addresses, seconds, config):
    failed = []
    options = [("grpc.service_config", config), ("grpc.max_reconnect_backoff_ms", 1000)]
    target = f"ipv4:{addresses}" if "," in addresses else addresses
    async with ExchangeServiceClient(target, options=options) as client:
        async def call():
            try:
                await client.get_balance("demo", "oanda")
            except ServiceError as error:
                failed.append(error)
                print(repr(error), file=sys.stderr)
        calls, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            calls.append(asyncio.create_task(call()))
            await asyncio.sleep(1 / 20)
        await asyncio.gather(*calls)
    print(f"calls {len(calls)} failed {len(failed)}")
    sys.exit(bool(failed))

asyncio.run(main(sys.argv[1], float(sys.argv[2]), sys.argv[3]))
"""


def programs(folder: Path) -> dict[str, list[str]]:
    """The command of each language's program that is here, without its arguments. Go's is built into `folder`."""
    commands = {"python, by hand": [sys.executable, "-c", PYTHON]}
    python = CLIENTS / "python" / "examples" / "steady.py"
    if python.exists():
        commands["python"] = [sys.executable, str(python)]
        commands["python, without asyncio"] = [*commands["python"], "--sync"]
    typescript = CLIENTS / "typescript" / "build" / "examples" / "steady.js"
    if typescript.exists():
        commands["typescript"] = ["node", str(typescript)]
    if GO:
        commands["go"] = [str(folder / "steady")]
        workspace = {"GOWORK": str(ROOT / ".go-modules" / "go.work"), "GOTOOLCHAIN": "local", "GOPROXY": "off"}
        build = [GO, "build", "-o", *commands["go"], "./examples/steady"]
        subprocess.run(build, cwd=CLIENTS / "go", env={**os.environ, **workspace}, check=True, timeout=300)
    return commands


def arguments(language: str, addresses: str) -> list[str]:
    if language == "go":
        return ["-addresses", addresses, "-seconds", str(SECONDS), "-rate", str(RATE)]
    if language == "typescript":
        return [str(SECONDS), *addresses.split(",")]
    if language == "python, by hand":
        config = documented_service_config()
        if "," not in addresses:
            config = {name: config[name] for name in config.keys() - {"loadBalancingConfig", "healthCheckConfig"}}
        return [addresses, str(SECONDS), json.dumps(config)]
    return [addresses, str(SECONDS)]


@contextmanager
def running(folder: Path, addresses: str) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Every language's program, calling."""
    with ExitStack() as stack:
        yield {
            language: stack.enter_context(
                subprocess.Popen(
                    [*command, *arguments(language, addresses)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for language, command in programs(folder).items()
        }


@contextmanager
def replicas_of(home: Path) -> Iterator[Replicas]:
    """Two replicas that leave as behind a proxy, and are restarted in turn at SIGHUP."""
    variables = {"EXCHANGE_SERVICE_SHUTDOWN_DELAY": str(LEAVING)}
    replicas = start_replicas(home, "--sqlite", "--pause", str(PAUSE), **variables)
    try:
        yield replicas
    finally:
        replicas.process.send_signal(signal.SIGINT)
        replicas.process.communicate(timeout=60)


@dataclass
class Watcher:
    """What a resuming stream has seen: the versions in their order, and what interrupted it."""

    versions: list[int] = field(default_factory=list)
    interruptions: list[str] = field(default_factory=list)

    async def watch(self, client: ExchangeServiceClient) -> None:
        def interrupted(error: ServiceError) -> None:
            self.interruptions.append(type(error).__name__)

        async for event in client.stream_balances("demo", resume=True, on_interruption=interrupted):
            if event.HasField("balance"):
                self.versions.append(event.balance.balance.version)


async def restart_all(replicas: Replicas) -> None:
    """A rolling restart, to its end."""
    replicas.process.send_signal(signal.SIGHUP)
    await asyncio.to_thread(replicas.line, "All replicas have been restarted")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("way", WAYS)
async def test_no_clients_call_fails_and_its_streams_go_on(tmp_path: Path, way: str) -> None:
    if way != WANTED:
        pytest.skip(f"it is run for {WANTED}")
    with ExitStack() as stack:
        replicas = stack.enter_context(replicas_of(tmp_path))
        addresses, target = ",".join(replicas.addresses), f"ipv4:{','.join(replicas.addresses)}"
        if way != "round robin":
            behind = stack.enter_context(proxy(way, tmp_path / way, replicas.addresses))
            addresses = target = behind.address
            credentials = behind.credentials()
            async with ExchangeServiceClient(behind.tls_address, credentials=credentials) as client:
                assert (await client.get_balance("demo", "oanda")).balance.venue_accounts
        async with ExchangeServiceClient(target) as client:
            watchers = [Watcher() for _ in range(8)]
            watching = [asyncio.create_task(watcher.watch(client)) for watcher in watchers]
            calling = stack.enter_context(running(tmp_path, addresses))
            await asyncio.sleep(2)
            await restart_all(replicas)
            seen = [len(watcher.versions) for watcher in watchers]
            assert all(process.poll() is None for process in calling.values()), (
                "the restarts took longer than the calls"
            )
            outputs = {language: await asyncio.to_thread(process.communicate) for language, process in calling.items()}
            for task in watching:
                task.cancel()
            await asyncio.wait(watching)
    for language, (output, errors) in outputs.items():
        last = output.strip().splitlines()[-1] if output.strip() else ""
        match = re.fullmatch(r"calls (\d+) failed (\d+)", last)
        assert match, f"{language}: {output}{errors}"
        print(f"{way}, {language}: {last}")
        assert match[2] == "0", f"{language}: {last}\n{errors[-3000:]}"
        assert int(match[1]) > 0.9 * RATE * SECONDS, f"{language}: {last}"
    for watcher, before in zip(watchers, seen, strict=True):
        assert watcher.versions == sorted(set(watcher.versions)), "a version came twice or went back"
        assert len(watcher.versions) > before, "nothing came after the restarts"
    assert any(watcher.interruptions for watcher in watchers)
    assert {name for watcher in watchers for name in watcher.interruptions} <= {"ShuttingDown", "ServiceUnreachable"}
