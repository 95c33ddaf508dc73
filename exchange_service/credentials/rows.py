"""One row of the credential table as it is read: its account, its version, and the credential that it holds."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from exchange_service.errors import CredentialInvalid
from exchange_service.model import PRODUCTION, SECRET_FIELDS, Account, Credential, Secret

TABLE = "bot_credentials"
# The columns that may hold a secret, and are therefore sealed.
SECRET_COLUMNS = (*SECRET_FIELDS, "extra_metadata")
KEY_COLUMNS = ("user_id", "exchange", "environment")
COLUMNS = (*KEY_COLUMNS, *SECRET_COLUMNS)
# Bytes. Longer texts are left in the database: any credential is shorter, and to read and parse a longer one would
# delay every call.
LONGEST_SECRET = 64 * 1024
LONGEST_KEY = 1024


@dataclass(frozen=True, slots=True)
class CredentialRow:
    """One row, every value as text or null."""

    user_id: str
    exchange: str
    environment: str | None
    api_key: str | None = field(repr=False)
    api_secret: str | None = field(repr=False)
    passphrase: str | None = field(repr=False)
    extra_metadata: str | None = field(repr=False)
    # The first column whose text is too long; its text was not read, and the value is null here.
    too_long: str | None = None

    @property
    def account(self) -> Account:
        """The row's own account: the environment as it says, null or empty as production."""
        return Account(self.user_id, self.exchange, self.environment or PRODUCTION)

    def serves(self, environments: frozenset[str]) -> bool:
        """Whether the row's environment is one of these, which are names as `environment_name` returns them."""
        return environment_name(self.environment) in environments

    def holds(self, column: str) -> bool:
        """Whether one of SECRET_COLUMNS holds anything; null, empty text and empty JSON hold nothing."""
        text: str | None = getattr(self, column)
        if column != "extra_metadata":
            return bool(text)
        return text is not None and "".join(text.split()) not in ("", "{}", "null")

    def version(self, hash_key: bytes) -> str:
        """A keyed hash of all values. A JSON list separates them whatever characters they contain."""
        values = [
            self.user_id,
            self.exchange,
            self.environment,
            self.api_key,
            self.api_secret,
            self.passphrase,
            _canonical_json(self.extra_metadata),
        ]
        return hmac.new(hash_key, json.dumps(values).encode(), hashlib.sha256).hexdigest()


def environment_name(name: str | None) -> str:
    """A row's environment in the form that is compared; null and empty are production."""
    return (name or "").strip().lower() or PRODUCTION


def is_storable(text: str) -> bool:
    """Whether a database can hold this text: PostgreSQL refuses NUL, and all refuse an unpaired surrogate."""
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _refuse_constant(name: str) -> Any:
    raise ValueError("not a JSON number")


def _parse_json(text: str) -> tuple[bool, Any]:
    """Whether the text is JSON, and its value."""
    with suppress(ValueError, RecursionError):
        return True, json.loads(text, parse_constant=_refuse_constant)
    return False, None


def _canonical_json(text: str | None) -> list[str] | None:
    """The same value for every spelling of the same JSON: programs and column types differ in blanks and order."""
    if text is None:
        return None
    is_json, value = _parse_json(text)
    if not is_json:
        return ["text", text]
    return ["json", json.dumps(value, sort_keys=True, separators=(",", ":"))]


def _read_metadata(row: CredentialRow) -> Mapping[str, Any]:
    if row.extra_metadata is None or not row.extra_metadata.strip():
        return MappingProxyType({})
    is_json, value = _parse_json(row.extra_metadata)
    if is_json and value is None:
        return MappingProxyType({})
    if not isinstance(value, dict):
        raise CredentialInvalid(f"The extra_metadata of the stored {row.exchange} credential is not a JSON object.")
    return MappingProxyType(value)


def read_credential(row: CredentialRow) -> Credential:
    """The credential in a plain row; CredentialInvalid if its metadata is not a JSON object."""
    return Credential(
        api_key=Secret(row.api_key or ""),
        api_secret=Secret(row.api_secret or ""),
        passphrase=Secret(row.passphrase or ""),
        metadata=_read_metadata(row),
    )


def only_one(rows: Sequence[CredentialRow], account: Account) -> CredentialRow | None:
    """The row, or None. CredentialInvalid if there are several, because nothing says which one is meant, or if the
    row's texts are too long to be read."""
    if len(rows) > 1:
        raise CredentialInvalid(
            f"More than one credential is stored for {account.exchange_id} in the environment {account.environment}.",
            advice="Remove all but one.",
        )
    if rows and rows[0].too_long:
        raise CredentialInvalid(
            f"The {rows[0].too_long} of the stored {account.exchange_id} credential is longer than "
            f"{LONGEST_SECRET // 1024} KiB.",
            advice="Store it again without what the exchange does not need.",
        )
    return rows[0] if rows else None
