"""The half of the contract that every plugin keeps, whether or not it reads balances: how it loads and its manifest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from exchange_service.model import PluginInfo
from exchange_service.plugin_api import (
    SERVED_API_VERSIONS,
    ExchangeMetadata,
    Manifest,
    NotSupported,
)
from exchange_service.testing.calls import venue_call
from exchange_service.venues.failures import describe_failure
from exchange_service.venues.hooks import WrongHooks, register_hooks
from exchange_service.venues.loading import OURS, LoadedPlugin, installed_plugins, load_plugin, plugin_info
from exchange_service.venues.manifests import (
    LONGEST_MANIFEST,
    PluginRejected,
    manifest_digest,
    manifest_faults,
    read_manifest,
    write_manifest,
)
from exchange_service.venues.printing import PRINTS
from exchange_service.venues.registry import Registry, load_registry
from exchange_service.venues.setting_values import SettingRefused, SettingValues, read_values

# A plugin imports these where it first uses them, so that a service that only lists the exchange does not load them.
HEAVY_LIBRARIES = (
    "ccxt",
    "eth_account",
    "grpc",
    "matplotlib",
    "numpy",
    "pandas",
    "polars",
    "redis",
    "requests",
    "scipy",
    "sqlalchemy",
    "web3",
)


class ListingContract:
    """What every plugin keeps, whether or not it reads balances yet: how it loads, and its manifest.

    Set `plugin` to the module that the entry point names, and `exchange_id` to the listing to test.
    """

    plugin: ModuleType
    exchange_id: str

    @pytest.fixture
    def hooks(self) -> Any:
        """The plugin's hooks, registered as the service registers them."""
        return self._load_hooks()

    @pytest.fixture
    def manifest(self) -> Manifest:
        """The plugin's manifest."""
        return self._load_manifest()

    def _load_hooks(self) -> Any:
        try:
            return register_hooks(self.plugin, self.plugin.__name__).hook
        except WrongHooks as fault:
            raise AssertionError(f"the service would refuse the plugin: {fault}") from None

    def _load_manifest(self) -> Manifest:
        hooks = self._load_hooks()
        try:
            manifest = hooks.exchange_manifest()
        except Exception as error:
            told = describe_failure(error, self.plugin.__name__)
            raise AssertionError(
                f"the service would refuse the plugin: Its manifest could not be read: {told}"
            ) from error
        faults = [] if isinstance(manifest, Manifest) else list(manifest_faults(manifest))
        assert isinstance(manifest, Manifest), f"the service would refuse the plugin: {faults[0]}"
        return manifest

    def _find_listing(self) -> ExchangeMetadata:
        for exchange in self._load_manifest().exchanges:
            if exchange.id == self.exchange_id:
                return exchange
        raise AssertionError(f"the manifest does not list {self.exchange_id!r}")

    def _setting_values(self, given: Mapping[str, Any]) -> SettingValues:
        """The plugin's settings with the values that the simulator names, and the defaults."""
        declared = self._load_manifest().settings
        for setting in declared:
            missing = setting.required and setting.name not in given
            assert not missing, (
                f"the setting {setting.name!r} is required, and the simulator has no value for it: write "
                f"`settings = {{{setting.name!r}: ...}}` into its class, a DemoVenue"
            )
        unknown = sorted(set(given) - {setting.name for setting in declared})
        assert not unknown, f"the simulator's `settings` name what the manifest does not declare: {unknown}"
        try:
            return read_values(declared, given)
        except SettingRefused as refused:
            raise AssertionError(f"the simulator's `settings` do not fit the manifest: {refused}") from None

    def test_the_manifest_loads_and_names_this_version_of_the_door(self, manifest: Manifest) -> None:
        assert manifest.api_version in SERVED_API_VERSIONS, "the plugin is written for another version of plugin_api"
        assert self._find_listing().id == self.exchange_id
        assert self._load_manifest() == manifest, "the manifest changes from call to call"

    def test_the_service_would_load_it(self) -> None:
        faults = list(manifest_faults(self._load_manifest()))
        assert not faults, "the service would refuse the plugin:\n" + "\n".join(faults)
        try:
            plugin = load_plugin(self.plugin, PluginInfo(self.plugin.__name__, "", ""))
        except PluginRejected as rejection:
            raise AssertionError(f"the service would refuse the plugin: {rejection}") from None
        left_out = _left_out(plugin)
        assert not left_out, "the service would leave listings out:\n" + "\n".join(left_out)

    def test_its_manifest_survives_the_way_between_two_processes(self, manifest: Manifest) -> None:
        data = write_manifest(manifest)
        assert read_manifest(data) == manifest, (
            "a value of the manifest is of a class of its own, and arrives as another"
        )
        ccxt = all(exchange.is_ccxt for exchange in manifest.exchanges)
        assert ccxt or len(data) < LONGEST_MANIFEST, f"the manifest has {len(data)} bytes, more than {LONGEST_MANIFEST}"

    def test_its_manifest_is_the_same_in_another_process(self, manifest: Manifest) -> None:
        # With another seed for hashes, which changes the order of a set: the service compares the two.
        there = _digest_elsewhere(self.plugin.__name__, Path(str(self.plugin.__file__)).stat().st_mtime_ns)
        assert manifest_digest(manifest).hex() == there, "the manifest differs from process to process"

    def test_importing_it_pulls_in_neither_heavy_libraries_nor_the_service(self) -> None:
        loaded, printed = _import_apart(self.plugin.__name__)
        assert not printed, f"{PRINTS}; at import"
        heavy = sorted(loaded.intersection(HEAVY_LIBRARIES))
        assert not heavy, f"importing the plugin imports {', '.join(heavy)}: import them where they are first used"
        inner = sorted(name for name in loaded if name.startswith("exchange_service."))
        assert not inner, (
            f"the plugin imports {', '.join(inner)}: all that it may import is exchange_service.plugin_api"
        )

    def test_the_listing_is_complete(self, manifest: Manifest) -> None:
        for exchange in manifest.exchanges:
            for name in ("icon", "color_class", "instructions"):
                assert getattr(exchange, name).strip(), f"{exchange.id}: {name} is empty"

    def test_a_sandbox_is_not_the_live_venue(self, manifest: Manifest) -> None:
        for exchange in manifest.exchanges:
            if exchange.is_ccxt:
                # Some of CCXT's venues have their sandbox on the same host and choose it by a header.
                continue
            addresses = [dict(environment.urls) for environment in exchange.environments]
            assert all(other != addresses[0] for other in addresses[1:]), f"{exchange.id}: its sandbox is the live host"

    def test_what_the_sheet_asks_for_agrees_with_the_credential_fields(self, manifest: Manifest) -> None:
        for exchange in manifest.exchanges:
            fields = {field.name: field for field in exchange.credential_fields}
            passphrase = fields.get("passphrase")
            assert not exchange.requires_passphrase or passphrase, (
                f"{exchange.id}: requires_passphrase, but no such credential field"
            )
            needed = passphrase is not None and passphrase.required
            assert exchange.requires_passphrase or not needed, (
                f"{exchange.id}: the passphrase is required, but requires_passphrase is false"
            )
            # CCXT has names of its own for an account id.
            account_id = next((fields[name] for name in ("account_id", "uid", "accountId") if name in fields), None)
            assert not exchange.requires_account_id or account_id, (
                f"{exchange.id}: requires_account_id, but no such credential field"
            )
            needed = account_id is not None and account_id.required
            assert exchange.requires_account_id or not needed, (
                f"{exchange.id}: the account id is required, but requires_account_id is false"
            )

    def test_a_read_without_secret_asks_for_none(self, manifest: Manifest) -> None:
        for exchange in manifest.exchanges:
            if exchange.capabilities.read_without_secret:
                required = [field.name for field in exchange.credential_fields if field.required and field.secret]
                assert not required, f"{exchange.id}: reads without a secret, but requires {required}"

    def test_a_borrowed_credential_is_one_of_the_same_plugin(self, manifest: Manifest) -> None:
        lenders = {exchange.id for exchange in manifest.exchanges if not exchange.credential_of}
        for exchange in manifest.exchanges:
            fits = not exchange.credential_of or exchange.credential_of in lenders
            assert fits, f"{exchange.id}: {exchange.credential_of!r} has no credential of its own in this plugin"

    def test_exactly_an_unsupported_exchange_says_why(self, manifest: Manifest) -> None:
        for exchange in manifest.exchanges:
            reason = exchange.unsupported_reason
            assert bool(reason) != exchange.capabilities.balance, (
                f"{exchange.id}: give an unsupported_reason exactly if capabilities.balance is false"
            )
            assert not reason or reason.endswith("."), f"{exchange.id}: unsupported_reason must be a sentence"

    def test_an_exchange_pushes_exactly_if_there_is_a_watch(self, hooks: Any, manifest: Manifest) -> None:
        pushes = any(exchange.capabilities.push for exchange in manifest.exchanges)
        watches = bool(hooks.watch_balance.get_hookimpls())
        assert watches or not pushes, "capabilities.push is set, but the hook watch_balance is missing"
        assert pushes or not watches, "there is a hook watch_balance, but no listing sets capabilities.push"

    @pytest.mark.asyncio
    async def test_an_unsupported_exchange_refuses_with_a_sentence(self, hooks: Any, manifest: Manifest) -> None:
        for exchange in manifest.exchanges:
            if exchange.capabilities.balance:
                continue
            # Nothing listens at this address, so a plugin that sends a request anyway fails otherwise.
            defaults = read_values(manifest.settings, {})
            async with venue_call(exchange, override="http://127.0.0.1:1", timeout=1.0, settings=defaults) as call:
                with pytest.raises(NotSupported) as refusal:
                    await hooks.fetch_balance(call=call)
            assert refusal.value.message.endswith("."), f"{exchange.id}: the error's message must be a sentence"


