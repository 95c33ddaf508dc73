"""What the last read of an account left, for the watch of the same account."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from exchange_service.plugin_api import Balance, Subscription, VenueCall
from exchange_service_lighter import parse

# The name under which a watch finds a new read among what its subscription brings.
READ = "read"


@dataclass(frozen=True, slots=True)
class FoundAccounts:
    """The accounts that a read found. `begun` is when it began, in the event loop's seconds."""

    accounts: tuple[parse.Account, ...]
    usual_collateral: str
    notes: tuple[str, ...]
    begun: float

    def balance(self, accounts: Sequence[parse.Account]) -> Balance:
        """The balance of these accounts, with what the read noted. Raises as `parse.balance` does."""
        balance = parse.balance(accounts, self.usual_collateral)
        return replace(balance, notes=(*self.notes, *balance.notes))


class LastRead:
    """The newest findings of one account, and the watches that use it."""

    def __init__(self) -> None:
        self._findings: FoundAccounts | None = None
        self._found = asyncio.Event()
        self._watches: set[Subscription] = set()

    def put(self, findings: FoundAccounts) -> None:
        """Take the place of older findings, and tell the watches."""
        if self._findings is not None and findings.begun < self._findings.begun:
            return
        self._findings = findings
        self._found.set()
        for subscription in self._watches:
            subscription.put(READ, findings)

    async def get(self) -> FoundAccounts:
        """The newest findings. Waits for the first one, which a poll brings as long as nothing is pushed."""
        await self._found.wait()
        assert self._findings is not None
        return self._findings

    @contextmanager
    def told_to(self, subscription: Subscription) -> Iterator[None]:
        """Put the newest findings, and each newer ones, into the subscription as READ."""
        if self._findings is not None:
            subscription.put(READ, self._findings)
        self._watches.add(subscription)
        try:
            yield
        finally:
            self._watches.discard(subscription)


async def last_read(call: VenueCall) -> LastRead:
    """The account's last read. Every read is of all accounts, whichever types the call wants."""

    async def make() -> LastRead:
        return LastRead()

    return await call.account_state.get("last read", make)
