"""A database whose every call, and whose closing, takes bounded time.

Exceptions of the drivers hold statements, parameters and therefore secrets. None leaves this file, not even as the
context of ours: our error is made inside the handler and raised after it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateTable

from exchange_service.credentials.engine import MOST_CONNECTIONS, POOL_WAIT, prepare_file, sqlite_file
from exchange_service.errors import ServiceError, StoreUnavailable
from exchange_service.tasks import TaskSet

T = TypeVar("T")
Schema = TypeVar("Schema")

# Seconds for one call as a whole, once it has its turn: connecting and the statements.
CALL_LIMIT = 2.5
# Seconds for which a call waits for its turn, while others have every connection.
QUEUE_LIMIT = 5.0
# The server ends a statement before the call is given up, so that we can report the server's own error.
STATEMENT_LIMIT_MS = 2000
CLOSE_LIMIT = 2.0
# A call that fails after so many seconds was kept waiting: the database is silent, frozen, locked or far too slow.
# After some in a row only one call in ASK_EVERY seconds asks it, and the others fail at once: they would wait in vain,
# each with a connection.
SLOW_FAILURE = 0.9
FAILURES_TO_SPARE = 2
ASK_EVERY = 0.5

# The roles that Supabase's public Data API acts as; it would offer them every new table.
API_ROLES = ("anon", "authenticated")


class Silence:
    """Whether the database keeps its callers waiting; `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures = 0
        self._ask_at = 0.0

    def may_ask(self) -> bool:
        """Whether a call may ask the database. One that gets True does so."""
        now = self._clock()
        if self._failures >= FAILURES_TO_SPARE and now < self._ask_at:
            return False
        self._ask_at = now + ASK_EVERY
        return True

    def record(self, seconds: float, *, failed: bool) -> None:
        """Note the end of a call that took so long. A failure that comes at once spares nobody anything."""
        if not failed:
            self._failures = 0
        elif seconds >= SLOW_FAILURE:
            self._failures += 1


class Database(Generic[Schema]):
    """Runs work in transactions, each in bounded time.

    `prepare` reads or creates the tables that the work needs. Its result is passed to the work and reused until a call
    fails. `name` stands in the error messages.
    """

    def __init__(self, engine: AsyncEngine, name: str, prepare: Callable[[AsyncConnection], Awaitable[Schema]]) -> None:
        self._engine = engine
        self._name = name
        self._prepare = prepare
        self._schema: Schema | None = None
        self._tasks = TaskSet()
        self._silence = Silence()
        # As many as there are connections. A crowd waits here, and not for the pool, whose patience is short.
        self._turns = asyncio.Semaphore(MOST_CONNECTIONS)
        # When a call was last answered, by the monotonic clock.
        self._answered = 0.0
        # A file of this machine keeps calls waiting only while the machine is busy.
        self._patience = POOL_WAIT if self.is_postgres else CALL_LIMIT
        self._closed = False

    @property
    def url(self) -> sa.URL:
        """The database's address; its text hides the password."""
        return self._engine.url

    @property
    def is_postgres(self) -> bool:
        """Whether it is a PostgreSQL database; otherwise it is SQLite."""
        return self._engine.dialect.name == "postgresql"

    async def call(self, work: Callable[[AsyncConnection, Schema], Awaitable[T]]) -> T:
        """Run `work` in one transaction; StoreUnavailable if it does not end in time.

        Drivers shield their clean-up from cancellation, for seconds if the server hangs. Therefore the work is a task
        of its own, which is left behind when its time is over. A caller that is cancelled leaves the task running: a
        driver that is cancelled half-way may never return.
        """
        await self._take_turn()
        try:
            return await self._call(work)
        finally:
            self._turns.release()

    async def _take_turn(self) -> None:
        """Wait for a turn, while calls before it are answered. StoreUnavailable if that takes too long, or if the
        database answers none of them."""
        began = time.monotonic()
        while not await self._has_turn_within(POOL_WAIT):
            now = time.monotonic()
            if now - began > QUEUE_LIMIT or now - max(self._answered, began) > self._patience:
                self._silence.record(now - began, failed=True)
                raise StoreUnavailable(f"Every connection to the {self._name} is in use.")

    async def _has_turn_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._turns.acquire()
        except TimeoutError:
            return False

    async def _call(self, work: Callable[[AsyncConnection, Schema], Awaitable[T]]) -> T:
        if self._closed:
            raise StoreUnavailable(f"The {self._name} is closed.")
        if not self._silence.may_ask():
            raise StoreUnavailable(f"The {self._name} has not answered lately.")
        task, began = self._tasks.start(self._run(work), name=self._name), time.monotonic()
        try:
            done, _ = await asyncio.wait({task}, timeout=CALL_LIMIT)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(CALL_LIMIT, task.cancel)
            raise
        result: T | ServiceError
        if not done:
            task.cancel()
            self._drop_connections()
            result = StoreUnavailable(f"The {self._name} did not answer within {CALL_LIMIT} seconds.")
        elif task.cancelled():
            result = StoreUnavailable(f"The {self._name} is closed.")
        else:
            result = task.result()
        self._silence.record(time.monotonic() - began, failed=isinstance(result, StoreUnavailable))
        if isinstance(result, ServiceError):
            raise result
        self._answered = time.monotonic()
        return result

    def _drop_connections(self) -> None:
        """Let the next call connect again: those that lie in the pool may be as dead as this one, and each would cost a
        caller the whole time. The engine's pool closes those in use when they come back."""
        if self.is_postgres:
            self._tasks.start(self._engine.dispose(), name=f"{self._name}: drop connections")

    async def _run(self, work: Callable[[AsyncConnection, Schema], Awaitable[T]]) -> T | ServiceError:
        """Return the work's result, or the error to raise. An error that was raised here, while a driver's exception
        is handled, would carry that exception as its context."""
        try:
            path = sqlite_file(self._engine.url)
            if path is not None and self._schema is None:
                prepare_file(path)
            async with self._engine.begin() as connection:
                if self.is_postgres:
                    # For each transaction: poolers refuse it as a connection's option and lose it as a session's.
                    await connection.execute(sa.text(f"SET LOCAL statement_timeout = {STATEMENT_LIMIT_MS}"))
                schema = self._schema if self._schema is not None else await self._prepare(connection)
                result = await work(connection, schema)
            self._schema = schema
            return result
        except Exception as error:
            # The tables may have been changed or dropped: prepare again before the next call.
            self._schema = None
            return self._describe(error)

    def _describe(self, error: Exception) -> ServiceError:
        """Our error in place of a driver's exception: it names the exception's type and, if there is one, the
        SQLSTATE."""
        if isinstance(error, ServiceError):
            return error
        original = getattr(error, "orig", None) or error
        sqlstate = getattr(original, "sqlstate", None)
        kind = f"{type(original).__name__} {sqlstate}" if isinstance(sqlstate, str) else type(original).__name__
        if isinstance(error, sa.exc.TimeoutError):
            return StoreUnavailable(f"Every connection to the {self._name} is in use.")
        if isinstance(error, sa.exc.ProgrammingError | sa.exc.IntegrityError | sa.exc.DataError):
            return StoreUnavailable(f"The {self._name} refused a statement ({kind}).")
        return StoreUnavailable(f"The {self._name} cannot be used ({kind}).")

    async def close(self) -> None:
        """End running calls and release every connection; bounded, whatever state the database is in."""
        self._closed = True
        await self._tasks.wait(CLOSE_LIMIT)
        self._tasks.cancel()
        self._tasks.start(self._engine.dispose(), name=f"{self._name}: close")
        await self._tasks.wait(CLOSE_LIMIT)


async def create_table(connection: AsyncConnection, table: sa.Table) -> None:
    """Create the table if it is missing. On PostgreSQL no other role gets rights on it."""
    if connection.dialect.name != "postgresql":
        await connection.execute(CreateTable(table, if_not_exists=True))
        return
    # Selected from a table, because only that makes the server forget what it knew before it got the lock.
    existing = sa.text("SELECT oid FROM pg_class WHERE oid = to_regclass(:table)")
    if await connection.scalar(existing, {"table": table.name}):
        return
    # "IF NOT EXISTS" does not protect against another replica that creates the table at the same moment.
    await lock_table(connection, table.name)
    if await connection.scalar(existing, {"table": table.name}):
        return
    await connection.execute(CreateTable(table))
    await connection.execute(sa.text(f"ALTER TABLE {table.name} ENABLE ROW LEVEL SECURITY"))
    roles = sa.text("SELECT rolname::text FROM pg_roles WHERE rolname = ANY(:roles)")
    for role in ("PUBLIC", *(await connection.scalars(roles, {"roles": list(API_ROLES)})).all()):
        await connection.execute(sa.text(f"REVOKE ALL ON {table.name} FROM {role}"))


async def lock_table(connection: AsyncConnection, name: str) -> None:
    """Wait until no other replica holds this lock on PostgreSQL; the transaction's end releases it."""
    await connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": name})