def _left_out(plugin: LoadedPlugin) -> list[str]:
    """Why listings of the plugin would not be served beside our own plugins, as far as these are installed, although
    the operator chose it for each of its ids."""
    choices = {exchange.id: plugin.info.name for exchange in plugin.manifest.exchanges}
    beside = [other for other in _our_plugins() if other.info.name != plugin.info.name]
    problems = Registry([*beside, plugin], choices=choices).problems
    return [problem.reason for problem in problems if problem.plugin == plugin.info and not problem.notice]


@cache
def _our_plugins() -> tuple[LoadedPlugin, ...]:
    """The installed plugins of this project, each named by its module."""
    points = [point for point in installed_plugins() if plugin_info(point).distribution in OURS]
    plugins = load_registry(points=points).plugins
    modules = {point.name: point.module for point in points}
    return tuple(replace(plugin, info=replace(plugin.info, name=modules[plugin.info.name])) for plugin in plugins)


@cache
def _digest_elsewhere(name: str, _changed_at: int) -> str:
    """The digest of the manifest of the module `name` in an interpreter of its own, in hexadecimal."""
    return _run_elsewhere(
        "from exchange_service.venues.manifests import manifest_digest\n"
        "print(manifest_digest(importlib.import_module(sys.argv[2]).exchange_manifest()).hex())\n",
        name,
    )


