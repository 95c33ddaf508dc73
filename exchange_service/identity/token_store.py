"""The table `exchange_service_tokens` in the credential database. It is ours alone, and created if it is missing."""

from __future__ import annotations

import json
import time

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from exchange_service.credentials.database import Database, create_table
from exchange_service.credentials.engine import database_address, make_engine
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
)


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
        values = {name: getattr(token, name) for name in ("id", "name", "digest", "created", "expires", "revoked")}
        row = {**values, "scope": json.dumps(token.scope.as_value())}
        await self.execute(sa.insert(TOKENS).values(row))

    async def revoke(self, token_id: str) -> bool:
        """Revoke the token; False if there is no token with this id, or if it was revoked before."""
        valid = sa.and_(TOKENS.c.id == token_id, TOKENS.c.revoked.is_(None))
        return await self.execute(sa.update(TOKENS).where(valid).values(revoked=int(time.time()))) > 0

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
    return TOKENS


async def _select(connection: AsyncConnection, where: sa.ColumnElement[bool]) -> list[StoredToken]:
    query = sa.select(TOKENS).where(where).order_by(TOKENS.c.created, TOKENS.c.id)
    return [
        StoredToken(row.id, row.name, row.digest, _read_scope(row.scope), row.created, row.expires, row.revoked)
        for row in await connection.execute(query)
    ]


def _read_scope(text: str) -> Scope:
    """The row's scope; an empty one if the text is not a scope, so that the token reads nothing."""
    try:
        return scope_from(json.loads(text))
    except (ValueError, RecursionError):
        return Scope()
