"""The store and the keys that the settings name."""

from __future__ import annotations

import secrets

from exchange_service.credentials.configured_keyset import configured_wrapping
from exchange_service.credentials.key_providers import FileKeys, GivenKeys, KeyProvider, WrappedKeys
from exchange_service.credentials.sql import SqlCredentialStore, open_store
from exchange_service.settings import Settings


def configured_keys(settings: Settings) -> KeyProvider | None:
    """The keys that the settings name, or None. A keyset that cannot be used says so by its `problem`."""
    wrapping = configured_wrapping(settings)
    if settings.keyset_file is not None:
        return WrappedKeys(settings.keyset_file, wrapping) if wrapping else FileKeys(settings.keyset_file)
    if settings.keyset is not None:
        text = settings.keyset.get_secret_value()
        return WrappedKeys(text, wrapping) if wrapping else GivenKeys(text)
    return None


def configured_hash_key(settings: Settings) -> bytes:
    """The settings' key for hashes, or a random one for this process. A key that others know would tell them which user
    a hash stands for."""
    return settings.hash_key.get_secret_value().encode() if settings.hash_key else secrets.token_bytes(32)


async def open_configured_store(settings: Settings, hash_key: bytes | None = None) -> SqlCredentialStore:
    """The store that the settings name, as `open_store` opens it; `hash_key` defaults to that of the settings."""
    keys = configured_keys(settings)
    hash_key = hash_key or configured_hash_key(settings)
    return await open_store(settings.database_url, hash_key, keys=keys, allow_plaintext=settings.allow_plaintext)
