"""Loads a plugin as the service does, and makes one call of it in view of its author."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import sys
import time
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pluggy

from exchange_service.authoring.masking import Masker, credential_texts, secrets_given
from exchange_service.authoring.tracing import AuthorsFiles, describe_trace, files_of, has_own_frame
from exchange_service.authoring.watch_loop import Blocking, LoopWatch
from exchange_service.credentials import CredentialReference
from exchange_service.errors import CredentialInvalid, ServiceError
from exchange_service.model import Account, Credential, KeyRights, Secret, VenueReports
from exchange_service.plugin_api import VenueCall
from exchange_service.plugin_kit.credential_fields import missing_fields, stored_form
from exchange_service.testing.projects import PluginProject
from exchange_service.testing.venue import SITUATIONS, TROUBLES, DemoVenue, LoopbackVenue
from exchange_service.venues.fetching import Target
from exchange_service.venues.http_pool import VenueHttpPool
from exchange_service.venues.loading import LoadedPlugin, load_entry_point
from exchange_service.venues.manifests import PluginRejected
from exchange_service.venues.plugin_settings import OperatorSettings
from exchange_service.venues.priority import Priority
from exchange_service.venues.registry import Listing, Registry
from exchange_service.venues.sessions import Sessions, venue_environment
from exchange_service.venues.tap import HttpTap, SeenRequest
from exchange_service.wire.balances import FetchedBalance

# The user of the call; no venue sees the name.
_USER = "author"
# Seconds that tasks have to end after the session was closed.
_ENDING = 0.3
# Seconds between two moves of a simulator that is watched.
_MOVING = 1.0
_MOST_PRINTED = 64 * 1024

_mark = pluggy.HookimplMarker("exchange_service")


class NotLoaded(Exception):
    """The plugin cannot serve: `reason` as the service says it, `trace` the author's frames or empty, and what it
    `printed` meanwhile."""

    def __init__(self, reason: str, trace: str, printed: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.trace = trace
        self.printed = printed


def use_settings(loaded: LoadedProject, values: OperatorSettings) -> None:
    """Give the plugin what the operator has set for it, as the service does. Raises CannotTry if it does not fit."""
    plugin = loaded.plugin
    try:
        plugin.use_settings(values.values(plugin.info, plugin.manifest.settings, (plugin.info,)))
    except PluginRejected as rejection:
        raise CannotTry(str(rejection)) from None


class CannotTry(Exception):
    """What was asked for is not there; the text is a sentence that says what is."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What to try. `situation` or `trouble` choose an account of the simulator, `url` another address, and `live` the
    real venue. `timeout` is in seconds, and so is `watch`: for so long pushes are followed; 0: not at all."""

    exchange: str = ""
    environment: str = "production"
    account_type: str = ""
    situation: str = "moving"
    trouble: str = ""
    url: str = ""
    live: bool = False
    timeout: float = 8.0
    watch: float = 0.0
    check_credential: bool = False


@dataclass(frozen=True, slots=True)
class LoadedProject:
    """A plugin that loads, the files that are its author's, and what it printed while it was imported."""

    project: PluginProject
    plugin: LoadedPlugin
    files: AuthorsFiles
    printed: str

    def listing(self, exchange_id: str) -> Listing:
        """The listing to try: the one of this id, else the only one. Raises CannotTry."""
        known = [metadata.id for metadata in self.plugin.manifest.exchanges]
        wanted = exchange_id.strip().lower() or (known[0] if len(known) == 1 else "")
        for metadata in self.plugin.manifest.exchanges:
            if metadata.id == wanted:
                return Listing(metadata, self.plugin)
        named = ", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
        if wanted:
            raise CannotTry(f"The plugin {self.project.info.name} does not list {wanted!r}; it lists {named}.")
        raise CannotTry(f"The plugin {self.project.info.name} lists {named or 'nothing'}: choose one with --exchange.")


@dataclass(frozen=True, slots=True)
class PushedItem:
    """What a watch has yielded after so many seconds: a whole balance, or None for a hint that it changed."""

    seconds: float
    balance: FetchedBalance | None


