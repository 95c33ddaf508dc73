"""Credential tables of each kind that the store must serve, and what tests of them share."""

from __future__ import annotations

import sqlite3
import time
import traceback
from collections.abc import Awaitable
from typing import Any

import psycopg

from exchange_service.credentials import CredentialReference
from exchange_service.credentials.sql import SqlCredentialStore
from exchange_service.model import Account, Credential, Secret

KEY = b"a key for the tests"
CANARY = "canary-7f3a"
# What a busy machine may add to a time limit.
SLACK = 0.5
USER = "3f0e9d6a-52c1-4d3b-9a53-0c2f7a4b8d11"
OANDA = Account(USER, "oanda")
FULL = Credential(Secret("key"), Secret("secret"), Secret("phrase"), {"account_id": "101-1", "nested": {"a": [1, 2]}})

# The owner's table as other programs may have made it.
OWNERS_TABLES = {
    "text": "CREATE TABLE bot_credentials (user_id text, exchange text, environment text DEFAULT 'production',"
    " api_key text, api_secret text, passphrase text, extra_metadata text)",
    "uuid and jsonb": "CREATE TYPE mood AS ENUM ('calm', 'wild'); CREATE TABLE bot_credentials ("
    " id uuid PRIMARY KEY DEFAULT gen_random_uuid(), created_at timestamptz NOT NULL DEFAULT now(),"
    " user_id uuid NOT NULL, exchange varchar(40) NOT NULL, environment varchar(20) DEFAULT 'production',"
    " api_key text NOT NULL, api_secret text NOT NULL, passphrase text, extra_metadata jsonb DEFAULT '{}',"
    " is_active boolean NOT NULL DEFAULT true, mood mood DEFAULT 'calm',"
    " UNIQUE (user_id, exchange, environment))",
    "uuid and json": "CREATE TABLE bot_credentials (id bigserial PRIMARY KEY, user_id uuid, exchange text,"
    " environment text, api_key text, api_secret text, passphrase text, extra_metadata json)",
}


async def seconds(work: Awaitable[object]) -> float:
    started = time.monotonic()
    await work
    return time.monotonic() - started


def everything_of(error: BaseException) -> str:
    """All that a log, a report or a debugger could show of an exception and its causes."""
    text = "".join(traceback.format_exception(error))
    seen: BaseException | None = error
    while seen is not None:
        text += f"{seen!r} {seen} {vars(seen)}"
        seen = seen.__cause__ or seen.__context__
    return text


class Database:
    """A database that the test writes to directly, as the owner's other programs do."""

    def __init__(self, url: str) -> None:
        self.url = url

    def run(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        if self.url.startswith("sqlite"):
            with sqlite3.connect(self.url.removeprefix("sqlite:///")) as connection:
                rows = connection.execute(statement.replace("%s", "?"), values).fetchall()
            connection.close()
            return rows
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def insert(self, **row: Any) -> None:
        row = {"user_id": USER, "exchange": "oanda", "api_key": "key", "api_secret": "secret"} | row
        marks = ", ".join(["%s"] * len(row))
        self.run(f"INSERT INTO bot_credentials ({', '.join(row)}) VALUES ({marks})", *row.values())


async def find_reference(store: SqlCredentialStore, account: Account, **options: Any) -> CredentialReference:
    reference = await store.find(account, **options)
    assert reference is not None
    return reference
