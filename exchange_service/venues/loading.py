"""Loads plugins: from an entry point to the hooks that the service calls.

Each plugin gets a plugin manager of its own. A plugin that raises at import, misspells a hook or has another API
version is rejected with a sentence for the operator, and the other plugins serve.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.abc import InspectLoader
from importlib.metadata import Distribution, EntryPoint, PackageNotFoundError, distribution, entry_points
from types import ModuleType
from typing import Any

import pluggy

from exchange_service import plugin_api
from exchange_service.model import Manifest, PluginInfo
from exchange_service.observability.redaction import LIVE, Held
from exchange_service.plugin_kit.state import State
from exchange_service.venues.failures import describe_failure, known_problem, place_in, reads_names
from exchange_service.venues.hooks import WrongHooks, register_hooks
from exchange_service.venues.interpreters import Interpreter
from exchange_service.venues.manifests import PluginRejected, refreshed_manifest, validate_manifest
from exchange_service.venues.setting_values import SettingValues, read_values, secret_texts

# Entry-point groups: plugins, and the simulators of their venues for the demo and the tests.
PLUGIN_GROUP = "exchange_service"
SIMULATOR_GROUP = "exchange_service.simulators"
# The distributions of this project: what they do at import is known.
OURS = frozenset(
    f"exchange-service-{name}"
    for name in (
        "alpaca",
        "aster",
        "ccxt-generic",
        "hyperliquid",
        "krakenfutures",
        "lighter",
        "oanda",
        "tastytrade",
        "tradier",
    )
)
_MODULE = re.compile(r"[\w.]+\s*(:\s*[\w.]+)?\s*(\[.*\])?\s*\Z")
# Seconds that the hook refresh_manifest may take.
_REFRESH_TIMEOUT = 120.0


@dataclass(slots=True)
class LoadedPlugin:
    """A plugin that serves: its hooks, its manifest, and the state that its accounts share.

    `manager` is None if none of the plugin's code is loaded in this process. `own_process`: the plugin reads accounts
    in a process of its own. `third_party`: it does so, and is not made by this project. `refreshes`: it has the hook
    refresh_manifest. `interpreter`: what runs its process, if that is not the service's own.
    """

    info: PluginInfo
    manager: pluggy.PluginManager | None
    manifest: Manifest
    state: State
    own_process: bool = False
    third_party: bool = False
    refreshes: bool = False
    interpreter: Interpreter | None = None
    # What the operator has set for it, defaults included; no log line shows the secrets among it.
    settings: SettingValues = field(default_factory=dict, repr=False)
    _held: Held | None = field(default=None, repr=False)

    def use_settings(self, settings: SettingValues) -> None:
        """Give these values to every call from now on."""
        held = LIVE.hold(secret_texts(settings))
        self._release_secrets()
        self.settings, self._held = settings, held

    def _release_secrets(self) -> None:
        if self._held is not None:
            self._held.release()
            self._held = None

    async def close(self) -> None:
        """Close the shared state."""
        await self.state.close()
        self._release_secrets()

    @property
    def ours(self) -> bool:
        """Whether it is made by this project."""
        return self.info.distribution in OURS

    @property
    def hook(self) -> Any:
        """The hooks of this plugin alone."""
        assert self.manager is not None
        return self.manager.hook

    async def refreshed_manifest(self) -> Manifest | None:
        """What the hook refresh_manifest gives, called in this process; None if there is nothing newer to use."""

        async def refresh() -> object:
            async with asyncio.timeout(_REFRESH_TIMEOUT):
                return await self.hook.refresh_manifest()

        return await refreshed_manifest(self.info.name, refresh) if self.refreshes else None


def installed_plugins() -> tuple[EntryPoint, ...]:
    """The entry points of all installed plugins."""
    return tuple(entry_points(group=PLUGIN_GROUP))


def plugin_info(point: EntryPoint) -> PluginInfo:
    """Where an entry point's plugin comes from. A distribution that is half removed has no name or version any more."""
    if point.dist is None:
        return PluginInfo(point.name, "", "")
    try:
        return PluginInfo(point.name, *_version_and_name(point.dist))
    # There is no such file, or it is not a text.
    except (OSError, TypeError, ValueError):
        return PluginInfo(point.name, "", "")


@lru_cache(maxsize=64)
def _version_and_name(found: Distribution) -> tuple[str, str]:
    """Read once for each record that was found: a start asks for each plugin's a dozen times."""
    known = found.metadata
    return known["Version"] or "", known["Name"] or ""


