"""Balances and errors as the cache keeps them."""

from __future__ import annotations

import hashlib
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import TypeAlias

from google.protobuf.message import DecodeError

from exchange_service import clock, errors
from exchange_service.errors import ServiceError, from_reason
from exchange_service.model import Account
from exchange_service.v1 import balance_pb2
from exchange_service.wire.balances import ADDED_LATER, AMOUNTS, AmountName, FetchedBalance, parse_fetched
from exchange_service.wire.protobuf import encode_field, to_seconds, to_timestamp

# A stored balance is this header and a serialised `Balance`: the format, the version, and the pause. A value of another
# release begins with another format byte and counts as missing.
_FORMAT = b"\x03"
_HEADER = struct.Struct(">cQd")
_PREFIX = struct.Struct(">cQ")
# A fetch time that is further ahead says nothing about a balance's age.
CLOCK_TOLERANCE = clock.TOLERANCE
# A version that is further ahead of the clock is not believed: versions never go back, so it would stay for as long.
_MOST_AHEAD = 86_400.0
# What callers bring as a known version may be less far ahead: a version is made above it, and replicas whose clocks
# differ by an hour still believe that one.
_MOST_KNOWN_AHEAD = _MOST_AHEAD - 3600.0
# The most rows at "0" that a feed remembers for one account. No venue lists that many; a venue that renamed its assets
# in every answer would otherwise fill the events.
_MAX_GONE_ROWS = 2000
# A cached error is its reason behind this: the format, and the delay in seconds, negative if none was given.
_ERROR = struct.Struct(">cd")
# What a replica tells of an error that another one met. The texts are ours, because who can write to the cache must not
# speak to callers.
_ERROR_TEXTS = {
    errors.CredentialInvalid.reason: "A field of the credential for {venue} is missing or not accepted.",
    errors.CredentialRejected.reason: "{venue} refuses the key.",
    errors.PermissionMissing.reason: "{venue} does not let this key read balances.",
    errors.AddressNotAllowed.reason: "{venue} does not accept this key from our network address.",
    errors.ClockSkew.reason: "{venue} refuses the time of our request.",
    errors.RegionRestricted.reason: "{venue} does not serve the region that we call from.",
    errors.AccountUnknown.reason: "{venue} knows no such account.",
    errors.FeatureNotEnabled.reason: "A feature that is needed is not enabled for this account at {venue}.",
    errors.VenueRateLimited.reason: "{venue} limits our requests.",
    errors.VenueUnavailable.reason: "{venue} cannot be reached, or answers with an error.",
    errors.VenueMaintenance.reason: "{venue} is in maintenance.",
    errors.VenueTimeout.reason: "{venue} did not answer in time.",
    errors.VenueMalformed.reason: "{venue} did not answer with a valid balance.",
    errors.NotSupported.reason: "{venue} has no balance of this kind.",
    errors.RequestRefused.reason: "{venue} refuses our request.",
}
_find_digit = re.compile("[1-9]").search
_SUMMARY_AMOUNTS = tuple(field.name for field in balance_pb2.Summary.DESCRIPTOR.fields if field.name != "currency")
# What tells a row from the others of its balance: the venue account's id, type and sub-account, the asset, the venue's
# own code, and the kind.
RowIdentity: TypeAlias = tuple[str, str, str, str, str, balance_pb2.AssetKind.ValueType]


@dataclass(frozen=True, slots=True)
class StoredBounds:
    """What is believed of a stored balance: a pause of at most `longest_pause` seconds, and a version of at most a day
    from now. `now` is in seconds since the epoch."""

    longest_pause: float
    now: Callable[[], float] = clock.wall

    def allow(self, version: int, pause: float) -> bool:
        """Whether both are within the bounds."""
        most = int((self.now() + _MOST_AHEAD) * 1_000_000)
        return 0 <= pause <= self.longest_pause and 0 < version <= most


