"""The engine of grpcio: gRPC's own server for asyncio, with TLS, client certificates and limits of connections."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from exchange_service.grpc_server import health
from exchange_service.grpc_server.engines.engine import (
    MAX_REPLY,
    MAX_REQUEST,
    PING_EVERY,
    PING_TIMEOUT,
    BindError,
    ConnectionLimits,
    Offer,
    with_port,
)
from exchange_service.grpc_server.handler_wrapper import (
    MOST_FIELDS,
    Context,
    FewFields,
    Handler,
    Quick,
    UnknownMethods,
)

log = structlog.get_logger(__name__)

OPTIONS: Sequence[tuple[str, int]] = (
    # It is on by default, and then a second process binds the same port and takes half of the connections.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_REQUEST),
    ("grpc.max_send_message_length", MAX_REPLY),
    # A vanished client is noticed only by these together; the ping timeout alone is a minute by default.
    ("grpc.keepalive_time_ms", round(PING_EVERY * 1000)),
    ("grpc.keepalive_timeout_ms", round(PING_TIMEOUT * 1000)),
    ("grpc.http2.ping_timeout_ms", round(PING_TIMEOUT * 1000)),
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


def _options(limits: ConnectionLimits) -> list[tuple[str, int]]:
    """All options of the server."""
    # A client notices nothing of the idle limit: it connects again for its next call.
    idle = ("grpc.max_connection_idle_ms", round(limits.idle * 1000))
    options = [*OPTIONS, ("grpc.max_concurrent_streams", limits.streams), idle]
    if limits.connections is not None:
        options.append(("grpc.max_allowed_incoming_connections", limits.connections))
    return options


@dataclass(slots=True)
class GrpcioEngine:
    """A listening server of grpcio."""

    address: str
    server: grpc.aio.Server
    # Answers health checks of this machine while the server itself wants TLS.
    local_checks: grpc.aio.Server | None

    async def stop(self, grace: float) -> None:
        """Accept no new calls, give those in progress up to `grace` seconds, and end the rest."""
        await self.server.stop(grace)
        if self.local_checks is not None:
            await self.local_checks.stop(0)


class _QuickFirst(grpc.GenericRpcHandler):
    """Serves methods that have quick answers; all of them are unary.

    gRPC has read the metadata when it looks for the handler, and would read it again for each look at it. So each call
    gets a handler of its own that has it, which takes less time.
    """

    def __init__(self, methods: Mapping[str, tuple[Quick, Handler]]) -> None:
        self._methods = methods

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """The call's handler; None for other methods, and for a call with too many fields, which is refused."""
        method, metadata = self._methods.get(details.method), details.invocation_metadata or ()
        if method is None or len(metadata) > MOST_FIELDS:
            return None
        return _QuickCall(*method, metadata)


class _QuickCall:
    """The handler of one unary call, with what gRPC reads of a handler."""

    __slots__ = ("_handle", "_metadata", "_quick")

    request_streaming = response_streaming = False
    request_deserializer = response_serializer = None
    unary_stream = stream_unary = stream_stream = None

    def __init__(self, quick: Quick, handle: Handler, metadata: Any) -> None:
        self._quick, self._handle, self._metadata = quick, handle, metadata

    async def unary_unary(self, data: bytes, context: Context) -> Any:
        quick = self._quick(data, self._metadata, context.time_remaining())
        if isinstance(quick, bytes):
            return quick
        try:
            if quick is not None:
                await asyncio.wait((quick.reading,))
                reply = quick.reply()
                if reply is not None:
                    return reply
            return await self._handle(data, context)
        finally:
            # gRPC's context holds the exception that ends a failed call, and that holds this frame: together they would
            # stay in memory until the collector of all objects comes.
            del context


async def listen(offer: Offer, address: str, tls: grpc.ServerCredentials | None) -> GrpcioEngine:
    """Start to listen on `address`. Raises BindError if that fails.

    With `tls` there is a second listener, which answers health checks of this machine alone, without TLS.
    """
    server = grpc.aio.server(options=_options(offer.limits))
    handlers = [*(service.generic_handler() for service in offer.services), offer.health.handlers()]
    if offer.reflection is not None:
        handlers.append(offer.reflection)
    server.add_generic_rpc_handlers((_QuickFirst(offer.quick()), FewFields(), *handlers, UnknownMethods(offer.metrics)))
    address = _bind(server, address, tls)
    await server.start()
    local = await _listen_for_local_checks(offer.health, address) if tls is not None else None
    return GrpcioEngine(address, server, local)


async def _listen_for_local_checks(states: health.Health, address: str) -> grpc.aio.Server | None:
    """A listener for health checks that need no certificate; None where the system has no such sockets."""
    server = grpc.aio.server(options=_options(ConnectionLimits()))
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
    try:
        port = server.add_secure_port(address, tls) if tls else server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port:
        raise BindError.of(address)
    return with_port(address, port)
