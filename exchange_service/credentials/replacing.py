"""Replacing fields of a stored credential for its plugin, whose venue gives another refresh token at each use.

A row is changed only if it still holds what the plugin's session was opened with: what its user has stored meanwhile is
never overwritten.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace

from exchange_service.credentials.audit import PLAIN
from exchange_service.credentials.rewriting import RewriteResult, replace_row
from exchange_service.credentials.rows import CredentialRow, read_credential
from exchange_service.credentials.sealing import key_id_of
from exchange_service.credentials.sql import SqlCredentialStore, storable_metadata
from exchange_service.errors import CredentialInvalid, CredentialUnreadable, PluginFailed, StoreUnavailable
from exchange_service.model import SECRET_FIELDS, Account, Credential, Secret

# A row that other programs keep changing is tried again later.
_ATTEMPTS = 3
# The purpose of opening a row, for the audit.
_PURPOSE = "replace"


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A row that holds the new values: its version, and the fingerprint of its credential."""

    version: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class _Opened:
    """A row as it is stored and as it is in plain text, with the credential that it holds."""

    row: CredentialRow
    plain: CredentialRow
    credential: Credential


class Fingerprints:
    """Keyed hashes of credentials: whether a row holds what it held is known without keeping its secrets."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, credential: Credential) -> bytes:
        """The same for equal credentials, and for no others."""
        texts = [getattr(credential, name).reveal() for name in SECRET_FIELDS]
        values = [*texts, dict(credential.metadata)]
        return hmac.new(self._key, json.dumps(values, sort_keys=True, default=dict).encode(), hashlib.sha256).digest()


@dataclass(frozen=True, slots=True)
class FieldReplacer:
    """Replaces fields of rows in a store."""

    store: SqlCredentialStore
    fingerprints: Fingerprints

    async def replace(
        self,
        stored_as: Account,
        expected: Collection[bytes],
        changes: Mapping[str, Secret],
        *,
        plugin: str,
        on_write: Callable[[Rewritten], Awaitable[None]],
    ) -> Rewritten | None:
        """Write the changed fields into the row if its credential has one of the `expected` fingerprints. Returns None,
        and writes nothing, if it has another one, or is gone.

        `on_write` is awaited before each write with what the row will be: a write may succeed although the database
        does not say so. Raises StoreUnavailable, and PluginFailed for values that cannot be stored.
        """
        for _ in range(_ATTEMPTS):
            opened = await self._open(stored_as)
            if opened is None or self.fingerprints.of(opened.credential) not in expected:
                return None
            row, new = opened.row, opened.credential.with_fields(changes)
            if self.fingerprints.of(new) == self.fingerprints.of(opened.credential):
                # A write that the database did not answer has come to its end after all.
                return Rewritten(row.version(self.store.hash_key), self.fingerprints.of(new))
            texts = await self._texts(opened, changes, plugin)
            version = replace(row, **texts).version(self.store.hash_key)
            rewritten = Rewritten(version, self.fingerprints.of(new))
            await on_write(rewritten)
            result = await replace_row(self.store, row, texts)
            if result is RewriteResult.REFUSED:
                raise StoreUnavailable("The credential database refused a value; a column may be too narrow for it.")
            if result is RewriteResult.CHANGED:
                keys = {key_id_of(text) for text in texts.values()} if self.store.vault.keys else {PLAIN}
                self.store.vault.audit.record_replacement(row, keys, plugin, changes)
                return rewritten
        raise StoreUnavailable("Other programs keep changing the stored credential.")

    async def _open(self, stored_as: Account) -> _Opened | None:
        """The row as it is now; None if it is gone, or cannot be opened any more."""
        try:
            row = await self.store.read_row(stored_as)
            if row is None:
                return None
            plain = await self.store.vault.open_row(row, purpose=_PURPOSE)
            return _Opened(row, plain, read_credential(plain))
        except (CredentialInvalid, CredentialUnreadable):
            return None

    async def _texts(self, opened: _Opened, changes: Mapping[str, Secret], plugin: str) -> dict[str, str]:
        """The columns to change with the texts to store in them, sealed if there are keys."""
        try:
            storable_metadata(opened.row.account, opened.credential.with_fields(changes))
        except CredentialInvalid as refusal:
            problem = refusal.message
        else:
            texts = _plain_texts(opened.credential, changes)
            if self.store.vault.keys is None:
                return texts
            return await self.store.vault.seal_columns(replace(opened.plain, **texts), list(texts))
        raise PluginFailed(f"The plugin {plugin} replaces its credential by one that cannot be stored. {problem}")


def _plain_texts(credential: Credential, changes: Mapping[str, Secret]) -> dict[str, str]:
    """The columns that the changes concern, with their texts."""
    texts = {name: value.reveal() for name, value in changes.items() if name in SECRET_FIELDS}
    if len(texts) < len(changes):
        texts["extra_metadata"] = json.dumps(dict(credential.with_fields(changes).metadata))
    return texts
