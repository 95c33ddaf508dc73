"""The events of an open accounts page: one stream of balances, shown as fragments that the page swaps in.

The names of the events are those that the page's elements wait for: "roster" for the list as a whole, "state-" and
"figures-" with an account's mark for one account, "headline", "notice", "spoken" and "over".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.duration_pb2 import Duration
from markupsafe import Markup
from sse_starlette import ServerSentEvent

from exchange_service.accounts.v1.account_service_pb2 import StoredAccount
from exchange_service.console.api import Api, ApiError
from exchange_service.console.exchange_names import ExchangeName
from exchange_service.console.figures import AccountKey, Headline, LiveAccount, headline_of
from exchange_service.console.pages import render_fragment, render_in_turns
from exchange_service.v1.exchange_service_pb2 import (
    AccountErrorEvent,
    AccountSelector,
    AccountState,
    HeartbeatEvent,
    StreamBalancesRequest,
    StreamBalancesResponse,
)

# Seconds between two balances of one account, and between two headlines.
_MIN_INTERVAL = 1
_HEADLINE_INTERVAL = 1.0
# Seconds after which a page notices that its session has ended.
_SESSION_INTERVAL = 1.0
# As many accounts as a stream follows.
_MOST_KNOWN = 200
# Milliseconds after which a browser tries again to connect.
_RETRY = 1000
# After these the stream is opened again; after others it is over. A service that shuts down ends the page's connection,
# and the browser comes back to the next one.
_RESUMABLE = frozenset(
    (
        "CALLER_RATE_LIMITED",
        "SERVICE_OVERLOADED",
        "STORE_UNAVAILABLE",
        "STREAM_LIFETIME_REACHED",
        "SUBSCRIBER_TOO_SLOW",
    )
)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
# No account has this name: naming it as known makes the stream begin with the list of the accounts it follows.
_NOBODY = AccountSelector(exchange_id="-", unconfirmed=True)


@dataclass(frozen=True, slots=True)
class Changes:
    """What an event has changed: the list itself, accounts' figures, or only their states; and sentences to speak."""

    roster: bool = False
    figures: tuple[LiveAccount, ...] = ()
    states: tuple[LiveAccount, ...] = ()
    spoken: tuple[str, ...] = ()


