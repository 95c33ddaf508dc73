"""The stored credentials in the owner's table `bot_credentials`, on SQLite or PostgreSQL.

The table belongs to other programs too: its column types are taken as they are, columns that are not ours are left
alone, and it is created only where there is none.

Exceptions of the drivers hold statements, parameters and so secrets. None leaves this file, not even as the context
of ours: an error is made inside the handler and raised after it.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateTable

from exchange_service.credentials import CredentialReference
from exchange_service.credentials.audit import Audit
from exchange_service.credentials.engine import database_address, make_engine, prepare_file, sqlite_file
from exchange_service.credentials.keysets import KeyProvider
from exchange_service.credentials.rows import (
    COLUMNS,
    TABLE,
    Row,
    credential_in,
    environment_name,
    is_storable,
    only_one,
)
from exchange_service.credentials.sealed_rows import Vault, plain_columns, sealed_columns
from exchange_service.credentials.sealing import is_sealed, key_id_of
from exchange_service.errors import (
    CredentialInvalid,
    CredentialMissing,
    CredentialUnreadable,
    ServiceError,
    StoreUnavailable,
)
from exchange_service.model import PRODUCTION, Account, Credential

T = TypeVar("T")

# One call as a whole: waiting for a connection, connecting, and the statements.
CALL_LIMIT = 2.5
# The statements end before the call is given up, so that the server's own word is what we report.
STATEMENT_LIMIT_MS = 2000
CLOSE_LIMIT = 2.0

# The roles that Supabase's public Data API acts as.
_API_ROLES = ("anon", "authenticated")

_NEW_TABLE = sa.Table(
    TABLE,
    sa.MetaData(),
    sa.Column("user_id", sa.Text, primary_key=True),
    sa.Column("exchange", sa.Text, primary_key=True),
    sa.Column("environment", sa.Text, primary_key=True, server_default=PRODUCTION),
    sa.Column("api_key", sa.Text),
    sa.Column("api_secret", sa.Text),
    sa.Column("passphrase", sa.Text),
    sa.Column("extra_metadata", sa.JSON),
)

_POSTGRES_COLUMNS = sa.text(
    "SELECT attname, format_type(atttypid, NULL), attnotnull FROM pg_attribute"
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


async def open_store(
    url: str, hash_key: bytes, *, keys: KeyProvider | None = None, allow_plaintext: bool = True
) -> SqlCredentialStore:
    """The store at `url`: postgresql://…, postgres://… or sqlite:///path. ValueError where it is none of these.

    With `keys` what is put is sealed. Rows of either kind are read, unless `allow_plaintext` is false.
    Nothing is connected yet: a database that is down is reported by the first call, and later calls try again.
    """
    vault = Vault(keys, Audit(hash_key), allow_plaintext)
    return SqlCredentialStore(make_engine(database_address(url)), hash_key, vault)


@dataclass(frozen=True, slots=True)
class Table:
    """The table as it is: our seven columns with the types and the nullability that they have."""

    clause: sa.TableClause
    nullable: frozenset[str]

    def as_text(self) -> list[sa.ColumnElement[Any]]:
        """Every column as text, so that one reader serves every column type."""
        return [sa.cast(self.clause.c[name], sa.Text).label(name) for name in COLUMNS]

    def value(self, column: str, text: str) -> Any:
        """A text as the column takes it: a JSON column as that very JSON, digits and all."""
        kind = self.clause.c[column].type
        return sa.cast(sa.literal(text, sa.Text), kind) if isinstance(kind, sa.JSON) else text

    def user(self, user_id: str) -> Any | None:
        """The value to compare the user column with; None where the column cannot hold this id."""
        if not is_storable(user_id):
            return None
        if not isinstance(self.clause.c.user_id.type, sa.Uuid):
            return user_id
        with suppress(ValueError):
            return uuid.UUID(user_id)
        return None


def _failure(error: Exception) -> ServiceError:
    """What we say instead of a driver's exception: its kind and, where there is one, the SQLSTATE."""
    if isinstance(error, ServiceError):
        return error
    original = getattr(error, "orig", None) or error
    state = getattr(original, "sqlstate", None)
    kind = f"{type(original).__name__} {state}" if isinstance(state, str) else type(original).__name__
    if isinstance(error, sa.exc.TimeoutError):
        return StoreUnavailable("Every connection to the credential database is in use.")
    if isinstance(error, sa.exc.ProgrammingError | sa.exc.IntegrityError | sa.exc.DataError):
        return StoreUnavailable(f"The credential database refused a statement ({kind}).")
    return StoreUnavailable(f"The credential database cannot be used ({kind}).")


