"""Model to messages to bytes, and back. Bytes are what the cache keeps, the feeds hand on and the replies carry.

A protobuf message is the concatenation of its fields, so a reply is the stored balance's bytes behind a tag and a
length, and the few fields that change per call.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from functools import cached_property
from typing import Literal, NewType, TypeAlias

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from exchange_service.errors import ServiceError, from_reason
from exchange_service.model import Account, AssetBalance, Balance, ExchangeMetadata, Summary, VenueAccount
from exchange_service.plugin_kit.payload import format_amount
from exchange_service.v1 import balance_pb2, error_reason_pb2, exchange_pb2, exchange_service_pb2

# The first byte of every kept value. Another one is a value of another release, and counts as missing. The pause
# follows, then the message.
_CACHE_FORMAT = b"\x02"
_PAUSE = struct.Struct(">d")
_LONGEST_PAUSE = 86_400.0
# Half of what the server sends at the most, so that the rows which a feed remembers fit too.
_MAX_BALANCE = 2 * 1024 * 1024
# Rows at "0" that a feed remembers for one account. No venue comes near; one that renamed its assets at every answer
# would otherwise fill the events.
_MOST_GONE = 2000
AmountName: TypeAlias = Literal["total", "free", "used", "debt"]
_AMOUNTS: tuple[AmountName, ...] = ("total", "free", "used", "debt")
# What tells a row from the others of its balance: venue account's id, type, sub-account, asset, venue's own code.
RowIdentity: TypeAlias = tuple[str, str, str, str, str]
# A plugin's answer: a serialised `Balance` without the fields that say whose it is, when it was fetched and which
# version it has. It is made where the plugin runs, perhaps in another process.
FetchedBalance = NewType("FetchedBalance", bytes)
_ADDED_LATER = frozenset({"user_id", "exchange_id", "environment", "account_type", "fetch_time", "version"})


class Source(Enum):
    """Where a balance comes from; see BalanceSource in balance.proto."""

    VENUE = balance_pb2.BALANCE_SOURCE_VENUE
    CACHE = balance_pb2.BALANCE_SOURCE_CACHE
    LAST_GOOD = balance_pb2.BALANCE_SOURCE_LAST_GOOD


@dataclass(frozen=True)
class StoredBalance:
    """A balance as bytes, with what the core needs to know of it without reading them again.

    `data` is a serialised `Balance` with every row, zero rows too. `fetch_time` is in seconds since the epoch; `pause`
    is how many seconds after it a feed asks the venue again.
    """

    account: Account
    data: bytes
    fetch_time: float
    version: int
    pause: float = 0.0

    @cached_property
    def compact(self) -> bytes:
        """The same without the rows whose amounts are all zero."""
        message = balance_pb2.Balance.FromString(self.data)
        for account in message.venue_accounts:
            kept = [row for row in account.assets if not _is_zero(row)]
            if len(kept) != len(account.assets):
                del account.assets[:]
                account.assets.extend(kept)
        return message.SerializeToString(deterministic=True)

    @cached_property
    def whole_field(self) -> bytes:
        """`data` as field 1 of a message."""
        return _length_delimited(1, self.data)

    @cached_property
    def compact_field(self) -> bytes:
        """`compact` as field 1 of a message."""
        return _length_delimited(1, self.compact)

    @cached_property
    def digest(self) -> bytes:
        """A hash of the content: equal for two balances that differ in no figure, note or error."""
        message = balance_pb2.Balance.FromString(self.data)
        for name in ("fetch_time", "venue_time", "version"):
            message.ClearField(name)
        for account in message.venue_accounts:
            account.ClearField("venue_time")
            # A delay that counts down is no news.
            if account.HasField("error"):
                account.error.ClearField("retry_delay")
        return hashlib.sha256(message.SerializeToString(deterministic=True)).digest()

    def encoded(self) -> bytes:
        """As the cache keeps it; `decode_stored` reads it."""
        return _CACHE_FORMAT + _PAUSE.pack(self.pause) + self.data


def fetched_balance(balance: Balance) -> FetchedBalance:
    """A plugin's answer as bytes; TypeError, ValueError, ArithmeticError or AttributeError for what cannot be written
    down."""
    data = _balance_message(balance).SerializeToString(deterministic=True)
    if len(data) > _MAX_BALANCE:
        raise ValueError("a balance larger than a reply can be")
    return FetchedBalance(data)


def rows_of(fetched: FetchedBalance) -> int:
    """How many rows and accounts there are, before anything is made of them; ValueError for what is no answer."""
    message = _fetched_message(fetched)
    return len(message.venue_accounts) + sum(len(account.assets) for account in message.venue_accounts)


def read_fetched(fetched: FetchedBalance) -> Balance:
    """What `fetched_balance` wrote; ValueError for anything else."""
    message = _fetched_message(fetched)
    return Balance(
        tuple(_venue_account(entry) for entry in message.venue_accounts),
        _summary(message.summary) if message.HasField("summary") else None,
        _when(message, "venue_time"),
        tuple(message.notes),
    )


def store_balance(
    account: Account, fetched: FetchedBalance, fetch_time: float, previous: StoredBalance | None
) -> StoredBalance:
    """The answer as it is kept, with the version that follows `previous`: the same for the same content, else the
    greater of the previous one plus one and the fetch time in microseconds, so that it rises on every replica.

    ValueError for bytes that are no answer of a plugin.
    """
    message = _fetched_message(fetched)
    message.user_id = account.user_id
    message.exchange_id = account.exchange_id
    message.environment = account.environment
    message.account_type = account.account_type
    message.fetch_time.CopyFrom(_timestamp(fetch_time))
    draft = StoredBalance(account, message.SerializeToString(deterministic=True), fetch_time, 0)
    if previous is None:
        version = int(fetch_time * 1_000_000)
    elif previous.digest == draft.digest:
        version = previous.version
    else:
        version = max(previous.version + 1, int(fetch_time * 1_000_000))
    message.version = version
    return StoredBalance(account, message.SerializeToString(deterministic=True), fetch_time, version)


def _fetched_message(fetched: FetchedBalance) -> balance_pb2.Balance:
    if len(fetched) > _MAX_BALANCE:
        raise ValueError("a balance larger than a reply can be")
    try:
        message = balance_pb2.Balance.FromString(fetched)
    except DecodeError:
        raise ValueError("bytes that are no balance") from None
    if {field.name for field, _ in message.ListFields()} & _ADDED_LATER:
        raise ValueError("a balance that says whose it is")
    return message


def decode_stored(account: Account, raw: bytes) -> StoredBalance | None:
    """What `encoded` wrote, or None for anything else: another format, garbage, or another account's balance."""
    if raw[:1] != _CACHE_FORMAT:
        return None
    try:
        (pause,) = _PAUSE.unpack_from(raw, 1)
        data = raw[1 + _PAUSE.size :]
        message = balance_pb2.Balance.FromString(data)
    except (struct.error, DecodeError):
        return None
    if not 0 <= pause <= _LONGEST_PAUSE:
        return None
    owner = Account(message.user_id, message.exchange_id, message.environment, message.account_type)
    if owner != account or not message.version:
        return None
    fetch_time = message.fetch_time.seconds + message.fetch_time.nanos / 1e9
    return StoredBalance(account, data, fetch_time, message.version, pause)


