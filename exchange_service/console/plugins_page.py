"""The page of plugins, for operators: which are installed, and how their processes are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from exchange_service.console.api import ApiError, as_dict
from exchange_service.console.pages import json_reply, open_visit, render
from exchange_service.operator.v1.plugin_service_pb2 import (
    PLUGIN_PROCESS_STATE_IDLE,
    PLUGIN_PROCESS_STATE_RUNNING,
    PLUGIN_PROCESS_STATE_STARTING,
    PLUGIN_PROCESS_STATE_WAITING,
    ListPluginsResponse,
    PluginProcess,
    PluginStatus,
)
from exchange_service.printable import printable

_STATES: Mapping[int, tuple[str, str]] = {
    PLUGIN_PROCESS_STATE_IDLE: ("Not started yet", "quiet"),
    PLUGIN_PROCESS_STATE_STARTING: ("Starting", "warning"),
    PLUGIN_PROCESS_STATE_RUNNING: ("Running", "good"),
    PLUGIN_PROCESS_STATE_WAITING: ("Waits before it starts again", "bad"),
}
_STEPS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """A process in words."""

    state: str
    tone: str
    process_id: str
    memory: str
    uptime: str
    restarts: int
    last_end: str


@dataclass(frozen=True, slots=True)
class SandboxState:
    """What keeps a plugin to itself: a word, its tone, and the system's own account of it."""

    word: str
    tone: str
    detail: str


@dataclass(frozen=True, slots=True)
class PluginRow:
    """A plugin in words."""

    name: str
    version: str
    distribution: str
    listings: int
    readable: int
    pushed: int
    sandbox: SandboxState
    processes: tuple[ProcessRow, ...]


@dataclass(frozen=True, slots=True)
class PluginTrouble:
    """What an operator should know of a plugin; a notice if nothing is missing."""

    plugin: str
    sentence: str
    notice: bool


async def show_plugins(request: Request) -> Response:
    """The plugins; a caller that is not an operator gets a sentence in their place."""
    visit = open_visit(request)
    try:
        listed = await visit.api.list_plugins()
    except ApiError as error:
        if error.reason != "USER_FORBIDDEN":
            raise
        return render(request, "plugins.html", {"plugins": None}, visit=visit, status=403)
    values = {"plugins": plugin_rows(listed), "problems": plugin_troubles(listed)}
    return render(request, "plugins.html", values, visit=visit)


async def list_plugins(request: Request) -> Response:
    """The same as JSON: the API's message."""
    return json_reply(as_dict(await open_visit(request).api.list_plugins()))


def plugin_rows(listed: ListPluginsResponse) -> list[PluginRow]:
    """The plugins as the page shows them."""
    return [_plugin_row(status) for status in listed.plugins]


def plugin_troubles(listed: ListPluginsResponse) -> list[PluginTrouble]:
    """What is wrong with plugins, as the page shows it."""
    return [
        PluginTrouble(printable(problem.plugin.name), printable(problem.reason), problem.notice)
        for problem in listed.problems
    ]


def _plugin_row(status: PluginStatus) -> PluginRow:
    return PluginRow(
        name=printable(status.plugin.name),
        version=printable(status.plugin.version),
        distribution=printable(status.plugin.distribution),
        listings=status.exchange_count,
        readable=status.balance_exchange_count,
        pushed=status.push_exchange_count,
        sandbox=_sandbox(status),
        processes=tuple(_process_row(process) for process in status.processes),
    )


def _sandbox(status: PluginStatus) -> SandboxState:
    if not status.own_process:
        return SandboxState("In the service's own process", "quiet", "")
    # The service says "none:" and the reason.
    if status.sandbox.startswith("none"):
        return SandboxState("Not sandboxed", "warning", printable(status.sandbox))
    return SandboxState("Sandboxed", "good", printable(status.sandbox))


def _process_row(process: PluginProcess) -> ProcessRow:
    state, tone = _STATES.get(process.state, ("Not known", "quiet"))
    return ProcessRow(
        state,
        tone,
        str(process.process_id or ""),
        f"{process.memory_bytes / 2**20:.0f} MiB" if process.memory_bytes else "",
        duration(process.uptime.seconds) if process.HasField("uptime") else "",
        process.restart_count,
        printable(process.last_end),
    )


def duration(seconds: int) -> str:
    """A time in its two greatest units, for example "3 h 12 min"."""
    for index, (size, unit) in enumerate(_STEPS):
        if seconds >= size:
            rest = seconds % size
            smaller, small_unit = _STEPS[index + 1] if index + 1 < len(_STEPS) else (1, "")
            more = f" {rest // smaller} {small_unit}" if small_unit and rest >= smaller else ""
            return f"{seconds // size} {unit}{more}"
    return "0 s"


routes: list[Route] = [
    Route("/plugins", show_plugins, methods=["GET"]),
    Route("/plugins.json", list_plugins, methods=["GET"]),
]