class SqlCredentialStore:
    """The CredentialStore over `bot_credentials`. Make it with `open_store`, and close it: SQLite has a thread."""

    def __init__(self, engine: AsyncEngine, hash_key: bytes, vault: Vault) -> None:
        self.vault = vault
        self._engine = engine
        self._hash_key = hash_key
        self._table: Table | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False

    @property
    def _is_postgres(self) -> bool:
        return self._engine.dialect.name == "postgresql"

    async def find(
        self, account: Account, *, aliases: Sequence[str] = (), credential_of: str = ""
    ) -> CredentialReference | None:
        """The credential of `account`, or None; see the protocol. CredentialInvalid where several rows match."""
        own, other = account.exchange_id.lower(), credential_of.lower()
        environments = frozenset(map(environment_name, (account.environment, *aliases)))
        exchanges = [own, other] if other else [own]
        rows = await self.call(lambda connection, table: _rows(connection, table, account.user_id, exchanges))
        matching = [row for row in rows if row.serves(environments)]
        for exchange in exchanges:
            row = only_one([row for row in matching if row.exchange == exchange], account)
            if row is not None:
                return CredentialReference(account, row.account, row.version(self._hash_key))
        return None

    async def open(self, reference: CredentialReference) -> Credential:
        """What the row holds; null columns as empty texts. CredentialUnreadable where a sealed value does not open."""
        stored = reference.stored_as
        row = only_one(await self._rows_of(stored), stored)
        if row is None:
            raise CredentialMissing(f"The {stored.exchange_id} credential is stored no more.")
        return credential_in(await self.vault.opened(row))

    async def accounts(self, user_id: str) -> list[Account]:
        """Every stored account of the user, sorted; environments as the rows say, null as production."""
        return await self.call(lambda connection, table: _accounts(connection, table, user_id))

    async def all_accounts(self) -> list[Account]:
        """Every stored account of every user, sorted."""
        return await self.call(lambda connection, table: _accounts(connection, table, None))

    async def put(self, account: Account, credential: Credential) -> bool:
        """Store or replace, sealed where there are keys; True where there was none before. Columns that are not ours
        keep what they hold."""
        exchange = account.exchange_id.lower()
        account = Account(account.user_id, exchange, account.environment.strip() or PRODUCTION)
        try:
            metadata = json.dumps(dict(credential.metadata), allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            metadata = ""
        texts = (credential.api_key, credential.api_secret, credential.passphrase)
        written = [account.user_id, exchange, account.environment, metadata, *(text.reveal() for text in texts)]
        if not metadata or not all(map(is_storable, written)):
            raise CredentialInvalid(f"The {exchange} credential holds what a database cannot store.")
        if any(is_sealed(text.reveal()) for text in texts):
            raise CredentialInvalid(
                f"The {exchange} credential begins as sealed values do, and could not be read again."
            )
        row = await self._as_row(account, credential, metadata)
        # Before the transaction: a key may be kept elsewhere, and no connection should wait for it.
        sealed = await self.vault.sealed(row, plain_columns(row)) if self.vault.keys else None
        new = await self.call(lambda connection, table: _put(connection, table, account, credential, row, sealed))
        if sealed:
            self.vault.audit.sealed(row, {key_id_of(text) for text in sealed.values()})
        return new

    async def _as_row(self, account: Account, credential: Credential, metadata: str) -> Row:
        """The row that the credential will be."""

        async def as_stored(connection: AsyncConnection, table: Table) -> str:
            # A value is bound to the id as the column shows it: a uuid has several spellings, as has a text where
            # case does not matter.
            user = str(_user_or_refuse(table, account))
            row = only_one(await _matching(connection, table, account), account)
            return row.user_id if row else user

        return Row(
            user_id=await self.call(as_stored) if self.vault.keys else account.user_id,
            exchange=account.exchange_id,
            environment=account.environment,
            api_key=credential.api_key.reveal(),
            api_secret=credential.api_secret.reveal(),
            passphrase=credential.passphrase.reveal(),
            extra_metadata=metadata,
        )

    async def remove(self, account: Account) -> bool:
        """Remove; False where there was none."""
        return await self.call(lambda connection, table: _remove(connection, table, account))

    async def problem(self) -> str:
        """Why the store does not work right now, a sentence for the operator; empty when it does."""
        try:
            await self.call(_touch)
        except StoreUnavailable as error:
            return error.text
        return ""

    async def warnings(self) -> list[str]:
        """What an operator should change, though the store works: who else can read the credentials."""
        if self._is_postgres:
            return await self.call(_postgres_warnings)
        path = sqlite_file(self._engine.url)
        if path is None or not path.exists() or not path.stat().st_mode & 0o077:
            return []
        return [f"other users of this machine have rights on the credential file: chmod 600 {path}"]

    async def close(self) -> None:
        """End what is under way and release every connection; bounded, whatever state the database is in."""
        self._closed = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_LIMIT)
        for task in self._tasks:
            task.cancel()
        disposal = asyncio.ensure_future(self._engine.dispose())
        disposal.add_done_callback(_retrieve)
        await asyncio.wait({disposal, *self._tasks}, timeout=CLOSE_LIMIT)

    async def _rows_of(self, account: Account) -> list[Row]:
        """The rows whose own account is this one; several only where null and 'production' stand side by side."""
        environments = frozenset({environment_name(account.environment)})
        exchange = account.exchange_id.lower()
        rows = await self.call(lambda connection, table: _rows(connection, table, account.user_id, [exchange]))
        return [row for row in rows if row.serves(environments)]

    async def call(self, work: Callable[[AsyncConnection, Table], Awaitable[T]]) -> T:
        """`work` in one transaction, in bounded time. Drivers shield their clean-up from cancellation, for seconds
        when the server hangs: so the work is a task of its own, which is not waited for when its time is over. A caller
        that goes away leaves it to its end: a driver that is cancelled half-way may never come back."""
        if self._closed:
            raise StoreUnavailable("The credential store is closed.")
        task = asyncio.create_task(self._transaction(work), name="credential store")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_retrieve)
        try:
            done, _ = await asyncio.wait({task}, timeout=CALL_LIMIT)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(CALL_LIMIT, task.cancel)
            raise
        if not done:
            task.cancel()
            raise StoreUnavailable(f"The credential database did not answer within {CALL_LIMIT} seconds.")
        if task.cancelled():
            raise StoreUnavailable("The credential store is closed.")
        outcome = task.result()
        if isinstance(outcome, ServiceError):
            raise outcome
        return outcome

    async def _transaction(self, work: Callable[[AsyncConnection, Table], Awaitable[T]]) -> T | ServiceError:
        """The work's result, or what to raise. It is returned because an error raised here, while another one is
        handled, would carry that one along as its context."""
        try:
            path = sqlite_file(self._engine.url)
            if path is not None and self._table is None:
                prepare_file(path)
            async with self._engine.begin() as connection:
                if self._is_postgres:
                    # By transaction: poolers refuse it as a connection's option and lose it as a session's.
                    await connection.execute(sa.text(f"SET LOCAL statement_timeout = {STATEMENT_LIMIT_MS}"))
                if self._table is None:
                    table = await self._reflect(connection)
                else:
                    table = self._table
                result = await work(connection, table)
            self._table = table
            return result
        except Exception as error:
            # The owner may have changed the table: look at it again before the next call.
            self._table = None
            return _failure(error)

    async def _reflect(self, connection: AsyncConnection) -> Table:
        """The table as it is, created where it is missing."""
        columns = await _columns(connection)
        if not columns:
            await _create(connection)
            columns = await _columns(connection)
        missing = [name for name in COLUMNS if name not in columns]
        if missing:
            raise StoreUnavailable(f"The table {TABLE} lacks the column {', '.join(missing)}.")
        kinds = {name: kind for name, (kind, _) in columns.items()}
        return Table(
            sa.table(TABLE, *(sa.column(name, _column_type(kinds[name])) for name in COLUMNS)),
            frozenset(name for name, (_, nullable) in columns.items() if nullable),
        )


