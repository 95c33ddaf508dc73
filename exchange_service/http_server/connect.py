"""The Connect protocol over our methods: unary calls and server streams, as binary messages and as JSON."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from connectrpc.code import Code
from connectrpc.compression.gzip import GzipCompression
from connectrpc.errors import ConnectError, ErrorDetail
from connectrpc.method import IdempotencyLevel, MethodInfo, StreamType
from connectrpc.request import RequestContext
from connectrpc.server import ConnectASGIApplication, Endpoint
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2, status_pb2
from protobuf.wkt import Any as PackedDetail

from exchange_service.grpc_server.direct import CallEnded, DirectCalls
from exchange_service.grpc_server.handler_wrapper import REQUEST_ID_KEY, given_request_id
from exchange_service.grpc_server.status import DETAILS_KEY, CallStatus
from exchange_service.http_server.codecs import JsonCodec, ProtoCodec, Reply, Request

# Bytes of a request, as over gRPC.
LARGEST_REQUEST = 64 * 1024
# What the methods are told of a request's headers. A cookie is not among them: it never authenticates a call.
METADATA = ("authorization", "x-act-as", REQUEST_ID_KEY, "traceparent", "tracestate")
# How the guards pass Connect-Timeout-Ms on. Under its own name the library would end calls too, and without a reason.
TIMEOUT_KEY = "exchange-service-timeout-ms"

_Context = RequestContext[Any, Any]


class ConnectMethods(ConnectASGIApplication[DirectCalls]):
    """The ASGI application of these calls' methods, at their own paths.

    Requests may be packed by gzip, as some clients do by default, and unpack to at most `LARGEST_REQUEST`. Replies are
    not packed, because the guards do not pass on what a client accepts: their lengths would tell about their content.
    """

    def __init__(self, calls: DirectCalls) -> None:
        codecs: Any = (JsonCodec(), ProtoCodec())
        super().__init__(
            service=calls,
            endpoints=_endpoints,
            read_max_bytes=LARGEST_REQUEST,
            compressions=(GzipCompression(),),
            codecs=codecs,
        )

    @property
    def path(self) -> str:
        """The path below which the methods are."""
        return "/"


def _endpoints(calls: DirectCalls) -> Mapping[str, Any]:
    return {path: _endpoint(calls, path, method) for path, method in calls.methods.items()}


def _endpoint(calls: DirectCalls, path: str, method: MethodDescriptor) -> Any:
    kind = message_factory.GetMessageClass(method.output_type)
    info: MethodInfo[Any, Any] = MethodInfo(
        name=method.name,
        service_name=method.containing_service.full_name,
        input=message_factory.GetMessageClass(method.input_type),
        output=kind,
        # By POST alone: nothing caches the answers, and no address of a page can make a call.
        idempotency_level=IdempotencyLevel.UNKNOWN,
        stream_type=StreamType.SERVER_STREAM if method.server_streaming else StreamType.UNARY,
    )

    async def unary(request: Request, context: _Context) -> Reply:
        metadata = _metadata(context)
        try:
            reply = await calls.unary(path, request, metadata, timeout=_seconds(context))
        except CallEnded as ended:
            raise _error(ended.status, context) from None
        if given := given_request_id(metadata):
            context.response_headers[REQUEST_ID_KEY] = given
        return Reply(kind, reply)

    async def stream(request: Request, context: _Context) -> AsyncIterator[Reply]:
        try:
            async with aclosing(calls.stream(path, request, _metadata(context), timeout=_seconds(context))) as replies:
                async for reply in replies:
                    yield Reply(kind, reply)
        except CallEnded as ended:
            raise _error(ended.status, context) from None

    if method.server_streaming:
        return Endpoint.server_stream(info, stream)
    return Endpoint.unary(info, unary)


def _metadata(context: _Context) -> list[tuple[str, str]]:
    return [(name, value) for name, value in context.request_headers.allitems() if name in METADATA]


def _seconds(context: _Context) -> float | None:
    """Seconds until the caller's deadline; None without one."""
    milliseconds = context.request_headers.get(TIMEOUT_KEY)
    return None if milliseconds is None else int(milliseconds) / 1000


def _error(status: CallStatus, context: _Context) -> ConnectError:
    """The Connect error of a status, with its details. The delay and the request id become headers of the response."""
    trailers = dict(status.trailers)
    details = status_pb2.Status.FromString(_as_bytes(trailers.get(DETAILS_KEY))).details
    for detail in details:
        delay = error_details_pb2.RetryInfo()
        if detail.Unpack(delay):
            context.response_headers["retry-after"] = str(math.ceil(delay.retry_delay.ToMilliseconds() / 1000))
    if request_id := trailers.get(REQUEST_ID_KEY):
        context.response_headers[REQUEST_ID_KEY] = str(request_id)
    packed = [ErrorDetail(PackedDetail(type_url=detail.type_url, value=detail.value)) for detail in details]
    return ConnectError(Code(status.code.name.lower().replace("cancelled", "canceled")), status.message, packed)


def _as_bytes(value: str | bytes | None) -> bytes:
    return value if isinstance(value, bytes) else b""
