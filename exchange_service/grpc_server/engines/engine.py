"""What an engine is: the transport below our handlers, HTTP/2 and gRPC's framing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc

from exchange_service.grpc_server.handler_wrapper import Handler, Quick
from exchange_service.grpc_server.health import Health
from exchange_service.grpc_server.methods import ServiceMethods
from exchange_service.observability.metrics import Metrics

# Our requests are small; a larger one is an attack or a mistake. Both in bytes.
MAX_REQUEST = 64 * 1024
MAX_REPLY = 4 * 1024 * 1024
# A vanished client is noticed after both together, in seconds.
PING_EVERY, PING_TIMEOUT = 30.0, 10.0


class BindError(Exception):
    """The service cannot listen on the address; the text is a sentence for the operator."""

    @classmethod
    def of(cls, address: str) -> BindError:
        """The error for an address that cannot be bound."""
        reason = "the address is in use or does not belong to this machine"
        if address.startswith("unix:"):
            reason = "the socket's folder does not exist or cannot be written to, or the path is too long"
        return cls(f"Cannot listen on {address}: {reason}.")


def with_port(address: str, port: int) -> str:
    """The address with the port in use."""
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What peers may hold open before they are known: the calls and streams of one connection, the connections in all
    (None: as many as the system allows), and the seconds for which a connection may have no call."""

    streams: int = 250
    connections: int | None = None
    idle: float = 300.0


@dataclass(frozen=True, slots=True)
class Offer:
    """What an engine serves: services with wrapped handlers, health checks, and reflection if there is any."""

    services: Sequence[ServiceMethods]
    health: Health
    reflection: grpc.GenericRpcHandler | None
    metrics: Metrics
    limits: ConnectionLimits

    def quick(self) -> dict[str, tuple[Quick, Handler]]:
        """By the path of each method that has quick answers: these, and its wrapped handler."""
        return {
            f"/{service.name}/{name}": (quick, service.handlers[name])
            for service in self.services
            for name, quick in service.quick.items()
        }


class Engine(Protocol):
    """A listening engine."""

    @property
    def address(self) -> str:
        """The address with the port in use."""
        ...

    async def stop(self, grace: float) -> None:
        """Accept no new calls, give those in progress up to `grace` seconds, and end the rest."""
        ...
