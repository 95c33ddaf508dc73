"""The registry of all installed plugins, each placed where the operator wants it to run."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import EntryPoint
from types import MappingProxyType
from typing import Any

import structlog

from exchange_service.model import Manifest, PluginInfo
from exchange_service.plugin_host.interpreters import InterpreterUnusable, PluginElsewhere, find_elsewhere
from exchange_service.plugin_host.launch import (
    MEBIBYTE,
    OWN_MEMORY,
    ProcessPolicy,
    StartFailed,
    third_party_manifest,
    third_party_refresh,
)
from exchange_service.plugin_host.sandbox import own_ports, venue_ports
from exchange_service.printable import printable
from exchange_service.settings import Settings
from exchange_service.venues.interpreters import Interpreter
from exchange_service.venues.loading import OURS, installed_plugins, is_recorded, plugin_info, same_distribution
from exchange_service.venues.manifests import ManifestReply, PluginRejected
from exchange_service.venues.plugin_settings import OperatorSettings
from exchange_service.venues.registry import (
    Placement,
    PluginProblem,
    Registry,
    ThirdPartyManifests,
    load_registry,
)
from exchange_service.venues.setting_values import SettingRefused

# Of ours the one whose library takes seconds to import and megabytes to parse.
_HEAVY = frozenset({"exchange-service-ccxt-generic"})
log = structlog.get_logger(__name__)

# They stand in settings, log lines and commands.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_VERSION = re.compile(r"[A-Za-z0-9.+!_-]{0,100}\Z")
# For a process that gives a manifest: bytes of memory, and how many of them run at once.
_MANIFEST_MEMORY = 512 * MEBIBYTE
_AT_ONCE = 4


def placement(
    info: PluginInfo, wishes: Mapping[str, str], allowed: Sequence[str], *, by_name: bool = False
) -> Placement:
    """Where a plugin runs: where the operator's wish for its name says.

    Without a wish, our own plugins except CCXT run in the service's process, and all others in processes of their own.
    A third-party plugin that is not `allowed` runs nowhere; all are allowed if none is named, unless they have to be
    (`by_name`).
    """
    ours = info.distribution in OURS
    named = any(same_distribution(name, info.distribution) for name in allowed)
    if not ours and not named and (allowed or by_name):
        return Placement.REFUSED
    wish = wishes.get(info.name)
    if wish == "in-process":
        return Placement.IN_PROCESS
    if not ours:
        return Placement.THIRD_PARTY
    return Placement.OWN_PROCESS if wish == "own-process" or info.distribution in _HEAVY else Placement.IN_PROCESS


def _refusal(info: PluginInfo, settings: Settings) -> str:
    """Why a third-party plugin is not loaded, and the setting with which it would be."""
    because = ""
    if not settings.allowed_plugins:
        because = " The service can be reached by others" if not settings.loopback else " The service holds a keyset"
        because += ", so it loads only the third-party plugins that are named."
    setting = json.dumps([*settings.allowed_plugins, info.distribution])
    return (
        f"{info.distribution} is not among allowed_plugins, so none of its code is loaded.{because} "
        f"If you trust it, set allowed_plugins={setting}."
    )


def one_of_each_name(points: Sequence[EntryPoint]) -> tuple[list[EntryPoint], list[PluginProblem]]:
    """One plugin of each name, and the others with the reason why they are left out.

    Settings, log lines and processes are found by the name: a third-party plugin with the name of one of ours would
    otherwise run in its place, with its users' credentials.
    """
    chosen: dict[str, EntryPoint] = {}
    # Ours before third-party ones, and of these the first by its distribution's name.
    for point in sorted(points, key=_trusted_first):
        chosen.setdefault(point.name, point)
    left_out = []
    for point in points:
        info, winner = plugin_info(point), plugin_info(chosen[point.name])
        if info != winner:
            left_out.append(_taken(info, winner))
    return list(chosen.values()), left_out


def _trusted_first(point: EntryPoint) -> tuple[bool, str]:
    distribution = plugin_info(point).distribution
    return distribution not in OURS, distribution


def _separate(
    points: Sequence[EntryPoint], refuse: Callable[[EntryPoint], str]
) -> tuple[list[EntryPoint], list[PluginProblem]]:
    """The plugins that may be loaded, and the others with the reason. Those take no name from the first."""
    chosen, refused = [], []
    for point in points:
        info = plugin_info(point)
        if reason := refuse(point):
            shown = PluginInfo(*(printable(text)[:100] for text in (info.name, info.version, info.distribution)))
            refused.append(PluginProblem(shown, reason))
        else:
            chosen.append(point)
    return chosen, refused


def reason_to_refuse(point: EntryPoint, settings: Settings) -> str:
    """Why none of an entry point's code is loaded, for the operator; empty if it may be."""
    return _reason_to_refuse(plugin_info(point), is_recorded(point), settings)


