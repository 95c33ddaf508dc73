"""Sealed values: bound to their row and column, opened with the keys, and refused without them."""

from __future__ import annotations

import asyncio
import base64
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exchange_service.credentials import rewriting
from exchange_service.credentials.key_providers import GivenKeys
from exchange_service.credentials.keysets import Keyset, KeyUnknown, aead, encrypt, new_keyset
from exchange_service.credentials.rewriting import Change, Choice, RewriteResult, survey
from exchange_service.credentials.sealing import AssociatedData, is_sealed, key_id_of, open_value, seal, unseal
from exchange_service.credentials.sql import open_store
from exchange_service.errors import CredentialInvalid, CredentialUnreadable, StoreUnavailable
from exchange_service.model import Account, Credential, Secret
from tests.credential_tables import KEY, OANDA, USER, Database, everything_of, find_reference
from tests.sealed_stores import (
    CANARY,
    FULL,
    OTHER,
    Stores,
    given_keys,
    open_credential,
    problems_of,
    read_columns,
    rewrite_all,
)

HERE = AssociatedData("bot_credentials", "api_key", USER, "oanda", "production")


class TestValue:
    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
    @given(value=st.text(st.characters(exclude_categories=["Cs"])))
    async def test_any_text_is_sealed_and_opened(self, keys: GivenKeys, value: str) -> None:
        sealed = await seal(value, HERE, keys)
        assert is_sealed(sealed)
        assert await unseal(sealed, HERE, keys) == value
        assert await unseal(json.dumps(sealed), HERE, keys) == value

    async def test_it_names_its_form_and_its_key(self, keys: GivenKeys, keyset: Keyset) -> None:
        sealed = await seal(CANARY, HERE, keys)
        assert sealed.split(":")[:2] == ["xs1", keyset.primary]
        assert key_id_of(sealed) == key_id_of(json.dumps(sealed)) == keyset.primary
        assert CANARY not in sealed

    @pytest.mark.parametrize(
        "other",
        [
            AssociatedData("other_table", "api_key", USER, "oanda", "production"),
            AssociatedData("bot_credentials", "api_secret", USER, "oanda", "production"),
            AssociatedData("bot_credentials", "api_key", OTHER, "oanda", "production"),
            AssociatedData("bot_credentials", "api_key", USER, "tradier", "production"),
            AssociatedData("bot_credentials", "api_key", USER, "oanda", "sandbox"),
            # The same letters, cut at another point.
            AssociatedData("bot_credentials", "api_key", USER + "o", "anda", "production"),
        ],
        ids=lambda other: f"{other.table} {other.column} {other.user_id[-4:]} {other.exchange} {other.environment}",
    )
    async def test_it_does_not_open_in_another_row_or_column(self, keys: GivenKeys, other: AssociatedData) -> None:
        sealed = await seal(CANARY, HERE, keys)
        with pytest.raises(CredentialUnreadable, match="does not open") as caught:
            await unseal(sealed, other, keys)
        assert CANARY not in everything_of(caught.value)
        assert caught.value.__context__ is None

    @pytest.mark.parametrize("environment", [None, "", "production", "Production", " production "])
    async def test_every_spelling_of_production_is_the_same_environment(
        self, keys: GivenKeys, environment: str | None
    ) -> None:
        sealed = await seal("value", HERE, keys)
        assert (
            await unseal(sealed, AssociatedData("bot_credentials", "api_key", USER, "OANDA", environment), keys)
            == "value"
        )

    async def test_no_character_of_it_can_be_changed(self, keys: GivenKeys) -> None:
        sealed = await seal("v", HERE, keys)
        for index, letter in enumerate(sealed):
            changed = sealed[:index] + ("A" if letter != "A" else "B") + sealed[index + 1 :]
            # The last character of each part holds bits that mean nothing.
            if index == len(sealed) - 1 or sealed[index + 1 : index + 2] == ":":
                continue
            assert is_sealed(changed) or index < 4
            with pytest.raises(CredentialUnreadable):
                await unseal(changed, HERE, keys)

    @pytest.mark.parametrize(
        "text", ["xs1:", "xs1:a", "xs1:a:b:c", "xs1:a:é:c", "xs2:a:AAAA:AAAA", '"xs1:a:b:c"', '"xs1:']
    )
    async def test_a_damaged_value_or_one_of_a_later_form_is_never_treated_as_plain(
        self, keys: GivenKeys, text: str
    ) -> None:
        assert is_sealed(text)
        with pytest.raises(CredentialUnreadable):
            await unseal(text, HERE, keys)
        with pytest.raises(CredentialUnreadable):
            open_value(text, new_keyset(), column="api_key", user_id=USER, exchange="oanda")

    @pytest.mark.parametrize("text", [None, "", "xs", "xs1", "a xs1:a:b:c", "xsX:a", '{"xs1:a": 1}', "XS1:a:b:c"])
    def test_a_text_that_only_resembles_a_sealed_value_is_plain(self, text: str | None) -> None:
        assert not is_sealed(text)

    @pytest.mark.parametrize(("data_key", "value"), [(b"short", b""), (bytes(32), b"\xff" + CANARY.encode())])
    async def test_a_value_that_another_program_sealed_wrongly_is_unreadable_and_not_shown(
        self, keys: GivenKeys, keyset: Keyset, data_key: bytes, value: bytes
    ) -> None:
        associated_data = HERE.encode()
        _, wrapped = keyset.wrap(data_key, associated_data)
        body = encrypt(aead(bytes(32)), value, associated_data)
        parts = [base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (wrapped, body)]
        sealed = ":".join(["xs1", keyset.primary, *parts])
        with pytest.raises(CredentialUnreadable, match="does not open") as caught:
            await unseal(sealed, HERE, keys)
        assert CANARY not in everything_of(caught.value)
        assert caught.value.__context__ is None
        with pytest.raises(CredentialUnreadable, match="does not open"):
            open_value(sealed, keyset, column="api_key", user_id=USER, exchange="oanda")

    async def test_a_key_that_is_missing_is_named(self, keys: GivenKeys, keyset: Keyset) -> None:
        sealed = await seal(CANARY, HERE, keys)
        with pytest.raises(CredentialUnreadable, match=f"the key {keyset.primary}, which the keyset does not have"):
            await unseal(sealed, HERE, given_keys(new_keyset()))


