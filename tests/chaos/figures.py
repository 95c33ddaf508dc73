"""What a run is summed up by: the figures of docs/reliability.md, and the violations by invariant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.chaos.checker import Violation, recovery
from tests.chaos.history import History


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run is summed up by."""

    calls: int
    events: int
    # Calls that failed, and of those the ones that the table does not allow, that gave no reason, or that could have
    # had the last good balance.
    failed: int
    lost: int
    false: int
    versions_back: int
    untold: int
    leaked: int
    other: int
    # Until all was as before; None: it never was.
    seconds: float | None


def figures(history: History, violations: Sequence[Violation]) -> Figures:
    """The figures of a run."""
    counts: dict[str, int] = defaultdict(int)
    for violation in violations:
        counts[violation.invariant] += 1
    named = {
        "lost": sum(counts.pop(name, 0) for name in ("no_call_lost", "reasons_given", "last_good_kept")),
        "false": counts.pop("own_user", 0) + counts.pop("really_emitted", 0),
        "versions_back": counts.pop("versions_rise", 0),
        "untold": counts.pop("staleness_told", 0) + counts.pop("true_age", 0),
        "leaked": counts.pop("secrets_kept", 0),
    }
    failed = sum(not reply.ok for reply in history.replies)
    seconds = recovery(history)
    return Figures(
        calls=len(history.replies),
        events=len(history.events),
        failed=failed,
        other=sum(counts.values()),
        seconds=None if seconds is None else round(seconds, 2),
        **named,
    )


def summed(found: Iterable[Violation]) -> dict[str, tuple[int, str]]:
    """Each invariant that is broken: how often, and one example."""
    by_name: dict[str, tuple[int, str]] = {}
    for violation in found:
        count, text = by_name.get(violation.invariant, (0, violation.text))
        by_name[violation.invariant] = (count + 1, text)
    return by_name
