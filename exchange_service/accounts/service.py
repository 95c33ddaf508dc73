"""The use case: list, connect, check and remove users' accounts.

A credential is tried at its venue through the gate, and then stored; until then nothing has changed. What is stored or
removed acts on every replica at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from exchange_service import clock
from exchange_service.accounts.audit import AccountAudit, AuditLine
from exchange_service.accounts.checking import CheckResult
from exchange_service.accounts.fields import field_fault, read_fields
from exchange_service.accounts.stored import StoredAccount, matching_rows, named_rows, only_row, show_accounts
from exchange_service.accounts.trying import Attempts
from exchange_service.balances.service import Balances
from exchange_service.credentials import CredentialStore, StoredCredential
from exchange_service.deadlines import time_remaining, within
from exchange_service.errors import (
    CredentialInvalid,
    CredentialMissing,
    DeadlinePassed,
    ExchangeRetired,
    NotSupported,
    ServiceError,
    StoreUnavailable,
    VenueError,
    from_reason,
)
from exchange_service.identity import Caller
from exchange_service.model import PRODUCTION, Account, Credential, ExchangeMetadata, Secret
from exchange_service.observability.redaction import LIVE
from exchange_service.tasks import TaskSet
from exchange_service.venues.registry import Listing, Registry

T = TypeVar("T")

# Seconds of a call below which no change of the store is begun.
_LEAST_TIME = 0.2
# Seconds: after a balance that is older, a replica may have been refused that this one does not know of.
_LATELY = 60.0
# Seconds that changes in progress have to end when the service does.
_ENDING = 3.0


@dataclass(frozen=True, slots=True)
class AccountQuery:
    """An account as a caller names it."""

    user_id: str
    exchange_id: str
    environment: str = ""


@dataclass(frozen=True, slots=True)
class ConnectQuery(AccountQuery):
    """A credential to store, by the names of its listing's fields."""

    fields: Mapping[str, Secret] = field(default_factory=dict, repr=False)
    skip_check: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    """What the credential of an account shows; `at` is when, in seconds since the epoch."""

    account: Account
    result: CheckResult
    at: float


@dataclass(frozen=True, slots=True)
class Connected:
    """An account that was stored. `check` is None if it was not tried; `replaced`: a credential was stored before."""

    account: StoredAccount
    check: Checked | None
    replaced: bool


