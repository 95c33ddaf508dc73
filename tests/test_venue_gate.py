"""What stands before a venue: places, budget, pauses, breaker and retries, in one process and in several."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as redis_client
from aiohttp import web
from exchange_service_oanda.simulator import OandaSimulator
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from structlog.testing import capture_logs

from exchange_service.balances.cached import CachedBalances
from exchange_service.balances.service import BalanceResult, Balances
from exchange_service.cache.memory import MemoryCache
from exchange_service.cache.redis_link import RedisLink
from exchange_service.credentials import CredentialReference
from exchange_service.credentials.references import CachedReferences
from exchange_service.credentials.sql import open_store
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
from exchange_service.model import Account, Credential
from exchange_service.plugin_api import Balance, Environment, RateLimit, VenueCall
from exchange_service.testing import Fault, LoopbackVenue
from exchange_service.v1 import exchange_pb2
from exchange_service.venue_gate import NoMetrics, Priority, VenueGate
from exchange_service.venue_gate.breaker import FAILURES_TO_OPEN, FIRST_PAUSE, LONGEST_PAUSE, Breaker, State
from exchange_service.venue_gate.rate_limits import Window
from exchange_service.venue_gate.redis_limits import RedisRateLimits
from exchange_service.venue_gate.status import VenueStatus
from exchange_service.venues.http import VenueHttpPool
from exchange_service.venues.registry import Listing
from exchange_service.venues.sessions import Sessions
from exchange_service.wire.balances import Source
from tests.harness import (
    USER,
    Bench,
    Clock,
    Gate,
    ScriptedPlugin,
    Shifted,
    balance_request,
    bench,
    eventually,
    failure,
    holding,
    listing,
    raising,
    registry_of,
    serving,
    streaming,
    until,
)
from tests.servers import RedisServer

OF_THE_VENUE = [VenueUnavailable, VenueTimeout, VenueMaintenance, VenueMalformed]


class BreakerMachine(RuleBasedStateMachine):
    """A breaker beside a model of it: failures in a row, and when a probe is due."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.breaker = Breaker(lambda: self.now, jitter=lambda low, high: (low + high) / 2)
        self.under_way: list[bool] = []
        self.in_a_row = 0
        self.pause = 0.0
        self.due = 0.0

    def opened(self, pause: float) -> None:
        self.pause = min(pause, LONGEST_PAUSE)
        self.due = self.now + self.pause
        self.in_a_row = 0

    @rule(seconds=st.sampled_from([0.1, 1.0, 29.0, 31.0, 200.0, 301.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.breaker.wait() is None)
    @rule()
    def somebody_enters(self) -> None:
        probe = self.breaker.enter()
        assert probe == bool(self.pause)
        assert not (probe and True in self.under_way), "two probes at once"
        assert not probe or self.now >= self.due
        self.under_way.append(probe)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def one_succeeds(self, data: st.DataObject) -> None:
        probe = self.leave(data)
        self.breaker.succeeded(probe)
        if probe:
            self.pause = 0.0
        if not self.pause:
            self.in_a_row = 0

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def one_fails(self, data: st.DataObject) -> None:
        probe = self.leave(data)
        self.breaker.failed(probe)
        if probe:
            self.opened(self.pause * 1.5)
        elif not self.pause:
            self.in_a_row += 1
            if self.in_a_row == FAILURES_TO_OPEN:
                self.opened(FIRST_PAUSE)

    @precondition(lambda self: self.under_way)
    @rule(data=st.data())
    def one_says_nothing_of_the_venue(self, data: st.DataObject) -> None:
        self.breaker.abandoned(self.leave(data))

    def leave(self, data: st.DataObject) -> bool:
        return self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))

    @invariant()
    def it_admits_as_the_model_says(self) -> None:
        wait = self.breaker.wait()
        if not self.pause:
            assert (wait, self.breaker.state) == (None, State.CLOSED)
        elif True in self.under_way:
            assert wait is not None
            assert self.breaker.state is State.HALF_OPEN
        elif self.now < self.due:
            assert wait == pytest.approx(self.due - self.now)
            assert self.breaker.state is State.OPEN
        else:
            assert (wait, self.breaker.state) == (None, State.HALF_OPEN)


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("seed", range(20))
def test_a_breakers_pauses_grow_up_to_five_minutes_and_differ_a_little(seed: int) -> None:
    now, chance = 0.0, random.Random(seed)
    breaker = Breaker(lambda: now, chance.uniform)
    for _ in range(FAILURES_TO_OPEN):
        breaker.failed(breaker.enter())
    pauses = []
    for _ in range(10):
        wait = breaker.wait()
        assert wait is not None
        pauses.append(wait)
        now += wait
        breaker.failed(breaker.enter())
    expected = [min(LONGEST_PAUSE, FIRST_PAUSE * 1.5**number) for number in range(10)]
    for pause, plain in zip(pauses, expected, strict=True):
        assert 0.9 * plain <= pause <= min(LONGEST_PAUSE, 1.1 * plain) + 1e-6


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 5)), max_size=30),
    st.integers(1, 5),
    st.integers(5, 40),
)
def test_a_window_says_when_there_will_be_room(steps: list[tuple[float, int]], count: int, allowed: int) -> None:
    window, now = Window(10), 1000.0
    for passed, wished in steps:
        now += passed
        if not window.wait(wished, allowed, now):
            window.add(wished, now)
        assert window.used(now) <= allowed
    wait = window.wait(count, allowed, now)
    assert 0 <= wait <= 20 + 1e-6
    assert not window.wait(count, allowed, now + wait + 1e-6)


