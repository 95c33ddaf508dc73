"""docs/metrics.md, made of the families that the service shows."""

from __future__ import annotations

from collections.abc import Iterator

from exchange_service.observability.families import SECTIONS, Family

_HEAD = """# Metrics

This page lists every metric of the service: what to plot and what to alert on. `make docs` generates it from
`exchange_service/observability/families.py`, and a test compares it with what a running service shows.
[operations.md](operations.md#metrics) says how to let Prometheus read them, and which three to watch first.

A counter and a histogram only rise, until the process ends. A histogram has the series `_bucket`, `_sum` and `_count`:
use `rate` on each of them. The last column says which series of a metric with labels exist before anything has
happened. They are at 0, so that the first event is already a change from 0 to 1, which `rate` and `increase` see. Other
series appear when there is something to show. No label holds a user, an account, or a text that a caller or a venue
chose: an exchange that is not served is counted as `other`, and so is a word beyond the first few."""

_FOOT = """## The process

`process_...` and `python_gc_...` are the metrics library's own: memory, processor, open files and collections of
garbage of the serving process. Those of plugins' processes are above."""


def metrics_page() -> str:
    """docs/metrics.md."""
    sections = ("\n".join(_section(heading, families)) for heading, families in SECTIONS.items())
    return "\n\n".join((_HEAD, *sections, _FOOT)) + "\n"


def _section(heading: str, families: tuple[Family, ...]) -> Iterator[str]:
    yield f"## {heading}\n"
    yield "| metric | type | labels | unit | what it says | there from the start |"
    yield "|---|---|---|---|---|---|"
    for family in families:
        absent = "no" if family.labels else "yes"
        labels = ", ".join(f"`{label}`" for label in family.labels)
        cells = (f"`{family.shown_name}`", family.kind, labels, family.unit, family.text, family.from_start or absent)
        yield f"| {' | '.join(cells)} |"
