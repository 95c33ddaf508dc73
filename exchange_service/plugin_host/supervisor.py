"""Keeps a process of a plugin running: started when it is needed, watched, and started again when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import structlog

from exchange_service.errors import PluginUnavailable
from exchange_service.observability.tracebacks import raised_at
from exchange_service.plugin_host.connection import CallFailed
from exchange_service.plugin_host.health import check_health
from exchange_service.plugin_host.launch import PluginChanged, ProcessPolicy, StartFailed
from exchange_service.plugin_host.process import PluginProcess, ServeConfig
from exchange_service.plugin_host.restart_policy import HEALTH_CHECK_INTERVAL, LEAST_PAUSE, RestartPolicy
from exchange_service.venues.push_figures import PushFigures

log = structlog.get_logger("exchange_service.plugin_host")


class ProcessState(Enum):
    """What a plugin's process is doing."""

    IDLE = "idle"
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """A plugin's process at one instant: `memory` in bytes, `uptime` in seconds; see PluginProcess in the protos."""

    state: ProcessState
    process_id: int
    memory: int
    uptime: float | None
    restarts: int
    last_end: str


class Supervisor:
    """Keeps one process of a plugin.

    `trouble` is a sentence while it is down, and empty otherwise; `on_change` is called when it may have changed.
    """

    def __init__(
        self,
        policy: ProcessPolicy,
        config: Callable[[], ServeConfig],
        on_change: Callable[[], None],
        restarts: RestartPolicy | None = None,
    ) -> None:
        self.policy = policy
        self.trouble = ""
        self._config = config
        self._on_change = on_change
        self._restarts = restarts or RestartPolicy(policy, asyncio.get_running_loop().time)
        self._process: PluginProcess | None = None
        self._starting: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._configuring: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._endings = _Endings(policy.name)
        self._restart_count, self._last_end = 0, ""
        # What processes that have ended had opened for pushes, by exchange.
        self._opened_before: dict[str, PushFigures] = {}
        self._closed = False
        # Whether the last attempt to start it found another plugin than the service has loaded.
        self._changed = False

    @property
    def running(self) -> PluginProcess | None:
        """The process that can be called now."""
        return self._process if self._process is not None and self._process.alive else None

    def snapshot(self) -> ProcessStatus:
        """What it is doing now."""
        ends = (self._restart_count, self._last_end)
        process = self.running
        if process is not None:
            return ProcessStatus(ProcessState.RUNNING, process.process_id, process.memory, process.uptime, *ends)
        waiting = ProcessState.WAITING if self._timer is not None else ProcessState.IDLE
        state = ProcessState.STARTING if self._starting is not None else waiting
        return ProcessStatus(state, 0, 0, None, *ends)

    def push_figures(self) -> Mapping[str, PushFigures]:
        """What its process has open for pushes, by exchange, as of its last health check; what earlier ones had opened
        is counted too."""
        process = self.running
        return _added(self._opened_before, process.pushes if process is not None else {})

    async def process(self, deadline: float) -> PluginProcess:
        """A process that can be called, started if necessary; PluginUnavailable if none serves by the deadline."""
        if self.running is not None:
            return self.running
        if self._closed:
            raise self._unavailable("is being ended")
        if self._starting is None:
            delay = self._restarts.restart_delay()
            if delay > 0:
                raise self._unavailable("is down and is started again soon", retry_after=delay)
            self._begin_start()
        assert self._starting is not None
        await asyncio.wait({self._starting}, timeout=max(0.0, deadline - asyncio.get_running_loop().time()))
        if self.running is None:
            raise self._unavailable("is being started" if self._starting else "could not be started")
        return self.running

    def _unavailable(self, state: str, retry_after: float | None = None) -> PluginUnavailable:
        if self._changed:
            text = f"The plugin {self.policy.name} was changed since the service loaded it."
            return PluginUnavailable(text, advice="The operator has to restart the service.", retry_after=retry_after)
        return PluginUnavailable(f"The process of the plugin {self.policy.name} {state}.", retry_after=retry_after)

    def start(self) -> None:
        """Begin to start the process, unless it runs or is about to."""
        if self.running is None and self._starting is None and self._timer is None:
            self._begin_start()

    def _begin_start(self) -> None:
        self._cancel_timer()
        if self._closed:
            return
        if self._starting is not None:
            # The attempt that failed is still being cleared away.
            self._timer = asyncio.get_running_loop().call_later(LEAST_PAUSE, self._begin_start)
            return
        self._starting = asyncio.create_task(self._start_process(), name=f"start of {self.policy.name}")
        self._starting.add_done_callback(self._on_start_done)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _start_process(self) -> None:
        try:
            process = await PluginProcess.start(self.policy, self._config())
        except StartFailed as failure:
            self._changed = isinstance(failure, PluginChanged)
            self._restart_after(str(failure), 0.0)
            return
        self._use(process)
        log.info("plugin_host.started", plugin=self.policy.name, process_id=process.process_id)

    def _on_start_done(self, task: asyncio.Task[None]) -> None:
        self._starting = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("plugin_host.start_failed", plugin=self.policy.name, **_described(error))
            self._restart_after("Its process could not be started.", 0.0)

    def _use(self, process: PluginProcess) -> None:
        """From now on calls go to this process."""
        self._process = process
        self._changed = False
        self._restarts.process_started()
        process.ended.add_done_callback(lambda ended: self._lose(process, _end_reason(ended)))
        if self._watching is not None:
            self._watching.cancel()
        self._watching = asyncio.create_task(self._watch(process), name=f"watch over {self.policy.name}")
        if process.manifest is not self._config().manifest:
            # A newer one came while the process was being started.
            self._configuring = asyncio.create_task(self.configure(), name=f"newer manifest of {self.policy.name}")
        self._set_trouble("")

    def _give_up(self, process: PluginProcess, reason: str) -> None:
        """End a process that is of no use any more."""
        process.stop(reason)
        self._endings.add(process, process.end(reason))
        self._lose(process, reason)

    def _lose(self, process: PluginProcess, reason: str) -> None:
        if self._process is process:
            self._keep_figures(process)
            self._process = None
            self._restart_after(reason, process.uptime)

    def _keep_figures(self, process: PluginProcess) -> None:
        opened = {exchange: PushFigures(opened=figures.opened) for exchange, figures in process.pushes.items()}
        self._opened_before = _added(self._opened_before, opened)

    def _restart_after(self, reason: str, lived: float) -> None:
        """Note the end of a process, or of an attempt to start one, and start another after a pause."""
        if self._closed:
            return
        self._last_end = reason
        self._restart_count += 1
        pause = self._restarts.process_ended(lived)
        self._cancel_timer()
        self._timer = asyncio.get_running_loop().call_later(pause, self._begin_start)
        log.warning("plugin_host.ended", plugin=self.policy.name, reason=reason, again_in=round(pause, 1))
        down = "" if self._changed else "The process of its plugin is down and is being started again. "
        self._set_trouble(f"{down}{reason}")

    def _set_trouble(self, trouble: str) -> None:
        self.trouble = trouble
        self._on_change()

    def report_timeout(self) -> None:
        """Note that a call had no answer, not even that it ran past its deadline."""
        self._restarts.report_timeout()

    async def _watch(self, process: PluginProcess) -> None:
        while process.alive:
            await asyncio.sleep(HEALTH_CHECK_INTERVAL)
            if not process.alive:
                return
            try:
                fault = await check_health(process, self._restarts)
                if fault is not None and not fault.answers:
                    self._give_up(process, fault.reason)
                    return
                # One after the other, and not too often: a new process has no sessions and no markets yet.
                may_replace = not self._endings.under_way and self._restarts.may_replace()
                if fault is not None and may_replace and await self._replace(process, fault.reason):
                    return
            except Exception as error:
                # Whatever went wrong here, the process must not be left without a watch.
                log.error("plugin_host.watch_failed", plugin=self.policy.name, **_described(error))

    async def _replace(self, old: PluginProcess, reason: str) -> bool:
        """Start another process, and end this one when its calls have ended; False if no other could be started."""
        self._restarts.replacement_begun(old.uptime)
        log.warning("plugin_host.replaced", plugin=self.policy.name, reason=reason)
        try:
            new = await PluginProcess.start(self.policy, self._config())
        except StartFailed as failure:
            log.warning("plugin_host.start_failed", plugin=self.policy.name, reason=str(failure))
            return False
        if self._closed or not old.alive:
            await new.end()
            return True
        self._restart_count += 1
        self._last_end = reason
        self._keep_figures(old)
        self._endings.add(old, old.end_when_idle(reason))
        # Last, because it cancels the task that runs here.
        asyncio.get_running_loop().call_soon(self._use, new)
        return True

    async def configure(self) -> None:
        """Give a running process the newer manifest."""
        if (process := self.running) is None:
            return
        config = self._config()
        process.manifest = config.manifest
        try:
            await process.configure(config)
        except CallFailed as failure:
            self._give_up(process, await process.failure_reason(failure, "It did not accept a newer manifest."))

    async def close(self) -> None:
        """End the process for good."""
        self._closed = True
        self._cancel_timer()
        tasks = [task for task in (self._starting, self._watching, self._configuring) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._process is not None:
            await self._process.end("The service has ended.")
        await self._endings.close()


def _added(some: Mapping[str, PushFigures], others: Mapping[str, PushFigures]) -> dict[str, PushFigures]:
    none = PushFigures()
    return {name: some.get(name, none) + others.get(name, none) for name in some.keys() | others.keys()}


def _described(error: BaseException) -> dict[str, Any]:
    """An error of the service's own work around a process, for the log: no plugin's code has a part in its text."""
    return {"error": type(error).__name__, "text": str(error)[:200], "at": raised_at(error, most=4)}


def _end_reason(ended: asyncio.Task[str]) -> str:
    known = not ended.cancelled() and ended.exception() is None
    return ended.result() if known else "Its end was not seen."


class _Endings:
    """The processes of one plugin that are being ended, each by a task."""

    def __init__(self, plugin: str) -> None:
        self._plugin = plugin
        self._tasks: dict[asyncio.Task[None], PluginProcess] = {}

    @property
    def under_way(self) -> bool:
        return bool(self._tasks)

    def add(self, process: PluginProcess, ending: Coroutine[Any, Any, None]) -> None:
        """Run `ending`, which ends the process."""
        task = asyncio.create_task(ending, name=f"end of {self._plugin}")
        self._tasks[task] = process
        task.add_done_callback(self._tasks.pop)

    async def close(self) -> None:
        """Wait until all have ended, without waiting for their calls."""
        tasks = dict(self._tasks)
        for process in tasks.values():
            process.abandon_calls()
        if tasks:
            await asyncio.wait(tasks)