@dataclass
class Recorder(NoMetrics):
    """What the gate told whoever counts."""

    budgets: list[tuple[str, str, float]] = field(default_factory=list)
    breakers: list[tuple[str, str, str]] = field(default_factory=list)
    retries: int = 0
    refusals: list[str] = field(default_factory=list)

    def budget_left(self, exchange: str, scope: str, share: float) -> None:
        self.budgets.append((exchange, scope, share))

    def breaker(self, exchange: str, environment: str, state: str) -> None:
        self.breakers.append((exchange, environment, state))

    def retried(self, exchange: str) -> None:
        self.retries += 1

    def refused(self, reason: str) -> None:
        self.refusals.append(reason)


class Venue:
    """What is behind a gate: counts who asks, and answers as the test says."""

    def __init__(self, *limits: RateLimit, name: str = "paper", plugin: Any = None) -> None:
        registry = registry_of(plugin or ScriptedPlugin(listing(name, limits=limits)))
        self.listing: Listing = registry.listings[name]
        self.asked = 0
        self.now = self.most = 0
        self.answer: Callable[[], Awaitable[str]] = self.good

    async def good(self) -> str:
        await asyncio.sleep(0)
        return "a balance"

    async def read(self) -> str:
        self.asked += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self.answer()
        finally:
            self.now -= 1

    def failing(self, error: ServiceError) -> None:
        async def fail() -> str:
            raise error.with_traceback(None)

        self.answer = fail

    def through(self, gate: VenueGate, *, key: str = "1", polling: bool = False, timeout: float = 8.0) -> Any:
        """A fetch of the account that this key opens."""
        return self.urgently(gate, Priority(polling=polling), key=key, timeout=timeout)

    def urgently(self, gate: VenueGate, priority: Priority, *, key: str = "1", timeout: float = 8.0) -> Any:
        account = Account(f"user of {key}", self.listing.metadata.id)
        deadline = asyncio.get_running_loop().time() + timeout
        reference = CredentialReference(account, account, key)
        return gate.fetch(self.listing, account, reference, deadline, self.read, priority=priority)


async def outcome(fetch: Awaitable[str]) -> ServiceError | None:
    try:
        await fetch
    except ServiceError as error:
        return error
    return None


@pytest.fixture
async def shifted(monkeypatch: pytest.MonkeyPatch) -> Shifted:
    return Shifted(monkeypatch)


