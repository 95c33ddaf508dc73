"""The table `exchange_service_tokens`, in the credential database. It is ours alone, and created where it is missing.

As in the credential store, no exception of a driver leaves this file.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateTable

from exchange_service.credentials.engine import database_address, make_engine, prepare_file, sqlite_file
from exchange_service.errors import ServiceError, StoreUnavailable
from exchange_service.identity import Scope, scope_from
from exchange_service.identity.tokens import StoredToken

T = TypeVar("T")

TABLE = "exchange_service_tokens"
# One call as a whole; the statement ends before, so that the server's own word is what we report.
_CALL_LIMIT = 2.5
_STATEMENT_LIMIT_MS = 2000
_CLOSE_LIMIT = 2.0

_TOKENS = sa.Table(
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

# Whom a Supabase database would offer a new table to; the other rights are the owner's to give.
_OTHERS = sa.text("SELECT rolname::text FROM pg_roles WHERE rolname IN ('anon', 'authenticated')")


class TokenStore:
    """The stored tokens. Every method raises StoreUnavailable where the database cannot be used in time."""

    def __init__(self, url: str) -> None:
        """ValueError where the URL is none of a database of ours. Nothing is connected yet."""
        self._engine: AsyncEngine = make_engine(database_address(url))
        self._ready = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def _is_postgres(self) -> bool:
        return self._engine.dialect.name == "postgresql"

    async def find(self, token_id: str) -> StoredToken | None:
        """The token with this id, or None."""
        rows = await self._call(lambda connection: _rows(connection, _TOKENS.c.id == token_id))
        return rows[0] if rows else None

    async def all(self) -> list[StoredToken]:
        """Every token, the oldest first, revoked and expired ones among them."""
        return await self._call(lambda connection: _rows(connection, sa.true()))

    async def add(self, token: StoredToken) -> None:
        """Store a new one."""
        values = {name: getattr(token, name) for name in ("id", "name", "digest", "created", "expires", "revoked")}
        row = {**values, "scope": json.dumps(token.scope.as_value())}
        await self._call(lambda connection: _execute(connection, sa.insert(_TOKENS).values(row)))

    async def revoke(self, token_id: str) -> bool:
        """Make it worthless; False where there is none with this id that was still good for something."""
        mine = sa.and_(_TOKENS.c.id == token_id, _TOKENS.c.revoked.is_(None))
        update = sa.update(_TOKENS).where(mine).values(revoked=int(time.time()))
        return await self._call(lambda connection: _execute(connection, update)) > 0

    async def close(self) -> None:
        """End what is under way and release every connection; bounded, whatever state the database is in."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CLOSE_LIMIT)
        disposal = asyncio.ensure_future(self._engine.dispose())
        disposal.add_done_callback(_retrieve)
        await asyncio.wait({disposal}, timeout=_CLOSE_LIMIT)

    async def _call(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """`work` in one transaction, in bounded time: a driver that shields its clean-up is left behind."""
        task = asyncio.create_task(self._transaction(work), name="service tokens")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_retrieve)
        done, _ = await asyncio.wait({task}, timeout=_CALL_LIMIT)
        if not done:
            task.cancel()
            raise StoreUnavailable(f"The database of the service tokens did not answer within {_CALL_LIMIT} seconds.")
        outcome = task.result()
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome

    async def _transaction(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T | ServiceError:
        """The work's result, or what to raise, once no driver's exception is being handled any more."""
        try:
            path = sqlite_file(self._engine.url)
            if path is not None:
                prepare_file(path)
            async with self._engine.begin() as connection:
                if self._is_postgres:
                    await connection.execute(sa.text(f"SET LOCAL statement_timeout = {_STATEMENT_LIMIT_MS}"))
                if not self._ready:
                    await self._create(connection)
                result = await work(connection)
            self._ready = True
            return result
        except Exception as error:
            # The table may have been dropped: look again before the next call.
            self._ready = False
            original = getattr(error, "orig", None) or error
            return StoreUnavailable(f"The database of the service tokens cannot be used ({type(original).__name__}).")

    async def _create(self, connection: AsyncConnection) -> None:
        """The table where there is none; on PostgreSQL closed to everybody else."""
        if not self._is_postgres:
            await connection.execute(CreateTable(_TOKENS, if_not_exists=True))
            return
        # Asked of a table, because only that makes the server forget what it knew before it got the lock.
        there = sa.text("SELECT oid FROM pg_class WHERE oid = to_regclass(:table)")
        if await connection.scalar(there, {"table": TABLE}):
            return
        # "IF NOT EXISTS" is no protection against another replica that creates it at the same moment.
        await connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": TABLE})
        if await connection.scalar(there, {"table": TABLE}):
            return
        await connection.execute(CreateTable(_TOKENS))
        await connection.execute(sa.text(f"ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY"))
        for role in ("PUBLIC", *(await connection.scalars(_OTHERS)).all()):
            await connection.execute(sa.text(f"REVOKE ALL ON {TABLE} FROM {role}"))


def _retrieve(task: asyncio.Future[Any]) -> None:
    """Take the outcome of a task that nobody waits for any more, or asyncio would log it."""
    if not task.cancelled():
        task.exception()


async def _rows(connection: AsyncConnection, where: sa.ColumnElement[bool]) -> list[StoredToken]:
    query = sa.select(_TOKENS).where(where).order_by(_TOKENS.c.created, _TOKENS.c.id)
    return [
        StoredToken(row.id, row.name, row.digest, _scope(row.scope), row.created, row.expires, row.revoked)
        for row in await connection.execute(query)
    ]


def _scope(text: str) -> Scope:
    """The row's scope; that of nobody where somebody has written there what is none."""
    try:
        return scope_from(json.loads(text))
    except (ValueError, RecursionError):
        return Scope()


async def _execute(connection: AsyncConnection, statement: sa.Insert | sa.Update) -> int:
    return (await connection.execute(statement)).rowcount
