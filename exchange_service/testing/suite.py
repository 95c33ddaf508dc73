"""The contract suite for the plugins that `--exchange-plugin` names. pytest collects this file."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from exchange_service import pytest_plugin
from exchange_service.plugin_api import Manifest
from exchange_service.testing.contract import ListingContract, PluginContract
from exchange_service.testing.venue import DemoVenue
from exchange_service.venues.failures import describe_failure
from exchange_service.venues.loading import PLUGIN_GROUP, SIMULATOR_GROUP, load_entry_point
from exchange_service.venues.manifests import PluginRejected, manifest_faults


def suites(plugin: ModuleType, simulators: dict[str, type[DemoVenue]]) -> Iterator[type]:
    """A test class for each of the plugin's exchanges that has a simulator; if there is none, one for the listing."""
    try:
        manifest: Manifest = plugin.exchange_manifest()
    except Exception as error:
        told = describe_failure(error, plugin.__name__)
        yield _refused(plugin.__name__, f"Its manifest could not be read: {told}")
        return
    if faults := list(manifest_faults(manifest)):
        yield _refused(plugin.__name__, *faults)
        return
    simulated = [listed.id for listed in manifest.exchanges if listed.capabilities.balance and listed.id in simulators]
    for exchange_id in simulated:
        content = {"plugin": plugin, "exchange_id": exchange_id, "simulator": simulators[exchange_id]}
        yield type(f"Test_{exchange_id}", (PluginContract,), content)
    if simulated:
        return
    content = {"plugin": plugin, "exchange_id": manifest.exchanges[0].id}
    if any(listed.capabilities.balance for listed in manifest.exchanges):
        content["test_a_simulator_plays_the_venue"] = _fail_without_simulator
    yield type(f"Test_{manifest.exchanges[0].id}", (ListingContract,), content)


def _refused(name: str, *faults: str) -> type:
    """In place of the suite for a plugin that the service refuses: which exchanges it has is not known."""

    def fail(_: object) -> None:
        raise AssertionError("the service would refuse the plugin:\n" + "\n".join(faults))

    return type(f"Test_{name}", (), {"test_the_service_would_load_it": fail})


def _fail_without_simulator(self: Any) -> None:
    raise AssertionError(
        "the plugin has no simulator: write a DemoVenue, and name it by an entry point of the group "
        f"{SIMULATOR_GROUP!r}"
    )


def _collect() -> Iterator[type]:
    for name in pytest_plugin.CHOSEN:
        points = [point for point in entry_points(group=PLUGIN_GROUP) if point.name == name]
        if not points:
            known = ", ".join(sorted(point.name for point in entry_points(group=PLUGIN_GROUP))) or "none"
            raise LookupError(f"no installed plugin has an entry point {name!r}; installed are: {known}")
        for point in points:
            yield from installed_suites(point)


def installed_suites(point: EntryPoint) -> Iterator[type]:
    """The test classes for the plugin of an entry point; one with the reason if the service does not load it."""
    try:
        load_entry_point(point)
    except PluginRejected as rejection:
        yield _refused(point.name, str(rejection))
        return
    yield from suites(point.load(), _simulators(point))


def _simulators(plugin: EntryPoint) -> dict[str, type[DemoVenue]]:
    """The simulators of the plugin's own distribution. Those of others are not imported, because one may be broken."""
    ours = _distribution_name(plugin)
    points = [point for point in entry_points(group=SIMULATOR_GROUP) if _distribution_name(point) == ours]
    return {venue.exchange_id: venue for venue in (point.load() for point in points)}


def _distribution_name(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else ""


globals().update({suite.__name__: suite for suite in _collect()})