class RemoteKeys:
    """Keys as a KMS offers them: stored elsewhere, requested for each value, and sometimes unreachable."""

    def __init__(self) -> None:
        self.keyset = new_keyset()
        self.down = False
        self.requests = 0

    async def problem(self) -> str:
        return "The KMS does not answer." if self.down else ""

    async def primary(self) -> str:
        return self.keyset.primary

    async def known(self) -> frozenset[str]:
        return frozenset(self.keyset.keys)

    async def _ask(self) -> Keyset:
        self.requests += 1
        await asyncio.sleep(0)
        if self.down:
            raise StoreUnavailable("The KMS does not answer.")
        return self.keyset

    async def wrap(self, data_key: bytes, associated_data: bytes) -> tuple[str, bytes]:
        return (await self._ask()).wrap(data_key, associated_data)

    async def unwrap(self, key_id: str, wrapped: bytes, associated_data: bytes) -> bytes:
        if key_id not in self.keyset.keys:
            raise KeyUnknown
        return (await self._ask()).unwrap(key_id, wrapped, associated_data)


class TestEveryTable:
    async def test_a_credential_stored_with_keys_is_sealed_in_every_column_and_opened(
        self, open_with: Stores, database: Database, keys: GivenKeys
    ) -> None:
        store = await open_with(keys)
        assert await store.put(OANDA, FULL) is True
        assert all(is_sealed(text) for text in read_columns(database)[0])
        assert CANARY not in repr(database.run("SELECT * FROM bot_credentials"))
        assert await open_credential(store) == FULL
        assert await store.put(Account(USER, "OANDA"), FULL) is False
        assert await open_credential(store) == await open_credential(store, Account(USER, "Oanda")) == FULL

    async def test_plain_rows_are_sealed_opened_and_made_plain_again_to_the_last_letter(
        self, open_with: Stores, database: Database, keys: GivenKeys
    ) -> None:
        store = await open_with(keys)
        metadata = '{"account_id": "7", "amount": 1.10, "big": 12345678901234567890123, "k": "ü\\u0001"}'
        database.insert(passphrase="pass phrase", extra_metadata=metadata)
        before, credential = read_columns(database), await open_credential(store)
        assert await rewrite_all(store, Change.SEAL) == {RewriteResult.CHANGED: 1}
        assert all(is_sealed(text) for text in read_columns(database)[0])
        assert await open_credential(store) == credential
        assert await rewrite_all(store, Change.SEAL) == {RewriteResult.NOTHING_TO_DO: 1}
        assert await rewrite_all(store, Change.UNSEAL) == {RewriteResult.CHANGED: 1}
        assert read_columns(database) == before

    async def test_null_and_empty_values_stay_as_they_are(
        self, open_with: Stores, database: Database, keys: GivenKeys
    ) -> None:
        store = await open_with(keys)
        database.insert(api_secret="", passphrase=None, extra_metadata="{}")
        database.insert(exchange="tradier", extra_metadata=None, passphrase="")
        assert await rewrite_all(store, Change.SEAL) == {RewriteResult.CHANGED: 2}
        oanda, tradier = read_columns(database)
        assert (is_sealed(oanda[0]), *oanda[1:]) == (True, "", None, "{}")
        assert ([is_sealed(text) for text in tradier[:2]], *tradier[2:]) == ([True, True], "", None)
        assert (await open_credential(store)).metadata == {}

    async def test_a_value_that_is_copied_to_another_row_is_refused(
        self, open_with: Stores, database: Database, keys: GivenKeys
    ) -> None:
        store = await open_with(keys)
        await store.put(OANDA, FULL)
        mallory = Account(OTHER, "oanda")
        await store.put(mallory, Credential(Secret("other key"), Secret("other secret")))
        for column in ("api_key", "extra_metadata"):
            database.run(
                f"UPDATE bot_credentials SET {column} = (SELECT other.{column} FROM bot_credentials AS other"
                f" WHERE other.user_id = '{USER}') WHERE user_id = '{OTHER}'"
            )
            with pytest.raises(
                CredentialUnreadable, match=f"The {column} of the stored oanda credential does not open"
            ):
                await open_credential(store, mallory)
            await store.put(mallory, Credential(Secret("other key"), Secret("other secret")))
        assert await open_credential(store) == FULL

    async def test_a_rotation_leaves_both_keys_in_use_until_the_rewrap(
        self, open_with: Stores, database: Database, keyset: Keyset
    ) -> None:
        first = await open_with(given_keys(keyset))
        await first.put(OANDA, FULL)
        rotated = keyset.with_new_key(primary=True)
        second = await open_with(given_keys(rotated))
        sandbox = Account(USER, "oanda", "sandbox")
        await second.put(sandbox, FULL)
        assert await open_credential(second) == await open_credential(second, sandbox) == FULL
        assert (await survey(second)).values_by_key == {keyset.primary: 4, rotated.primary: 4}
        before = await find_reference(second, sandbox)
        assert await rewrite_all(second, Change.REWRAP) == {RewriteResult.CHANGED: 1, RewriteResult.NOTHING_TO_DO: 1}
        assert (await survey(second)).values_by_key == {rotated.primary: 8}
        assert await rewrite_all(second, Change.REWRAP) == {RewriteResult.NOTHING_TO_DO: 2}
        only_new = await open_with(given_keys(rotated.without(keyset.primary)))
        assert await open_credential(only_new) == FULL
        # A reference from before opens what is stored now.
        assert await only_new.open(before) == FULL
        with pytest.raises(CredentialUnreadable, match="which the keyset does not have"):
            await open_credential(first)

    async def test_the_keys_are_proven_by_opening_a_value_of_each(
        self, open_with: Stores, database: Database, keyset: Keyset
    ) -> None:
        none, right = await open_with(), await open_with(given_keys(keyset))
        assert await problems_of(none) == await problems_of(right) == []
        await right.put(OANDA, Credential(metadata={"private_key": CANARY}))
        assert await problems_of(right) == []
        (unset,) = await problems_of(none)
        assert "no keyset" in unset
        (missing,) = await problems_of(await open_with(given_keys(new_keyset())))
        assert f"the key {keyset.primary}, which the keyset does not have" in missing
        impostor = new_keyset()
        wrong = Keyset(keyset.primary, {keyset.primary: impostor.keys[impostor.primary]})
        (other,) = await problems_of(await open_with(given_keys(wrong)))
        assert f"The key {keyset.primary} of the keyset is not the one" in other

    async def test_only_the_chosen_rows_are_sealed(
        self, open_with: Stores, database: Database, keys: GivenKeys
    ) -> None:
        store = await open_with(keys)
        for user, exchange in ((USER, "oanda"), (USER, "tradier"), (OTHER, "oanda"), (OTHER, "tradier")):
            database.insert(user_id=user, exchange=exchange)

        async def plain() -> list[bool]:
            return [not is_sealed(row[0]) for row in read_columns(database, "api_key")]

        assert await rewrite_all(store, Change.SEAL, Choice("nobody")) == {}
        assert await rewrite_all(store, Change.SEAL, Choice(OTHER, "tradier"), dry_run=True) == {
            RewriteResult.CHANGED: 1
        }
        assert await plain() == [True] * 4
        assert await rewrite_all(store, Change.SEAL, Choice(OTHER, "tradier")) == {RewriteResult.CHANGED: 1}
        # The other user's id sorts first.
        assert await plain() == [True, False, True, True]
        assert await rewrite_all(store, Change.SEAL, Choice(exchange_id="oanda")) == {RewriteResult.CHANGED: 2}
        assert await plain() == [False, False, False, True]
        assert await rewrite_all(store, Change.SEAL, Choice(USER)) == {
            RewriteResult.NOTHING_TO_DO: 1,
            RewriteResult.CHANGED: 1,
        }
        assert await plain() == [False] * 4


