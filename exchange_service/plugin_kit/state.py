"""State that a plugin keeps between calls, with a lifetime that the host manages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from exchange_service.plugin_kit.tasks import without_exit
from exchange_service.tasks import TaskSet

T = TypeVar("T")

# Seconds within which all values of one state must be closed.
_CLOSE_TIMEOUT = 2.0


@dataclass(frozen=True, slots=True)
class _Hidden:
    """A value that `repr` does not show: asyncio logs the `repr` of a task, which shows the task's result."""

    value: Any = field(repr=False)


@dataclass(slots=True)
class _Entry:
    task: asyncio.Task[_Hidden]
    close: Callable[[Any], Awaitable[None]] | None
    expires: float | None = None


class State:
    """Named values that are made once and shared: markets, a token, a clock offset, a client with open sockets.

    The host closes the state when the account is idle, when its credential changes and when the service ends. That
    closes every value that has a `close`.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        # They close forgotten values.
        self._closing = TaskSet()
        self._closed = False

    async def get(
        self,
        name: str,
        make: Callable[[], Awaitable[T]],
        *,
        max_age: float | None = None,
        close: Callable[[T], Awaitable[None]] | None = None,
    ) -> T:
        """The value called `name`. `make` is awaited if there is no value, or if it is older than `max_age` seconds.

        Concurrent calls await `make` once. A call that is cancelled, or whose deadline passes, does not stop it; the
        next call gets the value. `close(value)` is awaited when the value is dropped. Raises what `make` raises, to
        every waiting call, and keeps nothing then. Raises RuntimeError if the state is closed.
        """
        if self._closed:
            raise RuntimeError("this state is closed")
        loop = asyncio.get_running_loop()
        entry = self._entries.get(name)
        if entry is not None and entry.expires is not None and loop.time() >= entry.expires:
            self.forget(name)
            entry = None
        if entry is None:
            entry = _Entry(loop.create_task(_make_hidden(make), name=f"state {name}"), close)
            self._entries[name] = entry
            entry.task.add_done_callback(lambda task: self._on_made(name, entry, max_age))
        try:
            value: T = (await asyncio.shield(entry.task)).value
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if entry.task.cancelled() and caller is not None and not caller.cancelling():
                # The state was closed during the wait. The caller itself was not cancelled.
                raise RuntimeError("this state is closed") from None
            raise
        return value

    def _on_made(self, name: str, entry: _Entry, max_age: float | None) -> None:
        if entry.task.cancelled() or entry.task.exception() is not None:
            if self._entries.get(name) is entry:
                del self._entries[name]
        elif max_age is not None:
            entry.expires = asyncio.get_running_loop().time() + max_age

    def forget(self, name: str) -> None:
        """Drop the value called `name`, for example a token that the venue refused; the next `get` makes another.

        A value that is still being made stays: other calls wait for it, and it is newer than the one to drop.
        """
        entry = self._entries.get(name)
        if entry is None or not entry.task.done():
            return
        del self._entries[name]
        if entry.close is not None:
            self._closing.start(_close(entry), name=f"state {name} closing")

    async def close(self, patience: float = 0.0) -> None:
        """Close every value. The host calls it; plugins do not. Values that are being made have `patience` seconds, two
        at most, before they are given up."""
        self._closed = True
        entries, self._entries = list(self._entries.values()), {}
        for entry in entries:
            self._closing.start(_close(entry, patience), name="state closing")
        # A value that does not close in time is abandoned: the service and the other values must not wait for it.
        if not await self._closing.wait(_CLOSE_TIMEOUT):
            self._closing.cancel()


async def _make_hidden(make: Callable[[], Awaitable[Any]]) -> _Hidden:
    return _Hidden(await without_exit(make, "making a value"))


async def _close(entry: _Entry, patience: float = 0.0) -> None:
    if not entry.task.done() and patience > 0:
        await asyncio.wait({entry.task}, timeout=patience)
    if not entry.task.done():
        entry.task.cancel()
    await asyncio.wait({entry.task})
    if entry.close is None or entry.task.cancelled() or entry.task.exception() is not None:
        return
    # A value that cannot be closed is dropped. A SystemExit that leaves a task would end the service.
    with contextlib.suppress(Exception, SystemExit):
        await entry.close(entry.task.result().value)
