"""ListPlugins: each installed plugin, and the state of the processes that run it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import psutil

from exchange_service.model import ExchangeMetadata
from exchange_service.operator.v1 import plugin_service_pb2
from exchange_service.plugin_host.client import PluginClients
from exchange_service.plugin_host.supervisor import Condition, State
from exchange_service.venues.registry import LoadedPlugin, Registry
from exchange_service.wire.catalogue import plugin_message, problem_message
from exchange_service.wire.protobuf import to_duration

_STATES = {
    State.IDLE: plugin_service_pb2.PLUGIN_PROCESS_STATE_IDLE,
    State.STARTING: plugin_service_pb2.PLUGIN_PROCESS_STATE_STARTING,
    State.RUNNING: plugin_service_pb2.PLUGIN_PROCESS_STATE_RUNNING,
    State.WAITING: plugin_service_pb2.PLUGIN_PROCESS_STATE_WAITING,
}


class PluginReport:
    """Reports the plugins of this replica."""

    def __init__(self, registry: Registry, venues: PluginClients) -> None:
        self._registry = registry
        self._venues = venues
        self._began = asyncio.get_running_loop().time()

    def answer(self) -> bytes:
        """A serialised ListPluginsResponse."""
        response = list_installed(self._registry)
        for status, plugin in zip(response.plugins, self._registry.plugins, strict=True):
            status.processes.extend(_process_status(condition) for condition in self._conditions(plugin))
        return response.SerializeToString()

    def _conditions(self, plugin: LoadedPlugin) -> Sequence[Condition]:
        if plugin.own_process:
            return self._venues.conditions(plugin)
        uptime = asyncio.get_running_loop().time() - self._began
        return (Condition(State.RUNNING, os.getpid(), psutil.Process().memory_info().rss, uptime, 0, ""),)


def list_installed(registry: Registry) -> plugin_service_pb2.ListPluginsResponse:
    """The installed plugins, without the processes that run them."""
    listings = registry.listings.values()
    return plugin_service_pb2.ListPluginsResponse(
        plugins=[
            _plugin_status(plugin, [item.metadata for item in listings if item.plugin is plugin])
            for plugin in registry.plugins
        ],
        problems=[problem_message(problem.plugin, problem.reason) for problem in registry.problems],
    )


def _plugin_status(plugin: LoadedPlugin, served: Sequence[ExchangeMetadata]) -> plugin_service_pb2.PluginStatus:
    return plugin_service_pb2.PluginStatus(
        plugin=plugin_message(plugin.info),
        own_process=plugin.own_process,
        exchange_count=len(served),
        balance_exchange_count=sum(metadata.capabilities.balance for metadata in served),
    )


def _process_status(condition: Condition) -> plugin_service_pb2.PluginProcess:
    message = plugin_service_pb2.PluginProcess(
        state=_STATES[condition.state],
        process_id=condition.process_id,
        memory_bytes=condition.memory,
        restart_count=condition.restarts,
        last_end=condition.last_end,
    )
    if condition.uptime is not None:
        message.uptime.CopyFrom(to_duration(int(condition.uptime)))
    return message
