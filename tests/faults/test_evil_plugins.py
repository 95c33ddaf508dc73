"""A service with every evil plugin of tests/evil installed beside our own: what each deed leads to, while the callers
of other venues notice nothing.

The plugins are distributions that are built and installed here. The service is a process of its own, and so is each
plugin.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import pytest_asyncio
from exchange_service_ccxt_generic.simulator import BinanceSimulator
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount

from exchange_service.client import ExchangeServiceClient
from exchange_service.credentials.keysets import new_keyset
from exchange_service.credentials.sql import open_store
from exchange_service.errors import PluginFailed, PluginUnavailable, ServiceError, VenueTimeout
from exchange_service.model import Account, Credential
from exchange_service.operator.v1 import plugin_service_pb2
from exchange_service.plugin_host.sandbox import landlock_abi, level
from exchange_service.v1 import balance_pb2, exchange_service_pb2, exchange_service_pb2_grpc
from exchange_service.v1.exchange_service_pb2 import AccountSelector
from tests.conftest import RAID
from tests.engines import ENGINE_VARIABLES
from tests.harness import PATIENCE, Failure, balance_request, eventually, failure, totals, until
from tests.identities import Authority
from tests.servers import RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

ROOT = Path(__file__).parent.parent.parent
OANDA_SECRET = "oanda-canary-5f0c1e77a2-token"
EVIL_SECRET = "evil-canary-93b1d46e08-key"
PROGRAM = (str(Path(sys.executable).with_name("exchange-service")),)
# The same without what hides its memory from other programs of its user.
UNHIDDEN = (sys.executable, "-c", "from exchange_service import cli; cli.hide_process = lambda: None; cli.main()")
# Seconds that a venue has.
VENUE_TIMEOUT = 1.5
# Seconds: the longest that a caller of another venue may wait, also on a busy machine, and the longest that the event
# loop of the service may be blocked.
LONGEST_WAIT = 1.5
LONGEST_DELAY = 1.0
# Seconds in which a killed process of CCXT answers again on an idle machine.
BACK_WITHIN = 3.0
_HEARTBEAT = 0.2

DEEDS = {
    "evil-sleeps": ("sleeps",),
    "evil-spins": ("spins",),
    "evil-ignores": ("ignores",),
    "evil-leaks": ("leaks",),
    "evil-answers": (
        *("floats", "nans", "infinite", "honest_float", "nothing", "text"),
        *("rows_of_another_kind", "a_million_rows", "too_many_rows"),
    ),
    "evil-prints": ("prints", "breaks_its_log", "floods_the_pipe", "writes_lines_of_many_fields"),
    "evil-quits": ("quits",),
    "evil-crashes": ("crashes",),
    "evil-forks": ("forks",),
    "evil-hoards": ("grabs", "hoards"),
    "evil-revolts": ("revolts",),
    "evil-steals": ("steals",),
    "evil-wanders": ("wanders",),
    "evil-files": ("opens", "writes"),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all of them are installed."""
    wheels, folder = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    # What pip runs for each project, for all of them in one process.
    build = "import os, sys\nfrom hatchling.build import build_wheel\nfor project in sys.argv[2:]:\n"
    build += "    os.chdir(project)\n    build_wheel(sys.argv[1])\n"
    projects = sorted(path.parent for path in (ROOT / "tests" / "evil").glob("*/pyproject.toml"))
    subprocess.run([sys.executable, "-c", build, wheels, *projects], check=True, timeout=60, stdout=subprocess.DEVNULL)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", folder, *wheels.glob("*.whl")], check=True, timeout=60)
    return folder


def family(folder: Path) -> list[psutil.Process]:
    """Every process that was started with this folder for its files, or by such a process."""
    members = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and any(str(folder) in text for text in known_of(process)):
                members.append(process)
    return members


def known_of(process: psutil.Process) -> Iterator[str]:
    """Its command and, where another program of the user may see them, its folder and its environment."""
    yield from process.cmdline()
    with suppress(psutil.AccessDenied):
        yield process.cwd()
        yield from process.environ().values()


