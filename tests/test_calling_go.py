"""The Go client of clients/go: its own tests, every program and command of docs/calling-go.md, and streams and calls
through restarts of the service.

`make test-go` names the Go to use, and unpacks the modules that the client requires. Without it these tests are left
out.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount

from exchange_service.client import ExchangeServiceClient
from tests.e2e.test_rolling_restart import free_ports, serves
from tests.harness import serving
from tests.identities import SECRET, Authority, web_token
from tests.servers import RedisServer
from tests.test_cli import call
from tests.test_docs import shape
from tests.test_runtime import started

ROOT = Path(__file__).parent.parent
CLIENT = ROOT / "clients" / "go"
MODULES = ROOT / ".go-modules"
GO = os.environ.get("EXCHANGE_SERVICE_TEST_GO", "")
pytestmark = [
    pytest.mark.skipif(not GO, reason="`make test-go` has the Go to use"),
    pytest.mark.timeout(400),
]

EXAMPLES = ("list", "balance", "follow", "steady")
_BLOCK = re.compile(r"<!-- go: (?P<what>[\w ]+) -->\n```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)
# The addresses that the page shows.
_SHOWN = ("127.0.0.1:50051", "127.0.0.1:50052")
# Seconds for a program, and until a change at the venue has reached a stream.
LIMIT, CHANGE_LIMIT = 60.0, 20.0
# Seconds between the start of a replica and the end of the next one, as docs/operations.md asks for.
PAUSE = 2.0
TOKEN = "a-token-for-tests"


def blocks(what: str) -> list[str]:
    """The texts of the page's blocks with this mark."""
    page = (ROOT / "docs" / "calling-go.md").read_text()
    return [match["text"] for match in _BLOCK.finditer(page) if match["what"] == what]


def commands(what: str) -> list[tuple[str, str]]:
    """The commands of the page's blocks with this mark, with the output that it shows."""
    parts = [part for text in blocks(what) for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]]
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


def environment(workspace: Path | None = MODULES / "go.work", **extra: str) -> dict[str, str]:
    """What Go needs: no module proxy, no other toolchain, and modules of the workspace."""
    go = {"GOWORK": str(workspace) if workspace else "off", "GOTOOLCHAIN": "local", "GOPROXY": "off", "GOFLAGS": ""}
    return {**os.environ, "PATH": f"{Path(GO).parent}:{os.environ['PATH']}", **go, **extra}


def run(*arguments: str, cwd: Path = CLIENT, variables: dict[str, str] | None = None) -> str:
    """Run a program of which success is expected; returns what it prints."""
    done = subprocess.run(
        arguments, cwd=cwd, env=variables or environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built examples."""
    folder = tmp_path_factory.mktemp("examples")
    run("go", "build", "-o", f"{folder}/", *(f"./examples/{name}" for name in EXAMPLES))
    return folder


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module of a user, made by the commands of the page beside a checkout of this project."""
    folder = tmp_path_factory.mktemp("projects")
    (folder / "exchange-service").symlink_to(ROOT)
    own = folder / "balances"
    own.mkdir()
    for command, output in commands("the module"):
        assert output == ""
        run(*command.split(), cwd=own, variables=environment(None))
    module = (own / "go.mod").read_text()
    assert "exchange-service/exchangeservice => ../exchange-service/clients/go" in module
    replaced = re.sub(r"=> \./", f"=> {MODULES}/", (MODULES / "go.work").read_text())
    # A new module asks for the Go that made it.
    replaced = re.sub(r"^go .*", re.findall(r"^go .*", module, re.MULTILINE)[0], replaced)
    (folder / "go.work").write_text(replaced.replace("use ../clients/go", f"use {CLIENT}\nuse {own}"))
    return own


def build(application: Path, source: str, *addresses: str) -> Path:
    """Build a program of the page, which calls these addresses in the place of the page's."""
    for shown, address in zip(_SHOWN, addresses, strict=False):
        source = source.replace(shown, address)
    (application / "main.go").write_text(source)
    unformatted = run(str(Path(GO).with_name("gofmt")), "-l", "main.go", cwd=application)
    assert unformatted == "", f"gofmt would change\n{source}"
    workspace = environment(application.parent / "go.work")
    run("go", "vet", ".", cwd=application, variables=workspace)
    run("go", "build", "-o", "program", ".", cwd=application, variables=workspace)
    return application / "program"


@pytest.fixture(scope="module")
def demo_address() -> Iterator[str]:
    """A demo in a process of its own, on a free port."""
    command = [sys.executable, "-m", "exchange_service", "demo", "--address", "127.0.0.1:0"]
    variables = {**os.environ, "EXCHANGE_SERVICE_HTTP_ADDRESS": f"127.0.0.1:{free_ports(1)[0]}"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables) as process:
        assert process.stdout is not None
        listening = re.search(r"listens on (127\.0\.0\.1:\d+)", process.stdout.readline())
        assert listening
        yield listening[1]
        process.terminate()
        process.communicate(timeout=20)


def test_the_module_is_formatted_and_free_of_findings_and_passes_its_own_tests() -> None:
    assert run(str(Path(GO).with_name("gofmt")), "-l", ".") == ""
    run("go", "vet", "./...")
    assert re.search(r"^ok\s+exchange-service/exchangeservice\s", run("go", "test", "-count=1", "./..."), re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "output"), commands("against the demo"), ids=lambda value: value.partition("\n")[0][:60]
)
def test_the_commands_of_the_page_print_what_it_shows(
    programs: Path, demo_address: str, command: str, output: str
) -> None:
    program, *arguments = command.removeprefix("go run ./examples/").split()
    done = subprocess.run(
        [str(programs / program), *arguments, "-addresses", demo_address],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=environment(),
    )
    assert shape(done.stdout + done.stderr) == shape(output)
    assert (done.returncode == 0) == ("EXCHANGE_UNKNOWN" not in output)


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, r"\d+\.\d{4} EUR true\nno buying power\n"),
        (1, r"(oanda \d{16} \d+\.\d{4}\n)+(alive, accounts: 1\n)*that is enough\n"),
        (2, r"environment - .+\n"),
    ],
)
def test_the_programs_of_the_page_run_against_the_demo(
    application: Path, demo_address: str, number: int, shown: str
) -> None:
    sources = blocks("runs against the demo")
    assert len(sources) == 3
    program = build(application, sources[number], demo_address)
    printed = run(str(program))
    assert re.fullmatch(shown, printed), printed


