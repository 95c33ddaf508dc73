"""The contract suite for the plugins that `--exchange-plugin` names. pytest collects this file."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from exchange_service import pytest_plugin
from exchange_service.plugin_api import Manifest
from exchange_service.testing.contract import ListingContract, PluginContract
from exchange_service.testing.projects import PluginProject, find_project, project_name
from exchange_service.testing.venue import DemoVenue
from exchange_service.venues.failures import describe_failure
from exchange_service.venues.loading import SIMULATOR_GROUP, load_entry_point
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
    for wanted in pytest_plugin.CHOSEN:
        yield from project_suites(_find(wanted))


def project_suites(project: PluginProject) -> Iterator[type]:
    """The test classes for a plugin; one with the reason if the service does not load it."""
    try:
        load_entry_point(project.point)
    except PluginRejected as rejection:
        yield _refused(project.info.name, str(rejection))
        return
    venues = [point.load() for point in project.simulators]
    yield from suites(project.point.load(), {venue.exchange_id: venue for venue in venues})


def _find(wanted: str) -> PluginProject:
    """The plugin of this name or folder. The project that is tested comes before an installed plugin of its name."""
    for root in pytest_plugin.ROOT:
        if project_name(root) == wanted:
            return find_project(str(root))
        if (root / wanted / "pyproject.toml").is_file():
            # In pytest's settings a folder is meant from there.
            return find_project(str(root / wanted))
    return find_project(wanted)


globals().update({suite.__name__: suite for suite in _collect()})
