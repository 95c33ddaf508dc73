"""Single flight: of callers at the same time for one account, one fetch serves all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Generic, TypeVar

import structlog

from exchange_service.credentials.references import late_store
from exchange_service.deadlines import ANSWER_MARGIN
from exchange_service.errors import DeadlinePassed, ServiceError, ShuttingDown, VenueTimeout
from exchange_service.observability.tracing import (
    CANCELLED,
    ActiveSpan,
    child_span,
    context_with,
    current_span,
    reason_of,
)
from exchange_service.tasks import without_origin
from exchange_service.venues.fetching import Fetcher, Target
from exchange_service.venues.priority import Priority

T = TypeVar("T")

# With less than this left there is no use in asking a venue.
LEAST_TIME = 0.02

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Call(Generic[T]):
    """A fetch in progress, and how many wait for it."""

    task: asyncio.Task[T]
    target: Target
    priority: Priority
    waiting: int = 0
    # None if the caller that began it is not traced.
    span: ActiveSpan | None = None


class SingleFlight(Generic[T]):
    """Joins fetches for one key.

    A fetch has `seconds` of its own, so that one caller's short deadline does not fail it for the others: it goes on,
    and the next call finds its balance. It is cancelled when the last caller who waits for it is.
    """

    def __init__(
        self,
        inner: Fetcher[T],
        seconds: float,
        on_done: Callable[[Target, BaseException | None], None] = lambda target, error: None,
    ) -> None:
        self.inner = inner
        self._seconds = seconds
        # Called with the error of a fetch that has ended, or with None for a good one.
        self._on_done = on_done
        self._calls: dict[str, _Call[T]] = {}

    async def fetch(self, target: Target, deadline: float, priority: Priority) -> T:
        """See `Fetcher`. Raises DeadlinePassed or VenueTimeout if the caller's own time is over first."""
        loop = asyncio.get_running_loop()
        if deadline - loop.time() < ANSWER_MARGIN + LEAST_TIME:
            raise DeadlinePassed("The deadline leaves too little time to ask the venue.")
        if target.not_before == inf:
            await self._wait_for_running(target.key, deadline)
        call = self._calls.get(target.key)
        if call is None:
            call = self._begin(target, priority)
        else:
            _note_joining(call)
        if not priority.polling:
            call.priority.promote()
        call.waiting += 1
        try:
            timeout = max(0.0, deadline - loop.time() - ANSWER_MARGIN)
            await asyncio.wait({call.task}, timeout=timeout)
        except asyncio.CancelledError:
            if call.waiting == 1 and loop.time() < deadline - ANSWER_MARGIN:
                # A caller that has left, and not one whose time is over. Nobody joins a fetch that is being cancelled.
                self._forget(target.key, call)
                call.task.cancel()
            raise
        finally:
            call.waiting -= 1
        if not call.task.done():
            raise _late(call.target)
        if call.task.cancelled():
            raise ShuttingDown("This replica is shutting down.")
        error = call.task.exception()
        if error is None:
            return call.task.result()
        try:
            # Without its traceback: that holds the frames of the whole road, and these hold the error. Such a circle
            # stays in memory until the collector of all objects comes, which it seldom does.
            raise error.with_traceback(None)
        finally:
            del call, error

    async def _wait_for_running(self, key: str, deadline: float) -> None:
        """Let a fetch that has begun end, for a caller whom only one that begins from now on serves. Raises what
        `fetch` does if it has not ended in the caller's time."""
        call = self._calls.get(key)
        if call is not None:
            timeout = deadline - asyncio.get_running_loop().time() - ANSWER_MARGIN - LEAST_TIME
            await asyncio.wait({call.task}, timeout=max(0.0, timeout))
            if not call.task.done():
                raise _late(call.target)

    def snapshot(self) -> tuple[int, int]:
        """How many fetches are in progress, and how many callers wait for them."""
        return len(self._calls), sum(call.waiting for call in self._calls.values())

    def _begin(self, target: Target, priority: Priority) -> _Call[T]:
        loop = asyncio.get_running_loop()
        own = Priority(polling=priority.polling)
        work = self.inner.fetch(target, loop.time() + self._seconds, own)
        span = _fetch_span(target, polling=priority.polling)
        task = loop.create_task(work, name=f"refresh {target.listing.metadata.id}", context=context_with(span))
        call = _Call(task, target, own, span=span)
        self._calls[target.key] = call
        call.task.add_done_callback(partial(self._on_fetch_done, target, call))
        return call

    def _forget(self, key: str, call: _Call[T]) -> None:
        if self._calls.get(key) is call:
            del self._calls[key]

    def _on_fetch_done(self, target: Target, call: _Call[T], _: asyncio.Task[T]) -> None:
        self._forget(target.key, call)
        if call.task.cancelled():
            if call.span is not None:
                call.span.end(CANCELLED)
            return
        # Taken here too: if no caller waits for it any more, asyncio would log it.
        error = call.task.exception()
        if call.span is not None:
            call.span.end(reason_of(error))
        if isinstance(error, ServiceError):
            # What it comes from holds the call to the plugin, and that a credential.
            without_origin(error)
            log.debug("fetch.failed", exchange=target.listing.metadata.id, reason=error.reason)
        self._on_done(target, error)

    def end(self) -> None:
        """Cancel every fetch in progress; callers who wait for one get SHUTTING_DOWN."""
        for call in self._calls.values():
            call.task.cancel()

    async def close(self) -> None:
        """Cancel every fetch in progress and wait for its end, for a second at most."""
        tasks = [call.task for call in self._calls.values()]
        self.end()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)


def _fetch_span(target: Target, *, polling: bool) -> ActiveSpan | None:
    """The span of a fetch, within that of the caller who begins it."""
    if current_span() is None:
        return None
    account = target.account
    attributes: dict[str, str | bool] = {
        "exchange_service.exchange": target.listing.metadata.id,
        "exchange_service.environment": account.environment,
        "exchange_service.account_type": account.account_type,
        "exchange_service.polling": polling,
    }
    return child_span("fetch", attributes)


def _note_joining(call: _Call[Any]) -> None:
    """A caller waits for a fetch that another one has begun: its span leads to the fetch's."""
    span = current_span()
    if span is not None:
        span.set({"exchange_service.joined": True})
        if call.span is not None:
            span.link(call.span)


def _late(target: Target) -> ServiceError:
    """Why a caller does not wait any longer: by what the fetch waits for."""
    if target.reports.opening:
        return late_store()
    return VenueTimeout(f"{target.listing.metadata.name} did not answer in the time that the call had.")
