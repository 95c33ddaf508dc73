"""What the last read of an account left, for the watch of the same account."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from exchange_service.plugin_api import Balance, Subscription, VenueCall, VenueTimeout
from exchange_service_lighter import parse

# The name under which a watch finds a new read among what its subscription brings.
READ = "read"
# Seconds within which a watch must get its first read.
_PATIENCE = 120.0


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
    """The newest reading of one account, and the watches that use it."""

    def __init__(self) -> None:
        self._reading: FoundAccounts | None = None
        self._found = asyncio.Event()
        self._watches: set[Subscription] = set()

    @property
    def found(self) -> bool:
        """Whether there is a reading."""
        return self._reading is not None

    def put(self, reading: FoundAccounts) -> None:
        """Take the place of an older reading, and tell the watches."""
        if self._reading is not None and reading.begun < self._reading.begun:
            return
        self._reading = reading
        self._found.set()
        for subscription in self._watches:
            subscription.put(READ, reading)

    async def get(self) -> FoundAccounts:
        """The newest reading. Waits for the first one; raises VenueTimeout if none comes."""
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._found.wait()
        except TimeoutError:
            raise VenueTimeout(
                "Lighter's accounts were not read in time, so it is not known which to follow."
            ) from None
        assert self._reading is not None
        return self._reading

    @contextmanager
    def told_to(self, subscription: Subscription) -> Iterator[None]:
        """Put each new reading into the subscription, as READ."""
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
