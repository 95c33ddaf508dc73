"""Where the keys that seal credentials come from: a file, the environment, or either of them wrapped by a manager."""

from __future__ import annotations

import asyncio
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
    read_keyset_text,
    read_keyset_version,
)
from exchange_service.credentials.wrapped_keysets import KeysetAway, KeysetWrapping, open_keyset
from exchange_service.errors import CredentialUnreadable, StoreUnavailable

log = structlog.get_logger(__name__)

# Seconds after which a keyset's file is checked again, so that a rotation reaches a running service.
REREAD_AFTER = 2.0
# Seconds that a call waits for the manager of a wrapped keyset, and between two attempts after one that failed.
_PATIENCE = 5.0
_FIRST_PAUSE, _LONGEST_PAUSE = 5.0, 60.0


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
            problem = _unusable()
        raise problem


def _unusable() -> CredentialUnreadable:
    # The operator's sentence names a path, which is in the log; callers need not know it.
    return CredentialUnreadable(
        "The service's keyset cannot be used.",
        advice="Run `exchange-service doctor`, or look in the service's log.",
    )


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


class WrappedKeys:
    """A KeyProvider whose keyset a manager of keys has wrapped. The keys are kept in this process once it is opened.

    `source` is the keyset's file, or its text. The manager is asked when the keyset is first needed and when the file
    has changed, in a thread. While it does not answer, or if it refuses, the last keyset stays in use and the log says
    so; it is asked again after a pause.
    """

    def __init__(
        self, source: Path | str, wrapping: KeysetWrapping, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._source = source
        self._wrapping = wrapping
        self._clock = clock
        self._keyset: Keyset | None = None
        # The content of the file that was tried last.
        self._tried: FileVersion | None = None
        self._problem = ""
        self._away = False
        self._check_after = 0.0
        self._pause = 0.0
        self._reading: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        source = self._source if isinstance(self._source, Path) else "a given keyset"
        keys = sorted(self._keyset.keys) if self._keyset else self._problem
        return f"WrappedKeys({source}, {self._wrapping}, {keys})"

    async def problem(self) -> str:
        """As the protocol says; not empty either while the last good keyset replaces one that does not open."""
        await self._refresh()
        return self._problem

    async def primary(self) -> str:
        """The id of the key that seals."""
        return (await self._current()).primary

    async def known(self) -> frozenset[str]:
        """The ids of all keys that open."""
        return frozenset((await self._current()).keys)

    async def wrap(self, data_key: bytes, associated_data: bytes) -> tuple[str, bytes]:
        """The primary key's id, and the data key encrypted with it."""
        return (await self._current()).wrap(data_key, associated_data)

    async def unwrap(self, key_id: str, wrapped: bytes, associated_data: bytes) -> bytes:
        """The data key; see KeyProvider."""
        return (await self._current(wanted=key_id)).unwrap(key_id, wrapped, associated_data)

    async def _current(self, *, wanted: str = "") -> Keyset:
        """The keyset as it is now, with the key `wanted` if possible. Nobody waits for a newer one that has it not."""
        if self._keyset is None or (wanted and wanted not in self._keyset.keys):
            await self._refresh()
        elif self._clock() >= self._check_after:
            self._begin()
        if self._keyset is not None:
            return self._keyset
        if self._away:
            raise StoreUnavailable("The manager of the keys that seal credentials does not answer.")
        raise _unusable()

    async def _refresh(self) -> None:
        """Wait, for some seconds, until a keyset that is due is read."""
        self._begin()
        if self._reading is not None and not self._reading.done():
            # Not cancelled: it goes on for the next caller.
            await asyncio.wait([self._reading], timeout=_PATIENCE)

    def _begin(self) -> None:
        """Begin to read the keyset, if it is due and nobody reads it already."""
        if (self._reading is None or self._reading.done()) and self._is_due():
            self._reading = asyncio.get_running_loop().create_task(self._read(), name="opening the wrapped keyset")

    def _is_due(self) -> bool:
        if self._problem:
            return self._clock() >= self._check_after or self._version() != self._tried
        self._check_after = self._clock() + REREAD_AFTER
        return self._keyset is None or self._version() != self._tried

    def _version(self) -> FileVersion | None:
        with suppress(OSError):
            return file_version(self._source.stat()) if isinstance(self._source, Path) else None
        return self._tried

    async def _read(self) -> None:
        # Also of a file that cannot be read: else it would be tried with each call.
        self._tried = self._version()
        try:
            text, self._tried = await asyncio.to_thread(self._text)
            keyset = await asyncio.to_thread(open_keyset, text, self._wrapping)
        except KeysetInvalid as invalid:
            self._away = isinstance(invalid, KeysetAway)
            self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)
            self._check_after = self._clock() + self._pause
            if str(invalid) != self._problem:
                log.error("keyset.unusable", problem=str(invalid), last_good_in_use=self._keyset is not None)
            self._problem = str(invalid)
            return
        self._keyset, self._problem, self._away, self._pause = keyset, "", False, 0.0
        self._check_after = self._clock() + REREAD_AFTER
        log.info("keyset.read", primary=keyset.primary, keys=sorted(keyset.keys))

    def _text(self) -> tuple[str, FileVersion | None]:
        return read_keyset_text(self._source) if isinstance(self._source, Path) else (self._source, None)