@dataclass(slots=True)
class Trial:
    """One call and what was seen of it. Nothing of it is fit to be shown but through `masker`.

    `fetched` is the balance or None, `error` the error as callers see it or None. `trace` is where the plugin raised;
    empty if it did not. `seconds` is how long the call took, `busy` for how long the plugin kept the loop in all.
    """

    listing: Listing
    account: Account
    environment: str
    masker: Masker
    credential: Credential
    # "the simulator OandaSimulator, ...", "the address http://...", or "the real venue".
    where: str
    files: AuthorsFiles
    live: bool = False
    # The simulator's class; empty for an address or the real venue.
    simulator: str = ""
    requests: list[SeenRequest] = field(default_factory=list)
    began: float = 0.0
    seconds: float = 0.0
    busy: float = 0.0
    blockings: list[Blocking] = field(default_factory=list)
    fetched: FetchedBalance | None = None
    error: ServiceError | None = None
    trace: str = ""
    reports: VenueReports = field(default_factory=VenueReports)
    rights: KeyRights | None = None
    rights_error: ServiceError | None = None
    pushes: list[PushedItem] = field(default_factory=list)
    push_error: ServiceError | None = None
    # The fields that the plugin has replaced, because the venue gave new values.
    replaced: list[str] = field(default_factory=list)
    printed: str = ""
    # What is still open after the account's session was closed: names of tasks, and texts of warnings.
    left_tasks: list[str] = field(default_factory=list)
    left_open: list[str] = field(default_factory=list)

    @property
    def source(self) -> str:
        """What answered, without its address."""
        if self.live:
            return "the real venue"
        return self.simulator or "an address in the venue's place"


def load_project(project: PluginProject) -> LoadedProject:
    """Load the plugin as the service does. Raises NotLoaded with the service's own sentence and the author's frames."""
    with _overhearing() as overheard:
        try:
            plugin = load_entry_point(project.point)
        except PluginRejected as rejected:
            origin = rejected.__cause__ or rejected.__context__
            files = _files(project)
            own = origin is not None and has_own_frame(origin, files)
            trace = describe_trace(origin, files) if origin is not None and own else ""
            raise NotLoaded(str(rejected), trace, overheard.getvalue()) from None
    # An entry point that was read from a folder has no record of installation.
    plugin.info = project.info
    return LoadedProject(project, plugin, _files(project), overheard.getvalue())


def _files(project: PluginProject) -> AuthorsFiles:
    name = project.point.module
    module = sys.modules.get(name)
    return files_of(name, getattr(module, "__file__", None), project.folder)


@contextlib.contextmanager
def _overhearing() -> Iterator[io.StringIO]:
    """What is printed inside, to either stream."""
    heard = _Bounded()
    with contextlib.redirect_stdout(heard), contextlib.redirect_stderr(heard):
        yield heard


class _Bounded(io.StringIO):
    """Keeps the beginning of what is written."""

    def write(self, text: str) -> int:
        if self.tell() < _MOST_PRINTED:
            super().write(text)
        return len(text)


def simulator_class(project: PluginProject, listing: Listing) -> type[LoopbackVenue] | None:
    """The simulator of a listing that the plugin's distribution names; None if it names none."""
    classes = []
    for point in project.simulators:
        try:
            classes.append(point.load())
        except Exception as error:
            raise CannotTry(
                f"The simulator {point.value} cannot be imported: {type(error).__name__}: {error}. Correct it, or give "
                "an address with --url."
            ) from error
    for found in classes:
        if getattr(found, "exchange_id", "") == listing.metadata.id:
            return found  # type: ignore[no-any-return]
    return classes[0] if len(classes) == 1 and not getattr(classes[0], "exchange_id", "") else None


@asynccontextmanager
async def open_simulator(loaded: LoadedProject, listing: Listing, wish: Wish) -> AsyncIterator[tuple[DemoVenue, str]]:
    """The running simulator of a listing and its class's name. Raises CannotTry if there is none."""
    found = simulator_class(loaded.project, listing)
    if found is None or not issubclass(found, DemoVenue):
        lacks = "is not a DemoVenue, so it has no credential to try" if found is not None else "is not there"
        raise CannotTry(
            f"A simulator of {listing.metadata.id} {lacks}. Name one below "
            '[project.entry-points."exchange_service.simulators"], or try an address with --url, or the real venue '
            "with --live."
        )
    async with found() as venue:
        yield venue, found.__name__


