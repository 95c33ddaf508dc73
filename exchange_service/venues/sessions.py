"""A venue session per account: its opened credential and its state, made on demand, closed when idle.

This is where the host calls a plugin, so it is also where a plugin is kept honest: within its deadline, with only its
own errors, and with an answer of the promised shape.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import structlog

from exchange_service.credentials import CredentialReference
from exchange_service.errors import (
    CredentialInvalid,
    FeatureNotEnabled,
    NotSupported,
    PluginFailed,
    ServiceError,
    VenueError,
    VenueTimeout,
    leaves,
)
from exchange_service.model import (
    ALL_ACCOUNT_TYPES,
    SANDBOX,
    Account,
    AssetBalance,
    Balance,
    Credential,
    Environment,
    ExchangeMetadata,
    KeyRights,
    Summary,
    VenueAccount,
)
from exchange_service.observability.redaction import LIVE, Held, is_secret_name
from exchange_service.plugin_api import VenueCall
from exchange_service.plugin_kit.several_accounts import combined_summary
from exchange_service.plugin_kit.state import State
from exchange_service.venues.http import VenueHttpPool
from exchange_service.venues.registry import Listing
from exchange_service.wire.balances import FetchedBalance, fetched_balance

T = TypeVar("T")

# More rows than any venue lists assets; a plugin that answers more is broken.
MAX_ROWS = 10_000
_SWEEP_INTERVAL = 30.0
# Collected before any plugin is imported, so that these are ours alone.
_VENUE_LEAVES = frozenset(leaves(VenueError))

log = structlog.get_logger(__name__)


class Venues(Protocol):
    """Reads accounts through their plugins, wherever those run."""

    async def fetch(
        self, reference: CredentialReference, listing: Listing, deadline: float, *, account_type: str = ""
    ) -> FetchedBalance:
        """Ask the venue for the account's balance; `deadline` is in the event loop's time, `account_type` as in
        `Account`.

        Raises a VenueError, PluginFailed, PluginUnavailable, or what opening the credential raises.
        """

    async def key_rights(self, reference: CredentialReference, listing: Listing, deadline: float) -> KeyRights:
        """Ask the venue what the account's key may do, as far as its plugin can tell. Raises as `fetch` does."""

    def forget(self, account: Account) -> None:
        """Close the account's session, for example because its credential is gone; soon, and beside the caller."""

    async def close(self) -> None:
        """Close every session."""


@dataclass(slots=True)
class _Session:
    """One account's opened credential and state, while it is in use or was lately."""

    version: str
    opened: asyncio.Task[Credential]
    state: State = field(default_factory=State)
    users: int = 0
    idle_since: float = 0.0
    # Another version has taken its place, or it was forgotten; it is closed when its last call ends.
    retired: bool = False
    # While it is open, no log line shows what it opened.
    held: Held | None = None


