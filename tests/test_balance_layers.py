"""The layers of a fetch's road, each alone with a small layer inside it, and what replicas on one cache agree on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from exchange_service.balances.cached import CachedBalances
from exchange_service.balances.leases import FetchResult, Leased
from exchange_service.balances.service import BalanceQuery, BalanceReader
from exchange_service.balances.single_flight import SingleFlight
from exchange_service.cache import Lease, Listener
from exchange_service.cache.memory import MemoryCache
from exchange_service.credentials import CredentialReference
from exchange_service.errors import ServiceError, ShuttingDown, VenueMaintenance, VenueTimeout, VenueUnavailable
from exchange_service.model import Account, VenueReports
from exchange_service.observability.metrics import Metrics
from exchange_service.venue_gate import Gated, GateOptions
from exchange_service.venues.fetching import Target
from exchange_service.venues.priority import Priority
from exchange_service.wire.balances import FetchedBalance, fetched_balance
from exchange_service.wire.replies import Source
from exchange_service.wire.stored import StoredBalance, store_balance
from tests.harness import (
    USER,
    Clock,
    Gate,
    ScriptedPlugin,
    holding,
    open_test_service,
    registry_of,
    until,
)

TTL = 300.0


def answer(total: str = "1") -> FetchedBalance:
    """What a plugin has answered: so many bitcoins."""
    return fetched_balance(holding(("BTC", total)))


def target(**changes: Any) -> Target:
    """The one account that these tests read."""
    account = Account(USER, "fakex")
    reference = CredentialReference(account, account, "1")
    plain = Target(account, registry_of(ScriptedPlugin()).listings["fakex"], reference, "balance:1", "balance:1")
    return replace(plain, **changes)


class Inner:
    """The layer inside the one under test: it counts the fetches that reach it, and answers as the test says."""

    def __init__(self, make: Callable[[], Awaitable[Any]] | None = None) -> None:
        self.fetches = 0
        self.priorities: list[Priority] = []
        self.make = make or self._good

    async def _good(self) -> FetchedBalance:
        return answer()

    async def fetch(self, target: Target, deadline: float, priority: Priority) -> Any:
        self.fetches += 1
        self.priorities.append(priority)
        return await self.make()

    def raising(self, *errors: ServiceError | None) -> None:
        """Raise these errors in turn, an answer where one is None; the last one for all further fetches."""
        left = list(errors)

        async def fail_or_answer() -> FetchedBalance:
            error = left.pop(0) if len(left) > 1 else left[0]
            if error is None:
                return answer()
            raise error

        self.make = fail_or_answer


def returning(value: FetchedBalance) -> Callable[[], Awaitable[FetchedBalance]]:
    """Always this answer."""

    async def give() -> FetchedBalance:
        return value

    return give


class SharedCache(MemoryCache):
    """One cache for two replicas of one process: leases are respected, and every message reaches both."""

    shared = True

    def __init__(self) -> None:
        super().__init__()
        self.held: set[str] = set()
        self.messages: list[bytes] = []
        self._listeners: list[Listener] = []

    async def lease(self, name: str, seconds: float) -> Lease | None:
        if name in self.held:
            return None
        self.held.add(name)
        return _SharedLease(self, name)

    async def publish(self, message: bytes) -> None:
        self.messages.append(message)
        for listener in self._listeners:
            listener(message)

    def add_listener(self, listener: Listener) -> None:
        self._listeners.append(listener)


class _SharedLease:
    shared = True

    def __init__(self, cache: SharedCache, name: str) -> None:
        self._cache = cache
        self._name = name

    async def renew(self) -> None:
        """It does not expire."""

    async def release(self) -> None:
        self._cache.held.discard(self._name)


class CountingCache(MemoryCache):
    """A cache in the process that counts how often it is read."""

    reads = 0

    async def get(self, key: str) -> bytes | None:
        self.reads += 1
        return await super().get(key)


def soon(seconds: float = 10) -> float:
    """A deadline; one that nothing here comes near to unless it says when."""
    return asyncio.get_running_loop().time() + seconds


def leased(cache: MemoryCache, inner: Inner, clock: Clock | None = None) -> tuple[Leased, CachedBalances]:
    """One replica on this cache, and its balances."""
    now = clock or Clock()
    cached = CachedBalances(cache, TTL, longest_pause=60.0, now=now)
    return Leased(inner, cached, now=now), cached


class TestSingleFlight:
    async def test_callers_at_the_same_time_share_one_fetch_and_a_later_one_begins_another(self) -> None:
        gate = Gate("a balance")
        inner = Inner(lambda: gate(None))  # type: ignore[arg-type]
        flight: SingleFlight[str] = SingleFlight(inner, 8.0)
        callers = [asyncio.ensure_future(flight.fetch(target(), soon(), Priority())) for _ in range(5)]
        await until(lambda: flight.snapshot() == (1, 5))
        gate.opened.set()
        assert await asyncio.gather(*callers) == ["a balance"] * 5
        assert inner.fetches == 1
        assert flight.snapshot() == (0, 0)
        await flight.fetch(target(), soon(), Priority())
        assert inner.fetches == 2

    async def test_different_keys_share_nothing(self) -> None:
        inner = Inner()
        flight: SingleFlight[FetchedBalance] = SingleFlight(inner, 8.0)
        await asyncio.gather(*(flight.fetch(target(key=key), soon(), Priority()) for key in ("balance:1", "balance:2")))
        assert inner.fetches == 2

    async def test_a_caller_that_joins_promotes_the_fetch_that_a_feed_has_begun(self) -> None:
        gate = Gate("a balance")
        inner = Inner(lambda: gate(None))  # type: ignore[arg-type]
        flight: SingleFlight[str] = SingleFlight(inner, 8.0)
        feed = asyncio.ensure_future(flight.fetch(target(), soon(), Priority(polling=True)))
        await gate.entered.wait()
        assert inner.priorities[0].polling
        caller = asyncio.ensure_future(flight.fetch(target(), soon(), Priority()))
        await until(lambda: flight.snapshot() == (1, 2))
        assert not inner.priorities[0].polling
        gate.opened.set()
        await asyncio.gather(feed, caller)

    async def test_a_caller_whose_time_is_over_ends_no_fetch_also_after_a_stall_of_the_loop(self) -> None:
        gate = Gate("a balance")
        flight: SingleFlight[str] = SingleFlight(Inner(lambda: gate(None)), 8.0)  # type: ignore[arg-type]
        caller = asyncio.ensure_future(flight.fetch(target(), soon(0.3), Priority()))
        await gate.entered.wait()
        time.sleep(0.3)  # noqa: ASYNC251
        # As the call's handler does shortly before the deadline.
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert flight.snapshot() == (1, 0)
        assert not gate.cancelled.is_set()
        await flight.close()

    async def test_each_fetch_reports_its_end_once_and_a_cancelled_one_does_not(self) -> None:
        ends: list[BaseException | None] = []
        inner, error = Inner(), VenueUnavailable("It is down.")
        inner.raising(error, None)
        flight: SingleFlight[FetchedBalance] = SingleFlight(inner, 8.0, lambda _, error: ends.append(error))
        with pytest.raises(VenueUnavailable):
            await flight.fetch(target(), soon(), Priority())
        await flight.fetch(target(), soon(), Priority())
        assert ends == [error, None]
        gate = Gate()
        inner.make = lambda: gate(None)  # type: ignore[arg-type]
        caller = asyncio.ensure_future(flight.fetch(target(), soon(), Priority()))
        await gate.entered.wait()
        await flight.close()
        with pytest.raises(ShuttingDown):
            await caller
        assert len(ends) == 2


class TestLeased:
    async def test_the_holder_stores_its_balance_and_other_replicas_are_notified(self) -> None:
        cache = SharedCache()
        layer, cached = leased(cache, Inner())
        result = await layer.fetch(target(), soon(), Priority())
        assert result.here
        assert await cached.read("balance:1", target().account) == result.stored
        assert cache.messages == [b"bbalance:1"]
        assert cache.held == set()

    async def test_a_replica_that_waits_gets_the_holders_balance_without_a_fetch_of_its_own(self) -> None:
        cache, gate = SharedCache(), Gate(answer())
        holding_inner, waiting_inner = Inner(lambda: gate(None)), Inner()  # type: ignore[arg-type]
        holder, waiter = leased(cache, holding_inner)[0], leased(cache, waiting_inner)[0]
        first = asyncio.ensure_future(holder.fetch(target(), soon(), Priority()))
        await gate.entered.wait()
        second = asyncio.ensure_future(waiter.fetch(target(), soon(), Priority()))
        gate.opened.set()
        ours, theirs = await asyncio.gather(first, second)
        assert (ours.here, theirs.here) == (True, False)
        assert theirs.stored.data == ours.stored.data
        assert waiting_inner.fetches == 0

    async def test_a_balance_that_is_no_newer_than_the_callers_version_is_not_enough(self) -> None:
        cache, inner, clock = SharedCache(), Inner(), Clock()
        layer, _ = leased(cache, inner, clock)
        first = await layer.fetch(target(), soon(), Priority())
        assert not (await layer.fetch(target(), soon(), Priority())).here
        clock.now += 1
        assert (await layer.fetch(target(newer_than=first.stored.fetch_time), soon(), Priority())).here
        assert inner.fetches == 2

    async def test_a_balance_from_long_before_the_caller_came_is_not_enough(self) -> None:
        # The caller has not seen it: Redis did not answer when it came.
        cache, inner, clock = SharedCache(), Inner(), Clock()
        layer, _ = leased(cache, inner, clock)
        await layer.fetch(target(), soon(), Priority())
        clock.now += 20
        assert not (await layer.fetch(target(not_before=clock.now - 30), soon(), Priority())).here
        assert (await layer.fetch(target(not_before=clock.now - 2), soon(), Priority())).here

    async def test_while_the_cache_is_not_reliable_a_holder_is_not_waited_for_until_its_lease_ends(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("exchange_service.balances.leases._LOOK_EVERY", 0.01)
        monkeypatch.setattr("exchange_service.balances.leases._PATIENCE", 0.05)
        cache, inner = SharedCache(), Inner()
        cache.held.add("lease:balance:1")
        layer, _ = leased(cache, inner)
        with pytest.raises(VenueTimeout):
            await layer.fetch(target(), soon() - 9.8, Priority())
        cache.reliable = False
        assert (await layer.fetch(target(), soon(), Priority())).here
        # The other one's lease is its own to release.
        assert cache.held == {"lease:balance:1"}

    async def test_a_balance_is_as_old_as_the_venues_answer(self) -> None:
        clock = Clock()
        layer, _ = leased(SharedCache(), Inner(), clock)
        wanted = target(reports=VenueReports(answered_at=time.monotonic() - 3))
        fetched = (await layer.fetch(wanted, soon(), Priority())).stored.fetch_time
        assert clock.now - 5 < fetched <= clock.now - 3

    async def test_an_error_releases_the_lease(self) -> None:
        cache, inner = SharedCache(), Inner()
        inner.raising(VenueTimeout("Too slow."))
        with pytest.raises(VenueTimeout):
            await leased(cache, inner)[0].fetch(target(), soon(), Priority())
        assert cache.held == set()


class TestErrorsForReplicasThatWait:
    async def outcomes(self, error: ServiceError) -> tuple[FetchResult | BaseException, int]:
        """How a replica that waits for the holder ends if the holder raises this error, and its own fetches."""
        cache, entered, opened = SharedCache(), asyncio.Event(), asyncio.Event()

        async def fail() -> FetchedBalance:
            entered.set()
            await opened.wait()
            raise error

        waiting_inner = Inner()
        holder, waiter = leased(cache, Inner(fail))[0], leased(cache, waiting_inner)[0]
        first = asyncio.ensure_future(holder.fetch(target(), soon(), Priority()))
        await entered.wait()
        second = asyncio.ensure_future(waiter.fetch(target(), soon(), Priority()))
        # One iteration of the loop, in which it asks for the lease and begins to wait.
        await asyncio.sleep(0)
        opened.set()
        _, outcome = await asyncio.gather(first, second, return_exceptions=True)
        return outcome, waiting_inner.fetches

    async def test_the_venues_last_error_is_passed_on(self) -> None:
        outcome, fetches = await self.outcomes(VenueUnavailable("It is down."))
        assert isinstance(outcome, VenueUnavailable)
        assert fetches == 0

    async def test_an_error_of_the_gate_is_not_passed_on_and_the_replica_fetches_itself(self) -> None:
        error = VenueUnavailable("It is left alone.")
        error.venue_was_asked = False
        outcome, fetches = await self.outcomes(error)
        assert isinstance(outcome, FetchResult)
        assert outcome.here
        assert fetches == 1


class TestGated:
    async def test_it_asks_again_after_a_quick_failure_of_the_venue(self) -> None:
        inner = Inner()
        inner.raising(VenueUnavailable("It is down."), None)
        assert await Gated(inner).fetch(target(), soon(), Priority()) == answer()
        assert inner.fetches == 2

    async def test_the_venues_last_error_counts_as_the_venues(self) -> None:
        inner = Inner()
        inner.raising(VenueUnavailable("It is down."))
        with pytest.raises(VenueUnavailable) as failed:
            await Gated(inner, GateOptions(attempts=2)).fetch(target(), soon(), Priority())
        assert failed.value.venue_was_asked
        assert inner.fetches == 2

    async def test_an_error_of_the_gate_is_marked_as_sent_without_a_request(self) -> None:
        inner = Inner()
        inner.raising(VenueMaintenance("It is in maintenance.", retry_after=30.0))
        gate = Gated(inner)
        with pytest.raises(VenueMaintenance) as first:
            await gate.fetch(target(), soon(), Priority())
        with pytest.raises(VenueMaintenance) as second:
            await gate.fetch(target(), soon(), Priority())
        assert (first.value.venue_was_asked, second.value.venue_was_asked) == (True, False)
        assert inner.fetches == 1


def stored(total: str, fetch_time: float, previous: StoredBalance | None = None) -> StoredBalance:
    """A balance of the account as a replica stores it."""
    return store_balance(target().account, answer(total), fetch_time, previous)


class TestCompareAndSet:
    async def test_after_a_lost_write_the_winners_newer_balance_is_returned(self) -> None:
        # Without leases: as when one has expired while its holder waited for the venue.
        cache, gate = MemoryCache(), Gate(answer("1"))
        slow, slow_cached = leased(cache, Inner(lambda: gate(None)))  # type: ignore[arg-type]

        async def newer() -> FetchedBalance:
            return answer("2")

        quick, _ = leased(cache, Inner(newer), Clock(Clock().now + 1))
        loser = asyncio.ensure_future(slow.fetch(target(), soon(), Priority()))
        await gate.entered.wait()
        winner = await quick.fetch(target(), soon(), Priority())
        gate.opened.set()
        result = await loser
        assert (result.here, result.stored) == (False, winner.stored)
        assert slow_cached.get_local("balance:1") == winner.stored
        assert await cache.get("balance:1") == winner.stored.encode()

    async def test_what_another_replica_has_stored_serves_unless_the_caller_knows_a_newer_version(self) -> None:
        cache, inner, theirs = MemoryCache(), Inner(), stored("1", Clock().now)
        await cache.set("balance:1", theirs.encode(), TTL)
        layer, _ = leased(cache, inner)
        for ahead, fetches in ((0, 0), (60_000_000, 1)):
            wanted = replace(target(), known_version=theirs.version + ahead)
            result = await layer.fetch(wanted, soon(), Priority())
            assert (result.here, inner.fetches) == (fetches > 0, fetches)
            assert result.stored.version >= wanted.known_version

    async def test_a_lost_write_does_not_replace_the_local_copy_by_an_older_version(self) -> None:
        cache = MemoryCache()
        cached = CachedBalances(cache, TTL, longest_pause=60.0)
        older = stored("1", 100.0)
        newer = stored("2", 200.0, older)
        await cached.write("balance:1", newer, replacing=None)
        # A replica whose lease was over has written last.
        await cache.set("balance:1", older.encode(), TTL)
        written, present = await cached.write("balance:1", stored("3", 300.0, newer), replacing=newer)
        assert (written, present) == (False, older)
        assert cached.get_local("balance:1") == newer

    async def test_a_version_rises_although_the_cache_holds_an_older_one_than_the_process(self) -> None:
        cache, inner, clock = MemoryCache(), Inner(), Clock()
        layer, _ = leased(cache, inner, clock)
        older = stored("1", clock.now - 100)
        newer = (await layer.fetch(target(), soon(), Priority())).stored
        await cache.set("balance:1", older.encode(), TTL)

        async def changed() -> FetchedBalance:
            return answer("3")

        inner.make = changed
        clock.now += 1
        result = await layer.fetch(target(newer_than=newer.fetch_time), soon(), Priority())
        assert result.here
        assert result.stored.version > newer.version
        assert await cache.get("balance:1") == result.stored.encode()

    async def test_a_newer_balance_with_a_lower_version_is_not_returned(self) -> None:
        # Another replica has seen the same content for longer, and stores it again while this one is without Redis.
        cache, gate, clock = MemoryCache(), Gate(answer("2")), Clock()
        layer, cached = leased(cache, Inner(lambda: gate(None)), clock)  # type: ignore[arg-type]
        ours = stored("1", clock.now)
        await cached.write("balance:1", ours, replacing=None)
        lower = stored("1", clock.now - 50)
        theirs = stored("1", clock.now + 10, lower)
        assert theirs.version < ours.version
        clock.now += 20
        fetch = asyncio.ensure_future(layer.fetch(target(newer_than=ours.fetch_time), soon(), Priority()))
        await gate.entered.wait()
        await cache.set("balance:1", theirs.encode(), TTL)
        gate.opened.set()
        result = await fetch
        assert result.stored.version > ours.version
        assert await cache.get("balance:1") == result.stored.encode()

    async def test_the_version_follows_one_that_a_replica_with_a_late_clock_has_written(self) -> None:
        cache, gate, clock = MemoryCache(), Gate(answer("1")), Clock()
        layer, cached = leased(cache, Inner(lambda: gate(None)), clock)  # type: ignore[arg-type]
        ours = stored("1", clock.now)
        await cached.write("balance:1", ours, replacing=None)
        theirs = stored("2", clock.now - 1.5, ours)
        clock.now += 5
        fetch = asyncio.ensure_future(layer.fetch(target(newer_than=ours.fetch_time), soon(), Priority()))
        await gate.entered.wait()
        await cache.set("balance:1", theirs.encode(), TTL)
        gate.opened.set()
        result = await fetch
        # The content is the one before theirs: with its version, a replica that has seen theirs would not take it.
        assert result.stored.version > theirs.version
        assert await cache.get("balance:1") == result.stored.encode()

    async def test_a_balance_from_before_the_fetch_began_is_replaced_and_the_version_rises(self) -> None:
        # What this replica knows is what it could not write to Redis; another one has written since.
        cache, clock = MemoryCache(), Clock()
        inner = Inner()
        layer, cached = leased(cache, inner, clock)
        ours = stored("1", clock.now)
        await cached.write("balance:1", ours, replacing=None)
        theirs = stored("2", clock.now + 10)
        clock.now += 20

        async def written_meanwhile() -> FetchedBalance:
            await cache.set("balance:1", theirs.encode(), TTL)
            return answer("1")

        inner.make = written_meanwhile
        result = await layer.fetch(target(newer_than=ours.fetch_time), soon(), Priority())
        assert result.here
        assert result.stored.fetch_time == clock.now
        assert result.stored.version > theirs.version
        assert await cache.get("balance:1") == result.stored.encode()

    async def test_a_push_that_has_waited_does_not_replace_what_a_read_has_brought_meanwhile(self) -> None:
        layer, cached = leased(MemoryCache(), Inner(), Clock(ticking=True))
        arrived_at = time.monotonic()
        pushed = await layer.store_pushed(target(), answer("2"), arrived_at)
        assert pushed.here
        read = (await layer.fetch(target(not_before=float("inf")), soon(), Priority())).stored
        late = await layer.store_pushed(target(), answer("3"), arrived_at)
        assert (late.here, late.stored) == (False, read)
        assert cached.get_local("balance:1") == read
        assert (await layer.store_pushed(target(), answer("4"), time.monotonic())).here

    async def test_of_replicas_that_keep_writing_none_returns_a_version_that_is_not_stored(self) -> None:
        clock = Clock()

        class Overtaken(MemoryCache):
            latest = stored("0", clock.now - 100)

            async def compare_and_set(self, key: str, value: bytes, ttl: float, *, expected: bytes) -> bytes | None:
                # Another replica, whose clock is behind, always comes first.
                self.latest = stored(str(self.latest.version), clock.now - 50, self.latest)
                return self.latest.encode()

        cache = Overtaken()
        await cache.set("balance:1", cache.latest.encode(), TTL)
        layer, cached = leased(cache, Inner(), clock)
        result = await layer.fetch(target(newer_than=cache.latest.fetch_time), soon(), Priority())
        assert (result.stored, result.here) == (cache.latest, False)
        assert cached.get_local("balance:1") == cache.latest

    @pytest.mark.parametrize("message", [None, b"bbalance:1"])
    async def test_after_messages_were_missed_the_version_follows_what_the_cache_did_not_get(
        self, message: bytes | None
    ) -> None:
        # Or another replica has told that it has fetched the old content again.
        cache, clock = SharedCache(), Clock()
        layer, cached = leased(cache, Inner(), clock)
        before = (await layer.fetch(target(), soon(), Priority())).stored
        # The cache is out of reach, so this one stays in the process, whose subscribers have seen it.
        alone = stored("2", clock.now + 10, before)
        cached._keep_newer("balance:1", alone)
        assert await cached.read("balance:1", target().account) == alone
        for listener in cache._listeners:
            listener(message)
        assert cached.get_local("balance:1") is None
        assert await cached.read("balance:1", target().account) == alone
        # Now the venue has the first content again.
        clock.now += 20
        result = await layer.fetch(target(newer_than=alone.fetch_time), soon(), Priority())
        assert result.stored.version > alone.version
        assert await cache.get("balance:1") == result.stored.encode()

    async def test_what_the_cache_has_lost_is_not_fresh_any_more_and_stays_the_last_good_one(self) -> None:
        cache, clock, inner = SharedCache(), Clock(), Inner()
        layer, cached = leased(cache, inner, clock)
        before = (await layer.fetch(target(), soon(), Priority())).stored
        for listener in cache._listeners:
            listener(None)
        await cache.delete("balance:1")
        assert await cached.read("balance:1", target().account) is None
        assert cached.get_local("balance:1") is None
        assert cached.last_good("balance:1") == before
        # The same content keeps its version, and other content gets a higher one, although clocks may have gone back.
        clock.now -= 5
        inner.make = returning(answer("2"))
        after = (await layer.fetch(target(newer_than=before.fetch_time), soon(), Priority())).stored
        assert after.version > before.version

    async def test_after_messages_were_missed_every_listener_looks_again(self) -> None:
        cache = SharedCache()
        _, cached = leased(cache, Inner())
        events = {f"balance:{number}": asyncio.Event() for number in range(50)}
        for key, event in events.items():
            cached.add_listener(key, event)
        cache._listeners[0](None)
        # Not all at once, because each reads the cache.
        assert 0 < sum(event.is_set() for event in events.values()) < 50
        await until(lambda: all(event.is_set() for event in events.values()))

    async def test_a_cache_that_does_not_answer_is_not_taken_for_one_that_has_lost_the_balance(self) -> None:
        class Silent(MemoryCache):
            async def get(self, key: str) -> bytes | None:
                return None if not self.reliable else await super().get(key)

        cache = Silent()
        layer, cached = leased(cache, Inner())
        before = (await layer.fetch(target(), soon(), Priority())).stored
        cache.reliable = False
        assert await cached.read("balance:1", target().account) == before
        assert cached.get_local("balance:1") == before

    async def test_an_older_balance_that_another_replica_brings_back_replaces_none_that_was_seen_here(self) -> None:
        cache, clock = SharedCache(), Clock()
        layer, cached = leased(cache, Inner(), clock)
        older = stored("0", clock.now - 10)
        seen = (await layer.fetch(target(), soon(), Priority())).stored
        for lost in (cache._listeners[0], None):
            if lost is not None:
                lost(None)
            await cache.delete("balance:1")
            assert await cached.read("balance:1", target().account) is None
            await cache.set("balance:1", older.encode(), TTL)
            assert await cached.read("balance:1", target().account) == seen
            assert cached.get_local("balance:1") == seen

    async def test_a_version_below_one_that_came_during_the_write_is_not_seen(self) -> None:
        clock = Clock()
        higher = stored("5", clock.now + 50)

        class Slow(MemoryCache):
            async def compare_and_set(self, key: str, value: bytes, ttl: float, *, expected: bytes) -> bytes | None:
                refused = await super().compare_and_set(key, value, ttl, expected=expected)
                if cached.last_good(key) is None:
                    # A reader has come upon another replica's balance.
                    cached._keep_newer(key, higher)
                return refused

        layer, cached = leased(Slow(), Inner(), clock)
        result = await layer.fetch(target(), soon(), Priority())
        assert result.stored.version >= higher.version
        assert cached.get_local("balance:1") == result.stored


class TestReads:
    async def test_a_cold_call_reads_the_cache_twice_and_a_warm_one_not_at_all(self, tmp_path: Path) -> None:
        cache = CountingCache()
        async with open_test_service(tmp_path, ScriptedPlugin(), cache=cache) as service:
            await service.put()
            assert (await service.get()).source is Source.VENUE
            assert cache.reads == 2
            before = cache.reads
            assert (await service.get()).source is Source.CACHE
            assert cache.reads == before


def finish_at_once(call: Any) -> Any:
    """What the coroutine returns if it does not suspend."""
    with pytest.raises(StopIteration) as ended:
        call.send(None)
    return ended.value.value


class TestTheWarmPath:
    async def test_a_fresh_copy_in_the_process_is_returned_without_suspending(self, tmp_path: Path) -> None:
        async def count_refresh(caller: object) -> None:
            raise AssertionError("the call forces nothing")

        # References are remembered, as in the service.
        async with open_test_service(tmp_path, ScriptedPlugin(), reference_ttl=60.0) as service:
            account, listing = service.registry.account(USER, "fakex", "")
            assert service.balances.get_local(account, None) is None
            await service.put()
            fetched = await service.get()
            local = service.balances.get_local(account, None)
            assert local is not None
            assert local.stored == fetched.stored
            reader = BalanceReader(service.balances, count_refresh, Metrics(), call_timeout=8.0)
            caller: Any = object()
            result = finish_at_once(reader.get(BalanceQuery(account, listing, None), caller, lambda: 5.0))
            assert (result.source, result.stored) == (Source.CACHE, fetched.stored)
            # A balance that is too old suspends.
            service.clock.now += 31
            assert service.balances.get_local(account, None) is None
            call = reader.get(BalanceQuery(account, listing, None), caller, lambda: 5.0)
            assert (await call).source is Source.VENUE
