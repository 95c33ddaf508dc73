"""gRPC's health service, which needs no authentication. No client can delay it for the others.

The library's own health service holds a lock while it writes. One client that does not read would delay all others, and
the service's own change to NOT_SERVING.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from exchange_service.errors import ServiceOverloaded, ShuttingDown
from exchange_service.grpc_server.handler_wrapper import Context, abort

NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

_MAX_WATCHERS = 1000
# Bytes; the name of a service is short.
_LARGEST_REQUEST = 1024
_ANSWER = health_pb2.HealthCheckResponse


def local_address(address: str) -> str:
    """Where a server on `address` that wants TLS answers health checks of this machine: a socket of Linux without a
    file. In a container it is the container's own."""
    return f"unix-abstract:exchange-service-health-{address.rpartition(':')[2]}"


async def _service_of(data: bytes, context: Context) -> str:
    """The service that a request asks for; the call ends if it is too large or no such request."""
    if len(data) <= _LARGEST_REQUEST:
        with suppress(DecodeError):
            return str(health_pb2.HealthCheckRequest.FromString(data).service)
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The request is not a health check's.")
    raise AssertionError("the call was ended")


def _answer(state: int) -> bytes:
    return bytes(_ANSWER(status=state).SerializeToString())


class Health:
    """Reports whether these services, and the server as a whole (""), serve. At first they do not."""

    def __init__(self, *services: str) -> None:
        self._services = frozenset(("", *services))
        self._state = _ANSWER.NOT_SERVING
        self._changed = asyncio.Event()
        self._watchers = 0
        self._ended = False
        self._cannot_serve = False

    def end(self) -> None:
        """End every watch: the service ends."""
        self._ended = True
        self._changed.set()

    def set_serving(self, serving: bool) -> None:
        """Set the state, and send it to all watchers."""
        self._state = _ANSWER.SERVING if serving and not self._cannot_serve else _ANSWER.NOT_SERVING
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def end_serving(self) -> None:
        """Report from now on that nothing is served, whatever else is told: only a new process can serve again."""
        self._cannot_serve = True
        self.set_serving(False)

    @property
    def is_serving(self) -> bool:
        """Whether it says SERVING."""
        return bool(self._state == _ANSWER.SERVING)

    def handlers(self) -> grpc.GenericRpcHandler:
        """The handlers for the server."""
        # The requests come as bytes: anybody can send one, so a large one is not even parsed.
        return grpc.method_handlers_generic_handler(
            NAME,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self.check),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
            },
        )

    async def check(self, data: bytes, context: Context) -> bytes:
        """Check: the present state."""
        if await _service_of(data, context) not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service.")
        return _answer(self._state)

    async def watch(self, data: bytes, context: Context) -> None:
        """Watch: the present state, and every change."""
        service = await _service_of(data, context)
        if self._watchers >= _MAX_WATCHERS:
            await abort(
                context, ServiceOverloaded("Too many clients watch this service's health.", advice="Use Check instead.")
            )
        self._watchers += 1
        try:
            await self._send_changes(service, context)
        finally:
            self._watchers -= 1

    async def _send_changes(self, service: str, context: Context) -> None:
        sent = None
        while True:
            # Taken before the state is read, so that no change in between is missed.
            changed = self._changed
            state = self._state if service in self._services else _ANSWER.SERVICE_UNKNOWN
            if state != sent:
                sent = state
                await context.write(_answer(state))
            await changed.wait()
            if self._ended:
                await abort(context, ShuttingDown("This replica of the service is shutting down."))