class TestWithoutTheKeys:
    async def test_a_sealed_row_is_refused_and_its_text_is_not_shown(
        self, open_sqlite: Stores, keys: GivenKeys
    ) -> None:
        await (await open_sqlite(keys)).put(OANDA, FULL)
        store = await open_sqlite()
        with pytest.raises(CredentialUnreadable, match="sealed, and there is no keyset"):
            await open_credential(store)

    async def test_a_sealed_row_is_not_replaced_by_a_plain_one(
        self, open_sqlite: Stores, keys: GivenKeys, sqlite_database: Database
    ) -> None:
        await (await open_sqlite(keys)).put(OANDA, FULL)
        before = read_columns(sqlite_database)
        store = await open_sqlite()
        with pytest.raises(CredentialUnreadable, match="no keyset to seal the new one"):
            await store.put(OANDA, Credential(Secret("new")))
        assert read_columns(sqlite_database) == before
        assert await store.remove(OANDA) is True
        assert await store.put(OANDA, Credential(Secret("new"))) is True

    async def test_nothing_is_stored_in_plain_text_when_the_keys_cannot_be_used(
        self, open_sqlite: Stores, sqlite_database: Database
    ) -> None:
        store = await open_sqlite(GivenKeys("no keyset"))
        with pytest.raises(CredentialUnreadable):
            await store.put(OANDA, FULL)
        assert read_columns(sqlite_database) == []
        sqlite_database.insert()
        assert await rewrite_all(store, Change.SEAL) == {RewriteResult.UNREADABLE: 1}
        assert read_columns(sqlite_database, "api_key") == [("key",)]

    @pytest.mark.parametrize("sealing", [True, False])
    async def test_a_value_that_looks_sealed_is_not_stored_because_it_could_not_be_read_again(
        self, open_sqlite: Stores, sqlite_database: Database, keys: GivenKeys, sealing: bool
    ) -> None:
        store = await open_sqlite(keys if sealing else None)
        for name in ("api_key", "api_secret", "passphrase"):
            with pytest.raises(CredentialInvalid, match="begins as sealed values do") as caught:
                await store.put(OANDA, Credential.from_texts({name: f"xs1:{CANARY}"}, {}))
            assert CANARY not in everything_of(caught.value)
        assert read_columns(sqlite_database) == []


