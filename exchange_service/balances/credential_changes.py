"""Changes of stored credentials: every replica drops what depends on the old one, and its feeds read again."""

from __future__ import annotations

from cachetools import LRUCache

from exchange_service.balances.cached import CachedBalances
from exchange_service.credentials import credential_id
from exchange_service.credentials.references import CachedReferences
from exchange_service.model import Account
from exchange_service.venues.fetching import Target, Venues

# Credentials whose changes act at once; a change of another one is seen when its reference is looked up again.
_MOST_CREDENTIALS = 40_000
# More account types than any listing has.
_MOST_KEYS_OF_ONE = 32


class CredentialChanges:
    """Knows which balances were read with which credential."""

    def __init__(self, hash_key: bytes, references: CachedReferences, venues: Venues, cached: CachedBalances) -> None:
        self._hash_key = hash_key
        self._references = references
        self._venues = venues
        self._cached = cached
        # By credential id: the accounts that it opens, each with the keys of its balances.
        self._used: LRUCache[bytes, dict[Account, set[str]]] = LRUCache(_MOST_CREDENTIALS)
        cached.on_credential = self.on_change

    def note(self, target: Target) -> None:
        """The target is about to be read with its credential."""
        reference = target.reference
        for account in {reference.account, reference.stored_as}:
            hashed_id = credential_id(self._hash_key, account)
            keys = self._used.setdefault(hashed_id, {}).setdefault(reference.account, set())
            # Keys of versions that are gone are never listened for again.
            if target.key not in keys and len(keys) >= _MOST_KEYS_OF_ONE:
                keys.clear()
            keys.add(target.key)

    def forget_session(self, account: Account) -> None:
        """Close the account's session: it has no credential any more."""
        self._venues.forget(account)

    async def publish(self, account: Account) -> None:
        """The account's credential has changed or gone: act on it here and on every other replica."""
        hashed_id = credential_id(self._hash_key, account)
        self.on_change(hashed_id)
        await self._cached.publish_credential_change(hashed_id)

    def on_change(self, hashed_id: bytes) -> None:
        """Drop what depends on the credential with this id, and have its feeds read again."""
        for account, keys in self._used.pop(hashed_id, {}).items():
            self._references.forget(account)
            self._venues.forget(account)
            for key in keys:
                self._cached.notify(key)