def _retrieve(task: asyncio.Future[Any]) -> None:
    """Take the outcome of a task that nobody waits for any more, or asyncio would log it."""
    if not task.cancelled():
        task.exception()


def _column_type(kind: str) -> sa.types.TypeEngine[Any]:
    if kind == "uuid":
        return sa.Uuid()
    if kind == "jsonb":
        return postgresql.JSONB()
    if kind == "json":
        return sa.JSON()
    return sa.Text()


async def _columns(connection: AsyncConnection) -> dict[str, tuple[str, bool]]:
    """Type and nullability by column name; empty where there is no such table. A plain query instead of the
    library's reflection, which warns about every type of the owner's other columns that it does not know."""
    if connection.dialect.name == "postgresql":
        result = await connection.execute(_POSTGRES_COLUMNS, {"table": TABLE})
        return {name: (kind, not required) for name, kind, required in result}
    result = await connection.execute(sa.text(f"PRAGMA table_info({TABLE})"))
    # SQLite has no uuid, and its JSON is text under another name.
    return {row.name: ("text", not row.notnull) for row in result}


async def _create(connection: AsyncConnection) -> None:
    """Our own table; on PostgreSQL closed to everybody else, as Supabase would offer it to the public."""
    if connection.dialect.name != "postgresql":
        await connection.execute(CreateTable(_NEW_TABLE, if_not_exists=True))
        return
    # "IF NOT EXISTS" is no protection against another replica that creates it at the same moment.
    await _lock_for_writing(connection)
    if await _columns(connection):
        return
    await connection.execute(CreateTable(_NEW_TABLE))
    await connection.execute(sa.text(f"ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY"))
    await connection.execute(sa.text(f"REVOKE ALL ON {TABLE} FROM PUBLIC"))
    present = await connection.scalars(
        sa.text("SELECT rolname::text FROM pg_roles WHERE rolname = ANY(:roles)"), {"roles": list(_API_ROLES)}
    )
    for role in present.all():
        await connection.execute(sa.text(f"REVOKE ALL ON {TABLE} FROM {role}"))


