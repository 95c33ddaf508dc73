"""Servers that the tests share. A fixture that cannot give its server fails with a sentence; none ever skips."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from functools import cache
from typing import Any

# gRPC reads it when it is imported. Its handlers for a fork otherwise crash one in fourteen of the processes
# that a test starts by a fork while gRPC works, before their program begins.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"

import psycopg
import pytest
from sqlalchemy import make_url

from scripts import threats
from tests.engines import ENGINE_VARIABLES, NATIVE
from tests.plugin_reports import untold_skips
from tests.servers import PostgresServer, RedisServer, postgres_address, redis_address

# Every service of the tests reads it as a setting.
os.environ.update(ENGINE_VARIABLES)

# They need programs of their own, and have verbs of their own in the Makefile.
collect_ignore = ["alerts", "browser", "typescript", "web_application"]

# A property of a test: what the canary searched and found, as a sentence.
CANARY = "canary"
# A property of a test: what a plugin's process tried to reach, and what came of it, a line each.
RAID = "raid"
# A property of a test: how many inputs it gave to a decoder.
INPUTS = "inputs"
# A test of what the native engine cannot do, with the reason as a sentence.
NEEDS_GRPCIO = "needs_grpcio"
# A property of a test: the threat that it is about, and whether it attacks first with the mitigation switched off.
THREAT = "threat"

# The files that take longest, over ten seconds each, longest first. They begin first, because a worker that gets one at
# the end leaves the others without work. pytest-xdist keeps this order with --no-loadscope-reorder.
LONGEST_FILES = (
    "faults/test_evil_plugins.py",
    "tests/test_every_exchange_malformed.py",
    "tests/test_plugin_host.py",
    "faults/test_plugin_trust_attacks.py",
    "tests/test_ccxt_generic_contract.py",
    "tests/test_ccxt_generic_key_forms.py",
    "tests/test_credential_prompt.py",
    "faults/test_connection_attacks.py",
    "faults/test_frame_attacks.py",
    "tests/test_canary.py",
    "e2e/test_rolling_restart.py",
    "e2e/test_pushes.py",
    "tests/test_cli.py",
    "tests/test_docs.py",
    "e2e/test_http.py",
    "e2e/test_connecting.py",
    "credentials/test_sealing.py",
    "credentials/test_rewriting.py",
    "credentials/test_outages.py",
    "faults/test_redis_attacks.py",
    "console/test_accounts_page.py",
    "console/test_connect_sheet.py",
    "faults/test_web_attacks.py",
    "e2e/test_scopes.py",
    "faults/test_token_attacks.py",
    "faults/test_neighbour_attacks.py",
    "e2e/test_two_users.py",
    "e2e/test_sealed_service.py",
    "e2e/test_replicas.py",
    "e2e/test_pushes_of_replicas.py",
    "tests/test_watches.py",
    "e2e/test_streams.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _place(item.path.as_posix()))


@cache
def _place(path: str) -> int:
    """Where the file stands among the longest; behind them all if it is not one."""
    return next((place for place, name in enumerate(LONGEST_FILES) if path.endswith(name)), len(LONGEST_FILES))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if a test of the contract was skipped for a plugin of ours and its report does not say so."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(session.config, "workerinput"):
        return
    untold = untold_skips(reporter.stats.get("passed", ()), reporter.stats.get("skipped", ()))
    if untold:
        reporter.write_line("")
        for line in untold:
            reporter.write_line(line)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threats", action="store_true", help="print how the attack of each threat ended")


def pytest_itemcollected(item: pytest.Item) -> None:
    for mark in item.iter_markers(THREAT):
        item.user_properties.append((THREAT, (mark.args[0], mark.kwargs.get("attack", False))))
    if NATIVE and (mark := item.get_closest_marker(NEEDS_GRPCIO)) is not None:
        item.add_marker(pytest.mark.skip(reason=mark.args[0]))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what the canary searched and how the attacks ended, also over the workers of pytest-xdist."""
    outcomes: list[tuple[str, bool, bool]] = []
    inputs: list[int] = []
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            when = getattr(report, "when", "")
            for name, value in getattr(report, "user_properties", ()):
                if name in (CANARY, RAID) and when == "teardown":
                    terminalreporter.write_line(value)
                elif name == INPUTS and when == "call":
                    inputs.append(value)
                elif name == THREAT and (when == "call" or outcome in ("failed", "error")):
                    outcomes.append((*value, outcome == "passed"))
    if inputs:
        terminalreporter.write_line(f"fuzz: {sum(inputs):,} inputs to {len(inputs)} decoders")
    for line in threats.outcome_lines(outcomes) if config.getoption("threats") else ():
        terminalreporter.write_line(line)


@pytest.fixture
def silent_address() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The address of a Redis that tests share: use keys of your own, and never flush or stop it."""
    with redis_address() as address:
        yield address


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis process of the test's own, to kill, freeze and start again."""
    with RedisServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL of this test process, to freeze and stop; the test that does so brings it back."""
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a PostgreSQL that tests share; its user may create databases and roles."""
    with postgres_address(lambda: request.getfixturevalue("postgres_server")) as address:
        yield address


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """The address of an empty database of the test's own."""
    yield from _database(postgres_url)


@pytest.fixture
def own_postgres_database(postgres_server: PostgresServer) -> Iterator[str]:
    """The same in the server that the test may freeze and stop."""
    yield from _database(postgres_server.url)


def _database(server: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield make_url(server).set(database=name).render_as_string(hide_password=False)
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
