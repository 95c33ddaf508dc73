"""Keeps a process that holds secrets from other processes of its own user."""

from __future__ import annotations

import contextlib
import ctypes
import sys

_SET_DUMPABLE = 4


def hide_process() -> None:
    """From now on nobody but root reads this process's memory, environment or open files, or attaches a debugger.

    Nor is a core file written. On systems other than Linux only the last holds, and nothing on Windows.
    """
    if sys.platform == "win32":
        return
    # Late: Windows, on which the commands for clients work, has no such module.
    import resource

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0)
