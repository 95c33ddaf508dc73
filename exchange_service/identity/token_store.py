"""The table `exchange_service_tokens` in the credential database. It is ours alone, and created if it is missing."""

from __future__ import annotations

import json
import time

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from exchange_service.credentials.database import Database, create_table
from exchange_service.credentials.engine import database_address, make_engine
from exchange_service.credentials.table import table_warnings
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
# Characters. A longer scope is not read.
_LONGEST_SCOPE = 256 * 1024
_LONGEST = 1024


class TokenStore:
    """The stored tokens. Every method raises StoreUnavailable if the database cannot be used in time."""

    def __init__(self, url: str) -> None:
        """Connects nothing yet. ValueError if `url` is not a database URL that we support."""
        engine = make_engine(database_address(url))
        self._database = Database(engine, "database of the service tokens", _open_table)

    async def find(self, token_id: str) -> StoredToken | None:
        """The token with this id, or None."""
        rows = await self._database.call(lambda connection, tokens: _select(connection, tokens.c.id == token_id))
        return rows[0] if rows else None

    async def all(self) -> list[StoredToken]:
        """Every token, the oldest first, including revoked and expired ones."""
        return await self._database.call(lambda connection, _: _select(connection, sa.true()))

    async def add(self, token: StoredToken) -> None:
        """Store a new token."""
        names = ("id", "name", "digest", "created", "expires", "revoked", "signature")
        values = {name: getattr(token, name) for name in names}
        row = {**values, "scope": json.dumps(token.scope.as_value())}
        await self.execute(sa.insert(TOKENS).values(row))

    async def revoke(self, token_id: str) -> bool:
        """Revoke the token; False if there is no token with this id, or if it was revoked before. Its signature goes
        too: who takes the revocation back in the table does not bring the token back."""
        valid = sa.and_(TOKENS.c.id == token_id, TOKENS.c.revoked.is_(None))
        return await self.execute(sa.update(TOKENS).where(valid).values(revoked=int(time.time()), signature=None)) > 0

    async def sign(self, token: StoredToken, signature: str) -> bool:
        """Sign the row; False if it is gone, revoked, or not as it was read."""
        columns = TOKENS.c
        same = sa.and_(
            columns.id == token.id,
            columns.name == token.name,
            columns.digest == token.digest,
            columns.scope == json.dumps(token.scope.as_value()),
            columns.created == token.created,
            columns.expires.is_not_distinct_from(token.expires),
            columns.revoked.is_(None),
        )
        return await self.execute(sa.update(TOKENS).where(same).values(signature=signature)) > 0

    async def warnings(self) -> list[str]:
        """What an operator should change: other roles or users can read or change the table. StoreUnavailable if the
        database does not answer."""
        if not self._database.is_postgres:
            await self.all()
            return []

        async def read(connection: AsyncConnection, _: sa.Table) -> list[str]:
            return await table_warnings(connection, TABLE)

        return await self._database.call(read)

    async def execute(self, statement: sa.Insert | sa.Update) -> int:
        """Run a statement on TOKENS in a transaction; the number of rows that it changed."""

        async def run(connection: AsyncConnection, _: sa.Table) -> int:
            return (await connection.execute(statement)).rowcount

        return await self._database.call(run)

    async def close(self) -> None:
        """End running calls and release every connection; bounded, whatever state the database is in."""
        await self._database.close()


async def _open_table(connection: AsyncConnection) -> sa.Table:
    await create_table(connection, TOKENS)
    if not await _has_signatures(connection):
        # A table of an earlier version. Its tokens are refused until they are signed.
        exists = "IF NOT EXISTS " if connection.dialect.name == "postgresql" else ""
        await connection.execute(sa.text(f"ALTER TABLE {TABLE} ADD COLUMN {exists}signature TEXT"))
    return TOKENS


async def _has_signatures(connection: AsyncConnection) -> bool:
    if connection.dialect.name == "postgresql":
        query = sa.text(
            "SELECT 1 FROM pg_attribute WHERE attrelid = to_regclass(:table) AND attname = 'signature'"
            " AND NOT attisdropped"
        )
        return await connection.scalar(query, {"table": TABLE}) is not None
    return any(row.name == "signature" for row in await connection.execute(sa.text(f"PRAGMA table_info({TABLE})")))


async def _select(connection: AsyncConnection, where: sa.ColumnElement[bool]) -> list[StoredToken]:
    short = [sa.func.length(TOKENS.c[name]) <= _LONGEST for name in ("id", "name", "digest")]
    bounded = (*short, sa.func.length(TOKENS.c.scope) <= _LONGEST_SCOPE)
    columns = [*(column for column in TOKENS.c if column.name != "signature"), _signature()]
    query = sa.select(*columns).where(where, *bounded).order_by(TOKENS.c.created, TOKENS.c.id)
    return [
        StoredToken(
            *(row.id, row.name, row.digest, _read_scope(row.scope), row.created, row.expires, row.revoked),
            signature=row.signature or "",
        )
        for row in await connection.execute(query)
    ]


def _signature() -> sa.ColumnElement[str]:
    return sa.func.substr(TOKENS.c.signature, 1, _LONGEST).label("signature")


def _read_scope(text: str) -> Scope:
    """The row's scope; an empty one if the text is not a scope, so that the token reads nothing."""
    try:
        return scope_from(json.loads(text))
    except (ValueError, RecursionError):
        return Scope()
