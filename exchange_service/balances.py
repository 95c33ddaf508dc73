"""GetBalance: fresh enough from the cache, else one fetch for all who ask, else the last good value, marked."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import structlog

from exchange_service.cache import Cache
from exchange_service.credentials import CredentialReference
from exchange_service.errors import (
    AddressNotAllowed,
    CredentialInvalid,
    CredentialMissing,
    CredentialRejected,
    DeadlinePassed,
    NotSupported,
    PermissionMissing,
    PluginFailed,
    ServiceError,
    ShuttingDown,
    VenueRateLimited,
    VenueTimeout,
)
from exchange_service.model import PRODUCTION, Account
from exchange_service.registry import Listing, Registry
from exchange_service.sessions import Venues
from exchange_service.venue_status import VenueStatus
from exchange_service.wire import Source, StoredBalance, decode_stored, store_balance

log = structlog.get_logger(__name__)

# A refused key stays refused until somebody acts: the venue is not asked again for this long, unless a caller forces.
_REFUSAL_MEMORY = 60.0
_REFUSALS = (CredentialRejected, PermissionMissing, AddressNotAllowed, CredentialInvalid)
# These hold for the key whatever account type is asked for.
_REFUSALS_OF_THE_KEY = (CredentialRejected, AddressNotAllowed, VenueRateLimited)
# The caller must still get our answer after we have given up waiting.
_ANSWER_MARGIN = 0.1
# Seconds by which replicas' clocks may differ.
_CLOCK_TOLERANCE = 2.0
# With less than this left there is no use in asking a venue.
_LEAST_TIME = 0.02


class References(Protocol):
    """Finds stored credentials without opening them."""

    async def find(
        self, account: Account, *, aliases: tuple[str, ...] = (), credential_of: str = ""
    ) -> CredentialReference | None:
        """The reference, or None."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A balance as it is handed out: `age` in seconds, and `stale` says why it is only the last good one."""

    stored: StoredBalance
    source: Source
    age: float
    stale: ServiceError | None = None


@dataclass(slots=True)
class _Flight:
    """A fetch in progress and how many wait for it."""

    task: asyncio.Task[StoredBalance]
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class _Refusal:
    error: ServiceError
    until: float


