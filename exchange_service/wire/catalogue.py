"""The replies of ListExchanges, and the messages for plugins that they share with ListPlugins."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import UTC, datetime, time

from exchange_service.addresses import addresses_note
from exchange_service.model import ExchangeMetadata, PluginInfo, RetiredExchange, Trouble
from exchange_service.v1 import exchange_pb2, exchange_service_pb2
from exchange_service.wire.protobuf import encode_field, from_datetime, to_timestamp

_PLAIN_LISTING_FIELDS = (
    "id",
    "name",
    "asset_class",
    "asset_types",
    "market_hours",
    "icon",
    "logo",
    "color_class",
    "is_ccxt",
    "requires_passphrase",
    "requires_account_id",
    "instructions",
    "account_types",
    "documentation_url",
    "credential_url",
    "countries",
    "credential_of",
)


def catalogue_entry(
    metadata: ExchangeMetadata,
    plugin: PluginInfo,
    trouble: Trouble | None = None,
    outgoing_addresses: Sequence[str] = (),
) -> bytes:
    """A serialised Exchange. Its status says why the listing cannot be served, or what `trouble` it has;
    `outgoing_addresses` are those from which the service asks the venue."""
    note = f"{metadata.ip_whitelist} {addresses_note(outgoing_addresses)}".strip()
    return exchange_pb2.Exchange(
        **{name: getattr(metadata, name) for name in _PLAIN_LISTING_FIELDS},
        ip_whitelist=note,
        outgoing_addresses=outgoing_addresses,
        default_account_types=metadata.default_account_types or metadata.account_types,
        is_custom=not metadata.is_ccxt,
        plugin=plugin_message(plugin),
        capabilities=exchange_pb2.Capabilities(
            **{item.name: getattr(metadata.capabilities, item.name) for item in fields(metadata.capabilities)}
        ),
        credential_fields=[
            exchange_pb2.CredentialField(
                name=entry.name,
                label=entry.label,
                required=entry.required,
                secret=entry.secret,
                description=entry.description,
                private_keys=entry.private_keys or (),
            )
            for entry in metadata.credential_fields
        ],
        environments=[
            exchange_pb2.Environment(name=entry.name, aliases=entry.aliases) for entry in metadata.environments
        ],
        status=_status_message(metadata, trouble),
    ).SerializeToString(deterministic=True)


def _status_message(metadata: ExchangeMetadata, trouble: Trouble | None) -> exchange_pb2.ExchangeStatus:
    if not metadata.capabilities.balance:
        reason = metadata.unsupported_reason
        return exchange_pb2.ExchangeStatus(availability=exchange_pb2.AVAILABILITY_UNAVAILABLE, reason=reason)
    if trouble is None:
        return exchange_pb2.ExchangeStatus(availability=exchange_pb2.AVAILABILITY_AVAILABLE)
    worse = exchange_pb2.AVAILABILITY_DEGRADED if trouble.serves else exchange_pb2.AVAILABILITY_UNAVAILABLE
    since = to_timestamp(trouble.since)
    return exchange_pb2.ExchangeStatus(availability=worse, reason=trouble.reason, since_time=since)


def list_exchanges_reply(
    entries: Iterable[bytes],
    *,
    next_page_token: str,
    matching_count: int,
    custom: int,
    ccxt: int,
    problems: Iterable[tuple[PluginInfo, str, bool]],
    retired: Iterable[RetiredExchange] = (),
) -> bytes:
    """A serialised ListExchangesResponse of serialised entries, with an etag of its content.

    `problems` are plugins, each with a sentence and whether it is a notice. `retired` are not listed any more.
    `custom` and `ccxt` count the whole catalogue's entries by source.
    """
    page = b"".join(encode_field(1, entry) for entry in entries)
    rest = exchange_service_pb2.ListExchangesResponse(
        next_page_token=next_page_token,
        stats=exchange_service_pb2.CatalogueStats(total=custom + ccxt, custom=custom, ccxt=ccxt),
        matching_count=matching_count,
        problems=[problem_message(*problem) for problem in problems],
        retired=[_retired_message(entry) for entry in retired],
    )
    content = page + rest.SerializeToString(deterministic=True)
    etag = hashlib.sha256(content).hexdigest()[:24]
    return content + exchange_service_pb2.ListExchangesResponse(etag=etag).SerializeToString()


def _retired_message(entry: RetiredExchange) -> exchange_service_pb2.RetiredExchange:
    message = exchange_service_pb2.RetiredExchange(
        id=entry.id, name=entry.name, reason=entry.reason, advice=entry.advice
    )
    if entry.since is not None:
        message.retire_time.CopyFrom(from_datetime(datetime.combine(entry.since, time(), UTC)))
    return message


def list_exchanges_etag(reply: bytes) -> str:
    """The etag of a serialised ListExchangesResponse."""
    return exchange_service_pb2.ListExchangesResponse.FromString(reply).etag


def not_modified_reply(etag: str) -> bytes:
    """A serialised ListExchangesResponse which says that the caller's copy is current."""
    return exchange_service_pb2.ListExchangesResponse(etag=etag, not_modified=True).SerializeToString()


def plugin_message(plugin: PluginInfo) -> exchange_pb2.Plugin:
    """A plugin's name, version and distribution."""
    return exchange_pb2.Plugin(name=plugin.name, version=plugin.version, distribution=plugin.distribution)


def problem_message(plugin: PluginInfo, reason: str, notice: bool) -> exchange_service_pb2.PluginProblem:
    """Why a plugin, or a part of it, is not served, or what there is to know of it."""
    return exchange_service_pb2.PluginProblem(plugin=plugin_message(plugin), reason=reason, notice=notice)
