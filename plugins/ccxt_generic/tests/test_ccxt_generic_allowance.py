"""Whose limits are kept: one count of all requests where the venue's window is known, CCXT's pauses elsewhere."""

from __future__ import annotations

import asyncio
import inspect
import re
import selectors
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic.allowance import LONGEST_WAIT, Allowance
from exchange_service_ccxt_generic.instances import import_ccxt
from exchange_service_ccxt_generic.limits import has_known_window, limits_of
from exchange_service_ccxt_generic.simulator import BinanceSimulator, SimulatedWallet
from hypothesis import given
from hypothesis import strategies as st

from exchange_service.plugin_api import ExchangeMetadata, RateLimit, State, VenueCall, VenueRateLimited
from exchange_service.testing import venue_call
from plugins.ccxt_generic.tests.every_exchange.credentials import credential
from plugins.ccxt_generic.tests.every_exchange.venue import ScriptedVenue, preset_markets
from plugins.ccxt_generic.tests.every_exchange.well_formed import ACCOUNTS

Listings = Mapping[str, ExchangeMetadata]

LIMIT = RateLimit("address", 10, 2)
# Fractions that a float holds exactly.
COSTS = st.sampled_from([0.125, 0.5, 1.0, 2.5, 4.0, 10.0])
PAUSES = st.sampled_from([0.0, 0.0, 0.0, 0.25, 1.0, 2.0, 7.0])
# What Binance itself counts, of 6000 in a minute, for each request to the host of spot.
WEIGHTS = {"/api/v3/account": 20, "/api/v3/exchangeInfo": 20}
ALLOWED = 6000


class Swift(asyncio.SelectorEventLoop):
    """An event loop whose time passes as soon as nothing else is to be done."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(selector := selectors.DefaultSelector())
        look = selector.select

        def select(timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            self.now += timeout or 0.0
            return look(0)

        selector.select = select  # type: ignore[method-assign]

    def time(self) -> float:
        return self.now

    def stall(self, seconds: float) -> None:
        """Let so much time pass in which nothing runs."""
        self.now += seconds


@dataclass
class Request:
    """One request: when and what for, for how long its caller waits, and when it was sent or refused."""

    at: float
    cost: float
    patience: float
    sent: float | None = None
    refused: VenueRateLimited | None = None


async def send(allowance: Allowance, request: Request) -> None:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(request.patience or None):
            await allowance.take(request.cost)
    except TimeoutError:
        return
    except VenueRateLimited as refused:
        request.refused = refused
    else:
        request.sent = loop.time()


async def send_all(allowance: Allowance, requests: list[Request], stalls: list[tuple[float, float]]) -> None:
    """Send each at its time, in a loop that stalls at these moments for so many seconds."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Swift)
    for at, seconds in stalls:
        loop.call_at(1000 + at, loop.stall, seconds)
    async with asyncio.TaskGroup() as group:
        for request in requests:
            await asyncio.sleep(max(0.0, request.at - loop.time()))
            request.at = loop.time()
            group.create_task(send(allowance, request))
            await asyncio.sleep(0)


def most_in_a_window(sent: list[tuple[float, float]], seconds: int) -> float:
    """The most that was sent within so many seconds, of moments and costs."""
    return max((sum(cost for at, cost in sent if end - seconds < at <= end) for end, _ in sent), default=0.0)


class TestTheAllowance:
    @given(
        planned=st.lists(st.tuples(PAUSES, COSTS, st.sampled_from([0.0, 0.0, 0.5, 1.5])), min_size=1, max_size=40),
        stalls=st.lists(st.tuples(st.sampled_from([0.5, 1.75, 2.0, 3.5]), st.sampled_from([0.25, 2.0, 9.0]))),
    )
    def test_no_window_holds_more_than_the_limit_and_nothing_waits_without_need(
        self, planned: list[tuple[float, float, float]], stalls: list[tuple[float, float]]
    ) -> None:
        moments = accumulate((pause for pause, _, _ in planned), initial=1000.0)
        requests = [
            Request(at, cost, patience) for at, (_, cost, patience) in zip(list(moments)[1:], planned, strict=True)
        ]
        with asyncio.Runner(loop_factory=Swift) as runner:
            runner.run(send_all(Allowance("Acme", LIMIT), requests, stalls))
        sent = [(one.sent, one.cost) for one in requests if one.sent is not None]
        assert most_in_a_window(sent, LIMIT.seconds) <= LIMIT.count
        assert sent == sorted(sent, key=lambda one: one[0])
        ends = {one.at + one.patience for one in requests} | {one.at for one in requests}
        for one in [] if stalls else requests:
            at = one.sent if one.refused is None else one.at + (one.refused.retry_after or 0)
            assert one.refused is None or at - one.at > LONGEST_WAIT
            if one.refused is None and at is not None:
                assert at in ends or at - LIMIT.seconds in [moment for moment, _ in sent]

    def test_a_late_event_loop_does_not_send_at_once_what_it_has_delayed(self) -> None:
        requests = [Request(1000.0, 1.0, 0.0) for _ in range(10)]
        with asyncio.Runner(loop_factory=Swift) as runner:
            runner.run(send_all(Allowance("Acme", RateLimit("address", 2, 1)), requests, [(0.5, 20.0)]))
        assert Counter(one.sent for one in requests) == {1000.0: 2, 1020.5: 2, 1021.5: 2, 1022.5: 2, 1023.5: 2}

    def test_requests_whose_callers_have_gone_leave_their_part_and_their_place_to_others(self) -> None:
        # The first one fills the window. Those that have gone must count neither as sent nor as waiting.
        requests = [Request(1000.0, 10.0, 0.0), *(Request(1000.0, 10.0, 0.5) for _ in range(2))]
        requests += [Request(1001.0, cost, 0.0) for cost in (6.0, 4.0, 1.0)]
        with asyncio.Runner(loop_factory=Swift) as runner:
            runner.run(send_all(Allowance("Acme", LIMIT), requests, []))
        assert [one.sent for one in requests] == [1000.0, None, None, 1002.0, 1002.0, 1004.0]

    async def test_who_would_wait_for_long_is_told_the_delay(self) -> None:
        allowance = Allowance("Acme", RateLimit("address", 10, 60))
        await allowance.take(10)
        with pytest.raises(VenueRateLimited, match=r"Our requests to Acme are used up") as refused:
            await allowance.take(1)
        assert refused.value.retry_after == pytest.approx(60, abs=1)
        assert not refused.value.venue_was_asked


