"""Whose limits are kept: one count of all requests where the venue's window is known, CCXT's pauses elsewhere."""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import exchange_service_ccxt_generic as plugin
import pytest
from exchange_service_ccxt_generic.allowance import LONGEST_WAIT, Allowance
from exchange_service_ccxt_generic.instances import import_ccxt
from exchange_service_ccxt_generic.limits import has_known_window
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


def most_in_a_window(sent: list[tuple[float, float]], seconds: int) -> float:
    """The most that was sent within so many seconds, of moments and costs."""
    return max(sum(cost for at, cost in sent if end - seconds < at <= end) for end, _ in sent)


class TestTheAllowance:
    @given(requests=st.lists(st.tuples(PAUSES, COSTS), min_size=1, max_size=60))
    def test_no_window_holds_more_than_the_limit_and_nothing_waits_without_need(
        self, requests: list[tuple[float, float]]
    ) -> None:
        allowance, now, sent = Allowance("Acme", LIMIT), 1000.0, []
        for pause, cost in requests:
            now += pause
            earliest = max([now, *(at for at, _ in sent)])
            try:
                at = allowance.reserve(cost, now).at
            except VenueRateLimited as refused:
                at = now + (refused.retry_after or 0)
                assert at - now > LONGEST_WAIT
            else:
                sent.append((at, cost))
            used = sum(other for moment, other in sent[:-1] if at - LIMIT.seconds < moment <= at)
            assert at == earliest or at - LIMIT.seconds in [moment for moment, _ in sent], used
        if sent:
            assert most_in_a_window(sent, LIMIT.seconds) <= LIMIT.count

    async def test_a_request_whose_caller_has_gone_leaves_its_part_to_others(self) -> None:
        allowance = Allowance("Acme", RateLimit("address", 10, 1))
        await allowance.take(10)
        gone = asyncio.ensure_future(allowance.take(10))
        await asyncio.sleep(0)
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        began = time.monotonic()
        await allowance.take(10)
        assert time.monotonic() - began < 1.5

    async def test_who_would_wait_for_long_is_told_the_delay(self) -> None:
        allowance = Allowance("Acme", RateLimit("address", 10, 60))
        await allowance.take(10)
        with pytest.raises(VenueRateLimited, match=r"Our requests to Acme are used up") as refused:
            await allowance.take(1)
        assert refused.value.retry_after == pytest.approx(60, abs=1)


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
        assert {type(one) for one in results if isinstance(one, BaseException)} == {VenueRateLimited}


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
