"""The messages between the service and a plugin's process: from the model to protobuf, and back."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Collection, Iterable, Mapping, Sequence

from exchange_service.credentials import CredentialReference
from exchange_service.errors import PluginFailed, PluginUnavailable, ServiceError, ServiceOverloaded, VenueError
from exchange_service.model import SECRET_FIELDS, Account, Credential, KeyRights, Secret, VenueReports
from exchange_service.observability.tracing import RecordedSpan
from exchange_service.plugin_host.v1 import plugin_host_pb2 as messages
from exchange_service.v1 import balance_pb2
from exchange_service.venues.egress import DIRECT, Egress, Proxy, Way
from exchange_service.venues.push_figures import PushFigures
from exchange_service.wire.balances import fault_message, read_fault
from exchange_service.wire.protobuf import from_datetime, to_datetime

# Rises with every change of plugin_host.proto and of frames.py, or of what their fields mean; not with a field that
# either side may leave out or overlook, because processes of an older release then still serve.
PROTOCOL = 9
# What is wrong if the two sides have not the same one, for operators.
OTHER_VERSION = "Restart the service: another version of exchange-service is installed than the one that runs."
# The limits of one call that are believed: far more than any venue has.
_MOST_LIMITS = 100
# The units of one report that are believed, as in plugin_api.
_MOST_UNITS = 2**53


def service_proof(token: str) -> bytes:
    """What the service greets with: only a holder of the token can compute it, and it does not tell the token."""
    return _proof(token, b"service")


def process_proof(token: str) -> bytes:
    """What a plugin's process answers. It cannot be made of what the service greets with."""
    return _proof(token, b"plugin process")


def _proof(token: str, side: bytes) -> bytes:
    return hmac.new(token.encode(), side, hashlib.sha256).digest()


def write_call(
    reference: CredentialReference, account_type: str, timeout: float, way: str = DIRECT
) -> messages.VenueCall:
    """The call without the credential: the account as the caller asked for it, `timeout` in seconds, and the name of
    the way out that it takes."""
    account = reference.account
    return messages.VenueCall(
        user_id=account.user_id,
        exchange_id=account.exchange_id,
        environment=account.environment,
        account_type=account_type,
        credential_version=reference.version,
        timeout=timeout,
        credential_ancestors=reference.ancestors,
        way="" if way == DIRECT else way,
    )


def read_reference(call: messages.VenueCall) -> CredentialReference:
    """The reference to the credential that the call needs."""
    account = Account(call.user_id, call.exchange_id, call.environment)
    return CredentialReference(account, account, call.credential_version, tuple(call.credential_ancestors))


def write_ways(ways: Iterable[Way]) -> list[messages.Way]:
    """The ways out as messages, but for the direct one, which every process has."""
    return [
        messages.Way(
            name=way.name,
            proxy_kind=way.proxy.kind if way.proxy else "",
            proxy_host=way.proxy.host if way.proxy else "",
            proxy_port=way.proxy.port if way.proxy else 0,
            proxy_user=way.proxy.user if way.proxy else "",
            proxy_password=way.proxy.password.reveal() if way.proxy else "",
            local_address=way.local_address,
            counted_as=way.counted_as,
        )
        for way in ways
        if way.name != DIRECT
    ]


def read_ways(entries: Iterable[messages.Way]) -> Egress:
    """What `write_ways` wrote. The service chooses for each call."""
    return Egress({DIRECT: Way()} | {entry.name: _read_way(entry) for entry in entries})


def _read_way(entry: messages.Way) -> Way:
    proxy = None
    if entry.proxy_kind:
        password = Secret(entry.proxy_password)
        proxy = Proxy(entry.proxy_kind, entry.proxy_host, entry.proxy_port, entry.proxy_user, password)
    return Way(entry.name, proxy, entry.local_address, counted_as=entry.counted_as)


def write_credential(credential: Credential) -> messages.Credential:
    """The credential, unencrypted: it stays on this machine, within one connection."""
    return messages.Credential(
        api_key=credential.api_key.reveal(),
        api_secret=credential.api_secret.reveal(),
        passphrase=credential.passphrase.reveal(),
        metadata=json.dumps(_plain(credential.metadata)).encode(),
    )


def read_credential(message: messages.Credential) -> Credential:
    """The credential that `write_credential` wrote."""
    texts = {name: getattr(message, name) for name in SECRET_FIELDS}
    return Credential.from_texts(texts, json.loads(message.metadata))


def write_replacement(
    account: Account, version: str, changes: Mapping[str, Secret]
) -> messages.ReplaceCredentialRequest:
    """The process's request to store new values of the account's credential."""
    return messages.ReplaceCredentialRequest(
        user_id=account.user_id,
        exchange_id=account.exchange_id,
        environment=account.environment,
        credential_version=version,
        changes={name: value.reveal() for name, value in changes.items()},
    )


