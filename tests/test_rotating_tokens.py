"""A refresh token that changes at each use is written back, once for each use, and never over what its user stores."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from exchange_service.balances import replacements
from exchange_service.balances.cached import CachedBalances
from exchange_service.balances.lineage import Lineage
from exchange_service.cache.memory import MemoryCache
from exchange_service.cli.credential_check import open_checker
from exchange_service.credentials import CredentialReference
from exchange_service.credentials.keyset_files import create_keyset_file
from exchange_service.credentials.replacing import FieldReplacer
from exchange_service.credentials.sealing import is_sealed
from exchange_service.errors import (
    CredentialRejected,
    NotSupported,
    PluginFailed,
    ServiceError,
    StoreUnavailable,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.model import Account, Credential, CredentialField, ExchangeMetadata, Secret
from exchange_service.testing import StoredRow, venue_call
from exchange_service.venues.registry import Listing
from tests.credential_tables import Database
from tests.harness import Running, eventually, listing, serving, settings_for, streaming, until
from tests.rotating import RotatingVenue, install, values_of
from tests.sealed_stores import read_columns
from tests.servers import PostgresServer

ALICE = Account("alice", "rota")
PLACES = ("in-process", "own-process")


@pytest.fixture
async def venue() -> AsyncIterator[RotatingVenue]:
    made = RotatingVenue()
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def plugin(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("site")
    install(folder)
    monkeypatch.syspath_prepend(str(folder))


@asynccontextmanager
async def rotating(
    folder: Path, venue: RotatingVenue, place: str = "in-process", **changes: Any
) -> AsyncIterator[Running]:
    settings = {"venue_urls": {"rota": venue.url}, "plugin_processes": {"rota": place}}
    async with serving(folder, **(settings | changes)) as running:
        yield running


async def store(running: Running, venue: RotatingVenue, **metadata: str) -> str:
    token = venue.grant("alice")
    await running.store("rota", api_key="a-client-id", passphrase=token, metadata={"account_id": "7", **metadata})
    return token


async def read(running: Running, user: str = "alice") -> Any:
    """The balance as the venue gives it now; a plugin's process may begin first."""
    replies: list[Any] = []

    async def answered() -> bool:
        try:
            replies.append(await running.client.get_balance(user, "rota", max_age=0))
        except ServiceError as error:
            if error.reason != "PLUGIN_UNAVAILABLE":
                raise
        return bool(replies)

    await eventually(answered, "the balance")
    return replies[0]


async def found(running: Running, account: Account = ALICE) -> CredentialReference:
    reference = await running.service.store.find(account)
    assert reference is not None
    return reference


async def stored(running: Running, account: Account = ALICE) -> Credential:
    return await running.service.store.open(await found(running, account))


