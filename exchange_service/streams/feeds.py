"""StreamBalances: one feed an account, however many subscribe; each subscriber has a mailbox of latest values.

A feed polls through `Balances`, so that it shares the kept value and the fetch in progress with GetBalance. Each update
is turned into bytes once and put into every subscriber's mailbox, where a newer one replaces it: a slow reader skips
updates, and since each is the whole state, loses nothing.

With thousands of subscribers the way from a feed to a reader is the hottest of the service. For each of them an update
costs a place in a dict and a future; what is the same for all of them is made once, and time is looked after by one
timer a subscriber, not by one for each event.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog

from exchange_service.balances.service import LEASE, BalanceResult, Balances
from exchange_service.errors import (
    CredentialMissing,
    FieldInvalid,
    ServiceError,
    ServiceFailed,
    ShuttingDown,
    StreamLifetimeReached,
)
from exchange_service.model import Account
from exchange_service.venues.registry import Listing, Registry
from exchange_service.wire.balances import (
    AccountState,
    AmountName,
    RowIdentity,
    Source,
    StoredBalance,
    account_error_event,
    account_state,
    balance_event,
    heartbeat_event,
    with_known_rows,
)

# Feeds of many accounts that were started together drift apart by this share of the interval.
_JITTER = 0.1
# Seconds that a feed leaves between two looks, whatever it was told.
_LEAST_PAUSE = 0.05
# Seconds within which the subscribers of a replica that ends are told to come back.
_COMEBACK = (0.2, 3.0)
# Seconds for which an event with its age in it may be handed out as it was made.
_EVENT_LIFE = 0.1

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Selector:
    """An account that a subscriber asks for, and the version of it that he has already; see AccountSelector."""

    exchange_id: str
    environment: str = ""
    known_version: int = 0
    account_type: str = ""


class _Update:
    """A balance to hand out. All who read it at about the same time share one event; for who comes later its age is
    reckoned anew."""

    __slots__ = ("_data", "_event", "_fetch_time", "_made", "_made_ready", "_source", "stale", "version")

    def __init__(
        self,
        stored: StoredBalance,
        data: bytes,
        source: Source,
        stale: ServiceError | None,
        on_event_age: Callable[[float], None],
    ) -> None:
        # Called with the age of the balance, in seconds, for each event that is made of it.
        self._made_ready = on_event_age
        self.version = stored.version
        self.stale = stale
        self._data = data
        self._fetch_time = stored.fetch_time
        self._source = source
        self._event = b""
        self._made = 0.0

    def event(self, now: float) -> bytes:
        """The serialised event; `now` is in seconds since the epoch."""
        if not self._event or not 0.0 <= now - self._made < _EVENT_LIFE:
            age = max(0.0, now - self._fetch_time)
            self._event = balance_event(self._data, self._source, age, self.stale)
            self._made = now
            self._made_ready(age)
        return self._event


class _Place:
    """One account in a subscriber's mailbox: what he has not read of it yet. A newer balance replaces the one that
    waits; an error comes after it."""

    __slots__ = ("_error", "_told", "_update", "due", "known_version", "subscription")

    def __init__(self, subscription: Subscription, known_version: int = 0) -> None:
        self.subscription = subscription
        # The version that the subscriber has brought along, until something is put here.
        self.known_version = known_version
        # When the next balance may be read, in the event loop's time.
        self.due = 0.0
        self._update: _Update | None = None
        self._error: bytes | None = None
        # Whether he has read the error, while the balance before it is held back.
        self._told = False

    def put_balance(self, update: _Update) -> None:
        """A new whole state; it takes the place of what has not been read yet."""
        if self.known_version:
            known, self.known_version = self.known_version, 0
            if known == update.version and update.stale is None:
                # The first state of a stream that resumes, and the subscriber has it already.
                return
        self._update, self._error = update, None
        self.subscription.ready(self)

    def put_error(self, event: bytes) -> None:
        """The account's trouble; a balance that has not been read yet stays before it."""
        self._error, self._told = event, False
        # After an error the recovery is news, also where the balance is the one that the subscriber has.
        self.known_version = 0
        self.subscription.ready(self)

    def clear(self) -> None:
        """Forget what waits."""
        self._update = self._error = None

    def take(self, min_interval: float, now: float, time: float) -> tuple[bytes | None, bytes | None]:
        """A balance and an error to hand out, either of which may be none; `now` is the wall clock's, `time` the event
        loop's. A balance that is held back stays, with the error after it, which is then told twice: otherwise an old
        state would be the last word."""
        update, error = self._update, self._error
        if update is None:
            self._error = None
            return None, error
        if time < self.due:
            if error is None or self._told:
                return None, None
            self._told = True
            return None, error
        self._update = self._error = None
        if min_interval:
            self.due = time + min_interval
        return update.event(now), error

    @property
    def held(self) -> bool:
        """Whether a balance waits here."""
        return self._update is not None


