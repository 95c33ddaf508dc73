"""Protobuf's own shapes: varints, length-delimited fields, Duration and Timestamp."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_NANOS = 1_000_000_000


def encode_varint(value: int) -> bytes:
    """A number of 0 or more as a base-128 varint."""
    if value < 1 << 7:
        return bytes((value,))
    if 1 << 28 <= value < 1 << 35:
        # Most nanoseconds of a Duration: each reply has some, and the loop takes six times as long.
        return bytes(
            (value & 127 | 128, value >> 7 & 127 | 128, value >> 14 & 127 | 128, value >> 21 & 127 | 128, value >> 28)
        )
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def encode_field(number: int, payload: bytes) -> bytes:
    """A length-delimited field (wire type 2): tag, length, `payload`. `number` is at most 15."""
    return bytes([number << 3 | 2]) + encode_varint(len(payload)) + payload


def split_seconds(seconds: float) -> tuple[int, int]:
    """Whole seconds and nanoseconds, as a Duration holds them. A negative span counts as zero."""
    return divmod(round(max(0.0, seconds) * _NANOS), _NANOS)


def to_duration(seconds: float) -> Duration:
    """A span of seconds as a Duration. A negative span counts as zero."""
    whole, nanos = split_seconds(seconds)
    return Duration(seconds=whole, nanos=nanos)


def to_seconds(message: Duration | Timestamp) -> float:
    """A Duration in seconds, or a Timestamp in seconds since the epoch."""
    return message.seconds + message.nanos / _NANOS


def to_timestamp(seconds: float) -> Timestamp:
    """An instant in seconds since the epoch as a Timestamp, to the microsecond."""
    whole, micros = divmod(round(seconds * 1_000_000), 1_000_000)
    return Timestamp(seconds=whole, nanos=micros * 1000)


def from_datetime(instant: datetime) -> Timestamp:
    """An aware instant as a Timestamp. Raises ValueError if it is out of a Timestamp's range."""
    message = Timestamp()
    message.FromDatetime(instant)
    return message


def to_datetime(message: Timestamp) -> datetime:
    """A Timestamp as a datetime in UTC. Raises ValueError or OverflowError if it is out of range."""
    return message.ToDatetime(UTC)
