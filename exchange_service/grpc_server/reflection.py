"""gRPC's reflection, which describes our services to callers that have no protos, under both of its names.

grpcio-reflection has v1alpha only. v1 has the same messages in another package, so the same handler serves it: newer
clients ask for it first.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection, reflection_pb2

from exchange_service.grpc_server.authentication import Authentication
from exchange_service.grpc_server.requests import parse

_ALPHA = "grpc.reflection.v1alpha"
_STABLE = "grpc.reflection.v1"
_STABLE_FILE = "grpc/reflection/v1/reflection.proto"
NAMES = (f"{_STABLE}.ServerReflection", reflection.SERVICE_NAME)


class Reflection(grpc.GenericRpcHandler):
    """Reflection of services with these names, for known callers only."""

    def __init__(self, names: Sequence[str], authentication: Authentication) -> None:
        _describe_stable()
        servicer = reflection.aio.ReflectionServicer((*names, *NAMES))
        self._handler: Any = grpc.stream_stream_rpc_method_handler(
            authentication.require_caller_of_reflection(
                servicer.ServerReflectionInfo, partial(parse, reflection_pb2.ServerReflectionRequest)
            ),
            # Bytes, which are parsed for known callers only.
            None,
            reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
        self._methods = {f"/{name}/ServerReflectionInfo" for name in NAMES}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of this method; None if it is not reflection's."""
        return self._handler if handler_call_details.method in self._methods else None


def _describe_stable() -> None:
    """Make the description of v1 out of that of v1alpha: a client that lists the services may ask for each."""
    pool = descriptor_pool.Default()
    try:
        pool.FindFileByName(_STABLE_FILE)
    except KeyError:
        renamed = FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
        renamed.name, renamed.package = _STABLE_FILE, _STABLE
        for field in (field for message in renamed.message_type for field in message.field if field.type_name):
            field.type_name = _renamed(field.type_name)
        for service in renamed.service:
            for method in service.method:
                method.input_type, method.output_type = _renamed(method.input_type), _renamed(method.output_type)
        pool.AddSerializedFile(renamed.SerializeToString())


def _renamed(type_name: str) -> str:
    return type_name.replace(f".{_ALPHA}.", f".{_STABLE}.")
