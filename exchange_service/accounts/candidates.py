"""Credentials that are tried at their venues before they are stored.

A candidate has a stand-in for its account, which no user can name, and with it a venue session of its own. So it never
uses what an account's stored credential has opened, nor the other way round.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from exchange_service.credentials import CredentialReference
from exchange_service.model import Account, Credential, Secret
from exchange_service.venues.registry import Listing
from exchange_service.venues.replacing import ReplaceCredential

OpenCredential = Callable[[CredentialReference], Awaitable[Credential]]


class Candidates:
    """Holds the credentials that are being tried. `forget` closes an account's venue session."""

    def __init__(self, hash_key: bytes) -> None:
        self._hash_key = hash_key
        self._held: dict[Account, Credential] = {}

    def __len__(self) -> int:
        """How many are being tried."""
        return len(self._held)

    def opening(self, open_credential: OpenCredential) -> OpenCredential:
        """The same opening of credentials, which opens candidates too."""

        async def opening(reference: CredentialReference) -> Credential:
            held = self._held.get(reference.account)
            return held if held is not None else await open_credential(reference)

        return opening

    def replacing(self, replace_credential: ReplaceCredential) -> ReplaceCredential:
        """The same replacing of credentials, which replaces candidates too: those are stored as their venue left
        them."""

        async def replacing(
            account: Account, version: str, listing: Listing, changes: Mapping[str, Secret]
        ) -> str | None:
            held = self._held.get(account)
            if held is None:
                return await replace_credential(account, version, listing, changes)
            self._held[account] = held.with_fields(changes)
            return version

        return replacing

    def newest(self, reference: CredentialReference) -> Credential:
        """The candidate that is being tried, with what its plugin has replaced."""
        return self._held[reference.account]

    @contextmanager
    def trying(
        self, account: Account, credential: Credential, forget: Callable[[Account], None]
    ) -> Iterator[CredentialReference]:
        """A reference to the candidate; it opens within this block, and its session is closed at the end."""
        stand_in = replace(account.stored(), user_id=f"candidate {secrets.token_hex(16)}")
        self._held[stand_in] = credential
        try:
            yield CredentialReference(stand_in, stand_in, self._version(account, credential))
        finally:
            del self._held[stand_in]
            forget(stand_in)

    def _version(self, account: Account, credential: Credential) -> str:
        """The same each time for the same credential: what its venue has said of it holds for the next try too."""
        texts = [text.reveal() for text in (credential.api_key, credential.api_secret, credential.passphrase)]
        values = [account.user_id, account.exchange_id, account.environment, *texts, dict(credential.metadata)]
        return hmac.new(self._hash_key, json.dumps(values, sort_keys=True).encode(), hashlib.sha256).hexdigest()