@dataclass
class LiveAccounts:
    """A user's accounts as an open page has them. `names` are the exchanges', by id."""

    names: Mapping[str, ExchangeName]
    accounts: dict[AccountKey, LiveAccount] = field(default_factory=dict)
    # Whether the stream has said which accounts it follows.
    began: bool = False

    def add_stored(self, stored: Sequence[StoredAccount]) -> None:
        """The accounts that are stored, before anything is read of them."""
        for account in stored:
            self._find(AccountKey(account.exchange_id, account.environment)).stored = account

    def in_order(self) -> list[LiveAccount]:
        """The accounts by name, production first."""
        return sorted(
            self.accounts.values(), key=lambda account: (account.name.casefold(), account.key.environment, account.key)
        )

    def shown(self) -> list[LiveAccount]:
        """Those that a page shows, in order: of more than a stream follows, the followed ones first."""
        accounts = self.in_order()
        if len(accounts) > _MOST_KNOWN:
            accounts.sort(key=lambda account: account.followed is False)
        return accounts[:_MOST_KNOWN]

    def apply(self, event: StreamBalancesResponse) -> Changes:
        """Take an event of the stream in."""
        kind = event.WhichOneof("event")
        if kind == "heartbeat":
            return self._apply_heartbeat(event.heartbeat)
        if kind == "account_error":
            return self._apply_error(event.account_error)
        if kind != "balance":
            return Changes()
        balance = event.balance.balance
        key = AccountKey(balance.exchange_id, balance.environment, balance.account_type)
        is_new = key not in self.accounts
        account = self._find(key)
        recovered = account.fault is not None
        account.take_balance(balance, event.balance.freshness)
        spoken = (f"{account.name} can be read again.",) if recovered else ()
        return Changes(roster=is_new, figures=(account,), spoken=spoken)

    def _apply_error(self, event: AccountErrorEvent) -> Changes:
        key = AccountKey(event.exchange_id, event.environment, event.account_type)
        is_new = key not in self.accounts
        account = self._find(key)
        said = account.fault is not None and account.fault.reason == event.error.reason
        account.fault, account.followed = event.error, True
        spoken = () if said else (f"{account.name}: {event.error.message}",)
        return Changes(roster=is_new, figures=(account,), spoken=spoken)

    def _apply_heartbeat(self, event: HeartbeatEvent) -> Changes:
        followed = {_key(state): state for state in event.accounts}
        gone = [key for key, account in self.accounts.items() if key not in followed and account.followed]
        # Stored, and not served by any plugin.
        left = [account for key, account in self.accounts.items() if key not in followed and account.followed is None]
        came = [key for key in followed if key not in self.accounts]
        for key in gone:
            del self.accounts[key]
        for account in left:
            account.followed = False
        states = tuple(self._take_state(key, state) for key, state in followed.items())
        is_first, self.began = not self.began, True
        return Changes(roster=bool(gone or came or left or (is_first and not states)), states=states)

    def _take_state(self, key: AccountKey, state: AccountState) -> LiveAccount:
        account = self._find(key)
        account.followed = True
        if state.HasField("delivery"):
            account.delivery = state.delivery
        confirmed = account.balance is not None and account.balance.version == state.version
        if state.HasField("age") and confirmed and not state.catching_up:
            account.true_at = time.monotonic() - state.age.ToTimedelta().total_seconds()
        return account

    def _find(self, key: AccountKey) -> LiveAccount:
        if key not in self.accounts:
            entry = self.names.get(key.exchange_id, ExchangeName(key.exchange_id))
            self.accounts[key] = LiveAccount(key, entry.name, entry.credential_of or key.exchange_id)
        return self.accounts[key]

    def headline(self) -> Headline:
        """The sums over all accounts."""
        return headline_of(self.in_order())

    def known(self) -> list[AccountSelector]:
        """What the page has, to go on with a stream that has ended."""
        known = [
            AccountSelector(
                exchange_id=key.exchange_id,
                environment=key.environment,
                account_type=key.account_type,
                known_version=account.balance.version if account.balance is not None else 0,
                unconfirmed=account.balance is None or account.failed is not None or account.stale is not None,
            )
            for key, account in self.accounts.items()
            if account.followed
        ]
        return known[-_MOST_KNOWN:] or [_NOBODY]


def _key(state: AccountState) -> AccountKey:
    return AccountKey(state.exchange_id, state.environment, state.account_type)


def stream_request(user: str, live: LiveAccounts) -> StreamBalancesRequest:
    """The request for all accounts of the user, going on from what the page has. Its first event is a heartbeat."""
    return StreamBalancesRequest(user_id=user, min_interval=Duration(seconds=_MIN_INTERVAL), known=live.known())


@dataclass(slots=True)
class _Feed:
    """The stream of an open page, read by a task of its own, which ends the call in any case."""

    api: Api
    user: str
    live: LiveAccounts
    queue: asyncio.Queue[StreamBalancesResponse | ApiError] = field(default_factory=lambda: asyncio.Queue(1))

    async def run(self) -> None:
        """Read until the stream is over for good; what it met is the queue's last item."""
        pause = _FIRST_PAUSE
        while True:
            error = await self._read()
            await self.queue.put(error)
            if error.reason not in _RESUMABLE:
                return
            # A stream that ended by its age, or because the page was slow, may be opened at once.
            await asyncio.sleep(max(error.retry_delay or 0.0, pause))
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _read(self) -> ApiError:
        try:
            async with aclosing(self.api.stream_balances(stream_request(self.user, self.live))) as events:
                async for event in events:
                    await self.queue.put(event)
        except ApiError as error:
            return error
        return ApiError("SERVICE_FAILED", "The stream has ended without a reason.")


@asynccontextmanager
async def _running(feed: _Feed) -> AsyncIterator[None]:
    task = asyncio.create_task(feed.run(), name="balances of an open page")
    try:
        yield
    finally:
        # Not awaited: what ends this page may interrupt each wait. The task ends its call by itself.
        task.cancel()


