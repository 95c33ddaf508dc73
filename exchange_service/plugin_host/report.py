"""ListPlugins: each installed plugin, and how the processes fare that run it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import psutil
from google.protobuf.duration_pb2 import Duration

from exchange_service.model import ExchangeMetadata
from exchange_service.plugin_host.client import PluginClients
from exchange_service.plugin_host.supervisor import ProcessState, ProcessStatus
from exchange_service.v1 import exchange_pb2, exchange_service_pb2
from exchange_service.venues.loading import LoadedPlugin, PluginInfo
from exchange_service.venues.registry import Registry

_STATES = {
    ProcessState.IDLE: exchange_service_pb2.PLUGIN_PROCESS_STATE_IDLE,
    ProcessState.STARTING: exchange_service_pb2.PLUGIN_PROCESS_STATE_STARTING,
    ProcessState.RUNNING: exchange_service_pb2.PLUGIN_PROCESS_STATE_RUNNING,
    ProcessState.WAITING: exchange_service_pb2.PLUGIN_PROCESS_STATE_WAITING,
}


class PluginReport:
    """Tells of the plugins of this process."""

    def __init__(self, registry: Registry, venues: PluginClients) -> None:
        self._registry = registry
        self._venues = venues
        self._began = asyncio.get_running_loop().time()

    def answer(self) -> bytes:
        """A serialised ListPluginsResponse."""
        response = installed(self._registry)
        for status, plugin in zip(response.plugins, self._registry.plugins, strict=True):
            status.processes.extend(_process(condition) for condition in self._conditions(plugin))
        return response.SerializeToString()

    def _conditions(self, plugin: LoadedPlugin) -> Sequence[ProcessStatus]:
        if plugin.own_process:
            return self._venues.statuses(plugin)
        uptime = asyncio.get_running_loop().time() - self._began
        return (ProcessStatus(ProcessState.RUNNING, os.getpid(), psutil.Process().memory_info().rss, uptime, 0, ""),)


def installed(registry: Registry) -> exchange_service_pb2.ListPluginsResponse:
    """The plugins without the processes that run them."""
    listings = registry.listings.values()
    return exchange_service_pb2.ListPluginsResponse(
        plugins=[
            _status(plugin, [item.metadata for item in listings if item.plugin is plugin])
            for plugin in registry.plugins
        ],
        problems=[
            exchange_service_pb2.PluginProblem(plugin=_label(problem.plugin), reason=problem.reason)
            for problem in registry.problems
        ],
    )


def _status(plugin: LoadedPlugin, served: Sequence[ExchangeMetadata]) -> exchange_service_pb2.PluginStatus:
    return exchange_service_pb2.PluginStatus(
        plugin=_label(plugin.info),
        own_process=plugin.own_process,
        exchange_count=len(served),
        balance_exchange_count=sum(metadata.capabilities.balance for metadata in served),
    )


def _process(condition: ProcessStatus) -> exchange_service_pb2.PluginProcess:
    message = exchange_service_pb2.PluginProcess(
        state=_STATES[condition.state],
        process_id=condition.process_id,
        memory_bytes=condition.memory,
        restart_count=condition.restarts,
        last_end=condition.last_end,
    )
    if condition.uptime is not None:
        message.uptime.CopyFrom(Duration(seconds=int(condition.uptime)))
    return message


def _label(info: PluginInfo) -> exchange_pb2.Plugin:
    return exchange_pb2.Plugin(name=info.name, version=info.version, distribution=info.distribution)
