"""The table `exchange_service_tokens` in the credential database. It is ours alone, and created if it is missing."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from exchange_service.credentials.database import Database, create_table, lock_table
from exchange_service.credentials.engine import database_address, make_engine
from exchange_service.credentials.table import table_warnings
from exchange_service.errors import StoreUnavailable
from exchange_service.identity import Scope, scope_from
from exchange_service.identity.tokens import StoredToken

TABLE = "exchange_service_tokens"

TOKENS = sa.Table(
    TABLE,
    sa.MetaData(),
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("scope", sa.Text, nullable=False),
    sa.Column("created", sa.BigInteger, nullable=False),
    sa.Column("expires", sa.BigInteger),
    sa.Column("revoked", sa.BigInteger),
    sa.Column("signature", sa.Text),
)
# Characters. A row with longer texts is not read.
_LONGEST_SCOPE = 256 * 1024
_LONGEST = 1024
# The year 10000, in seconds since 1970: no token of ours has such a time.
_LATEST = 253_402_300_800


@dataclass(slots=True)
class _Layout:
    """Whether the table has the column of signatures. One that an earlier version made gets it when a command changes a
    token; until then its tokens are read without signatures."""

    signed: bool


class TokenStore:
    """The stored tokens. Every method raises StoreUnavailable if the database cannot be used in time."""

    def __init__(self, url: str) -> None:
        """Connects nothing yet. ValueError if `url` is not a database URL that we support."""
        engine = make_engine(database_address(url))
        self._database = Database(engine, "database of the service tokens", _open_table)

    async def find(self, token_id: str) -> StoredToken | None:
        """The token with this id, or None."""
        rows = await self._select(TOKENS.c.id == token_id)
        return rows[0] if rows else None

    async def all(self) -> list[StoredToken]:
        """Every token, the oldest first, including revoked and expired ones."""
        return await self._select(sa.true())

    async def _select(self, where: sa.ColumnElement[bool]) -> list[StoredToken]:
        return await self._database.call(lambda connection, layout: _select(connection, layout, where))

    async def add(self, token: StoredToken) -> None:
        """Store a new token. ValueError, with a sentence, if it is too long to be read again."""
        names = ("id", "name", "digest", "created", "expires", "revoked", "signature")
        values = {name: getattr(token, name) for name in names}
        row = {**values, "scope": _scope_text(token)}
        if len(row["scope"]) > _LONGEST_SCOPE:
            raise ValueError("one token cannot list so many users: make several, or one for all users")
        if len(token.name) > _LONGEST:
            raise ValueError(f"a token's name has at most {_LONGEST} characters")
        await self.execute(sa.insert(TOKENS).values(row))

    async def revoke(self, token_id: str) -> bool:
        """Revoke the token; False if there is no token with this id, or if it was revoked before. Its signature goes
        too: who takes the revocation back in the table does not bring the token back."""
        valid = sa.and_(TOKENS.c.id == token_id, TOKENS.c.revoked.is_(None))

        async def revoke(connection: AsyncConnection, layout: _Layout) -> bool:
            # It must be possible also for a database user who cannot add the column.
            unsigned = {"signature": None} if await _is_signed(connection, layout) else {}
            change = sa.update(TOKENS).where(valid).values(revoked=int(time.time()), **unsigned)
            return (await connection.execute(change)).rowcount > 0

        return await self._database.call(revoke)

    async def sign(self, token: StoredToken, signature: str) -> bool:
        """Add the signature to the row; False if the row is gone, revoked, or not as it was read.

        The one before stays: with it replicas that still have the key before accept the token."""
        columns = TOKENS.c
        # As the row spells it, which need not be as we do.
        scope = sa.select(columns.scope).where(columns.id == token.id, columns.revoked.is_(None))
        kept = token.signature.split(maxsplit=1)[:1]

        async def sign(connection: AsyncConnection, layout: _Layout) -> bool:
            await _add_signatures(connection, layout)
            text = await connection.scalar(scope)
            if not isinstance(text, str) or _read_scope(text) != token.scope:
                return False
            same = sa.and_(
                columns.id == token.id,
                columns.name == token.name,
                columns.digest == token.digest,
                columns.scope == text,
                columns.created == token.created,
                columns.expires.is_not_distinct_from(token.expires),
                columns.revoked.is_(None),
            )
            change = sa.update(TOKENS).where(same).values(signature=" ".join((signature, *kept)))
            return (await connection.execute(change)).rowcount > 0

        return await self._database.call(sign)

    async def warnings(self) -> list[str]:
        """What an operator should change: other roles or users can read or change the table. StoreUnavailable if the
        database does not answer."""
        if not self._database.is_postgres:
            await self.all()
            return []

        async def read(connection: AsyncConnection, _: _Layout) -> list[str]:
            return await table_warnings(connection, TABLE)

        return await self._database.call(read)

    async def execute(self, statement: sa.Insert | sa.Update) -> int:
        """Run a statement on TOKENS in a transaction; the number of rows that it changed."""

        async def run(connection: AsyncConnection, layout: _Layout) -> int:
            await _add_signatures(connection, layout)
            return (await connection.execute(statement)).rowcount

        return await self._database.call(run)

    async def close(self) -> None:
        """End running calls and release every connection; bounded, whatever state the database is in."""
        await self._database.close()


async def _open_table(connection: AsyncConnection) -> _Layout:
    await create_table(connection, TOKENS)
    return _Layout(await _has_signatures(connection))


async def _add_signatures(connection: AsyncConnection, layout: _Layout) -> None:
    """Give a table of an earlier version the column of signatures. StoreUnavailable if this database user may not."""
    if await _is_signed(connection, layout):
        return
    if connection.dialect.name != "postgresql":
        await connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        await lock_table(connection, TABLE)
    statement = f"ALTER TABLE {TABLE} ADD COLUMN signature TEXT"
    refused = False
    try:
        # Another command may have added it meanwhile.
        if not await _has_signatures(connection):
            await connection.execute(sa.text(statement))
    except sa.exc.ProgrammingError:
        refused = True
    # Not in the handler, where the driver's exception would stay with it.
    if refused:
        raise StoreUnavailable(
            f"The table {TABLE} is of an earlier version, and this database user cannot change it.",
            advice=f"Let its owner do so: {statement}",
        )
    layout.signed = True


async def _is_signed(connection: AsyncConnection, layout: _Layout) -> bool:
    """Whether the table has the column by now."""
    layout.signed = layout.signed or await _has_signatures(connection)
    return layout.signed


async def _has_signatures(connection: AsyncConnection) -> bool:
    if connection.dialect.name == "postgresql":
        query = sa.text(
            "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass(:table) AND attname = 'signature'"
            " AND NOT attisdropped"
        )
        return await connection.scalar(query, {"table": TABLE}) is not None
    return any(row.name == "signature" for row in await connection.execute(sa.text(f"PRAGMA table_info({TABLE})")))


async def _select(connection: AsyncConnection, layout: _Layout, where: sa.ColumnElement[bool]) -> list[StoredToken]:
    await _is_signed(connection, layout)
    short = [sa.func.length(TOKENS.c[name]) <= _LONGEST for name in ("id", "name", "digest")]
    bounded = (*short, sa.func.length(TOKENS.c.scope) <= _LONGEST_SCOPE)
    columns = [*(column for column in TOKENS.c if column.name != "signature"), _signature(layout)]
    query = sa.select(*columns).where(where, *bounded).order_by(TOKENS.c.created, TOKENS.c.id)
    return [_read_token(row) for row in await connection.execute(query) if _is_token(row)]


def _signature(layout: _Layout) -> sa.ColumnElement[str]:
    column: sa.ColumnElement[Any] = sa.null()
    if layout.signed:
        column = sa.func.substr(TOKENS.c.signature, 1, _LONGEST)
    return column.label("signature")


def _is_token(row: Any) -> bool:
    """Whether the values are of a token's types. SQLite stores any, and PostgreSQL any number."""
    texts = (row.id, row.name, row.digest, row.scope)
    times = [time for time in (row.created, row.expires, row.revoked) if time is not None]
    return (
        all(isinstance(text, str) for text in texts)
        and isinstance(row.signature, str | None)
        and all(isinstance(time, int) and abs(time) < _LATEST for time in times)
    )


def _read_token(row: Any) -> StoredToken:
    scope = _read_scope(row.scope)
    values = (row.id, row.name, row.digest, scope, row.created, row.expires, row.revoked)
    return StoredToken(*values, signature=row.signature or "")


def _scope_text(token: StoredToken) -> str:
    return json.dumps(token.scope.as_value())


def _read_scope(text: str) -> Scope:
    """The row's scope; an empty one if the text is not a scope, so that the token reads nothing."""
    try:
        return scope_from(json.loads(text))
    except (ValueError, RecursionError):
        return Scope()
