"""A part of the rig in a process of its own, which takes lines on its standard input and may answer with lines."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress

from benchmarks.names import ROOT


class LineProcess:
    """`python -m module arguments`, from `start` to `kill` or `end`."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._command = (sys.executable, "-m", module, *arguments)
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *, answers: bool = True) -> None:
        """Start it. `answers`: whether its standard output is for `line`; else it is that of this process."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE if answers else None,
        )

    @property
    def pid(self) -> int:
        """Its process."""
        return self._running.pid

    def tell(self, line: str) -> None:
        """Send it a line."""
        assert self._running.stdin is not None
        self._running.stdin.write(f"{line}\n".encode())

    async def line(self, patience: float) -> bytes:
        """Its next line, empty if it has ended. Raises TimeoutError if none comes for so many seconds."""
        assert self._running.stdout is not None
        async with asyncio.timeout(patience):
            return await self._running.stdout.readline()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal. Raises ProcessLookupError if it has ended."""
        self._running.send_signal(number)

    async def end(self, patience: float) -> None:
        """End its input, and wait for its end; it is killed after so many seconds."""
        assert self._running.stdin is not None
        self._running.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._running.wait()
                return
        await self.kill()

    async def kill(self) -> None:
        """End it without a word, also if it is stopped by a signal."""
        with suppress(ProcessLookupError):
            self._running.kill()
        await self._running.wait()

    @property
    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None, "it was not started"
        return self._process
