"""Changing stored rows in place: sealing plain ones, unsealing sealed ones, and sealing again with a newer key.

Each row is changed in a transaction of its own, and only if it still holds what was read: what another program writes
meanwhile is never overwritten. So the table stays in use, the next run finishes a run that was killed, and a second
run finds nothing to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from exchange_service.credentials.rows import SECRET_COLUMNS, CredentialRow
from exchange_service.credentials.sealed_rows import keys_of, plain_columns, sealed_columns
from exchange_service.credentials.sealing import key_id_of
from exchange_service.credentials.sql import SqlCredentialStore
from exchange_service.credentials.table import CredentialTable
from exchange_service.errors import CredentialUnreadable
from exchange_service.model import Account

# The number of users whose rows are read at once.
PAGE_SIZE = 1000
# A row that other programs keep changing is left to the next run.
_ATTEMPTS = 3


class Change(Enum):
    """What is done to a row."""

    SEAL = "seal"
    UNSEAL = "unseal"
    REWRAP = "rewrap"


class RewriteResult(Enum):
    """What happened to a row."""

    CHANGED = "changed"
    NOTHING_TO_DO = "nothing to do"
    IN_USE = "changed by another program at the same time"
    REFUSED = "refused by the database; a column may be too narrow for a sealed value"
    UNREADABLE = "cannot be opened"
    TOO_LONG = "holds a text that is too long to be read"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows: those of a user, those of an exchange, or all if neither is given."""

    user_id: str = ""
    exchange_id: str = ""


@dataclass(frozen=True, slots=True)
class RewrittenRow:
    """The account of one row, and what happened to the row."""

    account: Account
    result: RewriteResult


@dataclass(slots=True)
class Survey:
    """How many rows of the table hold anything, how many of these hold plain text, and how many values each key seals.
    A value that is damaged or of a later version counts under an empty id."""

    rows: int = 0
    plain_rows: int = 0
    values_by_key: Counter[str] = field(default_factory=Counter)


async def survey(store: SqlCredentialStore) -> Survey:
    """Read every row and count. StoreUnavailable if the database does not answer."""
    counts = Survey()
    async for row in _read_rows(store, Choice()):
        if not keys_of(row):
            continue
        counts.rows += 1
        counts.plain_rows += bool(plain_columns(row))
        counts.values_by_key.update(key_id_of(getattr(row, column)) for column in sealed_columns(row))
    return counts


async def rewrite(
    store: SqlCredentialStore, change: Change, choice: Choice, *, dry_run: bool = False
) -> AsyncIterator[RewrittenRow]:
    """Change the chosen rows, and yield the result for each. StoreUnavailable ends the run; finished rows stay
    changed."""
    async for row in _read_rows(store, choice):
        yield RewrittenRow(row.account, await _rewrite_row(store, change, row, dry_run=dry_run))


async def _rewrite_row(
    store: SqlCredentialStore, change: Change, row: CredentialRow | None, *, dry_run: bool
) -> RewriteResult:
    for _ in range(_ATTEMPTS):
        if row is None:
            return RewriteResult.NOTHING_TO_DO
        if row.too_long:
            return RewriteResult.TOO_LONG
        try:
            texts = await _make_texts(store, change, row, dry_run=dry_run)
        except CredentialUnreadable:
            return RewriteResult.UNREADABLE
        if not texts:
            return RewriteResult.NOTHING_TO_DO
        if dry_run:
            return RewriteResult.CHANGED
        result = await replace_row(store, row, texts)
        if result is not None:
            if result is RewriteResult.CHANGED and change is not Change.UNSEAL:
                store.vault.audit.record_sealing(row, {key_id_of(text) for text in texts.values()})
            return result
        row = await _reread_row(store, row)
    return RewriteResult.IN_USE


async def _make_texts(
    store: SqlCredentialStore, change: Change, row: CredentialRow, *, dry_run: bool
) -> dict[str, str]:
    """The columns to change with the texts to store in them. A dry run opens and seals nothing; its texts are empty."""
    if change is Change.SEAL:
        columns = plain_columns(row)
        return dict.fromkeys(columns, "") if dry_run else await store.vault.seal_columns(row, columns)
    columns = sealed_columns(row)
    if change is Change.REWRAP and store.vault.keys is not None:
        primary = await store.vault.keys.primary()
        columns = [column for column in columns if key_id_of(getattr(row, column)) != primary]
    if not columns or dry_run:
        return dict.fromkeys(columns, "")
    plain = await store.vault.open_row(row, purpose=change.value)
    if change is Change.REWRAP:
        return await store.vault.seal_columns(plain, columns)
    return {column: getattr(plain, column) for column in columns}


async def replace_row(store: SqlCredentialStore, row: CredentialRow, texts: dict[str, str]) -> RewriteResult | None:
    """Store the texts if the row still holds what was read; None if it does not."""

    async def replace(connection: AsyncConnection, table: CredentialTable) -> RewriteResult | None:
        user = table.user(row.user_id)
        unchanged = [
            sa.cast(table.clause.c[name], sa.Text).is_not_distinct_from(getattr(row, name)) for name in SECRET_COLUMNS
        ]
        values = {name: table.value(name, text) for name, text in texts.items()}
        statement = sa.update(table.clause).where(*table.matches(user, row), *unchanged).values(values)
        try:
            changed = await connection.execute(statement)
        except (sa.exc.DataError, sa.exc.IntegrityError):
            await connection.rollback()
            return RewriteResult.REFUSED
        return RewriteResult.CHANGED if changed.rowcount else None

    return await store.call(replace)


async def _reread_row(store: SqlCredentialStore, row: CredentialRow) -> CredentialRow | None:
    """The row as it is now; None if it is gone."""

    async def read(connection: AsyncConnection, table: CredentialTable) -> list[CredentialRow]:
        query = sa.select(*table.as_text()).where(*table.matches(table.user(row.user_id), row)).limit(1)
        return [CredentialRow(*values) for values in await connection.execute(query)]

    rows = await store.call(read)
    return rows[0] if rows else None


async def _read_rows(store: SqlCredentialStore, choice: Choice) -> AsyncIterator[CredentialRow]:
    """Every chosen row, a page of users at a time, so that a large table neither fills the memory nor exceeds the time
    limit of a statement. A user who is added meanwhile may be missed."""
    last: Any = None
    while True:
        users, rows = await _read_page(store, choice, last)
        for row in rows:
            yield row
        if len(users) < PAGE_SIZE:
            return
        last = users[-1]


async def _read_page(store: SqlCredentialStore, choice: Choice, last: Any) -> tuple[list[Any], list[CredentialRow]]:
    async def read(connection: AsyncConnection, table: CredentialTable) -> tuple[list[Any], list[CredentialRow]]:
        columns = table.clause.c
        chosen = [columns.user_id.is_not(None), columns.exchange.is_not(None), table.is_possible()]
        if choice.user_id:
            user = table.user(choice.user_id)
            if user is None:
                return [], []
            chosen.append(columns.user_id == user)
        if choice.exchange_id:
            chosen.append(columns.exchange == choice.exchange_id)
        after = chosen if last is None else [*chosen, columns.user_id > last]
        query = sa.select(columns.user_id).where(*after).distinct().order_by(columns.user_id).limit(PAGE_SIZE)
        users = list((await connection.scalars(query)).all())
        texts = sa.select(*table.as_text()).where(*chosen, columns.user_id.in_(users)).order_by(columns.user_id)
        return users, [CredentialRow(*values) for values in await connection.execute(texts)] if users else []

    return await store.call(read)
