"""What the credential table and the operator's files hold: rows, sealed values, keysets and keys."""

from __future__ import annotations

import json
import re
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from exchange_service.credentials.keysets import KEY_BYTES, Keyset, KeysetInvalid, aead, encrypt, parse_keyset
from exchange_service.credentials.rows import CredentialRow, read_credential
from exchange_service.credentials.sealing import AssociatedData, _encode, open_value
from exchange_service.errors import CredentialInvalid, CredentialUnreadable
from exchange_service.identity import scope_from
from exchange_service.plugin_kit.credential_fields import read_metadata, wallet_address
from exchange_service.plugin_kit.key_texts import KEY_KINDS, stored_text
from tests.fuzz.from_callers import PRIVATE
from tests.fuzz.targets import target

ROW = {"user_id": "alice", "exchange": "fakex", "environment": "production"}
TARGET = AssociatedData("bot_credentials", "api_key", **ROW)
KEYSET_TEXT = json.dumps({"primary": "k1", "keys": {"k1": {"key": "A" * 43 + "=", "created": "2026-11-22T10:00:00Z"}}})
KEYSET = parse_keyset(KEYSET_TEXT)
# Its time is before the year 1 in UTC.
TOO_EARLY = KEYSET_TEXT.replace("2026-11-22T10:00:00Z", "0001-01-01T00:00:00+14:00")


def sealed_with(keyset: Keyset, data_key: bytes, cipher_key: bytes, plain: bytes) -> str:
    """A value whose envelope holds `data_key`, and whose body is sealed with `cipher_key`."""
    key_id, wrapped = keyset.wrap(data_key, TARGET.encode())
    body = encrypt(aead(cipher_key), plain, TARGET.encode())
    return f"xs1:{key_id}:{_encode(wrapped)}:{_encode(body)}"


VALUE = sealed_with(KEYSET, bytes(KEY_BYTES), bytes(KEY_BYTES), b"a-key-for-tests")


@target("sealed-value", [VALUE.encode(), f'"{VALUE}"'.encode(), b"plain"], (CredentialUnreadable,))
def open_stored(data: bytes) -> object:
    return open_value(data.decode("utf-8", "replace"), KEYSET, column="api_key", **ROW)


@target("sealed-inside", [bytes([KEY_BYTES]) + bytes(KEY_BYTES) + b"a-key-for-tests"], (CredentialUnreadable,))
def open_inside(data: bytes) -> object:
    """A value that was sealed with our key, with a data key of any length and any bytes as the text."""
    length = data[0] if data else 0
    data_key, plain = data[1 : 1 + length], data[1 + length :]
    text = sealed_with(KEYSET, data_key, data_key.ljust(KEY_BYTES, b"\0")[:KEY_BYTES], plain)
    return open_value(text, KEYSET, column="api_key", **ROW)


@target(
    "keyset",
    [KEYSET_TEXT.encode(), TOO_EARLY.encode(), KEYSET.with_new_key(primary=False).as_text().encode()],
    (KeysetInvalid,),
)
def read_keyset(data: bytes) -> object:
    keyset = parse_keyset(data.decode("utf-8", "replace"))
    again = parse_keyset(keyset.as_text())
    assert {name: key.material for name, key in again.keys.items()} == {
        name: key.material for name, key in keyset.keys.items()
    }
    return keyset


def row_with(metadata: str) -> CredentialRow:
    return CredentialRow("alice", "fakex", None, "a key", "a secret", None, metadata)


@target(
    "row-metadata",
    [
        b'{"subaccount": "main", "sandbox": true, "hedged": 1, "environment": "demo"}',
        b'{"address": 1, "wallet_address": "0x' + b"aB" * 20 + b'", "l1_address": "0x' + b"Ab" * 20 + b'"}',
        b"null",
    ],
    (CredentialInvalid,),
)
def read_row(data: bytes) -> object:
    row = row_with(data.decode("utf-8", "replace"))
    assert re.fullmatch("[0-9a-f]{64}", row.version(b"a key"))
    row.holds("extra_metadata")
    credential = read_credential(row)
    if "address" in credential.metadata:
        return wallet_address(credential)
    return read_metadata(credential, subaccount=str, sandbox=bool, hedged=int)


@target(
    "token-scope",
    [b'"*"', b'"act-as"', b'["alice", "bob"]', b'{"users": ["alice"], "manage": true}'],
    (ValueError, RecursionError),
)
def read_scope(data: bytes) -> object:
    scope = scope_from(json.loads(data))
    assert scope_from(scope.as_value()) == scope
    return scope


def in_pem(key: Any, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    """The private key in PEM."""
    return cast(bytes, key.private_bytes(Encoding.PEM, form, NoEncryption()))


ED25519 = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
OF_RSA = rsa.generate_private_key(65537, 2048)


@target(
    "key-text",
    [
        b" abcdef0123456789 ",
        b'"quoted\\n"',
        in_pem(PRIVATE),
        in_pem(PRIVATE, PrivateFormat.TraditionalOpenSSL).replace(b"\n", b"\\n"),
        in_pem(ED25519),
        in_pem(ED25519, PrivateFormat.OpenSSH),
        in_pem(OF_RSA),
        b"".join(in_pem(OF_RSA).splitlines()[1:-1]),
    ],
    (CredentialInvalid,),
)
def read_key_text(data: bytes) -> object:
    text = stored_text(data.decode("utf-8", "replace"), "api_secret", [*KEY_KINDS])
    assert stored_text(text, "api_secret", [*KEY_KINDS]) == text
    return text
