"""The system's limit on open files, which connections count towards: raised at the start, and told when it is met."""

from __future__ import annotations

import contextlib
import errno
import os
import sys

if sys.platform != "win32":
    import resource

# What the service needs besides its callers' connections: to venues, the database, Redis, plugins and files.
_RESERVED = 400
# A limit that leaves less for callers' connections than for the rest.
_FEW = 2 * _RESERVED
_IDLE, _IDLE_OF_FEW = 300.0, 10.0
# What is tried. The system may allow any number; some programs that ours start would walk through all of them.
_MOST = (1_048_576, 65_536, 10_240)
# Connections over HTTP: a page or a script has one or two, so this many serve many people.
_MOST_OVER_HTTP = 5000
_OURS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


def raise_limit() -> None:
    """Raise the soft limit to the hard one: the soft one is meant for old programs, and is often 1,024."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in _MOST:
        wanted = most if hard == resource.RLIM_INFINITY else min(hard, most)
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            return
        # macOS names no hard limit, and refuses more than the kernel's own; a sandbox may refuse all.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return


def limit() -> int | None:
    """How many files this process may have open; None without a limit."""
    if sys.platform == "win32":
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def most_connections() -> int | None:
    """How many connections of callers leave enough files for everything else; None without a limit."""
    files = limit()
    if files is None:
        return None
    left = files - _open_now()
    return max(left - _RESERVED, left // 2, 1)


def shares_of_connections(*, serves_http: bool) -> tuple[int | None, int]:
    """How many connections callers may have open over gRPC (None: any number) and over HTTP: they share the files."""
    most = most_connections()
    if not serves_http:
        return most, 0
    if most is None:
        return None, _MOST_OVER_HTTP
    over_http = max(1, min(_MOST_OVER_HTTP, most // 4))
    return max(1, most - over_http), over_http


def idle_seconds() -> float:
    """Seconds after which a caller's connection without a call is closed: fewer where there are few files."""
    files = limit()
    return _IDLE if files is None or files > _FEW else _IDLE_OF_FEW


def _open_now() -> int:
    """How many files this process has open; 0 where the system does not say so."""
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/fd")) - 1
    return 0


def none_left(error: BaseException) -> bool:
    """Whether `error` came because this machine has no file, buffer or memory left, so that no other is to blame."""
    if isinstance(error, OSError) and error.errno in _OURS:
        return True
    try:
        # The look-up of a name says only that it failed.
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as own:
        return own.errno in _OURS
    return False
