"""One balance of tastytrade: the stored account, or every open account of the login; read, and pushed since."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace

from exchange_service.plugin_api import (
    Balance,
    VenueAccount,
    VenueCall,
    VenueMalformed,
    combined_summary,
    gather_accounts,
)
from exchange_service_tastytrade import parse
from exchange_service_tastytrade.client import TastytradeClient


@dataclass(frozen=True, slots=True)
class PushedAccount:
    """An account as the venue has pushed it, None if not as a whole, and when it came, in the event loop's time."""

    account: VenueAccount | None
    order: parse.PushOrder
    came_at: float


@dataclass(slots=True)
class LoginAccounts:
    """The accounts of the requested types: as the last read found them, each replaced by what was pushed since."""

    read: tuple[VenueAccount, ...] = ()
    notes: tuple[str, ...] = ()
    # When the last read began, in the event loop's time. What came before that is in it.
    read_at: float = float("-inf")
    pushed: dict[str, PushedAccount] = field(default_factory=dict)

    def balance(self) -> Balance:
        """What is known by now, in the shape of a read, with the oldest of the accounts' times."""
        accounts = tuple(map(self._newest, self.read))
        times = [account.venue_time for account in accounts if account.venue_time is not None]
        return Balance(accounts, combined_summary(accounts), venue_time=min(times, default=None), notes=self.notes)

    def is_complete(self, since: float) -> bool:
        """Whether `balance` is all that is known: everything was read after `since`, when the pushes began, everything
        that was pushed later is in it, and no account waits for a read that works."""
        shown = {account.id for account in self.read if self._newest(account) is not account}
        missing = [number for number, pushed in self.pushed.items() if self._is_newer(pushed) and number not in shown]
        return self.read_at >= since and not missing and not any(map(self._is_unread, self.read))

    def has_positions(self) -> bool:
        """Whether an account is worth something else than its cash, so that prices move what it is worth."""
        summaries = [self._newest(account).summary for account in self.read]
        return any(summary is not None and summary.equity != summary.cash for summary in summaries)

    def _newest(self, read: VenueAccount) -> VenueAccount:
        """The account as it was pushed, with the type and the name that only the list has; else as it was read."""
        pushed = self.pushed.get(read.id)
        if pushed is None or pushed.account is None or not self._is_newer(pushed):
            return read
        if not _can_replace(pushed.account, read):
            return read
        return replace(pushed.account, type=read.type, label=read.label)

    def _is_newer(self, pushed: PushedAccount) -> bool:
        return pushed.came_at >= self.read_at

    def _is_unread(self, account: VenueAccount) -> bool:
        """Whether the read of it failed for a while, and nothing was pushed since."""
        error = self._newest(account).error
        return error is not None and error.transient


def _can_replace(pushed: VenueAccount, read: VenueAccount) -> bool:
    """Whether a push says all of the account: its type is known, and it has no other currency than the pushed one."""
    currencies = {row.asset for row in read.assets}
    return bool(read.type) and currencies <= {row.asset for row in pushed.assets}


async def login_accounts(call: VenueCall) -> LoginAccounts:
    """What the reads and the pushes of this account in this process share."""

    async def make() -> LoginAccounts:
        return LoginAccounts()

    return await call.account_state.get(f"login's accounts {call.account.account_type}", make)


async def requested_numbers(call: VenueCall, client: TastytradeClient) -> tuple[str, ...]:
    """The numbers of the accounts that a read reads, as far as the list has them."""
    listed = await client.accounts()
    return tuple(number for number, account in listed.items() if number and _is_requested(account, call))


async def read_balance(call: VenueCall) -> Balance:
    """The accounts of the requested types, with the oldest of their times. An account that fails has its error."""
    client = TastytradeClient(call)
    known = await login_accounts(call)
    listed = await client.accounts()
    began = asyncio.get_running_loop().time()
    accounts = await _read_accounts(call, client, listed)
    closed = [number for number, account in listed.items() if not parse.is_open(account)]
    known.notes = (f"Closed at tastytrade, and left out: {', '.join(closed)}.",) if closed else ()
    known.read, known.read_at = accounts, began
    return known.balance()


async def _read_accounts(call: VenueCall, client: TastytradeClient, listed: parse.Accounts) -> tuple[VenueAccount, ...]:
    requested = {number: account for number, account in listed.items() if _is_requested(account, call)}

    async def read(number: str) -> VenueAccount:
        entry = requested[number]
        if isinstance(entry, VenueMalformed):
            raise entry
        account = await call.compute(parse.account, await client.balances(number), number)
        return replace(account, type=entry.type, label=entry.label)

    def unread(number: str) -> VenueAccount:
        """The account without its figures: the list has its type and its name also if it cannot be read."""
        entry = requested[number]
        return (
            VenueAccount(number)
            if isinstance(entry, VenueMalformed)
            else VenueAccount(number, entry.type, label=entry.label)
        )

    return await gather_accounts(list(requested), read, unread=unread)


def _is_requested(listed: parse.ListedAccount | VenueMalformed, call: VenueCall) -> bool:
    """Whether the account may be open and is of a requested type. An account whose type is not known is."""
    return isinstance(listed, VenueMalformed) or (not listed.closed and call.wants(listed.type))
