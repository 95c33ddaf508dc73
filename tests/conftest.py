"""Servers that the tests share. A fixture that cannot give its server fails with a sentence; none ever skips."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from tests.servers import PostgresServer, RedisServer, postgres_address, redis_address

# A property of a test: what the canary searched and found, as a sentence.
CANARY = "canary"
# A property of a test: what a plugin's process tried to reach, and what came of it, a line each.
RAID = "raid"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what the canary searched, also over the workers of pytest-xdist."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "teardown":
                for name, value in getattr(report, "user_properties", ()):
                    if name in (CANARY, RAID):
                        terminalreporter.write_line(value)


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
