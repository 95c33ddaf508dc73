"""The table as other programs see it: with the keys, and without them."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from exchange_service.credentials.key_providers import GivenKeys
from exchange_service.credentials.keysets import Keyset, new_keyset
from exchange_service.credentials.rewriting import Change, RewriteResult
from exchange_service.credentials.sealing import open_value
from exchange_service.credentials.sql import open_store
from exchange_service.errors import CredentialUnreadable
from tests.credential_tables import KEY, OANDA, USER, Database
from tests.sealed_stores import CANARY, FULL, OTHER, Stores, given_keys, rewrite_all


async def test_no_secret_is_in_the_databases_files(
    open_sqlite: Stores, sqlite_database: Database, keys: GivenKeys
) -> None:
    store = await open_sqlite(keys)
    await store.put(OANDA, FULL)
    for number in range(50):
        sqlite_database.insert(
            user_id=f"user {number}", api_key=f"{CANARY} {number}", extra_metadata=f'{{"a": "{CANARY}"}}'
        )
    assert (await rewrite_all(store, Change.SEAL))[RewriteResult.CHANGED] == 50
    await store.close()
    folder = Path(sqlite_database.url.removeprefix("sqlite:///")).parent
    assert all(CANARY.encode() not in file.read_bytes() for file in folder.iterdir())


def open_all(rows: Sequence[sqlite3.Row], keyset: Keyset) -> list[dict[str, str | None]]:
    """As another program does it."""
    return [
        {
            column: open_value(
                row[column],
                keyset,
                column=column,
                user_id=row["user_id"],
                exchange=row["exchange"],
                environment=row["environment"],
            )
            for column in ("api_key", "api_secret", "passphrase", "extra_metadata")
        }
        for row in rows
    ]


async def test_another_program_that_holds_the_keys_reads_both_kinds_of_rows(
    open_sqlite: Stores, sqlite_database: Database, keyset: Keyset
) -> None:
    store = await open_sqlite(given_keys(keyset))
    await store.put(OANDA, FULL)
    sqlite_database.insert(user_id=OTHER, passphrase=None, environment=None)
    with sqlite3.connect(sqlite_database.url.removeprefix("sqlite:///")) as connection:
        connection.row_factory = sqlite3.Row
        rows = connection.execute("SELECT * FROM bot_credentials ORDER BY user_id DESC").fetchall()
    connection.close()
    sealed, plain = open_all(rows, keyset)
    assert sealed["api_key"] == f"{CANARY} key"
    assert json.loads(sealed["extra_metadata"] or "") == FULL.metadata
    assert plain == {"api_key": "key", "api_secret": "secret", "passphrase": None, "extra_metadata": None}
    with pytest.raises(CredentialUnreadable):
        open_all(rows, new_keyset())
    with pytest.raises(CredentialUnreadable):
        open_value(rows[0]["api_key"], keyset, column="api_key", user_id=OTHER, exchange="oanda")


def test_the_documented_program_runs(tmp_path: Path, keyset: Keyset) -> None:
    database = Database(f"sqlite:///{tmp_path}/exchange-service.db")

    async def fill() -> None:
        store = await open_store(database.url, KEY, keys=given_keys(keyset))
        await store.put(OANDA, FULL)
        await store.close()

    asyncio.run(fill())
    database.insert(user_id=OTHER, extra_metadata="{}")
    (tmp_path / "keyset.json").touch(mode=0o600)
    (tmp_path / "keyset.json").write_text(keyset.as_text())
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    (program,) = re.findall(r"<!-- runs with a sealed table -->\n```python\n(.*?)```", page, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = [f"{OTHER} oanda 3 []", f"{USER} oanda {len(CANARY) + 4} ['a', 'private_key']"]
    assert sorted(done.stdout.splitlines()) == lines
