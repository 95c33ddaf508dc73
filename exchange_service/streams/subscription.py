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
        "_mailbox",
        "_next_heartbeat",
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
        self._ended: ServiceError | None = None
        now = clock.monotonic()
        self._ends = now + lifetime
        self._next_heartbeat = now + heartbeat_interval

    async def next_event(self, turn: Callable[[], Awaitable[None]] | None = None) -> bytes:
        """Wait for the next event and return it, a serialised StreamBalancesResponse. `turn` is awaited before one is
        taken out of the mailbox, because what waits outside of it would become older than it says. The stream ends with
        an error only: raises StreamLifetimeReached, ShuttingDown or what `end` was called with."""
        mailbox = self._mailbox
        while True:
            if self._ended is not None:
                raise self._ended
            if self._following_error is not None:
                event, self._following_error = self._following_error, None
                return event
            now = self._clock.monotonic()
            if now >= self._ends:
                raise StreamLifetimeReached("The stream has reached its maximum lifetime.")
            if now >= self._next_heartbeat:
                return self._heartbeat(now)
            if not mailbox.pending:
                await mailbox.wait(now, min(self._next_heartbeat, self._ends))
                continue
            if turn is not None:
                await turn()
                turn = None
                continue
            balance, error = mailbox.take(now)
            if balance is not None:
                self._following_error = error
                return balance
            if error is not None:
                return error

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
        self._mailbox.close()
        self._accounts.close()

    def snapshot(self) -> SubscriptionSnapshot:
        """The stream now."""
        return SubscriptionSnapshot(self._accounts.followed, len(self._mailbox.pending), self._mailbox.held, self._ends)

    def _heartbeat(self, now: float) -> bytes:
        self._next_heartbeat = now + self._heartbeat_interval
        self._accounts.refresh()
        return self._accounts.heartbeat(self._clock.wall())
