"""Runs a plugin's `watch_balance`: takes what it yields, however fast, and gives the newest of it, one at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass

from exchange_service.errors import ServiceError, VenueUnavailable
from exchange_service.model import Changed
from exchange_service.plugin_api import VenueCall
from exchange_service.venues.registry import Listing
from exchange_service.wire.balances import FetchedBalance

# After so many items others get their turn, for so many seconds.
_TURN, _REST = 50, 0.01
# There is nothing: a hook may yield whatever it likes.
_NOTHING = object()


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a watch has brought: a whole balance, or None if the account is to be read. `arrived_at` is when the plugin
    yielded it, by `time.monotonic`."""

    balance: FetchedBalance | None
    arrived_at: float


class Watch:
    """One run of the hook, here or in the plugin's process. Of what it yields before somebody takes it only the last
    whole balance is kept, and that there was a hint: a flood costs no memory, and takes its turn with everything else.
    """

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self._answer: object = _NOTHING
        self._answered_at = 0.0
        self._hinted_at = 0.0
        self._count = 0
        self._error: ServiceError | None = None

    async def run(self, listing: Listing, call: VenueCall) -> None:
        """Run the hook to its end, which is always an error: VenueUnavailable if it just ends."""
        async with aclosing(listing.plugin.hook.watch_balance(call=call)) as answers:
            async for answer in answers:
                if isinstance(answer, Changed):
                    self.put_hint(time.monotonic())
                else:
                    self.put(answer, time.monotonic())
                await self._give_way()
        raise VenueUnavailable(f"{call.exchange.name} ended its pushes.")

    def put(self, answer: object, arrived_at: float) -> None:
        """A whole balance has come, which `items` is to check."""
        self._answer, self._answered_at = answer, arrived_at
        self._news.set()

    def put_hint(self, arrived_at: float) -> None:
        """A hint has come."""
        self._hinted_at = arrived_at
        self._news.set()

    async def _give_way(self) -> None:
        """A plugin that never waits must keep neither the loop nor a processor for itself, and one that goes on after
        its cancellation is left at what it yields next."""
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError
        self._count += 1
        await asyncio.sleep(0 if self._count % _TURN else _REST)

    def end(self, error: ServiceError, *, drop: bool = False) -> None:
        """The hook has ended. `drop`: what it yielded last is of no use any more."""
        if drop:
            self._answer, self._hinted_at = _NOTHING, 0.0
        self._error = error
        self._news.set()

    async def items(self, read: Callable[[object], Awaitable[FetchedBalance]]) -> AsyncGenerator[Pushed, None]:
        """What comes, as soon as it comes; `read` checks a whole balance. Raises what the hook ended with."""
        while True:
            await self._news.wait()
            self._news.clear()
            answer, self._answer = self._answer, _NOTHING
            hinted_at, self._hinted_at = self._hinted_at, 0.0
            if answer is not _NOTHING:
                yield Pushed(await read(answer), self._answered_at)
            if hinted_at:
                yield Pushed(None, hinted_at)
            if self._error is not None:
                raise self._error.with_traceback(None)
