"""GetBalance without its server: freshness, one fetch for all callers, the last good balance and refusals."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import exchange_service_oanda
import pytest
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount

from exchange_service.app import BalanceOptions, open_balances
from exchange_service.balances.freshness import Freshness
from exchange_service.balances.refusals import Refusals
from exchange_service.balances.service import BalanceResult, Balances
from exchange_service.cache.memory import MemoryCache
from exchange_service.credentials import CredentialReference
from exchange_service.errors import (
    AccountUnknown,
    AddressNotAllowed,
    ClockSkew,
    CredentialInvalid,
    CredentialMissing,
    CredentialRejected,
    DeadlinePassed,
    FeatureNotEnabled,
    NotSupported,
    PermissionMissing,
    PluginFailed,
    RegionRestricted,
    RequestRefused,
    ServiceError,
    ShuttingDown,
    StoreUnavailable,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.plugin_api import Account, AssetBalance, Balance, Capabilities, VenueAccount, VenueCall
from exchange_service.v1 import balance_pb2
from exchange_service.venues.fetching import Target
from exchange_service.wire.balances import fetched_balance
from exchange_service.wire.replies import Source
from exchange_service.wire.stored import store_balance
from tests.harness import (
    HASH_KEY,
    USER,
    Clock,
    Gate,
    OffsetClock,
    ScriptedPlugin,
    TestService,
    holding,
    listing,
    open_test_service,
    raising,
    registry_of,
    returning,
    totals,
    until,
)


def figures(result: Any) -> dict[str, str]:
    return totals(balance_pb2.Balance.FromString(result.stored.data))


async def joined(service: TestService, callers: int) -> None:
    """Wait until so many callers wait for the one fetch."""
    await until(lambda: service.balances.fetcher.snapshot() == (1, callers))


@pytest.fixture
def plugin() -> ScriptedPlugin:
    return ScriptedPlugin()


@pytest.fixture
async def service(tmp_path: Path, plugin: ScriptedPlugin) -> AsyncIterator[TestService]:
    """One venue, and the user's stored credential for it."""
    async with open_test_service(tmp_path, plugin) as service:
        await service.put()
        yield service


@pytest.fixture
async def offset_clock(monkeypatch: pytest.MonkeyPatch, service: TestService) -> OffsetClock:
    return OffsetClock(monkeypatch)


