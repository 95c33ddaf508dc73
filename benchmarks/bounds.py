"""Lines of figures that are measured once, and not in pairs: with an absolute goal, or only to be looked at."""

from __future__ import annotations

from benchmarks.lines import Line


def bound(name: str, what: str, unit: str, ours: float, ceiling: float = 0.0, *, at_most: float | None = None) -> Line:
    """A figure beside what it is compared with (0: nothing), that may be `at_most` so large, in `unit`."""
    if at_most is None:
        return Line(name, what, ours, ceiling, unit, "", None)
    return Line(name, what, ours, ceiling, unit, f"at most {at_most:g} {unit}".strip(), ours <= at_most)
