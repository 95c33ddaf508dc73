"""Some faults of the table in every run, others each day: `make chaos` causes all of them."""

from __future__ import annotations

import asyncio
import datetime
import os
import random
from contextlib import nullcontext, suppress

import pytest

from tests.chaos.checker import INVARIANTS
from tests.chaos.faults import all_faults
from tests.chaos.faults.ways import repeated
from tests.chaos.run import details, line, named, run, table

# Which faults, and what chance decides in them: the same for a day, unless the environment names a printed seed.
SEED = int(os.environ.get("EXCHANGE_SERVICE_CHAOS_SEED", datetime.datetime.now(datetime.UTC).toordinal()))
_HOW_MANY, _SECONDS = 5, 4.0


def chosen() -> list[str]:
    """Five faults that share a rig, in the order of the table."""
    names = [name for name, fault in all_faults().items() if not fault.own_rig and fault.group != "control"]
    picked = set(random.Random(SEED).sample(names, _HOW_MANY))
    return [name for name in names if name in picked]


@pytest.mark.timeout(300)
def test_five_faults_cost_what_the_table_says_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    names, rows = chosen(), table()
    outcomes = asyncio.run(run(names, _SECONDS, SEED))
    with capsys.disabled():
        print(f"\nchaos, seed {SEED}: {', '.join(names)}")
    broken = [outcome for outcome in outcomes if outcome.unknown(rows[outcome.fault])]
    texts = ["\n".join([line(outcome), *details(outcome, rows[outcome.fault])]) for outcome in broken]
    assert not texts, "\n".join(texts)
    assert all(outcome.figures.calls > 100 for outcome in outcomes)


async def test_a_fault_that_goes_on_ends_though_the_cancellation_of_its_step_is_passed_over() -> None:
    stepping = asyncio.Event()

    async def step() -> None:
        with suppress(asyncio.CancelledError) if not stepping.is_set() else nullcontext():
            stepping.set()
            await asyncio.Event().wait()

    async with asyncio.timeout(5), repeated(step, 0.01):
        await stepping.wait()


def test_every_fault_has_its_row_and_every_row_its_fault() -> None:
    assert table().keys() == all_faults().keys()


def test_a_name_chooses_its_fault_alone_and_other_texts_all_that_begin_so() -> None:
    known = ["redis-slow", "venue-429", "venue-429-bare", "venue-500"]
    assert named(["venue-429"], known) == ["venue-429"]
    assert named(["venue-4", "redis-slow"], known) == ["redis-slow", "venue-429", "venue-429-bare"]
    assert named([], known) == known
    with pytest.raises(ValueError, match="no fault venue-9"):
        named(["venue-429", "venue-9"], known)


def test_a_row_names_invariants_that_there_are() -> None:
    for name, row in table().items():
        # A fault may also find by itself that something is not as it describes.
        assert row.open.keys() <= {*INVARIANTS, "as_described"}, name
        assert row.what.endswith("."), name
        assert row.expected.endswith("."), name
