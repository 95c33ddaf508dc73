"""The keys that seal credentials: a set of them, of which the primary seals and all open.

A keyset is one JSON object, in a file for our user alone or in an environment variable:

    {"primary": "3f9a1c2e", "keys": {"3f9a1c2e": {"key": "<32 bytes as base64>", "created": "2026-11-22T10:00:00Z"}}}

What a KMS or a Vault would have to offer in its place is `KeyProvider`. `cryptography` is imported when a key is first
used, because a service without a keyset does without it.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from exchange_service.errors import CredentialUnreadable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

log = structlog.get_logger(__name__)

KEY_BYTES = 32
_NONCE_BYTES = 12
# A keyset is small; a larger file is something else.
_LARGEST_FILE = 256 * 1024
# Seconds after which a keyset's file is looked at again, so that a rotation reaches a running service.
REREAD_AFTER = 2.0
KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class KeysetInvalid(Exception):
    """A keyset cannot be used; the text is a sentence for the operator and holds no key."""


class KeyRefused(Exception):
    """A key does not open what it was given: another key, another place, or damaged. It says nothing more."""


class KeyUnknown(Exception):
    """The keyset has no key of the id that a value names."""


class KeyProvider(Protocol):
    """Keys that wrap the data key of each value; they need not be in this process, as with a KMS.

    `wrap` and `unwrap` raise CredentialUnreadable where the keys cannot be used, StoreUnavailable where they are kept
    elsewhere and cannot be reached in time.
    """

    async def problem(self) -> str:
        """Why the keys cannot be used right now, a sentence for the operator; empty when they can."""

    async def primary(self) -> str:
        """The id of the key that seals."""

    async def known(self) -> frozenset[str]:
        """The ids of all keys that open."""

    async def wrap(self, data_key: bytes, associated_data: bytes) -> tuple[str, bytes]:
        """The primary's id, and the data key as it wraps it."""

    async def unwrap(self, key_id: str, wrapped: bytes, associated_data: bytes) -> bytes:
        """The data key. KeyUnknown where there is no such key, KeyRefused where it does not open this."""


def aead(key: bytes) -> AESGCM:
    """The cipher for both levels of the envelope."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(key)


def encrypt(cipher: AESGCM, data: bytes, associated_data: bytes) -> bytes:
    """The nonce and what is sealed. A random nonce is safe for 2^32 values of one key."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + cipher.encrypt(nonce, data, associated_data)


def decrypt(cipher: AESGCM, sealed: bytes, associated_data: bytes) -> bytes:
    """What was sealed; KeyRefused where key, place or text is another one."""
    from cryptography.exceptions import InvalidTag

    # Raised behind the handler, so that the library's exception does not come along as the context.
    with suppress(InvalidTag, ValueError):
        return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], associated_data)
    raise KeyRefused


@dataclass(frozen=True, slots=True)
class Key:
    """One key, and when it was made. It does not show itself."""

    created: datetime
    material: bytes = field(repr=False)
    cipher: AESGCM = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "cipher", aead(self.material))

    def __reduce__(self) -> Any:
        raise TypeError("a Key is not pickled")


@dataclass(frozen=True, slots=True)
class Keyset:
    """Keys by id, of which `primary` seals."""

    primary: str
    keys: Mapping[str, Key]

    def wrap(self, data_key: bytes, associated_data: bytes) -> tuple[str, bytes]:
        """The primary's id, and the data key as it wraps it."""
        return self.primary, encrypt(self.keys[self.primary].cipher, data_key, associated_data)

    def unwrap(self, key_id: str, wrapped: bytes, associated_data: bytes) -> bytes:
        """The data key; KeyUnknown for a key that is not here, KeyRefused where it does not open this."""
        key = self.keys.get(key_id)
        if key is None:
            raise KeyUnknown
        return decrypt(key.cipher, wrapped, associated_data)

    def with_new_key(self, *, primary: bool) -> Keyset:
        """The same with one key more, which seals from now on if it is to be the `primary`."""
        key_id = _new_id(self.keys)
        return Keyset(key_id if primary else self.primary, {**self.keys, key_id: _new_key()})

    def with_primary(self, key_id: str) -> Keyset:
        """The same with another primary."""
        if key_id not in self.keys:
            raise KeysetInvalid(f"The keyset has no key {key_id}.")
        return Keyset(key_id, self.keys)

    def without(self, key_id: str) -> Keyset:
        """The same with one key less."""
        if key_id not in self.keys:
            raise KeysetInvalid(f"The keyset has no key {key_id}.")
        if key_id == self.primary:
            raise KeysetInvalid(f"The key {key_id} is the primary, which seals; rotate first.")
        return Keyset(self.primary, {name: key for name, key in self.keys.items() if name != key_id})

    def as_text(self) -> str:
        """The JSON object; it is as secret as the keys in it."""
        keys = {
            key_id: {"key": base64.b64encode(key.material).decode(), "created": f"{key.created:%Y-%m-%dT%H:%M:%SZ}"}
            for key_id, key in self.keys.items()
        }
        return json.dumps({"primary": self.primary, "keys": keys}, indent=2) + "\n"