def named_window(kind: type) -> int:
    """The seconds in which a venue counts, by CCXT's class or the one that it extends; 0 if neither names them."""
    for one in kind.__mro__:
        if ".base." not in one.__module__ and one is not object:
            source = Path(inspect.getfile(one)).read_text(encoding="utf-8")
            if (found := re.search(r"'rollingWindowSize': ([0-9.]+)", source)) is not None:
                return int(float(found[1]) / 1000)
    return 0


async def test_the_windows_are_those_that_ccxts_classes_name(listings: Listings) -> None:
    ccxt = await import_ccxt()
    named = {name: seconds for name in listings if (seconds := named_window(getattr(ccxt, name)))}
    assert named == {name: one.limits[0].seconds for name, one in listings.items() if has_known_window(name)}


class TestAtBinance:
    @pytest.fixture
    async def calls(self, listings: Listings, binance: BinanceSimulator) -> AsyncIterator[list[VenueCall]]:
        """Calls of three accounts, whose markets are loaded."""
        shared, opened = State(), []
        for name in ("alice", "bob", "carol"):
            binance.add_wallet(SimulatedWallet(f"{name}key", f"{name}secret", {"ETH": ("1", "0")}))
            given = {"api_key": f"{name}key", "api_secret": f"{name}secret", "timeout": 20.0, "plugin_state": shared}
            opened.append(venue_call(listings["binance"], override=binance.url, **given))
        calls = [await one.__aenter__() for one in opened]
        for call in calls:
            await plugin.fetch_balance(call)
        yield calls
        for one in opened:
            await one.__aexit__(None, None, None)
        await shared.close()

    async def test_a_read_right_behind_another_does_not_wait(self, calls: list[VenueCall]) -> None:
        began = time.monotonic()
        for _ in range(6):
            await plugin.fetch_balance(calls[0])
        # CCXT would have paused for 200 milliseconds between each two.
        assert time.monotonic() - began < 5 * 0.2

    async def test_a_burst_of_all_accounts_stays_within_the_limit_of_the_address(
        self, calls: list[VenueCall], binance: BinanceSimulator
    ) -> None:
        reads = [plugin.fetch_balance(call) for _ in range(110) for call in calls]
        results = await asyncio.gather(*reads, return_exceptions=True)
        paths = Counter(request.path for request in binance.requests)
        assert 0.95 * ALLOWED < sum(WEIGHTS.get(path, 0) * times for path, times in paths.items()) <= ALLOWED
        refused = [one for one in results if isinstance(one, BaseException)]
        assert {type(one) for one in refused} == {VenueRateLimited}
        # None of it is Binance's word.
        assert not any(one.venue_was_asked for one in refused if isinstance(one, VenueRateLimited))


@asynccontextmanager
async def reading(listing: ExchangeMetadata, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[VenueCall]:
    """A call for an account at a venue that answers well, with CCXT's pauses."""
    from exchange_service_ccxt_generic.client import CcxtClient
    from exchange_service_ccxt_generic.instances import Instances

    account = ACCOUNTS[listing.id]

    async def preset(self: Instances, ccxt: Any) -> Any:
        return preset_markets(CcxtClient(self._call), ccxt, account.assets)

    monkeypatch.setattr(Instances, "load_markets", preset)
    async with ScriptedVenue() as venue:
        venue.tell(account, account.answer)
        async with venue_call(listing, override=venue.url, timeout=20.0, **credential(listing)) as call:
            yield call


async def test_where_the_window_is_not_known_ccxts_pause_is_kept(
    listings: Listings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reading(listings["okx"], monkeypatch) as call:
        began = time.monotonic()
        for _ in range(3):
            await plugin.fetch_balance(call)
        assert time.monotonic() - began >= 2 * 0.22


async def test_an_exchange_to_which_ccxt_keeps_no_pause_is_read_without_a_limit(
    listings: Listings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reading(replace(listings["kraken"], limits=limits_of("kraken", 0, ["spot"])), monkeypatch) as call:
        assert (await plugin.fetch_balance(call)).venue_accounts


async def test_a_limit_by_key_counts_each_account_apart(listings: Listings, monkeypatch: pytest.MonkeyPatch) -> None:
    async with reading(listings["kraken"], monkeypatch) as call:
        # Three units of ten, which last for ten seconds.
        for _ in range(3):
            await plugin.fetch_balance(call)
        with pytest.raises(VenueRateLimited):
            await plugin.fetch_balance(call)
        async with venue_call(
            call.exchange,
            override=call.override,
            timeout=20.0,
            plugin_state=call.plugin_state,
            **credential(call.exchange),
        ) as other:
            await plugin.fetch_balance(other)
