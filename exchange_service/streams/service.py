"""StreamBalances: one feed for each account, however many subscribe; each subscriber has a mailbox of latest values.

Each update is serialised once and put into every subscriber's mailbox, where a newer one replaces it. A slow reader
skips updates, and loses nothing by it, because each update is the whole state.

With thousands of subscribers the path from a feed to a reader is the busiest of the service. Per subscriber an update
costs a dict entry and a future. What is the same for all subscribers is made once. Each subscriber has one timer, not
one for each event.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from exchange_service.balances.service import Balances
from exchange_service.balances.watches import Watches
from exchange_service.errors import FieldInvalid, ShuttingDown
from exchange_service.model import Account
from exchange_service.observability.tracing import Tracing
from exchange_service.streams.accounts import AccountDirectory, FollowedAccounts, Selector
from exchange_service.streams.clock import Clock
from exchange_service.streams.feed import Feed, FeedSnapshot
from exchange_service.streams.feeds import Feeds
from exchange_service.streams.mailbox import Mailbox
from exchange_service.streams.polling import Polling
from exchange_service.streams.pushing import Sources
from exchange_service.streams.subscription import Subscription, SubscriptionSnapshot
from exchange_service.streams.traced import traced_reads
from exchange_service.venues.registry import Listing, Registry

# Lifetimes differ by up to this share, so that streams opened together do not end together.
_LIFETIME_JITTER = 0.1
# Seconds within which the subscribers of a replica that shuts down are told to come back.
_COMEBACK = (0.2, 3.0)


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Times in seconds, and how many accounts one stream may follow."""

    interval: float = 10.0
    heartbeat_interval: float = 15.0
    lifetime: float = 3600.0
    venue_timeout: float = 8.0
    max_accounts: int = 200
    # Between two reads of an account whose venue pushes.
    reconcile_interval: float = 300.0
    # Those whose accounts are polled although their venue pushes.
    polled_exchanges: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class StreamsSnapshot:
    """The feeds that run and the subscriptions that are open at one moment."""

    feeds: Mapping[Account, FeedSnapshot]
    subscriptions: tuple[SubscriptionSnapshot, ...]


class Streams:
    """Opens subscriptions, and ends them when the service shuts down."""

    def __init__(
        self,
        registry: Registry,
        balances: Balances,
        accounts_of: Callable[[str], Awaitable[list[Account]]],
        settings: StreamSettings | None = None,
        *,
        clock: Clock | None = None,
        on_event_age: Callable[[float], None] = lambda age: None,
        watches: Watches | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        """`accounts_of` returns the stored accounts of a user. `on_event_age` is called with the age of the balance, in
        seconds, for each balance event that is serialised. `watches` follow venues' pushes; None: all are polled.
        `tracing`: None without traces."""
        self._settings = settings = settings or StreamSettings()
        self._balances = balances
        self._clock = clock or Clock()
        self._directory = AccountDirectory(registry, accounts_of, settings.max_accounts)
        polling = Polling(balances, settings.interval, settings.venue_timeout, self._clock)
        sources = Sources(polling, watches, settings.reconcile_interval, settings.polled_exchanges)
        self._feeds = Feeds(partial(_make_feed, sources, on_event_age, tracing))
        self._subscriptions: set[Subscription] = set()
        self._closed = False

    @asynccontextmanager
    async def subscribe(
        self,
        user_id: str,
        selectors: Sequence[Selector] = (),
        *,
        known: Sequence[Selector] = (),
        min_interval: float = 0.0,
    ) -> AsyncIterator[Subscription]:
        """Open a subscription to these accounts of the user, or to every stored one if there are no selectors. Of each
        account there is one balance per `min_interval` seconds at most. `known` are accounts with the versions that the
        subscriber has of them, however they are selected.

        Raises ShuttingDown, StoreUnavailable, or FieldInvalid for too many selectors.
        """
        if self._closed:
            raise _shutting_down()
        check_number("accounts", len(selectors), self.max_accounts)
        check_number("known", len(known), self.max_accounts)
        subscription = self._make_subscription(user_id, min_interval)
        self._subscriptions.add(subscription)
        self._balances.add_stored_listener(user_id, subscription.on_stored_change)
        try:
            await subscription.open(selectors, known)
            yield subscription
        finally:
            self._balances.remove_stored_listener(user_id, subscription.on_stored_change)
            self._subscriptions.discard(subscription)
            subscription.close()

    @property
    def max_accounts(self) -> int:
        """How many accounts one stream may follow."""
        return self._settings.max_accounts

    def counts(self) -> tuple[int, int]:
        """How many feeds run, and how many subscriptions are open."""
        return len(self._feeds), len(self._subscriptions)

    def snapshot(self) -> StreamsSnapshot:
        """The feeds and the subscriptions now."""
        subscriptions = tuple(subscription.snapshot() for subscription in self._subscriptions)
        return StreamsSnapshot(self._feeds.snapshot(), subscriptions)

    async def close(self) -> None:
        """End every stream with SHUTTING_DOWN and stop the feeds."""
        self._closed = True
        for subscription in list(self._subscriptions):
            # With a delay for each: the subscribers of a replica should not all reach another one at once.
            subscription.end(_shutting_down(random.uniform(*_COMEBACK)))  # noqa: S311
        await self._feeds.close()

    def _make_subscription(self, user_id: str, min_interval: float) -> Subscription:
        jitter = random.uniform(1 - _LIFETIME_JITTER, 1 + _LIFETIME_JITTER)  # noqa: S311
        mailbox = Mailbox(self._clock, min_interval)
        return Subscription(
            mailbox,
            FollowedAccounts(user_id, self._directory, self._feeds, mailbox),
            self._clock,
            lifetime=self._settings.lifetime * jitter,
            heartbeat_interval=self._settings.heartbeat_interval,
        )


def _make_feed(
    sources: Sources,
    on_event_age: Callable[[float], None],
    tracing: Tracing | None,
    account: Account,
    listing: Listing,
) -> Feed:
    """A feed of this account, with the source that its venue allows."""
    source = sources.make(account, listing)
    return Feed(
        account,
        source.read if tracing is None else traced_reads(tracing, account, source.read),
        source,
        within_grace=sources.polling.balances.within_grace,
        on_event_age=on_event_age,
    )


def check_number(field: str, number: int, most: int) -> None:
    """Raise FieldInvalid if a stream names more accounts in this field than it may follow."""
    if number > most:
        raise FieldInvalid(field, f"one stream can follow at most {most} accounts.")


def _shutting_down(delay: float | None = None) -> ShuttingDown:
    return ShuttingDown(
        "This replica is shutting down.",
        retry_after=delay,
        advice="Open the stream again; another replica will answer.",
    )
