"""What is written down of credentials: that one was opened, refused or sealed, for whom and with which keys.

Never a value, and ids of users only as keyed hashes: the same `hash_key` gives the same hash, so that lines can be
compared without naming anybody.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection

import structlog

from exchange_service.credentials.rows import Row
from exchange_service.errors import CredentialUnreadable

log = structlog.get_logger(__name__)

# In the place of a key's id, for a value that was not sealed.
PLAIN = "plain"


class Audit:
    """Writes one line for each opening, refusal and sealing of a row's values, and counts the refusals."""

    def __init__(self, hash_key: bytes) -> None:
        self._hash_key = hash_key
        self.refusals = 0

    def user(self, user_id: str) -> str:
        """The keyed hash by which a user is known in the log."""
        return hmac.new(self._hash_key, b"user\0" + user_id.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:24]

    def opened(self, row: Row, keys: Collection[str], purpose: str) -> None:
        """The values were opened: with these keys, PLAIN among them where some were not sealed."""
        log.info("credential.opened", **self._row(row), keys=sorted(keys), purpose=purpose)

    def refused(self, row: Row, error: CredentialUnreadable, purpose: str) -> None:
        """They were asked for and could not be opened, or must not be."""
        self.refusals += 1
        log.warning("credential.refused", **self._row(row), problem=error.text, purpose=purpose)

    def sealed(self, row: Row, keys: Collection[str]) -> None:
        """Values were sealed, or sealed again, with these keys."""
        log.info("credential.sealed", **self._row(row), keys=sorted(keys))

    def _row(self, row: Row) -> dict[str, str]:
        account = row.account
        return {
            "user": self.user(row.user_id),
            "exchange": account.exchange_id,
            "environment": account.environment,
        }
