"""Which plugin serves which exchange: custom plugins before CCXT, and the look-up of an exchange by its id."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from importlib.metadata import EntryPoint

from exchange_service.errors import ExchangeUnknown, FieldInvalid, NotSupported
from exchange_service.model import ALL_ACCOUNT_TYPES, SANDBOX, Account, ExchangeMetadata, Manifest, PluginInfo
from exchange_service.plugin_kit.state import State
from exchange_service.venues.loading import (
    LoadedPlugin,
    installed_plugins,
    load_entry_point,
    plugin_info,
)
from exchange_service.venues.manifests import ManifestReply, PluginRejected, refreshed_manifest, validate_manifest

# Longer than this is no slip of the pen for any id, and the search takes longer the longer the text is.
_LONGEST_SLIP = 40


@dataclass(frozen=True, slots=True)
class PluginProblem:
    """Why a plugin, or one of its listings, is not served."""

    plugin: PluginInfo
    reason: str


@dataclass(frozen=True, slots=True)
class Listing:
    """One exchange of the catalogue and the plugin that serves it."""

    metadata: ExchangeMetadata
    plugin: LoadedPlugin


class Placement(Enum):
    """Where a plugin's code runs."""

    # All of it in the service's process.
    IN_PROCESS = "in-process"
    # Its calls to the venue in a process of its own; its manifest is read in the service's process.
    OWN_PROCESS = "own-process"
    # All of it in a process of its own.
    THIRD_PARTY = "third-party"
    # Nowhere.
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class ThirdPartyManifests:
    """Reads the manifests of third-party plugins in other processes: `read` those of several plugins at once, in
    their order, and `refresh` a newer one of one plugin, or None."""

    read: Callable[[Sequence[EntryPoint]], Sequence[ManifestReply | PluginRejected]]
    refresh: Callable[[PluginInfo], Awaitable[Manifest | None]]


class Registry:
    """The loaded plugins, and the listings that they serve."""

    def __init__(
        self,
        plugins: Sequence[LoadedPlugin],
        problems: Iterable[PluginProblem] = (),
        choices: Mapping[str, str] | None = None,
        third_party: ThirdPartyManifests | None = None,
    ) -> None:
        self.plugins = tuple(plugins)
        self._third_party = third_party
        self._load_problems = tuple(problems)
        self._choices = dict(choices or {})
        # Rises whenever the listings may have changed: what was computed from them is then out of date.
        self.generation = 0
        self.listings: dict[str, Listing] = {}
        self.problems: tuple[PluginProblem, ...] = ()
        self._merge()

    def _merge(self) -> None:
        """Custom listings before CCXT's for the same id; of two custom ones the first, unless the operator chose."""
        listings: dict[str, Listing] = {}
        problems = list(self._load_problems)
        for plugin in self.plugins:
            problems.extend(PluginProblem(plugin.info, note) for note in plugin.manifest.notes)
            for metadata in plugin.manifest.exchanges:
                held = listings.get(metadata.id)
                new = Listing(metadata, plugin)
                if held is None or (held.metadata.is_ccxt and not metadata.is_ccxt):
                    listings[metadata.id] = new
                elif held.metadata.is_ccxt == metadata.is_ccxt:
                    listings[metadata.id], problem = self._choose(held, new)
                    problems.append(problem)
        problems.extend(_drop_orphans(listings))
        self.listings = dict(sorted(listings.items(), key=lambda item: (item[1].metadata.name.lower(), item[0])))
        self.problems = tuple(problems)
        self.generation += 1

    def _choose(self, held: Listing, new: Listing) -> tuple[Listing, PluginProblem]:
        exchange_id = held.metadata.id
        winner, loser = held, new
        if self._choices.get(exchange_id) == new.plugin.info.distribution:
            winner, loser = new, held
        reason = (
            f"{exchange_id!r} is claimed by {held.plugin.info.distribution} and {new.plugin.info.distribution}; "
            f"{winner.plugin.info.distribution} serves it. Uninstall one, or choose with the setting "
            f"exchange_plugins={{'{exchange_id}': '<distribution>'}}."
        )
        return winner, PluginProblem(loser.plugin.info, reason)

    def find(self, exchange_id: str, *, suggest: bool = True) -> Listing:
        """The listing with this id, case ignored; else ExchangeUnknown. With `suggest` it names a similar id; to search
        for one takes a millisecond."""
        listing = self.listings.get(exchange_id.strip().lower())
        if listing is not None:
            return listing
        near: list[str] = []
        if suggest and len(exchange_id) <= _LONGEST_SLIP:
            near = difflib.get_close_matches(exchange_id.lower(), self.listings, n=1)
        advice = f"Did you mean {near[0]!r}?" if near else "See `exchange-service exchanges` for all ids."
        raise ExchangeUnknown(f"No exchange has the id {exchange_id[:64]!r}.", advice=advice)

    def account(
        self, user_id: str, exchange_id: str, environment: str, account_type: str = "", *, suggest: bool = True
    ) -> tuple[Account, Listing]:
        """The account that a request names, with the environment's own name for an alias, and its listing.

        `suggest` as in `find`. Raises ExchangeUnknown, NotSupported for a sandbox that the venue does not have, and
        FieldInvalid for any other unknown environment and for an unknown account type.
        """
        listing = self.find(exchange_id, suggest=suggest)
        metadata = listing.metadata
        known = metadata.environment(environment)
        if known is not None:
            return Account(user_id, metadata.id, known.name, _canonical_type(metadata, account_type)), listing
        if environment.strip().lower() == SANDBOX:
            raise NotSupported(f"{metadata.name} has no sandbox that this service can reach.")
        names = ", ".join(name for item in metadata.environments for name in (item.name, *item.aliases))
        raise FieldInvalid("environment", f"{metadata.name} has no environment of this name; it has {names}.")

    async def refresh(self) -> None:
        """Ask each plugin that may have one for a newer manifest, and merge the listings again after each."""
        for plugin in self.plugins:
            manifest = await self._refreshed_manifest(plugin)
            if manifest is not None:
                plugin.manifest = manifest
                self._merge()

    async def _refreshed_manifest(self, plugin: LoadedPlugin) -> Manifest | None:
        if plugin.manager is not None:
            return await plugin.refreshed_manifest()
        if self._third_party is None or not plugin.refreshes:
            return None
        return await refreshed_manifest(plugin.info.name, partial(self._third_party.refresh, plugin.info))

    async def close(self) -> None:
        """Close the plugins' shared state."""
        for plugin in self.plugins:
            await plugin.state.close()


