"""The picture of growth. matplotlib is a development dependency, and imported here alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_COLOURS = ("tab:blue", "tab:orange")


@dataclass(frozen=True, slots=True)
class Curve:
    """A small table for each engine: the first column is what grows, the others are named by `names`."""

    title: str
    grows: str
    names: tuple[str, ...]
    rows: Mapping[str, Sequence[tuple[float, ...]]]


def draw(curves: Sequence[Curve], path: Path) -> bool:
    """Draw the first two columns of each table into `path`, a PNG: the first as a line for each engine, the second
    dashed. Returns False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, curve in zip(figure.subplots(2, 2).flat, curves, strict=True):
        _draw_one(axes, curve)
    figure.savefig(path, dpi=90)
    return True


def _draw_one(axes: Any, curve: Curve) -> None:
    first, second = curve.names[:2]
    beside = axes.twinx()
    lines: list[Any] = []
    across: list[float] = []
    for colour, (engine, rows) in zip(_COLOURS, curve.rows.items(), strict=False):
        across = [row[0] for row in rows]
        lines += axes.plot(across, [row[1] for row in rows], "o-", color=colour, label=f"{first}, {engine}")
        lines += beside.plot(across, [row[2] for row in rows], "s--", color=colour, label=f"{second}, {engine}")
    if across[-1] > 10 * across[0]:
        axes.set_xscale("log")
    axes.set_title(curve.title, fontsize=9)
    axes.set_xlabel(curve.grows)
    for side, name in ((axes, first), (beside, second)):
        side.set_ylabel(name)
        side.set_ylim(bottom=0)
    axes.legend(handles=lines, fontsize=7, loc="best")
    axes.grid(alpha=0.3)
