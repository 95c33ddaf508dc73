"""Attacks on the service's own process from another program of its user, and accidents at the start of a plugin's: each
first succeeds with the mitigation switched off, and then fails."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
from structlog.testing import capture_logs

from exchange_service.plugin_host.child import ChildProcess
from exchange_service.plugin_host.launch import LaunchSpec, StartFailed
from exchange_service.plugin_host.process import PluginProcess
from tests.test_cli import environment
from tests.test_plugin_host import config, guest, guest_manifest, policy
from tests.test_runtime import address_of

__all__ = ["guest"]

SECRET = "the-hash-key-of-this-service"
HIDDEN = "from exchange_service.cli import main; main()"
UNHIDDEN = "from exchange_service import cli; cli.hide_process = lambda: None; cli.main()"
_SET_SECURE_BITS, _NO_ROOT = 28, 1

# What it prints: each attempt, and whether it succeeded.
ATTACKER = """
import ctypes, json, os, sys
process = int(sys.argv[1])
prctl = ctypes.CDLL(None, use_errno=True)

def environment():
    assert sys.argv[2].encode() in open(f"/proc/{process}/environ", "rb").read()

def open_files():
    assert os.readlink(f"/proc/{process}/fd/{os.listdir(f'/proc/{process}/fd')[0]}")

def memory():
    area = [line.split()[0] for line in open(f"/proc/{process}/maps") if line.rstrip().endswith("[heap]")][0]
    with open(f"/proc/{process}/mem", "rb") as file:
        file.seek(int(area.partition("-")[0], 16))
        assert file.read(4096)

def debugger():
    prctl.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
    if prctl.ptrace(16, process, None, None):
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(process, 0)
    prctl.ptrace(17, process, None, None)

done = {}
for way in (environment, open_files, memory, debugger):
    try:
        way()
        done[way.__name__] = True
    except OSError:
        done[way.__name__] = False
print(json.dumps(done))
"""


def without_roots_rights() -> None:
    """Let the next program have no more rights than any user's, also if root runs it."""
    ctypes.CDLL(None).prctl(_SET_SECURE_BITS, _NO_ROOT, 0, 0, 0)


@contextmanager
def serving_as_a_user(home: Path, program: str) -> Iterator[int]:
    """`serve`; its process id once it serves."""
    command = [sys.executable, "-c", program, "serve", "--address", "127.0.0.1:0"]
    with subprocess.Popen(
        command,
        env=environment(home, EXCHANGE_SERVICE_HASH_KEY=SECRET),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=without_roots_rights,
    ) as process:
        try:
            address_of(process)
            yield process.pid
        finally:
            process.kill()


def attack(process: int) -> dict[str, bool]:
    command = [sys.executable, "-c", ATTACKER, str(process), SECRET]
    done = subprocess.run(command, check=True, capture_output=True, timeout=30, preexec_fn=without_roots_rights)
    found: dict[str, bool] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux hides a process from its own user")
@pytest.mark.threat("T31", attack=True)
def test_another_program_of_the_user_looks_into_the_service_unless_it_hides(tmp_path: Path) -> None:
    with serving_as_a_user(tmp_path, UNHIDDEN) as process:
        found = attack(process)
        # Yama, where it is on, lets a program debug its own children only.
        guarded = {"memory", "debugger"} if Path("/proc/sys/kernel/yama/ptrace_scope").exists() else set()
        assert {name for name, done in found.items() if not done} <= guarded
    with serving_as_a_user(tmp_path, HIDDEN) as process:
        assert not any(attack(process).values())
        assert psutil.Process(process).rlimit(psutil.RLIMIT_CORE) == (0, 0)


# Starts programs under uvloop beside a gRPC server at work: how many were started, and how many of them crashed before
# they began. It ends at the first crash.
STARTS = """
import asyncio, json, os, sys
if sys.argv[1] == "command":
    import exchange_service.cli
else:
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "1"
import grpc, uvloop

async def answer(request, context):
    await asyncio.sleep(0.001)
    return b""

async def call(channel):
    while True:
        await channel.unary_unary("/a/b")(b"")
        await asyncio.sleep(0.003)

async def main(most):
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a", {"b": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    load = [asyncio.create_task(call(channel)) for _ in range(2)]
    started = crashed = 0
    while started < most and not crashed:
        process = await asyncio.create_subprocess_exec("/bin/cat", stdin=-1, stdout=-1, stderr=-3)
        started += 1
        try:
            process.stdin.write(b"x")
            process.stdin.close()
        except RuntimeError:
            pass
        await process.stdout.read()
        crashed += await process.wait() < 0
    print(json.dumps([started, crashed]), flush=True)
    os._exit(0)

uvloop.run(main(int(sys.argv[2])))
"""


@pytest.mark.threat("T32", attack=True)
def test_grpcs_fork_handlers_crash_processes_at_their_start_under_uvloop_and_the_command_has_them_off() -> None:
    def starts(kind: str, most: int) -> list[int]:
        command = [sys.executable, "-c", STARTS, kind, str(most)]
        variables = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
        done = subprocess.run(command, check=True, stdout=-1, stderr=-3, timeout=90, env=variables)
        found: list[int] = json.loads(done.stdout)
        return found

    # A crash is a matter of chance: of one process's threads more than of the number of its starts.
    assert any(starts("handlers", 800)[1] for _ in range(5))
    assert starts("command", 200) == [200, 0]


def crashing_at_first(monkeypatch: pytest.MonkeyPatch, crashes: int) -> list[int]:
    """Let so many processes crash at once in place of their reapers; returns the list of all starts."""
    spawn, starts = LaunchSpec.spawn, []

    async def spawned(spec: LaunchSpec, *, stderr: int) -> ChildProcess:
        starts.append(len(starts))
        if len(starts) > crashes:
            return await spawn(spec, stderr=stderr)
        crash = ("/bin/sh", "-c", "kill -SEGV $$")
        process = await ChildProcess.start(crash, environment={}, folder=spec.folder, stderr=stderr)
        if asyncio.get_running_loop().__class__.__module__.startswith("uvloop"):
            await process.wait()
        return process

    monkeypatch.setattr(LaunchSpec, "spawn", spawned)
    return starts


@pytest.mark.threat("T32")
@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop])
def test_a_process_that_crashed_before_it_began_is_started_once_more_at_once(
    guest: Path, monkeypatch: pytest.MonkeyPatch, loop: Any
) -> None:
    async def served() -> int:
        process = await PluginProcess.start(policy(), config(manifest))
        await process.end()
        return process.process_id

    with asyncio.Runner(loop_factory=loop) as runner:
        manifest = runner.run(guest_manifest())
        starts = crashing_at_first(monkeypatch, crashes=1)
        with capture_logs() as lines:
            assert runner.run(served()) > 0
        assert len(starts) == 2
        (line,) = [line for line in lines if line["event"] == "plugin_host.start_failed"]
        assert line["reason"] == "Its process ended at once (its reaper was killed)."
        monkeypatch.undo()


@pytest.mark.threat("T32")
async def test_one_that_crashes_twice_is_given_up_with_its_reason(guest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = await guest_manifest()
    starts = crashing_at_first(monkeypatch, crashes=9)
    with pytest.raises(StartFailed, match="ended at once"):
        await PluginProcess.start(policy(), config(manifest))
    assert len(starts) == 2
