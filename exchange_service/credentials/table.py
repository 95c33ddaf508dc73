"""The table `bot_credentials`: its columns' types, its creation if it is missing, and the rights of other roles on it.

The table belongs to other programs too. Its column types are accepted as they are, columns that are not ours are left
alone, and it is created only if it does not exist.
"""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from exchange_service.credentials.database import API_ROLES, create_table, lock_table
from exchange_service.credentials.rows import (
    COLUMNS,
    KEY_COLUMNS,
    LONGEST_KEY,
    LONGEST_SECRET,
    SECRET_COLUMNS,
    TABLE,
    CredentialRow,
    is_storable,
)
from exchange_service.credentials.stored_times import CREATED, UPDATED, StoredTimes, TimeColumn
from exchange_service.errors import StoreUnavailable
from exchange_service.model import PRODUCTION, SECRET_FIELDS, Credential

_NEW_TABLE = sa.Table(
    TABLE,
    sa.MetaData(),
    sa.Column("user_id", sa.Text, primary_key=True),
    sa.Column("exchange", sa.Text, primary_key=True),
    sa.Column("environment", sa.Text, primary_key=True, server_default=PRODUCTION),
    *(sa.Column(name, sa.Text) for name in SECRET_FIELDS),
    sa.Column("extra_metadata", sa.JSON),
    sa.Column(UPDATED, sa.DateTime(timezone=True)),
)

_POSTGRES_COLUMNS = sa.text(
    "SELECT attname, format_type(atttypid, NULL), attnotnull,"
    " has_column_privilege(attrelid, attnum, 'SELECT'),"
    " has_column_privilege(attrelid, attnum, 'INSERT') AND has_column_privilege(attrelid, attnum, 'UPDATE')"
    " AND attgenerated = ''"
    " FROM pg_attribute"
    " WHERE attrelid = to_regclass(:table) AND attnum > 0 AND NOT attisdropped"
)

_POSTGRES_RIGHTS = sa.text(
    "SELECT role.name,"
    " has_any_column_privilege(role.name, relation.oid, 'SELECT'),"
    " has_table_privilege(role.name, relation.oid, 'INSERT, UPDATE, DELETE')"
    " FROM pg_class AS relation,"
    " (SELECT 'public' AS name UNION ALL SELECT rolname::text FROM pg_roles WHERE rolname = ANY(:roles)) AS role"
    " WHERE relation.oid = to_regclass(:table)"
)


# Characters of a value that show whether it is sealed; too few for a secret to be of use.
_BEGINNING = 6


@dataclass(frozen=True, slots=True)
class CredentialTable:
    """The table's seven columns that are ours, with their types and their nullability, and its columns of times."""

    clause: sa.TableClause
    nullable: frozenset[str]
    is_postgres: bool
    times: StoredTimes

    def text(self, column: str) -> sa.ColumnElement[str]:
        """The column as text."""
        return sa.cast(self.clause.c[column], sa.Text)

    def _bytes(self, column: str) -> sa.ColumnElement[int]:
        text = self.text(column)
        if self.is_postgres:
            return sa.func.octet_length(text)
        return sa.func.length(sa.cast(text, sa.LargeBinary))

    def as_text(self) -> list[sa.ColumnElement[Any]]:
        """Every column as text, so that one reader serves every column type, and the name of a column with a secret
        that is too long; its text stays in the database."""
        long = [(name, self._is_longer(name, LONGEST_SECRET)) for name in SECRET_COLUMNS]
        secrets = [sa.case((is_long, sa.null()), else_=self.text(name)).label(name) for name, is_long in long]
        first = sa.case(*((is_long, sa.literal(name, sa.Text)) for name, is_long in long), else_=sa.null())
        return [*(self.text(name).label(name) for name in KEY_COLUMNS), *secrets, first.label("too_long")]

    def beginnings(self) -> list[sa.ColumnElement[Any]]:
        """The columns of a row as text, of those with secrets only what shows whether they are sealed; no text is
        called too long."""
        begun = [sa.func.substr(self.text(name), 1, _BEGINNING).label(name) for name in SECRET_COLUMNS]
        return [*(self.text(name).label(name) for name in KEY_COLUMNS), *begun, sa.null().label("too_long")]

    def _is_longer(self, column: str, limit: int) -> sa.ColumnElement[bool]:
        return sa.func.coalesce(self._bytes(column), 0) > limit

    def is_possible(self) -> sa.ColumnElement[bool]:
        """Whether the row can be that of an account: its user, exchange and environment are not too long."""
        return sa.and_(*(sa.not_(self._is_longer(name, LONGEST_KEY)) for name in KEY_COLUMNS))

    def is_exactly(self, user_id: str | sa.BindParameter[Any]) -> sa.ColumnElement[bool]:
        """Whether the row's user is this one, letter by letter. A database may equate more: texts in capitals, with
        blanks at their end, or as another spelling of a uuid. Nobody may read a user whose id is not what they gave."""
        text = self.text("user_id")
        # SQLite compares the result of a cast as the column is compared.
        return sa.collate(text, "C" if self.is_postgres else "BINARY") == user_id

    def value(self, column: str, text: str) -> Any:
        """A text in the form that the column takes. A JSON column gets exactly this JSON, digits included."""
        kind = self.clause.c[column].type
        return sa.cast(sa.literal(text, sa.Text), kind) if isinstance(kind, sa.JSON) else text

    def user(self, user_id: str) -> Any | None:
        """The value to compare the user column with; None if the column cannot hold this id."""
        if not is_storable(user_id):
            return None
        if not isinstance(self.clause.c.user_id.type, sa.Uuid):
            return user_id
        with suppress(ValueError):
            return uuid.UUID(user_id)
        return None

    def values(self, credential: Credential) -> dict[str, Any]:
        """The credential's columns. An empty text becomes null if the column allows it, as other programs expect."""
        values: dict[str, Any] = {}
        for name in SECRET_FIELDS:
            text = getattr(credential, name).reveal()
            values[name] = text or (None if name in self.nullable else "")
        metadata = dict(credential.metadata)
        is_json = isinstance(self.clause.c.extra_metadata.type, sa.JSON)
        values["extra_metadata"] = metadata if is_json else json.dumps(metadata)
        return values

    def matches(self, user: Any, row: CredentialRow) -> list[sa.ColumnElement[bool]]:
        """The conditions that select exactly this row."""
        columns = self.clause.c
        return [
            columns.user_id == user,
            self.is_exactly(row.user_id),
            columns.exchange == row.exchange,
            self.text("environment").is_not_distinct_from(row.environment),
        ]


