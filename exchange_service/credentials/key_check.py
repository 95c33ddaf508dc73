"""Whether the keys open the stored credentials: checked at the start, before the service reports that it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
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
from exchange_service.model import SECRET_FIELDS

log = structlog.get_logger(__name__)

# Seconds between two checks, as long as there is a reason to check.
INTERVAL = 30.0
# Users are counted, not values: a user who stores a key through another program may store any number of texts that
# look sealed, and must not be able to stop the service. The values of up to this share of the users may name a key of
# ours and not open, without the keys being wrong.
_STRAY_SHARE = 0.1
# Bounds of a check: the number of key ids of a column that the keyset never had, and the number of users whose values
# are tried with each key.
_MOST_STRAYS = 50
_SAMPLES = 5
_LONGEST_ID = 64


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """The result of a check.

    `problems` are sentences for the operator; empty if the keyset has every key that sealed values name, and each key
    opens one of them. `keys_fit` is true also if only a few stray values do not open. `known` are the keyset's keys.
    """

    problems: tuple[str, ...]
    keys_fit: bool
    known: frozenset[str] = frozenset()


async def check_keys(store: SqlCredentialStore, had: frozenset[str] = frozenset()) -> KeyCheck:
    """Check whether the keys open the stored values. StoreUnavailable if the database does not answer.

    `had`: keys that the keyset had earlier. An id that no keyset had is what somebody has typed, unless as many users'
    values name it as the keys open: then a key is missing.
    """
    keys = store.vault.keys
    if keys is None:
        return await _check_without_keys(store, had)
    problem = await keys.problem()
    problems = [problem] if problem else []
    try:
        known = await keys.known()
    except (CredentialUnreadable, StoreUnavailable):
        return KeyCheck(tuple(problems), False)
    users, samples = await _read_samples(store, known | had)
    opened = unopened = 0
    for key_id in sorted(users.keys() & (known | had)):
        if key_id not in known:
            problems.append(_missing(key_id))
        elif await _any_opens(store, samples[key_id]):
            opened += users[key_id]
            continue
        else:
            problems.append(f"The key {key_id} of the keyset is not the one that sealed the stored credentials.")
        unopened += users[key_id]
    strays = {key_id: count for key_id, count in users.items() if key_id not in known | had}
    problems += map(_missing, sorted(strays))
    readable = opened
    if (unopened or strays) and store.vault.allow_plaintext:
        # Before the first `credentials seal` there may be no sealed credential at all.
        readable = max(opened, await _count_plain_users(store))
    fits = unopened <= (readable + unopened) * _STRAY_SHARE and _are_strays(strays, readable)
    return KeyCheck(tuple(problems), fits, known)


async def _check_without_keys(store: SqlCredentialStore, had: frozenset[str]) -> KeyCheck:
    """The same without a keyset: what looks sealed is stray if more users have stored plain credentials."""
    users, _ = await _read_samples(store, had)
    advice = "Stored credentials are sealed, and there is no keyset: set keyset_file to the one that sealed them."
    fits = _are_strays(users, await _count_plain_users(store) if users else 0)
    return KeyCheck((advice,) if users else (), fits)


def _are_strays(strays: Mapping[str, int], readable: int) -> bool:
    """Whether each of these ids is named by fewer users than have readable credentials."""
    return all(count < readable for count in strays.values())


def _missing(key_id: str) -> str:
    return f"Stored credentials are sealed with the key {key_id}, which the keyset does not have."


async def _any_opens(store: SqlCredentialStore, samples: list[_Sample]) -> bool:
    """Several users' values are tried, because one damaged row proves nothing about the key."""
    for sample in samples:
        if await store.vault.can_open(sample.row, sample.column, purpose="proof"):
            return True
    return False


@dataclass(frozen=True, slots=True)
class _Sample:
    """One sealed value: its row and its column."""

    row: CredentialRow
    column: str


