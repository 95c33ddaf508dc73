"""Finds plugins, keeps a broken one from hurting the rest, and answers whose exchange an id is.

Each plugin gets a manager of its own: one that raises at import, has a misspelt hook or the wrong version becomes a
`Problem`, with a sentence for the operator, and the others serve.
"""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import EntryPoint, entry_points
from typing import Any
from urllib.parse import urlsplit

import pluggy
import structlog

from exchange_service import plugin_api
from exchange_service.errors import ExchangeUnknown, FieldInvalid, NotSupported
from exchange_service.model import ALL_ACCOUNT_TYPES, PRODUCTION, SANDBOX, Account, ExchangeMetadata, Manifest
from exchange_service.plugin_api import API_VERSION
from exchange_service.plugin_kit.state import State

ENTRY_POINT_GROUP = "exchange_service"
_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")
# A refresh that takes longer than this is given up; the manifest from the load stays.
_REFRESH_TIMEOUT = 120.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, order=True)
class PluginInfo:
    """Where a plugin comes from: the entry point's name, and the distribution's name and version."""

    name: str
    version: str
    distribution: str


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a plugin, or one of its listings, is not served."""

    plugin: PluginInfo
    reason: str


@dataclass(slots=True)
class LoadedPlugin:
    """A plugin that serves: its hooks, what it said of itself, and the state that its accounts share.

    `manager` is None where none of its code has been loaded in this process. `own_process`: it reads accounts in a
    process of its own; one that this project does not make is a `stranger` there, and `refreshes` if it has that hook.
    """

    info: PluginInfo
    manager: pluggy.PluginManager | None
    manifest: Manifest
    state: State
    own_process: bool = False
    stranger: bool = False
    refreshes: bool = False

    @property
    def hook(self) -> Any:
        """The plugin's hooks, and nobody else's."""
        assert self.manager is not None
        return self.manager.hook


@dataclass(frozen=True, slots=True)
class Listing:
    """One exchange of the catalogue and the plugin that serves it."""

    metadata: ExchangeMetadata
    plugin: LoadedPlugin


class Unfit(Exception):
    """A plugin that cannot serve; the text is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Introduction:
    """What a stranger says of itself, read in another process. `refreshes`: it may have something newer later."""

    manifest: Manifest
    refreshes: bool


class Placement(Enum):
    """Where a plugin's code runs."""

    # All of it in the service's process.
    IN_PROCESS = "in-process"
    # What reads accounts in a process of its own; what says which exchanges there are in the service's.
    OWN_PROCESS = "own-process"
    # All of it in a process of its own.
    STRANGER = "stranger"
    # Nowhere.
    REFUSED = "refused"


