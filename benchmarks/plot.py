"""The picture of growth. matplotlib is a development dependency, and imported here alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Curve:
    """A small table: the first column is what grows, the others are named by `names`."""

    title: str
    grows: str
    names: tuple[str, ...]
    rows: Sequence[tuple[float, ...]]


def draw(curves: Sequence[Curve], path: Path) -> bool:
    """Draw the first two columns of each table into `path`, a PNG. Returns False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, curve in zip(figure.subplots(2, 2).flat, curves, strict=True):
        first, second = curve.names[:2]
        across = [row[0] for row in curve.rows]
        left = axes.plot(across, [row[1] for row in curve.rows], "o-", color="tab:blue", label=first)
        beside = axes.twinx()
        right = beside.plot(across, [row[2] for row in curve.rows], "s--", color="tab:orange", label=second)
        if across[-1] > 10 * across[0]:
            axes.set_xscale("log")
        axes.set_title(curve.title, fontsize=9)
        axes.set_xlabel(curve.grows)
        axes.set_ylabel(first)
        beside.set_ylabel(second)
        axes.set_ylim(bottom=0)
        beside.set_ylim(bottom=0)
        axes.legend(handles=[*left, *right], fontsize=8, loc="best")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)
    return True
