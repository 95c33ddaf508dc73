"""What a plugin's process sends, and what the service sends to it and to its own clients."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from exchange_service.client.failures import from_details
from exchange_service.credentials import CredentialReference
from exchange_service.errors import PluginFailed, ServiceError, VenueUnavailable
from exchange_service.model import Account, Credential, KeyRights, VenueReports
from exchange_service.plugin_host.client import _revalidate
from exchange_service.plugin_host.connection import ProcessConnection, _Call
from exchange_service.plugin_host.frames import FrameError, FrameReader, Kind, write_frame
from exchange_service.plugin_host.launch import StartFailed, _parse_answer
from exchange_service.plugin_host.log_relay import log_line
from exchange_service.plugin_host.methods import METHODS
from exchange_service.plugin_host.protocol import (
    read_credential,
    read_error,
    read_pushes,
    read_reference,
    read_reports,
    read_rights,
    write_call,
    write_credential,
    write_error,
    write_pushes,
    write_reports,
    write_rights,
)
from exchange_service.plugin_host.v1 import plugin_host_pb2 as messages
from exchange_service.venues.manifests import PluginRejected, read_manifest, validate_manifest, write_manifest
from exchange_service.venues.outgoing import name_in_accounts
from exchange_service.venues.push_figures import PushFigures
from exchange_service.wire.balances import FetchedBalance, fetched_balance, read_fetched
from exchange_service.wire.stored import store_balance
from tests.fuzz.fakex import MANIFEST, registry
from tests.fuzz.from_redis import BALANCE, NOW
from tests.fuzz.targets import target

_LISTING = registry().listings["fakex"]
_ACCOUNT = Account("alice", "fakex")


@target("plugin-manifest", [write_manifest(MANIFEST), b"+" + write_manifest(MANIFEST)], (StartFailed, PluginRejected))
def read_answer(data: bytes) -> object:
    answer = _parse_answer(data, 0)
    if answer is not None:
        manifest = validate_manifest(answer.manifest)
        assert read_manifest(write_manifest(manifest)) == manifest
    return answer


@target("plugin-balance", [fetched_balance(BALANCE)], (PluginFailed,))
def read_balance(data: bytes) -> object:
    fetched = _revalidate(FetchedBalance(data), _LISTING)
    store_balance(_ACCOUNT, name_in_accounts(fetched, "203.0.113.7"), NOW, None)
    for _, row in read_fetched(fetched).rows():
        assert all(amount is None or amount.is_finite() for amount in (row.total, row.free, row.used, row.debt))
    return fetched


def reports() -> VenueReports:
    reported = VenueReports()
    reported.usage[60] = (12, 3.5)
    reported.cooldown = 2.0
    return reported


HEALTH = messages.CheckHealthResponse(
    stuck_calls=1, pushes=write_pushes({"fakex": PushFigures(2, 40, 7), "acme": PushFigures(1, 1, 1)})
)


@target("plugin-health", [HEALTH.SerializeToString()], (DecodeError,))
def read_health(data: bytes) -> object:
    figures = read_pushes(messages.CheckHealthResponse.FromString(data).pushes, {"fakex"})
    assert figures.keys() <= {"fakex"}
    assert all(min(item.connections, item.subscriptions, item.opened) >= 0 for item in figures.values())
    return figures


REPLY = messages.FetchBalanceResponse(
    fault=write_error(VenueUnavailable("No.", retry_after=2, advice="Ask.")), reports=write_reports(reports())
)


def frames() -> bytes:
    """What a process sends: an item, a reply and a failure, each for another call."""
    failure = messages.CallFailure(code=messages.FAILURE_CODE_INTERNAL).SerializeToString()
    item = messages.WatchBalanceResponse(changed=True).SerializeToString()
    bodies = ((Kind.ITEM, item), (Kind.REPLY, HEALTH.SerializeToString()), (Kind.FAILURE, failure))
    return b"".join(write_frame(kind, number, body) for number, (kind, body) in enumerate(bodies, 1))


@target("plugin-frames", [frames()], (FrameError,))
def read_frames(data: bytes) -> object:
    whole, in_pieces = FrameReader(), FrameReader()
    whole.feed(data)
    read = list(iter(whole.read, None))
    pieces = []
    for begin in range(0, len(data), 7):
        in_pieces.feed(data[begin : begin + 7])
        pieces += list(iter(in_pieces.read, None))
    assert pieces == read
    assert len(whole) <= len(data)
    return read


@target("plugin-connection", [frames()], (FrameError,))
def take_frames(data: bytes) -> object:
    """Three calls are open, the first a stream's: each is answered once, and the stream has one item at most."""
    reader, end = FrameReader(), ProcessConnection()
    reader.feed(data)
    end._calls.update({number: _Call(stream=number == 1) for number in (1, 2, 3)})
    taken = 0
    for frame in iter(reader.read, None):
        end.take_frame(frame)
        taken += 1
    assert taken <= 4
    return end


@target("plugin-reply", [REPLY.SerializeToString()], (DecodeError,))
def read_reply(data: bytes) -> object:
    reply = METHODS["FetchBalance"].read_response(data)
    into = VenueReports()
    read_reports(reply.reports, into)
    assert math.isfinite(into.cooldown)
    error = read_error(reply.fault, "fakex")
    assert isinstance(error, ServiceError)
    assert error.retry_after is None or 0 <= error.retry_after <= 3600
    write_error(error)
    return error


RIGHTS = KeyRights(trade=True, withdraw=False, expires=datetime(2027, 1, 1, tzinfo=UTC), notes=("A note.",))


@target("plugin-rights", [write_rights(RIGHTS).SerializeToString()], (DecodeError, ValueError, OverflowError))
def read_key_rights(data: bytes) -> object:
    rights = read_rights(messages.KeyRights.FromString(data))
    assert read_rights(write_rights(rights)) == rights
    return rights


def call() -> bytes:
    """A call with its credential."""
    message = write_call(CredentialReference(_ACCOUNT, _ACCOUNT, "v1"), "spot", 2.0)
    message.credential.CopyFrom(write_credential(Credential.from_texts({"api_key": "a key"}, {"a": [1, "b"]})))
    return message.SerializeToString()


@target("plugin-call", [call()], (DecodeError, ValueError, RecursionError))
def read_call(data: bytes) -> object:
    message = messages.VenueCall.FromString(data)
    return read_reference(message), read_credential(message.credential)


@target("plugin-log", [b'{"event": "plugin.failed", "level": "error", "timestamp": "now", "a": 1}', b"Traceback"], ())
def relay_line(data: bytes) -> object:
    return log_line(data, "fakex")


def status() -> bytes:
    """A call's error as the client gets it."""
    parts: list[Message] = [
        error_details_pb2.ErrorInfo(reason="FIELD_INVALID", domain="exchange-service"),
        error_details_pb2.RetryInfo(retry_delay=Duration(seconds=2)),
        error_details_pb2.BadRequest(field_violations=[{"field": "user_id", "description": "it is required."}]),
    ]
    message = status_pb2.Status(code=3, message="user_id: it is required.")
    for part in parts:
        message.details.add().Pack(part)
    return message.SerializeToString()


@target("client-status", [status()], ())
def read_status(data: bytes) -> object:
    error = from_details(data)
    assert error is None or error.retry_after is None or 0 <= error.retry_after <= 3600
    return error
