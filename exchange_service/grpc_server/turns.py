"""Turns: what goes on in each round of the event loop, so that every round is short.

If thousands of streams are opened or written to in one round, it takes tenths of a second, and everybody's calls wait.
So streams are opened for a short time in each round, and few writes begin in it. Besides, gRPC's server for asyncio
takes one call in each round; the others wait in gRPC's own queue, which ends them after a time without a reason. There
calls are taken first.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Protocol

from exchange_service.errors import ServiceOverloaded

# Writes that begin in one round; each takes about 0.1 ms of it. Fewer while streams wait to be opened.
_WRITES, _FEW_WRITES = 32, 4
# Seconds of a round in which messages are written to streams whose tasks sleep on.
_DELIVERING = 0.002
# Seconds of a round in which streams are opened, and how many are opened in it at most.
_OPENING, _MOST_OPENED = 0.002, 64
# While a new call comes in every round, one round in so many opens a stream.
_PATIENCE = 4
# Seconds for which a stream waits to be opened at most, by what the ones before took; further ones are refused.
LONGEST_WAIT = 10.0
# Seconds after which one for which there is no memory may come again.
_UNTIL_ROOM = (5.0, 15.0)
# The share of the last openings in the time that one is thought to take, and that time at first, in seconds.
_WEIGHT, _FIRST_GUESS = 0.05, 0.001
# While thousands of calls come at once, openings take so many times their own time at most, for the estimate of a wait.
_BESIDE_CALLS = 3


class _Queue:
    """Those who wait for a turn, in the order in which they came."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._next_round: asyncio.Handle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def begin_round_soon(self) -> None:
        """Have `begin_round` called in the next round."""
        if self._next_round is None:
            self._next_round = asyncio.get_running_loop().call_soon(self._on_round)

    def _on_round(self) -> None:
        self._next_round = None
        self.begin_round()
        if self._waiting:
            self.begin_round_soon()

    def begin_round(self) -> None:
        """Let some go on."""
        raise NotImplementedError

    async def wait(self) -> None:
        """Wait for a turn. One that is cancelled stays in the queue, and is passed over."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self.begin_round_soon()
        await turn

    def let_go(self, most: int) -> int:
        """Give up to `most` their turns; how many."""
        given = 0
        while self._waiting and given < most:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                given += 1
        return given


class Openings(_Queue):
    """Opens streams for a short time in each round, or one in some rounds while calls come that wait for a round each;
    none while `has_room` says that there is no memory for it."""

    def __init__(self, has_room: Callable[[], bool] = lambda: True, *, calls_in_batches: bool = False) -> None:
        """`calls_in_batches`: one round takes all calls that have come, so none of them waits for a round of its
        own."""
        super().__init__()
        self._has_room = has_room
        self._calls_in_batches = calls_in_batches
        # What an opening takes with all that goes on beside it, and its own processor time; in seconds.
        self._seconds = self._own_seconds = _FIRST_GUESS
        # How many were opened in this round.
        self._opened = 0
        # Those that were let go last: how many (0 if nobody was left), when in monotonic time, and at which processor
        # time of the thread they began.
        self._let_go = 0
        self._last = self._began = 0.0
        self._has_measured = True
        self._rounds_with_calls = 0
        self._call_came = False

    def call_came(self) -> None:
        """Note that this round has taken a call."""
        self._call_came = True

    async def take(self) -> None:
        """Wait until the stream may be opened; at once if no other one waits. Raises ServiceOverloaded if that would
        take too long."""
        if not self._has_room():
            delay = random.uniform(*_UNTIL_ROOM)  # noqa: S311
            raise ServiceOverloaded("This replica has no memory for another stream.", retry_after=delay)
        wait = len(self) * self._expected_seconds()
        if wait > LONGEST_WAIT:
            # Those who are refused should not all come back at once.
            delay = wait * random.uniform(0.5, 1.5)  # noqa: S311
            raise ServiceOverloaded("More streams are being opened than this replica can serve.", retry_after=delay)
        if self._opened or len(self):
            await self.wait()
        else:
            self._opened = 1
            self.begin_round_soon()

    def _expected_seconds(self) -> float:
        """From one opening to the next, while many wait."""
        if self._calls_in_batches:
            # Those who come back together are all here soon, and then nothing delays the openings.
            return min(self._seconds, _BESIDE_CALLS * self._own_seconds)
        return self._seconds

    def begin_round(self) -> None:
        """Open the next streams, unless calls come that should be taken first."""
        now = time.monotonic()
        self._measure_first_steps()
        self._rounds_with_calls = self._rounds_with_calls + 1 if self._call_came else 0
        self._opened, self._call_came = 0, False
        if not self._calls_in_batches and self._rounds_with_calls % _PATIENCE:
            return
        if self._let_go:
            self._seconds += ((now - self._last) / self._let_go - self._seconds) * _WEIGHT
        # It is called just before the streams that are let go here.
        asyncio.get_running_loop().call_soon(self._note_beginning)
        self._opened = self.let_go(self._most())
        # The next ones come at any time if nobody is left.
        self._let_go, self._last = (self._opened if self._waiting else 0), now
        self._has_measured = False

    def _most(self) -> int:
        """How many streams may be opened in this round."""
        if not self._calls_in_batches and self._rounds_with_calls:
            return 1
        return max(1, min(_MOST_OPENED, int(_OPENING / self._own_seconds)))

    def _note_beginning(self) -> None:
        self._began = time.thread_time()

    def _measure_first_steps(self) -> None:
        """Learn what the streams took that were let go last, until each had to wait for something."""
        if self._let_go and not self._has_measured:
            self._own_seconds += ((time.thread_time() - self._began) / self._let_go - self._own_seconds) * _WEIGHT
        self._has_measured = True


class Writes(_Queue):
    """Lets some writes begin in each round, the others in the rounds after it."""

    def __init__(self, openings: Openings | None = None) -> None:
        super().__init__()
        self._openings = openings if openings is not None else Openings()
        self._begun = 0

    async def take(self) -> None:
        """Wait for a turn to write; at once if this round has one left and nobody waits."""
        if len(self) or self._begun >= _WRITES:
            await self.wait()
            return
        self._begun += 1
        self.begin_round_soon()

    def begin_round(self) -> None:
        """Let the next ones write."""
        self._begun = self.let_go(_FEW_WRITES if len(self._openings) else _WRITES)


class Delivering(Protocol):
    """A stream that has something to write."""

    def deliver(self) -> None:
        """Write it."""


class Deliveries:
    """Writes to streams whose tasks need not wake for it: for a short time in each round, and on in the next one."""

    def __init__(self) -> None:
        self._waiting: deque[Delivering] = deque()
        self._next_round: asyncio.Handle | None = None
        # A round belongs to no call, so it has none of a call's variables.
        self._context = Context()

    def soon(self, stream: Delivering) -> None:
        """Have the stream deliver in its turn."""
        self._waiting.append(stream)
        if self._next_round is None:
            self._begin_round_soon()

    def _begin_round_soon(self) -> None:
        self._next_round = asyncio.get_running_loop().call_soon(self._on_round, context=self._context)

    def _on_round(self) -> None:
        self._next_round = None
        waiting, end = self._waiting, time.monotonic() + _DELIVERING
        while waiting:
            waiting.popleft().deliver()
            if time.monotonic() >= end:
                break
        if waiting:
            self._begin_round_soon()
