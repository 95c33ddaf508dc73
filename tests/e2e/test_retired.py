"""An exchange that was served once: its calls say what happened, and what is stored stays until it is removed."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import aclosing
from datetime import date
from pathlib import Path

import grpc
import pytest

from exchange_service.cli.credential_check import open_checker
from exchange_service.cli.doctor import Severity, examine
from exchange_service.credentials.configured import open_configured_store
from exchange_service.errors import CredentialMissing, ExchangeRetired
from exchange_service.model import Account, Credential
from exchange_service.plugin_api import Manifest, RetiredExchange, hookimpl
from exchange_service.v1 import error_reason_pb2
from exchange_service.venues.registry import Registry
from tests.commands import run_command
from tests.harness import (
    USER,
    ScriptedPlugin,
    balance_request,
    failure,
    info,
    listing,
    loaded,
    registry_of,
    serving,
    settings_for,
)

GONE = RetiredExchange(
    "oldex", "OldEx", "OldEx closed.", date(2026, 9, 24), "Remove the credential; NewEx took its accounts over."
)
FOREVER = RetiredExchange("goldex", "GoldEx", "GoldEx closed.")


class Plugin(ScriptedPlugin):
    """A plugin that served two exchanges more, once. `newer` is what its hook refresh_manifest gives."""

    def __init__(self) -> None:
        super().__init__()
        self.manifest = dataclasses.replace(self.manifest, retired=(GONE, FOREVER))
        self.newer: Manifest | None = None

    @hookimpl
    async def refresh_manifest(self) -> Manifest | None:
        return self.newer


async def test_each_call_says_what_happened_and_what_is_stored_is_kept_until_it_is_removed(tmp_path: Path) -> None:
    async with serving(tmp_path, registry=registry_of(Plugin()), manage_accounts=True) as running:
        for exchange_id in ("fakex", "oldex"):
            await running.store(exchange_id)
        client = running.client

        failed = await failure(running.stub.GetBalance(balance_request("OldEx")))
        assert (failed.code, failed.reason) == (grpc.StatusCode.NOT_FOUND, "EXCHANGE_RETIRED")
        assert failed.message == (
            "EXCHANGE_RETIRED: OldEx has not been served since 2026-09-24. OldEx closed. "
            "Remove the credential; NewEx took its accounts over."
        )
        undated = await failure(running.stub.GetBalance(balance_request("goldex")))
        assert undated.message == (
            "EXCHANGE_RETIRED: GoldEx is not served any more. GoldEx closed. "
            "Remove its credential: no balance can be read there any more."
        )
        with pytest.raises(ExchangeRetired):
            await client.connect_account(USER, "oldex", {"api_key": "a-new-key"})
        with pytest.raises(ExchangeRetired):
            await client.check_account(USER, "oldex")

        stored = {account.exchange_id: account for account in (await client.list_accounts(USER)).accounts}
        assert stored["oldex"].error.reason == error_reason_pb2.ERROR_REASON_EXCHANGE_RETIRED
        assert "OldEx closed." in stored["oldex"].error.message
        assert not stored["fakex"].HasField("error")

        found = await client.list_exchanges(search="OLDEX")
        gold, old = found.retired
        assert (gold.id, gold.HasField("retire_time")) == ("goldex", False)
        assert (old.id, old.name, old.reason, old.advice) == (GONE.id, GONE.name, GONE.reason, GONE.advice)
        assert old.retire_time.ToDatetime().date() == GONE.since
        assert (list(found.exchanges), found.matching_count) == ([], 0)
        whole = await client.list_exchanges()
        assert ([entry.id for entry in whole.exchanges], list(whole.retired)) == (["fakex"], [])

        await client.remove_account(USER, "oldex")
        assert [account.exchange_id for account in (await client.list_accounts(USER)).accounts] == ["fakex"]
        with pytest.raises(CredentialMissing):
            await client.remove_account(USER, "oldex")


async def test_a_stream_of_all_accounts_gives_the_error_of_this_one_and_follows_the_others(tmp_path: Path) -> None:
    async with serving(tmp_path, registry=registry_of(Plugin())) as running:
        for exchange_id in ("fakex", "oldex"):
            await running.store(exchange_id)
        kinds = {}
        async with aclosing(running.client.stream_balances(USER)) as events:
            async for event in events:
                kind = event.WhichOneof("event")
                if kind == "balance":
                    kinds[event.balance.balance.exchange_id] = "a balance"
                elif kind == "account_error":
                    reason = error_reason_pb2.ErrorReason.Name(event.account_error.error.reason)
                    kinds[event.account_error.exchange_id] = reason
                if len(kinds) == 2:
                    break
        assert kinds == {"fakex": "a balance", "oldex": "ERROR_REASON_EXCHANGE_RETIRED"}


def test_a_plugin_of_others_retires_nothing_that_the_operator_gave_to_another_one() -> None:
    gives = {"oldex": "exchange-service-oanda"}
    assert Registry([loaded(Plugin(), distribution="of-others")], choices=gives).retired.keys() == {"goldex"}
    own = Registry([loaded(Plugin(), distribution="of-others")], choices={"oldex": "of-others"})
    assert own.retired.keys() == {"oldex", "goldex"}


def test_a_plugin_that_serves_the_id_wins_and_the_operator_is_told_of_one_by_others() -> None:
    own = Registry([loaded(Plugin(), distribution="exchange-service-oanda"), loaded(ScriptedPlugin(listing("oldex")))])
    assert own.find("oldex").metadata.id == "oldex"
    assert own.retired.keys() == {"goldex"}
    (notice,) = own.problems
    assert notice.notice
    assert notice.plugin == info()
    assert "'oldex', which was retired here, and gets the credentials" in notice.reason


async def test_a_newer_manifest_that_lists_the_id_again_serves_it_and_one_without_it_retires_it() -> None:
    plugin = Plugin()
    registry = registry_of(plugin)
    served = Manifest(1, (listing("fakex"), listing("oldex")), retired=(GONE,))
    for newer, retired in ((served, False), (plugin.manifest, True)):
        plugin.newer = newer
        await registry.refresh()
        assert ("oldex" in registry.retired) == retired
        assert ("oldex" in registry.listings) != retired


async def test_the_commands_name_a_stored_credential_of_a_retired_exchange_and_how_it_is_removed(
    tmp_path: Path,
) -> None:
    settings = settings_for(tmp_path)
    store = await open_configured_store(settings)
    await store.put(Account(USER, "bitmex"), Credential.from_texts({"api_key": "a-key-for-tests"}))
    await store.close()

    (finding,) = [item for item in await examine(settings) if item.subject.startswith("credential ")]
    assert finding.severity is Severity.WARNING
    assert finding.subject == f"credential {USER} bitmex production"
    assert "BitMEX has not been served since 2026-09-24." in finding.text
    assert finding.text.endswith(f"Remove it: `exchange-service credentials remove -u {USER} -e bitmex`.")

    async with open_checker(settings) as checker:
        check = await checker.check(Account(USER, "bitmex"))
    assert isinstance(check.error, ExchangeRetired)

    variables = {"HOME": str(tmp_path), "EXCHANGE_SERVICE_DATABASE_URL": settings.database_url}
    for arguments in ((), ("-o", "json")):
        listed = await asyncio.to_thread(run_command, ("credentials", "list", *arguments), variables)
        assert "BitMEX has not been served since 2026-09-24." in " ".join(listed.stdout.split())