@contextmanager
def folder_of_processes() -> Iterator[Path]:
    """A folder with a short name, as sockets need it. Processes that still use it at the end are killed."""
    with tempfile.TemporaryDirectory(prefix="evil-", ignore_cleanup_errors=True) as name:
        try:
            yield Path(name)
        finally:
            for process in family(Path(name)):
                with suppress(psutil.Error):
                    process.kill()


@dataclass
class Served:
    """A service in a process of its own, and a client of it."""

    folder: Path
    process: asyncio.subprocess.Process
    client: ExchangeServiceClient
    address: str

    @property
    def log(self) -> str:
        return text_of(self.folder / "log")

    @property
    def stub(self) -> Any:
        return exchange_service_pb2_grpc.ExchangeServiceStub(self.client.channel)

    async def balance(self, exchange_id: str, user: str) -> dict[str, str]:
        """The venue's present totals, by asset."""
        reply = await self.client.get_balance(user, exchange_id, max_age=0)
        return totals(reply.balance)

    async def fails(self, exchange_id: str, user: str) -> Failure:
        """The failure of the call that does a deed."""
        return await failure(self.stub.GetBalance(balance_request(exchange_id, user_id=user), timeout=PATIENCE))

    async def works(self, exchange_id: str) -> None:
        """Wait until the plugin serves a harmless user."""

        async def serves() -> bool:
            try:
                return await self.balance(exchange_id, "well") == {"BTC": "1.50"}
            except PluginUnavailable:
                return False

        await eventually(serves, f"that {exchange_id} serves")

    async def plugin(self, exchange_id: str) -> plugin_service_pb2.PluginProcess:
        """The plugin's process as ListPlugins shows it."""
        name = exchange_id.replace("-", "_")
        (status,) = [item for item in (await self.client.list_plugins()).plugins if item.plugin.name == name]
        (process,) = status.processes
        return process

    async def restarted(self, exchange_id: str) -> plugin_service_pb2.PluginProcess:
        """Its process, once it has replaced the one that runs now or ran last."""
        before = await self.plugin(exchange_id)

        async def replaced() -> bool:
            now = await self.plugin(exchange_id)
            running = now.state == plugin_service_pb2.PLUGIN_PROCESS_STATE_RUNNING
            return running and now.restart_count > 0 and now.process_id != before.process_id

        if before.restart_count == 0 or before.state != plugin_service_pb2.PLUGIN_PROCESS_STATE_RUNNING:
            await eventually(replaced, f"that {exchange_id} is started again")
        return await self.plugin(exchange_id)


@asynccontextmanager
async def served(
    folder: Path,
    site: Path,
    *,
    program: Sequence[str] = PROGRAM,
    credentials: grpc.ChannelCredentials | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    """`exchange-service serve` with these settings, with credentials for every deed.

    `credentials`: the client's, for TLS.
    """
    database = f"sqlite:///{folder / 'credentials.db'}"
    await store_credentials(database, folder)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("EXCHANGE_SERVICE_")},
        **ENGINE_VARIABLES,
        **{f"EXCHANGE_SERVICE_{name.upper()}": as_text(value) for name, value in settings.items()},
        "EXCHANGE_SERVICE_DATABASE_URL": database,
        "EXCHANGE_SERVICE_LOG_FORMAT": "json",
        "PYTHONPATH": str(site),
        "TMPDIR": str(folder),
    }
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(*program, "serve", "--address", "127.0.0.1:0"), env=environment, stderr=log, start_new_session=True
        )
    try:
        address = await address_of(process, folder / "log")
        async with ExchangeServiceClient(address, timeout=PATIENCE, credentials=credentials) as client:
            yield Served(folder, process, client, address)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def text_of(file: Path) -> str:
    return file.read_text(errors="replace")


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


