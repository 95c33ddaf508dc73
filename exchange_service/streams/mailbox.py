"""What one reader has not read yet: a slot for each account, in which a newer balance replaces the unread one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from exchange_service.errors import ServiceError
from exchange_service.streams.clock import Clock
from exchange_service.streams.update import ErrorUpdate, Update


@dataclass(frozen=True, slots=True)
class Known:
    """What a reader has of an account before its stream begins: the version of its newest balance, 0 for none, and
    whether its last event was an error or a marked balance."""

    version: int = 0
    unconfirmed: bool = False


class MailboxSlot:
    """One account's unread balance and error, and what the reader has of the account. `ready` is called with the slot
    whenever there is something to read."""

    __slots__ = (
        "_error",
        "_error_was_read",
        "_has_known",
        "_ready",
        "_update",
        "due",
        "error",
        "fetch_time",
        "known_version",
        "unconfirmed",
        "version",
    )

    def __init__(self, ready: Callable[[MailboxSlot], None], known: Known | None = None) -> None:
        self._ready = ready
        known = known or Known()
        # The version that the reader brought: nothing older is ever handed out.
        self.known_version = known.version
        # Whether the first balance is left out if it is the known one.
        self._has_known = known.version > 0 and not known.unconfirmed
        # What the reader has: the newest version that was handed out or brought; when it was fetched last, if that was
        # seen here, in seconds since the epoch; the error, if no balance was handed out after it.
        self.version = known.version
        self.fetch_time: float | None = None
        self.error: ServiceError | None = None
        # Whether the reader came with an error, and nothing was handed out since.
        self.unconfirmed = known.unconfirmed
        # When the next balance may be read, in monotonic time.
        self.due = 0.0
        self._update: Update | None = None
        self._error: ErrorUpdate | None = None
        # Whether the error was read while the balance before it is held back.
        self._error_was_read = False

    def put_balance(self, update: Update) -> None:
        """Put a new whole state here; it replaces what has not been read yet."""
        if update.version < self.known_version:
            # The reader has a newer one, from another replica.
            return
        has_known, self._has_known = self._has_known, False
        if has_known and update.version == self.known_version and update.stale is None:
            return
        if self._update is None and update.replaces is not None and update.replaces[0] == self.version:
            self.fetch_time = update.replaces[1]
        self._update, self._error = update, None
        self._ready(self)

    def put_error(self, error: ErrorUpdate) -> None:
        """Put an account's error here; an unread balance stays in front of it."""
        self._error, self._error_was_read = error, False
        # After an error the recovery is news, even if the reader already has that balance.
        self._has_known = False
        self._ready(self)

    def drop_balance(self) -> None:
        """Forget the unread balance; an error that was not read yet stays."""
        self._update = None
        if self._error_was_read:
            self._error = None

    def agrees(self, version: int, error: ServiceError | None) -> bool:
        """Whether the reader has been handed this version, and an error if there is one, and nothing is unread."""
        if self._update is not None or self._error is not None or self.unconfirmed:
            return False
        return self.version == version and (self.error is None) == (error is None)

    def take(self, min_interval: float, wall: float, monotonic: float) -> tuple[bytes | None, bytes | None]:
        """Return the balance and the error to hand out now, each a serialised event or None.

        A balance that is held back stays, and the error stays behind it. That error is handed out at once and again
        after the balance: otherwise the reader's last event would be an old state.
        """
        update, error = self._update, self._error
        if update is None:
            self._error = None
            return None, self._hand_out_error(error)
        if monotonic < self.due:
            if self._error_was_read:
                return None, None
            self._error_was_read = error is not None
            return None, self._hand_out_error(error)
        self._update = self._error = None
        if min_interval:
            self.due = monotonic + min_interval
        self.version, self.fetch_time = update.version, update.fetch_time
        self.error, self.unconfirmed = None, False
        return update.event(wall), self._hand_out_error(error)

    def _hand_out_error(self, error: ErrorUpdate | None) -> bytes | None:
        if error is None:
            return None
        self.error, self.unconfirmed = error.error, False
        return error.event

    @property
    def held(self) -> bool:
        """Whether a balance is unread."""
        return self._update is not None


class Mailbox:
    """The slots of one stream, for one reader.

    `min_interval` is the least number of seconds between two balances of one account; 0 means no limit. `pending` holds
    the slots with something to read, in the order in which they are read.
    """

    __slots__ = ("_clock", "_held", "_loop", "_min_interval", "_notify", "_timer", "_timer_due", "_waiter", "pending")

    def __init__(self, clock: Clock, min_interval: float = 0.0) -> None:
        self.pending: dict[MailboxSlot, None] = {}
        self._clock = clock
        self._min_interval = min_interval
        self._loop = asyncio.get_running_loop()
        # Slots whose balance is held back.
        self._held: set[MailboxSlot] = set()
        self._waiter: asyncio.Future[None] | None = None
        # Called in the place of waking the reader.
        self._notify: Callable[[], None] | None = None
        # One timer for everything that is due some time; in monotonic time.
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0

    @property
    def held(self) -> int:
        """How many slots hold a balance back."""
        return len(self._held)

    @property
    def has_waiting_reader(self) -> bool:
        """Whether the reader waits, and has not been woken yet."""
        return self._waiter is not None and not self._waiter.done()

    def notify_by(self, notify: Callable[[], None]) -> None:
        """Have this called whenever there may be something to read while the reader waits, in the place of waking
        it."""
        self._notify = notify

    def add_slot(self, known: Known | None = None) -> MailboxSlot:
        """Return a new slot; `known` is what the reader has already."""
        return MailboxSlot(self.ready, known)

    def remove_slot(self, slot: MailboxSlot) -> None:
        """Forget the slot and what is unread in it."""
        slot.drop_balance()
        self.pending.pop(slot, None)
        self._held.discard(slot)

    def ready(self, slot: MailboxSlot) -> None:
        """Take note that there is something to read in this slot."""
        self.pending[slot] = None
        # As `_look`, without the call: this runs for each subscriber at each update.
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            if self._notify is not None:
                self._notify()
            else:
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

    def has_news(self, now: float) -> bool:
        """Whether a slot has something to read now, in monotonic time; what was held back until now counts."""
        if self._held:
            due = {slot for slot in self._held if slot.due <= now}
            self._held -= due
            self.pending.update(dict.fromkeys(due))
        return bool(self.pending)

    def set_timer(self, now: float, until: float) -> None:
        """Let the reader look again `until` then at the latest, and when a balance is held back no longer; both are
        monotonic times."""
        if self._held:
            until = min(until, *(slot.due for slot in self._held))
        if self._timer is None or self._timer_due > until:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(until - now, self._on_timer)
            self._timer_due = until

    async def wait(self, now: float, until: float) -> None:
        """Wait until there may be something to read, at most `until`; both are monotonic times."""
        self.set_timer(now, until)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _on_timer(self) -> None:
        self._timer = None
        if self._notify is None:
            self.wake()
        elif self.has_waiting_reader:
            self._notify()

    def wake(self) -> None:
        """Let the reader look again."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def close(self) -> None:
        """Cancel the timer, and notify nobody any more."""
        self._notify = None
        if self._timer is not None:
            self._timer.cancel()
