"""The registry: a broken plugin does not affect the others, custom plugins come before CCXT, and ids find exchanges."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from exchange_service.errors import ExchangeUnknown, FieldInvalid, NotSupported
from exchange_service.plugin_api import (
    Balance,
    Environment,
    ExchangeMetadata,
    Manifest,
    VenueCall,
    hookimpl,
)
from exchange_service.venues import manifests
from exchange_service.venues.loading import PLUGIN_GROUP, load_plugin
from exchange_service.venues.registry import Registry, load_registry
from tests.harness import ScriptedPlugin, info, listing, loaded, registry_of

GOOD = """
from exchange_service.plugin_api import *

@hookimpl
def exchange_manifest():
    metadata = ExchangeMetadata("{id}", "{id}", "Crypto", "Crypto Spot", "24/7 Trading",
                                (Environment("production", {{"api": "https://{id}.example"}}),){more})
    return Manifest(api_version={version}, exchanges=(metadata,){twice})

@hookimpl
async def fetch_balance(call):
    return Balance(())
"""


def source(exchange_id: str = "good", *, version: int = 1, more: str = "", twice: str = "") -> str:
    return GOOD.format(id=exchange_id, version=version, more=more and f", {more}", twice=twice)


class Folder:
    """Plugin modules in a folder of the test's own, and their entry points."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.points: list[EntryPoint] = []

    def add(self, name: str, text: str) -> None:
        module = f"test_plugin_{self.path.parent.name}_{name}".replace("-", "_")
        (self.path / f"{module}.py").write_text(text)
        self.points.append(EntryPoint(name, module, PLUGIN_GROUP))

    def load(self) -> Registry:
        return load_registry(points=self.points)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    monkeypatch.syspath_prepend(str(plugins))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    return Folder(plugins)


BROKEN = {
    "raises at import": ("raise ValueError('token=hunter2')", "ValueError"),
    "exits at import": ("import sys\nsys.exit('token=hunter2')", "SystemExit"),
    "does not parse": ("def", "SyntaxError"),
    "lacks its library": ("import a_library_that_is_not_there", "ModuleNotFoundError"),
    "has another version": (source(version=99), "version 99"),
    "misspells a hook": (
        source() + "\n@hookimpl\nasync def fetch_ballance(call): ...\n",
        "fetch_ballance",
    ),
    "takes another argument": (source().replace("fetch_balance(call)", "fetch_balance(coal)"), "fetch_balance"),
    "lacks a hook": (source().replace("@hookimpl\nasync", "async"), "fetch_balance is not marked"),
    "lacks both hooks": ("", "exchange_manifest is missing"),
    "raises in its manifest": (
        source().replace("def exchange_manifest():", "def exchange_manifest():\n    raise KeyError('hunter2')"),
        "KeyError",
    ),
    "exits in its manifest": (
        source().replace("def exchange_manifest():", "def exchange_manifest():\n    raise SystemExit('hunter2')"),
        "SystemExit",
    ),
    "gives no manifest": (source().replace("return Manifest", "return dict"), "returned dict"),
    "lists an id twice": (source().replace("(metadata,)", "(metadata, metadata)"), "twice"),
    "has an id in capitals": (source("GOOD"), "lower case"),
    "has an empty id": (source(""), "lower case"),
    "has no name": (source().replace('"good", "good"', '"good", ""'), "name"),
    "has no production": (source().replace('"production"', '"live"'), "production"),
    "has an answer limit beyond the largest": (source(more="answer_limit=8 * 1024 * 1024 + 1"), "answer_limit 8388609"),
    "has an answer limit that is no number": (source(more="answer_limit='1 MiB'"), "answer_limit"),
    "has a public answer limit of nothing": (source(more="public_answer_limit=0"), "public_answer_limit 0"),
    "has an address without a host": (
        source().replace('{"api": "https://good.example"}', "{'api': '/v1'}"),
        "without a host",
    ),
    "uses another plugin's credential": (source(more="credential_of='oanda'"), "another plugin"),
}


