"""A venue session for each account: its opened credential and its state, made on demand, closed when idle.

Here the host calls a plugin, and so here it enforces the deadline and lets only our own errors out.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import structlog

from exchange_service.credentials import CredentialReference
from exchange_service.errors import (
    CredentialInvalid,
    NotSupported,
    PluginFailed,
    ServiceError,
    ServiceOverloaded,
    VenueError,
    VenueTimeout,
    VenueUnavailable,
)
from exchange_service.model import (
    SANDBOX,
    SECRET_FIELDS,
    Account,
    Credential,
    Environment,
    ExchangeMetadata,
    KeyRights,
)
from exchange_service.observability.redaction import LIVE, Held, is_secret_name
from exchange_service.observability.tracebacks import raised_at
from exchange_service.observability.tracing import ActiveSpan, Within, child_span, current_span, private_texts
from exchange_service.plugin_api import VenueCall
from exchange_service.plugin_kit.state import State
from exchange_service.tasks import TaskSet, retrieve_exception, without_origin
from exchange_service.venues.answer_times import noting_answers
from exchange_service.venues.answers import (
    read_balance,
    read_key_rights,
    translate_error,
    undeclared_field,
    with_problem,
)
from exchange_service.venues.blocking import BLOCKS, WATCH, Step
from exchange_service.venues.egress import Egress
from exchange_service.venues.failures import known_problem
from exchange_service.venues.fetching import Target
from exchange_service.venues.http_pool import VenueHttpPool
from exchange_service.venues.key_states import KeyState, KeyStates
from exchange_service.venues.priority import Priority
from exchange_service.venues.registry import Listing
from exchange_service.venues.replacing import ReplaceCredential, check_changes
from exchange_service.venues.watching import Pushed, Watch
from exchange_service.wire.balances import FetchedBalance

T = TypeVar("T")

_SWEEP_INTERVAL = 30.0
# The share of a call's time for which a plugin may keep the loop busy and still say that its venue is slow.
_BLOCKED_SHARE = 0.5
# Seconds that a watch which is given up has to end.
_ENDING = 0.5
# Seconds for which a call may still come with a version that was replaced: longer than a reference is cached.
_IN_FLIGHT = 60.0
# Seconds for which a request may go on after its call's deadline where a token rotates: its answer holds the only one
# that still works.
_FOR_TOKENS = 5.0
# Seconds that a refresh has to end when its session is closed, for the same reason.
_LAST_REFRESH = 1.5
# Credentials of one session that log lines hide: the newest, and the one before.
_MOST_HIDDEN = 2
# The innermost places of an exception that a log line names: the plugin's own among them, also below our session.
_MOST_PLACES = 6
# Seconds that are no blocking, however little time a call had.
_LEAST_BLOCKED = 0.2

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Session:
    """One account's opened credential and state, while it is in use or was lately."""

    version: str
    opened: asyncio.Future[Credential]
    state: State = field(default_factory=State)
    users: int = 0
    idle_since: float = 0.0
    # Another version has taken its place, or it was forgotten; it is closed when its last call ends.
    retired: bool = False
    # While it is open, no log line shows what it opened.
    held: list[Held] = field(default_factory=list)
    hidden: asyncio.Future[Credential] | None = None
    # Shared with the other sessions of the same key; taken once the credential is opened.
    shared: KeyState | None = None
    # The credential by which that was found last.
    shared_by: Credential | None = field(default=None, repr=False)
    # Watches that run with it, to be ended when it is retired.
    watches: set[asyncio.Task[None]] = field(default_factory=set)
    # Calls in progress: they are given what their plugin replaces.
    calls: list[VenueCall] = field(default_factory=list)
    # Versions that the plugin has replaced, and until when a call may still bring them, in the loop's time.
    earlier: dict[str, float] = field(default_factory=dict)
    # Whether its plugin may replace a token.
    rotates: bool = False

    def serves(self, version: str) -> bool:
        """Whether it is the session of this version, or of one that its plugin has made this one of a moment ago."""
        return version == self.version or self.earlier.get(version, 0.0) > asyncio.get_running_loop().time()

    def has_failed(self) -> bool:
        """Whether its credential could not be opened."""
        return self.opened.done() and not _has_opened(self.opened)

    def follow(self, version: str) -> None:
        """Become the session of a version that the plugin has made of its own."""
        if version != self.version:
            now = asyncio.get_running_loop().time()
            self.earlier = {name: until for name, until in self.earlier.items() if until > now}
            self.earlier[self.version] = now + _IN_FLIGHT
            self.version = version

    def use(self, credential: Credential, metadata: ExchangeMetadata) -> None:
        """Give this credential to the calls in progress, and to those that come."""
        self.opened = asyncio.get_running_loop().create_future()
        self.opened.set_result(credential)
        self.show(credential)
        self.hide(credential, metadata)

    def show(self, credential: Credential) -> None:
        """Give this credential to the calls in progress."""
        for call in self.calls:
            # The plugin itself changes nothing there.
            object.__setattr__(call, "credential", credential)

    def hide(self, credential: Credential, metadata: ExchangeMetadata) -> None:
        """Keep this credential out of log lines."""
        self.hidden, self.rotates = self.opened, bool(metadata.rotating_fields)
        self.held.append(LIVE.hold(_secret_texts(credential, metadata)))
        for held in self.held[:-_MOST_HIDDEN]:
            held.release()
        del self.held[:-_MOST_HIDDEN]


