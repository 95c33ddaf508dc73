"""The server: what is served, by which engine, and how it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from google.protobuf.descriptor import MethodDescriptor

from exchange_service.grpc_server import health
from exchange_service.grpc_server.authentication import Authentication
from exchange_service.grpc_server.direct import DirectCalls
from exchange_service.grpc_server.engines import BindError, ConnectionLimits, Engine, Offer, listen_with
from exchange_service.grpc_server.handler_wrapper import Handler, HandlerWrapper, Quick
from exchange_service.grpc_server.methods import BeginLook, Ready, ServiceMethods
from exchange_service.grpc_server.reflection import Reflection
from exchange_service.grpc_server.turns import Openings
from exchange_service.identity.authenticator import Authenticator
from exchange_service.identity.quotas import Action
from exchange_service.observability.metrics import Metrics
from exchange_service.observability.tracing import Tracing

__all__ = ["BindError", "ConnectionLimits", "Server", "listen"]

# The time in seconds that cancelled handlers have to clean up.
_CLEANUP_TIMEOUT = 2.0
# The time in seconds that ended calls have to send their statuses on a busy machine.
_TELLING = 1.0
# The time in seconds that calls have at least to tell their callers that the service ends.
_LEAST_GRACE = 0.3

_LIMITS = ConnectionLimits()


@dataclass(slots=True)
class Server:
    """A listening server."""

    engine: Engine
    health: health.Health
    handler_wrapper: HandlerWrapper
    # The same handlers for other transports within this process.
    direct: DirectCalls

    @property
    def address(self) -> str:
        """The address that the service listens on."""
        return self.engine.address

    async def set_serving(self, serving: bool) -> None:
        """Set the state that the health service reports."""
        self.health.set_serving(serving)

    async def stop(self, grace: float) -> None:
        """Accept no new calls, and give those in progress `grace` seconds; then each is told that the service ends."""
        self.health.set_serving(False)
        self.direct.close()
        grace = max(grace, _LEAST_GRACE)
        ending = asyncio.get_running_loop().call_later(grace - _LEAST_GRACE / 2, self._end_calls)
        try:
            # What gRPC itself cuts off gets no status any more, so it waits for those that are told first. It returns
            # once no call is left of its own; calls of other transports have the same grace.
            await asyncio.gather(
                self.engine.stop(grace + _TELLING), self.handler_wrapper.wait_until_idle(grace + _TELLING)
            )
        finally:
            ending.cancel()
        await self.handler_wrapper.wait_until_idle(_CLEANUP_TIMEOUT)

    def _end_calls(self) -> None:
        self.handler_wrapper.end_all()
        self.health.end()


async def listen(
    services: Sequence[ServiceMethods],
    authenticator: Authenticator,
    address: str,
    *,
    tls: grpc.ServerCredentials | None,
    reflect: bool,
    metrics: Metrics | None = None,
    limits: ConnectionLimits = _LIMITS,
    call_timeout: float = 10.0,
    openings: Openings | None = None,
    engine: str = "grpcio",
    tracing: Tracing | None = None,
) -> Server:
    """Start to listen on `address` for these services, and for health checks. Raises BindError if that fails.

    With `tls` there is a second listener, which answers health checks of this machine alone, without TLS. A unary call
    without a deadline may take `call_timeout` seconds. `engine` is "grpcio" or "native". `tracing`: None without
    traces.
    """
    openings, metrics = openings if openings is not None else Openings(), metrics or Metrics()
    wrapper = HandlerWrapper(metrics, call_timeout, openings, tracing)
    authentication = Authentication(authenticator, openings)
    names = [service.name for service in services]
    states = health.Health(*names)

    def wrap(method: MethodDescriptor, handler: Handler) -> Handler:
        action = Action.OPENING if method.server_streaming else Action.CALL
        inner = authentication.require_caller(handler, action)
        path = f"{method.containing_service.full_name}/{method.name}"
        return wrapper.wrap(path, inner, streaming=method.server_streaming)

    def wrap_ready(path: str, ready: Ready, look: BeginLook | None) -> Quick:
        return wrapper.wrap_quick(path, authentication.quick(ready, look))

    wrapped = [service.wrapped(wrap, wrap_ready) for service in services]
    reflection_handler = Reflection((*names, health.NAME), authentication) if reflect else None
    offer = Offer(wrapped, states, reflection_handler, metrics, limits)
    return Server(await listen_with(engine, offer, address, tls), states, wrapper, DirectCalls(wrapped))
