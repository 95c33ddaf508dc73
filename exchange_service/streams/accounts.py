"""Which accounts a stream follows: those that it selects, or every account that its user has stored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from exchange_service.errors import ServiceError
from exchange_service.model import Account
from exchange_service.streams.feeds import Feeds
from exchange_service.streams.mailbox import Known, Mailbox, MailboxSlot
from exchange_service.streams.update import ErrorUpdate
from exchange_service.tasks import without_origin
from exchange_service.venues.registry import Listing, Registry
from exchange_service.wire.events import AccountState, account_error_event, account_state, heartbeat_event

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Selector:
    """An account that a subscriber selects, and what they have of it already; see AccountSelector."""

    exchange_id: str
    environment: str = ""
    known_version: int = 0
    account_type: str = ""
    unconfirmed: bool = False


@dataclass(frozen=True, slots=True)
class AccountDirectory:
    """Finds accounts. `accounts_of` returns the stored accounts of a user; a stream follows `max_accounts` at most."""

    registry: Registry
    accounts_of: Callable[[str], Awaitable[list[Account]]]
    max_accounts: int = 200

    def find(self, user_id: str, selector: Selector) -> tuple[Account, Listing]:
        """The account that is selected, and its listing. Raises what `Registry.account` raises."""
        # No similar id is looked for: a stream may name hundreds, and the search would delay every other caller.
        return self.registry.account(
            user_id, selector.exchange_id, selector.environment, selector.account_type, suggest=False
        )

    async def stored(self, user_id: str) -> list[Selector]:
        """Selectors of the user's stored accounts. Raises StoreUnavailable."""
        accounts = await self.accounts_of(user_id)
        return [Selector(account.exchange_id, account.environment) for account in accounts[: self.max_accounts]]


class FollowedAccounts:
    """The accounts of one stream: each has a slot in the stream's mailbox, which the account's feed fills."""

    __slots__ = (
        "_directory",
        "_feeds",
        "_follows_all",
        "_known",
        "_mailbox",
        "_outdated",
        "_reload",
        "_slots",
        "_unavailable",
        "_user_id",
    )

    def __init__(self, user_id: str, directory: AccountDirectory, feeds: Feeds, mailbox: Mailbox) -> None:
        self._user_id = user_id
        self._directory = directory
        self._feeds = feeds
        self._mailbox = mailbox
        self._slots: dict[Account, MailboxSlot] = {}
        # Accounts that were selected and cannot be followed: an unknown exchange, a wrong environment.
        self._unavailable: dict[Account, AccountState] = {}
        # Whether the stored accounts are followed, which may change while the stream lasts.
        self._follows_all = False
        # What the subscriber has of accounts that are not followed yet, or not any more.
        self._known: dict[Account, Known] = {}
        self._reload: asyncio.Task[None] | None = None
        # Whether what is stored may have changed since it was last looked at.
        self._outdated = False

    def __len__(self) -> int:
        """How many accounts were selected, with those that cannot be followed."""
        return len(self._slots) + len(self._unavailable)

    @property
    def followed(self) -> tuple[Account, ...]:
        """The accounts that have a slot."""
        return tuple(self._slots)

    async def open(self, selectors: Sequence[Selector], known: Sequence[Selector] = ()) -> None:
        """Follow these accounts, or every stored one if there are no selectors; `known` are the versions that the
        subscriber has already. Raises StoreUnavailable."""
        for entry in (*selectors, *known):
            if entry.known_version or entry.unconfirmed:
                self._note_known(entry)
        for selector in selectors:
            self._follow(selector)
        if not selectors:
            self._follows_all = True
            await self._follow_stored()

    def _note_known(self, entry: Selector) -> None:
        try:
            account, _ = self._directory.find(self._user_id, entry)
        except ServiceError:
            account = self._named(entry)
        known = self._known.get(account, Known())
        version = max(known.version, entry.known_version)
        self._known[account] = Known(version, known.unconfirmed or entry.unconfirmed)

    def close(self) -> None:
        """Leave every feed."""
        if self._reload is not None:
            self._reload.cancel()
        for account in list(self._slots):
            self._leave(account)

    def refresh(self) -> None:
        """Begin to follow accounts that have been stored since, and to leave those that are gone."""
        if not self._follows_all:
            return
        self._outdated = True
        if self._reload is None or self._reload.done():
            # In a task of its own: a slow store must not hold up the events.
            self._reload = asyncio.get_running_loop().create_task(self._reload_stored(), name="accounts of a stream")

    def on_stored_change(self) -> None:
        """A credential of the user was stored or removed: read what may be readable now."""
        self.refresh()
        for account in self._slots:
            self._feeds.read_again(account)

    def heartbeat(self, wall: float) -> bytes:
        """A serialised StreamBalancesResponse with the state of each account; `wall` is the time now, in seconds since
        the epoch."""
        states = [self._feeds.state(account, self._slots[account], wall) for account in sorted(self._slots)]
        states += [account_state(self._unavailable[account]) for account in sorted(self._unavailable)]
        return heartbeat_event(wall, states)

    def _follow(self, selector: Selector) -> Account:
        try:
            account, listing = self._directory.find(self._user_id, selector)
        except ServiceError as error:
            account = self._named(selector)
            if account not in self._unavailable:
                self._tell_unavailable(account, without_origin(error))
            return account
        if account not in self._slots:
            slot = self._slots[account] = self._mailbox.add_slot(self._known.pop(account, None))
            told = self._unavailable.pop(account, None)
            slot.error = told.error if told is not None else None
            self._feeds.join(account, listing, slot)
        return account

    def _named(self, selector: Selector) -> Account:
        """The account of a selector that cannot be followed, as the subscriber named it."""
        return Account(self._user_id, selector.exchange_id, selector.environment, selector.account_type)

    def _tell_unavailable(self, account: Account, error: ServiceError) -> None:
        version = self._known.get(account, Known()).version
        self._unavailable[account] = AccountState(account, version, None, error)
        # If it can be followed later, its balance is sent in any case.
        self._known[account] = Known(version, unconfirmed=True)
        self._mailbox.add_slot().put_error(ErrorUpdate(error, account_error_event(account, error, version)))

    def _leave(self, account: Account) -> None:
        slot = self._slots.pop(account)
        self._mailbox.remove_slot(slot)
        self._feeds.leave(account, slot)
        if len(self._known) < self._directory.max_accounts:
            # If it comes back, its balance is sent again, and is not older.
            self._known[account] = Known(slot.version, unconfirmed=True)

    async def _follow_stored(self) -> None:
        selectors = await self._directory.stored(self._user_id)
        wanted = {self._follow(selector) for selector in selectors}
        for account in self._slots.keys() - wanted:
            self._leave(account)
        for account in self._unavailable.keys() - wanted:
            del self._unavailable[account]

    async def _reload_stored(self) -> None:
        try:
            while self._outdated:
                self._outdated = False
                await self._follow_stored()
        except ServiceError as error:
            log.warning("stream.accounts_unknown", reason=error.reason)