def _reason_to_refuse(info: PluginInfo, recorded: bool, settings: Settings) -> str:
    if not _NAME.match(info.name) or not _NAME.match(info.distribution) or not _VERSION.match(info.version):
        return "Its name, distribution or version is missing, or has unusual characters, so nothing of it is loaded."
    ours = next((name for name in OURS if same_distribution(name, info.distribution)), info.distribution)
    if info.distribution != ours:
        return f"Its distribution calls itself {ours} in another spelling, so nothing of it is loaded. Uninstall it."
    if not recorded:
        return (
            f"Another record of {info.distribution} is installed, so nothing of this one is loaded. pip leaves one "
            "behind if it is interrupted: remove it, and install the distribution again."
        )
    return _refusal(info, settings) if _place(info, settings) is Placement.REFUSED else ""


def _place(info: PluginInfo, settings: Settings) -> Placement:
    by_name = settings.third_party_by_name
    return placement(info, settings.plugin_processes, settings.allowed_plugins, by_name=by_name)


def open_registry(settings: Settings, *, stand_ins: Mapping[str, Mapping[str, Any]] | None = None) -> Registry:
    """Every installed plugin, as the settings place them. `stand_ins`: by distribution, values that its plugins get in
    place of those of `plugin_settings`."""
    elsewhere, problems, losers = _choose_elsewhere(settings)
    installed, replaced = _replace(installed_plugins(), elsewhere, settings)
    points, refused = _separate(installed, lambda point: reason_to_refuse(point, settings))
    points, left_out = one_of_each_name(points)
    taken = {point.name: plugin_info(point) for point in points}
    interpreters = {found.info: found.interpreter for name, found in elsewhere.items() if name not in taken}
    losers += [_taken(elsewhere[name].info, info) for name, info in taken.items() if name in elsewhere]
    # Their names are in doubt, which those of plugins that may not be loaded never put in doubt.
    rivals = [problem.plugin for problem in (*left_out, *losers)]
    manifests = _Manifests(settings, interpreters)
    return load_registry(
        points=points,
        left_out=[*left_out, *refused, *problems, *losers, *replaced],
        rivals=rivals,
        choices=settings.exchange_plugins,
        place=lambda info: _place(info, settings),
        third_party=ThirdPartyManifests(manifests.read, manifests.refresh),
        settings=operator_settings(settings, stand_ins or {}),
        elsewhere=interpreters,
    )


def operator_settings(
    settings: Settings, stand_ins: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
) -> OperatorSettings:
    """What the settings give to plugins, with the environment and the keyset that secrets come from."""
    return OperatorSettings(settings.plugin_settings, partial(_open_sealed, settings), os.environ, stand_ins)


def _open_sealed(settings: Settings, plugin: str, setting: str, text: str) -> str:
    # Late: most services have no sealed settings, and the keys' library takes its time to import.
    from exchange_service.credentials.sealed_settings import SettingUnreadable, open_setting

    try:
        return open_setting(text, plugin, setting, settings)
    except SettingUnreadable as unreadable:
        raise SettingRefused(str(unreadable)) from None


def _choose_elsewhere(
    settings: Settings,
) -> tuple[dict[str, PluginElsewhere], list[PluginProblem], list[PluginProblem]]:
    """By name, the plugins that run on interpreters of their own, why others of `plugin_interpreters` may not, and
    those whose name another one has taken."""
    chosen: dict[str, PluginElsewhere] = {}
    problems: list[PluginProblem] = []
    losers: list[PluginProblem] = []
    for name, found in find_elsewhere(settings.plugin_interpreters).items():
        if isinstance(found, InterpreterUnusable):
            problems.append(PluginProblem(_presumed(name), str(found), detail=found.detail))
            continue
        # As among those that are installed beside the service: ours first, then by the distribution's name.
        for candidate in sorted(found, key=lambda item: (item.info.distribution not in OURS, item.info.distribution)):
            if reason := _reason_to_refuse(candidate.info, candidate.recorded, settings):
                problems.append(PluginProblem(candidate.info, reason))
            elif name in chosen:
                losers.append(_taken(candidate.info, chosen[name].info))
            else:
                chosen[name] = candidate
    return chosen, problems, losers


