"""The process's memory, measured against the limits that it has: work is refused before the system ends the process.

gRPC's library aborts the process when it gets no memory, and the kernel kills what exceeds a container's limit.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import structlog

if sys.platform != "win32":
    import resource

log = structlog.get_logger(__name__)

MEBIBYTE = 1024 * 1024
_PROC = Path("/proc/self")
_CGROUPS = Path("/sys/fs/cgroup")
_PAGE = mmap.PAGESIZE
# Kept free: this share of the limit, between these bounds in bytes. What has begun still grows by it.
_SHARE, _LEAST, _MOST = 0.15, 32 * MEBIBYTE, 512 * MEBIBYTE
# Bytes that must be left before streams are taken again.
_ENOUGH = 8 * MEBIBYTE
# Seconds between two measurements.
_EVERY = 0.2
# A cgroup without a limit has a number beyond all memory.
_ENDLESS = 1 << 60

# How many bytes are used now, of how many.
Measure = Callable[[], tuple[int, int]]


class MemoryLimit:
    """Whether there is room for more streams. `setting` is the operator's limit for this process, in MiB."""

    def __init__(self, setting: int | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._measures = list(_measures(setting))
        self._clock = clock
        self._next = 0.0
        self._left: int | None = None
        self._short = False

    def left(self) -> int | None:
        """How many bytes are left for further work, below zero if it uses what should be kept free; None without a
        limit. Of several limits the one counts that leaves least."""
        now = self._clock()
        if self._measures and now >= self._next:
            self._next = now + _EVERY
            self._left = min(_left(*measure()) for measure in self._measures)
        return self._left

    def has_room(self) -> bool:
        """Whether further streams may be opened. The log says when that changes."""
        left = self.left()
        if left is None:
            return True
        if self._short and left > _ENOUGH:
            self._short = False
            log.info("memory.enough", left_mib=left // MEBIBYTE)
        elif not self._short and left <= 0:
            self._short = True
            log.warning("memory.short", effect="new streams are refused")
        return not self._short


def _left(used: int, limit: int) -> int:
    return limit - used - int(min(max(limit * _SHARE, _LEAST), _MOST))


def _measures(setting: int | None) -> Iterator[Measure]:
    """One for each limit that is set. None where the system does not say how much memory the process has."""
    if not (_PROC / "statm").exists():
        return
    if setting is not None:
        yield lambda: (_statm()[1], setting * MEBIBYTE)
    for kind, column in ((resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            # What has been freed within the process is used again before it asks for more.
            yield lambda column=column, limit=limit: (_statm()[column] - _free_within(), limit)  # type: ignore[misc]
    yield from _measures_of_cgroup()


def _statm() -> list[int]:
    """The process's sizes in bytes: all, resident, shared, text, nothing, data."""
    return [int(pages) * _PAGE for pages in (_PROC / "statm").read_bytes().split()]


class _Mallinfo(ctypes.Structure):
    """What mallinfo2 returns."""

    _fields_ = (*((f"other{number}", ctypes.c_size_t) for number in range(8)), ("free", ctypes.c_size_t))
    _fields_ += (("releasable", ctypes.c_size_t),)


def _free_within() -> int:
    """Bytes that the C library has from the system and nobody uses; 0 if it does not say so."""
    with suppress(OSError, AttributeError):
        tell = ctypes.CDLL(None).mallinfo2
        tell.restype = _Mallinfo
        return int(tell().free)
    return 0


def _measures_of_cgroup() -> Iterator[Measure]:
    """The limit of the container, if there is one, in either version of cgroups. It counts plugins' processes too."""
    for line in _lines(_PROC / "cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            root, names = _CGROUPS, ("memory.max", "memory.current", "inactive_file ")
        elif "memory" in controllers.split(","):
            root, names = (
                _CGROUPS / "memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
            )
        else:
            continue
        # Within a container its own group is often mounted as the root.
        for folder in (root / path.lstrip("/"), root):
            limit = _number(folder / names[0])
            if limit is not None and limit < _ENDLESS:
                yield lambda folder=folder, names=names, limit=limit: (_used(folder, *names[1:]), limit)  # type: ignore[misc]
                break


def _used(folder: Path, current: str, reclaimable: str) -> int:
    """What the group uses, without the pages of files that the kernel drops when it needs them."""
    files = [line for line in _lines(folder / "memory.stat") if line.startswith(reclaimable)]
    return (_number(folder / current) or 0) - sum(int(line.split()[1]) for line in files)


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
