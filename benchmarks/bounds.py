"""Lines of figures that are measured once and not in pairs, with an absolute goal or without one."""

from __future__ import annotations

from benchmarks.lines import Line


def bound(name: str, what: str, unit: str, ours: float, ceiling: float = 0.0, *, at_most: float | None = None) -> Line:
    """A figure and its ceiling in `unit` (0: no ceiling); with `at_most`, the goal is that it is not larger."""
    if at_most is None:
        return Line(name, what, ours, ceiling, unit, "", None)
    return Line(name, what, ours, ceiling, unit, f"at most {at_most:g} {unit}".strip(), ours <= at_most)