@dataclass(frozen=True, slots=True)
class Accounts:
    """Manages accounts for callers. Each method raises UserForbidden if the caller may not manage the user's."""

    registry: Registry
    store: CredentialStore
    balances: Balances
    attempts: Attempts
    audit: AccountAudit
    _tasks: TaskSet = field(default_factory=TaskSet)

    async def list_stored(self, user_id: str, caller: Caller) -> list[StoredAccount]:
        """The user's stored accounts, sorted. Raises StoreUnavailable."""
        caller.require_management(user_id)
        rows = await self._bounded(self.store.stored(user_id))
        return show_accounts(rows, self.registry, self.balances)

    async def connect(self, query: ConnectQuery, caller: Caller) -> Connected:
        """Try a credential at its venue, unless told otherwise, and store it. Nothing is changed if this raises. The
        exception is a store that did not answer in time, and may still do as it was asked.

        Raises FieldInvalid for the credential's fields, the venue's error, CallerRateLimited after too many refused
        attempts, and NotSupported for a listing that cannot be read.
        """
        with self._recording("connect", caller, query) as line, _hidden(query.fields):
            account, listing = self._find(query)
            # In a thread: to look at a private key takes a while, and the first one needs modules that do as well.
            credential = await asyncio.to_thread(read_fields, listing.metadata, query.fields)
            checked = None
            if query.skip_check:
                await self.attempts.leave_untried(account)
            else:
                checked, credential = await self._try(account, listing, credential)
            connected = await self._bounded(self._store(account, listing.metadata, credential, checked))
            line.outcome = "replaced" if connected.replaced else "stored"
            return connected

    async def check(self, query: AccountQuery, caller: Caller) -> Checked:
        """Read the account with its stored credential, and ask what its key may do. Raises the error that prevents it,
        CredentialMissing, and CallerRateLimited as `connect`."""
        with self._recording("check", caller, query) as line:
            account, listing = self._find(query)
            target = await self.balances.target(account, listing, now=True)
            try:
                result = await self.attempts.of_stored(target)
            except ServiceError as error:
                self.balances.fetches.on_fetch_done(target, error)
                raise
            if not self._reads_well(account):
                # A replica may remember that it was refused: nobody needs to wait until that is forgotten.
                await self.balances.publish_credential_change(account)
            self.balances.fetches.on_fetch_done(target, None)
            line.outcome = "works"
            return Checked(account, result, clock.wall())

    def _reads_well(self, account: Account) -> bool:
        """Whether this replica has read the account a moment ago."""
        known = self.balances.known(account)
        return known.error is None and clock.wall() - (known.last_fetch_time or 0.0) < _LATELY

    async def remove(self, query: AccountQuery, caller: Caller) -> None:
        """Remove the account's credential. Raises CredentialMissing if none is stored."""
        with self._recording("remove", caller, query) as line:
            await self._bounded(self._remove(query))
            line.outcome = "removed"

    async def close(self) -> None:
        """Wait for changes in progress, for some seconds at most."""
        await self._tasks.wait(_ENDING)

    @contextmanager
    def _recording(self, change: str, caller: Caller, query: AccountQuery) -> Iterator[AuditLine]:
        """Let the block change an account that the caller may manage. The audit log has refused changes too."""
        exchange_id, environment = query.exchange_id.strip().lower(), query.environment.strip().lower() or PRODUCTION
        with self.audit.recording(change, caller, query.user_id, exchange_id, environment) as line:
            caller.require_management(query.user_id)
            yield line

    def _find(self, query: AccountQuery) -> tuple[Account, Listing]:
        """The account and its listing. Raises ExchangeRetired, ExchangeUnknown, FieldInvalid, or NotSupported if it
        cannot be read."""
        account, listing = self.registry.account(query.user_id, query.exchange_id, query.environment)
        metadata = listing.metadata
        if not metadata.capabilities.balance:
            raise NotSupported(metadata.unsupported_reason or f"{metadata.name} is not yet supported.")
        return account, listing

    async def _try(self, account: Account, listing: Listing, credential: Credential) -> tuple[Checked, Credential]:
        try:
            result, newest = await self.attempts.of_candidate(account, listing, credential)
        except ServiceError as error:
            failure = _of_connecting(error, listing.metadata)
        else:
            return Checked(account, result, clock.wall()), newest
        raise failure

    async def _bounded(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns. It is a task of its own: a change that has begun is brought to its end, and told to the
        replicas, whatever becomes of its caller."""
        remaining = time_remaining()
        if remaining is not None and remaining < _LEAST_TIME:
            work.close()
            raise DeadlinePassed("The call's deadline leaves too little time for the credential database.")
        return await within(self._tasks.start(work, name="stored accounts of a caller"), _late)

    async def _store(
        self, account: Account, metadata: ExchangeMetadata, credential: Credential, checked: Checked | None
    ) -> Connected:
        row = only_row(matching_rows(await self.store.stored(account.user_id), account, metadata), account)
        stored_as = account if row is None else row.account
        new = await self.store.put(stored_as, credential)
        await self._publish(account, stored_as)
        return Connected(await self._show(account, metadata), checked, replaced=not new)

    async def _show(self, account: Account, metadata: ExchangeMetadata) -> StoredAccount:
        """The account as it is stored now; a store that has just failed takes nothing back."""
        try:
            rows = matching_rows(await self.store.stored(account.user_id), account, metadata)
        except StoreUnavailable:
            rows = []
        shown = show_accounts(rows, self.registry, self.balances)
        return shown[0] if shown else StoredAccount(account, None, sealed=False)

    async def _remove(self, query: AccountQuery) -> None:
        rows, account = self._rows_of(query, await self.store.stored(query.user_id))
        removed = [row.account for row in rows if await self.store.remove(row.account)]
        if not removed:
            raise _missing(account)
        await self._publish(account, *removed)

    def _rows_of(self, query: AccountQuery, stored: list[StoredCredential]) -> tuple[list[StoredCredential], Account]:
        """The rows of an account, and the account; one that no call reads is found by its stored names. Raises
        ExchangeUnknown, FieldInvalid or NotSupported if it is not found either, CredentialMissing if the exchange is
        retired."""
        named = named_rows(stored, query.exchange_id, query.environment)
        try:
            account, listing = self.registry.account(query.user_id, query.exchange_id, query.environment)
        except ExchangeRetired as retired:
            if not named:
                raise _missing(Account(query.user_id, query.exchange_id, query.environment or PRODUCTION)) from retired
            return named, named[0].account
        except ServiceError:
            if not named:
                raise
            return named, named[0].account
        served = matching_rows(stored, account, listing.metadata)
        return [row for row in named if row not in served] or served, account

    async def _publish(self, *accounts: Account) -> None:
        for account in dict.fromkeys(accounts):
            self.balances.fetches.forget(account)
            await self.balances.publish_credential_change(account)


@contextmanager
def _hidden(fields: Mapping[str, Secret]) -> Iterator[None]:
    """No line of the log shows one of these values meanwhile."""
    held = LIVE.hold(value.reveal() for value in fields.values())
    try:
        yield
    finally:
        held.release()


def _of_connecting(error: ServiceError, metadata: ExchangeMetadata) -> ServiceError:
    """A candidate's error for its caller: a fault of a field, or of a venue that may be well again soon."""
    if isinstance(error, CredentialInvalid):
        return field_fault(error, metadata)
    if isinstance(error, VenueError) and error.transient:
        advice = "Nothing was stored. Call again after the delay, or store it untried (skip_check)."
        return from_reason(error.reason, error.message, error.given_delay, advice)
    return error


def _missing(account: Account) -> CredentialMissing:
    return CredentialMissing(
        f"No credential is stored for this user at {account.exchange_id} ({account.environment}).",
        advice="List the accounts to see those that are stored.",
    )


def _late() -> StoreUnavailable:
    return StoreUnavailable(
        "The credential database did not answer in the time that the call had.",
        advice="List the accounts to see whether it has done as it was asked.",
    )