def _drop_orphans(listings: dict[str, Listing]) -> list[PluginProblem]:
    """Take out the listings that use the credential of an exchange which another plugin serves, and say why.

    The plugin claimed that exchange as well: its users' credentials belong to the plugin that serves it.
    """
    problems = []
    for exchange_id, listing in list(listings.items()):
        owner = listing.metadata.credential_of
        lender = listings.get(owner)
        # None: the owner itself was just left out, for the same reason.
        if owner and (lender is None or lender.plugin is not listing.plugin):
            del listings[exchange_id]
            reason = f"{exchange_id!r} is not listed: it uses the credential of {owner!r}, which another plugin serves."
            problems.append(PluginProblem(listing.plugin.info, reason))
    return problems


def _canonical_type(metadata: ExchangeMetadata, requested: str) -> str:
    """The listing's spelling of the requested account type, or empty if no type was requested."""
    word = requested.strip().lower()
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
    points: Iterable[EntryPoint] | None = None,
    place: Callable[[PluginInfo], Placement] = lambda _: Placement.IN_PROCESS,
    third_party: ThirdPartyManifests | None = None,
    left_out: Iterable[PluginProblem] = (),
) -> Registry:
    """Load the plugins of `points`, which are all installed ones by default.

    `choices`: by exchange id, the distribution that serves an id which two plugins claim. `place`: where each plugin
    runs. `left_out`: the plugins that are not among `points`, with the reasons.
    """
    plugins: list[LoadedPlugin] = []
    problems = list(left_out)
    ordered = sorted(installed_plugins() if points is None else points, key=_load_order)
    apart = [point for point in ordered if place(plugin_info(point)) is Placement.THIRD_PARTY]
    replies = third_party.read(apart) if third_party and apart else ()
    # By where it comes from: an entry point does not tell two distributions apart.
    by_plugin = dict(zip(map(plugin_info, apart), replies, strict=False))
    for point in ordered:
        info = plugin_info(point)
        try:
            plugins.append(_load_placed(point, place(info), by_plugin.get(info)))
        except PluginRejected as rejection:
            problems.append(PluginProblem(info, str(rejection)))
    return Registry(plugins, problems, choices, third_party)


def _load_placed(point: EntryPoint, placement: Placement, reply: ManifestReply | PluginRejected | None) -> LoadedPlugin:
    info = plugin_info(point)
    if placement is Placement.REFUSED:
        raise PluginRejected(f"{info.distribution} is not among allowed_plugins, so none of its code is loaded.")
    if placement is Placement.THIRD_PARTY:
        if not isinstance(reply, ManifestReply):
            raise reply or PluginRejected("Its manifest was not read.")
        manifest = validate_manifest(reply.manifest)
        return LoadedPlugin(
            info, None, manifest, State(), own_process=True, third_party=True, refreshes=reply.refreshes
        )
    plugin = load_entry_point(point)
    plugin.own_process = placement is Placement.OWN_PROCESS
    return plugin


def _load_order(point: EntryPoint) -> tuple[str, str]:
    return (point.name, plugin_info(point).distribution)