async def open_table(connection: AsyncConnection) -> CredentialTable:
    """Return the table as it is, and create it if it is missing. StoreUnavailable if it lacks one of our columns."""
    columns = await _read_columns(connection)
    if not columns:
        await create_table(connection, _NEW_TABLE)
        columns = await _read_columns(connection)
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise StoreUnavailable(f"The table {TABLE} lacks the column {', '.join(missing)}.")
    is_postgres = connection.dialect.name == "postgresql"
    instants = [columns[name].column for name in (UPDATED, CREATED) if name in columns]
    times = StoredTimes(tuple(column for column in instants if column.usable(is_postgres)), is_postgres)
    # SQLite has no uuid type, and its JSON is text.
    kinds = {name: _column_type(columns[name].column.kind if is_postgres else "text") for name in COLUMNS}
    clauses = [sa.column(name, kind) for name, kind in kinds.items()]
    return CredentialTable(
        sa.table(TABLE, *clauses, *(sa.column(column.name) for column in times.columns)),
        frozenset(name for name, column in columns.items() if column.nullable),
        is_postgres,
        times,
    )


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the table as the database describes it."""

    column: TimeColumn
    nullable: bool


def _column_type(kind: str) -> sa.types.TypeEngine[Any]:
    if kind == "uuid":
        return sa.Uuid()
    if kind == "jsonb":
        # Late: with another database it is not needed.
        from sqlalchemy.dialects.postgresql import JSONB

        return JSONB()
    if kind == "json":
        return sa.JSON()
    return sa.Text()


async def _read_columns(connection: AsyncConnection) -> dict[str, _Column]:
    """Each column by its name; empty if there is no such table.

    A plain query, because the library's reflection warns about every type of other columns that it does not know.
    """
    if connection.dialect.name == "postgresql":
        result = await connection.execute(_POSTGRES_COLUMNS, {"table": TABLE})
        return {
            name: _Column(TimeColumn(name, kind, readable, writable), not required)
            for name, kind, required, readable, writable in result
        }
    result = await connection.execute(sa.text(f"PRAGMA table_info({TABLE})"))
    return {row.name: _Column(TimeColumn(row.name, row.type), not row.notnull) for row in result}


async def lock_for_writing(connection: AsyncConnection) -> None:
    """Let one of our writers at a time read and then write. Readers never wait for it.

    On SQLite the busy timeout does not cover a transaction that begins with reading and then writes.
    """
    if connection.dialect.name == "postgresql":
        await lock_table(connection, TABLE)
    else:
        await connection.exec_driver_sql("BEGIN IMMEDIATE")


async def postgres_warnings(connection: AsyncConnection, _table: CredentialTable) -> list[str]:
    """A sentence with advice for each way in which other roles can read or change the table of credentials."""
    return await table_warnings(connection, TABLE)


async def table_warnings(connection: AsyncConnection, table: str) -> list[str]:
    """The same for any table of ours on PostgreSQL."""
    warnings = []
    query = sa.text("SELECT relrowsecurity FROM pg_class WHERE oid = to_regclass(:table)")
    if not await connection.scalar(query, {"table": table}):
        warnings.append(
            f"row-level security is off on {table}, so a public Data API would show it:"
            f" ALTER TABLE {table} ENABLE ROW LEVEL SECURITY"
        )
    rights = await connection.execute(_POSTGRES_RIGHTS, {"table": table, "roles": list(API_ROLES)})
    for role, reads, writes in rights:
        if reads or writes:
            verb = "read" if reads else "changed"
            name = role.upper() if role == "public" else role
            warnings.append(f"{table} can be {verb} by {name}: REVOKE ALL ON {table} FROM {name}")
    return warnings
