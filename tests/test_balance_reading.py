"""ReaderUnderTest balances for callers: what is at hand first, forced reads by quota, and where a balance was."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from exchange_service.balances.service import BalanceQuery, BalanceReader, BalanceResult, Balances
from exchange_service.errors import CallerRateLimited, VenueUnavailable
from exchange_service.identity import ANYBODY, Caller, PresentedCredentials
from exchange_service.model import Account
from exchange_service.observability.metrics import Metrics
from exchange_service.wire.balances import fetched_balance
from exchange_service.wire.replies import Source
from exchange_service.wire.stored import store_balance
from tests.harness import ScriptedPlugin, holding, registry_of

CALLER = Caller(ANYBODY, PresentedCredentials())
ALICE = Account("alice", "fakex")
LISTING = registry_of(ScriptedPlugin()).listings["fakex"]
STORED = store_balance(ALICE, fetched_balance(holding(("BTC", "1"))), 1.0, None)


class FakeBalances:
    """Balances that have `local` at hand, and otherwise answer with `shared`."""

    def __init__(self, local: Source | None = None, shared: Source | Exception = Source.VENUE) -> None:
        self.local = local
        self.shared = shared
        self.asked: list[tuple[float | None, float]] = []
        # Whether the cached balance is fresh, and below the known version.
        self.passes_over = False

    def get_local(self, account: Account, max_age: float | None, known_version: int) -> BalanceResult | None:
        return None if self.local is None else BalanceResult(STORED, self.local, 0.0)

    async def get(
        self,
        account: Account,
        listing: Any,
        *,
        max_age: float | None,
        deadline: float,
        known_version: int,
        on_passed_over: Callable[[], Awaitable[None]],
    ) -> BalanceResult:
        self.asked.append((max_age, deadline))
        if self.passes_over:
            await on_passed_over()
        if isinstance(self.shared, Exception):
            raise self.shared
        return BalanceResult(STORED, self.shared, 0.0)


class ReaderUnderTest:
    """A reader over fake balances, the metrics that it writes, and the forced reads that it counted."""

    def __init__(self, balances: FakeBalances, refusal: Exception | None = None) -> None:
        self.balances = balances
        self.metrics = Metrics()
        self.refusal = refusal
        self.refreshes: list[Caller] = []
        self.reader = BalanceReader(
            cast(Balances, balances),
            self.count_refresh,
            self.metrics,
            call_timeout=10.0,
            return_refresh=self.refreshes.remove,
        )

    async def count_refresh(self, caller: Caller) -> None:
        self.refreshes.append(caller)
        if self.refusal is not None:
            raise self.refusal

    async def get(self, max_age: float | None = None, remaining: float | None = None) -> BalanceResult:
        return await self.reader.get(BalanceQuery(ALICE, LISTING, max_age), CALLER, lambda: remaining)

    def counted(self, name: str, label: str) -> list[str]:
        """The values of this label that have been counted once."""
        lines = self.metrics.text().decode().splitlines()
        start = f"exchange_service_{name}_total{{{label}="
        return [line.split('"')[1] for line in lines if line.startswith(start) and line.endswith(" 1.0")]


def test_a_local_copy_is_returned_in_one_step_without_suspending() -> None:
    reading = ReaderUnderTest(FakeBalances(local=Source.CACHE))
    coroutine = reading.get()
    # Outside of any event loop, so that a suspension or a look at the deadline would fail.
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    assert done.value.value.source is Source.CACHE
    assert reading.balances.asked == []
    assert reading.counted("cache_reads", "kind") == ["process"]
    assert reading.counted("balance_reads", "source") == ["cache"]


@pytest.mark.parametrize(
    ("source", "kind", "name"),
    [
        (Source.CACHE, "shared", "cache"),
        (Source.VENUE, "nowhere", "venue"),
        (Source.LAST_GOOD, "nowhere", "last-good"),
    ],
)
async def test_the_metrics_count_where_a_balance_was_found(source: Source, kind: str, name: str) -> None:
    reading = ReaderUnderTest(FakeBalances(shared=source))
    assert (await reading.get()).source is source
    assert reading.counted("cache_reads", "kind") == [kind]
    assert reading.counted("balance_reads", "source") == [name]


@pytest.mark.parametrize("max_age", [0.0, 0.999])
async def test_a_forced_read_is_counted_and_ignores_the_local_copy(max_age: float) -> None:
    reading = ReaderUnderTest(FakeBalances(local=Source.CACHE))
    assert (await reading.get(max_age)).source is Source.VENUE
    assert reading.refreshes == [CALLER]
    assert [requested for requested, _ in reading.balances.asked] == [max_age]


@pytest.mark.parametrize("max_age", [1.0, 4.999])
async def test_a_read_that_is_nearly_forced_is_counted_unless_there_is_a_local_copy(max_age: float) -> None:
    reading = ReaderUnderTest(FakeBalances(local=Source.CACHE))
    assert (await reading.get(max_age)).source is Source.CACHE
    assert reading.refreshes == []
    reading.balances.local = None
    assert (await reading.get(max_age)).source is Source.VENUE
    assert reading.refreshes == [CALLER]


@pytest.mark.parametrize("max_age", [0.5, 1.0, 4.999])
async def test_a_read_that_another_replica_has_made_is_not_counted_twice(max_age: float) -> None:
    reading = ReaderUnderTest(FakeBalances(shared=Source.CACHE))
    assert (await reading.get(max_age)).source is Source.CACHE
    assert reading.refreshes == []
    reading.balances.shared = Source.LAST_GOOD
    await reading.get(max_age)
    assert reading.refreshes == [CALLER]


@pytest.mark.parametrize("max_age", [None, 5.0, 30.0])
async def test_no_other_read_is_counted(max_age: float | None) -> None:
    reading = ReaderUnderTest(FakeBalances())
    await reading.get(max_age)
    assert reading.refreshes == []


@pytest.mark.parametrize("max_age", [0.5, 2.0, None])
async def test_a_read_that_only_the_known_version_sends_to_the_venue_is_counted_once(max_age: float | None) -> None:
    reading = ReaderUnderTest(FakeBalances())
    reading.balances.passes_over = True
    assert (await reading.get(max_age)).source is Source.VENUE
    assert reading.refreshes == [CALLER]
    reading.refreshes.clear()
    # Another replica has asked.
    reading.balances.shared = Source.CACHE
    await reading.get(max_age)
    assert reading.refreshes == []


async def test_a_forced_read_too_many_does_not_reach_the_venue() -> None:
    reading = ReaderUnderTest(FakeBalances(), CallerRateLimited("Too many.", retry_after=1.0))
    with pytest.raises(CallerRateLimited):
        await reading.get(0.0)
    assert reading.balances.asked == []
    assert reading.counted("balance_reads", "source") == []


@pytest.mark.parametrize(("remaining", "seconds"), [(None, 10.0), (2.5, 2.5)])
async def test_the_deadline_is_the_callers_or_the_configured_one(remaining: float | None, seconds: float) -> None:
    reading = ReaderUnderTest(FakeBalances())
    before = asyncio.get_running_loop().time()
    await reading.get(remaining=remaining)
    after = asyncio.get_running_loop().time()
    ((_, deadline),) = reading.balances.asked
    assert before + seconds <= deadline <= after + seconds


async def test_a_failed_read_counts_no_balance() -> None:
    reading = ReaderUnderTest(FakeBalances(shared=VenueUnavailable("Down.")))
    with pytest.raises(VenueUnavailable):
        await reading.get()
    assert reading.counted("balance_reads", "source") == []
