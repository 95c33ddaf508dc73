"""docs/log-events.md, made of scripts/log_events.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("log_events.toml")

_HEAD = """# Log events

This page lists every line that the service logs by its event: what has happened, and what you do about it. `make docs`
generates it from `scripts/log_events.toml`, and a test compares that with every log call in the code.
[operations.md](operations.md#looking-for-trouble) says where the lines go and what they never hold.

A line is one JSON object (`log_format=json`), or text for people on a terminal. Each has `event`, `level` and
`timestamp` (UTC). Lines of a call have its `request_id`, those of a traced call also `trace_id`. Lines that a plugin's
process writes have its `plugin`. An event has its fields where they apply. Lines of other libraries have no event: they
are text, `WARNING name: message`.

`error` is a bug, or something that needs you now; `warning` is something to look at; `info` is a change of state or an
audit line; `debug` is written with `log_level=debug` alone."""


@dataclass(frozen=True, slots=True)
class DescribedEvent:
    """A row of the table. `fields` has the meaning of each field by its name."""

    name: str
    levels: tuple[str, ...]
    fields: Mapping[str, str]
    means: str
    do: str


def described_events() -> dict[str, list[DescribedEvent]]:
    """The events by the headings of the page. Raises KeyError for a field without a meaning."""
    table = tomllib.loads(TABLE.read_text())
    shared = table.pop("fields")
    return {heading: [_read(name, row, shared) for name, row in rows.items()] for heading, rows in table.items()}


def _read(name: str, row: Mapping[str, Any], shared: Mapping[str, str]) -> DescribedEvent:
    own: Mapping[str, str] = row.get("own", {})
    if unused := own.keys() - set(row["fields"]):
        raise KeyError(f"{name} says what {', '.join(sorted(unused))} is, and has no such field")
    levels = (row["level"],) if isinstance(row["level"], str) else tuple(row["level"])
    fields = {field: own.get(field) or shared[field] for field in row["fields"]}
    return DescribedEvent(name, levels, fields, row["means"], row["do"])


def log_events_page() -> str:
    """docs/log-events.md."""
    parts = [_HEAD]
    for heading, events in described_events().items():
        parts.append(f"## {heading}")
        parts += ["\n".join(_lines(event)) for event in events]
    return "\n\n".join(parts) + "\n"


def _lines(event: DescribedEvent) -> Iterator[str]:
    yield f"**`{event.name}`** ({' or '.join(event.levels)}): {event.means}{f' {event.do}' if event.do else ''}"
    if event.fields:
        yield ""
        yield from (f"- `{name}`: {meaning}" for name, meaning in event.fields.items())
