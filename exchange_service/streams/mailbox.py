"""What one reader has not read yet: a slot for each account, in which a newer balance replaces the unread one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from exchange_service.streams.clock import Clock
from exchange_service.streams.update import Update


class MailboxSlot:
    """One account's unread balance and error. `ready` is called with the slot whenever there is something to read."""

    __slots__ = ("_error", "_error_was_read", "_ready", "_update", "due", "known_version")

    def __init__(self, ready: Callable[[MailboxSlot], None], known_version: int = 0) -> None:
        self._ready = ready
        # The version that the reader already had, until the first balance or error is put here.
        self.known_version = known_version
        # When the next balance may be read, in monotonic time.
        self.due = 0.0
        self._update: Update | None = None
        self._error: bytes | None = None
        # Whether the error was read while the balance before it is held back.
        self._error_was_read = False

    def put_balance(self, update: Update) -> None:
        """Put a new whole state here; it replaces what has not been read yet."""
        if self.known_version:
            known, self.known_version = self.known_version, 0
            if known == update.version and update.stale is None:
                # The first state of a stream that resumes, and the reader has it already.
                return
        self._update, self._error = update, None
        self._ready(self)

    def put_error(self, event: bytes) -> None:
        """Put a serialised account error here; an unread balance stays in front of it."""
        self._error, self._error_was_read = event, False
        # After an error the recovery is news, even if the reader already has that balance.
        self.known_version = 0
        self._ready(self)

    def clear(self) -> None:
        """Forget what is unread."""
        self._update = self._error = None

    def take(self, min_interval: float, wall: float, monotonic: float) -> tuple[bytes | None, bytes | None]:
        """Return the balance and the error to hand out now, each a serialised event or None.

        A balance that is held back stays, and the error stays behind it. That error is handed out at once and again
        after the balance: otherwise the reader's last event would be an old state.
        """
        update, error = self._update, self._error
        if update is None:
            self._error = None
            return None, error
        if monotonic < self.due:
            if error is None or self._error_was_read:
                return None, None
            self._error_was_read = True
            return None, error
        self._update = self._error = None
        if min_interval:
            self.due = monotonic + min_interval
        return update.event(wall), error

    @property
    def held(self) -> bool:
        """Whether a balance is unread."""
        return self._update is not None


class Mailbox:
    """The slots of one stream, for one reader.

    `min_interval` is the least number of seconds between two balances of one account; 0 means no limit. `pending` holds
    the slots with something to read, in the order in which they are read.
    """

    __slots__ = ("_clock", "_held", "_loop", "_min_interval", "_timer", "_timer_due", "_waiter", "pending")

    def __init__(self, clock: Clock, min_interval: float = 0.0) -> None:
        self.pending: dict[MailboxSlot, None] = {}
        self._clock = clock
        self._min_interval = min_interval
        self._loop = asyncio.get_running_loop()
        # Slots whose balance is held back.
        self._held: set[MailboxSlot] = set()
        self._waiter: asyncio.Future[None] | None = None
        # One timer for everything that is due some time; in monotonic time.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0

    @property
    def held(self) -> int:
        """How many slots hold a balance back."""
        return len(self._held)

    def add_slot(self, known_version: int = 0) -> MailboxSlot:
        """Return a new slot; `known_version` is the version that the reader has already."""
        return MailboxSlot(self.ready, known_version)

    def remove_slot(self, slot: MailboxSlot) -> None:
        """Forget the slot and what is unread in it."""
        slot.clear()
        self.pending.pop(slot, None)
        self._held.discard(slot)

    def ready(self, slot: MailboxSlot) -> None:
        """Take note that there is something to read in this slot."""
        self.pending[slot] = None
        # As `wake`, without the call: this runs for each subscriber at each update.
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def take(self, now: float) -> tuple[bytes | None, bytes | None]:
        """Return the balance and the error of the next pending slot; both are None if its balance is held back."""
        slot = next(iter(self.pending))
        del self.pending[slot]
        balance, error = slot.take(self._min_interval, self._clock.wall(), now)
        if balance is None and slot.held:
            self._held.add(slot)
        elif self._held:
            self._held.discard(slot)
        return balance, error

    async def wait(self, now: float, until: float) -> None:
        """Wait until there may be something to read, at most `until`; both are monotonic times."""
        if self._held:
            due = {slot for slot in self._held if slot.due <= now}
            if due:
                self._held -= due
                self.pending.update(dict.fromkeys(due))
                return
            until = min(until, *(slot.due for slot in self._held))
        if self._timer is None or self._timer_due > until:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(until - now, self._on_timer)
            self._timer_due = until
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _on_timer(self) -> None:
        self._timer = None
        self.wake()

    def wake(self) -> None:
        """Let the reader look again."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def close(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
