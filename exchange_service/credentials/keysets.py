"""A keyset: the keys that seal credentials. Its primary key seals, and every key of it opens.

A keyset is one JSON object, in a file for our user alone or in an environment variable:

    {"primary": "3f9a1c2e", "keys": {"3f9a1c2e": {"key": "<32 bytes as base64>", "created": "2026-11-22T10:00:00Z"}}}

`cryptography` is imported when a key is first used, because a service without a keyset does not need it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_NONCE_BYTES = 12
# A keyset is small; a larger file is something else.
_LARGEST_FILE = 256 * 1024
KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# How a file names the key of a manager. It may be shown.
_MANAGED_KEY = re.compile(r"[a-z]{1,16}://[A-Za-z0-9._/-]{1,200}")


class KeysetInvalid(Exception):
    """A keyset cannot be used; the text is a sentence for the operator and holds no key."""


class KeyRefused(Exception):
    """A key does not open a value: the key is another one, or the value is damaged or from another row."""


class KeyUnknown(Exception):
    """The keyset has no key of the id that a value names."""


def aead(key: bytes) -> AESGCM:
    """The cipher for both levels of the envelope; `key` has 32 bytes."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def encrypt(cipher: AESGCM, data: bytes, associated_data: bytes) -> bytes:
    """The nonce followed by the ciphertext. A random nonce is safe for 2^32 values of one key."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, data, associated_data)


def decrypt(cipher: AESGCM, sealed: bytes, associated_data: bytes) -> bytes:
    """The plain data; KeyRefused if the key, the associated data or the ciphertext is another one."""
    from cryptography.exceptions import InvalidTag

    # Raised after the handler, so that the library's exception is not the context of ours.
    with suppress(InvalidTag, ValueError):
        return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], associated_data)
    raise KeyRefused


@dataclass(frozen=True, slots=True)
class Key:
    """One key and the time of its creation. Its text never contains the key itself."""

    created: datetime
    material: bytes = field(repr=False)
    cipher: AESGCM = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cipher", aead(self.material))

    def __reduce__(self) -> Any:
        raise TypeError("a Key is not pickled")


@dataclass(frozen=True, slots=True)
class Keyset:
    """Keys by id; the one with the id `primary` seals."""

    primary: str
    keys: Mapping[str, Key]

    def wrap(self, data_key: bytes, associated_data: bytes) -> tuple[str, bytes]:
        """The primary key's id, and the data key encrypted with it."""
        return self.primary, encrypt(self.keys[self.primary].cipher, data_key, associated_data)

    def unwrap(self, key_id: str, wrapped: bytes, associated_data: bytes) -> bytes:
        """The data key; KeyUnknown if the keyset does not have the key, KeyRefused if the key does not open it."""
        key = self.keys.get(key_id)
        if key is None:
            raise KeyUnknown
        return decrypt(key.cipher, wrapped, associated_data)

    def with_new_key(self, *, primary: bool) -> Keyset:
        """A keyset with one more key, which becomes the primary if `primary` is true."""
        key_id = _new_id(self.keys)
        return Keyset(key_id if primary else self.primary, {**self.keys, key_id: _new_key()})

    def with_primary(self, key_id: str) -> Keyset:
        """The same keys with another primary; KeysetInvalid if the keyset does not have it."""
        if key_id not in self.keys:
            raise KeysetInvalid(f"The keyset has no key {key_id}.")
        return Keyset(key_id, self.keys)

    def without(self, key_id: str) -> Keyset:
        """A keyset without this key; KeysetInvalid for the primary, or for a key that the keyset does not have."""
        if key_id not in self.keys:
            raise KeysetInvalid(f"The keyset has no key {key_id}.")
        if key_id == self.primary:
            raise KeysetInvalid(f"The key {key_id} is the primary, which seals; rotate first.")
        return Keyset(self.primary, {name: key for name, key in self.keys.items() if name != key_id})

    def as_text(self) -> str:
        """The JSON object; it is as secret as the keys in it."""
        keys = {
            key_id: {"key": base64.b64encode(key.material).decode(), "created": f"{key.created:%Y-%m-%dT%H:%M:%SZ}"}
            for key_id, key in self.keys.items()
        }
        return json.dumps({"primary": self.primary, "keys": keys}, indent=2) + "\n"


def new_keyset() -> Keyset:
    """A keyset of one new key."""
    key_id = _new_id({})
    return Keyset(key_id, {key_id: _new_key()})


