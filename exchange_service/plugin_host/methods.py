"""The calls that a plugin's process answers, by the service of plugin_host.proto."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from google.protobuf import message_factory
from google.protobuf.message import DecodeError

from exchange_service.plugin_host.v1 import plugin_host_pb2 as messages

# Bytes of a response besides its balance. A message of very many fields takes a second to read, and a balance is bytes
# here: what reads it counts first.
_MOST_BESIDE_BALANCE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Method:
    """One call: the types of its request and of its response, or of each item if it is a stream."""

    name: str
    request: type[Any]
    response: type[Any]
    stream: bool

    def read_response(self, body: bytes | None) -> Any:
        """The response that the process sent. Raises DecodeError if it is not one, or would take long to read."""
        body = body or b""
        balance = _size_of_first_field(body) if "balance" in self.response.DESCRIPTOR.fields_by_name else 0
        if len(body) - balance > _MOST_BESIDE_BALANCE:
            raise DecodeError("too much beside the balance")
        return self.response.FromString(body)


def _size_of_first_field(body: bytes) -> int:
    """The bytes of field 1, if the message begins with it and it is bytes; 0 otherwise."""
    if body[:1] != b"\x0a":
        return 0
    size = 0
    for place, byte in enumerate(body[1:6]):
        size |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return 2 + place + size
    return 0


def _method(descriptor: Any) -> Method:
    request, response = map(message_factory.GetMessageClass, (descriptor.input_type, descriptor.output_type))
    return Method(descriptor.name, request, response, descriptor.server_streaming)


METHODS = {
    descriptor.name: _method(descriptor)
    for descriptor in messages.DESCRIPTOR.services_by_name["PluginHostService"].methods
}


def code_name(code: int) -> str:
    """The name of a FailureCode, such as DEADLINE_EXCEEDED."""
    return messages.FailureCode.Name(code).removeprefix("FAILURE_CODE_")  # type: ignore[arg-type]
