"""The credential store on SQLite or PostgreSQL: finding, opening, storing and removing rows of `bot_credentials`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from exchange_service.credentials import MOST_ACCOUNTS, CredentialReference, StoredCredential
from exchange_service.credentials.audit import Audit
from exchange_service.credentials.database import Database
from exchange_service.credentials.engine import database_address, make_engine, sqlite_file
from exchange_service.credentials.key_providers import KeyProvider
from exchange_service.credentials.rows import (
    KEY_COLUMNS,
    LONGEST_SECRET,
    TABLE,
    CredentialRow,
    environment_name,
    is_storable,
    only_one,
    read_credential,
)
from exchange_service.credentials.sealed_rows import Vault, plain_columns, sealed_columns
from exchange_service.credentials.sealing import is_sealed, key_id_of
from exchange_service.credentials.stored_times import read_stored_time
from exchange_service.credentials.table import CredentialTable, lock_for_writing, open_table, postgres_warnings
from exchange_service.errors import CredentialInvalid, CredentialMissing, CredentialUnreadable, StoreUnavailable
from exchange_service.model import PRODUCTION, Account, Credential

T = TypeVar("T")

# The rows of one user that are read at once, at one exchange and the one whose credential it uses.
_MOST_ROWS = 32


async def open_store(
    url: str, hash_key: bytes, *, keys: KeyProvider | None = None, allow_plaintext: bool = True
) -> SqlCredentialStore:
    """The store at `url`: postgresql://…, postgres://… or sqlite:///path. ValueError for any other URL.

    With `keys` new credentials are sealed. Sealed and plain rows are read, unless `allow_plaintext` is false.
    Nothing is connected yet: a database that is down is reported by the first call, and later calls try again.
    """
    vault = Vault(keys, Audit(hash_key), allow_plaintext)
    return SqlCredentialStore(make_engine(database_address(url)), hash_key, vault)


class SqlCredentialStore:
    """The CredentialStore over `bot_credentials`. Make it with `open_store`, and close it: SQLite has a thread."""

    def __init__(self, engine: AsyncEngine, hash_key: bytes, vault: Vault) -> None:
        self.vault = vault
        self.hash_key = hash_key
        self._database = Database(engine, "credential database", open_table)

    async def find(
        self, account: Account, *, aliases: Sequence[str] = (), credential_of: str = ""
    ) -> CredentialReference | None:
        """The credential of `account`, or None; see the protocol. CredentialInvalid if several rows match."""
        own, other = account.exchange_id.lower(), credential_of.lower()
        environments = frozenset(map(environment_name, (account.environment, *aliases)))
        exchanges = [own, other] if other else [own]
        rows = await self.call(lambda connection, table: select_rows(connection, table, account.user_id, exchanges))
        matching = [row for row in rows if row.serves(environments)]
        for exchange in exchanges:
            row = only_one([row for row in matching if row.exchange == exchange], account)
            if row is not None:
                return CredentialReference(account, row.account, row.version(self.hash_key))
        return None

    async def open(self, reference: CredentialReference) -> Credential:
        """What the row holds; null columns as empty texts. CredentialUnreadable if a sealed value does not open."""
        stored = reference.stored_as
        row = await self.read_row(stored)
        if row is None:
            raise CredentialMissing(f"The {stored.exchange_id} credential is no longer stored.")
        return read_credential(await self.vault.open_row(row))

    async def read_row(self, stored_as: Account) -> CredentialRow | None:
        """The row of this account as it is stored, or None. CredentialInvalid if there are several, or if
        it holds a text that is too long."""
        rows = await self.call(lambda connection, table: _select_matching(connection, table, stored_as))
        return only_one(rows, stored_as)

    async def accounts(self, user_id: str) -> list[Account]:
        """Every stored account of the user, sorted; environments as the rows say, null as production."""
        return await self.call(lambda connection, table: _select_accounts(connection, table, user_id))

    async def stored(self, user_id: str) -> list[StoredCredential]:
        """Every stored credential of the user without its values, sorted by account; see the protocol."""
        return await self.call(lambda connection, table: _select_stored(connection, table, user_id))

    async def all_accounts(self) -> list[Account]:
        """Every stored account of every user, sorted."""
        return await self.call(lambda connection, table: _select_accounts(connection, table, None))

    async def put(self, account: Account, credential: Credential) -> bool:
        """Store or replace, sealed if there are keys; True if the credential is new. Columns that are not ours keep
        their values."""
        exchange = account.exchange_id.lower()
        account = Account(account.user_id, exchange, account.environment.strip() or PRODUCTION)
        row = self._make_row(account, credential, storable_metadata(account, credential))
        # Before the transaction: a key may be kept elsewhere, and no connection should wait for it.
        sealed = await self.vault.seal_columns(row, plain_columns(row)) if self.vault.keys else None
        new = await self.call(
            lambda connection, table: _put(connection, table, account, _NewValues(credential, row, sealed))
        )
        if sealed:
            self.vault.audit.record_sealing(row, {key_id_of(text) for text in sealed.values()})
        return new

    @staticmethod
    def _make_row(account: Account, credential: Credential, metadata: str) -> CredentialRow:
        """The row that the credential will become."""

        return CredentialRow(
            # A value is bound to the id as the column shows it, and no row with another spelling is ever read.
            user_id=account.user_id,
            exchange=account.exchange_id,
            environment=account.environment,
            api_key=credential.api_key.reveal(),
            api_secret=credential.api_secret.reveal(),
            passphrase=credential.passphrase.reveal(),
            extra_metadata=metadata,
        )

    async def remove(self, account: Account) -> bool:
        """Remove; False if nothing was stored."""
        return await self.call(lambda connection, table: _remove(connection, table, account))

    async def problem(self) -> str:
        """Why the store does not work right now, a sentence for the operator; empty if it works."""
        try:
            await self.call(_touch)
        except StoreUnavailable as error:
            return error.text
        return ""

    def missing_file(self) -> Path | None:
        """The SQLite file if it does not exist yet, because the first call creates it; else None."""
        path = sqlite_file(self._database.url)
        return path if path is not None and not path.exists() else None

    async def warnings(self) -> list[str]:
        """What an operator should change although the store works: other roles or users can read the credentials."""
        if self._database.is_postgres:
            return await self.call(postgres_warnings)
        path = sqlite_file(self._database.url)
        if path is None or not path.exists() or not path.stat().st_mode & 0o077:
            return []
        return [f"other users of this machine have rights on the credential file: chmod 600 {path}"]

    async def close(self) -> None:
        """End running calls and release every connection; bounded, whatever state the database is in."""
        await self._database.close()

    async def call(self, work: Callable[[AsyncConnection, CredentialTable], Awaitable[T]]) -> T:
        """Run `work` in one transaction, in bounded time; StoreUnavailable if the database does not answer."""
        return await self._database.call(work)


def storable_metadata(account: Account, credential: Credential) -> str:
    """The metadata as JSON text; CredentialInvalid if the credential cannot be stored or read again."""
    exchange = account.exchange_id
    try:
        metadata = json.dumps(dict(credential.metadata), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        metadata = ""
    texts = [text.reveal() for text in (credential.api_key, credential.api_secret, credential.passphrase)]
    if not metadata or not all(map(is_storable, (account.user_id, exchange, account.environment, metadata, *texts))):
        raise CredentialInvalid(f"The {exchange} credential contains a value that a database cannot store.")
    if any(len(text.encode()) > LONGEST_SECRET // 2 for text in (metadata, *texts)):
        # A sealed text is longer by a third.
        raise CredentialInvalid(f"A text of the {exchange} credential is longer than {LONGEST_SECRET // 2048} KiB.")
    if any(map(is_sealed, texts)):
        raise CredentialInvalid(
            f"A text of the {exchange} credential begins as sealed values do, and could not be read again."
        )
    return metadata


async def select_rows(
    connection: AsyncConnection, table: CredentialTable, user_id: str, exchanges: Sequence[str]
) -> list[CredentialRow]:
    """The user's rows at these exchanges. CredentialInvalid if there are more than anybody needs."""
    user = table.user(user_id)
    if user is None or not all(map(is_storable, exchanges)):
        return []
    values = {"user": user, "user_text": user_id, "exchanges": list(exchanges)}
    rows = [CredentialRow(*row) for row in await connection.execute(_rows_query(table), values)]
    if len(rows) > _MOST_ROWS:
        raise CredentialInvalid(
            f"More than {_MOST_ROWS} credentials of this user are stored for {exchanges[0]}.",
            advice="Remove those that are not needed.",
        )
    return rows