class TestPlaintext:
    async def test_rows_of_both_kinds_and_rows_of_a_mixed_kind_are_read(
        self, open_sqlite: Stores, keys: GivenKeys, sqlite_database: Database
    ) -> None:
        store = await open_sqlite(keys)
        await store.put(OANDA, FULL)
        sqlite_database.insert(exchange="tradier")
        sqlite_database.run("UPDATE bot_credentials SET api_secret = 'plain' WHERE exchange = 'oanda'")
        assert (await open_credential(store)).api_secret.reveal() == "plain"
        assert (await open_credential(store)).api_key == FULL.api_key
        assert (await open_credential(store, Account(USER, "tradier"))).api_key.reveal() == "key"
        assert await rewrite_all(store, Change.SEAL) == {RewriteResult.CHANGED: 2}
        assert (await open_credential(store)).api_secret.reveal() == "plain"

    async def test_a_plain_value_is_refused_where_it_is_not_allowed(
        self, open_sqlite: Stores, keys: GivenKeys, sqlite_database: Database
    ) -> None:
        store = await open_sqlite(keys, allow_plaintext=False)
        await store.put(OANDA, FULL)
        assert await open_credential(store) == FULL
        sqlite_database.run("UPDATE bot_credentials SET api_secret = 'slipped in'")
        with pytest.raises(CredentialUnreadable, match="allow_plaintext=false refuses"):
            await open_credential(store)
        # It can be sealed nevertheless, once the operator says so.
        assert await rewrite_all(store, Change.SEAL) == {RewriteResult.CHANGED: 1}
        assert (await open_credential(store)).api_secret.reveal() == "slipped in"

    async def test_metadata_that_are_no_object_are_refused_when_sealed_as_when_plain(
        self, open_sqlite: Stores, keys: GivenKeys, sqlite_database: Database
    ) -> None:
        store = await open_sqlite(keys)
        sqlite_database.insert(extra_metadata=f"{{{CANARY}")
        assert await rewrite_all(store, Change.SEAL) == {RewriteResult.CHANGED: 1}
        assert CANARY not in repr(read_columns(sqlite_database))
        with pytest.raises(CredentialInvalid, match="not a JSON object") as caught:
            await open_credential(store)
        assert CANARY not in everything_of(caught.value)


