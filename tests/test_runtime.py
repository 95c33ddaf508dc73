"""What a serving process runs on: `serve` and `demo` on either event loop, and a garbage collector that stands back."""

from __future__ import annotations

import asyncio
import builtins
import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from exchange_service import gc_tuning
from exchange_service.cli.runtime import LoopMissing, loop_factory
from exchange_service.client import ExchangeServiceClient
from tests.harness import ScriptedPlugin, eventually, registry_of, serving, until
from tests.test_cli import call, environment
from tests.test_plugin_host import GUEST, install

# Started like the command, with a word of what it runs on at the end.
PROGRAM = """
import asyncio, gc, sys

from exchange_service.app import Service
from exchange_service.cli import main

waiting = Service.run_until_signal

async def telling(self, ready=lambda: None, leaving=lambda: None):
    def tell():
        ready()
        loop = asyncio.get_running_loop()
        print(type(loop).__module__.partition(".")[0], gc.get_threshold(), gc.get_freeze_count() > 10_000, flush=True)

    await waiting(self, tell, leaving)

Service.run_until_signal = telling
main()
"""


@contextmanager
def started(home: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, with pipes; it is gone at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment(home, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def address_of(process: subprocess.Popen[str]) -> str:
    """Where `serve` says that it listens."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        if match := re.search(r"Serving on ([\d.:]+),", line):
            return match[1]
        said.append(line)
    raise AssertionError(f"it did not come to serve, and ended with {process.wait()}: {''.join(said)}")


@pytest.mark.parametrize(("wanted", "runs_on"), [("auto", "uvloop"), ("uvloop", "uvloop"), ("asyncio", "asyncio")])
def test_serve_runs_on_the_requested_loop_and_ends_well(tmp_path: Path, wanted: str, runs_on: str) -> None:
    with started(tmp_path, "serve", "--address", "127.0.0.1:0", "--event-loop", wanted) as process:
        assert process.stdout is not None
        address = address_of(process)
        assert process.stdout.readline() == f"{runs_on} (700, 10, 1000) True\n"
        assert call(tmp_path, "health", "--address", address).returncode == 0
        process.send_signal(signal.SIGTERM)
        _, messages = process.communicate(timeout=20)
    assert process.returncode == 0
    assert messages.endswith("Stopped.\n")


def test_a_demo_does_the_same(tmp_path: Path) -> None:
    with started(tmp_path, "demo", "--address", "127.0.0.1:0") as process:
        assert process.stdout is not None
        assert "uvloop (700, 10, 1000) True\n" in process.stdout
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a_plugins_process_is_read_replaced_and_ended_with_the_service(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, loop: str
) -> None:
    site = tmp_path_factory.mktemp("site")
    install(site, "guest", GUEST)
    modules = {"PYTHONPATH": str(site)}
    store = ("credentials", "add", "--user", "alice", "--exchange", "guest", "--stdin")
    assert (await asyncio.to_thread(call, tmp_path, *store, stdin='{"api_key": "a-key"}', **modules)).returncode == 0
    with started(tmp_path, "serve", "--address", "127.0.0.1:0", "--event-loop", loop, **modules) as process:
        address = await asyncio.to_thread(address_of, process)
        async with ExchangeServiceClient(address) as client:

            async def processes() -> list[Any]:
                plugins = (await client.list_plugins()).plugins
                return [item for plugin in plugins if plugin.plugin.name == "guest" for item in plugin.processes]

            assert (await client.get_balance("alice", "guest")).balance.venue_accounts
            (first,) = await processes()
            psutil.Process(first.process_id).kill()

            async def replaced() -> bool:
                (now,) = await processes()
                return bool(now.process_id and now.process_id != first.process_id)

            await eventually(replaced)
        below = psutil.Process(process.pid).children(recursive=True)
        assert below
        process.send_signal(signal.SIGINT)
        await asyncio.to_thread(process.communicate, timeout=20)
    assert process.returncode == 0
    _, alive = await asyncio.to_thread(psutil.wait_procs, below, timeout=10)
    assert not alive


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with started(tmp_path, "serve", "--address", "127.0.0.1:0", "--shutdown-grace", "60") as process:
        address_of(process)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
    assert process.returncode in (0, -signal.SIGTERM)


@pytest.fixture
def without_uvloop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform without uvloop."""
    true_import = builtins.__import__

    def importing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "uvloop":
            raise ImportError(name)
        return true_import(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", importing)


@pytest.mark.usefixtures("without_uvloop")
def test_without_uvloop_pythons_own_loop_serves_unless_uvloop_is_requested() -> None:
    assert loop_factory("auto") is None
    with pytest.raises(LoopMissing, match="event_loop"):
        loop_factory("uvloop")


def test_uvloop_is_used_if_installed_unless_asyncio_is_requested() -> None:
    assert loop_factory("auto") is uvloop.new_event_loop
    assert loop_factory("asyncio") is None


async def test_a_service_inside_another_program_leaves_its_garbage_collector_alone(tmp_path: Path) -> None:
    threshold, frozen = gc.get_threshold(), gc.get_freeze_count()
    async with serving(tmp_path, registry=registry_of(ScriptedPlugin())):
        assert gc.get_threshold() == threshold
        # What another test of this process has frozen may end meanwhile.
        assert gc.get_freeze_count() <= frozen


def test_a_client_imports_neither_uvloop_nor_metrics() -> None:
    program = "import sys, exchange_service.client; print([n for n in sys.argv[1:] if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program, "uvloop", "prometheus_client"],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert done.stdout.strip() == "[]"


# Stays at the last line before the event loop begins. One long call would not do: Python heeds a signal between calls,
# and the one that comes just before a call begins is heeded when it ends.
SLOW_START = """
import time

import exchange_service.cli.operate as operate

def staying(*_):
    print("begun")
    while True:
        time.sleep(0.01)

operate.configure_logging = staying
"""

FIRST_PROCESS = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")


def can_be_first() -> bool:
    if shutil.which("unshare") is None:
        return False
    return not subprocess.run([*FIRST_PROCESS, "true"], stderr=subprocess.DEVNULL).returncode


@pytest.mark.skipif(not can_be_first(), reason="this machine allows no process numbers of their own")
@pytest.mark.parametrize("when", ["at the start", "while it stops"])
def test_sigterm_ends_also_the_first_process_of_a_container_at_once(tmp_path: Path, when: str) -> None:
    """The kernel keeps the default action of a signal from a process with the number 1, as an image's command has."""
    arguments = ("serve", "--address", "127.0.0.1:0", "--shutdown-delay", "60")
    program = (SLOW_START if when == "at the start" else "") + PROGRAM
    with subprocess.Popen(
        [*FIRST_PROCESS, sys.executable, "-u", "-c", program, *arguments],
        env=environment(tmp_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            (service,) = psutil.Process(process.pid).children()
            service.send_signal(signal.SIGTERM)
            if when == "while it stops":
                assert process.stderr is not None
                assert any("service.leaving" in line for line in process.stderr)
                service.send_signal(signal.SIGTERM)
            process.wait(10)
            assert process.returncode == 128 + signal.SIGTERM
        finally:
            process.kill()


@pytest.mark.parametrize("few", [True, False])
async def test_what_libraries_leave_in_circles_is_collected_each_minute_while_that_is_quick(
    few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Left:
        def __init__(self) -> None:
            self.circle = self

    monkeypatch.setattr(gc_tuning, "_EVERY", 0.01)
    monkeypatch.setattr(gc_tuning, "_FEW", 10**9 if few else 0)
    left = Left()
    gone = weakref.ref(left)
    # As what has been there for a while.
    gc.collect()
    del left
    collecting = asyncio.create_task(gc_tuning.collect_while_quick())
    try:
        if few:
            await until(lambda: gone() is None, "the collection")
        else:
            await asyncio.sleep(0.1)
            assert gone() is not None
    finally:
        collecting.cancel()