async def address_of(process: asyncio.subprocess.Process, log: Path) -> str:
    """Its address, once it serves: reading the manifests of all third-party plugins takes a while."""
    deadline = time.monotonic() + 60
    while not (match := re.search(r"Serving on (127\.0\.0\.1:\d+)", text_of(log))):
        assert process.returncode is None, text_of(log)[-3000:]
        assert time.monotonic() < deadline, "the service did not begin to serve"
        await asyncio.sleep(0.05)
    return match[1]


async def store_credentials(database: str, folder: Path) -> None:
    store = await open_store(database, b"0123456789abcdef")
    metadata = {"loot": str(folder / "loot")}
    for exchange_id, deeds in DEEDS.items():
        for user in ("well", *deeds):
            await store.put(Account(user, exchange_id), Credential.from_texts({"api_key": EVIL_SECRET}, metadata))
    await store.put(Account("well", "honest-watch"), Credential.from_texts({"api_key": "the watch has none"}))
    await store.put(Account("steady", "oanda"), Credential.from_texts({"api_key": OANDA_SECRET}))
    await store.put(Account("steady", "binance"), Credential.from_texts(WALLET))
    await store.close()


WALLET = BinanceSimulator().demo_credential("moving") or {}


@dataclass
class SteadyLoad:
    """Callers of other venues that call without a pause: their errors, and their longest waits in seconds."""

    served: Served
    errors: list[str] = field(default_factory=list)
    worst: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def begin(self) -> None:
        """Forget the measurements so far."""
        self.errors, self.worst, self.counts = [], {}, {}

    def _record(self, what: str, seconds: float) -> None:
        self.worst[what] = max(self.worst.get(what, 0.0), seconds)
        self.counts[what] = self.counts.get(what, 0) + 1

    async def _repeat(self, what: str, call: Callable[[], Awaitable[Any]]) -> None:
        while True:
            began = time.monotonic()
            try:
                await call()
            except ServiceError as error:
                self.errors.append(f"{what}: {error.reason} {error.message}")
            self._record(what, time.monotonic() - began)
            # With the polling for the stream less than the half of OANDA's limit that one account may use.
            await asyncio.sleep(0.08)

    async def _follow(self) -> None:
        last = time.monotonic()
        try:
            async for _ in self.served.client.stream_balances("steady", [AccountSelector(exchange_id="oanda")]):
                last, before = time.monotonic(), last
                self._record("stream", last - before)
        except ServiceError as error:
            self.errors.append(f"stream: {error.reason} {error.message}")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[SteadyLoad]:
        client = self.served.client
        tasks = [
            asyncio.create_task(self._repeat("balance", lambda: client.get_balance("steady", "oanda", max_age=0))),
            asyncio.create_task(self._repeat("catalogue", client.list_exchanges)),
            asyncio.create_task(self._follow()),
        ]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def assert_undisturbed(self) -> None:
        """Check that every caller was served all the time, and by the same process."""
        before = self.counts.copy()

        async def once_more() -> bool:
            return all(self.counts.get(what, 0) > before.get(what, 0) for what in ("balance", "catalogue", "stream"))

        await eventually(once_more, "that each of them is served once more")
        assert self.errors == []
        assert {what: seconds for what, seconds in self.worst.items() if seconds > LONGEST_WAIT} == {}
        delay = float((await self.served.balance("honest-watch", "well"))["DELAY"])
        assert delay < LONGEST_DELAY
        assert (await self.served.plugin("honest-watch")).process_id == self.served.process.pid
        assert self.served.process.returncode is None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(site: Path) -> AsyncIterator[Served]:
    """The service with all plugins installed; its end is checked as well."""
    with folder_of_processes() as folder:
        async with OandaSimulator() as oanda, BinanceSimulator() as binance:
            oanda.add_token(OANDA_SECRET, SimulatedAccount("101-004-7654321-001", moving=True))
            binance.demo_credential("moving")
            settings = {
                "venue_urls": {"oanda": oanda.url, "binance": binance.url},
                "plugin_processes": {"honest_watch": "in-process"},
                "plugin_memory": {"evil_hoards": 160},
                "venue_timeout": VENUE_TIMEOUT,
                "heartbeat_interval": _HEARTBEAT,
                "poll_interval": 0.2,
            }
            async with served(folder, site, **settings) as running:
                yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def load(service: Served) -> AsyncIterator[SteadyLoad]:
    async with SteadyLoad(service).running() as load:
        await service.balance("honest-watch", "well")
        yield load


