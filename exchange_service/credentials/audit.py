"""The audit log of credentials: each opening, refusal, sealing and replacing, with the user and the keys.

It never contains a value, and ids of users only as keyed hashes: the same `hash_key` gives the same hash, so that
lines can be compared without naming anybody.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection

import structlog

from exchange_service.credentials.rows import CredentialRow
from exchange_service.errors import CredentialUnreadable

log = structlog.get_logger(__name__)

# Stands in the place of a key's id for a value that was not sealed.
PLAIN = "plain"


class Audit:
    """Writes one line for each opening, refusal, sealing and replacing of a row's values, and counts the refusals."""

    def __init__(self, hash_key: bytes) -> None:
        self._hash_key = hash_key
        self.refusals = 0

    def hash_user(self, user_id: str) -> str:
        """The keyed hash that stands for a user in the log, 24 hexadecimal digits."""
        return hmac.new(self._hash_key, b"user\0" + user_id.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:24]

    def record_opening(self, row: CredentialRow, keys: Collection[str], purpose: str) -> None:
        """The values were opened with these keys; PLAIN is among them if some values were not sealed."""
        log.info("credential.opened", **self._describe(row), keys=sorted(keys), purpose=purpose)

    def record_refusal(self, row: CredentialRow, error: CredentialUnreadable, purpose: str) -> None:
        """The values were requested, and could not or must not be opened."""
        self.refusals += 1
        log.warning("credential.refused", **self._describe(row), problem=error.text, purpose=purpose)

    def record_sealing(self, row: CredentialRow, keys: Collection[str]) -> None:
        """Values were sealed, or sealed again, with these keys."""
        log.info("credential.sealed", **self._describe(row), keys=sorted(keys))

    def record_replacement(
        self, row: CredentialRow, keys: Collection[str], plugin: str, fields: Collection[str]
    ) -> None:
        """The row's plugin has replaced these fields, because its venue gave new values; PLAIN if they are not
        sealed."""
        log.info("credential.replaced", **self._describe(row), keys=sorted(keys), plugin=plugin, fields=sorted(fields))

    def _describe(self, row: CredentialRow) -> dict[str, str]:
        account = row.account
        return {
            "user": self.hash_user(row.user_id),
            "exchange": account.exchange_id,
            "environment": account.environment,
        }