def with_known_rows(
    stored: StoredBalance, known: Mapping[RowIdentity, Iterable[AmountName]]
) -> tuple[bytes, dict[RowIdentity, tuple[AmountName, ...]]]:
    """For a feed: the balance without zero rows, but with those that the feed has reported before, and the rows that
    it has reported now (identity to the names of the amounts that were known).

    A row that the venue's answer no longer holds stands at "0" for each amount that it had, while its venue account
    is there and readable; an account that is gone or refused says nothing about what it holds.
    """
    message = balance_pb2.Balance.FromString(stored.data)
    reported: dict[RowIdentity, tuple[AmountName, ...]] = {}
    for account in message.venue_accounts:
        place = (account.id, account.type, account.sub_account)
        kept = []
        for row in account.assets:
            identity = (*place, row.asset, row.venue_asset)
            if not _is_zero(row) or identity in known:
                kept.append(row)
                reported[identity] = tuple(name for name in _AMOUNTS if row.HasField(name))
        gone = [identity for identity in known if identity[:3] == place and identity not in reported][:_MOST_GONE]
        if account.HasField("error"):
            # Keep in mind what was reported, without saying anything about it now.
            reported.update({identity: tuple(known[identity]) for identity in gone})
            gone = []
        del account.assets[:]
        account.assets.extend(kept)
        for identity in gone:
            account.assets.append(_zero_row(identity, known[identity]))
            reported[identity] = tuple(known[identity])
    return message.SerializeToString(deterministic=True), reported


