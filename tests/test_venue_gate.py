"""What stands before a venue in one process: bulkhead, rate limits, cooldowns, circuit breaker and retries."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from exchange_service_oanda.simulator import OandaSimulator
from hypothesis import given, settings
from hypothesis import strategies as st

from exchange_service.balances.service import BalanceResult
from exchange_service.credentials import CredentialReference
from exchange_service.errors import (
    CredentialRejected,
    PluginFailed,
    ServiceError,
    ServiceOverloaded,
    VenueMaintenance,
    VenueMalformed,
    VenueRateLimited,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.model import Account, Credential, VenueReports
from exchange_service.plugin_api import Environment, RateLimit
from exchange_service.plugin_host.protocol import read_reports, write_reports
from exchange_service.plugin_host.v1 import plugin_host_pb2 as plugin_messages
from exchange_service.testing import Fault, venue_call
from exchange_service.v1 import exchange_pb2
from exchange_service.venue_gate import Gated, GateOptions
from exchange_service.venue_gate.rate_limits import RateLimiter, Window
from exchange_service.venue_gate.retries import OF_ONE
from exchange_service.venue_gate.shared_window import SharedWindow
from exchange_service.venue_gate.status import VenueStatus
from exchange_service.venues.fetching import Target
from exchange_service.venues.priority import Priority
from exchange_service.wire.replies import Source
from tests.gates import Answering, Recorder, Venue, gated, outcome, over_http
from tests.harness import (
    USER,
    Clock,
    Gate,
    OffsetClock,
    ScriptedPlugin,
    TestService,
    balance_request,
    failure,
    listing,
    open_test_service,
    raising,
    serving,
    streaming,
    until,
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 5)), max_size=30),
    st.integers(1, 5),
    st.integers(5, 40),
)
def test_a_window_computes_when_there_will_be_room(steps: list[tuple[float, int]], count: int, allowed: int) -> None:
    window, now = Window(10), 1000.0
    for passed, wished in steps:
        now += passed
        if not window.wait(wished, allowed, now):
            window.add(wished, now)
        assert window.used(now) <= allowed
    wait = window.wait(count, allowed, now)
    assert 0 <= wait <= 20 + 1e-6
    assert not window.wait(count, allowed, now + wait + 1e-6)


@pytest.fixture
async def offset_clock(monkeypatch: pytest.MonkeyPatch) -> OffsetClock:
    return OffsetClock(monkeypatch)


async def broken(gate: Gated, venue: Venue) -> None:
    """Let the venue fail for five accounts: it is left alone then."""
    venue.failing(VenueUnavailable("It is down."))
    for number in range(5):
        await outcome(venue.through(gate, key=f"account {number}"))


OF_THE_VENUE = [VenueUnavailable, VenueTimeout, VenueMaintenance, VenueMalformed]


class TestBreaking:
    @pytest.mark.parametrize("kind", OF_THE_VENUE)
    async def test_after_failures_of_several_accounts_in_a_row_the_venue_is_not_asked_and_callers_get_the_delay(
        self, kind: type[ServiceError]
    ) -> None:
        venue, metrics = Venue(), Recorder()
        gate = gated(attempts=1, metrics=metrics)
        venue.failing(kind("It fails."))
        for number in range(5):
            assert type(await outcome(venue.through(gate, key=str(number)))) is kind
        for _ in range(3):
            error = await outcome(venue.through(gate, key="another"))
            assert type(error) is VenueUnavailable
            assert error.retry_after is not None
            assert 26 < error.retry_after <= 33
        assert venue.fetches == 5
        assert metrics.breakers == [("fakex", "production", "open")]
        assert metrics.refusals == ["VENUE_UNAVAILABLE"] * 3

    @pytest.mark.parametrize("kind", [CredentialRejected, PluginFailed, VenueRateLimited])
    async def test_an_error_that_does_not_concern_the_venue_does_not_open_the_breaker(
        self, kind: type[ServiceError]
    ) -> None:
        venue = Venue()
        gate = gated(attempts=1)
        venue.failing(kind("It fails.", retry_after=0))
        for _ in range(8):
            assert type(await outcome(venue.through(gate))) is kind
        assert venue.fetches == 8

    async def test_a_timeout_of_a_fetch_that_waited_long_for_a_slot_does_not_count_as_a_failure(
        self, offset_clock: OffsetClock
    ) -> None:
        venue = Venue()
        gate = gated(attempts=1, of_venue=1)
        held = asyncio.Event()

        async def hold() -> str:
            await held.wait()
            raise VenueTimeout("It did not answer in time.")

        venue.answer = hold
        fetches = [asyncio.ensure_future(outcome(venue.through(gate, key=str(number)))) for number in range(2)]
        await until(lambda: venue.fetches == 1 and gate.snapshot()["fakex production"].waiting == 1)
        offset_clock.advance(5.0)
        held.set()
        await asyncio.gather(*fetches)
        breaker = gate.snapshot()["fakex production"]
        # The first had all its time, the second three eighths of it.
        assert (venue.fetches, breaker.failures) == (2, 1)

    async def test_after_the_delay_probes_of_two_accounts_decide_for_all(self, offset_clock: OffsetClock) -> None:
        venue = Venue()
        gate = gated(attempts=1)
        await broken(gate, venue)
        offset_clock.advance(34)
        held = asyncio.Event()

        async def hold() -> str:
            await held.wait()
            return "a balance"

        venue.answer = hold
        fetches = [asyncio.ensure_future(outcome(venue.through(gate, key=str(number)))) for number in range(20)]
        await until(lambda: sum(fetch.done() for fetch in fetches) == 18)
        assert venue.fetches == 7
        held.set()
        outcomes = await asyncio.gather(*fetches)
        assert outcomes.count(None) == 2
        assert await outcome(venue.through(gate)) is None

    async def test_after_a_cancelled_probe_another_one_is_admitted(self, offset_clock: OffsetClock) -> None:
        venue = Venue()
        gate = gated(attempts=1)
        await broken(gate, venue)
        offset_clock.advance(34)
        venue.answer = asyncio.Event().wait  # type: ignore[assignment]
        probe = asyncio.ensure_future(venue.through(gate))
        await until(lambda: venue.fetches == 6)
        probe.cancel()
        await asyncio.wait({probe})
        venue.answer = venue.good
        assert await outcome(venue.through(gate)) is None
        assert gate.in_flight == 0

    async def test_in_a_demo_each_account_has_a_breaker_of_its_own(self) -> None:
        venue = Venue(RateLimit("address", 99, 60))
        gate = gated(attempts=1, accounts_apart=True)
        venue.failing(VenueRateLimited("Too many.", retry_after=7))
        await outcome(venue.through(gate, key="limited"))
        venue.failing(VenueUnavailable("It is down."))
        for _ in range(6):
            await outcome(venue.through(gate, key="broken"))
        assert venue.fetches == 6
        venue.answer = venue.good
        assert await outcome(venue.through(gate, key="good")) is None

    async def test_a_venue_that_accepts_no_connection_fails_quickly_and_is_then_not_asked(self, tmp_path: Path) -> None:
        metadata = listing(environments=(Environment("production", {"api": "https://api.fakex.example"}),))
        plugin = ScriptedPlugin(metadata, answer=over_http)
        venue = Answering()
        await venue.start()
        await venue.stop()
        async with open_test_service(tmp_path, plugin, gate=GateOptions(), overrides={"fakex": venue.url}) as service:
            await service.put()
            started = time.monotonic()
            for _ in range(8):
                with pytest.raises(VenueUnavailable):
                    await service.get()
            # Five calls, of which the account's two retries repeat the first, and no more from then on.
            assert len(plugin.calls) == 7
            assert time.monotonic() - started < 3

    async def test_the_sandbox_has_a_breaker_of_its_own(self) -> None:
        venue, status = Venue(), VenueStatus()
        gate = gated(attempts=1, status=status)
        venue.failing(VenueUnavailable("It is down."))
        for number in range(5):
            account = Account(f"{USER} {number}", "fakex", "sandbox")
            reference = CredentialReference(account, account, str(number))
            deadline = asyncio.get_running_loop().time() + 8
            await outcome(gate.fetch(Target(account, venue.listing, reference), deadline, Priority()))
        venue.answer = venue.good
        assert await outcome(venue.through(gate)) is None
        assert status.troubles["fakex"].serves
        assert status.troubles["fakex"].reason.endswith("(its sandbox).")


class TestOneAccount:
    """What one account meets holds for that account alone."""

    @pytest.mark.parametrize("kind", OF_THE_VENUE)
    async def test_an_account_that_fails_again_and_again_is_left_alone_and_the_others_are_served(
        self, kind: type[ServiceError], offset_clock: OffsetClock
    ) -> None:
        venue, status = Venue(), VenueStatus()
        gate = gated(status=status)
        for _ in range(30):
            venue.failing(kind("It fails."))
            await outcome(venue.through(gate, key="bad"))
        asked = venue.fetches
        assert asked <= 7, "five calls, one of them repeated"
        error = await outcome(venue.through(gate, key="bad"))
        assert isinstance(error, VenueUnavailable)
        assert "this account" in error.message
        venue.answer = venue.good
        assert await outcome(venue.through(gate, key="good")) is None
        assert (venue.fetches, status.troubles) == (asked + 1, {})
        offset_clock.advance(34)
        assert await outcome(venue.through(gate, key="bad")) is None

    async def test_two_accounts_that_fail_while_others_are_answered_never_stop_the_venue(self) -> None:
        venue, status = Venue(), VenueStatus()
        gate = gated(attempts=1, status=status)
        for _ in range(40):
            venue.failing(VenueUnavailable("It is down."))
            for key in ("bad", "worse", "worst"):
                await outcome(venue.through(gate, key=key))
            venue.answer = venue.good
            assert await outcome(venue.through(gate, key="good")) is None
        for _ in range(8):
            venue.failing(VenueUnavailable("It is down."))
            for key in ("bad", "worse", "worst"):
                await outcome(venue.through(gate, key=key))
        venue.answer = venue.good
        assert await outcome(venue.through(gate, key="another")) is None
        assert status.troubles == {}

    @pytest.mark.parametrize("hangs", [False, True])
    async def test_a_probe_that_fails_or_hangs_does_not_keep_other_accounts_out(
        self, hangs: bool, offset_clock: OffsetClock
    ) -> None:
        venue = Venue()
        gate = gated(attempts=1)
        await broken(gate, venue)
        offset_clock.advance(34)
        if hangs:
            venue.answer = asyncio.Event().wait  # type: ignore[assignment]
        bad = asyncio.ensure_future(outcome(venue.through(gate, key="bad")))
        await until(lambda: bad.done() or (hangs and venue.fetches == 6))
        venue.answer = venue.good
        assert await outcome(venue.through(gate, key="good")) is None
        bad.cancel()
        await asyncio.wait({bad})

    async def test_the_retries_of_one_account_leave_the_others_theirs(self) -> None:
        venue = Venue()
        gate = gated()
        venue.failing(VenueUnavailable("It is down."))
        for _ in range(3):
            await outcome(venue.through(gate, key="bad"))
        before = venue.fetches

        async def fails_twice() -> str:
            if venue.fetches < before + 3:
                raise VenueUnavailable("It failed for a moment.")
            return "a balance"

        venue.answer = fails_twice
        assert await outcome(venue.through(gate, key="good")) is None

    async def test_the_slow_calls_of_one_user_leave_slots_to_the_others(self) -> None:
        venue = Venue()
        gate = gated(of_venue=4)
        venue.answer = asyncio.Event().wait  # type: ignore[assignment]
        # As with an account of many types.
        slow = [
            asyncio.ensure_future(outcome(venue.through(gate, key=str(number), user="slow"))) for number in range(20)
        ]
        await until(lambda: venue.now == 2)
        venue.answer = venue.good
        assert await outcome(venue.through(gate, key="good", timeout=2.0)) is None
        for fetch in slow:
            fetch.cancel()
        await asyncio.wait(slow)
        assert gate.in_flight == 0

    async def test_one_user_cannot_use_up_a_limit_by_address(self) -> None:
        venue = Venue(PER_MINUTE)
        gate = gated()
        results = [await outcome(venue.through(gate, key="eager")) for _ in range(30)]
        assert results.count(None) == 10
        assert [await outcome(venue.through(gate, key=str(number))) for number in range(10)] == [None] * 10

    async def test_an_answer_that_calls_the_addresss_limit_used_up_holds_for_its_account_until_another_one_says_so(
        self,
    ) -> None:
        venue = Venue(PER_MINUTE)
        gate = gated()
        venue.report = lambda reports: reports.usage.update({60: (20, 12.0)})
        assert await outcome(venue.through(gate, key="one")) is None
        assert isinstance(await outcome(venue.through(gate, key="one")), VenueRateLimited)
        assert await outcome(venue.through(gate, key="two")) is None
        assert isinstance(await outcome(venue.through(gate, key="three")), VenueRateLimited)
        assert venue.fetches == 2


class TestStatus:
    async def test_a_listing_is_degraded_after_a_failure_and_unavailable_while_the_breaker_is_open(
        self, offset_clock: OffsetClock
    ) -> None:
        venue, status, clock = Venue(), VenueStatus(), Clock()
        gate = gated(attempts=1, status=status, now=clock)
        venue.failing(VenueUnavailable("It is down."))
        await outcome(venue.through(gate, key="0"))
        assert status.troubles == {}
        await outcome(venue.through(gate, key="1"))
        assert status.troubles["fakex"].serves
        since = clock.now
        clock.now += 10
        for number in range(2, 5):
            await outcome(venue.through(gate, key=str(number)))
        trouble = status.troubles["fakex"]
        assert (trouble.serves, trouble.since) == (False, since)
        assert "left alone" in trouble.reason
        offset_clock.advance(34)
        venue.answer = venue.good
        await venue.through(gate)
        assert status.troubles == {}

    async def test_clients_see_the_status_and_get_the_delay_and_a_feed_does_not_ask_the_venue(
        self, tmp_path: Path, offset_clock: OffsetClock
    ) -> None:
        async with OandaSimulator() as venue, serving(tmp_path, venue_urls={"oanda": venue.url}) as running:
            row = venue.demo_credential("moving")
            assert row is not None
            users = [USER, *(f"{USER} {number}" for number in range(4))]
            for user in users:
                await running.service.store.put(Account(user, "oanda"), Credential.from_texts(row))
            venue.fail(Fault.html(503))
            for user in users:
                await failure(running.stub.GetBalance(_forced(user)))
            seen = len(venue.requests)
            failed = await failure(running.stub.GetBalance(_forced()))
            assert failed.reason == "VENUE_UNAVAILABLE"
            assert failed.retry_delay is not None
            assert 20 < failed.retry_delay <= 33
            async with streaming(running, "oanda") as stream:
                assert (await stream.next_of("account_error")).error.reason
            assert len(venue.requests) == seen
            assert await _availability(running) == exchange_pb2.AVAILABILITY_UNAVAILABLE
            venue.recover()
            offset_clock.advance(34)
            await running.stub.GetBalance(_forced())
            assert await _availability(running) == exchange_pb2.AVAILABILITY_AVAILABLE


def _forced(user: str = USER) -> Any:
    request = balance_request("oanda", user_id=user)
    request.max_age.FromSeconds(0)
    return request


async def _availability(running: Any) -> int:
    (entry,) = (await running.client.list_exchanges(search="oanda")).exchanges
    return int(entry.status.availability)


class TestRetries:
    async def test_a_quick_failure_is_repaired_by_a_retry_within_the_call(self) -> None:
        venue, metrics = Venue(), Recorder()
        gate = gated(metrics=metrics)

        async def fails_twice() -> str:
            if venue.fetches < 3:
                raise VenueUnavailable("It failed for a moment.")
            return "a balance"

        venue.answer = fails_twice
        assert await venue.through(gate) == "a balance"
        assert (venue.fetches, metrics.retries) == (3, 2)

    async def test_a_call_is_retried_at_most_twice(self) -> None:
        venue = Venue()
        venue.failing(VenueUnavailable("It is down."))
        assert isinstance(await outcome(venue.through(gated())), VenueUnavailable)
        assert venue.fetches == 3

    @pytest.mark.parametrize(
        "error",
        [
            CredentialRejected("No."),
            VenueRateLimited("Too many."),
            VenueMalformed("Nonsense."),
            VenueMaintenance("Closed."),
            VenueUnavailable("Closed for two minutes.", retry_after=120),
            PluginFailed("It broke."),
        ],
        ids=lambda error: type(error).__name__,
    )
    async def test_other_errors_are_not_retried(self, error: ServiceError) -> None:
        venue = Venue()
        venue.failing(error)
        assert await outcome(venue.through(gated())) is error
        assert venue.fetches == 1

    async def test_a_slow_failure_and_one_that_leaves_no_time_are_not_retried(self, offset_clock: OffsetClock) -> None:
        venue = Venue()

        async def slowly() -> str:
            offset_clock.advance(1.1)
            raise VenueTimeout("It did not answer in time.")

        venue.answer = slowly
        await outcome(venue.through(gated()))
        assert venue.fetches == 1

        async def most_of_the_time() -> str:
            offset_clock.advance(0.9)
            raise VenueUnavailable("It failed for a moment.")

        venue.answer = most_of_the_time
        await outcome(venue.through(gated(), timeout=1.0))
        assert venue.fetches == 2

    async def test_at_most_a_fifth_of_the_calls_to_a_failing_venue_are_retries(self) -> None:
        venue, metrics = Venue(), Recorder()
        gate = gated(metrics=metrics)
        chance = random.Random(7)

        async def fails_often() -> str:
            if chance.random() < 0.6 and venue.fetches % 4:
                raise VenueUnavailable("It failed for a moment.")
            return "a balance"

        venue.answer = fails_often
        slots = asyncio.Semaphore(40)

        async def one(number: int) -> None:
            async with slots:
                await outcome(venue.through(gate, key=str(number)))

        await asyncio.gather(*(one(number) for number in range(400)))
        assert metrics.retries > 40
        # The retries of the account that has most come on top.
        assert metrics.retries <= 0.2 * venue.fetches + OF_ONE


class TestBulkhead:
    async def test_a_slow_venue_fills_only_its_own_compartment(self) -> None:
        slow = Venue(plugin=ScriptedPlugin(listing("fakex"), listing("quick")))
        quick = Venue(name="quick", plugin=ScriptedPlugin(listing("fakex"), listing("quick")))
        gate = gated(of_venue=8, of_plugin=12)
        done = asyncio.Event()

        async def slowly() -> str:
            await done.wait()
            return "a balance"

        slow.answer = slowly
        waiting = [asyncio.ensure_future(outcome(slow.through(gate, key=str(number)))) for number in range(100)]
        await until(lambda: slow.now == 8)
        started = time.monotonic()
        outcomes = await asyncio.gather(*(outcome(quick.through(gate, key=str(number))) for number in range(200)))
        assert outcomes == [None] * 200
        assert time.monotonic() - started < 2
        assert (slow.now, quick.most) == (8, 4)
        done.set()
        assert set(await asyncio.gather(*waiting)) == {None}
        assert slow.most == 8
        assert gate.in_flight == 0

    async def test_a_slot_that_one_venue_of_a_plugin_releases_goes_to_another(self) -> None:
        plugin = ScriptedPlugin(listing("fakex"), listing("quick"))
        slow, quick = Venue(plugin=plugin), Venue(name="quick", plugin=plugin)
        gate = gated(of_venue=2, of_plugin=2)
        held = asyncio.Event()

        async def hold() -> str:
            await held.wait()
            return "a balance"

        slow.answer = hold
        holders = [asyncio.ensure_future(slow.through(gate, key=str(number))) for number in range(2)]
        await until(lambda: slow.now == 2)
        waiting = asyncio.ensure_future(quick.through(gate, key="another"))

        def waits() -> bool:
            quick_venue = gate.snapshot().get("quick production")
            return quick_venue is not None and quick_venue.waiting == 1

        await until(waits)
        held.set()
        assert await asyncio.wait_for(waiting, 2) == "a balance"
        await asyncio.gather(*holders)
        assert gate.in_flight == 0

    async def test_a_call_without_a_slot_in_time_fails_with_a_delay(self) -> None:
        venue, metrics = Venue(), Recorder()
        gate = gated(of_venue=2, metrics=metrics)
        venue.answer = asyncio.Event().wait  # type: ignore[assignment]
        holders = [asyncio.ensure_future(venue.through(gate, key=str(number))) for number in range(2)]
        await until(lambda: venue.fetches == 2)
        error = await outcome(venue.through(gate, timeout=0.2))
        assert isinstance(error, ServiceOverloaded)
        assert error.retry_after == 1.0
        assert metrics.refusals == ["SERVICE_OVERLOADED"]
        for holder in holders:
            holder.cancel()
        await asyncio.wait(holders)
        venue.answer = venue.good
        assert await outcome(venue.through(gate)) is None

    async def test_a_fetch_that_a_caller_waits_for_goes_before_polls(self) -> None:
        venue = Venue()
        gate = gated(of_venue=1)
        order: list[str] = []
        first = asyncio.Event()

        async def in_turn() -> str:
            await first.wait()
            return "a balance"

        venue.answer = in_turn
        joined = Priority(polling=True)

        async def one(name: str, priority: Priority) -> None:
            await venue.with_priority(gate, priority, key=name)
            order.append(name)

        fetches = [asyncio.ensure_future(one("holder", Priority()))]
        await until(lambda: venue.fetches == 1)
        for name, priority in (
            ("poll", Priority(polling=True)),
            ("another poll", Priority(polling=True)),
            ("a poll that a caller joins", joined),
            ("call", Priority()),
        ):
            fetches.append(asyncio.ensure_future(one(name, priority)))
        await until(lambda: gate.snapshot()["fakex production"].waiting == 4)
        joined.promote()
        first.set()
        await asyncio.gather(*fetches)
        assert order == ["holder", "a poll that a caller joins", "call", "poll", "another poll"] or order == [
            "holder",
            "call",
            "a poll that a caller joins",
            "poll",
            "another poll",
        ]

    @pytest.mark.parametrize("seed", range(5))
    async def test_no_slot_is_lost_when_fetches_are_cancelled_at_any_moment(self, seed: int) -> None:
        venue, chance = Venue(), random.Random(seed)
        gate = gated(of_venue=4, of_plugin=4, attempts=1)

        async def briefly() -> str:
            await asyncio.sleep(chance.random() / 500)
            return "a balance"

        venue.answer = briefly
        fetches = [
            asyncio.ensure_future(
                venue.through(gate, key=str(number), user=f"user {number % 20}", polling=chance.random() < 0.5)
            )
            for number in range(200)
        ]
        for fetch in fetches:
            if chance.random() < 0.5:
                await asyncio.sleep(0)
                fetch.cancel()
        await asyncio.wait(fetches)
        assert venue.most <= 4
        assert gate.in_flight == 0
        # Nor is one of a user's own part.
        for number in range(20):
            assert await venue.through(gate, user=f"user {number}", timeout=1) == "a balance"


PER_MINUTE = RateLimit("address", 20, 60)


class TestRateLimits:
    async def test_a_call_beyond_the_rate_limit_fails_with_the_delay(self, offset_clock: OffsetClock) -> None:
        venue, metrics = Venue(PER_MINUTE), Recorder()
        gate = gated(metrics=metrics)
        outcomes = [await outcome(venue.through(gate, key=str(number))) for number in range(25)]
        assert outcomes[:20] == [None] * 20
        error = outcomes[-1]
        assert isinstance(error, VenueRateLimited)
        assert error.retry_after is not None
        assert venue.fetches == 20
        assert metrics.budgets[-1] == ("fakex", "address", 0.0)
        offset_clock.advance(error.retry_after + 0.1)
        assert await outcome(venue.through(gate)) is None

    @pytest.mark.parametrize(
        ("waits", "served", "asked"), [([0.05, 0.05, 0.0], True, 3), ([0.05] * 9, False, 4), ([0.9, 0.0], False, 1)]
    )
    async def test_a_caller_waits_a_few_times_for_permits_that_come_soon(
        self, waits: list[float], served: bool, asked: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As where other replicas write to the same count.
        venue, left = Venue(PER_MINUTE), list(waits)

        async def acquire(*_: Any) -> float:
            return left.pop(0)

        monkeypatch.setattr(RateLimiter, "acquire", acquire)
        error = await outcome(venue.through(gated()))
        assert (error is None, len(waits) - len(left)) == (served, asked)

    async def test_polling_leaves_a_fifth_of_a_limit_to_callers(self) -> None:
        venue = Venue(PER_MINUTE)
        gate = gated()
        for number in range(30):
            await outcome(venue.through(gate, key=str(number), polling=True, timeout=0.05))
        assert venue.fetches == 16
        for number in range(30):
            await outcome(venue.through(gate, key=str(number)))
        assert venue.fetches == 20

    async def test_a_poll_waits_for_permits_without_holding_a_slot(self) -> None:
        venue = Venue(RateLimit("address", 5, 1))
        gate = gated(of_venue=1)
        started = time.monotonic()
        polls = [
            asyncio.ensure_future(outcome(venue.through(gate, key=str(number), polling=True))) for number in range(5)
        ]
        await until(lambda: venue.fetches == 4 and gate.in_flight == 0)
        assert await outcome(venue.through(gate)) is None
        assert await asyncio.gather(*polls) == [None] * 5
        assert time.monotonic() - started > 0.5

    async def test_a_waiting_poll_that_a_caller_joins_may_use_the_reserve(self) -> None:
        venue = Venue(RateLimit("address", 5, 3))
        gate = gated()
        for number in range(4):
            await venue.through(gate, key=f"another {number}", polling=True)
        priority = Priority(polling=True)
        poll = asyncio.ensure_future(venue.with_priority(gate, priority))
        for _ in range(10):
            await asyncio.sleep(0)
        assert venue.fetches == 4
        priority.promote()
        await asyncio.wait_for(poll, 1)
        assert venue.fetches == 5

    async def test_a_poll_without_permits_in_time_is_late_and_a_call_is_not(self) -> None:
        venue = Venue(PER_MINUTE)
        gate = gated()
        for number in range(30):
            await outcome(venue.through(gate, key=str(number)))
        for polling in (True, False):
            error = await outcome(venue.through(gate, key="another", polling=polling, timeout=0.2))
            assert isinstance(error, VenueRateLimited)
            assert error.late == polling

    async def test_a_limit_by_key_counts_each_key_apart(self) -> None:
        venue = Venue(RateLimit("key", 3, 60))
        gate = gated()
        for key in ("1", "2"):
            for _ in range(5):
                await outcome(venue.through(gate, key=key))
        assert venue.fetches == 6

    async def test_a_balance_takes_its_cost_of_each_limit(self) -> None:
        venue = Venue(RateLimit("address", 100, 60, cost=30), RateLimit("key", 1, 60))
        gate = gated()
        for number in range(5):
            await outcome(venue.through(gate, key=str(number)))
        assert venue.fetches == 3

    async def test_an_account_type_takes_a_cost_of_its_own(self) -> None:
        venue = Venue(RateLimit("address", 100, 60, cost=10, costs={"all": 30}))
        gate = gated()
        taken = []
        for number, account_type in enumerate(("all", "all", "", "spot", "all", "", "")):
            error = await outcome(venue.through(gate, key=str(number), account_type=account_type))
            taken.append(error is None)
        # 30, 30, 10 and 10; 30 are too many then, and 10 twice are not.
        assert taken == [True, True, True, True, False, True, True]
        assert await outcome(venue.through(gate, key="another")) is not None

    async def test_permits_are_released_if_the_venue_is_not_asked(self) -> None:
        venue = Venue(RateLimit("address", 10, 60), RateLimit("key", 1, 60))
        gate = gated()
        for _ in range(8):
            await outcome(venue.through(gate))
        for key in range(20):
            await outcome(venue.through(gate, key=f"another {key}"))
        assert venue.fetches == 10

    def test_a_limit_that_allows_no_balance_is_refused(self) -> None:
        for wrong in (
            ("address", 1, 60, 2),
            ("address", 1, 60, 1, {"all": 2}),
            ("user", 1, 60, 1),
            ("key", 0, 60, 1),
            ("key", 10, 0.5, 1),
        ):
            with pytest.raises(ValueError, match=r"RateLimit\."):
                RateLimit(*wrong)  # type: ignore[arg-type]


class TestCooldowns:
    @pytest.mark.parametrize("limits", [(), (RateLimit("address", 99, 60),), (RateLimit("key", 99, 60),)])
    async def test_a_venue_that_limits_one_account_gets_no_request_for_it_and_serves_the_others(
        self, limits: tuple[RateLimit, ...]
    ) -> None:
        venue = Venue(*limits)
        gate = gated()
        venue.failing(VenueRateLimited("Too many.", retry_after=7))
        await outcome(venue.through(gate))
        venue.answer = venue.good
        for polling in (True, False):
            error = await outcome(venue.through(gate, polling=polling))
            assert isinstance(error, VenueRateLimited)
            assert error.retry_after == pytest.approx(7, abs=0.5)
        assert await outcome(venue.through(gate, key="another")) is None
        assert venue.fetches == 2

    @pytest.mark.parametrize(
        ("limits", "others_wait"),
        [((), True), ((RateLimit("address", 99, 60),), True), ((RateLimit("key", 99, 60),), False)],
    )
    async def test_a_venue_that_limits_two_accounts_gets_no_request_for_any_that_shares_the_limit(
        self, limits: tuple[RateLimit, ...], others_wait: bool
    ) -> None:
        venue = Venue(*limits)
        gate = gated()
        venue.failing(VenueRateLimited("Too many.", retry_after=7))
        for key in ("one", "two"):
            await outcome(venue.through(gate, key=key))
        venue.answer = venue.good
        assert (await outcome(venue.through(gate, key="another")) is not None) == others_wait
        assert venue.fetches == (2 if others_wait else 3)

    async def test_what_a_plugin_holds_back_itself_cools_nothing_and_is_late_if_it_is_polled(self) -> None:
        venue, status, metrics = Venue(RateLimit("address", 99, 60)), VenueStatus(), Recorder()
        gate = gated(status=status, metrics=metrics)
        error = VenueRateLimited("We keep to the limit.", retry_after=7)
        error.venue_was_asked = False
        venue.failing(error)
        for key, polling in (("one", False), ("two", True), ("three", False)):
            assert await outcome(venue.through(gate, key=key, polling=polling)) is error
            assert error.late == polling
        assert (metrics.refusals, status.troubles) == (["VENUE_RATE_LIMITED"] * 3, {})
        venue.answer = venue.good
        assert await outcome(venue.through(gate, key="one")) is None
        assert venue.fetches == 4

    async def test_two_accounts_that_are_limited_do_not_stop_a_venue_that_has_answered_between(self) -> None:
        venue = Venue()
        gate = gated()
        venue.failing(VenueRateLimited("Too many.", retry_after=7))
        await outcome(venue.through(gate, key="one"))
        venue.answer = venue.good
        await venue.through(gate, key="good")
        venue.failing(VenueRateLimited("Too many.", retry_after=7))
        await outcome(venue.through(gate, key="two"))
        venue.answer = venue.good
        assert await outcome(venue.through(gate, key="another")) is None

    async def test_a_user_who_changes_the_key_is_no_second_account(self) -> None:
        venue = Venue()
        gate = gated(attempts=1)
        venue.failing(VenueRateLimited("Too many.", retry_after=7))
        for key in ("old", "new"):
            await outcome(venue.through(gate, key=key, user="one"))
        venue.failing(VenueUnavailable("It is down."))
        for number in range(12):
            await outcome(venue.through(gate, key=str(number), user="one"))
        venue.answer = venue.good
        assert await outcome(venue.through(gate, key="another")) is None

    @pytest.mark.parametrize("kind", [VenueMaintenance, VenueUnavailable])
    async def test_a_venue_that_names_a_delay_to_two_accounts_gets_no_request_before_it_is_over(
        self, kind: type[ServiceError], offset_clock: OffsetClock
    ) -> None:
        venue = Venue(RateLimit("key", 99, 60))
        gate = gated()
        assert kind.default_retry_after is not None
        # Also if the venue names the very delay that we would guess.
        venue.failing(kind("Back soon.", retry_after=kind.default_retry_after))
        await outcome(venue.through(gate, key="one"))
        assert type(await outcome(venue.through(gate, key="one"))) is kind
        assert venue.fetches == 1
        await outcome(venue.through(gate, key="two"))
        venue.answer = venue.good
        assert type(await outcome(venue.through(gate, key="another"))) is kind
        offset_clock.advance(kind.default_retry_after + 0.1)
        assert await outcome(venue.through(gate, key="one")) is None
        assert venue.fetches == 3

    async def test_a_venue_that_names_no_delay_is_asked_again_at_once(self) -> None:
        venue = Venue()
        gate = gated()
        venue.failing(VenueMaintenance("Closed."))
        await outcome(venue.through(gate))
        venue.answer = venue.good
        assert await outcome(venue.through(gate)) is None

    async def test_the_cooldown_for_a_rate_limit_without_a_delay_grows_up_to_five_minutes(
        self, offset_clock: OffsetClock
    ) -> None:
        venue = Venue()
        gate = gated()
        venue.failing(VenueRateLimited("Too many."))
        for count in range(1, 12):
            await outcome(venue.through(gate))
            error = await outcome(venue.through(gate))
            assert error is not None
            assert error.retry_after is not None
            assert 9.9 < error.retry_after <= min(300, 10 * 2**count)
            offset_clock.advance(error.retry_after + 0.1)
        assert venue.fetches == 11

    async def test_a_cooldown_lasts_an_hour_at_most(self) -> None:
        venue = Venue()
        gate = gated()
        venue.failing(VenueRateLimited("Banned.", retry_after=3 * 86400))
        await outcome(venue.through(gate))
        error = await outcome(venue.through(gate))
        assert error is not None
        assert error.retry_after == pytest.approx(3600, abs=1)


class TestReports:
    """What a plugin reports of the venue's limits, beside a balance or an error."""

    @pytest.mark.parametrize("fails", [False, True])
    async def test_a_cooldown_that_two_accounts_calls_report_holds_for_all_whatever_they_came_to(
        self, fails: bool, offset_clock: OffsetClock
    ) -> None:
        venue = Venue()
        gate = gated(attempts=1)

        def report(reports: VenueReports) -> None:
            reports.cooldown = 130.0

        venue.report = report
        if fails:
            venue.failing(CredentialRejected("It refuses the key."))
        for key in ("one", "two"):
            assert (await outcome(venue.through(gate, key=key)) is not None) == fails
            assert isinstance(await outcome(venue.through(gate, key=key)), VenueRateLimited)
        error = await outcome(venue.through(gate, key="another"))
        assert isinstance(error, VenueRateLimited)
        assert error.retry_after == pytest.approx(130, abs=1)
        offset_clock.advance(131)
        venue.report, venue.answer = (lambda reports: None), venue.good
        assert await outcome(venue.through(gate, key="another")) is None

    async def test_a_reported_cooldown_holds_before_the_call_that_reports_it_ends(self) -> None:
        venue = Venue()
        gate = gated()
        venue.report = lambda reports: (setattr(reports, "cooldown", 130.0), reports.on_report())[1]
        venue.answer = asyncio.Event().wait  # type: ignore[assignment]
        hanging = asyncio.ensure_future(venue.through(gate))
        await until(lambda: venue.fetches == 1)
        error = await outcome(venue.through(gate))
        assert isinstance(error, VenueRateLimited)
        assert venue.fetches == 1
        hanging.cancel()
        await asyncio.wait({hanging})

    async def test_a_limit_that_the_venue_counts_as_used_up_holds_until_it_resets(
        self, offset_clock: OffsetClock
    ) -> None:
        venue = Venue(PER_MINUTE)
        gate = gated()
        venue.report = lambda reports: reports.usage.update({60: (20, 12.0)})
        assert await outcome(venue.through(gate)) is None
        error = await outcome(venue.through(gate))
        assert isinstance(error, VenueRateLimited)
        assert error.retry_after == pytest.approx(12, abs=1)
        assert venue.fetches == 1

    async def test_a_limit_by_key_that_is_used_up_stops_that_key_alone(self) -> None:
        venue = Venue(RateLimit("address", 1000, 60), RateLimit("key", 20, 60))
        gate = gated()
        venue.report = lambda reports: reports.usage.update({60: (20, 12.0)})
        assert await outcome(venue.through(gate)) is None
        venue.report = lambda reports: None
        assert isinstance(await outcome(venue.through(gate)), VenueRateLimited)
        assert await outcome(venue.through(gate, key="another")) is None

    async def test_a_reported_cooldown_holds_for_its_key_alone_if_all_limits_are_by_key(self) -> None:
        venue = Venue(RateLimit("key", 20, 60))
        gate = gated()
        venue.report = lambda reports: setattr(reports, "cooldown", 130.0)
        assert await outcome(venue.through(gate)) is None
        assert isinstance(await outcome(venue.through(gate)), VenueRateLimited)
        assert await outcome(venue.through(gate, key="another")) is None

    async def test_what_others_have_used_of_a_limit_is_not_given_out_again(self) -> None:
        venue = Venue(PER_MINUTE)
        gate = gated()
        venue.report = lambda reports: reports.usage.update({60: (18, 60.0)})
        assert await outcome(venue.through(gate)) is None
        venue.report = lambda reports: None
        results = [await outcome(venue.through(gate)) for _ in range(4)]
        assert [type(error) for error in results] == [type(None)] * 2 + [VenueRateLimited] * 2

    @pytest.mark.parametrize("used", [18, 20, 10**9])
    async def test_what_others_have_used_is_free_again_once_the_venue_counts_from_zero(
        self, used: int, offset_clock: OffsetClock
    ) -> None:
        venue = Venue(RateLimit("address", 20, 60, cost=3))
        gate = gated()
        venue.report = lambda reports: reports.usage.update({60: (used, 12.0)})
        assert await outcome(venue.through(gate)) is None
        venue.report = lambda reports: None
        error = await outcome(venue.through(gate))
        assert isinstance(error, VenueRateLimited)
        assert error.retry_after == pytest.approx(12, abs=1)
        offset_clock.advance(13)
        assert [await outcome(venue.through(gate, key=str(number))) for number in range(5)] == [None] * 5

    async def test_a_limit_that_one_key_has_used_up_leaves_the_other_keys_alone(self) -> None:
        venue = Venue(RateLimit("address", 1000, 1), RateLimit("key", 20, 60))
        gate = gated()
        venue.report = lambda reports: reports.usage.update({60: (20, 30.0)})
        assert await outcome(venue.through(gate, key="one")) is None
        venue.report = lambda reports: None
        assert await outcome(venue.through(gate, key="another")) is None
        error = await outcome(venue.through(gate, key="one"))
        assert isinstance(error, VenueRateLimited)
        assert error.retry_after == pytest.approx(30, abs=1)

    async def test_a_used_up_limit_holds_for_its_window_at_most(self) -> None:
        venue = Venue(PER_MINUTE)
        gate = gated()
        venue.report = lambda reports: reports.usage.update({60: (20, 3600.0)})
        assert await outcome(venue.through(gate)) is None
        error = await outcome(venue.through(gate))
        assert isinstance(error, VenueRateLimited)
        assert error.retry_after == pytest.approx(60, abs=1)

    @pytest.mark.parametrize("strange", [float("nan"), float("inf"), -1.0])
    async def test_a_strange_number_shuts_out_nobody_for_long(self, strange: float) -> None:
        venue = Venue(PER_MINUTE)
        gate = gated()

        def report(reports: VenueReports) -> None:
            reports.usage[60] = (strange, strange)  # type: ignore[assignment]

        venue.report = report
        assert await outcome(venue.through(gate)) is None
        venue.report = lambda reports: None
        error = await outcome(venue.through(gate))
        assert error is None or (isinstance(error, VenueRateLimited) and strange == float("inf"))

    @pytest.mark.parametrize("window", [0, 60])
    async def test_a_call_that_cost_more_than_its_listing_says_is_charged_and_later_calls_wait(
        self, window: int, offset_clock: OffsetClock
    ) -> None:
        venue = Venue(RateLimit("key", 20, 60, cost=2))
        gate = gated()
        venue.report = lambda reports: reports.costs.update({window: 15})
        assert await outcome(venue.through(gate)) is None
        venue.report = lambda reports: None
        assert [await outcome(venue.through(gate)) for _ in range(2)] == [None, None]
        error = await outcome(venue.through(gate))
        assert isinstance(error, VenueRateLimited)
        assert error.retry_after is not None
        offset_clock.advance(error.retry_after + 0.1)
        assert await outcome(venue.through(gate)) is None

    async def test_a_call_is_never_refused_for_its_own_cost_and_an_error_is_charged_too(self) -> None:
        venue = Venue(RateLimit("key", 20, 60))
        gate = gated(attempts=1)
        venue.report = lambda reports: reports.costs.update({0: 500})
        assert await outcome(venue.through(gate)) is None
        assert isinstance(await outcome(venue.through(gate)), VenueRateLimited)
        venue.failing(CredentialRejected("It refuses the key."))
        assert isinstance(await outcome(venue.through(gate, key="another")), CredentialRejected)
        assert isinstance(await outcome(venue.through(gate, key="another")), VenueRateLimited)

    async def test_a_cost_is_charged_before_the_call_that_reports_it_ends_and_only_once(self) -> None:
        venue, reported = Venue(RateLimit("key", 20, 60)), list[VenueReports]()
        gate, going_on = gated(), asyncio.Event()

        async def wait() -> str:
            await going_on.wait()
            return "a balance"

        venue.answer = wait
        venue.report = reported.append
        first = asyncio.ensure_future(venue.through(gate))
        await until(lambda: len(reported) == 1)
        for pages in (5, 9, 19):
            reported[0].costs[0] = pages
            reported[0].on_report()
        going_on.set()
        second, third = [await outcome(venue.through(gate)) for _ in range(2)]
        assert second is None, "one of 20 is left"
        assert isinstance(third, VenueRateLimited)
        assert await first == "a balance"

    async def test_less_than_the_cost_gives_nothing_back_and_another_window_is_left_alone(self) -> None:
        venue = Venue(RateLimit("key", 20, 60, cost=10), RateLimit("key", 1000, 3600))
        gate = gated()
        venue.report = lambda reports: reports.costs.update({60: 1, 3600: 30})
        outcomes = [await outcome(venue.through(gate)) for _ in range(3)]
        assert [type(error) for error in outcomes] == [type(None), type(None), VenueRateLimited]

    async def test_each_attempt_is_charged_its_own_cost(self) -> None:
        venue = Venue(RateLimit("key", 20, 60))
        gate = gated(attempts=2)
        venue.report = lambda reports: reports.costs.update({0: 8})
        venue.failing(VenueUnavailable("It is down."))
        await outcome(venue.through(gate))
        assert venue.fetches == 2
        venue.report, venue.answer = (lambda reports: None), venue.good
        outcomes = [await outcome(venue.through(gate)) for _ in range(5)]
        assert outcomes[:4] == [None] * 4
        assert isinstance(outcomes[4], VenueRateLimited)

    @pytest.mark.parametrize("seed", range(20))
    async def test_no_window_has_more_than_a_limit_before_any_call_that_is_let_through(
        self, seed: int, offset_clock: OffsetClock
    ) -> None:
        chance, cost = random.Random(seed), 2
        venue, window = Venue(RateLimit("key", 50, 60, cost=cost)), Window(60)
        gate, refused = gated(), 0
        for _ in range(150):
            offset_clock.advance(chance.choice([0.0, 0.5, 3.0, 20.0]))
            used = chance.choice([0, 1, 2, 3, 7, 60])
            venue.report = lambda reports, used=used: reports.costs.update({60: used})  # type: ignore[misc]
            before = window.used(now := asyncio.get_running_loop().time())
            if await outcome(venue.through(gate)) is None:
                assert before + cost <= 50
                window.add(max(used, cost), now)
            else:
                refused += 1
                assert before + cost > 49, "and none is refused that has room"
        assert refused

    async def test_a_cost_is_reported_in_whole_units_of_a_limit_that_the_listing_has(self) -> None:
        limits = RateLimit("key", 20, 60), RateLimit("address", 20, 3600)
        async with venue_call(listing("fakex", limits=limits)) as call:
            call.report_cost(7)
            call.report_cost(3)
            call.report_cost(10**30, 60)
            call.report_cost(2, 3600)
            call.report_cost(5, 30)
            assert call.reports.costs == {0: 7, 60: 2**53, 3600: 2}
            received = VenueReports()
            read_reports(write_reports(call.reports), received)
            assert received == call.reports

    @pytest.mark.threat("T11")
    async def test_no_report_of_a_process_is_more_than_replicas_can_count_together(self) -> None:
        said = plugin_messages.VenueReports(
            usage=[plugin_messages.LimitUsage(seconds=60, used=2**63 - 1)], costs={60: 2**63 - 1, 3600: -(2**63)}
        )
        reports = VenueReports()
        read_reports(said, reports)
        assert reports.costs == {60: 2**53, 3600: 0}
        assert reports.usage[60][0] == 2**53
        window = SharedWindow(60, 0.0)
        for _ in range(1000):
            window.add(b"replica1", reports.costs[60])
        assert SharedWindow.unpack(60, window.pack(), 0.0).wait(1, 10, 0.0) > 0

    async def test_of_two_hosts_the_one_where_more_is_used_counts(self) -> None:
        async with venue_call(listing("fakex")) as call:
            call.report_usage(2400, 60, resets_after=12)
            call.report_usage(7, 60, resets_after=12)
            assert call.reports.usage == {60: (2400, 12.0)}

    async def test_whatever_number_a_venue_states_leaves_the_process_of_its_plugin(self) -> None:
        async with venue_call(listing("fakex")) as call:
            call.report_usage(10**30, 60, resets_after=1e300)
            call.report_cooldown(1e300)
            received = VenueReports()
            read_reports(write_reports(call.reports), received)
            assert received == call.reports

    async def test_a_ban_holds_if_the_caller_has_gone_before_the_call_ended(self) -> None:
        venue, entered = Venue(), asyncio.Event()
        gate = gated()

        async def endless() -> str:
            entered.set()
            await asyncio.sleep(60)
            return "never"

        def report(reports: VenueReports) -> None:
            reports.cooldown = 130.0

        venue.answer, venue.report = endless, report
        gone = asyncio.ensure_future(venue.through(gate))
        await entered.wait()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        error = await outcome(venue.through(gate))
        assert isinstance(error, VenueRateLimited)
        assert error.retry_after == pytest.approx(130, abs=1)
        assert gate.in_flight == 0


