"""What a plugin that is installed, changed or written wrongly may do to the service. Each attack first succeeds with
the mitigation switched off."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from decimal import Decimal
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar

import pytest
from structlog.testing import capture_logs

from exchange_service.app import start_service
from exchange_service.cli.demo import running_demo
from exchange_service.credentials.keysets import new_keyset
from exchange_service.errors import PluginFailed, PluginUnavailable, VenueTimeout
from exchange_service.plugin_api import AssetBalance, Balance, Manifest, Summary, VenueAccount, VenueCall
from exchange_service.plugin_host import process as process_module
from exchange_service.plugin_host import protocol
from exchange_service.plugin_host.discovery import open_registry
from exchange_service.startup_checks import UnsafeSettings
from exchange_service.testing import listing_contract
from exchange_service.v1 import exchange_pb2
from exchange_service.venues import answers, manifests
from exchange_service.venues import registry as registry_module
from exchange_service.venues import sessions as sessions_module
from exchange_service.venues.blocking import BLOCKS
from exchange_service.venues.loading import load_plugin
from exchange_service.venues.manifests import PluginRejected
from exchange_service.venues.registry import PluginProblem, Registry
from tests.harness import (
    Running,
    ScriptedPlugin,
    eventually,
    holding,
    info,
    listing,
    loaded,
    registry_of,
    returning,
    serving,
    settings_for,
)
from tests.test_manifest_rules import FULL, contract_of, module_of
from tests.test_plugin_host import install

# Takes an id of CCXT, and gives what it was given as the note of its balance.
THIEF = """
from decimal import Decimal
from exchange_service.plugin_api import *

LISTING = ExchangeMetadata(
    id="binance", name="Binance", asset_class="Crypto", asset_types="Crypto Spot", market_hours="24/7 Trading",
    environments=(Environment("production", {"api": "https://thief.example"}),),
)


@hookimpl
def exchange_manifest():
    return Manifest(1, (LISTING,))


@hookimpl
async def fetch_balance(call):
    rows = (AssetBalance("BTC", total=Decimal("1.50")),)
    return Balance((VenueAccount(id="1", type="spot", assets=rows),), notes=(call.credential.api_key.reveal(),))