def get_balance_reply(
    stored: StoredBalance, source: Source, age: float, stale: ServiceError | None, *, include_zero: bool
) -> bytes:
    """A serialised GetBalanceResponse: the stored bytes as field 1, the freshness as field 2."""
    if stale is None:
        return (stored.whole_field if include_zero else stored.compact_field) + fresh_field(source, age)
    freshness = exchange_service_pb2.GetBalanceResponse(freshness=_freshness(source, age, stale))
    return (stored.whole_field if include_zero else stored.compact_field) + freshness.SerializeToString()


def fresh_field(source: Source, age: float) -> bytes:
    """Field 2 of a reply or an event: a serialised Freshness of nothing but `source` and `age`. By hand, because it is
    all that differs from call to call."""
    seconds, nanos = divmod(round(max(0.0, age) * 1_000_000_000), 1_000_000_000)
    duration = (b"\x08" + _varint(seconds) if seconds else b"") + (b"\x10" + _varint(nanos) if nanos else b"")
    # The enum's numbers are below 128, and so are both lengths: each is one byte.
    return bytes((0x12, 4 + len(duration), 0x08, source.value, 0x12, len(duration))) + duration


def balance_event(data: bytes, source: Source, age: float, stale: ServiceError | None) -> bytes:
    """A serialised StreamBalancesResponse that holds a BalanceEvent."""
    freshness = exchange_service_pb2.BalanceEvent(freshness=_freshness(source, age, stale))
    return _length_delimited(1, _length_delimited(1, data) + freshness.SerializeToString())


def account_error_event(account: Account, error: ServiceError, last_version: int) -> bytes:
    """A serialised StreamBalancesResponse that holds an AccountErrorEvent."""
    event = exchange_service_pb2.AccountErrorEvent(
        exchange_id=account.exchange_id,
        environment=account.environment,
        account_type=account.account_type,
        error=fault_message(error),
        last_version=last_version,
    )
    return exchange_service_pb2.StreamBalancesResponse(account_error=event).SerializeToString()


@dataclass(frozen=True, slots=True)
class AccountState:
    """How one account of a stream is: see AccountState in exchange_service.proto. `age` is in seconds."""

    account: Account
    version: int
    age: float | None
    error: ServiceError | None


def account_state(state: AccountState) -> bytes:
    """A part of a serialised HeartbeatEvent that holds this account."""
    entry = exchange_service_pb2.AccountState(
        exchange_id=state.account.exchange_id,
        environment=state.account.environment,
        account_type=state.account.account_type,
        version=state.version,
    )
    if state.age is not None:
        entry.age.CopyFrom(_duration(state.age))
    if state.error is not None:
        entry.error.CopyFrom(fault_message(state.error))
    return _length_delimited(2, entry.SerializeToString())


def heartbeat_event(now: float, states: Iterable[bytes]) -> bytes:
    """A serialised StreamBalancesResponse that holds a HeartbeatEvent; `states` are what `account_state` makes."""
    event = exchange_service_pb2.HeartbeatEvent(server_time=_timestamp(now))
    return _length_delimited(3, event.SerializeToString() + b"".join(states))


def fault_message(error: ServiceError) -> balance_pb2.AccountFault:
    """An error beside data: reason, message with its advice, and delay."""
    name = f"ERROR_REASON_{error.reason or 'UNSPECIFIED'}"
    reason = error_reason_pb2.ErrorReason.Value(name)
    fault = balance_pb2.AccountFault(reason=reason, message=error.text, advice=error.advice)
    if error.retry_after is not None:
        fault.retry_delay.CopyFrom(_duration(error.retry_after))
    return fault


def stored_fault(error: ServiceError) -> bytes:
    """An error as the cache keeps it for a moment."""
    return _CACHE_FORMAT + fault_message(error).SerializeToString()


def read_stored_fault(raw: bytes) -> ServiceError | None:
    """What `stored_fault` wrote; None for anything else."""
    if raw[:1] != _CACHE_FORMAT:
        return None
    try:
        error = read_fault(balance_pb2.AccountFault.FromString(raw[1:]))
    except (DecodeError, ValueError):
        return None
    return error if error.reason else None


def read_fault(fault: balance_pb2.AccountFault) -> ServiceError:
    """What `fault_message` wrote."""
    reason = error_reason_pb2.ErrorReason.Name(fault.reason).removeprefix("ERROR_REASON_")
    delay = fault.retry_delay.ToTimedelta().total_seconds() if fault.HasField("retry_delay") else None
    advice = fault.advice if fault.HasField("advice") else None
    return from_reason(reason, fault.message.removesuffix(f" {advice}" if advice else ""), delay, advice)


