"""The grpc.aio server: options, TLS, health and reflection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from exchange_service.grpc_server import health
from exchange_service.grpc_server.authentication import Admission
from exchange_service.grpc_server.handler_wrapper import Boundary, Handler, UnknownMethods
from exchange_service.grpc_server.servicer import SERVICE, STREAMS, Servicer
from exchange_service.identity.authenticator import Authenticator
from exchange_service.identity.quotas import Action
from exchange_service.observability.metrics import Metrics

# Our requests are tiny; a larger one is an attack or a mistake.
_MAX_REQUEST = 64 * 1024
_MAX_REPLY = 4 * 1024 * 1024
# Seconds that cancelled handlers have to clean up.
_DRAIN = 2.0

_OPTIONS: Sequence[tuple[str, int]] = (
    # On by default, and then a second process binds the same port and takes half of the connections.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", _MAX_REQUEST),
    ("grpc.max_send_message_length", _MAX_REPLY),
    # Thousands of streams may come over few connections.
    ("grpc.max_concurrent_streams", 10_000),
    # A client that vanished is noticed only by these together; the ping timeout alone is a minute by default.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.max_connection_age_ms", 70 * 60 * 1000),
    ("grpc.max_connection_age_grace_ms", 60 * 1000),
    # The defaults refuse a part of a few thousand subscribers who come back at once.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 200_000),
)


class BindError(Exception):
    """The address cannot be listened on; the text is a sentence for the operator."""


@dataclass(slots=True)
class Server:
    """A listening server; `address` has the port that was taken."""

    address: str
    grpc_server: grpc.aio.Server
    health: health.Health
    boundary: Boundary

    async def set_serving(self, serving: bool) -> None:
        """What the health service says of us."""
        self.health.set_serving(serving)

    async def stop(self, grace: float) -> None:
        """Take no new calls, and give those in progress `grace` seconds."""
        self.health.set_serving(False)
        await self.grpc_server.stop(grace)
        await self.boundary.drained(_DRAIN)


def _description(names: Sequence[str], admission: Admission) -> grpc.GenericRpcHandler:
    """gRPC's reflection of these services, for callers who are known."""
    servicer = reflection.aio.ReflectionServicer(names)
    handler = grpc.stream_stream_rpc_method_handler(
        admission.admitting_reflection(servicer.ServerReflectionInfo),
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, {"ServerReflectionInfo": handler})


def credentials(certificate: Path, key: Path, client_ca: Path | None = None) -> grpc.ServerCredentials:
    """The server's TLS identity from PEM files; with `client_ca` every client needs a certificate that it signed."""
    pair = (key.read_bytes(), certificate.read_bytes())
    if client_ca is None:
        return grpc.ssl_server_credentials([pair])
    return grpc.ssl_server_credentials([pair], client_ca.read_bytes(), require_client_auth=True)


async def listen(
    servicer: Servicer,
    callers: Authenticator,
    address: str,
    *,
    tls: grpc.ServerCredentials | None,
    reflect: bool,
    metrics: Metrics | None = None,
) -> Server:
    """Start to listen on `address`; BindError where that cannot be."""
    boundary, admission = Boundary(metrics), Admission(callers)
    server = grpc.aio.server(options=list(_OPTIONS))
    states = health.Health(SERVICE)

    def within(name: str, handler: Handler) -> Handler:
        return boundary.bounded(name, admission.admitting(handler, Action.OPENING if name in STREAMS else Action.CALL))

    handlers = [servicer.handlers(within), states.handlers()]
    if reflect:
        handlers.append(_description((SERVICE, health.NAME, reflection.SERVICE_NAME), admission))
    server.add_generic_rpc_handlers((*handlers, UnknownMethods(metrics)))
    host = address.rpartition(":")[0]
    try:
        port = server.add_secure_port(address, tls) if tls else server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port and not address.startswith("unix:"):
        reason = "the address is taken or not one of this machine"
        if tls:
            reason += ", or the certificate and key do not fit each other"
        raise BindError(f"Cannot listen on {address}: {reason}.")
    await server.start()
    return Server(address if address.startswith("unix:") else f"{host}:{port}", server, states, boundary)
