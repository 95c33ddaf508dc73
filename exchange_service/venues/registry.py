"""Which plugin serves which exchange: custom plugins before CCXT, and the look-up of an exchange by its id."""

from __future__ import annotations

import difflib
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from importlib.metadata import EntryPoint

from exchange_service.errors import ExchangeRetired, ExchangeUnknown, FieldInvalid, NotSupported
from exchange_service.model import (
    ALL_ACCOUNT_TYPES,
    SANDBOX,
    Account,
    ExchangeMetadata,
    Manifest,
    PluginInfo,
    PluginSetting,
    RetiredExchange,
)
from exchange_service.plugin_kit.state import State
from exchange_service.venues.interpreters import Interpreter
from exchange_service.venues.loading import (
    OURS,
    LoadedPlugin,
    installed_plugins,
    load_entry_point,
    plugin_info,
    same_distribution,
)
from exchange_service.venues.lookalikes import shape
from exchange_service.venues.manifests import ManifestReply, PluginRejected, refreshed_manifest, validate_manifest
from exchange_service.venues.plugin_settings import OperatorSettings
from exchange_service.venues.setting_values import SettingValues

# Longer than this is no slip of the pen for any id, and the search takes longer the longer the text is.
_LONGEST_SLIP = 40
# Ids that one sentence names.
_MOST_IDS = 8


@dataclass(frozen=True, slots=True)
class PluginProblem:
    """Why a plugin, or one of its listings, is not served; a `notice` says what an operator should know of one that
    is. `detail` is for operators alone: it may name paths of this machine."""

    plugin: PluginInfo
    reason: str
    notice: bool = False
    detail: str = ""

    @property
    def for_operators(self) -> str:
        """The reason with its detail."""
        return f"{self.reason} {self.detail}".rstrip()


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
    """Reads the manifests of plugins whose code is not loaded here, in other processes: `read` those of several plugins
    at once, in their order, and `refresh` a newer one of one plugin, or None."""

    read: Callable[[Sequence[PluginInfo]], Sequence[ManifestReply | PluginRejected]]
    refresh: Callable[[PluginInfo], Awaitable[Manifest | None]]


# The values of a plugin that declares these settings; PluginRejected if the operator's do not fit.
SettingsOfPlugins = Callable[[PluginInfo, Sequence[PluginSetting]], SettingValues]


