"""GetBalance: the cached balance if it is fresh, else one fetch for all callers, else the last good value, marked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from exchange_service.balances.cached import CachedBalances
from exchange_service.balances.credential_changes import CredentialChanges
from exchange_service.balances.freshness import Freshness
from exchange_service.balances.keys import BalanceKeys
from exchange_service.balances.known import KnownState, LastFetches
from exchange_service.balances.leases import FetchResult
from exchange_service.balances.lineage import Lineage
from exchange_service.balances.refusals import Doubt, Refusals
from exchange_service.balances.single_flight import LEAST_TIME, SingleFlight
from exchange_service.credentials import CredentialReference
from exchange_service.credentials.references import CachedReferences, late_store
from exchange_service.errors import CredentialMissing, DeadlinePassed, NotSupported, ServiceError, VenueTimeout
from exchange_service.identity import Caller
from exchange_service.model import PRODUCTION, Account
from exchange_service.observability.metrics import Metrics
from exchange_service.tasks import TaskSet, copy_of
from exchange_service.venues.fetching import Target
from exchange_service.venues.priority import Priority
from exchange_service.venues.registry import Listing
from exchange_service.wire.balances import FetchedBalance
from exchange_service.wire.delivery import Delivery
from exchange_service.wire.replies import Source
from exchange_service.wire.stored import StoredBalance, highest_known_version

# Seconds. A smaller `max_age` reaches the venue in nearly every call, so it counts as forced whatever is cached.
_ALWAYS_FORCED_BELOW = 1.0
# A call with a smaller `max_age` than this, or than half of the default, reaches the venue more often than the default
# would, so it counts as forced unless this process has a copy that is young enough.
_FORCED_BELOW = 5.0
# Seconds that a forced call must have left when the venue is asked for its second word.
_FOR_THE_SECOND_WORD = 0.5
# Seconds for which a second ask waits; the fetch has a time limit of its own.
_SECOND_ASK = 60.0
_SOURCE_NAMES = {source: source.name.lower().replace("_", "-") for source in Source}


# Not frozen, because it takes three times as long to make one, and each call does.
@dataclass(slots=True)
class BalanceResult:
    """A balance as it is handed out: `age` in seconds; `stale` says why it is only the last good one. `key` is its key
    in the cache. If `stale` is a refusal that is doubted, the venue is asked for its second word in `asked_in` seconds.
    """

    stored: StoredBalance
    source: Source
    age: float
    stale: ServiceError | None = None
    key: str = ""
    asked_in: float | None = None
    # How changes reach this replica; None if it follows the account for no stream.
    delivery: Delivery | None = None


async def _nothing() -> None:
    """What is done if a caller has nothing to do."""


@dataclass(slots=True)
class Balances:
    """Reads balances for all callers, through `fetcher`, the road to the venues."""

    references: CachedReferences
    fetcher: SingleFlight[FetchResult]
    cached: CachedBalances
    refusals: Refusals
    credentials: CredentialChanges
    keys: BalanceKeys
    freshness: Freshness
    # Stores what a venue has pushed, see `Leased.store_pushed`.
    store_pushed: Callable[[Target, FetchedBalance, float], Awaitable[FetchResult]]
    # How the last fetch of each account ended.
    fetches: LastFetches = field(default_factory=LastFetches)
    # Which versions of credentials their plugins have made themselves.
    lineage: Lineage = field(default_factory=Lineage)
    # By the key of the balance: how changes of the accounts that are followed here reach this replica.
    deliveries: dict[str, Delivery] = field(default_factory=dict)
    # By the key of the balance: asking for second words.
    _second_asks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _tasks: TaskSet = field(default_factory=TaskSet)

    async def get(
        self,
        account: Account,
        listing: Listing,
        *,
        max_age: float | None,
        deadline: float,
        polling: bool = False,
        known_version: int = 0,
        after: float = 0.0,
        on_passed_over: Callable[[], Awaitable[None]] = _nothing,
    ) -> BalanceResult:
        """The account's balance, at most `max_age` seconds old, fetched later than `after`, in seconds since the epoch
        (infinite: the venue is asked), and never one below `known_version`.

        `max_age` None means the operator's limit; 0 asks the venue now, and fails rather than give the last good value.
        `deadline` is the caller's, in the event loop's time. With `polling` no caller waits for it: at the venue it
        comes after what callers wait for. `on_passed_over` is awaited if the venue is asked only because a fresh
        balance is below `known_version`. Raises a ServiceError.
        """
        if deadline - asyncio.get_running_loop().time() < LEAST_TIME:
            raise DeadlinePassed("The deadline has passed, or leaves too little time to answer.")
        if not listing.metadata.capabilities.balance:
            raise NotSupported(listing.metadata.unsupported_reason or f"{listing.metadata.name} is not yet supported.")
        not_before = max(after, self.freshness.not_before(max_age))
        target = await self._target(account, listing, max_age, known_version, not_before)
        stored = self.cached.get_local(target.key)
        if stored is None or stored.fetch_time <= after or not self._serves(stored, max_age, target.known_version):
            # Another replica may have a newer one.
            stored = await self.cached.read_together(target.key, account)
        if stored is not None and stored.fetch_time > after and self.freshness.is_fresh(stored, max_age):
            if stored.version >= target.known_version:
                return self._result(target.key, stored, Source.CACHE)
            await on_passed_over()
        # The cache may have lost what this process has handed out.
        last = stored or self.cached.last_good(target.key)
        return await self._fetch(target, last, deadline, forced=max_age == 0, polling=polling)

    async def target(self, account: Account, listing: Listing, *, now: bool = False) -> Target:
        """The account's target. With `now` the store is asked for its credential in any case. Raises CredentialMissing
        or StoreUnavailable."""
        return await self._target(account, listing, 0.0 if now else None, 0)

    def known(self, account: Account) -> KnownState:
        """What this replica knows of the account, without asking anybody."""
        account = account.stored()
        reference = self.references.last_known(account)
        if reference is None:
            return self.fetches.state(account, None, None)
        key = self.keys.key(account, reference)
        stored = self.cached.last_good(key)
        return self.fetches.state(account, stored.fetch_time if stored else None, self.deliveries.get(key))

    async def _target(
        self, account: Account, listing: Listing, max_age: float | None, known_version: int, not_before: float = 0.0
    ) -> Target:
        """What is to be read: nothing below the known version, nor below what this process has shown."""
        # A caller that forces a read may have corrected the key just now.
        reference = await self._reference(account, listing, now=max_age == 0)
        target = self.keys.target(account, listing, reference)
        self.credentials.note(target)
        copy = self.cached.get_local(target.key)
        if copy is not None:
            # The cache may have lost it, and the clock may be set back.
            known_version = max(known_version, copy.version)
        known_version = min(known_version, highest_known_version(self.freshness.now()))
        return replace(target, known_version=known_version, not_before=not_before)

    def get_local(self, account: Account, max_age: float | None, known_version: int = 0) -> BalanceResult | None:
        """The account's balance if this process has a fresh copy that is not below `known_version`; None if `get` must
        be called."""
        reference = self.references.get_local(account.stored())
        if reference is None:
            return None
        key = self.keys.key(account, reference)
        stored = self.cached.get_local(key)
        if stored is None or stored.version < known_version:
            return None
        age = self.freshness.fresh_age(stored, max_age)
        if age is None:
            return None
        return BalanceResult(stored, Source.CACHE, age, None, key, None, self.deliveries.get(key))

    def look(self, account: Account) -> asyncio.Future[StoredBalance | None] | None:
        """A look for the account's balance into the cache that replicas share, see `CachedBalances.look`."""
        reference = self.references.get_local(account.stored())
        return None if reference is None else self.cached.look(self.keys.key(account, reference), account)

    def _serves(self, stored: StoredBalance, max_age: float | None, known_version: int) -> bool:
        return stored.version >= known_version and self.freshness.is_fresh(stored, max_age)

    async def _fetch(
        self, target: Target, last: StoredBalance | None, deadline: float, *, forced: bool, polling: bool
    ) -> BalanceResult:
        """Ask the venue; `last` is the last good balance, given in place of a passing trouble unless `forced`, or the
        caller has a newer one."""
        target = replace(target, newer_than=last.fetch_time if last is not None else 0.0)
        try:
            if not forced:
                self.refusals.raise_known(target)
                self._raise_doubted(target)
            fetched = await self._ask(target, deadline, forced=forced, polling=polling)
        except ServiceError as error:
            if forced or last is None or last.version < target.known_version or not self.within_grace(last):
                raise
            doubt = self._doubt(target, error)
            if doubt is None and not error.transient:
                raise
            if doubt is None:
                return self._result(target.key, last, Source.LAST_GOOD, error)
            self._ask_again_later(target, doubt)
            return replace(self._result(target.key, last, Source.LAST_GOOD, error), asked_in=doubt.left())
        return self._result(target.key, fetched.stored, Source.VENUE if fetched.here else Source.CACHE)

    async def _ask(self, target: Target, deadline: float, *, forced: bool, polling: bool) -> FetchResult:
        """Fetch the balance. If the venue refuses what it took a moment ago, a forced call waits for its second
        word."""
        try:
            return await self._fetch_known(target, deadline, polling=polling)
        except ServiceError as error:
            doubt = self._doubt(target, error) if forced else None
            if doubt is None or asyncio.get_running_loop().time() + doubt.left() + _FOR_THE_SECOND_WORD >= deadline:
                raise
        await asyncio.sleep(doubt.left())
        return await self._fetch_known(target, deadline, polling=polling)

    async def _fetch_known(self, target: Target, deadline: float, *, polling: bool) -> FetchResult:
        """Fetch a balance that is not below the known version. A fetch that was in progress already may bring one: it
        was begun for a caller that did not bring this version."""
        while True:
            try:
                fetched = await self.fetcher.fetch(target, deadline, Priority(polling=polling))
            except VenueTimeout:
                # Another replica, whose fetch this one waited for, may have been waiting for the database as well.
                if not self.references.is_late():
                    raise
                raise late_store() from None
            if fetched.stored.version >= target.known_version:
                return fetched
            target = replace(target, newer_than=max(target.newer_than, fetched.stored.fetch_time))

    def _raise_doubted(self, target: Target) -> None:
        """Raise a refusal that is doubted, until it is time to ask for the second word."""
        doubt = self.refusals.doubt(target)
        if doubt is not None and doubt.left() > 0:
            raise copy_of(doubt.error)

    def _doubt(self, target: Target, error: ServiceError) -> Doubt | None:
        """The doubt that this error is met with; None if it is believed, or no refusal."""
        doubt = self.refusals.doubt(target)
        return doubt if doubt is not None and doubt.error.reason == error.reason else None

    def _ask_again_later(self, target: Target, doubt: Doubt) -> None:
        """Ask for the second word beside the calls, so that the next one is told it."""
        if target.key not in self._second_asks:
            task = self._tasks.start(self._ask_again(target, doubt), name=f"second ask {target.listing.metadata.id}")
            self._second_asks[target.key] = task
            task.add_done_callback(lambda _: self._second_asks.pop(target.key, None))

    async def _ask_again(self, target: Target, doubt: Doubt) -> None:
        await asyncio.sleep(doubt.left())
        deadline = asyncio.get_running_loop().time() + _SECOND_ASK
        with suppress(ServiceError):
            await self.fetcher.fetch(target, deadline, Priority())

    def _result(
        self, key: str, stored: StoredBalance, source: Source, stale: ServiceError | None = None
    ) -> BalanceResult:
        delivery = self.deliveries.get(key)
        return BalanceResult(stored, source, self.freshness.age(stored), stale, key, delivery=delivery)

    async def _reference(self, account: Account, listing: Listing, *, now: bool) -> CredentialReference:
        metadata = listing.metadata
        aliases = metadata.environment_aliases(account.environment)
        # Before it is looked for, so that no change in between is missed.
        self.credentials.note_user(account.user_id)
        reference = await self.references.find(
            account.stored(), aliases=aliases, credential_of=metadata.credential_of, now=now
        )
        if reference is None:
            self.credentials.forget_session(account.stored())
            raise CredentialMissing(
                f"No credential is stored for this user at {metadata.name} ({account.environment}).",
                advice=f"Add one with `exchange-service credentials add --user USER --exchange {metadata.id}"
                f"{'' if account.environment == PRODUCTION else ' --environment ' + account.environment}`.",
            )
        if metadata.rotating_fields and not reference.ancestors:
            reference = replace(reference, ancestors=await self.lineage.of(reference.version))
        return reference

    @property
    def shared(self) -> bool:
        """Whether other replicas see what this one stores."""
        return self.cached.shared

    def within_grace(self, stored: StoredBalance) -> bool:
        """Whether it may still be given in place of a venue's passing trouble."""
        return self.freshness.within_grace(stored)

    def add_listener(self, key: str, event: asyncio.Event) -> None:
        """Set `event` whenever the balance at `key` may have changed, on whatever replica."""
        self.cached.add_listener(key, event)

    def remove_listener(self, key: str, event: asyncio.Event) -> None:
        """Undo `add_listener`."""
        self.cached.remove_listener(key, event)

    async def publish_credential_change(self, account: Account) -> None:
        """Have every replica drop what depends on a credential that has changed or gone."""
        await self.credentials.publish(account)

    def add_stored_listener(self, user_id: str, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a credential of the user was stored or removed, on whatever replica."""
        self.credentials.add_listener(user_id, listener)

    def remove_stored_listener(self, user_id: str, listener: Callable[[], None]) -> None:
        """Undo `add_stored_listener`."""
        self.credentials.remove_listener(user_id, listener)

    def end(self) -> None:
        """Cancel every fetch in progress; callers who wait for one get SHUTTING_DOWN."""
        self._tasks.cancel()
        self.fetcher.end()

    async def close(self) -> None:
        """Cancel every fetch in progress and wait for its end, for a second at most."""
        await self._tasks.close()
        await self.fetcher.close()


@dataclass(frozen=True, slots=True)
class BalanceQuery:
    """A balance that a caller asks for: `max_age` in seconds, None for the operator's setting. `known_version` is the
    version that the caller has already, 0 for none."""

    account: Account
    listing: Listing
    max_age: float | None
    known_version: int = 0


def forced_below(default: float) -> float:
    """The `max_age` in seconds from which on a call is not forced, where the operator's own one is `default`."""
    return max(_ALWAYS_FORCED_BELOW, min(_FORCED_BELOW, default / 2))


class BalanceReader:
    """Reads balances for callers. `return_refresh` takes back what `count_refresh` has counted. `call_timeout` is in
    seconds, for a call without a deadline; `forced_below` too, see the function of this name."""

    def __init__(
        self,
        balances: Balances,
        count_refresh: Callable[[Caller], Awaitable[None]],
        metrics: Metrics,
        *,
        call_timeout: float,
        forced_below: float = _FORCED_BELOW,
        return_refresh: Callable[[Caller], None] = lambda caller: None,
    ) -> None:
        self._balances = balances
        self._count_refresh = count_refresh
        self._metrics = metrics
        self._call_timeout = call_timeout
        self._forced_below = forced_below
        self._return_refresh = return_refresh

    async def get(
        self, query: BalanceQuery, caller: Caller, time_remaining: Callable[[], float | None]
    ) -> BalanceResult:
        """The balance. `time_remaining` gives the seconds until the caller's deadline, None if there is no deadline.

        A balance that this process has is returned without suspending. Raises CallerRateLimited for too many forced
        reads, and otherwise as `Balances.get` does.
        """
        ready = self.ready(query)
        if ready is not None:
            return ready
        forced = query.max_age is not None and query.max_age < self._forced_below
        if forced:
            await self._count_refresh(caller)
        result = await self._read(query, caller, self._deadline(time_remaining()), counted=forced)
        self._metrics.cache_read("shared" if result.source is Source.CACHE else "nowhere")
        self._metrics.balance_read(_SOURCE_NAMES[result.source])
        return result

    def ready(self, query: BalanceQuery, *, has_looked: bool = False) -> BalanceResult | None:
        """The balance if this process has one that serves the query, as `get` returns it; None if `get` must ask
        further. `has_looked`: whether a look for it has ended."""
        if query.max_age is not None and query.max_age < _ALWAYS_FORCED_BELOW:
            return None
        result = self._balances.get_local(query.account, query.max_age, query.known_version)
        if result is not None and has_looked:
            self._metrics.cache_read("shared")
            self._metrics.balance_read(_SOURCE_NAMES[Source.CACHE])
        elif result is not None:
            self._metrics.balance_at_hand()
        return result

    def look(self, query: BalanceQuery) -> asyncio.Future[StoredBalance | None] | None:
        """A look into the cache that replicas share, after which a balance may be `ready`; None if none is of use. It
        is shared with other callers: do not cancel it."""
        if query.max_age is not None and query.max_age < self._forced_below:
            return None
        return self._balances.look(query.account)

    async def _read(self, query: BalanceQuery, caller: Caller, deadline: float, *, counted: bool) -> BalanceResult:
        """Read by the road. A known version that no cached balance reaches is counted as a forced read."""

        async def count() -> None:
            nonlocal counted
            if not counted:
                await self._count_refresh(caller)
                counted = True

        result = await self._balances.get(
            query.account,
            query.listing,
            max_age=query.max_age,
            deadline=deadline,
            known_version=query.known_version,
            on_passed_over=count,
        )
        if counted and result.source is Source.CACHE:
            # Another replica has asked the venue, and counted it.
            self._return_refresh(caller)
        return result

    def _deadline(self, remaining: float | None) -> float:
        """The caller's deadline in the event loop's time; fixed once, because grpc counts by the wall clock."""
        return asyncio.get_running_loop().time() + (self._call_timeout if remaining is None else remaining)