class Sessions:
    """Fetches balances through the plugins that run in this process, one session for each account; see `Venues`."""

    def __init__(
        self,
        open_credential: Callable[[CredentialReference], Awaitable[Credential]],
        http: VenueHttpPool,
        *,
        overrides: Mapping[str, str] | None = None,
        idle_timeout: float = 300.0,
        replace_credential: ReplaceCredential | None = None,
        egress: Egress | None = None,
    ) -> None:
        self.egress = egress or Egress()
        self._open_credential = open_credential
        self._replace_credential = replace_credential
        self._http = http
        self._overrides = dict(overrides or {})
        self._idle_timeout = idle_timeout
        self._sessions: dict[Account, _Session] = {}
        self._key_states = KeyStates()
        self._sweeper: asyncio.Task[None] | None = None
        self._closing = TaskSet()
        # Calls that ran past their deadline and were cancelled, with the time of that, until they have ended.
        self._left_behind: dict[asyncio.Task[Any], float] = {}

    async def fetch(self, target: Target, deadline: float, priority: Priority) -> FetchedBalance:
        """See `Venues`; `priority` changes nothing here."""
        listing = target.listing

        async def read(call: VenueCall) -> FetchedBalance:
            answer = await listing.plugin.hook.fetch_balance(call=call)
            if call.reports.answered_at is None:
                # It came by another way than the guarded session.
                call.reports.answered_at = time.monotonic()
            return await read_balance(answer, listing, call)

        return await self._call_plugin(target, deadline, read, "fetch_balance")

    async def key_rights(self, target: Target, deadline: float) -> KeyRights:
        """See `Venues`."""
        listing = target.listing

        async def read(call: VenueCall) -> KeyRights:
            if not listing.plugin.hook.check_credential.get_hookimpls():
                return KeyRights()
            return read_key_rights(await listing.plugin.hook.check_credential(call=call), listing)

        return await self._call_plugin(target, deadline, read, "check_credential")

    async def watch(self, target: Target) -> AsyncGenerator[Pushed, None]:
        """See `Venues`."""
        listing = target.listing
        if not listing.plugin.hook.watch_balance.get_hookimpls():
            raise NotSupported(f"The plugin {listing.plugin.info.name} follows no pushes.")
        session, call = await self._begin(target, math.inf)
        watch = Watch()

        async def run(call: VenueCall) -> None:
            await watch.run(listing, call)

        task = asyncio.create_task(_run_hook(listing, call, run), name=f"watch {call.exchange.id}")
        session.watches.add(task)
        task.add_done_callback(lambda _: self._on_watch_end(session, call, task, watch))
        try:
            async with aclosing(watch.items(lambda answer: _read_apart(answer, listing, call))) as items:
                async for item in items:
                    yield item
        finally:
            if not task.done():
                self._leave_behind(task)
                # Who follows the account next, or has the slot next, finds its subscription ended.
                await asyncio.wait({task}, timeout=_ENDING)

    def _on_watch_end(self, session: _Session, call: VenueCall, task: asyncio.Task[None], watch: Watch) -> None:
        session.watches.discard(task)
        error = None if task.cancelled() else task.exception()
        by_us = not isinstance(error, ServiceError)
        if not isinstance(error, ServiceError):
            # The credential has changed or gone.
            error = VenueUnavailable("The account's session was closed.", retry_after=0.0)
        watch.end(without_origin(error), drop=by_us)
        self._release(session, call)

    async def _begin(self, target: Target, deadline: float) -> tuple[_Session, VenueCall]:
        """The account's session, which is in use until `_release`, and a call with it."""
        session = self._session(target.reference)
        session.users += 1
        try:
            credential = await self._opened(session, target)
            if session.hidden is not session.opened:
                session.hide(credential, target.listing.metadata)
            call = self._venue_call(target, credential, session, deadline)
            session.calls.append(call)
            return session, call
        except BaseException:
            self._release(session)
            raise

    async def _opened(self, session: _Session, target: Target) -> Credential:
        """The session's credential as it is now."""
        while True:
            opened = session.opened
            credential = await target.opened(asyncio.shield(opened))
            await self._http.loaded()
            # The plugin may have replaced it meanwhile.
            if session.opened is opened:
                return credential

    async def _replace(self, session: _Session, account: Account, listing: Listing, changes: Mapping[str, str]) -> bool:
        """See `VenueCall.replace_credential`."""
        if self._replace_credential is None:
            raise NotSupported("The credentials of this process are not stored by the service, and cannot be replaced.")
        checked = check_changes(listing.metadata, listing.plugin.info.name, changes)
        # What the venue was given is of no use any more, whatever becomes of the new value.
        credential = (await asyncio.shield(session.opened)).with_fields(checked)
        session.use(credential, listing.metadata)
        self._follow_key(session, listing, credential)
        version = await self._replace_credential(account, session.version, listing, checked)
        if version is not None:
            session.follow(version)
        return version is not None

    async def _call_plugin(
        self, target: Target, deadline: float, read: Callable[[VenueCall], Awaitable[T]], hook: str
    ) -> T:
        """What `read` makes of a call of the plugin with the account's session, within the deadline."""
        with Within(_hook_span(target.listing, hook)) as span:
            return await self._call_in_span(target, deadline, read, span)

    async def _call_in_span(
        self, target: Target, deadline: float, read: Callable[[VenueCall], Awaitable[T]], span: ActiveSpan | None
    ) -> T:
        listing = target.listing
        session, call = await self._begin(target, deadline)
        if span is not None:
            # An account's number may be a word, and stand in a path.
            credential = call.credential
            fields = (getattr(credential, name).reveal() for name in SECRET_FIELDS)
            span.private = private_texts((*fields, credential.metadata, call.account.user_id))
        run = _MeasuredRun(_run_apart(listing, call, read), listing.plugin.info.name)
        task = asyncio.get_running_loop().create_task(run, name=f"fetch {call.exchange.id}")
        # Not before the hook has ended: one that was left behind at its deadline still uses the state.
        task.add_done_callback(lambda _: self._release(session, call))
        return await self._wait_for(task, listing, call, run)

    async def _wait_for(self, task: asyncio.Task[T], listing: Listing, call: VenueCall, run: _MeasuredRun[T]) -> T:
        """The plugin's answer within the deadline. A plugin that ignores its cancellation is left behind and not
        awaited."""
        allowed = call.remaining()
        try:
            done, _ = await asyncio.wait({task}, timeout=allowed)
        except asyncio.CancelledError:
            self._leave_behind(task)
            raise
        if not done:
            self._leave_behind(task)
            if _has_blocked(run, allowed):
                raise _blocked(listing, run)
            raise VenueTimeout(f"{call.exchange.name} did not answer in time.")
        if task.cancelled():
            raise PluginFailed(f"The plugin {listing.plugin.info.name} cancelled its own call.")
        # Its own requests found no time left, because it had kept the loop from them.
        if isinstance(task.exception(), VenueTimeout) and _has_blocked(run, allowed):
            raise _blocked(listing, run)
        return task.result()

    def _leave_behind(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        self._left_behind[task] = asyncio.get_running_loop().time()
        task.add_done_callback(self._on_late_end)

    def _on_late_end(self, task: asyncio.Task[Any]) -> None:
        self._left_behind.pop(task, None)
        retrieve_exception(task)

    def snapshot(self) -> frozenset[Account]:
        """The accounts that have a session now."""
        return frozenset(self._sessions)

    def stuck_calls(self, seconds: float) -> int:
        """How many calls still run although they were cancelled more than `seconds` ago."""
        limit = asyncio.get_running_loop().time() - seconds
        return sum(since < limit for since in self._left_behind.values())

    def _release(self, session: _Session, call: VenueCall | None = None) -> None:
        session.users -= 1
        session.calls = [other for other in session.calls if other is not call]
        session.idle_since = asyncio.get_running_loop().time()
        self._close_if_done(session)

    def _close_if_done(self, session: _Session) -> None:
        """Close a retired session that no call uses, in a task of its own: a plugin's closing may take its time."""
        if session.retired and not session.users:
            for held in session.held:
                held.release()
            patience = _LAST_REFRESH if session.rotates else 0.0
            self._closing.start(session.state.close(patience), name="session closing")
            last = None if session.shared is None else self._key_states.release(session.shared)
            if last is not None:
                self._closing.start(last.close(), name="key state closing")

    def _session(self, reference: CredentialReference) -> _Session:
        session = self._sessions.get(reference.account)
        if session is not None and session.serves(reference.version):
            if session.has_failed():
                session.opened = self._opening(reference)
            return session
        if session is not None and session.version in reference.ancestors:
            # The plugin has made this version itself, here or in another replica: what it keeps is still the user's.
            session.follow(reference.version)
            session.opened = opening = self._opening(reference)
            opening.add_done_callback(partial(_show, session))
            return session
        self._start_sweeper()
        self._sessions[reference.account] = new = _Session(reference.version, self._opening(reference))
        if session is not None:
            # A credential that has changed must not be used through an old token or client any more.
            self._retire(session)
        return new

    def _opening(self, reference: CredentialReference) -> asyncio.Future[Credential]:
        opening = asyncio.ensure_future(self._open_credential(reference))
        opening.add_done_callback(_has_opened)
        return opening

    def serves(self, reference: CredentialReference) -> bool:
        """Whether the account has a session of this version whose credential is open, or is being opened."""
        session = self._sessions.get(reference.account)
        return session is not None and session.serves(reference.version) and not session.has_failed()

    def _venue_call(self, target: Target, credential: Credential, session: _Session, deadline: float) -> VenueCall:
        metadata = target.listing.metadata
        known = target.reference.account
        account = Account(known.user_id, known.exchange_id, known.environment, target.account.account_type)
        environment = venue_environment(metadata, account, credential)
        until = deadline + (_FOR_TOKENS if metadata.rotating_fields else 0.0)
        override = self._overrides.get(f"{metadata.id}.{environment.name}") or self._overrides.get(metadata.id, "")
        if session.shared is None:
            name = target.listing.plugin.info.name
            session.shared = self._key_states.take(name, metadata, environment.name, credential)
            session.shared_by = credential
        self._follow_key(session, target.listing, credential)
        way = self.egress.of_target(target)
        http = partial(self._http.http, metadata, environment, override, way=way)
        return VenueCall(
            exchange=metadata,
            account=account,
            environment=environment,
            credential=credential,
            http=http().for_call(until),
            public_http=http(public=True).for_call(until),
            deadline=deadline,
            plugin_state=target.listing.plugin.state,
            account_state=session.state,
            key_state=session.shared.state,
            settings=target.listing.plugin.settings,
            override=override,
            way=way.counted_as,
            reports=target.reports,
            replacing=partial(self._replace, session, known, target.listing),
        )

    def _follow_key(self, session: _Session, listing: Listing, credential: Credential) -> None:
        """Let sessions that begin with what the plugin has made of the session's key share its state."""
        if session.shared is not None and session.shared_by is not credential:
            self._key_states.follow(session.shared, listing.metadata, credential)
            session.shared_by = credential

    def _retire(self, session: _Session) -> None:
        session.retired = True
        for watch in session.watches:
            watch.cancel()
        self._close_if_done(session)

    def forget(self, account: Account) -> None:
        """See `Venues`."""
        session = self._sessions.pop(account, None)
        if session is not None:
            self._retire(session)

    def _start_sweeper(self) -> None:
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep(), name="idle sessions")

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_INTERVAL)
            limit = asyncio.get_running_loop().time() - self._idle_timeout
            for account, session in list(self._sessions.items()):
                if not session.users and session.idle_since < limit:
                    self.forget(account)

    async def close(self) -> None:
        """Close every session."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.wait({self._sweeper})
        for account in list(self._sessions):
            self.forget(account)
        await self._closing.wait()


def _hook_span(listing: Listing, hook: str) -> ActiveSpan | None:
    """The span of a call of a plugin's hook; None if nothing is traced."""
    if current_span() is None:
        return None
    attributes = {"exchange_service.plugin": listing.plugin.info.name, "exchange_service.exchange": listing.metadata.id}
    return child_span(f"plugin.{hook}", attributes)