class TestKeysElsewhere:
    async def test_a_kms_seals_and_opens_through_the_same_protocol(self, open_sqlite: Stores) -> None:
        keys = RemoteKeys()
        store = await open_sqlite(keys)
        await store.put(OANDA, FULL)
        assert await open_credential(store) == FULL
        assert keys.requests == 8
        assert await problems_of(store) == []

    async def test_a_kms_that_cannot_be_reached_is_a_temporary_error(
        self, open_sqlite: Stores, sqlite_database: Database
    ) -> None:
        keys = RemoteKeys()
        store = await open_sqlite(keys)
        await store.put(OANDA, FULL)
        keys.down = True
        for work in (open_credential(store), store.put(OANDA, FULL)):
            with pytest.raises(StoreUnavailable, match="KMS"):
                await work
        assert await store.find(OANDA) is not None


class TestOtherKindsOfColumns:
    """Column types with their own comparison; tests/faults/test_stored_row_attacks.py has what they must not equate."""

    PADDED = (
        "CREATE TABLE bot_credentials (user_id char(50), exchange char(20), environment char(20),"
        " api_key text, api_secret text, passphrase text, extra_metadata text)"
    )

    async def test_padded_columns_are_surveyed_sealed_and_opened(
        self, postgres_database: str, keys: GivenKeys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database = Database(postgres_database)
        monkeypatch.setattr(rewriting, "PAGE_SIZE", 1)
        database.run(self.PADDED)
        database.insert()
        database.insert(user_id="alice")
        store = await open_store(database.url, KEY, keys=keys)
        assert (await survey(store)).plain_rows == 2
        assert await rewrite_all(store, Change.SEAL) == {RewriteResult.CHANGED: 2}
        assert (await open_credential(store)).api_key.reveal() == "key"
        assert await store.put(OANDA, FULL) is False
        assert await open_credential(store) == FULL
        assert await rewrite_all(store, Change.UNSEAL) == {RewriteResult.CHANGED: 2}
        await store.close()
