"""Whether the keys open the stored credentials: checked at the start, before the service reports that it serves."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection

from exchange_service.credentials.keysets import KEY_ID
from exchange_service.credentials.rows import SECRET_COLUMNS, CredentialRow
from exchange_service.credentials.sealing import FORM
from exchange_service.credentials.sql import SqlCredentialStore
from exchange_service.credentials.table import CredentialTable
from exchange_service.errors import CredentialUnreadable, StoreUnavailable

log = structlog.get_logger(__name__)

# Seconds between two checks, as long as there is a reason to check.
INTERVAL = 30.0
# Up to this share of sealed values may fail to open without the keys being wrong: a user who stores a key through
# another program may store a text that looks sealed, and must not be able to stop the service.
_STRAY_SHARE = 0.1
# Bounds of a check: the number of key ids of a column, and the number of values that are tried with each.
_MOST_KEYS = 50
_SAMPLES = 5


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """The result of a check.

    `problems` are sentences for the operator; empty if the keyset has every key that sealed values name, and each key
    opens one of them. `keys_fit` is true also if only a few stray values do not open.
    """

    problems: tuple[str, ...]
    keys_fit: bool


async def check_keys(store: SqlCredentialStore) -> KeyCheck:
    """Check whether the keys open the stored values. StoreUnavailable if the database does not answer."""
    keys = store.vault.keys
    problems = []
    if keys is not None:
        problem = await keys.problem()
        problems += [problem] if problem else []
    values, samples = await _read_samples(store)
    if keys is None:
        advice = "Stored credentials are sealed, and there is no keyset: set keyset_file to the one that sealed them."
        return KeyCheck((advice,) if values else (), not values)
    try:
        known = await keys.known()
    except CredentialUnreadable:
        return KeyCheck(tuple(problems), False)
    unopened = 0
    for key_id, count in sorted(values.items()):
        if key_id not in known:
            problems.append(f"Stored credentials are sealed with the key {key_id}, which the keyset does not have.")
        elif await _any_opens(store, samples[key_id]):
            continue
        else:
            problems.append(f"The key {key_id} of the keyset is not the one that sealed the stored credentials.")
        unopened += count
    return KeyCheck(tuple(problems), unopened <= values.total() * _STRAY_SHARE)


async def _any_opens(store: SqlCredentialStore, samples: list[_Sample]) -> bool:
    """Several samples are tried, because one damaged row proves nothing about the key."""
    for sample in samples:
        if await store.vault.can_open(sample.row, sample.column, purpose="proof"):
            return True
    return False


@dataclass(frozen=True, slots=True)
class _Sample:
    """One sealed value: its row and its column."""

    row: CredentialRow
    column: str


async def _read_samples(store: SqlCredentialStore) -> tuple[Counter[str], dict[str, list[_Sample]]]:
    """How many values name each key id, and a few of these values; the number of ids is bounded."""
    values: Counter[str] = Counter()
    samples: dict[str, list[_Sample]] = {}
    for column in SECRET_COLUMNS:

        async def read(connection: AsyncConnection, table: CredentialTable, column: str = column) -> None:
            for key_id, count in await _count_key_ids(connection, table, column):
                rows = await _sample_rows(connection, table, column, key_id)
                values[key_id] += count
                samples.setdefault(key_id, []).extend(_Sample(row, column) for row in rows)

        # One call for each column, because each reads the whole column and has its own time limit.
        await store.call(read)
    return values, samples


def _unquoted(table: CredentialTable, column: str) -> sa.ColumnElement[str]:
    """The column's text without the quotes that it has in a JSON column."""
    return sa.func.trim(sa.cast(table.clause.c[column], sa.Text), '"')


async def _count_key_ids(connection: AsyncConnection, table: CredentialTable, column: str) -> list[tuple[str, int]]:
    """The most frequent key ids of a column with their counts. A text that cannot be an id is left out, because no key
    could ever open its value."""
    text, prefix = _unquoted(table, column), f"{FORM}:"
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


async def _sample_rows(
    connection: AsyncConnection, table: CredentialTable, column: str, key_id: str
) -> list[CredentialRow]:
    """A few random rows, so that no user can place their own rows before the others."""
    prefix = f"{FORM}:{key_id}:"
    begins = sa.func.substr(_unquoted(table, column), 1, len(prefix)) == prefix
    chosen = sa.select(*table.as_text()).where(begins, table.clause.c.user_id.is_not(None))
    query = chosen.order_by(sa.func.random()).limit(_SAMPLES)
    return [CredentialRow(*values) for values in await connection.execute(query)]


class KeyWatch:
    """Decides whether the service may report that it serves: not while the keys are known not to fit.

    A database that does not answer proves nothing; the last decision stands.
    """

    def __init__(self, store: SqlCredentialStore) -> None:
        self._store = store
        self._serves = True
        self._problem = ""
        # The number of refused openings at the last successful check; None while no check has succeeded.
        self._checked_at: int | None = None
        self._ended = False

    async def first(self) -> bool:
        """Check once; return whether the service may serve."""
        await self._check()
        return self._serves

    async def run(self, report: Callable[[bool], Awaitable[None]]) -> None:
        """Check at intervals until the keys fit, and again after a credential was refused. `report` gets each time
        whether the service may serve."""
        while not self._ended:
            await asyncio.sleep(INTERVAL)
            if self._checked_at == self._store.vault.audit.refusals:
                continue
            if await self._check() and not self._ended:
                await report(self._serves)

    def end(self) -> None:
        """Report nothing any more: the service is about to stop."""
        self._ended = True

    async def _check(self) -> bool:
        """Whether the check was possible."""
        refusals = self._store.vault.audit.refusals
        try:
            check = await check_keys(self._store)
        except StoreUnavailable as error:
            log.warning("database.out_of_reach", problem=error.text)
            return False
        self._serves = check.keys_fit
        self._checked_at = refusals if check.keys_fit else None
        problem = " ".join(check.problems)
        if problem and problem != self._problem:
            effect = "only those are refused" if check.keys_fit else "the service says NOT_SERVING"
            log.error("keys.unproven", problem=problem, effect=effect)
        elif self._problem and not problem:
            log.info("keys.proven")
        self._problem = problem
        return True