@dataclass(frozen=True, slots=True)
class PluginLabel:
    """A plugin as the catalogue names it."""

    name: str
    version: str
    distribution: str


@dataclass(frozen=True, slots=True)
class ListingTrouble:
    """Why a listing's calls fail, a sentence, since when, in seconds since the epoch, and whether some are served."""

    reason: str
    since: float
    serves: bool


def catalogue_entry(metadata: ExchangeMetadata, plugin: PluginLabel, trouble: ListingTrouble | None = None) -> bytes:
    """A serialised Exchange. Its status tells of a listing that cannot be served yet, or of its `trouble`."""
    return exchange_pb2.Exchange(
        **{name: getattr(metadata, name) for name in _PLAIN_LISTING_FIELDS},
        default_account_types=metadata.default_account_types or metadata.account_types,
        is_custom=not metadata.is_ccxt,
        plugin=_plugin_message(plugin),
        capabilities=exchange_pb2.Capabilities(
            **{item.name: getattr(metadata.capabilities, item.name) for item in fields(metadata.capabilities)}
        ),
        credential_fields=[
            exchange_pb2.CredentialField(**{item.name: getattr(entry, item.name) for item in fields(entry)})
            for entry in metadata.credential_fields
        ],
        environments=[
            exchange_pb2.Environment(name=entry.name, aliases=entry.aliases) for entry in metadata.environments
        ],
        status=_status_message(metadata, trouble),
    ).SerializeToString(deterministic=True)


def _status_message(metadata: ExchangeMetadata, trouble: ListingTrouble | None) -> exchange_pb2.ExchangeStatus:
    if not metadata.capabilities.balance:
        reason = metadata.unsupported_reason
        return exchange_pb2.ExchangeStatus(availability=exchange_pb2.AVAILABILITY_UNAVAILABLE, reason=reason)
    if trouble is None:
        return exchange_pb2.ExchangeStatus(availability=exchange_pb2.AVAILABILITY_AVAILABLE)
    worse = exchange_pb2.AVAILABILITY_DEGRADED if trouble.serves else exchange_pb2.AVAILABILITY_UNAVAILABLE
    since = _timestamp(trouble.since)
    return exchange_pb2.ExchangeStatus(availability=worse, reason=trouble.reason, since_time=since)


def list_exchanges_reply(
    entries: Iterable[bytes],
    *,
    next_page_token: str,
    matching_count: int,
    custom: int,
    ccxt: int,
    problems: Iterable[tuple[PluginLabel, str]],
) -> bytes:
    """A serialised ListExchangesResponse of serialised entries, marked with an etag of all of it."""
    page = b"".join(_length_delimited(1, entry) for entry in entries)
    rest = exchange_service_pb2.ListExchangesResponse(
        next_page_token=next_page_token,
        stats=exchange_service_pb2.CatalogueStats(total=custom + ccxt, custom=custom, ccxt=ccxt),
        matching_count=matching_count,
        problems=[
            exchange_service_pb2.PluginProblem(plugin=_plugin_message(plugin), reason=reason)
            for plugin, reason in problems
        ],
    )
    content = page + rest.SerializeToString(deterministic=True)
    etag = hashlib.sha256(content).hexdigest()[:24]
    return content + exchange_service_pb2.ListExchangesResponse(etag=etag).SerializeToString()


def list_exchanges_etag(reply: bytes) -> str:
    """The etag of a serialised ListExchangesResponse."""
    return exchange_service_pb2.ListExchangesResponse.FromString(reply).etag


def not_modified_reply(etag: str) -> bytes:
    """A serialised ListExchangesResponse that says the caller's copy is current."""
    return exchange_service_pb2.ListExchangesResponse(etag=etag, not_modified=True).SerializeToString()


def _plugin_message(plugin: PluginLabel) -> exchange_pb2.Plugin:
    return exchange_pb2.Plugin(name=plugin.name, version=plugin.version, distribution=plugin.distribution)


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
    "ip_whitelist",
    "account_types",
    "documentation_url",
    "credential_url",
    "countries",
    "credential_of",
)


