"""Lighter over its WebSocket: how it is spoken, and the watch of a wallet or of one account."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from exchange_service.plugin_api import (
    AccountUnknown,
    Balance,
    Changed,
    NotSupported,
    PushLanguage,
    Socket,
    Subscription,
    VenueCall,
    VenueError,
    VenueMalformed,
    VenueRateLimited,
    VenueUnavailable,
    as_object,
    subscribed,
)
from exchange_service_lighter import parse
from exchange_service_lighter.client import LighterClient
from exchange_service_lighter.last_read import READ, FoundAccounts, last_read
from exchange_service_lighter.pushed import HOLDINGS, MONEY, Pushed, account, holdings, money, something_left

# Which error each of Lighter's codes is.
_BY_CODE: Mapping[int, type[VenueError]] = {
    # witness: report: lev7finance/lighter-ts docs/spec/06-websocket.md
    21100: AccountUnknown,
    23000: VenueRateLimited,
    23001: VenueRateLimited,
    23002: VenueRateLimited,
    23003: VenueRateLimited,
    30009: VenueRateLimited,
    30010: VenueRateLimited,
}
# A channel of ours, as a message names it; a refusal has it only in its sentence.
_TOPIC = re.compile(rf"\b({MONEY}|{HOLDINGS})[:/]([0-9]{{1,19}})\b", re.ASCII)
# Seconds in which what belongs together comes: a trade is one message of each channel.
_SETTLING = 0.01
# Messages that may come before the greeting.
_MOST_BEFORE_GREETING = 5
# Seconds between two reads of an account for the sake of prices, if it is the only one; and for each such account, so
# that half of the sixty requests of a minute are left; and from which on it is left to the service.
_SHORTEST_PRICED, _EACH_PRICED, _LONGEST_PRICED = 10.0, 2.0, 300.0
# Seconds after which a connection that Lighter ends is opened again, beside what it says.
_AFTER_SHUTDOWN = 1.0


class LighterLanguage(PushLanguage):
    """Subscriptions by channel, pings as messages. Lighter ends a connection on which we send nothing for 2 minutes."""

    silence = 75.0
    keep_alive_every = 30.0

    async def open(self, socket: Socket) -> None:
        """Wait for the greeting."""
        for _ in range(_MOST_BEFORE_GREETING):
            if '"connected"' in await socket.receive():
                return
        raise VenueMalformed("Lighter does not greet a new connection.")

    def keep_alive(self) -> str:
        """A ping, which Lighter answers with a message."""
        return _message(type="ping")

    def subscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        """One message for each topic: a channel, a colon and the account's number."""
        return (_message(type="subscribe", channel=topic.replace(":", "/")) for topic in topics)

    def unsubscribe(self, topics: Sequence[Any]) -> Iterable[str]:
        """One message for each topic."""
        return (_message(type="unsubscribe", channel=topic.replace(":", "/")) for topic in topics)

    def reply(self, message: Any) -> str | None:
        """A pong for a ping."""
        return _message(type="pong") if message.get("type") == "ping" else None

    def read(self, message: Any) -> Iterable[tuple[str, Any]]:
        """The message with the topic that it names, and whether it is whole."""
        found = as_object(message, "the message")
        kind = found.get("type")
        if isinstance(found.get("error"), dict) or kind == "error":
            return _refusal(found)
        if not isinstance(kind, str):
            raise VenueMalformed("Lighter pushes a message without a type.")
        if kind == "shutdown":
            raise VenueUnavailable("Lighter ends this connection.", retry_after=_closing_time(found))
        action, _, channel = kind.partition("/")
        if action not in ("subscribed", "update") or channel not in (MONEY, HOLDINGS):
            return ()
        return ((_topic_of(found, channel), (action == "subscribed", found)),)

    def state(self, topic: Any, before: Any, part: Any) -> Any:
        """The topic's figures or holdings, joined from its first whole message and those that came since."""
        whole, message = part
        if topic.startswith(f"{MONEY}:"):
            return money(before, message, whole=whole)
        return holdings(before, message, whole=whole, now=asyncio.get_running_loop().time())


def _message(**members: str) -> str:
    return json.dumps(members)


def _topic_of(message: Mapping[str, Any], channel: str) -> str:
    """The message's topic. Raises VenueMalformed if it names none, or two."""
    named = message.get("channel")
    match = _TOPIC.fullmatch(named) if isinstance(named, str) else None
    if match is None or match[1] != channel or message.get("account") not in (None, int(match[2])):
        raise VenueMalformed("Lighter pushes a message that does not name its account.")
    return f"{channel}:{int(match[2])}"


def _refusal(message: Mapping[str, Any]) -> Iterable[tuple[str, VenueError]]:
    """The refusal with the topic that it names. One that names none is found by the time limit of subscribing."""
    error = message["error"] if isinstance(message.get("error"), dict) else message
    sentence = str(error.get("message", ""))
    match = _TOPIC.search(f"{error.get('channel', '')} {message.get('channel', '')} {sentence}")
    if match is None:
        return ()
    return ((f"{match[1]}:{int(match[2])}", _error(error.get("code"), sentence.lower())),)


