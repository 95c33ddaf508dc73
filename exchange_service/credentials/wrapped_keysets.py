"""A keyset that a manager of keys has encrypted, so that its file alone opens nothing.

It is one JSON object in place of the plain one:

    {"wrapped_with": "vault://transit/keys/exchange-service", "ciphertext": "vault:v1:..."}

The setting `keyset_key` decides which manager is asked, and never the file: who can write the file must not choose it.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from typing import Protocol

from cachetools import LRUCache

from exchange_service.credentials.keysets import Keyset, KeysetInvalid, parse_keyset, wrapped_parts


class KeysetAway(KeysetInvalid):
    """A keyset cannot be opened because the manager of its key does not answer: it may be opened later."""


class KeysetWrapping(Protocol):
    """A key of a manager, which encrypts a whole keyset. Both methods wait for the network, for some seconds at most,
    and raise KeysetInvalid, or KeysetAway if it may work later."""

    # How the setting names the key, without its options; the file says the same.
    name: str
    # What tells this key from one of the same name elsewhere.
    identity: str

    def wrap(self, data: bytes) -> str:
        """The data encrypted with the newest version of the key."""

    def unwrap(self, ciphertext: str) -> bytes:
        """What `wrap` encrypted, with any version that the key still opens."""


# Keysets that were opened in this process, so that each is asked for once. A service has one, and the next one.
_OPENED: LRUCache[bytes, Keyset] = LRUCache(4)


def open_keyset(text: str, wrapping: KeysetWrapping | None) -> Keyset:
    """The keyset in a text: in plain if `wrapping` is None, else wrapped by it. Raises KeysetInvalid or KeysetAway."""
    if wrapping is None:
        return parse_keyset(text)
    ciphertext = _ciphertext(text, wrapping)
    known = hashlib.sha256("\0".join((wrapping.identity, ciphertext)).encode()).digest()
    keyset = _OPENED.get(known)
    if keyset is None:
        keyset = _OPENED[known] = parse_keyset(wrapping.unwrap(ciphertext).decode("utf-8", "replace"))
    return keyset


def wrapped_text(keyset: Keyset, wrapping: KeysetWrapping | None) -> str:
    """The keyset as it is written: in plain if `wrapping` is None. Raises KeysetInvalid or KeysetAway."""
    if wrapping is None:
        return keyset.as_text()
    ciphertext = wrapping.wrap(keyset.as_text().encode())
    return json.dumps({"wrapped_with": wrapping.name, "ciphertext": ciphertext}, indent=2) + "\n"


def key_version(text: str) -> str:
    """The version of the manager's key that has wrapped a keyset, such as "v1"; empty if the text does not say."""
    with suppress(ValueError, IndexError):
        parts = wrapped_parts(json.loads(text))
        return parts[1].split(":")[1] if parts else ""
    return ""


def _ciphertext(text: str, wrapping: KeysetWrapping) -> str:
    parts = None
    with suppress(ValueError, RecursionError):
        parts = wrapped_parts(json.loads(text))
    if parts is None:
        raise KeysetInvalid(
            "keyset_key is set, and the keyset is not wrapped: run `exchange-service keys wrap`, or unset keyset_key."
        )
    wrapped_with, ciphertext = parts
    if wrapped_with != wrapping.name:
        raise KeysetInvalid(f"The keyset is wrapped with {wrapped_with}, and keyset_key is {wrapping.name}.")
    return ciphertext
