"""One stream as its reader sees it: balances and errors as they come, heartbeats in between, and an end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from exchange_service.errors import ServiceError, StreamLifetimeReached
from exchange_service.model import Account
from exchange_service.streams.accounts import FollowedAccounts, Selector
from exchange_service.streams.clock import Clock
from exchange_service.streams.mailbox import Mailbox


@dataclass(frozen=True, slots=True)
class SubscriptionSnapshot:
    """A stream at one moment: the accounts it follows, how many of them have something to read, how many hold a balance
    back, and when its lifetime ends, in monotonic time."""

    accounts: tuple[Account, ...]
    pending: int
    held: int
    ends: float


class Subscription:
    """Reads one stream's mailbox, for one reader. `lifetime` and `heartbeat_interval` are in seconds."""

    __slots__ = (
        "_accounts",
        "_clock",
        "_ended",
        "_ends",
        "_following_error",
        "_heartbeat_interval",
        "_is_queued",
        "_mailbox",
        "_next_heartbeat",
        "_soon",
        "_try_write",
        "_unsent",
    )

    def __init__(
        self,
        mailbox: Mailbox,
        accounts: FollowedAccounts,
        clock: Clock,
        *,
        lifetime: float,
        heartbeat_interval: float,
    ) -> None:
        self._mailbox = mailbox
        self._accounts = accounts
        self._clock = clock
        self._heartbeat_interval = heartbeat_interval
        # The error that follows the balance which was read last.
        self._following_error: bytes | None = None
        self._ended: Exception | None = None
        # What could not be written directly.
        self._unsent: bytes | None = None
        self._try_write: Callable[[bytes], bool] | None = None
        self._soon: Callable[[Subscription], None] | None = None
        self._is_queued = False
        now = clock.monotonic()
        self._ends = now + lifetime
        self._next_heartbeat = now + heartbeat_interval

    def write_directly(self, try_write: Callable[[bytes], bool], soon: Callable[[Subscription], None]) -> None:
        """Have events written by `try_write` while the reader waits, which then sleeps on. What cannot be written at
        once, for which `try_write` returns False, is the reader's next event. `soon` has `deliver` called in its
        turn."""
        self._try_write, self._soon = try_write, soon
        self._mailbox.notify_by(self._on_news)

    def _on_news(self) -> None:
        if not self._is_queued and self._soon is not None:
            self._is_queued = True
            self._soon(self)

    def deliver(self) -> None:
        """Write what there is to read, if the reader waits for it."""
        self._is_queued = False
        if self._try_write is None or not self._mailbox.has_waiting_reader:
            return
        now = self._clock.monotonic()
        try:
            while (event := self._urgent_event(now) or self._take(now)) is not None:
                if not self._try_write(event):
                    self._unsent = event
                    self._mailbox.wake()
                    return
                if not self._mailbox.pending and self._following_error is None:
                    # As nearly always.
                    break
        except Exception as error:
            # For the reader, whose call ends with it.
            self._ended = error
            self._mailbox.wake()
            return
        self._mailbox.set_timer(now, min(self._next_heartbeat, self._ends))

    async def next_event(self, turn: Callable[[], Awaitable[None]] | None = None) -> bytes:
        """Wait for the next event and return it, a serialised StreamBalancesResponse. `turn` is awaited before one is
        taken out of the mailbox, because what waits outside of it would become older than it says. The stream ends with
        an error only: raises StreamLifetimeReached, ShuttingDown or what `end` was called with."""
        mailbox = self._mailbox
        while True:
            now = self._clock.monotonic()
            event = self._urgent_event(now)
            if event is not None:
                return event
            if turn is not None and mailbox.has_news(now):
                await turn()
                turn = None
                continue
            event = self._take(now)
            if event is not None:
                return event
            await mailbox.wait(now, min(self._next_heartbeat, self._ends))

    def _urgent_event(self, now: float) -> bytes | None:
        """What comes before anything in the mailbox; None if there is nothing. Raises the stream's end."""
        if self._ended is not None:
            raise self._ended
        if self._unsent is not None:
            event, self._unsent = self._unsent, None
            return event
        if self._following_error is not None:
            event, self._following_error = self._following_error, None
            return event
        if now >= self._ends:
            raise StreamLifetimeReached("The stream has reached its maximum lifetime.")
        return self._heartbeat(now) if now >= self._next_heartbeat else None

    def _take(self, now: float) -> bytes | None:
        """The next event of the mailbox; None if it is empty, or all is held back."""
        mailbox = self._mailbox
        while mailbox.has_news(now):
            balance, error = mailbox.take(now)
            if balance is not None:
                self._following_error = error
                return balance
            if error is not None:
                return error
        return None

    def end(self, error: ServiceError) -> None:
        """End the stream with this error as soon as its reader asks for the next event."""
        self._ended = error
        self._mailbox.wake()

    async def open(self, selectors: Sequence[Selector], known: Sequence[Selector] = ()) -> None:
        """Follow these accounts, or every stored one if there are no selectors; `known` are the versions that the
        subscriber has already. Raises StoreUnavailable."""
        await self._accounts.open(selectors, known)
        resumes = any(selector.known_version or selector.unconfirmed for selector in (*selectors, *known))
        if resumes or not self._accounts:
            # The subscriber should know at once what it follows, and that what it has is still of this moment, although
            # there may be nothing else to wait for.
            self._next_heartbeat = self._clock.monotonic()

    def on_stored_change(self) -> None:
        """A credential of the stream's user was stored or removed."""
        self._accounts.on_stored_change()

    def close(self) -> None:
        """Leave every feed."""
        self._try_write = self._soon = None
        self._mailbox.close()
        self._accounts.close()

    def snapshot(self) -> SubscriptionSnapshot:
        """The stream now."""
        return SubscriptionSnapshot(self._accounts.followed, len(self._mailbox.pending), self._mailbox.held, self._ends)

    def _heartbeat(self, now: float) -> bytes:
        self._next_heartbeat = now + self._heartbeat_interval
        self._accounts.refresh()
        return self._accounts.heartbeat(self._clock.wall())
