"""How changes of an account reach the service: in words for callers, and in a few bytes for the other replicas."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from exchange_service.v1 import balance_pb2
from exchange_service.wire.protobuf import to_timestamp

# For the other replicas: the format, the reason and since when.
_RECORD = struct.Struct(">BBd")
_FORMAT = 1


class PollingReason(Enum):
    """Why an account is polled, as PollingReason in balance.proto."""

    NO_PUSH = balance_pb2.POLLING_REASON_NO_PUSH
    STARTING = balance_pb2.POLLING_REASON_STARTING
    BROKEN = balance_pb2.POLLING_REASON_BROKEN
    NO_ROOM = balance_pb2.POLLING_REASON_NO_ROOM
    REFUSED = balance_pb2.POLLING_REASON_REFUSED
    SWITCHED_OFF = balance_pb2.POLLING_REASON_SWITCHED_OFF


@dataclass(frozen=True)
class Delivery:
    """An account is pushed, or polled for a `reason`, `since` then, in seconds since the epoch."""

    reason: PollingReason | None
    since: float

    @property
    def pushed(self) -> bool:
        """Whether the venue speaks first."""
        return self.reason is None

    @property
    def word(self) -> str:
        """For metrics: "pushed", or why not, such as "no-room"."""
        return "pushed" if self.reason is None else self.reason.name.lower().replace("_", "-")

    def message(self) -> balance_pb2.Delivery:
        """For callers."""
        mode = balance_pb2.DELIVERY_MODE_PUSHED if self.reason is None else balance_pb2.DELIVERY_MODE_POLLED
        reason = balance_pb2.POLLING_REASON_UNSPECIFIED if self.reason is None else self.reason.value
        return balance_pb2.Delivery(mode=mode, since_time=to_timestamp(self.since), polling_reason=reason)

    @cached_property
    def encoded(self) -> bytes:
        """The message as bytes, at most 20 of them."""
        return self.message().SerializeToString()

    def record(self) -> bytes:
        """For other replicas; `read_delivery` reads it."""
        return _RECORD.pack(_FORMAT, 0 if self.reason is None else self.reason.value, self.since)


def read_delivery(record: bytes) -> Delivery | None:
    """What `Delivery.record` wrote; None for anything else."""
    if len(record) != _RECORD.size:
        return None
    form, reason, since = _RECORD.unpack(record)
    if form != _FORMAT or not 0 <= since < 1e11:
        return None
    try:
        return Delivery(PollingReason(reason) if reason else None, since)
    except ValueError:
        return None
