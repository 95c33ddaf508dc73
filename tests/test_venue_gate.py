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
from exchange_service.model import Account, Credential
from exchange_service.plugin_api import Environment, RateLimit
from exchange_service.testing import Fault
from exchange_service.v1 import exchange_pb2
from exchange_service.venue_gate import GateOptions
from exchange_service.venue_gate.rate_limits import Window
from exchange_service.venue_gate.status import VenueStatus
from exchange_service.venues.fetching import Target
from exchange_service.venues.priority import Priority
from exchange_service.wire.replies import Source
from tests.gates import Answering, Recorder, Venue, gated, outcome, over_http
from tests.harness import (
    USER,
    Bench,
    Clock,
    Gate,
    ScriptedPlugin,
    Shifted,
    balance_request,
    bench,
    failure,
    listing,
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


@pytest.fixture
async def shifted(monkeypatch: pytest.MonkeyPatch) -> Shifted:
    return Shifted(monkeypatch)


OF_THE_VENUE = [VenueUnavailable, VenueTimeout, VenueMaintenance, VenueMalformed]


class TestBreaking:
    @pytest.mark.parametrize("kind", OF_THE_VENUE)
    async def test_after_five_failures_in_a_row_the_venue_is_not_asked_and_callers_are_told_when(
        self, kind: type[ServiceError]
    ) -> None:
        venue, metrics = Venue(), Recorder()
        gate = gated(attempts=1, metrics=metrics)
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
        gate = gated(attempts=1)
        venue.failing(kind("It fails.", retry_after=0))
        for _ in range(8):
            assert type(await outcome(venue.through(gate))) is kind
        assert venue.asked == 8

    async def test_a_timeout_of_what_came_late_to_the_venue_says_nothing_of_it(self) -> None:
        venue = Venue()
        gate = gated(attempts=1, of_venue=1)
        held = asyncio.Event()

        async def hold() -> str:
            await held.wait()
            raise VenueTimeout("It did not answer in time.")

        venue.answer = hold
        fetches = [asyncio.ensure_future(outcome(venue.through(gate, timeout=0.6))) for _ in range(2)]
        await asyncio.sleep(0.4)
        held.set()
        await asyncio.gather(*fetches)
        breaker = gate.snapshot()["paper production"]
        # The first had all its time, the second a third of it.
        assert (venue.asked, breaker.failures) == (2, 1)

    async def test_one_probe_after_the_pause_decides_for_all(self, shifted: Shifted) -> None:
        venue = Venue()
        gate = gated(attempts=1)
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
        gate = gated(attempts=1)
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
        gate = gated(attempts=1, accounts_apart=True)
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
        async with bench(tmp_path, plugin, gate=GateOptions(), overrides={"paper": venue.url}) as paper:
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
        gate = gated(attempts=1, status=status)
        venue.failing(VenueUnavailable("It is down."))
        account = Account(USER, "paper", "sandbox")
        reference = CredentialReference(account, account, "1")
        for _ in range(5):
            deadline = asyncio.get_running_loop().time() + 8
            await outcome(gate.fetch(Target(account, venue.listing, reference), deadline, Priority()))
        venue.answer = venue.good
        assert await outcome(venue.through(gate)) is None
        assert status.troubles["paper"].serves
        assert status.troubles["paper"].reason.endswith("(its sandbox).")


class TestStatus:
    async def test_a_listing_is_degraded_after_a_failure_and_unavailable_while_nobody_asks(
        self, shifted: Shifted
    ) -> None:
        venue, status, clock = Venue(), VenueStatus(), Clock()
        gate = gated(attempts=1, status=status, now=clock)
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
        gate = gated(metrics=metrics)

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
        assert isinstance(await outcome(venue.through(gated())), VenueUnavailable)
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
        assert await outcome(venue.through(gated())) is error
        assert venue.asked == 1

    async def test_what_took_long_or_leaves_no_time_is_not_repeated(self) -> None:
        venue = Venue()

        async def slowly() -> str:
            await asyncio.sleep(1.1)
            raise VenueTimeout("It did not answer in time.")

        venue.answer = slowly
        await outcome(venue.through(gated()))
        assert venue.asked == 1

        async def most_of_the_time() -> str:
            await asyncio.sleep(0.08)
            raise VenueUnavailable("It slipped.")

        venue.answer = most_of_the_time
        await outcome(venue.through(gated(), timeout=0.1))
        assert venue.asked == 2

    async def test_a_venue_in_trouble_gets_at_most_a_fifth_more_than_it_would(self) -> None:
        venue, metrics = Venue(), Recorder()
        gate = gated(metrics=metrics)
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


class TestBulkhead:
    async def test_no_more_are_in_flight_than_may_be_and_a_slow_venue_keeps_nobody_out(self) -> None:
        slow = Venue(plugin=ScriptedPlugin(listing("paper"), listing("quick")))
        quick = Venue(name="quick", plugin=ScriptedPlugin(listing("paper"), listing("quick")))
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

    async def test_a_place_that_a_plugins_one_venue_gives_back_goes_to_another(self) -> None:
        plugin = ScriptedPlugin(listing("paper"), listing("quick"))
        slow, quick = Venue(plugin=plugin), Venue(name="quick", plugin=plugin)
        gate = gated(of_venue=2, of_plugin=2)
        held = asyncio.Event()

        async def hold() -> str:
            await held.wait()
            return "a balance"

        slow.answer = hold
        holders = [asyncio.ensure_future(slow.through(gate)) for _ in range(2)]
        await until(lambda: slow.now == 2)
        waiting = asyncio.ensure_future(quick.through(gate))

        def waits() -> bool:
            quick_venue = gate.snapshot().get("quick production")
            return quick_venue is not None and quick_venue.waiting == 1

        await until(waits)
        held.set()
        assert await asyncio.wait_for(waiting, 2) == "a balance"
        await asyncio.gather(*holders)
        assert gate.in_flight == 0

    async def test_who_finds_no_place_in_time_is_told_to_come_again(self) -> None:
        venue, metrics = Venue(), Recorder()
        gate = gated(of_venue=2, metrics=metrics)
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
        gate = gated(of_venue=1)
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
        await until(lambda: gate.snapshot()["paper production"].waiting == 4)
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
        gate = gated(of_venue=4, of_plugin=4, attempts=1)

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


class TestRateLimits:
    async def test_a_call_beyond_the_budget_is_told_when_there_will_be_more(self, shifted: Shifted) -> None:
        venue, metrics = Venue(PER_MINUTE), Recorder()
        gate = gated(metrics=metrics)
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
        gate = gated()
        for number in range(30):
            await outcome(venue.through(gate, key=str(number), polling=True, timeout=0.05))
        assert venue.asked == 16
        for number in range(30):
            await outcome(venue.through(gate, key=str(number)))
        assert venue.asked == 20

    async def test_polling_waits_for_more_without_taking_a_place(self) -> None:
        venue = Venue(RateLimit("address", 5, 1))
        gate = gated(of_venue=1)
        started = time.monotonic()
        polls = [asyncio.ensure_future(outcome(venue.through(gate, polling=True))) for _ in range(5)]
        await until(lambda: venue.asked == 4)
        assert gate.in_flight == 0
        assert await outcome(venue.through(gate)) is None
        assert await asyncio.gather(*polls) == [None] * 5
        assert time.monotonic() - started > 0.5

    async def test_a_poll_that_somebody_joins_while_it_waits_may_use_what_is_left_for_calls(self) -> None:
        venue = Venue(RateLimit("address", 5, 3))
        gate = gated()
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
        gate = gated()
        for key in ("1", "2"):
            for _ in range(5):
                await outcome(venue.through(gate, key=key))
        assert venue.asked == 6

    async def test_a_balance_counts_as_what_it_costs(self) -> None:
        venue = Venue(RateLimit("address", 100, 60, cost=30), RateLimit("key", 50, 60))
        gate = gated()
        for _ in range(5):
            await outcome(venue.through(gate))
        assert venue.asked == 3

    async def test_what_is_not_asked_after_all_costs_nothing(self) -> None:
        venue = Venue(RateLimit("address", 10, 60), RateLimit("key", 1, 60))
        gate = gated()
        for _ in range(8):
            await outcome(venue.through(gate))
        for key in range(20):
            await outcome(venue.through(gate, key=f"another {key}"))
        assert venue.asked == 10

    def test_a_limit_that_can_never_be_kept_is_refused(self) -> None:
        for wrong in (("address", 1, 60, 2), ("user", 1, 60, 1), ("key", 0, 60, 1), ("key", 10, 0.5, 1)):
            with pytest.raises(ValueError, match=r"RateLimit\."):
                RateLimit(*wrong)  # type: ignore[arg-type]


class TestCooldowns:
    @pytest.mark.parametrize(
        ("limits", "others_wait"),
        [((), True), ((RateLimit("address", 99, 60),), True), ((RateLimit("key", 99, 60),), False)],
    )
    async def test_a_venue_that_limits_us_is_left_alone_by_all_whom_it_counts_together(
        self, limits: tuple[RateLimit, ...], others_wait: bool
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
        assert (await outcome(venue.through(gate, key="another")) is not None) == others_wait
        assert venue.asked == (1 if others_wait else 2)

    @pytest.mark.parametrize("kind", [VenueMaintenance, VenueUnavailable])
    async def test_one_that_says_when_it_will_be_back_is_not_asked_before(
        self, kind: type[ServiceError], shifted: Shifted
    ) -> None:
        venue = Venue(RateLimit("key", 99, 60))
        gate = gated()
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
        gate = gated()
        venue.failing(VenueMaintenance("Closed."))
        await outcome(venue.through(gate))
        venue.answer = venue.good
        assert await outcome(venue.through(gate)) is None

    async def test_a_limit_without_a_delay_costs_more_each_time_up_to_five_minutes(self, shifted: Shifted) -> None:
        venue = Venue()
        gate = gated()
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
        gate = gated()
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
        async with bench(tmp_path, plugin, gate=GateOptions(of_venue=1)) as made:
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
        for count, user in enumerate(("bob", "carol"), 1):
            fetches.append(asyncio.ensure_future(polled(paper, user)))
            await until(lambda count=count: paper.gate.snapshot()["paper production"].waiting == count)
        fetches.append(asyncio.ensure_future(paper.get(user="carol")))
        await until(lambda: paper.balances.fetcher.snapshot() == (3, 4))
        gate.opened.set()
        await asyncio.gather(*fetches)
        assert [call.account.user_id for call in plugin.calls] == [USER, "carol", "bob"]


async def polled(paper: Bench, user: str) -> BalanceResult:
    account, found = paper.registry.account(user, "paper", "")
    deadline = asyncio.get_running_loop().time() + 10
    return await paper.balances.get(account, found, max_age=None, deadline=deadline, polling=True)