@pytest_asyncio.fixture(loop_scope="module")
async def evil(service: Served, load: SteadyLoad) -> AsyncIterator[Served]:
    """The service under the load of other callers, which must not have noticed anything when the test ends."""
    await service.balance("honest-watch", "well")
    load.begin()
    yield service
    await load.assert_undisturbed()


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("raises", "Importing evil_raises failed with RuntimeError in evil_raises, line "),
        ("exits", "Importing evil_exits failed with SystemExit in evil_exits, line "),
        ("vanishes", "Its process ended "),
        ("misspells", "The hook fetch_balance takes other arguments than the plugin API says"),
        ("lies", "The hook exchange_manifest says that it returns dict"),
        (
            "babbles",
            "In its manifest, exchanges[0] ('evil-babbles').asset_types should be a text and is of the type list.",
        ),
    ],
)
async def test_one_that_cannot_be_loaded_is_a_problem_with_its_reason_and_its_exchanges_are_not_listed(
    evil: Served, name: str, reason: str
) -> None:
    listed = await evil.client.list_plugins()
    (problem,) = [item for item in listed.problems if item.plugin.name == f"evil_{name}"]
    assert problem.reason.startswith(reason)
    assert problem.plugin.distribution == f"evil-{name}"
    assert f"evil_{name}" not in [item.plugin.name for item in listed.plugins]
    assert f"evil-{name}" not in [exchange.id for exchange in await evil.client.all_exchanges(source="custom")]


@pytest.mark.threat("T12")
async def test_one_that_blocks_its_event_loop_is_named_in_place_of_its_venue_and_is_started_again(evil: Served) -> None:
    async def one(exchange_id: str, deed: str) -> None:
        await evil.works(exchange_id)
        first = await evil.plugin(exchange_id)
        began = time.monotonic()
        failed = await evil.fails(exchange_id, deed)
        assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "PLUGIN_UNAVAILABLE")
        assert time.monotonic() - began < VENUE_TIMEOUT + LONGEST_WAIT
        now = await evil.restarted(exchange_id)
        assert now.last_end == "It did not answer any more: the plugin blocked its event loop."
        assert now.process_id != first.process_id
        await until(lambda: not psutil.pid_exists(first.process_id), "the end of the old process")
        await evil.works(exchange_id)

    await asyncio.gather(one("evil-sleeps", "sleeps"), one("evil-spins", "spins"), ignoring(evil))


async def ignoring(evil: Served) -> None:
    """A call that ignores its cancellation. It runs beside others, because noticing it takes seconds."""
    await evil.works("evil-ignores")
    failed = await evil.fails("evil-ignores", "ignores")
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "VENUE_TIMEOUT")
    # The process still answers others.
    await evil.works("evil-ignores")
    assert (await evil.plugin("evil-ignores")).restart_count == 0
    now = await evil.restarted("evil-ignores")
    assert now.last_end == "1 of its calls ran on after their deadline although they were cancelled."
    await evil.works("evil-ignores")


@pytest.mark.threat("T12")
@pytest.mark.parametrize("deed", DEEDS["evil-answers"])
async def test_an_answer_that_is_not_a_balance_is_the_plugins_failure_and_reaches_no_caller(
    evil: Served, deed: str
) -> None:
    await evil.works("evil-answers")
    failed = await evil.fails("evil-answers", deed)
    assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "PLUGIN_FAILED")
    await evil.works("evil-answers")
    assert (await evil.plugin("evil-answers")).restart_count == 0


