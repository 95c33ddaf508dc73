"""Plugins that were written for version 1 of the page serve as ever, and pass the present contract suite."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

FOLDER = Path(__file__).parent / "1"
sys.path.insert(0, str(FOLDER))

import ledger_of_version_1  # noqa: E402 - their folder is named by a number
import purse_of_version_1  # noqa: E402
from ledger_of_version_1.simulator import LedgerSimulator  # noqa: E402
from purse_of_version_1.simulator import WALLET, PurseSimulator  # noqa: E402

from exchange_service.plugin_api import Account, Credential  # noqa: E402
from exchange_service.testing.contract import PluginContract  # noqa: E402
from exchange_service.venues.loading import PLUGIN_GROUP  # noqa: E402
from exchange_service.venues.registry import load_registry  # noqa: E402
from tests.harness import USER, serving, streaming, totals  # noqa: E402


class TestLedger(PluginContract):
    plugin = ledger_of_version_1
    exchange_id = "ledger_of_version_1"
    simulator = LedgerSimulator


class TestPurse(PluginContract):
    plugin = purse_of_version_1
    exchange_id = "purse_of_version_1"
    simulator = PurseSimulator


async def test_the_service_loads_them_reads_them_and_follows_their_pushes(tmp_path: Path) -> None:
    names = ("ledger_of_version_1", "purse_of_version_1")
    registry = load_registry(points=[EntryPoint(name, name, PLUGIN_GROUP) for name in names])
    assert registry.problems == ()
    async with LedgerSimulator() as ledger, PurseSimulator() as purse:
        urls = {names[0]: ledger.url, names[1]: purse.url}
        async with serving(tmp_path, registry=registry, venue_urls=urls) as running:
            row = ledger.demo_credential("moving")
            assert row is not None
            await running.store(names[0], **row)
            assert purse.demo_credential("moving")
            wallet = Credential.from_texts({}, {"wallet_address": WALLET})
            await running.service.store.put(Account(USER, names[1]), wallet)
            both = await running.client.get_balance(USER, names[0], account_type="all")
            assert [account.type for account in both.balance.venue_accounts] == ["cash", "margin"]
            assert totals(both.balance) == {"USD": "100.25", "ACME": "12.50"}
            assert both.balance.summary.total == "2700.70"
            async with streaming(running, names[1]) as stream:
                assert totals((await stream.next_of("balance")).balance) == {"PURSE": "12"}
                purse.move()
                assert totals((await stream.next_of("balance")).balance) == {"PURSE": "13"}