# As many as there are stores with tables of their own, in tests.
@lru_cache(maxsize=8)
def _rows_query(table: CredentialTable) -> sa.Select[Any]:
    """The query of `select_rows`. Making it for each account takes a millisecond, and thousands come back at once."""
    columns = table.clause.c
    # A parameter that is compared with a column has the column's type.
    own = (
        columns.user_id == sa.bindparam("user"),
        table.is_exactly(sa.bindparam("user_text")),
        columns.exchange.in_(sa.bindparam("exchanges", expanding=True)),
        table.is_possible(),
    )
    # One more than is allowed shows that there are too many.
    return sa.select(*table.as_text()).where(*own).limit(_MOST_ROWS + 1)


async def _select_matching(
    connection: AsyncConnection, table: CredentialTable, account: Account
) -> list[CredentialRow]:
    """The rows whose own account is this one; several only if null and 'production' stand side by side."""
    return await _select_of(connection, table, account, account.exchange_id.lower())


async def _select_of(
    connection: AsyncConnection, table: CredentialTable, account: Account, exchange: str
) -> list[CredentialRow]:
    environments = frozenset({environment_name(account.environment)})
    rows = await select_rows(connection, table, account.user_id, [exchange])
    return [row for row in rows if row.serves(environments)]


async def _select_accounts(connection: AsyncConnection, table: CredentialTable, user_id: str | None) -> list[Account]:
    columns = table.clause.c
    texts = [table.text(name) for name in KEY_COLUMNS]
    query = sa.select(*texts).where(columns.user_id.is_not(None), columns.exchange.is_not(None), table.is_possible())
    if user_id is not None:
        user = table.user(user_id)
        if user is None:
            return []
        query = query.where(columns.user_id == user, table.is_exactly(user_id))
        query = query.distinct().order_by(*texts).limit(MOST_ACCOUNTS)
    rows = (await connection.execute(query)).all()
    return sorted({Account(row[0], row[1], row[2] or PRODUCTION) for row in rows})


