"""The engines that carry our handlers: grpcio's server, or one whose HTTP/2 runs outside Python."""

from __future__ import annotations

import grpc

from exchange_service.grpc_server.engines.engine import (
    BindError,
    ConnectionLimits,
    Engine,
    Offer,
)

__all__ = ["BindError", "ConnectionLimits", "Engine", "Offer", "listen_with"]


async def listen_with(name: str, offer: Offer, address: str, tls: grpc.ServerCredentials | None) -> Engine:
    """Listen on `address` with the engine of this name. Raises BindError if that fails, and ValueError for TLS with an
    engine that has none."""
    if name == "native":
        if tls is not None:
            raise ValueError("the native engine has no TLS")
        # Its library is an extra, and is loaded only if it serves.
        from exchange_service.grpc_server.engines import native

        return await native.listen(offer, address)
    from exchange_service.grpc_server.engines import grpcio

    return await grpcio.listen(offer, address, tls)