"""
KEY = "a-key-of-binance-that-nobody-else-sees"


@pytest.fixture
def thief(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("site")
    install(folder, "thief", THIEF)
    monkeypatch.syspath_prepend(str(folder))
    return folder


class TestTakeover:
    @pytest.mark.threat("T35", attack=True)
    async def test_an_installed_plugin_gets_the_keys_of_a_ccxt_venue_unless_third_parties_are_loaded_by_name(
        self, thief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keyset = {"keyset": new_keyset().as_text()}
        with monkeypatch.context() as off:
            off.setattr("exchange_service.settings.Settings.third_party_by_name", False)
            async with serving(tmp_path, **keyset) as running:
                await running.store("binance", api_key=KEY)
                stolen = (await running.client.get_balance("alice", "binance")).balance.notes
                assert stolen == [KEY]
        async with serving(tmp_path, **keyset) as running:
            (entry,) = (await running.client.list_exchanges(search="binance", page_size=1)).exchanges
            assert entry.plugin.distribution == "exchange-service-ccxt-generic"
            (problem,) = (await running.client.list_plugins()).problems
            assert problem.reason.endswith('If you trust it, set allowed_plugins=["acme-thief"].')
            assert not problem.notice

    @pytest.mark.threat("T35")
    @pytest.mark.parametrize("others_reach_it", [True, False])
    def test_beyond_loopback_only_named_third_parties_are_loaded(
        self, thief: Path, tmp_path: Path, others_reach_it: bool
    ) -> None:
        settings = settings_for(tmp_path, address="0.0.0.0:50051" if others_reach_it else "127.0.0.1:50051")
        registry = open_registry(settings)
        owner = registry.find("binance").plugin.info.distribution
        assert owner == ("exchange-service-ccxt-generic" if others_reach_it else "acme-thief")
        named = open_registry(settings.model_copy(update={"allowed_plugins": ["Acme_Thief"]}))
        assert named.find("binance").plugin.info.distribution == "acme-thief"

    @pytest.mark.threat("T35")
    async def test_a_takeover_is_announced_at_each_start_in_the_log_the_catalogue_and_the_plugin_list(
        self, thief: Path, tmp_path: Path
    ) -> None:
        words = "acme-thief serves binance in place of exchange-service-ccxt-generic"
        for _ in range(2):
            with capture_logs() as lines:
                async with serving(tmp_path) as running:
                    shown = [(await running.client.list_exchanges()).problems]
                    shown.append((await running.client.list_plugins()).problems)
            (line,) = [line for line in lines if line["event"] == "plugin.notice"]
            assert line["log_level"] == "warning"
            assert line["reason"].startswith(words)
            for (notice,) in shown:
                assert notice.reason.startswith(words)
                assert notice.notice

    @pytest.mark.threat("T35")
    @pytest.mark.parametrize(
        "choice", ["ccxt_generic", "exchange-service-ccxt-generic", "Exchange_Service.CCXT-generic"]
    )
    def test_exchange_plugins_gives_an_id_back_to_ccxt(self, thief: Path, tmp_path: Path, choice: str) -> None:
        registry = open_registry(settings_for(tmp_path, exchange_plugins={"binance": choice}))
        assert registry.find("binance").plugin.info.name == "ccxt_generic"
        (said,) = registry.problems
        assert said.notice
        assert said.reason.endswith("exchange-service-ccxt-generic serves it, as exchange_plugins says.")

    @pytest.mark.threat("T35")
    def test_no_third_party_plugin_takes_a_listing_of_our_own_custom_plugins_whatever_its_name(self) -> None:
        ours = loaded(ScriptedPlugin(listing("oanda")), "oanda", "exchange-service-oanda")
        thief = loaded(ScriptedPlugin(listing("oanda")), "aaa", "acme-thief")
        for plugins in ([thief, ours], [ours, thief]):
            registry = Registry(plugins)
            assert registry.find("oanda").plugin is ours
            (problem,) = registry.problems
            assert problem.reason.endswith('exchange_plugins={"oanda": "acme-thief"}.')
        assert Registry([thief, ours], choices={"oanda": "acme-thief"}).find("oanda").plugin is thief

    @pytest.mark.threat("T35", attack=True)
    def test_a_second_record_with_our_name_lets_code_of_others_into_the_service_unless_records_are_compared(
        self, thief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        meta = thief / "harmless.egg-info"
        meta.mkdir()
        (meta / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: exchange-service-oanda\nVersion: 9.0\n")
        (meta / "entry_points.txt").write_text("[exchange_service]\naaa = thief_plugin\n")
        settings = settings_for(tmp_path, keyset=new_keyset().as_text(), allowed_plugins=["acme-other"])
        with monkeypatch.context() as off:
            off.setattr("exchange_service.plugin_host.discovery.is_recorded", lambda _: True)
            plugin = open_registry(settings).find("binance").plugin
            assert (plugin.info.name, plugin.third_party) == ("aaa", False)
        registry = open_registry(settings)
        assert registry.find("binance").plugin.info.name == "ccxt_generic"
        assert registry.find("oanda").plugin.info.version != "9.0"
        (problem,) = [item for item in registry.problems if item.plugin.name == "aaa"]
        assert problem.reason.startswith("Another record of exchange-service-oanda is installed")

    @pytest.mark.threat("T35")
    @pytest.mark.parametrize("name", ["Exchange_Service.OANDA", "exchange-service-ccxt.generic"])
    def test_a_distribution_with_our_name_in_another_spelling_is_not_loaded_even_if_it_hides_ours(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        folder = tmp_path / "site"
        folder.mkdir()
        install(folder, "twin", THIEF.replace('"binance"', '"oanda"'), name)
        monkeypatch.syspath_prepend(str(folder))
        registry = open_registry(settings_for(tmp_path, allowed_plugins=[name]))
        assert all(listed.plugin.ours for listed in registry.listings.values())
        (problem,) = [item for item in registry.problems if not item.notice]
        assert "in another spelling" in problem.reason

    @pytest.mark.threat("T35")
    async def test_what_an_interrupted_pip_leaves_is_not_taken_for_the_plugin(
        self, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path_factory.mktemp("site")
        install(folder, "guest", guest_code("whole"))
        left = folder / "~cme_guest-1.1.dist-info"
        left.mkdir()
        (left / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-guest\nVersion: 1.1\n")
        (left / "entry_points.txt").write_text("[exchange_service]\nguest = guest_plugin\n")
        monkeypatch.syspath_prepend(str(folder))
        async with serving(tmp_path) as running:
            assert running.service.registry.find("guest").plugin.info.version == "1.2"
            (problem,) = running.service.registry.problems
            assert "pip leaves one behind" in problem.reason
            await running.store("guest")
            assert await read_note(running) == "whole"

    @pytest.mark.threat("T35")
    async def test_the_demo_runs_no_code_of_a_distribution_that_is_not_allowed(
        self, thief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mark = tmp_path / "ran"
        (thief / "thief_simulator.py").write_text(f"open({str(mark)!r}, 'w').close()\nraise SystemExit(3)\n")
        (thief / "acme_thief-1.2.dist-info" / "entry_points.txt").write_text(
            "[exchange_service]\nthief = thief_plugin\n"
            "[exchange_service.simulators]\nthief = thief_simulator:Simulator\n"
        )
        points = [point for point in entry_points(group="exchange_service.simulators") if point.name == "thief"]
        monkeypatch.setattr("exchange_service.cli.demo.entry_points", lambda **_: points)
        async with running_demo(settings_for(tmp_path, keyset=new_keyset().as_text())) as demo:
            assert demo.service.registry.find("binance").plugin.info.name == "ccxt_generic"
            (problem,) = demo.service.registry.problems
            assert problem.reason.endswith('set allowed_plugins=["acme-thief"].')
        assert not mark.exists()
        with capture_logs() as lines:
            async with running_demo(settings_for(tmp_path, allowed_plugins=["acme-thief"])) as demo:
                assert demo.service.registry.find("binance").plugin.info.distribution == "acme-thief"
        assert mark.exists()
        assert [line["error"] for line in lines if line["event"] == "demo.simulator_left_out"] == ["SystemExit"]

    @pytest.mark.threat("T35")
    def test_a_plugin_that_calls_itself_as_the_chosen_distribution_is_not_the_chosen_one(self) -> None:
        thief = loaded(ScriptedPlugin(listing("binance")), "exchange-service-ccxt-generic", "acme-thief")
        ours = info("ccxt_generic", "exchange-service-ccxt-generic")
        broken = PluginProblem(ours, "Importing it failed.")
        without = loaded(ScriptedPlugin(listing("kraken", is_ccxt=True)), ours.name, ours.distribution)
        for registry, why in (
            (Registry([thief], [broken], {"binance": "exchange-service-ccxt-generic"}), "which is not loaded."),
            (Registry([thief, without], [], {"binance": "exchange-service-ccxt-generic"}), "which does not list it."),
        ):
            assert "binance" not in registry.listings
            assert registry.problems[-1].reason.endswith(why)

    @pytest.mark.threat("T35")
    def test_an_id_whose_chosen_plugin_is_not_loaded_goes_to_no_other(self) -> None:
        thief = loaded(ScriptedPlugin(listing("binance")), "aaa", "acme-thief")
        broken = PluginProblem(info("ccxt_generic", "exchange-service-ccxt-generic"), "Importing it failed.")
        assert "binance" in Registry([thief], [broken]).listings
        for choice in ("ccxt_generic", "exchange-service-ccxt-generic"):
            registry = Registry([thief], [broken], {"binance": choice})
            assert "binance" not in registry.listings
            assert registry.problems[-1].reason.startswith("'binance' is not listed: exchange_plugins gives it to")


@pytest.mark.threat("T36", attack=True)
def test_a_manifest_writes_to_the_operators_terminal_and_sends_users_to_another_page_unless_its_texts_are_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poisoned = replace(FULL, name="\x1b[2JАcme", credential_url="javascript:alert(document.cookie)")
    twin = replace(FULL, id="acme_2", name="ACME")
    with monkeypatch.context() as off:
        off.setattr(manifests, "broken_rules", lambda _: ())
        off.setattr(registry_module, "_without_lookalikes", lambda claims: (list(claims), []))
        registry = Registry([loaded(ScriptedPlugin(poisoned, twin), "acme", "acme-exchange")])
        assert registry.find("acme").metadata.name.startswith("\x1b")
        assert "acme_2" in registry.listings
    with pytest.raises(PluginRejected, match="in name that is not shown as itself"):
        loaded(ScriptedPlugin(poisoned, twin), "acme", "acme-exchange")
    registry = Registry([loaded(ScriptedPlugin(FULL, twin), "acme", "acme-exchange")])
    assert list(registry.listings) == ["acme"]


# A plugin of which another version is installed while the service runs.
GUEST = """
from exchange_service.plugin_api import *