async def _select_stored(connection: AsyncConnection, table: CredentialTable, user_id: str) -> list[StoredCredential]:
    user = table.user(user_id)
    if user is None:
        return []
    own = (table.clause.c.user_id == user, table.is_exactly(user_id), table.clause.c.exchange.is_not(None))
    query = sa.select(*table.beginnings(), table.times.selected()).where(*own, table.is_possible())
    rows = (await connection.execute(query.order_by(*map(table.text, KEY_COLUMNS)).limit(MOST_ACCOUNTS))).all()
    return sorted((_read_stored(CredentialRow(*row[:-1]), row[-1]) for row in rows), key=lambda one: one.account)


def _read_stored(row: CredentialRow, stored_time: object) -> StoredCredential:
    return StoredCredential(row.account, read_stored_time(stored_time), not plain_columns(row))


def _require_user(table: CredentialTable, account: Account) -> object:
    user = table.user(account.user_id)
    if user is None:
        raise CredentialInvalid(f"The table {TABLE} takes only a UUID as user_id.")
    if str(user) != account.user_id:
        raise CredentialInvalid(
            f"The table {TABLE} shows this user_id in another spelling, and only that one is ever read.",
            advice=f"Store it for {user}.",
        )
    return user


@dataclass(frozen=True, slots=True)
class _NewValues:
    """What `put` stores: the credential, the plain row that it becomes, and the texts sealed for that row, if any."""

    credential: Credential = field(repr=False)
    row: CredentialRow
    sealed: dict[str, str] | None


async def _put(connection: AsyncConnection, table: CredentialTable, account: Account, new: _NewValues) -> bool:
    """Store the values; True if there was no row."""
    user = _require_user(table, account)
    values = {**table.values(new.credential), **table.times.now()}
    for column, text in (new.sealed or {}).items():
        values[column] = table.value(column, text)
    await lock_for_writing(connection)
    rows = await _select_matching(connection, table, account)
    # One that is too long is replaced as any other.
    row = only_one([replace(row, too_long=None) for row in rows], account)
    if row is not None:
        if new.sealed is None and sealed_columns(row):
            raise CredentialUnreadable(
                f"The stored {row.exchange} credential is sealed, and there is no keyset to seal the new one with.",
                advice="Set keyset_file, or remove the stored one first.",
            )
        changed = await connection.execute(sa.update(table.clause).where(*table.matches(user, row)).values(values))
        if changed.rowcount:
            return False
    keys = {"user_id": user, "exchange": account.exchange_id, "environment": account.environment}
    await connection.execute(sa.insert(table.clause).values({**keys, **values}))
    if not await _select_matching(connection, table, account):
        # Such as a text with a blank at its end, in a column of a fixed length.
        raise CredentialInvalid(
            f"The table {TABLE} does not show this user_id as it was given.", advice="Use another user_id."
        )
    return True


async def _remove(connection: AsyncConnection, table: CredentialTable, account: Account) -> bool:
    await lock_for_writing(connection)
    # Another program may have stored it in capitals; no call finds such a row, but it is listed.
    rows = await _select_of(connection, table, account, account.exchange_id)
    rows = rows or await _select_matching(connection, table, account)
    for row in rows:
        await connection.execute(sa.delete(table.clause).where(*table.matches(table.user(account.user_id), row)))
    return bool(rows)


async def _touch(connection: AsyncConnection, table: CredentialTable) -> None:
    """Read no row, but prove that reading works."""
    await connection.execute(sa.select(*table.as_text()).limit(0))
