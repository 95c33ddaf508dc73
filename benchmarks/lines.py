"""A line of the table: what was measured, against what, and what is wanted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of ours beside its ceiling, both in `unit`; `at_most` is the ratio that is wanted."""

    what: str
    ours: float
    ceiling: float
    unit: str
    at_most: float
    # Each pair's figures, ours first.
    pairs: tuple[tuple[float, float], ...]

    @property
    def ratio(self) -> float:
        return self.ours / self.ceiling

    @property
    def goal_text(self) -> str:
        return f"at most {self.at_most:g}"

    @property
    def met(self) -> bool:
        return len(self.pairs) >= 5 and self.ratio <= self.at_most
