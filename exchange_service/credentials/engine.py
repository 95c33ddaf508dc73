"""The SQLAlchemy engine for a database URL: SQLite in a file of its own, or PostgreSQL through any pooler."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry

# Seconds that another program may hold SQLite's lock, that a call may wait for a pooled connection, and that
# connecting may take.
SQLITE_BUSY_SECONDS = 1.5
POOL_WAIT = 1.0
# Connections in use at the same time at most, and how many of them stay open.
MOST_CONNECTIONS, _KEPT = 10, 5
CONNECT_SECONDS = 2
# Options of libpq: the kernel gives a connection up whose other side has vanished, also one that waits in the pool.
# The keepalives are in seconds, the time for what was sent and is not acknowledged in milliseconds.
_CONNECTIONS = {
    "connect_timeout": CONNECT_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 3,
    "keepalives_count": 2,
    "tcp_user_timeout": 5000,
}


def database_address(url: str) -> sa.URL:
    """The URL with the driver that we use. ValueError for other databases; its message holds no part of the URL, which
    may have a password."""
    parsed: sa.URL | None = None
    with suppress(Exception):
        parsed = sa.make_url(url)
    family = parsed.drivername.partition("+")[0] if parsed is not None else ""
    if parsed is not None and family in ("postgres", "postgresql"):
        _check_options(parsed, _postgres_options())
        return parsed.set(drivername="postgresql+psycopg")
    if parsed is not None and family == "sqlite":
        _check_options(parsed, _SQLITE_OPTIONS)
        path = parsed.database
        if path and path != ":memory:":
            parsed = parsed.set(database=os.path.expanduser(path))
        return parsed.set(drivername="sqlite+aiosqlite")
    raise ValueError("the credential database must be postgresql://user:password@host/database or sqlite:///path")


# Those of Python's module, and of SQLite's own file: URLs.
_SQLITE_OPTIONS = frozenset(
    {
        *{"timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements", "uri"},
        *{"cache", "mode", "nolock", "immutable", "vfs", "psow", "modeof"},
    }
)


def _postgres_options() -> frozenset[str]:
    """The names of the options that the installed libpq knows."""
    import psycopg

    return frozenset(option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults())


def _check_options(url: sa.URL, known: frozenset[str]) -> None:
    """Raise ValueError with the names of the options that nobody reads. Their values are not told."""
    unknown = sorted(name for name in url.query if name not in known)
    if unknown:
        names = ", ".join(repr(name[:40]) for name in unknown)
        raise ValueError(f"its options are not all known to the database's library: {names}; remove them")


class ClosingPool(AsyncAdaptedQueuePool):
    """A pool that keeps no connection once it is disposed of: what is in use then is closed when it comes back.

    SQLAlchemy's own pool would take it back, and nobody uses or closes it there: it stays open, also at the server,
    until the garbage collector comes.
    """

    _disposed = False

    def dispose(self) -> None:
        """Close what lies in the pool now, and later what comes back."""
        self._disposed = True
        super().dispose()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        # Closed, and put back all the same: a caller that waits for this pool connects again with it.
        if self._disposed:
            record.close()
        super()._do_return_conn(record)


def make_engine(url: sa.URL) -> AsyncEngine:
    """The engine, not connected yet. It hides parameters in logs and exceptions, because they are secrets."""
    options: dict[str, Any] = {"hide_parameters": True, "echo": False}
    if url.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": SQLITE_BUSY_SECONDS}
        if sqlite_file(url) is None:
            return create_async_engine(url, **options)
    else:
        # Poolers that reassign a connection after each transaction lose prepared statements.
        arguments: dict[str, Any] = {"prepare_threshold": None}
        arguments |= {name: value for name, value in _CONNECTIONS.items() if name not in url.query}
        options |= {"connect_args": arguments, "pool_pre_ping": True}
    options |= {"poolclass": ClosingPool, "pool_size": _KEPT, "pool_timeout": POOL_WAIT}
    options["max_overflow"] = MOST_CONNECTIONS - _KEPT
    engine = create_async_engine(url, **options)
    if url.get_backend_name() == "sqlite":
        sa.event.listen(engine.sync_engine, "connect", _prepare_connection)
    return engine


def _prepare_connection(connection: Any, _record: Any) -> None:
    """Use a write-ahead log, so that a writer does not block readers, and overwrite in the file every value that is
    sealed or removed."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.close()


def sqlite_file(url: sa.URL) -> Path | None:
    """The file of a SQLite database; None for one in memory, and for PostgreSQL."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return None
    if url.database.startswith("file:"):
        return None
    return Path(url.database)


def prepare_file(path: Path) -> None:
    """Create the file and its missing folders, for our user alone. What exists keeps its permissions."""
    if path.exists():
        # Closing a file gives up all locks of the process on it, also those of SQLite's open connections. Another
        # program could then remove the write-ahead log while we use it.
        return
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