@pytest.mark.threat("T12")
@pytest.mark.parametrize(
    ("exchange_id", "deed", "end"),
    [
        ("evil-quits", "quits", "It ended by itself (exit status 7)."),
        ("evil-crashes", "crashes", "It ended by itself (ended by signal 11)."),
    ],
)
async def test_one_that_ends_its_process_in_a_call_is_unavailable_and_then_serves_again(
    evil: Served, exchange_id: str, deed: str, end: str
) -> None:
    await evil.works(exchange_id)
    failed = await evil.fails(exchange_id, deed)
    assert (failed.code, failed.reason) == (grpc.StatusCode.UNAVAILABLE, "PLUGIN_UNAVAILABLE")
    assert failed.retry_delay is not None
    now = await evil.restarted(exchange_id)
    assert (now.restart_count, now.last_end) == (1, end)
    await evil.works(exchange_id)


@pytest.mark.threat("T12")
async def test_a_task_that_tries_to_end_the_program_ends_its_plugins_process_alone(evil: Served) -> None:
    await evil.works("evil-revolts")
    with suppress(PluginUnavailable):
        await evil.balance("evil-revolts", "revolts")
    now = await evil.restarted("evil-revolts")
    assert now.last_end == "It ended by itself (exit status 1)."
    await evil.works("evil-revolts")


@pytest.mark.threat("T12")
async def test_one_that_leaks_tasks_and_sockets_fails_at_its_own_limit_and_the_service_holds_no_more_than_before(
    evil: Served,
) -> None:
    await evil.works("evil-leaks")
    before = open_files(evil.process)
    assert await evil.balance("evil-leaks", "leaks") == {"BTC": "1.50"}
    await evil.balance("evil-leaks", "leaks")
    with pytest.raises(PluginFailed):
        await evil.balance("evil-leaks", "leaks")
    await evil.works("evil-leaks")
    assert open_files(evil.process) < before + 20


def open_files(process: asyncio.subprocess.Process) -> int:
    """How many it has open; 0 if only root may see that of the service."""
    try:
        return psutil.Process(process.pid).num_fds()
    except psutil.AccessDenied:
        return 0


@pytest.mark.threat("T12")
async def test_one_that_asks_for_all_memory_is_refused_it_and_started_again_when_it_holds_too_much(
    evil: Served,
) -> None:
    await evil.works("evil-hoards")
    assert (await evil.fails("evil-hoards", "grabs")).reason == "PLUGIN_FAILED"
    assert (await evil.plugin("evil-hoards")).restart_count == 0
    # Its calls fail, or its process is replaced before they do.
    assert (await evil.fails("evil-hoards", "hoards")).reason in (
        "PLUGIN_FAILED",
        "PLUGIN_UNAVAILABLE",
        "VENUE_TIMEOUT",
    )
    now = await evil.restarted("evil-hoards")
    assert now.last_end.startswith("It used more memory than plugin_memory allows")
    await evil.works("evil-hoards")
    assert (await evil.plugin("evil-hoards")).memory_bytes < 160 * 1024 * 1024


@pytest.mark.threat("T12")
@pytest.mark.parametrize("deed", DEEDS["evil-files"])
async def test_one_that_opens_more_files_or_writes_longer_ones_than_allowed_fails_and_serves_on(
    evil: Served, deed: str
) -> None:
    await evil.works("evil-files")
    assert (await evil.fails("evil-files", deed)).reason == "PLUGIN_FAILED"
    assert all(path.stat().st_size <= 16 * 1024 * 1024 for path in evil.folder.glob("exchange-service-plugin-*/*"))
    await evil.works("evil-files")
    assert (await evil.plugin("evil-files")).restart_count == 0


@pytest.mark.threat("T12")
async def test_the_output_of_one_does_not_fill_the_log_and_its_secret_is_not_in_it(evil: Served) -> None:
    await evil.works("evil-prints")
    assert await evil.balance("evil-prints", "prints") == {"BTC": "1.50"}
    await evil.works("evil-prints")
    assert '"plugin": "evil_prints"' in evil.log
    assert_hidden(EVIL_SECRET, evil.log)
    assert len(evil.log) < 1024 * 1024


