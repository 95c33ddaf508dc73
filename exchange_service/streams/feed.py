"""A feed reads one account again and again, and puts what is new into the slots of its subscribers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from exchange_service.balances.service import BalanceResult
from exchange_service.errors import CredentialMissing, ServiceError, ServiceFailed
from exchange_service.model import Account
from exchange_service.streams.mailbox import MailboxSlot
from exchange_service.streams.update import AGE_TOLERANCE, ErrorUpdate, Update
from exchange_service.tasks import copy_of
from exchange_service.wire.balances import AmountName
from exchange_service.wire.delivery import Delivery
from exchange_service.wire.events import AccountState, account_error_event, account_state
from exchange_service.wire.replies import Source
from exchange_service.wire.stored import RowIdentity, StoredBalance, with_known_rows

log = structlog.get_logger(__name__)

# Reads in a row that bring a lower version than the feed has, after which the feed believes them: a version that is too
# high must not stay for good.
_MOST_LOWER = 3

# Reads the account: what the feed has so far, whether the venue is to be asked, and the version below which nothing is
# of use.
ReadBalance = Callable[[StoredBalance | None, bool, int], Awaitable[BalanceResult]]


class FeedSource(Protocol):
    """Says when a feed reads its account again: by the clock, or when the venue has pushed something."""

    @property
    def delivery(self) -> Delivery:
        """How changes of the account reach this replica now."""

    async def wait(self, result: BalanceResult | None, error: ServiceError | None) -> bool:
        """Return when the account is to be read again: True if the venue is to be asked, False if a cached balance
        suffices. `result` is what was read last, or None if that failed; `error` is the account's present error."""

    def read_now(self) -> None:
        """Have `wait` return soon: a subscriber has a newer balance than the feed."""

    def close(self) -> None:
        """Release what the source holds; the feed has ended."""


@dataclass(frozen=True, slots=True)
class FeedSnapshot:
    """What a feed has at one moment; `version` is 0 if it has no balance."""

    version: int
    error: ServiceError | None
    subscribers: int


