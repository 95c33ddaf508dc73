"""The running feeds by account. A feed starts with its first subscriber and ends with its last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from exchange_service.model import Account
from exchange_service.streams.feed import Feed, FeedSnapshot
from exchange_service.streams.mailbox import MailboxSlot
from exchange_service.venues.registry import Listing
from exchange_service.wire.events import AccountState, account_state


class Feeds:
    """Maps accounts to feeds; `make_feed` returns a new feed, not started yet."""

    def __init__(self, make_feed: Callable[[Account, Listing], Feed]) -> None:
        self._make_feed = make_feed
        self._feeds: dict[Account, Feed] = {}

    def __len__(self) -> int:
        return len(self._feeds)

    def join(self, account: Account, listing: Listing, slot: MailboxSlot) -> None:
        """Have the account's feed fill this slot."""
        feed = self._feeds.get(account)
        if feed is None:
            feed = self._feeds[account] = self._make_feed(account, listing)
            feed.start()
        feed.join(slot)

    def leave(self, account: Account, slot: MailboxSlot) -> None:
        """Undo `join`; the feed ends with its last slot."""
        feed = self._feeds.get(account)
        if feed is None:
            return
        feed.leave(slot)
        if not feed.slots:
            del self._feeds[account]
            feed.stop()

    def read_again(self, account: Account) -> None:
        """Have the account's feed read soon, if something stands in its way that may be gone now."""
        feed = self._feeds.get(account)
        if feed is not None:
            feed.read_again()

    def state(self, account: Account, slot: MailboxSlot, wall: float) -> bytes:
        """The account's part of a serialised HeartbeatEvent, as the events of this slot have told it; `wall` is the
        time now, in seconds since the epoch."""
        feed = self._feeds.get(account)
        if feed is None:
            return account_state(AccountState(account, slot.version, None, slot.error, slot.unconfirmed))
        return feed.state(slot, wall)

    def snapshot(self) -> dict[Account, FeedSnapshot]:
        """What each feed has now."""
        return {account: feed.snapshot() for account, feed in self._feeds.items()}

    async def close(self) -> None:
        """Stop every feed and wait until all have ended."""
        tasks = [task for feed in self._feeds.values() if (task := feed.stop()) is not None]
        if tasks:
            await asyncio.wait(tasks)
