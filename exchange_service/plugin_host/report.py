"""ListPlugins: each installed plugin, and the state of the processes that run it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import psutil

from exchange_service.model import ExchangeMetadata
from exchange_service.operator.v1 import plugin_service_pb2
from exchange_service.plugin_host.client import PluginClients
from exchange_service.plugin_host.sandbox import Mode, level
from exchange_service.plugin_host.supervisor import ProcessState, ProcessStatus
from exchange_service.venues.loading import LoadedPlugin
from exchange_service.venues.registry import Registry
from exchange_service.wire.catalogue import plugin_message, problem_message
from exchange_service.wire.protobuf import to_duration

_STATES = {
    ProcessState.IDLE: plugin_service_pb2.PLUGIN_PROCESS_STATE_IDLE,
    ProcessState.STARTING: plugin_service_pb2.PLUGIN_PROCESS_STATE_STARTING,
    ProcessState.RUNNING: plugin_service_pb2.PLUGIN_PROCESS_STATE_RUNNING,
    ProcessState.WAITING: plugin_service_pb2.PLUGIN_PROCESS_STATE_WAITING,
}


class PluginReport:
    """Reports the plugins of this replica."""

    def __init__(self, registry: Registry, venues: PluginClients, sandbox: Mode = "auto") -> None:
        self._registry = registry
        self._venues = venues
        self._sandbox = sandbox
        self._began = asyncio.get_running_loop().time()

    def answer(self) -> bytes:
        """A serialised ListPluginsResponse."""
        response = list_installed(self._registry, self._sandbox)
        for status, plugin in zip(response.plugins, self._registry.plugins, strict=True):
            status.processes.extend(_process_message(process) for process in self._statuses(plugin))
        return response.SerializeToString()

    def _statuses(self, plugin: LoadedPlugin) -> Sequence[ProcessStatus]:
        if plugin.own_process:
            return self._venues.statuses(plugin)
        uptime = asyncio.get_running_loop().time() - self._began
        return (ProcessStatus(ProcessState.RUNNING, os.getpid(), psutil.Process().memory_info().rss, uptime, 0, ""),)


def list_installed(registry: Registry, sandbox: Mode = "auto") -> plugin_service_pb2.ListPluginsResponse:
    """The installed plugins, without the processes that run them."""
    listings, held_to = registry.listings.values(), level(sandbox)
    return plugin_service_pb2.ListPluginsResponse(
        plugins=[
            _plugin_message(plugin, [item.metadata for item in listings if item.plugin is plugin], held_to)
            for plugin in registry.plugins
        ],
        problems=[
            problem_message(problem.plugin, problem.for_operators, problem.notice) for problem in registry.problems
        ],
    )


def _plugin_message(
    plugin: LoadedPlugin, served: Sequence[ExchangeMetadata], held_to: str
) -> plugin_service_pb2.PluginStatus:
    return plugin_service_pb2.PluginStatus(
        plugin=plugin_message(plugin.info),
        own_process=plugin.own_process,
        exchange_count=len(served),
        balance_exchange_count=sum(metadata.capabilities.balance for metadata in served),
        push_exchange_count=sum(metadata.capabilities.push for metadata in served),
        sandbox=held_to if plugin.own_process else "",
        interpreter=plugin.interpreter.command if plugin.interpreter else "",
        python_version=plugin.interpreter.python if plugin.interpreter else "",
        libraries=plugin.interpreter.libraries if plugin.interpreter else (),
    )


def _process_message(status: ProcessStatus) -> plugin_service_pb2.PluginProcess:
    message = plugin_service_pb2.PluginProcess(
        state=_STATES[status.state],
        process_id=status.process_id,
        memory_bytes=status.memory,
        restart_count=status.restarts,
        last_end=status.last_end,
    )
    if status.uptime is not None:
        message.uptime.CopyFrom(to_duration(int(status.uptime)))
    return message