@dataclass(frozen=True)
class StoredBalance:
    """A balance as bytes, with the facts that the service needs without parsing them again.

    `data` is a serialised `Balance` with every row, zero rows included. `fetch_time` is in seconds since the epoch. A
    feed asks the venue again `pause` seconds after it. `known_digest` is `digest`, or empty if that is not
    known yet.
    """

    account: Account
    data: bytes
    fetch_time: float
    version: int
    pause: float = 0.0
    known_digest: bytes = field(default=b"", repr=False, compare=False)

    @cached_property
    def compact(self) -> bytes:
        """A serialised `Balance` without the rows whose amounts are all zero."""
        message, is_whole = balance_pb2.Balance.FromString(self.data), True
        for account in message.venue_accounts:
            kept = [row for row in account.assets if not _is_zero(row)]
            if len(kept) != len(account.assets):
                del account.assets[:]
                account.assets.extend(kept)
                is_whole = False
        return self.data if is_whole else message.SerializeToString(deterministic=True)

    @cached_property
    def whole_field(self) -> bytes:
        """`data` as field 1 of a message."""
        return encode_field(1, self.data)

    @cached_property
    def compact_field(self) -> bytes:
        """`compact` as field 1 of a message."""
        return encode_field(1, self.compact)

    @cached_property
    def digest(self) -> bytes:
        """A hash of the content: equal for two balances with the same figures, notes and errors. A figure is the same
        with more zeros at its end: a venue may write it otherwise where it pushes it."""
        return self.known_digest or _digest(balance_pb2.Balance.FromString(self.data))

    @property
    def header_prefix(self) -> bytes:
        """The first bytes of `encode`, the format and the version: what a compare-and-set in the cache expects."""
        return _PREFIX.pack(_FORMAT, self.version)

    def encode(self) -> bytes:
        """The value for the cache; `decode_stored` reads it."""
        return _HEADER.pack(_FORMAT, self.version, self.pause) + self.data

    def is_believed(self, account: Account, bounds: StoredBounds) -> bool:
        """Whether it is this account's, and within the bounds."""
        return bounds.allow(self.version, self.pause) and self.account == account


def highest_known_version(now: float) -> int:
    """The highest version that a caller can have at `now`, in seconds since the epoch."""
    return int((now + _MOST_KNOWN_AHEAD) * 1_000_000)


def store_balance(
    account: Account,
    fetched: FetchedBalance,
    fetch_time: float,
    previous: StoredBalance | None,
    known_version: int = 0,
) -> StoredBalance:
    """A plugin's answer with its account, fetch time and version.

    The version is that of `previous` if the content is the same. Otherwise it is the greatest of the previous version
    plus one, the fetch time in microseconds, and `known_version` plus one, so it rises on every replica. A `previous`
    below `known_version` counts as changed: what the known version held may differ. Raises ValueError if `fetched` is
    not a plugin's answer.
    """
    message, digest = parse_fetched(fetched), _digest(balance_pb2.Balance.FromString(fetched))
    message.user_id = account.user_id
    message.exchange_id = account.exchange_id
    message.environment = account.environment
    message.account_type = account.account_type
    message.fetch_time.CopyFrom(to_timestamp(fetch_time))
    if previous is not None and previous.version >= known_version and previous.digest == digest:
        version = previous.version
    else:
        last = max(previous.version if previous is not None else 0, known_version)
        version = max(last + 1, int(fetch_time * 1_000_000))
    message.version = version
    data = message.SerializeToString(deterministic=True)
    return StoredBalance(account, data, fetch_time, version, known_digest=digest)


def _digest(message: balance_pb2.Balance) -> bytes:
    """See `StoredBalance.digest`. The message is changed, and of no further use."""
    for name in ADDED_LATER:
        message.ClearField(name)
    message.ClearField("venue_time")
    for account in message.venue_accounts:
        account.ClearField("venue_time")
        # A delay that counts down is not a change.
        if account.HasField("error"):
            account.error.ClearField("retry_delay")
        if account.HasField("summary"):
            _drop_last_zeros(account.summary, _SUMMARY_AMOUNTS)
        for row in account.assets:
            _drop_last_zeros(row, AMOUNTS)
    if message.HasField("summary"):
        _drop_last_zeros(message.summary, _SUMMARY_AMOUNTS)
    return hashlib.sha256(message.SerializeToString(deterministic=True)).digest()


def decode_stored(
    account: Account, raw: bytes, bounds: StoredBounds, known: StoredBalance | None = None
) -> StoredBalance | None:
    """The balance of `account` that `encode` wrote; None for another format, other bytes or another account, and for
    what is not within the bounds. It is `known` itself, which was read or written before, if the bytes are its own."""
    if known is not None and raw == known.encode():
        return known if known.is_believed(account, bounds) else None
    if raw[:1] != _FORMAT:
        return None
    try:
        _, version, pause = _HEADER.unpack_from(raw)
        data = raw[_HEADER.size :]
        message = balance_pb2.Balance.FromString(data)
    except (struct.error, DecodeError):
        return None
    if version != message.version or not bounds.allow(version, pause):
        return None
    if Account(message.user_id, message.exchange_id, message.environment, message.account_type) != account:
        return None
    return StoredBalance(account, data, to_seconds(message.fetch_time), version, pause)


def encode_error(error: ServiceError) -> bytes:
    """An error for the cache, which keeps it for a moment: its reason and its delay. `decode_error` reads it."""
    delay = -1.0 if error.given_delay is None else error.given_delay
    return _ERROR.pack(_FORMAT, delay) + error.reason.encode()


