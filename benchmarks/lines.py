"""A line of the table: a figure, its ceiling and its goal; or why there is no figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

# Fewer pairs than these say nothing about a ratio.
LEAST_PAIRS = 5


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of ours beside its ceiling, both in `unit`.

    `name` is the benchmark's name, a slash, and the figure's; it stays the same from run to run. `met` is None if there
    is no goal. `engine` is the service's; empty if it does not matter. With a `reason` nothing was measured.
    """

    name: str
    what: str
    ours: float
    ceiling: float
    unit: str
    goal: str
    met: bool | None
    engine: str = ""
    reason: str = ""

    @property
    def ratio(self) -> float:
        """Ours divided by the ceiling; 0 without a ceiling."""
        return self.ours / self.ceiling if self.ceiling else 0.0

    def as_result(self) -> dict[str, Any]:
        """As it stands in `results.json`. Figures that were not measured are null."""
        figures = {"ours": self.ours, "ceiling": self.ceiling, "ratio": self.ratio}
        return {
            "name": self.name,
            "engine": self.engine,
            **{name: None if self.reason else _rounded(figure) for name, figure in figures.items()},
            "unit": self.unit,
            "goal": self.goal,
            "met": self.met,
            "reason": self.reason,
        }


def unmeasured(benchmark: str, engine: str, what: str, reason: str) -> Line:
    """The only line of a benchmark without figures, with the reason."""
    return Line(f"{benchmark}/measured", what, 0.0, 0.0, "", "", None, engine, reason)


def compared(
    name: str,
    what: str,
    unit: str,
    pairs: Sequence[tuple[float, float]],
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Line:
    """The median of ours against the median of a ceiling that was measured alternately, with the wanted ratio."""
    ours, ceiling = (median(side) for side in zip(*pairs, strict=True))
    ratio = ours / ceiling
    if at_least is not None:
        goal, fits = f"at least {at_least:g} of it", ratio >= at_least
    elif at_most is not None:
        goal, fits = f"at most {at_most:g} of it", ratio <= at_most
    else:
        return Line(name, what, ours, ceiling, unit, "", None)
    return Line(name, what, ours, ceiling, unit, goal, fits and len(pairs) >= LEAST_PAIRS)


def bounded(name: str, what: str, unit: str, value: float, at_most: float) -> Line:
    """A figure with an absolute goal, which is shown as the ceiling."""
    return Line(name, what, value, at_most, unit, f"at most {at_most:g} {unit}", value <= at_most)


def repeated(name: str, what: str, unit: str, values: Sequence[float], at_most: float) -> Line:
    """The median of a figure with an absolute goal, which counts as met from as many measurements as pairs."""
    line = bounded(name, what, unit, median(values), at_most)
    return Line(name, what, line.ours, at_most, unit, line.goal, line.met and len(values) >= LEAST_PAIRS)


def _rounded(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")
