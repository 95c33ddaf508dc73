"""A child process that is started, and waited for, in a thread of its own.

Python starts it by vfork there, in about a millisecond. An event loop that forks copies the tables of the service's
memory first, which holds up every call for ten milliseconds and more, and runs the fork handlers of gRPC.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# A pool of its own: other work in threads, such as a slow look-up of a name, must not delay a health check.
_threads = ThreadPoolExecutor(2, thread_name_prefix="plugin processes")


async def run_in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """What `work` returns or raises, in one of the threads that serve plugins' processes."""
    return await asyncio.get_running_loop().run_in_executor(_threads, work, *arguments)


class ChildProcess:
    """A running process with pipes for its input and output. `stderr` is None if it is not read."""

    def __init__(self, process: subprocess.Popen[bytes], ended: asyncio.Future[int]) -> None:
        self._process = process
        self._ended = ended
        self._pipes: list[asyncio.BaseTransport] = []
        self.stdin: asyncio.WriteTransport
        self.stdout: asyncio.StreamReader
        self.stderr: asyncio.StreamReader | None = None

    @classmethod
    async def start(
        cls, command: Sequence[str], *, environment: Mapping[str, str], folder: Path, stderr: int
    ) -> ChildProcess:
        """Start `command` in `folder`; `stderr` is PIPE or DEVNULL of subprocess. Raises OSError."""

        def begin() -> subprocess.Popen[bytes]:
            pipe = subprocess.PIPE
            return subprocess.Popen(  # noqa: S603 - ours, and no shell
                command, bufsize=0, env=environment, cwd=folder, stdin=pipe, stdout=pipe, stderr=stderr
            )

        running = _Running(begin)
        child = cls(await running.started, running.ended)
        try:
            await child._open_pipes()
        except BaseException:
            child.kill()
            child.close()
            raise
        running.ended.add_done_callback(lambda _: child.stdin.close())
        return child

    async def _open_pipes(self) -> None:
        loop, process = asyncio.get_running_loop(), self._process
        self.stdin, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, process.stdin)
        self._pipes.append(self.stdin)
        self.stdout = await self._reader(process.stdout)
        if process.stderr is not None:
            self.stderr = await self._reader(process.stderr)

    async def _reader(self, pipe: Any) -> asyncio.StreamReader:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: _OutputReader(reader), pipe)
        self._pipes.append(transport)
        return reader

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait until it has ended. Returns its exit status, negative for a signal."""
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def close(self) -> None:
        """Close the pipes: nothing more is read."""
        for pipe in self._pipes:
            pipe.close()


class _OutputReader(asyncio.StreamReaderProtocol):
    """Reads a pipe, which is closed at its end."""

    def eof_received(self) -> bool:
        super().eof_received()
        return False


class _Running:
    """The thread that starts a process and waits for its end. `started` and `ended` are done in the loop."""

    def __init__(self, begin: Callable[[], subprocess.Popen[bytes]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._begin = begin
        self.started: asyncio.Future[subprocess.Popen[bytes]] = self._loop.create_future()
        self.ended: asyncio.Future[int] = self._loop.create_future()
        threading.Thread(target=self._run, name="plugin process", daemon=True).start()

    def _run(self) -> None:
        try:
            process = self._begin()
        except Exception as error:
            self._tell(self._fail, error)
            return
        self._tell(self._hand_over, process)
        self._tell(self._finish, process.wait())

    def _tell(self, callback: Callable[[Any], None], value: object) -> None:
        # The loop may be closed before a process has ended.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, value)

    def _fail(self, error: Exception) -> None:
        if not self.started.done():
            self.started.set_exception(error)

    def _hand_over(self, process: subprocess.Popen[bytes]) -> None:
        if not self.started.done():
            self.started.set_result(process)
            return
        # Its starter was cancelled meanwhile.
        process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()

    def _finish(self, status: int) -> None:
        if not self.ended.done():
            self.ended.set_result(status)
