"""Attacks by what callers and users give when accounts are connected: each first succeeds with the mitigation switched
off, and then fails."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import pytest

from exchange_service.accounts import service
from exchange_service.client import ExchangeServiceClient
from exchange_service.errors import CallerRateLimited, CredentialRejected, FieldInvalid, UserForbidden
from exchange_service.identity import Caller
from exchange_service.identity.quotas import AccountAttempts
from exchange_service.model import Account, Credential, ExchangeMetadata, Secret
from exchange_service.observability.redaction import redact
from tests.e2e.test_connecting import GOOD, OTHER, WRONG, Venue, calls_of, connecting
from tests.harness import USER, Running
from tests.identities import SECRET, web_token


@pytest.mark.threat("T69", attack=True)
async def test_a_caller_replaces_and_removes_anothers_key_unless_the_right_to_manage_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connecting(tmp_path, Venue(), jwt_secret=SECRET) as running:

        async def stored() -> list[Account]:
            return await running.service.store.accounts(USER)

        token = web_token("bob", exchange_service_users={"users": ["bob"], "manage": True})
        async with ExchangeServiceClient(running.service.address, token=token) as client:
            await running.store(api_key=GOOD)
            with monkeypatch.context() as off:
                off.setattr(Caller, "require_management", lambda caller, user_id: None)
                assert (await client.connect_account(USER, "fakex", {"api_key": OTHER})).replaced
                await client.remove_account(USER, "fakex")
                assert await stored() == []
            await running.store(api_key=GOOD)
            for call in calls_of(client):
                with pytest.raises(UserForbidden):
                    await call
            assert await stored() == [Account(USER, "fakex")]


@pytest.mark.threat("T71", attack=True)
async def test_a_caller_tries_one_key_after_another_unless_refused_attempts_are_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def take(attempts: AccountAttempts, account: str) -> None:
        """No limit."""

    async def guess(running: Running, *guesses: str) -> None:
        for text in guesses:
            with pytest.raises((CredentialRejected, CallerRateLimited)):
                await running.client.connect_account(USER, "fakex", {"api_key": WRONG, "passphrase": text})

    venue = Venue()
    async with connecting(tmp_path, venue, failed_checks=2) as running:
        with monkeypatch.context() as off:
            off.setattr(AccountAttempts, "take", take)
            await guess(running, *"abcdef")
            assert len(venue.calls) == 6
        await guess(running, *"ghijkl")
        assert len(venue.calls) == 8


@pytest.mark.threat("T72", attack=True)
async def test_a_careless_line_shows_a_typed_value_unless_it_is_searched_for_the_values_of_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = "correct horse battery staple"
    lines = []
    async with connecting(tmp_path, Venue()) as running:
        put = running.service.store.put

        async def careless_put(account: Account, credential: Credential) -> bool:
            lines.append(redact(f"the row with {typed} was written"))
            return bool(await put(account, credential))

        monkeypatch.setattr(running.service.store, "put", careless_put)

        async def connect() -> str:
            fields = {"api_key": GOOD, "passphrase": typed}
            await running.client.connect_account(USER, "fakex", fields, skip_check=True)
            return str(lines.pop())

        with monkeypatch.context() as off:
            off.setattr(service, "_hidden", lambda fields: nullcontext())
            assert typed in await connect()
        assert await connect() == "the row with [hidden] was written"


@pytest.mark.threat("T73", attack=True)
async def test_a_form_stores_an_option_of_a_library_unless_only_the_listings_fields_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = {"api_key": GOOD, "hostname": "evil.example"}

    def take_all(metadata: ExchangeMetadata, values: Mapping[str, Secret]) -> Credential:
        texts = {name: value.reveal() for name, value in values.items()}
        return Credential.from_texts({"api_key": texts.pop("api_key")}, texts)

    venue = Venue()
    async with connecting(tmp_path, venue) as running:
        with monkeypatch.context() as off:
            off.setattr(service, "read_fields", take_all)
            await running.client.connect_account(USER, "fakex", form)
            assert venue.calls[-1].credential.metadata["hostname"] == "evil.example"
        await running.client.remove_account(USER, "fakex")
        asked = len(venue.calls)
        for untried in (False, True):
            with pytest.raises(FieldInvalid, match="does not ask for") as refused:
                await running.client.connect_account(USER, "fakex", form, skip_check=untried)
            assert "evil.example" not in refused.value.text
        assert len(venue.calls) == asked
        assert await running.service.store.accounts(USER) == []