def read_replacement(
    request: messages.ReplaceCredentialRequest,
) -> tuple[Account, str, dict[str, Secret]]:
    """The account, the version of its session and the new values that `write_replacement` wrote."""
    account = Account(request.user_id, request.exchange_id, request.environment)
    return account, request.credential_version, {name: Secret(text) for name, text in request.changes.items()}


def _plain(value: object) -> object:
    """The value with plain dicts and lists in place of other mappings and sequences."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def write_rights(rights: KeyRights) -> messages.KeyRights:
    """The rights of a key as a message."""
    message = messages.KeyRights(trade=rights.trade, withdraw=rights.withdraw, notes=rights.notes)
    if rights.expires is not None:
        message.expire_time.CopyFrom(from_datetime(rights.expires))
    return message


def read_rights(message: messages.KeyRights) -> KeyRights:
    """The rights that `write_rights` wrote."""
    return KeyRights(
        trade=message.trade if message.HasField("trade") else None,
        withdraw=message.withdraw if message.HasField("withdraw") else None,
        expires=to_datetime(message.expire_time) if message.HasField("expire_time") else None,
        notes=tuple(message.notes),
    )


def write_reports(reports: VenueReports) -> messages.VenueReports:
    """The reports as a message."""
    usage = [
        messages.LimitUsage(seconds=seconds, used=used, resets_after=resets_after)
        for seconds, (used, resets_after) in reports.usage.items()
    ]
    return messages.VenueReports(usage=usage, cooldown=reports.cooldown, costs=reports.costs)


def write_pushes(figures: Mapping[str, PushFigures]) -> list[messages.OpenPushes]:
    """What is open for pushes, by exchange, as messages."""
    return [
        messages.OpenPushes(
            exchange_id=exchange,
            connections=figure.connections,
            subscriptions=figure.subscriptions,
            opened=figure.opened,
        )
        for exchange, figure in figures.items()
    ]


def read_pushes(entries: Sequence[messages.OpenPushes], exchanges: Collection[str]) -> dict[str, PushFigures]:
    """What `write_pushes` wrote of these exchanges; nothing in it is negative, whatever the process says."""
    return {
        entry.exchange_id: PushFigures(max(0, entry.connections), max(0, entry.subscriptions), max(0, entry.opened))
        for entry in entries[: len(exchanges)]
        if entry.exchange_id in exchanges
    }


def read_reports(message: messages.VenueReports, into: VenueReports) -> None:
    """Put the reports that `write_reports` wrote into `into`."""
    usage = message.usage[:_MOST_LIMITS]
    into.usage.update({entry.seconds: (_units(entry.used), entry.resets_after) for entry in usage})
    into.cooldown = max(into.cooldown, message.cooldown)
    for seconds, units in list(message.costs.items())[:_MOST_LIMITS]:
        into.costs[seconds] = max(_units(units), into.costs.get(seconds, 0))


def _units(reported: int) -> int:
    """As `VenueCall.report_cost` bounds them, whatever the process says: sums of more do not fit where replicas count
    together."""
    return min(max(0, reported), _MOST_UNITS)


def write_spans(call: RecordedSpan) -> list[messages.Span]:
    """What the process did for a traced call, as messages."""
    now = time.monotonic()
    return [_write_span(span, now) for span in call.spans]


def _write_span(span: RecordedSpan, now: float) -> messages.Span:
    found = span.attributes
    return messages.Span(
        name=span.name,
        parent=span.parent,
        began_ago=now - span.began,
        ended_ago=0.0 if span.ended is None else now - span.ended,
        error=span.reason,
        host=str(found.get("server.address", "")),
        port=int(found.get("server.port", 0)),
        path=str(found.get("url.path", "")),
        status=int(found.get("http.response.status_code", 0)),
    )


def write_error(error: ServiceError) -> balance_pb2.AccountFault:
    """The error as a message. A default delay is left out: the service would take it for the venue's."""
    fault = fault_message(error)
    if error.given_delay is None:
        fault.ClearField("retry_delay")
    return fault


def read_error(fault: balance_pb2.AccountFault, plugin: str) -> ServiceError:
    """The plugin's error; PluginFailed for an error that a plugin may not raise."""
    try:
        error = read_fault(fault)
    except (ValueError, ArithmeticError):
        error = None
    if isinstance(error, VenueError | PluginFailed | PluginUnavailable | ServiceOverloaded):
        return error
    return PluginFailed(f"The plugin {plugin} failed with an unknown error.")
