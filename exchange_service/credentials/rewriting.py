"""Changing rows where they are: sealing plain ones, opening sealed ones for good, sealing again with a newer key.

Row by row, each in a transaction of its own, and only if the row still holds what was read: what another program
writes meanwhile is never overwritten. So the table stays in use, a run that was killed is finished by the next, and a
second run finds nothing to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from exchange_service.credentials.rows import SECRET_COLUMNS, Row
from exchange_service.credentials.sealed_rows import keys_of, plain_columns, sealed_columns
from exchange_service.credentials.sealing import key_id_of
from exchange_service.credentials.sql import SqlCredentialStore, Table, this_row
from exchange_service.errors import CredentialUnreadable
from exchange_service.model import Account

# Users whose rows are read at once.
_PAGE = 1000
# A row that others keep changing is left to the next run.
_TRIES = 3


class Change(Enum):
    """What is done to a row."""

    SEAL = "seal"
    UNSEAL = "unseal"
    REWRAP = "rewrap"


class Outcome(Enum):
    """What became of a row."""

    CHANGED = "changed"
    NOTHING_TO_DO = "nothing to do"
    IN_USE = "changed by another program meanwhile"
    REFUSED = "refused by the database; a column may be too narrow for a sealed value"
    UNREADABLE = "cannot be opened"


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows: a user's, an exchange's, or with neither all."""

    user_id: str = ""
    exchange_id: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one row."""

    account: Account
    outcome: Outcome


@dataclass(slots=True)
class Survey:
    """How the rows of the table stand: how many hold anything, how many of these something in plain text, and how many
    values each key seals. A value that is damaged, or of a later version, counts under an empty id."""

    rows: int = 0
    plain_rows: int = 0
    values_by_key: Counter[str] = field(default_factory=Counter)


async def survey(store: SqlCredentialStore) -> Survey:
    """Look at every row."""
    found = Survey()
    async for row in _rows(store, Choice()):
        if not keys_of(row):
            continue
        found.rows += 1
        found.plain_rows += bool(plain_columns(row))
        found.values_by_key.update(key_id_of(getattr(row, column)) for column in sealed_columns(row))
    return found


async def rewrite(
    store: SqlCredentialStore, change: Change, choice: Choice, *, dry_run: bool = False
) -> AsyncIterator[Done]:
    """Change the rows, and say of each what became of it. StoreUnavailable ends it; what is done stays done."""
    async for row in _rows(store, choice):
        yield Done(row.account, await _rewrite_row(store, change, row, dry_run=dry_run))


async def _rewrite_row(store: SqlCredentialStore, change: Change, row: Row | None, *, dry_run: bool) -> Outcome:
    for _ in range(_TRIES):
        if row is None:
            return Outcome.NOTHING_TO_DO
        try:
            texts = await _new_texts(store, change, row, dry_run=dry_run)
        except CredentialUnreadable:
            return Outcome.UNREADABLE
        if not texts:
            return Outcome.NOTHING_TO_DO
        if dry_run:
            return Outcome.CHANGED
        outcome = await _replace(store, row, texts)
        if outcome is not None:
            if outcome is Outcome.CHANGED and change is not Change.UNSEAL:
                store.vault.audit.sealed(row, {key_id_of(text) for text in texts.values()})
            return outcome
        row = await _again(store, row)
    return Outcome.IN_USE


async def _new_texts(store: SqlCredentialStore, change: Change, row: Row, *, dry_run: bool) -> dict[str, str]:
    """The columns to change, and what to store in them. A dry run opens and seals nothing."""
    if change is Change.SEAL:
        columns = plain_columns(row)
        return dict.fromkeys(columns, "") if dry_run else await store.vault.sealed(row, columns)
    columns = sealed_columns(row)
    if change is Change.REWRAP and store.vault.keys is not None:
        primary = await store.vault.keys.primary()
        columns = [column for column in columns if key_id_of(getattr(row, column)) != primary]
    if not columns or dry_run:
        return dict.fromkeys(columns, "")
    plain = await store.vault.opened(row, purpose=change.value)
    if change is Change.REWRAP:
        return await store.vault.sealed(plain, columns)
    return {column: getattr(plain, column) for column in columns}


async def _replace(store: SqlCredentialStore, row: Row, texts: dict[str, str]) -> Outcome | None:
    """Store the texts if the row still holds what was read; None where it does not."""

    async def replace(connection: AsyncConnection, table: Table) -> Outcome | None:
        user = table.user(row.user_id)
        held = [
            sa.cast(table.clause.c[name], sa.Text).is_not_distinct_from(getattr(row, name)) for name in SECRET_COLUMNS
        ]
        values = {name: table.value(name, text) for name, text in texts.items()}
        statement = sa.update(table.clause).where(*this_row(table, user, row), *held).values(values)
        try:
            changed = await connection.execute(statement)
        except (sa.exc.DataError, sa.exc.IntegrityError):
            await connection.rollback()
            return Outcome.REFUSED
        return Outcome.CHANGED if changed.rowcount else None

    return await store.call(replace)


async def _again(store: SqlCredentialStore, row: Row) -> Row | None:
    """The row as it is now; None where it is gone."""

    async def read(connection: AsyncConnection, table: Table) -> list[Row]:
        query = sa.select(*table.as_text()).where(*this_row(table, table.user(row.user_id), row)).limit(1)
        return [Row(*found) for found in await connection.execute(query)]

    rows = await store.call(read)
    return rows[0] if rows else None


async def _rows(store: SqlCredentialStore, choice: Choice) -> AsyncIterator[Row]:
    """Every row of the choice, a page of users at a time, so that a large table neither fills the memory nor takes a
    statement's whole time. A user who comes while it goes on may be missed."""
    last: Any = None
    while True:
        users, rows = await _page(store, choice, last)
        for row in rows:
            yield row
        if len(users) < _PAGE:
            return
        last = users[-1]


async def _page(store: SqlCredentialStore, choice: Choice, last: Any) -> tuple[list[Any], list[Row]]:
    async def read(connection: AsyncConnection, table: Table) -> tuple[list[Any], list[Row]]:
        columns = table.clause.c
        chosen: list[sa.ColumnElement[bool]] = [columns.user_id.is_not(None), columns.exchange.is_not(None)]
        if choice.user_id:
            user = table.user(choice.user_id)
            if user is None:
                return [], []
            chosen.append(columns.user_id == user)
        if choice.exchange_id:
            chosen.append(columns.exchange == choice.exchange_id)
        after = chosen if last is None else [*chosen, columns.user_id > last]
        query = sa.select(columns.user_id).where(*after).distinct().order_by(columns.user_id).limit(_PAGE)
        users = list((await connection.scalars(query)).all())
        texts = sa.select(*table.as_text()).where(*chosen, columns.user_id.in_(users)).order_by(columns.user_id)
        return users, [Row(*found) for found in await connection.execute(texts)] if users else []

    return await store.call(read)