def _error(code: Any, sentence: str) -> VenueError:
    if "auth" in sentence:
        return NotSupported("Lighter does not push this account without a token.")
    kind = _BY_CODE.get(code, VenueUnavailable) if type(code) is int else VenueUnavailable
    return kind("Lighter refused to push this account.")


def _closing_time(message: Mapping[str, Any]) -> float:
    """Seconds after which to connect again."""
    stated = message.get("close_in_ms")
    return _AFTER_SHUTDOWN + (stated / 1000 if type(stated) is int and stated > 0 else 0.0)


class _Priced:
    """How many watched accounts have open positions, whose worth moves without a message."""

    def __init__(self) -> None:
        self._count = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count one more."""
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1

    def pause(self) -> float | None:
        """Seconds until one of them is read again; None: the service's own slow reads come sooner."""
        seconds = max(_SHORTEST_PRICED, _EACH_PRICED * self._count)
        return seconds * random.uniform(0.8, 1.2) if seconds < _LONGEST_PRICED else None  # noqa: S311


async def watch(
    call: VenueCall, language: type[LighterLanguage] = LighterLanguage
) -> AsyncGenerator[Balance | Changed, None]:
    """A balance at each message of Lighter, or Changed where the messages do not tell everything. It begins when the
    account has been read, because only a read tells which accounts a wallet has."""
    client, kept, priced = LighterClient(call), await last_read(call), await _priced(call)
    while True:
        findings = await kept.get()
        topics = [f"{channel}:{index}" for index in _followed(findings) for channel in (MONEY, HOLDINGS)]
        async with subscribed(call, language(client.push_url), topics) as subscription:
            watched = _Watched(findings, subscription, priced, by_wallet=client.index is None)
            with kept.told_to(subscription):
                items = watched.now()
                while items is not None:
                    for item in items:
                        yield item
                    items = await watched.turn()


async def _priced(call: VenueCall) -> _Priced:
    async def make() -> _Priced:
        return _Priced()

    return await call.plugin_state.get("priced", make)


def _followed(findings: FoundAccounts) -> tuple[int, ...]:
    """The accounts to follow: all but pools. Raises NotSupported if there are none, or if one is of an unknown kind."""
    accounts = [found for found in findings.accounts if isinstance(found, parse.UnreadAccount) or not found.is_pool]
    if not accounts or any(isinstance(found, parse.ReadAccount) and not found.is_own for found in accounts):
        raise NotSupported("Lighter has an account here of a kind whose messages are not known.")
    return tuple(found.index for found in accounts)


class _Watched:
    """The accounts of one subscription: what is pushed of them, joined with the last read."""

    def __init__(
        self, findings: FoundAccounts, subscription: Subscription, priced: _Priced, *, by_wallet: bool
    ) -> None:
        self._findings = findings
        self._subscription = subscription
        self._priced = priced
        self._by_wallet = by_wallet
        self._indexes = _followed(findings)
        self._pushed: dict[int, Pushed] | None = None
        # Whether the accounts' worth moves without a message.
        self._moves = False

    def now(self) -> Sequence[Balance | Changed] | None:
        """What has come makes this; None when a read has found other accounts than those that are followed."""
        states = self._subscription.states
        self._findings = states.get(READ, self._findings)
        if set(_followed(self._findings)) != set(self._indexes):
            return None
        return self._take(states)

    async def turn(self) -> Sequence[Balance | Changed] | None:
        """What the next messages make, or Changed when it is time to read the prices; see `now`."""
        if not await self._wait():
            return (Changed(),)
        await asyncio.sleep(_SETTLING)
        return self.now()

    async def _wait(self) -> bool:
        """Whether something came; False when it is time to read the prices."""
        if not self._moves:
            await anext(self._subscription)
            return True
        with self._priced.counted():
            return await self._subscription.next_within(self._priced.pause()) is not None

    def _take(self, states: Mapping[Any, Any]) -> Sequence[Balance | Changed]:
        before, self._pushed = self._pushed, dict(self._joined(states))
        balance = self._balance(self._pushed)
        self._moves = balance is None or any(pushed.holdings.sizes for pushed in self._pushed.values())
        if before == self._pushed:
            return ()
        if balance is None:
            return (Changed(),)
        if self._by_wallet and before is not None and something_left(before, self._pushed):
            # Perhaps for a new account of the wallet, which only a read finds.
            return (balance, Changed())
        return (balance,)

    def _joined(self, states: Mapping[Any, Any]) -> Iterator[tuple[int, Pushed]]:
        for index in self._indexes:
            figures, held = states.get(f"{MONEY}:{index}"), states.get(f"{HOLDINGS}:{index}")
            if figures is not None and held is not None:
                yield index, Pushed(figures, held)

    def _balance(self, pushed: Mapping[int, Pushed]) -> Balance | None:
        """The balance as a read would give it now; None if what is pushed does not tell it all."""
        accounts: list[parse.Account] = []
        for found in self._findings.accounts:
            known = found if isinstance(found, parse.ReadAccount) and found.is_pool else self._account(found, pushed)
            if known is None:
                return None
            accounts.append(known)
        return self._findings.balance(accounts)

    def _account(self, found: parse.Account, pushed: Mapping[int, Pushed]) -> parse.Account | None:
        if isinstance(found, parse.UnreadAccount) or found.index not in pushed:
            return None
        return account(found, self._findings.begun, pushed[found.index])
