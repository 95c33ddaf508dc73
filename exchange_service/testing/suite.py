"""The contract suite for the plugins that `exchange_service.pytest_plugin` was told of; pytest collects this file."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

from exchange_service import pytest_plugin
from exchange_service.plugin_api import Manifest
from exchange_service.testing.contract import ListingContract, PluginContract
from exchange_service.testing.venue import DemoVenue
from exchange_service.venues.loading import PLUGIN_GROUP, SIMULATOR_GROUP


def suites(plugin: ModuleType, simulators: dict[str, type[DemoVenue]]) -> Iterator[type]:
    """A test class for each of the plugin's exchanges that a simulator plays, and for the rest one for the listing."""
    manifest: Manifest = plugin.exchange_manifest()
    played = [listed.id for listed in manifest.exchanges if listed.capabilities.balance and listed.id in simulators]
    for exchange_id in played:
        content = {"plugin": plugin, "exchange_id": exchange_id, "simulator": simulators[exchange_id]}
        yield type(f"Test_{exchange_id}", (PluginContract,), content)
    if played:
        return
    content = {"plugin": plugin, "exchange_id": manifest.exchanges[0].id}
    if any(listed.capabilities.balance for listed in manifest.exchanges):
        content["test_a_simulator_plays_the_venue"] = _unplayed
    yield type(f"Test_{manifest.exchanges[0].id}", (ListingContract,), content)


def _unplayed(self: Any) -> None:
    raise AssertionError(
        f"no simulator plays any of the plugin's exchanges: name one, a DemoVenue, by an entry point of the group "
        f"{SIMULATOR_GROUP!r}"
    )


def _collected() -> Iterator[type]:
    for name in pytest_plugin.CHOSEN:
        points = [point for point in entry_points(group=PLUGIN_GROUP) if point.name == name]
        if not points:
            known = ", ".join(sorted(point.name for point in entry_points(group=PLUGIN_GROUP))) or "none"
            raise LookupError(f"no installed plugin has an entry point {name!r}; installed are: {known}")
        for point in points:
            yield from suites(point.load(), _simulators(point))


def _simulators(plugin: EntryPoint) -> dict[str, type[DemoVenue]]:
    """The simulators of the plugin's own distribution: another one's may be broken."""
    ours = [point for point in entry_points(group=SIMULATOR_GROUP) if _name(point) == _name(plugin)]
    return {venue.exchange_id: venue for venue in (point.load() for point in ours)}


def _name(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else ""


globals().update({suite.__name__: suite for suite in _collected()})
