"""Processes that fork after gRPC was used: where it does not work in the child, calls there say so and do not hang."""

from __future__ import annotations

import os
import weakref
from typing import Any

# The connections of async clients that are open; a closed client's are gone.
_open_async: weakref.WeakSet[Any] = weakref.WeakSet()
# In a child: the parent's connections. The threads that would close them exist in the parent only.
_parents: list[Any] = []
_used = {"sync": False}
# The kinds of clients that do not work in this process.
_broken: set[str] = set()

_ADVICE = {
    "async": "This process was forked while an AsyncClient was open, and gRPC cannot serve asyncio in it: close the "
    "client before the fork or make its first call after it, use Client in the child, or the start method spawn.",
    "sync": "This process was forked after a Client had made calls, with GRPC_ENABLE_FORK_SUPPORT=0: set the variable "
    "to 1 before the program starts, or make the first call after the fork.",
}


def note_async(connections: object) -> None:
    """Remember that connections of an async client were opened."""
    _open_async.add(connections)


def note_sync(_: object) -> None:
    """Remember that connections of a client without asyncio were opened."""
    _used["sync"] = True


def require_async() -> None:
    """Raise RuntimeError if an async client does not work in this process."""
    _require("async")


def require_sync() -> None:
    """Raise RuntimeError if a client without asyncio does not work in this process."""
    _require("sync")


def _require(kind: str) -> None:
    if kind in _broken:
        raise RuntimeError(_ADVICE[kind])


def _after_in_child() -> None:
    if _open_async:
        _parents.extend(_open_async)
        _open_async.clear()
        _broken.add("async")
    if _used["sync"] and not _grpc_heeds_forks():
        _broken.add("sync")


def _grpc_heeds_forks() -> bool:
    """Whether gRPC prepares for forks: unless its variable says no."""
    return os.environ.get("GRPC_ENABLE_FORK_SUPPORT", "1").strip().lower() not in ("0", "false", "no", "off")


# Where there is no fork there is no such function.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_in_child)
