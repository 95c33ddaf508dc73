"""Causes faults in a rig, one after the other, and says what they cost.

.venv/bin/python -m tests.chaos                                         every fault
.venv/bin/python -m tests.chaos redis-freeze venue-4 --seconds 10 --seed 7
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import time
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from tests.chaos.checker import Expectation, Violation, check
from tests.chaos.faults import Fault, all_faults
from tests.chaos.figures import Figures, figures, summed
from tests.chaos.history import History
from tests.chaos.rig import GRACE, INTERVAL, TTL, WELL_LIMIT, Rig

TABLE = Path(__file__).parent.parent.parent / "scripts" / "faults.toml"
DEFAULT_SECONDS = 5.0
RUNS_KEPT = 3
# Seconds before the fault, and after all is well.
_WARM_UP, _AFTERWARDS = 1.0, 0.5
# Seconds for which a recovery is watched after the time that it may take.
_MORE = 6.0
# Seconds until a new rig serves all its clients without a bad call.
_FIRST_LIMIT = 30.0


@dataclass(frozen=True, slots=True)
class FaultRow:
    """A fault's row of the table, see the head of `scripts/faults.toml`."""

    what: str
    expected: str
    expectation: Expectation
    # Invariants that are known to be broken, each with a sentence.
    open: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FaultRun:
    """What a fault cost."""

    fault: str
    seed: int
    seconds: float
    history: History
    violations: Sequence[Violation]
    figures: Figures
    # Whether the rig can be used again.
    well: bool

    def unknown(self, row: FaultRow) -> list[Violation]:
        """The violations that the table does not name."""
        return [violation for violation in self.violations if violation.invariant not in row.open]


def table() -> dict[str, FaultRow]:
    """The table by the faults' names."""
    return {name: _row(fields) for name, fields in tomllib.loads(TABLE.read_text()).items()}


def _row(fields: dict[str, Any]) -> FaultRow:
    reasons = {name: frozenset(fields.get(name, ())) for name in ("allowed", "allowed_new", "allowed_forced", "bare")}
    numbers = {name: float(fields[name]) for name in ("asks", "recovery") if name in fields}
    expectation = Expectation(**reasons, **numbers, ttl=TTL, grace=GRACE, interval=INTERVAL)
    return FaultRow(fields["what"], fields["expected"], expectation, fields.get("open", {}))


class Runner:
    """Runs faults; a rig that is well afterwards is used for the next one. The folder gets what was seen."""

    def __init__(self, seconds: float, seed: int, folder: Path | None = None) -> None:
        self._seconds = seconds
        self._seed = seed
        self._folder = folder
        self._rows = table()
        self._stack = AsyncExitStack()
        self._rig: Rig | None = None

    async def __aenter__(self) -> Runner:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end_rig()

    async def run(self, fault: Fault) -> FaultRun:
        """Cause the fault in a rig, and check the history."""
        rig = await self._rig_for(fault)
        seconds = max(self._seconds, fault.least)
        row = self._rows.get(fault.name)
        expectation = row.expectation if row else Expectation(ttl=TTL, grace=GRACE, interval=INTERVAL)
        well, missed = await _phases(rig, fault, seconds, expectation.recovery)
        history = await rig.history()
        violations = [*missed, *check(history, expectation)]
        outcome = FaultRun(fault.name, self._seed, seconds, history, violations, figures(history, violations), well)
        if self._folder is not None:
            _keep(outcome, rig, self._folder)
        if fault.own_rig or not well:
            await self._end_rig()
        return outcome

    async def _rig_for(self, fault: Fault) -> Rig:
        if self._rig is not None and not fault.own_rig:
            return self._rig
        await self._end_rig()
        rig = Rig(seed=self._seed, settings=dict(fault.settings))
        began = time.monotonic()
        self._rig = await self._stack.enter_async_context(rig)
        if not await rig.until_well(began, _FIRST_LIMIT):
            raise RuntimeError("the rig does not become well without a fault")
        return rig

    async def _end_rig(self) -> None:
        self._rig = None
        await self._stack.aclose()


def _keep(outcome: FaultRun, rig: Rig, folder: Path) -> None:
    """Write the history, and the logs of the rig's replicas if an invariant was broken."""
    outcome.history.write(folder / f"{outcome.fault}.jsonl")
    if outcome.violations:
        for log in rig.folder.glob("replica-*.log"):
            shutil.copy(log, folder / f"{outcome.fault}.{log.name}")