class Registry:
    """The loaded plugins, and the listings that they serve."""

    def __init__(
        self,
        plugins: Sequence[LoadedPlugin],
        problems: Iterable[PluginProblem] = (),
        choices: Mapping[str, str] | None = None,
        third_party: ThirdPartyManifests | None = None,
        settings: SettingsOfPlugins | None = None,
        declared: Mapping[PluginInfo, tuple[PluginSetting, ...]] | None = None,
    ) -> None:
        self.plugins = tuple(plugins)
        self._third_party = third_party
        self._settings = settings
        # What the operator can set, of each plugin whose manifest was read: also of one that is not loaded because its
        # settings are wrong.
        self.declared = dict(declared or {})
        self._load_problems = tuple(problems)
        self._choices = dict(choices or {})
        # Rises whenever the listings may have changed: what was computed from them is then out of date.
        self.generation = 0
        self.listings: dict[str, Listing] = {}
        # What was served once and is not any more, by id.
        self.retired: dict[str, RetiredExchange] = {}
        self.problems: tuple[PluginProblem, ...] = ()
        self._unlisted: set[str] = set()
        self._merge()

    @property
    def not_loaded(self) -> tuple[PluginProblem, ...]:
        """The plugins that are installed and not loaded, with the reasons."""
        loaded = {plugin.info for plugin in self.plugins}
        return tuple(problem for problem in self._load_problems if problem.plugin not in loaded)

    def has_unlisted(self, exchange_id: str) -> bool:
        """Whether a plugin has a listing of this id that is not served."""
        return exchange_id in self._unlisted

    def _merge(self) -> None:
        """One listing for each id: a custom one before CCXT's, of several custom ones the first and ours before others,
        unless the operator chose."""
        problems = list(self._load_problems)
        for plugin in self.plugins:
            problems.extend(PluginProblem(plugin.info, note, notice=True) for note in plugin.manifest.notes)
        trusted_first = sorted(self.plugins, key=lambda plugin: not plugin.ours)
        claims = [Listing(metadata, plugin) for plugin in trusted_first for metadata in plugin.manifest.exchanges]
        distinct, lookalikes = _without_lookalikes(claims)
        claimants: dict[str, list[Listing]] = {}
        for claim in distinct:
            claimants.setdefault(claim.metadata.id, []).append(claim)
        listings: dict[str, Listing] = {}
        taken: dict[PluginInfo, list[Listing]] = {}
        for exchange_id, several in claimants.items():
            winner, more = self._choose(exchange_id, several)
            problems.extend(more)
            if winner is None:
                continue
            listings[exchange_id] = winner
            if not winner.metadata.is_ccxt and not winner.plugin.ours:
                taken.setdefault(winner.plugin.info, []).extend(item for item in several if item.metadata.is_ccxt)
        problems += [*lookalikes, *_drop_orphans(listings)]
        problems += [_takeover(plugin, replaced) for plugin, replaced in taken.items() if replaced]
        retired = {
            entry.id: entry
            for plugin in reversed(trusted_first)
            for entry in plugin.manifest.retired
            if self._may_retire(plugin, entry.id)
        }
        problems += _revived(listings, retired)
        self.listings = dict(sorted(listings.items(), key=lambda item: (item[1].metadata.name.lower(), item[0])))
        self._unlisted = {claim.metadata.id for claim in claims} - set(listings)
        gone = retired.keys() - listings.keys() - self._unlisted
        self.retired = {exchange_id: retired[exchange_id] for exchange_id in sorted(gone)}
        self.problems = tuple(problems)
        self.generation += 1

    def _choose(self, exchange_id: str, claimants: Sequence[Listing]) -> tuple[Listing | None, list[PluginProblem]]:
        """The listing that serves an id, and what is to be said of the others. None: the operator's choice is not
        loaded, or does not list it. No other plugin then gets the credentials that are meant for it."""
        choice = self._choices.get(exchange_id, "")
        meant = self._named(choice)
        chosen = [claim for claim in claimants if claim.plugin.info in meant]
        if meant and not chosen:
            lacks = "does not list it" if any(plugin.info in meant for plugin in self.plugins) else "is not loaded"
            reason = f"{exchange_id!r} is not listed: exchange_plugins gives it to {choice!r}, which {lacks}."
            return None, [PluginProblem(claim.plugin.info, reason) for claim in claimants]
        winner = (chosen or sorted(claimants, key=lambda claim: claim.metadata.is_ccxt))[0]
        return winner, [
            _lost_claim(claim, winner, self._choices, chosen=bool(chosen))
            for claim in claimants
            # That a custom plugin comes before CCXT is the rule.
            if claim is not winner and (not claim.metadata.is_ccxt or winner.metadata.is_ccxt)
        ]

    def _may_retire(self, plugin: LoadedPlugin, exchange_id: str) -> bool:
        """Whether callers are told what this plugin says of an exchange: not if the operator gave the id to another
        one, which serves it again once it is loaded. Users would remove a credential that they need."""
        meant = self._named(self._choices.get(exchange_id, ""))
        return plugin.ours or exchange_id not in self._choices or plugin.info in meant

    def _named(self, choice: str) -> list[PluginInfo]:
        """The installed plugins that an operator's choice names, loaded or not: those of the distribution of this name,
        else those that have it as their own, because a plugin may call itself as any distribution."""
        if not choice:
            return []
        installed = [plugin.info for plugin in self.plugins] + [problem.plugin for problem in self.not_loaded]
        of_distribution = [info for info in installed if same_distribution(choice, info.distribution)]
        return of_distribution or [info for info in installed if info.name == choice]

    def find(self, exchange_id: str, *, suggest: bool = True) -> Listing:
        """The listing with this id, case ignored; else ExchangeRetired or ExchangeUnknown. With `suggest` the latter
        names a similar id; to search for one takes a millisecond."""
        name = exchange_id.strip().lower()
        listing = self.listings.get(name)
        if listing is not None:
            return listing
        if name in self.retired:
            raise retirement(self.retired[name])
        near: list[str] = []
        if suggest and len(exchange_id) <= _LONGEST_SLIP:
            near = difflib.get_close_matches(exchange_id.lower(), self.listings, n=1)
        advice = f"Did you mean {near[0]!r}?" if near else "See `exchange-service exchanges` for all ids."
        raise ExchangeUnknown(f"No exchange has the id {exchange_id[:64]!r}.", advice=advice)

    def rotates(self, account: Account) -> bool:
        """Whether the account's plugin may replace a field of its credential."""
        listing = self.listings.get(account.exchange_id)
        return listing is not None and bool(listing.metadata.rotating_fields)

    def account(
        self, user_id: str, exchange_id: str, environment: str, account_type: str = "", *, suggest: bool = True
    ) -> tuple[Account, Listing]:
        """The account that a request names, with the environment's own name for an alias, and its listing.

        `suggest` as in `find`. Raises what `find` does, NotSupported for a sandbox that the venue does not have, and
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
            if manifest is None:
                continue
            try:
                if self._settings is not None:
                    plugin.use_settings(self._settings(plugin.info, manifest.settings))
                plugin.manifest = manifest
            except PluginRejected as rejection:
                # It serves on with the manifest and the settings that it has.
                reason = f"Its newer manifest is not used. {rejection}"
                self._load_problems = (*self._load_problems, PluginProblem(plugin.info, reason, notice=True))
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
            await plugin.close()


def _without_lookalikes(claims: Sequence[Listing]) -> tuple[list[Listing], list[PluginProblem]]:
    """The listings without those of third-party plugins whose id or name a person may take for another listing's, and
    why those are left out. `claims` begins with our own plugins'."""
    distinct, problems = [], []
    known: dict[str, Listing] = {}
    for claim in claims:
        seen = (known.get(shape(text)) for text in (claim.metadata.id, claim.metadata.name))
        other = next((item for item in seen if item is not None and item.metadata.id != claim.metadata.id), None)
        if other is not None and not claim.plugin.ours:
            reason = (
                f"{claim.metadata.id!r} ({claim.metadata.name}) is not listed: its id or name looks like that of "
                f"{other.metadata.id!r} ({other.metadata.name}) of {other.plugin.info.distribution}. It needs another."
            )
            problems.append(PluginProblem(claim.plugin.info, reason))
            continue
        distinct.append(claim)
        for text in (claim.metadata.id, claim.metadata.name):
            known.setdefault(shape(text), claim)
    return distinct, problems