class Feed:
    """One account's read loop and its last state."""

    def __init__(
        self,
        account: Account,
        read: ReadBalance,
        source: FeedSource,
        *,
        within_grace: Callable[[StoredBalance], bool],
        on_event_age: Callable[[float], None] = lambda age: None,
    ) -> None:
        """`within_grace` says whether a last good balance may still be shown. `on_event_age` is called with the age of
        the balance, in seconds, for each event that is serialised."""
        self.account = account
        self.slots: set[MailboxSlot] = set()
        self._read_balance = read
        self._source = source
        self._within_grace = within_grace
        self._on_event_age = on_event_age
        self._current: StoredBalance | None = None
        self._current_key = ""
        # The version before the current one, and when it was fetched last, in seconds since the epoch.
        self._replaced: tuple[int, float] | None = None
        # The highest version that subscribers brought, or that the feed had before its credential went.
        self._known_version = 0
        # Reads in a row that brought a lower version.
        self._lower = 0
        self._error: ServiceError | None = None
        # A refusal that is doubted: the balance is shown with it, and it is no error yet.
        self._doubt: ServiceError | None = None
        # The fetch time of the last balance before the present trouble.
        self._failed_after = 0.0
        # Why the last read is late; nothing has failed.
        self._late: ServiceError | None = None
        # The current balance as bytes, with the rows that were reported before, and the balance it was made of.
        self._data = b""
        self._data_of: StoredBalance | None = None
        self._rows: dict[RowIdentity, tuple[AmountName, ...]] = {}
        # The serialised state for heartbeats, what it was made of, and when.
        self._state = b""
        self._state_of: tuple[StoredBalance | None, ServiceError | None, Delivery | None] = (None, None, None)
        self._state_time = -AGE_TOLERANCE
        self._task: asyncio.Task[None] | None = None

    @property
    def version(self) -> int:
        """The version of the newest balance; 0 if there is no balance."""
        return self._current.version if self._current else 0

    def start(self) -> None:
        """Begin to read."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"feed {self.account.exchange_id}")

    def stop(self) -> asyncio.Task[None] | None:
        """Stop reading; returns the task that ends, if it was started."""
        # Not kept: the error of the cancelled task holds its frames, and these hold the feed.
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        return task

    def join(self, slot: MailboxSlot) -> None:
        """Add a subscriber's slot, and put the present state into it."""
        self.slots.add(slot)
        self._known_version = max(self._known_version, slot.known_version)
        if self._current is not None and slot.known_version > self.version:
            self._source.read_now()
        if self._current is not None and self._may_show(self._current):
            if self._late is not None and self._error is None and self._doubt is None:
                # It may be old by now. The next good read confirms it to everybody.
                self._set_trouble(None, self._late)
            stale = self._error or self._doubt
            source = Source.LAST_GOOD if stale else Source.CACHE
            slot.put_balance(self._make_update(self._current, source, stale))
        if self._error is not None:
            slot.put_error(self._make_error_update(self._error, slot.known_version))

    def read_again(self) -> None:
        """Read soon, unless the account is read well: its credential may be another one now. One that was read well is
        told of by the cache."""
        if self._current is None or (self._error is not None and not self._error.transient):
            self._source.read_now()

    def leave(self, slot: MailboxSlot) -> None:
        """Put nothing more into this slot."""
        self.slots.discard(slot)

    def state(self, slot: MailboxSlot, wall: float) -> bytes:
        """The account's part of a serialised HeartbeatEvent, as the events that were taken from this slot have told it;
        `wall` is the time now, in seconds since the epoch. Heartbeats that are close in time share it, except those of
        slots with something unread."""
        if slot.agrees(self.version, self._error):
            return self._shared_state(wall)
        current = self._current
        fetch_time = current.fetch_time if current and slot.version == current.version else slot.fetch_time
        age = max(0.0, wall - fetch_time) if fetch_time is not None else None
        catching_up = slot.unconfirmed or slot.known_version > self.version
        delivery = self._source.delivery
        return account_state(AccountState(self.account, slot.version, age, slot.error, catching_up, delivery))

    def _shared_state(self, wall: float) -> bytes:
        now = (self._current, self._error, self._source.delivery)
        same = all(one is other for one, other in zip(now, self._state_of, strict=True))
        if not same or not 0.0 <= wall - self._state_time < AGE_TOLERANCE:
            age = max(0.0, wall - self._current.fetch_time) if self._current else None
            self._state = account_state(AccountState(self.account, self.version, age, self._error, delivery=now[2]))
            self._state_of, self._state_time = now, wall
        return self._state

    def snapshot(self) -> FeedSnapshot:
        """What the feed has now."""
        return FeedSnapshot(self.version, self._error, len(self.slots))

    async def _run(self) -> None:
        ask_venue = False
        try:
            while True:
                result = await self._read(ask_venue)
                ask_venue = await self._source.wait(result, self._late or self._error)
        finally:
            self._source.close()

    async def _read(self, ask_venue: bool) -> BalanceResult | None:
        """Read the account once and hand out what is new. Returns None if that failed, or is late."""
        try:
            known_version = max(self._known_version, self.version)
            result = await self._read_balance(self._current, ask_venue, known_version)
            # Not before the read: who joins meanwhile is told that the last one was late.
            self._late = None
            self._receive(result)
        except ServiceError as error:
            # Without its origin, which keeps alive everything that the failed call used.
            kept = copy_of(error)
            self._late = kept if error.late else None
            if not error.late:
                self._fail(kept)
        except Exception as error:
            log.error("feed.failed", exchange=self.account.exchange_id, error=type(error).__name__)
            self._late = None
            self._fail(
                ServiceFailed("The service failed to read this account.", advice="Look for the reason in its log.")
            )
        else:
            return result
        return None

    def _receive(self, result: BalanceResult) -> None:
        stored, stale = result.stored, result.stale
        if self._current is not None and result.key == self._current_key and self._is_older(stored, self._current):
            return
        self._lower = 0
        self._current_key = result.key
        changed = self._current is None or stored.version != self._current.version
        if changed and self._current is not None:
            self._replaced = (self._current.version, self._current.fetch_time)
        self._current = stored
        if stale is not None and stale.late:
            self._late = stale
            if changed and self._error is None:
                self._set_trouble(None, self._doubt or stale)
                self._hand_out(result.source, self._doubt)
        elif stale is not None and result.asked_in is not None:
            # The feed reads again when the venue has been asked for its second word.
            is_new = self._doubt is None or self._doubt.reason != stale.reason
            self._set_trouble(None, stale)
            if changed or is_new:
                self._hand_out(result.source, stale)
        elif stale is not None:
            if changed:
                self._set_trouble(stale, None)
                self._hand_out(result.source, stale)
                self._announce(stale)
            else:
                self._fail(stale)
        else:
            recovered = self._error is not None or self._doubt is not None
            has_failed = recovered and not (self._doubt is not None and self._doubt.late)
            if has_failed and stored.fetch_time <= self._failed_after and result.source is Source.CACHE:
                # A copy from before the error does not say that the venue answers again.
                return
            self._set_trouble(None, None)
            if changed or recovered:
                self._hand_out(result.source, None)

    def _set_trouble(self, error: ServiceError | None, doubt: ServiceError | None) -> None:
        """What is wrong now, and since which balance."""
        if self._error is None and self._doubt is None:
            self._failed_after = self._current.fetch_time if self._current else 0.0
        self._error, self._doubt = error, doubt

    def _is_older(self, stored: StoredBalance, current: StoredBalance) -> bool:
        """Whether it is an older balance. Reads ask for none below the feed's version, so a lower one that stays is no
        older balance: the feed's version is further ahead of the clock than any is believed to be."""
        if stored.version >= current.version:
            return False
        self._lower += 1
        if self._lower < _MOST_LOWER:
            return True
        log.warning("feed.version_went_back", exchange=self.account.exchange_id, reads=self._lower)
        self._known_version = 0
        return False

    def _hand_out(self, source: Source, stale: ServiceError | None) -> None:
        """Put the current balance into every slot."""
        if self._current is not None:
            update = self._make_update(self._current, source, stale)
            for slot in self.slots:
                slot.put_balance(update)

    def _make_update(self, stored: StoredBalance, source: Source, stale: ServiceError | None) -> Update:
        """The current balance to hand out; its bytes are made once for each fetch that is handed out."""
        if self._data_of is not stored:
            self._data, self._rows = with_known_rows(stored, self._rows)
            self._data_of = stored
        delivery = self._source.delivery
        return Update(stored, self._data, source, stale, self._on_event_age, self._replaced, delivery)

    def _fail(self, error: ServiceError) -> None:
        """Announce the error, unless the last one had the same reason: a venue that stays down is announced once."""
        is_new = self._error is None or self._error.reason != error.reason
        self._set_trouble(error, None)
        if isinstance(error, CredentialMissing):
            # What was read with a key that is gone is shown neither to new subscribers nor to those who have not read
            # it yet.
            self._known_version = max(self._known_version, self.version)
            self._current, self._data_of, self._rows = None, None, {}
            for slot in self.slots:
                slot.drop_balance()
        if is_new:
            self._announce(error)

    def _announce(self, error: ServiceError) -> None:
        # Subscribers that resume bring few different versions.
        updates: dict[int, ErrorUpdate] = {}
        for slot in self.slots:
            known = max(slot.known_version, self.version)
            update = updates.get(known)
            if update is None:
                update = updates[known] = self._make_error_update(error, known)
            slot.put_error(update)

    def _make_error_update(self, error: ServiceError, known_version: int) -> ErrorUpdate:
        """The error to hand out to a subscriber that brought this version."""
        return ErrorUpdate(error, account_error_event(self.account, error, max(known_version, self.version)))

    def _may_show(self, stored: StoredBalance) -> bool:
        """As for GetBalance: with an error, a last good balance is shown if the error is transient, for a while."""
        return self._error is None or (self._error.transient and self._within_grace(stored))
