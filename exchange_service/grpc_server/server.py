"""The grpc.aio server: options, TLS, health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
import structlog
from google.protobuf.descriptor import MethodDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2

from exchange_service.grpc_server import health
from exchange_service.grpc_server.authentication import Authentication
from exchange_service.grpc_server.direct import DirectCalls
from exchange_service.grpc_server.handler_wrapper import FewFields, Handler, HandlerWrapper, Quick, UnknownMethods
from exchange_service.grpc_server.methods import Ready, ServiceMethods
from exchange_service.grpc_server.requests import parse
from exchange_service.grpc_server.turns import Openings
from exchange_service.identity.authenticator import Authenticator
from exchange_service.identity.quotas import Action
from exchange_service.observability.metrics import Metrics

log = structlog.get_logger(__name__)

# Our requests are small; a larger one is an attack or a mistake.
_MAX_REQUEST = 64 * 1024
_MAX_REPLY = 4 * 1024 * 1024
# The time in seconds that cancelled handlers have to clean up.
_CLEANUP_TIMEOUT = 2.0
# The time in seconds that ended calls have to send their statuses on a busy machine.
_TELLING = 1.0
# The time in seconds that calls have at least to tell their callers that the service ends.
_LEAST_GRACE = 0.3

_OPTIONS: Sequence[tuple[str, int]] = (
    # It is on by default, and then a second process binds the same port and takes half of the connections.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", _MAX_REQUEST),
    ("grpc.max_send_message_length", _MAX_REPLY),
    # A vanished client is noticed only by these together; the ping timeout alone is a minute by default.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A client may ping while nothing is sent. Without this one that pings twice in five minutes is cut off.
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.max_connection_age_ms", 70 * 60 * 1000),
    ("grpc.max_connection_age_grace_ms", 60 * 1000),
    # Beyond the first, gRPC ends some of the calls that wait, as CANCELLED: ten thousand subscribers may come back at
    # the same time. With ten times as many, requests that are reset at once hold up all others for seconds.
    ("grpc.server.max_pending_requests", 9_000),
    ("grpc.server.max_pending_requests_hard_limit", 10_000),
    # Those that wait longer get no reason. Half a minute, the default, may pass when ten thousand come back.
    ("grpc.server_max_unrequested_time_in_server", 120),
    # It is on by default, and counts calls that have ended and are not freed yet. So it refuses one call in ten of a
    # client that keeps its connection full and waits with the others (measured), without a reason.
    ("grpc.http.overload_protection", 0),
    # A connection that says nothing is closed after this time, not after two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What peers may hold open before they are known: the calls and streams of one connection, the connections in all
    (None: as many as the system allows), and the seconds for which a connection may have no call."""

    streams: int = 250
    connections: int | None = None
    idle: float = 300.0

    def options(self) -> list[tuple[str, int]]:
        """The limits as options of gRPC."""
        # A client notices nothing: it connects again for its next call.
        idle = ("grpc.max_connection_idle_ms", round(self.idle * 1000))
        options = [("grpc.max_concurrent_streams", self.streams), idle]
        if self.connections is not None:
            options.append(("grpc.max_allowed_incoming_connections", self.connections))
        return options


_LIMITS = ConnectionLimits()


class BindError(Exception):
    """The service cannot listen on the address; the text is a sentence for the operator."""


@dataclass(slots=True)
class Server:
    """A listening server; `address` has the port in use."""

    address: str
    grpc_server: grpc.aio.Server
    health: health.Health
    handler_wrapper: HandlerWrapper
    # The same handlers for other transports within this process.
    direct: DirectCalls
    # Answers health checks of this machine while the server itself wants TLS.
    local_checks: grpc.aio.Server | None = None

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
                self.grpc_server.stop(grace + _TELLING), self.handler_wrapper.wait_until_idle(grace + _TELLING)
            )
        finally:
            ending.cancel()
        if self.local_checks is not None:
            await self.local_checks.stop(0)
        await self.handler_wrapper.wait_until_idle(_CLEANUP_TIMEOUT)

    def _end_calls(self) -> None:
        self.handler_wrapper.end_all()
        self.health.end()


def _reflect(names: Sequence[str], authentication: Authentication) -> grpc.GenericRpcHandler:
    """gRPC's reflection of these services, for known callers only."""
    servicer = reflection.aio.ReflectionServicer(names)
    handler: Any = grpc.stream_stream_rpc_method_handler(
        authentication.require_caller_of_reflection(
            servicer.ServerReflectionInfo, partial(parse, reflection_pb2.ServerReflectionRequest)
        ),
        # Bytes, which are parsed for known callers only.
        None,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, {"ServerReflectionInfo": handler})


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
) -> Server:
    """Start to listen on `address` for these services, and for health checks. Raises BindError if that fails.

    With `tls` there is a second listener, which answers health checks of this machine alone, without TLS. A unary call
    without a deadline may take `call_timeout` seconds.
    """
    openings = openings if openings is not None else Openings()
    wrapper, authentication = HandlerWrapper(metrics, call_timeout, openings), Authentication(authenticator, openings)
    server = grpc.aio.server(options=[*_OPTIONS, *limits.options()])
    names = [service.name for service in services]
    states = health.Health(*names)

    def wrap(method: MethodDescriptor, handler: Handler, quick: Quick | None) -> Handler:
        action = Action.OPENING if method.server_streaming else Action.CALL
        inner = authentication.require_caller(handler, action)
        return wrapper.wrap(method.name, inner, streaming=method.server_streaming, quick=quick)

    def wrap_ready(name: str, ready: Ready) -> Quick:
        return wrapper.wrap_quick(name, authentication.quick(ready))

    wrapped = [service.wrapped(wrap, wrap_ready) for service in services]
    handlers = [*(service.generic_handler() for service in wrapped), states.handlers()]
    if reflect:
        handlers.append(_reflect((*names, health.NAME, reflection.SERVICE_NAME), authentication))
    server.add_generic_rpc_handlers((FewFields(), *handlers, UnknownMethods(metrics)))
    address = _bind(server, address, tls)
    await server.start()
    local = await _listen_for_local_checks(states, address) if tls is not None else None
    return Server(address, server, states, wrapper, DirectCalls(wrapped), local)


async def _listen_for_local_checks(states: health.Health, address: str) -> grpc.aio.Server | None:
    """A listener for health checks that need no certificate; None where the system has no such sockets."""
    server = grpc.aio.server(options=[*_OPTIONS, *_LIMITS.options()])
    server.add_generic_rpc_handlers((states.handlers(),))
    try:
        server.add_insecure_port(health.local_address(address))
    except RuntimeError:
        log.warning("health.no_local_checks", address=address)
        return None
    await server.start()
    return server


def _bind(server: grpc.aio.Server, address: str, tls: grpc.ServerCredentials | None) -> str:
    """Bind the address; the result has the port in use. Raises BindError if that fails."""
    is_unix = address.startswith("unix:")
    try:
        port = server.add_secure_port(address, tls) if tls else server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port:
        reason = "the address is in use or does not belong to this machine"
        if is_unix:
            reason = "the socket's folder does not exist or cannot be written to, or the path is too long"
        raise BindError(f"Cannot listen on {address}: {reason}.")
    return address if is_unix else f"{address.rpartition(':')[0]}:{port}"
