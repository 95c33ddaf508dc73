"""A folder for a Unix socket that no other user reaches."""

from __future__ import annotations

import tempfile
from pathlib import Path

# Characters that a Unix socket's path may have on every system.
_LONGEST_PATH = 100


def make_socket_folder(prefix: str, socket: str) -> Path:
    """A new folder that only this user may enter, in which the path of a socket of this name is not too long: in /tmp
    where it would be in the folder for temporary files. Raises OSError if it cannot be made."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    if len(str(folder / socket)) <= _LONGEST_PATH:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp"))