@pytest.mark.threat("T12")
class TestBrokenPlugins:
    @pytest.mark.parametrize("name", BROKEN)
    def test_one_becomes_a_sentence_and_the_others_serve(self, folder: Folder, name: str) -> None:
        text, word = BROKEN[name]
        folder.add("a-first", source("first"))
        folder.add("broken", text)
        folder.add("z-last", source("last"))
        registry = folder.load()
        assert list(registry.listings) == ["first", "last"]
        (problem,) = registry.problems
        assert problem.plugin.name == "broken"
        assert word in problem.reason
        assert problem.reason.endswith((".", "?")), "a sentence"
        assert "hunter2" not in problem.reason
        assert str(folder.path) not in problem.reason

    def test_all_broken_is_an_empty_catalogue_and_no_crash(self, folder: Folder) -> None:
        folder.add("one", "raise SystemExit")
        folder.add("two", "1/0")
        registry = folder.load()
        assert registry.listings == {}
        assert [problem.plugin.name for problem in registry.problems] == ["one", "two"]

    def test_an_interrupt_at_import_ends_the_loading(self, folder: Folder) -> None:
        folder.add("one", "raise KeyboardInterrupt")
        with pytest.raises(KeyboardInterrupt):
            folder.load()

    def test_the_installed_plugins_all_load(self) -> None:
        registry = load_registry()
        assert [problem for problem in registry.problems if "ccxt" not in problem.plugin.name] == []
        assert {plugin.info.name for plugin in registry.plugins} >= {"oanda", "tradier", "ccxt_generic"}

    def test_a_manifests_notes_are_shown_as_problems_though_it_serves(self) -> None:
        plugin = ScriptedPlugin()
        plugin.manifest = Manifest(1, plugin.manifest.exchanges, notes=("The catalogue is older than the library.",))
        registry = registry_of(plugin)
        assert list(registry.listings) == ["fakex"]
        assert [problem.reason for problem in registry.problems] == ["The catalogue is older than the library."]

    def test_an_exchange_may_use_the_credential_of_another_of_the_same_plugin(self) -> None:
        plugin = ScriptedPlugin(listing("fakex"), listing("fakex_options", credential_of="fakex"))
        assert set(registry_of(plugin).listings) == {"fakex", "fakex_options"}


def ccxt(*ids: str) -> ScriptedPlugin:
    return ScriptedPlugin(*(listing(exchange_id, is_ccxt=True) for exchange_id in ids))