class TestFreshness:
    async def test_a_cached_balance_is_returned_while_it_is_fresh(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        first = await service.get()
        service.clock.now += 29
        second = await service.get()
        assert (first.source, second.source) == (Source.VENUE, Source.CACHE)
        assert second.age == pytest.approx(29)
        assert len(plugin.calls) == 1

    async def test_the_venue_is_asked_again_when_the_balance_is_too_old(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        await service.get()
        service.clock.now += 31
        assert (await service.get()).source is Source.VENUE
        assert len(plugin.calls) == 2

    async def test_the_caller_chooses_how_fresh_a_balance_must_be(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        await service.get()
        service.clock.now += 100
        assert (await service.get(max_age=200)).source is Source.CACHE
        assert (await service.get(max_age=99)).source is Source.VENUE
        assert len(plugin.calls) == 2

    async def test_a_max_age_of_zero_asks_the_venue(self, service: TestService, plugin: ScriptedPlugin) -> None:
        await service.get()
        assert (await service.get(max_age=0)).source is Source.VENUE
        assert len(plugin.calls) == 2

    async def test_a_configured_max_age_of_zero_asks_the_venue_each_time(
        self, tmp_path: Path, plugin: ScriptedPlugin
    ) -> None:
        async with open_test_service(tmp_path, plugin, max_age=0.0) as service:
            await service.put()
            await service.get()
            await service.get()
        assert len(plugin.calls) == 2

    async def test_the_version_rises_only_when_the_content_changes(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        first = await service.get(max_age=0)
        service.clock.now += 5
        same = await service.get(max_age=0)
        plugin.answer = returning(holding(("BTC", "1.51")))
        changed = await service.get(max_age=0)
        service.clock.now -= 3600
        plugin.answer = returning(holding(("BTC", "1.52")))
        after_the_clock_went_back = await service.get(max_age=0)
        assert same.stored.version == first.stored.version
        assert same.stored.fetch_time == first.stored.fetch_time + 5
        assert changed.stored.version > same.stored.version
        assert after_the_clock_went_back.stored.version > changed.stored.version

    async def test_users_never_see_each_others_balances(self, service: TestService, plugin: ScriptedPlugin) -> None:
        async def by_key(call: VenueCall) -> Balance:
            return holding(("BTC", call.credential.api_key.reveal()))

        plugin.answer = by_key
        await service.put(api_key="1")
        await service.put(user="bob", api_key="2")
        assert figures(await service.get()) == {"BTC": "1"}
        assert figures(await service.get(user="bob")) == {"BTC": "2"}
        assert figures(await service.get()) == {"BTC": "1"}

    async def test_the_keys_of_the_cache_do_not_reveal_the_user(self, service: TestService) -> None:
        key = (await service.get()).key
        assert await service.cache.get(key)
        assert USER not in key
        assert "a-key" not in key


class TestClocks:
    """A cached balance from the future says that a clock is wrong, and nothing about its age."""

    async def test_after_the_clock_was_set_back_a_cached_balance_is_not_fresh(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        before = await service.get()
        service.clock.now -= 200
        plugin.answer = returning(holding(("BTC", "2")))
        for max_age in (None, 86_400.0):
            result = await service.get(max_age=max_age)
        assert (await service.get()).source is Source.CACHE, "a balance that was fetched since then is fresh"
        assert len(plugin.calls) == 2
        assert figures(result) == {"BTC": "2"}
        assert result.stored.fetch_time == before.stored.fetch_time - 200
        assert result.stored.version > before.stored.version

    async def test_a_balance_cached_by_a_replica_whose_clock_is_ahead_is_not_fresh(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        other, clock = replica(service)
        clock.now += 120
        ahead = await get_from(other, service)
        result = await service.get()
        assert result.source is Source.VENUE
        assert len(plugin.calls) == 2
        # Nothing has changed at the venue, so the version stays, although the clocks differ.
        assert result.stored.version == ahead.stored.version

    async def test_replicas_whose_clocks_differ_a_little_share_cached_balances(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        other, clock = replica(service)
        clock.now += 1.5
        await get_from(other, service)
        result = await service.get()
        assert (result.source, result.age) == (Source.CACHE, 0.0)
        assert len(plugin.calls) == 1

    async def test_a_balance_from_the_future_does_not_serve_as_the_last_good_one(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        await service.get()
        service.clock.now -= 200
        plugin.answer = raising(VenueUnavailable("It is down."))
        with pytest.raises(VenueUnavailable):
            await service.get()
        assert len(plugin.calls) == 2


def replica(service: TestService) -> tuple[Balances, Clock]:
    """Another replica: the same store and the same cache, and its own fetches and its own clock."""
    clock = Clock(service.clock.now)
    options = BalanceOptions(HASH_KEY, freshness=Freshness(now=clock))
    other = open_balances(service.sessions, service.balances.references, service.cache, options)
    return other, clock


async def get_from(balances: Balances, service: TestService, *, max_age: float | None = None) -> BalanceResult:
    account, entry = service.registry.account(USER, "fakex", "")
    deadline = asyncio.get_running_loop().time() + 10
    return await balances.get(account, entry, max_age=max_age, deadline=deadline)


class TestReplicas:
    async def test_a_refusal_ends_with_a_later_balance_of_another_replica(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        other, clock = replica(service)
        plugin.answer = raising(CredentialRejected("No."))
        with pytest.raises(CredentialRejected):
            await service.get()
        plugin.answer = returning(holding(("BTC", "2")))
        clock.now = service.clock.now = service.clock.now + 1
        await get_from(other, service)
        plugin.answer = returning(holding(("BTC", "3")))
        # Too old by now: the venue is asked again, and not taken to refuse still.
        clock.now = service.clock.now = service.clock.now + 40
        assert figures(await service.get()) == {"BTC": "3"}

    async def test_a_newer_balance_that_another_replica_wrote_during_the_fetch_is_returned(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        other, clock = replica(service)
        plugin.answer = gate = Gate(holding(("BTC", "1")))
        slow = asyncio.ensure_future(service.get())
        await gate.entered.wait()
        clock.now += 1
        plugin.answer = returning(holding(("BTC", "2")))
        newer = await get_from(other, service)
        service.clock.now += 2
        gate.opened.set()
        ours = await slow
        assert figures(ours) == {"BTC": "2"}
        assert ours.stored.version == newer.stored.version
        assert figures(await service.get()) == figures(await get_from(other, service)) == {"BTC": "2"}

    async def test_an_older_balance_in_the_cache_is_replaced(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        other, _ = replica(service)
        older = await get_from(other, service)
        service.clock.now += 40
        plugin.answer = returning(holding(("BTC", "2")))
        ours = await service.get()
        assert figures(ours) == {"BTC": "2"}
        assert ours.stored.version > older.stored.version

    @pytest.mark.parametrize("ahead", [1.0, 120.0, -200.0])
    async def test_versions_never_go_back_however_the_clocks_differ(
        self, service: TestService, plugin: ScriptedPlugin, ahead: float
    ) -> None:
        other, clock = replica(service)
        clock.now += ahead
        versions = []
        for number in range(1, 7):
            # The other one always writes while ours is being fetched.
            plugin.answer = gate = Gate(holding(("BTC", f"{number}.1")))
            slow = asyncio.ensure_future(service.get(max_age=0))
            await gate.entered.wait()
            plugin.answer = returning(holding(("BTC", f"{number}.2")))
            theirs = await get_from(other, service, max_age=0)
            gate.opened.set()
            ours = await slow
            versions += [theirs.stored.version, ours.stored.version]
            service.clock.now += 3
            clock.now += 3
        assert versions == sorted(versions)
        assert len(set(versions)) >= 6

    async def test_the_same_content_has_the_version_that_another_replica_gave_it(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        other, clock = replica(service)
        clock.now += 120
        plugin.answer = gate = Gate(holding(("BTC", "1")))
        slow = asyncio.ensure_future(service.get())
        await gate.entered.wait()
        plugin.answer = returning(holding(("BTC", "1")))
        theirs = await get_from(other, service)
        gate.opened.set()
        ours = await slow
        assert ours.stored.version == theirs.stored.version
        # Their clock is wrong, and their fetch time says nothing of the balance's age.
        assert ours.stored.fetch_time == service.clock.now


class TestKnownVersions:
    """A caller that names the version of the balance that it has never gets an older one."""

    async def test_the_known_version_itself_is_given_from_the_cache_while_it_is_fresh(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        first = await service.get()
        again = await service.get(known_version=first.stored.version)
        assert (again.source, again.stored) == (Source.CACHE, first.stored)
        assert len(plugin.calls) == 1

    async def test_what_is_older_is_passed_over_for_what_another_replica_has_stored(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        await service.get()
        other, _ = replica(service)
        plugin.answer = returning(holding(("BTC", "2")))
        newer = await get_from(other, service, max_age=0)
        calls = len(plugin.calls)
        # This replica has heard of nothing, and its own copy is fresh.
        assert (await service.get()).stored.version < newer.stored.version
        assert (await service.get(known_version=newer.stored.version)).stored == newer.stored
        assert len(plugin.calls) == calls

    @pytest.mark.parametrize("ahead", [1, 5_000_000, 3_600_000_000])
    async def test_if_nothing_is_as_new_the_venue_is_asked_and_its_answer_gets_a_version_above(
        self, service: TestService, plugin: ScriptedPlugin, ahead: int
    ) -> None:
        first = await service.get()
        known = first.stored.version + ahead
        # The answer is the same, and whether it is what the caller has is not known.
        result = await service.get(known_version=known)
        assert result.source is Source.VENUE
        assert result.stored.version > known
        assert len(plugin.calls) == 2
        # Nor does it go back for those that bring no version.
        assert (await service.get()).stored == result.stored
        assert len(plugin.calls) == 2

    async def test_an_older_last_good_balance_is_not_given_in_place_of_the_venues_error(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        first = await service.get()
        plugin.answer = raising(VenueUnavailable("It is down."))
        service.clock.now += 100
        with pytest.raises(VenueUnavailable):
            await service.get(known_version=first.stored.version + 1)
        result = await service.get(known_version=first.stored.version)
        assert (result.source, result.stored) == (Source.LAST_GOOD, first.stored)

    async def test_a_fetch_in_progress_that_brings_an_older_one_is_followed_by_another(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        plugin.answer = gate = Gate()
        unaware = asyncio.ensure_future(service.get())
        await gate.entered.wait()
        known = int(service.clock() * 1_000_000) + 1_000_000
        aware = asyncio.ensure_future(service.get(known_version=known))
        await joined(service, 2)
        gate.opened.set()
        assert (await unaware).stored.version < known
        assert (await aware).stored.version > known
        assert len(plugin.calls) == 2

    async def test_without_one_a_replica_follows_what_it_has_shown_also_if_the_cache_and_the_clock_have_lost_it(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        first = await service.get()
        await service.cache.delete(first.key)
        service.clock.now -= 10
        plugin.answer = returning(holding(("BTC", "2")))
        assert (await service.get(max_age=0)).stored.version > first.stored.version

    async def test_a_version_from_far_ahead_raises_the_accounts_versions_by_less_than_a_day(
        self, service: TestService
    ) -> None:
        result = await service.get(known_version=2**64 - 1)
        assert result.stored.version < (service.clock() + 86_400) * 1_000_000
        # Every replica believes it, also one whose clock is half an hour behind.
        other, clock = replica(service)
        clock.now = service.clock() - 1800
        assert (await get_from(other, service)).stored.version >= result.stored.version


class TestOneFetchForAll:
    async def test_callers_at_the_same_time_share_one_read_of_the_cache(
        self, service: TestService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read, reads = service.cache.get, []

        async def get(key: str) -> bytes | None:
            reads.append(key)
            await asyncio.sleep(0)
            return await read(key)

        await service.get()
        service.clock.now += 100
        monkeypatch.setattr(service.cache, "get", get)
        await asyncio.gather(*(service.get() for _ in range(100)))
        # One for all of them, and one by the fetch.
        assert len(reads) == 2

    async def test_a_caller_that_looked_at_the_cache_before_a_fetch_ended_is_served_by_it(
        self, service: TestService, plugin: ScriptedPlugin, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read, asked, answered = service.cache.get, asyncio.Event(), asyncio.Event()

        async def late(key: str) -> bytes | None:
            raw = await read(key)
            asked.set()
            await answered.wait()
            return raw

        plugin.answer = gate = Gate()
        first = asyncio.ensure_future(service.get())
        await gate.entered.wait()
        monkeypatch.setattr(service.cache, "get", late)
        second = asyncio.ensure_future(service.get())
        await asked.wait()
        gate.opened.set()
        await first
        answered.set()
        assert (await second).stored.version == (await first).stored.version
        assert len(plugin.calls) == 1

    async def test_callers_at_the_same_time_share_one_request(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        plugin.answer = gate = Gate()
        callers = [asyncio.ensure_future(service.get(max_age=0)) for _ in range(200)]
        await gate.entered.wait()
        await joined(service, 200)
        gate.opened.set()
        results = await asyncio.gather(*callers)
        assert len(plugin.calls) == 1
        assert {result.stored.version for result in results} == {results[0].stored.version}

    async def test_callers_at_the_same_time_share_a_failure(self, service: TestService, plugin: ScriptedPlugin) -> None:
        gate = Gate()

        async def fail(call: VenueCall) -> Balance:
            await gate(call)
            raise VenueUnavailable("It is down.")

        plugin.answer = fail
        callers = [asyncio.ensure_future(service.get()) for _ in range(20)]
        await gate.entered.wait()
        await joined(service, 20)
        gate.opened.set()
        outcomes = await asyncio.gather(*callers, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {VenueUnavailable}
        assert len(plugin.calls) == 1

    async def test_a_caller_that_leaves_does_not_end_the_fetch_for_the_others(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        plugin.answer = gate = Gate()
        leaver, stayer = (asyncio.ensure_future(service.get()) for _ in range(2))
        await gate.entered.wait()
        await joined(service, 2)
        leaver.cancel()
        await asyncio.wait({leaver})
        gate.opened.set()
        assert figures(await stayer) == {"BTC": "1.50"}
        assert not gate.cancelled.is_set()

    async def test_the_fetch_is_cancelled_when_the_last_caller_leaves(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        plugin.answer = gate = Gate()
        callers = [asyncio.ensure_future(service.get()) for _ in range(3)]
        await gate.entered.wait()
        await joined(service, 3)
        for caller in callers:
            caller.cancel()
        await asyncio.wait(callers)
        assert await asyncio.wait_for(gate.cancelled.wait(), 5)

    @pytest.mark.parametrize("steps", range(8))
    async def test_a_caller_that_comes_right_after_the_last_one_has_left_is_answered(
        self, tmp_path: Path, plugin: ScriptedPlugin, steps: int
    ) -> None:
        plugin.answer = gate = Gate()
        # With a known reference nothing stands between the call and the fetch that is being cancelled.
        async with open_test_service(tmp_path, plugin, reference_ttl=60.0) as service:
            await service.put()
            leaver = asyncio.ensure_future(service.get())
            await gate.entered.wait()
            leaver.cancel()
            for _ in range(steps):
                await asyncio.sleep(0)
            comer = asyncio.ensure_future(service.get())
            await asyncio.wait({leaver})
            gate.opened.set()
            assert figures(await comer) == {"BTC": "1.50"}
            assert leaver.cancelled()

    async def test_a_caller_with_a_short_deadline_gets_an_error_while_the_fetch_goes_on(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        plugin.answer = gate = Gate()
        patient = asyncio.ensure_future(service.get())
        await gate.entered.wait()
        started = time.monotonic()
        with pytest.raises(VenueTimeout):
            await service.get(timeout=0.3)
        assert time.monotonic() - started < 0.3
        gate.opened.set()
        assert figures(await patient) == {"BTC": "1.50"}
        assert len(plugin.calls) == 1

    async def test_a_balance_that_comes_after_the_only_caller_gave_up_is_cached_for_the_next(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        plugin.answer = gate = Gate()
        with pytest.raises(VenueTimeout):
            await service.get(timeout=0.2)
        gate.opened.set()
        await until(lambda: service.balances.fetcher.snapshot() == (0, 0))
        assert (await service.get()).source is Source.CACHE
        assert len(plugin.calls) == 1

    async def test_a_fetch_has_a_time_limit_of_its_own(self, tmp_path: Path, plugin: ScriptedPlugin) -> None:
        plugin.answer = gate = Gate()
        async with open_test_service(tmp_path, plugin, venue_timeout=0.2) as service:
            await service.put()
            with pytest.raises(VenueTimeout):
                await service.get()
            assert gate.cancelled.is_set()

    async def test_a_deadline_that_has_passed_costs_no_request(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        for timeout in (-1.0, 0.0, 0.005):
            with pytest.raises(DeadlinePassed):
                await service.get(timeout=timeout)
        assert plugin.calls == []

    async def test_the_end_of_the_service_ends_a_fetch_with_a_reason(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        plugin.answer = gate = Gate()
        caller = asyncio.ensure_future(service.get())
        await gate.entered.wait()
        await service.balances.close()
        with pytest.raises(ShuttingDown):
            await caller


TRANSIENT = [VenueUnavailable, VenueMaintenance, VenueTimeout, VenueMalformed, VenueRateLimited, PluginFailed]
LASTING = [CredentialInvalid, NotSupported]
# A venue may say these by mistake.
DOUBTED = [
    CredentialRejected,
    PermissionMissing,
    AddressNotAllowed,
    ClockSkew,
    RegionRestricted,
    AccountUnknown,
    FeatureNotEnabled,
    RequestRefused,
]


class TestLastGood:
    @pytest.mark.parametrize("kind", TRANSIENT)
    async def test_it_is_returned_after_a_transient_error(
        self, service: TestService, plugin: ScriptedPlugin, kind: type[ServiceError]
    ) -> None:
        await service.get()
        service.clock.now += 100
        plugin.answer = raising(kind("Something happened."))
        result = await service.get()
        assert result.source is Source.LAST_GOOD
        assert isinstance(result.stale, kind)
        assert result.age == pytest.approx(100)
        assert figures(result) == {"BTC": "1.50"}

    @pytest.mark.parametrize("kind", LASTING)
    async def test_it_is_not_returned_after_an_error_that_the_user_must_resolve(
        self, service: TestService, plugin: ScriptedPlugin, kind: type[ServiceError]
    ) -> None:
        await service.get()
        service.clock.now += 100
        plugin.answer = raising(kind("Something is wrong."))
        with pytest.raises(kind):
            await service.get()

    async def test_it_is_returned_while_the_store_of_the_credential_does_not_answer(
        self, service: TestService, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await service.get()
        service.clock.now += 100
        # As in another replica, which has not asked the venue for this account yet.
        service.sessions.forget(Account("alice", "fakex"))
        monkeypatch.setattr(service.sessions, "_open_credential", raising(StoreUnavailable("It is down.")))
        assert isinstance((await service.get()).stale, StoreUnavailable)

    async def test_it_is_not_returned_for_a_forced_call(self, service: TestService, plugin: ScriptedPlugin) -> None:
        await service.get()
        plugin.answer = raising(VenueUnavailable("It is down."))
        with pytest.raises(VenueUnavailable):
            await service.get(max_age=0)

    async def test_it_is_not_returned_beyond_the_grace(self, service: TestService, plugin: ScriptedPlugin) -> None:
        await service.get()
        plugin.answer = raising(VenueUnavailable("It is down."))
        service.clock.now += 300
        assert (await service.get()).source is Source.LAST_GOOD
        service.clock.now += 1
        with pytest.raises(VenueUnavailable):
            await service.get()

    async def test_it_is_returned_to_a_caller_that_cannot_wait_for_a_slow_venue(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        await service.get()
        service.clock.now += 100
        plugin.answer = Gate()
        result = await service.get(timeout=0.3)
        assert isinstance(result.stale, VenueTimeout)
        assert figures(result) == {"BTC": "1.50"}

    async def test_without_an_earlier_balance_the_error_is_raised(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        plugin.answer = raising(VenueMalformed("Nonsense."))
        with pytest.raises(VenueMalformed):
            await service.get()


async def second_word(service: TestService, plugin: ScriptedPlugin, calls: int, offset_clock: OffsetClock) -> None:
    """Let the pause before the second ask pass, and wait until it has been answered."""
    offset_clock.advance(2.1)
    await until(lambda: len(plugin.calls) == calls and service.balances.fetcher.snapshot() == (0, 0))


class TestDoubts:
    """A venue that refuses what it took a moment ago is asked again before it is believed."""

    @pytest.mark.parametrize("kind", DOUBTED)
    async def test_the_last_good_balance_is_given_with_the_reason_until_the_venue_refuses_again(
        self, service: TestService, plugin: ScriptedPlugin, offset_clock: OffsetClock, kind: type[ServiceError]
    ) -> None:
        await service.get()
        service.clock.now += 100
        plugin.answer = raising(kind("Something is wrong."))
        for _ in range(3):
            result = await service.get()
            assert (result.source, type(result.stale)) == (Source.LAST_GOOD, kind)
        assert len(plugin.calls) == 2
        await second_word(service, plugin, 3, offset_clock)
        for _ in range(2):
            with pytest.raises(kind):
                await service.get()
        # It stays told, also when it is asked again after a minute.
        offset_clock.advance(61.0)
        with pytest.raises(kind):
            await service.get()

    @pytest.mark.parametrize("kind", DOUBTED)
    async def test_a_refusal_that_the_venue_takes_back_is_forgotten(
        self, service: TestService, plugin: ScriptedPlugin, offset_clock: OffsetClock, kind: type[ServiceError]
    ) -> None:
        await service.get()
        service.clock.now += 100
        plugin.answer = raising(kind("Something is wrong."))
        assert (await service.get()).source is Source.LAST_GOOD
        plugin.answer = returning(holding(("BTC", "2")))
        await second_word(service, plugin, 3, offset_clock)
        result = await service.get()
        assert (result.stale, figures(result)) == (None, {"BTC": "2"})
        # The next slip is doubted again.
        service.clock.now += 100
        plugin.answer = raising(kind("Something is wrong."))
        assert (await service.get()).source is Source.LAST_GOOD

    @pytest.mark.parametrize("believed", [False, True])
    async def test_a_forced_call_waits_for_the_second_word(
        self, service: TestService, plugin: ScriptedPlugin, offset_clock: OffsetClock, believed: bool
    ) -> None:
        await service.get()
        service.clock.now += 100
        plugin.answer = raising(CredentialRejected("No."))
        forced = asyncio.ensure_future(service.get(max_age=0))
        await until(lambda: len(plugin.calls) == 2 and service.balances.fetcher.snapshot() == (0, 0))
        assert not forced.done()
        if not believed:
            plugin.answer = returning(holding(("BTC", "2")))
        offset_clock.advance(2.1)
        if believed:
            with pytest.raises(CredentialRejected):
                await forced
            with pytest.raises(CredentialRejected):
                await service.get()
        else:
            assert figures(await forced) == {"BTC": "2"}
        assert len(plugin.calls) == 3

    async def test_a_forced_call_without_the_time_for_it_gets_the_first_word(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        await service.get()
        service.clock.now += 100
        plugin.answer = raising(CredentialRejected("No."))
        with pytest.raises(CredentialRejected):
            await service.get(max_age=0, timeout=1.0)
        assert len(plugin.calls) == 2

    async def test_a_refusal_long_after_the_last_good_balance_is_believed_at_once(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        await service.get()
        service.clock.now += 301
        plugin.answer = raising(CredentialRejected("No."))
        for _ in range(2):
            with pytest.raises(CredentialRejected):
                await service.get()
        assert len(plugin.calls) == 2

    async def test_the_end_of_the_service_waits_for_no_second_word(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        await service.get()
        service.clock.now += 100
        plugin.answer = raising(CredentialRejected("No."))
        await service.get()
        async with asyncio.timeout(1.0):
            await service.balances.close()


REMEMBERED = [CredentialRejected, PermissionMissing, AddressNotAllowed, CredentialInvalid]


@pytest.mark.threat("T14")
class TestRefusals:
    @pytest.mark.parametrize("kind", REMEMBERED)
    async def test_a_refused_key_is_not_sent_to_the_venue_again_for_a_minute(
        self, service: TestService, plugin: ScriptedPlugin, offset_clock: OffsetClock, kind: type[ServiceError]
    ) -> None:
        plugin.answer = raising(kind("No."))
        for _ in range(5):
            with pytest.raises(kind):
                await service.get()
        assert len(plugin.calls) == 1
        offset_clock.advance(59)
        with pytest.raises(kind):
            await service.get()
        assert len(plugin.calls) == 1
        offset_clock.advance(2)
        with pytest.raises(kind):
            await service.get()
        assert len(plugin.calls) == 2

    async def test_a_forced_call_asks_the_venue_despite_a_refusal(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        plugin.answer = raising(CredentialRejected("No."))
        with pytest.raises(CredentialRejected):
            await service.get()
        plugin.answer = returning(holding(("BTC", "2")))
        assert figures(await service.get(max_age=0)) == {"BTC": "2"}
        # The good answer has cleared the refusal for all callers.
        service.clock.now += 31
        assert figures(await service.get()) == {"BTC": "2"}
        assert len(plugin.calls) == 3

    async def test_a_new_key_is_tried_at_once(self, service: TestService, plugin: ScriptedPlugin) -> None:
        plugin.answer = raising(CredentialRejected("No."))
        with pytest.raises(CredentialRejected):
            await service.get()
        await service.put(api_key="another-key")
        plugin.answer = returning(holding(("BTC", "2")))
        assert figures(await service.get()) == {"BTC": "2"}

    async def test_who_forces_a_read_sees_a_corrected_key_at_once_also_if_the_database_alone_knows_of_it(
        self, tmp_path: Path, plugin: ScriptedPlugin
    ) -> None:
        async with open_test_service(tmp_path, plugin, reference_ttl=600.0) as service:
            await service.put(api_key="a-mistyped-key")
            plugin.answer = raising(CredentialRejected("No."))
            with pytest.raises(CredentialRejected):
                await service.get()
            await service.put(api_key="the-right-key")
            plugin.answer = returning(holding(("BTC", "2")))
            with pytest.raises(CredentialRejected):
                await service.get()
            assert figures(await service.get(max_age=0)) == {"BTC": "2"}
            assert plugin.calls[-1].credential.api_key.reveal() == "the-right-key"
            # From then on all callers do.
            assert figures(await service.get()) == {"BTC": "2"}

    async def test_a_refused_key_affects_no_other_user(self, service: TestService, plugin: ScriptedPlugin) -> None:
        plugin.answer = raising(CredentialRejected("No."))
        with pytest.raises(CredentialRejected):
            await service.get()
        await service.put(user="bob")
        plugin.answer = returning(holding(("BTC", "2")))
        assert figures(await service.get(user="bob")) == {"BTC": "2"}

    async def test_other_errors_are_not_remembered(self, service: TestService, plugin: ScriptedPlugin) -> None:
        plugin.answer = raising(VenueUnavailable("It is down."))
        for _ in range(3):
            with pytest.raises(VenueUnavailable):
                await service.get()
        assert len(plugin.calls) == 3

    async def test_a_venue_that_limits_us_is_not_asked_during_its_delay_not_even_by_forced_calls(
        self, service: TestService, plugin: ScriptedPlugin, offset_clock: OffsetClock
    ) -> None:
        plugin.answer = raising(VenueRateLimited("Too many.", retry_after=7.0))
        with pytest.raises(VenueRateLimited) as first:
            await service.get()
        assert first.value.retry_after == 7.0
        offset_clock.advance(4)
        for max_age in (None, 0.0):
            with pytest.raises(VenueRateLimited) as later:
                await service.get(max_age=max_age)
            assert later.value.retry_after is not None
            assert 2.0 < later.value.retry_after < 3.01
        assert len(plugin.calls) == 1
        offset_clock.advance(3)
        plugin.answer = returning(holding(("BTC", "2")))
        assert figures(await service.get()) == {"BTC": "2"}

    async def test_while_a_venue_limits_us_the_last_good_balance_is_returned(
        self, service: TestService, plugin: ScriptedPlugin, offset_clock: OffsetClock
    ) -> None:
        await service.get()
        service.clock.now += 31
        plugin.answer = raising(VenueRateLimited("Too many.", retry_after=7.0))
        await service.get()
        offset_clock.advance(5)
        result = await service.get()
        assert isinstance(result.stale, VenueRateLimited)
        assert result.stale.retry_after is not None
        assert result.stale.retry_after < 2.01
        assert len(plugin.calls) == 2

    async def test_a_delay_of_zero_counts_as_no_delay(self, service: TestService, plugin: ScriptedPlugin) -> None:
        plugin.answer = raising(VenueRateLimited("Too many.", retry_after=0.0))
        with pytest.raises(VenueRateLimited):
            await service.get()
        plugin.answer = returning(holding(("BTC", "2")))
        assert figures(await service.get()) == {"BTC": "2"}


class TestCredentials:
    async def test_without_a_credential_the_error_says_how_to_add_one(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        with pytest.raises(CredentialMissing, match="credentials add --user USER --exchange fakex"):
            await service.get(user="nobody")
        assert plugin.calls == []

    async def test_a_changed_key_gets_a_fetch_of_its_own_and_not_the_cached_balance(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        await service.get()
        await service.put(api_key="another-key")
        assert (await service.get()).source is Source.VENUE
        assert [call.credential.api_key.reveal() for call in plugin.calls] == ["a-key-for-tests", "another-key"]

    async def test_a_removed_key_opens_nothing_any_more(self, service: TestService, plugin: ScriptedPlugin) -> None:
        account = await service.put()
        await service.get()
        await service.store.remove(account)
        with pytest.raises(CredentialMissing):
            await service.get()

    async def test_a_listing_without_balances_says_why_before_anything_is_read(self, tmp_path: Path) -> None:
        metadata = listing(capabilities=Capabilities(balance=False), unsupported_reason="Not yet written.")
        plugin = ScriptedPlugin(metadata)
        async with open_test_service(tmp_path, plugin) as service:
            with pytest.raises(NotSupported, match=r"^Not yet written\.$"):
                await service.get()
        assert plugin.calls == []


SECRET = "https://api.example/balance?signature=48be"


class TestEnvironments:
    async def test_an_environment_in_the_metadata_that_the_venue_lacks_costs_no_request(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        await service.put(metadata={"environment": "moon"})
        for max_age in (None, 0.0):
            with pytest.raises(CredentialInvalid, match=r"extra_metadata\.environment"):
                await service.get(max_age=max_age)
        assert plugin.calls == []
        await service.put(metadata={"environment": "live"})
        assert figures(await service.get()) == {"BTC": "1.50"}

    async def test_a_sandbox_in_the_metadata_is_asked_and_mentioned_in_a_note(self, tmp_path: Path) -> None:
        async with OandaSimulator() as live, OandaSimulator() as practice:
            for venue in (live, practice):
                venue.add_token("a-token-for-tests", SimulatedAccount("101-004-7654321-001"))
            overrides = {"oanda.production": live.url, "oanda.sandbox": practice.url}
            async with open_test_service(tmp_path, exchange_service_oanda, overrides=overrides) as service:
                await service.put("oanda", api_key="a-token-for-tests", metadata={"sandbox": True})
                sandbox = balance_pb2.Balance.FromString((await service.get("oanda")).stored.data)
                assert (bool(practice.requests), live.requests) == (True, [])
                assert list(sandbox.notes) == ["Read from OANDA's sandbox, which the stored metadata choose."]
                assert sandbox.environment == "production"
                await service.put("oanda", api_key="a-token-for-tests")
                production = balance_pb2.Balance.FromString((await service.get("oanda")).stored.data)
                assert live.requests
                assert list(production.notes) == []

    async def test_an_exchange_reads_with_the_credential_of_another_of_its_plugin(self, tmp_path: Path) -> None:
        plugin = ScriptedPlugin(listing("fakex"), listing("fakex_options", credential_of="fakex"))
        async with open_test_service(tmp_path, plugin) as service:
            await service.put("fakex", api_key="the-fakexs-key")
            assert figures(await service.get("fakex_options")) == {"BTC": "1.50"}
        (call,) = plugin.calls
        assert call.exchange.id == "fakex_options"
        assert call.credential.api_key.reveal() == "the-fakexs-key"


class TestBrokenPlugins:
    @pytest.mark.parametrize(
        "error", [ValueError(SECRET), SystemExit(SECRET), KeyError(SECRET), RecursionError(SECRET)]
    )
    async def test_the_type_of_a_plugins_exception_is_named_and_its_text_never_quoted(
        self, service: TestService, plugin: ScriptedPlugin, error: BaseException
    ) -> None:
        plugin.answer = raising(error)
        with pytest.raises(PluginFailed) as failed:
            await service.get()
        assert "fakex" in failed.value.message
        assert type(error).__name__ in failed.value.message
        assert "signature" not in failed.value.message
        assert failed.value.__cause__ is None
        # The service goes on.
        plugin.answer = returning(holding(("BTC", "2")))
        assert figures(await service.get()) == {"BTC": "2"}

    @pytest.mark.parametrize(
        "balance",
        [
            Balance((VenueAccount(id="1", label=7),)),  # type: ignore[arg-type]
            Balance((VenueAccount(id="\ud800"),)),
            Balance((), notes=(None,)),  # type: ignore[arg-type]
            Balance((), venue_time="today"),  # type: ignore[arg-type]
            Balance((VenueAccount(error=VenueUnavailable.__new__(VenueUnavailable)),)),
        ],
        ids=[
            "a number as label",
            "half of a surrogate pair",
            "a note that is not a text",
            "a text as time",
            "a bare error",
        ],
    )
    async def test_a_balance_that_cannot_be_serialized_is_the_plugins_failure(
        self, service: TestService, plugin: ScriptedPlugin, balance: Balance
    ) -> None:
        plugin.answer = returning(balance)
        with pytest.raises(PluginFailed, match="fakex"):
            await service.get()
        assert len(service.cache) == 0

    async def test_a_time_without_a_zone_is_not_guessed(self, service: TestService, plugin: ScriptedPlugin) -> None:
        plugin.answer = returning(holding(("BTC", "1"), venue_time=datetime(2026, 1, 2, 3, 4, 5)))  # noqa: DTZ001
        with pytest.raises(PluginFailed, match="the venue_time of a Balance has no time zone"):
            await service.get()


@pytest.mark.threat("T10")
class TestTheCachesBytes:
    async def only_key(self, service: TestService) -> str:
        key = (await service.get()).key
        # As after an invalidation by another replica.
        service.balances.cached.drop_local(key)
        return key

    @pytest.mark.parametrize("raw", [b"", b"\x03", b"\x03\xff\xff\xff", b"junk", b"\x02"])
    async def test_foreign_bytes_count_as_missing_and_are_overwritten(
        self, service: TestService, plugin: ScriptedPlugin, raw: bytes
    ) -> None:
        key = await self.only_key(service)
        good = await service.cache.get(key)
        await service.cache.set(key, raw, 100)
        result = await service.get()
        assert result.source is Source.VENUE
        assert figures(result) == {"BTC": "1.50"}
        assert await service.cache.get(key) == good

    async def test_foreign_bytes_are_removed_even_if_the_venue_fails(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        key = await self.only_key(service)
        await service.cache.set(key, b"junk", 100)
        plugin.answer = raising(VenueUnavailable("It is down."))
        with pytest.raises(VenueUnavailable):
            await service.get()
        assert await service.cache.get(key) is None

    async def test_another_accounts_balance_under_the_key_is_refused(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        key = await self.only_key(service)
        bob = await service.put(user="bob")
        foreign = store_balance(bob, fetched_balance(holding(("BTC", "999"))), service.clock(), None)
        await service.cache.set(key, foreign.encode(), 100)
        result = await service.get()
        assert figures(result) == {"BTC": "1.50"}
        assert result.source is Source.VENUE

    async def test_a_cache_that_stores_nothing_loses_no_call(self, tmp_path: Path, plugin: ScriptedPlugin) -> None:
        async with open_test_service(tmp_path, plugin, cache=MemoryCache(max_entries=0), max_age=0.0) as service:
            await service.put()
            for _ in range(3):
                assert figures(await service.get()) == {"BTC": "1.50"}
        assert len(plugin.calls) == 3


async def test_amounts_lose_no_digit(service: TestService, plugin: ScriptedPlugin) -> None:
    row = AssetBalance("WEI", total=Decimal("123456789012345678901234567890.123456789012345678"), free=Decimal("1E+3"))
    plugin.answer = returning(Balance((VenueAccount(assets=(row,)),)))
    (account,) = balance_pb2.Balance.FromString((await service.get()).stored.data).venue_accounts
    assert account.assets[0].total == "123456789012345678901234567890.123456789012345678"
    assert account.assets[0].free == "1000"


async def test_refusals_that_are_over_are_forgotten_whatever_lies_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, refusals = OffsetClock(monkeypatch), Refusals()
    kept: Any = refusals._refusals
    listing = registry_of(ScriptedPlugin()).listings["fakex"]
    for number, seconds in enumerate([86_400.0, *[5.0] * 100]):
        account = Account(f"user {number}", "fakex")
        target = Target(account, listing, CredentialReference(account, account, "1"), f"key {number}", f"own {number}")
        refusals.on_fetch_done(target, CredentialInvalid("It is not valid.", retry_after=seconds))
    assert len(kept) == 101
    clock.advance(6)
    kept.expire()
    # The first one lasts longer, and no longer than an hour.
    assert len(kept) == 1
    clock.advance(3600)
    kept.expire()
    assert len(kept) == 0