@pytest.mark.threat("T12")
async def test_lines_that_are_hard_to_parse_do_not_end_the_reading_of_its_log(evil: Served) -> None:
    await evil.works("evil-prints")
    assert await evil.balance("evil-prints", "breaks_its_log") == {"BTC": "1.50"}

    async def read() -> bool:
        return "taken nevertheless" in evil.log

    await eventually(read, "that its log is read")


@pytest.mark.threat("T12")
@pytest.mark.parametrize("deed", ["floods_the_pipe", "writes_lines_of_many_fields"])
async def test_one_that_floods_the_pipe_of_its_log_lines_delays_no_caller(
    evil: Served, load: SteadyLoad, deed: str
) -> None:
    await evil.works("evil-prints")
    assert await evil.balance("evil-prints", deed) == {"BTC": "1.50"}
    seen = load.counts.get("balance", 0)

    async def a_while() -> bool:
        return load.counts.get("balance", 0) > seen + 20

    await eventually(a_while, "that others are served meanwhile")
    os.kill((await evil.plugin("evil-prints")).process_id, signal.SIGKILL)


# What evil-raids tries, with the version of Landlock that refuses it.
ATTEMPTS = {
    **dict.fromkeys(("environment", "memory", "open files", "debugger", "environment of another plugin"), 1),
    **dict.fromkeys(("keyset file", "database file", "TLS key", "file in the home", "names in the home"), 1),
    **dict.fromkeys(("code in the service's packages", "file in the service's folder"), 1),
    **dict.fromkeys(("Redis", "the service's port", "a port of another program"), 4),
    **dict.fromkeys(("signal", "abstract socket"), 6),
}
# What other protections of the system may also refuse to a user who is not root.
FOR_ROOT = {"memory", "debugger", "environment of another plugin"}


