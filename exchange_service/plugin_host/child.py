"""A child process that is started, and waited for, in a thread of its own.

Python starts it by vfork there, in about a millisecond. An event loop that forks copies the tables of the service's
memory first, which holds up every call for ten milliseconds and more, and runs the fork handlers of gRPC.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

# A pool of its own: other work in threads, such as a slow look-up of a name, must not delay a health check.
_threads = ThreadPoolExecutor(2, thread_name_prefix="plugin processes")


async def run_in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """What `work` returns or raises, in one of the threads that serve plugins' processes."""
    return await asyncio.wrap_future(begin_in_thread(work, *arguments))


def begin_in_thread(work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> Future[T]:
    """As `run_in_thread`, not waited for; what is done at its end is done in that thread."""
    return _threads.submit(work, *arguments, **options)


class ChildProcess:
    """A running process with pipes for its input and output. `stderr` is None if it is not read."""

    def __init__(self, process: subprocess.Popen[bytes], ended: asyncio.Future[int]) -> None:
        self._process = process
        self._ended = ended
        # What is closed with it: transports, and the pipes that have none yet.
        self._pipes: list[Any] = _pipes_of(process)
        self.stdin: asyncio.WriteTransport
        self.stdout: asyncio.StreamReader
        self.stderr: asyncio.StreamReader | None = None

    @classmethod
    async def start(
        cls, command: Sequence[str], *, environment: Mapping[str, str], folder: Path, stderr: int
    ) -> ChildProcess:
        """Start `command` in `folder`; `stderr` is PIPE or DEVNULL of subprocess. Raises OSError. If it is cancelled,
        the process is killed once it has begun."""

        def begin() -> subprocess.Popen[bytes]:
            pipe = subprocess.PIPE
            return subprocess.Popen(  # noqa: S603 - ours, and no shell
                command, bufsize=0, env=environment, cwd=folder, stdin=pipe, stdout=pipe, stderr=stderr
            )

        # A task of its own, which is not cancelled: if uvloop's opening of a pipe is, it closes the pipe's number and
        # leaves the file open, which later closes the number again, of whatever it is by then.
        starting = asyncio.ensure_future(cls._start(begin))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_end_unwanted)
            raise

    @classmethod
    async def _start(cls, begin: Callable[[], subprocess.Popen[bytes]]) -> ChildProcess:
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
        self._replace_pipe(process.stdin, self.stdin)
        self.stdout = await self._reader(process.stdout)
        if process.stderr is not None:
            self.stderr = await self._reader(process.stderr)

    async def _reader(self, pipe: Any) -> asyncio.StreamReader:
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: _OutputReader(reader), pipe)
        self._replace_pipe(pipe, transport)
        return reader

    def _replace_pipe(self, pipe: Any, transport: asyncio.BaseTransport) -> None:
        self._pipes[self._pipes.index(pipe)] = transport

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait until it has ended. Returns its exit status, negative for a signal."""
        return await asyncio.shield(self._ended)

    def write(self, data: bytes) -> None:
        """Write to its input; nothing if it has ended."""
        # uvloop's, if it has ended already; asyncio says nothing then.
        with suppress(RuntimeError):
            self.stdin.write(data)

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        with suppress(ProcessLookupError):
            self._process.kill()

    def close(self) -> None:
        """Close the pipes: nothing more is read."""
        for pipe in self._pipes:
            pipe.close()


def _pipes_of(process: subprocess.Popen[bytes]) -> list[Any]:
    return [pipe for pipe in (process.stdin, process.stdout, process.stderr) if pipe is not None]


def _kill_unwanted(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for pipe in _pipes_of(process):
        pipe.close()


def _end_unwanted(starting: asyncio.Future[ChildProcess]) -> None:
    """End the process of a start that nobody waits for any more."""
    if not starting.cancelled() and starting.exception() is None:
        starting.result().kill()
        starting.result().close()


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
        if not self._tell(self._hand_over, process):
            _kill_unwanted(process)
        self._tell(self._finish, process.wait())

    def _tell(self, callback: Callable[[Any], None], value: object) -> bool:
        """Call `callback` in the loop; False if the loop is closed by now."""
        try:
            self._loop.call_soon_threadsafe(callback, value)
        except RuntimeError:
            return False
        return True

    def _fail(self, error: Exception) -> None:
        if not self.started.done():
            self.started.set_exception(error)

    def _hand_over(self, process: subprocess.Popen[bytes]) -> None:
        if self.started.done():
            # All tasks of the loop were cancelled meanwhile.
            _kill_unwanted(process)
        else:
            self.started.set_result(process)

    def _finish(self, status: int) -> None:
        if not self.ended.done():
            self.ended.set_result(status)
