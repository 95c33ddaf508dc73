"""Stores and tables that the tests of credentials share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from exchange_service.credentials.key_providers import GivenKeys
from exchange_service.credentials.keysets import Keyset, new_keyset
from exchange_service.credentials.sql import SqlCredentialStore, open_store
from tests.credential_tables import KEY, OWNERS_TABLES, Database
from tests.sealed_stores import Stores, given_keys


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/credentials.db"


@pytest.fixture(params=["sqlite", "sqlite, the owner's", "postgres", *OWNERS_TABLES])
def database(request: pytest.FixtureRequest) -> Database:
    """Each kind of table that the store must serve; 'sqlite' and 'postgres' are empty, so the store makes its own."""
    if request.param.startswith("sqlite"):
        made = Database(request.getfixturevalue("sqlite_url"))
        if request.param != "sqlite":
            made.run(OWNERS_TABLES["text"])
    else:
        made = Database(request.getfixturevalue("postgres_database"))
        if request.param in OWNERS_TABLES:
            made.run(OWNERS_TABLES[request.param])
    return made


@pytest.fixture
async def store(database: Database) -> AsyncIterator[SqlCredentialStore]:
    opened = await open_store(database.url, KEY)
    yield opened
    await opened.close()


@pytest.fixture
async def sqlite_store(sqlite_url: str) -> AsyncIterator[SqlCredentialStore]:
    opened = await open_store(sqlite_url, KEY)
    yield opened
    await opened.close()


@pytest.fixture
def keyset() -> Keyset:
    return new_keyset()


@pytest.fixture
def keys(keyset: Keyset) -> GivenKeys:
    return given_keys(keyset)


@pytest.fixture
def sqlite_database(tmp_path: Path) -> Database:
    made = Database(f"sqlite:///{tmp_path}/credentials.db")
    made.run(OWNERS_TABLES["text"])
    return made


@pytest.fixture
async def open_with(database: Database) -> AsyncIterator[Stores]:
    stores = Stores(database)
    yield stores
    for store in stores.opened:
        await store.close()


@pytest.fixture
async def open_sqlite(sqlite_database: Database) -> AsyncIterator[Stores]:
    stores = Stores(sqlite_database)
    yield stores
    for store in stores.opened:
        await store.close()