class Sessions:
    """Fetches balances through the plugins that run in this process, one session for each account; see `Venues`."""

    def __init__(
        self,
        open_credential: Callable[[CredentialReference], Awaitable[Credential]],
        http: VenueHttpPool,
        *,
        overrides: Mapping[str, str] | None = None,
        idle_timeout: float = 300.0,
    ) -> None:
        self._open_credential = open_credential
        self._http = http
        self._overrides = dict(overrides or {})
        self._idle_timeout = idle_timeout
        self._sessions: dict[Account, _Session] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        # Calls that ran past their deadline and were cancelled, with the time of that, until they have ended.
        self._left_behind: dict[asyncio.Task[Any], float] = {}

    async def fetch(
        self, reference: CredentialReference, listing: Listing, deadline: float, *, account_type: str = ""
    ) -> FetchedBalance:
        """See `Venues`."""

        async def read(call: VenueCall) -> FetchedBalance:
            answer = _checked(await listing.plugin.hook.fetch_balance(call=call), listing)
            balance = _with_something_read(_asked_for(answer, call))
            if call.environment.name != call.account.environment:
                note = f"Read from {call.exchange.name}'s {call.environment.name}, which the stored metadata choose."
                balance = replace(balance, notes=(*balance.notes, note))
            return _written(balance, listing)

        return await self._called(reference, listing, deadline, read, account_type)

    async def key_rights(self, reference: CredentialReference, listing: Listing, deadline: float) -> KeyRights:
        """See `Venues`."""

        async def read(call: VenueCall) -> KeyRights:
            if not listing.plugin.hook.check_credential.get_hookimpls():
                return KeyRights()
            rights = await listing.plugin.hook.check_credential(call=call)
            if not isinstance(rights, KeyRights):
                name = listing.plugin.info.name
                raise PluginFailed(f"The plugin {name} answered with {type(rights).__name__} in place of KeyRights.")
            return rights

        return await self._called(reference, listing, deadline, read)

    async def _called(
        self,
        reference: CredentialReference,
        listing: Listing,
        deadline: float,
        read: Callable[[VenueCall], Awaitable[T]],
        account_type: str = "",
    ) -> T:
        """Let `read` call the plugin with the account's session, within the deadline."""
        session = self._session(reference)
        session.users += 1
        try:
            credential = await asyncio.shield(session.opened)
            if session.held is None:
                session.held = LIVE.hold(_secret_texts(credential, listing.metadata))
            account = replace(reference.account, account_type=account_type)
            call = self._call(listing, account, credential, session.state, deadline)
        except BaseException:
            self._release(session)
            raise
        loop = asyncio.get_running_loop()
        task = loop.create_task(_guarded(listing, call, read), name=f"fetch {call.exchange.id}")
        # Not before the hook has ended: one that was left behind at its deadline still uses the state.
        task.add_done_callback(lambda _: self._release(session))
        return await self._bounded(task, listing, call)

    async def _bounded(self, task: asyncio.Task[T], listing: Listing, call: VenueCall) -> T:
        """The plugin's answer within the deadline. A plugin that ignores its cancellation is left behind, not
        awaited."""
        try:
            done, _ = await asyncio.wait({task}, timeout=call.remaining())
        except asyncio.CancelledError:
            self._leave_behind(task)
            raise
        if not done:
            self._leave_behind(task)
            raise VenueTimeout(f"{call.exchange.name} did not answer in time.")
        if task.cancelled():
            raise PluginFailed(f"The plugin {listing.plugin.info.name} cancelled its own call.")
        return task.result()

    def _leave_behind(self, task: asyncio.Task[Any]) -> None:
        task.cancel()
        self._left_behind[task] = asyncio.get_running_loop().time()
        task.add_done_callback(self._ended_late)

    def _ended_late(self, task: asyncio.Task[Any]) -> None:
        self._left_behind.pop(task, None)
        if not task.cancelled():
            # Taken, because nobody waits for it any more and asyncio would log it.
            task.exception()

    def stuck_calls(self, seconds: float) -> int:
        """How many calls still run although they were cancelled more than `seconds` ago."""
        limit = asyncio.get_running_loop().time() - seconds
        return sum(since < limit for since in self._left_behind.values())

    def _release(self, session: _Session) -> None:
        session.users -= 1
        session.idle_since = asyncio.get_running_loop().time()
        self._close_if_done(session)

    def _close_if_done(self, session: _Session) -> None:
        """Close a retired session that nobody uses, beside the call: a plugin's closing may take its time."""
        if session.retired and not session.users:
            if session.held is not None:
                session.held.release()
            task = asyncio.get_running_loop().create_task(session.state.close(), name="session closing")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _session(self, reference: CredentialReference) -> _Session:
        session = self._sessions.get(reference.account)
        failed = session is not None and session.opened.done() and not _succeeded(session.opened)
        if session is not None and session.version == reference.version and not failed:
            return session
        self._start_sweeper()
        opening = asyncio.ensure_future(self._open_credential(reference))
        opening.add_done_callback(_succeeded)
        self._sessions[reference.account] = new = _Session(reference.version, opening)
        if session is not None:
            # A credential that has changed must not be used through an old token or client any more.
            self._retire(session)
        return new

    def _call(
        self, listing: Listing, account: Account, credential: Credential, state: State, deadline: float
    ) -> VenueCall:
        metadata = listing.metadata
        environment = venue_environment(metadata, account, credential)
        override = self._overrides.get(f"{metadata.id}.{environment.name}") or self._overrides.get(metadata.id, "")
        return VenueCall(
            exchange=metadata,
            account=account,
            environment=environment,
            credential=credential,
            http=self._http.http(metadata, environment, override).for_call(deadline),
            public_http=self._http.http(metadata, environment, override, public=True).for_call(deadline),
            deadline=deadline,
            plugin_state=listing.plugin.state,
            account_state=state,
            override=override,
        )

    def _retire(self, session: _Session) -> None:
        session.retired = True
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
        if self._closing:
            await asyncio.wait(self._closing)


def _secret_texts(credential: Credential, metadata: ExchangeMetadata) -> Iterator[str]:
    """What of the credential is a secret, by its listing's word where it has one; an account's number may be shown."""
    declared = {asked.name: asked.secret for asked in metadata.credential_fields}
    for name in ("api_key", "api_secret", "passphrase"):
        if declared.get(name, True):
            yield getattr(credential, name).reveal()
    for name, value in credential.metadata.items():
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
        raise CredentialInvalid(f"extra_metadata.environment names none that {metadata.name} has.")
    return environment


def _succeeded(task: asyncio.Future[Credential]) -> bool:
    return not task.cancelled() and task.exception() is None


