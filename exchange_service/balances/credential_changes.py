"""Changes of stored credentials: every replica drops what depends on the old one, and its feeds read again.

What depends on a credential that was missing is known by its user alone: an account may be found under other names.
"""

from __future__ import annotations

from collections.abc import Callable

from cachetools import LRUCache

from exchange_service.balances.cached import CachedBalances
from exchange_service.balances.refusals import Refusals
from exchange_service.credentials import CredentialReference, credential_id, user_hash
from exchange_service.credentials.references import CachedReferences
from exchange_service.errors import CredentialRejected
from exchange_service.model import Account
from exchange_service.venues.fetching import Target, Venues

# Credentials whose changes act at once; a change of another one is seen when its reference is looked up again.
_MOST_CREDENTIALS = 40_000
_MOST_USERS = 40_000
# More account types than any listing has.
_MOST_KEYS_OF_ONE = 32


class CredentialChanges:
    """Knows which balances were read with which credential."""

    def __init__(
        self,
        hash_key: bytes,
        references: CachedReferences,
        venues: Venues,
        cached: CachedBalances,
        refusals: Refusals,
    ) -> None:
        self._hash_key = hash_key
        self._references = references
        self._venues = venues
        self._cached = cached
        self._refusals = refusals
        # By credential id: the accounts that it opens, each with the keys of its balances.
        self._used: LRUCache[bytes, dict[Account, set[str]]] = LRUCache(_MOST_CREDENTIALS)
        # By their hash: the users whose stored credentials were looked for.
        self._users: LRUCache[bytes, str] = LRUCache(_MOST_USERS)
        # By the user's hash: what is called when something that the user has stored changes.
        self._listeners: dict[bytes, set[Callable[[], None]]] = {}
        cached.on_credential = self.on_change
        cached.on_user = self.on_user_change
        cached.on_replacement = self.on_replacement

    def note_user(self, user_id: str) -> None:
        """The user's credentials are about to be looked for."""
        self._users[user_hash(self._hash_key, user_id)] = user_id

    def add_listener(self, user_id: str, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a credential of the user was stored or removed, on whatever replica."""
        self.note_user(user_id)
        self._listeners.setdefault(user_hash(self._hash_key, user_id), set()).add(listener)

    def remove_listener(self, user_id: str, listener: Callable[[], None]) -> None:
        """Undo `add_listener`."""
        hashed_user = user_hash(self._hash_key, user_id)
        listeners = self._listeners.get(hashed_user, set())
        listeners.discard(listener)
        if not listeners:
            self._listeners.pop(hashed_user, None)

    def note(self, target: Target) -> None:
        """The target is about to be read with its credential."""
        reference = target.reference
        for account in {reference.account, reference.stored_as}:
            hashed_id = credential_id(self._hash_key, account)
            keys = self._used.setdefault(hashed_id, {}).setdefault(reference.account, set())
            # Keys of versions that are gone are never listened for again.
            if target.key not in keys and len(keys) >= _MOST_KEYS_OF_ONE:
                keys.clear()
            keys.update((target.key, target.credential_key))

    def forget_session(self, account: Account) -> None:
        """Close the account's session: it has no credential any more."""
        self._venues.forget(account)

    async def publish(self, account: Account) -> None:
        """The account's credential was stored, has changed or has gone: act on it here and on every other replica."""
        self.on_change(credential_id(self._hash_key, account))
        self.on_user_change(user_hash(self._hash_key, account.user_id))
        await self._cached.publish_credential_change(self._hash_key, account)

    async def publish_replacement(self, stored_as: Account, version: str, ancestors: tuple[str, ...]) -> None:
        """A plugin has replaced a token in this row: use it here and on every other replica. What was opened with one
        of the versions before stays open."""
        for account in self._used.get(credential_id(self._hash_key, stored_as), {}):
            self._references.renew(CredentialReference(account, stored_as, version, ancestors))
        await self._cached.publish_replacement(self._hash_key, stored_as)

    def on_replacement(self, hashed_id: bytes) -> None:
        """Look again for the credential with this id: another replica has replaced a token in it."""
        for account in self._used.get(hashed_id, {}):
            self._references.forget(account)

    def on_fetch_done(self, target: Target, error: BaseException | None) -> None:
        """A fetch has ended. If the venue refuses a token that rotates, another replica may have spent it and stored
        the next one."""
        if isinstance(error, CredentialRejected) and target.listing.metadata.rotating_fields:
            self._references.forget(target.reference.account)

    def on_change(self, hashed_id: bytes) -> None:
        """Drop what depends on the credential with this id, and have its feeds read again."""
        for account, keys in self._used.pop(hashed_id, {}).items():
            self._references.forget(account)
            self._venues.forget(account)
            for key in keys:
                # The venue has refused the one before.
                self._refusals.forget(key)
                self._cached.notify(key)

    def on_user_change(self, hashed_user: bytes) -> None:
        """Look again for what the user with this hash has stored, and tell the listeners."""
        user_id = self._users.get(hashed_user)
        if user_id is not None:
            self._references.forget_user(user_id)
        for listener in tuple(self._listeners.get(hashed_user, ())):
            listener()
