"""`credentials check`: what it says of keys that work, that may do too much, and that do not work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from exchange_service_oanda.simulator import OandaSimulator, SimulatedAccount

from exchange_service.accounts.checking import READ_ONLY_SUFFICES
from exchange_service.cli.credential_check import Checker, CredentialCheck
from exchange_service.credentials.sql import open_store
from exchange_service.errors import CredentialMissing
from exchange_service.plugin_api import (
    Account,
    Balance,
    Credential,
    CredentialRejected,
    KeyRights,
    Manifest,
    VenueCall,
    VenueUnavailable,
    hookimpl,
)
from exchange_service.venues.http_pool import VenueHttpPool
from exchange_service.venues.sessions import Sessions
from tests.harness import USER, Answer, ScriptedPlugin, raising, registry_of, returning, settings_for
from tests.test_cli import call

ACCOUNT = Account(USER, "fakex")


class TellingPlugin(ScriptedPlugin):
    """A plugin whose venue tells what a key may do."""

    def __init__(self, rights: Answer) -> None:
        super().__init__()
        self.rights = rights

    @hookimpl
    def exchange_manifest(self) -> Manifest:
        return self.manifest

    @hookimpl
    async def fetch_balance(self, call: VenueCall) -> Balance:
        balance: Balance = await self.answer(call)
        return balance

    @hookimpl
    async def check_credential(self, call: VenueCall) -> Any:
        return await self.rights(call)


async def checked(folder: Path, plugin: ScriptedPlugin, account: Account = ACCOUNT) -> CredentialCheck:
    settings = settings_for(folder)
    registry = registry_of(plugin)
    store = await open_store(settings.database_url, b"key")
    http = VenueHttpPool(timeout=5.0)
    sessions = Sessions(store.open, http)
    try:
        await store.put(ACCOUNT, Credential.from_texts({"api_key": "a-key"}))
        return await Checker(settings, sessions, store, registry).check(account)
    finally:
        await sessions.close()
        await http.close()
        await store.close()
        await registry.close()


async def test_a_key_that_may_also_trade_and_withdraw_is_warned_of(tmp_path: Path) -> None:
    rights = KeyRights(trade=True, withdraw=True, expires=datetime(2027, 1, 2, tzinfo=UTC))
    check = await checked(tmp_path, TellingPlugin(returning(rights)))
    assert check.error is None
    assert check.rights == rights
    assert check.warnings == (f"The key may trade and withdraw. {READ_ONLY_SUFFICES}",)


async def test_a_key_that_may_only_read_is_not(tmp_path: Path) -> None:
    check = await checked(tmp_path, TellingPlugin(returning(KeyRights(trade=False, withdraw=False))))
    assert check.warnings == ()


async def test_rights_that_a_venue_does_not_state_are_not_guessed(tmp_path: Path) -> None:
    check = await checked(tmp_path, ScriptedPlugin())
    assert check.balance is not None
    assert check.rights == KeyRights()


async def test_a_key_that_reads_balances_works_even_if_its_rights_cannot_be_read(tmp_path: Path) -> None:
    check = await checked(tmp_path, TellingPlugin(raising(VenueUnavailable("It is down."))))
    assert check.error is None
    assert check.rights is None
    assert check.warnings == ("The key's rights could not be read: It is down.",)


async def test_a_plugin_that_answers_with_something_else_does_not_break_the_check(tmp_path: Path) -> None:
    check = await checked(tmp_path, TellingPlugin(returning("yes")))
    assert check.error is None
    assert "PluginFailed" not in check.warnings[0]
    assert "in place of KeyRights" in check.warnings[0]


async def test_a_refused_key_does_not_work_and_its_rights_are_not_requested(tmp_path: Path) -> None:
    plugin = TellingPlugin(raising(AssertionError("not asked")))
    plugin.answer = raising(CredentialRejected("It is revoked."))
    check = await checked(tmp_path, plugin)
    assert check.balance is None
    assert check.error is not None
    assert check.error.message == "It is revoked."


async def test_every_type_of_account_is_read(tmp_path: Path) -> None:
    plugin = ScriptedPlugin()
    await checked(tmp_path, plugin)
    assert [made.account.account_type for made in plugin.calls] == ["all"]


async def test_a_credential_that_is_not_stored_is_reported_as_missing(tmp_path: Path) -> None:
    with pytest.raises(CredentialMissing):
        await checked(tmp_path, ScriptedPlugin(), Account("nobody", "fakex"))


class TestCommand:
    """The command itself, against a venue on loopback."""

    @pytest.fixture
    async def venue(self) -> AsyncIterator[OandaSimulator]:
        async with OandaSimulator() as venue:
            venue.add_token("good", SimulatedAccount("101-004-7654321-001"))
            yield venue

    async def run(self, venue: OandaSimulator, home: Path, token: str, *more: str) -> Any:
        address = f'{{"oanda": "{venue.url}"}}'
        row = f'{{"api_key": "{token}"}}'
        add = ("credentials", "add", "-u", "alice", "-e", "oanda", "--stdin", "--replace")
        done = await asyncio.to_thread(call, home, *add, stdin=row)
        assert done.returncode == 0
        arguments = ("credentials", "check", "-u", "alice", *more)
        return await asyncio.to_thread(call, home, *arguments, EXCHANGE_SERVICE_VENUE_URLS=address)

    async def test_it_lists_the_accounts_of_a_key_that_works(self, venue: OandaSimulator, tmp_path: Path) -> None:
        done = await self.run(venue, tmp_path, "good")
        assert done.returncode == 0
        assert "alice at OANDA (production): works" in done.stdout
        assert "account forex 101-004-7654321-001 Primary: 1 asset, equity 25182.5126 EUR" in done.stdout
        assert "good" not in done.stdout

    async def test_it_states_why_a_key_does_not_work_and_its_exit_code_is_an_error(
        self, venue: OandaSimulator, tmp_path: Path
    ) -> None:
        done = await self.run(venue, tmp_path, "bad-token", "-e", "oanda")
        assert done.returncode == 4
        assert "alice at OANDA (production): does not work, CREDENTIAL_REJECTED" in done.stdout
        assert "bad-token" not in done.stdout + done.stderr

    async def test_the_output_for_programs_is_one_list(self, venue: OandaSimulator, tmp_path: Path) -> None:
        done = await self.run(venue, tmp_path, "good", "-o", "json")
        (entry,) = json.loads(done.stdout)
        assert entry["works"] is True
        assert entry["accounts"][0]["assets_held"] == 1

    async def test_an_environment_without_an_exchange_checks_nothing_by_mistake(self, tmp_path: Path) -> None:
        done = call(tmp_path, "credentials", "check", "-u", "alice", "--environment", "practice")
        assert done.returncode == 2
        assert "--environment needs --exchange" in done.stderr

    async def test_it_reports_a_user_without_credentials(self, tmp_path: Path) -> None:
        done = call(tmp_path, "credentials", "check", "-u", "nobody")
        assert done.returncode == 3
        assert "no credential is stored for nobody" in done.stderr
