"""How a process that runs a plugin is started: what it is given, and what it is not.

It gets an environment of a few harmless names, a folder of its own as its home, no open file of ours, and limits of the
system. What this is and is not stands in docs/security.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

from exchange_service.model import Manifest
from exchange_service.plugin_host.protocol import read_manifest
from exchange_service.venues.registry import Introduction

_KEEPER = Path(__file__).with_name("reaper.py")
_PROGRAM = "exchange_service.plugin_host.main"
# What a plugin may know of the service's environment: where things are, and how texts and times are written.
_HARMLESS = (
    *("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONDONTWRITEBYTECODE", "PYTHONUTF8"),
)
MEBIBYTE = 1024 * 1024
_FOLDER = "exchange-service-plugin-"
# Characters that a Unix socket's path may have on every system.
_LONGEST_SOCKET = 100
# Seconds that a stranger has to say what it serves, at the start and when it looks for newer words.
_INTRODUCTION_LIMIT = 10.0
_REFRESH_LIMIT = 120.0
# Seconds that a keeper has to end.
_KEEPER_LIMIT = 5.0
# Bytes of what a stranger says of itself: callers are shown it with the catalogue.
_LONGEST_INTRODUCTION = 512 * 1024
INTRODUCE, REFRESH = "--introduce", "--refresh"
# What stands before the manifest of a plugin that may have a newer one later.
REFRESHES = b"+"


class StartFailed(Exception):
    """A process did not come to serve; the text is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How a plugin's processes are run. `memory` is in bytes: one that uses more is started anew.

    `stranger`: of somebody else's distribution, and so with closer limits.
    """

    name: str
    distribution: str
    memory: int
    stranger: bool

    def limits(self) -> dict[str, int]:
        """The system's limits, by their names in `resource`."""
        return {
            # Above the bound at which the process is started anew, so that this is for who allocates at one go.
            "RLIMIT_DATA": self.memory + max(self.memory // 2, 256 * MEBIBYTE),
            "RLIMIT_NOFILE": 256 if self.stranger else 4096,
            # Bytes of a file that it writes.
            "RLIMIT_FSIZE": 16 * MEBIBYTE if self.stranger else 256 * MEBIBYTE,
            "RLIMIT_CORE": 0,
        }

    @property
    def nice(self) -> int:
        """How far it stands back for the service where both want the processor."""
        return 10 if self.stranger else 5


@dataclass(frozen=True, slots=True)
class Launch:
    """All that is needed to start one process: `close` removes its folder."""

    command: tuple[str, ...]
    environment: dict[str, str]
    folder: Path
    first_line: bytes = field(repr=False)
    token: str = field(repr=False)

    @property
    def socket(self) -> str:
        """Where the process listens."""
        return str(self.folder / "socket")

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def prepare(terms: Terms, instead: str = "") -> Launch:
    """A folder that only this user may enter, and the command of the keeper for a program that serves in it, or does
    `instead` what the flag says."""
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
    if len(str(folder / "socket")) > _LONGEST_SOCKET:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix=_FOLDER, dir="/tmp"))
    token = secrets.token_hex(32)
    # -P: the folder that it runs in holds no modules.
    program = [sys.executable, "-P", "-m", _PROGRAM, terms.name, terms.distribution, instead or str(folder / "socket")]
    config = {"folder": str(folder), "command": program, "limits": terms.limits(), "nice": terms.nice, "token": token}
    return Launch(
        # Isolated, and without the packages that are installed: the keeper starts in no time and stays small.
        command=(sys.executable, "-I", "-S", str(_KEEPER)),
        environment=_environment(folder),
        folder=folder,
        first_line=json.dumps(config).encode() + b"\n",
        token=token,
    )


def _environment(folder: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _HARMLESS if name in os.environ}
    # The same modules as here, wherever they were found.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    places = {"HOME": str(folder), "TMPDIR": str(folder), "PYTHONPATH": path}
    # What gRPC does at a fork crashes a plugin's child now and then, before it has come to anything.
    return {**kept, **places, "GRPC_ENABLE_FORK_SUPPORT": "0"}


def introduction(terms: Terms) -> Introduction:
    """What a plugin says of itself, read in a process that then ends; StartFailed where that cannot be had."""
    found = _read_apart(prepare(terms, INTRODUCE), _INTRODUCTION_LIMIT)
    if found is None:
        raise StartFailed("Its process ended without a word of what it serves.")
    return found


async def newer_introduction(terms: Terms) -> Manifest | None:
    """What the plugin's hook refresh_manifest gives, read in a process that then ends, also when nobody waits for it
    any more; None for nothing newer, StartFailed where that cannot be had."""
    launch = prepare(terms, REFRESH)
    try:
        process = await asyncio.create_subprocess_exec(
            *launch.command,
            env=launch.environment,
            cwd=launch.folder,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(launch.first_line)
            async with asyncio.timeout(_REFRESH_LIMIT):
                data = b""
                while len(data) < _LONGEST_INTRODUCTION and (more := await process.stdout.read(_LONGEST_INTRODUCTION)):
                    data += more
                found = _introduction(data, await process.wait())
        except TimeoutError:
            raise StartFailed(f"It did not say what it serves within {_REFRESH_LIMIT:g} seconds.") from None
        finally:
            # Its end is what the keeper waits for; one that was stopped waits for nothing.
            process.stdin.close()
            ended = asyncio.ensure_future(process.wait())
            await asyncio.wait({ended}, timeout=_KEEPER_LIMIT)
            if not ended.done():
                process.kill()
                await ended
    finally:
        launch.close()
    return found.manifest if found else None


def _read_apart(launch: Launch, limit: float) -> Introduction | None:
    try:
        # The keeper's name is ours, the plugin's an argument: nothing passes through a shell.
        with subprocess.Popen(  # noqa: S603
            launch.command,
            env=launch.environment,
            cwd=launch.folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            return _read_manifest(process, launch, limit)
    finally:
        launch.close()


def _read_manifest(process: subprocess.Popen[bytes], launch: Launch, limit: float) -> Introduction | None:
    assert process.stdin is not None
    assert process.stdout is not None
    # Its end is what the keeper waits for; the read below then comes to an end too.
    timer = threading.Timer(limit, process.stdin.close)
    timer.start()
    try:
        process.stdin.write(launch.first_line)
        process.stdin.flush()
        data = process.stdout.read(_LONGEST_INTRODUCTION)
    except OSError:
        data = b""
    finally:
        in_time = timer.is_alive()
        timer.cancel()
        timer.join()
        process.stdin.close()
    try:
        status = process.wait(_KEEPER_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
    if not in_time:
        raise StartFailed(f"It did not say what it serves within {limit:g} seconds.")
    return _introduction(data, status)


def _introduction(data: bytes, status: int | None) -> Introduction | None:
    """What a process said that then ended with this status; None where it had nothing to say."""
    if data[:1] == b"!":
        raise StartFailed(data[1:1000].decode(errors="replace"))
    if not data and status == 0:
        return None
    if not data:
        raise StartFailed(f"Its process ended before it said what it serves ({ending(status)}).")
    try:
        return Introduction(read_manifest(data.removeprefix(REFRESHES)), data.startswith(REFRESHES))
    except ValueError:
        raise StartFailed("What it says of itself is no manifest; see docs/plugins.md.") from None


def ending(status: int | None) -> str:
    """How a process ended, in words, by the keeper's exit status."""
    if status is None or status < 0:
        return "its keeper was killed"
    if status > 128:
        return f"ended by signal {status - 128}"
    return f"exit status {status}"