async def _phases(rig: Rig, fault: Fault, seconds: float, recovery: float) -> tuple[bool, list[Violation]]:
    """Warm up, cause the fault, end it, and wait until all is well. Returns whether it is, and what the fault
    itself found wrong: that nothing has met it, or that its own clients were not served as they should."""
    rig.forget()
    rig.mark("warm", fault.name)
    await rig.new_accounts()
    rig.records += await rig.footprints("before")
    await asyncio.sleep(_WARM_UP)
    rig.mark("begin", fault.name)
    missed = []
    try:
        async with fault.put(rig):
            await asyncio.sleep(seconds)
    except AssertionError as error:
        missed.append(Violation("as_described", time.monotonic(), str(error)))
    healed = rig.mark("heal", fault.name)
    well = await rig.until_well(healed, max(WELL_LIMIT, recovery + _MORE))
    rig.mark("well", fault.name)
    await asyncio.sleep(_AFTERWARDS)
    rig.records += await rig.footprints("after")
    rig.mark("over", fault.name)
    return well, missed


def headline() -> str:
    """The head of the lines."""
    return (
        f"{'fault':26} {'calls':>6} {'events':>7} {'failed':>7} {'lost':>5} {'false':>6} {'back':>5} {'untold':>7}"
        f" {'leaked':>7} {'other':>6} {'well after':>11}"
    )


def line(outcome: FaultRun) -> str:
    """One line for a fault."""
    cost = outcome.figures
    seconds = "never" if cost.seconds is None else f"{cost.seconds:.1f} s"
    return (
        f"{outcome.fault:26} {cost.calls:6} {cost.events:7} {cost.failed:7} {cost.lost:5} {cost.false:6}"
        f" {cost.versions_back:5} {cost.untold:7} {cost.leaked:7} {cost.other:6} {seconds:>11}"
    )


def details(outcome: FaultRun, row: FaultRow | None) -> list[str]:
    """A line for each invariant that is broken, with an example."""
    known = row.open if row else {}
    return [
        f"    {name}: {count}, {'known, ' if name in known else ''}for example {text}"
        for name, (count, text) in summed(outcome.violations).items()
    ]


async def run(names: Sequence[str], seconds: float, seed: int, folder: Path | None = None) -> list[FaultRun]:
    """Run these faults, print what they cost, and write what was seen to the folder if there is one."""
    faults, rows = all_faults(), table()
    outcomes = []
    print(f"seed {seed}, {seconds:g} s each\n{headline()}", flush=True)
    # The store of the rig logs each credential that it seals.
    with capture_logs():
        async with Runner(seconds, seed, folder) as runner:
            for name in names:
                outcome = await runner.run(faults[name])
                outcomes.append(outcome)
                print("\n".join([line(outcome), *details(outcome, rows.get(name))]), flush=True)
    return outcomes


def add_measured(file: Path, outcomes: Sequence[FaultRun]) -> None:
    """Add the figures to a JSON file: for each fault those of the last `RUNS_KEPT` runs, the newest last."""
    measured = json.loads(file.read_text()) if file.exists() else {}
    for outcome in outcomes:
        broken = {name: count for name, (count, _) in summed(outcome.violations).items()}
        run_of = {"seed": outcome.seed, "seconds_of_fault": outcome.seconds, "broken": broken}
        runs = [*measured.get(outcome.fault, []), {**asdict(outcome.figures), **run_of}]
        measured[outcome.fault] = runs[-RUNS_KEPT:]
    # A line for each run.
    faults = [f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, runs)) + "\n]" for name, runs in measured.items()]
    file.write_text("{\n" + ",\n".join(sorted(faults)) + "\n}\n")


def named(parts: Sequence[str], known: Sequence[str]) -> list[str]:
    """The known names that these parts choose, in their order: a part is a name, or else what names begin with. Without
    parts all. Raises ValueError for a part that chooses nothing."""
    chosen = set() if parts else set(known)
    for part in parts:
        found = {part} if part in known else {name for name in known if name.startswith(part)}
        if not found:
            raise ValueError(f"there is no fault {part}; known are {', '.join(known)}")
        chosen |= found
    return [name for name in known if name in chosen]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns 1 if an invariant was broken that the table does not name, 2 for wrong arguments, else 0."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        names = named(chosen.faults, list(all_faults()))
    except ValueError as error:
        parser.error(str(error))
    if chosen.histories:
        chosen.histories.mkdir(parents=True, exist_ok=True)
    outcomes = asyncio.run(run(names, chosen.seconds, chosen.seed, chosen.histories))
    if chosen.json:
        add_measured(chosen.json, outcomes)
    rows = table()
    broken = [one.fault for one in outcomes if one.fault not in rows or one.unknown(rows[one.fault])]
    print(f"broken: {', '.join(broken)}" if broken else "Every invariant held, but for those that the table names.")
    if broken and chosen.histories:
        print(f"What was seen, and the replicas' logs: {chosen.histories.resolve()}")
    return 1 if broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Cause faults in two replicas.")
    parser.add_argument("faults", nargs="*", help="names, or else what names begin with (default: all)")
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="of each fault (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=random.randrange(100_000), help="printed (default: by chance)")
    parser.add_argument("--json", type=Path, help="add the figures to this file")
    parser.add_argument(
        "--histories",
        type=Path,
        help="write what was seen into this folder, with the replicas' logs if an invariant was broken",
    )
    return parser
