"""Which accounts users have stored, remembered for a while: streams of all of them then open while the store hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from cachetools import TTLCache

from exchange_service.errors import StoreUnavailable
from exchange_service.model import Account

# Seconds for which a user's accounts are remembered: as long as a credential's reference serves without the store.
REMEMBERED = 300.0
# Seconds that a stream that opens waits for the store if the accounts are remembered. What it misses joins later.
PATIENCE = 0.5
# Accounts of all users together, and one for each user.
_MOST = 60_000


class StoredAccounts:
    """Asks `accounts_of` for the stored accounts of a user, and remembers what it said."""

    def __init__(
        self, accounts_of: Callable[[str], Awaitable[list[Account]]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` is in seconds, for how long something is remembered."""
        self._accounts_of = accounts_of
        self._remembered: TTLCache[str, list[Account]] = TTLCache(
            _MOST, REMEMBERED, timer=clock, getsizeof=lambda accounts: 1 + len(accounts)
        )

    async def ask(self, user_id: str) -> list[Account]:
        """What the store says now. Raises StoreUnavailable."""
        accounts = await self._accounts_of(user_id)
        if len(accounts) < _MOST:
            self._remembered[user_id] = accounts
        return accounts

    async def ask_or_remember(self, user_id: str) -> list[Account]:
        """What the store says now, or what it said last if it does not answer soon. Raises StoreUnavailable if nothing
        is remembered."""
        remembered = self._remembered.get(user_id)
        if remembered is None:
            return await self.ask(user_id)
        try:
            async with asyncio.timeout(PATIENCE):
                return await self.ask(user_id)
        except (TimeoutError, StoreUnavailable):
            return remembered
