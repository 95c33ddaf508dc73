"""What a service manager is told: over a true Unix datagram socket, by the running command and its parts."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from exchange_service.service_manager import ServiceManager
from tests.engines import NATIVE
from tests.test_runtime import started


@contextmanager
def listening(name: str) -> Iterator[socket.socket]:
    """A manager's socket; `name` as in NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        manager.settimeout(20)
        yield manager


def read(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().split("\n")


async def read_first(manager: socket.socket, line: str) -> list[str]:
    """The next message that begins with this line."""
    while (message := await asyncio.to_thread(read, manager))[0] != line:
        assert message == ["WATCHDOG=1"]
    return message


@pytest.mark.parametrize("engine", ["native"] if NATIVE else ["grpcio", "native"])
async def test_serve_says_when_it_is_ready_that_it_lives_and_when_it_leaves(tmp_path: Path, engine: str) -> None:
    if engine == "native":
        pytest.importorskip("pygrpc_native")
    name = f"@{secrets.token_hex(8)}"
    flags = ("--address", "127.0.0.1:0", "--shutdown-delay", "0.3", "--engine", engine)
    with (
        listening(name) as manager,
        started(tmp_path, "serve", *flags, NOTIFY_SOCKET=name, WATCHDOG_USEC="200000") as process,
    ):
        ready = await read_first(manager, "READY=1")
        assert ready[1].startswith("STATUS=Serving on 127.0.0.1:")
        assert await asyncio.to_thread(read, manager) == ["WATCHDOG=1"]
        process.send_signal(signal.SIGTERM)
        stopping = await read_first(manager, "STOPPING=1")
        assert stopping[1].startswith("STATUS=Leaving")
        # It lives while it leaves too, and is not ended for silence.
        assert await asyncio.to_thread(read, manager) == ["WATCHDOG=1"]
        await asyncio.to_thread(process.communicate, timeout=20)
    assert process.returncode == 0


def test_a_manager_is_reached_by_a_path_too(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    with listening(name) as manager:
        ServiceManager.from_environment({"NOTIFY_SOCKET": name}).ready("Serving.")
        assert read(manager) == ["READY=1", "STATUS=Serving."]


@pytest.mark.parametrize(
    ("variables", "watchdog"),
    [
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        # Another process is meant, from which this one has its environment.
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
        ({}, 0.0),
    ],
)
async def test_the_watchdog_is_for_the_process_that_it_names(variables: dict[str, str], watchdog: float) -> None:
    manager = ServiceManager.from_environment({"NOTIFY_SOCKET": "@nobody", **variables})
    assert manager.watchdog == watchdog
    if not watchdog:
        await manager.keep_alive()


async def test_without_a_manager_nothing_is_told_and_one_that_is_gone_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = ServiceManager.from_environment({"WATCHDOG_USEC": "3000000"})
    alone.ready("Serving.")
    alone.stopping("Leaving.")
    await alone.keep_alive()
    assert "not_told" not in capsys.readouterr().out
    gone = ServiceManager.from_environment({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    gone.ready("Serving.")
    gone.stopping("Leaving.")
    assert capsys.readouterr().out.count("No such file") == 1