class TestBreaking:
    @pytest.mark.parametrize("kind", OF_THE_VENUE)
    async def test_after_five_failures_in_a_row_the_venue_is_not_asked_and_callers_are_told_when(
        self, kind: type[ServiceError]
    ) -> None:
        venue, metrics = Venue(), Recorder()
        gate = VenueGate(attempts=1, metrics=metrics)
        venue.failing(kind("It fails."))
        for _ in range(5):
            assert type(await outcome(venue.through(gate))) is kind
        for _ in range(3):
            error = await outcome(venue.through(gate, key="another"))
            assert type(error) is VenueUnavailable
            assert error.retry_after is not None
            assert 26 < error.retry_after <= 33
        assert venue.asked == 5
        assert metrics.breakers == [("paper", "production", "open")]
        assert metrics.refusals == ["VENUE_UNAVAILABLE"] * 3

    @pytest.mark.parametrize("kind", [CredentialRejected, PluginFailed, VenueRateLimited])
    async def test_what_does_not_speak_of_the_venue_opens_nothing(self, kind: type[ServiceError]) -> None:
        venue = Venue()
        gate = VenueGate(attempts=1)
        venue.failing(kind("It fails.", retry_after=0))
        for _ in range(8):
            assert type(await outcome(venue.through(gate))) is kind
        assert venue.asked == 8

    async def test_a_timeout_of_what_came_late_to_the_venue_says_nothing_of_it(self) -> None:
        venue = Venue()
        gate = VenueGate(attempts=1, of_venue=1)
        held = asyncio.Event()

        async def hold() -> str:
            await held.wait()
            raise VenueTimeout("It did not answer in time.")

        venue.answer = hold
        fetches = [asyncio.ensure_future(outcome(venue.through(gate, timeout=0.6))) for _ in range(2)]
        await asyncio.sleep(0.4)
        held.set()
        await asyncio.gather(*fetches)
        breaker = gate._venues["paper production"].breaker
        # The first had all its time, the second a third of it.
        assert (venue.asked, breaker._failures) == (2, 1)

    async def test_one_probe_after_the_pause_decides_for_all(self, shifted: Shifted) -> None:
        venue = Venue()
        gate = VenueGate(attempts=1)
        venue.failing(VenueUnavailable("It is down."))
        for _ in range(5):
            await outcome(venue.through(gate))
        shifted.by(34)
        held = asyncio.Event()

        async def hold() -> str:
            await held.wait()
            return "a balance"

        venue.answer = hold
        fetches = [asyncio.ensure_future(outcome(venue.through(gate, key=str(number)))) for number in range(20)]
        await until(lambda: sum(fetch.done() for fetch in fetches) == 19)
        assert venue.asked == 6
        held.set()
        outcomes = await asyncio.gather(*fetches)
        assert outcomes.count(None) == 1
        assert await outcome(venue.through(gate)) is None

    async def test_a_probe_that_is_cancelled_leaves_the_way_to_the_next(self, shifted: Shifted) -> None:
        venue = Venue()
        gate = VenueGate(attempts=1)
        venue.failing(VenueUnavailable("It is down."))
        for _ in range(5):
            await outcome(venue.through(gate))
        shifted.by(34)
        venue.answer = asyncio.Event().wait  # type: ignore[assignment]
        probe = asyncio.ensure_future(venue.through(gate))
        await until(lambda: venue.asked == 6)
        probe.cancel()
        await asyncio.wait({probe})
        venue.answer = venue.good
        assert await outcome(venue.through(gate)) is None
        assert gate.in_flight == 0

    async def test_in_a_demo_each_account_breaks_for_itself(self) -> None:
        venue = Venue(RateLimit("address", 99, 60))
        gate = VenueGate(attempts=1, accounts_apart=True)
        venue.failing(VenueRateLimited("Too many.", retry_after=7))
        await outcome(venue.through(gate, key="limited"))
        venue.failing(VenueUnavailable("It is down."))
        for _ in range(6):
            await outcome(venue.through(gate, key="broken"))
        assert venue.asked == 6
        venue.answer = venue.good
        assert await outcome(venue.through(gate, key="good")) is None

    async def test_a_venue_that_takes_no_connection_fails_quickly_and_then_without_being_asked(
        self, tmp_path: Path
    ) -> None:
        metadata = listing(environments=(Environment("production", {"api": "https://api.paper.example"}),))
        plugin = ScriptedPlugin(metadata, answer=over_http)
        venue = Answering()
        await venue.start()
        await venue.stop()
        async with bench(tmp_path, plugin, gate=VenueGate(), overrides={"paper": venue.url}) as paper:
            await paper.put()
            started = time.monotonic()
            for _ in range(5):
                with pytest.raises(VenueUnavailable):
                    await paper.get()
            # Three attempts of the first, two of the second, and none from then on.
            assert len(plugin.calls) == 5
            assert time.monotonic() - started < 3

    async def test_the_sandbox_breaks_for_itself(self) -> None:
        venue, status = Venue(), VenueStatus()
        gate = VenueGate(attempts=1, status=status)
        venue.failing(VenueUnavailable("It is down."))
        account = Account(USER, "paper", "sandbox")
        reference = CredentialReference(account, account, "1")
        for _ in range(5):
            deadline = asyncio.get_running_loop().time() + 8
            await outcome(gate.fetch(venue.listing, account, reference, deadline, venue.read))
        venue.answer = venue.good
        assert await outcome(venue.through(gate)) is None
        assert status.troubles["paper"].serves
        assert status.troubles["paper"].reason.endswith("(its sandbox).")


class TestStatus:
    async def test_a_listing_is_degraded_after_a_failure_and_unavailable_while_nobody_asks(
        self, shifted: Shifted
    ) -> None:
        venue, status, clock = Venue(), VenueStatus(), Clock()
        gate = VenueGate(attempts=1, status=status, wall_clock=clock)
        venue.failing(VenueUnavailable("It is down."))
        await outcome(venue.through(gate))
        assert status.troubles["paper"].serves
        since = clock.now
        clock.now += 10
        for _ in range(4):
            await outcome(venue.through(gate))
        trouble = status.troubles["paper"]
        assert (trouble.serves, trouble.since) == (False, since)
        assert "left alone" in trouble.reason
        shifted.by(34)
        venue.answer = venue.good
        await venue.through(gate)
        assert status.troubles == {}

    async def test_clients_see_it_and_get_their_delay_and_a_feed_asks_no_more_often(
        self, tmp_path: Path, shifted: Shifted
    ) -> None:
        async with OandaSimulator() as venue, serving(tmp_path, venue_urls={"oanda": venue.url}) as running:
            row = venue.demo_credential("moving")
            assert row is not None
            await running.service.store.put(Account(USER, "oanda"), Credential.from_texts(row))
            venue.fail(Fault.html(503))
            for _ in range(5):
                await failure(running.stub.GetBalance(_forced()))
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
            shifted.by(34)
            await running.stub.GetBalance(_forced())
            assert await _availability(running) == exchange_pb2.AVAILABILITY_AVAILABLE


def _forced() -> Any:
    request = balance_request("oanda")
    request.max_age.FromSeconds(0)
    return request


async def _availability(running: Any) -> int:
    (entry,) = (await running.client.list_exchanges(search="oanda")).exchanges
    return int(entry.status.availability)


