"""GetBalance: fresh enough from the cache, else one fetch for all who ask, else the last good value, marked."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeGuard

import structlog

from exchange_service.balances.cached import CachedBalances, lease_held
from exchange_service.credentials import CredentialReference, credential_id
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
    VenueError,
    VenueTimeout,
)
from exchange_service.model import PRODUCTION, Account
from exchange_service.venue_gate import Priority, VenueGate
from exchange_service.venues.registry import Listing, Registry
from exchange_service.venues.sessions import Venues
from exchange_service.wire.balances import FetchedBalance, Source, StoredBalance, store_balance

log = structlog.get_logger(__name__)

# A refused key stays refused until somebody acts: the venue is not asked again for this long, unless a caller forces.
_REFUSAL_MEMORY = 60.0
_REFUSALS = (CredentialRejected, PermissionMissing, AddressNotAllowed, CredentialInvalid)
# These hold for the key whatever account type is asked for.
_REFUSALS_OF_THE_KEY = (CredentialRejected, AddressNotAllowed)
# The caller must still get our answer after we have given up waiting.
_ANSWER_MARGIN = 0.1
# Seconds by which replicas' clocks may differ.
_CLOCK_TOLERANCE = 2.0
# With less than this left there is no use in asking a venue.
_LEAST_TIME = 0.02
# Seconds after which another replica takes the turn of one that has not come back from the venue.
LEASE = 5.0
# Seconds between two looks at what the replica has written whose turn it is; a hint comes first, unless it is lost.
_LOOK_EVERY = 0.5
# Accounts of which a change of the credential is heard at once; others' is seen when the reference is asked anew.
_MOST_MARKED = 40_000
_MOST_KEYS = 40_000
# More account types than any listing has.
_MOST_KEYS_OF_ONE = 32
# By how much the pause before a feed's next reading grows while nothing changes.
_SLOWER = 1.5


class References(Protocol):
    """Finds stored credentials without opening them."""

    async def find(
        self, account: Account, *, aliases: tuple[str, ...] = (), credential_of: str = ""
    ) -> CredentialReference | None:
        """The reference, or None."""

    def get_local(self, account: Account) -> CredentialReference | None:
        """The reference, where nobody needs to be asked for it."""

    def forget(self, account: Account) -> None:
        """Ask the store anew at the next call."""


@dataclass(frozen=True, slots=True)
class BalanceResult:
    """A balance as it is handed out: `age` in seconds, and `stale` says why it is only the last good one. `key` is the
    one at which it is kept."""

    stored: StoredBalance
    source: Source
    age: float
    stale: ServiceError | None = None
    key: str = ""


@dataclass(frozen=True, slots=True)
class _Fetched:
    """What a fetch came to, and whether it was this replica that asked the venue."""

    stored: StoredBalance
    here: bool


def _is_newer(stored: StoredBalance | None, seen: StoredBalance | None) -> TypeGuard[StoredBalance]:
    """Whether it was written after `seen`; whose clock is right plays no part."""
    return stored is not None and (seen is None or stored.fetch_time > seen.fetch_time)


@dataclass(frozen=True, slots=True)
class PollBackoff:
    """How many seconds feeds leave between two readings: `moving` while something changes, more and more up to `still`
    while nothing does."""

    moving: float = 10.0
    still: float = 30.0

    def after(self, stored: StoredBalance, previous: StoredBalance | None) -> float:
        """The pause after this reading."""
        if previous is None or previous.version != stored.version:
            return self.moving
        return max(self.moving, min(self.still, previous.pause * _SLOWER))


@dataclass(slots=True)
class _Flight:
    """A fetch in progress, how many wait for it, and whether any of them is more than a feed."""

    task: asyncio.Task[_Fetched]
    priority: Priority
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
        kept: CachedBalances,
        *,
        hash_key: bytes,
        pace: PollBackoff | None = None,
        gate: VenueGate | None = None,
        max_age: float = 30.0,
        stale_grace: float = 300.0,
        venue_timeout: float = 8.0,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._references = references
        self._venues = venues
        self._kept = kept
        self._pace = pace or PollBackoff()
        self._hash_key = hash_key
        self._gate = gate or VenueGate()
        self._max_age = max_age
        self._stale_grace = stale_grace
        self._venue_timeout = venue_timeout
        self._now = wall_clock
        self._flights: dict[str, _Flight] = {}
        self._refusals: dict[str, _Refusal] = {}
        # Hashing is dearer than all else in a call that finds its balance in the process.
        self._keys: dict[Account, tuple[str, str]] = {}
        # Accounts by the mark under which a change of their credential is told, and the key of their balance.
        self._marked: OrderedDict[bytes, dict[Account, set[str]]] = OrderedDict()
        kept.on_credential = self.credential_changed

    async def get(
        self, account: Account, listing: Listing, *, max_age: float | None, deadline: float, polling: bool = False
    ) -> BalanceResult:
        """The account's balance, at most `max_age` seconds old (None: as configured; 0: ask now, and fail rather
        than give the last good value). `deadline` is the caller's, in the event loop's time. `polling`: nobody waits
        for it, so that at the venue it comes after what somebody waits for."""
        loop = asyncio.get_running_loop()
        if deadline - loop.time() < _LEAST_TIME:
            raise DeadlinePassed("The deadline has passed, or leaves too little time to answer.")
        if not listing.metadata.capabilities.balance:
            raise NotSupported(listing.metadata.unsupported_reason or f"{listing.metadata.name} is not yet supported.")
        reference = await self._reference(account, listing)
        key = self._key(account, reference)
        self._mark(reference, key)
        forced = max_age == 0
        limit = self._max_age if max_age is None else max_age
        kept = self._kept.copy(key)
        if kept is None or not self._fresh(kept, limit):
            # Another replica may have a newer one.
            kept = await self._kept.read(key, account)
        if kept is not None and not forced and self._fresh(kept, limit):
            return BalanceResult(kept, Source.CACHE, self._age(kept), key=key)
        try:
            for known in (key, self._key(account.stored(), reference)):
                self._raise_known_refusal(known, forced=forced)
            fetched = await self._fetch(key, account, reference, listing, deadline, polling, kept)
        except ServiceError as error:
            if not forced and error.transient and kept is not None and self.within_grace(kept):
                return BalanceResult(kept, Source.LAST_GOOD, self._age(kept), error, key=key)
            raise
        source = Source.VENUE if fetched.here else Source.CACHE
        return BalanceResult(fetched.stored, source, self._age(fetched.stored), key=key)

    def get_local(self, account: Account, max_age: float | None) -> BalanceResult | None:
        """The account's balance, where it can be had from this process alone; None where `get` is to be asked."""
        reference = self._references.get_local(account.stored())
        if reference is None:
            return None
        key = self._key(account, reference)
        kept = self._kept.copy(key)
        if kept is None or not self._fresh(kept, self._max_age if max_age is None else max_age):
            return None
        return BalanceResult(kept, Source.CACHE, self._age(kept), key=key)

    async def publish_credential_change(self, account: Account) -> None:
        """Let every replica forget what it made of a credential that has changed or gone."""
        mark = credential_id(self._hash_key, account)
        self.credential_changed(mark)
        await self._kept.credential_changed(mark)

    def credential_changed(self, mark: bytes) -> None:
        """Forget what was made of a credential that has changed, and have its feeds look again."""
        for account, keys in self._marked.pop(mark, {}).items():
            self._references.forget(account)
            self._venues.forget(account)
            for key in keys:
                self._kept.wake(key)

    @property
    def shared(self) -> bool:
        """Whether other replicas see what this one keeps."""
        return self._kept.shared

    def add_listener(self, key: str, event: asyncio.Event) -> None:
        """Set `event` whenever the balance at `key` may have changed, on whatever replica."""
        self._kept.add_listener(key, event)

    def remove_listener(self, key: str, event: asyncio.Event) -> None:
        """Undo `add_listener`."""
        self._kept.remove_listener(key, event)

    async def _reference(self, account: Account, listing: Listing) -> CredentialReference:
        metadata = listing.metadata
        environment = metadata.environment(account.environment)
        aliases = environment.aliases if environment else ()
        stored_for = account.stored()
        reference = await self._references.find(stored_for, aliases=aliases, credential_of=metadata.credential_of)
        if reference is None:
            self._venues.forget(stored_for)
            raise CredentialMissing(
                f"No credential is stored for this user at {metadata.name} ({account.environment}).",
                advice=f"Add one with `exchange-service credentials add --user USER --exchange {metadata.id}"
                f"{'' if account.environment == PRODUCTION else ' --environment ' + account.environment}`.",
            )
        return reference

    def _key(self, account: Account, reference: CredentialReference) -> str:
        """The cache's key: it tells nobody who the user is, and no value outlives a change of the credential."""
        known = self._keys.get(account)
        if known is not None and known[0] == reference.version:
            return known[1]
        names = (account.user_id, account.exchange_id, account.environment, account.account_type)
        text = "\0".join((*names, reference.version))
        key = "balance:" + hmac.new(self._hash_key, text.encode(), hashlib.sha256).hexdigest()
        if len(self._keys) >= _MOST_KEYS:
            self._keys.clear()
        self._keys[account] = (reference.version, key)
        return key

    def _mark(self, reference: CredentialReference, key: str) -> None:
        for account in {reference.account, reference.stored_as}:
            mark = credential_id(self._hash_key, account)
            keys = self._marked.setdefault(mark, {}).setdefault(reference.account, set())
            # Keys of versions that are gone are never woken for again.
            if key not in keys and len(keys) >= _MOST_KEYS_OF_ONE:
                keys.clear()
            keys.add(key)
        while len(self._marked) > _MOST_MARKED:
            self._marked.popitem(last=False)

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
        elif not forced:
            # Raised again and again, an error would gather a longer traceback each time.
            raise refusal.error.with_traceback(None)

    async def _fetch(
        self,
        key: str,
        account: Account,
        reference: CredentialReference,
        listing: Listing,
        deadline: float,
        polling: bool,
        seen: StoredBalance | None,
    ) -> _Fetched:
        """Join the fetch in progress, or begin one. It has its own time limit, so that one caller's short deadline
        does not fail it for the others: it goes on, and the next call finds its answer. It is cancelled when the last
        who waits for it is."""
        loop = asyncio.get_running_loop()
        flight = self._flights.get(key)
        if deadline - loop.time() < _ANSWER_MARGIN + _LEAST_TIME:
            raise DeadlinePassed("The deadline leaves too little time to ask the venue.")
        if flight is None:
            priority = Priority(polling=polling)
            work = self._refresh(key, account, reference, listing, loop.time() + self._venue_timeout, priority, seen)
            flight = _Flight(loop.create_task(work, name=f"refresh {listing.metadata.id}"), priority)
            self._flights[key] = flight
            of_the_key = self._key(account.stored(), reference)
            flight.task.add_done_callback(partial(self._landed, key, of_the_key, listing.metadata.id, flight))
        if not polling:
            flight.priority.promote()
        flight.waiting += 1
        try:
            timeout = max(0.0, deadline - loop.time() - _ANSWER_MARGIN)
            done, _ = await asyncio.wait({flight.task}, timeout=timeout)
        except asyncio.CancelledError:
            if flight.waiting == 1:
                # Nobody joins a fetch that is being cancelled.
                if self._flights.get(key) is flight:
                    del self._flights[key]
                flight.task.cancel()
            raise
        finally:
            flight.waiting -= 1
        if not done:
            raise VenueTimeout(f"{listing.metadata.name} did not answer in the time that the call had.")
        if flight.task.cancelled():
            raise ShuttingDown("This replica is shutting down.")
        return flight.task.result()

    def _landed(self, key: str, of_the_key: str, exchange_id: str, flight: _Flight, _: asyncio.Task[_Fetched]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task.cancelled():
            return
        error = flight.task.exception()
        if isinstance(error, ServiceError):
            log.debug("fetch.failed", exchange=exchange_id, reason=error.reason)
        if isinstance(error, _REFUSALS):
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
        self,
        key: str,
        account: Account,
        reference: CredentialReference,
        listing: Listing,
        deadline: float,
        priority: Priority,
        seen: StoredBalance | None,
    ) -> _Fetched:
        """Ask the venue, unless another replica is just doing so: then wait for its answer, newer than what the caller
        has `seen`."""
        loop = asyncio.get_running_loop()
        with self._kept.changes(key) as changed:
            while (turn := await self._kept.turn(key, LEASE)) is None:
                stored = await self._answer_of_another(key, account, seen, changed)
                if stored is not None:
                    return _Fetched(stored, here=False)
                if loop.time() >= deadline:
                    raise VenueTimeout(f"{listing.metadata.name} did not answer another replica in time.")
        async with lease_held(turn, LEASE):
            try:
                # Another one may have come back between our look at the cache and our turn.
                before = await self._kept.read(key, account)
                if _is_newer(before, seen):
                    return _Fetched(before, here=False)
                return await self._ask(key, account, reference, listing, deadline, priority, before)
            except BaseException:
                if turn.shared:
                    # Whoever waits for this answer need not wait any longer.
                    await self._kept.gave_up(key)
                raise

    async def _answer_of_another(
        self, key: str, account: Account, seen: StoredBalance | None, changed: asyncio.Event
    ) -> StoredBalance | None:
        """What the replica has brought whose turn it is, or its error; None where there is nothing yet."""
        told = True
        try:
            async with asyncio.timeout(_LOOK_EVERY):
                await changed.wait()
        except TimeoutError:
            told = False
        changed.clear()
        stored = await self._kept.read(key, account)
        if _is_newer(stored, seen):
            return stored
        error = await self._kept.fault(key) if told else None
        if error is not None:
            raise error
        return None

    async def _ask(
        self,
        key: str,
        account: Account,
        reference: CredentialReference,
        listing: Listing,
        deadline: float,
        priority: Priority,
        before: StoredBalance | None,
    ) -> _Fetched:
        """Ask the venue, and keep its answer; `before` is what was kept."""

        said: VenueError | None = None

        async def read() -> FetchedBalance:
            nonlocal said
            try:
                return await self._venues.fetch(reference, listing, deadline, account_type=account.account_type)
            except VenueError as error:
                said = error
                raise

        try:
            fetched = await self._gate.fetch(listing, account, reference, deadline, read, priority=priority)
        except VenueError as error:
            # The venue's word is everybody's, once nobody asks again; that this replica did not come to ask is not.
            if said is not None and said.reason == error.reason:
                await self._kept.failed(key, error)
            raise
        # Read anew: a replica that lost its turn may have written meanwhile, and the version must rise from its.
        kept = await self._kept.read(key, account)
        if _is_newer(kept, before):
            return _Fetched(kept, here=False)
        try:
            stored = store_balance(account, fetched, self._now(), kept)
        except ValueError:
            # From a process that is not what it was.
            name = listing.plugin.info.name
            raise PluginFailed(f"The plugin {name} answered with something that is no balance.") from None
        for known in (key, self._key(account.stored(), reference)):
            self._refusals.pop(known, None)
        stored = replace(stored, pause=self._pace.after(stored, kept))
        await self._kept.write(key, stored)
        return _Fetched(stored, here=True)

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