async def test_the_program_with_tokens_tls_and_replicas_runs(application: Path, tmp_path: Path) -> None:
    (source,) = blocks("runs against two replicas with TLS")
    authority = Authority.create(tmp_path / "tls")
    certificate, key = authority.sign("service")
    async with OandaSimulator() as venue, AsyncExitStack() as stack:
        venue.add_token(TOKEN, SimulatedAccount("101-004-7654321-001", balance=Decimal("12.5000")))
        settings: dict[str, Any] = {
            "tls_certificate": certificate,
            "tls_key": key,
            "jwt_secret": SECRET,
            "venue_urls": {"oanda": venue.url},
        }
        replicas = [await stack.enter_async_context(serving(tmp_path, **settings)) for _ in range(2)]
        await replicas[0].store("oanda", user="alice", api_key=TOKEN)
        program = await asyncio.to_thread(build, application, source, *(one.service.address for one in replicas))
        shutil.copy(authority.file, application / "authority.pem")
        token = web_token("a-service", exchange_service_users="act-as")
        variables = environment(EXCHANGE_SERVICE_TOKEN=token)
        printed = await asyncio.to_thread(run, str(program), cwd=application, variables=variables)
        assert len(printed.splitlines()) == 4
        variables = environment(EXCHANGE_SERVICE_TOKEN=web_token("a-service", secret="another" * 8))
        with pytest.raises(AssertionError, match="CALLER_UNKNOWN"):
            await asyncio.to_thread(run, str(program), cwd=application, variables=variables)


@dataclass
class Followed:
    """A running `follow`, what it has printed, and that no version went back."""

    process: asyncio.subprocess.Process
    lines: list[dict[str, Any]] = field(default_factory=list)
    newest: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def read(self) -> None:
        """Read to the end."""
        assert self.process.stdout is not None
        async for text in self.process.stdout:
            line = json.loads(text)
            # A heartbeat that comes before an account is read has the caller's own version.
            for one in (line, *line.get("accounts", ())):
                version = one.get("version", 0)
                assert version >= self.newest or version == 0, f"{line} came after version {self.newest}"
                self.newest = max(self.newest, version)
            self.lines.append(line)
            async with self.changed:
                self.changed.notify_all()

    async def sees(self, equity: str) -> None:
        """Wait until the newest balance has this equity."""

        def seen() -> bool:
            balances = [line for line in self.lines if line["event"] == "balance"]
            return bool(balances) and Decimal(balances[-1]["equity"]) == Decimal(equity)

        try:
            async with asyncio.timeout(CHANGE_LIMIT), self.changed:
                await self.changed.wait_for(seen)
        except TimeoutError:
            pytest.fail(f"{equity} was not seen; the last lines were {self.lines[-4:]}")

    def interruptions(self) -> list[str]:
        """The reason of each time that it opened the stream again."""
        return [line.get("reason", "") for line in self.lines if line["event"] == "reconnecting"]


@asynccontextmanager
async def following(program: Path, addresses: str) -> AsyncIterator[Followed]:
    """`follow` for all accounts of the user, which is interrupted at the end and must end well."""
    arguments = (str(program), "-addresses", addresses, "-user", "demo")
    process = await asyncio.create_subprocess_exec(*arguments, stdout=PIPE, env=environment())
    followed = Followed(process)
    reader = asyncio.create_task(followed.read(), name="reader of follow")
    try:
        yield followed
        assert process.returncode is None, "follow has ended by itself"
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        assert await process.wait() == 0
        await reader


