"""The credentials that users stored to connect their accounts."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from exchange_service.model import Account, Credential

# The most accounts of a user that a store lists.
MOST_ACCOUNTS = 2_000


@dataclass(frozen=True, slots=True)
class CredentialReference:
    """A stored credential without its values.

    `account` is the requested account. `stored_as` is the row that serves it, perhaps that of another exchange of the
    same plugin, if the listing names one. `version` is a keyed hash of the row's values; it changes with any of them.
    `ancestors` are versions of which the plugin itself has made this one, by replacing a token that rotates: what was
    opened with one of them is still the user's.
    """

    account: Account
    stored_as: Account
    version: str
    ancestors: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class StoredCredential:
    """That a credential is stored: for which account, in the row's own words, and when, in seconds since the epoch;
    None if the table does not say. `sealed`: none of its values is in plain text."""

    account: Account
    stored_time: float | None
    sealed: bool


@lru_cache(maxsize=50_000)
def user_hash(hash_key: bytes, user_id: str) -> bytes:
    """The id that replicas exchange, in place of the user, when what the user has stored has changed; 16 bytes."""
    return hmac.new(hash_key, b"credentials of\0" + user_id.encode("utf-8", "replace"), hashlib.sha256).digest()[:16]


@lru_cache(maxsize=50_000)
def credential_id(hash_key: bytes, account: Account) -> bytes:
    """The id that replicas exchange, in place of the account, when its credential has changed; 16 bytes."""
    text = "\0".join(("credential", account.user_id, account.exchange_id, account.environment))
    return hmac.new(hash_key, text.encode(), hashlib.sha256).digest()[:16]


class CredentialStore(Protocol):
    """The stored credentials. Every method raises StoreUnavailable if the store cannot be reached in time."""

    async def find(
        self, account: Account, *, aliases: Sequence[str] = (), credential_of: str = ""
    ) -> CredentialReference | None:
        """The credential of `account`, or None. A row matches if its environment is the account's or one of `aliases`;
        null is production. If no row matches, the row of the exchange `credential_of` is used."""

    async def open(self, reference: CredentialReference) -> Credential:
        """What the row holds. CredentialMissing if the row is gone, CredentialInvalid if its metadata is not JSON."""

    async def accounts(self, user_id: str) -> list[Account]:
        """Every stored account of the user, sorted, up to MOST_ACCOUNTS; environments as the rows say, null as
        production."""

    async def stored(self, user_id: str) -> list[StoredCredential]:
        """Every stored credential of the user without its values, sorted by account, up to MOST_ACCOUNTS."""

    async def all_accounts(self) -> list[Account]:
        """Every stored account of every user, sorted."""

    async def put(self, account: Account, credential: Credential) -> bool:
        """Store or replace; True if the credential is new."""

    async def remove(self, account: Account) -> bool:
        """Remove; False if nothing was stored."""

    async def problem(self) -> str:
        """Why the store does not work right now, a sentence for the operator; empty if it works."""

    async def close(self) -> None:
        """Release what it holds."""