def _lost_claim(loser: Listing, winner: Listing, choices: Mapping[str, str], *, chosen: bool) -> PluginProblem:
    exchange_id, served_by = winner.metadata.id, winner.plugin.info.distribution
    both = sorted((served_by, loser.plugin.info.distribution))
    reason = f"{exchange_id!r} is claimed by {both[0]} and {both[1]}; {served_by} serves it"
    if chosen:
        return PluginProblem(loser.plugin.info, f"{reason}, as exchange_plugins says.", notice=True)
    setting = json.dumps({**choices, exchange_id: loser.plugin.info.distribution})
    advice = f"Uninstall one, or choose the other one with the setting exchange_plugins={setting}"
    return PluginProblem(loser.plugin.info, f"{reason}. {advice}.")


def _takeover(plugin: PluginInfo, replaced: Sequence[Listing]) -> PluginProblem:
    """What an operator should know of a third-party plugin that serves ids of CCXT."""
    ids = [listing.metadata.id for listing in replaced]
    shown = ", ".join(ids[:_MOST_IDS]) + (f" and {len(ids) - _MOST_IDS} more" if len(ids) > _MOST_IDS else "")
    before = replaced[0].plugin.info
    setting = json.dumps({ids[0]: before.name})
    reason = (
        f"{plugin.distribution} serves {shown} in place of {before.distribution}, and gets the credentials of their "
        f"users. To give an id back to CCXT set exchange_plugins={setting}."
    )
    return PluginProblem(plugin, reason, notice=True)


