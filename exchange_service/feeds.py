"""StreamBalances: one feed an account, however many subscribe; each subscriber has a mailbox of latest values.

A feed polls through `Balances`, so that it shares the kept value and the fetch in progress with GetBalance. Each update
is turned into bytes once and put into every subscriber's mailbox, where a newer one replaces it: a slow reader skips
updates, and since each is the whole state, loses nothing.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog

from exchange_service.balances import Balances, Reading
from exchange_service.errors import (
    CredentialMissing,
    FieldInvalid,
    ServiceError,
    ServiceFailed,
    ShuttingDown,
    StreamLifetimeReached,
)
from exchange_service.model import Account
from exchange_service.registry import Listing, Registry
from exchange_service.wire import (
    AccountState,
    AmountName,
    RowIdentity,
    Source,
    StoredBalance,
    account_error_event,
    balance_event,
    heartbeat_event,
    with_known_rows,
)

# Feeds of many accounts that were started together drift apart by this share of the interval.
_JITTER = 0.1
# Seconds within which the subscribers of a replica that ends are told to come back.
_COMEBACK = (0.2, 3.0)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Selector:
    """An account that a subscriber asks for, and the version of it that he has already; see AccountSelector."""

    exchange_id: str
    environment: str = ""
    known_version: int = 0
    account_type: str = ""


@dataclass(frozen=True, slots=True)
class _Update:
    """A balance to hand out: the bytes are shared by all subscribers, its age is reckoned when it is handed out."""

    data: bytes
    fetch_time: float
    source: Source
    stale: ServiceError | None


@dataclass(slots=True)
class _Pending:
    """What a subscriber has not read yet of one account; a newer balance replaces the one that waits."""

    update: _Update | None = None
    error: bytes | None = None


class _Feed:
    """One account's poll loop, and its last state."""

    def __init__(self, feeds: Feeds, account: Account, listing: Listing) -> None:
        self.account = account
        self.listing = listing
        self.subscribers: set[Subscription] = set()
        self.current: StoredBalance | None = None
        self.error: ServiceError | None = None
        self._feeds = feeds
        # `current` as bytes with the rows that were reported before, and which balance they were made of.
        self._data = b""
        self._made_of: StoredBalance | None = None
        self._rows: dict[RowIdentity, tuple[AmountName, ...]] = {}
        self.task = asyncio.get_running_loop().create_task(self._run(), name=f"feed {account.exchange_id}")

    async def _run(self) -> None:
        while True:
            try:
                self._receive(await self._feeds.read(self.account, self.listing, first=self.current is None))
            except ServiceError as error:
                # Without its traceback, which holds everything that the failed call had in its hands.
                self._fail(error.with_traceback(None))
            except Exception as error:
                log.error("feed.failed", exchange=self.account.exchange_id, error=type(error).__name__)
                self._fail(ServiceFailed("The service failed to read this account; its log says why."))
            await asyncio.sleep(self._feeds.pause(self.error))

    def _receive(self, reading: Reading) -> None:
        stored, stale = reading.stored, reading.stale
        changed = self.current is None or stored.version != self.current.version
        recovered = self.error is not None and stale is None
        self.current = stored
        if stale is not None and not changed:
            self._fail(stale)
            return
        self.error = stale
        if changed or recovered:
            update = self._update(stored, reading.source, stale)
            for subscriber in self.subscribers:
                subscriber.put_balance(self.account, update)
        if stale is not None:
            self._announce(stale)

    def _update(self, stored: StoredBalance, source: Source, stale: ServiceError | None) -> _Update:
        """The current balance to hand out, made into bytes once for each fetch that somebody is told of."""
        if self._made_of is not stored:
            self._data, self._rows = with_known_rows(stored, self._rows)
            self._made_of = stored
        return _Update(self._data, stored.fetch_time, source, stale)

    def _fail(self, error: ServiceError) -> None:
        """Say it once: a venue that stays down is not news each time."""
        news = self.error is None or self.error.reason != error.reason
        self.error = error
        if isinstance(error, CredentialMissing):
            # Nobody who comes now is to see what was held while there was a key.
            self.current, self._made_of, self._rows = None, None, {}
        if news:
            self._announce(error)

    def _announce(self, error: ServiceError) -> None:
        event = account_error_event(self.account, error, self.version)
        for subscriber in self.subscribers:
            subscriber.put_error(self.account, event)

    @property
    def version(self) -> int:
        """The newest balance's version; 0 for none."""
        return self.current.version if self.current else 0

    def join(self, subscriber: Subscription) -> None:
        """Add a subscriber, and give him the state that there is."""
        self.subscribers.add(subscriber)
        if self.current is not None and self._presentable(self.current):
            source = Source.LAST_GOOD if self.error else Source.CACHE
            subscriber.put_balance(self.account, self._update(self.current, source, self.error))
        if self.error is not None:
            subscriber.put_error(self.account, account_error_event(self.account, self.error, self.version))

    def _presentable(self, stored: StoredBalance) -> bool:
        """The rule of GetBalance: in trouble a last good value is given only if that passes, and not for ever."""
        return self.error is None or (self.error.transient and self._feeds.balances.within_grace(stored))

    def state(self) -> AccountState:
        """For the heartbeat."""
        age = self._feeds.age(self.current) if self.current else None
        return AccountState(self.account, self.version, age, self.error)