def _balance_message(balance: Balance) -> balance_pb2.Balance:
    message = balance_pb2.Balance(
        venue_accounts=[_venue_account_message(entry) for entry in balance.venue_accounts],
        notes=balance.notes,
    )
    if balance.venue_time is not None:
        message.venue_time.FromDatetime(balance.venue_time)
    if balance.summary is not None:
        message.summary.CopyFrom(_summary_message(balance.summary))
    return message


def _venue_account_message(account: VenueAccount) -> balance_pb2.VenueAccount:
    message = balance_pb2.VenueAccount(
        id=account.id,
        type=account.type,
        sub_account=account.sub_account,
        label=account.label,
        assets=[_row_message(account, row) for row in account.assets],
    )
    if account.summary is not None:
        message.summary.CopyFrom(_summary_message(account.summary))
    if account.error is not None:
        message.error.CopyFrom(fault_message(account.error))
    if account.venue_time is not None:
        message.venue_time.FromDatetime(account.venue_time)
    return message


def _venue_account(message: balance_pb2.VenueAccount) -> VenueAccount:
    return VenueAccount(
        id=message.id,
        type=message.type,
        sub_account=message.sub_account,
        label=message.label,
        assets=tuple(_row(row) for row in message.assets),
        summary=_summary(message.summary) if message.HasField("summary") else None,
        error=read_fault(message.error) if message.HasField("error") else None,
        venue_time=_when(message, "venue_time"),
    )


def _row(message: balance_pb2.AssetBalance) -> AssetBalance:
    amounts = {name: Decimal(getattr(message, name)) for name in _AMOUNTS if message.HasField(name)}
    venue_asset = "" if message.venue_asset == message.asset else message.venue_asset
    return AssetBalance(message.asset, venue_asset=venue_asset, **amounts)


def _summary(message: balance_pb2.Summary) -> Summary:
    known = {field.name: Decimal(value) for field, value in message.ListFields() if field.name != "currency"}
    return Summary(message.currency, **known)


def _when(message: balance_pb2.Balance | balance_pb2.VenueAccount, name: Literal["venue_time"]) -> datetime | None:
    return getattr(message, name).ToDatetime(UTC) if message.HasField(name) else None


def _row_message(account: VenueAccount, row: AssetBalance) -> balance_pb2.AssetBalance:
    message = balance_pb2.AssetBalance(
        asset=row.asset,
        venue_asset=row.venue_asset or row.asset,
        account_type=account.type,
        sub_account=account.sub_account,
        venue_account_id=account.id,
        mismatch=row.mismatch(),
    )
    for name in _AMOUNTS:
        value = getattr(row, name)
        if value is not None:
            setattr(message, name, format_amount(value))
    return message


def _summary_message(summary: Summary) -> balance_pb2.Summary:
    message = balance_pb2.Summary(currency=summary.currency)
    for item in fields(summary):
        value = getattr(summary, item.name)
        if item.name != "currency" and value is not None:
            setattr(message, item.name, format_amount(value))
    return message


def _zero_row(identity: RowIdentity, amounts: Iterable[AmountName]) -> balance_pb2.AssetBalance:
    account_id, account_type, sub_account, asset, venue_asset = identity
    row = balance_pb2.AssetBalance(
        asset=asset,
        venue_asset=venue_asset,
        account_type=account_type,
        sub_account=sub_account,
        venue_account_id=account_id,
    )
    for name in amounts:
        setattr(row, name, "0")
    return row


def _is_zero(row: balance_pb2.AssetBalance) -> bool:
    known = [getattr(row, name) for name in _AMOUNTS if row.HasField(name)]
    return bool(known) and not any(digit in value for value in known for digit in "123456789")


def _freshness(source: Source, age: float, stale: ServiceError | None) -> balance_pb2.Freshness:
    freshness = balance_pb2.Freshness(source=source.value, age=_duration(age))
    if stale is not None:
        freshness.stale.CopyFrom(fault_message(stale))
    return freshness


def _duration(seconds: float) -> Duration:
    whole, nanos = divmod(round(max(0.0, seconds) * 1_000_000_000), 1_000_000_000)
    return Duration(seconds=whole, nanos=nanos)


def _timestamp(seconds: float) -> Timestamp:
    whole, nanos = divmod(round(seconds * 1_000_000), 1_000_000)
    return Timestamp(seconds=whole, nanos=nanos * 1000)


def _length_delimited(number: int, payload: bytes) -> bytes:
    """A field of wire type 2: tag, length, bytes."""
    return bytes([number << 3 | 2]) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