@dataclass(slots=True)
class PageEvents:
    """Makes the events of one page."""

    live: LiveAccounts
    context: Mapping[str, Any]
    # When the next headline may be sent, in monotonic time; None if there is nothing new to send.
    _headline_due: float | None = None
    _headline_sent: float = 0.0
    _noticed: bool = False

    async def first(self) -> AsyncIterator[ServerSentEvent]:
        """The list as it is known before anything was read, and when to come back after the connection is lost."""
        yield ServerSentEvent(retry=_RETRY)
        yield await self._roster()
        yield self._headline()

    async def of(self, changes: Changes) -> AsyncIterator[ServerSentEvent]:
        """The events of what has changed, without the headline."""
        if self._noticed:
            self._noticed = False
            yield _event("notice", "")
        if changes.roster:
            yield await self._roster()
        else:
            for account in changes.figures:
                yield self._state(account)
                yield self._figures(account)
            for account in changes.states:
                yield self._state(account)
        for sentence in changes.spoken:
            yield _event("spoken", render_fragment("_spoken.html", {"sentence": sentence}))
        if self._headline_due is None and (changes.roster or changes.figures or changes.states):
            self._headline_due = self._headline_sent + _HEADLINE_INTERVAL

    def seconds_to_wait(self) -> float:
        """How long to wait for the stream: until the next headline, or until the session is looked at again."""
        if self._headline_due is None:
            return _SESSION_INTERVAL
        return min(_SESSION_INTERVAL, max(0.0, self._headline_due - time.monotonic()))

    def due_headline(self) -> Iterator[ServerSentEvent]:
        """The headline, if its time has come."""
        if self._headline_due is not None and time.monotonic() >= self._headline_due:
            yield self._headline()

    def notice(self, error: ApiError) -> ServerSentEvent:
        """Why the page stands still."""
        self._noticed = True
        return _event("notice", render_fragment("_error.html", error.as_dict()))

    def _headline(self) -> ServerSentEvent:
        self._headline_due, self._headline_sent = None, time.monotonic()
        return _event("headline", render_fragment("_headline.html", {"headline": self.live.headline()}))

    async def _roster(self) -> ServerSentEvent:
        return _event("roster", await render_roster(self.live, self.context))

    def _figures(self, account: LiveAccount) -> ServerSentEvent:
        values = {**self.context, "account": account}
        return _event(f"figures-{account.key.mark}", render_fragment("_figures.html", values))

    def _state(self, account: LiveAccount) -> ServerSentEvent:
        return _event(f"state-{account.key.mark}", render_fragment("_state.html", {"account": account}))


async def render_roster(live: LiveAccounts, context: Mapping[str, Any]) -> Markup:
    """The list of accounts; `context` is what its fragments need besides."""
    shown = live.shown()
    values = {"accounts": shown, "further": len(live.accounts) - len(shown), "began": live.began}
    return await render_in_turns("_roster.html", {**context, **values})


def _event(name: str, text: str) -> ServerSentEvent:
    return ServerSentEvent(text, event=name)


async def page_events(
    api: Api, user: str, live: LiveAccounts, context: Mapping[str, Any], is_live: Callable[[], bool]
) -> AsyncGenerator[ServerSentEvent, None]:
    """The events of one open page, until it is closed or its session is over, as `is_live` says."""
    events = PageEvents(live, context)
    feed = _Feed(api, user, live)
    async with _running(feed):
        async for event in events.first():
            yield event
        while is_live():
            try:
                # Not `wait_for`, which in Python 3.11 may pass over the cancellation of a page that is closed.
                async with asyncio.timeout(events.seconds_to_wait()):
                    item = await feed.queue.get()
            except TimeoutError:
                item = None
            if isinstance(item, ApiError):
                if item.reason == "SHUTTING_DOWN":
                    return
                yield events.notice(item)
                if item.reason == "CALLER_UNKNOWN":
                    break
                if item.reason not in _RESUMABLE:
                    yield _event("over", "")
                    return
            elif item is not None:
                async for event in events.of(live.apply(item)):
                    yield event
            for event in events.due_headline():
                yield event
    for event in signed_out():
        yield event


def signed_out() -> Iterator[ServerSentEvent]:
    """The last events of a page whose session or token has ended: it shows nobody's money any more."""
    yield _event("roster", render_fragment("_signed_out.html", {}))
    yield _event("headline", "")
    yield _event("over", "")
