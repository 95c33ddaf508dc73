"""The references of credentials, cached for a short time, so that most calls do not ask the database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from exchange_service.credentials import MOST_ACCOUNTS, CredentialReference, CredentialStore
from exchange_service.deadlines import has_ended, time_remaining, within
from exchange_service.errors import StoreUnavailable
from exchange_service.model import Account, Credential
from exchange_service.recently_used import RecentlyUsed
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
# Seconds after which a store that has not answered yet counts as one that is down, where the answer before is known.
KNOWN_AFTER = 0.5
MAX_ACCOUNTS = 20_000


@dataclass(slots=True)
class _Entry:
    """A cached answer of the store. The times are the clock's: when the store gave it, from when on it is refreshed
    beside the calls, and from when on a call waits for the store."""

    reference: CredentialReference | None
    confirmed: float
    refresh_after: float
    expires: float


@dataclass(slots=True)
class _Request:
    """A request to the store in progress, when it began, in the clock's time, and whether the store has been asked."""

    answer: asyncio.Task[CredentialReference | None]
    began: float
    sent: bool = False


@dataclass(slots=True)
class _StoredAccounts:
    """What a user has stored, as the store says or is about to say, and until when that counts; `known` is what it said
    before, and when. The times are the clock's. `outdated`: a request that may have missed a change."""

    accounts: asyncio.Future[list[Account]]
    began: float
    expires: float
    known: tuple[list[Account], float] | None
    outdated: bool = False

    @property
    def has_failed(self) -> bool:
        """Whether the store has not said it."""
        task = self.accounts
        return task.done() and (task.cancelled() or task.exception() is not None)

    def serves(self, now: float) -> bool:
        """Whether it may be asked for instead of the store."""
        return not (self.outdated or self.has_failed or (self.accounts.done() and now >= self.expires))

    def newest(self) -> tuple[list[Account], float] | None:
        """What the store said last, and when it was asked."""
        return (self.accounts.result(), self.began) if self.accounts.done() and not self.has_failed else self.known


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
        self._entries: RecentlyUsed[Account, _Entry] = RecentlyUsed(max_accounts)
        self._requests: dict[Account, _Request] = {}
        # Whether the store failed when it was asked last.
        self._failed = False
        self._stored: RecentlyUsed[str, _StoredAccounts] = RecentlyUsed(max_accounts)

    async def find(
        self, account: Account, *, aliases: Sequence[str] = (), credential_of: str = "", now: bool = False
    ) -> CredentialReference | None:
        """As the store's `find`. An exchange's `aliases` and `credential_of` must always be the same. With `now` the
        store is asked in any case, also if it has been asked already: that request may have missed the last change.

        A reference that was good lately serves while the store is down, or does not answer soon. StoreUnavailable if
        there is none and the caller's deadline comes first."""
        entry = self._entries.get(account)
        time_now = self._clock()
        if now:
            running = self._requests.get(account)
            if running is not None and running.sent:
                del self._requests[account]
            if account.user_id in self._stored:
                self._stored[account.user_id].outdated = True
        elif entry is not None and time_now < entry.expires:
            if time_now >= entry.refresh_after:
                self._request(account, aliases, credential_of)
            return entry.reference
        request = self._request(account, aliases, credential_of)
        known = self._known(account)
        if known is not None and not await has_ended(request.answer, self._patience(request.began, forced=now)):
            return known
        return await within(request.answer, late_store)

    def _known(self, account: Account) -> CredentialReference | None:
        """The reference that still serves while the store is down."""
        entry = self._entries.get(account)
        return entry.reference if entry is not None and self._clock() - entry.confirmed <= GRACE else None

    def _patience(self, began: float, *, forced: bool = False) -> float | None:
        """Seconds to wait for the answer to a request, where a known one can take its place. A forced call waits for
        half of the time that it has: the last change matters to it most."""
        if not forced:
            return max(0.0, began + KNOWN_AFTER - self._clock())
        remaining = time_remaining()
        return None if remaining is None else max(KNOWN_AFTER, remaining / 2)

    async def accounts(self, user_id: str) -> list[Account]:
        """As the store's `accounts`. Callers share the answer for two seconds. The one before serves while the store is
        down; StoreUnavailable as `find`."""
        stored = self._stored_accounts(user_id)
        if stored.known is None or self._clock() - stored.known[1] > GRACE:
            return await within(stored.accounts, late_store)
        if not await has_ended(stored.accounts, self._patience(stored.began)):
            return stored.known[0]
        try:
            return stored.accounts.result()
        except StoreUnavailable:
            return stored.known[0]

    def _stored_accounts(self, user_id: str) -> _StoredAccounts:
        """The running request for what the user has stored, a fresh answer, or a new request."""
        stored, now = self._stored.get(user_id), self._clock()
        if stored is not None and stored.serves(now):
            return stored
        accounts = asyncio.create_task(self._store.accounts(user_id), name="stored accounts")
        accounts.add_done_callback(retrieve_exception)
        known = stored.newest() if stored is not None else None
        stored = _StoredAccounts(accounts, now, now + min(self._ttl, MISSING_TTL), known)
        self._stored[user_id] = stored
        return stored

    def last_known(self, account: Account) -> CredentialReference | None:
        """The reference that was looked up last, however long ago; None if there is none, or it was forgotten."""
        entry = self._entries.get(account)
        return entry.reference if entry is not None else None

    def is_late(self) -> bool:
        """Whether the store owes answers: it failed when it was asked last, or has not answered for half a second."""
        latest = self._clock() - KNOWN_AFTER
        return self._failed or any(
            not request.answer.done() and request.began <= latest for request in self._requests.values()
        )

    def get_local(self, account: Account) -> CredentialReference | None:
        """The reference, if it is cached and not due for a refresh."""
        entry = self._entries.get(account)
        return entry.reference if entry is not None and self._clock() < entry.refresh_after else None

    def _request(self, account: Account, aliases: Sequence[str], credential_of: str) -> _Request:
        """The running request to the store, or a new one."""
        request = self._requests.get(account)
        if request is None:
            answer = asyncio.create_task(self._ask_store(account, aliases, credential_of), name="credential reference")
            request = self._requests[account] = _Request(answer, self._clock())
            answer.add_done_callback(lambda done: self._on_request_done(account, done))
            answer.add_done_callback(retrieve_exception)
        return request

    async def open(self, reference: CredentialReference) -> Credential:
        """What the row holds, from the store each time."""
        return await self._store.open(reference)

    def forget(self, account: Account) -> None:
        """Ask the store at the next call: the credential was changed or refused."""
        self._entries.pop(account, None)
        self._stored.pop(account.user_id, None)
        # A running request may have been answered before the change.
        self._requests.pop(account, None)

    def renew(self, reference: CredentialReference) -> None:
        """Take `reference` in place of a cached one of its ancestors: the service itself has just written it."""
        # A running request may have been answered before the change.
        self._requests.pop(reference.account, None)
        entry = self._entries.get(reference.account)
        if entry is not None and entry.reference is not None and entry.reference.version in reference.ancestors:
            self._keep(reference.account, reference)
        else:
            self._entries.pop(reference.account, None)

    def forget_user(self, user_id: str) -> None:
        """Ask the store at the next call for any account of the user: something that the user stored has changed."""
        self._stored.pop(user_id, None)
        for known in (self._entries, self._requests):
            for account in [account for account in known if account.user_id == user_id]:
                known.pop(account, None)

    async def _ask_store(
        self, account: Account, aliases: Sequence[str], credential_of: str
    ) -> CredentialReference | None:
        task = asyncio.current_task()
        request = self._requests.get(account)
        if request is not None and request.answer is task:
            request.sent = True
        try:
            if await self._is_still_missing(account, credential_of):
                return None
            reference = await self._store.find(account, aliases=aliases, credential_of=credential_of)
            self._failed = False
        except StoreUnavailable:
            self._failed = True
            entry = self._entries.get(account)
            now = self._clock()
            if entry is None or entry.reference is None or now - entry.confirmed > GRACE:
                raise
            entry.refresh_after = entry.expires = min(now + RETRY_AFTER, entry.confirmed + GRACE)
            return entry.reference
        except Exception:
            self._entries.pop(account, None)
            raise
        request = self._requests.get(account)
        if request is not None and request.answer is task:
            self._keep(account, reference)
        return reference

    async def _is_still_missing(self, account: Account, credential_of: str) -> bool:
        """Whether an account that had no credential a moment ago has none now, by one look at all that its user has
        stored: a stream may name hundreds of accounts without credentials, and each asks again and again."""
        entry = self._entries.get(account)
        if entry is None or entry.reference is not None:
            return False
        stored = self._stored_accounts(account.user_id)
        accounts_now = await asyncio.shield(stored.accounts)
        own, other = account.exchange_id.lower(), credential_of.lower()
        if len(accounts_now) >= MOST_ACCOUNTS or any(item.exchange_id in (own, other) for item in accounts_now):
            return False
        entry.refresh_after = entry.expires = stored.expires
        return True

    def _keep(self, account: Account, reference: CredentialReference | None) -> None:
        now = self._clock()
        ttl = min(self._ttl, MISSING_TTL) if reference is None else self._ttl
        self._entries[account] = _Entry(reference, now, now + ttl * _REFRESH_AFTER, now + ttl)

    def _on_request_done(self, account: Account, answer: asyncio.Task[Any]) -> None:
        request = self._requests.get(account)
        if request is not None and request.answer is answer:
            del self._requests[account]


def late_store() -> StoreUnavailable:
    """The error of a call whose time is over before the database has answered."""
    return StoreUnavailable("The credential database did not answer in the time that the call had.")