def abstract_listener(name: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0{name}")
    listener.listen()
    return listener


async def raid(site: Path, redis: RedisServer, sandbox: str, program: Sequence[str]) -> dict[str, tuple[bool, str]]:
    """For each attempt of evil-raids whether it succeeded, and what came of it."""
    with folder_of_processes() as folder, tempfile.TemporaryDirectory() as home:
        authority = Authority.create(folder / "tls")
        certificate, key = authority.sign("service")
        (folder / "keyset.json").write_text(new_keyset().as_text())
        (folder / "keyset.json").chmod(0o600)
        (Path(home) / "id_ed25519").write_text("the user's own key")
        settings = {
            "allowed_plugins": ["evil-raids", "evil-sleeps"],
            "plugin_sandbox": sandbox,
            "cache_url": redis.url,
            "keyset_file": str(folder / "keyset.json"),
            "tls_certificate": str(certificate),
            "tls_key": str(key),
        }
        credentials = authority.channel_credentials()
        with abstract_listener(folder.name):
            async with served(folder, site, program=program, credentials=credentials, **settings) as running:
                await running.works("evil-sleeps")
                service = running.process.pid
                targets = {
                    **dict.fromkeys(("environment", "memory", "open files", "debugger", "signal"), service),
                    "environment of another plugin": (await running.plugin("evil-sleeps")).process_id,
                    "keyset file": settings["keyset_file"],
                    "database file": str(folder / "credentials.db"),
                    "TLS key": settings["tls_key"],
                    "file in the home": f"{home}/id_ed25519",
                    "names in the home": home,
                    "code in the service's packages": str(site / "raided.py"),
                    "file in the service's folder": str(folder / "raided"),
                    "Redis": redis.port,
                    "the service's port": int(running.address.rpartition(":")[2]),
                    "a port of another program": free_port(),
                    "abstract socket": folder.name,
                }
                assert set(targets) == set(ATTEMPTS)
                await store_targets(folder, targets)
                reply = await running.client.get_balance("raids", "evil-raids", max_age=0)
                (site / "raided.py").unlink(missing_ok=True)
                return {name: (done, text) for name, done, text in map(json.loads, reply.balance.notes)}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


async def store_targets(folder: Path, targets: dict[str, Any]) -> None:
    store = await open_store(f"sqlite:///{folder / 'credentials.db'}", b"0123456789abcdef")
    credential = Credential.from_texts({"api_key": EVIL_SECRET}, {"targets": json.dumps(targets)})
    await store.put(Account("raids", "evil-raids"), credential)
    await store.close()


@pytest.mark.needs_grpcio("The native engine has no TLS.")
@pytest.mark.threat("T11", attack=True)
@pytest.mark.threat("T30", attack=True)
async def test_a_plugin_reaches_whatever_the_services_user_may_unless_its_process_is_confined(
    site: Path, redis_server: RedisServer, record_property: Callable[[str, object], None]
) -> None:
    abi = landlock_abi()
    if not abi:
        pytest.skip(f"plugins' processes are kept to nothing here: {level('auto')}")
    off = await raid(site, redis_server, "off", UNHIDDEN)
    on = await raid(site, redis_server, "auto", PROGRAM)
    rows = [f"{name}: unconfined {off[name][1]}; confined {on[name][1]}" for name in ATTEMPTS]
    record_property(RAID, "\n".join([f"what a plugin's process tried ({level('auto')}):", *rows]))
    print("\n".join(rows))
    expected = set(ATTEMPTS) - (set() if os.geteuid() == 0 else FOR_ROOT)
    assert {name for name, (done, _) in off.items() if done} >= expected
    assert {name for name, (done, _) in on.items() if done} == {name for name, since in ATTEMPTS.items() if since > abi}


@pytest.mark.threat("T11", attack=True)
@pytest.mark.threat("T12", attack=True)
async def test_in_the_services_own_process_a_thief_finds_every_credential_and_a_sleeper_blocks_every_caller(
    site: Path,
) -> None:
    trusted = {
        "allowed_plugins": ["evil-steals", "evil-sleeps"],
        "plugin_processes": {"evil_steals": "in-process", "evil_sleeps": "in-process"},
    }
    with folder_of_processes() as folder:
        async with OandaSimulator() as oanda:
            oanda.add_token(OANDA_SECRET, SimulatedAccount("101-004-7654321-001"))
            async with served(folder, site, venue_urls={"oanda": oanda.url}, **trusted) as running:
                await running.balance("oanda", "steady")
                await running.balance("evil-steals", "steals")
                assert OANDA_SECRET in text_of(folder / "loot")
                sleeping = asyncio.create_task(running.fails("evil-sleeps", "sleeps"))

                async def blocked() -> bool:
                    try:
                        await running.stub.ListExchanges(exchange_service_pb2.ListExchangesRequest(), timeout=1.0)
                    except grpc.aio.AioRpcError as error:
                        return error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                    return False

                await eventually(blocked, "that no call is answered")
                running.process.kill()
                await running.process.wait()
                await asyncio.gather(sleeping, return_exceptions=True)


@pytest.mark.threat("T11")
async def test_a_plugin_finds_no_other_venues_credential_in_what_its_process_can_read(evil: Served) -> None:
    # Other plugins have sessions open, and listen somewhere.
    await asyncio.gather(evil.works("evil-steals"), evil.works("evil-wanders"), evil.works("evil-files"))
    await evil.balance("evil-steals", "steals")
    (file,) = [*evil.folder.glob("loot"), *evil.folder.glob("exchange-service-plugin-*/loot")]
    loot = text_of(file)
    # It does find its own.
    assert EVIL_SECRET in loot
    assert "exchange-service-plugin-" in loot
    assert_hidden(OANDA_SECRET, loot)
    assert_hidden(WALLET["api_secret"], loot)
    # Others listen, and refuse every later caller.
    answers = re.findall(r"asked \S+: (\w+)", loot)
    assert answers
    assert set(answers) <= {"refused", "ended", "silent"}


@pytest.mark.threat("T11")
async def test_a_host_that_the_manifest_does_not_name_gets_no_request(evil: Served) -> None:
    await evil.works("evil-wanders")
    failed = await evil.fails("evil-wanders", "wanders")
    assert (failed.code, failed.reason) == (grpc.StatusCode.INTERNAL, "PLUGIN_FAILED")
    assert "a host that its manifest does not name: collector.evil.example" in failed.message


@pytest.mark.threat("T12")
async def test_a_killed_process_of_ccxt_serves_again_within_seconds_and_callers_get_the_last_good_value_meanwhile(
    evil: Served,
) -> None:
    client = evil.client

    async def forced() -> bool:
        try:
            await client.get_balance("steady", "binance", max_age=0)
        except (PluginUnavailable, VenueTimeout):
            return False
        return True

    await eventually(forced, "that CCXT's process serves")
    # On a busy machine the imports alone take that long.
    imports = await time_of("import ccxt.async_support, exchange_service.plugin_host.server")
    sources: list[int] = []

    async def gentle() -> None:
        while True:
            reply = await client.get_balance("steady", "binance", max_age=0.001)
            sources.append(reply.freshness.source)
            await asyncio.sleep(0.05)

    load = asyncio.create_task(gentle())
    try:
        killed = await evil.plugin("ccxt-generic")
        os.kill(killed.process_id, signal.SIGKILL)
        began = time.monotonic()
        assert not await forced()
        await eventually(forced, "that a killed process serves again")
        took = time.monotonic() - began
        assert not load.done(), load.exception()
    finally:
        load.cancel()
        await asyncio.wait({load})
    assert took < max(BACK_WITHIN, 4 * imports)
    # A call that was under way while the process began again may have waited for it.
    assert balance_pb2.BALANCE_SOURCE_LAST_GOOD in sources or len(sources) <= 3
    now = await evil.plugin("ccxt-generic")
    assert (now.restart_count, now.last_end) == (1, "It ended by itself (ended by signal 9).")


async def leave_processes(running: Served) -> None:
    """Let the plugin start processes: one at import, and three kinds of them in a call."""
    await running.works("evil-forks")
    assert await running.balance("evil-forks", "forks") == {"BTC": "1.50"}

    async def all_sleep() -> bool:
        lines = [" ".join(process.cmdline()) for process in family(running.folder)]
        return sum(f"evil sleeper of {running.folder}" in line for line in lines) == 4

    await eventually(all_sleep, "that all of them sleep")


async def all_gone(folder: Path) -> None:
    async def gone() -> bool:
        return not family(folder)

    await eventually(gone, "that nothing is left")


@pytest.mark.threat("T12")
async def test_nothing_that_a_plugin_has_started_outlives_a_service_that_is_killed(site: Path) -> None:
    allowed = ["evil-forks", "evil-sleeps", "evil-ignores"]
    with folder_of_processes() as folder:
        async with served(folder, site, allowed_plugins=allowed) as running:
            await asyncio.gather(*(running.works(name) for name in allowed))
            busy = [asyncio.create_task(running.fails(name, name.removeprefix("evil-"))) for name in allowed[1:]]
            await leave_processes(running)
            running.process.kill()
            await running.process.wait()
            await asyncio.gather(*busy, return_exceptions=True)
        await all_gone(folder)


# The last test, because it ends the service that the others share.
@pytest.mark.threat("T12")
async def test_nothing_that_a_plugin_has_started_outlives_a_service_that_is_stopped_and_its_log_holds_no_secret(
    service: Served, load: SteadyLoad
) -> None:
    await leave_processes(service)
    load.begin()
    await load.assert_undisturbed()
    service.process.terminate()
    assert await asyncio.wait_for(service.process.wait(), PATIENCE) == 0
    await all_gone(service.folder)
    assert list(service.folder.glob("exchange-service-plugin-*")) == []
    assert_hidden(OANDA_SECRET, service.log)
    assert_hidden(EVIL_SECRET, service.log)
    assert len(service.log) < 2 * 1024 * 1024


async def time_of(code: str) -> float:
    """Seconds that another interpreter takes to run this now."""
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0
    return time.monotonic() - began


def assert_hidden(secret: str, text: str) -> None:
    for form in (secret, base64.b64encode(secret.encode()).decode().rstrip("=")):
        position = text.find(form)
        assert position < 0, f"found after {text[max(0, position - 200) : position]!r}"