def _revived(listings: Mapping[str, Listing], retired: Mapping[str, RetiredExchange]) -> Iterator[PluginProblem]:
    """What an operator should know of third-party plugins that serve what another plugin has retired: the stored
    credentials of its users are theirs now."""
    for exchange_id in sorted(retired.keys() & listings.keys()):
        plugin = listings[exchange_id].plugin
        if not plugin.ours:
            reason = (
                f"{plugin.info.distribution} serves {exchange_id!r}, which was retired here, and gets the credentials "
                "that users have stored for it."
            )
            yield PluginProblem(plugin.info, reason, notice=True)


def retirement(entry: RetiredExchange) -> ExchangeRetired:
    """The error of calls for an exchange that was served once."""
    served = f"has not been served since {entry.since:%Y-%m-%d}" if entry.since else "is not served any more"
    return ExchangeRetired(f"{entry.name} {served}. {entry.reason}", advice=entry.advice or None)


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
    elsewhere: Mapping[PluginInfo, Interpreter] | None = None,
    left_out: Iterable[PluginProblem] = (),
    rivals: Iterable[PluginInfo] = (),
    settings: OperatorSettings | None = None,
) -> Registry:
    """Load the plugins of `points`, which are all installed ones by default.

    `choices`: by exchange id, the distribution that serves an id which two plugins claim. `place`: where each plugin
    runs. `elsewhere`: further plugins, each with the interpreter that runs it; they are read as third-party ones are.
    `left_out`: the plugins that are not among `points`, with the reasons. `rivals`: those of them that would be loaded
    if another plugin had not their name: settings under such a name are neither's. `settings`: what the operator has
    set for the plugins.
    """
    plugins: list[LoadedPlugin] = []
    problems = list(left_out)
    elsewhere = elsewhere or {}
    here = [(plugin_info(point), point) for point in (installed_plugins() if points is None else points)]
    apart = [info for info, _ in here if place(info) is Placement.THIRD_PARTY] + list(elsewhere)
    replies = third_party.read(apart) if third_party and apart else ()
    by_plugin = dict(zip(apart, replies, strict=False))
    ordered = sorted([*here, *((info, None) for info in elsewhere)], key=_load_order)
    declared: dict[PluginInfo, tuple[PluginSetting, ...]] = {}
    known = [*(info for info, _ in ordered), *rivals]
    settings_of = partial((settings or OperatorSettings()).values, installed=known)
    for info, point in ordered:
        try:
            if point is None or info in apart:
                plugin = _load_apart(info, by_plugin.get(info), elsewhere.get(info))
            else:
                plugin = _load_placed(point, place(info))
            declared[info] = plugin.manifest.settings
            plugin.use_settings(settings_of(info, plugin.manifest.settings))
        except PluginRejected as rejection:
            detail = f"It runs on {elsewhere[info].command}." if info in elsewhere else ""
            problems.append(PluginProblem(info, str(rejection), detail=detail))
        else:
            plugins.append(plugin)
    return Registry(plugins, problems, choices, third_party, settings_of, declared)


def _load_apart(
    info: PluginInfo, reply: ManifestReply | PluginRejected | None, interpreter: Interpreter | None
) -> LoadedPlugin:
    """A plugin whose code is loaded in other processes only."""
    if not isinstance(reply, ManifestReply):
        raise reply or PluginRejected("Its manifest was not read.")
    return LoadedPlugin(
        info,
        None,
        validate_manifest(reply.manifest),
        State(),
        own_process=True,
        third_party=interpreter is None or info.distribution not in OURS,
        refreshes=reply.refreshes,
        interpreter=interpreter,
    )


def _load_placed(point: EntryPoint, placement: Placement) -> LoadedPlugin:
    if placement is Placement.REFUSED:
        raise PluginRejected(f"{plugin_info(point).distribution} is not allowed, so none of its code is loaded.")
    plugin = load_entry_point(point)
    plugin.own_process = placement is Placement.OWN_PROCESS
    return plugin


def _load_order(plugin: tuple[PluginInfo, object]) -> tuple[str, str]:
    return (plugin[0].name, plugin[0].distribution)