class TestRetries:
    async def test_a_slip_is_made_good_within_the_call(self) -> None:
        venue, metrics = Venue(), Recorder()
        gate = VenueGate(metrics=metrics)

        async def slips_twice() -> str:
            if venue.asked < 3:
                raise VenueUnavailable("It slipped.")
            return "a balance"

        venue.answer = slips_twice
        assert await venue.through(gate) == "a balance"
        assert (venue.asked, metrics.retries) == (3, 2)

    async def test_two_retries_are_the_most(self) -> None:
        venue = Venue()
        venue.failing(VenueUnavailable("It is down."))
        assert isinstance(await outcome(venue.through(VenueGate())), VenueUnavailable)
        assert venue.asked == 3

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
    async def test_what_is_no_slip_is_not_repeated(self, error: ServiceError) -> None:
        venue = Venue()
        venue.failing(error)
        assert await outcome(venue.through(VenueGate())) is error
        assert venue.asked == 1

    async def test_what_took_long_or_leaves_no_time_is_not_repeated(self) -> None:
        venue = Venue()

        async def slowly() -> str:
            await asyncio.sleep(1.1)
            raise VenueTimeout("It did not answer in time.")

        venue.answer = slowly
        await outcome(venue.through(VenueGate()))
        assert venue.asked == 1

        async def most_of_the_time() -> str:
            await asyncio.sleep(0.08)
            raise VenueUnavailable("It slipped.")

        venue.answer = most_of_the_time
        await outcome(venue.through(VenueGate(), timeout=0.1))
        assert venue.asked == 2

    async def test_a_venue_in_trouble_gets_at_most_a_fifth_more_than_it_would(self) -> None:
        venue, metrics = Venue(), Recorder()
        gate = VenueGate(metrics=metrics)
        chance = random.Random(7)

        async def often_slips() -> str:
            if chance.random() < 0.6 and venue.asked % 4:
                raise VenueUnavailable("It slipped.")
            return "a balance"

        venue.answer = often_slips
        turn = asyncio.Semaphore(40)

        async def one(number: int) -> None:
            async with turn:
                await outcome(venue.through(gate, key=str(number)))

        await asyncio.gather(*(one(number) for number in range(400)))
        assert metrics.retries > 40
        assert metrics.retries <= 0.2 * venue.asked


class TestPlaces:
    async def test_no_more_are_in_flight_than_may_be_and_a_slow_venue_keeps_nobody_out(self) -> None:
        slow = Venue(plugin=ScriptedPlugin(listing("paper"), listing("quick")))
        quick = Venue(name="quick", plugin=ScriptedPlugin(listing("paper"), listing("quick")))
        gate = VenueGate(of_venue=8, of_plugin=12)
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

    async def test_a_place_that_a_plugins_one_venue_gives_back_goes_to_another(self) -> None:
        plugin = ScriptedPlugin(listing("paper"), listing("quick"))
        slow, quick = Venue(plugin=plugin), Venue(name="quick", plugin=plugin)
        gate = VenueGate(of_venue=2, of_plugin=2)
        held = asyncio.Event()

        async def hold() -> str:
            await held.wait()
            return "a balance"

        slow.answer = hold
        holders = [asyncio.ensure_future(slow.through(gate)) for _ in range(2)]
        await until(lambda: slow.now == 2)
        waiting = asyncio.ensure_future(quick.through(gate))
        queues = gate._places._shelves["paper"].queues
        await until(lambda: "quick production" in queues and queues["quick production"].waiting == 1)
        held.set()
        assert await asyncio.wait_for(waiting, 2) == "a balance"
        await asyncio.gather(*holders)
        assert gate.in_flight == 0

    async def test_who_finds_no_place_in_time_is_told_to_come_again(self) -> None:
        venue, metrics = Venue(), Recorder()
        gate = VenueGate(of_venue=2, metrics=metrics)
        venue.answer = asyncio.Event().wait  # type: ignore[assignment]
        holders = [asyncio.ensure_future(venue.through(gate)) for _ in range(2)]
        await until(lambda: venue.asked == 2)
        error = await outcome(venue.through(gate, timeout=0.2))
        assert isinstance(error, ServiceOverloaded)
        assert error.retry_after == 1.0
        assert metrics.refusals == ["SERVICE_OVERLOADED"]
        for holder in holders:
            holder.cancel()
        await asyncio.wait(holders)
        venue.answer = venue.good
        assert await outcome(venue.through(gate)) is None

    async def test_who_waits_for_an_answer_goes_before_who_polls(self) -> None:
        venue = Venue()
        gate = VenueGate(of_venue=1)
        order: list[str] = []
        first = asyncio.Event()

        async def in_turn() -> str:
            await first.wait()
            return "a balance"

        venue.answer = in_turn
        joined = Priority(polling=True)

        async def one(name: str, priority: Priority) -> None:
            await venue.urgently(gate, priority)
            order.append(name)

        fetches = [asyncio.ensure_future(one("holder", Priority()))]
        await until(lambda: venue.asked == 1)
        for name, priority in (
            ("poll", Priority(polling=True)),
            ("another poll", Priority(polling=True)),
            ("a poll that somebody joins", joined),
            ("call", Priority()),
        ):
            fetches.append(asyncio.ensure_future(one(name, priority)))
        await until(lambda: gate._places._shelves["paper"].queues["paper production"].waiting == 4)
        joined.promote()
        first.set()
        await asyncio.gather(*fetches)
        assert order == ["holder", "a poll that somebody joins", "call", "poll", "another poll"] or order == [
            "holder",
            "call",
            "a poll that somebody joins",
            "poll",
            "another poll",
        ]

    @pytest.mark.parametrize("seed", range(5))
    async def test_no_place_is_lost_however_many_leave_at_any_moment(self, seed: int) -> None:
        venue, chance = Venue(), random.Random(seed)
        gate = VenueGate(of_venue=4, of_plugin=4, attempts=1)

        async def briefly() -> str:
            await asyncio.sleep(chance.random() / 500)
            return "a balance"

        venue.answer = briefly
        fetches = [
            asyncio.ensure_future(venue.through(gate, key=str(number), polling=chance.random() < 0.5))
            for number in range(200)
        ]
        for fetch in fetches:
            if chance.random() < 0.5:
                await asyncio.sleep(0)
                fetch.cancel()
        await asyncio.wait(fetches)
        assert venue.most <= 4
        assert gate.in_flight == 0
        assert await venue.through(gate) == "a balance"