async def _read_samples(
    store: SqlCredentialStore, expected: frozenset[str]
) -> tuple[dict[str, int], dict[str, list[_Sample]]]:
    """How many users have values that name each key id, and a few values of each id that is expected; the number of
    other ids is bounded."""
    users: dict[str, int] = {}
    samples: dict[str, list[_Sample]] = {}
    for column in SECRET_COLUMNS:

        async def read(connection: AsyncConnection, table: CredentialTable, column: str = column) -> None:
            for key_id, count in await _count_users(connection, table, column, expected):
                users[key_id] = max(count, users.get(key_id, 0))
                if key_id in expected:
                    rows = await _sample_rows(connection, table, column, key_id)
                    samples.setdefault(key_id, []).extend(_Sample(row, column) for row in rows)

        # One call for each column, because each reads the whole column and has its own time limit.
        await store.call(read)
    return users, samples


def _unquoted(table: CredentialTable, column: str) -> sa.ColumnElement[str]:
    """The column's text without the quotes that it has in a JSON column."""
    return sa.func.trim(sa.cast(table.clause.c[column], sa.Text), '"')


def _begins(table: CredentialTable, column: str, prefix: str) -> sa.ColumnElement[bool]:
    starts = sa.func.substr(_unquoted(table, column), 1, len(prefix)) == prefix
    return sa.and_(starts, table.clause.c.user_id.is_not(None), table.is_possible())


def _number_of(users: sa.ColumnElement[str]) -> sa.ColumnElement[int]:
    return sa.func.count(users.distinct())


async def _count_users(
    connection: AsyncConnection, table: CredentialTable, column: str, expected: frozenset[str]
) -> list[tuple[str, int]]:
    """The number of users whose values in a column name each expected key id, and each of those other ids that the most
    users have. A text that cannot be an id is left out, because no key could ever open its value."""
    prefix = f"{FORM}:"
    # The text may be long, and an id is not.
    rest = sa.func.substr(_unquoted(table, column), len(prefix) + 1, _LONGEST_ID + 2)
    if connection.dialect.name == "postgresql":
        key_id = sa.func.split_part(rest, ":", 1)
    else:
        key_id = sa.func.substr(rest, 1, sa.func.instr(rest, ":") - 1)
    begins = _begins(table, column, prefix)
    named = sa.select(key_id.label("key_id"), table.clause.c.user_id).where(begins).subquery()
    count = _number_of(named.c.user_id)
    query = sa.select(named.c.key_id, count).group_by(named.c.key_id)
    ours = query.where(named.c.key_id.in_(expected))
    others = query.where(named.c.key_id.not_in(expected)).order_by(count.desc()).limit(_MOST_STRAYS)
    rows = [*(await connection.execute(ours)), *(await connection.execute(others))]
    return [(name, often) for name, often in rows if KEY_ID.fullmatch(name or "")]


async def _sample_rows(
    connection: AsyncConnection, table: CredentialTable, column: str, key_id: str
) -> list[CredentialRow]:
    """A row of each of a few random users, so that no user can place their own rows before the others'."""
    user, begins = table.clause.c.user_id, _begins(table, column, f"{FORM}:{key_id}:")
    chosen = sa.select(user).where(begins).group_by(user).order_by(sa.func.random()).limit(_SAMPLES)
    rows = []
    for name in (await connection.scalars(chosen)).all():
        row = sa.select(*table.as_text()).where(begins, user == name).order_by(sa.func.random()).limit(1)
        rows += [CredentialRow(*values) for values in await connection.execute(row)]
    return rows


async def _count_plain_users(store: SqlCredentialStore) -> int:
    """How many users have stored a key or a secret in plain text."""

    async def count(connection: AsyncConnection, table: CredentialTable) -> int:
        plain = sa.or_(
            *(
                sa.and_(sa.func.length(table.clause.c[name]) > 0, sa.not_(_begins(table, name, f"{FORM}:")))
                for name in SECRET_FIELDS
            )
        )
        return int(
            await connection.scalar(sa.select(sa.func.count(table.clause.c.user_id.distinct())).where(plain)) or 0
        )

    return await store.call(count)


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
        # Every key that the keyset had since the start.
        self._had: frozenset[str] = frozenset()

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
            check = await check_keys(self._store, self._had)
        except StoreUnavailable as error:
            log.warning("database.out_of_reach", problem=error.text)
            return False
        self._had |= check.known
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
