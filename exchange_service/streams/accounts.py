"""Which accounts a stream follows: those that it selects, or every account that its user has stored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from exchange_service.errors import ServiceError
from exchange_service.model import Account
from exchange_service.streams.feeds import Feeds
from exchange_service.streams.mailbox import Mailbox, MailboxSlot
from exchange_service.venues.registry import Listing, Registry
from exchange_service.wire.events import AccountState, account_error_event, account_state, heartbeat_event

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Selector:
    """An account that a subscriber selects, and the version of it that they have already; see AccountSelector."""

    exchange_id: str
    environment: str = ""
    known_version: int = 0
    account_type: str = ""


@dataclass(frozen=True, slots=True)
class AccountDirectory:
    """Finds accounts. `accounts_of` returns the stored accounts of a user; a stream follows `max_accounts` at most."""

    registry: Registry
    accounts_of: Callable[[str], Awaitable[list[Account]]]
    max_accounts: int = 200

    def find(self, user_id: str, selector: Selector) -> tuple[Account, Listing]:
        """The account that is selected, and its listing. Raises what `Registry.account` raises."""
        return self.registry.account(user_id, selector.exchange_id, selector.environment, selector.account_type)

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
        self._unavailable: dict[Account, ServiceError] = {}
        # Whether the stored accounts are followed, which may change while the stream lasts.
        self._follows_all = False
        # The versions that the subscriber had when the stream began, until an account is followed.
        self._known: dict[Account, int] = {}
        self._reload: asyncio.Task[None] | None = None

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
        for entry in known:
            # One of an exchange that is not served any more is not followed either.
            with suppress(ServiceError):
                self._known[self._directory.find(self._user_id, entry)[0]] = entry.known_version
        for selector in selectors:
            self._follow(selector)
        if not selectors:
            self._follows_all = True
            await self._follow_stored()

    def close(self) -> None:
        """Leave every feed."""
        if self._reload is not None:
            self._reload.cancel()
        for account in list(self._slots):
            self._leave(account)

    def refresh(self) -> None:
        """Begin to follow accounts that have been stored since, and to leave those that are gone."""
        if self._follows_all and (self._reload is None or self._reload.done()):
            # In a task of its own: a slow store must not hold up the events.
            self._reload = asyncio.get_running_loop().create_task(self._reload_stored(), name="accounts of a stream")

    def heartbeat(self, wall: float) -> bytes:
        """A serialised StreamBalancesResponse with the state of each account; `wall` is the time now, in seconds since
        the epoch."""
        states = [self._feeds.state(account, wall) for account in sorted(self._slots)]
        states += [
            account_state(AccountState(account, 0, None, error)) for account, error in sorted(self._unavailable.items())
        ]
        return heartbeat_event(wall, states)

    def _follow(self, selector: Selector) -> Account:
        try:
            account, listing = self._directory.find(self._user_id, selector)
        except ServiceError as error:
            account = Account(self._user_id, selector.exchange_id, selector.environment, selector.account_type)
            if account not in self._unavailable:
                self._unavailable[account] = error
                self._mailbox.add_slot().put_error(account_error_event(account, error, 0))
            return account
        if account not in self._slots:
            known = max(selector.known_version, self._known.pop(account, 0))
            slot = self._slots[account] = self._mailbox.add_slot(known)
            self._feeds.join(account, listing, slot)
        return account

    def _leave(self, account: Account) -> None:
        slot = self._slots.pop(account)
        self._mailbox.remove_slot(slot)
        self._feeds.leave(account, slot)

    async def _follow_stored(self) -> None:
        wanted = {self._follow(selector) for selector in await self._directory.stored(self._user_id)}
        for account in self._slots.keys() - wanted:
            self._leave(account)
        for account in self._unavailable.keys() - wanted:
            del self._unavailable[account]

    async def _reload_stored(self) -> None:
        try:
            await self._follow_stored()
        except ServiceError as error:
            log.warning("stream.accounts_unknown", reason=error.reason)