def is_recorded(point: EntryPoint) -> bool:
    """Whether the entry point is one of the distribution that is found by the name which its record of installation
    gives. pip leaves a second record if it is interrupted, and a distribution can bring one with another's name."""
    info = plugin_info(point)
    try:
        found = distribution(info.distribution)
        return found.version == info.version and point in found.entry_points
    # ValueError: for an empty name.
    except (PackageNotFoundError, ValueError):
        return False


def goes_by(info: PluginInfo, name: str) -> bool:
    """Whether `name` is a plugin's own name, or that of its distribution."""
    return name == info.name or same_distribution(name, info.distribution)


def same_distribution(one: str, other: str) -> bool:
    """Whether two names are of the same distribution: "-", "_", "." and case make no difference."""
    return _normal_name(one) == _normal_name(other)


def _normal_name(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def load_entry_point(point: EntryPoint) -> LoadedPlugin:
    """Import a plugin and read its manifest, in this process; PluginRejected if it cannot serve."""
    info = plugin_info(point)
    try:
        module = point.load()
    except KeyboardInterrupt:
        raise
    # A module may do anything at import, sys.exit included.
    except BaseException as error:
        raise PluginRejected(_import_failure(point, info, error)) from None
    if inspect.isclass(module) or inspect.isroutine(module):
        raise PluginRejected(
            f"Its entry point names {point.value[:100]}, which is not a module: write "
            f'{point.name} = "{point.value.partition(":")[0].strip()[:100]}" in its pyproject.toml.'
        )
    return load_plugin(module, info)


def _import_failure(point: EntryPoint, info: PluginInfo, error: BaseException) -> str:
    value = point.value[:100]
    if not _MODULE.match(value):
        return (
            f"Its entry point {value!r} does not name a module: write a line such as "
            f'{point.name} = "exchange_service_{point.name}" in its pyproject.toml.'
        )
    module = value.partition(":")[0].strip()
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing and (missing == module or module.startswith(f"{missing}.")):
        return (
            f"Its entry point names the module {module}, which is not found: name the plugin's own module in its "
            f'pyproject.toml, such as {point.name} = "exchange_service_{point.name}", and install it again.'
        )
    if isinstance(error, AttributeError) and ":" in value and not place_in(error, module):
        return f'Its entry point names {value}, which the module does not have: write {point.name} = "{module}".'
    told = f"Importing {value} failed with {describe_failure(error, module)}"
    if known_problem(error):
        return told
    remove = f", or uninstall {info.distribution}" if info.distribution else ""
    return f"{told} Run `python -c 'import {module}'` to see why{remove}."


def load_plugin(module: object, info: PluginInfo) -> LoadedPlugin:
    """Register one plugin with a manager of its own and read its manifest; PluginRejected if it cannot serve."""
    try:
        manager = register_hooks(module, info.name)
    except WrongHooks as fault:
        raise PluginRejected(str(fault)) from None
    if _reads_the_version(module):
        raise PluginRejected(
            "It gives API_VERSION as the version that it was written for, which is always the version of the service: "
            f"write the number, api_version={plugin_api.API_VERSION}."
        )
    try:
        manifest = manager.hook.exchange_manifest()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        told = describe_failure(error, getattr(module, "__name__", ""))
        raise PluginRejected(f"Its manifest could not be read: {told}") from None
    validated = validate_manifest(manifest)
    _require_watch(manager.hook, validated)
    refreshes = bool(manager.hook.refresh_manifest.get_hookimpls())
    defaults = read_values(validated.settings, {})
    return LoadedPlugin(info, manager, validated, State(), refreshes=refreshes, settings=defaults)


def _reads_the_version(module: object) -> bool:
    """Whether the code of a plugin's module makes its manifest with API_VERSION. That the module has the name says
    nothing: it may import all of the page."""
    if not isinstance(module, ModuleType) or not hasattr(module, "API_VERSION"):
        return False
    loader = getattr(module.__spec__, "loader", None)
    try:
        code = loader.get_code(module.__name__) if isinstance(loader, InspectLoader) else None
    # Any exception: the module is there, and what it was made of may not be any more.
    except Exception:
        return False
    return code is not None and reads_names(code, "Manifest", "API_VERSION")


def _require_watch(hooks: Any, manifest: Manifest) -> None:
    """Raise PluginRejected if a listing pushes and there is no hook for it."""
    pushing = [exchange.id for exchange in manifest.exchanges if exchange.capabilities.push]
    if pushing and not hooks.watch_balance.get_hookimpls():
        raise PluginRejected(f"Its listing {pushing[0]} says that it pushes, and the hook watch_balance is missing.")
