"""The keys of balances and credentials in the cache, and the targets that carry them."""

from __future__ import annotations

import hashlib
import hmac

from exchange_service.credentials import CredentialReference
from exchange_service.model import Account
from exchange_service.recently_used import RecentlyUsed
from exchange_service.venues.fetching import Target
from exchange_service.venues.registry import Listing

_MOST_KEYS = 40_000


class BalanceKeys:
    """Makes targets. A key is a keyed hash: it does not reveal the user, and it depends on the credential's
    version, so no balance outlives a change of the credential."""

    def __init__(self, hash_key: bytes) -> None:
        self._hash_key = hash_key
        # Hashing costs more than all else in a call that finds its balance in the process.
        self._known: RecentlyUsed[Account, tuple[str, str]] = RecentlyUsed(_MOST_KEYS)
        self._users: RecentlyUsed[str, str] = RecentlyUsed(_MOST_KEYS)

    def target(self, account: Account, listing: Listing, reference: CredentialReference) -> Target:
        """The target of this account, read with this credential."""
        key = self.key(account, reference)
        credential_key = self.key(account.stored(), reference)
        return Target(account, listing, reference, key, credential_key, self.user_key(account.user_id))

    def key(self, account: Account, reference: CredentialReference) -> str:
        """The cache's key for the account's balance."""
        known = self._known.get(account)
        if known is not None and known[0] == reference.version:
            return known[1]
        names = (account.user_id, account.exchange_id, account.environment, account.account_type)
        text = "\0".join((*names, reference.version))
        key = "balance:" + hmac.new(self._hash_key, text.encode(), hashlib.sha256).hexdigest()
        self._known[account] = (reference.version, key)
        return key

    def user_key(self, user_id: str) -> str:
        """The hash that stands for a user at the gate."""
        key = self._users.get(user_id)
        if key is None:
            text = "user\0" + user_id
            key = self._users[user_id] = hmac.new(self._hash_key, text.encode(), hashlib.sha256).hexdigest()[:32]
        return key