def _secret_texts(credential: Credential, metadata: ExchangeMetadata) -> Iterator[str]:
    """The credential's secrets: the fields that its listing declares secret, and undeclared ones whose names are
    secrets' names. An account's number may be shown."""
    declared = {field.name: field.secret for field in metadata.credential_fields}
    for name in SECRET_FIELDS:
        if declared.get(name, True):
            yield getattr(credential, name).reveal()
    # Declared ones first, because only so many are held.
    for name, value in sorted(credential.metadata.items(), key=lambda item: item[0] not in declared):
        if declared.get(name, is_secret_name(name)):
            yield from _texts_in(value)


def _texts_in(value: object) -> Iterator[str]:
    """Every text within a JSON value, however deep."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            left.extend(item.values())
        elif isinstance(item, list | tuple):
            left.extend(item)


def venue_environment(metadata: ExchangeMetadata, account: Account, credential: Credential) -> Environment:
    """The venue's environment: the account's, or the one that the stored metadata choose within production."""
    chosen = account.environment
    stored = credential.metadata
    if stored.get("sandbox") is True:
        chosen = SANDBOX
    elif account.environment == "production" and isinstance(stored.get("environment"), str):
        chosen = stored["environment"]
    environment = metadata.environment(chosen)
    if environment is None:
        if chosen == SANDBOX:
            raise NotSupported(f"{metadata.name} has no sandbox that this service can reach.")
        raise CredentialInvalid(f"extra_metadata.environment names no environment of {metadata.name}.")
    return environment


def _has_opened(task: asyncio.Future[Credential]) -> bool:
    return not task.cancelled() and task.exception() is None


def _show(session: _Session, opening: asyncio.Future[Credential]) -> None:
    """Give what was opened to the calls in progress, unless the plugin has replaced it meanwhile."""
    if session.opened is opening and _has_opened(opening):
        session.show(opening.result())


def _has_blocked(run: _MeasuredRun[Any], allowed: float) -> bool:
    """Whether a run that was `allowed` so many seconds has kept the loop busy for most of them."""
    return run.busy > max(_LEAST_BLOCKED, allowed * _BLOCKED_SHARE)


def _blocked(listing: Listing, run: _MeasuredRun[Any]) -> PluginFailed:
    name, seconds = listing.plugin.info.name, round(run.busy, 1)
    log.error(
        "plugin.failed",
        plugin=name,
        exchange=listing.metadata.id,
        problem=BLOCKS,
        seconds=seconds,
        **({"at": run.blocked_at} if run.blocked_at else {}),
    )
    return with_problem(
        PluginFailed(
            f"The plugin {name} blocked its event loop for {seconds:g} s, and did not answer in time.",
            advice="Report it to the plugin's author; docs/plugins.md says what to do instead.",
        ),
        BLOCKS,
    )


class _MeasuredRun(Coroutine[Any, Any, T]):
    """A coroutine for a task to run. `busy` adds up the seconds for which its steps kept the event loop from others:
    a plugin that blocks the loop must not be taken for a slow venue. Steps of tasks that it starts are not counted.
    `blocked_at` is where the last step was that took too long."""

    def __init__(self, work: Coroutine[Any, Any, T], plugin: str) -> None:
        self._work = work
        self._plugin = plugin
        self.busy = 0.0
        self.blocked_at: list[str] = []

    def send(self, value: Any) -> Any:
        step = WATCH.begin(self._plugin)
        try:
            return self._work.send(value)
        finally:
            self._end(step)

    def throw(self, *error: Any) -> Any:
        step = WATCH.begin(self._plugin)
        try:
            return self._work.throw(*error)
        finally:
            self._end(step)

    def _end(self, step: Step) -> None:
        WATCH.end()
        self.busy += time.perf_counter() - step.began
        self.blocked_at = step.places or self.blocked_at

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._work.__await__()

    @property
    def cr_frame(self) -> Any:
        """Where it waits now, for the stack that a task shows."""
        return getattr(self._work, "cr_frame", None)


async def _run_apart(listing: Listing, call: VenueCall, read: Callable[[VenueCall], Awaitable[T]]) -> T:
    """As `_run_hook`, but an error keeps nothing of the call. The call's reports learn when the venue answered."""
    # In the context of this task alone.
    noting_answers.set(call.reports)
    call.reports.answered_at = None
    try:
        return await _run_hook(listing, call, read)
    except ServiceError as error:
        failure = without_origin(error)
    raise failure