class _Feed:
    """One account's poll loop, and its last state."""

    def __init__(self, feeds: Feeds, account: Account, listing: Listing) -> None:
        self.account = account
        self.listing = listing
        self.places: set[_Place] = set()
        self.current: StoredBalance | None = None
        self.error: ServiceError | None = None
        self._feeds = feeds
        # Set when the balance may have changed, on whatever replica; and the key under which that is told.
        self._changed = asyncio.Event()
        self._current_key = ""
        # When the newest balance was fetched that this replica asked the venue for.
        self._asked_at = 0.0
        self._key = ""
        # `current` as bytes with the rows that were reported before, and which balance they were made of.
        self._data = b""
        self._made_of: StoredBalance | None = None
        self._rows: dict[RowIdentity, tuple[AmountName, ...]] = {}
        # How the account is, as bytes: made of what, and when.
        self._state = b""
        self._state_of: tuple[StoredBalance | None, ServiceError | None] = (None, None)
        self._state_made = -_EVENT_LIFE
        self.task = asyncio.get_running_loop().create_task(self._run(), name=f"feed {account.exchange_id}")

    async def _run(self) -> None:
        try:
            due = False
            while True:
                due = await self._wait(await self._read(due=due))
        finally:
            self._feeds.balances.remove_listener(self._key, self._changed)

    async def _read(self, *, due: bool) -> BalanceResult | None:
        """Look at the account once, and tell the subscribers what is new. `due`: the venue is to be asked."""
        self._changed.clear()
        try:
            reading = await self._feeds.read(self.account, self.listing, self.current, due=due)
            if reading.key != self._key:
                self._feeds.balances.remove_listener(self._key, self._changed)
                self._key = reading.key
                self._feeds.balances.add_listener(self._key, self._changed)
            self._receive(reading)
            if reading.source is Source.VENUE:
                self._asked_at = reading.stored.fetch_time
            return reading
        except ServiceError as error:
            # Without its traceback, which holds everything that the failed call had in its hands.
            self._fail(error.with_traceback(None))
        except Exception as error:
            log.error("feed.failed", exchange=self.account.exchange_id, error=type(error).__name__)
            self._fail(ServiceFailed("The service failed to read this account.", advice="Look into its log."))
        return None

    async def _wait(self, reading: BalanceResult | None) -> bool:
        """Wait until the account is to be looked at again; whether that is because the venue is to be asked."""
        try:
            async with asyncio.timeout(self._feeds.pause(reading, self.error, self._asked_at)):
                await self._changed.wait()
        except TimeoutError:
            return True
        return False

    def _receive(self, reading: BalanceResult) -> None:
        stored, stale = reading.stored, reading.stale
        if self.current is not None and reading.key == self._current_key and stored.version < self.current.version:
            # An older one, from where it was kept for when Redis does not answer, or from one whose turn was over.
            return
        self._current_key = reading.key
        changed = self.current is None or stored.version != self.current.version
        recovered = self.error is not None and stale is None
        self.current = stored
        if stale is not None and not changed:
            self._fail(stale)
            return
        self.error = stale
        if changed or recovered:
            update = self._update(stored, reading.source, stale)
            for place in self.places:
                place.put_balance(update)
        if stale is not None:
            self._announce(stale)

    def _update(self, stored: StoredBalance, source: Source, stale: ServiceError | None) -> _Update:
        """The current balance to hand out, made into bytes once for each fetch that somebody is told of."""
        if self._made_of is not stored:
            self._data, self._rows = with_known_rows(stored, self._rows)
            self._made_of = stored
        return _Update(stored, self._data, source, stale, self._feeds.on_event_age)

    def _fail(self, error: ServiceError) -> None:
        """Say it once: a venue that stays down is not news each time."""
        news = self.error is None or self.error.reason != error.reason
        self.error = error
        if isinstance(error, CredentialMissing):
            # Nobody who comes now is to see what was held while there was a key, nor who has not read it yet.
            self.current, self._made_of, self._rows = None, None, {}
            for place in self.places:
                place.clear()
        if news:
            self._announce(error)

    def _announce(self, error: ServiceError) -> None:
        event = account_error_event(self.account, error, self.version)
        for place in self.places:
            place.put_error(event)

    @property
    def version(self) -> int:
        """The newest balance's version; 0 for none."""
        return self.current.version if self.current else 0

    def join(self, place: _Place) -> None:
        """Add a subscriber's place, and put the state into it that there is."""
        self.places.add(place)
        if self.current is not None and self._presentable(self.current):
            source = Source.LAST_GOOD if self.error else Source.CACHE
            place.put_balance(self._update(self.current, source, self.error))
        if self.error is not None:
            place.put_error(account_error_event(self.account, self.error, self.version))

    def _presentable(self, stored: StoredBalance) -> bool:
        """The rule of GetBalance: in trouble a last good value is given only if that passes, and not for ever."""
        return self.error is None or (self.error.transient and self._feeds.balances.within_grace(stored))

    def state(self, now: float) -> bytes:
        """For the heartbeats; subscribers who came together have theirs together, and share it."""
        current, error = self._state_of
        fits = current is self.current and error is self.error and 0.0 <= now - self._state_made < _EVENT_LIFE
        if not fits:
            age = max(0.0, now - self.current.fetch_time) if self.current else None
            self._state = account_state(AccountState(self.account, self.version, age, self.error))
            self._state_of, self._state_made = (self.current, self.error), now
        return self._state


