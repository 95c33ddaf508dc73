"""`health`: whether a running service serves."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import grpc
import typer
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exchange_service.cli.calls import Target, calling
from exchange_service.cli.outcome import ExitCode, console, messages, run
from exchange_service.client import ServiceUnreachable, is_loopback


@calling
def health(target: Target) -> None:
    """Show whether the service is serving."""
    run(_health(target))


async def _health(target: Target) -> None:
    try:
        reply = await _check(target)
    except grpc.aio.AioRpcError as error:
        reply = await _check_locally(target, error)
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    console.print(name)
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        messages.print("The service's log says why, and so does `exchange-service doctor` with the same settings.")
        raise typer.Exit(ExitCode.AGAIN)


async def _check(target: Target) -> health_pb2.HealthCheckResponse:
    async with target.client() as client:
        stub = health_pb2_grpc.HealthStub(client.channel)
        reply: health_pb2.HealthCheckResponse = await stub.Check(
            health_pb2.HealthCheckRequest(), timeout=target.timeout
        )
        return reply


async def _check_locally(target: Target, refused: grpc.aio.AioRpcError) -> health_pb2.HealthCheckResponse:
    """Ask a service on this machine that wants TLS, where it answers health checks without. ServiceUnreachable if it
    does not."""
    # Late: it is the server's, and asked for seldom.
    from exchange_service.grpc_server.health import local_address

    if is_loopback(target.address) and not target.address.startswith("unix"):
        with suppress(grpc.aio.AioRpcError):
            return await _check(replace(target, address=local_address(target.address), plaintext=True))
    raise ServiceUnreachable(
        f"The service at {target.address} did not answer ({refused.code().name}).",
        advice="Start it with `exchange-service serve` or `exchange-service demo`.",
    )


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(health)
