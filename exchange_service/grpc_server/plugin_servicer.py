"""PluginService, for operators."""

from __future__ import annotations

from dataclasses import dataclass

from exchange_service.grpc_server.authentication import current_caller
from exchange_service.grpc_server.handler_wrapper import Context
from exchange_service.grpc_server.methods import ServiceMethods
from exchange_service.grpc_server.requests import parse
from exchange_service.operator.v1 import plugin_service_pb2
from exchange_service.plugin_host.report import PluginReport

_DESCRIPTOR = plugin_service_pb2.DESCRIPTOR.services_by_name["PluginService"]
SERVICE = _DESCRIPTOR.full_name


@dataclass(frozen=True, slots=True)
class PluginServicer:
    """Translates between the wire and the plugin report."""

    plugins: PluginReport

    async def list_plugins(self, data: bytes, context: Context) -> bytes:
        """ListPlugins."""
        parse(plugin_service_pb2.ListPluginsRequest, data)
        current_caller().require_everybody()
        return self.plugins.answer()

    def methods(self) -> ServiceMethods:
        """The handlers for the server."""
        return ServiceMethods(_DESCRIPTOR, {"ListPlugins": self.list_plugins})