def only_valid(venue: RotatingVenue) -> str:
    (token,) = venue.valid
    return token


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("place", PLACES)
class TestWriteBack:
    async def test_the_new_token_is_stored_and_the_rest_of_the_row_stays(
        self, venue: RotatingVenue, tmp_path: Path, place: str
    ) -> None:
        async with rotating(tmp_path, venue, place) as running:
            old = await store(running, venue, note="kept")
            await read(running)
            credential = await stored(running)
            assert credential.passphrase.reveal() == only_valid(venue) != old
            assert credential.api_key.reveal() == "a-client-id"
            assert dict(credential.metadata) == {"account_id": "7", "note": "kept", "device_token": f"device {old}"}

    async def test_a_rotation_causes_no_other_one_over_many_calls(
        self, venue: RotatingVenue, tmp_path: Path, place: str
    ) -> None:
        async with rotating(tmp_path, venue, place) as running:
            await store(running, venue)
            for _ in range(12):
                await read(running)
            assert venue.refreshes["alice"] == 1
            venue.expire_access()
            for _ in range(5):
                await read(running)
            assert (venue.refreshes["alice"], venue.refused) == (2, 0)
            assert (await stored(running)).passphrase.reveal() == only_valid(venue)

    async def test_after_a_restart_the_service_goes_on_with_the_stored_token(
        self, venue: RotatingVenue, tmp_path: Path, place: str
    ) -> None:
        async with rotating(tmp_path, venue, place) as running:
            await store(running, venue)
            await read(running)
        async with rotating(tmp_path, venue, place) as running:
            await read(running)
            assert (venue.refreshes["alice"], venue.refused) == (2, 0)

    async def test_a_token_that_the_user_stores_meanwhile_wins(
        self, venue: RotatingVenue, tmp_path: Path, place: str
    ) -> None:
        async with rotating(tmp_path, venue, place) as running:
            await store(running, venue)
            await read(running)
            venue.expire_access()
            venue.asked.clear()
            venue.open.clear()
            reading = asyncio.create_task(read(running))
            await venue.asked.wait()
            newer = venue.grant("alice")
            # As another program does, of which the service is not told.
            await running.store("rota", api_key="a-client-id", passphrase=newer)
            with capture_logs() as lines:
                venue.open.set()
                assert (await reading).balance.venue_accounts
            assert (await stored(running)) == Credential.from_texts({"api_key": "a-client-id", "passphrase": newer})
            assert [line["plugin"] for line in lines if line["event"] == "credential.replacement_refused"] == ["rota"]
            await read(running)
            assert venue.refused == 0
            assert newer not in venue.valid

    async def test_a_token_is_stored_although_its_callers_time_is_over(
        self, venue: RotatingVenue, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers = asyncio.Event()
        replace = FieldReplacer.replace

        async def slow(*arguments: Any, **options: Any) -> Any:
            await answers.wait()
            return await replace(*arguments, **options)

        async with rotating(tmp_path, venue, place, venue_timeout=2.0) as running:
            await store(running, venue)
            await read(running)
            venue.expire_access()
            monkeypatch.setattr(FieldReplacer, "replace", slow)
            with pytest.raises(VenueTimeout):
                await running.client.get_balance("alice", "rota", max_age=0)
            answers.set()
            await self.goes_on(running, venue)

    async def test_a_token_is_stored_although_its_caller_has_left(
        self, venue: RotatingVenue, tmp_path: Path, place: str
    ) -> None:
        async with rotating(tmp_path, venue, place) as running:
            await store(running, venue)
            await read(running)
            venue.expire_access()
            venue.asked.clear()
            venue.open.clear()
            reading = asyncio.create_task(running.client.get_balance("alice", "rota", max_age=0))
            await venue.asked.wait()
            reading.cancel()
            await asyncio.wait({reading})
            venue.open.set()
            await self.goes_on(running, venue)

    async def goes_on(self, running: Running, venue: RotatingVenue) -> None:
        """The only valid token comes to be stored, and a call needs no other one."""

        async def is_stored() -> bool:
            return (await stored(running)).passphrase.reveal() == only_valid(venue)

        await eventually(is_stored, "the new token")
        await read(running)
        assert (venue.refreshes["alice"], venue.refused) == (2, 0)

    async def test_a_stream_goes_on_without_an_error(self, venue: RotatingVenue, tmp_path: Path, place: str) -> None:
        async with rotating(tmp_path, venue, place, poll_interval=0.5, poll_interval_still=0.5) as running:
            await store(running, venue)
            await read(running)
            async with streaming(running, "rota") as stream:
                await stream.next_of("balance")
                venue.expire_access()
                await read(running)
                for _ in range(3):
                    event = await stream.next()
                    while event.WhichOneof("event") != "balance":
                        assert event.WhichOneof("event") == "heartbeat", event
                        event = await stream.next()
            assert (venue.refreshes["alice"], venue.refused) == (2, 0)

    async def test_while_the_database_is_frozen_the_service_holds_the_token_and_stores_it_later(
        self,
        venue: RotatingVenue,
        tmp_path: Path,
        place: str,
        postgres_server: PostgresServer,
        own_postgres_database: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(replacements, "_FIRST_PAUSE", 0.2)
        async with rotating(tmp_path, venue, place, database_url=own_postgres_database) as running:
            await store(running, venue)
            await read(running)
            venue.expire_access()
            venue.asked.clear()
            venue.open.clear()
            reading = asyncio.create_task(running.client.get_balance("alice", "rota", max_age=0))
            await venue.asked.wait()
            with capture_logs() as lines, postgres_server.frozen():
                venue.open.set()
                assert (await reading).balance.venue_accounts
                assert [line["plugin"] for line in lines if line["event"] == "credential.replacement_held"] == ["rota"]

            async def is_stored() -> bool:
                return (await stored(running)).passphrase.reveal() == only_valid(venue)

            await eventually(is_stored, "the new token")
            venue.expire_access()
            await read(running)
            assert (venue.refreshes["alice"], venue.refused) == (3, 0)
            assert (await stored(running)).passphrase.reveal() == only_valid(venue)


@pytest.mark.usefixtures("plugin")
class TestRow:
    async def test_with_a_keyset_it_is_sealed_for_its_row_and_the_audit_names_the_plugin_and_no_value(
        self, venue: RotatingVenue, tmp_path: Path
    ) -> None:
        create_keyset_file(tmp_path / "keyset.json")
        settings = {"keyset_file": tmp_path / "keyset.json", "allow_plaintext": False, "allowed_plugins": ["acme-rota"]}
        async with rotating(tmp_path, venue, **settings) as running:
            old = await store(running, venue)
            with capture_logs() as lines:
                await read(running)
            database = Database(f"sqlite:///{tmp_path}/credentials.db")
            assert all(is_sealed(text) for text in read_columns(database, "api_key, passphrase, extra_metadata")[0])
            assert (await stored(running)).passphrase.reveal() == only_valid(venue)
        (line,) = [line for line in lines if line["event"] == "credential.replaced"]
        assert (line["plugin"], line["fields"], line["exchange"]) == ("rota", ["device_token", "passphrase"], "rota")
        assert old not in str(lines)
        assert only_valid(venue) not in str(lines)

    async def test_a_credential_that_is_connected_is_stored_as_its_venue_has_left_it(
        self, venue: RotatingVenue, tmp_path: Path
    ) -> None:
        async with rotating(tmp_path, venue, manage_accounts=True) as running:
            fields = {"api_key": "a-client-id", "passphrase": venue.grant("alice")}
            await running.client.connect_account("alice", "rota", fields)
            assert (await stored(running)).passphrase.reveal() == only_valid(venue)
            await read(running)
            assert venue.refused == 0

    async def test_a_check_by_the_command_stores_the_token_that_it_was_given(
        self, venue: RotatingVenue, tmp_path: Path
    ) -> None:
        settings = {"venue_urls": {"rota": venue.url}, "plugin_processes": {"rota": "in-process"}}
        async with rotating(tmp_path, venue) as running:
            await store(running, venue)
            async with open_checker(settings_for(tmp_path, **settings)) as checker:
                assert (await checker.check(ALICE)).error is None
            assert (await stored(running)).passphrase.reveal() == only_valid(venue)

    async def test_until_it_is_stored_a_new_session_begins_with_the_token_that_is_held(
        self, venue: RotatingVenue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def down(*_: Any, **__: Any) -> None:
            raise StoreUnavailable("The database is down.")

        async with rotating(tmp_path, venue) as running:
            await store(running, venue)
            monkeypatch.setattr(FieldReplacer, "replace", down)
            for _ in range(3):
                await read(running)
                # As after a while without calls.
                await running.service.balances.publish_credential_change(ALICE)
            assert (venue.refreshes["alice"], venue.refused) == (3, 0)

    async def test_a_token_is_stored_of_a_session_that_began_while_the_one_before_was_not_stored_yet(
        self, venue: RotatingVenue, tmp_path: Path
    ) -> None:
        async with rotating(tmp_path, venue) as running:
            made, version, entry = await self.opened(running, venue)
            version = await made.replace(ALICE, version, entry, {"passphrase": Secret("first")}) or ""
            writing = asyncio.create_task(made.replace(ALICE, version, entry, {"passphrase": Secret("second")}))
            # The row's next turn comes in a second.
            await asyncio.sleep(0.1)
            await made.opening(running.service.store.open, lambda _: True)(await found(running))
            await writing
            # As from a call that has begun before.
            assert await made.replace(ALICE, version, entry, {"passphrase": Secret("third")})
            assert (await stored(running)).passphrase.reveal() == "third"
            await made.close()

    async def test_two_listings_of_one_row_may_both_replace_its_token_again_and_again(
        self, venue: RotatingVenue, tmp_path: Path
    ) -> None:
        async with rotating(tmp_path, venue) as running:
            made, version, entry = await self.opened(running, venue)
            other = Account("alice", "rota_options")
            await made.opening(running.service.store.open, lambda _: True)(replace(await found(running), account=other))
            versions: dict[Account, str | None] = dict.fromkeys((ALICE, other), version)
            for number in range(2):
                for account, of_row in zip(
                    versions,
                    await asyncio.gather(
                        *(
                            made.replace(account, before or "", entry, {"passphrase": Secret(f"{number} {account}")})
                            for account, before in versions.items()
                        )
                    ),
                    strict=True,
                ):
                    versions[account] = of_row
            assert None not in versions.values()
            assert (await stored(running)).passphrase.reveal() == f"1 {other}"
            await made.close()

    async def test_what_is_remembered_of_a_session_is_bounded_however_often_its_token_rotates(
        self, venue: RotatingVenue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(replacements, "LEAST_PAUSE", 0.0)
        monkeypatch.setattr(replacements, "_MOST_OWN", 3)
        async with rotating(tmp_path, venue) as running:
            made, version, entry = await self.opened(running, venue)
            for number in range(6):
                version = await made.replace(ALICE, version, entry, {"passphrase": Secret(f"t{number}")}) or ""
            opened = made._opened.get(ALICE)
            assert opened is not None
            assert len(opened.own) == 3
            assert opened.version == version
            await made.close()

    async def opened(self, running: Running, venue: RotatingVenue) -> tuple[replacements.Replacements, str, Listing]:
        """Replacements with which Alice's row was opened, its version, and the listing."""
        await store(running, venue)
        reference, made = await found(running), replacements.Replacements(running.service.store)
        await made.opening(running.service.store.open, lambda _: True)(reference)
        return made, reference.version, running.service.registry.listings["rota"]

    async def test_what_cannot_be_stored_for_long_is_given_up_with_an_error_line(
        self, venue: RotatingVenue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(replacements, "GIVE_UP_AFTER", 0.5)
        monkeypatch.setattr(replacements, "_FIRST_PAUSE", 0.1)

        async def down(*_: Any, **__: Any) -> None:
            raise StoreUnavailable("The database is down.")

        async with rotating(tmp_path, venue) as running:
            await store(running, venue)
            monkeypatch.setattr(FieldReplacer, "replace", down)
            with capture_logs() as lines:
                await read(running)

                async def is_lost() -> bool:
                    return any(line["event"] == "credential.replacement_lost" for line in lines)

                await eventually(is_lost, "the end of the attempts")
            assert only_valid(venue) not in str(lines)

    async def test_at_the_services_end_what_waits_is_stored_once_more(
        self, venue: RotatingVenue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(replacements, "_FIRST_PAUSE", 60.0)
        replace = FieldReplacer.replace

        async def down(*_: Any, **__: Any) -> None:
            raise StoreUnavailable("The database is down.")

        async with rotating(tmp_path, venue) as running:
            await store(running, venue)
            monkeypatch.setattr(FieldReplacer, "replace", down)
            await read(running)
            monkeypatch.setattr(FieldReplacer, "replace", replace)
        async with rotating(tmp_path, venue) as running:
            assert (await stored(running)).passphrase.reveal() == only_valid(venue)

    async def test_a_refresh_under_way_is_stored_although_its_session_is_closed(
        self, venue: RotatingVenue, tmp_path: Path
    ) -> None:
        async with rotating(tmp_path, venue) as running:
            await store(running, venue)
            await read(running)
            venue.expire_access()
            venue.asked.clear()
            venue.open.clear()
            reading = asyncio.create_task(running.client.get_balance("alice", "rota", max_age=0))
            await venue.asked.wait()
            # As after a check of the account by its user.
            await running.service.balances.publish_credential_change(ALICE)
            reading.cancel()
            await asyncio.wait({reading})
            await until(lambda: any(task.get_name() == "session closing" for task in asyncio.all_tasks()), "the end")
            venue.open.set()
            await read(running)
            assert venue.refused == 0
            assert (await stored(running)).passphrase.reveal() == only_valid(venue)


@pytest.mark.usefixtures("plugin")
class TestReplicas:
    @asynccontextmanager
    async def two(
        self, folder: Path, venue: RotatingVenue, redis_url: str, place: str
    ) -> AsyncIterator[tuple[Running, Running]]:
        shared = {"cache_url": redis_url, "hash_key": "0123456789abcdef", "cache_prefix": f"test-{uuid.uuid4().hex}:"}
        async with rotating(folder, venue, place, **shared) as one, rotating(folder, venue, place, **shared) as other:
            yield one, other

    @pytest.mark.parametrize("place", PLACES)
    async def test_a_rotation_by_one_replica_costs_the_other_one_no_session(
        self, venue: RotatingVenue, tmp_path: Path, redis_url: str, place: str
    ) -> None:
        async with self.two(tmp_path, venue, redis_url, place) as (one, other):
            await store(one, venue)
            await read(one)
            await read(other)
            # Each has an access token of its own.
            assert venue.refreshes["alice"] == 2
            for _ in range(6):
                await read(one)
                await read(other)
            assert (venue.refreshes["alice"], venue.refused) == (2, 0)
            venue.expire_access()
            for _ in range(3):
                await read(one)
                await read(other)
            assert (venue.refreshes["alice"], venue.refused) == (4, 0)
            assert (await stored(one)).passphrase.reveal() == only_valid(venue)

    async def test_a_replica_that_spends_a_token_again_is_refused_once_and_then_reads_the_newer_one(
        self, venue: RotatingVenue, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def nobody_is_told(*_: Any) -> None:
            pass

        monkeypatch.setattr(CachedBalances, "publish_replacement", nobody_is_told)
        async with self.two(tmp_path, venue, redis_url, "in-process") as (one, other):
            await store(one, venue)
            await read(one)
            await read(other)
            venue.expire_access()
            await read(one)

            async def reads_itself() -> bool:
                before = venue.reads
                with suppress(CredentialRejected):
                    # Not zero: the store is not asked for each call.
                    await other.client.get_balance("alice", "rota", max_age=0.001)
                return venue.reads > before

            await eventually(reads_itself, "a balance of the other replica's own")
            assert venue.refused == 1
            assert (await stored(one)).passphrase.reveal() == only_valid(venue)

    async def test_of_two_that_spend_the_same_token_at_once_the_row_has_the_one_that_works(
        self, venue: RotatingVenue, tmp_path: Path, redis_url: str
    ) -> None:
        async with self.two(tmp_path, venue, redis_url, "in-process") as (one, other):
            await store(one, venue)
            await read(one)
            await read(other)
            venue.expire_access()
            for _ in range(3):
                await asyncio.gather(read(one), read(other), return_exceptions=True)
            await read(one)
            await read(other)
            assert (await stored(one)).passphrase.reveal() == only_valid(venue)


class TestStoredRow:
    """What plugin authors test with."""

    @pytest.fixture
    def metadata(self) -> ExchangeMetadata:
        fields = (CredentialField("api_key", "Id"), CredentialField("passphrase", "Token", rotates=True))
        return listing(credential_fields=(*fields, CredentialField("device", "Device", rotates=True)))

    async def test_it_holds_what_was_stored_and_the_call_has_it_too(self, metadata: ExchangeMetadata) -> None:
        row = StoredRow()
        async with venue_call(metadata, api_key="id", passphrase="old", stored_row=row) as call:
            assert row.credential == call.credential
            assert await call.replace_credential(passphrase="new", metadata={"device": "d"})
            assert call.credential == row.credential
        assert values_of(row.credential) == ("id", "", "new")
        assert (dict(row.credential.metadata), row.writes) == ({"device": "d"}, 1)

    async def test_a_user_who_was_faster_wins(self, metadata: ExchangeMetadata) -> None:
        row = StoredRow(changed=True)
        async with venue_call(metadata, passphrase="old", stored_row=row) as call:
            assert not await call.replace_credential(passphrase="new")
            assert call.credential.passphrase.reveal() == "new"
        assert values_of(row.credential) == ("", "", "old")

    async def test_a_database_that_does_not_answer_leaves_the_new_value_to_the_call(
        self, metadata: ExchangeMetadata
    ) -> None:
        row = StoredRow(available=False)
        async with venue_call(metadata, passphrase="old", stored_row=row) as call:
            with pytest.raises(VenueUnavailable):
                await call.replace_credential(passphrase="new")
            assert call.credential.passphrase.reveal() == "new"
        assert row.writes == 0

    @pytest.mark.parametrize(
        ("changes", "fault"),
        [
            ({"api_secret": "new"}, "does not mark such a field"),
            ({"metadata": {"api_key": "new"}}, "does not mark the field 'api_key'"),
            ({"passphrase": ""}, "the new passphrase is empty"),
            ({"passphrase": b"canary"}, "of the type bytes"),
            ({"passphrase": "canary" * 10_000}, "longer than 32 KiB"),
            ({"passphrase": "canary\0"}, "no database stores"),
            ({}, "without a new value"),
        ],
    )
    async def test_what_a_plugin_may_not_store_is_named_without_its_value(
        self, metadata: ExchangeMetadata, changes: dict[str, Any], fault: str
    ) -> None:
        row = StoredRow()
        async with venue_call(metadata, passphrase="old", stored_row=row) as call:
            with pytest.raises(PluginFailed, match=fault) as caught:
                await call.replace_credential(**changes)
        assert "canary" not in str(caught.value)
        assert (values_of(row.credential), row.writes) == (("", "", "old"), 0)

    async def test_a_call_without_a_service_says_that_nothing_is_stored(self, metadata: ExchangeMetadata) -> None:
        async with venue_call(metadata) as call:
            with pytest.raises(NotSupported, match="not stored by the service"):
                await replace(call, replacing=None).replace_credential(passphrase="new")


class TestLineage:
    async def test_a_version_knows_those_that_its_plugin_made_it_of_on_every_replica(self) -> None:
        cache = MemoryCache()
        one, other = Lineage(cache), Lineage(cache)
        await one.record("v2", "v1")
        await one.record("v3", "v2")
        assert await other.of("v3") == ("v2", "v1")
        assert await other.of("v1") == ()

    async def test_it_is_bounded_however_often_a_token_rotates(self) -> None:
        lineage = Lineage()
        for number in range(100):
            await lineage.record(f"v{number + 1}", f"v{number}")
        assert await lineage.of("v100") == tuple(f"v{number}" for number in range(99, 91, -1))

    @pytest.mark.parametrize("raw", [b"{}", b"[1]", b"\xff", b"null"])
    async def test_what_the_cache_holds_in_its_place_is_not_believed(self, raw: bytes) -> None:
        cache = MemoryCache()
        await cache.set("lineage:v2", raw, 60.0)
        assert await Lineage(cache).of("v2") == ()