async def _guarded(listing: Listing, call: VenueCall, read: Callable[[VenueCall], Awaitable[T]]) -> T:
    """Call a hook and let only our own errors out: another exception's text may hold a signed URL."""
    name = listing.plugin.info.name
    try:
        return await read(call)
    except PluginFailed:
        raise
    except VenueError as error:
        raise _as_ours(error, name) from None
    except TimeoutError:
        raise VenueTimeout(f"{call.exchange.name} did not answer in time.") from None
    except asyncio.CancelledError:
        raise
    # SystemExit would end the service if it left the task.
    except BaseException as error:
        log.error(
            "plugin.failed", plugin=name, exchange=call.exchange.id, error=type(error).__name__, at=_places(error)
        )
        raise PluginFailed(
            f"The plugin {name} ({listing.plugin.info.distribution}) failed with {type(error).__name__}. "
            "Report it to the plugin's author; the service's log says where."
        ) from None


def _as_ours(error: VenueError, plugin: str) -> ServiceError:
    """A plugin's error as the status table has it: a plugin may derive classes of its own, and give any delay."""
    leaf = next((kind for kind in type(error).__mro__ if kind in _VENUE_LEAVES), None)
    if leaf is None:
        return PluginFailed(f"The plugin {plugin} failed with {type(error).__name__}, which says nothing.")
    try:
        delay = error.given_delay if error.retry_after == leaf.default_retry_after else error.retry_after
        ours = leaf(error.message, retry_after=delay, advice=error.advice)
    except (AttributeError, TypeError):
        return PluginFailed(f"The plugin {plugin} failed with {type(error).__name__}, which holds no text.")
    # One that was changed after it was made may hold what cannot be sent.
    same = type(error) is leaf and _content(error) == _content(ours)
    return error if same else ours


def _content(error: ServiceError) -> tuple[str, str | None, float | None]:
    return error.message, error.advice, error.retry_after


def _places(error: BaseException) -> list[str]:
    """The last places that the exception passed, without its text or any value: the plugin's own line among them."""
    places, trace = [], error.__traceback__
    while trace is not None:
        places.append(f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}")
        trace = trace.tb_next
    return places[-4:]


def _asked_for(balance: Balance, call: VenueCall) -> Balance:
    """The balance without the accounts of other types than the one that was asked for by its name.

    An account of no type stays: it is one that could not be read, so that nothing is known of it.
    """
    asked = call.account.account_type
    if asked in ("", ALL_ACCOUNT_TYPES):
        return balance
    kept = tuple(account for account in balance.venue_accounts if account.type in ("", asked))
    if not kept:
        raise FeatureNotEnabled(f"{call.exchange.name} shows no account of the type {asked} behind this credential.")
    if len(kept) == len(balance.venue_accounts):
        return balance
    return replace(balance, venue_accounts=kept, summary=combined_summary(kept))


def _with_something_read(balance: Balance) -> Balance:
    """The balance, unless none of its accounts could be read: then their error is the answer, as for a single one."""
    errors = [account.error for account in balance.venue_accounts if account.error is not None]
    if errors and len(errors) == len(balance.venue_accounts):
        # One that passes goes first: it says nothing lasting about the key.
        raise next((error for error in errors if error.transient), errors[0])
    return balance


def _checked(balance: object, listing: Listing) -> Balance:
    """The plugin's answer, if it has the promised shape; the amounts checked themselves when they were made."""
    plugin = listing.plugin.info.name
    if not isinstance(balance, Balance):
        log.error("plugin.failed", plugin=plugin, answer=type(balance).__name__)
        raise PluginFailed(f"The plugin {plugin} answered with {type(balance).__name__} in place of a Balance.")
    problem = shape_error(balance)
    if problem:
        log.error("plugin.failed", plugin=plugin, problem=problem)
        raise PluginFailed(f"The plugin {plugin} answered with a wrong balance: {problem}.")
    return balance


def _written(balance: Balance, listing: Listing) -> FetchedBalance:
    """The balance as bytes, unless it cannot be written down: a label that is no text, half of a surrogate pair, a time
    without a zone, more than can be sent."""
    try:
        return fetched_balance(balance)
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        name = listing.plugin.info.name
        raise PluginFailed(f"The plugin {name} answered with a balance that cannot be written down.") from None


def shape_error(balance: Balance) -> str:
    """What is wrong with a plugin's answer, in words; empty where nothing is."""
    places = set()
    count = 0
    for account in balance.venue_accounts:
        if not isinstance(account, VenueAccount) or not all(isinstance(part, str) for part in account.identity):
            return "an account is no VenueAccount, or named by something else than texts"
        if account.identity in places:
            return "two accounts have the same id, type and sub-account"
        places.add(account.identity)
        if not isinstance(account.summary, Summary | None) or not isinstance(account.error, ServiceError | None):
            return "an account's summary or error is of another type"
        assets = set()
        for row in account.assets:
            if not isinstance(row, AssetBalance) or not isinstance(row.asset, str) or not row.asset:
                return "a row is no AssetBalance, or has no asset"
            assets.add((row.asset, row.venue_asset))
        if len(assets) != len(account.assets):
            return "an account has two rows for one asset"
        count += len(account.assets)
    if not isinstance(balance.summary, Summary | None):
        return "its summary is of another type"
    return f"{count} rows are more than {MAX_ROWS}" if count > MAX_ROWS else ""