async def _read_apart(answer: object, listing: Listing, call: VenueCall) -> FetchedBalance:
    """A whole balance that a watch has yielded, checked as an answer is; an error keeps nothing of the call."""

    async def read(call: VenueCall) -> FetchedBalance:
        return await read_balance(answer, listing, call)

    try:
        return await _run_hook(listing, call, read)
    except ServiceError as error:
        failure = without_origin(error)
    raise failure


async def _run_hook(listing: Listing, call: VenueCall, read: Callable[[VenueCall], Awaitable[T]]) -> T:
    """Call a hook and let only our own errors out: another exception's text may hold a signed URL."""
    name = listing.plugin.info.name
    try:
        return await read(call)
    except PluginFailed as error:
        log.error(
            "plugin.failed",
            plugin=name,
            exchange=call.exchange.id,
            problem=error.problem or error.text,
            # An answer is refused after the hook has ended.
            **({} if error.problem else {"at": raised_at(error, most=_MOST_PLACES)}),
        )
        raise
    # The session that the plugin was given has no connection left.
    except ServiceOverloaded:
        raise
    except VenueError as error:
        if problem := undeclared_field(error, call.exchange):
            log.error("plugin.failed", plugin=name, exchange=call.exchange.id, problem=problem)
            raise with_problem(
                PluginFailed(
                    f"The plugin {name} reads a field of the credential that its listing does not ask for.",
                    advice="Report it to the plugin's author; the service's log says which one.",
                ),
                problem,
            ) from None
        raise translate_error(error, name) from None
    except TimeoutError:
        raise VenueTimeout(f"{call.exchange.name} did not answer in time.") from None
    except asyncio.CancelledError:
        raise
    # SystemExit would end the service if it left the task.
    except BaseException as error:
        problem = known_problem(error)
        log.error(
            "plugin.failed",
            plugin=name,
            exchange=call.exchange.id,
            error=type(error).__name__,
            at=raised_at(error, most=_MOST_PLACES),
            **({"problem": problem} if problem else {}),
        )
        raise with_problem(
            PluginFailed(
                f"The plugin {name} ({listing.plugin.info.distribution}) failed with {type(error).__name__}.",
                advice="Report it to the plugin's author; the service's log says where.",
            ),
            problem,
        ) from None
