"""A plugin's process is prepared, begun and waited for beside the event loop, whichever loop that is."""

from __future__ import annotations

import asyncio
import gc
import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from exchange_service.plugin_host import child as child_module
from exchange_service.plugin_host import launch, sandbox
from exchange_service.plugin_host.child import ChildProcess
from exchange_service.plugin_host.launch import prepare_in_thread
from exchange_service.plugin_host.process import PluginProcess
from tests.harness import until
from tests.test_plugin_host import config, guest, guest_manifest, policy

__all__ = ["guest"]

LOOPS = pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop])
Loop = Callable[[], asyncio.AbstractEventLoop]
ROOT = Path(__file__).parent.parent
ECHO = ("/bin/sh", "-c", "cat; echo said >&2; exit 3")


async def started(*command: str, stderr: int = subprocess.PIPE) -> ChildProcess:
    return await ChildProcess.start(command, environment={}, folder=Path("/"), stderr=stderr)


def noted_processes(patch: pytest.MonkeyPatch) -> tuple[list[subprocess.Popen[bytes]], threading.Event]:
    """The processes that are begun from now on, and what each waits for before it is: it is set."""
    begun, may_begin, popen = list[subprocess.Popen[bytes]](), threading.Event(), subprocess.Popen
    may_begin.set()

    def noted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        may_begin.wait()
        begun.append(popen(*arguments, **options))
        return begun[-1]

    patch.setattr(subprocess, "Popen", noted)
    return begun, may_begin


def test_no_event_loop_of_the_service_or_of_a_plugin_starts_a_process() -> None:
    packages = [ROOT / "exchange_service", *ROOT.glob("plugins/*/exchange_service_*")]
    sources = [file for package in packages for file in package.rglob("*.py")]
    assert len(sources) > 200
    by_the_loop = re.compile(r"create_subprocess_|\.subprocess_(exec|shell)\b")
    assert [str(file) for file in sources if by_the_loop.search(file.read_text(encoding="utf-8"))] == []


@LOOPS
def test_nothing_of_a_processs_start_is_done_by_the_loops_thread(
    guest: Path, monkeypatch: pytest.MonkeyPatch, loop: Loop
) -> None:
    done: list[tuple[str, bool]] = []

    def noted(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            done.append((work.__name__, threading.current_thread() is threading.main_thread()))
            return work(*arguments, **options)

        return run

    async def serve_once() -> None:
        manifest = await guest_manifest()
        done.clear()
        process = await PluginProcess.start(policy(), config(manifest))
        await process.end()

    monkeypatch.setattr(sandbox, "readable", noted(sandbox.readable))
    monkeypatch.setattr(subprocess, "Popen", noted(subprocess.Popen))
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(serve_once())
    assert done == [("readable", False), ("Popen", False)]


@LOOPS
def test_its_output_is_read_to_the_end_and_its_exit_status_is_known(loop: Loop) -> None:
    async def talk() -> None:
        child = await started(*ECHO)
        child.stdin.write(b"a line\n")
        assert await child.stdout.readline() == b"a line\n"
        child.stdin.close()
        assert child.stderr is not None
        assert await child.stderr.read() == b"said\n"
        assert await child.wait() == 3
        # It has ended, and is not killed again.
        child.kill()
        child.close()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(talk())


@LOOPS
def test_its_pipes_are_closed_when_it_has_ended(loop: Loop) -> None:
    async def end_one() -> None:
        child = await started(*ECHO)
        child.kill()
        assert await child.wait() == -9
        assert child.stderr is not None
        # What the killed one had started ends with its input.
        assert await child.stdout.read() == await child.stderr.read() == b""

    async def end_some() -> None:
        # The loop opens a file of its own with its first pipe.
        await end_one()
        await asyncio.sleep(0)
        before = psutil.Process().num_fds()
        for _ in range(5):
            await end_one()
        await until(lambda: psutil.Process().num_fds() == before, "its pipes")

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(end_some())


async def test_a_program_that_is_missing_is_an_error_of_the_start() -> None:
    with pytest.raises(FileNotFoundError):
        await started("/no/such/program")


async def test_a_start_that_is_cancelled_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, begin = noted_processes(monkeypatch)
    begin.clear()
    starting = asyncio.create_task(started("/bin/sleep", "60"))
    await asyncio.sleep(0)
    starting.cancel()
    begin.set()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await until(lambda: bool(begun) and begun[0].returncode == -9, "its end")


@LOOPS
@pytest.mark.parametrize("moment", ["_hand_over", "_open_pipes", "_replace_pipe"])
def test_a_start_that_is_cancelled_while_the_process_is_handed_over_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, loop: Loop, moment: str
) -> None:
    owner: Any = child_module._Running if moment == "_hand_over" else ChildProcess
    step, (begun, _) = getattr(owner, moment), noted_processes(monkeypatch)

    async def cancel_some() -> None:
        starting = asyncio.create_task(started("/bin/sleep", "60"))

        def cancelling(self: Any, *arguments: Any) -> Any:
            result = step(self, *arguments)
            starting.cancel()
            return result

        monkeypatch.setattr(owner, moment, cancelling)
        with pytest.raises(asyncio.CancelledError):
            await starting
        monkeypatch.setattr(owner, moment, step)
        await until(lambda: begun[-1].returncode == -9, "its end")

    async def cancel() -> None:
        # The loop opens a file of its own with its first pipe.
        await cancel_some()
        await asyncio.sleep(0)
        before = psutil.Process().num_fds()
        for _ in range(5):
            await cancel_some()
        # Fewer, if what another test has left is closed meanwhile.
        await until(lambda: psutil.Process().num_fds() <= before, "its pipes")
        begun.clear()
        gc.collect()
        assert psutil.Process().num_fds() <= before

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(cancel())


def test_a_process_whose_loop_is_closed_meanwhile_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, begin = noted_processes(monkeypatch)
    begin.clear()

    starting = list[asyncio.Task[Any]]()

    async def leave() -> None:
        starting.append(asyncio.create_task(started("/bin/sleep", "60")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(leave())
    begin.set()
    asyncio.run(until(lambda: bool(begun) and begun[0].returncode == -9, "its end"))


async def test_a_preparation_that_is_cancelled_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    prepare, prepared = launch.prepare_launch, list[Path]()

    def noted(*arguments: Any, **options: Any) -> launch.LaunchSpec:
        spec = prepare(*arguments, **options)
        prepared.append(spec.folder)
        return spec

    monkeypatch.setattr(launch, "prepare_launch", noted)
    preparing = asyncio.create_task(prepare_in_thread(policy()))
    await asyncio.sleep(0)
    preparing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await preparing
    await until(lambda: bool(prepared) and not prepared[0].exists(), "the end of its folder")