def _presumed(name: str) -> PluginInfo:
    """A plugin that could not be found: if it has the name of one of ours, most likely that one."""
    ours = next((known for known in OURS if same_distribution(known, f"exchange-service-{name}")), "")
    return PluginInfo(name, "", ours)


def _taken(loser: PluginInfo, winner: PluginInfo) -> PluginProblem:
    reason = f"The name {loser.name!r} is {winner.distribution}'s; nothing of {loser.distribution} is loaded."
    return PluginProblem(loser, reason)


def _replace(
    points: Sequence[EntryPoint], elsewhere: Mapping[str, PluginElsewhere], settings: Settings
) -> tuple[list[EntryPoint], list[PluginProblem]]:
    """The plugins of the service's own environment without those that an interpreter of their own has, and a notice of
    each of these. None of the name of one of ours is replaced by a third-party one."""
    kept, notices = [], []
    for point in points:
        info, found = plugin_info(point), elsewhere.get(point.name)
        third_party = found is not None and found.info.distribution not in OURS
        if point.name not in settings.plugin_interpreters or (third_party and info.distribution in OURS):
            kept.append(point)
        elif found is not None:
            version = printable(info.version)[:100]
            reason = (
                f"It is installed beside the service too, in version {version}; version {found.info.version} in the "
                "environment that plugin_interpreters names for it serves."
            )
            notices.append(PluginProblem(found.info, reason, notice=True))
    return kept, notices


class _Manifests:
    """Reads the manifests of plugins whose code is not loaded here, each in a process that then ends."""

    def __init__(self, settings: Settings, interpreters: Mapping[PluginInfo, Interpreter]) -> None:
        self._settings = settings
        self._interpreters = interpreters
        # What each plugin gave last: its addresses say which ports its hook refresh_manifest may need.
        self._given: dict[PluginInfo, Manifest] = {}

    def read(self, plugins: Sequence[PluginInfo]) -> Sequence[ManifestReply | PluginRejected]:
        """The manifest of each plugin, or why it has no manifest."""

        async def read_all() -> Sequence[ManifestReply | PluginRejected]:
            turns = asyncio.Semaphore(_AT_ONCE)
            return await asyncio.gather(*(self._read_one(info, turns) for info in plugins))

        # In a thread: the caller may run in an event loop, which cannot run another one.
        with ThreadPoolExecutor(1, thread_name_prefix="manifests") as pool:
            return pool.submit(asyncio.run, read_all()).result()

    async def _read_one(self, info: PluginInfo, turns: asyncio.Semaphore) -> ManifestReply | PluginRejected:
        async with turns:
            try:
                reply = await third_party_manifest(self._policy(info))
            except StartFailed as failure:
                return PluginRejected(str(failure))
            except OSError as error:
                # One that cannot be read must not keep the others from serving.
                text = f"The process that reads its manifest could not be started ({type(error).__name__})."
                return PluginRejected(text)
        self._given[info] = reply.manifest
        return reply

    async def refresh(self, info: PluginInfo) -> Manifest | None:
        """A newer manifest of one plugin, or None."""
        given, settings = self._given.get(info, Manifest(0, ())), self._settings
        ids = {metadata.id for metadata in given.exchanges}
        overrides = {name: url for name, url in settings.venue_urls.items() if name.partition(".")[0] in ids}
        try:
            return await third_party_refresh(self._policy(info), venue_ports(given, overrides, own_ports(settings)))
        except StartFailed as failure:
            log.warning("plugin.refresh_failed", plugin=info.name, reason=str(failure))
            return None
        except OSError as error:
            log.warning("plugin.refresh_failed", plugin=info.name, error=type(error).__name__)
            return None

    def _policy(self, info: PluginInfo) -> ProcessPolicy:
        third_party, settings = info.distribution not in OURS, self._settings
        # Ours comes here only on an interpreter of its own, and may need as much there as it always may.
        memory = _MANIFEST_MEMORY if third_party else settings.plugin_memory.get(info.name, OWN_MEMORY) * MEBIBYTE
        return ProcessPolicy(
            info.name,
            info.distribution,
            memory,
            third_party,
            confined=settings.plugin_sandbox,
            interpreter=self._interpreters.get(info),
        )