class Subscription:
    """One stream's mailbox, for one reader.

    `min_interval`: the least seconds between two balances of one account; 0: none.
    """

    def __init__(
        self, feeds: Feeds, user_id: str, selectors: Sequence[Selector], lifetime: float, min_interval: float = 0.0
    ) -> None:
        self._feeds = feeds
        self._user_id = user_id
        self._selectors = tuple(selectors)
        self._min_interval = min_interval
        self._loop = asyncio.get_running_loop()
        # Places with something to read, in turn; and those whose balance is held back.
        self._pending: dict[_Place, None] = {}
        self._held: set[_Place] = set()
        # The error that comes behind the balance that was read last.
        self._behind: bytes | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended: ServiceError | None = None
        now = self._loop.time()
        self._dies = now + lifetime
        self._next_heartbeat = now + feeds.heartbeat_interval
        self._followed: dict[Account, _Place] = {}
        # Accounts that were asked for and cannot be followed: an unknown exchange, a wrong environment.
        self._unfollowable: dict[Account, ServiceError] = {}
        self._reload: asyncio.Task[None] | None = None

    async def next_event(self) -> bytes:
        """The next serialised StreamBalancesResponse. StreamLifetimeReached, ShuttingDown or what `end` was called with
        once the stream ends, which it never does by itself."""
        while True:
            if self._ended is not None:
                raise self._ended
            if self._behind is not None:
                event, self._behind = self._behind, None
                return event
            now = self._loop.time()
            if now >= self._dies:
                raise StreamLifetimeReached("The stream reached its longest lifetime.")
            if now >= self._next_heartbeat:
                return self._beat(now)
            if not self._pending:
                await self._wait(now)
            elif (taken := self._take(now)) is not None:
                return taken

    def _take(self, now: float) -> bytes | None:
        """The event of the place whose turn it is; None where that is held back."""
        place = next(iter(self._pending))
        del self._pending[place]
        balance, error = place.take(self._min_interval, self._feeds.now(), now)
        if place.held:
            self._held.add(place)
        elif self._held:
            self._held.discard(place)
        if balance is None:
            return error
        self._behind = error
        return balance

    async def _wait(self, now: float) -> None:
        """Wait until there is something to do, which may turn out to be nothing."""
        until = min(self._next_heartbeat, self._dies)
        if self._held:
            due = {place for place in self._held if place.due <= now}
            self._held -= due
            if due:
                self._pending.update(dict.fromkeys(due))
                return
            until = min(until, *(place.due for place in self._held))
        timer = self._timer
        if timer is None or timer.when() > until:
            if timer is not None:
                timer.cancel()
            self._timer = self._loop.call_at(until, self._tick)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _tick(self) -> None:
        self._timer = None
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def ready(self, place: _Place) -> None:
        """There is something to read in this place."""
        self._pending[place] = None
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def end(self, error: ServiceError) -> None:
        """End the stream with this error as soon as its reader asks for the next event."""
        self._ended = error
        self._wake()

    async def open(self) -> None:
        """Follow the accounts that were selected."""
        for selector in self._selectors:
            self._follow(selector)
        if not self._selectors:
            await self._follow_all()
            if not self._followed and not self._unfollowable:
                # There is nothing to wait for, and the subscriber should know it.
                self._next_heartbeat = self._loop.time()

    def close(self) -> None:
        """Leave every feed; one that nobody follows any more ends."""
        if self._reload is not None:
            self._reload.cancel()
        if self._timer is not None:
            self._timer.cancel()
        for account in list(self._followed):
            self._leave(account)

    def _follow(self, selector: Selector) -> Account:
        exchange_id, environment, account_type = selector.exchange_id, selector.environment, selector.account_type
        try:
            account, listing = self._feeds.registry.account(self._user_id, exchange_id, environment, account_type)
        except ServiceError as error:
            account = Account(self._user_id, exchange_id, environment, account_type)
            if account not in self._unfollowable:
                self._unfollowable[account] = error
                _Place(self).put_error(account_error_event(account, error, 0))
            return account
        if account not in self._followed:
            place = self._followed[account] = _Place(self, selector.known_version)
            self._feeds.join(account, listing, place)
        return account

    def _leave(self, account: Account) -> None:
        place = self._followed.pop(account)
        place.clear()
        self._pending.pop(place, None)
        self._held.discard(place)
        self._feeds.leave(account, place)

    async def _follow_all(self) -> None:
        """Follow every stored account of the user; called again now and then, for those that come and go."""
        stored = await self._feeds.accounts_of(self._user_id)
        wanted = {
            self._follow(Selector(account.exchange_id, account.environment))
            for account in stored[: self._feeds.max_accounts]
        }
        for account in self._followed.keys() - wanted:
            self._leave(account)
        for account in self._unfollowable.keys() - wanted:
            del self._unfollowable[account]

    async def _reload_accounts(self) -> None:
        try:
            await self._follow_all()
        except ServiceError as error:
            log.warning("stream.accounts_unknown", reason=error.reason)

    def _beat(self, now: float) -> bytes:
        self._next_heartbeat = now + self._feeds.heartbeat_interval
        if not self._selectors and (self._reload is None or self._reload.done()):
            # Beside the events: a store that is slow must not hold them up.
            self._reload = self._loop.create_task(self._reload_accounts(), name="accounts of a stream")
        return self._heartbeat()

    def _heartbeat(self) -> bytes:
        now = self._feeds.now()
        states = [self._feeds.state(account, now) for account in sorted(self._followed)]
        states += [
            account_state(AccountState(account, 0, None, error))
            for account, error in sorted(self._unfollowable.items())
        ]
        return heartbeat_event(now, states)