async def _rows(connection: AsyncConnection, table: Table, user_id: str, exchanges: Sequence[str]) -> list[Row]:
    user = table.user(user_id)
    if user is None or not all(map(is_storable, exchanges)):
        return []
    columns = table.clause.c
    query = sa.select(*table.as_text()).where(columns.user_id == user, columns.exchange.in_(exchanges))
    return [Row(*row) for row in await connection.execute(query)]


async def _accounts(connection: AsyncConnection, table: Table, user_id: str | None) -> list[Account]:
    columns = table.clause.c
    texts = [sa.cast(columns[name], sa.Text) for name in ("user_id", "exchange", "environment")]
    query = sa.select(*texts).where(columns.user_id.is_not(None), columns.exchange.is_not(None))
    if user_id is not None:
        user = table.user(user_id)
        if user is None:
            return []
        query = query.where(columns.user_id == user)
    rows = (await connection.execute(query)).all()
    return sorted({Account(row[0], row[1], row[2] or PRODUCTION) for row in rows})


def this_row(table: Table, user: Any, row: Row) -> list[sa.ColumnElement[bool]]:
    """The condition that picks the row out."""
    columns = table.clause.c
    environment = sa.cast(columns.environment, sa.Text)
    return [
        columns.user_id == user,
        columns.exchange == row.exchange,
        environment.is_not_distinct_from(row.environment),
    ]