LISTING = ExchangeMetadata(
    id="guest", name="Guest", asset_class="Crypto", asset_types="Crypto Spot", market_hours="24/7 Trading",
    environments=(Environment("production", {"api": "https://guest.example"}),), icon="ICON",
)


@hookimpl
def exchange_manifest():
    return Manifest(1, (LISTING,))


@hookimpl
async def fetch_balance(call):
    return Balance((), notes=("CODE",))
"""


def guest_code(code: str, icon: str = "i") -> str:
    return GUEST.replace("CODE", code).replace("ICON", icon)


def upgrade(folder: Path, *, version: str, code: str) -> None:
    """What `pip install --upgrade` leaves."""
    (folder / "guest_plugin.py").write_text(code)
    old = next(folder.glob("acme_guest-*.dist-info"))
    (old / "METADATA").write_text(f"Metadata-Version: 2.1\nName: acme-guest\nVersion: {version}\n")
    old.rename(folder / f"acme_guest-{version}.dist-info")


async def read_note(running: Running) -> str:
    """What the running code says of itself, once a process serves; else why none does."""
    notes: list[str] = []

    async def serves() -> bool:
        try:
            notes[:] = (await running.client.get_balance("alice", "guest", max_age=0)).balance.notes
        except PluginUnavailable as error:
            notes[:] = [error.message]
        return "started" not in notes[0] and "ended" not in notes[0]

    await eventually(serves, "its process")
    return notes[0]


class TestHalfAnUpgrade:
    @pytest.fixture
    def site(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        folder = tmp_path / "site"
        folder.mkdir()
        install(folder, "guest", guest_code("old"))
        monkeypatch.syspath_prepend(str(folder))
        # Files that change within a second, with the same size, would be read from their compiled form.
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        return folder

    async def end_process(self, running: Running) -> None:
        (supervisor,) = running.service.venues._processes["guest"]
        process = supervisor.running
        assert process is not None
        await process.end()

    @pytest.mark.threat("T37", attack=True)
    @pytest.mark.parametrize(
        ("version", "code", "words"),
        [
            ("2.0", guest_code("new"), "version 2.0 of acme-guest is installed, and the service loaded 1.2"),
            ("1.1", guest_code("new"), "version 1.1 of acme-guest is installed, and the service loaded 1.2"),
            ("1.2", guest_code("new", icon="another"), "the manifest of acme-guest is not the one"),
        ],
    )
    async def test_new_code_runs_under_an_old_manifest_unless_version_and_manifest_are_compared(
        self, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, code: str, words: str
    ) -> None:
        compared = process_module.ServeConfig.request

        def without_comparing(config: Any) -> Any:
            return compared(replace(config, plugin_version="", loaded_digest=b""))

        async with serving(tmp_path) as running:
            await running.store("guest")
            assert await read_note(running) == "old"
            upgrade(site, version=version, code=code)
            with monkeypatch.context() as off:
                off.setattr(process_module.ServeConfig, "request", without_comparing)
                await self.end_process(running)
                assert await read_note(running) == "new"
                assert running.service.registry.find("guest").plugin.info.version == "1.2"
            await self.end_process(running)
            assert "The plugin guest was changed since the service loaded it. The operator" in await read_note(running)
            (entry,) = (await running.client.list_exchanges(search="guest")).exchanges
            assert entry.status.availability == exchange_pb2.AVAILABILITY_UNAVAILABLE
            assert entry.status.reason.startswith("Restart the service: ")
            assert words in entry.status.reason
            (status,) = [item for item in (await running.client.list_plugins()).plugins if item.plugin.name == "guest"]
            assert words in status.processes[0].last_end
        async with serving(tmp_path) as running:
            assert await read_note(running) == "new"

    @pytest.mark.threat("T37")
    async def test_a_service_that_runs_serves_again_once_the_old_version_is_back(
        self, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("exchange_service.plugin_host.restart_policy._LONGEST_PAUSE", 0.1)
        async with serving(tmp_path) as running:
            await running.store("guest")
            assert await read_note(running) == "old"
            upgrade(site, version="2.0", code=guest_code("new"))
            await self.end_process(running)
            assert "was changed" in await read_note(running)
            upgrade(site, version="1.2", code=guest_code("back"))

            async def serves() -> bool:
                return await read_note(running) == "back"

            await eventually(serves, "the old version")

    @pytest.mark.threat("T37")
    @pytest.mark.parametrize("difference", [1, -1])
    async def test_another_version_of_the_service_under_a_running_one_asks_for_a_restart(
        self, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, difference: int
    ) -> None:
        monkeypatch.setattr("exchange_service.plugin_host.process.PROTOCOL", protocol.PROTOCOL + difference)
        async with serving(tmp_path) as running:
            await running.store("guest")
            assert "The plugin guest was changed since the service loaded it" in await read_note(running)
            (entry,) = (await running.client.list_exchanges(search="guest")).exchanges
            assert entry.status.reason == protocol.OTHER_VERSION

    @pytest.mark.threat("T37")
    async def test_the_same_version_and_manifest_serve_again_after_the_process_has_ended(
        self, site: Path, tmp_path: Path
    ) -> None:
        async with serving(tmp_path) as running:
            await running.store("guest")
            assert await read_note(running) == "old"
            await self.end_process(running)
            assert await read_note(running) == "old"


@pytest.mark.threat("T38", attack=True)
@pytest.mark.parametrize(
    "changes",
    [{"account_types": "trading"}, {"limits": FULL.limits[0]}, {"countries": ["DE"]}, {"requires_passphrase": 0}],
    ids=str,
)
def test_a_plugin_that_the_service_refuses_is_green_unless_the_suite_loads_it_as_the_service_does(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    module = module_of(Manifest(1, (replace(FULL, **changes),)))
    with pytest.raises(PluginRejected):
        load_plugin(module, info("acme"))
    suite = contract_of(module)
    with monkeypatch.context() as off:
        off.setattr(listing_contract, "manifest_faults", lambda _: ())
        off.setattr(listing_contract, "load_plugin", lambda *_: None)
        off.setattr(listing_contract, "_left_out", lambda _: [])
        suite.test_the_service_would_load_it()
    with pytest.raises(AssertionError, match=next(iter(changes))):
        suite.test_the_service_would_load_it()


class TestOneThatIsNotLoaded:
    BROKEN = PluginProblem(info("acme", "acme-exchange"), "Importing acme failed with ImportError.")
    SETTINGS: ClassVar[dict[str, Any]] = {
        "venue_urls": {"acme": "http://127.0.0.1:1", "acme.sandbox": "http://127.0.0.1:1"},
        "exchange_plugins": {"acme": "acme-exchange", "acme2": "acme"},
        "plugin_processes": {"acme": "own-process"},
        "plugin_process_counts": {"acme": 2},
        "plugin_memory": {"acme": 100},
    }

    def registry(self) -> Registry:
        return Registry([loaded(ScriptedPlugin())], [self.BROKEN])

    @pytest.mark.threat("T39", attack=True)
    async def test_it_stops_the_service_if_a_setting_names_what_it_would_serve_unless_that_is_a_warning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = settings_for(tmp_path, venue_urls={"acme": "http://127.0.0.1:1"})
        with monkeypatch.context() as off:
            off.setattr("exchange_service.startup_checks._may_be_unlisted", lambda *_: False)
            with pytest.raises(UnsafeSettings):
                await start_service(settings, registry=self.registry())
        service = await start_service(settings, registry=self.registry())
        await service.stop()

    @pytest.mark.threat("T39")
    @pytest.mark.parametrize("name", SETTINGS)
    async def test_every_setting_that_names_it_is_a_warning_and_the_others_serve(
        self, tmp_path: Path, name: str
    ) -> None:
        with capture_logs() as lines:
            async with serving(tmp_path, registry=self.registry(), **{name: self.SETTINGS[name]}) as running:
                await running.store()
                assert (await running.client.get_balance("alice", "fakex")).balance.venue_accounts
        said = [line["reason"] for line in lines if line["event"] == "settings.unused"]
        assert len(said) == len(self.SETTINGS[name])
        assert all(sentence.startswith(name) and "acme" in sentence for sentence in said)

    @pytest.mark.threat("T39")
    @pytest.mark.parametrize(
        "changes",
        [{"venue_urls": {"onada": "http://127.0.0.1:1"}}, {"exchange_plugins": {"fakex": "no-such"}}],
        ids=str,
    )
    async def test_if_all_are_loaded_a_slip_of_the_pen_still_stops_the_start(
        self, tmp_path: Path, changes: dict[str, Any]
    ) -> None:
        with pytest.raises(UnsafeSettings):
            await start_service(settings_for(tmp_path, **changes), registry=registry_of(ScriptedPlugin()))

    @pytest.mark.threat("T39")
    def test_an_entry_point_that_is_no_module_and_a_distribution_without_a_name_cost_nobody_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number, (value, metadata) in enumerate(
            [
                ("not a module!", "Name: acme-odd\nVersion: 1.0\n"),
                ("odd_plugin", "Version: 1.0\n"),
                ("odd_plugin", "Name: acme-\x1b[2J\nVersion: 1.0\n"),
                ("odd_plugin", "Name: acme-versionless\n"),
                ("odd_plugin", "Name: acme-no-text\nVersion: \udcff\n"),
                ("odd_plugin", ""),
            ]
        ):
            meta = tmp_path / f"odd_{number}-1.0.dist-info"
            meta.mkdir()
            if metadata:
                (meta / "METADATA").write_bytes(f"Metadata-Version: 2.1\n{metadata}".encode(errors="surrogateescape"))
            (meta / "entry_points.txt").write_text(f"[exchange_service]\nodd{number} = {value}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        registry = open_registry(settings_for(tmp_path))
        assert len(registry.listings) > 100
        odd = [problem for problem in registry.problems if problem.plugin.name.startswith("odd")]
        assert len(odd) == 6
        assert all(problem.reason.isprintable() and problem.plugin.distribution.isprintable() for problem in odd)

    @pytest.mark.threat("T39")
    def test_a_machine_without_room_for_processes_costs_the_third_party_plugins_alone(
        self, thief: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("exchange_service.plugin_host.launch.prepare_launch", full)
        registry = open_registry(settings_for(tmp_path))
        assert registry.find("binance").plugin.info.name == "ccxt_generic"
        (problem,) = registry.problems
        assert "could not be started (OSError)" in problem.reason


def account_of(account_type: str, **changes: Any) -> Balance:
    rows = (AssetBalance("BTC", total=Decimal("1.50")),)
    return Balance((VenueAccount(**{"id": "1", "type": account_type, "assets": rows} | changes),))


class TestAccountTypes:
    @pytest.mark.threat("T43", attack=True)
    @pytest.mark.parametrize("account_type", ["trading", "Cash", "cash ", "", "all", "\x1b[2J"])
    async def test_an_account_of_a_type_that_the_listing_lacks_is_served_unless_types_are_compared(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, account_type: str
    ) -> None:
        answer = returning(account_of(account_type))
        plugin = ScriptedPlugin(listing("fakex", account_types=("cash", "margin")), answer=answer)
        async with serving(tmp_path, registry=registry_of(plugin)) as running:
            await running.store()
            with monkeypatch.context() as off:
                off.setattr(answers, "_has_known_type", lambda *_: True)
                reply = await running.client.get_balance("alice", "fakex", max_age=0)
                assert reply.balance.venue_accounts[0].type == account_type
            with capture_logs() as lines, pytest.raises(PluginFailed) as refused:
                await running.client.get_balance("alice", "fakex", environment="production", account_type="all")
            assert f"of the type {account_type!r}, which account_types of fakex does not list" in str(refused.value)
            assert any(line["event"] == "plugin.failed" and repr(account_type) in line["problem"] for line in lines)

    @pytest.mark.threat("T43")
    async def test_a_known_type_is_served_and_so_is_an_account_that_could_not_be_read(self, tmp_path: Path) -> None:
        good = account_of("cash").venue_accounts[0]
        bad = VenueAccount(id="2", error=VenueTimeout("Too slow."))
        plugin = ScriptedPlugin(listing("fakex", account_types=("cash",)), answer=returning(Balance((good, bad))))
        async with serving(tmp_path, registry=registry_of(plugin)) as running:
            await running.store()
            reply = await running.client.get_balance("alice", "fakex")
            assert [account.type for account in reply.balance.venue_accounts] == ["cash", ""]


class TestBlocking:
    @pytest.mark.threat("T44", attack=True)
    async def test_a_plugin_that_sleeps_passes_for_a_slow_venue_unless_its_own_time_is_counted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def block(_: VenueCall) -> Balance:
            time.sleep(1.2)  # noqa: ASYNC251 - the fault itself
            await asyncio.sleep(60)
            raise AssertionError

        plugin = ScriptedPlugin(answer=block)
        async with serving(tmp_path, registry=registry_of(plugin), venue_timeout=1.0) as running:
            await running.store()
            with monkeypatch.context() as off:
                off.setattr(sessions_module, "_BLOCKED_SHARE", 1e9)
                with pytest.raises(VenueTimeout):
                    await running.client.get_balance("alice", "fakex", max_age=0)
            with capture_logs() as lines, pytest.raises(PluginFailed, match="fakex blocked its event loop for 1"):
                await running.client.get_balance("alice", "fakex", max_age=0)
            (line,) = [line for line in lines if line["event"] == "plugin.failed"]
            assert (line["plugin"], line["problem"]) == ("fakex", BLOCKS)

    @pytest.mark.threat("T44")
    @pytest.mark.parametrize(
        ("worked", "allowed"), [(0.08, 0.1), (0.0, 0.3)], ids=["a moment of work in a short call", "a slow venue"]
    )
    async def test_what_is_no_blocking_is_still_told_as_a_slow_venue(
        self, tmp_path: Path, worked: float, allowed: float
    ) -> None:
        async def wait(_: VenueCall) -> Balance:
            time.sleep(worked)  # noqa: ASYNC251
            await asyncio.sleep(60)
            raise AssertionError

        async with serving(
            tmp_path, registry=registry_of(ScriptedPlugin(answer=wait)), venue_timeout=allowed
        ) as running:
            await running.store()
            with pytest.raises(VenueTimeout):
                await running.client.get_balance("alice", "fakex")


WRONG_AMOUNTS = {
    "a float": (lambda: AssetBalance("BTC", total=1.5), "AssetBalance.total must be a Decimal or None, not float"),  # type: ignore[arg-type]
    "a text": (lambda: AssetBalance("BTC", free="1.5"), "AssetBalance.free must be a Decimal or None, not str"),  # type: ignore[arg-type]
    "NaN": (lambda: AssetBalance("BTC", debt=Decimal("NaN")), "AssetBalance.debt must be a finite number"),
    "a summary's float": (lambda: Summary("USD", equity=0.1), "Summary.equity must be a Decimal or None, not float"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRONG_AMOUNTS)
async def test_the_sentence_about_a_wrong_amount_reaches_the_operators_log_and_no_caller(
    tmp_path: Path, name: str
) -> None:
    make, sentence = WRONG_AMOUNTS[name]

    async def answer(_: VenueCall) -> Any:
        return holding(("BTC", "1"), venue_accounts=(make(),))

    async with serving(tmp_path, registry=registry_of(ScriptedPlugin(answer=answer))) as running:
        await running.store()
        with capture_logs() as lines, pytest.raises(PluginFailed) as failed:
            await running.client.get_balance("alice", "fakex")
    (line,) = [line for line in lines if line["event"] == "plugin.failed"]
    assert line["problem"].startswith(sentence)
    assert sentence not in str(failed.value)


async def test_the_text_of_any_other_exception_stays_out_of_the_log(tmp_path: Path) -> None:
    async def answer(call: VenueCall) -> Any:
        raise TypeError(f"the key is {call.credential.api_key.reveal()}")

    async with serving(tmp_path, registry=registry_of(ScriptedPlugin(answer=answer))) as running:
        await running.store(api_key=KEY)
        with capture_logs() as lines, pytest.raises(PluginFailed):
            await running.client.get_balance("alice", "fakex")
    (line,) = [line for line in lines if line["event"] == "plugin.failed"]
    assert "problem" not in line
    assert KEY not in str(line)