@dataclass
class Venue:
    """A simulated account that the test changes, and each equity that it has had."""

    account: SimulatedAccount
    equities: list[str] = field(default_factory=list)

    def change(self) -> str:
        """Add to it; returns its new equity."""
        self.account.balance += Decimal("1.2500")
        self.equities.append(str(self.account.balance + self.account.unrealized))
        return self.equities[-1]


@dataclass
class Replicas:
    """Two replicas with a Redis and a database in common, each of which can be ended and started again."""

    folder: Path
    ports: list[int]
    variables: dict[str, str]
    stack: AsyncExitStack
    processes: dict[int, subprocess.Popen[str]] = field(default_factory=dict)

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self.ports]

    async def start(self, port: int) -> None:
        """Start one, and wait until it serves."""
        arguments = ("serve", "--address", f"127.0.0.1:{port}", "--shutdown-delay", "1")
        process = self.stack.enter_context(started(self.folder, *arguments, **self.variables))
        self.processes[port] = process
        await serves(port, process)

    async def end(self, port: int, number: signal.Signals) -> None:
        """End one by a signal."""
        self.processes[port].send_signal(number)
        await asyncio.to_thread(self.processes[port].wait, 20)


@asynccontextmanager
async def two_replicas(folder: Path, venue: OandaSimulator) -> AsyncIterator[Replicas]:
    async with AsyncExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        variables = {
            "CACHE_URL": redis.url,
            "HASH_KEY": "a-hash-key-for-tests",
            "REPLICAS": "2",
            "VENUE_URLS": json.dumps({"oanda": venue.url}),
            "PUSH": "false",
            "POLL_INTERVAL": "0.3",
            "POLL_INTERVAL_STILL": "0.3",
            "HEARTBEAT_INTERVAL": "0.5",
        }
        named = {f"EXCHANGE_SERVICE_{name}": value for name, value in variables.items()}
        replicas = Replicas(folder, free_ports(2), named, stack)
        add = ("credentials", "add", "--user", "demo", "--exchange", "oanda", "--stdin")
        stored = await asyncio.to_thread(call, folder, *add, stdin=json.dumps({"api_key": TOKEN}), **named)
        assert stored.returncode == 0, stored.stderr
        for port in replicas.ports:
            await replicas.start(port)
        yield replicas


async def test_restarts_lose_no_change_bring_no_version_back_and_fail_no_call(tmp_path: Path, programs: Path) -> None:
    async with OandaSimulator() as simulator:
        venue = Venue(SimulatedAccount("101-004-7654321-001"))
        simulator.add_token(TOKEN, venue.account)
        equity = venue.change()
        async with two_replicas(tmp_path, simulator) as replicas:
            addresses = ",".join(replicas.addresses)
            async with following(programs / "follow", addresses) as followed:
                await followed.sees(equity)
                steady = await asyncio.create_subprocess_exec(
                    *(str(programs / "steady"), "-addresses", addresses, "-seconds", "14"),
                    stdout=PIPE,
                    env=environment(),
                )
                for port in replicas.ports:
                    await replicas.end(port, signal.SIGTERM)
                    await followed.sees(venue.change())
                    await replicas.start(port)
                    await followed.sees(venue.change())
                    # The pause that docs/operations.md asks for: callers find the replica again.
                    await asyncio.sleep(PAUSE)
                printed, _ = await steady.communicate()
                assert re.fullmatch(rb"calls 2\d\d failed 0\n", printed), printed
                assert steady.returncode == 0
                assert "SHUTTING_DOWN" in followed.interruptions()
                for port in replicas.ports:
                    await replicas.end(port, signal.SIGKILL)
                    await followed.sees(venue.change())
                    await replicas.start(port)
                assert "" in followed.interruptions()
                await asyncio.gather(*(replicas.end(port, signal.SIGKILL) for port in replicas.ports))
                equity = venue.change()
                await replicas.start(replicas.ports[1])
                await followed.sees(equity)
                async with ExchangeServiceClient(replicas.addresses[1]) as client:
                    fresh = await client.get_balance("demo", "oanda", max_age=0, known_version=followed.newest)
                assert Decimal(fresh.balance.summary.equity) == Decimal(equity)
            seen = [line["equity"] for line in followed.lines if line["event"] == "balance"]
            assert {Decimal(one) for one in seen} <= {Decimal(one) for one in venue.equities}


def test_follow_ends_where_nothing_was_ever_reached(programs: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    done = subprocess.run(
        [str(programs / "follow"), "-addresses", address], capture_output=True, text=True, timeout=LIMIT
    )
    assert done.returncode == 1
    assert f"the service was never reached at {address}" in done.stderr