def simulated_credential(venue: DemoVenue, wish: Wish) -> Credential:
    """The simulator's credential for the situation or trouble. Raises CannotTry if it has none such."""
    name, kind, known = (
        (wish.trouble, "trouble", TROUBLES) if wish.trouble else (wish.situation, "situation", SITUATIONS)
    )
    # A simulator may treat a name that it does not know as the usual account.
    if name not in known:
        raise CannotTry(f"There is no {kind} {name!r}. The names are: {', '.join(known)}.")
    row = venue.troubled_credential(name) if wish.trouble else venue.demo_credential(name)
    if row is None:
        raise CannotTry(f"{type(venue).__name__} has no account with the {kind} {name!r}.")
    return Credential.from_texts(
        {name: value for name, value in row.items() if name != "extra_metadata"}, row.get("extra_metadata") or {}
    )


def checked_credential(listing: Listing, credential: Credential) -> Credential:
    """The credential as it would be stored. Raises CredentialInvalid if it would be refused then."""
    credential = stored_form(listing.metadata, credential)
    if missing := missing_fields(listing.metadata, credential):
        raise CredentialInvalid(f"{', '.join(missing)} missing.", advice="Give every required field of the listing.")
    return credential


async def try_plugin(
    loaded: LoadedProject, listing: Listing, wish: Wish, credential: Credential, where: str, *, venue: Any = None
) -> Trial:
    """Read one balance, and what else the wish says. An error of the plugin or its venue is in the result; raises
    ExchangeUnknown, FieldInvalid and NotSupported for what the listing does not have.

    `wish.url`, if it is set, takes the place of the venue's address. `venue` is a simulator to be moved while pushes
    are followed.
    """
    registry = Registry((loaded.plugin,))
    account, listing = registry.account(_USER, listing.metadata.id, wish.environment, wish.account_type)
    environment = venue_environment(listing.metadata, account, credential).name
    secrets = credential_texts(credential, listing.metadata)[0]
    for name, value in listing.plugin.settings.items():
        if isinstance(value, Secret):
            secrets.add(name, value.reveal())
    masker = Masker(secrets)
    simulator = type(venue).__name__ if venue is not None else ""
    trial = Trial(listing, account, environment, masker, credential, where, loaded.files, wish.live, simulator)
    tap = HttpTap()
    trial.requests = tap.requests
    with _overhearing() as overheard, warnings.catch_warnings(record=True) as warned, LoopWatch(loaded.files) as watch:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ResourceWarning)
        run = _Run(trial, wish, watch, tap)
        try:
            await run.make(venue)
        finally:
            await run.close()
            gc.collect()
    _learn_secrets(trial)
    trial.blockings, trial.printed = watch.blockings, overheard.getvalue()
    trial.left_open = [str(item.message) for item in warned if issubclass(item.category, ResourceWarning)]
    return trial


def _learn_secrets(trial: Trial) -> None:
    """Hide also the tokens that the venue has given for the credential, wherever they are sent again."""
    for seen in trial.requests:
        for body in (bytes(seen.answer), *(message.text.encode() for message in seen.messages)):
            try:
                value = json.loads(body)
            except (ValueError, RecursionError):
                continue
            for name, text in secrets_given(value):
                trial.masker.secrets.add(f"{name} of an answer", text)


