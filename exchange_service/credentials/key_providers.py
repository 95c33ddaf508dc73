"""Where the keys that seal credentials come from. A KMS or a Vault would be another `KeyProvider`."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import structlog

from exchange_service.credentials.keysets import (
    FileVersion,
    Keyset,
    KeysetInvalid,
    file_version,
    parse_keyset,
    read_keyset_version,
)
from exchange_service.errors import CredentialUnreadable

log = structlog.get_logger(__name__)

# Seconds after which a keyset's file is checked again, so that a rotation reaches a running service.
REREAD_AFTER = 2.0


class KeyProvider(Protocol):
    """Keys that wrap the data key of each value; as with a KMS, they need not be in this process.

    `wrap` and `unwrap` raise CredentialUnreadable if the keys cannot be used, and StoreUnavailable if the keys are
    kept elsewhere and cannot be reached in time.
    """

    async def problem(self) -> str:
        """Why the keys cannot be used right now, a sentence for the operator; empty if they can."""

    async def primary(self) -> str:
        """The id of the key that seals."""

    async def known(self) -> frozenset[str]:
        """The ids of all keys that open."""

    async def wrap(self, data_key: bytes, associated_data: bytes) -> tuple[str, bytes]:
        """The primary key's id, and the data key encrypted with it."""

    async def unwrap(self, key_id: str, wrapped: bytes, associated_data: bytes) -> bytes:
        """The data key; KeyUnknown if there is no such key, KeyRefused if the key does not open it."""


class _KeysetProvider:
    """A KeyProvider whose keyset is in this process."""

    def _current(self, *, wanted: str = "") -> Keyset:
        """The keyset as it is now, with the key `wanted` if possible; KeysetInvalid if there is no usable keyset."""
        raise NotImplementedError

    async def problem(self) -> str:
        """Why the keys cannot be used right now, a sentence for the operator; empty if they can."""
        try:
            self._current()
        except KeysetInvalid as invalid:
            return str(invalid)
        return ""

    async def primary(self) -> str:
        """The id of the key that seals."""
        return self._require().primary

    async def known(self) -> frozenset[str]:
        """The ids of all keys that open."""
        return frozenset(self._require().keys)

    async def wrap(self, data_key: bytes, associated_data: bytes) -> tuple[str, bytes]:
        """The primary key's id, and the data key encrypted with it."""
        return self._require().wrap(data_key, associated_data)

    async def unwrap(self, key_id: str, wrapped: bytes, associated_data: bytes) -> bytes:
        """The data key; see KeyProvider."""
        return self._require(wanted=key_id).unwrap(key_id, wrapped, associated_data)

    def _require(self, *, wanted: str = "") -> Keyset:
        try:
            return self._current(wanted=wanted)
        except KeysetInvalid:
            # The operator's sentence names a path, which is in the log; callers need not know it.
            problem = CredentialUnreadable(
                "The service's keyset cannot be used.",
                advice="Run `exchange-service doctor`, or look in the service's log.",
            )
        raise problem


class GivenKeys(_KeysetProvider):
    """A keyset given as JSON text, by the environment: it stays the same until the next start."""

    def __init__(self, text: str) -> None:
        self._keyset: Keyset | None = None
        self._problem = ""
        try:
            self._keyset = parse_keyset(text)
        except KeysetInvalid as invalid:
            self._problem = str(invalid)

    def __repr__(self) -> str:
        return f"GivenKeys({sorted(self._keyset.keys) if self._keyset else self._problem})"

    def _current(self, *, wanted: str = "") -> Keyset:
        if self._keyset is None:
            raise KeysetInvalid(self._problem)
        return self._keyset


class FileKeys(_KeysetProvider):
    """The keyset in a file, read again when the file changes.

    If the file becomes unusable, the last good keyset stays in use and the log says so.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._keyset: Keyset | None = None
        self._version: FileVersion | None = None
        self._problem = ""
        self._check_after = 0.0

    def __repr__(self) -> str:
        return f"FileKeys({self.path}, {sorted(self._keyset.keys) if self._keyset else self._problem})"

    async def problem(self) -> str:
        """As the protocol says; not empty either while the last good keyset replaces an unusable file."""
        self.reread()
        return self._problem

    def _current(self, *, wanted: str = "") -> Keyset:
        unknown = self._keyset is None or (wanted and wanted not in self._keyset.keys)
        if unknown or self._clock() >= self._check_after:
            self.reread()
        if self._keyset is None:
            raise KeysetInvalid(self._problem)
        return self._keyset

    def reread(self) -> None:
        """Read the file now if it has changed since it was last read."""
        self._check_after = self._clock() + REREAD_AFTER
        with suppress(OSError):
            if self._version is not None and file_version(self.path.stat()) == self._version and not self._problem:
                return
        try:
            self._keyset, self._version = read_keyset_version(self.path)
        except KeysetInvalid as invalid:
            if str(invalid) != self._problem:
                log.error("keyset.unusable", problem=str(invalid), last_good_in_use=self._keyset is not None)
            self._problem = str(invalid)
            return
        self._problem = ""
        log.info("keyset.read", primary=self._keyset.primary, keys=sorted(self._keyset.keys))
