"""The references of credentials, cached for a short time, so that most calls do not ask the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cachetools import LRUCache

from exchange_service.credentials import CredentialReference, CredentialStore
from exchange_service.errors import StoreUnavailable
from exchange_service.model import Account, Credential
from exchange_service.tasks import retrieve_exception

# Seconds within which a change by another program is noticed.
TTL = 30.0
# After this share of the TTL a caller still gets the cached reference, while the store is asked beside the call.
_REFRESH_AFTER = 2 / 3
# Seconds after which a credential that was just added works.
MISSING_TTL = 2.0
# While the database is down, cached references serve for GRACE seconds, and the database is tried every RETRY_AFTER.
GRACE = 300.0
RETRY_AFTER = 5.0
MAX_ACCOUNTS = 20_000


@dataclass(slots=True)
class _Entry:
    """A cached answer of the store. The times are the clock's: when the store gave it, from when on it is refreshed
    beside the calls, and from when on a call waits for the store."""

    reference: CredentialReference | None
    confirmed: float
    refresh_after: float
    expires: float


class CachedReferences:
    """`find` from memory if the store was asked recently. It holds references, never a secret.

    Callers that look for the same account at the same time share one request to the store.
    """

    def __init__(
        self,
        store: CredentialStore,
        ttl: float = TTL,
        *,
        max_accounts: int = MAX_ACCOUNTS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._ttl = ttl
        self._clock = clock
        self._entries: LRUCache[Account, _Entry] = LRUCache(max_accounts)
        self._requests: dict[Account, asyncio.Task[CredentialReference | None]] = {}

    async def find(
        self, account: Account, *, aliases: Sequence[str] = (), credential_of: str = "", now: bool = False
    ) -> CredentialReference | None:
        """As the store's `find`. An exchange's `aliases` and `credential_of` must always be the same. With `now` the
        store is asked in any case, also if it is being asked already: that request may have missed the last change."""
        entry = self._entries.get(account)
        time_now = self._clock()
        if now:
            self._requests.pop(account, None)
        elif entry is not None and time_now < entry.expires:
            if time_now >= entry.refresh_after:
                self._request(account, aliases, credential_of)
            return entry.reference
        # Shielded: a caller that is cancelled does not end the request for the others.
        return await asyncio.shield(self._request(account, aliases, credential_of))

    def get_local(self, account: Account) -> CredentialReference | None:
        """The reference, if it is cached and not due for a refresh."""
        entry = self._entries.get(account)
        return entry.reference if entry is not None and self._clock() < entry.refresh_after else None

    def _request(
        self, account: Account, aliases: Sequence[str], credential_of: str
    ) -> asyncio.Task[CredentialReference | None]:
        """The running request to the store, or a new one."""
        request = self._requests.get(account)
        if request is None:
            request = asyncio.create_task(self._ask_store(account, aliases, credential_of), name="credential reference")
            self._requests[account] = request
            request.add_done_callback(lambda done: self._on_request_done(account, done))
            request.add_done_callback(retrieve_exception)
        return request

    async def open(self, reference: CredentialReference) -> Credential:
        """What the row holds, from the store each time."""
        return await self._store.open(reference)

    def forget(self, account: Account) -> None:
        """Ask the store at the next call: the credential was changed or refused."""
        self._entries.pop(account, None)
        # A running request may have been answered before the change.
        self._requests.pop(account, None)

    async def _ask_store(
        self, account: Account, aliases: Sequence[str], credential_of: str
    ) -> CredentialReference | None:
        request = asyncio.current_task()
        try:
            reference = await self._store.find(account, aliases=aliases, credential_of=credential_of)
        except StoreUnavailable:
            entry = self._entries.get(account)
            now = self._clock()
            if entry is None or entry.reference is None or now - entry.confirmed > GRACE:
                raise
            entry.refresh_after = entry.expires = min(now + RETRY_AFTER, entry.confirmed + GRACE)
            return entry.reference
        except Exception:
            self._entries.pop(account, None)
            raise
        if self._requests.get(account) is request:
            self._keep(account, reference)
        return reference

    def _keep(self, account: Account, reference: CredentialReference | None) -> None:
        now = self._clock()
        ttl = min(self._ttl, MISSING_TTL) if reference is None else self._ttl
        self._entries[account] = _Entry(reference, now, now + ttl * _REFRESH_AFTER, now + ttl)

    def _on_request_done(self, account: Account, request: asyncio.Task[Any]) -> None:
        if self._requests.get(account) is request:
            del self._requests[account]
