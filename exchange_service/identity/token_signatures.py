"""Signatures of the rows of service tokens: a program that can write to the table cannot make a token with them.

The key is not in the database. It is derived from `hash_key`, or from a file that is made for our user alone if that is
not set: beside a SQLite database, else in the data folder.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from exchange_service.credentials.engine import database_address, sqlite_file
from exchange_service.identity.tokens import StoredToken
from exchange_service.settings import Settings, data_folder

_PURPOSE = b"exchange-service: rows of service tokens"
_FILE = "service-token-key"
_BYTES = 32


class KeyUnusable(Exception):
    """There is no key for signatures; the text is a sentence for the operator."""


class TokenSignatures:
    """Signs and checks tokens' rows with one key."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.new(secret, _PURPOSE, hashlib.sha256).digest()

    def sign(self, token: StoredToken) -> str:
        """The signature over all of the row that says what the token may do."""
        # A JSON list separates the values whatever characters they contain.
        values = [token.id, token.name, token.digest, token.scope.as_value(), token.created, token.expires]
        return hmac.new(self._key, json.dumps(values).encode(), hashlib.sha256).hexdigest()

    def fits(self, token: StoredToken) -> bool:
        """Whether the row is as it was signed with this key. It may also have a signature of the key before."""
        mine = self.sign(token).encode()
        return any(hmac.compare_digest(mine, one.encode("utf-8", "replace")) for one in token.signature.split()[:2])


def configured_signatures(settings: Settings, *, make_key: bool = True) -> TokenSignatures:
    """The signatures by the key that the settings name. Raises KeyUnusable if there is none and none can be made.

    Without `make_key` no file is made: if there is none, no token is signed with its key.
    """
    if settings.hash_key is not None:
        return TokenSignatures(settings.hash_key.get_secret_value().encode())
    return TokenSignatures(_key_of_file(_key_file(settings), make_key))


def key_warning(settings: Settings) -> str:
    """A sentence for the operator if the key is on this machine only and the database need not be; else empty."""
    if settings.hash_key is not None or database_address(settings.database_url).get_backend_name() == "sqlite":
        return ""
    return (
        f"the key of service tokens is in {_key_file(settings)} and nowhere else, so other machines, users and "
        "containers refuse tokens that are signed with it: set the same hash_key for all of them."
    )


def _key_file(settings: Settings) -> Path | None:
    """Where the key is kept; None for a database in memory, which no other process has."""
    url = database_address(settings.database_url)
    if url.get_backend_name() != "sqlite":
        return data_folder() / _FILE
    file = sqlite_file(url)
    return file and file.with_name(f"{file.name}.{_FILE}")


def _key_of_file(path: Path | None, make: bool) -> bytes:
    if path is None or not (make or path.exists()):
        return secrets.token_bytes(_BYTES)
    try:
        if not path.exists():
            _make_file(path)
        if path.stat().st_mode & 0o077:
            raise KeyUnusable(f"Other users of this machine have rights on {path}: chmod 600 it.")
        key = bytes.fromhex(path.read_text("ascii").strip())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is damaged"
        if isinstance(error, PermissionError):
            # Such as one that a command made as another user.
            raise KeyUnusable(f"This user cannot read or make {path}: give it to this user, or set hash_key.") from None
        raise KeyUnusable(f"The key of service tokens in {path} cannot be used ({reason}): set hash_key.") from None
    if len(key) != _BYTES:
        raise KeyUnusable(f"The key of service tokens in {path} cannot be used (it is damaged): set hash_key.")
    return key


def _make_file(path: Path) -> None:
    """Make the file with a new key, unless another process does at the same moment. It is never seen half-written."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