PER_MINUTE = RateLimit("address", 20, 60)


class TestBudget:
    async def test_a_call_beyond_the_budget_is_told_when_there_will_be_more(self, shifted: Shifted) -> None:
        venue, metrics = Venue(PER_MINUTE), Recorder()
        gate = VenueGate(metrics=metrics)
        outcomes = [await outcome(venue.through(gate, key=str(number))) for number in range(25)]
        assert outcomes[:20] == [None] * 20
        error = outcomes[-1]
        assert isinstance(error, VenueRateLimited)
        assert error.retry_after is not None
        assert venue.asked == 20
        assert metrics.budgets[-1] == ("paper", "address", 0.0)
        shifted.by(error.retry_after + 0.1)
        assert await outcome(venue.through(gate)) is None

    async def test_a_fifth_is_left_to_calls_that_somebody_waits_for(self) -> None:
        venue = Venue(PER_MINUTE)
        gate = VenueGate()
        for number in range(30):
            await outcome(venue.through(gate, key=str(number), polling=True, timeout=0.05))
        assert venue.asked == 16
        for number in range(30):
            await outcome(venue.through(gate, key=str(number)))
        assert venue.asked == 20

    async def test_polling_waits_for_more_without_taking_a_place(self) -> None:
        venue = Venue(RateLimit("address", 5, 1))
        gate = VenueGate(of_venue=1)
        started = time.monotonic()
        polls = [asyncio.ensure_future(outcome(venue.through(gate, polling=True))) for _ in range(5)]
        await until(lambda: venue.asked == 4)
        assert gate.in_flight == 0
        assert await outcome(venue.through(gate)) is None
        assert await asyncio.gather(*polls) == [None] * 5
        assert time.monotonic() - started > 0.5

    async def test_a_poll_that_somebody_joins_while_it_waits_may_use_what_is_left_for_calls(self) -> None:
        venue = Venue(RateLimit("address", 5, 3))
        gate = VenueGate()
        for _ in range(4):
            await venue.through(gate, polling=True)
        priority = Priority(polling=True)
        poll = asyncio.ensure_future(venue.urgently(gate, priority))
        for _ in range(10):
            await asyncio.sleep(0)
        assert venue.asked == 4
        priority.promote()
        await asyncio.wait_for(poll, 1)
        assert venue.asked == 5

    async def test_a_key_is_counted_for_itself(self) -> None:
        venue = Venue(RateLimit("key", 3, 60))
        gate = VenueGate()
        for key in ("1", "2"):
            for _ in range(5):
                await outcome(venue.through(gate, key=key))
        assert venue.asked == 6

    async def test_a_balance_counts_as_what_it_costs(self) -> None:
        venue = Venue(RateLimit("address", 100, 60, cost=30), RateLimit("key", 50, 60))
        gate = VenueGate()
        for _ in range(5):
            await outcome(venue.through(gate))
        assert venue.asked == 3

    async def test_what_is_not_asked_after_all_costs_nothing(self) -> None:
        venue = Venue(RateLimit("address", 10, 60), RateLimit("key", 1, 60))
        gate = VenueGate()
        for _ in range(8):
            await outcome(venue.through(gate))
        for key in range(20):
            await outcome(venue.through(gate, key=f"another {key}"))
        assert venue.asked == 10

    def test_a_limit_that_can_never_be_kept_is_refused(self) -> None:
        for wrong in (("address", 1, 60, 2), ("user", 1, 60, 1), ("key", 0, 60, 1), ("key", 10, 0.5, 1)):
            with pytest.raises(ValueError, match=r"RateLimit\."):
                RateLimit(*wrong)  # type: ignore[arg-type]


