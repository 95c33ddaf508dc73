"""A hostile plugin asks to replace credentials that are not its own, fields that do not rotate, or without an end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from exchange_service.errors import PluginUnavailable
from exchange_service.model import Account, Secret
from exchange_service.plugin_host.client import PluginClients
from exchange_service.venues.loading import LoadedPlugin
from tests.harness import Running, eventually, serving
from tests.test_plugin_host import install, process_of

# A plugin whose process sends the service the requests that its user's credential holds, and says what came of them.
MALLORY = """
import asyncio, gc, json, time
from decimal import Decimal

from exchange_service.plugin_api import *
from exchange_service.plugin_host.v1 import plugin_host_pb2 as messages


@hookimpl
def exchange_manifest():
    fields = (
        CredentialField("api_key", "Key"),
        CredentialField("api_secret", "Secret"),
        CredentialField("passphrase", "Token", rotates=True),
    )
    return Manifest(1, (ExchangeMetadata(
        id="{name}", name="{name}".title(), asset_class="Crypto", asset_types="Crypto Spot", market_hours="24/7",
        environments=(Environment("production", {{"api": "https://guest.example"}}),), credential_fields=fields,
    ),))


@hookimpl
async def fetch_balance(call):
    outcomes = []
    asked = call.credential.metadata.get("ask", ())
    if asked:
        (connection,) = [item for item in gc.get_objects() if type(item).__name__ == "ServiceConnection"]
        for request in asked:
            changes = request["changes"]
            changes.update((name, "x" * 40_000) for name, text in changes.items() if text == "LONG")
        requests = [messages.ReplaceCredentialRequest(**request) for request in asked]
        replies = await asyncio.gather(*map(connection.ask, requests))
        outcomes = [(reply and reply.WhichOneof("outcome"), reply and reply.fault.message) for reply in replies]
    rows = (AssetBalance("BTC", total=Decimal("1.5")),)
    return Balance((VenueAccount(id="1", type="spot", assets=rows),), notes=(json.dumps(outcomes),))
"""
VICTIM, MINE, BOBS = Account("alice", "victim"), Account("alice", "mallory"), Account("bob", "mallory")
EVIL = {"passphrase": "a-token-of-the-attacker"}


@pytest.fixture(autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.mktemp("site")
    for name in ("mallory", "victim"):
        install(folder, name, MALLORY.format(name=name))
    monkeypatch.syspath_prepend(str(folder))


async def serves(running: Running, exchange_id: str) -> bool:
    try:
        await running.client.get_balance("alice", exchange_id, max_age=0)
    except PluginUnavailable:
        return False
    return True


async def version_of(running: Running, account: Account) -> str:
    reference = await running.service.store.find(account)
    return reference.version if reference is not None else "none"


async def ask(running: Running, *requests: dict[str, Any]) -> list[tuple[str, str]]:
    """What comes of these requests of mallory's process."""
    await running.store("mallory", api_key="mallory's own", passphrase="first", metadata={"ask": list(requests)})
    await eventually(lambda: serves(running, "mallory"), "the attacker's process")
    reply = await running.client.get_balance("alice", "mallory")
    (note,) = reply.balance.notes
    return [tuple(outcome) for outcome in json.loads(note)]


def request_for(account: Account, version: str, changes: Mapping[str, str] | None = None) -> dict[str, Any]:
    return {
        "user_id": account.user_id,
        "exchange_id": account.exchange_id,
        "environment": account.environment,
        "credential_version": version,
        "changes": dict(changes or EVIL),
    }


async def passphrase_of(running: Running, account: Account) -> str:
    reference = await running.service.store.find(account)
    assert reference is not None
    return (await running.service.store.open(reference)).passphrase.reveal()


async def prepare(running: Running) -> str:
    """The victim's account in use, and a second user of mallory's; the version of the victim's session."""
    await running.store("victim", api_key="the victim's", passphrase="the victim's token")
    await running.store("mallory", user="bob", api_key="bob's", passphrase="bob's token")
    await eventually(lambda: serves(running, "victim"), "the victim's process")
    return await version_of(running, VICTIM)


@pytest.mark.threat("T91", attack=True)
async def test_a_plugin_writes_into_another_plugins_row_unless_its_accounts_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unchecked(
        self: PluginClients, plugin: LoadedPlugin, account: Account, version: str, changes: Mapping[str, Secret]
    ) -> str | None:
        assert self._replace_credential is not None
        listing = self._registry.listings[account.exchange_id]
        return await self._replace_credential(account, version, listing, changes)

    async with serving(tmp_path) as running:
        version = await prepare(running)
        with monkeypatch.context() as patch:
            patch.setattr(PluginClients, "_replace", unchecked)
            assert await ask(running, request_for(VICTIM, version)) == [("credential_version", "")]
            assert await passphrase_of(running, VICTIM) == EVIL["passphrase"]
    async with serving(tmp_path / "..", database_url=f"sqlite:///{tmp_path}/second.db") as running:
        version = await prepare(running)
        (outcome,) = await ask(running, request_for(VICTIM, version))
        assert outcome == ("fault", "The plugin mallory does not serve this exchange.")
        assert await passphrase_of(running, VICTIM) == "the victim's token"


@pytest.mark.threat("T91")
async def test_a_plugin_replaces_nothing_but_rotating_fields_of_accounts_that_it_has_open(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        await prepare(running)
        bobs = request_for(BOBS, await version_of(running, BOBS))
        nobodys = request_for(Account("nobody", "mallory"), "none")
        old = request_for(MINE, "the version of an earlier session")
        assert await ask(running, bobs, nobodys, old) == [("changed", "")] * 3
        wrong = ({"api_secret": "new"}, {"base_url": "https://evil"}, {"passphrase": " "}, {"passphrase": "LONG"})
        outcomes = await ask(running, *(request_for(MINE, "any", changes) for changes in wrong))
        assert [kind for kind, _ in outcomes] == ["fault"] * 4
        assert all("may not replace" in message for _, message in outcomes)
        assert await passphrase_of(running, BOBS) == "bob's token"
        assert await passphrase_of(running, MINE) == "first"


@pytest.mark.threat("T91")
async def test_more_requests_than_are_answered_end_its_process(tmp_path: Path) -> None:
    async with serving(tmp_path) as running:
        await prepare(running)
        flood = [request_for(MINE, "none")] * 200
        await running.store("mallory", api_key="mallory's own", passphrase="first", metadata={"ask": flood})

        async def is_ended() -> bool:
            await serves(running, "mallory")
            return "a request that is not answered" in (await process_of(running, "mallory")).last_end

        await eventually(is_ended, "the end of its process")
        assert await serves(running, "victim")
