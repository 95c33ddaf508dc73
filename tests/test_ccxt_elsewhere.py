"""The release of CCXT before ours is served from an environment of its own, beside a service with the newer one.

`make ccxt-elsewhere` makes the environment and names its interpreter; without it these tests are left out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from exchange_service_ccxt_generic.simulator import BinanceSimulator

from exchange_service.errors import PluginUnavailable
from exchange_service.operator.v1 import plugin_service_pb2 as plugins
from exchange_service.plugin_host.discovery import open_registry
from exchange_service.v1 import balance_pb2
from exchange_service.venues.loading import LoadedPlugin
from exchange_service.venues.registry import Registry
from tests.harness import Running, eventually, serving, settings_for
from tests.test_packaging import ROOT, build_wheels, run

EARLIER = os.environ.get("EXCHANGE_SERVICE_TEST_CCXT_EARLIER", "")
pytestmark = [
    pytest.mark.skipif(not EARLIER, reason="`make ccxt-elsewhere` makes the environment"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The setting plugin_interpreters for an environment with CCXT's plugin, from wheels, and not the service."""
    projects = (
        ROOT / "clients" / "python",
        ROOT / "packages" / "exchange-service-plugin",
        ROOT / "plugins" / "ccxt_generic",
    )
    built = build_wheels(tmp_path_factory.mktemp("wheels"), *projects)
    pip = (sys.executable, "-m", "pip", "--python", EARLIER)
    run(*pip, "install", "-q", "--no-deps", "--force-reinstall", *built.values())
    # Everything that is required there is there, in versions that fit.
    run(*pip, "check")
    return {"ccxt_generic": EARLIER}


def ccxt_there() -> str:
    return run(EARLIER, "-c", "from importlib.metadata import version; print(version('ccxt'))").strip()


def plugin_of(registry: Registry) -> LoadedPlugin:
    return next(plugin for plugin in registry.plugins if plugin.info.name == "ccxt_generic")


async def status_of(running: Running) -> plugins.PluginStatus:
    reply = await running.client.list_plugins()
    return next(status for status in reply.plugins if status.plugin.name == "ccxt_generic")


async def read_balance(folder: Path, venue: BinanceSimulator, **settings: Any) -> tuple[balance_pb2.Balance, str]:
    """The simulator's balance and the versions that the plugin runs on."""
    row: Mapping[str, Any] = venue.demo_credential("good")
    async with serving(folder, venue_urls={"binance": venue.url}, **settings) as running:
        await running.store("binance", api_key=row["api_key"], api_secret=row["api_secret"])
        balances: list[balance_pb2.Balance] = []

        async def serves() -> bool:
            try:
                balances.append((await running.client.get_balance("alice", "binance", max_age=0)).balance)
            except PluginUnavailable:
                return False
            return True

        # CCXT takes seconds to import.
        await eventually(serves, "the process")
        return balances[0], ", ".join((await status_of(running)).libraries)


def test_the_environment_has_another_ccxt_and_no_service(earlier: dict[str, str]) -> None:
    assert ccxt_there() != version("ccxt")
    program = "from importlib.util import find_spec; print(find_spec('exchange_service.app'), find_spec('sqlalchemy'))"
    assert run(EARLIER, "-I", "-c", program).split() == ["None", "None"]


async def test_its_balance_is_the_one_that_the_newer_ccxt_reads(earlier: dict[str, str], tmp_path: Path) -> None:
    async with BinanceSimulator() as venue:
        for name in ("there", "here"):
            (tmp_path / name).mkdir()
        there, libraries = await read_balance(tmp_path / "there", venue, plugin_interpreters=earlier)
        here, none = await read_balance(tmp_path / "here", venue)
    assert there.venue_accounts
    assert list(there.venue_accounts) == list(here.venue_accounts)
    assert f"ccxt {ccxt_there()}" in libraries
    assert none == ""
    rows = len(there.venue_accounts[0].assets)
    print(f"\nThe service has ccxt {version('ccxt')}, and read {rows} rows with {libraries}.")


async def test_its_listings_are_built_there_by_its_own_ccxt(earlier: dict[str, str], tmp_path: Path) -> None:
    registry = open_registry(settings_for(tmp_path, plugin_interpreters=earlier))
    plugin = plugin_of(registry)
    (note,) = plugin.manifest.notes
    assert note.startswith(f"The listings are of CCXT {version('ccxt')}, and {ccxt_there()} is installed")
    shipped = plugin.manifest
    await registry.refresh()
    assert plugin.manifest.notes == ()
    assert plugin.manifest != shipped
    assert registry.find("binance").plugin is plugin
    program = "import ccxt; print(*ccxt.exchanges)"
    known = set(run(EARLIER, "-W", "ignore", "-c", program).split())
    assert {metadata.id for metadata in plugin.manifest.exchanges} <= known