class TestPauses:
    @pytest.mark.parametrize(
        ("limits", "others_wait"),
        [((), True), ((RateLimit("address", 99, 60),), True), ((RateLimit("key", 99, 60),), False)],
    )
    async def test_a_venue_that_limits_us_is_left_alone_by_all_whom_it_counts_together(
        self, limits: tuple[RateLimit, ...], others_wait: bool
    ) -> None:
        venue = Venue(*limits)
        gate = VenueGate()
        venue.failing(VenueRateLimited("Too many.", retry_after=7))
        await outcome(venue.through(gate))
        venue.answer = venue.good
        for polling in (True, False):
            error = await outcome(venue.through(gate, polling=polling))
            assert isinstance(error, VenueRateLimited)
            assert error.retry_after == pytest.approx(7, abs=0.5)
        assert (await outcome(venue.through(gate, key="another")) is not None) == others_wait
        assert venue.asked == (1 if others_wait else 2)

    @pytest.mark.parametrize("kind", [VenueMaintenance, VenueUnavailable])
    async def test_one_that_says_when_it_will_be_back_is_not_asked_before(
        self, kind: type[ServiceError], shifted: Shifted
    ) -> None:
        venue = Venue(RateLimit("key", 99, 60))
        gate = VenueGate()
        assert kind.default_retry_after is not None
        # Also where the venue happens to say what is our own guess elsewhere.
        venue.failing(kind("Back soon.", retry_after=kind.default_retry_after))
        await outcome(venue.through(gate))
        venue.answer = venue.good
        assert type(await outcome(venue.through(gate, key="another"))) is kind
        shifted.by(kind.default_retry_after + 0.1)
        assert await outcome(venue.through(gate)) is None
        assert venue.asked == 2

    async def test_one_that_does_not_say_it_is_asked_as_ever(self) -> None:
        venue = Venue()
        gate = VenueGate()
        venue.failing(VenueMaintenance("Closed."))
        await outcome(venue.through(gate))
        venue.answer = venue.good
        assert await outcome(venue.through(gate)) is None

    async def test_a_limit_without_a_delay_costs_more_each_time_up_to_five_minutes(self, shifted: Shifted) -> None:
        venue = Venue()
        gate = VenueGate()
        venue.failing(VenueRateLimited("Too many."))
        for strike in range(1, 12):
            await outcome(venue.through(gate))
            error = await outcome(venue.through(gate))
            assert error is not None
            assert error.retry_after is not None
            assert 9.9 < error.retry_after <= min(300, 10 * 2**strike)
            shifted.by(error.retry_after + 0.1)
        assert venue.asked == 11

    async def test_a_pause_is_an_hour_at_most(self) -> None:
        venue = Venue()
        gate = VenueGate()
        venue.failing(VenueRateLimited("Banned.", retry_after=3 * 86400))
        await outcome(venue.through(gate))
        error = await outcome(venue.through(gate))
        assert error is not None
        assert error.retry_after == pytest.approx(3600, abs=1)


class TestBalances:
    @pytest.fixture
    def plugin(self) -> ScriptedPlugin:
        return ScriptedPlugin()

    @pytest.fixture
    async def paper(self, tmp_path: Path, plugin: ScriptedPlugin) -> AsyncIterator[Bench]:
        async with bench(tmp_path, plugin, gate=VenueGate(of_venue=1)) as made:
            for user in (USER, "bob", "carol"):
                await made.put(user=user)
            yield made

    async def test_a_kept_balance_is_given_whatever_the_gate_says(self, paper: Bench, plugin: ScriptedPlugin) -> None:
        await paper.get()
        plugin.answer = raising(VenueRateLimited("Too many.", retry_after=60))
        with pytest.raises(VenueRateLimited):
            await paper.get(user="bob")
        assert (await paper.get()).source is Source.CACHE
        paper.clock.now += 31
        stale = await paper.get()
        assert (stale.source, type(stale.stale)) == (Source.LAST_GOOD, VenueRateLimited)
        assert len(plugin.calls) == 2

    async def test_a_poll_that_a_caller_joins_goes_before_other_polls(
        self, paper: Bench, plugin: ScriptedPlugin
    ) -> None:
        plugin.answer = gate = Gate()
        fetches = [asyncio.ensure_future(paper.get())]
        await gate.entered.wait()
        places = paper.balances._gate._places._shelves["paper"].queues["paper production"]
        for count, user in enumerate(("bob", "carol"), 1):
            fetches.append(asyncio.ensure_future(polled(paper, user)))
            await until(lambda count=count: places.waiting == count)
        fetches.append(asyncio.ensure_future(paper.get(user="carol")))
        await until(lambda: len(paper.balances._flights) == 3 and not places.polling[-1][1].done())
        await until(lambda: bool(places.urgent))
        gate.opened.set()
        await asyncio.gather(*fetches)
        assert [call.account.user_id for call in plugin.calls] == [USER, "carol", "bob"]


async def polled(paper: Bench, user: str) -> BalanceResult:
    account, found = paper.registry.account(user, "paper", "")
    deadline = asyncio.get_running_loop().time() + 10
    return await paper.balances.get(account, found, max_age=None, deadline=deadline, polling=True)


