"""One process that runs a plugin: its start, the handshake, calls, its memory and its end."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import subprocess
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import structlog

from exchange_service.model import Manifest
from exchange_service.observability.logs import current_request_id
from exchange_service.plugin_host.child import ChildProcess, run_in_thread
from exchange_service.plugin_host.connection import CallFailed, ProcessConnection, Replacing
from exchange_service.plugin_host.describe_environment import LIBRARY
from exchange_service.plugin_host.launch import (
    LaunchSpec,
    PluginChanged,
    ProcessPolicy,
    StartFailed,
    describe_exit,
    prepare_in_thread,
)
from exchange_service.plugin_host.log_relay import relay_log
from exchange_service.plugin_host.protocol import (
    OTHER_VERSION,
    PROTOCOL,
    process_proof,
    read_pushes,
    write_ways,
)
from exchange_service.plugin_host.sandbox import Reach
from exchange_service.plugin_host.v1 import plugin_host_pb2 as messages
from exchange_service.printable import printable
from exchange_service.venues.egress import DIRECT, Way
from exchange_service.venues.manifests import write_manifest
from exchange_service.venues.push_figures import PushFigures
from exchange_service.venues.setting_values import SettingValues, write_values

# Seconds that a process has until it serves, the plugin's import included.
_START_LIMIT = 15.0
# Seconds until a health check is given up; a stuck process is ended before.
_HEALTH_CHECK_TIMEOUT = 30.0
# Seconds that calls have to end in a process that is replaced.
_DRAIN_LIMIT = 10.0
# Seconds from the end of the reaper's input until it is killed.
_REAPER_LIMIT = 5.0
# Seconds until the end of a process is noticed whose connection broke.
_END_NOTICE_LIMIT = 1.0
# Seconds that reading the last log lines may take after the end.
_LAST_LINES_LIMIT = 0.5

# Characters of the sentence by which a process says why it cannot serve.
_LONGEST_PROBLEM = 500

log = structlog.get_logger("exchange_service.plugin_host")


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What a process is told to serve: see ConfigureRequest. Times are in seconds.

    `ports`: those that its venues need, to which it may connect.
    """

    manifest: Manifest
    overrides: Mapping[str, str]
    venue_timeout: float
    session_idle: float
    ports: frozenset[int] = frozenset()
    # What the service has loaded: the version of the plugin's distribution, and a digest of its manifest. Empty: the
    # process need not compare.
    plugin_version: str = ""
    loaded_digest: bytes = b""
    # What the operator has set for the plugin.
    settings: SettingValues = field(default_factory=dict, repr=False)
    # What answers the process's requests to replace a credential; None: it may send none.
    replacing: Replacing | None = None
    # The ways out that accounts of its exchanges may take.
    ways: Sequence[Way] = ()
    # Whether calls may be traced.
    traces: bool = False

    def request(self) -> messages.ConfigureRequest:
        """The message of the handshake."""
        return messages.ConfigureRequest(
            protocol_version=PROTOCOL,
            manifest=write_manifest(self.manifest),
            overrides=self.overrides,
            venue_timeout=self.venue_timeout,
            session_idle=self.session_idle,
            plugin_version=self.plugin_version,
            manifest_digest=self.loaded_digest,
            settings=write_values(self.settings),
            ways=write_ways(self.ways),
            traces=self.traces,
        )


class _NeverBegan(StartFailed):
    """The process ended before any code of ours or of the plugin's ran in it."""


