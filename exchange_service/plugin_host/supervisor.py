"""Keeps a process that runs a plugin: started when it is needed, watched, started anew when it ends or should."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Any, TypeVar

import grpc
import psutil
import structlog

from exchange_service.errors import PluginUnavailable
from exchange_service.model import Manifest
from exchange_service.observability.logs import current_call, current_request_id
from exchange_service.plugin_host.launch import Launch, StartFailed, Terms, ending, prepare
from exchange_service.plugin_host.protocol import (
    MAX_MESSAGE,
    PROTOCOL,
    REQUEST_ID,
    TOKEN,
    proof,
    write_manifest,
)
from exchange_service.plugin_host.v1 import plugin_host_pb2 as messages
from exchange_service.plugin_host.v1 import plugin_host_pb2_grpc

# Seconds that a process has to come to serve, importing the plugin included.
_START_LIMIT = 15.0
# Seconds between two looks at a process.
_LOOK_EVERY = 1.0
# Seconds without an answer, after which a process is taken to be stuck: a stranger's of which a call has run past its
# deadline as well, and any other. Ours reads many exchanges' markets at once, for which its loop may stand still past
# a deadline, and to end it would only begin all that again.
_UNANSWERED_AND_OVERDUE = 3.0
_UNANSWERED = 15.0
# Share of a core, over this many looks, at which a stranger's process is started anew.
_MOST_PROCESSOR = 0.9
_PROCESSOR_LOOKS = 60
# Seconds before a process that has ended twice is started again; doubled each time, until it has lived for a while.
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_LIVED = 60.0
_LEAST_PAUSE = 0.01
# Seconds between two replacements of a process that answers; doubled each time, until one has lived for long.
_FIRST_REPLACE_PAUSE = 10.0
_LONGEST_REPLACE_PAUSE = 600.0
_LIVED_LONG = 3600.0
# Seconds that calls have to end in a process that is replaced.
_DRAIN = 10.0
# Seconds after the end of the keeper's input until it is killed.
_KEEPER_LIMIT = 5.0
# And until its last log lines have been read.
_LAST_LINES = 0.5
# What of a process's log lines is passed on, at most, and seconds between two looks at one that writes more.
_LOG_LINES_A_SECOND = 50
_LOG_BYTES_A_SECOND = 32 * 1024
_LONGEST_LOG_LINE = 8 * 1024
_LOG_CHUNK = 64 * 1024
_LOG_PAUSE = 0.02

_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.enable_http_proxy", 0),
    # One connection for the life of the process: nobody can be met at its address later.
    ("grpc.client_idle_timeout_ms", 2**31 - 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    # Not shared with another channel to an address of the same name.
    ("grpc.use_local_subchannel_pool", 1),
)

T = TypeVar("T")

log = structlog.get_logger("exchange_service.plugin_host")


@dataclass(frozen=True, slots=True)
class Work:
    """What a process is told to serve: see ConfigureRequest. Times are in seconds."""

    manifest: Manifest
    overrides: Mapping[str, str]
    venue_timeout: float
    session_idle: float

    def request(self) -> messages.ConfigureRequest:
        return messages.ConfigureRequest(
            protocol_version=PROTOCOL,
            manifest=write_manifest(self.manifest),
            overrides=self.overrides,
            venue_timeout=self.venue_timeout,
            session_idle=self.session_idle,
        )


class State(Enum):
    """What a plugin's process is doing."""

    IDLE = "idle"
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Condition:
    """How a plugin's process is: `memory` in bytes, `uptime` in seconds; see PluginProcess."""

    state: State
    process_id: int
    memory: int
    uptime: float | None
    restarts: int
    last_end: str