def new_keyset() -> Keyset:
    """A keyset of one new key."""
    key_id = _new_id({})
    return Keyset(key_id, {key_id: _new_key()})


def _new_id(taken: Mapping[str, Key]) -> str:
    while (key_id := secrets.token_hex(4)) in taken:
        pass
    return key_id


def _new_key() -> Key:
    return Key(datetime.now(UTC).replace(microsecond=0), secrets.token_bytes(KEY_BYTES))


def parse_keyset(text: str) -> Keyset:
    """The keyset of a JSON object; KeysetInvalid says what is wrong with it and repeats none of it."""
    problem = "it is no JSON object"
    with suppress(ValueError, RecursionError):
        value = json.loads(text)
        if isinstance(value, dict):
            found = _keyset_in(value)
            if isinstance(found, Keyset):
                return found
            problem = found
    raise KeysetInvalid(f"The keyset cannot be used: {problem}.")


def _keyset_in(value: dict[str, Any]) -> Keyset | str:
    """The keyset, or what is wrong with it."""
    primary, entries = value.get("primary"), value.get("keys")
    if not isinstance(entries, dict) or not isinstance(primary, str) or value.keys() != {"primary", "keys"}:
        return "it should have primary and keys, and no more"
    keys: dict[str, Key] = {}
    for key_id, entry in entries.items():
        key = _key_in(entry)
        if key is None or not KEY_ID.fullmatch(key_id):
            return "an entry of keys is no key of 32 bytes in base64 with the time of its creation"
        keys[key_id] = key
    return Keyset(primary, keys) if primary in keys else "its primary is none of its keys"


def _key_in(entry: Any) -> Key | None:
    if not isinstance(entry, dict) or entry.keys() != {"key", "created"}:
        return None
    with suppress(ValueError, TypeError):
        material = base64.b64decode(entry["key"], validate=True)
        created = datetime.fromisoformat(entry["created"])
        if len(material) == KEY_BYTES and created.tzinfo is not None:
            return Key(created.astimezone(UTC), material)
    return None


def read_keyset(path: str | Path) -> Keyset:
    """The keyset of a file; KeysetInvalid where it cannot be read, or can be by others too."""
    return _read(Path(path))[0]


# What tells that a file is not the one that was read: its time, size and place on the disk.
_Mark = tuple[int, int, int]


def _mark(status: os.stat_result) -> _Mark:
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _read(path: Path) -> tuple[Keyset, _Mark]:
    try:
        # The file that is looked at is the one that is read, whatever happens to its name meanwhile.
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            data = file.read(_LARGEST_FILE) if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        raise KeysetInvalid(f"The keyset file {path} cannot be read ({error.strerror}).") from None
    if status.st_mode & 0o077:
        raise KeysetInvalid(f"Other users of this machine have rights on the keyset file: chmod 600 {path}")
    return parse_keyset(data.decode("utf-8", "replace")), _mark(status)


def create_keyset_file(path: Path) -> Keyset:
    """Make a keyset of one new key in a new file for our user alone; KeysetInvalid where there is a file already."""
    keyset = new_keyset()
    try:
        with _alone_in(path.parent):
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            try:
                _write_out(descriptor, keyset)
            except OSError:
                os.unlink(path)
                raise
    except FileExistsError:
        raise KeysetInvalid(f"{path} exists already; nothing was changed. A lost keyset cannot be had back.") from None
    except OSError as error:
        raise KeysetInvalid(f"The keyset file {path} cannot be made ({error.strerror}).") from None
    return keyset