class PluginProcess:
    """One process, from its start to its end.

    `process_id` is the main program's, 0 before the handshake; `memory` is in bytes; `reason` says why the service
    ended the process, and is empty if it did not. `ended` is done at the end, with a sentence that says how it came.
    """

    def __init__(self, policy: ProcessPolicy, config: ServeConfig, spec: LaunchSpec, reaper: ChildProcess) -> None:
        self.policy = policy
        self.manifest = config.manifest
        self.spec = spec
        self._reach = Reach(config.ports)
        self.process_id = 0
        self.memory = 0
        # What it has open for pushes, by exchange, as of its last health check.
        self.pushes: Mapping[str, PushFigures] = {}
        self.reason = ""
        self._reaper = reaper
        self._started_at = asyncio.get_running_loop().time()
        self._over = False
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        # Not open yet: `_begin` opens another one.
        self._connection = ProcessConnection()
        assert reaper.stderr is not None
        self._log_lines = asyncio.create_task(relay_log(reaper.stderr, policy.name), name=f"log lines of {policy.name}")
        self.ended = asyncio.create_task(self._wait_until_ended(), name=f"process of {policy.name}")

    @classmethod
    async def start(cls, policy: ProcessPolicy, config: ServeConfig) -> PluginProcess:
        """Start a process and return it once it serves; StartFailed if it does not come to that."""
        try:
            return await cls._start_once(policy, config)
        except _NeverBegan as failure:
            log.warning("plugin_host.start_failed", plugin=policy.name, reason=str(failure), again_in=0)
            return await cls._start_once(policy, config)

    @classmethod
    async def _start_once(cls, policy: ProcessPolicy, config: ServeConfig) -> PluginProcess:
        try:
            spec = await prepare_in_thread(policy, ports=config.ports)
        except OSError as error:
            raise StartFailed(f"There is no room for a process's folder ({type(error).__name__}).") from None
        try:
            reaper = await spec.spawn(stderr=subprocess.PIPE)
        except BaseException as error:
            spec.close()
            if isinstance(error, OSError):
                raise StartFailed(f"A process could not be started ({type(error).__name__}).") from None
            raise
        process = cls(policy, config, spec, reaper)
        try:
            async with asyncio.timeout(_START_LIMIT):
                await process._begin(config)
        except BaseException as error:
            await process.end()
            if isinstance(error, TimeoutError):
                raise StartFailed(f"It did not begin to serve within {_START_LIMIT:g} seconds.") from None
            raise
        return process

    async def _begin(self, config: ServeConfig) -> None:
        self._reaper.write(self.spec.first_line)
        if not await self._reaper.stdout.readline():
            status = await self._reaper.wait()
            # Negative: not the plugin's program, but its reaper was killed.
            failure = _NeverBegan if status < 0 else StartFailed
            raise failure(f"Its process ended at once ({describe_exit(status)}).")
        try:
            self._connection = await ProcessConnection.open(self.spec.socket)
            self._connection.replacing = config.replacing
            reply = await self._connection.greet(self.spec.token, config.request())
        except CallFailed as unanswered:
            raise StartFailed(f"Its process did not answer the handshake ({unanswered.name}).") from None
        if not hmac.compare_digest(reply.proof, process_proof(self.spec.token)):
            raise StartFailed("Something other than its process answered.")
        # The installed code is newer or older than the code that runs here, and its words may mean something else.
        if reply.protocol_version != PROTOCOL:
            raise PluginChanged(self._other_version(reply.protocol_version))
        if not reply.problem and reply.ways != sum(way.name != DIRECT for way in config.ways):
            # It would ask venues directly.
            raise StartFailed(
                "The exchange-service-plugin of its environment is older than the setting egress: upgrade it there, or "
                "take its exchanges out of egress."
            )
        if reply.problem:
            failure = PluginChanged if reply.changed else StartFailed
            raise failure(printable(reply.problem[:_LONGEST_PROBLEM]))
        self.process_id = reply.process_id
        # From here on no other process can connect to the socket, or be taken for this one.
        await run_in_thread(_remove_socket, self.spec)
        await self.measure_memory()

    def _other_version(self, protocol: int) -> str:
        """What is wrong if the process speaks another protocol; callers read it, so it names no path."""
        if self.policy.interpreter is None:
            return OTHER_VERSION
        return (
            f"Restart the service: another version of {LIBRARY} than when the service began is installed in the "
            f"plugin's own environment. It speaks protocol {protocol}, and the service {PROTOCOL}."
        )

    async def configure(self, config: ServeConfig) -> messages.ConfigureResponse:
        """Pass a newer manifest on. Raises CallFailed."""
        reply: messages.ConfigureResponse = await self.call("Configure", config.request(), _START_LIMIT)
        self._reach.needed = config.ports
        return reply

    def outgrown(self) -> str:
        """Why it reaches less than a new process would, a sentence; empty if it does not."""
        return "" if self.policy.confined == "off" else self._reach.outgrown()

    @property
    def alive(self) -> bool:
        """Whether it has not ended, and the service has not begun to end it."""
        return not self._over and not self.reason

    @property
    def uptime(self) -> float:
        """Seconds since it was started."""
        return asyncio.get_running_loop().time() - self._started_at

    @property
    def reaper_id(self) -> int:
        """The process id of its reaper."""
        return self._reaper.pid

    async def call(self, method: str, request: Any, timeout: float, trace_id: str = "") -> Any:
        """The process's answer within `timeout` seconds; with a `trace_id` it says what it did. Raises CallFailed.

        The code is UNAVAILABLE if the process ends before it answers, or has ended.
        """
        self._calls += 1
        self._idle.clear()
        try:
            return await self._connection.call(method, request, timeout, current_request_id() or "", trace_id)
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    def stream(self, method: str, request: Any) -> AsyncGenerator[Any, None]:
        """The process's messages until it ends the call, or the caller does. Raises CallFailed, with UNAVAILABLE if the
        process ends or has ended. It does not keep the process from being replaced."""
        return self._connection.stream(method, request)

    async def health_check(self) -> int:
        """How many of its calls are stuck. Raises CallFailed if it does not answer."""
        reply = await self.call("CheckHealth", messages.CheckHealthRequest(), _HEALTH_CHECK_TIMEOUT)
        self.pushes = read_pushes(reply.pushes, {metadata.id for metadata in self.manifest.exchanges})
        return int(reply.stuck_calls)

    async def measure_memory(self) -> None:
        """Measure its memory, with that of the processes that it has started."""
        # In a thread: if many processes run, asking for their parents takes a while.
        self.memory = await run_in_thread(_memory_below, self._reaper.pid)

    def processor_seconds(self) -> float:
        """Seconds of processor time that it has used."""
        return _processor_seconds(self.process_id)

    async def _wait_until_ended(self) -> str:
        status = await self._reaper.wait()
        # Before its connection is closed, which fails the calls that still run.
        self._over = True
        self._connection.end()
        await run_in_thread(self.spec.close)
        return self.reason or f"It ended by itself ({describe_exit(status)})."

    def stop(self, reason: str) -> None:
        """Begin to end it; `reason` is a sentence."""
        self.reason = self.reason or reason
        self._reaper.stdin.close()

    async def end(self, reason: str = "It was ended.") -> None:
        """End it and all that it has started."""
        self.stop(reason)
        done, _ = await asyncio.wait({self.ended}, timeout=_REAPER_LIMIT)
        if not done:
            # The reaper itself is stuck; the system ends the main program with it.
            self._reaper.kill()
            await asyncio.wait({self.ended}, timeout=_REAPER_LIMIT)
        # What it wrote last is still to be read.
        await asyncio.wait({self._log_lines}, timeout=_LAST_LINES_LIMIT)
        self._log_lines.cancel()
        await asyncio.wait({self._log_lines})
        self._reaper.close()

    async def end_when_idle(self, reason: str) -> None:
        """End it once its calls have ended, or after ten seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_LIMIT):
                await self._idle.wait()
        await self.end(reason)

    def abandon_calls(self) -> None:
        """Let `end_when_idle` wait no longer for its calls."""
        self._idle.set()

    async def failure_reason(self, failure: CallFailed, reason: str) -> str:
        """Why it failed to answer: `reason`, unless its connection broke."""
        if self._connection.fault:
            return f"It sent something that it may not send: {self._connection.fault}."
        if failure.code != messages.FAILURE_CODE_UNAVAILABLE:
            return reason
        # Most often it has ended, and `ended` says in a moment how.
        await asyncio.wait({self.ended}, timeout=_END_NOTICE_LIMIT)
        return "Its connection broke."


def _processor_seconds(process_id: int) -> float:
    try:
        used = psutil.Process(process_id).cpu_times()
    except psutil.Error:
        return 0.0
    return float(used.user + used.system)


def _remove_socket(spec: LaunchSpec) -> None:
    with contextlib.suppress(OSError):
        (spec.folder / "socket").unlink()


def _memory_below(reaper: int) -> int:
    """Bytes of memory of the processes below the reaper."""
    try:
        below = psutil.Process(reaper).children(recursive=True)
    except psutil.Error:
        return 0
    total = 0
    for process in below:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total