class PluginProcess:
    """One process, from its start to its end."""

    def __init__(self, terms: Terms, manifest: Manifest, launch: Launch, keeper: asyncio.subprocess.Process) -> None:
        self.terms = terms
        self.process_id = 0
        self.started_at = asyncio.get_running_loop().time()
        self.memory = 0
        # Why it was ended, where that was our doing; a sentence.
        self.reason = ""
        self.manifest = manifest
        self._launch = launch
        self._keeper = keeper
        self._over = False
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._channel = grpc.aio.insecure_channel(f"unix:{launch.socket}", options=_CHANNEL_OPTIONS)
        self._stub: Any = plugin_host_pb2_grpc.PluginHostServiceStub(self._channel)
        self._lines = asyncio.create_task(self._read_lines(), name=f"log lines of {terms.name}")
        self.ended = asyncio.create_task(self._until_ended(), name=f"process of {terms.name}")

    @classmethod
    async def start(cls, terms: Terms, work: Work) -> PluginProcess:
        """A process that serves; StartFailed where it did not come to that."""
        try:
            launch = prepare(terms)
        except OSError as error:
            raise StartFailed(f"There is no room for a process's folder ({type(error).__name__}).") from None
        try:
            keeper = await asyncio.create_subprocess_exec(
                *launch.command,
                env=launch.environment,
                cwd=launch.folder,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
        except BaseException as error:
            launch.close()
            if isinstance(error, OSError):
                raise StartFailed(f"A process could not be started ({type(error).__name__}).") from None
            raise
        process = cls(terms, work.manifest, launch, keeper)
        try:
            async with asyncio.timeout(_START_LIMIT):
                await process._begin(work)
        except BaseException as error:
            await process.end()
            if isinstance(error, TimeoutError):
                raise StartFailed(f"It did not come to serve within {_START_LIMIT:g} seconds.") from None
            raise
        return process

    async def _begin(self, work: Work) -> None:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.write(self._launch.first_line)
        if not await self._keeper.stdout.readline():
            status = await self._keeper.wait()
            raise StartFailed(f"Its process ended at once ({ending(status)}).")
        try:
            reply = await self.configure(work)
        except grpc.aio.AioRpcError as error:
            raise StartFailed(f"Its process did not take up its work ({error.code().name}).") from None
        if reply.problem:
            raise StartFailed(reply.problem)
        if reply.protocol_version != PROTOCOL or not hmac.compare_digest(reply.proof, proof(self._launch.token)):
            raise StartFailed("Something else than its process answered.")
        self.process_id = reply.process_id
        # From here on nobody else can come to the socket, nor be taken for it.
        await _aside(self._forget_socket)
        await self.look_at_memory()

    def _forget_socket(self) -> None:
        with contextlib.suppress(OSError):
            (self._launch.folder / "socket").unlink()

    async def configure(self, work: Work) -> messages.ConfigureResponse:
        """The handshake; grpc.aio.AioRpcError where it fails."""
        reply: messages.ConfigureResponse = await self.call("Configure", work.request(), _START_LIMIT)
        return reply

    @property
    def alive(self) -> bool:
        """Whether it has not ended, and nobody has ended it."""
        return not self._over and not self.reason

    async def call(self, method: str, request: Any, timeout: float) -> Any:
        """The process's answer; grpc.aio.AioRpcError where there is none."""
        self._calls += 1
        self._idle.clear()
        request_id = current_request_id()
        metadata = ((TOKEN, self._launch.token), *(((REQUEST_ID, request_id),) if request_id else ()))
        try:
            return await getattr(self._stub, method)(
                request, timeout=timeout, metadata=metadata, wait_for_ready=not self.process_id
            )
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()

    async def look(self) -> int:
        """How many of its calls are stuck. grpc.aio.AioRpcError where it does not answer."""
        reply = await self.call("CheckHealth", messages.CheckHealthRequest(), 2 * _UNANSWERED)
        return int(reply.stuck_calls)

    async def look_at_memory(self) -> None:
        """Measure its memory, with what it has started."""
        # In a thread: where many processes run, asking for their parents takes a while.
        self.memory = await _aside(_memory_below, self._keeper.pid)

    def processor_seconds(self) -> float:
        """What it has used of the processor."""
        try:
            used = psutil.Process(self.process_id).cpu_times()
        except psutil.Error:
            return 0.0
        return float(used.user + used.system)

    async def _until_ended(self) -> str:
        """Wait for the end, and say why it came."""
        status = await self._keeper.wait()
        # Before its channel is closed under those who would call it.
        self._over = True
        await self._channel.close()
        await _aside(self._launch.close)
        return self.reason or f"It ended by itself ({ending(status)})."

    def stop(self, reason: str) -> None:
        """Let it end soon; `reason` is a sentence."""
        self.reason = self.reason or reason
        if self._keeper.stdin is not None:
            self._keeper.stdin.close()

    async def end(self, reason: str = "It was ended.") -> None:
        """End it and all that it has started."""
        self.stop(reason)
        done, _ = await asyncio.wait({self.ended}, timeout=_KEEPER_LIMIT)
        if not done:
            # The keeper itself is stuck; the system ends the program with it.
            with contextlib.suppress(ProcessLookupError):
                self._keeper.kill()
            await asyncio.wait({self.ended}, timeout=_KEEPER_LIMIT)
        # What it wrote last is still to be read.
        await asyncio.wait({self._lines}, timeout=_LAST_LINES)
        self._lines.cancel()
        await asyncio.wait({self._lines})

    async def drained(self) -> None:
        """Wait until its calls have ended, for a while."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN):
                await self._idle.wait()

    def wait_for_no_call(self) -> None:
        """Take it for drained, whatever its calls do."""
        self._idle.set()

    async def _read_lines(self) -> None:
        """Pass the process's log lines on as ours, not more than people can read. What is beyond that is lost, and
        taken slowly: who writes without an end must not keep this process busy."""
        assert self._keeper.stderr is not None
        # The lines are of many calls, and say themselves of which.
        current_call.set(None)
        loop = asyncio.get_running_loop()
        begun, second, lines, size = b"", 0, 0, 0
        while chunk := await self._keeper.stderr.read(_LOG_CHUNK):
            now = int(loop.time())
            if now != second:
                second, lines, size = now, 0, 0
            whole, _, begun = (begun + chunk).rpartition(b"\n")
            begun = begun[:_LONGEST_LOG_LINE]
            left = _LOG_LINES_A_SECOND - lines
            for line in whole.split(b"\n", left)[:left]:
                if size < _LOG_BYTES_A_SECOND:
                    lines, size = lines + 1, size + min(len(line), _LONGEST_LOG_LINE)
                    _pass_on(line[:_LONGEST_LOG_LINE], self.terms.name)
            if lines >= _LOG_LINES_A_SECOND or size >= _LOG_BYTES_A_SECOND:
                await asyncio.sleep(_LOG_PAUSE)
        _pass_on(begun, self.terms.name)


def _pass_on(line: bytes, plugin: str) -> None:
    """Log a line of the process's log; what it wrote past that, such as the interpreter's last words, as it is."""
    if not line.strip():
        return
    try:
        fields = json.loads(line)
        event, level = str(fields.pop("event")), str(fields.pop("level"))
        fields.pop("timestamp", None)
        write = {"debug": log.debug, "info": log.info, "error": log.error}.get(level, log.warning)
        write(event, **{str(name): value for name, value in fields.items() if name != "plugin"}, plugin=plugin)
    # Whatever it is: a field may be called as one of the logger's own arguments, and no line ends the reading.
    except Exception:
        log.warning("plugin.output", plugin=plugin, line=line.decode(errors="replace").rstrip()[:1000])


# Of its own: what else waits in threads, such as a slow lookup of a name, says nothing about a plugin's process.
_threads = ThreadPoolExecutor(2, thread_name_prefix="plugin processes")


async def _aside(work: Callable[..., T], *arguments: Any) -> T:
    """Do it in a thread."""
    return await asyncio.get_running_loop().run_in_executor(_threads, work, *arguments)


def _memory_below(keeper: int) -> int:
    """Bytes of memory of the processes below the keeper."""
    try:
        below = psutil.Process(keeper).children(recursive=True)
    except psutil.Error:
        return 0
    total = 0
    for process in below:
        with contextlib.suppress(psutil.Error):
            total += process.memory_info().rss
    return total


class Supervisor:
    """Keeps one process of a plugin.

    `trouble` is a sentence while it is down, and empty otherwise; `on_change` is called when it may have changed.
    """

    def __init__(self, terms: Terms, work: Callable[[], Work], on_change: Callable[[], None]) -> None:
        self.terms = terms
        self.trouble = ""
        self._work = work
        self._on_change = on_change
        self._process: PluginProcess | None = None
        self._starting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        # Processes that are being ended, by the task that does it.
        self._endings: dict[asyncio.Task[None], PluginProcess] = {}
        self._restart_at = 0.0
        self._failures = 0
        self._restarts = 0
        self._last_end = ""
        self._overdue = False
        self._replace_at = 0.0
        self._replace_pause = _FIRST_REPLACE_PAUSE
        self._configuring: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def running(self) -> PluginProcess | None:
        """The process that can be called now."""
        return self._process if self._process is not None and self._process.alive else None

    def condition(self) -> Condition:
        """How it is now."""
        process = self.running
        if process is not None:
            uptime = asyncio.get_running_loop().time() - process.started_at
            known = (process.process_id, process.memory, uptime)
            return Condition(State.RUNNING, *known, self._restarts, self._last_end)
        waiting = State.WAITING if self._timer is not None else State.IDLE
        state = State.STARTING if self._starting is not None else waiting
        return Condition(state, 0, 0, None, self._restarts, self._last_end)

    async def process(self, deadline: float) -> PluginProcess:
        """A process that can be called, started if there is none; PluginUnavailable where there is none in time."""
        if self.running is not None:
            return self.running
        loop = asyncio.get_running_loop()
        if self._closed:
            raise self._unavailable("is being ended")
        if self._starting is None:
            left = self._restart_at - loop.time()
            if left > 0:
                raise self._unavailable("is down and is started again soon", retry_after=left)
            self._start()
        assert self._starting is not None
        await asyncio.wait({self._starting}, timeout=max(0.0, deadline - loop.time()))
        if self.running is None:
            raise self._unavailable("is being started" if self._starting else "could not be started")
        return self.running

    def _unavailable(self, what: str, retry_after: float | None = None) -> PluginUnavailable:
        return PluginUnavailable(f"The process of the plugin {self.terms.name} {what}.", retry_after=retry_after)

    def start(self) -> None:
        """Begin to start it, unless it runs."""
        if self.running is None and self._starting is None and self._timer is None:
            self._start()

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._closed:
            return
        if self._starting is not None:
            # The attempt that failed is still being cleared away.
            self._timer = asyncio.get_running_loop().call_later(_LEAST_PAUSE, self._start)
            return
        self._starting = asyncio.create_task(self._start_one(), name=f"start of {self.terms.name}")
        self._starting.add_done_callback(self._started)

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting = None
        if not task.cancelled() and task.exception() is not None:
            log.error("plugin_host.start_failed", plugin=self.terms.name, error=type(task.exception()).__name__)
            self._came_to_an_end("Its process could not be started.", 0.0)

    async def _start_one(self) -> None:
        try:
            process = await PluginProcess.start(self.terms, self._work())
        except StartFailed as failed:
            self._came_to_an_end(str(failed), 0.0)
            return
        self._take(process)
        log.info("plugin_host.started", plugin=self.terms.name, process_id=process.process_id)

    def _take(self, process: PluginProcess) -> None:
        """From now on calls go to this process."""
        self._process = process
        self._overdue = False
        process.ended.add_done_callback(partial(self._process_ended, process))
        if self._watching is not None:
            self._watching.cancel()
        self._watching = asyncio.create_task(self._watch(process), name=f"watch over {self.terms.name}")
        if process.manifest is not self._work().manifest:
            # It became newer while the process was being started.
            self._configuring = asyncio.create_task(self.configure(), name=f"newer manifest of {self.terms.name}")
        self._tell("")

    def _process_ended(self, process: PluginProcess, ended: asyncio.Task[str]) -> None:
        why = ended.result() if not ended.cancelled() and ended.exception() is None else "Its end was not seen."
        self._lost(process, why)

    def _give_up(self, process: PluginProcess, reason: str) -> None:
        """End a process that is of no use any more."""
        process.stop(reason)
        self._see_to_its_end(process, process.end(reason))
        self._lost(process, reason)

    async def _give_up_after(self, process: PluginProcess, error: grpc.aio.AioRpcError, reason: str) -> None:
        """End a process that did not answer, for this `reason` unless it has ended by itself."""
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            # Most often it has ended, and the keeper says in a moment how.
            await asyncio.wait({process.ended}, timeout=_LOOK_EVERY)
            reason = "Its connection broke."
        self._give_up(process, reason)

    def _see_to_its_end(self, process: PluginProcess, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"end of {self.terms.name}")
        self._endings[task] = process
        task.add_done_callback(self._endings.pop)

    def _lost(self, process: PluginProcess, why: str) -> None:
        if self._process is process:
            self._process = None
            self._came_to_an_end(why, asyncio.get_running_loop().time() - process.started_at)

    def _came_to_an_end(self, why: str, lived: float) -> None:
        """Note the end of a process, or of an attempt to start one, and try again: at once the first time."""
        if self._closed:
            return
        self._last_end = why
        self._restarts += 1
        self._failures = 1 if lived > _LIVED else self._failures + 1
        pause = _LEAST_PAUSE if self._failures == 1 else min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self._failures - 2))
        loop = asyncio.get_running_loop()
        self._restart_at = loop.time() + pause
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_later(pause, self._start)
        log.warning("plugin_host.ended", plugin=self.terms.name, reason=why, again_in=round(pause, 1))
        self._tell(f"The process of its plugin is down and is being started again. {why}")

    def _tell(self, trouble: str) -> None:
        self.trouble = trouble
        self._on_change()

    def call_overdue(self) -> None:
        """A call has had no answer, not even that it ran past its deadline."""
        self._overdue = True

    async def _watch(self, process: PluginProcess) -> None:
        used: deque[float] = deque(maxlen=_PROCESSOR_LOOKS)
        while process.alive:
            await asyncio.sleep(_LOOK_EVERY)
            try:
                if await self._looked_after(process, used):
                    return
            except grpc.aio.AioRpcError as error:
                await self._give_up_after(process, error, f"It does not answer ({error.code().name}).")
                return
            except Exception as error:
                # The process is not to be left to itself for whatever went wrong here.
                log.error("plugin_host.watch_failed", plugin=self.terms.name, error=type(error).__name__)

    async def _looked_after(self, process: PluginProcess, used: deque[float]) -> bool:
        """Look at the process once, and do what is needed; whether that was the last look."""
        stuck = await self._answered(process)
        if stuck is None:
            self._give_up(process, "It did not answer any more: the plugin blocked its event loop.")
            return True
        self._overdue = False
        await process.look_at_memory()
        used.append(process.processor_seconds())
        reason = self._why_anew(process, stuck, used)
        # One after the other, and not for ever: a process that is replaced loses its sessions and markets.
        if not reason or self._endings or asyncio.get_running_loop().time() < self._replace_at:
            return False
        return await self._replace(process, reason)

    async def _answered(self, process: PluginProcess) -> int | None:
        """How many of its calls are stuck, however late it comes to say so; None where it takes longer than it may."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        look = asyncio.create_task(process.look(), name=f"look at {self.terms.name}")
        try:
            while not look.done():
                await asyncio.wait({look}, timeout=_LOOK_EVERY)
                hurry = self._overdue and self.terms.stranger
                if not look.done() and loop.time() - asked > (_UNANSWERED_AND_OVERDUE if hurry else _UNANSWERED):
                    return None
            return look.result()
        finally:
            look.cancel()

    def _why_anew(self, process: PluginProcess, stuck: int, used: deque[float]) -> str:
        """Why a process that answers should be started anew; empty where it should not."""
        if process.memory > self.terms.memory:
            return f"It used more memory than plugin_memory allows ({process.memory >> 20} MiB)."
        if stuck:
            return f"{stuck} of its calls ran on after their deadline although they were cancelled."
        most = _MOST_PROCESSOR * _LOOK_EVERY * _PROCESSOR_LOOKS
        if self.terms.stranger and len(used) == _PROCESSOR_LOOKS and used[-1] - used[0] > most:
            return "It used the processor without a pause for a minute."
        return ""

    async def _replace(self, old: PluginProcess, reason: str) -> bool:
        """Start another process, and end this one when its calls have ended. False where no other could be started."""
        loop = asyncio.get_running_loop()
        if loop.time() - old.started_at > _LIVED_LONG:
            self._replace_pause = _FIRST_REPLACE_PAUSE
        self._replace_at = loop.time() + self._replace_pause
        self._replace_pause = min(self._replace_pause * 2, _LONGEST_REPLACE_PAUSE)
        log.warning("plugin_host.replaced", plugin=self.terms.name, reason=reason)
        try:
            new = await PluginProcess.start(self.terms, self._work())
        except StartFailed as failed:
            log.warning("plugin_host.start_failed", plugin=self.terms.name, reason=str(failed))
            return False
        if self._closed or not old.alive:
            await new.end()
            return True
        self._restarts += 1
        self._last_end = reason
        self._see_to_its_end(old, _end_when_drained(old, reason))
        # Last, because it ends the task that runs here.
        loop.call_soon(self._take, new)
        return True

    async def configure(self) -> None:
        """Tell a running process of a newer manifest."""
        process = self.running
        if process is not None:
            work = self._work()
            process.manifest = work.manifest
            try:
                await process.configure(work)
            except grpc.aio.AioRpcError as error:
                await self._give_up_after(process, error, "It did not take a newer manifest.")

    async def close(self) -> None:
        """End the process for good."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = [task for task in (self._starting, self._watching, self._configuring) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._process is not None:
            await self._process.end("The service has ended.")
        endings = dict(self._endings)
        for process in endings.values():
            process.wait_for_no_call()
        if endings:
            await asyncio.wait(endings)


async def _end_when_drained(process: PluginProcess, reason: str) -> None:
    await process.drained()
    await process.end(reason)
