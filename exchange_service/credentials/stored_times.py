"""When a credential was stored, where the table says so: `updated_at`, which we keep, or another program's
`created_at`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

UPDATED, CREATED = "updated_at", "created_at"
# Characters of a text that may be an instant.
_LONGEST = 40
# Seconds since the epoch; the year 5138. What is beyond, such as infinity, is no time at which anything was stored.
_LAST = 1e11
_WITH_ZONE, _WITHOUT_ZONE = "timestamp with time zone", "timestamp without time zone"
# What SQLite's tables call a column that may hold an instant as text.
_SQLITE_KINDS = frozenset({"", "text", "datetime", "timestamp", "timestamptz", *(_WITH_ZONE, _WITHOUT_ZONE)})


@dataclass(frozen=True, slots=True)
class TimeColumn:
    """A column that holds an instant, and what this database user may do with it."""

    name: str
    kind: str
    readable: bool = True
    writable: bool = True

    def usable(self, is_postgres: bool) -> bool:
        """Whether its values are instants that we know to read and write."""
        kinds = (_WITH_ZONE, _WITHOUT_ZONE) if is_postgres else _SQLITE_KINDS
        return self.kind.lower() in kinds


@dataclass(frozen=True, slots=True)
class StoredTimes:
    """The table's columns of instants that can be used; most tables have none."""

    columns: tuple[TimeColumn, ...] = ()
    is_postgres: bool = True

    def selected(self) -> sa.ColumnElement[Any]:
        """What `read` reads: the last change of a row, or else its creation; null if the table says neither."""
        readable = [column for column in self.columns if column.readable]
        values = [self._value(column.name) for column in readable]
        if not values:
            return sa.null().label("stored_time")
        return (sa.func.coalesce(*values) if len(values) > 1 else values[0]).label("stored_time")

    def _value(self, name: str) -> sa.ColumnElement[Any]:
        column: sa.ColumnClause[Any] = sa.column(name)
        if self.is_postgres:
            return sa.cast(sa.extract("epoch", column), sa.Float)
        return sa.func.substr(sa.cast(column, sa.Text), 1, _LONGEST)

    def now(self) -> Mapping[str, Any]:
        """What a changed row says of this moment, by column."""
        for column in self.columns:
            if column.name == UPDATED and column.writable:
                return {UPDATED: self._now(column)}
        return {}

    def _now(self, column: TimeColumn) -> Any:
        if not self.is_postgres:
            return datetime.now(UTC).isoformat(" ", "milliseconds")
        return sa.func.now() if column.kind == _WITH_ZONE else sa.func.timezone("utc", sa.func.now())


def read_stored_time(value: object) -> float | None:
    """The instant of a selected value, in seconds since the epoch; None if it is not one."""
    seconds = float(value) if isinstance(value, int | float) else _read_text(str(value))
    return seconds if seconds is not None and 0 <= seconds < _LAST else None


def _read_text(text: str) -> float | None:
    with suppress(ValueError, OverflowError):
        instant = datetime.fromisoformat(text)
        # A text without a zone is in UTC, as the databases' own functions write it.
        return (instant if instant.tzinfo is not None else instant.replace(tzinfo=UTC)).timestamp()
    return None