class TestBalances:
    @pytest.fixture
    def plugin(self) -> ScriptedPlugin:
        return ScriptedPlugin()

    @pytest.fixture
    async def service(self, tmp_path: Path, plugin: ScriptedPlugin) -> AsyncIterator[TestService]:
        async with open_test_service(tmp_path, plugin, gate=GateOptions(of_venue=1)) as service:
            for user in (USER, "bob", "carol"):
                await service.put(user=user)
            yield service

    async def test_a_cached_balance_is_returned_while_the_gate_refuses_fetches(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        await service.get()
        plugin.answer = raising(VenueRateLimited("Too many.", retry_after=60))
        for user in ("bob", "carol"):
            with pytest.raises(VenueRateLimited):
                await service.get(user=user)
        assert (await service.get()).source is Source.CACHE
        service.clock.now += 31
        stale = await service.get()
        assert (stale.source, type(stale.stale)) == (Source.LAST_GOOD, VenueRateLimited)
        assert len(plugin.calls) == 3

    async def test_a_poll_that_a_caller_joins_goes_before_other_polls(
        self, service: TestService, plugin: ScriptedPlugin
    ) -> None:
        plugin.answer = gate = Gate()
        fetches = [asyncio.ensure_future(service.get())]
        await gate.entered.wait()
        for count, user in enumerate(("bob", "carol"), 1):
            fetches.append(asyncio.ensure_future(polled(service, user)))
            await until(lambda count=count: service.gate.snapshot()["fakex production"].waiting == count)
        fetches.append(asyncio.ensure_future(service.get(user="carol")))
        await until(lambda: service.balances.fetcher.snapshot() == (3, 4))
        gate.opened.set()
        await asyncio.gather(*fetches)
        assert [call.account.user_id for call in plugin.calls] == [USER, "carol", "bob"]


async def polled(service: TestService, user: str) -> BalanceResult:
    account, entry = service.registry.account(user, "fakex", "")
    deadline = asyncio.get_running_loop().time() + 10
    return await service.balances.get(account, entry, max_age=None, deadline=deadline, polling=True)
