"""Sealing a value: envelope encryption with AES-256-GCM, bound to the row and the column that hold the value.

A sealed value is a text, `xs1:<key id>:<wrapped data key>:<nonce and ciphertext>`, the last two as base64url without
padding. Each value has a data key of its own, which a key of the keyset wraps. Both levels are bound to the value's
table, column and row by their associated data, so a value that is moved to another row or column does not open.

Another Python program that holds the keyset opens values with `open_value`.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, field

from exchange_service.credentials.key_providers import KeyProvider
from exchange_service.credentials.keysets import KEY_BYTES, KeyRefused, Keyset, KeyUnknown, aead, decrypt, encrypt
from exchange_service.credentials.rows import TABLE, environment_name
from exchange_service.errors import CredentialUnreadable

FORM = "xs1"
# Any form, also one of a later version: a text that looks sealed is never treated as plain. A JSON column holds the
# value as a JSON text.
_ANY_FORM = re.compile(r'"?xs\d+:')
_UNKNOWN = (
    "The {target.column} of the stored {target.exchange} credential is sealed with the key {key_id}, which the keyset "
    "does not have."
)
_WRONG = (
    "The {target.column} of the stored {target.exchange} credential does not open with the key {key_id}: it was sealed "
    "for another row or with another key, or it is damaged."
)
_WRONG_ADVICE = "Give the service the right key, or store the credential again."
_SEALED = re.compile(rf"{FORM}:([A-Za-z0-9._-]{{1,64}}):([A-Za-z0-9_-]+):([A-Za-z0-9_-]+)")


@dataclass(frozen=True, slots=True)
class AssociatedData:
    """What a sealed value is bound to. A null or empty environment is production; its case does not matter."""

    table: str
    column: str
    user_id: str
    exchange: str
    environment: str | None

    def encode(self) -> bytes:
        """A JSON list as bytes: it separates the names whatever characters they contain."""
        names = (self.table, self.column, self.user_id, self.exchange.lower(), environment_name(self.environment))
        return json.dumps([FORM, *names]).encode()


@dataclass(frozen=True, slots=True)
class _Envelope:
    """The parts of a sealed value."""

    key_id: str
    wrapped_key: bytes = field(repr=False)
    body: bytes = field(repr=False)


def is_sealed(text: str | None) -> bool:
    """Whether a column's text is a sealed value, perhaps a damaged one or one of a later version."""
    return text is not None and _ANY_FORM.match(text) is not None


def key_id_of(text: str) -> str:
    """The id of the key that sealed the value; empty if the value is damaged."""
    match = _SEALED.fullmatch(_unquote(text))
    return match[1] if match else ""


async def seal(value: str, target: AssociatedData, keys: KeyProvider) -> str:
    """The value, sealed with the primary key and bound to a row and column."""
    data_key, associated_data = secrets.token_bytes(KEY_BYTES), target.encode()
    key_id, wrapped = await keys.wrap(data_key, associated_data)
    body = encrypt(aead(data_key), value.encode(), associated_data)
    return f"{FORM}:{key_id}:{_encode(wrapped)}:{_encode(body)}"


async def unseal(text: str, target: AssociatedData, keys: KeyProvider) -> str:
    """The plain value; CredentialUnreadable if it does not open, with no more detail than the key's id."""
    envelope = _parse(text, target)
    data_key: bytes | Exception
    try:
        data_key = await keys.unwrap(envelope.key_id, envelope.wrapped_key, target.encode())
    except (KeyUnknown, KeyRefused, ValueError) as error:
        data_key = error
    return _open_envelope(envelope, target, data_key)


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
    """The plain value of a column, for other Python programs: null and plain values are returned unchanged.

    Each part of the value's place in the database is a parameter of its own, because the value is bound to all of them.
    `extra_metadata` is returned as the JSON text. CredentialUnreadable if the value does not open.
    """
    if text is None or not is_sealed(text):
        return text
    target = AssociatedData(table, column, str(user_id), exchange, environment)
    envelope = _parse(text, target)
    data_key: bytes | Exception
    try:
        data_key = keyset.unwrap(envelope.key_id, envelope.wrapped_key, target.encode())
    except (KeyUnknown, KeyRefused) as error:
        data_key = error
    return _open_envelope(envelope, target, data_key)


def _open_envelope(envelope: _Envelope, target: AssociatedData, data_key: bytes | Exception) -> str:
    """The plain value. `data_key` may be the error of its unwrapping: our error is raised outside of every handler,
    because its context could hold more than its text says."""
    if isinstance(data_key, bytes):
        # ValueError: the envelope opens but holds no data key or no text; only another holder of the key can do that.
        with suppress(KeyRefused, ValueError):
            return decrypt(aead(data_key), envelope.body, target.encode()).decode()
    if isinstance(data_key, KeyUnknown):
        raise CredentialUnreadable(_UNKNOWN.format(target=target, key_id=envelope.key_id))
    raise CredentialUnreadable(_WRONG.format(target=target, key_id=envelope.key_id), advice=_WRONG_ADVICE)


def _unquote(text: str) -> str:
    """The text without the quotes that it has in a JSON column."""
    return text[1:-1] if text.startswith('"') and text.endswith('"') else text


def _parse(text: str, target: AssociatedData) -> _Envelope:
    match = _SEALED.fullmatch(_unquote(text))
    with suppress(ValueError):
        if match is not None:
            return _Envelope(match[1], _decode(match[2]), _decode(match[3]))
    raise CredentialUnreadable(
        f"The {target.column} of the stored {target.exchange} credential is sealed, and damaged or of a later version."
    )


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
