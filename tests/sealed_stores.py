"""Stores with keys, and what tests of sealed credentials share."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

from exchange_service.credentials.key_check import check_keys
from exchange_service.credentials.key_providers import GivenKeys
from exchange_service.credentials.keysets import Keyset
from exchange_service.credentials.rewriting import Change, Choice, RewriteResult, rewrite
from exchange_service.credentials.sql import SqlCredentialStore, open_store
from exchange_service.model import Account, Credential, Secret
from tests.credential_tables import KEY, OANDA, Database, find_reference

CANARY = "canary-51d0"
OTHER = str(uuid.UUID(int=7))
FULL = Credential(
    Secret(f"{CANARY} key"),
    Secret(f"{CANARY} secret"),
    Secret(f"{CANARY} phrase"),
    {"private_key": CANARY, "a": [1, 2]},
)
SECRETS = "api_key, api_secret, passphrase, extra_metadata"


def given_keys(keyset: Keyset) -> GivenKeys:
    return GivenKeys(keyset.as_text())


class Stores:
    """Opens stores on one database, with other keys each, and closes them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.opened: list[SqlCredentialStore] = []

    async def __call__(self, keys: Any = None, **options: Any) -> SqlCredentialStore:
        store = await open_store(self.database.url, KEY, keys=keys, **options)
        # The table is there from now on.
        await store.problem()
        self.opened.append(store)
        return store


async def rewrite_all(
    store: SqlCredentialStore, change: Change, choice: Choice | None = None, **options: Any
) -> dict[RewriteResult, int]:
    return dict(Counter([item.result async for item in rewrite(store, change, choice or Choice(), **options)]))


def read_columns(database: Database, columns: str = SECRETS) -> list[tuple[str | None, ...]]:
    texts = ", ".join(f"CAST({name.strip()} AS text)" for name in columns.split(","))
    return database.run(f"SELECT {texts} FROM bot_credentials ORDER BY CAST(user_id AS text), exchange, environment")


async def problems_of(store: SqlCredentialStore) -> list[str]:
    return list((await check_keys(store)).problems)


async def open_credential(store: SqlCredentialStore, account: Account = OANDA) -> Credential:
    return await store.open(await find_reference(store, account))