class Balances:
    """Reads balances for all callers; of callers at the same time for one account, one asks the venue."""

    def __init__(
        self,
        registry: Registry,
        references: References,
        venues: Venues,
        cache: Cache,
        *,
        hash_key: bytes,
        status: VenueStatus | None = None,
        max_age: float = 30.0,
        stale_grace: float = 300.0,
        venue_timeout: float = 8.0,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._references = references
        self._venues = venues
        self._cache = cache
        self._hash_key = hash_key
        self._status = status or VenueStatus()
        self._max_age = max_age
        self._stale_grace = stale_grace
        self._venue_timeout = venue_timeout
        self._now = wall_clock
        self._flights: dict[str, _Flight] = {}
        self._refusals: dict[str, _Refusal] = {}

    async def get(self, account: Account, listing: Listing, *, max_age: float | None, deadline: float) -> Reading:
        """The account's balance, at most `max_age` seconds old (None: as configured; 0: ask now, and fail rather
        than give the last good value). `deadline` is the caller's, in the event loop's time."""
        loop = asyncio.get_running_loop()
        if deadline - loop.time() < _LEAST_TIME:
            raise DeadlinePassed("The deadline has passed, or leaves too little time to answer.")
        if not listing.metadata.capabilities.balance:
            raise NotSupported(listing.metadata.unsupported_reason or f"{listing.metadata.name} is not yet supported.")
        reference = await self._reference(account, listing)
        key = self._key(account, reference)
        kept = await self._kept(key, account)
        forced = max_age == 0
        if kept is not None and not forced and self._fresh(kept, self._max_age if max_age is None else max_age):
            return Reading(kept, Source.CACHE, self._age(kept))
        try:
            for known in (key, self._key(account.stored(), reference)):
                self._raise_known_refusal(known, forced=forced)
            stored = await self._fetch(key, account, reference, listing, deadline)
        except ServiceError as error:
            if not forced and error.transient and kept is not None and self.within_grace(kept):
                return Reading(kept, Source.LAST_GOOD, self._age(kept), error)
            raise
        return Reading(stored, Source.VENUE, self._age(stored))

    async def _reference(self, account: Account, listing: Listing) -> CredentialReference:
        metadata = listing.metadata
        environment = metadata.environment(account.environment)
        aliases = environment.aliases if environment else ()
        stored_for = account.stored()
        reference = await self._references.find(stored_for, aliases=aliases, credential_of=metadata.credential_of)
        if reference is None:
            self._venues.forget(stored_for)
            raise CredentialMissing(
                f"No credential is stored for this user at {metadata.name} ({account.environment}). "
                f"Add one with `exchange-service credentials add --user USER --exchange {metadata.id}"
                f"{'' if account.environment == PRODUCTION else ' --environment ' + account.environment}`."
            )
        return reference

    def _key(self, account: Account, reference: CredentialReference) -> str:
        """The cache's key: it tells nobody who the user is, and no value outlives a change of the credential."""
        names = (account.user_id, account.exchange_id, account.environment, account.account_type)
        text = "\0".join((*names, reference.version))
        return "balance:" + hmac.new(self._hash_key, text.encode(), hashlib.sha256).hexdigest()

    async def _kept(self, key: str, account: Account) -> StoredBalance | None:
        raw = await self._cache.get(key)
        if raw is None:
            return None
        stored = decode_stored(account, raw)
        if stored is None:
            # Foreign or damaged: never to be met again.
            await self._cache.delete(key)
        return stored

    def _age(self, stored: StoredBalance) -> float:
        return max(0.0, self._now() - stored.fetch_time)

    def _fresh(self, stored: StoredBalance, limit: float) -> bool:
        """Whether it is young enough. One from the future says that a clock is wrong, and nothing about its age."""
        return limit > 0 and -_CLOCK_TOLERANCE <= self._now() - stored.fetch_time <= limit

    def within_grace(self, stored: StoredBalance) -> bool:
        """Whether it may still be given in place of a venue's passing trouble."""
        return self._age(stored) <= self._stale_grace

    def _raise_known_refusal(self, key: str, *, forced: bool) -> None:
        refusal = self._refusals.get(key)
        if refusal is None:
            return
        left = refusal.until - asyncio.get_running_loop().time()
        if left <= 0:
            del self._refusals[key]
        elif isinstance(refusal.error, VenueRateLimited):
            # Also for who forces: asking again would only lengthen the venue's pause.
            raise VenueRateLimited(refusal.error.message, retry_after=left)
        elif not forced:
            # Raised again and again, an error would gather a longer traceback each time.
            raise refusal.error.with_traceback(None)

    async def _fetch(
        self, key: str, account: Account, reference: CredentialReference, listing: Listing, deadline: float
    ) -> StoredBalance:
        """Join the fetch in progress, or begin one. It has its own time limit, so that one caller's short deadline
        does not fail it for the others: it goes on, and the next call finds its answer. It is cancelled when the last
        who waits for it is."""
        loop = asyncio.get_running_loop()
        flight = self._flights.get(key)
        if deadline - loop.time() < _ANSWER_MARGIN + _LEAST_TIME:
            raise DeadlinePassed("The deadline leaves too little time to ask the venue.")
        if flight is None:
            work = self._refresh(key, account, reference, listing, loop.time() + self._venue_timeout)
            flight = self._flights[key] = _Flight(loop.create_task(work, name=f"refresh {listing.metadata.id}"))
            of_the_key = self._key(account.stored(), reference)
            flight.task.add_done_callback(partial(self._landed, key, of_the_key, listing.metadata.id, flight))
        flight.waiting += 1
        try:
            timeout = max(0.0, deadline - loop.time() - _ANSWER_MARGIN)
            done, _ = await asyncio.wait({flight.task}, timeout=timeout)
        except asyncio.CancelledError:
            if flight.waiting == 1:
                # Nobody joins a fetch that is being cancelled.
                self._flights.pop(key, None)
                flight.task.cancel()
            raise
        finally:
            flight.waiting -= 1
        if not done:
            raise VenueTimeout(f"{listing.metadata.name} did not answer in the time that the call had.")
        if flight.task.cancelled():
            raise ShuttingDown("The service is shutting down; call again, another replica will answer.")
        return flight.task.result()

    def _landed(
        self, key: str, of_the_key: str, exchange_id: str, flight: _Flight, _: asyncio.Task[StoredBalance]
    ) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task.cancelled():
            return
        error = flight.task.exception()
        if error is None:
            self._status.answered(exchange_id)
        elif isinstance(error, ServiceError):
            self._status.failed(exchange_id, error, self._now())
            log.debug("fetch.failed", exchange=exchange_id, reason=error.reason)
        if isinstance(error, (*_REFUSALS, VenueRateLimited)):
            pause = _REFUSAL_MEMORY if error.retry_after is None else error.retry_after
            whose = of_the_key if isinstance(error, _REFUSALS_OF_THE_KEY) else key
            self._remember(whose, _Refusal(error, asyncio.get_running_loop().time() + pause))

    def _remember(self, key: str, refusal: _Refusal) -> None:
        now = asyncio.get_running_loop().time()
        for known, old in list(self._refusals.items()):
            if old.until > now:
                break
            del self._refusals[known]
        self._refusals.pop(key, None)
        self._refusals[key] = refusal

    async def _refresh(
        self, key: str, account: Account, reference: CredentialReference, listing: Listing, deadline: float
    ) -> StoredBalance:
        started = self._now()
        fetched = await self._venues.fetch(reference, listing, deadline, account_type=account.account_type)
        # Read anew: another replica may have written meanwhile, and the version must rise from its.
        kept = await self._kept(key, account)
        if kept is not None and kept.fetch_time > started and self._fresh(kept, self._venue_timeout):
            return kept
        try:
            stored = store_balance(account, fetched, self._now(), kept)
        except ValueError:
            # From a process that is not what it was.
            name = listing.plugin.info.name
            raise PluginFailed(f"The plugin {name} answered with something that is no balance.") from None
        for known in (key, self._key(account.stored(), reference)):
            self._refusals.pop(known, None)
        await self._cache.set(key, stored.encoded(), max(self._stale_grace, self._max_age))
        return stored

    def end(self) -> None:
        """Cancel every fetch in progress; who waits for one gets SHUTTING_DOWN."""
        for flight in self._flights.values():
            flight.task.cancel()

    async def close(self) -> None:
        """End every fetch in progress."""
        tasks = [flight.task for flight in self._flights.values()]
        self.end()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
