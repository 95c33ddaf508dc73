"""Whether the keys open what is stored: proven at the start, before the service says that it serves."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from exchange_service.credentials.keysets import KEY_ID
from exchange_service.credentials.rows import SECRET_COLUMNS, Row
from exchange_service.credentials.sealing import FORM
from exchange_service.credentials.sql import SqlCredentialStore, Table
from exchange_service.errors import CredentialUnreadable, StoreUnavailable

log = structlog.get_logger(__name__)

# Seconds between two looks, as long as there is a reason to look.
INTERVAL = 30.0
# Sealed values that do not open are stray ones up to this share, and above it the keys are the wrong ones. Whoever may
# store a key of his own through another program may store a text that looks sealed, and is not to stop the service.
_STRAY_SHARE = 0.1
# Bounds of a look: how many key ids of a column are looked at, and how many values are tried with each.
_MOST_KEYS = 50
_SAMPLES = 5


@dataclass(frozen=True, slots=True)
class Proof:
    """What a look came to: `problems` are sentences for the operator, none where each key that sealed values name is
    there and opens one of them. `keys_fit` also where the values that do not open are but a few stray ones."""

    problems: tuple[str, ...]
    keys_fit: bool


async def prove_keys(store: SqlCredentialStore) -> Proof:
    """Look whether the keys open what is stored. StoreUnavailable where the database does not answer."""
    keys = store.vault.keys
    problems = []
    if keys is not None:
        problem = await keys.problem()
        problems += [problem] if problem else []
    values, samples = await _sealed_values(store)
    if keys is None:
        advice = "Stored credentials are sealed, and there is no keyset: set keyset_file to the one that sealed them."
        return Proof((advice,) if values else (), not values)
    try:
        known = await keys.known()
    except CredentialUnreadable:
        return Proof(tuple(problems), False)
    shut = 0
    for key_id, count in sorted(values.items()):
        if key_id not in known:
            problems.append(f"Stored credentials are sealed with the key {key_id}, which the keyset does not have.")
        elif await _one_opens(store, samples[key_id]):
            continue
        else:
            problems.append(f"The key {key_id} of the keyset is not the one that sealed the stored credentials.")
        shut += count
    return Proof(tuple(problems), shut <= values.total() * _STRAY_SHARE)


async def _one_opens(store: SqlCredentialStore, samples: list[_Sample]) -> bool:
    """Several are tried: one row that somebody damaged says nothing about the key."""
    for sample in samples:
        if await store.vault.opens(sample.row, sample.column, purpose="proof"):
            return True
    return False


@dataclass(frozen=True, slots=True)
class _Sample:
    """One sealed value: its row, and the column that it stands in."""

    row: Row
    column: str


async def _sealed_values(store: SqlCredentialStore) -> tuple[Counter[str], dict[str, list[_Sample]]]:
    """How many values name each key id, and a few of them; a bounded number of ids."""
    values: Counter[str] = Counter()
    samples: dict[str, list[_Sample]] = {}
    for column in SECRET_COLUMNS:

        async def look(connection: AsyncConnection, table: Table, column: str = column) -> None:
            for key_id, count in await _ids(connection, table, column):
                rows = await _rows_with_key(connection, table, column, key_id)
                values[key_id] += count
                samples.setdefault(key_id, []).extend(_Sample(row, column) for row in rows)

        # One call for each, because each reads the whole column and has its own time limit.
        await store.call(look)
    return values, samples


def _bare(table: Table, column: str) -> sa.ColumnElement[str]:
    """The column's text without the quotes that it has in a JSON column."""
    return sa.func.trim(sa.cast(table.clause.c[column], sa.Text), '"')


async def _ids(connection: AsyncConnection, table: Table, column: str) -> list[tuple[str, int]]:
    """The key ids of a column and how often each is named, the most frequent ones. What is no id is left out, because
    no key could ever open it."""
    text, prefix = _bare(table, column), f"{FORM}:"
    rest = sa.func.substr(text, len(prefix) + 1)
    if connection.dialect.name == "postgresql":
        key_id = sa.func.split_part(rest, ":", 1)
    else:
        key_id = sa.func.substr(rest, 1, sa.func.instr(rest, ":") - 1)
    begins = sa.func.substr(text, 1, len(prefix)) == prefix
    named = sa.select(key_id.label("key_id")).where(begins, table.clause.c.user_id.is_not(None)).subquery()
    count = sa.func.count()
    query = sa.select(named.c.key_id, count).group_by(named.c.key_id).order_by(count.desc()).limit(_MOST_KEYS)
    return [(name, often) for name, often in await connection.execute(query) if KEY_ID.fullmatch(name or "")]


async def _rows_with_key(connection: AsyncConnection, table: Table, column: str, key_id: str) -> list[Row]:
    """A few rows by chance, so that nobody can put his own before the others."""
    prefix = f"{FORM}:{key_id}:"
    begins = sa.func.substr(_bare(table, column), 1, len(prefix)) == prefix
    chosen = sa.select(*table.as_text()).where(begins, table.clause.c.user_id.is_not(None))
    query = chosen.order_by(sa.func.random()).limit(_SAMPLES)
    return [Row(*found) for found in await connection.execute(query)]


class KeyWatch:
    """Whether the service may say that it serves: not where it is known that the keys do not open what is stored.

    A database that does not answer proves nothing, and leaves what was said.
    """

    def __init__(self, store: SqlCredentialStore) -> None:
        self._store = store
        self._serves = True
        self._problem = ""
        # The number of refused openings when it was last proven; None while it is not.
        self._proven_at: int | None = None
        self._ended = False

    async def first(self) -> bool:
        """Look once; whether the service may serve."""
        await self._look()
        return self._serves

    async def run(self, say: Callable[[bool], Awaitable[None]]) -> None:
        """Look again now and then until the keys are proven, and when a credential was refused since; `say` each time
        whether the service may serve."""
        while not self._ended:
            await asyncio.sleep(INTERVAL)
            if self._proven_at == self._store.vault.audit.refusals:
                continue
            if await self._look() and not self._ended:
                await say(self._serves)

    def end(self) -> None:
        """Say nothing any more: the service is about to stop."""
        self._ended = True

    async def _look(self) -> bool:
        """Whether it was possible to look."""
        refusals = self._store.vault.audit.refusals
        try:
            proof = await prove_keys(self._store)
        except StoreUnavailable as error:
            log.warning("database.out_of_reach", problem=error.text)
            return False
        self._serves = proof.keys_fit
        self._proven_at = refusals if proof.keys_fit else None
        problem = " ".join(proof.problems)
        if problem and problem != self._problem:
            effect = "only those are refused" if proof.keys_fit else "the service says NOT_SERVING"
            log.error("keys.unproven", problem=problem, effect=effect)
        elif self._problem and not problem:
            log.info("keys.proven")
        self._problem = problem
        return True
