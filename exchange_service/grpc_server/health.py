"""gRPC's health service. Anybody may ask it, so that nobody who does may hold it up.

The library's own holds a lock while it writes: one client that does not read keeps all others, and the service's own
word that it ends, waiting.
"""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health_pb2

from exchange_service.errors import ServiceOverloaded
from exchange_service.grpc_server.boundary import Context, abort

NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_MOST_WATCHERS = 1000
_ANSWER = health_pb2.HealthCheckResponse


class Health:
    """Says of these services, and of the server as a whole (""), whether they serve; until told, they do not."""

    def __init__(self, *services: str) -> None:
        self._services = frozenset(("", *services))
        self._state = _ANSWER.NOT_SERVING
        self._changed = asyncio.Event()
        self._watchers = 0

    def set_serving(self, serving: bool) -> None:
        """What to say from now on."""
        self._state = _ANSWER.SERVING if serving else _ANSWER.NOT_SERVING
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def handlers(self) -> grpc.GenericRpcHandler:
        """The handlers for the server."""
        coders = health_pb2.HealthCheckRequest.FromString, _ANSWER.SerializeToString
        return grpc.method_handlers_generic_handler(
            NAME,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self.check, *coders),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch, *coders),
            },
        )

    async def check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """Check: the state now."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service.")
        return _ANSWER(status=self._state)

    async def watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        """Watch: the state now, and again whenever it has changed."""
        if self._watchers >= _MOST_WATCHERS:
            await abort(
                context, ServiceOverloaded("Too many watch this service's health.", advice="Check it now and then.")
            )
        self._watchers += 1
        try:
            await self._tell(request.service, context)
        finally:
            self._watchers -= 1

    async def _tell(self, service: str, context: Context) -> None:
        told = None
        while True:
            # Before the state is looked at, so that no change between the two is missed.
            changed = self._changed
            state = self._state if service in self._services else _ANSWER.SERVICE_UNKNOWN
            if state != told:
                told = state
                await context.write(_ANSWER(status=state))
            await changed.wait()
