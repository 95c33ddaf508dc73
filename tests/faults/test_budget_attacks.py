"""Attacks on the budget of requests that a venue allows our address: each first succeeds with the mitigation switched
off, and then fails."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import grpc
import pytest

from exchange_service import app
from exchange_service.balances.service import forced_below
from exchange_service.plugin_api import RateLimit
from exchange_service.venue_gate import rate_limits
from exchange_service.venue_gate.rate_limits import RateLimiter
from tests.harness import OffsetClock, ScriptedPlugin, balance_request, listing, registry_of, serving
from tests.identities import SECRET, web_token

EXCHANGES = [f"fakex{number}" for number in range(8)]


@pytest.mark.threat("T57", attack=True)
@pytest.mark.parametrize("max_age", [1.0, 2.5, 4.9])
@pytest.mark.parametrize("mitigated", [False, True])
async def test_a_max_age_of_a_second_asks_the_venue_at_each_call_and_counts_against_no_quota_unless_it_is_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_age: float, mitigated: bool
) -> None:
    if not mitigated:
        monkeypatch.setattr(app, "forced_below", lambda _: 1.0)
    plugin = ScriptedPlugin(*map(listing, EXCHANGES))
    metadata = (("authorization", f"Bearer {web_token('mallory')}"),)
    refused = 0
    async with serving(tmp_path, registry=registry_of(plugin), jwt_secret=SECRET, user_refreshes=3) as running:
        for exchange in EXCHANGES:
            await running.store(exchange, user="mallory")
            request = balance_request(exchange, user_id="mallory")
            request.max_age.FromMilliseconds(int(max_age * 1000))
            try:
                await running.stub.GetBalance(request, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                refused += "CALLER_RATE_LIMITED" in (error.details() or "")
        # What the process has is still given, and so is everything to a caller who takes the default.
        first = balance_request(EXCHANGES[0], user_id="mallory")
        await running.stub.GetBalance(first, metadata=metadata)
        last = balance_request(EXCHANGES[-1], user_id="mallory")
        await running.stub.GetBalance(last, metadata=metadata)
    assert refused == (5 if mitigated else 0)


@pytest.mark.threat("T57")
@pytest.mark.parametrize(
    ("default", "below"), [(30.0, 5.0), (10.0, 5.0), (8.0, 4.0), (3.0, 1.5), (2.0, 1.0), (1.0, 1.0), (0.0, 1.0)]
)
def test_forced_is_below_half_of_the_default_and_five_seconds_and_never_less_than_below_one(
    default: float, below: float
) -> None:
    assert forced_below(default) == below


async def minutes(limiter: RateLimiter, clock: OffsetClock, *greedy: str) -> Counter[str]:
    """How many balances each user got in the last of ten minutes: greedy ones ask five times a second, six honest ones
    ten times a minute."""
    got: Counter[str] = Counter()
    now = 0
    for second in range(600):
        callers = [name for name in greedy for _ in range(5)]
        callers += [f"honest {number}" for number in range(6) if (second + number) % 6 == 0]
        for name in callers:
            now = second
            moment = 1_000_000.0 + now
            if limiter.take_part(name, False, moment, 1):
                continue
            clock.seconds = moment
            if await limiter.acquire(False, name, 1):
                limiter.return_part(name, moment, 1)
            elif second >= 540:
                got[name] += 1
    return got


@pytest.mark.threat("T57", attack=True)
@pytest.mark.parametrize("mitigated", [False, True])
async def test_users_who_each_take_half_of_an_addresss_budget_leave_the_others_nothing_unless_it_is_a_quarter(
    monkeypatch: pytest.MonkeyPatch, mitigated: bool
) -> None:
    if not mitigated:
        monkeypatch.setattr(rate_limits, "OF_ONE_BESIDE_OTHERS", rate_limits.OF_ONE)
    clock = OffsetClock(monkeypatch)
    monkeypatch.setattr("asyncio.get_running_loop", lambda: _Loop(clock))
    got = await minutes(RateLimiter("venue", RateLimit("address", 60, 60)), clock, "mallory", "eve")
    honest = sum(count for name, count in got.items() if name.startswith("honest"))
    if mitigated:
        assert max(got["mallory"], got["eve"]) <= 15
        assert honest >= 28
    else:
        assert got["mallory"] + got["eve"] > 50
        assert honest < 10


class _Loop:
    """The event loop's clock as the test moves it."""

    def __init__(self, clock: OffsetClock) -> None:
        self._clock = clock

    def time(self) -> float:
        return self._clock.seconds


@pytest.mark.threat("T57")
async def test_one_user_alone_gets_half_and_one_who_has_used_a_quarter_takes_nothing_from_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = OffsetClock(monkeypatch)
    monkeypatch.setattr("asyncio.get_running_loop", lambda: _Loop(clock))
    limiter = RateLimiter("venue", RateLimit("address", 60, 60))
    got = Counter[str]()
    for name in ("alice", "bob") * 40:
        clock.seconds = 1000.0
        if not limiter.take_part(name, False, 1000.0, 1) and not await limiter.acquire(False, name, 1):
            got[name] += 1
    # Each has half, and neither counts as short of permits.
    assert got == {"alice": 30, "bob": 30}
    clock.seconds = 1180.0
    assert sum(not limiter.take_part("alice", False, 1180.0, 1) for _ in range(40)) == 30
