"""A gRPC server that answers as a test says in place of the service, and both Python clients with one way to call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as Packed
from google.rpc import error_details_pb2, status_pb2

from exchange_service.client import AsyncClient, Client
from exchange_service.v1 import exchange_service_pb2 as messages
from exchange_service.v1 import exchange_service_pb2_grpc
from exchange_service.v1.balance_pb2 import Balance, Freshness

Event = messages.StreamBalancesResponse


@dataclass(frozen=True)
class Refusal:
    """An error as the service sends it; without a reason as a proxy does. `pushback` in milliseconds."""

    code: grpc.StatusCode
    reason: str = ""
    delay: float = 0.001
    pushback: str = ""

    async def raise_in(self, context: grpc.aio.ServicerContext) -> None:
        trailers: list[tuple[str, Any]] = []
        if self.reason:
            status = status_pb2.Status(code=self.code.value[0], message="What happened. What to do.")
            retry = error_details_pb2.RetryInfo()
            retry.retry_delay.FromNanoseconds(int(self.delay * 1e9))
            for detail in (error_details_pb2.ErrorInfo(reason=self.reason, domain="exchange-service"), retry):
                packed = Packed()
                packed.Pack(detail)
                status.details.append(packed)
            trailers.append(("grpc-status-details-bin", status.SerializeToString()))
        if self.pushback:
            trailers.append(("grpc-retry-pushback-ms", self.pushback))
        await context.abort(self.code, "What happened.", tuple(trailers))


@dataclass
class Stream:
    """One answer to StreamBalances: its events, and then an end, or what is awaited before it ends well."""

    events: Sequence[Event] = ()
    end: Refusal | Awaitable[Any] | None = None


@dataclass
class Peer(exchange_service_pb2_grpc.ExchangeServiceServicer):
    """Answers each call by the next of its steps, and keeps what it was asked and with which token."""

    streams: list[Stream] = field(default_factory=list)
    calls: list[Refusal] = field(default_factory=list)
    requests: list[messages.StreamBalancesRequest] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    # Serving, as a serialised HealthCheckResponse; None: it never answers.
    health: bytes | None = b"\x08\x01"
    address: str = ""
    # Set when a stream has been opened.
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def GetBalance(self, _: Any, context: grpc.aio.ServicerContext) -> messages.GetBalanceResponse:
        self._note(context)
        if self.calls:
            await self.calls.pop(0).raise_in(context)
        return messages.GetBalanceResponse(balance=Balance(exchange_id="oanda", version=1))

    async def StreamBalances(self, request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Event]:
        self._note(context)
        self.requests.append(request)
        self.opened.set()
        stream = self.streams.pop(0) if self.streams else Stream(end=asyncio.Event().wait())
        for event in stream.events:
            yield event
        if isinstance(stream.end, Refusal):
            await stream.end.raise_in(context)
        elif stream.end is not None:
            await stream.end

    async def check(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        if self.health is None:
            await asyncio.Event().wait()
        if request == b"\x0a\x04none":
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown")
        return self.health or b""

    async def watch(self, _: bytes, __: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        yield self.health or b""
        await asyncio.Event().wait()

    def _note(self, context: grpc.aio.ServicerContext) -> None:
        metadata = dict(context.invocation_metadata() or ())
        self.tokens.append(str(metadata.get("authorization", "")).removeprefix("Bearer "))


@asynccontextmanager
async def answering(
    peer: Peer | None = None, credentials: grpc.ServerCredentials | None = None, port: int = 0
) -> AsyncIterator[Peer]:
    """The peer on a free port of loopback."""
    peer = peer or Peer()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    add: Any = exchange_service_pb2_grpc.add_ExchangeServiceServicer_to_server
    add(peer, server)
    health = {
        "Check": grpc.unary_unary_rpc_method_handler(peer.check),
        "Watch": grpc.unary_stream_rpc_method_handler(peer.watch),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),))
    where = f"127.0.0.1:{port}"
    port = server.add_insecure_port(where) if credentials is None else server.add_secure_port(where, credentials)
    peer.address = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield peer
    finally:
        await server.stop(None)


class EitherClient:
    """AsyncClient, or Client in threads, so that a test is written once for both."""

    def __init__(self, kind: type[AsyncClient] | type[Client], address: Any, **options: Any) -> None:
        self._client: Any = kind(address, **options)
        self._sync = kind is Client

    async def __aenter__(self) -> EitherClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.call("close")

    async def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        method: Callable[..., Any] = getattr(self._client, name)
        if self._sync:
            return await asyncio.to_thread(method, *arguments, **options)
        return await method(*arguments, **options)

    async def events(self, count: int, *arguments: Any, **options: Any) -> list[Any]:
        """The first events of a stream, and what it raises in place of one."""
        stream = self._client.stream_balances(*arguments, **options)
        found: list[Any] = []
        try:
            while len(found) < count:
                found.append(await asyncio.to_thread(next, stream) if self._sync else await anext(stream))
        except Exception as error:
            found.append(error)
        if self._sync:
            await asyncio.to_thread(stream.close)
        else:
            await stream.aclose()
        return found


def balance_of(exchange: str, version: int) -> Event:
    """A confirmed balance event."""
    balance = Balance(exchange_id=exchange, environment="production", version=version)
    return Event(balance=messages.BalanceEvent(balance=balance, freshness=Freshness()))


def error_of(exchange: str) -> Event:
    """An account's error."""
    return Event(account_error=messages.AccountErrorEvent(exchange_id=exchange, environment="production"))


def heartbeat_of(*exchanges: str) -> Event:
    """A heartbeat that names these accounts."""
    states = [messages.AccountState(exchange_id=exchange, environment="production") for exchange in exchanges]
    return Event(heartbeat=messages.HeartbeatEvent(accounts=states))
