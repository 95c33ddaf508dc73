"""The reply of GetBalance: the stored bytes, and the freshness that changes per call."""

from __future__ import annotations

from enum import IntEnum

from exchange_service.errors import ServiceError
from exchange_service.v1 import balance_pb2, exchange_service_pb2
from exchange_service.wire.balances import fault_message
from exchange_service.wire.delivery import Delivery
from exchange_service.wire.protobuf import encode_varint, split_seconds, to_duration
from exchange_service.wire.stored import StoredBalance


class Source(IntEnum):
    """Where a balance comes from, as BalanceSource in balance.proto."""

    VENUE = balance_pb2.BALANCE_SOURCE_VENUE
    CACHE = balance_pb2.BALANCE_SOURCE_CACHE
    LAST_GOOD = balance_pb2.BALANCE_SOURCE_LAST_GOOD


def get_balance_reply(
    stored: StoredBalance,
    source: Source,
    age: float,
    stale: ServiceError | None,
    *,
    include_zero: bool,
    delivery: Delivery | None = None,
) -> bytes:
    """A serialised GetBalanceResponse: the stored bytes as field 1, the freshness as field 2. `age` is in seconds."""
    balance = stored.whole_field if include_zero else stored.compact_field
    if stale is None:
        return balance + fresh_field(source, age, b"" if delivery is None else delivery.encoded)
    freshness = exchange_service_pb2.GetBalanceResponse(freshness=freshness_message(source, age, stale, delivery))
    return balance + freshness.SerializeToString()


def fresh_field(source: Source, age: float, delivery: bytes = b"") -> bytes:
    """Field 2 of a reply: a serialised Freshness of `source`, `age` in seconds and a serialised Delivery.

    It is written without protobuf's objects, because it is all that differs from call to call.
    """
    seconds, nanos = split_seconds(age)
    if 0 < seconds < 1 << 7 and nanos >= 1 << 28 and not delivery:
        # As in most replies; to join the parts takes twice as long.
        low = nanos & 127 | 128, nanos >> 7 & 127 | 128, nanos >> 14 & 127 | 128, nanos >> 21 & 127 | 128
        return bytes((0x12, 12, 0x08, source, 0x12, 8, 0x08, seconds, 0x10, *low, nanos >> 28))
    duration = b"\x08" + encode_varint(seconds) if seconds else b""
    if nanos:
        duration += b"\x10" + encode_varint(nanos)
    # The enum's numbers and all lengths are below 128, so each is one byte.
    end = bytes((0x22, len(delivery))) + delivery if delivery else b""
    length = 4 + len(duration) + len(end)
    return bytes((0x12, length, 0x08, source, 0x12, len(duration))) + duration + end


def freshness_message(
    source: Source, age: float, stale: ServiceError | None, delivery: Delivery | None = None
) -> balance_pb2.Freshness:
    """How far a balance can be trusted now. `age` is in seconds; `stale` is why it is only the last good one."""
    freshness = balance_pb2.Freshness(source=source.value, age=to_duration(age))
    if stale is not None:
        freshness.stale.CopyFrom(fault_message(stale))
    if delivery is not None:
        freshness.delivery.CopyFrom(delivery.message())
    return freshness
