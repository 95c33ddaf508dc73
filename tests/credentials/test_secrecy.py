"""Nobody else reads the credentials: rights on the table and its file, and what errors and logs show."""

from __future__ import annotations

import psycopg
import pytest

from exchange_service.credentials.sql import SqlCredentialStore, open_store, select_rows
from exchange_service.errors import StoreUnavailable
from exchange_service.model import Credential, Secret
from tests.credential_tables import (
    CANARY,
    FULL,
    KEY,
    OANDA,
    OWNERS_TABLES,
    USER,
    Database,
    everything_of,
    find_reference,
)
from tests.servers import PostgresServer


@pytest.fixture
def api_roles(postgres_database: str) -> None:
    """The roles of Supabase's public Data API, with the rights that Supabase gives them by default."""
    database = Database(postgres_database)
    for role in ("anon", "authenticated"):
        database.run(
            f"DO $$ BEGIN CREATE ROLE {role}; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )
        database.run(f"ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO {role}")
        database.run(f"GRANT USAGE ON SCHEMA public TO {role}")


@pytest.mark.threat("T2")
@pytest.mark.usefixtures("api_roles")
class TestWhoElseMayRead:
    async def test_our_own_table_is_closed_to_the_public(self, postgres_database: str) -> None:
        store = await open_store(postgres_database, KEY)
        await store.put(OANDA, FULL)
        for role in ("anon", "authenticated"):
            for statement in ("SELECT * FROM bot_credentials", "DELETE FROM bot_credentials"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    Database(postgres_database).run(f"SET ROLE {role}; {statement}")
        assert await store.warnings() == []
        await store.close()

    async def test_an_open_table_of_the_owner_is_warned_about_and_left_as_it_is(self, postgres_database: str) -> None:
        database = Database(postgres_database)
        database.run(OWNERS_TABLES["text"] + "; GRANT SELECT ON bot_credentials TO PUBLIC")
        store = await open_store(postgres_database, KEY)
        warnings = await store.warnings()
        assert [any(word in warning for warning in warnings) for word in ("row-level", "PUBLIC", "anon", "auth")] == [
            True
        ] * 4
        assert len(warnings) == 4
        assert database.run("SELECT relrowsecurity FROM pg_class WHERE relname = 'bot_credentials'") == [(False,)]
        await store.close()

    async def test_warnings_end_when_their_advice_is_followed(self, postgres_database: str) -> None:
        database = Database(postgres_database)
        database.run(OWNERS_TABLES["text"])
        store = await open_store(postgres_database, KEY)
        for warning in await store.warnings():
            database.run(warning.rpartition(": ")[2])
        assert await store.warnings() == []
        await store.close()


class TestSecrecy:
    async def test_no_text_that_is_shown_holds_a_secret(self, store: SqlCredentialStore) -> None:
        secret = Credential(*(Secret(CANARY) for _ in range(3)), {"private_key": CANARY})
        await store.put(OANDA, secret)
        reference = await find_reference(store, OANDA)
        opened = await store.open(reference)
        rows = await store.call(lambda connection, table: select_rows(connection, table, USER, ["oanda"]))
        assert rows
        assert CANARY not in repr(rows)
        assert CANARY not in f"{store!r} {reference!r} {opened!r} {opened} {await store.accounts(USER)!r}"

    async def test_a_refused_statement_shows_no_value(self, postgres_database: str) -> None:
        database = Database(postgres_database)
        database.run(OWNERS_TABLES["uuid and jsonb"])
        database.run("ALTER TABLE bot_credentials ADD CONSTRAINT short CHECK (length(api_key) < 3)")
        store = await open_store(postgres_database, KEY)
        with pytest.raises(StoreUnavailable, match="refused a statement") as caught:
            await store.put(OANDA, Credential(Secret(CANARY), Secret(CANARY), metadata={"key": CANARY}))
        assert CANARY not in everything_of(caught.value)
        assert caught.value.__context__ is None
        assert caught.value.__cause__ is None
        await store.close()

    @pytest.mark.parametrize(
        "url", [f"mysql://u:{CANARY}@host/db", f"postgresql://u:{CANARY}@host:port/db", CANARY, ""]
    )
    async def test_a_url_that_cannot_be_used_is_refused_without_showing_it(self, url: str) -> None:
        with pytest.raises(ValueError, match="the credential database must be") as caught:
            await open_store(url, KEY)
        assert CANARY not in everything_of(caught.value)

    async def test_a_refused_login_does_not_show_the_password(self, postgres_server: PostgresServer) -> None:
        address = postgres_server.url.replace("postgres:@", f"nobody:{CANARY}@")
        assert CANARY in address
        store = await open_store(address, KEY)
        with pytest.raises(StoreUnavailable) as caught:
            await store.find(OANDA)
        assert CANARY not in everything_of(caught.value) + repr(store) + await store.problem()
        await store.close()

    @pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+asyncpg"])
    async def test_every_spelling_of_postgresql_is_served(self, scheme: str, postgres_database: str) -> None:
        store = await open_store(scheme + postgres_database[postgres_database.index("://") :], KEY)
        assert await store.problem() == ""
        await store.close()
