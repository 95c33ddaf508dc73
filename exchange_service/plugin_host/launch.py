"""How a process that runs a plugin is started: what it is given, and what is kept from it.

It gets an environment of a few harmless names, a folder of its own as its home, no open file of the service, and limits
of the system, and it reaches only what sandbox.py lists. docs/security.md says what this protects from, and what not.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from exchange_service.model import Manifest
from exchange_service.plugin_host import sandbox
from exchange_service.plugin_host.arguments import REFRESH_MANIFEST, REFRESHES, REJECTED, WRITE_MANIFEST
from exchange_service.plugin_host.child import ChildProcess, begin_in_thread, run_in_thread
from exchange_service.printable import printable
from exchange_service.socket_folder import make_socket_folder
from exchange_service.venues.interpreters import Interpreter
from exchange_service.venues.manifests import LONGEST_MANIFEST, ManifestReply, read_manifest

_REAPER = Path(__file__).with_name("reaper.py")
_DESCRIBE = Path(__file__).with_name("describe_environment.py")
_MAIN = "exchange_service.plugin_host.main"
# What a plugin may know of the service's environment: paths, certificates, and how text and times are written.
_HARMLESS = (
    *("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "PYTHONDONTWRITEBYTECODE", "PYTHONUTF8"),
)
MEBIBYTE = 1024 * 1024
# MiB, for our own plugins (CCXT with twenty exchanges' markets needs several hundred) and for third-party ones.
OWN_MEMORY, THIRD_PARTY_MEMORY = 2048, 512
_FOLDER = "exchange-service-plugin-"
_DESCRIPTION_MEMORY = 512 * MEBIBYTE
# Seconds that a third-party plugin has to give its manifest: at the start, and when it looks for a newer one.
_MANIFEST_LIMIT = 10.0
_REFRESH_LIMIT = 120.0
# Seconds that a reaper has to end.
_REAPER_LIMIT = 5.0
# The exit status of a process that the kernel did not restrict as it was told, see reaper.py.
_NOT_CONFINED = 126


class StartFailed(Exception):
    """A process did not begin to serve; the text is a sentence for the operator."""


class PluginChanged(StartFailed):
    """The plugin was changed since the service loaded it: another version of it is installed, or another manifest."""


@dataclass(frozen=True, slots=True)
class ProcessPolicy:
    """How a plugin's processes are run. `memory`: bytes; a process that uses more is replaced.

    `third_party`: the plugin is not of this project, and its limits are closer. `confined`: see the setting
    plugin_sandbox. `interpreter`: what runs it, if that is not the service's own.
    """

    name: str
    distribution: str
    memory: int
    third_party: bool
    confined: sandbox.Mode = "auto"
    interpreter: Interpreter | None = None

    def limits(self) -> dict[str, int]:
        """The system's limits, by their names in `resource`."""
        return {
            # Above the bound at which the process is replaced: this one stops a single large allocation.
            "RLIMIT_DATA": self.memory + max(self.memory // 2, 256 * MEBIBYTE),
            "RLIMIT_NOFILE": 256 if self.third_party else 4096,
            # Bytes of a file that it writes.
            "RLIMIT_FSIZE": 16 * MEBIBYTE if self.third_party else 256 * MEBIBYTE,
            "RLIMIT_CORE": 0,
        }

    @property
    def nice(self) -> int:
        """By how much its scheduling priority is below the service's."""
        return 10 if self.third_party else 5


@dataclass(frozen=True, slots=True)
class LaunchSpec:
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

    async def spawn(self, *, stderr: int) -> ChildProcess:
        """Start the reaper, with pipes for its input and output; `stderr` as subprocess takes it. Raises OSError."""
        return await ChildProcess.start(self.command, environment=self.environment, folder=self.folder, stderr=stderr)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def prepare_launch(policy: ProcessPolicy, flag: str = "", *, ports: Iterable[int] = ()) -> LaunchSpec:
    """A folder that only this user may enter, and the reaper's command for a program that serves in it and may connect
    to these ports.

    With one of the flags of the main program, the program does what the flag says instead. Raises OSError if there is
    no room for the folder, and StartFailed if it must be confined and cannot be.
    """
    if policy.confined == "require" and not sandbox.complete():
        raise StartFailed(
            "plugin_sandbox=require needs a kernel that restricts files, network ports and signals (Linux 6.12). This "
            f"one: {sandbox.level('auto')}."
        )
    folder, interpreter = make_socket_folder(_FOLDER, "socket"), policy.interpreter
    # -P: the folder that it runs in holds no modules; -s: nor does its home.
    python = [sys.executable, "-P"] if interpreter is None else [interpreter.command, "-P", "-s"]
    main = [*python, "-m", _MAIN, policy.name, policy.distribution, flag or str(folder / "socket")]
    reach = None if policy.confined == "off" else sandbox.reach(folder, ports, interpreter)
    return _spec(folder, main, policy, reach, _environment(folder, elsewhere=interpreter is not None))


def prepare_description(command: str, name: str) -> LaunchSpec:
    """As `prepare_launch`, for the program that describes another environment and imports no plugin. It is not
    confined: what it may read is what it is asked for."""
    folder = make_socket_folder(_FOLDER, "socket")
    # -I: by none of the service's variables, and without a folder of the user's.
    main = [command, "-I", str(_DESCRIBE), name]
    policy = ProcessPolicy(name, "", _DESCRIPTION_MEMORY, third_party=True, confined="off")
    return _spec(folder, main, policy, None, _environment(folder, elsewhere=True))


def _spec(
    folder: Path, main: list[str], policy: ProcessPolicy, reach: object, environment: dict[str, str]
) -> LaunchSpec:
    token = secrets.token_hex(32)
    config = {"folder": str(folder), "command": main, "limits": policy.limits(), "nice": policy.nice, "token": token}
    config["reach"] = reach
    return LaunchSpec(
        # Isolated, and without the installed packages: the reaper starts quickly and stays small.
        command=(sys.executable, "-I", "-S", str(_REAPER)),
        environment=environment,
        folder=folder,
        first_line=json.dumps(config).encode() + b"\n",
        token=token,
    )


async def prepare_in_thread(policy: ProcessPolicy, flag: str = "", *, ports: Iterable[int] = ()) -> LaunchSpec:
    """As `prepare_launch`, which looks through the folders of all modules."""
    preparing = begin_in_thread(prepare_launch, policy, flag, ports=ports)
    try:
        return await asyncio.shield(asyncio.wrap_future(preparing))
    except asyncio.CancelledError:
        # The folder is not left behind, also if the loop ends before it is there.
        preparing.add_done_callback(_close_unwanted)
        raise


def _close_unwanted(preparing: Future[LaunchSpec]) -> None:
    if not preparing.cancelled() and preparing.exception() is None:
        preparing.result().close()


def _environment(folder: Path, *, elsewhere: bool) -> dict[str, str]:
    """The variables of a process; `elsewhere`: it runs in another environment than the service."""
    inherited = {name: os.environ[name] for name in _HARMLESS if name in os.environ}
    paths = {"HOME": str(folder), "TMPDIR": str(folder)}
    if elsewhere:
        inherited.pop("VIRTUAL_ENV", None)
    else:
        # The same modules as here, wherever they were found.
        paths["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
    # A plugin may use gRPC, whose fork handlers now and then crash a plugin's child right after the fork.
    return {**inherited, **paths, "GRPC_ENABLE_FORK_SUPPORT": "0"}


async def third_party_manifest(policy: ProcessPolicy, *, limit: float = _MANIFEST_LIMIT) -> ManifestReply:
    """A plugin's manifest, read within `limit` seconds in a process that then ends; else StartFailed is raised."""
    reply = await _request_manifest(policy, WRITE_MANIFEST, limit)
    if reply is None:
        raise StartFailed("Its process ended and gave no manifest.")
    return reply


async def third_party_refresh(
    policy: ProcessPolicy, ports: Iterable[int] = (), *, limit: float = _REFRESH_LIMIT
) -> Manifest | None:
    """What a plugin's hook refresh_manifest gives, called in a process that then ends; None for nothing newer.

    The process may connect to `ports`.

    Raises StartFailed if the process gives no answer within `limit` seconds.
    """
    reply = await _request_manifest(policy, REFRESH_MANIFEST, limit, ports)
    return reply.manifest if reply else None


async def _request_manifest(
    policy: ProcessPolicy, flag: str, limit: float, ports: Iterable[int] = ()
) -> ManifestReply | None:
    """Run the main program with this flag; when this returns, or is cancelled, the process has ended."""
    spec = await prepare_in_thread(policy, flag, ports=ports)
    try:
        data, status = await run_to_end(spec, limit)
    except TimeoutError:
        raise StartFailed(f"It did not give its manifest within {limit:g} seconds.") from None
    # In a thread: a manifest may have half a megabyte.
    return await run_in_thread(_parse_answer, data, status)


async def run_to_end(spec: LaunchSpec, limit: float) -> tuple[bytes, int | None]:
    """What the process wrote to standard output, and its exit status; None if it writes more than a manifest may have.

    When this returns, or is cancelled, the process has ended, and its folder is gone. Raises OSError, and TimeoutError
    after `limit` seconds.
    """
    try:
        process = await spec.spawn(stderr=subprocess.DEVNULL)
        try:
            async with asyncio.timeout(limit):
                return await _exchange(process, spec.first_line)
        finally:
            await _end(process)
    finally:
        await run_in_thread(spec.close)


async def _exchange(process: ChildProcess, first_line: bytes) -> tuple[bytes, int | None]:
    """What the process wrote, and its exit status; None if it writes more than a manifest may have."""
    process.write(first_line)
    data = b""
    while len(data) < LONGEST_MANIFEST:
        more = await process.stdout.read(LONGEST_MANIFEST - len(data))
        if not more:
            return data, await process.wait()
        data += more
    return data, None


async def _end(process: ChildProcess) -> None:
    """End the process; returns when it has ended."""
    # The reaper waits for the end of its input. A stopped reaper does not notice it, and is killed.
    process.stdin.close()
    ended = asyncio.create_task(process.wait())
    await asyncio.wait({ended}, timeout=_REAPER_LIMIT)
    if not ended.done():
        process.kill()
        await asyncio.wait({ended}, timeout=_REAPER_LIMIT)
    ended.cancel()
    process.close()


def _parse_answer(data: bytes, status: int | None) -> ManifestReply | None:
    """The manifest that a process wrote before it ended with this status; None if it wrote nothing."""
    if data[:1] == REJECTED:
        raise StartFailed(printable(data[1:1000].decode(errors="replace")))
    if not data and status == 0:
        return None
    if not data:
        raise StartFailed(f"Its process ended before it gave its manifest ({describe_exit(status)}).")
    try:
        return ManifestReply(read_manifest(data.removeprefix(REFRESHES)), data.startswith(REFRESHES))
    except ValueError:
        if len(data) >= LONGEST_MANIFEST:
            raise StartFailed(f"Its manifest has more than {LONGEST_MANIFEST} bytes as JSON.") from None
        raise StartFailed("What it gave as its manifest is not one; see docs/plugins.md.") from None


def describe_exit(status: int | None) -> str:
    """How a process ended, in words, by the reaper's exit status."""
    if status is None or status < 0:
        return "its reaper was killed"
    if status == _NOT_CONFINED:
        return "the kernel did not restrict what it may reach; see plugin_sandbox"
    if status > 128:
        return f"ended by signal {status - 128}"
    return f"exit status {status}"