class _Run:
    """A trial while it runs: the plugin's hooks are observed, its session has a tap."""

    def __init__(self, trial: Trial, wish: Wish, watch: LoopWatch, tap: HttpTap) -> None:
        self._trial = trial
        self._wish = wish
        self._watch = watch
        self._pool = VenueHttpPool(timeout=wish.timeout, tap=tap)
        listing = trial.listing

        async def opened(_reference: CredentialReference) -> Credential:
            return trial.credential

        overrides = {listing.metadata.id: wish.url} if wish.url else {}
        self._sessions = Sessions(opened, self._pool, overrides=overrides, replace_credential=self._replace)
        reference = CredentialReference(trial.account.stored(), trial.account.stored(), "1")
        self._target = Target(trial.account, listing, reference, reports=trial.reports)
        self._observer = _observer(self)

    async def _replace(
        self, account: Account, version: str, listing: Listing, changes: Mapping[str, Secret]
    ) -> str | None:
        """Keep what the plugin replaces for the rest of the trial, and show it nowhere."""
        for name, value in changes.items():
            self._trial.masker.secrets.add(name, value.reveal())
        self._trial.credential = self._trial.credential.with_fields(changes)
        self._trial.replaced = sorted({*self._trial.replaced, *changes})
        return version

    async def make(self, venue: Any) -> None:
        manager = self._trial.listing.plugin.manager
        assert manager is not None
        manager.register(self._observer, "trial")
        try:
            await self._fetch()
            if self._wish.check_credential and self._trial.error is None:
                await self._check()
            if self._wish.watch and self._trial.error is None:
                await self._follow(venue)
        finally:
            manager.unregister(self._observer)

    async def _fetch(self) -> None:
        trial = self._trial
        # The first import takes its time, which is not the plugin's.
        await self._pool.loaded()
        trial.began = time.perf_counter()
        try:
            trial.fetched = await self._sessions.fetch(self._target, self._deadline(), Priority())
        except ServiceError as error:
            trial.error = error
        trial.seconds, trial.busy = time.perf_counter() - trial.began, self._watch.busy

    async def _check(self) -> None:
        try:
            self._trial.rights = await self._sessions.key_rights(self._target, self._deadline())
        except ServiceError as error:
            self._trial.rights_error = error

    async def _follow(self, venue: Any) -> None:
        began = time.perf_counter()
        moving = asyncio.create_task(_keep_moving(venue), name="moving simulator") if venue is not None else None
        try:
            async with (
                asyncio.timeout(self._wish.watch),
                contextlib.aclosing(self._sessions.watch(self._target)) as items,
            ):
                async for item in items:
                    self._trial.pushes.append(PushedItem(time.perf_counter() - began, item.balance))
        except TimeoutError:
            pass
        except ServiceError as error:
            self._trial.push_error = error
        finally:
            if moving is not None:
                moving.cancel()

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._wish.timeout

    async def close(self) -> None:
        """Close the account's session as the service does, and see what the plugin leaves."""
        await self._sessions.close()
        await self._trial.listing.plugin.state.close()
        await self._pool.close()
        left = self._watch.left_tasks()
        if left:
            await asyncio.wait(left, timeout=_ENDING)
        for task in self._watch.left_tasks():
            self._trial.left_tasks.append(task.get_name())
            task.cancel()

    async def observed(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What a hook returns; where it raised is noted before the service drops that."""
        try:
            return await self._watch.measured(work)
        except BaseException as error:
            self._note(error)
            raise

    async def observed_items(self, items: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
        """The same for a watch."""
        async with contextlib.aclosing(items):
            while True:
                try:
                    item = await self._watch.measured(anext(items))
                except StopAsyncIteration:
                    return
                except asyncio.CancelledError:
                    raise
                except BaseException as error:
                    self._note(error)
                    raise
                yield item

    def _note(self, error: BaseException) -> None:
        self._trial.trace = describe_trace(error, self._trial.files)


async def _keep_moving(venue: Any) -> None:
    while True:
        await asyncio.sleep(_MOVING)
        venue.move()


def _observer(run: _Run) -> Any:
    """An object with wrappers for the hooks that the plugin has, as pluggy takes them."""
    hooks = run._trial.listing.plugin.hook

    def fetch_balance(call: VenueCall) -> Any:
        return run.observed((yield))

    def check_credential(call: VenueCall) -> Any:
        return run.observed((yield))

    def watch_balance(call: VenueCall) -> Any:
        return run.observed_items((yield))

    made: Mapping[str, Any] = {
        function.__name__: staticmethod(_mark(wrapper=True)(function))
        for function in (fetch_balance, check_credential, watch_balance)
        if getattr(hooks, function.__name__).get_hookimpls()
    }
    return type("Observer", (), dict(made))()