class TestPrecedence:
    @pytest.mark.parametrize("custom_first", [True, False])
    def test_a_custom_plugin_comes_before_ccxt_and_is_listed_once(self, custom_first: bool) -> None:
        custom = loaded(ScriptedPlugin(listing("fakex")), "custom")
        generic = loaded(ccxt("fakex", "fakey"), "ccxt_generic")
        registry = Registry([custom, generic] if custom_first else [generic, custom])
        assert list(registry.listings) == ["fakex", "fakey"]
        assert registry.find("fakex").plugin is custom
        assert all(problem.notice for problem in registry.problems)

    @pytest.mark.threat("T11")
    def test_of_two_custom_ones_the_first_serves_and_both_are_named(self) -> None:
        first, second = loaded(ScriptedPlugin(), "first"), loaded(ScriptedPlugin(), "second")
        registry = Registry([first, second])
        assert registry.find("fakex").plugin is first
        (problem,) = registry.problems
        assert problem.plugin is second.info
        assert "exchange-service-first" in problem.reason
        assert "exchange-service-second" in problem.reason
        assert "exchange_plugins" in problem.reason

    def test_the_operators_choice_serves(self) -> None:
        first, second = loaded(ScriptedPlugin(), "first"), loaded(ScriptedPlugin(), "second")
        registry = Registry([first, second], choices={"fakex": "exchange-service-second"})
        assert registry.find("fakex").plugin is second
        (problem,) = registry.problems
        assert problem.plugin is first.info

    def test_a_refused_claim_costs_the_second_plugin_nothing_else(self) -> None:
        first = loaded(ScriptedPlugin(), "first")
        second = loaded(ScriptedPlugin(listing("fakex"), listing("fakey")), "second")
        registry = Registry([first, second])
        assert registry.find("fakey").plugin is second

    @pytest.mark.threat("T11")
    def test_an_exchange_is_not_listed_whose_credential_another_plugin_won(self) -> None:
        first = loaded(ScriptedPlugin(), "first")
        second = loaded(ScriptedPlugin(listing("fakex"), listing("fakex_options", credential_of="fakex")), "second")
        registry = Registry([first, second])
        assert list(registry.listings) == ["fakex"]
        assert registry.find("fakex").plugin is first
        lost, unlisted = registry.problems
        assert lost.plugin is unlisted.plugin is second.info
        assert "'fakex_options' is not listed" in unlisted.reason
        assert "'fakex', which another plugin serves" in unlisted.reason

    def test_the_operators_choice_lists_it_again(self) -> None:
        first = loaded(ScriptedPlugin(), "first")
        second = loaded(ScriptedPlugin(listing("fakex"), listing("fakex_options", credential_of="fakex")), "second")
        registry = Registry([first, second], choices={"fakex": "exchange-service-second"})
        assert {name: listed.plugin for name, listed in registry.listings.items()} == {
            "fakex": second,
            "fakex_options": second,
        }
        (problem,) = registry.problems
        assert problem.plugin is first.info

    def test_a_custom_plugin_that_takes_an_id_from_ccxt_takes_no_credential_with_it(self) -> None:
        generic = loaded(
            ScriptedPlugin(
                listing("fakex", is_ccxt=True), listing("fakex_options", is_ccxt=True, credential_of="fakex")
            ),
            "ccxt_generic",
        )
        registry = Registry([generic, loaded(ScriptedPlugin(), "custom")])
        assert list(registry.listings) == ["fakex"]
        assert [problem.plugin for problem in registry.problems if not problem.notice] == [generic.info]

    def test_a_chain_of_borrowed_credentials_breaks_where_its_first_link_is_lost(self) -> None:
        second = loaded(
            ScriptedPlugin(
                listing("fakex"),
                listing("fakex_options", credential_of="fakex"),
                listing("fakex_futures", credential_of="fakex_options"),
            ),
            "second",
        )
        registry = Registry([loaded(ScriptedPlugin(), "first"), second])
        assert list(registry.listings) == ["fakex"]
        assert len(registry.problems) == 3

    def test_an_installed_plugins_own_credential_of_serves(self) -> None:
        registry = load_registry()
        options = registry.find("tradier_options")
        assert options.metadata.credential_of == "tradier"
        assert options.plugin is registry.find("tradier").plugin

    def test_listings_are_sorted_by_name_ignoring_case(self) -> None:
        plugin = ScriptedPlugin(
            listing("c", name="beta"),
            listing("b", name="Beta 2"),
            listing("a", name="gamma"),
            listing("d", name="ALPHA"),
        )
        assert list(registry_of(plugin).listings) == ["d", "c", "b", "a"]


class Refreshing(ScriptedPlugin):
    """A plugin whose hook refresh_manifest gives this manifest, or raises this exception."""

    def __init__(self, newer: Any) -> None:
        super().__init__(listing("old"))
        self.newer = newer

    @hookimpl
    async def refresh_manifest(self) -> Any:
        if isinstance(self.newer, BaseException):
            raise self.newer
        return self.newer


