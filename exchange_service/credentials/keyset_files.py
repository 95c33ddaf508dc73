"""Creating and changing the file of a keyset, in one step and one process at a time."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from exchange_service.credentials.keysets import Keyset, KeysetInvalid, new_keyset, read_keyset_text
from exchange_service.credentials.wrapped_keysets import KeysetWrapping, open_keyset, wrapped_text


def create_keyset_file(path: Path, wrapping: KeysetWrapping | None = None) -> Keyset:
    """Write a keyset of one new key to a new file for our user alone; KeysetInvalid if the file exists already.

    With `wrapping` the manager of keys encrypts it first, and nothing is written if that fails.
    """
    keyset = new_keyset()
    text = wrapped_text(keyset, wrapping)
    try:
        with _lock_folder(path.parent):
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            try:
                _write(descriptor, text)
            except OSError:
                os.unlink(path)
                raise
    except FileExistsError:
        raise KeysetInvalid(f"{path} exists already; nothing was changed. A lost keyset cannot be recovered.") from None
    except OSError as error:
        raise KeysetInvalid(f"The keyset file {path} cannot be made ({error.strerror}).") from None
    return keyset


def change_keyset_file(
    path: Path, change: Callable[[Keyset], Keyset], wrapping: KeysetWrapping | None = None
) -> Keyset:
    """Replace the file's keyset by the result of `change`, in one step; simultaneous changes are made in turn.

    A reader sees the old or the new keyset and nothing between. A key that is taken away is kept in `retired_file`.
    With `wrapping` the file is wrapped before and after. KeysetInvalid if the file cannot be read or replaced.
    """
    return convert_keyset_file(path, change, wrapping, wrapping)


def convert_keyset_file(
    path: Path,
    change: Callable[[Keyset], Keyset],
    opened_by: KeysetWrapping | None,
    written_by: KeysetWrapping | None,
) -> Keyset:
    """As `change_keyset_file`, from one form to another: None is plain."""
    # A link's target is replaced, and not the link.
    path = path.resolve()
    try:
        with _lock_folder(path.parent):
            before = open_keyset(read_keyset_text(path)[0], opened_by)
            keyset = change(before)
            text = wrapped_text(keyset, written_by)
            owner = path.stat()
            for key_id in before.keys.keys() - keyset.keys.keys():
                retired = wrapped_text(Keyset(key_id, {key_id: before.keys[key_id]}), written_by)
                _replace(retired_file(path, key_id), retired, owner)
            _replace(path, text, owner)
    except OSError as error:
        raise KeysetInvalid(f"The keyset file {path} cannot be replaced ({error.strerror}).") from None
    return keyset


def retired_file(path: Path, key_id: str) -> Path:
    """Where a key is kept that was taken out of the keyset file: a backup or another database may still need it."""
    path = path.resolve()
    return path.with_name(f"{path.name}.retired-{key_id}")


def _replace(path: Path, text: str, owner: os.stat_result) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        _write(descriptor, text)
        # If another user rotates the service's keys, most often root, the service must still be able to read them.
        if (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(temporary, owner.st_uid, owner.st_gid)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _write(descriptor: int, text: str) -> None:
    """Write a keyset to the disk itself: values sealed with a key that a power cut loses cannot be opened again."""
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, because two rotations at once would lose one of the new keys. Then write the folder to
    the disk, because a new file's name is part of it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
