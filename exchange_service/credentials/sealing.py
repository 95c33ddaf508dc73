"""Sealing a value: envelope encryption with AES-256-GCM, bound to the row and column that the value stands in.

A sealed value is a text, `xs1:<key id>:<wrapped data key>:<nonce and ciphertext>`, the last two as base64url without
padding. Each value has a data key of its own, which the keyset's key wraps. Both levels have the value's place as
associated data, so that a value that is moved to another row or column does not open.

Another Python program that holds the keyset opens values with `open_value`.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, field

from exchange_service.credentials.keysets import (
    KEY_BYTES,
    KeyProvider,
    KeyRefused,
    Keyset,
    KeyUnknown,
    aead,
    decrypt,
    encrypt,
)
from exchange_service.credentials.rows import TABLE, environment_name
from exchange_service.errors import CredentialUnreadable

FORM = "xs1"
# Any form, also of a later version: what looks sealed is never taken for plain. A JSON column holds it as a JSON text.
_ANY_FORM = re.compile(r'"?xs\d+:')
_UNKNOWN = (
    "The {place.column} of the stored {place.exchange} credential is sealed with the key {key_id}, which the keyset "
    "does not have."
)
_WRONG = (
    "The {place.column} of the stored {place.exchange} credential does not open with the key {key_id}: it was sealed "
    "for another row or with another key, or it is damaged. Give the service the right key, or store it again."
)
_SEALED = re.compile(rf"{FORM}:([A-Za-z0-9._-]{{1,64}}):([A-Za-z0-9_-]+):([A-Za-z0-9_-]+)")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands. An environment that is null or empty is production, in whatever case it is written."""

    table: str
    column: str
    user_id: str
    exchange: str
    environment: str | None

    def associated_data(self) -> bytes:
        """What a sealed value is bound to. A JSON list keeps the names apart whatever characters they hold."""
        names = (self.table, self.column, self.user_id, self.exchange.lower(), environment_name(self.environment))
        return json.dumps([FORM, *names]).encode()


@dataclass(frozen=True, slots=True)
class _Sealed:
    key_id: str
    wrapped: bytes = field(repr=False)
    body: bytes = field(repr=False)


def is_sealed(text: str | None) -> bool:
    """Whether a column's text is a sealed value, perhaps a damaged one or one of a later version."""
    return text is not None and _ANY_FORM.match(text) is not None


def key_id_of(text: str) -> str:
    """The id of the key that sealed it; empty where it is damaged."""
    found = _SEALED.fullmatch(_bare(text))
    return found[1] if found else ""


async def seal(value: str, place: Place, keys: KeyProvider) -> str:
    """The value, sealed for its place with the primary key."""
    data_key, associated_data = secrets.token_bytes(KEY_BYTES), place.associated_data()
    key_id, wrapped = await keys.wrap(data_key, associated_data)
    body = encrypt(aead(data_key), value.encode(), associated_data)
    return f"{FORM}:{key_id}:{_encoded(wrapped)}:{_encoded(body)}"


async def open_sealed(text: str, place: Place, keys: KeyProvider) -> str:
    """The value; CredentialUnreadable where it does not open, which is never said in more detail than the key's id."""
    sealed, associated_data = _parsed(text, place), place.associated_data()
    reason = _WRONG
    try:
        data_key = await keys.unwrap(sealed.key_id, sealed.wrapped, associated_data)
        return decrypt(aead(data_key), sealed.body, associated_data).decode()
    except KeyUnknown:
        reason = _UNKNOWN
    except (KeyRefused, ValueError):
        # ValueError: opened, and no data key or text within, which only another holder of the key can have made.
        pass
    raise CredentialUnreadable(reason.format(place=place, key_id=sealed.key_id))


def open_value(
    text: str | None,
    keyset: Keyset,
    *,
    column: str,
    user_id: object,
    exchange: str,
    environment: str | None = None,
    table: str = TABLE,
) -> str | None:
    """The plain value of a column, for other Python programs: null and plain values come back as they are.

    `extra_metadata` comes back as the JSON text. CredentialUnreadable where the value does not open.
    """
    if text is None or not is_sealed(text):
        return text
    place = Place(table, column, str(user_id), exchange, environment)
    sealed, associated_data = _parsed(text, place), place.associated_data()
    reason = _WRONG
    try:
        data_key = keyset.unwrap(sealed.key_id, sealed.wrapped, associated_data)
        return decrypt(aead(data_key), sealed.body, associated_data).decode()
    except KeyUnknown:
        reason = _UNKNOWN
    except (KeyRefused, ValueError):
        # ValueError: opened, and no data key or text within, which only another holder of the key can have made.
        pass
    raise CredentialUnreadable(reason.format(place=place, key_id=sealed.key_id))


def _bare(text: str) -> str:
    """Without the quotes that it has in a JSON column."""
    return text[1:-1] if text.startswith('"') and text.endswith('"') else text


def _parsed(text: str, place: Place) -> _Sealed:
    found = _SEALED.fullmatch(_bare(text))
    with suppress(ValueError):
        if found is not None:
            return _Sealed(found[1], _decoded(found[2]), _decoded(found[3]))
    raise CredentialUnreadable(
        f"The {place.column} of the stored {place.exchange} credential is sealed, and damaged or of a later version."
    )


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