def _new_id(taken: Mapping[str, Key]) -> str:
    while (key_id := secrets.token_hex(4)) in taken:
        pass
    return key_id


def _new_key() -> Key:
    return Key(datetime.now(UTC).replace(microsecond=0), secrets.token_bytes(KEY_BYTES))


def parse_keyset(text: str) -> Keyset:
    """The keyset in a JSON text; KeysetInvalid says what is wrong without repeating any of the text."""
    problem = "it is not a JSON object"
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
        if isinstance(value, dict):
            result = _read_entries(value)
            if isinstance(result, Keyset):
                return result
            problem = result
    raise KeysetInvalid(f"The keyset cannot be used: {problem}.")


def wrapped_parts(value: object) -> tuple[str, str] | None:
    """What a wrapped keyset is wrapped with, and its ciphertext; None for anything else. See wrapped_keysets.py."""
    if not isinstance(value, dict) or value.keys() != {"wrapped_with", "ciphertext"}:
        return None
    wrapped_with, ciphertext = value["wrapped_with"], value["ciphertext"]
    if not isinstance(wrapped_with, str) or not _MANAGED_KEY.fullmatch(wrapped_with) or not isinstance(ciphertext, str):
        return None
    return wrapped_with, ciphertext


def _read_entries(value: dict[str, Any]) -> Keyset | str:
    """The keyset, or what is wrong with it."""
    if parts := wrapped_parts(value):
        return f"it is wrapped with {parts[0]}; set keyset_key to that"
    primary, entries = value.get("primary"), value.get("keys")
    if not isinstance(entries, dict) or not isinstance(primary, str) or value.keys() != {"primary", "keys"}:
        return "it should have primary and keys, and no more"
    keys: dict[str, Key] = {}
    for key_id, entry in entries.items():
        key = _read_key(entry)
        if key is None or not KEY_ID.fullmatch(key_id):
            return "an entry of keys is not a key of 32 bytes in base64 with the time of its creation"
        keys[key_id] = key
    return Keyset(primary, keys) if primary in keys else "its primary is not one of its keys"


def _read_key(entry: Any) -> Key | None:
    if not isinstance(entry, dict) or entry.keys() != {"key", "created"}:
        return None
    # OverflowError: a time that is not within the years 1 to 9999 in UTC.
    with suppress(ValueError, TypeError, OverflowError):
        material = base64.b64decode(entry["key"], validate=True)
        created = datetime.fromisoformat(entry["created"])
        if len(material) == KEY_BYTES and created.tzinfo is not None:
            return Key(created.astimezone(UTC), material)
    return None


# Identifies one content of a file: its modification time in nanoseconds, its size, and its inode.
FileVersion = tuple[int, int, int]


def file_version(status: os.stat_result) -> FileVersion:
    """The version of the file that has this status; it changes if the file is replaced or written."""
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def read_keyset(path: str | Path) -> Keyset:
    """The keyset in a file; KeysetInvalid if the file cannot be read, or if other users can read it too."""
    return read_keyset_version(Path(path))[0]


def _rights_of_group(status: os.stat_result) -> int:
    """The rights that others may have: systemd and Kubernetes give secrets of root's to a service by one group's."""
    return 0o040 if status.st_uid == 0 and os.geteuid() != 0 else 0


def read_keyset_version(path: Path) -> tuple[Keyset, FileVersion]:
    """As `read_keyset`, with the version of the file that was read."""
    text, version = read_keyset_text(path)
    return parse_keyset(text), version


def read_keyset_text(path: Path) -> tuple[str, FileVersion]:
    """What a keyset's file holds, and its version; KeysetInvalid if it cannot be read, or if other users can read it
    too."""
    try:
        # Status and content are those of one open file, even if its name is given to another file meanwhile.
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(_LARGEST_FILE) if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        problem = f"The keyset file {path} cannot be read ({error.strerror})"
        if isinstance(error, FileNotFoundError):
            problem += (
                ": correct keyset_file, or bring the file back. "
                f"If nothing is sealed yet, run `exchange-service keys create {path}`"
            )
        raise KeysetInvalid(f"{problem}.") from None
    if status.st_mode & 0o077 & ~_rights_of_group(status):
        raise KeysetInvalid(f"Other users of this machine have rights on the keyset file: chmod 600 {path}")
    return data.decode("utf-8", "replace"), file_version(status)