def _values(table: Table, credential: Credential) -> dict[str, Any]:
    """Our columns' new values: what is empty is null where the column takes it, as other programs know it."""
    values: dict[str, Any] = {}
    for name in ("api_key", "api_secret", "passphrase"):
        text = getattr(credential, name).reveal()
        values[name] = text or (None if name in table.nullable else "")
    metadata = dict(credential.metadata)
    is_json = isinstance(table.clause.c.extra_metadata.type, sa.JSON)
    values["extra_metadata"] = metadata if is_json else json.dumps(metadata)
    return values


async def _lock_for_writing(connection: AsyncConnection) -> None:
    """Let one of our writers at a time look and then write. Reading never waits for it.

    SQLite's busy timeout would not hold for a transaction that begins with reading and then wants to write.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": TABLE})
    else:
        await connection.exec_driver_sql("BEGIN IMMEDIATE")


async def _matching(connection: AsyncConnection, table: Table, account: Account) -> list[Row]:
    rows = await _rows(connection, table, account.user_id, [account.exchange_id.lower()])
    return [row for row in rows if row.serves(frozenset({environment_name(account.environment)}))]


def _user_or_refuse(table: Table, account: Account) -> Any:
    user = table.user(account.user_id)
    if user is None:
        raise CredentialInvalid(f"The table {TABLE} takes only a UUID as user_id.")
    return user


async def _put(
    connection: AsyncConnection,
    table: Table,
    account: Account,
    credential: Credential,
    sealed_for: Row,
    sealed: dict[str, str] | None,
) -> bool:
    user = _user_or_refuse(table, account)
    values = _values(table, credential)
    for column, text in (sealed or {}).items():
        values[column] = table.value(column, text)
    await _lock_for_writing(connection)
    row = only_one(await _matching(connection, table, account), account)
    if row is not None:
        if sealed is None and sealed_columns(row):
            raise CredentialUnreadable(
                f"The stored {row.exchange} credential is sealed, and there is no keyset to seal the new one with.",
                advice="Set keyset_file, or remove the stored one first.",
            )
        if sealed and row.user_id != sealed_for.user_id:
            raise StoreUnavailable(f"The {row.exchange} credential was stored by another program meanwhile.")
        changed = await connection.execute(sa.update(table.clause).where(*this_row(table, user, row)).values(values))
        if changed.rowcount:
            return False
    keys = {"user_id": user, "exchange": account.exchange_id, "environment": account.environment}
    await connection.execute(sa.insert(table.clause).values({**keys, **values}))
    return True


async def _remove(connection: AsyncConnection, table: Table, account: Account) -> bool:
    await _lock_for_writing(connection)
    rows = await _matching(connection, table, account)
    for row in rows:
        await connection.execute(sa.delete(table.clause).where(*this_row(table, table.user(account.user_id), row)))
    return bool(rows)


async def _touch(connection: AsyncConnection, table: Table) -> None:
    """Read nothing, but prove that it could be read."""
    await connection.execute(sa.select(*table.as_text()).limit(0))


async def _postgres_warnings(connection: AsyncConnection, _table: Table) -> list[str]:
    warnings = []
    query = sa.text("SELECT relrowsecurity FROM pg_class WHERE oid = to_regclass(:table)")
    if not await connection.scalar(query, {"table": TABLE}):
        warnings.append(
            f"row-level security is off on {TABLE}, so a public Data API would show it:"
            f" ALTER TABLE {TABLE} ENABLE ROW LEVEL SECURITY"
        )
    rights = await connection.execute(_POSTGRES_RIGHTS, {"table": TABLE, "roles": list(_API_ROLES)})
    for role, reads, writes in rights:
        if reads or writes:
            verb = "read" if reads else "changed"
            name = role.upper() if role == "public" else role
            warnings.append(f"{TABLE} can be {verb} by {name}: REVOKE ALL ON {TABLE} FROM {name}")
    return warnings