class Registry:
    """The plugins that were found, and the listings that they serve."""

    def __init__(
        self,
        plugins: Sequence[LoadedPlugin],
        problems: Iterable[Problem] = (),
        choices: Mapping[str, str] | None = None,
        refresh_stranger: Callable[[PluginInfo], Awaitable[Manifest | None]] | None = None,
    ) -> None:
        self.plugins = tuple(plugins)
        self._refresh_stranger = refresh_stranger
        self._load_problems = tuple(problems)
        self._choices = dict(choices or {})
        # Rises whenever the listings may have changed, so that whoever keeps something made of them can tell.
        self.generation = 0
        self.listings: dict[str, Listing] = {}
        self.problems: tuple[Problem, ...] = ()
        self._merge()

    def _merge(self) -> None:
        """Custom listings before CCXT's for the same id; of two custom ones the first, unless the operator chose."""
        listings: dict[str, Listing] = {}
        problems = list(self._load_problems)
        for plugin in self.plugins:
            problems.extend(Problem(plugin.info, note) for note in plugin.manifest.notes)
            for metadata in plugin.manifest.exchanges:
                held = listings.get(metadata.id)
                new = Listing(metadata, plugin)
                if held is None or (held.metadata.is_ccxt and not metadata.is_ccxt):
                    listings[metadata.id] = new
                elif held.metadata.is_ccxt == metadata.is_ccxt:
                    listings[metadata.id], problem = self._settle(held, new)
                    problems.append(problem)
        for exchange_id, listing in list(listings.items()):
            owner = listing.metadata.credential_of
            lender = listings.get(owner)
            # None: the owner itself was just left out, for the same reason.
            if owner and (lender is None or lender.plugin is not listing.plugin):
                # Claimed, but served by another plugin: its users' credentials are not this one's to use.
                del listings[exchange_id]
                reason = (
                    f"{exchange_id!r} is not listed: it uses the credential of {owner!r}, which another plugin serves."
                )
                problems.append(Problem(listing.plugin.info, reason))
        self.listings = dict(sorted(listings.items(), key=lambda item: (item[1].metadata.name.lower(), item[0])))
        self.problems = tuple(problems)
        self.generation += 1

    def _settle(self, held: Listing, new: Listing) -> tuple[Listing, Problem]:
        exchange_id = held.metadata.id
        winner, loser = held, new
        if self._choices.get(exchange_id) == new.plugin.info.distribution:
            winner, loser = new, held
        reason = (
            f"{exchange_id!r} is claimed by {held.plugin.info.distribution} and {new.plugin.info.distribution}; "
            f"{winner.plugin.info.distribution} serves it. Uninstall one, or choose with the setting "
            f"exchange_plugins={{'{exchange_id}': '<distribution>'}}."
        )
        return winner, Problem(loser.plugin.info, reason)

    def find(self, exchange_id: str) -> Listing:
        """The listing with this id, case ignored; ExchangeUnknown with a near match where there is none."""
        listing = self.listings.get(exchange_id.strip().lower())
        if listing is not None:
            return listing
        near = difflib.get_close_matches(exchange_id.lower(), self.listings, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "See `exchange-service exchanges` for all ids."
        raise ExchangeUnknown(f"No exchange has the id {exchange_id[:64]!r}. {hint}")

    def account(
        self, user_id: str, exchange_id: str, environment: str, account_type: str = ""
    ) -> tuple[Account, Listing]:
        """The account that a request names, with the environment's own name for an alias, and its listing.

        ExchangeUnknown, NotSupported for a sandbox that the venue has not, FieldInvalid for any other environment and
        for an account type that the exchange has not.
        """
        listing = self.find(exchange_id)
        metadata = listing.metadata
        found = metadata.environment(environment)
        if found is not None:
            return Account(user_id, metadata.id, found.name, _known_type(metadata, account_type)), listing
        if environment.strip().lower() == SANDBOX:
            raise NotSupported(f"{metadata.name} has no sandbox that this service can reach.")
        names = ", ".join(name for item in metadata.environments for name in (item.name, *item.aliases))
        raise FieldInvalid("environment", f"{metadata.name} has no environment of this name; it has {names}.")

    async def refresh(self) -> None:
        """Ask each plugin that offers it for a newer manifest, and merge again if one has any."""
        for plugin in self.plugins:
            newer = await (newer_manifest(plugin) if plugin.manager else self._newer_of_stranger(plugin))
            if newer is not None:
                plugin.manifest = newer
                self._merge()

    async def _newer_of_stranger(self, plugin: LoadedPlugin) -> Manifest | None:
        if self._refresh_stranger is None or not plugin.refreshes:
            return None
        newer = await self._refresh_stranger(plugin.info)
        try:
            return _checked(newer) if isinstance(newer, Manifest) else None
        except Unfit as unfit:
            log.warning("plugin.refresh_refused", plugin=plugin.info.name, reason=str(unfit))
            return None

    async def close(self) -> None:
        """Close the plugins' shared state."""
        for plugin in self.plugins:
            await plugin.state.close()


def _known_type(metadata: ExchangeMetadata, asked: str) -> str:
    """The listing's word for the account type that was asked for, or empty where none was."""
    word = asked.strip().lower()
    known = {name.lower(): name for name in (*metadata.account_types, ALL_ACCOUNT_TYPES)}
    if word and word not in known:
        names = ", ".join((*metadata.account_types, ALL_ACCOUNT_TYPES))
        raise FieldInvalid(
            "account_type", f"{metadata.name} has no accounts of this type.", advice=f"Ask for one of {names}."
        )
    return known[word] if word else ""


def load_registry(
    *,
    choices: Mapping[str, str] | None = None,
    found: Iterable[EntryPoint] | None = None,
    place: Callable[[PluginInfo], Placement] = lambda _: Placement.IN_PROCESS,
    introduce: Callable[[Sequence[EntryPoint]], Sequence[Introduction | Unfit]] | None = None,
    refresh_stranger: Callable[[PluginInfo], Awaitable[Manifest | None]] | None = None,
    left_out: Iterable[Problem] = (),
) -> Registry:
    """Load every installed plugin. `choices`: the distribution that serves an id which two claim; `place`: where each
    runs. What the plugins that are strangers say of themselves is asked of `introduce`, all at once, and once the
    service serves whether they have something newer to say of `refresh_stranger`. `left_out`: plugins that are not
    among `found`."""
    plugins: list[LoadedPlugin] = []
    problems = list(left_out)
    points = sorted(installed_plugins() if found is None else found, key=_precedence)
    strangers = [point for point in points if place(plugin_info(point)) is Placement.STRANGER]
    said = introduce(strangers) if introduce and strangers else ()
    # By where it comes from: an entry point does not tell two distributions apart.
    introduced = dict(zip(map(plugin_info, strangers), said, strict=False))
    for point in points:
        info = plugin_info(point)
        try:
            plugins.append(_placed(point, place(info), introduced.get(info)))
        except Unfit as unfit:
            problems.append(Problem(info, str(unfit)))
    return Registry(plugins, problems, choices, refresh_stranger)


def _placed(point: EntryPoint, placement: Placement, introduced: Introduction | Unfit | None) -> LoadedPlugin:
    info = plugin_info(point)
    if placement is Placement.REFUSED:
        raise Unfit(f"{info.distribution} is not among allowed_plugins, so none of its code is loaded.")
    if placement is Placement.STRANGER:
        if not isinstance(introduced, Introduction):
            raise introduced or Unfit("Nothing asked it what it serves.")
        manifest = _checked(introduced.manifest)
        return LoadedPlugin(
            info, None, manifest, State(), own_process=True, stranger=True, refreshes=introduced.refreshes
        )
    plugin = load_entry_point(point)
    plugin.own_process = placement is Placement.OWN_PROCESS
    return plugin


def installed_plugins() -> tuple[EntryPoint, ...]:
    """The entry points of all installed plugins."""
    return tuple(entry_points(group=ENTRY_POINT_GROUP))


def _precedence(point: EntryPoint) -> tuple[str, str]:
    return (point.name, plugin_info(point).distribution)


def plugin_info(point: EntryPoint) -> PluginInfo:
    """Where an entry point's plugin comes from."""
    if point.dist is None:
        return PluginInfo(point.name, "", "")
    return PluginInfo(point.name, point.dist.version, point.dist.name)


def load_entry_point(point: EntryPoint) -> LoadedPlugin:
    """Import a plugin and read its manifest, in this process; Unfit where it cannot serve."""
    info = plugin_info(point)
    try:
        module = point.load()
    except KeyboardInterrupt:
        raise
    # A stranger's module may do anything at import, sys.exit included.
    except BaseException as error:
        raise Unfit(
            f"Importing {point.value} failed with {type(error).__name__}. "
            f"Run `python -c 'import {point.module}'` to see why, or uninstall {info.distribution}."
        ) from None
    return load_plugin(module, info)


def load_plugin(module: object, info: PluginInfo) -> LoadedPlugin:
    """Register one plugin with a manager of its own and read its manifest."""
    manager = pluggy.PluginManager("exchange_service")
    manager.add_hookspecs(plugin_api)
    try:
        manager.register(module, info.name)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        # Of pluggy's text only the hook's name: the rest holds the paths of this machine, and callers read this.
        named = re.search(r"hook '(\w+)'", str(error))
        hook = f"The hook {named[1]}" if named else "A hook"
        raise Unfit(f"{hook} is not on the plugin page, or takes other arguments there; see docs/plugins.md.") from None
    for name in ("exchange_manifest", "fetch_balance"):
        if not getattr(manager.hook, name).get_hookimpls():
            raise Unfit(f"The hook {name} is missing; see docs/plugins.md.")
    try:
        manifest = manager.hook.exchange_manifest()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise Unfit(f"Its manifest could not be read: {type(error).__name__}.") from None
    return LoadedPlugin(info, manager, _checked(manifest), State())


async def newer_manifest(plugin: LoadedPlugin) -> Manifest | None:
    """What the plugin's hook refresh_manifest gives, called in this process; None where it gives nothing that fits."""
    if not plugin.hook.refresh_manifest.get_hookimpls():
        return None
    try:
        async with asyncio.timeout(_REFRESH_TIMEOUT):
            newer = await plugin.hook.refresh_manifest()
        return None if newer is None else _checked(newer)
    except Unfit as unfit:
        log.warning("plugin.refresh_refused", plugin=plugin.info.name, reason=str(unfit))
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    # SystemExit would end the service if it left the task.
    except BaseException as error:
        log.warning("plugin.refresh_failed", plugin=plugin.info.name, error=type(error).__name__)
    return None


def _checked(manifest: object) -> Manifest:
    """The manifest, if everything that the service relies on holds."""
    if not isinstance(manifest, Manifest):
        raise Unfit(f"exchange_manifest should return a Manifest, and returned {type(manifest).__name__}.")
    if manifest.api_version != API_VERSION:
        raise Unfit(
            f"It was written for version {manifest.api_version} of the plugin page; this service has {API_VERSION}. "
            "Install a matching release of one of them."
        )
    ids = [metadata.id for metadata in manifest.exchanges]
    if len(set(ids)) != len(ids):
        raise Unfit("It lists an exchange id twice.")
    for metadata in manifest.exchanges:
        _check_listing(metadata, ids)
    return manifest


def _check_listing(metadata: ExchangeMetadata, ids: Sequence[str]) -> None:
    where = f"The listing {str(metadata.id)[:64]!r}"
    if not isinstance(metadata.id, str) or not _ID.match(metadata.id):
        raise Unfit(f"{where} has an id that is not lower case letters, digits, '_' and '-'.")
    if not metadata.name or not metadata.asset_class:
        raise Unfit(f"{where} lacks a name or an asset class.")
    if not metadata.environments or metadata.environments[0].name != PRODUCTION:
        raise Unfit(f"{where} should name the environment 'production' first.")
    if metadata.credential_of and metadata.credential_of not in ids:
        raise Unfit(f"{where} uses the credential of an exchange of another plugin.")
    for environment in metadata.environments:
        for url in environment.urls.values():
            if not urlsplit(url).hostname:
                raise Unfit(f"{where} has an address without a host.")