class Answering(LoopbackVenue):
    """Answers every request with a good balance."""

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/", self._answer)]

    async def _answer(self, _: web.Request) -> web.Response:
        return web.json_response({})


async def over_http(call: VenueCall) -> Balance:
    (await call.http.get(call.url() + "/")).raise_for_status()
    return holding(("BTC", "1.50"))


@dataclass
class Replica:
    """One of several processes: its own balances, cache and gate."""

    balances: Balances
    listing: Listing
    metrics: Recorder

    async def get(self, user: str, *, polling: bool = False) -> BalanceResult:
        account = Account(user, "paper")
        deadline = asyncio.get_running_loop().time() + 10
        return await self.balances.get(account, self.listing, max_age=0, deadline=deadline, polling=polling)


@asynccontextmanager
async def replicas(
    folder: Path, venue: LoopbackVenue, redis_url: str, *limits: RateLimit, users: int = 1, prefix: str = ""
) -> AsyncIterator[list[Replica]]:
    """Three replicas on one Redis and one store; each keeps balances for itself, so that each asks the venue."""
    metadata = listing(limits=limits, environments=(Environment("production", {"api": "https://api.paper.example"}),))
    registry = registry_of(ScriptedPlugin(metadata, answer=over_http))
    prefix = prefix or f"test-{random.getrandbits(64):x}:"
    async with AsyncExitStack() as stack:
        store = await open_store(f"sqlite:///{folder / 'credentials.db'}", b"0123456789abcdef")
        stack.push_async_callback(store.close)
        for number in range(users):
            await store.put(Account(f"user{number}", "paper"), Credential.from_texts({"api_key": f"key{number}"}))
        http = VenueHttpPool(timeout=5.0)
        stack.push_async_callback(http.close)
        sessions = Sessions(store.open, http, overrides={"paper": venue.url})
        stack.push_async_callback(sessions.close)
        made = []
        for _ in range(3):
            link, metrics = RedisLink(redis_url), Recorder()
            stack.push_async_callback(link.close)
            gate = VenueGate(shared=RedisRateLimits(link, prefix=prefix), replicas=3, metrics=metrics)
            stack.push_async_callback(gate.close)
            references = CachedReferences(store, ttl=60.0)
            kept = CachedBalances(MemoryCache(), 300.0)
            balances = Balances(registry, references, sessions, kept, hash_key=b"0123456789abcdef", gate=gate)
            stack.push_async_callback(balances.close)
            made.append(Replica(balances, registry.listings["paper"], metrics))
        yield made


async def every(made: list[Replica], times: int, users: int = 1) -> list[ServiceError | None]:
    """All replicas ask so often, for all users in turn, and a few at the same time."""
    # The store opens a few credentials at a time, and this process plays all of the replicas.
    turn = asyncio.Semaphore(9)

    async def one(replica: Replica, number: int) -> ServiceError | None:
        async with turn:
            try:
                await replica.get(f"user{number % users}")
            except ServiceError as error:
                return error
            return None

    return await asyncio.gather(*(one(replica, number) for number in range(times) for replica in made))


async def counted_together(
    folder: Path, redis_url: str, limit: RateLimit, *, times: int
) -> tuple[int, list[ServiceError | None]]:
    """How many requests the venue saw, and what came of all fetches, while every replica had its Redis all the time: on
    a machine that is too busy for that it is tried again."""
    for attempt in range(5):
        (place := folder / str(attempt)).mkdir()
        async with Answering() as venue, replicas(place, venue, redis_url, limit, users=times) as made:
            with capture_logs() as lines:
                outcomes = await every(made, times, users=times)
            if all(line["event"] != "redis.out_of_reach" for line in lines):
                return len(venue.requests), outcomes
    raise AssertionError("the replicas never had their Redis all the time")