def decode_error(raw: bytes, venue: str) -> ServiceError | None:
    """The error that `encode_error` wrote, told of `venue` with a text of our own; None for other bytes, and for a
    reason that no venue gives."""
    if raw[:1] != _FORMAT or len(raw) < _ERROR.size:
        return None
    _, delay = _ERROR.unpack_from(raw)
    reason = raw[_ERROR.size :].decode("ascii", "replace")
    text = _ERROR_TEXTS.get(reason)
    if text is None:
        return None
    error = from_reason(reason, text.format(venue=venue), delay if delay >= 0 else None)
    # A refusal holds until the user acts, and no delay makes it hold for longer.
    if not error.transient:
        error.retry_after = error.given_delay = None
    return error


def row_totals(stored: StoredBalance) -> dict[RowIdentity, Decimal]:
    """The totals of a balance's rows that are not zero."""
    message = balance_pb2.Balance.FromString(stored.data)
    totals = {
        (account.id, account.type, account.sub_account, row.asset, row.venue_asset, row.kind): Decimal(row.total)
        for account in message.venue_accounts
        for row in account.assets
        if row.HasField("total")
    }
    return {identity: total for identity, total in totals.items() if total}


def with_known_rows(
    stored: StoredBalance, known: Mapping[RowIdentity, Iterable[AmountName]]
) -> tuple[bytes, dict[RowIdentity, tuple[AmountName, ...]]]:
    """A balance for a feed, as a serialised `Balance`, and the rows that the feed has now reported.

    `known` are the rows that the feed reported before: identity to the names of the amounts that were present. Zero
    rows are left out unless they are known. A known row that is missing from the venue's answer stands at "0" for each
    of its amounts while its venue account is present and readable. An account that is gone or refused says nothing
    about what it holds.
    """
    message = balance_pb2.Balance.FromString(stored.data)
    reported: dict[RowIdentity, tuple[AmountName, ...]] = {}
    for account in message.venue_accounts:
        owner = (account.id, account.type, account.sub_account)
        kept = []
        for row in account.assets:
            identity = (*owner, row.asset, row.venue_asset, row.kind)
            if not _is_zero(row) or identity in known:
                kept.append(row)
                reported[identity] = tuple(name for name in AMOUNTS if row.HasField(name))
        gone = [identity for identity in known if identity[:3] == owner and identity not in reported]
        gone = _without_other_kinds(gone, known, reported)[:_MAX_GONE_ROWS] if gone else gone
        if account.HasField("error"):
            # The rows stay known, and nothing is reported about them now.
            reported.update({identity: tuple(known[identity]) for identity in gone})
            gone = []
        del account.assets[:]
        account.assets.extend(kept)
        for identity in gone:
            account.assets.append(_zero_row(identity, known[identity]))
            reported[identity] = tuple(known[identity])
    return message.SerializeToString(deterministic=True), reported


def _without_other_kinds(
    gone: Iterable[RowIdentity], known: Iterable[RowIdentity], reported: Iterable[RowIdentity]
) -> list[RowIdentity]:
    """The known rows that are gone, without those that are there under another kind: an earlier version of the plugin,
    such as another replica's, says no kind. Such a row must not stand at zero beside itself."""
    before = Counter(row[:-1] for row in known)
    now: dict[tuple[str, ...], list[int]] = {}
    for row in reported:
        now.setdefault(row[:-1], []).append(row[-1])

    def is_there(row: RowIdentity) -> bool:
        kinds = now.get(row[:-1], [])
        unsaid = balance_pb2.ASSET_KIND_UNSPECIFIED
        return before[row[:-1]] == len(kinds) == 1 and unsaid in (row[-1], kinds[0])

    return [row for row in gone if not is_there(row)]


def _zero_row(identity: RowIdentity, amounts: Iterable[AmountName]) -> balance_pb2.AssetBalance:
    account_id, account_type, sub_account, asset, venue_asset, kind = identity
    row = balance_pb2.AssetBalance(
        asset=asset,
        venue_asset=venue_asset,
        account_type=account_type,
        sub_account=sub_account,
        venue_account_id=account_id,
        kind=kind,
    )
    for name in amounts:
        setattr(row, name, "0")
    return row


def _drop_last_zeros(figures: balance_pb2.AssetBalance | balance_pb2.Summary, names: Iterable[str]) -> None:
    """Write the amounts of these names without zeros at their ends; those that are absent stay so."""
    for name in names:
        amount: str = getattr(figures, name)
        if amount[-1:] == "0" and "." in amount:
            setattr(figures, name, amount.rstrip("0").rstrip("."))


def _is_zero(row: balance_pb2.AssetBalance) -> bool:
    """Whether every known amount is zero, and at least one is known."""
    if _find_digit(row.total):
        # As in nearly every row; the whole look takes several times as long.
        return False
    known = [getattr(row, name) for name in AMOUNTS if row.HasField(name)]
    return bool(known) and not any(map(_find_digit, known))
