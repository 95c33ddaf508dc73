"""What users stored to connect their accounts."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from exchange_service.model import Account, Credential


@dataclass(frozen=True, slots=True)
class CredentialReference:
    """That a credential is stored, without what it holds.

    `account` is the account that was asked for, `stored_as` the row that serves it (another exchange of the same
    plugin where the listing names one). `version` is a keyed hash of the row's values: it changes with any of them.
    """

    account: Account
    stored_as: Account
    version: str


@lru_cache(maxsize=50_000)
def credential_id(hash_key: bytes, account: Account) -> bytes:
    """What replicas tell each other in the place of an account whose credential has changed."""
    text = "\0".join(("credential", account.user_id, account.exchange_id, account.environment))
    return hmac.new(hash_key, text.encode(), hashlib.sha256).digest()[:16]


class CredentialStore(Protocol):
    """The stored credentials. Every method raises StoreUnavailable when the store cannot be reached in time."""

    async def find(
        self, account: Account, *, aliases: Sequence[str] = (), credential_of: str = ""
    ) -> CredentialReference | None:
        """The credential of `account`, or None. A row counts whose environment is the account's, one of `aliases`,
        or null for production. Without one, the row of the exchange `credential_of` counts."""

    async def open(self, reference: CredentialReference) -> Credential:
        """What the row holds. CredentialMissing where it is gone, CredentialInvalid where its JSON is none."""

    async def accounts(self, user_id: str) -> list[Account]:
        """Every stored account of the user, sorted; environments as the rows say, null as production."""

    async def all_accounts(self) -> list[Account]:
        """Every stored account of every user, sorted."""

    async def put(self, account: Account, credential: Credential) -> bool:
        """Store or replace; True where there was none before."""

    async def remove(self, account: Account) -> bool:
        """Remove; False where there was none."""

    async def problem(self) -> str:
        """Why the store does not work right now, a sentence for the operator; empty when it does."""

    async def close(self) -> None:
        """Release what it holds."""
