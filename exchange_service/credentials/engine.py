"""The SQLAlchemy engine for a database URL: SQLite in a file of its own, or PostgreSQL through whatever pooler."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

# How long another program may hold SQLite's lock, a call may wait for a pooled connection, and connecting may take.
SQLITE_BUSY_SECONDS = 1.5
POOL_WAIT = 1.0
CONNECT_SECONDS = 2


def database_address(url: str) -> sa.URL:
    """The URL with the driver that we use. The message of a refusal holds no part of it: it may have a password."""
    parsed: sa.URL | None = None
    with suppress(Exception):
        parsed = sa.make_url(url)
    family = parsed.drivername.partition("+")[0] if parsed is not None else ""
    if parsed is not None and family in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed is not None and family == "sqlite":
        path = parsed.database
        if path and path != ":memory:":
            parsed = parsed.set(database=os.path.expanduser(path))
        return parsed.set(drivername="sqlite+aiosqlite")
    raise ValueError("the credential database must be postgresql://user:password@host/database or sqlite:///path")


def make_engine(url: sa.URL) -> AsyncEngine:
    """The engine, not connected yet. It shows no parameters in logs or exceptions: they are secrets."""
    options: dict[str, Any] = {"hide_parameters": True, "echo": False}
    if url.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": SQLITE_BUSY_SECONDS}
        if sqlite_file(url) is None:
            return create_async_engine(url, **options)
    else:
        # Poolers that hand a connection on after each transaction lose prepared statements.
        arguments: dict[str, Any] = {"prepare_threshold": None}
        if "connect_timeout" not in url.query:
            arguments["connect_timeout"] = CONNECT_SECONDS
        options |= {"connect_args": arguments, "pool_pre_ping": True}
    engine = create_async_engine(url, pool_size=5, max_overflow=5, pool_timeout=POOL_WAIT, **options)
    if url.get_backend_name() == "sqlite":
        sa.event.listen(engine.sync_engine, "connect", _prepare)
    return engine


def _prepare(connection: Any, _record: Any) -> None:
    """With a write-ahead log, a writer does not keep readers out. What is sealed or removed is overwritten in the file
    where it stood."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA secure_delete=ON")
    cursor.close()


def sqlite_file(url: sa.URL) -> Path | None:
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return None
    if url.database.startswith("file:"):
        return None
    return Path(url.database)


def prepare_file(path: Path) -> None:
    """Make the file, and the folders that it lacks, for our user alone. What exists keeps its rights."""
    if path.exists():
        # To close a file is to give up the process's locks on it, those of SQLite's open connections too: another
        # program would take itself for the last one, and remove the write-ahead log under us.
        return
    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
