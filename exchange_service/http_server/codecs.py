"""Messages in the forms that the Connect protocol carries: their bytes, which pass as they are, and JSON."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import structlog
from connectrpc.code import Code
from connectrpc.errors import ConnectError
from google.protobuf import json_format
from google.protobuf.message import Message

from exchange_service.errors import FieldInvalid

log = structlog.get_logger(__name__)

Request = Callable[[], bytes]
_T = TypeVar("_T")

# Objects in a request: the largest valid one has 400 accounts. Each takes the library some microseconds.
_MOST_OBJECTS = 1000

# How the library names what it does not know or cannot read. The rest of its text may hold the value.
_UNKNOWN = re.compile(r'no field named "(\w{1,64})" at "\w+(?:\.([\w.\[\]]{1,128}))?"')
_UNREADABLE = re.compile(r"Failed to parse (\w{1,64}) field")


@dataclass(frozen=True, slots=True)
class Reply:
    """A serialized message and its type."""

    kind: type[Message]
    data: bytes


class ProtoCodec:
    """Serialized messages, which are parsed by the methods themselves."""

    def name(self) -> str:
        """The name in content types."""
        return "proto"

    def encode(self, message: Reply) -> bytes:
        """The message's bytes."""
        return message.data

    def decode(self, data: bytes | bytearray, message_class: type[_T]) -> _T:
        """What returns the request's bytes."""
        request: Any = partial(bytes, data)
        return request  # type: ignore[no-any-return]


class JsonCodec:
    """Messages as JSON, with lowerCamelCase names as in protobuf's own mapping."""

    def name(self) -> str:
        """The name in content types."""
        return "json"

    def encode(self, message: Reply) -> bytes:
        """The message as JSON. Raises ConnectError if it has none, such as a time out of JSON's range."""
        try:
            return to_json(message.kind, message.data)
        except Exception as error:
            # The library that calls this would send the exception's text.
            log.error("http.no_json", message=message.kind.DESCRIPTOR.full_name, error=type(error).__name__)
            raise ConnectError(Code.INTERNAL, "The reply has no JSON; ask for application/proto.") from None

    def decode(self, data: bytes | bytearray, message_class: type[_T]) -> _T:
        """What returns the request's bytes, or raises FieldInvalid, once the caller is known."""
        kind: Any = message_class
        request: Any = partial(from_json, kind, bytes(data))
        return request  # type: ignore[no-any-return]


def to_json(kind: type[Message], data: bytes) -> bytes:
    """The JSON of a serialized message."""
    return json_format.MessageToJson(kind.FromString(data), indent=None, ensure_ascii=False).encode()


def from_json(kind: type[Message], data: bytes) -> bytes:
    """The serialized message of this JSON. Raises FieldInvalid, naming the field, if it has a field that the message
    lacks: a slip of the pen must not become a default."""
    if not data.lstrip().startswith(b"{"):
        # The library takes some other values for an empty object.
        raise _invalid(kind, "")
    if data.count(b"{") > _MOST_OBJECTS:
        raise FieldInvalid("request", f"it should have at most {_MOST_OBJECTS} objects.")
    message = kind()
    try:
        json_format.Parse(data, message)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(kind, str(error)) from None
    return message.SerializeToString()


def _invalid(kind: type[Message], text: str) -> FieldInvalid:
    if (unknown := _UNKNOWN.search(text)) is not None:
        path = f"{unknown[2]}." if unknown[2] else ""
        return FieldInvalid(path + unknown[1], f"the message {kind.DESCRIPTOR.full_name} has no such field.")
    if (unreadable := _UNREADABLE.search(text)) is not None:
        return FieldInvalid(unreadable[1], "its value is not one of this field's type.")
    return FieldInvalid("request", f"it is not a JSON object of the message {kind.DESCRIPTOR.full_name}, such as {{}}.")