class Subscription:
    """One stream's mailbox: iterate it to get serialised StreamBalancesResponse messages.

    Ends by raising StreamLifetimeReached or ShuttingDown; never by itself.
    """

    def __init__(self, feeds: Feeds, user_id: str, selectors: Sequence[Selector], lifetime: float) -> None:
        self._feeds = feeds
        self._user_id = user_id
        self._selectors = tuple(selectors)
        self._pending: dict[Account, _Pending] = {}
        self._wake = asyncio.Event()
        self._ended: ServiceError | None = None
        now = asyncio.get_running_loop().time()
        self._dies = now + lifetime
        self._next_heartbeat = now + feeds.heartbeat_interval
        self._known: dict[Account, int] = {}
        self._followed: set[Account] = set()
        # Accounts that were asked for and cannot be followed: an unknown exchange, a wrong environment.
        self._unfollowable: dict[Account, ServiceError] = {}
        self._reload: asyncio.Task[None] | None = None

    def put_balance(self, account: Account, update: _Update) -> None:
        """A new whole state; it takes the place of what has not been read yet."""
        if self._known.pop(account, 0) == self._feeds.version(account) and self._feeds.healthy(account):
            # The first state of a stream that resumes, and the subscriber has it already.
            return
        self._pending[account] = _Pending(update)
        self._wake.set()

    def put_error(self, account: Account, event: bytes) -> None:
        """The account's trouble; a balance that has not been read yet stays before it."""
        self._pending.setdefault(account, _Pending()).error = event
        # After an error the recovery is news, also where the balance is the one that the subscriber has.
        self._known.pop(account, None)
        self._wake.set()

    def end(self, error: ServiceError) -> None:
        """End the stream with this error as soon as its reader asks for the next event."""
        self._ended = error
        self._wake.set()

    async def open(self) -> None:
        """Follow the accounts that were selected."""
        for selector in self._selectors:
            self._follow(selector)
        if not self._selectors:
            await self._follow_all()
            if not self._followed and not self._unfollowable:
                # There is nothing to wait for, and the subscriber should know it.
                self._next_heartbeat = asyncio.get_running_loop().time()

    def close(self) -> None:
        """Leave every feed; one that nobody follows any more ends."""
        if self._reload is not None:
            self._reload.cancel()
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
                self.put_error(account, account_error_event(account, error, 0))
            return account
        if account not in self._followed:
            self._followed.add(account)
            if selector.known_version:
                self._known[account] = selector.known_version
            self._feeds.join(account, listing, self)
        return account

    def _leave(self, account: Account) -> None:
        self._followed.discard(account)
        self._pending.pop(account, None)
        self._feeds.leave(account, self)

    async def _follow_all(self) -> None:
        """Follow every stored account of the user; called again now and then, for those that come and go."""
        stored = await self._feeds.accounts_of(self._user_id)
        wanted = {
            self._follow(Selector(account.exchange_id, account.environment))
            for account in stored[: self._feeds.max_accounts]
        }
        for account in self._followed - wanted:
            self._leave(account)
        for account in self._unfollowable.keys() - wanted:
            del self._unfollowable[account]

    async def _reload_accounts(self) -> None:
        try:
            await self._follow_all()
        except ServiceError as error:
            log.warning("stream.accounts_unknown", reason=error.reason)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._events()

    async def _events(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        while True:
            if self._ended is not None:
                raise self._ended
            if loop.time() >= self._dies:
                raise StreamLifetimeReached("The stream has lived as long as streams may; open it again.")
            if loop.time() >= self._next_heartbeat:
                self._next_heartbeat = loop.time() + self._feeds.heartbeat_interval
                if not self._selectors and (self._reload is None or self._reload.done()):
                    # Beside the events: a store that is slow must not hold them up.
                    self._reload = loop.create_task(self._reload_accounts(), name="accounts of a stream")
                yield self._heartbeat()
            elif self._pending:
                for event in self._take():
                    yield event
            else:
                await self._wait(min(self._next_heartbeat, self._dies) - loop.time())

    def _take(self) -> list[bytes]:
        account = next(iter(self._pending))
        pending = self._pending.pop(account)
        events = []
        if pending.update is not None:
            update = pending.update
            age = max(0.0, self._feeds.now() - update.fetch_time)
            events.append(balance_event(update.data, update.source, age, update.stale))
        if pending.error is not None:
            events.append(pending.error)
        return events

    async def _wait(self, seconds: float) -> None:
        self._wake.clear()
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._wake.wait()
        except TimeoutError:
            return

    def _heartbeat(self) -> bytes:
        states = [self._feeds.state(account) for account in sorted(self._followed)]
        states += [AccountState(account, 0, None, error) for account, error in sorted(self._unfollowable.items())]
        return heartbeat_event(self._feeds.now(), states)


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
    _feeds: dict[Account, _Feed] = field(default_factory=dict)
    _subscriptions: set[Subscription] = field(default_factory=set)
    _closed: bool = False

    @asynccontextmanager
    async def subscribe(self, user_id: str, selectors: Sequence[Selector] = ()) -> AsyncIterator[Subscription]:
        """A subscription to these accounts of the user, or to all that he has a credential for."""
        if self._closed:
            raise _shutting_down()
        if len(selectors) > self.max_accounts:
            raise FieldInvalid("accounts", f"at most {self.max_accounts} accounts can be followed by one stream.")
        lifetime = self.lifetime * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
        subscription = Subscription(self, user_id, selectors, lifetime)
        self._subscriptions.add(subscription)
        try:
            await subscription.open()
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            subscription.close()

    def join(self, account: Account, listing: Listing, subscriber: Subscription) -> None:
        """Follow the account's feed, which starts if nobody did before."""
        feed = self._feeds.get(account)
        if feed is None:
            feed = self._feeds[account] = _Feed(self, account, listing)
        feed.join(subscriber)

    def leave(self, account: Account, subscriber: Subscription) -> None:
        """Follow it no more; the feed ends with its last subscriber."""
        feed = self._feeds.get(account)
        if feed is None:
            return
        feed.subscribers.discard(subscriber)
        if not feed.subscribers:
            del self._feeds[account]
            feed.task.cancel()

    def version(self, account: Account) -> int:
        """The version of the account's newest balance; 0 for none."""
        feed = self._feeds.get(account)
        return feed.version if feed else 0

    def healthy(self, account: Account) -> bool:
        """Whether the account could be read when last tried."""
        feed = self._feeds.get(account)
        return feed is not None and feed.error is None

    def state(self, account: Account) -> AccountState:
        """How the account is, for a heartbeat."""
        feed = self._feeds.get(account)
        return feed.state() if feed else AccountState(account, 0, None, None)

    def age(self, stored: StoredBalance) -> float:
        """How old the venue's answer is, in seconds."""
        return max(0.0, self.now() - stored.fetch_time)

    async def read(self, account: Account, listing: Listing, *, first: bool) -> Reading:
        """The account's balance for its feed: the first one may be as old as GetBalance's, later ones are polled."""
        deadline = asyncio.get_running_loop().time() + self.venue_timeout + 1.0
        # A little less than the interval, so that a kept value never makes a poll pass over a change.
        max_age = None if first else self.interval * 0.5
        return await self.balances.get(account, listing, max_age=max_age, deadline=deadline)

    def pause(self, error: ServiceError | None) -> float:
        """How long a feed waits before it reads again: longer where the venue asked for it."""
        wait = self.interval * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311
        if error is not None and error.retry_after is not None:
            wait = max(wait, min(error.retry_after, 300.0))
        return wait

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
        "This replica is shutting down. Open the stream again, another one will answer.", retry_after=delay
    )
