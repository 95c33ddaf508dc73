"""The registry of all installed plugins, each placed where the operator wants it to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint

import structlog

from exchange_service.model import Manifest, PluginInfo
from exchange_service.plugin_host.launch import MEBIBYTE, StartFailed, Terms, introduction, newer_introduction
from exchange_service.settings import Settings
from exchange_service.venues.registry import (
    Introduction,
    Placement,
    Problem,
    Registry,
    Unfit,
    installed_plugins,
    load_registry,
    plugin_info,
)

# The distributions of this project: what they do at import is known.
OURS = frozenset(
    f"exchange-service-{name}"
    for name in ("aster", "ccxt-generic", "hyperliquid", "lighter", "oanda", "tastytrade", "tradier")
)
# Of ours the one whose library takes seconds to import and megabytes to parse.
_HEAVY = frozenset({"exchange-service-ccxt-generic"})
log = structlog.get_logger(__name__)

_INTRODUCTION_MEMORY = 512 * MEBIBYTE
_AT_ONCE = 4


def placement(info: PluginInfo, wishes: Mapping[str, str], allowed: Sequence[str]) -> Placement:
    """Where a plugin runs: as the operator wishes, by its name; else ours here, but for CCXT, and strangers apart."""
    ours = info.distribution in OURS
    if allowed and not ours and info.distribution not in allowed:
        return Placement.REFUSED
    wish = wishes.get(info.name)
    if wish == "in-process":
        return Placement.IN_PROCESS
    if not ours:
        return Placement.STRANGER
    return Placement.OWN_PROCESS if wish == "own-process" or info.distribution in _HEAVY else Placement.IN_PROCESS


def one_of_each_name(points: Sequence[EntryPoint]) -> tuple[list[EntryPoint], list[Problem]]:
    """One plugin of each name, and the others with the reason. Settings, log lines and processes go by the name: a
    stranger that takes one of ours would otherwise take its place, and its users' credentials."""
    chosen: dict[str, EntryPoint] = {}
    # Ours before strangers, and of these the first by its distribution's name.
    for point in sorted(points, key=lambda point: (plugin_info(point).distribution not in OURS, plugin_info(point))):
        chosen.setdefault(point.name, point)
    left_out = []
    for point in points:
        info, kept = plugin_info(point), plugin_info(chosen[point.name])
        if info != kept:
            reason = f"The name {info.name!r} is {kept.distribution}'s; nothing of {info.distribution} is loaded."
            left_out.append(Problem(info, reason))
    return list(chosen.values()), left_out


def open_registry(settings: Settings) -> Registry:
    """Every installed plugin, as the settings place them."""

    def place(info: PluginInfo) -> Placement:
        return placement(info, settings.plugin_processes, settings.allowed_plugins)

    found, left_out = one_of_each_name(installed_plugins())
    return load_registry(
        found=found,
        left_out=left_out,
        choices=settings.exchange_plugins,
        place=place,
        introduce=_introduced,
        refresh_stranger=_newer,
    )


def _introduced(points: Sequence[EntryPoint]) -> Sequence[Introduction | Unfit]:
    """What each plugin says of itself, or why it says nothing."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return tuple(pool.map(_introduction, points))


def _introduction(point: EntryPoint) -> Introduction | Unfit:
    try:
        return introduction(_terms(plugin_info(point)))
    except StartFailed as failed:
        return Unfit(str(failed))


async def _newer(info: PluginInfo) -> Manifest | None:
    try:
        return await newer_introduction(_terms(info))
    except StartFailed as failed:
        log.warning("plugin.refresh_failed", plugin=info.name, reason=str(failed))
        return None


def _terms(info: PluginInfo) -> Terms:
    return Terms(info.name, info.distribution, _INTRODUCTION_MEMORY, stranger=True)