def change_keyset_file(path: Path, change: Callable[[Keyset], Keyset]) -> Keyset:
    """Replace the file's keyset by what `change` makes of it, in one step; of several at once, one after the other.

    A reader sees the old or the new keyset and nothing between. A key that is taken away is kept in `retired_file`.
    KeysetInvalid where it cannot be done.
    """
    # A link's target is replaced, and not the link.
    path = path.resolve()
    try:
        with _alone_in(path.parent):
            before = read_keyset(path)
            keyset = change(before)
            owner = path.stat()
            for key_id in before.keys.keys() - keyset.keys.keys():
                _replace(retired_file(path, key_id), Keyset(key_id, {key_id: before.keys[key_id]}), owner)
            _replace(path, keyset, owner)
    except OSError as error:
        raise KeysetInvalid(f"The keyset file {path} cannot be replaced ({error.strerror}).") from None
    return keyset


def retired_file(path: Path, key_id: str) -> Path:
    """Where a key is kept that was taken out of the keyset file: a backup or another database may need it still."""
    path = path.resolve()
    return path.with_name(f"{path.name}.retired-{key_id}")


def _replace(path: Path, keyset: Keyset, owner: os.stat_result) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        _write_out(descriptor, keyset)
        # Another user, most often root, may rotate the service's keys; the service is to read them all the same.
        if (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(temporary, owner.st_uid, owner.st_gid)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _write_out(descriptor: int, keyset: Keyset) -> None:
    """Write it to the disk itself: a key that has sealed something and is lost by a power cut is lost for good."""
    with os.fdopen(descriptor, "w") as file:
        file.write(keyset.as_text())
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, because two rotations at once would lose one of the new keys, and write the folder to the
    disk: a new file's name is part of it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Keys:
    """The part of a KeyProvider that all have whose keys are in this process."""

    def _current(self, *, wanted: str = "") -> Keyset:
        """The keyset as it is now, with the key `wanted` if it can be had; KeysetInvalid where there is none."""
        raise NotImplementedError

    async def problem(self) -> str:
        """Why the keys cannot be used right now, a sentence for the operator; empty when they can."""
        try:
            self._current()
        except KeysetInvalid as invalid:
            return str(invalid)
        return ""

    async def primary(self) -> str:
        """The id of the key that seals."""
        return self._usable().primary

    async def known(self) -> frozenset[str]:
        """The ids of all keys that open."""
        return frozenset(self._usable().keys)

    async def wrap(self, data_key: bytes, associated_data: bytes) -> tuple[str, bytes]:
        """The primary's id, and the data key as it wraps it."""
        return self._usable().wrap(data_key, associated_data)

    async def unwrap(self, key_id: str, wrapped: bytes, associated_data: bytes) -> bytes:
        """The data key; see KeyProvider."""
        return self._usable(wanted=key_id).unwrap(key_id, wrapped, associated_data)

    def _usable(self, *, wanted: str = "") -> Keyset:
        try:
            return self._current(wanted=wanted)
        except KeysetInvalid:
            # The operator's sentence names a path, which is in the log; callers need not know it.
            problem = CredentialUnreadable("The service's keyset cannot be used; its log and `doctor` say why.")
        raise problem


class GivenKeys(_Keys):
    """A keyset that was given as a text, by the environment: it stays the same until the next start."""

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


class FileKeys(_Keys):
    """The keyset of a file, read again when it changes.

    A file that cannot be used any more leaves the last good keyset in use, and a line in the log.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self._clock = clock
        self._keyset: Keyset | None = None
        self._read_as: _Mark | None = None
        self._problem = ""
        self._look_after = 0.0

    def __repr__(self) -> str:
        return f"FileKeys({self.path}, {sorted(self._keyset.keys) if self._keyset else self._problem})"

    async def problem(self) -> str:
        """Also where the last good keyset is still in use."""
        self._look()
        return self._problem

    def _current(self, *, wanted: str = "") -> Keyset:
        unknown = self._keyset is None or (wanted and wanted not in self._keyset.keys)
        if unknown or self._clock() >= self._look_after:
            self._look()
        if self._keyset is None:
            raise KeysetInvalid(self._problem)
        return self._keyset

    def _look(self) -> None:
        """Read the file if it is not the one that was read."""
        self._look_after = self._clock() + REREAD_AFTER
        with suppress(OSError):
            if self._read_as is not None and _mark(self.path.stat()) == self._read_as and not self._problem:
                return
        try:
            self._keyset, self._read_as = _read(self.path)
        except KeysetInvalid as invalid:
            if str(invalid) != self._problem:
                log.error("keyset.unusable", problem=str(invalid), last_good_in_use=self._keyset is not None)
            self._problem = str(invalid)
            return
        self._problem = ""
        log.info("keyset.read", primary=self._keyset.primary, keys=sorted(self._keyset.keys))