@pytest.mark.threat("T14")
class TestReplicas:
    async def test_a_venues_delay_holds_for_all_of_them_and_also_for_who_forces(
        self, tmp_path: Path, redis_url: str
    ) -> None:
        async with Answering() as venue, replicas(tmp_path, venue, redis_url, users=3) as made:
            assert set(await every(made, 3, users=3)) == {None}
            venue.fail(Fault.rate_limited("7"))
            seen = len(venue.requests)
            with pytest.raises(VenueRateLimited):
                await made[0].get("user0")
            assert len(venue.requests) == seen + 1
            venue.recover()
            for _ in range(4):
                outcomes = await every(made, 3, users=3)
                assert {type(outcome) for outcome in outcomes} == {VenueRateLimited}
                assert all(6 < (outcome.retry_after or 0) <= 7 for outcome in outcomes if outcome)
                await asyncio.sleep(0.1)
            assert len(venue.requests) == seen + 1

    async def test_it_ends_for_all_of_them_when_it_is_over(self, tmp_path: Path, redis_url: str) -> None:
        async with Answering() as venue, replicas(tmp_path, venue, redis_url) as made:
            venue.fail(Fault.rate_limited("1"))
            with pytest.raises(VenueRateLimited):
                await made[0].get("user0")
            told = time.monotonic()
            venue.recover()
            while (await every(made, 1)).count(None) == 0:
                assert len(venue.requests) == 1
                await asyncio.sleep(0.02)
            assert 0.9 < time.monotonic() - told < 1.5
            assert (await every(made, 1)) == [None] * 3

    async def test_they_keep_to_one_budget_together(self, tmp_path: Path, redis_url: str) -> None:
        requests, outcomes = await counted_together(tmp_path, redis_url, RateLimit("address", 30, 60), times=30)
        assert outcomes.count(None) == requests == 30
        assert {type(outcome) for outcome in outcomes if outcome} == {VenueRateLimited}

    async def test_lots_spare_redis_questions_and_waste_little(self, tmp_path: Path, redis_url: str) -> None:
        requests, _ = await counted_together(tmp_path, redis_url, RateLimit("address", 200, 60), times=100)
        # At most a lot is left over at each of them.
        assert 170 <= requests <= 200

    async def test_a_fifth_of_it_is_left_to_calls_on_any_of_them(self, tmp_path: Path, redis_url: str) -> None:
        async with Answering() as venue, replicas(tmp_path, venue, redis_url, PER_MINUTE) as made:
            for polling, allowed in ((True, 16), (False, 20)):
                for _ in range(8):
                    for replica in made:
                        with suppress(VenueRateLimited):
                            await replica.get("user0", polling=polling)
                assert len(venue.requests) == allowed

    async def test_each_keeps_to_its_part_while_redis_is_gone_and_says_so_once(
        self, tmp_path: Path, redis_server: RedisServer
    ) -> None:
        limit = RateLimit("address", 30, 60)
        async with Answering() as venue, replicas(tmp_path, venue, redis_server.url, limit, users=30) as made:
            with capture_logs() as lines:
                assert await every(made, 1) == [None] * 3
                redis_server.kill()
                started = time.monotonic()
                outcomes = await every(made, 30, users=30)
                took = time.monotonic() - started
                await every(made, 1)
            assert {type(outcome) for outcome in outcomes} == {type(None), VenueRateLimited}
            assert 27 <= len(venue.requests) <= 30
            assert took < 3
            assert [line["event"] for line in lines if line["event"].startswith("redis.")] == ["redis.out_of_reach"] * 3
            redis_server.start()
            with capture_logs() as lines:

                async def is_shared_again() -> bool:
                    await every(made, 1)
                    return "redis.answers_again" in [line["event"] for line in lines]

                await eventually(is_shared_again)

    async def test_a_redis_that_hangs_costs_a_moment_once(self, tmp_path: Path, redis_server: RedisServer) -> None:
        limit = RateLimit("address", 1000, 60)
        async with Answering() as venue, replicas(tmp_path, venue, redis_server.url, limit) as made:
            await every(made, 1)
            redis_server.freeze()
            took = []
            for _ in range(6):
                started = time.monotonic()
                assert await made[0].get("user0")
                took.append(time.monotonic() - started)
            redis_server.thaw()
            assert max(took) < 0.8
            assert max(took[3:]) < 0.2

    async def test_a_delay_holds_on_its_replica_while_redis_is_gone(
        self, tmp_path: Path, redis_server: RedisServer
    ) -> None:
        async with Answering() as venue, replicas(tmp_path, venue, redis_server.url) as made:
            redis_server.kill()
            venue.fail(Fault.rate_limited("7"))
            with pytest.raises(VenueRateLimited):
                await made[0].get("user0")
            venue.recover()
            for _ in range(3):
                with pytest.raises(VenueRateLimited):
                    await made[0].get("user0")
            assert len(venue.requests) == 1

    async def test_nothing_in_redis_names_a_user_or_a_key(self, tmp_path: Path, redis_url: str) -> None:
        limits = RateLimit("address", 30, 60), RateLimit("key", 30, 60)
        prefix = f"test-{random.getrandbits(64):x}:"
        async with Answering() as venue, replicas(tmp_path, venue, redis_url, *limits, prefix=prefix) as made:
            venue.fail(Fault.rate_limited("7"))
            with pytest.raises(VenueRateLimited):
                await made[0].get("user0")
            async with redis_client.Redis.from_url(redis_url) as redis:
                names = [name async for name in redis.scan_iter(f"{prefix}*")]
                assert len(names) >= 3
                for name in names:
                    assert b"user0" not in name
                    assert b"key0" not in name


async def test_a_key_that_plugins_limits_name_counts_apart_on_all_replicas(tmp_path: Path, redis_url: str) -> None:
    limit = RateLimit("key", 6, 60)
    async with Answering() as venue, replicas(tmp_path, venue, redis_url, limit, users=2) as made:
        for _ in range(5):
            await every(made, 2, users=2)
        assert len(venue.requests) == 12


def test_every_listing_of_ours_says_how_often_its_venue_may_be_asked() -> None:
    from exchange_service.plugin_host.discovery import open_registry
    from tests.harness import settings_for

    registry = open_registry(settings_for(Path("unused")))
    without = [name for name, found in registry.listings.items() if not found.metadata.limits]
    assert without == []
    views = registry.listings["tradier"].metadata, registry.listings["tradier_options"].metadata
    assert views[0].venue == views[1].venue == "tradier"
    assert views[0].limits == views[1].limits