@dataclass
class Feeds:
    """The running feeds and who follows them. Intervals and lifetimes are in seconds."""

    registry: Registry
    balances: Balances
    accounts_of: Callable[[str], Awaitable[list[Account]]]
    interval: float = 10.0
    heartbeat_interval: float = 15.0
    lifetime: float = 3600.0
    venue_timeout: float = 8.0
    max_accounts: int = 200
    now: Callable[[], float] = time.time
    # Told the age of each balance, in seconds, when an event is made of it.
    on_event_age: Callable[[float], None] = lambda age: None
    _feeds: dict[Account, _Feed] = field(default_factory=dict)
    _subscriptions: set[Subscription] = field(default_factory=set)
    _closed: bool = False

    @asynccontextmanager
    async def subscribe(
        self, user_id: str, selectors: Sequence[Selector] = (), *, min_interval: float = 0.0
    ) -> AsyncIterator[Subscription]:
        """A subscription to these accounts of the user, or to all that he has a credential for; of each account there
        is a balance every `min_interval` seconds at most."""
        if self._closed:
            raise _shutting_down()
        if len(selectors) > self.max_accounts:
            raise FieldInvalid("accounts", f"at most {self.max_accounts} accounts can be followed by one stream.")
        lifetime = self.lifetime * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
        subscription = Subscription(self, user_id, selectors, lifetime, min_interval)
        self._subscriptions.add(subscription)
        try:
            await subscription.open()
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription.close()

    def join(self, account: Account, listing: Listing, place: _Place) -> None:
        """Follow the account's feed, which starts if nobody did before."""
        feed = self._feeds.get(account)
        if feed is None:
            feed = self._feeds[account] = _Feed(self, account, listing)
        feed.join(place)

    def leave(self, account: Account, place: _Place) -> None:
        """Follow it no more; the feed ends with its last subscriber."""
        feed = self._feeds.get(account)
        if feed is None:
            return
        feed.places.discard(place)
        if not feed.places:
            del self._feeds[account]
            feed.task.cancel()

    def state(self, account: Account, now: float) -> bytes:
        """How the account is, for a heartbeat; `now` is in seconds since the epoch."""
        feed = self._feeds.get(account)
        return feed.state(now) if feed else account_state(AccountState(account, 0, None, None))

    async def read(
        self, account: Account, listing: Listing, current: StoredBalance | None, *, due: bool
    ) -> BalanceResult:
        """The account's balance for its feed, which has `current`: the first one may be as old as GetBalance's. When it
        is `due` the venue is asked, unless another replica just has; else it suffices that nobody is late."""
        deadline = asyncio.get_running_loop().time() + self.venue_timeout + 1.0
        max_age = None
        if current is not None:
            # A little less than the pause, so that a kept value never makes a poll pass over a change.
            pause = current.pause or self.interval
            max_age = pause * 0.5 if due else pause * (1 + _JITTER) + LEASE
        return await self.balances.get(account, listing, max_age=max_age, deadline=deadline, polling=True)

    def pause(self, reading: BalanceResult | None, error: ServiceError | None, asked_at: float = 0.0) -> float:
        """How long a feed waits before it asks the venue again: longer where the venue wished it, and where another
        replica asked last, which then comes first; should that be gone, the next does within the lease."""
        jitter = random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
        if reading is None or error is not None:
            wait = self.interval * jitter
            if error is not None and error.retry_after is not None:
                wait = max(wait, min(error.retry_after, 300.0))
            return wait
        wait = (reading.stored.pause or self.interval) * jitter - reading.age
        if reading.stored.fetch_time != asked_at and self.balances.shared:
            wait += LEASE * random.uniform(0.6, 1.0)  # noqa: S311
        return max(_LEAST_PAUSE, wait)

    def counts(self) -> tuple[int, int]:
        """How many feeds run, and how many subscriptions are open."""
        return len(self._feeds), len(self._subscriptions)

    async def close(self) -> None:
        """End every stream with SHUTTING_DOWN and stop the feeds."""
        self._closed = True
        for subscription in list(self._subscriptions):
            # Not all at once: the subscribers of a replica come back to another one.
            subscription.end(_shutting_down(random.uniform(*_COMEBACK)))  # noqa: S311
        tasks = [feed.task for feed in self._feeds.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def _shutting_down(delay: float | None = None) -> ShuttingDown:
    return ShuttingDown(
        "This replica is shutting down.",
        advice="Open the stream again; another replica will answer.",
        retry_after=delay,
    )