def _import_apart(name: str) -> tuple[set[str], bool]:
    """The modules that importing `name` loads besides those of plugin_api, in an interpreter of its own, and whether it
    prints."""
    script = (
        "import contextlib, io\n"
        "import exchange_service.plugin_api\n"
        "before, out = set(sys.modules), io.StringIO()\n"
        "with contextlib.redirect_stdout(out):\n"
        "    importlib.import_module(sys.argv[2])\n"
        "print(json.dumps([sorted(set(sys.modules) - before), bool(out.getvalue())]))\n"
    )
    loaded, printed = json.loads(_run_elsewhere(script, name))
    return set(loaded), printed


def _run_elsewhere(script: str, name: str) -> str:
    """The last line that the script prints in an interpreter of its own; its second argument is `name`."""
    script = "import importlib, json, sys\nsys.path[:] = json.loads(sys.argv[1])\n" + script
    command = [sys.executable, "-c", script, json.dumps(sys.path), name]
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    # The interpreter is ours and the name is the plugin's own: no input comes from outside.
    result = subprocess.run(  # noqa: S603
        command, capture_output=True, text=True, check=False, timeout=60, env=environment
    )
    assert result.returncode == 0, f"the plugin cannot be imported by its name: {result.stderr}"
    return result.stdout.splitlines()[-1]