class TestRefresh:
    async def test_a_refreshed_manifest_replaces_the_old_one(self) -> None:
        registry = registry_of(Refreshing(Manifest(1, (listing("new"),))), ScriptedPlugin())
        before = registry.generation
        await registry.refresh()
        assert list(registry.listings) == ["fakex", "new"]
        assert registry.generation > before

    async def test_a_refreshed_manifest_is_checked_beside_the_loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        check, checked_by = manifests.broken_rules, list[threading.Thread]()

        def noted(manifest: Manifest) -> Iterator[str]:
            checked_by.append(threading.current_thread())
            return check(manifest)

        registry = registry_of(Refreshing(Manifest(1, (listing("new"),))))
        monkeypatch.setattr(manifests, "broken_rules", noted)
        await registry.refresh()
        assert list(registry.listings) == ["new"]
        assert checked_by
        assert threading.main_thread() not in checked_by

    async def test_no_refreshed_manifest_changes_nothing(self) -> None:
        registry = registry_of(Refreshing(None), ScriptedPlugin())
        before = registry.generation
        await registry.refresh()
        assert (list(registry.listings), registry.generation) == (["fakex", "old"], before)

    @pytest.mark.parametrize(
        "newer",
        [
            ValueError("hunter2"),
            SystemExit("hunter2"),
            TimeoutError(),
            {"exchanges": []},
            Manifest(99, (listing("new"),)),
            Manifest(1, (listing("new"), listing("new"))),
        ],
    )
    async def test_a_failing_plugin_leaves_its_old_manifest_and_the_others_refresh(self, newer: Any) -> None:
        registry = registry_of(Refreshing(newer), Refreshing(Manifest(1, (listing("newer"),))))
        # In a task, as the service does it: there SystemExit would end the event loop.
        await asyncio.create_task(registry.refresh())
        assert list(registry.listings) == ["newer", "old"]


WITH_SANDBOX = (
    Environment("production", {"api": "https://venue.example"}, aliases=("live",)),
    Environment("sandbox", {"api": "https://test.venue.example"}, aliases=("practice", "demo")),
)


class TestAccount:
    registry = registry_of(ScriptedPlugin(listing("fakex", environments=WITH_SANDBOX), listing("fakey")))

    @pytest.mark.parametrize(
        ("requested", "name"),
        [
            ("", "production"),
            ("production", "production"),
            ("LIVE", "production"),
            (" practice ", "sandbox"),
            ("Sandbox", "sandbox"),
            ("demo", "sandbox"),
        ],
    )
    def test_an_environment_has_its_name_or_the_venues_own_name(self, requested: str, name: str) -> None:
        account, listed = self.registry.account("alice", " FAKEX ", requested)
        assert (account.user_id, account.exchange_id, account.environment) == ("alice", "fakex", name)
        assert listed.metadata.id == "fakex"

    def test_an_unknown_environment_is_a_bad_field_that_names_the_known_ones(self) -> None:
        with pytest.raises(FieldInvalid, match="production, live, sandbox, practice, demo") as refusal:
            self.registry.account("alice", "fakex", "moon")
        assert refusal.value.field == "environment"

    def test_a_missing_sandbox_is_not_supported(self) -> None:
        with pytest.raises(NotSupported, match="Fakey has no sandbox"):
            self.registry.account("alice", "fakey", "sandbox")

    @pytest.mark.parametrize(("requested", "suggestion"), [("fkex", "'fakex'"), ("FKEY", "'fakey'")])
    def test_an_unknown_id_comes_with_a_near_match(self, requested: str, suggestion: str) -> None:
        with pytest.raises(ExchangeUnknown, match=f"Did you mean {suggestion}"):
            self.registry.find(requested)

    def test_an_id_like_no_other_comes_with_the_way_to_the_list(self) -> None:
        with pytest.raises(ExchangeUnknown, match="exchange-service exchanges") as refusal:
            self.registry.find("q" * 5000)
        assert len(refusal.value.message) < 200


async def test_the_end_closes_the_shared_state_of_plugins() -> None:
    closed: list[str] = []
    registry = registry_of(ScriptedPlugin())

    async def make() -> str:
        return "markets"

    async def close(value: str) -> None:
        closed.append(value)

    await registry.plugins[0].state.get("markets", make, close=close)
    await registry.close()
    assert closed == ["markets"]


def test_a_module_serves_as_a_plugin() -> None:
    module = ModuleType("a_plugin")

    @hookimpl
    def exchange_manifest() -> Manifest:
        return Manifest(1, (listing("fakex"),))

    @hookimpl
    async def fetch_balance(call: VenueCall) -> Balance:
        return Balance(())

    module.exchange_manifest, module.fetch_balance = exchange_manifest, fetch_balance  # type: ignore[attr-defined]
    plugin = load_plugin(module, info("module"))
    assert isinstance(plugin.manifest.exchanges[0], ExchangeMetadata)
