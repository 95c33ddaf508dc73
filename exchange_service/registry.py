"""Finds plugins, keeps a broken one from hurting the rest, and answers whose exchange an id is.

Each plugin gets a manager of its own: one that raises at import, has a misspelt hook or the wrong version becomes a
`Problem`, with a sentence for the operator, and the others serve.
"""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any
from urllib.parse import urlsplit

import pluggy
import structlog

from exchange_service import plugin_api
from exchange_service.errors import ExchangeUnknown, FieldInvalid, NotSupported
from exchange_service.model import ALL_ACCOUNT_TYPES, PRODUCTION, SANDBOX, Account, ExchangeMetadata, Manifest
from exchange_service.plugin_api import API_VERSION
from exchange_service.state import State

ENTRY_POINT_GROUP = "exchange_service"
_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}\Z")
# A refresh that takes longer than this is given up; the manifest from the load stays.
_REFRESH_TIMEOUT = 120.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
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
    """A plugin that serves: its hooks, what it said of itself, and the state that its accounts share."""

    info: PluginInfo
    manager: pluggy.PluginManager
    manifest: Manifest
    state: State

    @property
    def hook(self) -> Any:
        """The plugin's hooks, and nobody else's."""
        return self.manager.hook


@dataclass(frozen=True, slots=True)
class Listing:
    """One exchange of the catalogue and the plugin that serves it."""

    metadata: ExchangeMetadata
    plugin: LoadedPlugin


class _Unfit(Exception):
    """A plugin that cannot serve; the text is a sentence for the operator."""


class Registry:
    """The plugins that were found, and the listings that they serve."""

    def __init__(
        self,
        plugins: Sequence[LoadedPlugin],
        problems: Iterable[Problem] = (),
        choices: Mapping[str, str] | None = None,
    ) -> None:
        self.plugins = tuple(plugins)
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
            newer = await self._newer_manifest(plugin)
            if newer is not None:
                plugin.manifest = newer
                self._merge()

    async def _newer_manifest(self, plugin: LoadedPlugin) -> Manifest | None:
        if not plugin.hook.refresh_manifest.get_hookimpls():
            return None
        try:
            async with asyncio.timeout(_REFRESH_TIMEOUT):
                newer = await plugin.hook.refresh_manifest()
            return None if newer is None else _checked(newer)
        except _Unfit as unfit:
            log.warning("plugin.refresh_refused", plugin=plugin.info.name, reason=str(unfit))
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        # SystemExit would end the service if it left the task.
        except BaseException as error:
            log.warning("plugin.refresh_failed", plugin=plugin.info.name, error=type(error).__name__)
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
        raise FieldInvalid("account_type", f"{metadata.name} has no accounts of this type; ask for one of {names}.")
    return known[word] if word else ""


def load_registry(*, choices: Mapping[str, str] | None = None, found: Iterable[EntryPoint] | None = None) -> Registry:
    """Load every installed plugin. `choices`: the distribution that serves an id which two claim."""
    plugins: list[LoadedPlugin] = []
    problems: list[Problem] = []
    points = entry_points(group=ENTRY_POINT_GROUP) if found is None else found
    for point in sorted(points, key=lambda point: (point.name, _info(point).distribution)):
        info = _info(point)
        try:
            plugins.append(_load(point, info))
        except _Unfit as unfit:
            problems.append(Problem(info, str(unfit)))
    return Registry(plugins, problems, choices)


def _info(point: EntryPoint) -> PluginInfo:
    if point.dist is None:
        return PluginInfo(point.name, "", "")
    return PluginInfo(point.name, point.dist.version, point.dist.name)


def _load(point: EntryPoint, info: PluginInfo) -> LoadedPlugin:
    try:
        module = point.load()
    except KeyboardInterrupt:
        raise
    # A stranger's module may do anything at import, sys.exit included.
    except BaseException as error:
        raise _Unfit(
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
        raise _Unfit(
            f"{hook} is not on the plugin page, or takes other arguments there; see docs/plugins.md."
        ) from None
    for name in ("exchange_manifest", "fetch_balance"):
        if not getattr(manager.hook, name).get_hookimpls():
            raise _Unfit(f"The hook {name} is missing; see docs/plugins.md.")
    try:
        manifest = manager.hook.exchange_manifest()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _Unfit(f"Its manifest could not be read: {type(error).__name__}.") from None
    return LoadedPlugin(info, manager, _checked(manifest), State())


def _checked(manifest: object) -> Manifest:
    """The manifest, if everything that the service relies on holds."""
    if not isinstance(manifest, Manifest):
        raise _Unfit(f"exchange_manifest should return a Manifest, and returned {type(manifest).__name__}.")
    if manifest.api_version != API_VERSION:
        raise _Unfit(
            f"It was written for version {manifest.api_version} of the plugin page; this service has {API_VERSION}. "
            "Install a matching release of one of them."
        )
    ids = [metadata.id for metadata in manifest.exchanges]
    if len(set(ids)) != len(ids):
        raise _Unfit("It lists an exchange id twice.")
    for metadata in manifest.exchanges:
        _check_listing(metadata, ids)
    return manifest


def _check_listing(metadata: ExchangeMetadata, ids: Sequence[str]) -> None:
    where = f"The listing {str(metadata.id)[:64]!r}"
    if not isinstance(metadata.id, str) or not _ID.match(metadata.id):
        raise _Unfit(f"{where} has an id that is not lower case letters, digits, '_' and '-'.")
    if not metadata.name or not metadata.asset_class:
        raise _Unfit(f"{where} lacks a name or an asset class.")
    if not metadata.environments or metadata.environments[0].name != PRODUCTION:
        raise _Unfit(f"{where} should name the environment 'production' first.")
    if metadata.credential_of and metadata.credential_of not in ids:
        raise _Unfit(f"{where} uses the credential of an exchange of another plugin.")
    for environment in metadata.environments:
        for url in environment.urls.values():
            if not urlsplit(url).hostname:
                raise _Unfit(f"{where} has an address without a host.")
