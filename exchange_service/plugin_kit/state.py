"""State that a plugin keeps between calls, with a lifetime that the host manages."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

# Seconds that the values of one state have to be closed.
_CLOSE_LIMIT = 2.0


@dataclass(frozen=True, slots=True)
class _Made:
    """A value that does not show itself: a task's `repr`, which asyncio logs, shows its result."""

    value: Any = field(repr=False)


@dataclass(slots=True)
class _Entry:
    task: asyncio.Task[_Made]
    close: Callable[[Any], Awaitable[None]] | None
    expires: float | None = None


class State:
    """Named values, each made once: markets, a token, a clock offset, a client with open sockets.

    The host closes it, and so every value that was given a `close`, when the account is idle, its credential
    changes, or the service ends.
    """

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        # Forgotten values that are being closed; held here, because the event loop holds tasks only weakly.
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    async def get(
        self,
        name: str,
        make: Callable[[], Awaitable[T]],
        *,
        max_age: float | None = None,
        close: Callable[[T], Awaitable[None]] | None = None,
    ) -> T:
        """The value called `name`, made by `make` when there is none or it is older than `max_age` seconds.

        Callers at the same time share one making. A caller that is cancelled, or whose deadline passes, does not
        stop it for the others; what it makes is there for the next call. A failure is raised to all who wait and
        not kept.
        """
        if self._closed:
            raise RuntimeError("this state is closed")
        loop = asyncio.get_running_loop()
        entry = self._entries.get(name)
        if entry is not None and entry.expires is not None and loop.time() >= entry.expires:
            self.forget(name)
            entry = None
        if entry is None:
            entry = _Entry(loop.create_task(_run(make), name=f"state {name}"), close)
            self._entries[name] = entry
            entry.task.add_done_callback(lambda task: self._made(name, entry, max_age))
        try:
            value: T = (await asyncio.shield(entry.task)).value
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if entry.task.cancelled() and caller is not None and not caller.cancelling():
                # The state was closed meanwhile. The caller was not cancelled, and must not seem so.
                raise RuntimeError("this state is closed") from None
            raise
        return value

    def _made(self, name: str, entry: _Entry, max_age: float | None) -> None:
        if entry.task.cancelled() or entry.task.exception() is not None:
            if self._entries.get(name) is entry:
                del self._entries[name]
        elif max_age is not None:
            entry.expires = asyncio.get_running_loop().time() + max_age

    def forget(self, name: str) -> None:
        """Drop the value called `name`, for example a token that the venue refused; the next `get` makes another.

        One that is just being made is the other already, and stays: others wait for it.
        """
        entry = self._entries.get(name)
        if entry is None or not entry.task.done():
            return
        del self._entries[name]
        if entry.close is not None:
            task = asyncio.get_running_loop().create_task(_close(entry), name=f"state {name} closing")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close every value; called by the host."""
        self._closed = True
        entries, self._entries = list(self._entries.values()), {}
        loop = asyncio.get_running_loop()
        closing = {*self._closing, *(loop.create_task(_close(entry), name="state closing") for entry in entries)}
        if not closing:
            return
        # A value whose closing hangs is left behind: it must keep neither the service nor the others.
        _, hanging = await asyncio.wait(closing, timeout=_CLOSE_LIMIT)
        for task in hanging:
            task.cancel()


async def _run(make: Callable[[], Awaitable[Any]]) -> _Made:
    try:
        return _Made(await make())
    except SystemExit:
        # Out of a task it would end the event loop, and with it the service.
        raise RuntimeError("the making of a value wanted to exit") from None


async def _close(entry: _Entry) -> None:
    if not entry.task.done():
        entry.task.cancel()
    await asyncio.wait({entry.task})
    if entry.close is None or entry.task.cancelled() or entry.task.exception() is not None:
        return
    # A value that cannot be closed is as good as closed; an exit out of a task would end the service.
    with contextlib.suppress(Exception, SystemExit):
        await entry.close(entry.task.result().value)
