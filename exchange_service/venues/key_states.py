"""The state that all accounts with one key at a venue share, whichever users stored it."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from exchange_service.model import SECRET_FIELDS, Credential, ExchangeMetadata
from exchange_service.observability.redaction import is_secret_name
from exchange_service.plugin_kit.state import State

# A token may rotate without end; sessions that begin have one of the last.
_MOST_DIGESTS = 8


@dataclass(slots=True)
class KeyState:
    """The state of one key, and how many sessions use it. It is found by a digest of the key, and by those of what its
    plugin has made of the key by replacing a token."""

    place: tuple[str, str, str]
    digests: list[bytes] = field(repr=False)
    state: State = field(default_factory=State)
    sessions: int = 0


class KeyStates:
    """A state for each key that a session uses."""

    def __init__(self) -> None:
        # Random, so that a digest means nothing outside of this process.
        self._hash_key = secrets.token_bytes(32)
        self._states: dict[bytes, KeyState] = {}

    def __len__(self) -> int:
        return len({id(shared) for shared in self._states.values()})

    def take(self, plugin: str, metadata: ExchangeMetadata, environment: str, credential: Credential) -> KeyState:
        """The state of the credential's key, for one more session."""
        place = (plugin, metadata.venue, environment)
        digest = self._digest(place, metadata, credential)
        shared = self._states.setdefault(digest, KeyState(place, [digest]))
        shared.sessions += 1
        return shared

    def follow(self, shared: KeyState, metadata: ExchangeMetadata, credential: Credential) -> None:
        """The plugin has replaced a token of the key: a session that begins with what is stored now shares the state
        too, unless another one has begun with that already."""
        digest = self._digest(shared.place, metadata, credential)
        # A refresh may go on after its session was closed.
        if digest in self._states or not shared.sessions:
            return
        self._states[digest] = shared
        shared.digests.append(digest)
        for old in shared.digests[:-_MOST_DIGESTS]:
            del self._states[old]
        del shared.digests[:-_MOST_DIGESTS]

    def _digest(self, place: tuple[str, str, str], metadata: ExchangeMetadata, credential: Credential) -> bytes:
        text = json.dumps([place, _key_of(credential, metadata)], sort_keys=True, default=_plain)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=self._hash_key, digest_size=32).digest()

    def release(self, shared: KeyState) -> State | None:
        """One session less. The state, to be closed, if that was the last one; the next session gets another."""
        shared.sessions -= 1
        if shared.sessions:
            return None
        for digest in shared.digests:
            del self._states[digest]
        return shared.state


def _key_of(credential: Credential, metadata: ExchangeMetadata) -> object:
    """What tells the key from others: the API key with every secret, or all values if there is no secret.

    The secrets belong to it: a user who stores the API key of another, which may be seen in places, must not share what
    a plugin keeps for that key.
    """
    texts = {name: getattr(credential, name).reveal() for name in SECRET_FIELDS}
    declared = {item.name: item.secret for item in metadata.credential_fields}
    hidden = {name: value for name, value in credential.metadata.items() if declared.get(name, is_secret_name(name))}
    return [texts, hidden] if any(texts.values()) or hidden else dict(credential.metadata)


def _plain(value: object) -> object:
    """A stored value as JSON has it."""
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, list | tuple) else str(value)
